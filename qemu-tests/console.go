package qemutests

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"sync"
)

// Console is what a PC writes to its serial port. It is an io.Writer for the
// emulator; tests wait for text in it. Carriage returns are dropped, so that
// "(?m)^...$" matches lines.
type Console struct {
	// Log gets every byte as it comes; nil drops it.
	Log io.Writer

	mu      sync.Mutex
	text    []byte
	read    int           // Expect has handed out everything before this
	changed chan struct{} // closed when text grows or the console ends
	ended   error         // why nothing more will come
}

// reach is how many bytes before new text an expression can begin to match.
const reach = 4096

func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	for _, b := range p {
		if b != '\r' {
			c.text = append(c.text, b)
		}
	}
	c.wake()
	c.mu.Unlock()
	if c.Log != nil {
		return c.Log.Write(p)
	}
	return len(p), nil
}

// end says that nothing more will come, and why.
func (c *Console) end(why error) {
	c.mu.Lock()
	c.ended = why
	c.wake()
	c.mu.Unlock()
}

func (c *Console) wake() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Expect waits until text that no Expect has gone past matches want, goes past
// it and returns the match and its groups. When an expression of never matches
// first, or the PC is switched off, that is the error; its text says so.
func (c *Console) Expect(ctx context.Context, want *regexp.Regexp, never ...*regexp.Regexp) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for from := c.read; ; {
		at := want.FindSubmatchIndex(c.text[from:])
		for _, bad := range never {
			if b := bad.FindIndex(c.text[from:]); b != nil && (at == nil || b[0] < at[0]) {
				return nil, fmt.Errorf("waiting for %q, the console said %q", want, c.text[from+b[0]:from+b[1]])
			}
		}
		if at != nil {
			var groups []string
			for i := 0; i < len(at); i += 2 {
				group := ""
				if at[i] >= 0 {
					group = string(c.text[from+at[i] : from+at[i+1]])
				}
				groups = append(groups, group)
			}
			c.read = from + at[1]
			return groups, nil
		}
		if c.ended != nil {
			return nil, fmt.Errorf("waiting for %q on the console: %w", want, c.ended)
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		// Whatever came until now has been looked at. More than reach may come
		// before this is woken, on a busy machine.
		from = max(from, len(c.text)-reach)
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for %q on the console: %w", want, context.Cause(ctx))
		}
	}
}

// Text returns everything that was written so far.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}
