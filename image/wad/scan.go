package wad

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"reassure/image/tree"
)

// scanner reads an archive and finds out which tree [Extract] would make of it
// on a new file system, without making it. Of the tree it keeps all but the
// content of files: some 400 bytes for an entry.
type scanner struct {
	ctx    context.Context
	log    *slog.Logger
	pieces int64
	// in is what the archive is read from. Each byte of it goes to sink, too.
	in   input
	sink sink
	// progress, if there is one, is told of each entry.
	progress func()

	at       int64        // of the archive, read so far
	headers  bytes.Buffer // of the entry that is being read
	noting   bool
	global   globals
	root     *node
	late     []lateACL
	entries  int
	buf      []byte
	stripped bool
}

// sink takes an archive and is told where its entries are.
type sink interface {
	io.Writer
	entry(begin, content, stored int64) error
}

// node is a name in a tree.
type node struct {
	parent *node // the root's is itself
	kids   map[string]*node
	file   *inode
}

// inode is what names stand for.
type inode struct {
	Member // Path is not used
	names  int
	first  string // name, in walk order; known while the tree is listed
	text   []byte // of files that ACLs may need
}

const (
	// maxHeaders bounds the headers of one entry: archive/tar takes up to 1 MiB
	// for each record.
	maxHeaders = 16 << 20
	maxLinks   = 40 // as the kernel has it, and its error is ELOOP
)

// errThrough is for names that cannot be followed.
var errThrough = errors.New("it leads through something that is no directory")

// scan reads the archive to its end.
func (s *scanner) scan() error {
	s.global = globals{}
	s.root = newFolder()
	s.root.parent = s.root
	s.buf = make([]byte, 256<<10)
	r := tar.NewReader(s)
	for {
		begin := roundUp(s.at)
		s.headers.Reset()
		s.noting = true
		h, err := r.Next()
		s.noting = false
		if err == io.EOF {
			return s.end()
		}
		if s.ctx.Err() != nil && s.in.failed() == nil {
			return context.Cause(s.ctx)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return unreadable(s.in, s.entries, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if err := s.global.take(h); err != nil {
				return err
			}
			continue
		}
		if err := s.entry(r, h, begin); err != nil {
			if s.in.failed() != nil {
				return s.in.failed()
			}
			return &EntryError{h.Name, err}
		}
		s.entries++
		if s.progress != nil {
			s.progress()
		}
	}
}

// Read implements io.Reader, for archive/tar.
func (s *scanner) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if n == 0 {
		return 0, err
	}
	s.at += int64(n)
	if s.noting {
		if s.headers.Len() > maxHeaders {
			return 0, fmt.Errorf("the headers of one entry have more than %d bytes", maxHeaders)
		}
		s.headers.Write(p[:n])
	}
	if _, err := s.sink.Write(p[:n]); err != nil {
		return n, err
	}
	return n, err
}

// end reads what comes after the last entry, as [Extract] does.
func (s *scanner) end() error {
	if s.in.ended() {
		return fmt.Errorf("the wad is cut short after %d entries: tar's end marker is missing: %w", s.entries, io.ErrUnexpectedEOF)
	}
	for {
		n, err := s.Read(s.buf)
		if !allZero(s.buf[:n]) {
			return errors.New("there is something after the end of the archive: pack the wad as one archive")
		}
		if err == io.EOF {
			return s.settle()
		}
		if err != nil {
			return err
		}
	}
}

func allZero(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }

