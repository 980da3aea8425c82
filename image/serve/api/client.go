package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultSocket is where the boot server listens for those on its own machine.
const DefaultSocket = "/run/reassure/reassure.sock"

// Limits on what a client takes and waits for.
const (
	maxAnswer     = 64 << 20
	answerTimeout = time.Minute // a roll-out writes a manifest for every host
	verifyTimeout = 65 * time.Minute
	maxNotice     = 64 << 10
)

// Client speaks to a boot server. Its methods may be called at the same time.
// The error of a refusal is an [*Error], and also [ErrNotFound] (404) or
// [ErrForbidden] (401, 403) to errors.Is.
type Client struct {
	address string // as a person wrote it
	token   string
	http    *http.Client

	mu   sync.Mutex
	base *url.URL // of the site's path, ending in a slash; nil until it is known
	root *url.URL
}

// NewClient returns a client of the boot server at an address: the path of its local
// socket, or its URL with the path of site.url; without a path, the server is
// asked for it. Token may be empty; then the server answers questions only,
// unless it is asked through the socket.
func NewClient(address, token string) (*Client, error) {
	c := &Client{address: address, token: token, http: &http.Client{
		// A redirect would carry the token elsewhere, or make a GET of a POST.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if strings.ContainsAny(token, " \t\r\n") {
		return nil, errors.New("the token has a space or a line end in it: it is one word")
	}
	if scheme, _, isURL := strings.Cut(address, "://"); isURL {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.User != nil {
			return nil, fmt.Errorf("%q is not the address of a boot server: write one such as http://172.30.0.5/reassure, or the path of its socket (scheme %s)", address, scheme)
		}
		c.root = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}
		if strings.Trim(u.Path, "/") != "" {
			c.base = c.root.JoinPath(u.Path, "/")
		}
		return c, nil
	}
	if address == "" {
		return nil, errors.New("name the boot server: its socket, or its http address")
	}
	c.root = &url.URL{Scheme: "http", Host: "localhost", Path: "/"}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", address)
		},
	}
	return c, nil
}

// Address is what the client was made with.
func (c *Client) Address() string { return c.address }

// Hosts returns all hosts, in the inventory's order.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return call[[]Host](ctx, c, http.MethodGet, "hosts", nil)
}

// Host returns everything about one host.
func (c *Client) Host(ctx context.Context, name string) (*HostDetail, error) {
	return call[*HostDetail](ctx, c, http.MethodGet, "hosts/"+url.PathEscape(name), nil)
}

// Why explains what a host would be told now.
func (c *Client) Why(ctx context.Context, name string) (*Why, error) {
	return call[*Why](ctx, c, http.MethodGet, "hosts/"+url.PathEscape(name)+"/why", nil)
}

// Log returns the log of an attempt of a host; of the newest when attempt is empty.
func (c *Client) Log(ctx context.Context, name, attempt string) (string, error) {
	path := "hosts/" + url.PathEscape(name) + "/log"
	if attempt != "" {
		path += "?attempt=" + url.QueryEscape(attempt)
	}
	return c.text(ctx, path)
}

// KnownHosts returns the lab's ssh_known_hosts.
func (c *Client) KnownHosts(ctx context.Context) (string, error) { return c.text(ctx, "known-hosts") }

// Rollouts returns the roll-outs, the newest first.
func (c *Client) Rollouts(ctx context.Context) ([]Rollout, error) {
	return call[[]Rollout](ctx, c, http.MethodGet, "rollouts", nil)
}

// Unknown returns the cards that asked and are no host's.
func (c *Client) Unknown(ctx context.Context) ([]Unknown, error) {
	return call[[]Unknown](ctx, c, http.MethodGet, "unknown", nil)
}

// Coverage returns what the image lacks for the PCs' devices.
func (c *Client) Coverage(ctx context.Context) (*Coverage, error) {
	return call[*Coverage](ctx, c, http.MethodGet, "coverage", nil)
}

// Rollout has hosts reimaged.
func (c *Client) Rollout(ctx context.Context, r RolloutRequest) (*Rollout, error) {
	return call[*Rollout](ctx, c, http.MethodPost, "rollouts", r)
}

// StopRollout lets no more hosts of a roll-out begin.
func (c *Client) StopRollout(ctx context.Context, id, why string) (*Rollout, error) {
	return call[*Rollout](ctx, c, http.MethodPost, "rollouts/"+url.PathEscape(id)+"/stop", StopRequest{Why: why})
}

// Hold has hosts boot their own disks until they are released.
func (c *Client) Hold(ctx context.Context, t Targets) ([]Outcome, error) {
	return call[[]Outcome](ctx, c, http.MethodPost, "hold", t)
}

// Accept says which disks are their hosts', whatever is on them.
func (c *Client) Accept(ctx context.Context, r AcceptRequest) ([]Outcome, error) {
	return call[[]Outcome](ctx, c, http.MethodPost, "accept", r)
}

// Approve says which plans are right.
func (c *Client) Approve(ctx context.Context, r ApproveRequest) ([]Outcome, error) {
	return call[[]Outcome](ctx, c, http.MethodPost, "approve", r)
}

