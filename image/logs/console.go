package logs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Console is one terminal that a person may look at. Writing to it never
// waits: what a stuck serial port does not take is dropped, and said so when
// it takes lines again. It is safe for concurrent use.
type Console struct {
	// Name is the device's, without /dev/.
	Name string
	// VT is a screen that can move its cursor and show colours; all else is
	// taken for a dumb serial line.
	VT bool

	w        io.WriteCloser
	mu       sync.Mutex
	queue    [][]byte
	lost     int
	closed   bool
	wake     chan struct{} // holds one token when there is something to do
	finished chan struct{} // closed when the writer has ended
}

// queued is how many writes wait for a slow console: at 9600 bits a second
// that is about a minute of lines.
const queued = 512

// NewConsole returns a console that writes to w.
func NewConsole(name string, vt bool, w io.WriteCloser) *Console {
	c := &Console{Name: name, VT: vt, w: w, wake: make(chan struct{}, 1), finished: make(chan struct{})}
	go c.run()
	return c
}

// OpenConsoles opens every console that the kernel writes to, by
// /sys/class/tty/console/active below root ("/" in earnest). When none of them
// opens it is /dev/console, which otherwise is one of them and would show
// everything twice.
func OpenConsoles(root string) ([]*Console, error) {
	active, err := os.ReadFile(filepath.Join(root, "sys/class/tty/console/active"))
	names := strings.Fields(string(active))
	var consoles []*Console
	for _, name := range names {
		c, openErr := openConsole(root, name)
		if openErr != nil {
			err = openErr
			continue
		}
		consoles = append(consoles, c)
	}
	if len(consoles) > 0 {
		return consoles, nil
	}
	c, consoleErr := openConsole(root, "console")
	if consoleErr != nil {
		if err == nil {
			err = consoleErr
		}
		return nil, fmt.Errorf("no console can be written to: %w", err)
	}
	return []*Console{c}, nil
}

func openConsole(root, name string) (*Console, error) {
	// O_NONBLOCK: without it opening a serial line may wait for a modem's
	// carrier. With it the runtime's poller does the waiting, which Close ends.
	f, err := os.OpenFile(filepath.Join(root, "dev", name), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	digits := strings.TrimPrefix(name, "tty")
	vt := digits != name && digits != "" && strings.Trim(digits, "0123456789") == ""
	return NewConsole(name, vt, f), nil
}

// Write queues p, or drops it when too much waits already. It never fails.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case len(c.queue) >= queued:
		c.lost++
	default:
		c.queue = append(c.queue, append([]byte(nil), p...))
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return len(p), nil
}

// idle says whether nothing waits to be written.
func (c *Console) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) == 0
}

// Close waits at most that long for what is queued, then gives the console up.
func (c *Console) Close(wait time.Duration) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	close(c.wake)
	c.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-c.finished:
	case <-timer.C:
	}
	_ = c.w.Close() // nobody is left to tell
}

func (c *Console) run() {
	defer close(c.finished)
	for range c.wake {
		for {
			c.mu.Lock()
			if len(c.queue) == 0 {
				c.mu.Unlock()
				break
			}
			p := c.queue[0]
			if c.lost > 0 && len(c.queue) == 1 {
				p = fmt.Appendf(p, "(%d lines were lost here: the console was too slow)\n", c.lost)
				c.lost = 0
			}
			c.mu.Unlock()
			_, err := c.w.Write(p)
			c.mu.Lock()
			// The entry stays queued while it is written, so that idle is true
			// only when the console has taken everything.
			c.queue[0] = nil
			c.queue = c.queue[1:]
			if err != nil {
				c.queue = nil // a console that fails is no reason to stop
			}
			c.mu.Unlock()
		}
	}
}
