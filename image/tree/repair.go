package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Need is content that a repair wants.
type Need struct {
	// Want is the file. Of a file with several names it is the first in the order
	// of the walk.
	Want *Expected
	// Pieces are the numbers of those of Want.Pieces that are needed, in order;
	// nil means the whole file.
	Pieces []int
}

// Deliver gives a repair the content of one of its needs: piece is the number
// of one of its pieces, or -1 for the whole file. It reads r up to the length
// that the piece should have, checks that this is all of r and is what was
// expected, and writes it. Each must be delivered once, in any order, from any
// goroutines at the same time.
type Deliver func(need, piece int, r io.Reader) error

// Content gets needs and delivers all of them before it returns nil.
type Content func(ctx context.Context, needs []Need, deliver Deliver) error

// RepairStats counts what a repair did.
type RepairStats struct {
	Removed int   // names, each with all below
	Made    int   // folders, files and other entries that are new
	Mended  int   // that were there and stayed, in parts at least
	Bytes   int64 // of content, delivered
}

// Repair makes the tree below the folder root what is expected of it, given all
// the faults that [Check] has just found with the same tree and expectation.
// What must be got from elsewhere it asks content for, once, with the list of
// all that is needed in the order of the walk; if nothing is, not at all. After
// an error the tree is neither what it was nor what it should be. Nothing is
// synced.
//
// A file keeps its inode if all names of that are its own once the surplus names
// are gone, and no more than pieces of it are wrong. Else it is made anew, so
// that whoever has another name for the old one has only that. Folders get their
// times last.
func Repair(ctx context.Context, root string, expected iter.Seq2[*Expected, error], faults []*Fault, content Content) (RepairStats, error) {
	r := &repair{ctx: ctx, touched: map[string]unix.Timespec{}, fat: map[uint64]bool{}}
	fd, err := again(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return r.stats, fmt.Errorf("open the tree's folder %s: %w", root, err)
	}
	r.root = fd
	defer unix.Close(fd)
	defer r.forget()
	files, err := gather(faults, expected)
	if err != nil {
		return r.stats, err
	}
	// Flags go first: they would be in the way of all else, and new entries
	// would inherit some from their folder.
	for _, f := range faults {
		if f.wrong&wrongFlags != 0 {
			if err := r.do(f.Path, r.unlock); err != nil {
				return r.stats, err
			}
		}
	}
	for _, f := range faults {
		if f.wrong&(wrongExtra|wrongKind) != 0 {
			if err := r.do(f.Path, r.remove); err != nil {
				return r.stats, err
			}
			r.stats.Removed++
		}
	}
	for _, f := range faults {
		if f.Want != nil && f.Want.Kind == Directory && f.wrong&(wrongMissing|wrongKind) != 0 {
			if err := r.do(f.Path, r.folder); err != nil {
				return r.stats, err
			}
			r.stats.Made++
		}
	}
	for _, f := range files {
		if err := r.do(f.names[f.base], func(string) error { return r.prepare(f) }); err != nil {
			return r.stats, err
		}
	}
	r.forget()
	if len(r.needs) > 0 {
		if err := r.fill(content); err != nil {
			return r.stats, err
		}
	}
	return r.stats, r.finishFolders(faults)
}

// repair is the state of one [Repair].
type repair struct {
	ctx   context.Context
	root  int
	stats RepairStats
	// open is the folder that was used last, path its path.
	open *folder
	path string
	fat  map[uint64]bool
	// touched are the times of folders in which something is changed, as they were.
	touched map[string]unix.Timespec
	needs   []Need
	fills   []*filling
	bytes   atomic.Int64
}

// do does something with a path, unless it is too late.
func (r *repair) do(path string, what func(path string) error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	err := what(path)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: make the partition larger than what the wad holds", err)
		}
		return &fs.PathError{Op: "repair", Path: path, Err: err}
	}
	return nil
}

// file is a file, device or link, with all its names, of which something is wrong.
type file struct {
	want  *Expected
	names []string
	// base is the name whose inode the others are to have, fault what is wrong
	// with that name, if anything.
	base  int
	fault *Fault
}