// Release lifts what keeps hosts from being reimaged.
func (c *Client) Release(ctx context.Context, t Targets) ([]Outcome, error) {
	return call[[]Outcome](ctx, c, http.MethodPost, "release", t)
}

// Errand asks hosts for something besides a reimage.
func (c *Client) Errand(ctx context.Context, r ErrandRequest) ([]Outcome, error) {
	return call[[]Outcome](ctx, c, http.MethodPost, "errands", r)
}

// VerifyRunning has a PC that runs its own system compared with what was installed. It
// takes as long as the PC needs to read its disk.
func (c *Client) VerifyRunning(ctx context.Context, host string) (Inspected, error) {
	return await[Inspected](ctx, c, verifyTimeout, http.MethodPost, "hosts/"+url.PathEscape(host)+"/verify", nil)
}

// Reload has the server read the site's files again.
func (c *Client) Reload(ctx context.Context) (*Reload, error) {
	return call[*Reload](ctx, c, http.MethodPost, "reload", nil)
}

// Stream calls on for every host that changes, with its name, and with "" when
// anything else does. The first call is on(""), as soon as the server listens:
// who asks for the state then misses nothing. Stream returns when on or the
// connection fails, or ctx ends.
func (c *Client) Stream(ctx context.Context, on func(host string) error) error {
	answer, err := c.do(ctx, http.MethodGet, "stream", nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if kind, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type")); err != nil || kind != "text/event-stream" {
		return c.stranger(answer)
	}
	if err := on(""); err != nil {
		return err
	}
	// The format is that of the HTML standard, 9.2.6: fields, an empty line.
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, maxNotice)
	var event, data string
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" {
			switch {
			case event == "host" && data != "":
				err = on(data)
			case event == "lab":
				err = on("")
			}
			if err != nil {
				return err
			}
			event, data = "", ""
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			event = value
		case "data":
			data = value
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := lines.Err(); err != nil {
		return c.broken(err)
	}
	return c.broken(io.ErrUnexpectedEOF)
}

// call asks for path and reads the JSON that comes.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	return await[T](ctx, c, answerTimeout, method, path, body)
}

// await is call with another limit of time.
func await[T any](ctx context.Context, c *Client, limit time.Duration, method, path string, body any) (T, error) {
	var into T
	text, err := c.read(ctx, limit, method, path, body)
	if err != nil {
		return into, err
	}
	if err := json.Unmarshal(text, &into); err != nil {
		return into, fmt.Errorf("%s answers %s with something else than was expected: %w: is it of the same version as this reassure?", c.address, path, err)
	}
	return into, nil
}

func (c *Client) text(ctx context.Context, path string) (string, error) {
	text, err := c.read(ctx, answerTimeout, http.MethodGet, path, nil)
	return string(text), err
}

func (c *Client) read(ctx context.Context, limit time.Duration, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := c.do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return nil, c.broken(err)
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("%s answers %s with more than %d MiB: is it a boot server?", c.address, path, maxAnswer>>20)
	}
	return text, nil
}

// do asks for path, below the interface's own. The answer is a success.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	base, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	var text []byte
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, base.String()+Path+"/"+path, bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.address, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, c.broken(err)
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	defer answer.Body.Close()
	return nil, c.refusal(answer)
}

// find returns the base of all addresses. Through a socket the site's path is
// not known: the server's root leads there.
func (c *Client) find(ctx context.Context) (*url.URL, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base != nil {
		return c.base, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.root.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.address, err)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, c.broken(err)
	}
	answer.Body.Close()
	c.base = c.root
	if to, err := answer.Location(); err == nil && to.Host == c.root.Host {
		c.base = c.root.JoinPath(to.Path, "/")
	}
	return c.base, nil
}

// refusal is an [Error] that errors.Is knows by its status.
type refusal struct {
	said *Error
	kind error
}

func (r refusal) Error() string   { return r.said.Text }
func (r refusal) Unwrap() []error { return []error{r.said, r.kind} }

func (c *Client) refusal(answer *http.Response) error {
	var e Error
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxNotice))
	if err != nil || json.Unmarshal(text, &e) != nil || e.Text == "" {
		return c.stranger(answer)
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return refusal{&e, ErrNotFound}
	case http.StatusUnauthorized, http.StatusForbidden:
		return refusal{&e, ErrForbidden}
	}
	return &e
}

// stranger is an answer that no boot server gives.
func (c *Client) stranger(answer *http.Response) error {
	return fmt.Errorf("%s answers %q as no boot server does: is it one, and is the path that of site.url?", c.address, answer.Status)
}

// broken words that there was no answer.
func (c *Client) broken(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // it names http://localhost, which nobody wrote
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer: %w", c.address, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: become root or a member of the socket's group, or name the server's http address with --server", c.address, syscall.EACCES)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nobody answers at %s: is reassure serve running? name its socket or http address with --server", c.address)
	}
	return fmt.Errorf("%s: %w", c.address, err)
}
