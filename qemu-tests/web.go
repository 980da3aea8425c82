package qemutests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"reassure/image/spec"
)

// Web serves a published tree to PCs, badly if a test wants it so, and takes
// their events.
type Web struct {
	// Root is the folder that is served.
	Root string

	listener net.Listener
	server   *http.Server

	mu       sync.Mutex
	faults   []*Fault
	requests []string
	served   int64 // bytes of wads
	events   []spec.Event
	problems []error
	changed  chan struct{}
}

// Fault is what goes wrong with a file. Exactly one of Status, Page, Length, CutAt,
// FlipAt and Rate is set.
type Fault struct {
	// Suffix is how the path of the files concerned ends.
	Suffix string
	// Times is how many requests it concerns; 0 means all.
	Times int

	Status int   // answer with this and nothing else
	Page   bool  // answer with a web page, as if that were the file
	Length int64 // Content-Length is by so much another than it should be
	CutAt  int64 // the connection ends before this byte of the file
	FlipAt int64 // this byte of the file is another, counted from 1
	Rate   int64 // bytes a second, at most
}

// eventsPath is where events are posted.
const eventsPath = "/events"

// ServeWeb begins to serve folder root on the loopback interface, which PCs
// reach as [Server].
func ServeWeb(root string) (*Web, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("web server: %w", err)
	}
	w := &Web{Root: root, listener: l}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+eventsPath, w.takeEvent)
	mux.HandleFunc("GET /", w.serveFile)
	w.serve(l, mux)
	return w, nil
}

// Close ends the server and returns everything that PCs did wrong: events that
// are none.
func (w *Web) Close() error {
	w.mu.Lock()
	server := w.server
	w.mu.Unlock()
	err := server.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(append(w.problems, err)...)
}

// Restart ends every connection, has nobody listen for a while, and then serves as before.
func (w *Web) Restart(after time.Duration) error {
	address := w.listener.Addr().String()
	w.mu.Lock()
	old := w.server
	w.mu.Unlock()
	if err := old.Close(); err != nil {
		return err
	}
	time.Sleep(after)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("web server: %w", err)
	}
	w.serve(l, old.Handler)
	return nil
}

// serve answers on l until it is closed.
func (w *Web) serve(l net.Listener, h http.Handler) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second}
	w.mu.Lock()
	w.server = server
	w.mu.Unlock()
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.note(err)
		}
	}()
}

// URL is the served tree as PCs see it.
func (w *Web) URL() string {
	return fmt.Sprintf("http://%s:%d", Server, w.listener.Addr().(*net.TCPAddr).Port)
}

// EventsURL is where PCs post events, as they see it.
func (w *Web) EventsURL() string { return w.URL() + eventsPath }

// Break makes things go wrong from now on, and nothing else.
func (w *Web) Break(faults ...Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = nil
	for _, f := range faults {
		w.faults = append(w.faults, &f)
	}
}

// Requests returns what was asked for since the last call, as "GET /path [range]".
func (w *Web) Requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.requests
	w.requests = nil
	return r
}

func (w *Web) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, err)
}

// fault returns what is wrong with this request: nothing is the zero value.
func (w *Web) fault(path string) Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range w.faults {
		if !strings.HasSuffix(path, f.Suffix) {
			continue
		}
		found := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				w.faults = append(w.faults[:i:i], w.faults[i+1:]...)
			}
		}
		return found
	}
	return Fault{}
}

