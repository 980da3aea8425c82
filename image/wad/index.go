package wad

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"reassure/image/spec"
	"reassure/image/tree"
)

// Index is the table of contents of an indexed wad.
//
// The file of an indexed wad is an ordinary .tar.zst: zstd frames that, one
// after the other, decompress to a tar archive. The first frame is empty, so
// that tar and file know the format; the second is a skippable one (RFC 8878,
// 3.1.2), which every decompressor passes over, and holds the index; each other
// is a chunk. Both together are the head. The index comes first so that one pass over the file can
// check each chunk before it is used, from servers without ranges, too.
//
// The index is: indexMagic; uvarints that are its level, piece size and sizes
// and counts of what follows; the chunks' lengths, compressed; their digests;
// then pages of up to 1024 entries. A page has its entries' metadata in
// columns, compressed, and their digests, which cannot be. In memory it stays
// as it is in the file, and pages are decoded one at a time.
type Index struct {
	// Size is where the first chunk begins in the file: the index comes before it.
	Size int64
	// TarSize is the length of the archive when all chunks are decompressed.
	TarSize int64
	// Chunks is how many there are; they are in the order of the file, without gaps.
	Chunks int
	// Members is how many entries the index has.
	Members int64
	// PieceSize is how large the pieces of large files are, but for their last ones.
	PieceSize int64
	// Level is what the wad was compressed with, on the scale of the zstd program.
	Level int

	head    []byte
	sizes   []uint32 // compressed and plain of each chunk, in turn
	digests []byte   // of the chunks
	marks   []mark   // where every chunkStride-th chunk begins
	pages   []byte
}

// mark is where a chunk begins.
type mark struct{ at, tarAt int64 }

// Chunk is one zstd frame of an indexed wad.
type Chunk struct {
	At, Size       int64       // in the file, compressed; bytes
	TarAt, TarSize int64       // in the archive
	SHA256         spec.Digest // of the compressed bytes
}

// Member is an entry of an index, and where its content is.
type Member struct {
	tree.Expected
	// TarAt is where the content begins in the archive.
	TarAt int64
	// Regions are, of a sparse file, the parts that the archive holds, one after
	// the other from TarAt on; all else is holes. nil means the whole file.
	Regions []Region
}

// Region is a part of a sparse file that is no hole.
type Region struct{ Offset, Length int64 }

// Stored is how many bytes of content the archive holds: Size without holes.
func (m *Member) Stored() int64 {
	if m.Regions == nil {
		return m.Size
	}
	var n int64
	for _, r := range m.Regions {
		n += r.Length
	}
	return n
}

// ErrNoIndex is returned for a wad that has no index.
var ErrNoIndex = errors.New("the wad has no index: make one with \"reassure wad pack\"")

const (
	// frontFrame is an empty zstd frame: RFC 8878, 3.1.1, with a single segment
	// of no bytes, whose last block is a raw one of no bytes.
	frontFrame = "\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"
	// skipMagic begins a skippable frame; its length follows in four bytes.
	skipMagic = "\x5a\x2a\x4d\x18"
	// indexMagic begins an index. Another version has another one.
	indexMagic = "\x89WADIDX\x01"

	headStart = len(frontFrame) + len(skipMagic) + 4
	// maxHead bounds an index: some ten million entries.
	maxHead = 1 << 30

	pageEntries = 1024
	// maxPage bounds the metadata of a page; the packer ends pages far below it,
	// but a single entry may be large.
	maxPage = 4 << 20
	// MaxChunk bounds the archive bytes of one chunk.
	MaxChunk = 4 << 20

	chunkStride = 64

	maxName   = 255  // NAME_MAX
	maxPath   = 4095 // PATH_MAX, without the final zero
	maxXattr  = 64 << 10
	digestLen = sha256.Size
)

// What a page says of an entry beside its kind.
const (
	kindMask    = 0x0f
	flagImplied = 0x10
	flagXattrs  = 0x20
	flagLinks   = 0x40
	flagSparse  = 0x80
)

// The columns of a page.
const (
	colKinds = iota
	colPathLengths
	colPathBytes
	colOwners
	colSeconds
	colNanoseconds
	colSizes
	colPlaces
	colTargets
	colDevices
	colXattrs
	colLinks
	colRegions
	columns
)

// HasIndex says whether a file that starts so is an indexed wad; 25 bytes are
// enough to tell.
func HasIndex(start []byte) bool {
	return len(start) >= headStart+len(indexMagic) &&
		string(start[:len(frontFrame)]) == frontFrame &&
		string(start[len(frontFrame):][:len(skipMagic)]) == skipMagic &&
		// Another version is an index, too: [ParseIndex] says what is wrong with it.
		string(start[headStart:][:len(indexMagic)-1]) == indexMagic[:len(indexMagic)-1]
}

