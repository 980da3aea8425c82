package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// asked is what a server was asked.
type asked struct {
	method, path, auth, body string
}

// TestClientAsks has every method ask a server, and looks at what arrives there.
func TestClientAsks(t *testing.T) {
	var got asked
	var answer string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = asked{r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), string(body)}
		fmt.Fprint(w, answer)
	}))
	defer server.Close()
	c, err := NewClient(server.URL+"/lab", "secret")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	two := 2
	for _, test := range []struct {
		answer string
		call   func() (any, error)
		asked  asked
		want   any
	}{
		{`[{"name":"exp01"}]`, func() (any, error) { return c.Hosts(ctx) }, asked{"GET", "/lab/api/v1/hosts", "Bearer secret", ""}, []Host{{Name: "exp01"}}},
		{`{"name":"a/b","address":"1.2.3.4"}`, func() (any, error) { return c.Host(ctx, "a/b") }, asked{"GET", "/lab/api/v1/hosts/a%2Fb", "Bearer secret", ""}, &HostDetail{Host: Host{Name: "a/b"}, Address: "1.2.3.4"}},
		{`{"host":"exp01"}`, func() (any, error) { return c.Why(ctx, "exp01") }, asked{"GET", "/lab/api/v1/hosts/exp01/why", "Bearer secret", ""}, &Why{Host: "exp01"}},
		{"a\nb\n", func() (any, error) { return c.Log(ctx, "exp01", "") }, asked{"GET", "/lab/api/v1/hosts/exp01/log", "Bearer secret", ""}, "a\nb\n"},
		{"a\n", func() (any, error) { return c.Log(ctx, "exp01", "a&b") }, asked{"GET", "/lab/api/v1/hosts/exp01/log?attempt=a%26b", "Bearer secret", ""}, "a\n"},
		{"k\n", func() (any, error) { return c.KnownHosts(ctx) }, asked{"GET", "/lab/api/v1/known-hosts", "Bearer secret", ""}, "k\n"},
		{`[{"id":"r1"}]`, func() (any, error) { return c.Rollouts(ctx) }, asked{"GET", "/lab/api/v1/rollouts", "Bearer secret", ""}, []Rollout{{ID: "r1"}}},
		{`[{"count":3}]`, func() (any, error) { return c.Unknown(ctx) }, asked{"GET", "/lab/api/v1/unknown", "Bearer secret", ""}, []Unknown{{Count: 3}}},
		{`{"id":"r1"}`, func() (any, error) {
			return c.Rollout(ctx, RolloutRequest{Targets: []string{"@a"}, Canaries: &two})
		}, asked{"POST", "/lab/api/v1/rollouts", "Bearer secret", `{"targets":["@a"],"canaries":2}`}, &Rollout{ID: "r1"}},
		{`{"id":"r1"}`, func() (any, error) { return c.StopRollout(ctx, "r1", "enough") }, asked{"POST", "/lab/api/v1/rollouts/r1/stop", "Bearer secret", `{"why":"enough"}`}, &Rollout{ID: "r1"}},
		{`[{"host":"exp01"}]`, func() (any, error) { return c.Hold(ctx, Targets{Targets: []string{"exp01"}, Why: "w"}) }, asked{"POST", "/lab/api/v1/hold", "Bearer secret", `{"targets":["exp01"],"why":"w"}`}, []Outcome{{Host: "exp01"}}},
		{`[{"host":"exp01"}]`, func() (any, error) { return c.Release(ctx, Targets{Targets: []string{"exp01"}}) }, asked{"POST", "/lab/api/v1/release", "Bearer secret", `{"targets":["exp01"]}`}, []Outcome{{Host: "exp01"}}},
		{`[{"host":"exp01"}]`, func() (any, error) {
			return c.Errand(ctx, ErrandRequest{Kind: spec.Verify, Targets: Targets{Targets: []string{"exp01"}}, Now: true})
		}, asked{"POST", "/lab/api/v1/errands", "Bearer secret", `{"kind":"verify","targets":["exp01"],"now":true}`}, []Outcome{{Host: "exp01"}}},
		{`{"hosts":3}`, func() (any, error) { return c.Reload(ctx) }, asked{"POST", "/lab/api/v1/reload", "Bearer secret", ""}, &Reload{Hosts: 3}},
	} {
		answer = test.answer
		value, err := test.call()
		if err != nil {
			t.Errorf("%s %s: %v", test.asked.method, test.asked.path, err)
		}
		if got != test.asked {
			t.Errorf("asked %q, want %q", got, test.asked)
		}
		if d := cmp.Diff(test.want, value); d != "" {
			t.Errorf("%s: %s", test.asked.path, d)
		}
	}
}

// TestSocket finds the site's path by itself.
func TestSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/{$}", http.RedirectHandler("/my/lab/", http.StatusFound))
	mux.HandleFunc("/my/lab/api/v1/hosts", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `[{"name":"exp01"}]`) })
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	server.Start()
	defer server.Close()
	c, err := NewClient(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := c.Hosts(t.Context())
	if err != nil || len(hosts) != 1 {
		t.Errorf("Hosts: %v, %v", hosts, err)
	}
}

