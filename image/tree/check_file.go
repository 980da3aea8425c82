package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// item is a name on its way through a check.
type item struct {
	path  string
	want  *Expected // nil: nothing
	state *state
	dir   *dir // the folder that it is in; itself, if it is a folder
	base  string
	// ready is done when verdict is there and err is known.
	ready   sync.WaitGroup
	verdict *verdict // may be that of another name of the same file
	links   *Difference
	group   *group // whose verdict this one's is to be
	err     error
}

// verdict is what was found out about a file, whatever its name.
type verdict struct {
	wrong       wrong
	differences []Difference // without paths
	pieces      []int
}

func (v *verdict) add(w wrong, what, want, have string) {
	v.wrong |= w
	v.differences = append(v.differences, Difference{What: what, A: want, B: have})
}

func missing(e *Expected) *verdict {
	v := &verdict{}
	v.add(wrongMissing, "entry", e.Kind.String(), "missing")
	return v
}

func surplus(st *state) *verdict {
	v := &verdict{}
	v.add(wrongExtra, "entry", "missing", st.kind.String())
	return v
}

func otherKind(e *Expected, st *state) *verdict {
	v := &verdict{}
	have := st.kind.String()
	if st.kind == e.Kind {
		have = "subvolume"
	}
	v.add(wrongKind, "kind", e.Kind.String(), have)
	return v
}

// fault returns what is wrong with the name, or nil.
func (it *item) fault() *Fault {
	if it.verdict.wrong == 0 && it.links == nil {
		return nil
	}
	f := &Fault{Path: it.path, Want: it.want, wrong: it.verdict.wrong, pieces: it.verdict.pieces}
	f.Differences = slices.Clone(it.verdict.differences)
	if it.links != nil {
		f.wrong |= wrongLinks
		f.Differences = append(f.Differences, *it.links)
	}
	for i := range f.Differences {
		f.Differences[i].Path = it.path
	}
	return f
}

// work judges files until there are no more.
func (c *checker) work() {
	h := &hasher{checker: c, buf: make([]byte, 512<<10)}
	for {
		select {
		case it := <-c.jobs:
			if c.ctx.Err() == nil {
				if err := it.judge(h); err != nil {
					it.err = &fs.PathError{Op: "check", Path: it.path, Err: err}
				}
			}
			it.dir.release()
			it.ready.Done()
			c.unjudged.Done()
		case p := <-c.parts:
			p.judge(h)
		case <-c.judged:
			return
		}
	}
}

