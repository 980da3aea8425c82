package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// sendStall is how long a server may take for the next piece of a body: it may
	// be compressing what it has.
	sendStall = 5 * time.Minute
	maxAnswer = 64 << 10
)

// Send puts a body of any length to an address, once, and returns the server's
// answer. An error of the body ends the transfer in a way that the server sees.
// What the server says when it refuses is in the error.
func (c *Client) Send(ctx context.Context, address string, body io.Reader) ([]byte, error) {
	stall := c.StallLimit
	if stall == 0 {
		stall = sendStall
	}
	patient := *c
	patient.StallLimit = stall
	d, done := patient.defaults()
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	taken := &takenBody{r: body}
	taken.timer = time.AfterFunc(stall, func() { cancel(&StallError{URL: address, Waited: stall}) })
	defer taken.timer.Stop()
	taken.limit = stall
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, address, taken)
	if err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	// A refusal comes before the first byte then, and is not lost in a reset.
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Content-Type", "application/octet-stream")
	Authorize(req, d.Token)
	res, err := d.HTTP.Do(req)
	// The transport may still read the body, or wait for it.
	if failed := taken.failed.Load(); failed != nil {
		err = *failed
	} else if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		if res != nil {
			res.Body.Close()
		}
		return nil, fmt.Errorf("send to %s: %w", address, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case res.StatusCode/100 != 2 && len(answer) > 0:
		return nil, fmt.Errorf("send to %s: the server answers %d: %s", address, res.StatusCode, strings.TrimSpace(string(answer)))
	case res.StatusCode/100 != 2:
		return nil, fmt.Errorf("send: %w", &StatusError{URL: address, Status: res.StatusCode, Token: d.Token != ""})
	case err != nil:
		return nil, fmt.Errorf("answer of %s: %w", address, err)
	}
	return answer, nil
}

// takenBody notices when nobody takes any of it, and keeps its own error, which
// explains what the transport makes of it.
type takenBody struct {
	r      io.Reader
	timer  *time.Timer
	limit  time.Duration
	failed atomic.Pointer[error]
}

func (b *takenBody) Read(p []byte) (int, error) {
	b.timer.Stop() // how long it takes to make more is not the server's
	n, err := b.r.Read(p)
	switch {
	case err == nil:
		b.timer.Reset(b.limit)
	case !errors.Is(err, io.EOF):
		b.failed.Store(&err)
	}
	return n, err
}
