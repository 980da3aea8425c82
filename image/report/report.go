// Package report posts what happens on a PC to the server, as [spec.Event]
// JSON, one object in one POST. Posting never waits and never fails: a server
// that is away must not stop a reimage. Events wait in a short queue, where
// newer progress replaces older; what decides a host's state (start, failure,
// done, up to date) is tried again and is the last to be dropped. The log lines of
// an event that is dropped, or that did not get through, go with the next one, so
// that the server's log has them in order, up to a limit.
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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/fetch"
	"reassure/image/spec"
)

// Options describe a [Client]. The zero value works.
type Options struct {
	// Host and MAC go into events that have none.
	Host string
	MAC  spec.MAC
	// Token, when set, goes with every POST as a bearer token, to the server of the
	// client's address and to no other.
	Token string
	// HTTP does the posting; nil means a client of its own.
	HTTP *http.Client
	// TLS is for HTTPS where HTTP is nil; nil is what the system trusts.
	TLS fetch.DialTLS
	// Timeout limits one POST; 0 means 5 seconds.
	Timeout time.Duration
	// Tries is how often an event that decides a state is tried, with pauses
	// from half a second that double; 0 means 5. Others are tried once.
	Tries int
	// Queue is how many events may wait; 0 means 64.
	Queue int
	// Log is told of events that did not get through; nil means silence.
	Log *slog.Logger
}

// Client posts events. It is safe for concurrent use, and a nil *Client takes
// events and drops them.
type Client struct {
	url     string
	options Options
	ctx     context.Context
	cancel  context.CancelFunc

	forbidden bool // run's: the server does not take the token

	mu      sync.Mutex
	lines   []string // of events that did not get through, for the next
	queue   []spec.Event
	busy    bool          // an event has left the queue and is being posted
	idle    chan struct{} // closed and replaced whenever the client has nothing to do
	wake    chan struct{} // holds one token when the queue has something
	dropped int
}

