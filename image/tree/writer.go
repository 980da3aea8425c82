package tree

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrExists is returned for an entry whose place is taken by something that the
// Writer did not make and may not replace.
var ErrExists = errors.New("something else is there already, and nothing says that it may be replaced: mark the wad as an overlay if it should be")

// Writer makes a tree. Its methods are for one goroutine, in the order of the
// archive; the content of the [File]s that it returns may be written by others,
// each by one, and still the result is as if everything had been done in order:
// the later of two entries with one name wins, a link finds its file.
//
// Rules for what is there already, which are GNU tar's but for the last:
// a directory stays and gets the entry's metadata; anything else is replaced by
// the entry, and a directory is replaced only if empty; a directory entry where
// there is a symbolic link to a directory leaves both as they are if Replace is
// set (as tar --keep-directory-symlink does: a merged /usr must survive an
// overlay that holds lib/).
//
// Directories get their metadata in [Writer.Finish].
//
// On FAT, owners, modes, attributes and the times of directories are left out
// because there is no place for them; links, devices and FIFOs are errors.
type Writer struct {
	root    int // O_PATH, the tree's top
	replace bool

	mu      sync.Mutex
	byPath  map[string]*folder
	byInode map[inode]*folder
	fat     map[uint64]bool // by device
	// writing holds the files that are not whole yet, begun how many.
	writing map[name]*File
	begun   uint64
	// made holds hashes of the names that this Writer made: eight bytes for
	// each, because there may be a million.
	made map[uint64]struct{}
	seed maphash.Seed
	// pending are the directories that wait for their metadata.
	pending map[inode]*Entry
}

// NewWriter opens the folder root, which must exist, to write into. With
// replace, what is there already may be replaced; without, only what this
// Writer made itself.
func NewWriter(root string, replace bool) (*Writer, error) {
	fd, err := again(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("open the tree's folder %s: %w", root, err)
	}
	return &Writer{
		root: fd, replace: replace,
		byPath: map[string]*folder{}, byInode: map[inode]*folder{}, fat: map[uint64]bool{},
		writing: map[name]*File{}, made: map[uint64]struct{}{}, seed: maphash.MakeSeed(),
		pending: map[inode]*Entry{},
	}, nil
}

// Close lets go of the tree; it writes nothing. No file may be under way.
func (w *Writer) Close() error {
	w.forget()
	return unix.Close(w.root)
}

// place finds where an entry goes, and waits until no earlier file of that
// name is under way. The caller holds mu, and lets the folder go by unuse.
func (w *Writer) place(path string) (name, error) {
	if path == "." {
		return name{}, errors.New("only a directory can be the tree itself")
	}
	above, base := split(path)
	f, err := w.open(above)
	if err != nil {
		return name{}, err
	}
	at := name{f, base}
	w.await(at)
	return at, nil
}

// await waits, without mu, until no file of this name is under way.
func (w *Writer) await(at name) {
	for {
		f := w.writing[at]
		if f == nil {
			return
		}
		w.awaitFile(f)
	}
}

func (w *Writer) awaitFile(f *File) {
	w.mu.Unlock()
	<-f.done
	w.mu.Lock()
}

func (w *Writer) hash(at name) uint64 {
	var h maphash.Hash
	h.SetSeed(w.seed)
	maphash.WriteComparable(&h, at.folder.inode)
	h.WriteString(at.base)
	return h.Sum64()
}

// make runs create for a place, first removing what is there if the rules
// allow, for an entry that comes after so many files. The caller holds mu.
func (w *Writer) make(at name, after uint64, create func() error) error {
	err := create()
	if errors.Is(err, unix.EEXIST) {
		if err = w.remove(at, after); err == nil {
			err = create()
		}
	}
	if err == nil {
		w.made[w.hash(at)] = struct{}{}
	}
	return err
}

// remove makes room for an entry that comes after so many files. The caller holds mu.
func (w *Writer) remove(at name, after uint64) error {
	if _, ours := w.made[w.hash(at)]; !ours && !w.replace {
		return ErrExists
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.folder.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		// Whether it is empty is known when the files that come before are
		// there. Later ones must not be waited for: they may be waiting for us.
		for at, f := range maps.Clone(w.writing) {
			if at.folder.inode == (inode{st.Dev, st.Ino}) && f.number <= after {
				w.awaitFile(f)
			}
		}
		if err := unix.Unlinkat(at.folder.fd, at.base, unix.AT_REMOVEDIR); err != nil {
			return fmt.Errorf("replace the directory that is there: %w", err)
		}
		delete(w.pending, inode{st.Dev, st.Ino})
		w.forget()
	case unix.S_IFLNK:
		defer w.forget()
		fallthrough
	default:
		if err := unix.Unlinkat(at.folder.fd, at.base, 0); err != nil {
			return fmt.Errorf("replace what is there: %w", err)
		}
	}
	return nil
}

