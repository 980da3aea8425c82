package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// content is the same in every run: 3 MB and a bit that no compression helps.
func content() []byte {
	data := make([]byte, 3<<20+12345)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// impatient is a client for tests.
func impatient() *Client {
	return &Client{StallLimit: 200 * time.Millisecond, Pause: time.Millisecond, MaxPause: 5 * time.Millisecond, Attempts: 4}
}

// noLeaks fails the test if it leaves goroutines behind.
func noLeaks(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
			}
		}
	})
}

// serve starts a server on loopback and returns the address of a file on it.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL + "/wad.tar.zst"
}

// good serves data as nginx does: Range, If-Range, ETag.
func good(data []byte, tag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// cutting serves by h, but breaks each connection after n bytes of body.
func cutting(n int, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { h(&cutter{ResponseWriter: w, left: n}, r) }
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, _ := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// whole serves data without knowing of Range.
func whole(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data)
	}
}

// chunked serves data without saying how long it is.
func chunked(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		w.Write(data)
	}
}

// inTurn serves the first request by the first handler and so on; the last
// serves all that follow.
func inTurn(all ...http.HandlerFunc) http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		all[min(int(n.Add(1)), len(all))-1](w, r)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
}

// hang sends n bytes and then nothing until the client goes.
func hang(data []byte, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data[:n])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// drip sends a byte now and then, forever.
func drip(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		for i := range data {
			w.Write(data[i : i+1])
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	}
}

func page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, "<!DOCTYPE html><title>Welcome to the campus network</title>")
}

func flipped(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0x10
	return data
}