// gather puts the faults together that are about the same file. Of files with
// several names it looks up the names that have no fault.
func gather(faults []*Fault, expected iter.Seq2[*Expected, error]) ([]*file, error) {
	var files []*file
	groups := map[groupKey]*file{}
	byPath := map[string]*Fault{}
	var keep *paths
	for _, f := range faults {
		keep = f.keep
		if f.Want == nil || f.Want.Kind == Directory {
			continue
		}
		if f.Want.Links <= 1 {
			files = append(files, &file{want: f.Want, names: []string{f.Path}, fault: f})
			continue
		}
		byPath[f.Path] = f
		if key := keyOf(f.Want); groups[key] == nil {
			groups[key] = &file{}
			files = append(files, groups[key])
		}
	}
	if len(groups) == 0 {
		return files, nil
	}
	for e, err := range expected {
		if err != nil {
			return nil, err
		}
		if e.Links <= 1 || e.Kind == Directory {
			continue
		}
		f := groups[keyOf(e)]
		if f == nil || keep.holds(e.Path) {
			continue
		}
		if f.want == nil {
			f.want, f.fault = e, byPath[e.Path]
		} else if better(byPath[e.Path], f.fault) {
			f.base, f.fault = len(f.names), byPath[e.Path]
		}
		f.names = append(f.names, e.Path)
	}
	for key, f := range groups {
		if f.want == nil {
			return nil, fmt.Errorf("a file with several names (%x) was expected by the check and is not by the repair", key)
		}
	}
	return files, nil
}

// better says whether a name with fault a needs less content than one with b.
func better(a, b *Fault) bool {
	cost := func(f *Fault) int {
		switch {
		case f == nil || !f.wrong.content():
			return 0
		case f.wrong == f.wrong&^(wrongMissing|wrongKind|wrongContent):
			return 1 + len(f.pieces)
		}
		return 1 << 30
	}
	return cost(a) < cost(b)
}

// in returns the folder that a path is in, open for as long as no other is asked for.
func (r *repair) in(path string) (name, error) {
	above, base := split(path)
	if r.open != nil && r.path == above {
		return name{r.open, base}, nil
	}
	r.forget()
	fd, err := r.openPath(above, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return name{}, fmt.Errorf("open its folder: %w", err)
	}
	st, err := stat(fd, "")
	if err != nil {
		unix.Close(fd)
		return name{}, err
	}
	fat, known := r.fat[st.dev]
	if !known {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			unix.Close(fd)
			return name{}, err
		}
		fat = isFAT(&fs)
		r.fat[st.dev] = fat
	}
	r.open, r.path = &folder{fd: fd, inode: st.inode, fat: fat}, above
	return name{r.open, base}, nil
}

// change is in for something that will change the folder.
func (r *repair) change(path string) (name, error) {
	at, err := r.in(path)
	if err != nil {
		return at, err
	}
	if _, ok := r.touched[r.path]; ok {
		return at, nil
	}
	st, err := stat(at.folder.fd, "")
	if err != nil {
		return at, err
	}
	r.touched[r.path] = unix.Timespec{Sec: st.seconds, Nsec: int64(st.nanos)}
	return at, nil
}

func (r *repair) forget() {
	if r.open != nil {
		unix.Close(r.open.fd)
		r.open = nil
	}
}

// openPath opens a path below the root through folders only.
func (r *repair) openPath(path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	return again(func() (int, error) { return unix.Openat2(r.root, path, &how) })
}

