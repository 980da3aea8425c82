package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/sign"
)

// TestKeyNew has a site's key be followed by another: an image that is built with both
// public keys trusts what either has signed, and one that is not does not.
func TestKeyNew(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	must(t, "key")
	dir := filepath.Join(t.TempDir(), "2027")
	if got := must(t, "key", "new", dir); !strings.Contains(got, filepath.Join(dir, "site.pub")) {
		t.Errorf("key new: %s", got)
	}
	if _, errs, code := reassure(t, "key", "new", dir); code != 1 || !strings.Contains(errs, "is there already") {
		t.Errorf("a second time: %d, %s", code, errs)
	}
	if info, err := os.Stat(filepath.Join(dir, "site.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	key, err := sign.LoadPrivateKey(filepath.Join(dir, "site.key"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := sign.LoadPrivateKey(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "reassure", "site.key"))
	if err != nil {
		t.Fatal(err)
	}
	text := []byte("a manifest")
	both := sign.Keyring{old.Public(), key.Public()}
	for _, k := range []*sign.PrivateKey{old, key} {
		if _, err := both.Verify(text, k.Sign(text, "")); err != nil {
			t.Error(err)
		}
	}
	if _, err := (sign.Keyring{old.Public()}).Verify(text, key.Sign(text, "")); err == nil {
		t.Error("an image that was built before trusts the new key")
	}
}
