package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxOpenFolders bounds the folders that a Writer keeps open. Archives list a
// folder's files together, so few are in use at any time.
const maxOpenFolders = 256

// inode is what makes two names the same file.
type inode struct{ dev, ino uint64 }

// name is one place in a tree, whatever path led to it.
type name struct {
	folder *folder
	base   string
}

// folder is an open directory. There is never more than one for the same inode.
type folder struct {
	fd    int // O_PATH
	inode inode
	uses  int // entries under way in it; guarded by Writer.mu
	// fat is set where the file system has no owners, modes or attributes.
	fat bool
	// inherits is set if new entries get an ACL from this folder.
	inherits bool
}

// open resolves a clean path to a folder below the Writer's root, through
// symbolic links if there are any, and makes what is missing. The caller holds
// mu, and lets the folder go by unuse.
func (w *Writer) open(path string) (*folder, error) {
	if f := w.byPath[path]; f != nil {
		f.uses++
		return f, nil
	}
	fd, err := w.openFolder(path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) && path != "." {
		fd, err = w.makeParent(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open folder %q: %w", path, err)
	}
	return w.remember(path, fd)
}

// openFolder opens a folder as a process whose root directory is the tree
// would find it.
func (w *Writer) openFolder(path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	return again(func() (int, error) { return unix.Openat2(w.root, path, &how) })
}

// makeParent makes a folder that an archive names only as part of a path, with
// the owner and mode that mkdir -p would give it.
func (w *Writer) makeParent(path string) (int, error) {
	above, base := split(path)
	parent, err := w.open(above)
	if err != nil {
		return -1, err
	}
	defer w.unuse(parent)
	at := name{parent, base}
	w.await(at)
	if err := unix.Mkdirat(parent.fd, base, 0o700); err == nil {
		w.made[w.hash(at)] = struct{}{}
		if err := w.disinherit(at, true); err != nil {
			return -1, err
		}
		if err := unix.Fchmodat(parent.fd, base, 0o755, 0); err != nil && !parent.fat {
			return -1, err
		}
	} else if !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := w.openFolder(path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%w: it is a symbolic link to nothing", err)
	}
	return fd, err
}

// remember puts a newly opened folder into the cache; it takes over fd.
func (w *Writer) remember(path string, fd int) (*folder, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat folder %q: %w", path, err)
	}
	id := inode{st.Dev, st.Ino}
	if f := w.byInode[id]; f != nil {
		unix.Close(fd)
		w.byPath[path] = f
		f.uses++
		return f, nil
	}
	if len(w.byInode) >= maxOpenFolders {
		w.forget()
	}
	fat, known := w.fat[st.Dev]
	if !known {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("file system of folder %q: %w", path, err)
		}
		fat = isFAT(&fs)
		w.fat[st.Dev] = fat
	}
	f := &folder{fd: fd, inode: id, fat: fat, uses: 1}
	if w.replace && !fat {
		// An O_PATH descriptor has no attributes of its own; its name in /proc has.
		_, err := unix.Getxattr(proc(fd), aclDefault, nil)
		f.inherits = err == nil
	}
	w.byInode[id], w.byPath[path] = f, f
	return f, nil
}

// unuse lets a folder go; the caller holds mu. It stays open for the next entry.
func (w *Writer) unuse(f *folder) { f.uses-- }

// forget empties the cache of paths, which is needed when a path may lead
// elsewhere from now on, and closes the folders that nobody uses.
func (w *Writer) forget() {
	clear(w.byPath)
	for id, f := range w.byInode {
		if f.uses == 0 {
			unix.Close(f.fd)
			delete(w.byInode, id)
		}
	}
}

// proc names an open file for those system calls that take no descriptor.
func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// again repeats a system call that a signal cut short, or that openat2 could
// not judge because something was renamed meanwhile.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

// isFAT says whether a file system has no owners, modes or attributes.
func isFAT(fs *unix.Statfs_t) bool {
	return fs.Type == unix.MSDOS_SUPER_MAGIC || fs.Type == unix.EXFAT_SUPER_MAGIC
}
