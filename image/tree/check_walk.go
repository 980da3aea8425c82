package tree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxNames bounds the memory for the names of all folders on the way to the
// present one: two million names, or fewer long ones.
const maxNames = 96 << 20

// checker is the state of one [Check].
type checker struct {
	CheckOptions
	ctx                   context.Context
	keep, runtime, mounts paths

	jobs     chan *item // for the workers
	parts    chan *part // for those that have nothing to do
	unjudged sync.WaitGroup
	judged   chan struct{} // closed when there will be no more jobs, or parts of them
	ordered  chan *item    // for the caller: all that may turn out to be a fault
	bytes    atomic.Int64

	// What follows is the walk's own.
	stack  []*level
	held   int // bytes of the names in stack
	groups map[groupKey]*group
	kept   map[groupKey]int // how many of a file's names are to be kept
	fat    map[uint64]bool  // by device
}

// level is a folder on the way to where the walk is. Without dir there is none
// on the disk; then what is expected in it is missing, or kept unseen.
type level struct {
	path  string
	dir   *dir
	kept  bool
	inode inode
	// lostFound allows e2fsck's folder, which every file system of the ext family has.
	lostFound bool
	names     []dirent // sorted
	cost      int
}

type dirent struct {
	name string
	kind Kind // 0: the file system does not say
}

// dir is an open folder. It is closed when the walk has left it and all its
// files have been read.
type dir struct {
	fd   int
	fat  bool
	uses atomic.Int32
}

