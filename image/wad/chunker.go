package wad

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"reassure/image/spec"
)

const (
	// groupSize is up to how many archive bytes small neighbours share a chunk.
	groupSize = 8 << 10
	// pieceSize is how large the pieces of large files are.
	pieceSize = 2 << 20
	// fullChunk ends a chunk wherever it is, so that none exceeds [MaxChunk].
	fullChunk = 3 << 20
)

// chunker cuts an archive that is written to it into chunks, compresses them on
// all cores, and writes them in order. Its methods are for one goroutine.
type chunker struct {
	ctx          context.Context
	cancel       context.CancelCauseFunc
	group, piece int64

	buf        []byte // what the next chunk has so far
	start      int64  // where that begins in the archive
	next, stop int64  // where the next cut is due, and where cutting by pieces ends

	work  chan *frame // for the compressors
	order chan *frame // the same, in order, for who writes
	free  chan *frame
	ends  sync.WaitGroup
}

// frame is a chunk under way.
type frame struct {
	plain, packed []byte
	sum           spec.Digest
	done          chan struct{}
}

// startChunker begins; found is told each chunk in order after it was written.
func startChunker(ctx context.Context, level int, group, piece int64, out io.Writer, found func(size, plain int, sum spec.Digest)) (*chunker, error) {
	workers := runtime.GOMAXPROCS(0)
	encoder := func(l zstd.EncoderLevel) (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(workers),
			zstd.WithEncoderCRC(false), // the index has better
			zstd.WithSingleSegment(true), zstd.WithWindowSize(4<<20), zstd.WithLowerEncoderMem(true))
	}
	best, err := encoder(zstd.SpeedBestCompression)
	large := best
	if l := zstd.EncoderLevelFromZstd(level); err == nil && l != zstd.SpeedBestCompression {
		large, err = encoder(l)
	}
	if err != nil {
		return nil, fmt.Errorf("start a compressor: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	inFlight := workers + 2
	c := &chunker{
		ctx: ctx, cancel: cancel, group: group, piece: piece, next: math.MaxInt64,
		work: make(chan *frame, inFlight), order: make(chan *frame, inFlight), free: make(chan *frame, inFlight),
	}
	for range inFlight {
		c.free <- &frame{done: make(chan struct{}, 1)}
	}
	for range workers {
		c.ends.Go(func() {
			for f := range c.work {
				e := large
				if len(f.plain) <= 64<<10 {
					e = best // small ones have little to go by, and cost little
				}
				f.packed = e.EncodeAll(f.plain, f.packed[:0])
				f.sum = sha256.Sum256(f.packed)
				f.done <- struct{}{}
			}
		})
	}
	c.ends.Go(func() {
		for f := range c.order {
			<-f.done
			if ctx.Err() == nil {
				if _, err := out.Write(f.packed); err != nil {
					cancel(err)
				} else {
					found(len(f.packed), len(f.plain), f.sum)
				}
			}
			c.free <- f
		}
	})
	return c, nil
}

// at is how much of the archive was written.
func (c *chunker) at() int64 { return c.start + int64(len(c.buf)) }

// entry says what is being written: an entry whose headers begin at begin, its
// stored content at content, and all of it ends at end. It is to be called when
// the headers have been written and nothing else.
func (c *chunker) entry(begin, content, stored int64) error {
	if begin > c.start && roundUp(content+stored)-c.start > c.group {
		if err := c.cut(begin); err != nil {
			return err
		}
	}
	if stored > c.piece {
		c.next, c.stop = content+c.piece, content+stored
	}
	return nil
}

// Write implements io.Writer.
func (c *chunker) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		limit := min(c.next, c.start+fullChunk)
		n := int(min(int64(len(p)-done), limit-c.at()))
		c.buf = append(c.buf, p[done:done+n]...)
		done += n
		if c.at() < limit {
			continue
		}
		if limit == c.next {
			if c.next += c.piece; c.next >= c.stop {
				c.next = math.MaxInt64
			}
		}
		if err := c.cut(limit); err != nil {
			return done, err
		}
	}
	return done, nil
}

// cut ends the chunk at an offset of the archive.
func (c *chunker) cut(at int64) error {
	n := int(at - c.start)
	if n == 0 {
		return nil
	}
	var f *frame
	select {
	case f = <-c.free:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	rest := append(f.plain[:0], c.buf[n:]...)
	f.plain, c.buf, c.start = c.buf[:n], rest, at
	c.work <- f // neither ever blocks: both have room for all frames
	c.order <- f
	return nil
}

// finish writes what is left and returns the first error.
func (c *chunker) finish() error {
	err := c.cut(c.at())
	close(c.work)
	close(c.order)
	c.ends.Wait()
	if c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	c.cancel(nil)
	return err
}
