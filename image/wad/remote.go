package wad

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"

	"github.com/klauspost/compress/zstd"

	"reassure/image/fetch"
	"reassure/image/spec"
	"reassure/image/tree"
)

// Remote is an indexed wad on its servers. Nothing of it is used before it was
// found to be right: the index is bound by whoever names it, each chunk by the
// index. So the file as a whole need not be read, nor summed.
type Remote struct {
	*Index
	name  string
	parts *fetch.Parts
}

// OpenRemote fetches and checks the index of a wad. source.SHA256 is not used.
// After it, mostly no connection is open; servers that ignore Range are read on
// from there.
func OpenRemote(ctx context.Context, client *fetch.Client, source fetch.Source, index spec.WadIndex) (*Remote, error) {
	parts, head, err := client.OpenParts(ctx, source, fetch.Part{Size: int64(index.Size), SHA256: index.SHA256})
	if err != nil {
		return nil, err
	}
	x, err := ParseIndex(head)
	if err == nil && x.FileSize() != int64(source.Size) {
		err = fmt.Errorf("its chunks end at byte %d of %d: it is of another wad; publish again", x.FileSize(), uint64(source.Size))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("index of %s: %w", source.Name, err), parts.Close())
	}
	return &Remote{x, source.Name, parts}, nil
}

// Close lets go of the servers.
func (r *Remote) Close() error { return r.parts.Close() }

// Extract is [Extract] for an indexed wad: each chunk is checked before it is
// decompressed, which all processors do, and so before anything of it is
// written. Memory is what [Extract] says, and 32 MiB of chunks instead of a
// decompressor's window. Chunks that arrive damaged are fetched again, from
// another mirror if there is one.
func (r *Remote) Extract(ctx context.Context, root string, o Options) (Stats, error) {
	return unpack(ctx, root, o, func(ctx context.Context) (input, error) {
		if o.Moved != nil {
			o.Moved(r.Size)
		}
		a, err := r.open(ctx, r.all, true)
		if err != nil {
			return nil, err
		}
		a.moved = o.Moved
		return &whole{archive: a}, nil
	})
}

// all are the numbers of all chunks.
func (r *Remote) all(yield func(int) bool) {
	for i := range r.Chunks {
		if !yield(i) {
			return
		}
	}
}

