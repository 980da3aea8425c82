package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Difference is one thing in which two trees differ.
type Difference struct {
	Path string // relative to the trees
	// What differs: entry, kind, mode, owner, time, size, content, target,
	// device, links, or the name of an attribute.
	What string
	A, B string // as found in each tree
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s, %s", d.Path, d.What, d.A, d.B)
}

// Compare lists the differences of two trees in everything that a [Writer]
// writes: the set of entries, kind, mode, owner, content, target of symbolic
// links, which names are the same file, attributes, device numbers and times of
// change to the nanosecond; in the order of a and then what only b has.
// Timestamps are compared but never trusted: every file is read. It does not
// look at access times, holes, or whatever is mounted inside. An error is about
// something that could not be read; then there is no list.
func Compare(a, b string) ([]Difference, error) {
	ta, err := read(a)
	if err != nil {
		return nil, err
	}
	tb, err := read(b)
	if err != nil {
		return nil, err
	}
	var all []Difference
	for _, path := range slices.Sorted(maps.Keys(ta)) {
		if other, ok := tb[path]; ok {
			all = append(all, diff(path, ta[path], other)...)
		} else {
			all = append(all, Difference{path, "entry", ta[path].Kind.String(), "missing"})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(tb)) {
		if _, ok := ta[path]; !ok {
			all = append(all, Difference{path, "entry", "missing", tb[path].Kind.String()})
		}
	}
	return all, nil
}

// found is an entry as it lies on a file system.
type found struct {
	Entry
	size    int64
	content [sha256.Size]byte
	// first is the first name, in order, of the same file.
	first string
}

func read(root string) (map[string]*found, error) {
	all := map[string]*found{}
	firsts := map[inode]string{}
	var device uint64
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, st, err := readEntry(path)
		if err != nil {
			return err
		}
		if path == root {
			device = st.Dev
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f.Path, f.first = rel, rel
		if f.Kind != Directory && st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if first, ok := firsts[id]; ok {
				f.first = first
			}
			firsts[id] = f.first
		}
		all[rel] = f
		if st.Dev != device {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the tree %s: %w", root, err)
	}
	return all, nil
}

func readEntry(path string) (*found, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	f := &found{Entry: Entry{
		Kind: kindOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		ModTime: time.Unix(st.Mtim.Unix()),
	}}
	var err error
	switch f.Kind {
	case Regular:
		f.size = st.Size
		f.content, err = digest(path)
	case Symlink:
		f.Target, err = os.Readlink(path)
	case CharDevice, BlockDevice:
		f.Major, f.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err != nil {
		return nil, nil, err
	}
	f.Xattrs, err = xattrs(path)
	return f, &st, err
}

func digest(path string) (sum [sha256.Size]byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return sum, fmt.Errorf("read %s: %w", path, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// xattrs reads all attributes of a file that may be a symbolic link.
func xattrs(path string) (map[string][]byte, error) {
	names, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the attributes of %s: %w", path, err)
	}
	all := map[string][]byte{}
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if attr == "" {
			continue
		}
		all[attr], err = grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, attr, buf) })
		if err != nil {
			return nil, fmt.Errorf("read the attribute %s of %s: %w", attr, path, err)
		}
	}
	return all, nil
}

// grow calls with a buffer that is large enough.
func grow(call func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := call(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buf := make([]byte, size)
		n, err := call(buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		return buf[:max(n, 0)], err
	}
}

func diff(path string, a, b *found) []Difference {
	if a.Kind != b.Kind {
		return []Difference{{path, "kind", a.Kind.String(), b.Kind.String()}}
	}
	var all []Difference
	check := func(what, a, b string) {
		if a != b {
			all = append(all, Difference{path, what, a, b})
		}
	}
	check("mode", fmt.Sprintf("%04o", a.Mode), fmt.Sprintf("%04o", b.Mode))
	check("owner", fmt.Sprintf("%d:%d", a.UID, a.GID), fmt.Sprintf("%d:%d", b.UID, b.GID))
	check("time", a.ModTime.UTC().Format(time.RFC3339Nano), b.ModTime.UTC().Format(time.RFC3339Nano))
	check("size", fmt.Sprint(a.size), fmt.Sprint(b.size))
	check("content", fmt.Sprintf("%x", a.content[:6]), fmt.Sprintf("%x", b.content[:6]))
	check("target", a.Target, b.Target)
	check("device", fmt.Sprintf("%d, %d", a.Major, a.Minor), fmt.Sprintf("%d, %d", b.Major, b.Minor))
	check("links", a.first, b.first)
	names := map[string]bool{}
	for attr := range a.Xattrs {
		names[attr] = true
	}
	for attr := range b.Xattrs {
		names[attr] = true
	}
	for _, attr := range slices.Sorted(maps.Keys(names)) {
		va, inA := a.Xattrs[attr]
		vb, inB := b.Xattrs[attr]
		if inA != inB || !bytes.Equal(va, vb) {
			check(attr, attribute(va, inA), attribute(vb, inB))
		}
	}
	return all
}

func attribute(value []byte, there bool) string {
	if !there {
		return "missing"
	}
	return fmt.Sprintf("%q", value)
}
