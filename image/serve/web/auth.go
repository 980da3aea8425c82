package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// KnownTokens makes the function that [Options] wants of people's tokens: name
// -> token. How long it takes tells nothing about them. Empty tokens are nobody's.
func KnownTokens(tokens map[string]string) func(token string) (who string, ok bool) {
	sums := map[string][sha256.Size]byte{}
	for who, token := range tokens {
		if token != "" {
			sums[who] = sha256.Sum256([]byte(token))
		}
	}
	return func(token string) (string, bool) {
		sum := sha256.Sum256([]byte(token))
		found := ""
		ok := false
		for who, known := range sums {
			if subtle.ConstantTimeCompare(sum[:], known[:]) == 1 {
				found, ok = who, true
			}
		}
		return found, ok
	}
}

// visitor is who asks.
type visitor struct {
	By      string // for people
	May     bool   // change things, and see differences of texts
	session *session
}

// bearer is the token of a request; "" is none.
func bearer(r *http.Request) string {
	// RFC 9110 11.1: the scheme's case does not matter.
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// visitor says who asks. A wrong token is an error, even for what all may see.
func (s *Server) visitor(c *call) (visitor, error) {
	if c.local {
		by, _ := c.r.Context().Value(peer{}).(string)
		if by == "" {
			by = "local socket"
		}
		return visitor{By: by, May: true}, nil
	}
	if c.r.Header.Get("Authorization") != "" {
		who, err := s.known(c, bearer(c.r))
		if err != nil {
			c.w.Header().Set("WWW-Authenticate", "Bearer")
			return visitor{}, err
		}
		return visitor{By: who, May: true}, nil
	}
	if cookie, err := c.r.Cookie(s.cookieName()); err == nil {
		if found := s.sessions.find(cookie.Value); found != nil && s.o.Tokens != nil {
			// A token that was taken away takes its sessions with it.
			if who, ok := s.o.Tokens(found.token); ok {
				return visitor{By: who, May: true, session: found}, nil
			}
			s.sessions.end(cookie.Value)
		}
	}
	return visitor{}, nil
}

// known says whose a token is.
func (s *Server) known(c *call, token string) (string, error) {
	if !s.guesses.left(c.from) {
		c.w.Header().Set("Retry-After", "10")
		return "", refusef(http.StatusTooManyRequests, "too many wrong tokens from %s: wait a few seconds", c.from)
	}
	if s.o.Tokens != nil {
		if who, ok := s.o.Tokens(token); ok {
			return who, nil
		}
	}
	s.guesses.take(c.from)
	return "", refusef(http.StatusUnauthorized, "nobody's token: use one that the server's configuration lists")
}

// changer says who asks, and refuses who may not change things.
func (s *Server) changer(c *call) (visitor, error) {
	v, err := s.visitor(c)
	if err != nil {
		return v, err
	}
	if !v.May {
		c.w.Header().Set("WWW-Authenticate", "Bearer")
		return v, refusef(http.StatusUnauthorized, "changes need a token (Authorization: Bearer TOKEN), a login on the page, or the server's local socket")
	}
	if v.session != nil {
		return v, s.fromHere(c)
	}
	return v, nil
}

// fromHere refuses what a browser sends for another site. SameSite alone would
// let pages of other ports of this machine through.
func (s *Server) fromHere(c *call) error {
	// Browsers send Sec-Fetch-Site to HTTPS and localhost only, but Origin with
	// every POST.
	if c.r.Header.Get("Sec-Fetch-Site") == "" && c.r.Header.Get("Origin") == "" {
		return refusef(http.StatusForbidden, "the request does not say what page it comes from: use the page's own buttons, or a token")
	}
	if err := s.origin.Check(c.r); err != nil {
		return refusef(http.StatusForbidden, "the request comes from another site's page: use this page's own buttons")
	}
	return nil
}

// cookieName is of this server alone: cookies are shared by all ports of a host.
func (s *Server) cookieName() string { return "reassure_session" }

// session is a login.
type session struct {
	token string
	ends  time.Time

	mu    sync.Mutex
	flash []string // to be shown once
}

// tell keeps what the next page shows.
func (s *session) tell(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flash = append(s.flash, lines...)
	s.flash = s.flash[max(0, len(s.flash)-100):]
}

// told takes what is to be shown.
func (s *session) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := s.flash
	s.flash = nil
	return lines
}

// sessions are the logins. They are in memory only: a restart ends them.
type sessions struct {
	last time.Duration
	now  func() time.Time
	mu   sync.Mutex
	all  map[[sha256.Size]byte]*session // by the cookie's hash
}

// maxSessions bounds memory; the one that would end first gives way.
const maxSessions = 1000

func newSessions(last time.Duration, now func() time.Time) *sessions {
	return &sessions{last: last, now: now, all: map[[sha256.Size]byte]*session{}}
}

// begin makes a session and returns what goes into its cookie.
func (s *sessions) begin(token string) (string, *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var first [sha256.Size]byte
	for key, old := range s.all {
		if !old.ends.After(now) {
			delete(s.all, key)
		} else if f, ok := s.all[first]; !ok || old.ends.Before(f.ends) {
			first = key
		}
	}
	if len(s.all) >= maxSessions {
		delete(s.all, first)
	}
	value := secret()
	made := &session{token: token, ends: now.Add(s.last)}
	s.all[sha256.Sum256([]byte(value))] = made
	return value, made
}

// find returns the session of a cookie, or nil. It looks up a hash, so that
// the time it takes tells nothing about the cookies that there are.
func (s *sessions) find(value string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.all[sha256.Sum256([]byte(value))]; found != nil && found.ends.After(s.now()) {
		return found
	}
	return nil
}

func (s *sessions) end(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, sha256.Sum256([]byte(value)))
}

// limiter gives each address a bucket of tokens that fills at a rate.
type limiter struct {
	rate, burst float64 // a second; at most
	now         func() time.Time
	mu          sync.Mutex
	buckets     map[netip.Addr]bucket
	swept       time.Time
}

type bucket struct {
	level float64
	at    time.Time
}

// maxBuckets bounds memory. When more addresses than that are active, new ones
// share one bucket.
const maxBuckets = 10000

func newLimiter(rate, burst float64, now func() time.Time) *limiter {
	return &limiter{rate: rate, burst: burst, now: now, buckets: map[netip.Addr]bucket{}}
}

// left says whether an address has something left.
func (l *limiter) left(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, level := l.level(a)
	return level >= 1
}

// take takes one token of an address and says whether there was one.
func (l *limiter) take(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, level := l.level(a)
	if level < 1 {
		return false
	}
	l.buckets[key] = bucket{level - 1, l.now()}
	return true
}

func (l *limiter) level(a netip.Addr) (netip.Addr, float64) {
	key := a
	if a.Is6() {
		// Whoever has one address of a /64 has them all.
		p, _ := a.Prefix(64)
		key = p.Addr()
	}
	now := l.now()
	b, ok := l.buckets[key]
	if !ok && len(l.buckets) >= maxBuckets && now.Sub(l.swept) >= time.Second {
		// Not for each request: a sweep takes as long as there are buckets.
		l.swept = now
		for k, b := range l.buckets {
			if b.level+now.Sub(b.at).Seconds()*l.rate >= l.burst {
				delete(l.buckets, k)
			}
		}
	}
	if !ok && len(l.buckets) >= maxBuckets {
		key = netip.Addr{}
		b, ok = l.buckets[key]
	}
	if !ok {
		return key, l.burst
	}
	return key, min(l.burst, b.level+now.Sub(b.at).Seconds()*l.rate)
}
