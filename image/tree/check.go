package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of [Check] that say that a tree cannot be repaired from here.
var (
	// ErrTooMuch is returned when more differs than is worth a repair, or than
	// memory should hold.
	ErrTooMuch = errors.New("too much differs: lay the tree down anew")
	// ErrMounted is returned for what hides a part of the tree.
	ErrMounted = errors.New("another file system is mounted there: unmount it first")
	// ErrOrder is returned for a list of what is expected that is no walk of a tree.
	ErrOrder = errors.New("the list of what is expected is not in the order of a walk")
)

// CheckOptions are for [Check]. The zero value works: one file system, all of
// which is compared. Paths are as [Clean] gives them.
type CheckOptions struct {
	// Keep are left as they are if they are there, with all below: neither
	// compared nor taken for something that should not be there.
	Keep []string
	// Runtime are paths at and below which differences are expected: they are
	// found all the same, and marked.
	Runtime []string
	// Mounts are where other file systems of the same tree are mounted. The
	// folder lost+found at the top of each one of the ext family may be there.
	Mounts []string
	// Since has the content of files believed whose inode was not changed after
	// that time: only for a tree that nobody could have written to but this program
	// and what it has run. The zero value believes nothing.
	Since time.Time
	// Limit is how many faults are found before ErrTooMuch; 0 means any number.
	Limit int
	// Workers is how many files are read at a time; 0 is what was measured to be best.
	Workers int
	// Progress is called by the goroutine that ranges over the faults, at most
	// ten times a second and once at the end. It must not take long.
	Progress func(CheckStats)
}

// CheckStats counts what a check has done so far.
type CheckStats struct {
	Entries int
	Bytes   int64 // of content, read
	Faults  int
}

// Fault is one name of a tree that is not as it should be.
type Fault struct {
	Path string
	// Want is what should be there; nil if nothing should.
	Want *Expected
	// Differences tell a person what is wrong: A is what should be, B what is there.
	Differences []Difference
	// Runtime says that it is, or is caused by, one of [CheckOptions.Runtime].
	Runtime bool

	wrong wrong
	keep  *paths // what a repair must not touch
	// pieces are those of Want.Pieces whose content differs, in order. They mean
	// something only where wrong has wrongPieces.
	pieces []int
}

// wrong says what has to be done to a name.
type wrong uint8

const (
	wrongExtra   wrong = 1 << iota // it goes, with all below
	wrongMissing                   // it is to be made
	wrongKind                      // it goes, with all below, and is made anew
	wrongContent                   // all of it
	wrongPieces                    // pieces of it, or what is behind the last one
	wrongLinks
	wrongMeta
	wrongFlags // inode flags that users can set, immutable above all
)

// content says whether bytes of the file differ.
func (w wrong) content() bool {
	return w&(wrongMissing|wrongKind|wrongContent|wrongPieces) != 0
}

// Check compares the tree below the folder root with what is expected of it and
// yields every difference, in the order of a walk. An error ends it: something
// could not be read, or the tree is not one to be repaired.
//
// Nothing on the disk is believed that users could have written there: every
// file is read, whatever its times and size; nothing is followed and nothing but
// files and folders is opened; no other file system is entered but those in
// o.Mounts. expected is in the order of [Before], each folder before what is in
// it; it may be ranged over more than once, as in [Repair].
//
// A name's faults are all that differs at that name: the set of names; kind,
// owner, mode, time, attributes and ACLs; content, large files piece by piece;
// which names are the same file; and inode flags such as immutable, which no
// wad has. On FAT, names and content are all there is. Access times, holes, and
// the order of names within a folder are not looked at; nothing is changed but
// the access times of symbolic links. An expected file of which one name is at or
// below one of o.Keep and another is not is two files.
//
// Files are read by several goroutines. Memory is for the names of the folders
// on the way to the present one, and for the files of which some names have been
// seen and others not yet.
func Check(ctx context.Context, root string, expected iter.Seq2[*Expected, error], o CheckOptions) iter.Seq2[*Fault, error] {
	return func(yield func(*Fault, error) bool) {
		if o.Workers <= 0 {
			o.Workers = 2 * runtime.GOMAXPROCS(0)
		}
		ctx, cancel := context.WithCancel(ctx)
		c := &checker{
			CheckOptions: o, ctx: ctx,
			keep: newPaths(o.Keep), runtime: newPaths(o.Runtime), mounts: newPaths(o.Mounts),
			jobs: make(chan *item, queueLength), ordered: make(chan *item, queueLength),
			parts: make(chan *part), judged: make(chan struct{}),
			groups: map[groupKey]*group{}, kept: map[groupKey]int{}, fat: map[uint64]bool{},
		}
		var all sync.WaitGroup
		for range o.Workers {
			all.Go(c.work)
		}
		all.Go(func() {
			if err := c.walk(root, expected); err != nil {
				c.order(&item{err: err})
			}
			close(c.ordered)
			c.unjudged.Wait()
			close(c.judged)
		})
		defer all.Wait()
		defer cancel()
		c.collect(yield)
	}
}

