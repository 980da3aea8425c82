package steps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"reassure/image/spec"
)

// tree is the folder that stands for / .
type tree string

// at is where a path of the new system is.
func (t tree) at(p string) string { return filepath.Join(string(t), p) }

// has says whether any of the paths is there.
func (t tree) has(paths ...string) bool {
	for _, p := range paths {
		if _, err := os.Stat(t.at(p)); err == nil {
			return true
		}
	}
	return false
}

// write makes a file, and the folders above it, in place of whatever file or
// link is there; it appears whole.
func (t tree) write(p, content string, mode spec.Mode, uid, gid int) error {
	return t.put(p, content, mode.FileMode(), uid, gid)
}

// put is write with a mode that means what it says: 0 is nobody, as some
// systems have it for /etc/shadow.
func (t tree) put(p, content string, mode fs.FileMode, uid, gid int) error {
	name := t.at(p)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".reassure-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.WriteString(content)
	// chown takes setuid away, so chmod comes after it.
	err = errors.Join(err, f.Chown(uid, gid), f.Chmod(mode), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", p, err)
	}
	return os.Rename(f.Name(), name)
}

// rewrite replaces a file's content, keeping its owner and mode. Links are
// followed, for it is the file that is meant.
func (t tree) rewrite(p string, change func(text string) (string, error)) error {
	name, err := filepath.EvalSymlinks(t.at(p))
	if err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	after, err := change(string(before))
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if after == string(before) {
		return nil
	}
	owner := info.Sys().(*syscall.Stat_t)
	below, err := filepath.Rel(string(t), name)
	if err != nil {
		return err
	}
	return t.put(below, after, info.Mode(), int(owner.Uid), int(owner.Gid))
}

func (t tree) edit(e *spec.Edit) error {
	return t.rewrite(e.Path, func(text string) (string, error) {
		for _, r := range e.Replace {
			re, err := regexp.Compile("(?m)" + r.Match)
			if err != nil {
				return "", err
			}
			if !re.MatchString(text) && !r.Optional {
				return "", fmt.Errorf("nothing in it matches %q", r.Match)
			}
			text = re.ReplaceAllString(text, r.With)
		}
		if e.Append == "" {
			return text, nil
		}
		// Whole lines are compared: "#PermitRootLogin yes" does not say it.
		if more := wholeLines(e.Append); !strings.Contains("\n"+wholeLines(text), "\n"+more) {
			text = wholeLines(text) + more
		}
		return text, nil
	})
}

// wholeLines ends a text's last line where that was left out.
func wholeLines(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

// remove removes what matches the patterns, folders with all they hold. Links
// are removed, never what they point at. That nothing matches is fine.
func (t tree) remove(patterns ...string) error { return t.removeBut(nil, patterns...) }

// removeBut leaves the files of stay, as they are in the system, alone.
func (t tree) removeBut(stay []string, patterns ...string) error {
	for _, pattern := range patterns {
		names, err := filepath.Glob(t.at(pattern))
		if err != nil {
			return fmt.Errorf("%q: %w", pattern, err)
		}
		// Glob sees no link whose target is gone.
		if _, err := os.Lstat(t.at(pattern)); err == nil {
			names = append(names, t.at(pattern))
		}
		for _, name := range names {
			if err := t.mayRemove(name); err != nil {
				return fmt.Errorf("%q: %w", pattern, err)
			}
		}
		for _, name := range names {
			if slices.ContainsFunc(stay, func(file string) bool { return t.at(file) == name }) {
				continue
			}
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// mayRemove refuses what would take away more than a step can mean.
func (t tree) mayRemove(name string) error {
	below, err := filepath.Rel(string(t), name)
	if err != nil {
		return err
	}
	switch first, _, _ := strings.Cut(below, "/"); first {
	case ".", "..":
		return errors.New("this would remove the whole system")
	case "dev", "proc", "sys":
		return fmt.Errorf("/%s is the reimager's, lent while steps run, and no part of the new system", below)
	}
	return nil
}

// symlink makes a link in place of a file or link that is there.
func (t tree) symlink(p, target string) error {
	name := t.at(p)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if info, err := os.Lstat(name); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder: remove it first", p)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}

func (t tree) limits(l *spec.Limits) error {
	p := l.Path
	if p == "" {
		p = "/etc/security/limits.d/90-reassure.conf"
	}
	var b strings.Builder
	b.WriteString("# Written by ReAssure. See limits.conf(5).\n")
	for _, r := range l.Rules {
		fmt.Fprintf(&b, "%s %s %s %s\n", r.Domain, r.Type, r.Item, r.Value)
	}
	return t.write(p, b.String(), 0o644, 0, 0)
}

// read returns a file's text, empty when it is not there.
func (t tree) read(p string) (string, error) {
	text, err := os.ReadFile(t.at(p))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// sshFolder makes a folder for private keys, and those above it. One that is
// there already is closed to others if it is a user's .ssh, as sshd wants it
// (StrictModes); any other keeps its mode, for it holds more than keys.
func (t tree) sshFolder(p string) error {
	if err := os.MkdirAll(t.at(path.Dir(p)), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(t.at(p), 0o700)
	if errors.Is(err, fs.ErrExist) {
		if path.Base(p) != ".ssh" {
			return nil
		}
		return os.Chmod(t.at(p), 0o700)
	}
	return err
}

// owner returns the owner of a file, or of the nearest folder above it.
func (t tree) owner(p string) (uid, gid int, err error) {
	for {
		info, err := os.Stat(t.at(p))
		if errors.Is(err, fs.ErrNotExist) && p != "/" {
			p = path.Dir(p)
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		stat := info.Sys().(*syscall.Stat_t)
		return int(stat.Uid), int(stat.Gid), nil
	}
}
