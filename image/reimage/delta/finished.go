package delta

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
	"reassure/image/tree"
)

// Index is the index of a finished tree: what the steps have left, compared with
// what wads and templates hold. It lies on the PC's disk, where users are root, so
// it counts only if somebody else knows its digest.
//
// Its text is JSON, a line each: first what is here without Changes, then the
// changes in the order of [tree.Before]. Names, which may be any bytes, are
// written as Go does in double quotes, in ASCII. The same tree has the same text.
type Index struct {
	Schema int `json:"schema"`
	// Software is the digest of what was installed.
	Software spec.Digest `json:"software"`
	// BootImage and CoreImage are the boot loader's files that the commit needs,
	// as paths in the system; empty where there are none.
	BootImage string `json:"boot_image,omitempty"`
	CoreImage string `json:"core_image,omitempty"`

	Changes []Change `json:"-"`
}

// indexSchema is the version of [Index] that this code writes and reads.
const indexSchema = 1

// MaxIndex is the most bytes that the text of an [Index] may have: it and what is
// read from it are kept in memory.
const MaxIndex = 16 << 20

// Own are the files that a reimage leaves for the next, and that no comparison
// looks at.
func Own() []string { return []string{spec.StampFile, spec.FinishedFile} }

// changeLine is a [Change] as it is written.
type changeLine struct {
	Path    string            `json:"path"`
	Gone    bool              `json:"gone,omitempty"`
	Kind    tree.Kind         `json:"kind,omitempty"`
	Mode    uint32            `json:"mode,omitempty"`
	UID     uint32            `json:"uid,omitempty"`
	GID     uint32            `json:"gid,omitempty"`
	Time    [2]int64          `json:"time,omitzero"` // seconds since 1970, nanoseconds
	Target  string            `json:"target,omitempty"`
	Device  [2]uint32         `json:"device,omitzero"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
	Size    int64             `json:"size,omitempty"`
	SHA256  spec.Digest       `json:"sha256,omitzero"`
	Implied bool              `json:"implied,omitempty"`
}

// Finished compares the file systems mounted below root, in which steps have run
// since a moment at which they were what they should be, and lists what the steps
// changed. Nobody else may have had a hand in between: what has not been changed
// since is not read. What o keeps, or expects to differ, is left out, and so are
// the files that a reimage leaves for the next.
func (t *Tree) Finished(ctx context.Context, root string, since time.Time, o CheckOptions) ([]Change, error) {
	o.Keep = append(Own(), o.Keep...)
	// The clock of inodes is behind by up to a tick, of 10 ms at most (CONFIG_HZ=100).
	o.since = since.Add(-20 * time.Millisecond)
	var all []Change
	for f, err := range t.Check(ctx, root, o) {
		if err != nil {
			return nil, err
		}
		if f.Runtime || f.Path == ownFolder {
			continue
		}
		at := filepath.Join(root, f.Path)
		var st unix.Stat_t
		switch err := unix.Lstat(at, &st); {
		case errors.Is(err, unix.ENOTDIR): // it went with its folder, whose place something else has
			continue
		case errors.Is(err, unix.ENOENT):
			all = append(all, Change{Path: f.Path})
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "lstat", Path: at, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && (f.Want == nil || f.Want.Kind != tree.Directory) {
			if all, err = appendTree(all, root, f.Path); err != nil {
				return nil, err
			}
			continue
		}
		if all, err = appendEntry(all, root, f.Path); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// errLinked is about what no index can hold.
var errLinked = errors.New("a step made a file with several names, which the index of a finished tree does not hold")

func appendEntry(all []Change, root, path string) ([]Change, error) {
	e, err := tree.Read(filepath.Join(root, path))
	if err != nil {
		return nil, err
	}
	if e.Links > 1 {
		return nil, fmt.Errorf("%q: %w", path, errLinked)
	}
	e.Path = path
	return append(all, Change{Path: path, Want: e}), nil
}

// appendTree adds a folder with all that is in it.
func appendTree(all []Change, root, folder string) ([]Change, error) {
	err := filepath.WalkDir(filepath.Join(root, folder), func(at string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path, err := filepath.Rel(root, at)
		if err != nil {
			return err
		}
		all, err = appendEntry(all, root, path)
		return err
	})
	return all, err
}

// ownFolder holds the files of [Own]. Its time is that of the last reimage.
const ownFolder = "etc/reassure"

// Marshal writes the index.
func (x *Index) Marshal() ([]byte, error) {
	x.Schema = indexSchema
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	err := lines.Encode(x)
	for _, c := range x.Changes {
		l := changeLine{Path: strconv.QuoteToASCII(c.Path), Gone: c.Want == nil}
		if e := c.Want; e != nil {
			l.Kind, l.Mode, l.UID, l.GID, l.Device = e.Kind, e.Mode, e.UID, e.GID, [2]uint32{e.Major, e.Minor}
			l.Size, l.SHA256, l.Implied, l.Xattrs = e.Size, e.SHA256, e.Implied, e.Xattrs
			if !e.ModTime.IsZero() {
				l.Time = [2]int64{e.ModTime.Unix(), int64(e.ModTime.Nanosecond())}
			}
			if e.Kind == tree.Symlink {
				l.Target = strconv.QuoteToASCII(e.Target)
			}
		}
		err = errors.Join(err, lines.Encode(l))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("index of the finished tree: %w", err)
	case text.Len() > MaxIndex:
		return nil, fmt.Errorf("index of the finished tree: the steps changed so much that it has %d bytes, more than %d", text.Len(), MaxIndex)
	}
	return text.Bytes(), nil
}

// ParseIndex reads an index, strictly.
func ParseIndex(text []byte) (*Index, error) {
	x := new(Index)
	r := json.NewDecoder(bufio.NewReader(bytes.NewReader(text)))
	r.DisallowUnknownFields()
	if err := r.Decode(x); err != nil {
		return nil, fmt.Errorf("index of the finished tree: %w", err)
	}
	if x.Schema != indexSchema {
		return nil, fmt.Errorf("index of the finished tree: its schema is %d, and this program reads %d", x.Schema, indexSchema)
	}
	last := ""
	for {
		var l changeLine
		err := r.Decode(&l)
		if err == io.EOF {
			return x, nil
		}
		c, err := l.change(err)
		if err == nil && last != "" && !tree.Before(last, c.Path) {
			err = fmt.Errorf("%q comes after %q", c.Path, last)
		}
		if err != nil {
			return nil, fmt.Errorf("index of the finished tree, line %d: %w", len(x.Changes)+2, err)
		}
		last = c.Path
		x.Changes = append(x.Changes, c)
	}
}

func (l *changeLine) change(err error) (Change, error) {
	if err != nil {
		return Change{}, err
	}
	path, err := strconv.Unquote(l.Path)
	if err != nil {
		return Change{}, fmt.Errorf("path %s: %w", l.Path, err)
	}
	if clean, err := tree.Clean(path); err != nil || clean != path {
		return Change{}, fmt.Errorf("path %s is not a path in the tree", l.Path)
	}
	if l.Gone {
		return Change{Path: path}, nil
	}
	if l.Kind < tree.Regular || l.Kind > tree.Socket {
		return Change{}, fmt.Errorf("%s is of no kind that is known", l.Path)
	}
	e := &tree.Expected{
		Entry: tree.Entry{
			Path: path, Kind: l.Kind, Mode: l.Mode, UID: l.UID, GID: l.GID, Major: l.Device[0], Minor: l.Device[1], Xattrs: l.Xattrs,
		},
		Size: l.Size, SHA256: l.SHA256, Implied: l.Implied,
	}
	if l.Time != [2]int64{} {
		e.ModTime = time.Unix(l.Time[0], l.Time[1])
	}
	if l.Target != "" {
		if e.Target, err = strconv.Unquote(l.Target); err != nil {
			return Change{}, fmt.Errorf("target of %s: %w", l.Path, err)
		}
	}
	return Change{Path: path, Want: e}, nil
}

// Prepare makes the folder for the files that a reimage leaves, so that its making
// is not taken for a change later.
func Prepare(root *os.Root) error { return root.MkdirAll(ownFolder, 0o755) }
