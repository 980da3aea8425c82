package wad

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/klauspost/compress/zstd"

	"reassure/image/spec"
	"reassure/image/tree"
)

// pageBytes is how much metadata makes a page full, besides [pageEntries].
const pageBytes = 256 << 10

// indexWriter makes the head of an indexed wad.
type indexWriter struct {
	pieceSize int64
	level     int
	encoder   *zstd.Encoder

	members int64
	pages   []byte
	count   int
	columns [columns][]byte
	digests []byte
	basis
	order order

	chunks       int
	tarSize      int64
	chunkSizes   []byte
	chunkDigests []byte
}

func newIndexWriter(level int, pieceSize int64) (*indexWriter, error) {
	// The best level whatever the wad's: it is little, and every PC fetches it.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
	if err != nil {
		return nil, fmt.Errorf("make an index: %w", err)
	}
	return &indexWriter{pieceSize: pieceSize, level: level, encoder: e}, nil
}

// chunk notes the next chunk.
func (w *indexWriter) chunk(size, plain int, sum spec.Digest) {
	w.chunkSizes = binary.AppendUvarint(w.chunkSizes, uint64(size))
	w.chunkSizes = binary.AppendUvarint(w.chunkSizes, uint64(plain))
	w.chunkDigests = append(w.chunkDigests, sum[:]...)
	w.chunks++
	w.tarSize += int64(plain)
}

// add appends a member; they come in the order of [tree.Before].
func (w *indexWriter) add(m *Member) error {
	if len(m.Path) > maxPath {
		return fmt.Errorf("the path %.60q... has %d bytes, and Linux takes %d: shorten it", m.Path, len(m.Path), maxPath)
	}
	if err := w.order.check(m); err != nil {
		return err
	}
	return w.put(m)
}

func (w *indexWriter) put(m *Member) error {
	kind := byte(m.Kind)
	if m.Implied {
		kind |= flagImplied
	}
	if len(m.Xattrs) > 0 {
		kind |= flagXattrs
	}
	if m.Links > 1 {
		kind |= flagLinks
	}
	if m.Regions != nil {
		kind |= flagSparse
	}
	w.columns[colKinds] = append(w.columns[colKinds], kind)
	w.putPath(m.Path)
	w.putOwner(owner{m.Mode, m.UID, m.GID})
	if !m.Implied {
		seconds := m.ModTime.Unix()
		w.signed(colSeconds, seconds-w.seconds)
		w.seconds = seconds
		w.number(colNanoseconds, int64(m.ModTime.Nanosecond()))
	}
	if len(m.Xattrs) > 0 {
		if err := w.putXattrs(m.Xattrs); err != nil {
			return err
		}
	}
	switch m.Kind {
	case tree.Regular:
		w.putContent(m)
	case tree.Symlink:
		w.text(colTargets, m.Target)
	case tree.CharDevice, tree.BlockDevice:
		w.number(colDevices, int64(m.Major))
		w.number(colDevices, int64(m.Minor))
	}
	if m.Links > 1 {
		w.number(colLinks, int64(m.Links))
		if m.First == m.Path {
			w.text(colLinks, "")
		} else {
			w.text(colLinks, m.First)
		}
	}
	w.members++
	w.count++
	size := 0
	for _, c := range w.columns {
		size += len(c)
	}
	if size > maxPage-1024 {
		return fmt.Errorf("what is known of %q besides its content has %d bytes, too many for an index: it has too many holes or attributes; a wad without an index holds it", m.Path, size)
	}
	if w.count == pageEntries || size > pageBytes {
		w.flush()
	}
	return nil
}

func (w *indexWriter) number(column int, v int64) {
	w.columns[column] = binary.AppendUvarint(w.columns[column], uint64(v))
}

func (w *indexWriter) signed(column int, v int64) {
	w.columns[column] = binary.AppendVarint(w.columns[column], v)
}

func (w *indexWriter) text(column int, s string) {
	w.number(column, int64(len(s)))
	w.columns[column] = append(w.columns[column], s...)
}

