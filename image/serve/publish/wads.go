package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/google/renameio/v2"

	"reassure/image/resolve"
	"reassure/image/spec"
)

// writeWads puts every wad that a manifest names below Out.
func (p *publishing) writeWads(ctx context.Context) error {
	done := map[string]bool{}
	for _, m := range p.manifests {
		for _, w := range m.Wads {
			name := resolve.PublishedWad(w.Name, w.SHA256)
			if done[name] {
				continue
			}
			done[name] = true
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.writeWad(name, w); err != nil {
				return fmt.Errorf("wad %s: %w", w.Name, err)
			}
		}
	}
	return nil
}

func (p *publishing) writeWad(name string, w spec.Wad) error {
	source, err := filepath.EvalSymlinks(p.wads.Path(w.Name))
	if err != nil {
		return err
	}
	from, err := os.Stat(source)
	if err != nil {
		return err
	}
	target := filepath.Join(p.Out, filepath.FromSlash(name))
	if there, err := os.Lstat(target); err == nil && there.Mode().IsRegular() {
		// A copy has its source's time: one that somebody wrote to has not.
		if os.SameFile(from, there) || from.Size() == there.Size() && from.ModTime().Equal(there.ModTime()) {
			return nil
		}
	}
	if err := folder(filepath.Dir(target)); err != nil {
		return err
	}
	if !p.wads.Unchanged(w.Name) {
		return errors.New("changed since it was read: publish again when it is complete")
	}
	p.Log.Info("publishing wad", "file", w.Name, "size", w.Size)
	// A link has the file's own mode; the server must be able to read it.
	linked := false
	if from.Mode().Perm()&0o004 != 0 {
		linked = link(source, target) == nil
	}
	if !linked {
		if err := copyFile(source, target, from); err != nil {
			return err
		}
	}
	if !p.wads.Unchanged(w.Name) {
		return errors.Join(errors.New("was changed while it was published: publish again when it is complete"), os.Remove(target))
	}
	p.result.Wads++
	return nil
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

// removeWads retires wads that are no longer named, and removes those that have
// been retired for long enough.
func (p *publishing) removeWads(named map[string]bool) error {
	root := filepath.Join(p.Out, resolve.WadsFolder)
	now := p.Now().UTC().Truncate(time.Second)
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == root {
			return nil // a site without hosts has no wads
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(p.Out, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if named[name] || !wadName.MatchString(name) {
			return nil
		}
		since, ok := p.old.Retired[name]
		if !ok {
			since = now
		}
		if now.Sub(since) < keepWads {
			if p.next.Retired == nil {
				p.next.Retired = map[string]time.Time{}
			}
			p.next.Retired[name] = since
			return nil
		}
		p.Log.Info("removing wad that is no longer used", "file", name)
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
}
