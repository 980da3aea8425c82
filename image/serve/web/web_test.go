package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/fetch"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

// site is a lab served on loopback.
type site struct {
	t      *testing.T
	lab    *fake
	server *Server
	url    string // with /reassure
	root   string
	log    *bytes.Buffer // read it when the server is quiet
}

func newSite(t *testing.T, change func(*Options)) *site {
	t.Helper()
	s := &site{t: t, lab: newFake(24), log: new(bytes.Buffer)}
	boot := fstest.MapFS{"pxelinux.0": {Data: []byte("loader")}, "evil.html": {Data: []byte("<script>alert(1)</script>")}}
	o := Options{
		Base: "/reassure", Title: "Lab 1", Version: "1.0", Boot: http.FileServerFS(boot),
		Tokens: KnownTokens(map[string]string{"ada": "secret", "nobody": ""}),
		Log:    slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if change != nil {
		change(&o)
	}
	s.server = New(s.lab, o)
	h := httptest.NewServer(s.server.Handler())
	t.Cleanup(h.Close)
	s.root, s.url = h.URL, h.URL+"/reassure"
	return s
}

// ask sends a request and returns the answer and its text.
func (s *site) ask(client *http.Client, method, path, body string, header ...string) (*http.Response, string) {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer, string(text)
}

// stay is a client that follows no redirect.
func stay(jar http.CookieJar) *http.Client {
	return &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

const formType = "application/x-www-form-urlencoded"

// login returns a client with a session.
func (s *site) login() *http.Client {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	c := stay(jar)
	if a, text := s.ask(c, "POST", "/login", "token=secret", "Content-Type", formType, "Origin", s.root); a.StatusCode != http.StatusSeeOther {
		s.t.Fatalf("login: %s %s", a.Status, text)
	}
	return c
}

// changes are all requests that change something: method, path, JSON or form.
var changes = []struct{ path, body, kind string }{
	{"/api/v1/rollouts", `{"targets":["exp01"]}`, "application/json"},
	{"/api/v1/rollouts/r12/stop", `{"why":"enough"}`, "application/json"},
	{"/api/v1/approve", `{"plans":{"exp01":"sha256:` + strings.Repeat("1", 64) + `"}}`, "application/json"},
	{"/api/v1/accept", `{"disks":{"exp01":{"serial":"S1"}}}`, "application/json"},
	{"/api/v1/hold", `{"targets":["exp01"],"why":"fan"}`, "application/json"},
	{"/api/v1/release", `{"targets":["exp01"]}`, "application/json"},
	{"/api/v1/errands", `{"kind":"verify","targets":["exp01"]}`, "application/json"},
	{"/api/v1/reload", "", ""},
	{"/do/rollout", "host=exp01&sure=yes", formType},
	{"/do/reimage", "host=exp01&sure=yes", formType},
	{"/do/stop", "id=r12", formType},
	{"/do/hold", "host=exp01&why=fan", formType},
	{"/do/release", "host=exp01", formType},
	{"/do/accept", "host=exp01&seen=" + url.QueryEscape(`{"serial":"S1"}`) + "&sure=yes", formType},
	{"/do/approve", "host=exp01&seen=sha256:" + strings.Repeat("1", 64) + "&sure=yes", formType},
	{"/do/reload", "", formType},
}

func TestWhoMayChange(t *testing.T) {
	type who struct {
		name   string
		client func(s *site) *http.Client
		header func(s *site) []string
		socket bool
		want   int // 0 is success
		by     string
	}
	anyone := func(*site) *http.Client { return stay(nil) }
	logged := func(s *site) *http.Client { return s.login() }
	plain := func(header ...string) func(*site) []string { return func(*site) []string { return header } }
	for _, w := range []who{
		{name: "anyone", client: anyone, header: plain(), want: 401},
		{name: "anyone with a page of ours open", client: anyone, header: func(s *site) []string { return []string{"Origin", s.root} }, want: 401},
		{name: "a wrong token", client: anyone, header: plain("Authorization", "Bearer guess"), want: 401},
		{name: "an empty token", client: anyone, header: plain("Authorization", "Bearer "), want: 401},
		{name: "a PC's token", client: anyone, header: plain("Authorization", "Bearer "+manifestToken), want: 401},
		{name: "a token as a password", client: anyone, header: plain("Authorization", "Basic c2VjcmV0"), want: 401},
		{name: "a token", client: anyone, header: plain("Authorization", "Bearer secret"), by: "ada"},
		{name: "a token, scheme in lower case", client: anyone, header: plain("Authorization", "bearer secret"), by: "ada"},
		{name: "a made-up cookie", client: anyone, header: func(s *site) []string { return []string{"Cookie", "reassure_session=x", "Origin", s.root} }, want: 401},
		{name: "a session", client: logged, header: func(s *site) []string { return []string{"Origin", s.root} }, by: "ada"},
		{name: "a session, by fetch metadata", client: logged, header: plain("Sec-Fetch-Site", "same-origin"), by: "ada"},
		{name: "a session, from another site's page", client: logged, header: plain("Origin", "http://evil.example"), want: 403},
		{name: "a session, from another port of this machine", client: logged, header: plain("Origin", "http://127.0.0.1:1"), want: 403},
		{name: "a session, cross-site by fetch metadata", client: logged, header: plain("Sec-Fetch-Site", "cross-site"), want: 403},
		{name: "a session, same-site by fetch metadata", client: logged, header: plain("Sec-Fetch-Site", "same-site"), want: 403},
		{name: "a session, from a sandboxed page", client: logged, header: plain("Origin", "null"), want: 403},
		{name: "a session, from who knows where", client: logged, header: plain(), want: 403},
		{name: "the local socket", client: anyone, header: plain(), socket: true, by: "local socket"},
	} {
		t.Run(w.name, func(t *testing.T) {
			s := newSite(t, nil)
			client, header := w.client(s), w.header(s)
			if w.socket {
				h := httptest.NewServer(s.server.SocketHandler())
				t.Cleanup(h.Close)
				s.url = h.URL + "/reassure"
			}
			for i, c := range changes {
				if w.want != 0 && i%4 == 0 {
					s.server.guesses = newLimiter(1, 10, time.Now) // another table tests it
				}
				before := len(s.lab.asked())
				h := slices.Clone(header)
				if c.kind != "" {
					h = append(h, "Content-Type", c.kind)
				}
				a, text := s.ask(client, "POST", c.path, c.body, h...)
				asked := s.lab.asked()[before:]
				if w.want != 0 {
					if a.StatusCode != w.want || len(asked) > 0 {
						t.Errorf("%s: %s, and the lab was asked %q; want %d and nothing", c.path, a.Status, asked, w.want)
					}
					continue
				}
				if a.StatusCode >= 400 || len(asked) != 1 || !strings.HasSuffix(asked[0], "by "+w.by) {
					t.Errorf("%s: %s %s, and the lab was asked %q; want one change by %s", c.path, a.Status, text, asked, w.by)
				}
			}
		})
	}
}

// Reading is for all, but for differences of texts.
func TestWhoMaySee(t *testing.T) {
	s := newSite(t, nil)
	diff := "dns_servers"
	for _, path := range []string{
		"/", "/hosts/exp15", "/hosts/exp03/log", "/hosts/exp03/log?attempt=a4", "/api/v1/hosts", "/api/v1/hosts/exp15",
		"/api/v1/hosts/exp15/why", "/api/v1/hosts/exp03/log", "/api/v1/rollouts", "/api/v1/unknown", "/api/v1/known-hosts",
	} {
		for _, who := range []struct {
			name    string
			client  *http.Client
			header  []string
			private bool
		}{
			{"anyone", stay(nil), nil, false},
			{"a token", stay(nil), []string{"Authorization", "Bearer secret"}, true},
			{"a session", s.login(), nil, true},
		} {
			a, text := s.ask(who.client, "GET", path, "", who.header...)
			if a.StatusCode != http.StatusOK {
				t.Errorf("%s, GET %s: %s", who.name, path, a.Status)
			}
			want := who.private && (path == "/hosts/exp15" || path == "/api/v1/hosts/exp15/why")
			if got := strings.Contains(text, diff); got != want {
				t.Errorf("%s, GET %s: shows the difference: %v, want %v", who.name, path, got, want)
			}
		}
	}
	if a, _ := s.ask(stay(nil), "GET", "/api/v1/hosts", "", "Authorization", "Bearer guess"); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("GET with a wrong token: %s, want 401", a.Status)
	}
}

func TestSession(t *testing.T) {
	now := time.Now()
	tokens := map[string]string{"ada": "secret"}
	s := newSite(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Tokens = func(token string) (string, bool) { return KnownTokens(tokens)(token) }
	})
	c := s.login()
	u, _ := url.Parse(s.url + "/")
	if n := len(c.Jar.Cookies(u)); n != 1 {
		t.Fatalf("%d cookies, want 1", n)
	}
	a, _ := s.ask(stay(nil), "POST", "/login", "token=secret&next=/reassure/hosts/exp01", "Origin", s.root)
	cookie := a.Header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/reassure/", "Max-Age=43200"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("cookie %q lacks %s", cookie, want)
		}
	}
	if got := a.Header.Get("Location"); got != "/reassure/hosts/exp01" {
		t.Errorf("after the login: %s", got)
	}
	loggedIn := func(c *http.Client) bool {
		_, text := s.ask(c, "GET", "/", "")
		return strings.Contains(text, "Log out")
	}
	if !loggedIn(c) {
		t.Error("a fresh session is nobody's")
	}
	now = now.Add(13 * time.Hour)
	if loggedIn(c) {
		t.Error("a session of yesterday is still good")
	}
	c = s.login()
	delete(tokens, "ada")
	if loggedIn(c) {
		t.Error("a session outlives its token")
	}
	tokens["ada"] = "secret"
	c = s.login()
	value := c.Jar.Cookies(u)[0].Value
	if a, _ := s.ask(c, "POST", "/logout", "", "Origin", "http://evil.example"); a.StatusCode != http.StatusForbidden || !loggedIn(c) {
		t.Errorf("another site's page logs people out: %s", a.Status)
	}
	s.ask(c, "POST", "/logout", "", "Origin", s.root)
	if _, text := s.ask(stay(nil), "GET", "/", "", "Cookie", "reassure_session="+value); strings.Contains(text, "Log out") {
		t.Error("a cookie is good after the logout")
	}
	if a, _ := s.ask(stay(nil), "POST", "/login", "token=secret"); a.StatusCode != http.StatusForbidden {
		t.Errorf("a login from who knows where: %s, want 403", a.Status)
	}
}