func TestErrors(t *testing.T) {
	mux := http.NewServeMux()
	refuse := func(path string, status int, text string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			if err := json.NewEncoder(w).Encode(Error{text}); err != nil {
				t.Error(err)
			}
		})
	}
	refuse("/api/v1/hosts", 404, "no host is called x")
	refuse("/api/v1/rollouts", 403, "a token is needed")
	refuse("/api/v1/unknown", 500, "the disk is full")
	mux.HandleFunc("/api/v1/reload", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") })
	mux.HandleFunc("/api/v1/stream", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") })
	mux.HandleFunc("/api/v1/hold", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { t.Error("a redirect was followed") })
	server := httptest.NewServer(mux)
	defer server.Close()
	c, err := NewClient(server.URL, "t")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := NewClient(filepath.Join(t.TempDir(), "nothing"), "")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed, err := NewClient("http://"+listener.Addr().String()+"/lab", "")
	if err := errors.Join(err, listener.Close()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	first := func(_ any, err error) error { return err }
	for name, test := range map[string]struct {
		err  error
		is   error
		want string
	}{
		"not found":  {first(c.Hosts(ctx)), ErrNotFound, "no host is called x"},
		"forbidden":  {first(c.Rollouts(ctx)), ErrForbidden, "a token is needed"},
		"other":      {first(c.Unknown(ctx)), nil, "the disk is full"},
		"no JSON":    {first(c.Reload(ctx)), nil, "same version"},
		"no stream":  {c.Stream(ctx, func(string) error { return nil }), nil, "as no boot server does"},
		"redirect":   {first(c.Hold(ctx, Targets{})), nil, "as no boot server does"},
		"no such":    {first(c.KnownHosts(ctx)), nil, `"404 Not Found" as no boot server does`},
		"no socket":  {first(gone.Hosts(ctx)), nil, "is reassure serve running? name its socket or http address with --server"},
		"no port":    {first(closed.Hosts(ctx)), nil, "is reassure serve running?"},
		"no address": {first(NewClient("", "")), nil, "name the boot server"},
		"scheme":     {first(NewClient("ftp://x/y", "")), nil, "such as http://172.30.0.5/reassure"},
		"bad token":  {first(NewClient("/x", "a b")), nil, "one word"},
	} {
		switch {
		case test.err == nil:
			t.Errorf("%s: no error", name)
		case !strings.Contains(test.err.Error(), test.want):
			t.Errorf("%s: %q has no %q", name, test.err, test.want)
		case test.is != nil && (!errors.Is(test.err, test.is) || test.err.Error() != test.want):
			t.Errorf("%s: %#v is not %v, word for word", name, test.err, test.is)
		}
		if e := (*Error)(nil); test.is != nil && !errors.As(test.err, &e) {
			t.Errorf("%s is no *Error", name)
		}
	}
}

func TestStream(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		fmt.Fprint(w, ": hello\n\nevent: host\ndata: exp01\n\nevent:lab\r\ndata:\r\n\r\n: heartbeat\n\nevent: news\ndata: x\n\nid: 3\nevent: host\ndata:exp02\n\n")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/stay/api/v1/stream" {
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	for _, stay := range []bool{false, true} {
		address := server.URL + "/ends"
		if stay {
			address = server.URL + "/stay"
		}
		c, err := NewClient(address, "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var got []string
		err = c.Stream(ctx, func(host string) error {
			if got = append(got, host); stay && len(got) == 4 {
				cancel()
			}
			return nil
		})
		cancel()
		if d := cmp.Diff([]string{"", "exp01", "", "exp02"}, got); d != "" {
			t.Error(d)
		}
		if want := map[bool]error{true: context.Canceled, false: io.ErrUnexpectedEOF}[stay]; !errors.Is(err, want) {
			t.Errorf("stay %t: %v, want %v", stay, err, want)
		}
	}
	c, err := NewClient(server.URL+"/stay", "")
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	if err := c.Stream(t.Context(), func(string) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Stream: %v, want %v", err, enough)
	}
}

func TestPick(t *testing.T) {
	hosts := []Host{{Name: "exp01", Groups: []string{"lab1", "amd"}}, {Name: "Exp02", Groups: []string{"lab2"}}, {Name: "srv"}}
	for _, test := range []struct{ targets, want, wrong string }{
		{"srv EXP01", "exp01 srv", ""},
		{"exp*", "exp01 Exp02", ""},
		{"@lab*", "exp01 Exp02", ""},
		{"@amd srv srv", "exp01 srv", ""},
		{"exp0[2-9]", "Exp02", ""},
		{"", "", "name hosts"},
		{"exp01 nobody", "", `no host is called "nobody"`},
		{"@lab3", "", `no host is in a group "lab3"`},
		{"lab1", "", `no host is called "lab1"`},
		{"ex[", "", "not a shell pattern"},
	} {
		picked, err := Pick(hosts, strings.Fields(test.targets))
		var names []string
		for _, h := range picked {
			names = append(names, h.Name)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("Pick(%q) = %q, want %q", test.targets, got, test.want)
		}
		if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("Pick(%q): %v, want %q", test.targets, err, test.wrong)
		}
	}
}
