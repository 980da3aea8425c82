package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// server collects events, answering with the codes in turn, the last for ever.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	codes  []int
	events []spec.Event
	gate   chan struct{} // each request takes one token, when it is not nil
}

func newServer(t *testing.T, gate chan struct{}, codes ...int) *server {
	s := &server{codes: codes, gate: gate}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.gate != nil {
			<-s.gate
		}
		body, _ := io.ReadAll(r.Body)
		var e spec.Event
		if err := json.Unmarshal(body, &e); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %q: %v", r.Method, body, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, e)
		code := http.StatusNoContent
		if len(s.codes) > 0 {
			code = s.codes[0]
			if len(s.codes) > 1 {
				s.codes = s.codes[1:]
			}
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) kinds() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.events {
		k := string(e.Kind)
		if e.Kind == spec.EventProgress {
			k += fmt.Sprintf(" %s %d", e.Phase, e.Done)
		}
		out = append(out, k)
	}
	return out
}

func flush(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestPostFillsIn(t *testing.T) {
	s := newServer(t, nil)
	mac := spec.MAC{2, 0, 0, 0, 0, 1}
	c := New(s.URL, Options{Host: "exp01", MAC: mac})
	defer c.Close()
	c.Post(spec.Event{Kind: spec.EventStart})
	flush(t, c)
	if got := s.events[0]; got.Host != "exp01" || got.MAC != mac || got.Time.IsZero() || got.Uptime <= 0 {
		t.Errorf("event = %+v", got)
	}
}

func TestProgressIsMergedWhileTheServerIsSlow(t *testing.T) {
	gate := make(chan struct{})
	s := newServer(t, gate)
	c := New(s.URL, Options{})
	defer c.Close()
	c.Post(spec.Event{Kind: spec.EventStart})
	gate <- struct{}{} // the start is out, so the order of what follows is certain
	flush(t, c)
	c.Post(spec.Event{Kind: spec.EventPhase})
	for i := range 1000 {
		c.Post(spec.Event{Kind: spec.EventProgress, Phase: "one", Done: spec.Size(i)})
	}
	for i := range 1000 {
		c.Post(spec.Event{Kind: spec.EventProgress, Phase: "two", Done: spec.Size(i)})
	}
	c.Post(spec.Event{Kind: spec.EventDone})
	close(gate)
	flush(t, c)
	if diff := cmp.Diff([]string{"start", "phase", "progress one 999", "progress two 999", "done"}, s.kinds()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestAFullQueueKeepsWhatDecides(t *testing.T) {
	gate := make(chan struct{})
	s := newServer(t, gate)
	c := New(s.URL, Options{Queue: 4})
	defer c.Close()
	c.Post(spec.Event{Kind: spec.EventStart})
	gate <- struct{}{}
	flush(t, c)
	c.Post(spec.Event{Kind: spec.EventPlan})
	for c.taken() { // until the worker holds the plan
		time.Sleep(time.Millisecond)
	}
	c.Post(spec.Event{Kind: spec.EventFailure})
	c.Post(spec.Event{Kind: spec.EventStep})
	c.Post(spec.Event{Kind: spec.EventProgress, Phase: "p"})
	for range 10 {
		c.Post(spec.Event{Kind: spec.EventPhase})
	}
	c.Post(spec.Event{Kind: spec.EventDone})
	close(gate)
	flush(t, c)
	if diff := cmp.Diff([]string{"start", "plan", "failure", "phase", "phase", "done"}, s.kinds()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// taken says whether the queue still holds something.
func (c *Client) taken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) > 0
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		kind  spec.EventKind
		codes []int
		want  int // POSTs
		warns bool
	}{
		{name: "a failure is tried again", kind: spec.EventFailure, codes: []int{503, 500, 204}, want: 3},
		{name: "but not for ever", kind: spec.EventDone, codes: []int{503}, want: 3, warns: true},
		{name: "a phase is not", kind: spec.EventPhase, codes: []int{503}, want: 1, warns: true},
		{name: "nor what was refused", kind: spec.EventDone, codes: []int{404}, want: 1, warns: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, nil, tt.codes...)
			var log bytes.Buffer
			c := New(s.URL, Options{Tries: 3, Log: slog.New(slog.NewTextHandler(&log, nil))})
			defer c.Close()
			c.Post(spec.Event{Kind: tt.kind})
			flush(t, c)
			if got := len(s.kinds()); got != tt.want {
				t.Errorf("%d POSTs; want %d", got, tt.want)
			}
			if got := strings.Contains(log.String(), s.URL); got != tt.warns {
				t.Errorf("log = %q", log.String())
			}
		})
	}
}

