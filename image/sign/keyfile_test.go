package sign

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestEnsureSiteKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc", "keys")
	private, public, created, err := EnsureSiteKey(dir)
	if err != nil || !created || private != filepath.Join(dir, "site.key") || public != filepath.Join(dir, "site.pub") {
		t.Fatalf("EnsureSiteKey = %s, %s, %v, %v", private, public, created, err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, private: 0o600, public: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%d files, %v; want the two keys alone", len(entries), err)
	}
	key, err := LoadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := LoadKeyring(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if comment, err := ring.Verify([]byte("m"), key.Sign([]byte("m"), "c")); err != nil || comment != "c" {
		t.Errorf("the pair does not work: %q, %v", comment, err)
	}

	// Again: the same; and a lost public half is made from the private one.
	if err := os.Remove(public); err != nil {
		t.Fatal(err)
	}
	if _, _, created, err := EnsureSiteKey(dir); err != nil || created {
		t.Errorf("EnsureSiteKey again = %v, %v", created, err)
	}
	if again, err := LoadKeyring(os.DirFS(dir)); err != nil || len(again) != 1 || again[0] != ring[0] {
		t.Errorf("the key changed: %v, %v", again, err)
	}
}

func TestEnsureSiteKeyReplacesNothing(t *testing.T) {
	key, other := newKey(t, 1), newKey(t, 2)
	for name, c := range map[string]struct {
		private, public []byte
		says            string
	}{
		"private key is damaged":   {[]byte("damaged"), nil, "site.key"},
		"private key is empty":     {[]byte{}, nil, "site.key"},
		"private key is missing":   {nil, key.Public().Text(), "restore the private key"},
		"public key is another's":  {key.Text(), other.Public().Text(), "not the public half"},
		"public key is unreadable": {key.Text(), []byte("damaged"), "move it away"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := map[string][]byte{"site.key": c.private, "site.pub": c.public}
			for name, text := range before {
				if text != nil {
					write(t, dir, name, text)
				}
			}
			if _, _, created, err := EnsureSiteKey(dir); err == nil || created || !strings.Contains(err.Error(), c.says) {
				t.Errorf("EnsureSiteKey = %v, %v; want %q", created, err, c.says)
			}
			for name, text := range before {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if (text == nil) != os.IsNotExist(err) || string(got) != string(text) {
					t.Errorf("%s is %q now, %v", name, got, err)
				}
			}
		})
	}
}

func TestEnsureSiteKeyByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var made sync.Map
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			private, _, created, err := EnsureSiteKey(dir)
			if err != nil {
				t.Error(err)
				return
			}
			key, err := LoadPrivateKey(private)
			if err != nil {
				t.Error(err)
				return
			}
			if created {
				made.Store(i, true)
			}
			if first, _ := made.LoadOrStore("key", key.Public()); first != key.Public() {
				t.Error("two keys were made")
			}
		})
	}
	group.Wait()
	makers := 0
	made.Range(func(_, _ any) bool { makers++; return true })
	if makers != 2 { // one maker, and the key
		t.Errorf("%d say that they made the key", makers-1)
	}
}

func TestLoadPrivateKeyRefuses(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "site.key", newKey(t, 1).Text())
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPrivateKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPrivateKey(path); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
	for _, path := range []string{filepath.Join(dir, "none"), dir} {
		if _, err := LoadPrivateKey(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
