package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"reassure/image/spec"
)

// Part is a stretch of a file that is known by its content.
type Part struct {
	Offset, Size int64 // in the file, bytes
	SHA256       spec.Digest
	// Decoded is how many bytes [PartOptions.Decode] makes of it.
	Decoded int64
	// Number is the caller's.
	Number int
}

func (p Part) end() int64 { return p.Offset + p.Size }

// PartError is a part with another content than it should have.
type PartError struct {
	URL  string // where it came from; several where it came in pieces
	Part Part
	Got  spec.Digest
}

func (e *PartError) Error() string {
	return fmt.Sprintf("%s: its bytes from %d to %d have %v instead of %v: the file was changed after it was published, or damaged on its way; publish again", e.URL, e.Part.Offset, e.Part.end(), e.Got, e.Part.SHA256)
}

const (
	// nearby is how far apart parts may be to be fetched by one request, with
	// what is between them: less than what the headers of one more request and
	// its answer take, and the wait for it.
	nearby = 4 << 10
	// mostBad is how often one mirror may send the same part damaged, and
	// mostBadParts how many in all, as long as there is another mirror.
	mostBad      = 2
	mostBadParts = 5
)

// Parts is a file on servers of which each part can be fetched and judged by
// itself. Its methods are for one goroutine.
type Parts struct {
	client Client
	source Source
	done   func()
	pool   pool

	mu      sync.Mutex
	mirrors []partMirror
	at      int     // the mirror to begin with
	spare   *answer // the whole file, read up to somewhere
}

// partMirror is one address of the file.
type partMirror struct {
	url string
	// whole says that Range does not work there.
	whole bool
	// ruledOut is why it cannot be used any more.
	ruledOut error
	bad      int // parts that came damaged
}

// OpenParts fetches a part of a file, usually the one that tells of all others,
// and is ready to fetch more by [Parts.Fetch]. Source.SHA256 is not used. Where
// servers ignore Range, the answer is kept, and read on by the first Fetch.
func (c *Client) OpenParts(ctx context.Context, source Source, first Part) (*Parts, []byte, error) {
	switch {
	case len(source.URLs) == 0:
		return nil, nil, fmt.Errorf("fetch %s: it has no address", source.Name)
	case first.Size <= 0 || first.Offset < 0 || first.Size > int64(source.Size)-first.Offset:
		return nil, nil, fmt.Errorf("fetch %s: bytes %d to %d are not in a file of %d bytes: publish again", source.Name, first.Offset, first.end(), uint64(source.Size))
	}
	p := &Parts{source: source, mirrors: make([]partMirror, len(source.URLs))}
	p.client, p.done = c.defaults()
	for i, url := range source.URLs {
		p.mirrors[i].url = url
	}
	data := make([]byte, first.Size)
	l := p.lane(ctx)
	err := l.part(first, first.end(), data)
	l.leave()
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	return p, data, nil
}

// Close lets go of the servers. What Fetch returned must be closed before.
func (p *Parts) Close() error {
	if p.spare != nil {
		p.spare.close()
		p.spare = nil
	}
	p.done()
	return nil
}

// answer is a server's answer that is being read.
type answer struct {
	mirror   int
	url      string
	body     io.Reader
	pos, end int64 // in the file: what comes next, and where the answer ends
	// whole says that the file was sent from its start, whatever was asked for.
	whole bool
	// unsized says that its length was not announced.
	unsized bool
	cancel  context.CancelCauseFunc
	res     *http.Response
	release func() bool // from the context of who reads it
}

func (a *answer) close() {
	a.res.Body.Close()
	a.cancel(nil)
}

// lane reads parts, one after the other.
type lane struct {
	p    *Parts
	ctx  context.Context
	open *answer
	at   int // the mirror in use
	// failures in a row, without a megabyte between them, and those of each mirror.
	failures int
	failed   []int
	moved    int64 // bytes of good parts since failures were last forgotten
	// ranged is called at the first answer that has no more than what was asked for.
	ranged func()
}

// lane makes a lane, which goes on with what another one left.
func (p *Parts) lane(ctx context.Context) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &lane{p: p, ctx: ctx, at: p.at, failed: make([]int, len(p.mirrors)), open: p.spare}
	if p.spare = nil; l.open != nil {
		l.at = l.open.mirror
		l.open.attend(ctx)
	}
	return l
}

// attend has the answer end when ctx does.
func (a *answer) attend(ctx context.Context) {
	a.release = context.AfterFunc(ctx, func() { a.cancel(context.Cause(ctx)) })
}

