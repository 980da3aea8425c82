package fetch

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math/bits"
	"runtime"
	"sync"

	"reassure/image/spec"
)

const (
	// lanes is how many requests are under way at a time where the parts are
	// scattered: enough for a link to be busy while servers think.
	lanes = 4
	// runLimit is how many bytes one request is for, about: the lanes share the
	// parts by requests.
	runLimit = 1 << 20
	// blocksInFlight bounds the parts that are under way, whatever their size.
	blocksInFlight = 4096
)

// PartOptions is how [Parts.Fetch] fetches. The zero value works.
type PartOptions struct {
	// Decode makes of a part's data, which is right, what the reader gets: it
	// appends Part.Decoded bytes to dst, which has room for just as many. It runs
	// on as many goroutines as there are processors. nil gives the data as it is.
	Decode func(part Part, dst, data []byte) ([]byte, error)
	// Memory bounds the bytes in flight, both as they come and decoded; 0 means
	// 32 MiB. A part that is larger by itself is in flight alone.
	Memory spec.Size
	// Sequential says that the parts are most of the rest of the file: they are
	// read by one request.
	Sequential bool
}

// Blocks are parts on their way, in order.
type Blocks struct {
	parts   *Parts
	options PartOptions
	ctx     context.Context
	cancel  context.CancelCauseFunc
	fetch   sync.WaitGroup // lanes, and who feeds them
	decode  sync.WaitGroup
	once    sync.Once

	runs   chan []*Block
	order  chan *Block // has room for as many as the budget lets be under way
	work   chan *Block
	budget budget
}

// Block is a part that has arrived.
type Block struct {
	Part
	// Data is what it holds, decoded.
	Data []byte

	home     *Blocks
	raw, out *buffer
	ready    chan struct{}
	cost     int64
}

// Release lets the block's memory be used again.
func (b *Block) Release() {
	b.Data = nil
	b.home.parts.pool.put(b.raw)
	b.home.parts.pool.put(b.out)
	b.raw, b.out = nil, nil
	b.home.budget.give(b.cost)
}

// Fetch fetches parts, which come in the order of the file and do not overlap.
// It takes them from their sequence on another goroutine, as there is room. A
// part is handed out only if its content is right; one that is not is fetched
// again, from another mirror if there is one, and the mirror that sends the same
// part damaged twice is not asked again.
func (p *Parts) Fetch(ctx context.Context, parts iter.Seq[Part], o PartOptions) *Blocks {
	if o.Memory == 0 {
		o.Memory = 32 * spec.MiB
	}
	b := &Blocks{
		parts: p, options: o,
		runs: make(chan []*Block), order: make(chan *Block, blocksInFlight), work: make(chan *Block, 64),
		budget: budget{limit: int64(o.Memory), freed: make(chan struct{}, 1)},
	}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	b.fetch.Go(func() { b.plan(parts) })
	b.fetch.Go(func() {
		l := p.lane(b.ctx)
		if !o.Sequential {
			// Others would be of no use where each had to read the whole file.
			l.ranged = func() {
				for range lanes - 1 {
					b.fetch.Go(func() { b.lane(p.lane(b.ctx)) })
				}
			}
		}
		b.lane(l)
	})
	if o.Decode != nil {
		for range runtime.GOMAXPROCS(0) {
			b.decode.Go(b.decoder)
		}
	}
	b.decode.Go(func() {
		b.fetch.Wait()
		close(b.work)
	})
	return b
}

// Next returns the next block, to be released by the caller; io.EOF after the
// last. After an error there are no more.
func (b *Blocks) Next() (*Block, error) {
	select {
	case block, more := <-b.order:
		if !more {
			if b.ctx.Err() != nil {
				return nil, context.Cause(b.ctx)
			}
			return nil, io.EOF
		}
		select {
		case <-block.ready:
			return block, nil
		case <-b.ctx.Done():
			return nil, context.Cause(b.ctx)
		}
	case <-b.ctx.Done():
		return nil, context.Cause(b.ctx)
	}
}

// Close ends it, and leaves nothing running.
func (b *Blocks) Close() error {
	b.once.Do(func() {
		b.cancel(errClosed)
		b.fetch.Wait()
		b.decode.Wait()
	})
	return nil
}