// After a form a browser goes to a page of ours, whatever the form says.
func TestBack(t *testing.T) {
	s := New(newFake(1), Options{Base: "/reassure"})
	for to, want := range map[string]string{
		"/reassure/hosts/a?x=1": "/reassure/hosts/a?x=1", "/reassure/": "/reassure/", "/reassure/?state=parked": "/reassure/?state=parked",
		"": "/reassure/", "http://evil.example/reassure/": "/reassure/", "//evil.example/reassure/": "/reassure/", "/\\evil.example": "/reassure/",
		"/reassure/../elsewhere": "/reassure/", "/elsewhere": "/reassure/", "javascript:alert(1)": "/reassure/", "/reassure/\r\nX: y": "/reassure/",
		"/reassure//evil.example": "/reassure/",
	} {
		if got := s.back(to); got != want {
			t.Errorf("back(%q) = %q, want %q", to, got, want)
		}
	}
	if got := New(newFake(1), Options{}).back("//evil.example/"); got != "/" {
		t.Errorf("without a base: %q", got)
	}
}

func TestGuesses(t *testing.T) {
	now := time.Now()
	s := newSite(t, func(o *Options) { o.Now = func() time.Time { return now } })
	codes := map[int]int{}
	for range 30 {
		a, _ := s.ask(stay(nil), "GET", "/api/v1/hosts", "", "Authorization", "Bearer guess")
		codes[a.StatusCode]++
	}
	if diff := cmp.Diff(map[int]int{401: 10, 429: 20}, codes); diff != "" {
		t.Errorf("30 guesses (-want +got):\n%s", diff)
	}
	if a, _ := s.ask(stay(nil), "POST", "/login", "token=secret", "Origin", s.root); a.StatusCode != http.StatusTooManyRequests {
		t.Errorf("login after 30 guesses: %s, want 429", a.Status)
	}
	if a, _ := s.ask(stay(nil), "GET", "/api/v1/hosts", ""); a.StatusCode != http.StatusOK {
		t.Errorf("looking after 30 guesses: %s", a.Status)
	}
	now = now.Add(time.Minute)
	if a, _ := s.ask(stay(nil), "GET", "/api/v1/hosts", "", "Authorization", "Bearer secret"); a.StatusCode != http.StatusOK {
		t.Errorf("a minute later: %s", a.Status)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(1, 3, func() time.Time { return now })
	count := func(a string) (n int) {
		for l.take(netip.MustParseAddr(a)) {
			n++
		}
		return n
	}
	if a, b := count("10.0.0.1"), count("10.0.0.2"); a != 3 || b != 3 {
		t.Errorf("two addresses got %d and %d, want 3 each", a, b)
	}
	if a, b := count("2001:db8::1"), count("2001:db8::2"); a != 3 || b != 0 {
		t.Errorf("two addresses of one /64 got %d and %d, want 3 and 0", a, b)
	}
	now = now.Add(2 * time.Second)
	if n := count("10.0.0.1"); n != 2 {
		t.Errorf("after two seconds: %d, want 2", n)
	}
	for i := range 3 * maxBuckets {
		l.take(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(l.buckets) > maxBuckets+1 {
		t.Errorf("%d buckets, want at most %d", len(l.buckets), maxBuckets+1)
	}
}

func TestSizes(t *testing.T) {
	s := newSite(t, nil)
	token := []string{"Authorization", "Bearer secret"}
	for _, c := range []struct {
		path, body string
		header     []string
		want       int
	}{
		{"/api/v1/hold", `{"targets":["exp01"],"why":"` + strings.Repeat("x", 60<<10) + `"}`, token, 200},
		{"/api/v1/hold", `{"targets":["exp01"],"why":"` + strings.Repeat("x", 64<<10) + `"}`, token, 413},
		{"/do/hold", "host=exp01&why=" + strings.Repeat("x", 64<<10), token, 413},
		{"/login", "token=" + strings.Repeat("x", 64<<10), []string{"Origin", s.root}, 413},
		{"/events/exp01", event(strings.Repeat("x", 1000<<10)), []string{"Authorization", "Bearer " + manifestToken}, 204},
		{"/events/exp01", event(strings.Repeat("x", 1<<20)), []string{"Authorization", "Bearer " + manifestToken}, 413},
	} {
		if a, text := s.ask(stay(nil), "POST", c.path, c.body, c.header...); a.StatusCode != c.want {
			t.Errorf("POST %s of %d bytes: %s %.100s, want %d", c.path, len(c.body), a.Status, text, c.want)
		}
	}
	if a, _ := s.ask(stay(nil), "GET", "/", "", "X-Large", strings.Repeat("x", 2<<20)); a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 2 MiB: %s, want 431", a.Status)
	}
}

func event(text string) string {
	e, _ := json.Marshal(spec.Event{Kind: spec.EventPhase, Phase: "extract", Text: text})
	return string(e)
}

func TestAgents(t *testing.T) {
	pc := []string{"Authorization", "Bearer " + manifestToken}
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		want                     string
	}{
		{"manifest", "GET", "/manifests/01-00-09-3d-12-00-00.json", "", pc, 200, `"host":"exp01"`},
		{"signature", "GET", "/manifests/01-00-09-3d-12-00-00.json.minisig", "", pc, 200, "untrusted comment"},
		{"manifest without token", "GET", "/manifests/01-00-09-3d-12-00-00.json", "", nil, 401, "reassure.token"},
		{"manifest with a person's token", "GET", "/manifests/01-00-09-3d-12-00-00.json", "", []string{"Authorization", "Bearer secret"}, 403, "not this PC's"},
		{"manifest of nobody", "GET", "/manifests/01-00-00-00-00-00-01.json", "", pc, 404, "not found"},
		{"manifest in upper case", "GET", "/manifests/01-00-09-3D-12-00-00.json", "", pc, 404, "lower case"},
		{"no manifest", "GET", "/manifests/passwd", "", pc, 404, "01-MAC.json"},
		{"escape", "GET", "/manifests/..%2f..%2fetc%2fpasswd", "", pc, 404, "no manifest"},
		{"event", "POST", "/events/exp01", event("x"), pc, 204, ""},
		{"event of a rescue", "POST", "/events/exp01", strings.Replace(event("x"), `"kind":"phase"`, `"kind":"rescue"`, 1), pc, 204, ""},
		{"event without token", "POST", "/events/exp01", event("x"), nil, 401, "reassure.token"},
		{"event with a wrong token", "POST", "/events/exp01", event("x"), []string{"Authorization", "Bearer x"}, 403, "not this PC's"},
		{"event that is no JSON", "POST", "/events/exp01", "hello", pc, 400, "not what is wanted"},
		{"event that is empty", "POST", "/events/exp01", "", pc, 400, "empty"},
		{"event with a field that is not known", "POST", "/events/exp01", `{"kind":"done","colour":"red"}`, pc, 400, `colour`},
		{"event of a kind that is not known", "POST", "/events/exp01", `{"kind":"party"}`, pc, 400, `party`},
		{"two events", "POST", "/events/exp01", `{"kind":"done"}{"kind":"done"}`, pc, 400, "send one"},
		{"event as a form", "POST", "/events/exp01", event("x"), append([]string{"Content-Type", formType}, pc...), 415, "application/json"},
		{"capture", "PUT", "/captures/exp01", "a tarball", pc, 200, `"file": "/lab/wads/exp01.tar.zst"`},
		{"capture without token", "PUT", "/captures/exp01", "a tarball", nil, 401, "reassure.token"},
		{"capture with a person's token", "PUT", "/captures/exp01", "a tarball", []string{"Authorization", "Bearer secret"}, 403, "not its token"},
		{"capture by POST", "POST", "/captures/exp01", "a tarball", pc, 405, "use PUT"},
		{"event by GET", "GET", "/events/exp01", "", pc, 405, "use POST"},
		{"event that cannot be kept", "POST", "/events/broken", event("x"), pc, 500, "disk full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, nil)
			a, text := s.ask(stay(nil), c.method, c.path, c.body, c.header...)
			if a.StatusCode != c.status || !strings.Contains(text, c.want) {
				t.Errorf("%s %q, want %d with %q", a.Status, text, c.status, c.want)
			}
			if got, want := len(s.lab.events), map[bool]int{true: 1}[c.status == 204]; got != want {
				t.Errorf("the lab has %d events, want %d", got, want)
			}
			if c.status == 200 && a.Header.Get("Cache-Control") != "no-store" {
				t.Error("a manifest may be cached")
			}
		})
	}
}

