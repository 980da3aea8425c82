package resolve

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/wad"
)

// indexed makes an indexed wad of a folder with one file.
func indexed(t *testing.T, path, text string) *wad.Index {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "etc/motd"), text)
	x, err := wad.PackFolder(t.Context(), dir, path, wad.FolderOptions{}, wad.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// A manifest binds the index of a wad that has one; the software's digest does
// not depend on it.
func TestIndexedWads(t *testing.T) {
	dir := site(t, nil)
	path := filepath.Join(dir, "wads/debian.tar.zst")
	x := indexed(t, path, "hello")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := mustResolve(t, dir)["exp02"]
	got := m.Wads[0]
	if got.Index == nil || *got.Index != x.Bound() || got.SHA256 != spec.Sum(text) || got.Size != spec.Size(len(text)) {
		t.Fatalf("%+v, index %+v; want the index %+v", got, got.Index, x.Bound())
	}
	if got.Index.SHA256 != spec.Sum(text[:x.Size]) {
		t.Error("the index's digest is not that of the file's first bytes")
	}
	if digest := m.Digest; digest != stamp.Digest(m) {
		t.Errorf("digest %v", digest)
	} else if m.Wads[0].Index = nil; stamp.Digest(m) != digest {
		t.Error("the digest of the software depends on the index")
	}
	if plain := mustResolve(t, dir)["exp01"].Wads[0]; plain.Index != nil {
		t.Errorf("the plain wad has an index: %+v", plain)
	}

	t.Run("kept", func(t *testing.T) {
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		measure := func() WadInfo {
			w := &Wads{Dir: filepath.Join(dir, WadsFolder)}
			info, err := w.Measure(t.Context(), "debian.tar.zst")
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Save(); err != nil {
				t.Fatal(err)
			}
			return info
		}
		measure()
		cache := filepath.Join(dir, WadsFolder, digestsFile)
		kept, err := os.ReadFile(cache)
		if err != nil {
			t.Fatal(err)
		}
		if again := measure(); again.Index == nil || *again.Index != x.Bound() {
			t.Errorf("from the cache: %+v", again.Index)
		}
		// What was measured before there were indexes.
		var entries map[string]map[string]any
		if err := json.Unmarshal(kept, &entries); err != nil {
			t.Fatal(err)
		}
		delete(entries["debian.tar.zst"], "index")
		before, err := json.Marshal(entries)
		if err != nil {
			t.Fatal(err)
		}
		put(t, cache, string(before))
		if again := measure(); again.Index == nil || *again.Index != x.Bound() {
			t.Errorf("from an old cache: %+v", again.Index)
		}
	})
	for name, damage := range map[string]func([]byte) []byte{
		"in the index": func(b []byte) []byte { b[40] ^= 1; return b },
		"cut short":    func(b []byte) []byte { return b[:len(b)-1] },
		"only a start": func(b []byte) []byte { return b[:30] },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, damage(bytes.Clone(text)), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := resolveAll(t, dir); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "index") {
				t.Errorf("%v; want an error that names %s and its index", err, path)
			}
		})
	}
}