func (s *scanner) entry(r *tar.Reader, h *tar.Header, begin int64) error {
	f := &inode{Member: Member{TarAt: s.at}}
	if isSparse(h) {
		regions, err := sparseMap(s.headers.Bytes()[int64(s.headers.Len())-(s.at-begin):], h)
		if err != nil {
			return err
		}
		f.Regions = regions
	}
	f.Size = h.Size
	stored := f.Stored()
	if err := s.sink.entry(begin, s.at, stored); err != nil {
		return err
	}
	switch h.Typeflag {
	case 'V':
		return s.skip(r)
	case 'M':
		return errors.New("it is the continuation of another archive: pack the wad as one volume")
	}
	if err := s.global.apply(h); err != nil {
		return err
	}
	e, late, err := entry(h)
	if err != nil {
		return err
	}
	if strings.HasPrefix(h.Name, "/") && !s.stripped {
		s.stripped = true
		s.log.Warn("wad: leading slashes are dropped from names", "first", h.Name)
	}
	f.Entry = *e
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		f.Kind = tree.Regular
		if err = s.content(r, f, stored); err == nil {
			err = s.put(e.Path, f)
		}
		s.late = append(s.late, late...)
		return err
	case tar.TypeDir, 'D':
		f.Kind = tree.Directory
	case tar.TypeSymlink:
		f.Kind, f.Target = tree.Symlink, h.Linkname
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fmt.Errorf("no symbolic link can point to %q", h.Linkname)
		}
	case tar.TypeLink:
		target, err := tree.Clean(h.Linkname)
		if err == nil {
			err = s.link(e.Path, target)
		}
		if err != nil {
			return err
		}
		return s.skip(r)
	case tar.TypeChar, tar.TypeBlock:
		f.Kind = tree.CharDevice
		if h.Typeflag == tar.TypeBlock {
			f.Kind = tree.BlockDevice
		}
		if e.Major >= 1<<12 || e.Minor >= 1<<20 {
			return fmt.Errorf("no device on Linux has the numbers %d, %d", e.Major, e.Minor)
		}
	case tar.TypeFifo:
		f.Kind, f.Major, f.Minor = tree.FIFO, 0, 0
	default:
		return fmt.Errorf("entries of kind %q are not known", h.Typeflag)
	}
	f.Size, f.TarAt = 0, 0
	s.late = append(s.late, late...)
	if err := s.put(e.Path, f); err != nil {
		return err
	}
	return s.skip(r)
}

