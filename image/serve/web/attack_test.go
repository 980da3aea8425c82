package web

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
)

// TestRawRequests sends what no client library would: names that lead out of the
// served trees, and requests to fetch from, connect to, or be sent on to somebody else.
func TestRawRequests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const secret = "what nobody may see"
	write("secret", secret)
	write("www/wad", "a wad")
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	other := elsewhere.Addr().String()
	s := newSite(t, func(o *Options) {
		root, err := os.OpenRoot(filepath.Join(dir, "www"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		o.Wads = http.FileServerFS(root.FS())
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.server.Serve(t.Context(), l, s.server.Handler()) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	raw := func(request string) *http.Response {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		method, _, _ := strings.Cut(request, " ")
		a, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		defer a.Body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(a.Body); err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		if strings.Contains(text.String(), secret) {
			t.Errorf("%q gives what lies outside", request)
		}
		return a
	}
	if a := raw("GET /reassure/wads/wad HTTP/1.1\r\nHost: a\r\n\r\n"); a.StatusCode != http.StatusOK {
		t.Fatalf("the wad itself: %s", a.Status) // else nothing below shows anything
	}
	for attack, target := range map[string]string{
		"dotdot": "/reassure/wads/../secret", "encoded": "/reassure/wads/..%2fsecret", "encoded dots": "/reassure/wads/%2e%2e/secret",
		"encoded twice": "/reassure/wads/%252e%252e%252fsecret", "backslash": `/reassure/wads/..\secret`, "encoded backslash": "/reassure/wads/..%5csecret",
		"NUL": "/reassure/wads/wad%00", "absolute": "/reassure/wads/" + dir + "/secret", "two slashes": "/reassure/wads//" + dir + "/secret",
		"overlong UTF-8": "/reassure/wads/%c0%ae%c0%ae/secret", "manifest": "/reassure/manifests/..%2f..%2fsecret", "asset": "/reassure/assets/..%2f..%2fsecret",
		"another server's, asked of us as of a proxy": "http://" + other + "/secret", "a file URL": "file://" + dir + "/secret",
		"an address of clouds": "http://169.254.169.254/latest/meta-data/",
	} {
		if a := raw("GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n"); a.StatusCode < 300 {
			t.Errorf("%s: %s", attack, a.Status)
		}
	}
	// Nor does it send anybody there.
	for _, target := range []string{"//" + other, "//" + other + "/..", "/reassure//" + other, "/" + other, "http://" + other, "/reassure", "/"} {
		a := raw("GET " + target + " HTTP/1.1\r\nHost: " + other + "\r\nX-Forwarded-Host: " + other + "\r\n\r\n")
		if to := a.Header.Get("Location"); strings.HasPrefix(to, "//") || strings.Contains(to, "://") {
			t.Errorf("%q is sent on to %q", target, to)
		}
	}
	for _, request := range []string{
		"CONNECT " + other + " HTTP/1.1\r\nHost: " + other + "\r\n\r\n",
		"POST /reassure/hold HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		if a := raw(request); a.StatusCode < 400 {
			t.Errorf("%.60q: %s", request, a.Status)
		}
	}
	if err := elsewhere.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if conn, err := elsewhere.Accept(); err == nil {
		t.Errorf("%v connected to somebody else", conn.RemoteAddr())
	}
}

// FuzzRequests: whatever somebody without the token asks, nothing changes, nothing
// falls over, and what is refused says why, in JSON where JSON is spoken.
func FuzzRequests(f *testing.F) {
	for _, c := range changes {
		f.Add("POST", "/reassure"+c.path, c.kind, "", c.body)
	}
	f.Add("POST", "/reassure/events/01-00-09-3d-12-00-00", "application/json", "Bearer "+manifestToken, event("x"))
	f.Add("GET", "/reassure/manifests/01-00-09-3d-12-00-00.json", "", "Bearer "+manifestToken, "")
	f.Add("GET", "/reassure/boot/..%2f..%2fetc%2fpasswd", "", "", "")
	f.Add("GET", "/reassure/hosts/exp01/log?attempt=%00", "", "", "")
	f.Add("PUT", "/reassure/captures/exp01", "application/zstd", "Bearer x", "x")
	f.Add("POST", "/reassure/login", formType, "Basic YTpi", "token=secreT&token=a")
	f.Fuzz(func(t *testing.T, method, target, kind, authorization, body string) {
		if strings.Contains(authorization, "secret") || strings.Contains(body, "token=secret") || strings.HasSuffix(target, "/stream") {
			return // that is the token; and a stream has no end
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r, err := http.NewRequest(method, "http://lab"+u.RequestURI(), strings.NewReader(body))
		if err != nil || r.URL.Host != "lab" || strings.HasSuffix(r.URL.Path, "/stream") {
			return
		}
		r.RemoteAddr = "192.0.2.7:4711"
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Authorization", authorization)
		lab := newFake(3)
		s := New(lab, Options{
			Base: "/reassure", Boot: http.NotFoundHandler(), Wads: http.NotFoundHandler(), Tokens: KnownTokens(map[string]string{"ada": "secret"}),
		})
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
		if len(lab.calls) > 0 {
			t.Errorf("%s %s, which nobody allowed, has done %q", method, target, lab.calls)
		}
		if strings.HasPrefix(r.URL.Path, "/reassure/"+api.Path+"/") && w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: no JSON: %s", method, target, w.Body)
		}
		if to := w.Header().Get("Location"); strings.HasPrefix(to, "//") || strings.Contains(to, "://") {
			t.Errorf("%s %s: sent on to %q", method, target, to)
		}
	})
}

// TestManyConnections has one address hold connections open that say nothing: others are served.
func TestManyConnections(t *testing.T) {
	s := newSite(t, nil)
	for range 500 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.root, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\n")
	}
	if a, text := s.ask(stay(nil), "GET", "/boot/pxelinux.0", ""); text != "loader" {
		t.Errorf("%s %q", a.Status, text)
	}
}
