package build

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTwoCheckouts builds everything from two checkouts that differ in all that
// must not matter: their place, the umask that they were made with, the times of
// their files, and what was built before. It is as two people would on two machines
// of the same kind, but for the kernel, which is a small one; it takes minutes, for
// nothing comes from a cache.
func TestTwoCheckouts(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	config, err := ParseConfig("image.yaml", DefaultConfig)
	if err != nil {
		t.Fatal(err)
	}
	first := options(t)
	withEFIStub(t, first.Kernel)
	config.Flavours["small"] = first.Config.Flavours["small"]
	umasks := []int{0o022, 0o077}
	var builds []Options
	for i, umask := range umasks {
		syscall.Umask(umask)
		o := first
		o.Config, o.Cache = config, t.TempDir()
		o.Source = filepath.Join(t.TempDir(), []string{"checkout", "another place/with a longer name"}[i])
		o.Out = filepath.Join(t.TempDir(), "out")
		o.Modules = modulesFolder(t, release, release)
		at := time.Date(1999+10*i, 1, 2, 3, 4, 5, 6, time.UTC)
		checkout(t, first.Source, o.Source, at)
		checkout(t, o.Modules, o.Modules, at)
		builds = append(builds, o)
	}
	var results []map[string]string
	for i, o := range builds {
		syscall.Umask(umasks[i])
		if i == 1 {
			// Go's cache is by content, but would hide a path that gets into it.
			t.Setenv("GOCACHE", t.TempDir())
		}
		if _, err := Build(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		results = append(results, digests(t, o.Out))
	}
	for _, name := range []string{InitramfsFile, UnifiedFile} {
		if results[0]["/"+name] == "" {
			t.Errorf("there is no %s: %v", name, results[0])
		}
	}
	if diff := cmp.Diff(results[0], results[1]); diff != "" {
		var what bytes.Buffer
		if err := Diff(&what, builds[0].Out, builds[1].Out); err != nil {
			t.Error(err)
		}
		t.Errorf("the two differ (-first +second):\n%s\n%s", diff, what.String())
	}
}

// checkout copies the sources of a folder, as git would, with files of that time.
// Into itself, it only sets the times.
func checkout(t *testing.T, from, to string, at time.Time) {
	t.Helper()
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		into := filepath.Join(to, below)
		switch {
		case below == "out", strings.HasPrefix(d.Name(), ".") && below != ".":
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(into, 0o777)
		case from != to && d.Type().IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if err := os.WriteFile(into, data, 0o666); err != nil {
				return err
			}
		}
		return os.Chtimes(into, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
}