// skip reads what an entry holds though it cannot hold anything, so that the
// next headers are all that is noted.
func (s *scanner) skip(r *tar.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// content reads a file's.
func (s *scanner) content(r *tar.Reader, f *inode, stored int64) error {
	keep := f.Path == "etc/passwd" || f.Path == "etc/group"
	d := newDigester(&f.Member, s.pieces)
	for {
		n, err := r.Read(s.buf)
		d.Write(s.buf[:n])
		if keep && len(f.text)+n <= 4<<20 {
			f.text = append(f.text, s.buf[:n]...)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
	}
	if d.at != f.Size || s.at-f.TarAt != stored {
		return fmt.Errorf("it has %d bytes and %d stored, and says %d and %d", d.at, s.at-f.TarAt, f.Size, stored)
	}
	d.finish()
	return nil
}

// digester makes the digests of a member's content.
type digester struct {
	m           *Member
	size        int64 // of pieces
	whole, part hash.Hash
	at          int64
}

func newDigester(m *Member, size int64) *digester {
	d := &digester{m: m, size: size, whole: sha256.New()}
	if pieceCount(m, size) > 0 {
		d.part = sha256.New()
	}
	return d
}

func (d *digester) Write(p []byte) (int, error) {
	d.whole.Write(p)
	n := len(p)
	for d.part != nil && len(p) > 0 {
		now := p[:min(int64(len(p)), d.size-d.at%d.size)]
		d.part.Write(now)
		p = p[len(now):]
		if d.at += int64(len(now)); d.at%d.size == 0 || d.at == d.m.Size {
			at := (d.at - 1) / d.size * d.size
			d.m.Pieces = append(d.m.Pieces, tree.Piece{Offset: at, Length: d.at - at, SHA256: [digestLen]byte(d.part.Sum(nil))})
			d.part.Reset()
		}
	}
	if d.part == nil {
		d.at += int64(n)
	}
	return n, nil
}

func (d *digester) finish() { d.m.SHA256 = [digestLen]byte(d.whole.Sum(nil)) }

func newFolder() *node {
	implied := Member{Expected: tree.Expected{Implied: true}}
	implied.Kind, implied.Mode = tree.Directory, 0o755
	return &node{kids: map[string]*node{}, file: &inode{Member: implied, names: 1}}
}

// folder finds the folder that a clean path leads to, as [tree.Writer] would:
// through symbolic links, below the root, making what is missing.
func (s *scanner) folder(path string) (*node, error) {
	links := 0
	return s.follow(s.root, path, true, &links)
}

func (s *scanner) follow(at *node, path string, create bool, links *int) (*node, error) {
	if strings.HasPrefix(path, "/") {
		at = s.root
	}
	for base := range strings.SplitSeq(path, "/") {
		switch base {
		case "", ".":
			continue
		case "..":
			at = at.parent
			continue
		}
		next := at.kids[base]
		switch {
		case next == nil && !create:
			return nil, fmt.Errorf("%q is not there", path)
		case next == nil:
			next = newFolder()
			next.parent = at
			at.kids[strings.Clone(base)] = next
		case next.file.Kind == tree.Symlink:
			if *links++; *links > maxLinks {
				return nil, errors.New("it leads through too many symbolic links")
			}
			var err error
			if next, err = s.follow(at, next.file.Target, false, links); err != nil {
				return nil, fmt.Errorf("it leads through the symbolic link %q: %w", base, err)
			}
		case next.kids == nil:
			return nil, errThrough
		}
		at = next
	}
	return at, nil
}

// place finds where a path that is not the root is.
func (s *scanner) place(path string) (folder *node, base string, err error) {
	if path == "." {
		return nil, "", errors.New("only a directory can be the tree itself")
	}
	above := "."
	base = path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		above, base = path[:i], path[i+1:]
	}
	if len(base) > maxName {
		return nil, "", fmt.Errorf("the name has %d bytes, and Linux takes %d", len(base), maxName)
	}
	folder, err = s.folder(above)
	return folder, strings.Clone(base), err
}

// put makes an entry, by the rules of [tree.Writer].
func (s *scanner) put(path string, f *inode) error {
	f.Path = "" // known by the node
	if f.Kind == tree.Directory && path == "." {
		f.names = 1
		s.root.file = f
		return nil
	}
	folder, base, err := s.place(path)
	if err != nil {
		return err
	}
	n := &node{parent: folder, file: f}
	if old := folder.kids[base]; old != nil {
		if f.Kind == tree.Directory && old.kids != nil {
			f.names = 1
			old.file = f
			return nil
		}
		if err := old.remove(); err != nil {
			return err
		}
	}
	if f.Kind == tree.Directory {
		n.kids = map[string]*node{}
	}
	f.names = 1
	folder.kids[base] = n
	return nil
}

// remove lets go of what a name stands for.
func (n *node) remove() error {
	if len(n.kids) > 0 {
		return errors.New("replace the directory that is there: it is not empty")
	}
	n.file.names--
	return nil
}

func (s *scanner) link(path, target string) error {
	from, base, err := s.place(target)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	to := from.kids[base]
	switch {
	case to == nil:
		return fmt.Errorf("hard link to %q: it is not there", target)
	case to.kids != nil:
		return fmt.Errorf("hard link to %q: it is a directory", target)
	}
	folder, base, err := s.place(path)
	if err != nil {
		return err
	}
	if old := folder.kids[base]; old != nil {
		if old.file == to.file {
			return nil
		}
		if err := old.remove(); err != nil {
			return err
		}
	}
	to.file.names++
	folder.kids[base] = &node{parent: folder, file: to.file}
	return nil
}

// settle does what must wait for the whole tree.
func (s *scanner) settle() error {
	if len(s.late) == 0 {
		return nil
	}
	users, err := s.accounts("passwd")
	if err != nil {
		return err
	}
	groups, err := s.accounts("group")
	if err != nil {
		return err
	}
	for _, l := range s.late {
		if err := l.acl.resolve(users, groups); err != nil {
			return &EntryError{l.entry, err}
		}
		n := s.root
		if l.path != "." {
			folder, base, err := s.place(l.path)
			if err != nil {
				return &EntryError{l.entry, err}
			}
			if n = folder.kids[base]; n == nil {
				return &EntryError{l.entry, errors.New("it has an ACL, and is not there in the end")}
			}
		}
		if n.file.Xattrs == nil {
			n.file.Xattrs = map[string][]byte{}
		}
		n.file.Xattrs[l.attr] = l.acl.binary()
	}
	return nil
}

// accounts reads the tree's own etc/passwd or etc/group.
func (s *scanner) accounts(base string) (map[string]uint32, error) {
	links := 0
	etc, err := s.follow(s.root, "etc", false, &links)
	if err != nil || etc.kids[base] == nil {
		return map[string]uint32{}, nil
	}
	f := etc.kids[base].file
	if f.Kind != tree.Regular || int64(len(f.text)) != f.Size {
		return nil, fmt.Errorf("ACLs of the wad have names in them, and its etc/%s is not a file that tells their numbers: pack it again with numbers, or use it without an index", base)
	}
	return parseAccounts(bytes.NewReader(f.text))
}

// members lists the tree in the order of [tree.Before].
func (s *scanner) members(yield func(*Member) error) error {
	if !s.root.file.Implied {
		if err := s.member(".", s.root, yield); err != nil {
			return err
		}
	}
	return s.list("", s.root, yield)
}

// all lists them as [Index.All] does.
func (s *scanner) all() iter.Seq2[*Member, error] {
	return func(yield func(*Member, error) bool) {
		stop := errors.New("stop")
		err := s.members(func(m *Member) error {
			if !yield(m, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(nil, err)
		}
	}
}

func (s *scanner) list(above string, n *node, yield func(*Member) error) error {
	for _, base := range slices.Sorted(maps.Keys(n.kids)) {
		kid := n.kids[base]
		path := above + base
		if err := s.member(path, kid, yield); err != nil {
			return err
		}
		if kid.kids != nil {
			if err := s.list(path+"/", kid, yield); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *scanner) member(path string, n *node, yield func(*Member) error) error {
	m := n.file.Member
	m.Path = path
	if n.file.names > 1 {
		if n.file.first == "" {
			n.file.first = path
		}
		m.First, m.Links = n.file.first, n.file.names
	}
	if err := asOnDisk(&m.Entry); err != nil {
		return &EntryError{path, err}
	}
	return yield(&m)
}

// asOnDisk makes of an entry what a disk shows after it was written.
func asOnDisk(e *tree.Entry) error {
	if e.Kind == tree.Symlink {
		e.Mode = 0o777 // Linux keeps no other
	}
	for _, attr := range []string{xattrACLAccess, xattrACLDefault} {
		value, ok := e.Xattrs[attr]
		if !ok {
			continue
		}
		list, err := parseBinaryACL(value)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
		e.Xattrs = maps.Clone(e.Xattrs)
		e.Xattrs[attr] = list.binary()
		if len(list) == 0 {
			delete(e.Xattrs, attr)
			continue
		}
		if attr == xattrACLAccess {
			// The kernel keeps the mode in step, and no ACL that says no more.
			e.Mode = e.Mode&^0o777 | list.mode()
			if list.minimal() {
				delete(e.Xattrs, attr)
			}
		}
	}
	if len(e.Xattrs) == 0 {
		e.Xattrs = nil
	}
	return nil
}

// sparseMap finds out which parts of a sparse file the archive holds. headers
// are all of the entry's, from the first; archive/tar has judged them, but
// does not tell the map.
func sparseMap(headers []byte, h *tar.Header) ([]Region, error) {
	block := headers
	for len(block) >= 512 && strings.IndexByte("xgLKX", block[156]) >= 0 {
		size, ok := tarNumber(block[124:136])
		if !ok || size < 0 || size > int64(len(block)) || 512+roundUp(size) > int64(len(block)) {
			return nil, errors.New("its headers cannot be read again")
		}
		block = block[512+roundUp(size):]
	}
	if len(block) < 512 {
		return nil, errors.New("its headers cannot be read again")
	}
	var numbers []int64
	var err error
	switch p := h.PAXRecords; {
	case block[156] == tar.TypeGNUSparse:
		numbers, err = oldSparse(block)
	case p[paxSparse+"major"] == "0" && (p[paxSparse+"minor"] == "0" || p[paxSparse+"minor"] == "1"),
		p[paxSparse+"major"] == "" && p[paxSparse+"minor"] == "" && p[paxSparse+"map"] != "":
		numbers, err = decimals(strings.Split(p[paxSparse+"map"], ","))
		if p[paxSparse+"map"] == "" {
			numbers, err = nil, nil
		}
	case p[paxSparse+"major"] == "1" && p[paxSparse+"minor"] == "0":
		lines := strings.Split(string(block[512:]), "\n")
		var count []int64
		if count, err = decimals(lines[:1]); err == nil {
			if count[0] < 0 || count[0] > int64(len(lines))/2 {
				return nil, errors.New("its map of holes cannot be read again")
			}
			numbers, err = decimals(lines[1 : 1+2*count[0]])
		}
	default:
		return nil, nil // of a kind that archive/tar takes for no sparse file
	}
	if err != nil {
		return nil, err
	}
	regions := []Region{}
	for pair := range slices.Chunk(numbers, 2) {
		switch {
		case len(pair) == 1:
			return nil, errors.New("its map of holes has an odd number")
		case pair[1] > 0:
			// Neighbours are one.
			if n := len(regions); n > 0 && regions[n-1].Offset+regions[n-1].Length == pair[0] {
				regions[n-1].Length += pair[1]
			} else {
				regions = append(regions, Region{pair[0], pair[1]})
			}
		}
	}
	return regions, nil
}

// oldSparse reads the map of GNU tar's own format: four pairs in the header,
// then blocks of 21.
func oldSparse(block []byte) ([]int64, error) {
	var numbers []int64
	table, more, rest := block[386:][:4*24], block[482], block[512:]
	for {
		for pair := range slices.Chunk(table, 24) {
			if pair[0] == 0 {
				break
			}
			offset, ok := tarNumber(pair[:12])
			length, ok2 := tarNumber(pair[12:])
			if !ok || !ok2 {
				return nil, errors.New("its map of holes cannot be read again")
			}
			numbers = append(numbers, offset, length)
		}
		if more == 0 {
			return numbers, nil
		}
		if len(rest) < 512 {
			return nil, errors.New("its map of holes cannot be read again")
		}
		table, more, rest = rest[:21*24], rest[504], rest[512:]
	}
}

// tarNumber reads a header's field: octal digits, or binary if the first bit is set.
func tarNumber(field []byte) (int64, bool) {
	if field[0]&0x80 != 0 {
		if field[0] != 0x80 || !allZero(field[1:len(field)-8]) || field[len(field)-8]&0x80 != 0 {
			return 0, false
		}
		return int64(binary.BigEndian.Uint64(field[len(field)-8:])), true
	}
	text := strings.Trim(string(field), " \x00")
	if text == "" {
		return 0, true
	}
	v, err := strconv.ParseInt(text, 8, 64)
	return v, err == nil
}

func decimals(texts []string) ([]int64, error) {
	numbers := make([]int64, len(texts))
	for i, text := range texts {
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil || v < 0 {
			return nil, errors.New("its map of holes cannot be read again")
		}
		numbers[i] = v
	}
	return numbers, nil
}

// discard is a sink for archives that are only looked at.
type discard struct{ io.Writer }

func (discard) entry(int64, int64, int64) error { return nil }
