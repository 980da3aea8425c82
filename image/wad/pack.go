package wad

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// DefaultLevel is what wads are compressed with, on the scale of the zstd program.
const DefaultLevel = 10

// PackOptions are for [Pack] and [PackFolder]. The zero value works.
type PackOptions struct {
	// Level is how hard to compress, on the scale of the zstd program; 0 means
	// [DefaultLevel], which is also the most there is.
	Level int
	// Progress is called at most ten times a second and once at the end. It must
	// not take long.
	Progress func(PackStats)
	// Log is told of what was handled in an unusual way; nil means silence.
	Log *slog.Logger

	group, piece int64 // for measuring; 0 is what was found best
}

// PackStats counts what was packed so far.
type PackStats struct {
	Entries int
	Bytes   spec.Size // of the archive
	// Total is about how large the archive will be; 0 where nobody knows.
	Total spec.Size
}

func (o *PackOptions) defaults() error {
	o.Level = cmp.Or(o.Level, DefaultLevel)
	if o.Level < 1 || o.Level > 22 {
		return fmt.Errorf("there is no compression level %d: they go from 1 to 22", o.Level)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.group, o.piece = cmp.Or(o.group, groupSize), cmp.Or(o.piece, pieceSize)
	return nil
}

// Pack makes an indexed wad of a tarball, plain or compressed, in the file out,
// which appears when it is whole and replaces what was there. The archive in it
// is the tarball's, byte for byte; what is in the index is the tree that
// [Extract] makes of it. What Extract refuses is refused.
//
// The chunks are written to a file without a name beside out first, because
// the index comes before them: there must be room for both. The metadata of the
// tree is kept in memory, about 400 bytes for an entry; content is not.
func Pack(ctx context.Context, tarball io.Reader, out string, o PackOptions) (*Index, error) {
	return packInto(ctx, out, o, func(ctx context.Context, p *packer) error {
		s := &scanner{ctx: ctx, log: p.Log, pieces: p.piece, in: readAhead(ctx, tarball), sink: p.chunks}
		s.progress = func() { p.report(PackStats{Entries: s.entries, Bytes: spec.Size(s.at)}, false) }
		if err := s.scan(); err != nil {
			return err
		}
		p.report(PackStats{Entries: s.entries, Bytes: spec.Size(s.at)}, true)
		return s.members(p.index.add)
	})
}

// packer is the state of one packing.
type packer struct {
	PackOptions
	chunks   *chunker
	index    *indexWriter
	reported time.Time
}

func (p *packer) report(s PackStats, last bool) {
	if p.Progress == nil {
		return
	}
	if now := time.Now(); last || now.Sub(p.reported) >= 100*time.Millisecond {
		p.reported = now
		p.Progress(s)
	}
}

// packInto makes the wad out of what fill writes to the chunks and the index.
func packInto(ctx context.Context, out string, o PackOptions, fill func(context.Context, *packer) error) (*Index, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	body, err := nameless(out)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	p := &packer{PackOptions: o}
	if p.index, err = newIndexWriter(o.Level, o.piece); err != nil {
		return nil, err
	}
	p.chunks, err = startChunker(ctx, o.Level, o.group, o.piece, body, p.index.chunk)
	if err != nil {
		return nil, err
	}
	err = fill(p.chunks.ctx, p)
	if err != nil {
		p.chunks.cancel(err) // unless something else was first
	}
	if first := p.chunks.finish(); first != nil {
		err = first
	}
	var head []byte
	if err == nil {
		head, err = p.index.head()
	}
	if err == nil {
		err = publish(ctx, out, head, body)
	}
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: the folder must have room for the wad twice", err)
		}
		return nil, fmt.Errorf("pack %s: %w", out, err)
	}
	return ParseIndex(head)
}

// nameless makes a file beside out that is gone when it is closed, by whatever.
func nameless(out string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// publish puts head and body into the file out, which appears when it is whole.
func publish(ctx context.Context, out string, head []byte, body *os.File) (err error) {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(head); err != nil {
		return err
	}
	const step = 64 << 20 // between looks at whether we are still wanted
	for {
		n, err := io.CopyN(f, body, step)
		if err == io.EOF || err == nil && n < step {
			break
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	mode := fs.FileMode(0o644)
	if old, err := os.Stat(out); err == nil {
		mode = old.Mode().Perm()
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
