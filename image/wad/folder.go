package wad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
	"reassure/image/tree"
)

// FolderOptions say what of a folder is packed. The zero value is all of it.
type FolderOptions struct {
	// Skip, if there is one, says that an entry is left out, with what is below
	// it. Paths are as in [tree.Entry]; that of the folder itself is not asked for.
	Skip func(path string) bool
	// OneFileSystem leaves out what is in folders that other file systems are
	// mounted on, but not these folders.
	OneFileSystem bool
	// Progress is called at most ten times a second and once at the end. It must
	// not take long.
	Progress func(PackStats)
	// Log is told what was left out because no archive holds it; nil means silence.
	Log *slog.Logger
}

// Tar writes the tree of a folder as a tar archive with everything that [Extract]
// makes, in the order of [tree.Before]: the same tree gives the same bytes. The
// format is pax, with sparse files as GNU tar 1.0 has them and attributes as
// GNU tar, star and bsdtar do, so that each of them unpacks it. Owners and the
// subjects of ACLs are numbers. Sockets are left out: whoever listens makes them.
//
// A file that changes meanwhile is an error.
func Tar(ctx context.Context, folder string, out io.Writer, o FolderOptions) error {
	t := &folderTar{FolderOptions: o, ctx: ctx, sink: discard{out}, pieces: math.MaxInt64}
	return t.run(folder)
}

// PackFolder makes an indexed wad of a folder, as [Tar] and [Pack] would one
// after the other, but what it keeps of the tree is no more than the finished
// index, and the files that have several names.
func PackFolder(ctx context.Context, folder, out string, what FolderOptions, o PackOptions) (*Index, error) {
	return packInto(ctx, out, o, func(ctx context.Context, p *packer) error {
		what.Log, what.Progress = p.Log, p.Progress
		t := &folderTar{FolderOptions: what, ctx: ctx, sink: p.chunks, pieces: p.piece, member: p.index.add}
		return t.run(folder)
	})
}

// folderTar writes an archive of a folder.
type folderTar struct {
	FolderOptions
	ctx    context.Context
	sink   sink
	pieces int64
	member func(*Member) error // nil if nobody wants to know

	root     string // for errors
	device   uint64
	counting bool // the first time round, when only links are counted
	links    map[inodeID]*linked
	at       int64
	stats    PackStats
	reported time.Time
	buf      []byte
}

type inodeID struct{ dev, ino uint64 }

// linked is a file with several names.
type linked struct {
	names, seen int
	first       *Member
}

// errChanged is about a folder that something else is still at work in.
var errChanged = errors.New("it changed while it was packed: stop what writes to it, and pack again")

func (t *folderTar) run(folder string) error {
	if t.Log == nil {
		t.Log = slog.New(slog.DiscardHandler)
	}
	t.root, t.links, t.buf = folder, map[inodeID]*linked{}, make([]byte, 1<<20)
	for _, t.counting = range []bool{true, false} {
		fd, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the folder %s: %w", folder, err)
		}
		if err := t.top(fd); err != nil {
			return err
		}
	}
	for _, l := range t.links {
		if l.names != l.seen {
			return fmt.Errorf("%s: %w", t.name(l.first.Path), errChanged)
		}
	}
	if err := t.write(make([]byte, 1024)); err != nil {
		return err
	}
	t.report(true)
	return nil
}

// top takes over fd.
func (t *folderTar) top(fd int) error {
	f := os.NewFile(uintptr(fd), t.root)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", t.root, err)
	}
	t.device = st.Dev
	if !t.counting {
		if err := t.entry(".", proc(fd), &st, -1, ""); err != nil {
			return err
		}
	}
	return t.list(f, "")
}

// name is a path of the tree as a person finds it.
func (t *folderTar) name(path string) string { return strings.TrimSuffix(t.root, "/") + "/" + path }

// proc names an open file, or what is in an open folder, for those system calls
// that take no descriptor.
func proc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// list goes through an open folder, whose path is above and ends in a slash.
func (t *folderTar) list(folder *os.File, above string) error {
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read the folder %s: %w", t.name(above), err)
	}
	slices.Sort(names)
	fd := int(folder.Fd())
	for _, base := range names {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		path := above + base
		if t.Skip != nil && t.Skip(path) {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			err = errChanged
		}
		if err == nil {
			err = t.visit(path, fd, base, &st)
		}
		if err != nil {
			if wrapped := (*visitError)(nil); errors.As(err, &wrapped) || t.ctx.Err() != nil {
				return err
			}
			return &visitError{t.name(path), err}
		}
	}
	return nil
}

// visitError is about one entry of the folder.
type visitError struct {
	name string
	err  error
}

