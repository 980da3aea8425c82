package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reassure/image/spec"
)

const (
	bufferSize = 128 << 10
	buffers    = 32 // between the network and the reader: 4 MiB
	// progressBytes is what must arrive for a transfer to count as moving on.
	progressBytes = 1 << 20
)

// Stream is a file on its way: an io.ReadCloser over its bytes as they are
// served. Read returns io.EOF only when exactly the right bytes were read; any
// other end is an error ([*SizeError], [*DigestError], ...). Close may be called
// at any time, from any goroutine, and leaves nothing running.
type Stream struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	done   func()
	once   sync.Once

	received atomic.Int64
	size     spec.Size

	ready chan block // hashed, to be read
	free  chan []byte
	block block  // being read
	rest  []byte // of block
}

// block is a piece of the file, or how it ended.
type block struct {
	data []byte
	err  error
	// ask wants to know the sum of all blocks before this one.
	ask chan<- spec.Digest
}

// Open starts to read a file and returns once a server has promised it: there
// was an answer that fits. It fails when no address can be used.
func (c *Client) Open(ctx context.Context, source Source) (*Stream, error) {
	switch {
	case len(source.URLs) == 0:
		return nil, fmt.Errorf("fetch %s: it has no address", source.Name)
	case source.Size == 0 || source.SHA256.IsZero():
		return nil, fmt.Errorf("fetch %s: without its size and digest it cannot be trusted: publish again", source.Name)
	}
	client, done := c.defaults()
	ctx, cancel := context.WithCancelCause(ctx)
	s := &Stream{
		ctx: ctx, cancel: cancel, done: done, size: source.Size,
		ready: make(chan block, buffers), free: make(chan []byte, buffers),
	}
	for range buffers {
		s.free <- nil
	}
	opened := make(chan struct{})
	f := &fetcher{
		Client: client, Source: source, stream: s,
		mirrors: make([]mirror, len(source.URLs)),
		raw:     make(chan block, buffers),
		opened:  func() { close(opened) },
	}
	for i, url := range source.URLs {
		f.mirrors[i].url = url
	}
	failed := make(chan error, 1)
	s.group.Go(func() {
		defer close(f.raw)
		err := f.run()
		failed <- err
		s.pass(f.raw, block{err: err})
	})
	s.group.Go(func() { s.hash(f) })
	select {
	case <-opened:
		return s, nil
	case err := <-failed:
		select {
		case <-opened: // a file so small that it came whole meanwhile
			return s, nil
		default:
		}
		s.Close()
		return nil, err
	}
}