// ReadHead reads what an indexed wad has before its first chunk, and nothing
// after it. If the wad has no index the error is [ErrNoIndex].
func ReadHead(r io.Reader) ([]byte, error) {
	start := make([]byte, headStart+len(indexMagic))
	if n, err := io.ReadFull(r, start); err == io.EOF || err == io.ErrUnexpectedEOF {
		if own := frontFrame + skipMagic; n > 0 && !strings.HasPrefix(own, string(start[:min(n, len(own))])) {
			return nil, ErrNoIndex
		}
		return nil, fmt.Errorf("the wad is cut short: %w", io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, err
	}
	if !HasIndex(start) {
		return nil, ErrNoIndex
	}
	size := int64(binary.LittleEndian.Uint32(start[headStart-4:]))
	if size > maxHead || size < int64(len(indexMagic)) {
		return nil, damaged("a length of %d bytes", size)
	}
	// What the file says of its length is not believed before it is there.
	var head bytes.Buffer
	head.Write(start)
	rest := size - int64(len(indexMagic))
	n, err := io.CopyN(&head, r, rest)
	if err == io.EOF {
		return nil, fmt.Errorf("the wad's index is cut short after %d of %d bytes: %w", n, rest, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, err
	}
	return slices.Clip(head.Bytes()), nil
}

// OpenIndex reads the index of the wad in a file. If it has none the error is
// [ErrNoIndex].
func OpenIndex(file string) (*Index, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head, err := ReadHead(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	x, err := ParseIndex(head)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return x, nil
}

// Bound is how a manifest binds the index.
func (x *Index) Bound() spec.WadIndex {
	return spec.WadIndex{Size: spec.Size(len(x.head)), SHA256: spec.Sum(x.head)}
}

// damaged is what is wrong with an index.
func damaged(format string, args ...any) error {
	return fmt.Errorf("the wad's index is damaged: it has %w: pack the wad again", fmt.Errorf(format, args...))
}

// ParseIndex reads what is before the first chunk of an indexed wad: head must
// be all of that. It keeps head and does not change it. The entries are judged
// only when they are read, by [Index.All].
func ParseIndex(head []byte) (*Index, error) {
	if !HasIndex(head) {
		return nil, ErrNoIndex
	}
	if head[headStart+len(indexMagic)-1] != indexMagic[len(indexMagic)-1] {
		return nil, fmt.Errorf("the wad's index is of a version that is not known here (%d): pack the wad with this version of reassure, or update the image", head[headStart+len(indexMagic)-1])
	}
	if size := int64(binary.LittleEndian.Uint32(head[headStart-4:])); size > maxHead || size != int64(len(head)-headStart) {
		return nil, damaged("%d bytes and says that they are %d", len(head)-headStart, size)
	}
	x := &Index{Size: int64(len(head)), head: head}
	r := &reader{b: head[headStart+len(indexMagic):]}
	x.Level = int(r.number(1000))
	x.PieceSize = r.number(MaxChunk)
	x.TarSize = r.number(math.MaxInt64)
	x.Members = r.number(math.MaxInt64)
	// A chunk has a digest and an entry a byte, at the least.
	x.Chunks = int(r.number(int64(len(r.b)) / digestLen))
	packed := r.bytes(r.number(int64(len(r.b))))
	x.digests = r.bytes(int64(x.Chunks) * digestLen)
	x.pages = r.b
	switch {
	case r.err != nil:
		return nil, r.err
	case x.PieceSize == 0:
		return nil, damaged("pieces of no bytes")
	}
	d, err := frameDecoder(1)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	const longest = 2 * binary.MaxVarintLen32
	plain, err := expand(d, packed, int64(x.Chunks)*longest)
	if err != nil {
		return nil, damaged("lengths of chunks that cannot be decompressed (%v)", err)
	}
	return x, x.locate(&reader{b: plain})
}

// locate finds out where the chunks are.
func (x *Index) locate(r *reader) error {
	x.sizes = make([]uint32, 0, 2*x.Chunks)
	at := mark{at: x.Size}
	for i := range x.Chunks {
		if i%chunkStride == 0 {
			x.marks = append(x.marks, at)
		}
		size, plain := r.number(maxFrame), r.number(MaxChunk)
		if r.err == nil && (size == 0 || plain == 0) {
			return damaged("an empty chunk")
		}
		x.sizes = append(x.sizes, uint32(size), uint32(plain))
		at.at, at.tarAt = at.at+size, at.tarAt+plain
	}
	r.end("lengths of chunks")
	switch {
	case r.err != nil:
		return r.err
	case at.tarAt != x.TarSize:
		return damaged("chunks of %d bytes together for an archive of %d", at.tarAt, x.TarSize)
	}
	return nil
}

// maxFrame is the most that a chunk may have in the file: zstd makes nothing
// longer by more than a header and three bytes for each block of 128 KiB.
const maxFrame = MaxChunk + MaxChunk/1024 + 64

// frameDecoder decompresses frames that are wholly in memory, so many at a time,
// and never to more than what the buffer that it is given holds.
func frameDecoder(concurrency int) (*zstd.Decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(concurrency), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("start a decompressor: %w", err)
	}
	return d, nil
}

// expand decompresses one frame of at most limit bytes.
func expand(d *zstd.Decoder, packed []byte, limit int64) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return nil, err
	}
	if !h.HasFCS || h.FrameContentSize > uint64(limit) {
		return nil, fmt.Errorf("its length is not told, or more than %d bytes", limit)
	}
	// No more than this is ever made, whatever the frame holds.
	out, err := d.DecodeAll(packed, make([]byte, 0, h.FrameContentSize))
	if err == nil && uint64(len(out)) != h.FrameContentSize {
		err = fmt.Errorf("%d bytes where it says %d", len(out), h.FrameContentSize)
	}
	return out, err
}