func TestStream(t *testing.T) {
	data := content()
	longer := append(bytes.Clone(data), 'x')
	for _, test := range []struct {
		name    string
		servers []http.HandlerFunc
		// want judges the error of Open or of reading to the end; nil means success.
		want func(error) bool
		// early says that the error must come from Open.
		early bool
	}{
		{name: "served well", servers: []http.HandlerFunc{good(data, `"a"`)}},
		{name: "length not announced", servers: []http.HandlerFunc{chunked(data)}},
		{name: "cut again and again", servers: []http.HandlerFunc{cutting(1_000_003, good(data, `"a"`))}},
		{name: "cut by a server without tags", servers: []http.HandlerFunc{cutting(1_000_003, good(data, ""))}},
		{name: "cut by a server with weak tags", servers: []http.HandlerFunc{cutting(1_000_003, good(data, `W/"a"`))}},
		{name: "cut by a server that ignores Range", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, whole(data)), whole(data))}},
		{name: "cut where the length was not announced", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, chunked(data)), good(data, `"a"`))}},
		{name: "ended early where the length was not announced", servers: []http.HandlerFunc{inTurn(chunked(data[:777]), good(data, `"a"`))}},
		{name: "stalled, then served", servers: []http.HandlerFunc{inTurn(hang(data, 100_000), good(data, `"a"`))}},
		{name: "stalled before the header, then served", servers: []http.HandlerFunc{inTurn(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, good(data, `"a"`))}},
		{name: "503 twice, then served", servers: []http.HandlerFunc{inTurn(status(503), status(503), good(data, `"a"`))}},
		{name: "too many requests, then served", servers: []http.HandlerFunc{inTurn(status(429), good(data, `"a"`))}},
		{name: "connections refused at first", servers: []http.HandlerFunc{inTurn(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, good(data, `"a"`))}},
		{name: "replaced by the same content with another tag", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, good(data, `"a"`)), good(data, `"b"`))}},
		{name: "first mirror has no such file", servers: []http.HandlerFunc{status(404), good(data, `"b"`)}},
		{name: "first mirror cuts, second goes on", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, good(data, `"a"`)), status(404)), good(data, `"b"`)}},
		{name: "first mirror cuts, second has another file, first goes on", servers: []http.HandlerFunc{cutting(2_000_003, good(data, `"a"`)), whole(data[:50])}},
		{name: "first mirror is a web page", servers: []http.HandlerFunc{page, good(data, `"b"`)}},
		{name: "refuses ranges with 416", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, whole(data)), status(416), whole(data))}},

		{name: "not found", servers: []http.HandlerFunc{status(404)}, early: true, want: isStatus(404)},
		{name: "forbidden", servers: []http.HandlerFunc{status(403)}, early: true, want: isStatus(403)},
		{name: "not found anywhere", servers: []http.HandlerFunc{status(404), status(410)}, early: true, want: func(err error) bool {
			return isStatus(404)(err) && strings.Contains(err.Error(), "410")
		}},
		{name: "503 forever", servers: []http.HandlerFunc{status(503)}, early: true, want: isStatus(503)},
		{name: "a web page", servers: []http.HandlerFunc{page}, early: true, want: func(err error) bool { return errors.Is(err, ErrWebPage) }},
		{name: "announced shorter", servers: []http.HandlerFunc{whole(data[:999])}, early: true, want: isSize(999)},
		{name: "announced longer", servers: []http.HandlerFunc{whole(longer)}, early: true, want: isSize(int64(len(longer)))},
		{name: "longer than announced to us", servers: []http.HandlerFunc{chunked(longer)}, want: isSize(int64(len(longer)))},
		{name: "always too short", servers: []http.HandlerFunc{chunked(data[:999])}, want: func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{name: "the length is a lie", servers: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			w.Write(data[:999])
		}}, want: func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{name: "one bit is wrong", servers: []http.HandlerFunc{good(flipped(data, 2_000_000), `"a"`)}, want: isDigest},
		{name: "the last bit is wrong", servers: []http.HandlerFunc{good(flipped(data, len(data)-1), `"a"`)}, want: isDigest},
		{name: "replaced by other content, told by the tag", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, good(data, `"a"`)), good(flipped(data, 5), `"b"`))}, want: isChanged},
		{name: "replaced, If-Range ignored", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, good(data, `"a"`)), func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			good(flipped(data, 5), `"b"`)(w, r)
		})}, want: isChanged},
		{name: "replaced where nobody knows of tags", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, whole(data)), whole(flipped(data, 5)))}, want: isChanged},
		{name: "resumed at another byte", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, whole(data)), func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=7-")
			good(data, "")(w, r)
		}, whole(data))}},
		{name: "grown meanwhile", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, good(data, "")), good(longer, ""))}, want: isSize(int64(len(longer)))},
		{name: "stalls forever", servers: []http.HandlerFunc{hang(data, 1000)}, want: isStall},
		{name: "a byte now and then", servers: []http.HandlerFunc{drip(data)}, want: isStall},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			source := Source{Name: "wad.tar.zst", Size: spec.Size(len(data)), SHA256: spec.Sum(data)}
			for _, h := range test.servers {
				source.URLs = append(source.URLs, serve(t, h))
			}
			client := impatient()
			if test.name == "a byte now and then" {
				client.MinRate = 4 * spec.KiB
			}
			s, err := client.Open(t.Context(), source)
			if test.early != (err != nil) {
				t.Fatalf("Open: %v; want early failure: %v", err, test.early)
			}
			if err == nil {
				defer s.Close()
				var got []byte
				got, err = io.ReadAll(s)
				if !bytes.HasPrefix(data, got) && !isDigest(err) {
					t.Errorf("what was read is not the file's start")
				}
				if err == nil && !bytes.Equal(got, data) {
					t.Errorf("io.EOF after %d bytes of %d", len(got), len(data))
				}
				if done, total := s.Progress(); err == nil && done != total {
					t.Errorf("progress is %d of %d at the end", done, total)
				}
			}
			switch {
			case test.want == nil && err != nil:
				t.Errorf("failed: %v", err)
			case test.want != nil && (err == nil || !test.want(err)):
				t.Errorf("error: %v", err)
			case test.want != nil && !strings.Contains(err.Error(), "http://127.0.0.1"):
				t.Errorf("the error does not name the address: %v", err)
			}
		})
	}
}

func isStatus(code int) func(error) bool {
	return func(err error) bool {
		var e *StatusError
		return errors.As(err, &e) && e.Status == code
	}
}

func isSize(got int64) func(error) bool {
	return func(err error) bool {
		var e *SizeError
		return errors.As(err, &e) && e.Got == got
	}
}

func isDigest(err error) bool {
	var e *DigestError
	return errors.As(err, &e)
}