func TestTheTokenGoesToItsServerOnly(t *testing.T) {
	shown := make(chan string, 2)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown <- r.Header.Get("Authorization") }))
	defer other.Close()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.Header.Get("Authorization")
		http.Redirect(w, r, other.URL, http.StatusPermanentRedirect)
	}))
	defer site.Close()
	c := New(site.URL, Options{Token: "s3cr3t"})
	defer c.Close()
	c.Post(spec.Event{Kind: spec.EventStart})
	flush(t, c)
	if first, second := <-shown, <-shown; first != "Bearer s3cr3t" || second != "" {
		t.Errorf("the site was shown %q, another server %q", first, second)
	}
}

func TestARefusedTokenIsToldOnce(t *testing.T) {
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		s := newServer(t, nil, 204, code)
		var log bytes.Buffer
		c := New(s.URL, Options{Token: "s3cr3t", Log: slog.New(slog.NewTextHandler(&log, nil))})
		defer c.Close()
		for _, k := range []spec.EventKind{spec.EventStart, spec.EventPlan, spec.EventStep, spec.EventDone} {
			c.Post(spec.Event{Kind: k})
			flush(t, c)
		}
		if diff := cmp.Diff([]string{"start", "plan"}, s.kinds()); diff != "" {
			t.Errorf("%d: events (-want +got):\n%s", code, diff)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "token of this boot") || strings.Contains(got, "s3cr3t") {
			t.Errorf("%d: log is %q", code, got)
		}
	}
}

func TestLogLinesAreNotLost(t *testing.T) {
	lines := func(s *server) []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		var all []string
		for _, e := range s.events {
			all = append(all, string(e.Kind)+":"+strings.Join(e.Log, ","))
		}
		return all
	}
	t.Run("of a full queue", func(t *testing.T) {
		gate := make(chan struct{})
		s := newServer(t, gate)
		c := New(s.URL, Options{Queue: 3})
		defer c.Close()
		c.Post(spec.Event{Kind: spec.EventStart})
		for c.taken() {
			time.Sleep(time.Millisecond)
		}
		// Into a queue of three: each drops the oldest phase before it.
		c.Post(spec.Event{Kind: spec.EventFailure, Log: []string{"1"}})
		for i := 2; i <= 6; i++ {
			c.Post(spec.Event{Kind: spec.EventPhase, Log: []string{strconv.Itoa(i)}})
		}
		close(gate)
		flush(t, c)
		if diff := cmp.Diff([]string{"start:", "failure:1", "phase:2,3,4,5", "phase:6"}, lines(s)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
	t.Run("of one that did not get through", func(t *testing.T) {
		s := newServer(t, nil, 503, 503, 204)
		c := New(s.URL, Options{})
		defer c.Close()
		for i := 1; i <= 4; i++ {
			c.Post(spec.Event{Kind: spec.EventPhase, Log: []string{strconv.Itoa(i)}})
			flush(t, c)
		}
		if diff := cmp.Diff([]string{"phase:1", "phase:1,2", "phase:1,2,3", "phase:4"}, lines(s)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
	t.Run("but for what is too much", func(t *testing.T) {
		s := newServer(t, nil, 503, 204)
		c := New(s.URL, Options{})
		defer c.Close()
		c.Post(spec.Event{Kind: spec.EventPhase, Log: make([]string, maxLines)})
		flush(t, c)
		c.Post(spec.Event{Kind: spec.EventPhase, Log: []string{"last"}})
		flush(t, c)
		got := s.events[1].Log
		if len(got) != maxLines || got[0] != "(2 lines left out)" || got[maxLines-1] != "last" {
			t.Errorf("%d lines, from %q to %q", len(got), got[0], got[len(got)-1])
		}
	})
	t.Run("nor sent again where they were refused", func(t *testing.T) {
		s := newServer(t, nil, 413, 204)
		c := New(s.URL, Options{})
		defer c.Close()
		for i := 1; i <= 2; i++ {
			c.Post(spec.Event{Kind: spec.EventPhase, Log: []string{strconv.Itoa(i)}})
			flush(t, c)
		}
		if diff := cmp.Diff([]string{"phase:1", "phase:2"}, lines(s)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestADeadServerStopsNobody(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	s := newServer(t, gate)
	c := New(s.URL, Options{Timeout: 50 * time.Millisecond, Tries: 100})
	begin := time.Now()
	for range 10000 {
		c.Post(spec.Event{Kind: spec.EventDone})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := c.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), s.URL) {
		t.Errorf("Flush = %v", err)
	}
	c.Close()
	if err := c.Flush(context.Background()); err == nil {
		t.Error("Flush after Close says that all was sent")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNoServer(t *testing.T) {
	c := New("", Options{})
	c.Post(spec.Event{Kind: spec.EventDone})
	flush(t, c)
	c.Close()
}
