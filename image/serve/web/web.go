// Package web is the HTTP side of the boot server. Below the path of the site's
// URL (here /reassure) it serves
//
//	/reassure/                      the web page: the lab at a glance
//	/reassure/hosts/NAME            a host's page; /log?attempt=ID below it
//	/reassure/api/v1/...            the interface of [reassure/image/serve/api]
//	/reassure/manifests/01-MAC.json a PC's manifest, and its signature in .minisig
//	/reassure/events/HOST           where a PC reports [spec.Event], by POST
//	/reassure/captures/HOST         where a PC that is captured sends its system, by PUT
//	/reassure/boot/...              the tree that PCs boot from
//	/reassure/wads/...              the wads
//	/healthz, /metrics              for monitoring
//
// Who may do what:
//
//   - Whoever reaches the port may look (GET), but sees no differences of texts.
//   - What changes something needs "Authorization: Bearer TOKEN", or the session
//     that the page's login form makes of that token, or the local socket. A
//     session is a cookie (HttpOnly, SameSite=Strict), and with it a request must
//     say that it comes from this page (Sec-Fetch-Site, or Origin), so that no
//     other site can have a browser send it.
//   - A PC's manifest and its events need that PC's own token, which [Lab] judges.
//
// Each address may guess tokens only slowly. Bodies are limited to 1 MiB for
// events, by the disk for captures, and to 64 KiB otherwise, and a connection on which nothing moves is given up.
package web

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// Lab is the lab that is served.
type Lab interface {
	// Hosts are all hosts, in the order of the inventory.
	Hosts() []api.Host
	// Host is everything about one; [api.ErrNotFound] if there is none.
	Host(name string) (api.HostDetail, error)
	// Why explains what it is told; private adds differences of texts, which
	// may hold secrets.
	Why(name string, private bool) (api.Why, error)
	// Log is the log of an attempt; without one, of the newest.
	Log(name, attempt string) (string, error)

	// Rollouts are the roll-outs that are remembered, newest first.
	Rollouts() []api.Rollout
	Rollout(ctx context.Context, r api.RolloutRequest, by string) (api.Rollout, error)
	StopRollout(ctx context.Context, id, why, by string) (api.Rollout, error)
	Hold(ctx context.Context, t api.Targets, by string) ([]api.Outcome, error)
	Release(ctx context.Context, t api.Targets, by string) ([]api.Outcome, error)
	// Approve says which plans are right.
	Approve(ctx context.Context, r api.ApproveRequest, by string) ([]api.Outcome, error)
	// AcceptDisks says which disks are their hosts'.
	AcceptDisks(ctx context.Context, r api.AcceptRequest, by string) ([]api.Outcome, error)
	// Errand asks hosts for something besides a reimage.
	Errand(ctx context.Context, r api.ErrandRequest, by string) ([]api.Outcome, error)
	// VerifyRunning compares a PC's running system with what was installed.
	VerifyRunning(ctx context.Context, host, by string) (api.Inspected, error)
	// Reload reads the site's files again.
	Reload(ctx context.Context, by string) (api.Reload, error)

	// Unknown are the cards that asked and are no host's.
	Unknown() []api.Unknown
	// Coverage is what the image lacks for the hosts' devices. [api.ErrNotFound]
	// when there is no image that says what it has.
	Coverage() (api.Coverage, error)
	// KnownHosts is the lab's ssh_known_hosts.
	KnownHosts() string
	// Subscribe names hosts as they change, until ctx ends; "" is the lab as a
	// whole. A slow reader may get changes merged, but misses none.
	Subscribe(ctx context.Context) <-chan string

	// Manifest is what a PC asks for, and its signature. [api.ErrNotFound],
	// [api.ErrForbidden].
	Manifest(mac spec.MAC, token string, from netip.Addr) (text, signature []byte, err error)
	// Event takes what a PC reports. host is a name, or 01-MAC.
	Event(token string, from netip.Addr, host string, e spec.Event) error
	// Capture takes the system of a PC as a tarball and makes a wad of it.
	Capture(ctx context.Context, token string, from netip.Addr, host string, tarball io.Reader) (api.Captured, error)
}