// judge compares what is there with what should be.
func (it *item) judge(h *hasher) error {
	fd := -1
	if it.state.kind == Regular {
		var err error
		if fd, err = openIn(it.dir.fd, it.base, unix.O_RDONLY|unix.O_NOATIME); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	if err := it.metadata(fd); err != nil {
		return err
	}
	if fd < 0 || !h.Since.IsZero() && it.state.size == it.want.Size && it.state.changed.Before(h.Since) {
		return nil
	}
	return it.content(fd, h)
}

// metadata compares all but content; fd is that of a file or folder, and -1 for
// what is not to be opened.
func (it *item) metadata(fd int) error {
	e, st, v := it.want, it.state, it.verdict
	switch e.Kind {
	case Symlink:
		target, err := readlink(it.dir.fd, it.base, st.size)
		if err != nil {
			return err
		}
		if target != e.Target {
			v.add(wrongKind, "target", e.Target, target)
		}
	case CharDevice, BlockDevice:
		if want := [2]uint32{e.Major, e.Minor}; want != st.rdev {
			v.add(wrongKind, "device", fmt.Sprintf("%d, %d", want[0], want[1]), fmt.Sprintf("%d, %d", st.rdev[0], st.rdev[1]))
		}
	}
	if it.dir.fat {
		return nil
	}
	if st.mode != e.Mode && e.Kind != Symlink {
		v.add(wrongMeta, "mode", fmt.Sprintf("%04o", e.Mode), fmt.Sprintf("%04o", st.mode))
	}
	if st.uid != e.UID || st.gid != e.GID {
		v.add(wrongMeta, "owner", fmt.Sprintf("%d:%d", e.UID, e.GID), fmt.Sprintf("%d:%d", st.uid, st.gid))
	}
	if !e.ModTime.IsZero() && !e.Implied && (e.ModTime.Unix() != st.seconds || e.ModTime.Nanosecond() != int(st.nanos)) {
		v.add(wrongMeta, "time", stamp(e.ModTime), stamp(st.modified()))
	}
	have, err := attributes(fd, it.dir.fd, it.base)
	if err != nil {
		return err
	}
	if len(have) != 0 || len(e.Xattrs) != 0 {
		v.xattrs(e.Xattrs, have)
	}
	if fd < 0 {
		if st.locked {
			return errors.New("it is immutable though it is neither a file nor a folder, which only e2fsck can mend")
		}
		return nil
	}
	flags, err := userFlags(fd)
	if err != nil {
		return err
	}
	if flags != 0 {
		v.add(wrongFlags, "flags", "none", flagNames(flags))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func (v *verdict) xattrs(want, have map[string][]byte) {
	names := slices.Sorted(maps.Keys(want))
	for name := range have {
		if _, both := want[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		a, inA := want[name]
		b, inB := have[name]
		if inA != inB || !bytes.Equal(a, b) {
			v.add(wrongMeta, name, attribute(a, inA), attribute(b, inB))
		}
	}
}

// attributes reads all attributes of an open file, or if fd is -1 of a name in
// an open folder.
func attributes(fd, folder int, base string) (map[string][]byte, error) {
	if fd < 0 {
		return xattrs(proc(folder) + "/" + base)
	}
	// Nearly all files have none: one call then.
	var first [1024]byte
	n, err := unix.Flistxattr(fd, first[:])
	names := first[:max(n, 0)]
	if errors.Is(err, unix.ERANGE) {
		names, err = grow(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the attributes: %w", err)
	}
	if len(names) == 0 {
		return nil, nil
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		all[name], err = grow(func(buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
		if err != nil {
			return nil, fmt.Errorf("read the attribute %s: %w", name, err)
		}
	}
	return all, nil
}

func readlink(folder int, base string, size int64) (string, error) {
	// The size is the file system's word; the kernel's limit is a page.
	for n := min(max(size, 1), unix.PathMax) + 1; ; n *= 2 {
		buf := make([]byte, n)
		got, err := unix.Readlinkat(folder, base, buf)
		if err != nil {
			return "", err
		}
		if got < len(buf) {
			return string(buf[:got]), nil
		}
	}
}

// inodeFlags are those that chattr(1) sets: linux/fs.h, FS_*_FL. The others
// are the file system's own.
var inodeFlags = [...]struct {
	bit  uint32
	name string
}{
	{0x1, "secure deletion"}, {0x2, "undelete"}, {0x4, "compress"}, {0x8, "synchronous"},
	{0x10, "immutable"}, {0x20, "append only"}, {0x40, "no dump"}, {0x80, "no access time"},
	{0x400, "no compression"}, {0x4000, "data journal"}, {0x8000, "no tail"},
	{0x10000, "synchronous folder"}, {0x20000, "top folder"}, {0x800000, "no copy on write"},
	{0x2000000, "direct access"}, {0x20000000, "inherits project"},
}

// userFlags returns the flags of an open file that a user set.
func userFlags(fd int) (uint32, error) {
	all, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return 0, nil // a file system without flags
	case err != nil:
		return 0, fmt.Errorf("read the inode's flags: %w", err)
	}
	var mask uint32
	for _, f := range inodeFlags {
		mask |= f.bit
	}
	return all & mask, nil
}

// clearFlags takes the flags that a user set from an open file.
func clearFlags(fd int) error {
	flags, err := userFlags(fd)
	if err != nil || flags == 0 {
		return err
	}
	all, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(all&^flags)); err != nil {
		return fmt.Errorf("clear the inode's flags (%s): %w", flagNames(flags), err)
	}
	return nil
}

func flagNames(flags uint32) string {
	var names []string
	for _, f := range inodeFlags {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ", ")
}

// hasher reads files; each worker has one.
type hasher struct {
	*checker
	buf []byte
}

// part is a piece of a large file, judged by whoever has nothing else to do.
type part struct {
	fd int
	Piece
	same bool
	err  error
	done *sync.WaitGroup
}

func (p *part) judge(h *hasher) {
	defer p.done.Done()
	sum, err := h.sum(p.fd, p.Offset, p.Length)
	p.same, p.err = sum == p.SHA256, err
}

// content compares a file's bytes, never more of them than there should be.
func (it *item) content(fd int, h *hasher) error {
	e, v, size := it.want, it.verdict, it.state.size
	if size != e.Size {
		v.add(0, "size", fmt.Sprint(e.Size), fmt.Sprint(size))
	}
	if !whole(e) {
		bad, err := h.pieces(fd, size, e.Pieces)
		if err != nil {
			return err
		}
		if len(bad) > 0 || size != e.Size {
			v.wrong |= wrongPieces
			v.pieces = bad
		}
		if len(bad) > 0 {
			v.add(0, "content", fmt.Sprintf("%x", e.SHA256[:6]), fmt.Sprintf("%d of %d pieces differ", len(bad), len(e.Pieces)))
		}
		return nil
	}
	if size != e.Size {
		v.wrong |= wrongContent
		return nil
	}
	sum, err := h.sum(fd, 0, size)
	if err != nil {
		return err
	}
	if sum != e.SHA256 {
		v.add(wrongContent, "content", fmt.Sprintf("%x", e.SHA256[:6]), fmt.Sprintf("%x", sum[:6]))
	}
	return nil
}

// pieces returns the numbers of those that differ, of an open file of this size.
func (h *hasher) pieces(fd int, size int64, pieces []Piece) (bad []int, err error) {
	var all sync.WaitGroup
	parts := make([]part, len(pieces))
	for i, piece := range pieces {
		parts[i] = part{fd: fd, Piece: piece, done: &all}
		if piece.Offset+piece.Length > size {
			continue
		}
		all.Add(1)
		select {
		case h.parts <- &parts[i]:
		default:
			parts[i].judge(h)
		}
	}
	all.Wait()
	bad = []int{} // not nil: that would be the whole file
	for i := range parts {
		if parts[i].err != nil {
			return nil, parts[i].err
		}
		if !parts[i].same {
			bad = append(bad, i)
		}
	}
	return bad, nil
}

// whole says whether a file comes as a whole: it has no pieces, or they do not
// add up.
func whole(e *Expected) bool {
	var at int64
	for _, p := range e.Pieces {
		if p.Offset != at || p.Length <= 0 {
			return true
		}
		at += p.Length
	}
	return len(e.Pieces) == 0 || at != e.Size
}

// sum hashes a part of an open file. If the file ends early, it is another sum.
func (h *hasher) sum(fd int, offset, length int64) (sum [sha256.Size]byte, err error) {
	if length <= int64(len(h.buf)) {
		n, err := pread(fd, h.buf[:length], offset)
		h.bytes.Add(int64(n))
		return sha256.Sum256(h.buf[:n]), err
	}
	hash := sha256.New()
	for length > 0 {
		if h.ctx.Err() != nil {
			return sum, h.ctx.Err()
		}
		n, err := pread(fd, h.buf[:min(length, int64(len(h.buf)))], offset)
		if err != nil {
			return sum, err
		}
		if n == 0 {
			break
		}
		h.bytes.Add(int64(n))
		hash.Write(h.buf[:n])
		offset, length = offset+int64(n), length-int64(n)
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}

// pread fills buf from an open file, less if the file ends.
func pread(fd int, buf []byte, offset int64) (int, error) {
	done := 0
	for done < len(buf) {
		n, err := again(func() (int, error) { return unix.Pread(fd, buf[done:], offset+int64(done)) })
		if err != nil {
			return done, fmt.Errorf("read at byte %d: %w", offset+int64(done), err)
		}
		if n == 0 {
			return done, nil
		}
		done += n
	}
	return done, nil
}

// parseNames appends the names of what getdents64(2) gave: an inode of 8 bytes,
// an offset of 8, the record's length of 2, the kind, and the name up to a zero.
func parseNames(buf []byte, all []dirent) []dirent {
	// One string for all of them: a name each would cost an allocation each.
	text := string(buf)
	for at := 0; at+19 <= len(buf); {
		length := int(binary.NativeEndian.Uint16(buf[at+16:]))
		if length < 19 || at+length > len(buf) {
			break
		}
		name, _, _ := strings.Cut(text[at+19:at+length], "\x00")
		if name != "." && name != ".." {
			all = append(all, dirent{name, kindOf(uint32(buf[at+18]) << 12)})
		}
		at += length
	}
	return all
}