// unlock clears the flags of a file or folder.
func (r *repair) unlock(path string) error {
	fd, err := r.openPath(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return clearFlags(fd)
}

func (r *repair) remove(path string) error {
	at, err := r.change(path)
	if err != nil {
		return err
	}
	return removeAll(at.folder.fd, at.base)
}

// folder makes a folder that nobody else looks into before it is whole.
func (r *repair) folder(path string) error {
	at, err := r.change(path)
	if err != nil {
		return err
	}
	return unix.Mkdirat(at.folder.fd, at.base, 0o700)
}

// prepare does all for a file but write the content that it lacks.
func (r *repair) prepare(f *file) error {
	path := f.names[f.base]
	var wrong wrong
	if f.fault != nil {
		wrong = f.fault.wrong
	}
	there := wrong&(wrongMissing|wrongKind) == 0
	own := false
	var err error
	if there {
		if own, err = r.own(f); err != nil {
			return err
		}
	}
	lacks := wrong.content() && f.want.Kind == Regular && f.want.Size > 0
	switch {
	case own && wrong&wrongPieces != 0:
		if own, err = r.resize(f); err != nil {
			return err
		}
	case wrong.content():
		own = false
	}
	if own {
		r.stats.Mended++
	} else {
		if err := r.anew(f, there); err != nil {
			return err
		}
		r.stats.Made++
	}
	if err := r.link(f); err != nil {
		return err
	}
	if lacks {
		need := Need{Want: f.want}
		if wrong&wrongPieces != 0 {
			need.Pieces = f.fault.pieces
		}
		if need.Pieces == nil || len(need.Pieces) > 0 {
			fill := &filling{path: path, want: f.want}
			fill.left.Store(int64(max(1, len(need.Pieces))))
			r.needs, r.fills = append(r.needs, need), append(r.fills, fill)
			return nil
		}
	}
	return r.finish(path, f.want)
}

// own says whether all names of the base's inode are the file's own.
func (r *repair) own(f *file) (bool, error) {
	at, err := r.in(f.names[f.base])
	if err != nil {
		return false, err
	}
	base, err := stat(at.folder.fd, at.base)
	if err != nil {
		return false, err
	}
	links := uint64(1)
	for i, path := range f.names {
		if i == f.base || base.links == 1 {
			continue
		}
		at, err := r.in(path)
		if err != nil {
			return false, err
		}
		st, err := stat(at.folder.fd, at.base)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, err
		}
		if st.inode == base.inode {
			links++
		}
	}
	return base.links == links, nil
}

// resize makes a file ready to be patched; false means that it cannot be written to.
func (r *repair) resize(f *file) (bool, error) {
	at, err := r.in(f.names[f.base])
	if err != nil {
		return false, err
	}
	fd, err := openIn(at.folder.fd, at.base, unix.O_WRONLY)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return false, nil // fs-verity, or something else that we do not know
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, f.want.Size); err != nil {
		return false, fmt.Errorf("set size %d: %w", f.want.Size, err)
	}
	return true, nil
}