// Chunk returns the chunk of that number, from 0.
func (x *Index) Chunk(i int) Chunk {
	c := Chunk{SHA256: spec.Digest(x.digests[i*digestLen:])}
	m := x.marks[i/chunkStride]
	for j := i / chunkStride * chunkStride; j < i; j++ {
		m.at, m.tarAt = m.at+int64(x.sizes[2*j]), m.tarAt+int64(x.sizes[2*j+1])
	}
	c.At, c.TarAt = m.at, m.tarAt
	c.Size, c.TarSize = int64(x.sizes[2*i]), int64(x.sizes[2*i+1])
	return c
}

// FileSize is how long the file of the wad is.
func (x *Index) FileSize() int64 {
	if x.Chunks == 0 {
		return x.Size
	}
	last := x.Chunk(x.Chunks - 1)
	return last.At + last.Size
}

// At returns the number of the chunk that holds the archive's byte at offset,
// which must be in the archive.
func (x *Index) At(offset int64) int {
	m := sort.Search(len(x.marks), func(i int) bool { return x.marks[i].tarAt > offset }) - 1
	i := m * chunkStride
	for end := x.marks[m].tarAt; i < x.Chunks; i++ {
		if end += int64(x.sizes[2*i+1]); offset < end {
			break
		}
	}
	return i
}

// Range returns the chunks that hold n bytes of the archive from offset on: the
// first, and the one after the last.
func (x *Index) Range(offset, n int64) (from, to int) {
	if n == 0 {
		return 0, 0
	}
	return x.At(offset), x.At(offset+n-1) + 1
}

// All gives the members in the order of [tree.Before]. It decodes a page at a
// time, so that memory does not grow with the number of members; a member is
// the caller's to keep, but those with equal attributes share a map of them,
// which must not be changed. After an error it ends.
func (x *Index) All() iter.Seq2[*Member, error] {
	return func(yield func(*Member, error) bool) {
		d, err := frameDecoder(1)
		if err != nil {
			yield(nil, err)
			return
		}
		defer d.Close()
		r := &reader{b: x.pages}
		var n int64
		order := order{}
		for len(r.b) > 0 {
			page, err := x.page(d, r)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, m := range page {
				if err := order.check(m); err != nil {
					yield(nil, err)
					return
				}
				n++
				if !yield(m, nil) {
					return
				}
			}
		}
		if n != x.Members {
			yield(nil, damaged("%d entries and says that they are %d", n, x.Members))
		}
	}
}

// order judges what one entry cannot show.
type order struct {
	last    string
	folders []string // those that the last entry is in, and itself if it is one
	any     bool
}

func (o *order) check(m *Member) error {
	if o.any && !tree.Before(o.last, m.Path) {
		return damaged("%q after %q", m.Path, o.last)
	}
	o.any, o.last = true, m.Path
	for len(o.folders) > 0 && !strings.HasPrefix(m.Path, o.folders[len(o.folders)-1]+"/") {
		o.folders = o.folders[:len(o.folders)-1]
	}
	above := "."
	if i := strings.LastIndexByte(m.Path, '/'); i >= 0 {
		above = m.Path[:i]
	}
	if above != "." && (len(o.folders) == 0 || o.folders[len(o.folders)-1] != above) {
		return damaged("%q in something that is no folder", m.Path)
	}
	if m.Kind == tree.Directory && m.Path != "." {
		o.folders = append(o.folders, m.Path)
	}
	return nil
}