// Check fetches every chunk and finds it right, as [Remote.Extract] does, and leaves it at
// that. moved, unless it is nil, is told of bytes that have come.
func (r *Remote) Check(ctx context.Context, moved func(int64)) error {
	if moved != nil {
		moved(r.Size)
	}
	a, err := r.open(ctx, r.all, true)
	if err != nil {
		return err
	}
	defer a.close()
	a.moved = moved
	for {
		if err := a.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// archive is an indexed wad's archive, or those of its chunks that were chosen.
type archive struct {
	r      *Remote
	blocks *fetch.Blocks
	zstd   *zstd.Decoder
	moved  func(int64)
	now    *fetch.Block
	begin  int64 // of now, in the archive
}

// open starts to fetch chunks, by their ascending numbers.
func (r *Remote) open(ctx context.Context, chunks iter.Seq[int], sequential bool) (*archive, error) {
	d, err := frameDecoder(0)
	if err != nil {
		return nil, err
	}
	a := &archive{r: r, zstd: d}
	a.blocks = r.parts.Fetch(ctx, func(yield func(fetch.Part) bool) {
		for n := range chunks {
			c := r.Chunk(n)
			if !yield(fetch.Part{Offset: c.At, Size: c.Size, SHA256: c.SHA256, Decoded: c.TarSize, Number: n}) {
				return
			}
		}
	}, fetch.PartOptions{Decode: a.decode, Sequential: sequential})
	return a, nil
}

// close leaves nothing running.
func (a *archive) close() {
	a.blocks.Close()
	a.zstd.Close()
}

// decode decompresses a chunk whose compressed bytes are right.
func (a *archive) decode(part fetch.Part, dst, data []byte) ([]byte, error) {
	var head zstd.Header
	err := head.Decode(data)
	if err == nil && (head.Skippable || !head.HasFCS || head.FrameContentSize != uint64(part.Decoded)) {
		err = fmt.Errorf("it announces %d bytes instead of %d", head.FrameContentSize, part.Decoded)
	}
	if err == nil {
		dst, err = a.zstd.DecodeAll(data, dst)
	}
	if err == nil && int64(len(dst)) != part.Decoded {
		err = fmt.Errorf("it holds %d bytes instead of %d", len(dst), part.Decoded)
	}
	if err != nil {
		return nil, a.r.explain(part, fmt.Errorf("%w: pack the wad again", err))
	}
	return dst, nil
}

// explain says which chunk an error is about.
func (r *Remote) explain(part fetch.Part, err error) error {
	c := r.Chunk(part.Number)
	return fmt.Errorf("chunk %d of %d, bytes %d to %d of the archive: %w", part.Number+1, r.Chunks, c.TarAt, c.TarAt+c.TarSize, err)
}

// next goes on to the next chunk; io.EOF is the end.
func (a *archive) next() error {
	if a.now != nil {
		a.now.Release()
		a.now = nil
	}
	block, err := a.blocks.Next()
	if err != nil {
		var bad *fetch.PartError
		if errors.As(err, &bad) {
			err = a.r.explain(bad.Part, err)
		}
		return err
	}
	a.now, a.begin = block, a.r.Chunk(block.Number).TarAt
	if a.moved != nil {
		a.moved(block.Size)
	}
	return nil
}

// at returns the archive's bytes from an offset on, to the end of their chunk.
func (a *archive) at(offset int64) ([]byte, error) {
	for a.now == nil || offset >= a.begin+int64(len(a.now.Data)) {
		if err := a.next(); err == io.EOF {
			return nil, fmt.Errorf("byte %d of the archive is in no chunk that is left: %w", offset, io.ErrUnexpectedEOF)
		} else if err != nil {
			return nil, err
		}
	}
	if offset < a.begin {
		return nil, fmt.Errorf("byte %d of the archive is wanted after byte %d", offset, a.begin)
	}
	return a.now.Data[offset-a.begin:], nil
}

// whole reads an archive from its start to its end.
type whole struct {
	*archive
	rest  []byte
	count int64 // bytes handed out
	err   error
}

// Read implements io.Reader.
func (w *whole) Read(p []byte) (int, error) {
	for len(w.rest) == 0 {
		if w.err == nil {
			w.err = w.next()
		}
		if w.err != nil {
			return 0, w.err
		}
		w.rest = w.now.Data
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	w.count += int64(n)
	return n, nil
}

func (w *whole) served() int64 { return w.count }

func (w *whole) ended() bool { return w.err == io.EOF }

func (w *whole) failed() error {
	if w.err == io.EOF {
		return nil
	}
	return w.err
}

// Want is content that is wanted of a wad.
type Want struct {
	*Member
	// Only are the numbers of the member's pieces that are wanted, ascending;
	// empty means its whole content.
	Only []int
}

// spans are the parts of the file that are wanted.
func (w Want) spans() iter.Seq[tree.Piece] {
	return func(yield func(tree.Piece) bool) {
		if len(w.Only) == 0 {
			yield(tree.Piece{Length: w.Size, SHA256: w.SHA256})
			return
		}
		for _, n := range w.Only {
			if !yield(w.Pieces[n]) {
				return
			}
		}
	}
}

// stored are those stretches of a part of the file that the archive holds, and
// where it does; what is between them is holes.
func (m *Member) stored(offset, length int64) iter.Seq2[Region, int64] {
	return func(yield func(Region, int64) bool) {
		if m.Regions == nil {
			if length > 0 {
				yield(Region{offset, length}, m.TarAt+offset)
			}
			return
		}
		at := m.TarAt
		for _, r := range m.Regions {
			from, to := max(r.Offset, offset), min(r.Offset+r.Length, offset+length)
			if from < to && !yield(Region{from, to - from}, at+from-r.Offset) {
				return
			}
			at += r.Length
		}
	}
}

// Fetch fetches the content of members, or of pieces of them: the chunks that
// hold it, each once, and no others. It calls give for each, in the order of the
// archive, which it puts wants into; give reads [Content], which judges it by the
// digests of the index. What give leaves unread is read and judged after it. A
// member may be wanted once.
//
// Memory is 32 MiB of chunks, and what the wants take.
func (r *Remote) Fetch(ctx context.Context, wants []Want, give func(Want, *Content) error) error {
	for _, w := range wants {
		switch {
		case w.Kind != tree.Regular:
			return fmt.Errorf("content of %q: it is a %v", w.Path, w.Kind)
		case w.First != "" && w.First != w.Path:
			return fmt.Errorf("content of %q: it is another name of %q, which has it", w.Path, w.First)
		case len(w.Only) > 0 && (!slices.IsSorted(w.Only) || w.Only[0] < 0 || w.Only[len(w.Only)-1] >= len(w.Pieces)):
			return fmt.Errorf("content of %q: it has no pieces %v in this order", w.Path, w.Only)
		}
	}
	slices.SortFunc(wants, func(a, b Want) int { return cmp.Compare(a.TarAt, b.TarAt) })
	a, err := r.open(ctx, r.chunks(wants), false)
	if err != nil {
		return err
	}
	defer a.close()
	for _, w := range wants {
		c := &Content{a: a, want: w, sum: sha256.New()}
		c.next, c.stop = iter.Pull(w.spans())
		err := give(w, c)
		if err == nil {
			_, err = io.Copy(io.Discard, c)
		}
		c.stop()
		if c.err != nil && c.err != io.EOF {
			err = c.err // the cause
		}
		if err != nil {
			return fmt.Errorf("content of %q: %w", w.Path, err)
		}
	}
	return nil
}

// chunks are the numbers of those that hold what is wanted.
func (r *Remote) chunks(wants []Want) iter.Seq[int] {
	return func(yield func(int) bool) {
		next := 0
		for _, w := range wants {
			for span := range w.spans() {
				for stretch, at := range w.stored(span.Offset, span.Length) {
					if at < 0 || stretch.Length > r.TarSize-at {
						return // at refuses it
					}
					from, to := r.Range(at, stretch.Length)
					for n := max(next, from); n < to; n++ {
						if !yield(n) {
							return
						}
					}
					next = max(next, to)
				}
			}
		}
	}
}

// Content is what was wanted of a member: its whole content or the wanted pieces
// of it, one after the other, with zeros for holes. Read returns io.EOF only if
// all of it was right.
type Content struct {
	a    *archive
	want Want
	sum  hash.Hash
	next func() (tree.Piece, bool)
	stop func()
	err  error

	span  tree.Piece // what is being read
	at    int64      // in the file
	begun bool
	zeros []byte
}

// Piece is where in the file the next byte is, and how many follow it there.
func (c *Content) piece() (int64, int64) { return c.at, c.span.Offset + c.span.Length - c.at }

// advance makes sure that there is something to read in c.span.
func (c *Content) advance() error {
	for c.err == nil && c.at == c.span.Offset+c.span.Length {
		if c.begun && [sha256.Size]byte(c.sum.Sum(nil)) != c.span.SHA256 {
			c.err = fmt.Errorf("its bytes from %d to %d are not what the index says: the index is of another wad; pack it again", c.span.Offset, c.at)
			break
		}
		span, more := c.next()
		if !more {
			c.err = io.EOF
			break
		}
		c.sum.Reset()
		c.span, c.at, c.begun = span, span.Offset, true
	}
	return c.err
}

// some returns what comes next: data, or a hole. It counts as read.
func (c *Content) some(most int64) (data []byte, hole int64, err error) {
	if err := c.advance(); err != nil {
		return nil, 0, err
	}
	_, left := c.piece()
	hole = left
	for stretch, at := range c.want.stored(c.at, left) {
		if hole = stretch.Offset - c.at; hole > 0 {
			break
		}
		if data, c.err = c.a.at(at); c.err != nil {
			return nil, 0, c.err
		}
		data = data[:min(int64(len(data)), stretch.Length, most)]
		c.sum.Write(data)
		c.at += int64(len(data))
		return data, 0, nil
	}
	hole = min(hole, most)
	c.at += hole
	if c.zeros == nil {
		c.zeros = make([]byte, 64<<10)
	}
	for n := hole; n > 0; n -= min(n, int64(len(c.zeros))) {
		c.sum.Write(c.zeros[:min(n, int64(len(c.zeros)))])
	}
	return nil, hole, nil
}

// Read implements io.Reader.
func (c *Content) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	data, hole, err := c.some(int64(len(p)))
	clear(p[:hole])
	return copy(p, data) + int(hole), err
}

// WriteTo implements io.WriterTo. A w with a method Hole(int64) error, such as
// [tree.File], gets holes by it.
func (c *Content) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	sparse, _ := w.(interface{ Hole(n int64) error })
	for {
		most := int64(MaxChunk)
		if sparse != nil {
			most = 1 << 62
		}
		data, hole, err := c.some(most)
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		case hole > 0 && sparse != nil:
			err = sparse.Hole(hole)
		case hole > 0:
			for n := hole; n > 0 && err == nil; n -= min(n, int64(len(c.zeros))) {
				_, err = w.Write(c.zeros[:min(n, int64(len(c.zeros)))])
			}
		default:
			_, err = w.Write(data)
		}
		if err != nil {
			return total, err
		}
		total += int64(len(data)) + hole
	}
}
