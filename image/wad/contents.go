package wad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"os"
	"path"
	"strings"

	"reassure/image/spec"
	"reassure/image/tree"
)

// Contents is a wad's file that is open to be looked into.
type Contents struct {
	// Index is the wad's own; nil if it has none.
	Index *Index
	// Entries is how many the tree has, and TarSize what the archive has.
	Entries int64
	TarSize spec.Size
	// FileSize is how long the file is.
	FileSize spec.Size

	file *os.File
	scan *scanner // of one without an index
}

// Open opens a wad's file. Of one with an index it reads no more than that; one
// without is read to its end, and progress is told of that.
func Open(ctx context.Context, file string, progress func(PackStats)) (*Contents, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	c := &Contents{file: f}
	if err := c.open(ctx, progress); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func (c *Contents) open(ctx context.Context, progress func(PackStats)) error {
	info, err := c.file.Stat()
	if err != nil {
		return err
	}
	c.FileSize = spec.Size(info.Size())
	head, err := ReadHead(c.file)
	if err == nil {
		if c.Index, err = ParseIndex(head); err == nil {
			c.Entries, c.TarSize = c.Index.Members, spec.Size(c.Index.TarSize)
		}
		return err
	}
	if !errors.Is(err, ErrNoIndex) {
		return err
	}
	if _, err := c.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := verification{progress: progress}
	c.scan = v.scanner(ctx)
	c.scan.in = readAhead(ctx, c.file)
	if err := c.scan.scan(); err != nil {
		return err
	}
	for _, err := range c.scan.all() {
		if err != nil {
			return err
		}
		c.Entries++
	}
	c.TarSize = spec.Size(c.scan.at)
	return nil
}

// Close closes the file.
func (c *Contents) Close() error { return c.file.Close() }

// All lists the tree in the order of [tree.Before], as [Index.All] does.
func (c *Contents) All() iter.Seq2[*Member, error] {
	if c.Index != nil {
		return c.Index.All()
	}
	return c.scan.all()
}

// Find looks a file up as the new system will: through symbolic links, which
// lead nowhere but into the tree.
func (c *Contents) Find(name string) (*Member, error) {
	at := path.Clean("/" + name)
	for range maxLinks {
		var link, exact *Member
		for m, err := range c.All() {
			if err != nil {
				return nil, err
			}
			if at == path.Join("/", m.Path) {
				exact = m
			}
			if m.Kind == tree.Symlink && strings.HasPrefix(at+"/", "/"+m.Path+"/") {
				link = m
				break
			}
		}
		switch {
		case link != nil:
			rest := strings.TrimPrefix(at, "/"+link.Path)
			to := link.Target
			if !strings.HasPrefix(to, "/") {
				to = path.Join("/", path.Dir(link.Path), to)
			}
			at = path.Clean(to + rest)
		case exact != nil:
			return exact, nil
		default:
			return nil, fmt.Errorf("the wad has no %s: \"reassure wad ls\" tells what it has", strings.TrimPrefix(at, "/"))
		}
	}
	return nil, fmt.Errorf("%s leads through too many symbolic links", name)
}

// Copy writes a regular file's content to out, having checked it.
func (c *Contents) Copy(ctx context.Context, out io.Writer, m *Member) error {
	if m.Kind != tree.Regular {
		return fmt.Errorf("%s is a %v, and only a file has content", m.Path, m.Kind)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var in io.Reader
	if c.Index != nil {
		chunks, err := c.Index.open(c.file)
		if err != nil {
			return err
		}
		defer chunks.close()
		if m.Stored() > 0 {
			if err := chunks.seek(m.TarAt); err != nil {
				return err
			}
		}
		in = chunks
	} else {
		// Of its own: what reads ahead may go on for a moment after us.
		in = readAhead(ctx, io.NewSectionReader(c.file, 0, int64(c.FileSize)))
		if _, err := io.CopyN(io.Discard, in, m.TarAt); err != nil {
			return err
		}
	}
	again := *m
	again.Pieces = nil
	d := newDigester(&again, math.MaxInt64)
	to := io.MultiWriter(d, out)
	regions := m.Regions
	if regions == nil {
		regions = []Region{{0, m.Size}}
	}
	for _, r := range append(regions[:len(regions):len(regions)], Region{m.Size, 0}) {
		if _, err := io.CopyN(to, zeros{}, r.Offset-d.at); err != nil {
			return err
		}
		if _, err := io.CopyN(to, in, r.Length); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if d.finish(); again.SHA256 != m.SHA256 {
		return fmt.Errorf("%s is not what the index says: \"reassure wad verify\" the file, and pack it again", m.Path)
	}
	return nil
}

// zeros reads as a hole does.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// scanner is one that looks at an archive and tells of its progress.
func (v *verification) scanner(ctx context.Context) *scanner {
	s := &scanner{ctx: ctx, log: slog.New(slog.DiscardHandler), pieces: math.MaxInt64, sink: discard{io.Discard}}
	s.progress = func() { v.report(s) }
	return s
}
