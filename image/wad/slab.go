package wad

import (
	"context"
	"sync/atomic"

	"reassure/image/tree"
)

// slabSize is the unit of memory. Small files share one, so that what is in
// use stays small and warm in the processor's cache.
const slabSize = 256 << 10

// slab is a piece of memory that goes back to its slabs when nobody uses it.
type slab struct {
	data  []byte
	users atomic.Int32
	home  *slabs
}

func (s *slab) release() {
	if s.users.Add(-1) == 0 {
		s.home.free <- s // never blocks: it has room for all
	}
}

// slabs hands out memory, up to a limit. Its take is for one goroutine.
type slabs struct {
	left int // not made yet
	free chan *slab
	open *slab // partly handed out
	used int   // bytes of open
}

// part is a piece of a file: bytes, or a hole.
type part struct {
	slab *slab
	data []byte
	hole int64
}

func (p part) release() {
	if p.slab != nil {
		p.slab.release()
	}
}

// take returns n bytes, waiting until there are some.
func (s *slabs) take(ctx context.Context, n int) (part, error) {
	if s.open == nil || slabSize-s.used < n {
		if s.open != nil {
			s.open.release()
			s.open = nil
		}
		next, err := s.next(ctx)
		if err != nil {
			return part{}, err
		}
		next.users.Store(1) // ours, while it is open
		s.open, s.used = next, 0
	}
	p := part{slab: s.open, data: s.open.data[s.used : s.used+n : s.used+n]}
	s.open.users.Add(1)
	s.used += n
	return p, nil
}

func (s *slabs) next(ctx context.Context) (*slab, error) {
	select {
	case slab := <-s.free:
		return slab, nil
	default:
	}
	if s.left > 0 {
		s.left--
		return &slab{data: make([]byte, slabSize), home: s}, nil
	}
	select {
	case slab := <-s.free:
		return slab, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// job is one file to write.
type job struct {
	name   string
	file   *tree.File
	sparse bool
	whole  part
	parts  chan part // of a file that is larger than a slab, or sparse; closed after the last
}

// send passes on a part of a large file; the part is released in any case.
func (j *job) send(ctx context.Context, p part) error {
	select {
	case j.parts <- p:
		return nil
	case <-ctx.Done():
		p.release()
		return context.Cause(ctx)
	}
}

// drop gives the job up.
func (j *job) drop() {
	j.whole.release()
	j.file.Abandon()
}

// run writes the file.
func (j *job) run(ctx context.Context) error {
	if err := j.write(ctx); err != nil {
		j.file.Abandon()
		return err
	}
	return j.file.Close()
}

func (j *job) write(ctx context.Context) error {
	defer j.whole.release()
	if err := j.file.Create(); err != nil {
		return err
	}
	if j.parts == nil {
		return j.add(j.whole)
	}
	for {
		select {
		case p, more := <-j.parts:
			if !more {
				return nil
			}
			err := j.add(p)
			p.release()
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (j *job) add(p part) error {
	switch {
	case p.hole > 0:
		return j.file.Hole(p.hole)
	case j.sparse:
		return j.file.WriteSparse(p.data)
	}
	_, err := j.file.Write(p.data)
	return err
}