func (w *indexWriter) putPath(path string) {
	shared := 0
	for shared < min(len(path), len(w.path)) && path[shared] == w.path[shared] {
		shared++
	}
	w.number(colPathLengths, int64(shared))
	w.number(colPathLengths, int64(len(path)-shared))
	w.columns[colPathBytes] = append(w.columns[colPathBytes], path[shared:]...)
	w.path = path
}

func (w *indexWriter) putOwner(o owner) {
	i := slices.Index(w.owners, o)
	if i >= 0 {
		w.number(colOwners, int64(i))
		return
	}
	w.number(colOwners, int64(len(w.owners)))
	w.owners = append(w.owners, o)
	for _, v := range []uint32{o.mode, o.uid, o.gid} {
		w.number(colOwners, int64(v))
	}
}

func (w *indexWriter) putXattrs(set map[string][]byte) error {
	equal := func(other map[string][]byte) bool { return maps.EqualFunc(set, other, slices.Equal) }
	if i := slices.IndexFunc(w.xattrs, equal); i >= 0 {
		w.number(colXattrs, int64(i))
		return nil
	}
	w.number(colXattrs, int64(len(w.xattrs)))
	w.xattrs = append(w.xattrs, set)
	w.number(colXattrs, int64(len(set)))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if len(name) > maxName || len(set[name]) > maxXattr {
			return fmt.Errorf("the attribute %.60q is larger than Linux takes", name)
		}
		w.text(colXattrs, name)
		w.text(colXattrs, string(set[name]))
	}
	return nil
}

func (w *indexWriter) putContent(m *Member) {
	w.number(colSizes, m.Size)
	if m.Regions != nil {
		w.number(colRegions, int64(len(m.Regions)))
		var at int64
		for _, r := range m.Regions {
			w.number(colRegions, r.Offset-at)
			w.number(colRegions, r.Length)
			at = r.Offset + r.Length
		}
	}
	if m.Size == 0 {
		return
	}
	w.signed(colPlaces, m.TarAt-w.place)
	w.place = roundUp(m.TarAt + m.Stored())
	w.digests = append(w.digests, m.SHA256[:]...)
	for _, p := range m.Pieces {
		w.digests = append(w.digests, p.SHA256[:]...)
	}
}

// flush ends the page.
func (w *indexWriter) flush() {
	if w.count == 0 {
		return
	}
	var plain []byte
	for i, c := range w.columns {
		plain = binary.AppendUvarint(plain, uint64(len(c)))
		plain = append(plain, c...)
		w.columns[i] = c[:0]
	}
	packed := w.encoder.EncodeAll(plain, nil)
	w.pages = binary.AppendUvarint(w.pages, uint64(w.count))
	w.pages = binary.AppendUvarint(w.pages, uint64(len(packed)))
	w.pages = append(w.pages, packed...)
	w.pages = binary.AppendUvarint(w.pages, uint64(len(w.digests)/digestLen))
	w.pages = append(w.pages, w.digests...)
	w.count, w.digests, w.basis = 0, w.digests[:0], basis{}
}

// head returns the finished head.
func (w *indexWriter) head() ([]byte, error) {
	w.flush()
	index := []byte(indexMagic)
	for _, v := range []int64{int64(w.level), w.pieceSize, w.tarSize, w.members, int64(w.chunks)} {
		index = binary.AppendUvarint(index, uint64(v))
	}
	sizes := w.encoder.EncodeAll(w.chunkSizes, nil)
	index = binary.AppendUvarint(index, uint64(len(sizes)))
	index = append(index, sizes...)
	index = append(index, w.chunkDigests...)
	size := len(index) + len(w.pages)
	if size > min(maxHead, math.MaxUint32) {
		return nil, fmt.Errorf("the index has %d bytes, more than the %d allowed: make several wads of it", size, maxHead)
	}
	head := make([]byte, 0, headStart+size)
	head = append(head, frontFrame+skipMagic...)
	head = binary.LittleEndian.AppendUint32(head, uint32(size))
	head = append(head, index...)
	return append(head, w.pages...), nil
}
