package wad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"reassure/image/spec"
)

// Verify reads a wad's file to its end. Of one with an index it checks that each
// chunk is what the index says, and that the index says of every entry what
// the archive does: then whoever has checked the index's digest may believe it,
// and a delta ends in the tree that a full install makes. Of one without, it
// checks that [Extract] would accept it; then the index that is returned is nil.
func Verify(ctx context.Context, file string, progress func(PackStats)) (*Index, PackStats, error) {
	v := &verification{progress: progress}
	f, err := os.Open(file)
	if err != nil {
		return nil, v.stats, err
	}
	defer f.Close()
	x, err := v.run(ctx, f)
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return x, v.stats, err
}

type verification struct {
	progress func(PackStats)
	stats    PackStats
	reported time.Time
}

func (v *verification) run(ctx context.Context, f *os.File) (*Index, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // lets go of what reads ahead
	s := v.scanner(ctx)
	head, err := ReadHead(f)
	if errors.Is(err, ErrNoIndex) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		s.in = readAhead(ctx, f)
		return nil, s.scan()
	}
	if err != nil {
		return nil, err
	}
	x, err := ParseIndex(head)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil {
		return x, err
	} else if info.Size() != x.FileSize() {
		return x, fmt.Errorf("the file has %d bytes, and by its index it should have %d: it is damaged; copy it or pack it again", info.Size(), x.FileSize())
	}
	chunks, err := x.open(f)
	if err != nil {
		return x, err
	}
	defer chunks.close()
	s.in, s.pieces = &plainInput{Reader: chunks}, x.PieceSize
	if err := s.scan(); err != nil {
		return x, err
	}
	v.stats = PackStats{Entries: s.entries, Bytes: spec.Size(s.at)}
	return x, x.equals(s)
}

func (v *verification) report(s *scanner) {
	v.stats = PackStats{Entries: s.entries, Bytes: spec.Size(s.at)}
	if now := time.Now(); v.progress != nil && now.Sub(v.reported) >= 100*time.Millisecond {
		v.reported = now
		v.progress(v.stats)
	}
}

// equals checks that the index says what the archive does.
func (x *Index) equals(s *scanner) error {
	return pairs(x.All(), s.all(), func(index, archive *Member) error {
		switch {
		case index == nil:
			return fmt.Errorf("%q is in the archive and not in the index: pack the wad again", archive.Path)
		case archive == nil:
			return fmt.Errorf("%q is in the index and not in the archive: pack the wad again", index.Path)
		}
		what := differences(index, archive)
		if index.Implied != archive.Implied {
			what = append(what, "time")
		}
		if index.Size > 0 && (index.TarAt != archive.TarAt || !slices.Equal(index.Regions, archive.Regions) || !slices.Equal(index.Pieces, archive.Pieces)) {
			what = append(what, "place")
		}
		if what != nil {
			return fmt.Errorf("the index says something else of %q than the archive (%s): pack the wad again", index.Path, strings.Join(what, ", "))
		}
		return nil
	})
}

// plainInput is an archive that is not compressed any more.
type plainInput struct {
	io.Reader
	count int64
	err   error
}

func (p *plainInput) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.count += int64(n)
	if err != nil {
		p.err = err
	}
	return n, err
}

func (p *plainInput) served() int64 { return p.count }

func (p *plainInput) close() {}

func (p *plainInput) ended() bool { return p.err == io.EOF }

func (p *plainInput) failed() error {
	if p.err == io.EOF {
		return nil
	}
	return p.err
}

// chunkReader reads the archive of an indexed wad's file, or a part of it. It
// gives nothing that was not checked.
type chunkReader struct {
	x       *Index
	file    io.ReaderAt
	decoder *zstd.Decoder
	next    int    // chunk
	rest    []byte // of the last one
	packed  []byte
	plain   []byte
}

func (x *Index) open(file io.ReaderAt) (*chunkReader, error) {
	d, err := frameDecoder(1)
	if err != nil {
		return nil, err
	}
	return &chunkReader{x: x, file: file, decoder: d}, nil
}

func (r *chunkReader) close() { r.decoder.Close() }

// seek goes to an offset of the archive.
func (r *chunkReader) seek(offset int64) error {
	i := r.x.At(offset)
	if err := r.load(i); err != nil {
		return err
	}
	r.rest = r.plain[offset-r.x.Chunk(i).TarAt:]
	return nil
}

func (r *chunkReader) load(i int) error {
	c := r.x.Chunk(i)
	r.packed = slices.Grow(r.packed[:0], int(c.Size))[:c.Size]
	if n, err := r.file.ReadAt(r.packed, c.At); n < len(r.packed) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read chunk %d at byte %d: %w", i, c.At, err)
	}
	if spec.Sum(r.packed) != c.SHA256 {
		return fmt.Errorf("chunk %d, %d bytes from byte %d on, is not what the index says: the file is damaged; copy it or pack it again", i, c.Size, c.At)
	}
	var err error
	r.plain, err = r.decoder.DecodeAll(r.packed, slices.Grow(r.plain[:0], int(c.TarSize))[:0:c.TarSize])
	if err != nil || int64(len(r.plain)) != c.TarSize {
		return fmt.Errorf("chunk %d, %d bytes from byte %d on, does not decompress to %d bytes: pack the wad again (%v)", i, c.Size, c.At, c.TarSize, err)
	}
	r.rest, r.next = r.plain, i+1
	return nil
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.next == r.x.Chunks {
			return 0, io.EOF
		}
		if err := r.load(r.next); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