// A PC that is told no in the middle of its upload reads why.
func TestRefusedUpload(t *testing.T) {
	s := newSite(t, nil)
	s.lab.capture = func(tarball io.Reader) error {
		if _, err := io.CopyN(io.Discard, tarball, 1<<20); err != nil {
			return err
		}
		return errors.New("the disk is full")
	}
	c := fetch.Client{Token: manifestToken}
	for range 5 {
		_, err := c.Send(t.Context(), s.url+"/captures/exp01", io.LimitReader(zeros{}, 256<<20))
		if err == nil || !strings.Contains(err.Error(), "answers 500") || !strings.Contains(err.Error(), "the disk is full") {
			t.Fatalf("a refused upload = %v, want the reason", err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestAPI(t *testing.T) {
	auth := []string{"Authorization", "Bearer secret", "Content-Type", "application/json"}
	for _, c := range []struct {
		name, method, path, body string
		fail                     error
		status                   int
		want                     string
	}{
		{"host that is none", "GET", "/api/v1/hosts/nobody", "", nil, 404, `"error": "host \"nobody\": not found"`},
		{"coverage", "GET", "/api/v1/coverage", "", nil, 200, `"state": "no firmware"`},
		{"path that is none", "GET", "/api/v1/nothing", "", nil, 404, "/reassure/api/v1"},
		{"wrong method", "DELETE", "/api/v1/hosts", "", nil, 405, "use GET"},
		{"roll-out", "POST", "/api/v1/rollouts", `{"targets":["exp01","@rack1"],"force":true,"between":"22:00-06:00","why":"w"}`, nil, 200, `"id": "r13"`},
		{"roll-out of nothing", "POST", "/api/v1/rollouts", `{}`, nil, 422, "no targets"},
		{"approve nothing", "POST", "/api/v1/approve", `{"why":"x"}`, nil, 422, "no plans"},
		{"accept nothing", "POST", "/api/v1/accept", `{"why":"x"}`, nil, 422, "no disks"},
		{"hold of nothing", "POST", "/api/v1/hold", `{"why":"x"}`, nil, 422, "no targets"},
		{"errand", "POST", "/api/v1/errands", `{"kind":"verify","targets":["exp01"],"now":true}`, nil, 200, "will verify"},
		{"errand of nothing", "POST", "/api/v1/errands", `{"kind":"verify"}`, nil, 422, "no targets"},
		{"mistyped field", "POST", "/api/v1/rollouts", `{"targets":["exp01"],"forse":true}`, nil, 400, "forse"},
		{"roll-out that is none", "POST", "/api/v1/rollouts/r99/stop", `{}`, nil, 404, "not found"},
		{"reload with a mistake", "POST", "/api/v1/reload", "", fmt.Errorf("site.yaml:3: %w: ip", api.ErrInvalid), 422, "site.yaml:3"},
		{"reload that fails", "POST", "/api/v1/reload", "", errors.New("disk full"), 500, "disk full"},
		{"forbidden", "POST", "/api/v1/release", `{"targets":["exp01"]}`, api.ErrForbidden, 403, "forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, nil)
			s.lab.fail = c.fail
			a, text := s.ask(stay(nil), c.method, c.path, c.body, auth...)
			if text = strings.ReplaceAll(text, `"error":"`, `"error": "`); a.StatusCode != c.status || !strings.Contains(text, c.want) {
				t.Errorf("%s %q, want %d with %q", a.Status, text, c.status, c.want)
			}
			if got := a.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type %q", got)
			}
			if !json.Valid([]byte(text)) {
				t.Errorf("not JSON: %q", text)
			}
		})
	}
	s := newSite(t, nil)
	var hosts []api.Host
	if _, text := s.ask(stay(nil), "GET", "/api/v1/hosts", ""); json.Unmarshal([]byte(text), &hosts) != nil || len(hosts) != 24 || hosts[0].Name != "exp01" {
		t.Errorf("hosts: %.200s", text)
	}
	s.lab.hosts, s.lab.rollouts, s.lab.unknown = nil, nil, nil
	for _, path := range []string{"hosts", "rollouts", "unknown"} {
		if _, text := s.ask(stay(nil), "GET", "/api/v1/"+path, ""); text != "[]\n" {
			t.Errorf("%s of nothing: %q, want []", path, text)
		}
	}
}

// next returns the next event of a stream.
func next(t *testing.T, lines *bufio.Scanner) (kind, data string) {
	t.Helper()
	for lines.Scan() {
		switch name, value, _ := strings.Cut(lines.Text(), ": "); {
		case name == "event":
			kind = value
		case name == "data":
			return kind, value
		}
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return "", ""
}

func TestStream(t *testing.T) {
	s := newSite(t, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	watch := func() (*bufio.Scanner, func()) {
		a, err := http.Get(s.url + "/api/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Header.Get("Content-Type"); got != "text/event-stream" {
			t.Fatalf("Content-Type %q", got)
		}
		return bufio.NewScanner(a.Body), func() { a.Body.Close() }
	}
	one, end1 := watch()
	two, end2 := watch()
	defer end2()
	for s.server.hub.viewers() != 2 {
		time.Sleep(time.Millisecond)
	}
	if n := len(s.lab.viewers); n != 1 {
		t.Errorf("two viewers are %d subscriptions, want 1", n)
	}
	// One of them hears many changes merged; both hear all names.
	for range 1000 {
		s.lab.change("exp02", func(*api.HostDetail) {})
	}
	s.lab.change("exp01\r\nevent: lab", func(*api.HostDetail) {})
	s.lab.change("", func(*api.HostDetail) {})
	want := map[string]bool{"host exp02": true, "host exp01event: lab": true, "lab lab": true}
	for _, lines := range []*bufio.Scanner{one, two} {
		got := map[string]bool{}
		for len(got) < len(want) {
			kind, data := next(t, lines)
			got[kind+" "+data] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	}
	for two.Scan() && two.Text() != ":" { // a heartbeat
	}
	if two.Err() != nil {
		t.Error(two.Err())
	}
	end1()
	for s.server.hub.viewers() != 1 {
		time.Sleep(time.Millisecond)
	}
	end2()
	for s.server.hub.viewers() != 0 {
		time.Sleep(time.Millisecond)
	}
	for subscribed := true; subscribed; time.Sleep(time.Millisecond) {
		s.lab.mu.Lock()
		subscribed = len(s.lab.viewers) > 0
		s.lab.mu.Unlock()
	}
	three, end3 := watch() // after the last has left, the next is served again
	defer end3()
	for s.server.hub.viewers() != 1 {
		time.Sleep(time.Millisecond)
	}
	s.lab.change("exp03", func(*api.HostDetail) {})
	if kind, data := next(t, three); kind != "host" || data != "exp03" {
		t.Errorf("event %s %s", kind, data)
	}
}

// pagesOf are pages of a lab, one of each kind.
func (s *site) pages(c *http.Client) map[string]string {
	pages := map[string]string{}
	for _, path := range []string{"/", "/?state=parked&q=exp", "/hosts/exp03", "/hosts/exp07", "/hosts/exp15", "/hosts/exp18", "/hosts/exp03/log", "/login", "/hosts/nobody", "/confirm?action=reimage&host=exp01", "/confirm?action=rollout&host=exp01&host=exp15", "/confirm?action=hold&host=exp01", "/confirm?action=accept&host=exp01&host=exp07", "/confirm?action=approve&host=exp01"} {
		_, text := s.ask(c, "GET", path, "")
		pages[path] = text
	}
	return pages
}

// The basics of HTML: elements nest and end, ids are unique, labels and
// descriptions have something to point at, and nothing is inline or from
// elsewhere.
func TestHTML(t *testing.T) {
	s := newSite(t, nil)
	for _, c := range []*http.Client{stay(nil), s.login()} {
		for path, text := range s.pages(c) {
			d := xml.NewDecoder(strings.NewReader(strings.TrimPrefix(text, "<!doctype html>")))
			d.Strict = false
			d.AutoClose = []string{"meta", "link", "input", "img", "br"}
			d.Entity = xml.HTMLEntity
			ids, refs := map[string]bool{}, map[string]string{}
			var stack []string
			h1 := 0
			for {
				token, err := d.Token()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Errorf("%s: %v", path, err)
					break
				}
				switch e := token.(type) {
				case xml.StartElement:
					stack = append(stack, e.Name.Local)
					if e.Name.Local == "h1" {
						h1++
					}
					for _, a := range e.Attr {
						switch name := a.Name.Local; {
						case name == "id":
							if ids[a.Value] {
								t.Errorf("%s: id %s is there twice", path, a.Value)
							}
							ids[a.Value] = true
						case name == "for" || name == "aria-labelledby" || name == "form":
							refs[a.Value] = name
						case name == "style" || strings.HasPrefix(name, "on"):
							t.Errorf("%s: %s on %s: the policy refuses it", path, name, e.Name.Local)
						case name == "src" || name == "href" || name == "action":
							if !strings.HasPrefix(a.Value, "/reassure/") && a.Value != "#main" {
								t.Errorf("%s: %s=%q is not ours", path, name, a.Value)
							}
						}
					}
				case xml.EndElement:
					if len(stack) == 0 || stack[len(stack)-1] != e.Name.Local {
						t.Errorf("%s: </%s> ends %v", path, e.Name.Local, stack)
						break
					}
					stack = stack[:len(stack)-1]
				}
			}
			for id, by := range refs {
				if !ids[id] {
					t.Errorf("%s: %s names %q, which is not there", path, by, id)
				}
			}
			if h1 != 1 {
				t.Errorf("%s: %d h1, want 1", path, h1)
			}
			if !strings.Contains(text, `<html lang="en">`) || !strings.Contains(text, "<main") {
				t.Errorf("%s: no language or no main landmark", path)
			}
		}
	}
	a, text := s.ask(stay(nil), "GET", "/", "")
	if want := "1 of 2 PCs has a NIC whose firmware is not in the image"; !strings.Contains(text, want) {
		t.Errorf("the page of the lab does not say %q", want)
	}
	if csp := a.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
}

func TestEscaping(t *testing.T) {
	s := newSite(t, nil)
	evil := `"><script>alert(1)</script><img src=x onerror=alert(2)>`
	s.lab.change("exp01", func(h *api.HostDetail) {
		h.Reason, h.State = evil, api.Parked
		h.Parked, h.Hold = &api.Note{Text: evil}, &api.Note{Text: evil, By: evil}
		h.Facts.CPU, h.Facts.Disks[0].Serial, h.Groups = evil, evil, []string{evil}
		h.History[0].Text, h.History[0].Phases = evil, []spec.PhaseTime{{Name: evil, Seconds: 1}}
		h.HostKeys = []string{evil}
		h.Ask, h.Target = spec.AskDisk, &spec.Disk{Device: evil, Model: evil, Serial: evil, Contents: []spec.Content{{Kind: evil, Label: evil}}}
		h.Progress, h.Plan.Wads[0].Name = &api.Progress{Phase: spec.PhaseApproval, Text: evil}, evil
	})
	s.lab.mu.Lock()
	s.lab.logs["exp01 "+s.lab.hosts[0].History[0].ID] = evil
	s.lab.why["exp01"] = api.Why{Due: []api.Change{{Text: evil, Diff: "+" + evil}}}
	s.lab.unknown[0].What = evil
	s.lab.rollouts[0].Why, s.lab.rollouts[0].By = evil, evil
	s.lab.mu.Unlock()
	c := s.login()
	for _, path := range []string{"/", "/?q=" + url.QueryEscape(evil), "/?fragment=1&host=exp01", "/hosts/exp01", "/hosts/exp01/log", "/login?next=" + url.QueryEscape(evil), "/hosts/" + url.PathEscape(evil), "/confirm?action=hold&host=exp01&why=" + url.QueryEscape(evil), "/confirm?action=accept&host=exp01", "/confirm?action=approve&host=exp01"} {
		a, text := s.ask(c, "GET", path, "")
		if a.StatusCode >= 500 {
			t.Errorf("GET %s: %s", path, a.Status)
		}
		if strings.Contains(text, "<script>alert") || strings.Contains(text, "<img src=x") {
			t.Errorf("GET %s: the text is not escaped", path)
		}
		if path != "/login?next="+url.QueryEscape(evil) && !strings.Contains(text, "&lt;script&gt;alert(1)") {
			t.Errorf("GET %s: the text is not shown", path)
		}
	}
}

// What is served to PCs acts for nobody when a browser shows it.
func TestTree(t *testing.T) {
	s := newSite(t, nil)
	a, text := s.ask(stay(nil), "GET", "/boot/evil.html", "")
	if a.StatusCode != http.StatusOK || !strings.Contains(text, "alert") {
		t.Fatalf("%s %q", a.Status, text)
	}
	if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "sandbox;") {
		t.Errorf("policy %q, want a sandbox", csp)
	}
	a, text = s.ask(stay(nil), "GET", "/boot/pxelinux.0", "", "Range", "bytes=2-3")
	if a.StatusCode != http.StatusPartialContent || text != "ad" {
		t.Errorf("range: %s %q", a.Status, text)
	}
	for path, want := range map[string]int{"/wads/x/y": 404, "/boot/absent": 404, "/boot/..%2f..%2fetc%2fpasswd": 404} {
		if a, _ := s.ask(stay(nil), "GET", path, ""); a.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, a.Status, want)
		}
	}
	if a, _ := s.ask(stay(nil), "POST", "/boot/pxelinux.0", "x"); a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", a.Status)
	}
}

