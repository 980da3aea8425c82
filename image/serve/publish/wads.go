package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/google/renameio/v2"

	"reassure/image/resolve"
	"reassure/image/spec"
)

// WadFolder is a folder that holds the wads that manifests name, each at the
// place that the manifest gives it ([resolve.PublishedWad]).
type WadFolder struct {
	Out  string        // the folder
	Wads *resolve.Wads // the site's, measured
	// Copy has files copied that could be links: whoever writes into the site's
	// file then leaves what PCs are being reimaged with as it was. Where the file
	// system can, the two share their blocks.
	Copy bool
	Log  *slog.Logger
}

// Write puts every wad that a manifest names below the folder, and returns how
// many were not there yet.
func (f *WadFolder) Write(ctx context.Context, manifests []*spec.Manifest) (written int, err error) {
	done := map[string]bool{}
	for _, m := range manifests {
		for _, w := range m.Wads {
			name := resolve.PublishedWad(w.Name, w.SHA256)
			if done[name] {
				continue
			}
			done[name] = true
			if err := ctx.Err(); err != nil {
				return written, err
			}
			fresh, err := f.write(name, w)
			if err != nil {
				return written, fmt.Errorf("wad %s: %w", w.Name, err)
			}
			if fresh {
				written++
			}
		}
	}
	return written, nil
}

func (f *WadFolder) write(name string, w spec.Wad) (fresh bool, err error) {
	source, err := filepath.EvalSymlinks(f.Wads.Path(w.Name))
	if err != nil {
		return false, err
	}
	from, err := os.Stat(source)
	if err != nil {
		return false, err
	}
	target := filepath.Join(f.Out, filepath.FromSlash(name))
	if there, err := os.Lstat(target); err == nil && there.Mode().IsRegular() {
		// A copy has its source's time: one that somebody wrote to has not.
		if os.SameFile(from, there) || from.Size() == there.Size() && from.ModTime().Equal(there.ModTime()) {
			return false, nil
		}
	}
	if err := folder(filepath.Dir(target)); err != nil {
		return false, err
	}
	if !f.Wads.Unchanged(w.Name) {
		return false, errors.New("changed since it was read: publish again when it is complete")
	}
	f.Log.Info("publishing wad", "file", w.Name, "size", w.Size)
	// A link has the file's own mode; the server must be able to read it.
	linked := false
	if !f.Copy && from.Mode().Perm()&0o004 != 0 {
		linked = link(source, target) == nil
	}
	if !linked {
		if err := copyFile(source, target, from); err != nil {
			return false, err
		}
	}
	if !f.Wads.Unchanged(w.Name) {
		return false, errors.Join(errors.New("was changed while it was published: publish again when it is complete"), os.Remove(target))
	}
	return true, nil
}

// link makes target another name of source, atomically.
func link(source, target string) error {
	scratch, err := os.MkdirTemp(filepath.Dir(target), ".new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := os.Link(source, filepath.Join(scratch, "wad")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(scratch, "wad"), target)
}

// copyFile copies atomically; where the file system can, the two share their
// blocks (io.Copy uses copy_file_range(2)).
func copyFile(source, target string, info fs.FileInfo) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := renameio.NewPendingFile(target, renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer out.Cleanup()
	if _, err := io.Copy(out.File, in); err != nil {
		return err
	}
	if err := os.Chtimes(out.Name(), time.Time{}, info.ModTime()); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}

// wadName is what [resolve.PublishedWad] gives to wads.
var wadName = regexp.MustCompile(`^wads/[0-9a-f]{12}/`)

// Retire removes wads that have not been named for a day, for PCs may still be
// reimaging with one. named are those in use, and retired those that were not at
// the last call, with the time since when; it returns what retired is from now on.
func (f *WadFolder) Retire(named map[string]bool, retired map[string]time.Time, now time.Time) (map[string]time.Time, error) {
	root := filepath.Join(f.Out, resolve.WadsFolder)
	now = now.UTC().Truncate(time.Second)
	next := map[string]time.Time{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == root {
			return nil // a site without hosts has no wads
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(f.Out, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if named[name] || !wadName.MatchString(name) {
			return nil
		}
		since, ok := retired[name]
		if !ok {
			since = now
		}
		if now.Sub(since) < keepWads {
			next[name] = since
			return nil
		}
		f.Log.Info("removing wad that is no longer used", "file", name)
		if err := os.Remove(path); err != nil {
			return err
		}
		for dir := filepath.Dir(path); dir != root; dir = filepath.Dir(dir) {
			if os.Remove(dir) != nil {
				break // it holds others
			}
		}
		return nil
	})
	if len(next) == 0 {
		next = nil
	}
	return next, err
}