// leave ends the lane. An answer that holds all the rest of the file is kept.
func (l *lane) leave() {
	a := l.open
	if l.open = nil; a == nil {
		return
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if released := a.release(); released && a.whole && a.pos < a.end && l.p.spare == nil {
		l.p.spare = a
		return
	}
	a.close()
}

func (l *lane) drop() {
	if l.open != nil {
		l.open.release()
		l.open.close()
		l.open = nil
	}
}

// filling is a part on its way.
type filling struct {
	Part
	buf []byte
	n   int64
	// from are the mirrors of what is in buf.
	from []int
	bad  map[int]int // by mirror: how often it came damaged
	// pure says that it is to come from one mirror alone, because it came
	// damaged from several, and nobody knows which of them to blame.
	pure bool
	mark int64 // n at the last failure
}

// part reads one part into buf, which has its size. An answer is asked for as
// much as goes up to end.
func (l *lane) part(part Part, end int64, buf []byte) error {
	f := &filling{Part: part, buf: buf, bad: map[int]int{}}
	for {
		err := l.fill(f, end)
		if err == nil {
			if err = l.judge(f); err == nil {
				if l.moved += part.Size; l.moved >= progressBytes {
					l.failures, l.moved = 0, 0
					clear(l.failed)
				}
				return nil
			}
		}
		if err := l.again(f, err); err != nil {
			return err
		}
	}
}

// judge says whether a part is what it should be.
func (l *lane) judge(f *filling) error {
	got := spec.Sum(f.buf)
	if got == f.SHA256 {
		return nil
	}
	var urls []string
	for _, m := range f.from {
		urls = append(urls, l.p.mirrors[m].url)
		if len(f.from) == 1 {
			f.bad[m]++
		}
	}
	f.pure = f.pure || len(f.from) > 1
	f.n, f.from, f.mark = 0, nil, 0
	return &PartError{URL: strings.Join(urls, " and "), Part: f.Part, Got: got}
}

// again chooses what to try after a failure and waits as long as it should, or
// returns the final error.
func (l *lane) again(f *filling, err error) error {
	l.drop()
	p := l.p
	if l.ctx.Err() != nil {
		return fmt.Errorf("fetch %s: %w", p.source.Name, context.Cause(l.ctx))
	}
	l.failures++
	l.failed[l.at]++
	p.mu.Lock()
	m := &p.mirrors[l.at]
	var bad *PartError
	if errors.As(err, &bad) {
		m.bad++
	}
	next, ok := p.next(l.at)
	if isPermanent(err) || f.bad[l.at] >= mostBad || m.bad >= mostBadParts && ok && next != l.at {
		m.ruledOut = err
		next, ok = p.next(l.at)
	}
	switch {
	case f.pure && f.n > f.mark && m.ruledOut == nil:
		next, ok = l.at, true
	case f.pure && next != l.at:
		f.n, f.from = 0, nil
	}
	f.mark = f.n
	if ok {
		p.at = next
	}
	p.mu.Unlock()
	if !ok || l.failures >= p.client.Attempts {
		return l.giveUp(f, err, ok)
	}
	p.client.Log.Warn("fetch: trying again", "name", p.source.Name, "at", f.Offset+f.n, "failures", l.failures, "next", p.mirrors[next].url, "error", err)
	l.at = next
	if n := l.failed[next]; n > 0 {
		if err := p.client.pause(l.ctx, n, err); err != nil {
			return fmt.Errorf("fetch %s: %w", p.source.Name, err)
		}
	}
	return nil
}

// next is the mirror to try after the one at i. The caller holds mu.
func (p *Parts) next(i int) (int, bool) {
	for step := 1; step <= len(p.mirrors); step++ {
		n := (i + step) % len(p.mirrors)
		if p.mirrors[n].ruledOut == nil {
			return n, true
		}
	}
	return 0, false
}

// giveUp is the final error: the last one, or that of every mirror if all are
// ruled out.
func (l *lane) giveUp(f *filling, last error, some bool) error {
	p := l.p
	if some || len(p.mirrors) == 1 {
		return fmt.Errorf("fetch %s: stopped at byte %d of %d: %w", p.source.Name, f.Offset+f.n, uint64(p.source.Size), last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []error
	for _, m := range p.mirrors {
		all = append(all, m.ruledOut)
	}
	return fmt.Errorf("fetch %s: no address is of use: %w", p.source.Name, errors.Join(all...))
}

// fill reads what is missing of a part.
func (l *lane) fill(f *filling, end int64) error {
	for f.n < f.Size {
		at := f.Offset + f.n
		if err := l.reach(at, max(end, f.end())); err != nil {
			return err
		}
		a := l.open
		if len(f.from) == 0 || f.from[len(f.from)-1] != a.mirror {
			f.from = append(f.from, a.mirror)
		}
		n, err := io.ReadFull(a, f.buf[f.n:min(f.Size, f.n+a.end-at)])
		f.n += int64(n)
		if err != nil {
			return l.broken(a, err)
		}
	}
	a := l.open
	if a != nil && a.pos == int64(l.p.source.Size) && a.unsized {
		// Nobody said that there is no more.
		if n, _ := io.ReadFull(a.body, make([]byte, 1)); n > 0 {
			return permanent{&SizeError{URL: a.url, Got: a.pos + 1, Want: a.pos, AtLeast: true}}
		}
	}
	return nil
}

// broken explains an answer that ended too early.
func (l *lane) broken(a *answer, err error) error {
	if cut(err) == io.ErrUnexpectedEOF {
		return fmt.Errorf("%s: cut after %d of %d bytes: %w", a.url, a.pos, uint64(l.p.source.Size), io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%s: at byte %d: %w", a.url, a.pos, err)
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	a.pos += int64(n)
	return n, err
}

// reach makes the open answer one whose next byte is the file's at that offset.
func (l *lane) reach(at, end int64) error {
	if a := l.open; a == nil || at < a.pos || at >= a.end || at-a.pos > nearby && !a.whole {
		l.drop()
		if err := l.ask(at, end); err != nil {
			return err
		}
	}
	a := l.open
	if _, err := io.CopyN(io.Discard, a, at-a.pos); err != nil {
		return l.broken(a, err)
	}
	return nil
}

// ask opens an answer that holds the bytes from one on.
func (l *lane) ask(from, end int64) error {
	p := l.p
	p.mu.Lock()
	m := p.mirrors[l.at]
	p.mu.Unlock()
	if m.ruledOut != nil {
		return m.ruledOut // by another lane
	}
	if m.whole {
		from, end = 0, 0
	}
	if end == int64(p.source.Size) {
		end = 0 // up to the end, wherever the server has it
	}
	a := &answer{mirror: l.at, url: m.url}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(l.ctx))
	a.cancel = cancel
	a.attend(l.ctx)
	// An http.Client of the caller's may have no limit of its own.
	limit := p.client.StallLimit
	header := time.AfterFunc(limit+10*time.Second, func() { cancel(&StallError{URL: m.url, Waited: limit}) })
	res, err := p.client.request(ctx, m.url, from, end, "")
	header.Stop()
	if err == nil {
		a.res = res
		err = l.accept(a, from)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var status *StatusError
		if errors.As(err, &status) && status.Status == http.StatusRequestedRangeNotSatisfiable {
			l.ignoresRange() // that proves it shorter, or the server odd; the whole will tell
			err = fmt.Errorf("%s: the server refuses to send what follows byte %d", m.url, from)
		}
		a.release()
		cancel(nil)
		if res != nil {
			res.Body.Close()
		}
		return err
	}
	a.body = p.client.watch(ctx, cancel, m.url, res.Body)
	l.open = a
	if !a.whole && l.ranged != nil {
		l.ranged()
		l.ranged = nil
	}
	return nil
}

// ignoresRange notes that the mirror in use cannot send parts.
func (l *lane) ignoresRange() {
	l.p.mu.Lock()
	l.p.mirrors[l.at].whole = true
	l.p.mu.Unlock()
}

// accept judges an answer's header.
func (l *lane) accept(a *answer, from int64) error {
	want := int64(l.p.source.Size)
	if a.res.StatusCode == http.StatusOK {
		if n := a.res.ContentLength; n >= 0 && n != want {
			return permanent{&SizeError{URL: a.url, Got: n, Want: want}}
		}
		a.whole, a.end, a.unsized = true, want, a.res.ContentLength < 0
		if a.res.Request.Header.Get("Range") != "" {
			l.ignoresRange()
		}
		return nil
	}
	var first, last, total int64
	said := a.res.Header.Get("Content-Range")
	n, _ := fmt.Sscanf(said, "bytes %d-%d/%d", &first, &last, &total)
	switch {
	case n < 2 || first != from || last < first:
		l.ignoresRange()
		return fmt.Errorf("%s: asked for what follows byte %d, the server sends %q", a.url, from, said)
	case n == 3 && total != want:
		return permanent{&SizeError{URL: a.url, Got: total, Want: want}}
	case last >= want:
		return permanent{&SizeError{URL: a.url, Got: last + 1, Want: want, AtLeast: true}}
	}
	a.pos, a.end = first, last+1
	return nil
}