// Options describe a [Server]. The zero value works: it serves the lab at the
// root, has nothing to boot from, and lets nobody but the local socket change it.
type Options struct {
	// Base is the path of the site's URL: "/reassure".
	Base string
	// Title is the lab's name on the page; empty means "Lab".
	Title string
	// Version is our own, for the page and the metrics.
	Version string
	// Boot serves the tree that PCs boot from, and Wads DIGEST12/FILE; both see
	// paths without what leads to them. nil serves nothing.
	Boot, Wads http.Handler
	// Tokens says whose a token is; see [KnownTokens]. nil knows none.
	Tokens func(token string) (who string, ok bool)
	// Healthy says what is wrong with the server, for /healthz; nil is nothing.
	Healthy func() error
	// Counters are figures of other parts of the server, for /metrics.
	Counters []Counter
	// Session is how long a login lasts; 0 means twelve hours.
	Session time.Duration
	// Heartbeat is how often a quiet stream says that it lives; 0 means 15 s.
	Heartbeat time.Duration
	// Now tells the time; nil means time.Now.
	Now func() time.Time
	// Log is told of changes, refusals and troubles; nil means silence.
	Log *slog.Logger
}

// Server serves a lab. It is safe for concurrent use.
type Server struct {
	lab      Lab
	o        Options
	pages    *template.Template
	assets   map[string]asset
	metrics  *metrics
	hub      *hub
	sessions *sessions
	guesses  *limiter // of people's tokens
	agents   *limiter // of PCs' requests
	origin   *http.CrossOriginProtection
}

// New returns a server of a lab.
func New(lab Lab, o Options) *Server {
	o.Base = strings.TrimRight(o.Base, "/")
	if o.Base != "" && !strings.HasPrefix(o.Base, "/") {
		o.Base = "/" + o.Base
	}
	if o.Title == "" {
		o.Title = "Lab"
	}
	if o.Session == 0 {
		o.Session = 12 * time.Hour
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		lab: lab, o: o,
		hub:      newHub(lab.Subscribe),
		sessions: newSessions(o.Session, o.Now),
		// A person mistypes a few times; what is guessed has 2^128 values.
		guesses: newLimiter(0.5, 10, o.Now),
		// A PC sends a few requests a second; a virtual lab may share one address.
		agents: newLimiter(100, 500, o.Now),
		origin: http.NewCrossOriginProtection(),
	}
	s.metrics = newMetrics(s)
	s.pages, s.assets = loadPages(o.Base)
	return s
}

// Handler is what the network sees.
func (s *Server) Handler() http.Handler { return s.routes(false) }

// BootHandler is what the network sees by plain HTTP where all else goes by HTTPS: what
// everybody may have.
func (s *Server) BootHandler() http.Handler {
	mux, all := http.NewServeMux(), s.routes(false)
	for _, path := range []string{"/boot/", "/wads/"} {
		mux.Handle("GET "+s.o.Base+path, all)
	}
	mux.Handle("GET /healthz", all)
	mux.Handle("/", s.serve("page", false, s.refuseText, func(c *call) error {
		return refusef(http.StatusForbidden, "this goes by https only: see the address in the site's file")
	}))
	return mux
}

// SocketHandler is what the local socket sees: whoever may open the socket has
// every right. Serve it by [Server.Serve], so that it knows who that is.
func (s *Server) SocketHandler() http.Handler { return s.routes(true) }

// Time limits of connections.
const (
	headerTime = 10 * time.Second // to send a request's head
	bodyTime   = 30 * time.Second // and its body
	// stallTime is how long a client may take for the next piece of an answer.
	stallTime = 2 * time.Minute
	idleTime  = 2 * time.Minute // between requests
	// lingerTime is how long the rest of a refused upload is taken.
	lingerTime = 5 * time.Second
	closeTime  = 5 * time.Second // for answers under way when the server ends
)

// HTTP returns a server with the time limits that this one needs. Requests end
// with ctx.
func (s *Server) HTTP(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
}

// Serve answers on l until ctx ends, lets what is under way finish for a few
// seconds, and closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := s.HTTP(ctx, h)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("http on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		server.Close() // a wad under way is asked for again, from where it was
	}
	<-failed
	return nil
}