// plan feeds the lanes with runs of parts that are near each other.
func (b *Blocks) plan(parts iter.Seq[Part]) {
	defer close(b.order)
	defer close(b.runs)
	var run []*Block
	var bytes, last int64
	flush := func() bool {
		if len(run) == 0 {
			return true
		}
		select {
		case b.runs <- run:
			run, bytes = nil, 0
			return true
		case <-b.ctx.Done():
			return false
		}
	}
	for part := range parts {
		if part.Size <= 0 || part.Offset < last || part.Decoded < 0 || part.Size > int64(b.parts.source.Size)-part.Offset {
			b.cancel(fmt.Errorf("fetch %s: bytes %d to %d cannot be a part of it: it has %d, of which %d were asked for before", b.parts.source.Name, part.Offset, part.end(), uint64(b.parts.source.Size), last))
			return
		}
		if (part.Offset-last > nearby || bytes >= runLimit) && !flush() {
			return
		}
		last = part.end()
		cost := roomFor(part.Size)
		if b.options.Decode != nil {
			cost += roomFor(part.Decoded)
		}
		// What is waited for may be in the run that is not under way yet.
		if !b.budget.take(cost) && !(flush() && b.budget.wait(b.ctx, cost)) {
			return
		}
		block := &Block{Part: part, home: b, ready: make(chan struct{}), cost: cost}
		b.order <- block
		run = append(run, block)
		bytes += part.Size
	}
	flush()
}

// lane fetches runs.
func (b *Blocks) lane(l *lane) {
	defer l.leave()
	for run := range b.runs {
		end := run[len(run)-1].end()
		if b.options.Sequential {
			end = int64(b.parts.source.Size)
		}
		for _, block := range run {
			block.raw = b.parts.pool.get(block.Size)
			if err := l.part(block.Part, end, block.raw.data); err != nil {
				b.cancel(err)
				return
			}
			if b.options.Decode == nil {
				block.Data = block.raw.data
				close(block.ready)
				continue
			}
			select {
			case b.work <- block:
			case <-b.ctx.Done():
				return
			}
		}
	}
}

func (b *Blocks) decoder() {
	for block := range b.work {
		block.out = b.parts.pool.get(block.Decoded)
		data, err := b.options.Decode(block.Part, block.out.data[:0:block.Decoded], block.raw.data)
		if err == nil && int64(len(data)) != block.Decoded {
			err = fmt.Errorf("fetch %s: bytes %d to %d decode to %d bytes instead of %d", b.parts.source.Name, block.Offset, block.end(), len(data), block.Decoded)
		}
		if err != nil {
			b.cancel(err)
			return
		}
		b.parts.pool.put(block.raw)
		block.raw, block.Data = nil, data
		close(block.ready)
	}
}

// budget is what may be in flight.
type budget struct {
	limit int64
	freed chan struct{}

	mu    sync.Mutex
	bytes int64
	count int
}

// take takes its share if there is enough left, or nothing is in flight.
func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count > 0 && (b.bytes+n > b.limit || b.count >= blocksInFlight) {
		return false
	}
	b.bytes += n
	b.count++
	return true
}

// wait takes as soon as it can, unless ctx ends.
func (b *budget) wait(ctx context.Context, n int64) bool {
	for !b.take(n) {
		select {
		case <-b.freed:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.bytes -= n
	b.count--
	b.mu.Unlock()
	select {
	case b.freed <- struct{}{}:
	default:
	}
}

// smallest is the least memory that a buffer has.
const smallest = 4 << 10

// buffer is memory that is used again.
type buffer struct{ data []byte }

// pool keeps the buffers that nobody uses, by the power of two that they have room for.
type pool struct{ free [64]sync.Pool }

// roomFor is how much memory n bytes take.
func roomFor(n int64) int64 {
	if n <= smallest {
		return smallest
	}
	return 1 << bits.Len64(uint64(n-1))
}

func (p *pool) get(n int64) *buffer {
	room := roomFor(n)
	free, _ := p.free[bits.Len64(uint64(room))].Get().(*buffer)
	if free == nil {
		free = &buffer{make([]byte, room)}
	}
	free.data = free.data[:n]
	return free
}

func (p *pool) put(one *buffer) {
	if one != nil {
		p.free[bits.Len64(uint64(cap(one.data)))].Put(one)
	}
}