func (w *Web) serveFile(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.requests = append(w.requests, strings.TrimSpace("GET "+r.URL.Path+" "+r.Header.Get("Range")))
	w.mu.Unlock()
	fault := w.fault(r.URL.Path)
	if fault.Status != 0 {
		http.Error(rw, http.StatusText(fault.Status), fault.Status)
		return
	}
	if fault.Page {
		// A portal does not say what it is: no type, and HTML only inside.
		rw.Header().Set("Content-Type", "application/octet-stream")
		io.WriteString(rw, "<!DOCTYPE html>\n<html><body><h1>It works!</h1></body></html>\n")
		return
	}
	root, err := os.OpenRoot(w.Root)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	defer root.Close()
	f, err := root.Open(filepath.FromSlash(strings.TrimPrefix(r.URL.Path, "/")))
	if err != nil {
		http.NotFound(rw, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.NotFound(rw, r)
		return
	}
	counted := &counting{ResponseWriter: rw, lie: fault.Length, flush: fault.Rate > 0}
	http.ServeContent(counted, r, "", info.ModTime(), &faulty{ReadSeeker: f, fault: fault})
	if strings.HasPrefix(r.URL.Path, "/wads/") {
		w.mu.Lock()
		w.served += counted.bytes
		w.mu.Unlock()
	}
}

// counting counts the bytes of an answer, and lies about how many they will be.
type counting struct {
	http.ResponseWriter
	bytes, lie int64
	said       int64 // where it lies
	flush      bool  // each write goes out at once
}

func (c *counting) WriteHeader(status int) {
	if length, err := strconv.ParseInt(c.Header().Get("Content-Length"), 10, 64); err == nil && c.lie != 0 {
		c.said = max(0, length+c.lie)
		c.Header().Set("Content-Length", strconv.FormatInt(c.said, 10))
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counting) Write(p []byte) (int, error) {
	whole := len(p)
	if c.lie != 0 {
		p = p[:min(int64(len(p)), c.said-c.bytes)] // net/http sends no more than it said
	}
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	if err == nil && c.flush {
		err = http.NewResponseController(c.ResponseWriter).Flush()
	}
	if err != nil {
		return n, err
	}
	return whole, nil
}

// Served returns how many bytes of wads were sent since the last call. What is on
// its way counts when it has ended.
func (w *Web) Served() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.served
	w.served = 0
	return n
}

// faulty is a file with something wrong.
type faulty struct {
	io.ReadSeeker
	fault Fault
	at    int64
}

func (f *faulty) Seek(offset int64, whence int) (int64, error) {
	at, err := f.ReadSeeker.Seek(offset, whence)
	f.at = at
	return at, err
}

func (f *faulty) Read(p []byte) (int, error) {
	if f.fault.CutAt > 0 {
		if f.at >= f.fault.CutAt {
			// net/http then closes the connection before Content-Length is reached.
			return 0, errors.New("cut by the test")
		}
		p = p[:min(int64(len(p)), f.fault.CutAt-f.at)]
	}
	if f.fault.Rate > 0 {
		p = p[:min(int64(len(p)), max(1, f.fault.Rate/20))]
		time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(f.fault.Rate))
	}
	n, err := f.ReadSeeker.Read(p)
	if i := f.fault.FlipAt - 1 - f.at; f.fault.FlipAt > 0 && i >= 0 && i < int64(n) {
		p[i] ^= 0xff
	}
	f.at += int64(n)
	return n, err
}

func (w *Web) takeEvent(rw http.ResponseWriter, r *http.Request) {
	d := json.NewDecoder(http.MaxBytesReader(rw, r.Body, 1<<20))
	d.DisallowUnknownFields()
	var e spec.Event
	if err := d.Decode(&e); err != nil {
		w.note(fmt.Errorf("a PC posted what is no event: %w", err))
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	w.events = append(w.events, e)
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
	w.mu.Unlock()
	rw.WriteHeader(http.StatusNoContent)
}

// Events returns all events so far.
func (w *Web) Events() []spec.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]spec.Event(nil), w.events...)
}

// Forget drops all events so far.
func (w *Web) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
}

// Event waits for the first event of a kind.
func (w *Web) Event(ctx context.Context, kind spec.EventKind) (spec.Event, error) {
	return w.Await(ctx, fmt.Sprintf("an event of kind %q", kind), func(e spec.Event) bool { return e.Kind == kind })
}

// Await waits for the first event that is what is waited for.
func (w *Web) Await(ctx context.Context, what string, is func(spec.Event) bool) (spec.Event, error) {
	for {
		w.mu.Lock()
		for _, e := range w.events {
			if is(e) {
				w.mu.Unlock()
				return e, nil
			}
		}
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return spec.Event{}, fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		}
	}
}