// New returns a client that posts to url, until Close. An empty url makes a
// client that drops everything.
func New(url string, options Options) *Client {
	if url == "" {
		return nil
	}
	if options.HTTP == nil {
		options.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Minute, DialTLSContext: options.TLS}}
	}
	if options.Token != "" {
		careful := *options.HTTP
		careful.CheckRedirect = fetch.SameServer
		options.HTTP = &careful
	}
	if options.Timeout == 0 {
		options.Timeout = 5 * time.Second
	}
	if options.Tries == 0 {
		options.Tries = 5
	}
	if options.Queue == 0 {
		options.Queue = 64
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{url: url, options: options, idle: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.run()
	return c
}

// maxLines is how many log lines an event is sent with, those included that
// others before it could not deliver: about as many kibibytes at the most.
const maxLines = 500

// join returns log lines in order, the newest if there are too many.
func join(earlier, later []string) []string {
	all := append(append([]string(nil), earlier...), later...)
	if n := len(all) - maxLines; n > 0 {
		all = append([]string{fmt.Sprintf("(%d lines left out)", n+1)}, all[n+1:]...)
	}
	return all
}

// Post queues an event and returns at once. Host, MAC, Time and Uptime are
// filled in where they are missing.
func (c *Client) Post(e spec.Event) {
	if c == nil {
		return
	}
	if e.Host == "" {
		e.Host = c.options.Host
	}
	if e.MAC == (spec.MAC{}) {
		e.MAC = c.options.MAC
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Uptime == 0 {
		e.Uptime = uptime()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Progress is only worth its latest state.
	if n := len(c.queue); n > 0 && e.Kind == spec.EventProgress {
		if last := &c.queue[n-1]; last.Kind == e.Kind && last.Phase == e.Phase && last.Text == e.Text {
			e.Log = join(last.Log, e.Log)
			*last = e
			return
		}
	}
	if len(c.queue) >= c.options.Queue {
		lines := c.makeRoom()
		e.Log = join(lines, e.Log)
	}
	c.queue = append(c.queue, e)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// makeRoom drops the oldest event that matters least. Its log lines go to the one
// after it, or, when it was the last, are returned.
func (c *Client) makeRoom() (lines []string) {
	drop := 0
	for i, e := range c.queue {
		if weight(e.Kind) < weight(c.queue[drop].Kind) {
			drop = i
		}
	}
	lines = c.queue[drop].Log
	c.queue = append(c.queue[:drop], c.queue[drop+1:]...)
	c.dropped++
	if drop < len(c.queue) {
		c.queue[drop].Log = join(lines, c.queue[drop].Log)
		return nil
	}
	return lines
}

// weight orders kinds of events by how much their loss hurts.
func weight(k spec.EventKind) int {
	switch {
	case k == spec.EventProgress:
		return 0
	case deciding(k):
		return 2
	}
	return 1
}

// deciding events are what a host's state at the server follows from.
func deciding(k spec.EventKind) bool {
	switch k {
	case spec.EventStart, spec.EventKeys, spec.EventFailure, spec.EventDone, spec.EventUpToDate, spec.EventRescue:
		return true
	}
	return false
}

// Flush waits until everything posted so far was sent or given up, or until
// ctx ends, whose error it then returns.
func (c *Client) Flush(ctx context.Context) error {
	if c == nil {
		return nil
	}
	for {
		c.mu.Lock()
		waiting, idle := len(c.queue), c.idle
		if waiting == 0 && !c.busy {
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-idle:
		case <-c.ctx.Done():
			return fmt.Errorf("events for %s: the client is closed", c.url)
		case <-ctx.Done():
			return fmt.Errorf("events for %s: %d still wait: %w", c.url, waiting+1, ctx.Err())
		}
	}
}

// Close gives up what is still queued; see [Client.Flush].
func (c *Client) Close() {
	if c != nil {
		c.cancel()
	}
}

func (c *Client) run() {
	for {
		select {
		case <-c.wake:
		case <-c.ctx.Done():
			return
		}
		for c.ctx.Err() == nil {
			c.mu.Lock()
			if len(c.queue) == 0 {
				c.busy = false
				close(c.idle)
				c.idle = make(chan struct{})
				dropped := c.dropped
				c.dropped = 0
				c.mu.Unlock()
				if dropped > 0 {
					c.options.Log.Warn("events were dropped: the server is too slow", "url", c.url, "count", dropped)
				}
				break
			}
			e := c.queue[0]
			c.queue = c.queue[1:]
			c.busy = true
			e.Log, c.lines = join(c.lines, e.Log), nil
			c.mu.Unlock()
			if c.send(e) == away {
				c.mu.Lock()
				c.lines = e.Log
				c.mu.Unlock()
			}
		}
	}
}

// errRefused is an answer that another try would not change, errToken one that
// means the token.
var (
	errRefused = errors.New("refused")
	errToken   = errors.New("the server no longer takes the token of this boot, because a newer boot of this PC has replaced it or too much time has passed")
)

// outcome is how the posting of an event ended.
type outcome int

const (
	over outcome = iota // taken, or refused so that it is no use to keep its lines
	away                // the server could not be asked
)

// send posts an event.
func (c *Client) send(e spec.Event) outcome {
	if c.forbidden {
		return over
	}
	body, err := json.Marshal(e)
	if err != nil {
		c.options.Log.Warn("an event cannot be written as JSON", "kind", e.Kind, "error", err)
		return over
	}
	tries, pause := 1, 500*time.Millisecond
	if deciding(e.Kind) {
		tries = c.options.Tries
	}
	for i := 1; ; i++ {
		if err = c.post(body); err == nil {
			return over
		}
		if errors.Is(err, errToken) {
			c.forbidden = true
			c.options.Log.Warn("no more is reported", "error", err)
			return over
		}
		refused := errors.Is(err, errRefused)
		if i >= tries || refused {
			c.options.Log.Warn("an event did not reach the server", "kind", e.Kind, "error", err)
			if refused {
				return over
			}
			return away
		}
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return away
		}
		pause *= 2
	}
}

func (c *Client) post(body []byte) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.options.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	request.Header.Set("Content-Type", "application/json")
	fetch.Authorize(request, c.options.Token)
	response, err := c.options.HTTP.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// Read to the end, so that the connection is used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	switch code := response.StatusCode; {
	case code/100 == 2:
		return nil
	case code/100 == 5 || code == http.StatusRequestTimeout || code == http.StatusTooManyRequests:
		return fmt.Errorf("%s: %s", c.url, response.Status)
	case c.options.Token != "" && (code == http.StatusUnauthorized || code == http.StatusForbidden):
		return fmt.Errorf("%w: %s: %s", errToken, c.url, response.Status)
	default:
		return fmt.Errorf("%w: %s: %s", errRefused, c.url, response.Status)
	}
}

// uptime is the seconds since the kernel started.
func uptime() float64 {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano()).Seconds()
}