func (d *dir) release() {
	if d != nil && d.uses.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// walk goes through the tree and what is expected of it side by side.
func (c *checker) walk(root string, expected iter.Seq2[*Expected, error]) error {
	defer func() {
		for _, l := range c.stack {
			l.dir.release()
		}
	}()
	// The tree's own name may be a link; "." in it is not.
	link, err := again(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("open the tree's folder %s: %w", root, err)
	}
	defer unix.Close(link)
	fd, err := openIn(link, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return fmt.Errorf("open the tree's folder %s: %w", root, err)
	}
	if err := c.enter(fd, &Expected{Entry: Entry{Path: "."}}, true); err != nil {
		return err
	}
	if c.keep.at["."] {
		return nil
	}
	if err := c.countKept(expected); err != nil {
		return err
	}
	last := ""
	for e, err := range expected {
		if err != nil {
			return err
		}
		if c.ctx.Err() != nil {
			return nil
		}
		if last != "" && !Before(last, e.Path) {
			return fmt.Errorf("%w: %q comes after %q", ErrOrder, e.Path, last)
		}
		last = e.Path
		if len(c.kept) > 0 && e.Links > 1 {
			e = c.apart(e)
		}
		if e.Path == "." {
			err = c.top(e)
		} else {
			err = c.visit(e)
		}
		if err != nil {
			return at(e.Path, err)
		}
	}
	return c.leave("")
}

// countKept counts the names of expected files that are to be kept.
func (c *checker) countKept(expected iter.Seq2[*Expected, error]) error {
	if len(c.keep.at) == 0 {
		return nil
	}
	for e, err := range expected {
		if err != nil {
			return err
		}
		if e.Links > 1 && e.Kind != Directory && c.keep.holds(e.Path) {
			c.kept[keyOf(e)]++
		}
	}
	return nil
}

// apart parts a file whose names are not all to be kept from those that are.
func (c *checker) apart(e *Expected) *Expected {
	n := c.kept[keyOf(e)]
	if n == 0 {
		return e
	}
	file := *e
	file.Links -= n
	if c.keep.holds(e.Path) {
		file.Links, file.First = 1, ""
	}
	return &file
}

// at says where in the tree something went wrong.
func at(path string, err error) error {
	if already := (*fs.PathError)(nil); errors.As(err, &already) || errors.Is(err, ErrOrder) {
		return err
	}
	return &fs.PathError{Op: "check", Path: path, Err: err}
}

// order hands an item to the caller, in the order of the walk.
func (c *checker) order(it *item) {
	select {
	case c.ordered <- it:
	case <-c.ctx.Done():
	}
}

// leave goes up to the folder with this path; all that is left in the folders
// on the way should not be there.
func (c *checker) leave(to string) error {
	for len(c.stack) > 0 {
		l := c.stack[len(c.stack)-1]
		if l.path == to {
			return nil
		}
		for len(l.names) > 0 {
			if err := c.extra(l); err != nil {
				return err
			}
		}
		c.stack = c.stack[:len(c.stack)-1]
		c.held -= l.cost
		l.dir.release()
	}
	return nil
}

// top compares the tree's own folder.
func (c *checker) top(e *Expected) error {
	if e.Kind != Directory {
		return errors.New("only a directory can be the tree itself")
	}
	l := c.stack[0]
	st, err := stat(l.dir.fd, "")
	if err != nil {
		return err
	}
	return c.folder(l.dir, e, st)
}

// visit compares one name. All names before it have been dealt with.
func (c *checker) visit(e *Expected) error {
	parent, base := split(e.Path)
	if err := c.leave(parent); err != nil {
		return err
	}
	if len(c.stack) == 0 {
		return fmt.Errorf("%w: the folder of %q does not come before it", ErrOrder, e.Path)
	}
	l := c.stack[len(c.stack)-1]
	if l.dir == nil {
		if !l.kept {
			c.order(&item{path: e.Path, want: e, verdict: missing(e)})
		}
		if e.Kind == Directory {
			c.stack = append(c.stack, &level{path: e.Path, kept: l.kept})
		}
		return nil
	}
	for len(l.names) > 0 && l.names[0].name < base {
		if err := c.extra(l); err != nil {
			return err
		}
	}
	if len(l.names) == 0 || l.names[0].name != base {
		c.order(&item{path: e.Path, want: e, verdict: missing(e)})
		if e.Kind == Directory {
			c.stack = append(c.stack, &level{path: e.Path})
		}
		return nil
	}
	l.names = l.names[1:]
	if c.keep.at[e.Path] {
		if e.Kind == Directory {
			c.stack = append(c.stack, &level{path: e.Path, kept: true})
		}
		return nil
	}
	st, err := stat(l.dir.fd, base)
	if err != nil {
		return err
	}
	if st.mounted && (!c.mounts.at[e.Path] || st.kind != Directory) {
		return ErrMounted
	}
	// A folder of another device that is no mount is a subvolume of btrfs.
	if st.kind != e.Kind || st.dev != l.inode.dev && !st.mounted {
		c.order(&item{path: e.Path, want: e, verdict: otherKind(e, st)})
		if e.Kind == Directory {
			c.stack = append(c.stack, &level{path: e.Path})
		}
		return nil
	}
	if e.Kind == Directory {
		fd, err := openIn(l.dir.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
		if err != nil {
			return err
		}
		if err := c.enter(fd, e, st.mounted); err != nil {
			return err
		}
		return c.folder(c.stack[len(c.stack)-1].dir, e, st)
	}
	it := &item{path: e.Path, want: e, state: st, dir: l.dir, base: base}
	if st.links != 1 || e.Links > 1 {
		c.group(it)
	}
	if it.verdict == nil {
		it.verdict = &verdict{}
		it.ready.Add(1)
		c.unjudged.Add(1)
		l.dir.uses.Add(1)
		select {
		case c.jobs <- it:
		case <-c.ctx.Done():
			l.dir.release()
			it.ready.Done()
			c.unjudged.Done()
			return nil
		}
	}
	if g := it.group; g != nil && g.verdict == nil {
		g.verdict = it.verdict
	}
	c.order(it)
	return nil
}

// enter makes an open folder the present one; it takes over fd.
func (c *checker) enter(fd int, e *Expected, mounted bool) error {
	l, err := c.list(fd, e.Path, mounted)
	if err != nil {
		return at(e.Path, err)
	}
	c.stack = append(c.stack, l)
	return nil
}

// list reads a folder's names; it takes over fd.
func (c *checker) list(fd int, path string, mounted bool) (*level, error) {
	l := &level{path: path, dir: &dir{fd: fd}}
	l.dir.uses.Store(1)
	fail := func(err error) (*level, error) {
		l.dir.release()
		return nil, err
	}
	st, err := stat(fd, "")
	if err != nil {
		return fail(err)
	}
	l.inode = st.inode
	fat, known := c.fat[st.dev]
	if !known || mounted {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return fail(err)
		}
		fat = isFAT(&fs)
		c.fat[st.dev] = fat
		l.lostFound = mounted && fs.Type == unix.EXT4_SUPER_MAGIC
	}
	l.dir.fat = fat
	l.names, l.cost, err = readNames(fd, maxNames-c.held)
	if err != nil {
		return fail(err)
	}
	c.held += l.cost
	return l, nil
}

// extra deals with the next name of a folder, of which nothing is expected.
func (c *checker) extra(l *level) error {
	name := l.names[0].name
	l.names = l.names[1:]
	path := join(l.path, name)
	if l.lostFound && name == "lost+found" {
		return c.lostAndFound(l, path, name)
	}
	_, err := c.surplus(l, path, name, c.order)
	if err != nil {
		return at(path, err)
	}
	return nil
}

// surplus finds what should not be there at and below a name: the whole of it,
// or only parts if something below is to be kept. It says whether something is.
func (c *checker) surplus(l *level, path, base string, found func(*item)) (kept bool, err error) {
	if c.keep.at[path] {
		return true, nil
	}
	st, err := stat(l.dir.fd, base)
	if err != nil {
		return false, err
	}
	if st.mounted {
		return false, ErrMounted
	}
	if st.kind == Directory && c.keep.above[path] && st.dev == l.inode.dev {
		fd, err := openIn(l.dir.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
		if err != nil {
			return false, err
		}
		below, err := c.list(fd, path, false)
		if err != nil {
			return false, err
		}
		defer below.dir.release()
		defer func() { c.held -= below.cost }()
		var parts []*item
		for _, d := range below.names {
			k, err := c.surplus(below, join(path, d.name), d.name, func(it *item) { parts = append(parts, it) })
			if err != nil {
				return false, at(join(path, d.name), err)
			}
			kept = kept || k
		}
		if kept {
			for _, it := range parts {
				found(it)
			}
			return true, nil
		}
	}
	found(&item{path: path, verdict: surplus(st)})
	return false, nil
}

// lostAndFound compares e2fsck's folder with what mke2fs makes. What is in it
// should not be there.
func (c *checker) lostAndFound(l *level, path, base string) error {
	st, err := stat(l.dir.fd, base)
	if err != nil {
		return at(path, err)
	}
	if st.mounted {
		return at(path, ErrMounted)
	}
	if st.kind != Directory {
		c.order(&item{path: path, verdict: surplus(st)})
		return nil
	}
	fd, err := openIn(l.dir.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return at(path, err)
	}
	e := &Expected{Entry: Entry{Path: path, Kind: Directory, Mode: 0o700}, Implied: true}
	below, err := c.list(fd, path, false)
	if err != nil {
		return at(path, err)
	}
	defer below.dir.release()
	defer func() { c.held -= below.cost }()
	if err := c.folder(below.dir, e, st); err != nil {
		return at(path, err)
	}
	for len(below.names) > 0 {
		if err := c.extra(below); err != nil {
			return err
		}
	}
	return nil
}

// folder compares what a folder is, not what is in it.
func (c *checker) folder(d *dir, e *Expected, st *state) error {
	it := &item{path: e.Path, want: e, state: st, dir: d, verdict: &verdict{}}
	if err := it.metadata(d.fd); err != nil {
		return err
	}
	c.order(it)
	return nil
}

// group deals with a name that is, or should be, one of several of a file. If
// each file has as many names on the disk as it should, and all of those that
// are the same are the same there, then no name is left that could be elsewhere.
func (c *checker) group(it *item) {
	want := uint64(max(1, it.want.Links))
	if it.state.links != want {
		it.links = &Difference{What: "links", A: fmt.Sprint(want), B: fmt.Sprint(it.state.links)}
	}
	if want == 1 {
		return
	}
	key := keyOf(it.want)
	g := c.groups[key]
	switch {
	case g == nil:
		g = &group{inode: it.state.inode}
		c.groups[key] = g
		it.group = g
	case g.inode == it.state.inode:
		// It was ordered before, so it will be judged before.
		it.verdict = g.verdict
	default:
		it.links = &Difference{What: "links", A: "the file of its other names", B: "another file"}
	}
	g.seen++
	if g.seen == it.want.Links {
		delete(c.groups, key)
	}
}

// openIn opens a name in an open folder, itself and not what it points to.
func openIn(fd int, base string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	file, err := again(func() (int, error) { return unix.Openat(fd, base, flags, 0) })
	if errors.Is(err, unix.EPERM) && flags&unix.O_NOATIME != 0 {
		// Only a file's owner and root may leave no trace of reading it.
		return openIn(fd, base, flags&^unix.O_NOATIME)
	}
	return file, err
}

func join(folder, base string) string {
	if folder == "." {
		return base
	}
	return folder + "/" + base
}

// readNames returns the names in an open folder, sorted, and the memory that
// they take, or ErrTooMuch if that is more than most bytes.
func readNames(fd, most int) (all []dirent, cost int, err error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := again(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return nil, 0, err
		}
		if n == 0 {
			break
		}
		all = parseNames(buf[:n], all)
		// A dirent of 24 bytes, its name, and half as much again while append grows.
		cost += n + 24
		if cost > most {
			return nil, 0, fmt.Errorf("%w: the folder holds too many names", ErrTooMuch)
		}
	}
	slices.SortFunc(all, func(a, b dirent) int { return cmp.Compare(a.name, b.name) })
	for i := 1; i < len(all); i++ {
		if all[i].name == all[i-1].name {
			return nil, 0, fmt.Errorf("the name %q is there twice: the file system is damaged", all[i].name)
		}
	}
	return all, cost, nil
}