// page reads the next page.
func (x *Index) page(d *zstd.Decoder, r *reader) ([]*Member, error) {
	count := r.number(pageEntries)
	packed := r.bytes(r.number(int64(len(r.b))))
	digests := &reader{b: r.bytes(r.number(int64(len(r.b))/digestLen) * digestLen)}
	if r.err != nil {
		return nil, r.err
	}
	if count == 0 {
		return nil, damaged("an empty page")
	}
	plain, err := expand(d, packed, maxPage)
	if err != nil {
		return nil, damaged("a page that cannot be decompressed (%v)", err)
	}
	p := page{x: x, digests: digests}
	all := &reader{b: plain}
	for i := range p.columns {
		p.columns[i].b = all.bytes(all.number(int64(len(all.b))))
	}
	all.end("columns")
	if all.err != nil {
		return nil, all.err
	}
	members := make([]*Member, 0, count)
	for range count {
		m, err := p.member()
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	for i := range p.columns {
		p.columns[i].end("entries")
		if err := p.columns[i].err; err != nil {
			return nil, err
		}
	}
	digests.end("digests")
	return members, digests.err
}

// page is one that is being read.
type page struct {
	x       *Index
	columns [columns]reader
	digests *reader
	basis   // what later entries build on
}

// basis is what an entry of a page is told relative to. Reader and writer
// keep it alike.
type basis struct {
	path    string
	owners  []owner
	xattrs  []map[string][]byte
	seconds int64
	place   int64 // where the last content ended, in whole blocks
}

type owner struct{ mode, uid, gid uint32 }

func (p *page) member() (*Member, error) {
	m := &Member{}
	kind := p.columns[colKinds].byte()
	m.Kind, m.Implied = tree.Kind(kind&kindMask), kind&flagImplied != 0
	m.Path = p.nextPath()
	m.Mode, m.UID, m.GID = p.owner()
	if !m.Implied {
		p.seconds += p.columns[colSeconds].signed()
		m.ModTime = time.Unix(p.seconds, p.columns[colNanoseconds].number(999_999_999))
	}
	if kind&flagXattrs != 0 {
		m.Xattrs = p.attributes()
	}
	for i := range p.columns {
		if err := p.columns[i].err; err != nil {
			return nil, err
		}
	}
	if clean, err := tree.Clean(m.Path); err != nil || clean != m.Path || len(m.Path) > maxPath {
		return nil, damaged("the name %q", m.Path)
	}
	wrong := func() bool {
		switch {
		case m.Path == "." && m.Kind != tree.Directory,
			m.Mode > 0o7777,
			m.Implied && m.Kind != tree.Directory,
			kind&flagSparse != 0 && m.Kind != tree.Regular,
			kind&flagLinks != 0 && m.Kind == tree.Directory:
			return true
		}
		return false
	}()
	if wrong {
		return nil, damaged("%q as what it cannot be", m.Path)
	}
	switch m.Kind {
	case tree.Regular:
		p.content(m, kind&flagSparse != 0)
	case tree.Directory, tree.FIFO:
	case tree.Symlink:
		c := &p.columns[colTargets]
		m.Target = string(c.bytes(c.number(maxPath)))
		if c.err == nil && (m.Target == "" || strings.IndexByte(m.Target, 0) >= 0) {
			c.err = damaged("the link %q to nothing", m.Path)
		}
	case tree.CharDevice, tree.BlockDevice:
		c := &p.columns[colDevices]
		m.Major, m.Minor = uint32(c.number(1<<12-1)), uint32(c.number(1<<20-1)) // linux/kdev_t.h
	default:
		return nil, damaged("%q of a kind that is not known", m.Path)
	}
	if kind&flagLinks != 0 {
		c := &p.columns[colLinks]
		m.Links = int(c.number(math.MaxInt32))
		m.First = string(c.bytes(c.number(maxPath)))
		if m.First == "" { // itself: most are the first of two
			m.First = m.Path
		}
		clean, err := tree.Clean(m.First)
		if c.err == nil && (m.Links < 2 || err != nil || clean != m.First || m.First != m.Path && !tree.Before(m.First, m.Path)) {
			c.err = damaged("%q as one of %d names of %q", m.Path, m.Links, m.First)
		}
	}
	return m, nil
}

func (p *page) nextPath() string {
	lengths, text := &p.columns[colPathLengths], &p.columns[colPathBytes]
	shared := lengths.number(int64(len(p.path)))
	p.path = p.path[:shared] + string(text.bytes(lengths.number(maxPath)))
	return p.path
}

func (p *page) owner() (mode, uid, gid uint32) {
	c := &p.columns[colOwners]
	i := c.number(int64(len(p.owners)))
	if i == int64(len(p.owners)) {
		p.owners = append(p.owners, owner{uint32(c.number(0o7777)), uint32(c.number(math.MaxUint32 - 1)), uint32(c.number(math.MaxUint32 - 1))})
	}
	o := p.owners[i]
	return o.mode, o.uid, o.gid
}

func (p *page) attributes() map[string][]byte {
	c := &p.columns[colXattrs]
	i := c.number(int64(len(p.xattrs)))
	if i < int64(len(p.xattrs)) {
		return p.xattrs[i] // a map for each would let a small page fill the memory
	}
	set := map[string][]byte{}
	last := ""
	for range c.number(int64(len(c.b))) {
		name := string(c.bytes(c.number(maxName)))
		value := c.bytes(c.number(maxXattr))
		if c.err == nil && (name <= last || strings.IndexByte(name, 0) >= 0) {
			c.err = damaged("the attribute %q", name)
		}
		if c.err != nil {
			return nil
		}
		set[name], last = bytes.Clone(value), name
	}
	p.xattrs = append(p.xattrs, set)
	return set
}

// content reads what an index says of a file's content.
func (p *page) content(m *Member, sparse bool) {
	m.Size = p.columns[colSizes].number(math.MaxInt64)
	if m.Size == 0 {
		m.SHA256 = sha256.Sum256(nil)
	}
	if sparse {
		m.Regions = p.regions(m.Size)
	}
	if m.Size > 0 {
		c := &p.columns[colPlaces]
		m.TarAt = p.place + c.signed()
		stored := m.Stored()
		if c.err == nil && (m.TarAt < 0 || stored > p.x.TarSize || m.TarAt > p.x.TarSize-stored) {
			c.err = damaged("%q outside of the archive", m.Path)
		}
		if c.err != nil {
			return
		}
		p.place = roundUp(m.TarAt + stored)
		m.SHA256 = p.digests.digest()
		if pieces := pieceCount(m, p.x.PieceSize); pieces > 0 {
			if pieces > int64(len(p.digests.b)/digestLen) {
				p.digests.err = damaged("too few digests")
				return
			}
			m.Pieces = make([]tree.Piece, pieces)
			for i := range m.Pieces {
				at := int64(i) * p.x.PieceSize
				m.Pieces[i] = tree.Piece{Offset: at, Length: min(p.x.PieceSize, m.Size-at), SHA256: p.digests.digest()}
			}
		}
	}
}

// pieceCount says how many pieces a file has: 0 for one that comes as a whole.
// Those with holes do, because a hole costs nothing and may be endless.
func pieceCount(m *Member, size int64) int64 {
	if m.Regions != nil || m.Size <= size {
		return 0
	}
	return (m.Size-1)/size + 1
}

func (p *page) regions(size int64) []Region {
	c := &p.columns[colRegions]
	list := []Region{}
	var at int64
	for range c.number(int64(len(c.b))) {
		hole, length := c.number(size-at), int64(0)
		if c.err == nil {
			length = c.number(size - at - hole)
		}
		if c.err == nil && length == 0 {
			c.err = damaged("an empty region")
		}
		if c.err != nil {
			return nil
		}
		list = append(list, Region{at + hole, length})
		at += hole + length
	}
	return list
}

// roundUp rounds up to tar's blocks.
func roundUp(n int64) int64 { return (n + 511) &^ 511 }

// reader takes values off the front of b. After the first error it gives zeros.
type reader struct {
	b   []byte
	err error
}

// number is an unsigned one, which must not be more than most.
func (r *reader) number(most int64) int64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > uint64(max(most, 0)) {
		r.fail("the number %d, which may be %d at most", v, most)
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[n:]
	return int64(v)
}

func (r *reader) signed() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("a number that is none")
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if b := r.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

// bytes are b's own, not a copy.
func (r *reader) bytes(n int64) []byte {
	if r.err == nil && n > int64(len(r.b)) {
		r.fail("fewer bytes than it says")
	}
	if r.err != nil {
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) digest() (sum [digestLen]byte) {
	copy(sum[:], r.bytes(digestLen))
	return sum
}

// end checks that nothing is left.
func (r *reader) end(what string) {
	if len(r.b) > 0 {
		r.fail("%d bytes too many of %s", len(r.b), what)
	}
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = damaged(format, args...)
	}
}