// routes says who answers what.
func (s *Server) routes(local bool) http.Handler {
	mux := http.NewServeMux()
	b := s.o.Base
	add := func(pattern, part string, refuse func(*call, error), h handler) {
		// A pattern begins with methods: "GET,POST /path".
		methods, path, _ := strings.Cut(pattern, " ")
		for method := range strings.SplitSeq(methods, ",") {
			mux.Handle(method+" "+path, s.serve(part, local, refuse, h))
		}
		mux.Handle(path, s.serve(part, local, refuse, func(c *call) error {
			allowed := strings.ReplaceAll(methods, ",", ", ")
			c.w.Header().Set("Allow", allowed)
			return refusef(http.StatusMethodNotAllowed, "%s is not for %s: use %s", path, c.r.Method, allowed)
		}))
	}

	a := b + "/" + api.Path
	add("GET "+a+"/hosts", "api", s.refuseAPI, s.apiHosts)
	add("GET "+a+"/hosts/{host}", "api", s.refuseAPI, s.apiHost)
	add("GET "+a+"/hosts/{host}/why", "api", s.refuseAPI, s.apiWhy)
	add("GET "+a+"/hosts/{host}/log", "api", s.refuseAPI, s.apiLog)
	add("GET,POST "+a+"/rollouts", "api", s.refuseAPI, s.apiRollouts)
	add("POST "+a+"/rollouts/{id}/stop", "api", s.refuseAPI, s.apiStop)
	add("GET "+a+"/unknown", "api", s.refuseAPI, s.apiUnknown)
	add("GET "+a+"/coverage", "api", s.refuseAPI, s.apiCoverage)
	add("GET "+a+"/known-hosts", "api", s.refuseAPI, s.apiKnownHosts)
	add("GET "+a+"/stream", "stream", s.refuseAPI, s.apiStream)
	add("POST "+a+"/hosts/{host}/verify", "api", s.refuseAPI, s.apiVerify)
	add("POST "+a+"/errands", "api", s.refuseAPI, s.apiErrand)
	add("POST "+a+"/approve", "api", s.refuseAPI, s.apiApprove)
	add("POST "+a+"/accept", "api", s.refuseAPI, s.apiAccept)
	add("POST "+a+"/hold", "api", s.refuseAPI, s.apiHold)
	add("POST "+a+"/release", "api", s.refuseAPI, s.apiRelease)
	add("POST "+a+"/reload", "api", s.refuseAPI, s.apiReload)
	mux.Handle(b+"/api/", s.serve("api", local, s.refuseAPI, func(c *call) error {
		return refusef(http.StatusNotFound, "there is no %s: the interface is below %s", c.r.URL.Path, a)
	}))

	add("GET "+b+"/manifests/{file}", "manifests", s.refuseText, s.manifest)
	add("POST "+b+"/events/{host}", "events", s.refuseAPI, s.event)
	add("PUT "+b+"/captures/{host}", "captures", s.refuseUpload, s.capture)
	add("GET "+b+"/boot/{path...}", "boot", s.refuseText, s.tree("boot", s.o.Boot))
	add("GET "+b+"/wads/{path...}", "wads", s.refuseText, s.tree("wads", s.o.Wads))

	add("GET "+b+"/{$}", "page", s.refusePage, s.pageLab)
	add("GET "+b+"/hosts/{host}", "page", s.refusePage, s.pageHost)
	add("GET "+b+"/hosts/{host}/log", "page", s.refusePage, s.pageLog)
	add("GET,POST "+b+"/login", "page", s.refusePage, s.pageLogin)
	add("POST "+b+"/logout", "page", s.refusePage, s.pageLogout)
	add("GET,POST "+b+"/confirm", "page", s.refusePage, s.pageConfirm)
	add("POST "+b+"/do/{action}", "page", s.refusePage, s.pageDo)
	add("GET "+b+"/assets/{file}", "page", s.refuseText, s.asset)
	mux.Handle("/", s.serve("page", local, s.refusePage, func(c *call) error {
		if b != "" && (c.r.URL.Path == "/" || c.r.URL.Path == b) {
			http.Redirect(c.w, c.r, b+"/", http.StatusFound)
			return nil
		}
		return refusef(http.StatusNotFound, "there is no page %s", c.r.URL.Path)
	}))

	add("GET /healthz", "monitoring", s.refuseText, func(c *call) error {
		if s.o.Healthy != nil {
			if err := s.o.Healthy(); err != nil {
				return refusal{http.StatusServiceUnavailable, err}
			}
		}
		return c.text("ok\n")
	})
	add("GET /metrics", "monitoring", s.refuseText, func(c *call) error {
		s.metrics.handler.ServeHTTP(c.w, c.r)
		return nil
	})
	return mux
}