func (e *visitError) Error() string { return fmt.Sprintf("%q: %v", e.name, e.err) }

func (e *visitError) Unwrap() error { return e.err }

func (t *folderTar) visit(path string, fd int, base string, st *unix.Stat_t) error {
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK {
		if !t.counting {
			t.Log.Warn("wad: a socket is left out, because an archive holds none", "path", t.name(path))
		}
		return nil
	}
	if t.counting {
		t.stats.Total += 512
		if kind == unix.S_IFREG {
			t.stats.Total += spec.Size(roundUp(min(st.Size, st.Blocks*512)))
		}
		if id := (inodeID{st.Dev, st.Ino}); kind != unix.S_IFDIR && st.Nlink > 1 {
			if t.links[id] == nil {
				t.links[id] = &linked{}
			}
			t.links[id].names++
		}
	} else if err := t.entry(path, proc(fd)+"/"+base, st, fd, base); err != nil {
		return err
	}
	if kind != unix.S_IFDIR || t.OneFileSystem && st.Dev != t.device {
		return nil
	}
	folder, err := openSame(fd, base, unix.O_DIRECTORY, st)
	if err != nil {
		return err
	}
	defer folder.Close()
	return t.list(folder, path+"/")
}

// openSame opens what st was told of.
func openSame(fd int, base string, flags int, st *unix.Stat_t) (*os.File, error) {
	// Not the file's time of access, nor a wait for a FIFO that took its place.
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	opened, err := unix.Openat(fd, base, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		opened, err = unix.Openat(fd, base, flags, 0) // it is somebody else's
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
		err = errChanged
	}
	if err != nil {
		return nil, err
	}
	var now unix.Stat_t
	if err = unix.Fstat(opened, &now); err == nil && (now.Dev != st.Dev || now.Ino != st.Ino || now.Mode != st.Mode) {
		err = errChanged
	}
	if err != nil {
		unix.Close(opened)
		return nil, err
	}
	return os.NewFile(uintptr(opened), base), nil
}

// entry writes one; full is how its attributes are reached.
func (t *folderTar) entry(path, full string, st *unix.Stat_t, fd int, base string) error {
	m := &Member{}
	m.Path, m.Mode, m.UID, m.GID, m.ModTime = path, st.Mode&0o7777, st.Uid, st.Gid, time.Unix(st.Mtim.Unix())
	l := t.links[inodeID{st.Dev, st.Ino}]
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || l == nil && st.Nlink > 1 && path != "." {
		if l == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return errChanged
		}
		l = nil
	}
	if l != nil {
		if l.seen++; l.first != nil {
			again := *l.first
			again.Path = path
			return t.finish(&again, tarEntry{Entry: &tree.Entry{Path: path, Mode: m.Mode, UID: m.UID, GID: m.GID, ModTime: m.ModTime.Truncate(time.Second)}, flag: '1', link: again.First}, nil, st)
		}
		if l.first = m; l.names > 1 {
			m.First, m.Links = path, l.names
		}
	}
	var err error
	e := tarEntry{Entry: &m.Entry}
	var file *os.File
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		m.Kind, e.flag, m.Size = tree.Regular, '0', st.Size
		if file, err = openSame(fd, base, 0, st); err != nil {
			return err
		}
		defer file.Close()
		if m.Regions, err = regionsOf(file, st); err != nil {
			return err
		}
		e.size = m.Stored()
		if m.Regions != nil {
			e.sparse, e.real = sparseText(m), m.Size
			e.size += int64(len(e.sparse))
		}
	case unix.S_IFDIR:
		m.Kind, e.flag = tree.Directory, '5'
	case unix.S_IFLNK:
		m.Kind, e.flag = tree.Symlink, '2'
		target := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(fd, base, target)
		if err != nil {
			return err
		}
		m.Target = string(target[:n])
		e.link = m.Target
	case unix.S_IFCHR, unix.S_IFBLK:
		m.Kind, e.flag = tree.CharDevice, '3'
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			m.Kind, e.flag = tree.BlockDevice, '4'
		}
		m.Major, m.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		m.Kind, e.flag = tree.FIFO, '6'
	default:
		return fmt.Errorf("it is of a kind that is not known: mode %o", st.Mode)
	}
	if m.Xattrs, err = tree.Xattrs(full); err != nil {
		return err
	}
	if err := asOnDisk(&m.Entry); err != nil {
		return err
	}
	return t.finish(m, e, file, st)
}