// Progress returns how many of the file's bytes have arrived, and how many it has.
func (s *Stream) Progress() (done, total spec.Size) {
	return spec.Size(s.received.Load()), s.size
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.block.err != nil {
			return 0, s.block.err
		}
		if s.block.data != nil {
			s.free <- s.block.data[:cap(s.block.data)]
			s.block.data = nil
		}
		select {
		case s.block = <-s.ready:
			s.rest = s.block.data
		case <-s.ctx.Done():
			s.block.err = context.Cause(s.ctx)
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// errClosed is what a Read gets during and after Close.
var errClosed = errors.New("read from a closed stream")

// Close ends the transfer.
func (s *Stream) Close() error {
	s.once.Do(func() {
		s.cancel(errClosed)
		s.group.Wait()
		s.done()
	})
	return nil
}

// pass hands a block on, unless nobody wants it any more.
func (s *Stream) pass(to chan<- block, b block) bool {
	select {
	case to <- b:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// hash sums what passes, and lets io.EOF pass only if the sum is right.
func (s *Stream) hash(f *fetcher) {
	h := sha256.New()
	for b := range f.raw {
		if b.ask != nil {
			b.ask <- sum(h)
			continue
		}
		h.Write(b.data)
		if b.err == io.EOF {
			if got := sum(h); got != f.SHA256 {
				b.err = fmt.Errorf("fetch %s: %w", f.Name, &DigestError{URL: f.served(), Got: got, Want: f.SHA256})
			}
		}
		if !s.pass(s.ready, b) {
			return
		}
	}
}

func sum(h hash.Hash) spec.Digest { return spec.Digest(h.Sum(nil)) }

// fetcher brings a file's bytes, in order and each once, to raw.
type fetcher struct {
	Client
	Source
	stream  *Stream
	mirrors []mirror
	raw     chan block
	opened  func() // tells of the first answer that fits; nil afterwards
	offset  int64  // bytes sent to raw
}

// mirror is one address of the file.
type mirror struct {
	url string
	// tag is the strong entity tag of the first answer.
	tag string
	// whole says that Range does not work there.
	whole bool
	// ruledOut is why it cannot be used any more.
	ruledOut error
	used     bool
	failures int // in a row
}

// served names the addresses that bytes came from.
func (f *fetcher) served() string {
	var urls []string
	for _, m := range f.mirrors {
		if m.used {
			urls = append(urls, m.url)
		}
	}
	return strings.Join(urls, " and ")
}

// run returns io.EOF when as many bytes as there should be have been sent.
func (f *fetcher) run() error {
	failures, mark := 0, int64(0)
	for at := 0; ; {
		m := &f.mirrors[at]
		err := f.transfer(m)
		if err == nil {
			return io.EOF
		}
		if f.stream.ctx.Err() != nil {
			return fmt.Errorf("fetch %s: %w", f.Name, context.Cause(f.stream.ctx))
		}
		if f.offset-mark >= progressBytes {
			failures, mark = 0, f.offset
			for i := range f.mirrors {
				f.mirrors[i].failures = 0
			}
		}
		failures++
		m.failures++
		if isPermanent(err) {
			m.ruledOut = err
		}
		next, ok := f.next(at)
		if !ok || failures >= f.Attempts || f.offset == int64(f.Size) {
			return f.giveUp(err, ok)
		}
		f.Log.Warn("fetch: trying again", "name", f.Name, "at", f.offset, "failures", failures, "next", f.mirrors[next].url, "error", err)
		// A mirror that has not failed is tried at once.
		if n := f.mirrors[next].failures; n > 0 {
			if err := f.pause(f.stream.ctx, n, err); err != nil {
				return fmt.Errorf("fetch %s: %w", f.Name, err)
			}
		}
		at = next
	}
}

// next is the mirror to try after the one at i.
func (f *fetcher) next(i int) (int, bool) {
	for step := 1; step <= len(f.mirrors); step++ {
		n := (i + step) % len(f.mirrors)
		if f.mirrors[n].ruledOut == nil {
			return n, true
		}
	}
	return 0, false
}

// giveUp is the final error: the last one, or that of every mirror if all are
// ruled out.
func (f *fetcher) giveUp(last error, some bool) error {
	if some || len(f.mirrors) == 1 {
		return fmt.Errorf("fetch %s: stopped at byte %d of %d: %w", f.Name, f.offset, uint64(f.Size), last)
	}
	var all []error
	for _, m := range f.mirrors {
		all = append(all, m.ruledOut)
	}
	return fmt.Errorf("fetch %s: no address is of use: %w", f.Name, errors.Join(all...))
}

// transfer sends as much of the rest of the file as one answer brings. It
// returns nil only when the file is complete.
func (f *fetcher) transfer(m *mirror) error {
	ctx, cancel := context.WithCancelCause(f.stream.ctx)
	defer cancel(nil)
	// An http.Client of the caller's may have no limit of its own.
	header := time.AfterFunc(f.StallLimit+10*time.Second, func() { cancel(&StallError{URL: m.url, Waited: f.StallLimit}) })
	from := f.offset
	if m.whole {
		from = 0
	}
	res, err := f.request(ctx, m.url, from, 0, m.tag)
	header.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var status *StatusError
		if errors.As(err, &status) && status.Status == http.StatusRequestedRangeNotSatisfiable {
			m.whole = true // that proves it shorter, or the server odd; the whole will tell
			return fmt.Errorf("%s: the server refuses to go on at byte %d", m.url, from)
		}
		return err
	}
	defer res.Body.Close()
	start, err := f.accept(m, res, from)
	if err != nil {
		return err
	}
	body := f.watch(ctx, cancel, m.url, res.Body)
	if start == 0 && f.offset > 0 {
		if err := f.skip(m, body); err != nil {
			return err
		}
	}
	if f.opened != nil {
		f.opened()
		f.opened = nil
	}
	m.used = true
	return f.receive(m, body, res.ContentLength < 0)
}

// accept judges an answer's header and returns at which byte its body starts.
func (f *fetcher) accept(m *mirror, res *http.Response, from int64) (start int64, err error) {
	want := int64(f.Size)
	tag := res.Header.Get("ETag")
	if strings.HasPrefix(tag, "W/") {
		tag = "" // not the same bytes (RFC 9110, 8.8.1)
	}
	if res.StatusCode == http.StatusOK {
		if res.ContentLength >= 0 && res.ContentLength != want {
			return 0, permanent{&SizeError{URL: m.url, Got: res.ContentLength, Want: want}}
		}
		m.tag = tag
		return 0, nil
	}
	var last, total int64
	n, _ := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &start, &last, &total)
	switch {
	case from == 0 || n < 2 || start != from:
		m.whole = true
		return 0, fmt.Errorf("%s: asked for what follows byte %d, the server sends %q", m.url, from, res.Header.Get("Content-Range"))
	case n == 3 && total != want:
		return 0, permanent{&SizeError{URL: m.url, Got: total, Want: want}}
	case m.tag != "" && tag != "" && tag != m.tag:
		// The server has another file now and ignores If-Range.
		m.whole, m.tag = true, ""
		return 0, fmt.Errorf("%s: the file was replaced while it was read", m.url)
	}
	if m.tag == "" {
		m.tag = tag
	}
	return start, nil
}

// skip reads again what was read before, and makes sure that it is the same.
func (f *fetcher) skip(m *mirror, body io.Reader) error {
	h := sha256.New()
	if n, err := io.CopyN(h, body, f.offset); err != nil {
		return fmt.Errorf("%s: at byte %d of %d that were read before: %w", m.url, n, f.offset, cut(err))
	}
	answer := make(chan spec.Digest, 1)
	if !f.stream.pass(f.raw, block{ask: answer}) {
		return context.Cause(f.stream.ctx)
	}
	select {
	case before := <-answer:
		if now := sum(h); now != before {
			return permanent{&DigestError{URL: m.url, Got: now, Want: before, Offset: f.offset}}
		}
		return nil
	case <-f.stream.ctx.Done():
		return context.Cause(f.stream.ctx)
	}
}

// cut is an error for an end that came too early.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// receive sends the body on. With unsized, its length was not announced.
func (f *fetcher) receive(m *mirror, body io.Reader, unsized bool) error {
	want := int64(f.Size)
	for f.offset < want {
		var buf []byte
		select {
		case buf = <-f.stream.free:
		case <-f.stream.ctx.Done():
			return context.Cause(f.stream.ctx)
		}
		if buf == nil {
			buf = make([]byte, bufferSize)
		}
		n, err := io.ReadFull(body, buf[:min(bufferSize, want-f.offset)])
		if n > 0 {
			f.offset += int64(n)
			f.stream.received.Store(f.offset)
			if !f.stream.pass(f.raw, block{data: buf[:n]}) {
				return context.Cause(f.stream.ctx)
			}
		} else {
			f.stream.free <- buf
		}
		if err != nil && f.offset < want {
			if cut(err) == io.ErrUnexpectedEOF {
				// Wrapped in sizes: the error says how far it came.
				return fmt.Errorf("%s: cut after %d of %d bytes: %w", m.url, f.offset, want, io.ErrUnexpectedEOF)
			}
			return fmt.Errorf("%s: at byte %d: %w", m.url, f.offset, err)
		}
	}
	if unsized {
		// Nobody said that there is no more.
		if n, _ := io.ReadFull(body, make([]byte, 1)); n > 0 {
			return permanent{&SizeError{URL: m.url, Got: want + 1, Want: want, AtLeast: true}}
		}
	}
	return nil
}