// A large file goes out whole, in pieces, and is counted.
func TestLargeFile(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*piece/16+7)
	if err := os.WriteFile(filepath.Join(dir, "wad"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, func(o *Options) { o.Wads = http.FileServerFS(os.DirFS(dir)) })
	if _, text := s.ask(stay(nil), "GET", "/wads/wad", ""); text != string(data) {
		t.Errorf("%d bytes came, or others; want %d", len(text), len(data))
	}
	if _, text := s.ask(stay(nil), "GET", "/wads/wad", "", "Range", fmt.Sprintf("bytes=%d-%d", piece-1, 2*piece)); text != string(data[piece-1:2*piece+1]) {
		t.Errorf("a range: %d bytes came, or others", len(text))
	}
	resp, err := http.Get(s.root + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	want := float64(len(data) + piece + 2)
	m := regexp.MustCompile(`reassure_http_sent_bytes_total\{part="wads"\} (\S+)`).FindSubmatch(text)
	if m == nil || fmt.Sprint(parse(t, string(m[1]))) != fmt.Sprint(want) {
		t.Errorf("sent bytes: %q, want %v", m, want)
	}
}

func parse(t *testing.T, s string) float64 {
	t.Helper()
	var f float64
	if _, err := fmt.Sscan(s, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMonitoring(t *testing.T) {
	var sick error
	s := newSite(t, func(o *Options) {
		o.Healthy = func() error { return sick }
		o.Counters = []Counter{{"reassure_tftp_bytes_total", "Bytes by TFTP.", func() float64 { return 42 }}}
	})
	s.url = s.root
	if a, text := s.ask(stay(nil), "GET", "/healthz", ""); a.StatusCode != 200 || text != "ok\n" {
		t.Errorf("healthz: %s %q", a.Status, text)
	}
	sick = errors.New("store: read-only")
	if a, text := s.ask(stay(nil), "GET", "/healthz", ""); a.StatusCode != 503 || !strings.Contains(text, "read-only") {
		t.Errorf("healthz when sick: %s %q", a.Status, text)
	}
	s.ask(stay(nil), "POST", "/reassure/events/exp01", event("x"), "Authorization", "Bearer "+manifestToken)
	s.ask(stay(nil), "POST", "/reassure/events/exp01", event("x"))
	s.server.AttemptEnded(api.Vanished)
	s.server.Reloaded(errors.New("site.yaml:1: bad"))
	_, text := s.ask(stay(nil), "GET", "/metrics", "")
	for _, want := range []string{
		`reassure_hosts{state="current"} 11`, `reassure_hosts{state="parked"} 1`, `reassure_rollouts{state="active"} 1`, `reassure_rollouts{state="stopped"} 1`,
		`reassure_unknown_cards 2`, `reassure_events_total{kind="phase"} 1`, `reassure_http_refused_total{part="events",status="401"} 1`,
		`reassure_attempts_total{result="vanished"} 1`, `reassure_attempts_total{result="done"} 0`, `reassure_reload_ok 0`, `reassure_reloads_total{result="refused"} 1`,
		`reassure_build_info{version="1.0"} 1`, `reassure_tftp_bytes_total 42`, "process_resident_memory_bytes", "go_goroutines",
	} {
		if !strings.Contains(text, want+"\n") && !strings.Contains(text, want+" ") {
			t.Errorf("metrics lack %s", want)
		}
	}
	if a, _ := s.ask(stay(nil), "GET", "/", ""); a.StatusCode != http.StatusFound || a.Header.Get("Location") != "/reassure/" {
		t.Errorf("/: %s to %q", a.Status, a.Header.Get("Location"))
	}
}

// The page of a large lab is made fast, and a change costs little.
func TestLargeLab(t *testing.T) {
	s := newSite(t, nil)
	s.lab.hosts = newFake(500).hosts
	began := time.Now()
	_, text := s.ask(stay(nil), "GET", "/", "")
	if n := strings.Count(text, "data-name="); n != 500 {
		t.Errorf("%d rows, want 500", n)
	}
	took := time.Since(began)
	t.Logf("500 hosts: %d KiB in %v", len(text)>>10, took)
	if took > 2*time.Second || len(text) > 1<<20 {
		t.Errorf("500 hosts: %d KiB in %v, want at most 1 MiB and 2 s", len(text)>>10, took)
	}
	_, text = s.ask(stay(nil), "GET", "/?fragment=1&host=exp07&host=exp08", "")
	if n := strings.Count(text, "data-name="); n != 2 || len(text) > 20<<10 {
		t.Errorf("two changed hosts: %d rows, %d bytes", n, len(text))
	}
}

// A page that is asked for by script or by hand shows the same hosts.
func TestFilter(t *testing.T) {
	s := newSite(t, nil)
	row := regexp.MustCompile(`data-name="(\w+)" data-search="[^"]*" hidden`)
	_, text := s.ask(stay(nil), "GET", "/?state=current&q=%40RACK2+exp1", "")
	if !strings.Contains(text, `data-show="current">`) {
		t.Error("the table does not show current hosts only")
	}
	if n := len(row.FindAllString(text, -1)); n != 24-5 {
		t.Errorf("%d hosts are hidden, want 19", n)
	}
	_, text = s.ask(stay(nil), "GET", "/?q=nothing-like-that", "")
	if !strings.Contains(text, `id="none" class="none">`) {
		t.Error("nothing says that no host is found")
	}
}

func TestConfirm(t *testing.T) {
	s := newSite(t, nil)
	c := s.login()
	from := []string{"Origin", s.root, "Content-Type", formType}
	// exp01 has its software, exp15 has not.
	_, text := s.ask(c, "GET", "/confirm?action=rollout&host=exp01&host=exp15", "")
	if !strings.Contains(text, "The disk of this host is wiped") || !strings.Contains(text, "<li><b>exp15</b>") || strings.Contains(text, "<li><b>exp01</b>") {
		t.Errorf("what is wiped, and what not, is not said:\n%s", text)
	}
	for _, f := range []struct {
		path, form string
		want       string
	}{
		{"/do/reimage", "asked=yes&host=exp01", "tick that the disks may be wiped"},
		{"/do/reimage", "asked=yes&sure=yes&host=exp01&canaries=many", "canaries"},
		{"/do/reimage", "asked=yes&sure=yes&host=exp01&at_once=0", "at once"},
		{"/do/reimage", "asked=yes&sure=yes&host=exp01&stop_at=nan", "stop above"},
		{"/do/hold", "asked=yes&host=exp01", "needs a reason"},
		{"/do/dance", "host=exp01", "no action"},
	} {
		a, text := s.ask(c, "POST", f.path, f.form, from...)
		if a.StatusCode < 400 || a.StatusCode >= 500 || !strings.Contains(text, f.want) {
			t.Errorf("%s %s: %s, want a refusal with %q", f.path, f.form, a.Status, f.want)
		}
	}
	if asked := s.lab.asked(); len(asked) > 0 {
		t.Errorf("the lab was asked %q", asked)
	}
	s.lab.fail = fmt.Errorf("%w: between: write 22:00-06:00", api.ErrInvalid)
	if a, text := s.ask(c, "POST", "/do/rollout", "asked=yes&sure=yes&host=exp15&between=late", from...); a.StatusCode != 422 || !strings.Contains(text, "write 22:00-06:00") || !strings.Contains(text, `value="late"`) {
		t.Errorf("a mistake that the lab finds: %s; the form and the reason are not there", a.Status)
	}
	if a, _ := s.ask(stay(nil), "GET", "/confirm?action=reimage&host=exp01", ""); a.StatusCode != 401 {
		t.Errorf("anyone: %s", a.Status)
	}
}

// A host that asks is answered on its page, by those who may, with what they have seen.
func TestQuestions(t *testing.T) {
	s := newSite(t, nil)
	from := []string{"Origin", s.root, "Content-Type", formType}
	s.lab.change("exp03", func(h *api.HostDetail) { h.Progress.Phase = spec.PhaseApproval })
	id, sum := s.lab.hosts[6].Target.Identity(), s.lab.hosts[2].Plan.Sum()
	seenDisk, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		host, action  string
		shown         []string
		button        string
		seen, another string // what the form says was seen; what cannot be read
		silent        string // a host that does not ask that, and what is said of it
		asked, told   string
	}{
		{
			"exp07", "accept", []string{"May this disk be lost?", "/dev/sda", "WDC WD10EZEX-08WN4A0", "WCC6Y5FHX3KZ", "vfat 512 MiB, ntfs &#34;Windows&#34; 900 GiB"}, "Accept the disk…",
			string(seenDisk), "{}x", "have not told which disk is theirs: exp01", fmt.Sprintf(`accept map[exp07:%v] why="new lab" by ada`, id), "exp07: accepted",
		},
		{
			"exp03", "approve", []string{"Is this plan right?", "exp03 gets profile gentoo-reassure", "on /dev/sda (932 GiB, ata, WDC WD10EZEX", "fetch  debian.tar.zst, 1.37 GiB"}, "Approve…",
			sum.String(), "1", "wait for nobody: exp01", fmt.Sprintf(`approve map[exp03:%v] why="new lab" by ada`, sum), "exp03: approved",
		},
	} {
		t.Run(q.action, func(t *testing.T) {
			c := s.login()
			for who, client := range map[string]*http.Client{"anyone": stay(nil), "ada": c} {
				_, text := s.ask(client, "GET", "/hosts/"+q.host, "")
				for _, want := range q.shown {
					if !strings.Contains(text, want) {
						t.Errorf("the page does not show %s %q:\n%s", who, want, text)
					}
				}
				if got := strings.Contains(text, q.button); got != (who == "ada") {
					t.Errorf("%s is shown the button: %v", who, got)
				}
			}
			if _, text := s.ask(c, "GET", "/hosts/exp01", ""); strings.Contains(text, q.shown[0]) || strings.Contains(text, q.button) {
				t.Error("a host that asks nothing is shown as one that does")
			}
			_, text := s.ask(c, "POST", "/confirm", "action="+q.action+"&host=exp01&host="+q.host, from...)
			for _, want := range append(q.shown[1:], q.silent, `name="seen" value="`+html.EscapeString(q.seen)+`"`) {
				if !strings.Contains(text, want) {
					t.Errorf("the question does not show %q:\n%s", want, text)
				}
			}
			if strings.Contains(text, `name="host" value="exp01"`) {
				t.Error("the answer is for exp01, too")
			}
			path := "/do/" + q.action
			for _, wrong := range []string{
				"asked=yes&host=" + q.host + "&seen=" + url.QueryEscape(q.seen),
				"asked=yes&sure=yes&host=" + q.host,
				"asked=yes&sure=yes&host=" + q.host + "&host=exp01&seen=" + url.QueryEscape(q.seen),
				"asked=yes&sure=yes&host=" + q.host + "&seen=" + url.QueryEscape(q.another),
				"sure=yes",
			} {
				if a, _ := s.ask(c, "POST", path, wrong, from...); a.StatusCode != http.StatusUnprocessableEntity {
					t.Errorf("%s: %s", wrong, a.Status)
				}
			}
			before := s.lab.asked()
			a, _ := s.ask(c, "POST", path, "asked=yes&sure=yes&why=new+lab&next=/reassure/hosts/"+q.host+"&host="+q.host+"&seen="+url.QueryEscape(q.seen), from...)
			if got := s.lab.asked()[len(before):]; a.StatusCode != http.StatusSeeOther || !slices.Equal(got, []string{q.asked}) {
				t.Errorf("%s; the lab was asked %q, want %q", a.Status, got, q.asked)
			}
			if _, text := s.ask(c, "GET", "/hosts/"+q.host, ""); !strings.Contains(text, q.told) {
				t.Errorf("nothing says %q", q.told)
			}
		})
	}
	if asked := s.lab.asked(); len(asked) != 2 {
		t.Errorf("the lab was asked %q", asked)
	}
}

// Over the local socket, changes are by the user at its other end.
func TestSocket(t *testing.T) {
	lab := newFake(3)
	s := New(lab, Options{})
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, s.SocketHandler()) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	a, err := client.Post("http://socket/api/v1/hold", "application/json", strings.NewReader(`{"targets":["exp01"],"why":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`hold [exp01] why="x" by ` + me.Username}, lab.asked()); diff != "" || a.StatusCode != 200 {
		t.Errorf("%s; asked (-want +got):\n%s", a.Status, diff)
	}
	// A stream does not keep the server from ending.
	a, err = client.Get("http://socket/api/v1/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(closeTime - time.Second):
		t.Error("the server does not end while somebody watches")
	}
}

// A client that says nothing, or half of something, is given up.
func TestSlowClient(t *testing.T) {
	s := New(newFake(1), Options{})
	server := s.HTTP(t.Context(), s.Handler())
	if server.ReadHeaderTimeout == 0 || server.IdleTimeout == 0 || server.MaxHeaderBytes == 0 {
		t.Fatalf("limits: %+v", server)
	}
	server.ReadHeaderTimeout = 50 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}
