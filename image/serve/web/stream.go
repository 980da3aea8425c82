package web

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxViewers bounds open streams.
const maxViewers = 1000

// calm is how long a viewer is left alone after it was told something: what
// changes meanwhile comes merged. 16 PCs report some 30 times a second.
const calm = 250 * time.Millisecond

// hub tells many viewers what one subscription says.
type hub struct {
	subscribe func(context.Context) <-chan string

	mu   sync.Mutex
	all  map[*viewer]bool
	stop context.CancelFunc // of the subscription; nil without viewers
}

// viewer is one open stream.
type viewer struct {
	pending map[string]bool // what it has not been told; guarded by the hub's mutex
	wake    chan struct{}   // holds one token when there is something
	gone    chan struct{}   // closed when the lab says no more
}

func newHub(subscribe func(context.Context) <-chan string) *hub {
	return &hub{subscribe: subscribe, all: map[*viewer]bool{}}
}

func (h *hub) viewers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// join adds a viewer; false means that there are too many.
func (h *hub) join() (*viewer, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.all) >= maxViewers {
		return nil, false
	}
	v := &viewer{pending: map[string]bool{}, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	if h.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		h.stop = stop
		go h.run(ctx, h.subscribe(ctx))
	}
	h.all[v] = true
	return v, true
}

// leave removes a viewer; the last one ends the subscription.
func (h *hub) leave(v *viewer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, v)
	if len(h.all) == 0 && h.stop != nil {
		h.stop()
		h.stop = nil
	}
}

func (h *hub) run(ctx context.Context, changes <-chan string) {
	for {
		select {
		case <-ctx.Done():
			return // all viewers have left; others may have come to a new run
		case name, ok := <-changes:
			h.mu.Lock()
			if ctx.Err() != nil {
				h.mu.Unlock()
				return
			}
			if !ok {
				for v := range h.all {
					close(v.gone)
				}
				clear(h.all)
				h.stop()
				h.stop = nil
				h.mu.Unlock()
				return
			}
			for v := range h.all {
				v.pending[name] = true
				select {
				case v.wake <- struct{}{}:
				default:
				}
			}
			h.mu.Unlock()
		}
	}
}

// take empties what a viewer has not been told.
func (h *hub) take(v *viewer) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]string, 0, len(v.pending))
	for name := range v.pending {
		names = append(names, name)
	}
	clear(v.pending)
	slices.Sort(names)
	return names
}

// apiStream sends server-sent events until the client goes away.
// https://html.spec.whatwg.org/multipage/server-sent-events.html
func (s *Server) apiStream(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	if c.r.Method == http.MethodHead {
		return c.text("")
	}
	v, ok := s.hub.join()
	if !ok {
		c.w.Header().Set("Retry-After", "30")
		return refusef(http.StatusServiceUnavailable, "%d pages are watching already: close some", maxViewers)
	}
	defer s.hub.leave(v)
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.Header().Set("Cache-Control", "no-store")
	c.w.Header().Set("X-Accel-Buffering", "no") // nginx in front must not hold it back
	if !s.send(c, "retry: 2000\n\n") {
		return nil
	}
	beat := time.NewTicker(s.o.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-c.r.Context().Done():
			return nil
		case <-v.gone:
			return nil
		case <-beat.C:
			if !s.send(c, ":\n\n") {
				return nil
			}
			continue
		case <-v.wake:
		}
		var text strings.Builder
		for _, name := range s.hub.take(v) {
			if name == "" {
				text.WriteString("event: lab\ndata: lab\n\n")
				continue
			}
			// A line end in a name would begin another field.
			fmt.Fprintf(&text, "event: host\ndata: %s\n\n", strings.NewReplacer("\r", "", "\n", "").Replace(name))
		}
		if !s.send(c, text.String()) {
			return nil
		}
		select {
		case <-c.r.Context().Done():
			return nil
		case <-time.After(calm):
		}
	}
}

// send writes to a stream at once, and says whether the client still takes it.
func (s *Server) send(c *call, text string) bool {
	if _, err := c.w.Write([]byte(text)); err != nil {
		return false
	}
	return c.w.control.Flush() == nil
}
