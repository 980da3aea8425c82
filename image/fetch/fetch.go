// Package fetch reads files over HTTP so that they can be trusted: what arrives
// is counted and hashed on its way, and the end is reported only once it is
// certain that it is the right one.
//
// [Client.Open] gives a [Stream] of a large file whose size and SHA-256 are
// known beforehand. A connection that is cut or stalls is taken up again with
// Range, on the next mirror if there is one, after pauses that grow. A server
// that ignores Range sends all again; what was read before is then compared
// with what comes now, and dropped. [Client.Get] reads something small whole.
//
// [Client.OpenParts] is for a file of which each part is known by its own
// SHA-256: what is handed out was judged before, part by part, and one that is
// wrong is fetched again from elsewhere. Scattered parts are fetched by Range,
// several at a time; from a server that ignores it the file is read once.
//
// Failures that trying again cannot mend (not found, another length, other
// content) rule out that one address; those that time may mend (no connection,
// a stall, status 5xx) are tried again.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"reassure/image/spec"
)

// Client fetches. The zero value is ready for use, and clients may be copied.
type Client struct {
	// HTTP makes the requests. It must not have a Timeout, which would bound the
	// whole body. nil is a client of our own for each call: no proxies, no
	// decompression, limits on connecting and on the wait for the answer.
	HTTP *http.Client
	// TLS is for HTTPS where HTTP is nil; nil is what the system trusts. See [Trust].
	TLS DialTLS
	// Log is told of every failure that is tried again; nil means silence.
	Log *slog.Logger
	// Token, when set, goes with every request as a bearer token (RFC 6750, 2.1),
	// to the server of the address that was asked for and to no other; see
	// [SameServer]. No error and no log line holds it.
	Token string
	// StallLimit is how long to wait for bytes; 0 means 30 s.
	StallLimit time.Duration
	// MinRate is what must arrive on average, in bytes a second over StallLimit,
	// for a transfer not to count as stalled; 0 means 1 KiB. Time in which the
	// reader of a stream does not keep up does not count.
	MinRate spec.Size
	// Attempts is how many failures in a row, without a megabyte between them,
	// are too many; 0 means 8.
	Attempts int
	// Pause is waited after the first failure in a row and doubles with each,
	// up to MaxPause. There is none before a mirror that has not failed yet.
	// 0 means 500 ms.
	Pause time.Duration
	// MaxPause is the longest pause; 0 means 15 s.
	MaxPause time.Duration
}

// Source is a file that is known by its content.
type Source struct {
	Name string // for people
	// URLs serve the same bytes, the best first. They are absolute.
	URLs   []string
	Size   spec.Size
	SHA256 spec.Digest
}

// StatusError is an answer with a status that is not success.
type StatusError struct {
	URL    string
	Status int
	// RetryAfter is how long the server asks us to wait; 0 if it does not.
	RetryAfter time.Duration
	// Token says that the request carried one.
	Token bool
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s: the server answers %d %s", e.URL, e.Status, http.StatusText(e.Status))
	switch {
	case e.Status == http.StatusNotFound || e.Status == http.StatusGone:
		return text + ": publish again, or check that the server serves this path"
	case e.Token && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden):
		return text + ": it does not take the token of this boot: start the PC again, which gets it a new one if it is due"
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		return text + ": let the server allow this path to everybody, and check the file's permissions"
	case e.Status >= 500:
		return text + ": see the server's log"
	}
	return text
}

// SizeError is a file of another size than it should have.
type SizeError struct {
	URL string
	// Got is the size found; of a body that went on, what is certain.
	Got, Want int64
	// AtLeast says that Got is not the whole size.
	AtLeast bool
}

func (e *SizeError) Error() string {
	least := ""
	if e.AtLeast {
		least = "at least "
	}
	return fmt.Sprintf("%s: it has %s%d bytes instead of %d: the file was changed after it was published; publish again", e.URL, least, e.Got, e.Want)
}

// DigestError is a file with another content than it should have.
type DigestError struct {
	URL       string
	Got, Want spec.Digest
	// Offset is where the file as sent now parts from what was read before it
	// was cut; 0 if the whole file was read.
	Offset int64
}