// finish writes the headers and content of an entry, and tells of it.
func (t *folderTar) finish(m *Member, e tarEntry, file *os.File, st *unix.Stat_t) error {
	begin := t.at
	headers, err := e.headers()
	if err != nil {
		return err
	}
	if err := t.write(headers); err != nil {
		return err
	}
	stored := int64(0)
	if file != nil {
		stored = m.Stored()
		m.TarAt = t.at
	}
	if err := t.sink.entry(begin, t.at, stored); err != nil {
		return err
	}
	if file != nil {
		if err := t.content(m, file, st); err != nil {
			return err
		}
		if err := t.write(make([]byte, roundUp(t.at)-t.at)); err != nil {
			return err
		}
	}
	t.stats.Entries++
	t.report(false)
	if t.member == nil {
		return nil
	}
	return t.member(m)
}

// content writes a file's, or of a sparse one what is no hole.
func (t *folderTar) content(m *Member, file *os.File, before *unix.Stat_t) error {
	d := newDigester(m, t.pieces)
	regions := m.Regions
	if regions == nil {
		regions = []Region{{0, m.Size}}
	}
	for _, r := range regions {
		if err := t.zeros(d, r.Offset-d.at); err != nil {
			return err
		}
		for left := r.Length; left > 0; {
			n, err := file.ReadAt(t.buf[:min(left, int64(len(t.buf)))], r.Offset+r.Length-left)
			if n == 0 && err == io.EOF {
				return errChanged // it is shorter now
			}
			if n == 0 && err != nil {
				return err
			}
			d.Write(t.buf[:n])
			if err := t.write(t.buf[:n]); err != nil {
				return err
			}
			left -= int64(n)
			t.report(false)
		}
	}
	if err := t.zeros(d, m.Size-d.at); err != nil {
		return err
	}
	d.finish()
	var now unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &now); err != nil {
		return err
	}
	if now.Size != before.Size || now.Mtim != before.Mtim || now.Ctim != before.Ctim {
		return errChanged
	}
	return nil
}

func (t *folderTar) zeros(d *digester, n int64) error {
	var zero [64 << 10]byte
	for ; n > 0; n -= min(n, int64(len(zero))) {
		d.Write(zero[:min(n, int64(len(zero)))])
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
	}
	return nil
}

func (t *folderTar) write(p []byte) error {
	n, err := t.sink.Write(p)
	t.at += int64(n)
	t.stats.Bytes = spec.Size(t.at)
	return err
}

func (t *folderTar) report(last bool) {
	if t.Progress == nil {
		return
	}
	if now := time.Now(); last || now.Sub(t.reported) >= 100*time.Millisecond {
		t.reported = now
		t.Progress(t.stats)
	}
}

// regionsOf lists what of a file is no hole; nil if it has none.
func regionsOf(file *os.File, st *unix.Stat_t) ([]Region, error) {
	if st.Blocks*512 >= st.Size {
		return nil, nil
	}
	regions := []Region{}
	for at := int64(0); at < st.Size; {
		data, err := file.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole is left
		}
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		hole, err := file.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		hole = min(hole, st.Size)
		if data < hole {
			regions = append(regions, Region{data, hole - data})
		}
		at = max(hole, at+1)
	}
	if len(regions) == 1 && regions[0] == (Region{0, st.Size}) {
		return nil, nil // small files lie elsewhere than in blocks
	}
	return regions, nil
}

// sparseText is the map of a sparse file, as it comes before its data
// (GNU tar's manual, "PAX Format, Version 1.0").
func sparseText(m *Member) []byte {
	regions := m.Regions
	if n := len(regions); n == 0 || regions[n-1].Offset+regions[n-1].Length < m.Size {
		// GNU tar learns from an empty one that a hole is the end.
		regions = append(slices.Clone(regions), Region{m.Size, 0})
	}
	text := strconv.AppendInt(nil, int64(len(regions)), 10)
	for _, r := range regions {
		text = append(text, '\n')
		text = strconv.AppendInt(text, r.Offset, 10)
		text = append(text, '\n')
		text = strconv.AppendInt(text, r.Length, 10)
	}
	text = append(text, '\n')
	return append(text, make([]byte, roundUp(int64(len(text)))-int64(len(text)))...)
}

// tarEntry is an entry as headers tell it.
type tarEntry struct {
	*tree.Entry
	flag   byte
	link   string
	size   int64  // of what follows the headers, sparse included
	sparse []byte // the map, if the file has holes
	real   int64  // then the file's size
}