func isChanged(err error) bool {
	var e *DigestError
	return errors.As(err, &e) && e.Offset > 0
}

func isStall(err error) bool {
	var e *StallError
	return errors.As(err, &e)
}

// A reader that takes its time must not look like a server that stalls.
func TestSlowReader(t *testing.T) {
	noLeaks(t)
	data := bytes.Repeat(content(), 4)
	var requests atomic.Int32
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		good(data, `"a"`)(w, r)
	})
	s, err := impatient().Open(t.Context(), Source{Name: "wad", URLs: []string{url}, Size: spec.Size(len(data)), SHA256: spec.Sum(data)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.CopyN(io.Discard, s, 1000); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	if err := iotest.TestReader(io.LimitReader(s, 2000), data[1000:3000]); err != nil {
		t.Error(err)
	}
	time.Sleep(600 * time.Millisecond)
	if n, err := io.Copy(io.Discard, s); err != nil || n != int64(len(data))-3000 {
		t.Errorf("read %d bytes: %v", n, err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests; want 1", n)
	}
}

func TestCancel(t *testing.T) {
	data := content()
	for _, test := range []struct {
		name string
		end  func(cancel func(), s *Stream)
		want error
	}{
		{"context", func(cancel func(), _ *Stream) { cancel() }, context.Canceled},
		{"close", func(_ func(), s *Stream) { s.Close() }, errClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			url := serve(t, hang(data, 1000))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := (&Client{}).Open(ctx, Source{Name: "wad", URLs: []string{url}, Size: spec.Size(len(data)), SHA256: spec.Sum(data)})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			time.AfterFunc(50*time.Millisecond, func() { test.end(cancel, s) })
			if _, err := io.ReadAll(s); !errors.Is(err, test.want) {
				t.Errorf("ReadAll: %v; want %v", err, test.want)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	digest := spec.Sum(nil)
	for name, source := range map[string]Source{
		"no address": {Size: 1, SHA256: digest},
		"no size":    {URLs: []string{"http://127.0.0.1:1/"}, SHA256: digest},
		"no digest":  {URLs: []string{"http://127.0.0.1:1/"}, Size: 1},
		"bad URL":    {URLs: []string{"http://[::"}, Size: 1, SHA256: digest},
		"nobody":     {URLs: []string{"http://127.0.0.1:1/"}, Size: 1, SHA256: digest},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			if s, err := impatient().Open(t.Context(), source); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}

func TestGet(t *testing.T) {
	text := []byte(`{"schema": 1}`)
	for _, test := range []struct {
		name   string
		server http.HandlerFunc
		max    int64
		want   func(error) bool
	}{
		{name: "served", server: whole(text), max: 13},
		{name: "503, then served", server: inTurn(status(503), whole(text)), max: 100},
		{name: "cut, then served", server: inTurn(cutting(5, whole(text)), whole(text)), max: 100},
		{name: "stalled, then served", server: inTurn(hang(text, 5), whole(text)), max: 100},
		{name: "not found", server: status(404), max: 100, want: isStatus(404)},
		{name: "a web page", server: page, max: 1000, want: func(err error) bool { return errors.Is(err, ErrWebPage) }},
		{name: "a web page in disguise", server: whole([]byte("\n<HTML><body>log in</body>")), max: 1000, want: func(err error) bool { return errors.Is(err, ErrWebPage) }},
		{name: "announced too large", server: whole(text), max: 12, want: func(err error) bool { return errors.Is(err, ErrTooLarge) }},
		{name: "too large", server: chunked(text), max: 12, want: func(err error) bool { return errors.Is(err, ErrTooLarge) }},
		{name: "stalls forever", server: hang(text, 5), max: 100, want: isStall},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			got, err := impatient().Get(t.Context(), serve(t, test.server), test.max)
			switch {
			case test.want == nil && (err != nil || !bytes.Equal(got, text)):
				t.Errorf("Get = %q, %v", got, err)
			case test.want != nil && (err == nil || !test.want(err)):
				t.Errorf("error: %v", err)
			}
		})
	}
}

// TestToken looks at what each server is shown: the one that was asked, and those
// that it redirects to.
func TestToken(t *testing.T) {
	text := []byte("{}")
	var mu sync.Mutex
	shown := map[string]string{}
	note := func(name string, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			shown[name] = r.Header.Get("Authorization")
			mu.Unlock()
			h(w, r)
		}
	}
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url, http.StatusTemporaryRedirect) }
	}
	// The same host on another port is another server; net/http does not think so.
	other := serve(t, note("other", whole(text)))
	mux := http.NewServeMux()
	site := httptest.NewServer(mux)
	defer site.Close()
	back := serve(t, note("on the way", to(site.URL+"/file")))
	mux.HandleFunc("/file", note("file", whole(text)))
	mux.HandleFunc("/moved", note("moved", to("/file")))
	mux.HandleFunc("/other", note("away", to(other)))
	mux.HandleFunc("/back", note("back", to(back)))
	mux.HandleFunc("/round", note("round", to("/round")))
	const bearer = "Bearer s3cr3t"
	for _, test := range []struct {
		path string
		want map[string]string
		fail bool
	}{
		{path: "/file", want: map[string]string{"file": bearer}},
		{path: "/moved", want: map[string]string{"moved": bearer, "file": bearer}},
		{path: "/other", want: map[string]string{"away": bearer, "other": ""}},
		{path: "/round", want: map[string]string{"round": bearer}, fail: true},
	} {
		clear(shown)
		for name, client := range map[string]*Client{"own": impatient(), "given": {HTTP: site.Client(), Attempts: 1}} {
			client.Token = "s3cr3t"
			_, err := client.Get(t.Context(), site.URL+test.path, 100)
			if (err != nil) != test.fail {
				t.Errorf("%s, %s client: %v", test.path, name, err)
			}
			if diff := cmp.Diff(test.want, shown); diff != "" {
				t.Errorf("%s, %s client: each server was shown (-want +got):\n%s", test.path, name, diff)
			}
		}
	}
	clear(shown)
	client := impatient()
	client.Token = "s3cr3t"
	if _, err := client.Get(t.Context(), site.URL+"/back", 100); err != nil || shown["on the way"] != "" {
		t.Errorf("error %v; a server on the way was shown %q", err, shown["on the way"])
	}
	if _, err := impatient().Get(t.Context(), site.URL+"/file", 100); err != nil || shown["file"] != "" {
		t.Errorf("without a token: %v, %q", err, shown["file"])
	}
}