func (e *DigestError) Error() string {
	if e.Offset > 0 {
		return fmt.Sprintf("%s: the file changed while it was read: its first %d bytes have %v now and had %v before: publish again", e.URL, e.Offset, e.Got, e.Want)
	}
	return fmt.Sprintf("%s: its content has %v instead of %v: the file was changed after it was published, or damaged on its way; publish again", e.URL, e.Got, e.Want)
}

// StallError is a transfer that came to a halt.
type StallError struct {
	URL    string
	Waited time.Duration
	Got    int64 // bytes in that time
}

func (e *StallError) Error() string {
	return fmt.Sprintf("%s: %d bytes in %v: the transfer stalled", e.URL, e.Got, e.Waited.Round(time.Millisecond))
}

// ErrWebPage is returned for HTML where a file was expected: what a captive
// portal, or a server that was set up for something else, answers to anything.
var ErrWebPage = errors.New("the server answers with a web page: check the address, and that the server serves the published tree")

// ErrTooLarge is returned by [Client.Get].
var ErrTooLarge = errors.New("it is larger than anything expected here: check the address")

// maxRedirects is as many as net/http follows by itself.
const maxRedirects = 10

// SameServer is for [http.Client.CheckRedirect] of clients that send a token: it
// takes the token off a request that was redirected to another scheme, host or
// port. By itself, net/http goes by the host's name alone, and lets its
// subdomains have it, too.
func SameServer(request *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("redirected %d times: check the server's configuration", len(via))
	}
	if first := via[0].URL; request.URL.Scheme != first.Scheme || request.URL.Host != first.Host {
		request.Header.Del("Authorization")
	}
	return nil
}

// Authorize puts a bearer token on a request; without one it does nothing.
func Authorize(request *http.Request, token string) {
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
}

// permanent marks an error that trying the same address again cannot mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func isPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p)
}

// defaults returns the client with every field set, and how to clean up after it.
func (c *Client) defaults() (Client, func()) {
	d := *c
	done := func() {}
	if d.StallLimit == 0 {
		d.StallLimit = 30 * time.Second
	}
	if d.HTTP == nil {
		transport := &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: d.StallLimit,
			ExpectContinueTimeout: time.Second,
			DisableCompression:    true,
			ForceAttemptHTTP2:     true,
			DialTLSContext:        d.TLS,
			ReadBufferSize:        64 << 10,
			MaxIdleConnsPerHost:   lanes,
		}
		d.HTTP = &http.Client{Transport: transport}
		done = transport.CloseIdleConnections
	}
	if d.Token != "" {
		careful := *d.HTTP
		careful.CheckRedirect = SameServer
		d.HTTP = &careful
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.MinRate == 0 {
		d.MinRate = spec.KiB
	}
	if d.Attempts == 0 {
		d.Attempts = 8
	}
	if d.Pause == 0 {
		d.Pause = 500 * time.Millisecond
	}
	if d.MaxPause == 0 {
		d.MaxPause = 15 * time.Second
	}
	return d, done
}

// request asks for url from a byte on, up to but without another; 0 is the end.
// With tag, the server is to send all again if the file is not the one that had
// it (RFC 9110, 13.1.5).
func (c *Client) request(ctx context.Context, url string, from, to int64, tag string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, permanent{err}
	}
	// What is hashed is the file, not what a proxy makes of it.
	req.Header.Set("Accept-Encoding", "identity")
	Authorize(req, c.Token)
	if from > 0 || to > 0 {
		until := ""
		if to > 0 {
			until = strconv.FormatInt(to-1, 10)
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", from, until))
		if tag != "" {
			req.Header.Set("If-Range", tag)
		}
	}
	res, err := c.HTTP.Do(req)
	var untrusted *TrustError
	if errors.As(err, &untrusted) {
		return nil, permanent{err}
	}
	if err != nil {
		return nil, err // names the method and the URL
	}
	if err := judge(res, url); err != nil {
		res.Body.Close()
		var status *StatusError
		if errors.As(err, &status) {
			status.Token = c.Token != ""
		}
		return nil, err
	}
	return res, nil
}

