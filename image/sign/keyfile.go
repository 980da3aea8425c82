package sign

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of a site's keys in their folder.
const (
	siteKey    = "site.key"
	sitePublic = "site.pub"
)

// LoadPrivateKey reads a private key file, and refuses one that others than its
// owner may read.
func LoadPrivateKey(path string) (*PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("private key %s: not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("private key %s can be read or changed by others (mode %04o): run chmod 600 %s, and make a new key if others use this machine",
			path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	key, err := ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// EnsureSiteKey returns the paths of a site's two keys, dir/site.key (mode 0600)
// and dir/site.pub, and makes them, and dir (0700), if there are none. It never
// replaces a key: one that cannot be used is an error, and so is a public key
// whose private one is missing, since images trust it. Several may call it at
// once: one makes the key, all return it.
func EnsureSiteKey(dir string) (private, public string, created bool, err error) {
	private, public = filepath.Join(dir, siteKey), filepath.Join(dir, sitePublic)
	fail := func(err error) (string, string, bool, error) {
		return "", "", false, fmt.Errorf("site key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	_, err = os.Lstat(private)
	if errors.Is(err, fs.ErrNotExist) {
		if created, err = createSiteKey(private, public); err != nil {
			return fail(err)
		}
	} else if err != nil {
		return fail(err)
	}
	key, err := LoadPrivateKey(private)
	if err != nil {
		return fail(err)
	}
	// It may be missing, if making the pair was cut short or someone else is at it.
	if err := writeNew(public, key.Public().Text(), 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	text, err := os.ReadFile(public)
	if err != nil {
		return fail(err)
	}
	if got, err := ParsePublicKey(text); err != nil {
		return fail(fmt.Errorf("%s: %w: move it away, and it is made anew", public, err))
	} else if got != key.Public() {
		return fail(fmt.Errorf("%s (%s) is not the public half of %s (%s): put the right one back", public, got.ID, private, key.Public().ID))
	}
	return private, public, created, nil
}

// createSiteKey makes the private key file, and says whether it was us and not
// someone else in the meantime.
func createSiteKey(private, public string) (bool, error) {
	// The private key is the first to be written, so a public one is another's half.
	if _, err := os.Lstat(public); err == nil {
		if _, err := os.Lstat(private); errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("%s is there without %s: restore the private key, or move the public one away to begin with a new pair, which only newly built images trust", public, private)
		}
		return false, nil
	}
	key, err := NewKey(rand.Reader)
	if err != nil {
		return false, err
	}
	err = writeNew(private, key.Text(), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// writeNew makes a file appear whole, on stable storage, or fails with
// fs.ErrExist if there is one of the name.
func writeNew(path string, text []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	// Unlike a rename, a link never replaces.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