// Directory makes a directory, or takes the one that is there.
func (w *Writer) Directory(e *Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Path == "." {
		return w.postpone(e, w.root, "")
	}
	at, err := w.place(e.Path)
	if err != nil {
		return err
	}
	defer w.unuse(at.folder)
	// Nobody else looks in before the directory is whole.
	create := func() error { return unix.Mkdirat(at.folder.fd, at.base, 0o700) }
	err = create()
	switch {
	case err == nil:
		w.made[w.hash(at)] = struct{}{}
		err = w.disinherit(at, true)
	case errors.Is(err, unix.EEXIST):
		var st unix.Stat_t
		if err = unix.Fstatat(at.folder.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			break
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			break
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && w.replace {
			fd, err := w.openFolder(e.Path, unix.O_PATH)
			if err == nil {
				return unix.Close(fd)
			}
		}
		if err = w.make(at, w.begun, create); err == nil {
			err = w.disinherit(at, true)
		}
	}
	if err != nil {
		return err
	}
	return w.postpone(e, at.folder.fd, at.base)
}

// postpone notes the metadata that a directory will get in Finish.
func (w *Writer) postpone(e *Entry, fd int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	w.pending[inode{st.Dev, st.Ino}] = e
	return nil
}

// Symlink makes a symbolic link. It is not followed, wherever it points.
func (w *Writer) Symlink(e *Entry) error {
	return w.node(e, func(at name) error { return unix.Symlinkat(e.Target, at.folder.fd, at.base) })
}

// Device makes a character or block device or a FIFO.
func (w *Writer) Device(e *Entry) error {
	kind := uint32(unix.S_IFIFO)
	switch e.Kind {
	case CharDevice:
		kind = unix.S_IFCHR
	case BlockDevice:
		kind = unix.S_IFBLK
	}
	// The kernel's own limits: linux/kdev_t.h, MINORBITS 20.
	if e.Major >= 1<<12 || e.Minor >= 1<<20 {
		return fmt.Errorf("no device on Linux has the numbers %d, %d", e.Major, e.Minor)
	}
	number := int(unix.Mkdev(e.Major, e.Minor))
	return w.node(e, func(at name) error { return unix.Mknodat(at.folder.fd, at.base, kind|0o600, number) })
}

// node makes an entry that has no content, with its metadata.
func (w *Writer) node(e *Entry, create func(name) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, err := w.place(e.Path)
	if err != nil {
		return err
	}
	defer w.unuse(at.folder)
	err = w.make(at, w.begun, func() error { return create(at) })
	switch {
	case errors.Is(err, unix.EPERM) && at.folder.fat:
		return fmt.Errorf("FAT cannot hold a %s: %w", e.Kind, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make a %s: %w: it needs root and a file system that holds it", e.Kind, err)
	case err != nil:
		return err
	}
	if err := w.disinherit(at, false); err != nil && e.Kind != Symlink {
		return err
	}
	return describeName(at, e)
}

// Link makes path another name of the file at target, both clean. The file
// must be there already, and nothing of it is changed.
func (w *Writer) Link(path, target string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, err := w.place(target)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer w.unuse(from.folder)
	at, err := w.place(path)
	if err != nil {
		return err
	}
	defer w.unuse(at.folder)
	link := func() error { return unix.Linkat(from.folder.fd, from.base, at.folder.fd, at.base, 0) }
	err = link()
	if errors.Is(err, unix.EEXIST) {
		if same, statErr := sameFile(from, at); statErr != nil || same {
			return statErr
		}
		err = w.make(at, w.begun, link)
	}
	switch {
	case err == nil:
		w.made[w.hash(at)] = struct{}{}
	case errors.Is(err, unix.EPERM) && at.folder.fat:
		return fmt.Errorf("FAT cannot hold a hard link to %q: %w", target, err)
	case err != nil:
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

func sameFile(a, b name) (bool, error) {
	var sa, sb unix.Stat_t
	if err := unix.Fstatat(a.folder.fd, a.base, &sa, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	if err := unix.Fstatat(b.folder.fd, b.base, &sb, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}

// SetXattr sets one extended attribute of an entry that is already there, after
// [Writer.Finish]; it is for attributes whose value is known only then.
func (w *Writer) SetXattr(path, attr string, value []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if path == "." {
		return setXattr(unix.Setxattr, proc(w.root), attr, value)
	}
	at, err := w.place(path)
	if err != nil {
		return err
	}
	defer w.unuse(at.folder)
	if at.folder.fat {
		return nil
	}
	return setXattr(unix.Lsetxattr, proc(at.folder.fd)+"/"+at.base, attr, value)
}

// Finish gives the directories their metadata, the deepest first so that none
// is closed to us before what is in it is done. All files must be closed. Its
// error is a [*fs.PathError] with the directory's path as the entry had it.
func (w *Writer) Finish() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget()
	type directory struct {
		inode
		*Entry
	}
	all := make([]directory, 0, len(w.pending))
	for id, e := range w.pending {
		all = append(all, directory{id, e})
	}
	slices.SortFunc(all, func(a, b directory) int { return strings.Compare(b.Path, a.Path) })
	// "." sorts after every name that begins with a lower byte, yet it is the top.
	if i := slices.IndexFunc(all, func(d directory) bool { return d.Path == "." }); i >= 0 {
		top := all[i]
		all = append(slices.Delete(all, i, i+1), top)
	}
	for _, d := range all {
		if w.fat[d.dev] {
			continue
		}
		if err := w.finish(d.inode, d.Entry); err != nil {
			return &fs.PathError{Op: "finish directory", Path: d.Path, Err: err}
		}
	}
	clear(w.pending)
	return nil
}

func (w *Writer) finish(id inode, e *Entry) error {
	fd, err := w.openFolder(e.Path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if (inode{st.Dev, st.Ino}) != id {
		return errors.New("another one took its place while the tree was written")
	}
	return describe(fd, &st, e)
}