// judge refuses an answer by its status and kind.
func judge(res *http.Response, url string) error {
	switch code := res.StatusCode; {
	case code == http.StatusOK || code == http.StatusPartialContent:
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return &StatusError{URL: url, Status: code, RetryAfter: time.Duration(max(seconds, 0)) * time.Second}
	default:
		return permanent{&StatusError{URL: url, Status: code}}
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if kind == "text/html" || kind == "application/xhtml+xml" {
		return permanent{fmt.Errorf("%s: %w", url, ErrWebPage)}
	}
	return nil
}

// pause waits before the next attempt after failures in a row. Every PC of a
// lab may have lost the same server at once, so they spread.
func (c *Client) pause(ctx context.Context, failures int, last error) error {
	d := c.MaxPause
	if shift := failures - 1; shift < 16 {
		d = min(d, c.Pause<<shift)
	}
	var status *StatusError
	if errors.As(last, &status) {
		d = max(d, min(status.RetryAfter, c.MaxPause))
	}
	d = d*3/4 + rand.N(d/2+1)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Get reads something small, such as a manifest, whole: at most max bytes.
func (c *Client) Get(ctx context.Context, url string, max int64) ([]byte, error) {
	d, done := c.defaults()
	defer done()
	var last error
	for failures := 1; ; failures++ {
		data, err := d.get(ctx, url, max)
		switch {
		case err == nil:
			return data, nil
		case ctx.Err() != nil:
			return nil, stopped(ctx, url, last)
		case isPermanent(err) || failures >= d.Attempts:
			return nil, fmt.Errorf("fetch: %w", err)
		}
		d.Log.Warn("fetch: trying again", "url", url, "failures", failures, "error", err)
		if last = err; d.pause(ctx, failures, err) != nil {
			return nil, stopped(ctx, url, last)
		}
	}
}

// stopped is the error when ctx has ended; last is what went wrong before, or nil.
func stopped(ctx context.Context, url string, last error) error {
	if last == nil {
		return fmt.Errorf("fetch %s: %w", url, context.Cause(ctx))
	}
	return fmt.Errorf("fetch: %w: %w", context.Cause(ctx), last)
}

func (c *Client) get(ctx context.Context, url string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := c.request(ctx, url, 0, 0, "")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	tooLarge := permanent{fmt.Errorf("%s: more than %d bytes: %w", url, limit, ErrTooLarge)}
	if res.ContentLength > limit {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(c.watch(ctx, cancel, url, res.Body), limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", url, err)
	case int64(len(data)) > limit:
		return nil, tooLarge
	case looksLikeHTML(data):
		return nil, permanent{fmt.Errorf("%s: %w", url, ErrWebPage)}
	}
	return data, nil
}

// looksLikeHTML knows a web page that is sent under another name.
func looksLikeHTML(data []byte) bool {
	start := strings.ToLower(strings.TrimSpace(string(data[:min(len(data), 64)])))
	return strings.HasPrefix(start, "<!doctype html") || strings.HasPrefix(start, "<html")
}

// watched is a body whose reads end when they bring too little for too long.
type watched struct {
	r      io.Reader
	ctx    context.Context
	timer  *time.Timer
	limit  time.Duration
	enough int64
	waited time.Duration // without enough
	got    int64         // in that time
}

// watch wraps a body whose request ends with ctx, which cancel cancels.
func (c *Client) watch(ctx context.Context, cancel context.CancelCauseFunc, url string, body io.Reader) io.Reader {
	w := &watched{r: body, ctx: ctx, limit: c.StallLimit, enough: max(1, int64(c.StallLimit.Seconds()*float64(c.MinRate)))}
	w.timer = time.AfterFunc(w.limit, func() { cancel(&StallError{URL: url, Waited: w.limit}) })
	w.timer.Stop()
	return w
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	start := time.Now()
	w.timer.Reset(w.limit - w.waited)
	n, err := w.r.Read(p)
	w.timer.Stop()
	w.waited += time.Since(start)
	w.got += int64(n)
	if w.got >= w.enough {
		w.waited, w.got = 0, 0
	}
	if err != nil && err != io.EOF {
		// Why the request was cancelled says more than that it was.
		if cause := context.Cause(w.ctx); cause != nil {
			var stall *StallError
			if errors.As(cause, &stall) {
				cause = &StallError{stall.URL, stall.Waited, w.got}
			}
			return n, cause
		}
	}
	return n, err
}