// headers are those of the pax format (POSIX.1-2008, pax), with no more extended
// records than are needed.
func (e *tarEntry) headers() ([]byte, error) {
	name := e.Path
	if e.flag == '5' {
		name += "/"
	}
	records := map[string]string{}
	if e.sparse != nil {
		records[paxSparse+"major"], records[paxSparse+"minor"] = "1", "0"
		records[paxSparse+"name"], records[paxSparse+"realsize"] = name, strconv.FormatInt(e.real, 10)
		// For those who do not know of sparse files; GNU tar has its process number there.
		name = path.Join(path.Dir(name), "GNUSparseFile.0", path.Base(name))
	}
	var block [512]byte
	if !putName(&block, name) {
		records["path"] = name
		copy(block[:100], name)
	}
	if copy(block[157:257], e.link) < len(e.link) {
		records["linkpath"] = e.link
	}
	octal := func(at, digits int, v int64, key string) {
		if v>>(3*digits) != 0 {
			records[key] = strconv.FormatInt(v, 10)
			v = 0
		}
		copy(block[at:], fmt.Sprintf("%0*o", digits, v))
	}
	octal(100, 7, int64(e.Mode), "")
	octal(108, 7, int64(e.UID), "uid")
	octal(116, 7, int64(e.GID), "gid")
	octal(124, 11, e.size, "size")
	seconds, nanoseconds := e.ModTime.Unix(), e.ModTime.Nanosecond()
	if seconds < 0 || seconds>>33 != 0 || nanoseconds != 0 {
		records["mtime"] = paxTime(seconds, nanoseconds)
	}
	octal(136, 11, min(max(seconds, 0), 1<<33-1), "")
	block[156] = e.flag
	copy(block[257:], "ustar\x0000")
	octal(329, 7, int64(e.Major), "SCHILY.devmajor")
	octal(337, 7, int64(e.Minor), "SCHILY.devminor")
	if err := putAttributes(records, e.Xattrs); err != nil {
		return nil, err
	}
	checksum(&block)
	if len(records) == 0 {
		return block[:], nil
	}
	return append(extended(e.Path, records), append(block[:], e.sparse...)...), nil
}

// putName puts a name into a header's two fields for it, if it fits.
func putName(block *[512]byte, name string) bool {
	if len(name) <= 100 {
		copy(block[:], name)
		return true
	}
	for i := len(name) - 2; i > 0; i-- {
		if name[i] == '/' && i <= 155 {
			if len(name)-i-1 > 100 {
				return false
			}
			copy(block[345:], name[:i])
			copy(block[:], name[i+1:])
			return true
		}
	}
	return false
}

// paxTime is a time in seconds with as many decimals as it needs.
func paxTime(seconds int64, nanoseconds int) string {
	sign := ""
	if seconds < 0 {
		sign, seconds = "-", -seconds
		if nanoseconds > 0 {
			seconds, nanoseconds = seconds-1, 1e9-nanoseconds
		}
	}
	text := fmt.Sprintf("%s%d", sign, seconds)
	if nanoseconds > 0 {
		text += strings.TrimRight(fmt.Sprintf(".%09d", nanoseconds), "0")
	}
	return text
}

func putAttributes(records map[string]string, attributes map[string][]byte) error {
	for attr, value := range attributes {
		acls := map[string]string{xattrACLAccess: paxACLAccess, xattrACLDefault: paxACLDefault}
		label, isLabel := bytes.CutSuffix(value, []byte{0})
		switch {
		case acls[attr] != "":
			list, err := parseBinaryACL(value)
			if err != nil {
				return fmt.Errorf("attribute %s: %w", attr, err)
			}
			records[acls[attr]] = list.String()
		case attr == xattrSELinux && isLabel:
			records[paxSELinux] = string(label)
		default:
			records[paxXattr+strings.NewReplacer("%", "%25", "=", "%3D").Replace(attr)] = string(value)
		}
	}
	return nil
}

// extended makes the header of an entry's records.
func extended(of string, records map[string]string) []byte {
	var body []byte
	keys := make([]string, 0, len(records))
	for key := range records {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		// A record begins with its own length, its digits included.
		rest := len(key) + len(records[key]) + len(" =\n")
		size := rest
		for size != rest+len(strconv.Itoa(size)) {
			size = rest + len(strconv.Itoa(size))
		}
		body = fmt.Appendf(body, "%d %s=%s\n", size, key, records[key])
	}
	var block [512]byte
	copy(block[:100], path.Join("PaxHeaders", path.Base(of)))
	copy(block[100:], "0000644\x000000000\x000000000\x00")
	copy(block[124:], fmt.Sprintf("%011o\x0000000000000", len(body)))
	block[156] = 'x'
	copy(block[257:], "ustar\x0000")
	checksum(&block)
	out := append(block[:], body...)
	return append(out, make([]byte, roundUp(int64(len(out)))-int64(len(out)))...)
}

// checksum fills in a header's last field.
func checksum(block *[512]byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}