// handler answers a request, or returns why not; then it has written nothing.
type handler func(c *call) error

// call is one request.
type call struct {
	w     *writer
	r     *http.Request
	from  netip.Addr
	local bool // by the local socket
}

// serve makes an [http.Handler] of h: counted, with limits, and with one place
// that says no.
func (s *Server) serve(part string, local bool, refuse func(*call, error), h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{w: s.metrics.writer(part, w), r: r, from: address(r), local: local}
		header := c.w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Content-Security-Policy", "sandbox; default-src 'none'")
		if err := h(c); err != nil {
			s.refused(c, part, err)
			refuse(c, err)
		}
		s.metrics.requests.WithLabelValues(part, strconv.Itoa(c.w.code())).Inc()
		s.o.Log.Debug("http", "method", r.Method, "path", r.URL.Path, "from", c.from, "status", c.w.code())
	})
}

// refused counts and logs a refusal.
func (s *Server) refused(c *call, part string, err error) {
	status := statusOf(err)
	s.metrics.refused.WithLabelValues(part, strconv.Itoa(status)).Inc()
	level := slog.LevelDebug // a PC asks for many files that may be absent
	switch {
	case status >= 500:
		level = slog.LevelError
	case status != http.StatusNotFound:
		level = slog.LevelWarn
	}
	s.o.Log.Log(c.r.Context(), level, "refused", "method", c.r.Method, "path", c.r.URL.Path, "from", c.from, "status", status, "error", err)
}

// refusal is an error with the status that says it.
type refusal struct {
	status int
	err    error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refusef(status int, format string, args ...any) error {
	return refusal{status, fmt.Errorf(format, args...)}
}

// statusOf is the HTTP status of an error.
func statusOf(err error) int {
	var large *http.MaxBytesError
	if r, ok := errors.AsType[refusal](err); ok {
		return r.status
	}
	switch {
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, api.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, api.ErrForbidden):
		return http.StatusForbidden
	case errors.Is(err, api.ErrInvalid):
		return http.StatusUnprocessableEntity
	}
	return http.StatusInternalServerError
}

func (s *Server) refuseText(c *call, err error) {
	c.w.Header().Set("Cache-Control", "no-store")
	http.Error(c.w, err.Error(), statusOf(err))
}

// refuseUpload refuses, and takes for a while what the client still sends: a
// connection that is closed before is reset, and the client may never read why.
func (s *Server) refuseUpload(c *call, err error) {
	s.refuseText(c, err)
	_ = c.w.control.Flush()
	_ = c.w.control.SetReadDeadline(time.Now().Add(lingerTime)) // only tests have none
	_, _ = io.Copy(io.Discard, c.r.Body)
}

// text answers with plain text.
func (c *call) text(text string) error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("Cache-Control", "no-store")
	_, _ = c.w.Write([]byte(text))
	return nil
}

// tree serves files by h, which sees the path below the name alone. What it
// serves is shown by browsers, if at all, as nobody's: a file in the TFTP root
// must not act for whoever is logged in.
func (s *Server) tree(name string, h http.Handler) handler {
	if h == nil {
		return func(*call) error {
			return refusef(http.StatusNotFound, "%s is not served here", name)
		}
	}
	h = http.StripPrefix(s.o.Base+"/"+name, h)
	return func(c *call) error {
		h.ServeHTTP(c.w, c.r)
		return nil
	}
}

// address is where a request comes from; the zero value is the local socket.
// What a proxy claims is not believed.
func address(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

// peer is the key of the user who opened a connection of the local socket.
type peer struct{}

// withPeer notes who is at the other end of a local socket.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var credentials *unix.Ucred
	if raw.Control(func(fd uintptr) {
		credentials, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}) != nil || err != nil {
		return ctx
	}
	id := strconv.FormatUint(uint64(credentials.Uid), 10)
	name := "user " + id
	if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	return context.WithValue(ctx, peer{}, name)
}

// secret returns a text that nobody can guess.
func secret() string { return rand.Text() + rand.Text() }