// TestARefusedToken says what to do, and not what the token was.
func TestARefusedToken(t *testing.T) {
	url := serve(t, status(http.StatusForbidden))
	for token, want := range map[string]string{"s3cr3t": "token of this boot", "": "allow this path to everybody"} {
		client := impatient()
		client.Token = token
		_, err := client.Get(t.Context(), url, 100)
		if !isStatus(403)(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("with %q: %v", token, err)
		}
	}
}

// TestGetInTime says why it ended and what was wrong until then.
func TestGetInTime(t *testing.T) {
	late := errors.New("no manifest in time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, late)
	defer cancel()
	client := impatient()
	client.Attempts = 1000
	_, err := client.Get(ctx, serve(t, status(503)), 100)
	if !errors.Is(err, late) || !isStatus(503)(err) {
		t.Errorf("error is %v", err)
	}
}

// TestEnvironment shows that a proxy set for something else is not used.
func TestEnvironment(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	url := serve(t, whole([]byte("x")))
	// net/http itself leaves loopback addresses out, so look at the transport.
	c, done := (&Client{}).defaults()
	defer done()
	if c.HTTP.Transport.(*http.Transport).Proxy != nil || c.HTTP.Timeout != 0 {
		t.Error("the client asks for a proxy or bounds the body")
	}
	if _, err := c.Get(t.Context(), url, 10); err != nil {
		t.Error(err)
	}
}

func BenchmarkStream(b *testing.B) {
	data := bytes.Repeat(content(), 40)
	s := httptest.NewServer(good(data, `"a"`))
	defer s.Close()
	source := Source{Name: "wad", URLs: []string{s.URL}, Size: spec.Size(len(data)), SHA256: spec.Sum(data)}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		stream, err := (&Client{}).Open(b.Context(), source)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, stream); err != nil {
			b.Fatal(err)
		}
		stream.Close()
	}
}