// queueLength is how far the walk is ahead of the files being read. Each may
// hold a folder open: it is well below the 1024 or 4096 that a process may have.
const queueLength = 512

// collect yields the faults in the order of the walk.
func (c *checker) collect(yield func(*Fault, error) bool) {
	var stats CheckStats
	var reported time.Time
	report := func(last bool) {
		if now := time.Now(); c.Progress != nil && (last || now.Sub(reported) >= 100*time.Millisecond) {
			reported = now
			stats.Bytes = c.bytes.Load()
			c.Progress(stats)
		}
	}
	defer report(true)
	for it := range c.ordered {
		it.ready.Wait()
		if it.err != nil {
			yield(nil, it.err)
			return
		}
		if it.want != nil {
			stats.Entries++
			report(false)
		}
		f := it.fault()
		if f == nil {
			continue
		}
		f.Runtime, f.keep = c.expectedToDiffer(f), &c.keep
		stats.Faults++
		if c.Limit > 0 && stats.Faults > c.Limit {
			yield(nil, fmt.Errorf("%w: more than %d names", ErrTooMuch, c.Limit))
			return
		}
		if !yield(f, nil) {
			return
		}
	}
	// The walk ends early, and says nothing, only if it was told to.
	if err := c.ctx.Err(); err != nil {
		yield(nil, err)
	}
}

// expectedToDiffer says whether a fault is the work of a running system. A
// folder's time is, if something is made and removed in it that may be.
func (c *checker) expectedToDiffer(f *Fault) bool {
	if c.runtime.holds(f.Path) {
		return true
	}
	return len(f.Differences) == 1 && f.Differences[0].What == "time" && f.Want.Kind == Directory &&
		(c.runtime.parents[f.Path] || c.keep.parents[f.Path])
}

// paths is a set of paths of a tree.
type paths struct {
	at      map[string]bool
	parents map[string]bool // the folders that the paths are in
	above   map[string]bool // and all folders above
}

func newPaths(all []string) paths {
	p := paths{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for _, path := range all {
		p.at[path] = true
		if path == "." {
			continue
		}
		parent, _ := split(path)
		p.parents[parent] = true
		for ; !p.above[parent]; parent, _ = split(parent) {
			p.above[parent] = true
			if parent == "." {
				break
			}
		}
	}
	return p
}

// holds says whether path is in the set or below one that is.
func (p *paths) holds(path string) bool {
	if len(p.at) == 0 {
		return false
	}
	if p.at[path] || p.at["."] {
		return true
	}
	for i := strings.LastIndexByte(path, '/'); i > 0; i = strings.LastIndexByte(path[:i], '/') {
		if p.at[path[:i]] {
			return true
		}
	}
	return false
}

// groupKey stands for the names of one file. The paths themselves would take
// too much memory where hundreds of thousands of files have two names each, and
// 128 bits do not meet by chance.
type groupKey [16]byte

// keyOf returns the key of an entry that is one of several names.
func keyOf(e *Expected) groupKey {
	first := e.First
	if first == "" {
		first = e.Path
	}
	sum := sha256.Sum256([]byte(first))
	return groupKey(sum[:16])
}

// group is what is known of a file of which not all names have been seen.
type group struct {
	inode inode // of the first name that is there
	seen  int
	// verdict is about that inode.
	verdict *verdict
}

// state is what a file system says of a name.
type state struct {
	inode
	kind     Kind
	mode     uint32
	uid, gid uint32
	links    uint64
	size     int64
	seconds  int64
	nanos    uint32
	changed  time.Time // of the inode
	rdev     [2]uint32
	// mounted says that the name is the top of a mount.
	mounted bool
	// locked says that the file is immutable or can only be appended to.
	locked bool
}

func (s *state) modified() time.Time { return time.Unix(s.seconds, int64(s.nanos)) }

// stat looks at a name in an open folder, or at the folder itself if the name is "".
func stat(fd int, base string) (*state, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(fd, base, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		break
	}
	return &state{
		inode: inode{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino},
		kind:  kindOf(uint32(st.Mode)),
		mode:  uint32(st.Mode) & 0o7777, uid: st.Uid, gid: st.Gid,
		links: uint64(st.Nlink), size: int64(st.Size),
		seconds: st.Mtime.Sec, nanos: st.Mtime.Nsec, changed: time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec)),
		rdev:    [2]uint32{st.Rdev_major, st.Rdev_minor},
		mounted: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		locked:  st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0,
	}, nil
}

func kindOf(mode uint32) Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return Regular
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return CharDevice
	case unix.S_IFBLK:
		return BlockDevice
	case unix.S_IFIFO:
		return FIFO
	case unix.S_IFSOCK:
		return Socket
	}
	return 0
}