// anew makes a file's base as a new inode, with what is right of the content
// of the one that is there.
func (r *repair) anew(f *file, there bool) error {
	at, err := r.change(f.names[f.base])
	if err != nil {
		return err
	}
	old := -1
	if there {
		if f.want.Kind == Regular {
			if old, err = openIn(at.folder.fd, at.base, unix.O_RDONLY|unix.O_NOATIME); err != nil {
				return err
			}
			defer unix.Close(old)
		}
		if err := removeAll(at.folder.fd, at.base); err != nil {
			return err
		}
	}
	if f.want.Kind != Regular {
		return makeNode(at, &f.want.Entry)
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := again(func() (int, error) { return unix.Openat(at.folder.fd, at.base, flags, 0o600) })
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if f.want.Size > 0 {
		if err := unix.Ftruncate(fd, f.want.Size); err != nil {
			return fmt.Errorf("set size %d: %w", f.want.Size, err)
		}
	}
	if old < 0 || f.fault != nil && f.fault.wrong&wrongContent != 0 {
		return nil
	}
	if f.fault == nil || f.fault.wrong&wrongPieces == 0 {
		return copyRange(fd, old, 0, f.want.Size)
	}
	bad := f.fault.pieces
	for i, p := range f.want.Pieces {
		if len(bad) > 0 && bad[0] == i {
			bad = bad[1:]
			continue
		}
		if err := copyRange(fd, old, p.Offset, p.Length); err != nil {
			return err
		}
	}
	return nil
}

// copyRange copies a part of a file to the same place in a new one.
func copyRange(to, from int, offset, length int64) error {
	buf := make([]byte, min(length, 256<<10))
	for length > 0 {
		n, err := pread(from, buf[:min(length, int64(len(buf)))], offset)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := writeSparse(to, buf[:n], offset, true); err != nil {
			return err
		}
		offset, length = offset+int64(n), length-int64(n)
	}
	return nil
}

// link gives a file its other names.
func (r *repair) link(f *file) error {
	if len(f.names) == 1 {
		return nil
	}
	above, base := split(f.names[f.base])
	fd, err := r.openPath(above, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	is, err := stat(fd, base)
	if err != nil {
		return err
	}
	for i, path := range f.names {
		if i == f.base {
			continue
		}
		at, err := r.in(path)
		if err != nil {
			return err
		}
		st, err := stat(at.folder.fd, at.base)
		if err == nil && st.inode == is.inode {
			continue
		}
		if at, err = r.change(path); err != nil {
			return err
		}
		if err := removeAll(at.folder.fd, at.base); err != nil {
			return err
		}
		if err := unix.Linkat(fd, base, at.folder.fd, at.base, 0); err != nil {
			return fmt.Errorf("hard link to %q: %w", f.names[f.base], err)
		}
	}
	return nil
}

// makeNode makes an entry that is neither file nor folder.
func makeNode(at name, e *Entry) error {
	var err error
	switch e.Kind {
	case Symlink:
		err = unix.Symlinkat(e.Target, at.folder.fd, at.base)
	case Socket:
		err = unix.Mknodat(at.folder.fd, at.base, unix.S_IFSOCK|0o600, 0)
	case FIFO:
		err = unix.Mknodat(at.folder.fd, at.base, unix.S_IFIFO|0o600, 0)
	case CharDevice:
		err = unix.Mknodat(at.folder.fd, at.base, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case BlockDevice:
		err = unix.Mknodat(at.folder.fd, at.base, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	default:
		err = fmt.Errorf("a %s cannot be made", e.Kind)
	}
	if err != nil {
		return fmt.Errorf("make a %s: %w", e.Kind, err)
	}
	return nil
}

// finish gives a file its metadata and takes from it what it should not have.
func (r *repair) finish(path string, want *Expected) error {
	at, err := r.in(path)
	if err != nil {
		return err
	}
	if want.Kind == Regular {
		fd, err := openIn(at.folder.fd, at.base, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return restore(fd, at.folder.fat, &want.Entry)
	}
	if at.folder.fat {
		return nil
	}
	have, err := attributes(-1, at.folder.fd, at.base)
	if err != nil {
		return err
	}
	for attr := range have {
		if _, wanted := want.Xattrs[attr]; !wanted {
			if err := unix.Lremovexattr(proc(at.folder.fd)+"/"+at.base, attr); err != nil {
				return fmt.Errorf("remove attribute %s: %w", attr, err)
			}
		}
	}
	return describeName(at, &want.Entry)
}

// restore makes the metadata of an open file or folder what they should be.
func restore(fd int, fat bool, e *Entry) error {
	if fat {
		return setTime(fd, e)
	}
	have, err := attributes(fd, -1, "")
	if err != nil {
		return err
	}
	for attr := range have {
		if _, wanted := e.Xattrs[attr]; !wanted {
			if err := unix.Fremovexattr(fd, attr); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %s: %w", attr, err)
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return describe(fd, &st, e)
}

// finishFolders gives the folders their metadata, deepest first: those that were
// wrong, and their times to those that were changed.
func (r *repair) finishFolders(faults []*Fault) error {
	wants := map[string]*Expected{}
	for _, f := range faults {
		if f.Want != nil && f.Want.Kind == Directory {
			wants[f.Path] = f.Want
			delete(r.touched, f.Path)
		}
	}
	all := make([]string, 0, len(wants)+len(r.touched))
	for path := range wants {
		all = append(all, path)
	}
	for path := range r.touched {
		all = append(all, path)
	}
	slices.SortFunc(all, func(a, b string) int {
		if Before(a, b) {
			return 1
		}
		return -1
	})
	for _, path := range all {
		if err := r.do(path, func(path string) error { return r.finishFolder(path, wants[path]) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *repair) finishFolder(path string, want *Expected) error {
	fd, err := r.openPath(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || isFAT(&fs) {
		return err
	}
	if want == nil {
		return setTimes(fd, &[2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, r.touched[path]})
	}
	e := want.Entry
	if want.Implied {
		e.ModTime = time.Time{}
	}
	return restore(fd, false, &e)
}

// filling is a file that gets content.
type filling struct {
	path string
	want *Expected
	left atomic.Int64 // parts to be delivered

	mu   sync.Mutex
	done map[int]bool
}

// fill has the content that is needed delivered.
func (r *repair) fill(content Content) error {
	deliver := func(need, piece int, from io.Reader) error {
		if need < 0 || need >= len(r.needs) {
			return fmt.Errorf("there is no need %d", need)
		}
		return r.do(r.fills[need].path, func(string) error { return r.deliver(need, piece, from) })
	}
	if err := content(r.ctx, r.needs, deliver); err != nil {
		return err
	}
	r.stats.Bytes = r.bytes.Load()
	for _, f := range r.fills {
		if f.left.Load() > 0 {
			return &fs.PathError{Op: "repair", Path: f.path, Err: errors.New("not all of its content was delivered")}
		}
		if err := r.do(f.path, func(path string) error { return r.finish(path, f.want) }); err != nil {
			return err
		}
	}
	return nil
}

// deliver writes a part of a file's content.
func (r *repair) deliver(need, piece int, from io.Reader) error {
	f := r.fills[need]
	part := Piece{0, f.want.Size, f.want.SHA256}
	_, fresh := slices.BinarySearch(r.needs[need].Pieces, piece)
	if fresh {
		part = f.want.Pieces[piece]
	} else if piece != -1 || r.needs[need].Pieces != nil {
		return fmt.Errorf("its piece %d is not needed", piece)
	}
	f.mu.Lock()
	twice := f.done[piece]
	if f.done == nil {
		f.done = map[int]bool{}
	}
	f.done[piece] = true
	f.mu.Unlock()
	if twice {
		return fmt.Errorf("its piece %d was delivered twice", piece)
	}
	fd, err := r.openPath(f.path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A whole file is a new one, where holes need not be punched.
	if err := r.write(fd, part, from, piece == -1); err != nil {
		return err
	}
	f.left.Add(-1)
	return nil
}

// write writes and judges a part.
func (r *repair) write(fd int, part Piece, from io.Reader, empty bool) error {
	buf := make([]byte, min(part.Length+1, 256<<10))
	var sum hash.Hash = sha256.New()
	for offset := part.Offset; ; {
		left := part.Offset + part.Length - offset
		n, err := io.ReadFull(from, buf[:min(left+1, int64(len(buf)))])
		if int64(n) > left {
			return fmt.Errorf("more than its %d bytes were delivered", part.Length)
		}
		sum.Write(buf[:n])
		if err := writeSparse(fd, buf[:n], offset, empty); err != nil {
			return err
		}
		offset += int64(n)
		r.bytes.Add(int64(n))
		switch {
		case err == nil:
			continue
		case err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF):
			return err
		case int64(n) < left:
			return fmt.Errorf("%d of its %d bytes were delivered: %w", offset-part.Offset, part.Length, io.ErrUnexpectedEOF)
		case [sha256.Size]byte(sum.Sum(nil)) != part.SHA256:
			return fmt.Errorf("what was delivered is not its content: SHA-256 %x instead of %x", sum.Sum(nil), part.SHA256)
		}
		return nil
	}
}

// writeSparse writes p at an offset, its blocks of zero bytes as holes; empty
// says that nothing was written there before.
func writeSparse(fd int, p []byte, offset int64, empty bool) error {
	for len(p) > 0 {
		n := 0
		zero := isZero(block(p))
		for n < len(p) && isZero(block(p[n:])) == zero {
			n += len(block(p[n:]))
		}
		if zero && !empty {
			const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
			zero = unix.Fallocate(fd, punch, offset, int64(n)) == nil
		}
		for done := 0; !zero && done < n; {
			m, err := again(func() (int, error) { return unix.Pwrite(fd, p[done:n], offset+int64(done)) })
			if err != nil {
				return fmt.Errorf("write at byte %d: %w", offset+int64(done), err)
			}
			done += m
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}
