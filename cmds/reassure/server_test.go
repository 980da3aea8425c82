package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/coverage"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

var update = flag.Bool("update", false, "write the golden files")

// noon is when all of these tests happen.
var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// fake is a boot server that answers what it is told to and notes what it is asked.
type fake struct {
	t       *testing.T
	address string

	mu       sync.Mutex
	hosts    []api.Host
	log      string
	asked    []string
	viewers  []chan string
	errand   *api.Errand
	verified *api.Verified
	attempts []api.Attempt
	targets  map[string]*spec.Disk // disks that hosts have reported
	disks    map[string]*spec.DiskID
	plans    map[string]*spec.Plan
	asks     map[string]spec.Ask
}

// room7 is a lab with a host in each state.
func room7() []api.Host {
	host := func(n int, s api.State, decision, reason string) api.Host {
		return api.Host{Name: fmt.Sprintf("exp%02d", n), MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, byte(n)}}, IP: fmt.Sprintf("172.30.0.%d", 10+n),
			Profile: "debian", Groups: []string{"room7", []string{"amd", "intel"}[n%2]}, State: s, Decision: decision, Reason: reason}
	}
	hosts := []api.Host{
		host(1, api.Current, "local", "it has what it should have"),
		host(2, api.Running, "remote", "being reimaged: rolled out"),
		host(3, api.Running, "remote", "being reimaged: rolled out"),
		host(4, api.Parked, "wait", "3 attempts failed: wad gentoo.tar.zst: sha256 differs\x1b]0;owned\a"),
		host(5, api.Retrying, "local", "an attempt failed: the wad's server does not answer"),
		host(6, api.Held, "local", "held by anna: measuring until Friday"),
		host(7, api.Armed, "local", "waits for its turn in roll-out k3m2x7qa"),
		host(8, api.Changed, "local", "its software changed in the site's files; nothing was rolled out"),
		host(9, api.New, "local", "nothing was rolled out to it"),
	}
	hosts[1].Progress = &api.Progress{Attempt: 1, Phase: "wads", Text: "gentoo.tar.zst", Done: 450 * spec.MiB, Total: 1000 * spec.MiB, Rate: 85 * spec.MiB, ETA: 6.4}
	hosts[2].Progress = &api.Progress{Attempt: 2, Phase: "plan"}
	hosts[4].NextTry = noon.Add(90 * time.Second)
	return hosts
}

// newFake serves on a socket, as the boot server does, below /lab.
func newFake(t *testing.T) *fake {
	f := &fake{t: t, hosts: room7(), log: "10.1 plan\n12.5 wads\x1b[2J\n", address: filepath.Join(t.TempDir(), "s")}
	listener, err := net.Listen("unix", f.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: f.handler()}}
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return f
}

func (f *fake) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/{$}", http.RedirectHandler("/lab/", http.StatusFound))
	answer := func(path string, what func(r *http.Request) (any, error)) {
		method, path, _ := strings.Cut(path, " ")
		mux.HandleFunc(method+" /lab/api/v1/"+path, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				f.t.Error(err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if r.Method == http.MethodPost {
				f.asked = append(f.asked, strings.TrimSpace(path+" "+string(body)))
			}
			value, err := what(r)
			if text, ok := value.(string); ok && err == nil {
				fmt.Fprint(w, text)
				return
			}
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				if errors.Is(err, api.ErrNotFound) {
					w.WriteHeader(http.StatusNotFound)
				}
				value = api.Error{Text: err.Error()}
			}
			if err := json.NewEncoder(w).Encode(value); err != nil {
				f.t.Error(err)
			}
		})
	}
	only := func(r *http.Request) error {
		if name := r.PathValue("name"); name != "exp04" {
			return fmt.Errorf("no host is called %q", name)
		}
		return nil
	}
	rollouts := []api.Rollout{
		{ID: "k3m2x7qa", Started: noon.Add(-time.Hour), By: "anna", Why: "new kernel", Canaries: 2, AtOnce: 16, StopAt: 20, Between: "22:00-06:00", Now: true,
			Waiting: []string{"exp07"}, Running: []string{"exp02", "exp03"}, Done: []string{"exp01"}, Failed: []string{"exp04", "exp05"}},
		{ID: "abcd2345", Started: noon.Add(-26 * time.Hour), Canaries: 0, AtOnce: 4, StopAt: 12.5, Force: true,
			Stopped: &api.Note{Text: "more than 12.5 % failed", At: noon}, Waiting: []string{"exp09"}, Failed: []string{"exp04"}},
		{ID: "old23456", Started: noon.Add(-50 * time.Hour), By: "ben", Canaries: 1, AtOnce: 16, StopAt: 20, Done: []string{"exp01"}, Same: []string{"exp02"}},
	}
	answer("GET coverage", func(*http.Request) (any, error) {
		device := func(vendor, product string) coverage.Device {
			return coverage.Device{Bus: "pci", Vendor: vendor, Product: product}
		}
		return api.Coverage{Version: "0.1", Flavour: "full", Kernel: "6.1.0-44-amd64", Hosts: 9, Reported: 7, Lacking: []api.Lacking{
			{Verdict: coverage.Verdict{Device: device("8086", "125c"), Kind: coverage.Network, State: coverage.NoDriver}, Hosts: []string{"exp01"}},
			{Verdict: coverage.Verdict{Device: device("14e4", "1639"), Kind: coverage.Network, State: coverage.NoFirmware, Driver: "bnx2",
				Missing: []string{"bnx2/bnx2-mips-06-6.2.3.fw", "bnx2/bnx2-rv2p-06-6.0.15.fw"}}, Hosts: []string{"exp02", "exp03"}},
			{Verdict: coverage.Verdict{Device: device("10ec", "8168"), Kind: coverage.Network, State: coverage.Some, Driver: "r8169",
				Missing: []string{"rtl_nic/rtl8168g-2.fw"}}, Hosts: []string{"exp04"}},
		}}, nil
	})
	answer("GET hosts", func(*http.Request) (any, error) { return f.hosts, nil })
	answer("GET hosts/{name}", func(r *http.Request) (any, error) {
		if i := slices.IndexFunc(f.hosts, func(h api.Host) bool { return h.Name == r.PathValue("name") }); i >= 0 && (f.targets != nil || f.plans != nil) {
			name := f.hosts[i].Name
			return api.HostDetail{Host: f.hosts[i], Target: f.targets[name], Disk: f.disks[name], Plan: f.plans[name], Ask: f.asks[name]}, nil
		}
		return api.HostDetail{Host: f.hosts[3], Errand: f.errand, Verified: f.verified, History: append(f.attempts[:len(f.attempts):len(f.attempts)], []api.Attempt{
			{ID: "a2", Started: noon.Add(-10 * time.Minute), Result: api.UnderWay, Reason: "rolled out"},
			{ID: "a1", Started: noon.Add(-2 * time.Hour), Ended: noon.Add(-2*time.Hour + 3725*time.Second), Result: api.Failed, Text: "wad gentoo.tar.zst: sha256 differs", Bytes: 1200 * spec.MiB},
		}...)}, only(r)
	})
	answer("GET hosts/{name}/why", func(r *http.Request) (any, error) {
		return api.Why{Host: "exp04", Decision: "wait", Reason: "3 attempts failed",
			Due:     []api.Change{{Text: "wad gentoo.tar.zst: sha256 1a2b… -> 3c4d…"}},
			Pending: []api.Change{{Text: "template conf.d/net: 2 lines", Diff: "--- conf.d/net\n+++ conf.d/net\n@@ -1 +1 @@\n-mtu=1500\n+mtu=9000\n"}},
			Drift:   []api.Change{{Text: "template hosts: 1 line", Volatile: true}},
		}, only(r)
	})
	answer("GET hosts/{name}/log", func(r *http.Request) (any, error) {
		if a := r.FormValue("attempt"); a == "a1" {
			return "1.0 it failed\n", nil
		} else if a != "" {
			return nil, fmt.Errorf("exp04 has no attempt %q", a)
		}
		return f.log, only(r)
	})
	answer("GET rollouts", func(*http.Request) (any, error) { return rollouts, nil })
	answer("GET known-hosts", func(*http.Request) (any, error) { return "exp01,172.30.0.11 ssh-ed25519 AAAA\n", nil })
	answer("GET unknown", func(*http.Request) (any, error) {
		return []api.Unknown{{MAC: spec.MAC{0, 9, 0x3d, 0x12, 0x20, 0xee}, IP: "172.30.0.201", What: "PXEClient, BIOS", First: noon.Add(-time.Hour), Last: noon, Count: 3}, {MAC: spec.MAC{2}, Count: 1}}, nil
	})
	answer("POST rollouts", func(*http.Request) (any, error) {
		fresh := rollouts[0]
		fresh.Waiting, fresh.Running, fresh.Done, fresh.Failed, fresh.Same = []string{"exp01", "exp02"}, nil, nil, nil, []string{"exp03"}
		return fresh, nil
	})
	answer("POST rollouts/{id}/stop", func(r *http.Request) (any, error) {
		if r.PathValue("id") != "k3m2x7qa" {
			return nil, fmt.Errorf("roll-out %q: %v", r.PathValue("id"), api.ErrNotFound)
		}
		stopped := rollouts[0]
		stopped.Stopped = &api.Note{Text: "the wad is wrong", By: "anna", At: noon}
		return stopped, nil
	})
	answer("POST approve", func(*http.Request) (any, error) {
		return []api.Outcome{{Host: "exp03", Text: "approved"}, {Host: "exp04", Text: "approved, and no longer parked"}}, nil
	})
	answer("POST accept", func(*http.Request) (any, error) {
		return []api.Outcome{{Host: "exp01", Text: "accepted, and no longer parked"}}, nil
	})
	answer("POST hold", func(*http.Request) (any, error) {
		return []api.Outcome{{Host: "exp01", Text: "held"}, {Host: "exp02", Text: "held"}}, nil
	})
	answer("POST hosts/{name}/verify", func(r *http.Request) (any, error) {
		if r.PathValue("name") == "exp04" {
			return api.Inspected{Text: "log in over SSH: nobody\x1b[31m answers"}, nil
		}
		return api.Inspected{Verified: &api.Verified{At: noon, ID: "e1", Running: true, Verified: spec.Verified{Total: 1, Steps: true, Findings: []spec.Finding{{Path: "/etc/passwd", What: "mode"}}}}}, nil
	})
	answer("POST errands", func(*http.Request) (any, error) {
		kind := spec.Verify
		for _, other := range []spec.ErrandKind{spec.Capture, spec.Rescue} {
			if strings.Contains(f.asked[len(f.asked)-1], fmt.Sprintf(`"kind":%q`, other)) {
				kind = other
			}
		}
		f.errand = &api.Errand{Errand: spec.Errand{Kind: kind, ID: "e1"}}
		return []api.Outcome{{Host: "exp04", Text: fmt.Sprintf("will %s at its next boot", kind), Errand: "e1"}}, nil
	})
	answer("POST release", func(*http.Request) (any, error) {
		return []api.Outcome{{Host: "exp04", Text: "is not parked any more"}}, nil
	})
	answer("POST reload", func(*http.Request) (any, error) {
		return api.Reload{Hosts: 9, Added: []string{"exp09"}, Removed: []string{"exp10", "exp11"}, Changed: []api.ChangedHost{
			{Name: "exp07", Changes: []api.Change{{Text: "wad gentoo.tar.zst: sha256 1a2b… -> 3c4d…"}}, Armed: true},
			{Name: "exp08", Changes: []api.Change{{Text: "template conf.d/net: 2 lines"}}},
		}}, nil
	})
	mux.HandleFunc("GET /lab/api/v1/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		news := make(chan string, 10)
		f.mu.Lock()
		f.viewers = append(f.viewers, news)
		f.mu.Unlock()
		w.WriteHeader(http.StatusOK)
		for {
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case name := <-news:
				if name == "bye" {
					return
				}
				fmt.Fprintf(w, "event: host\ndata: %s\n\n", name)
			}
		}
	})
	return mux
}

// change changes something, and tells the viewers.
func (f *fake) change(host string, what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what()
	for _, v := range f.viewers {
		v <- host
	}
}

// ask runs the program against a server.
func ask(t *testing.T, address string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, now: func() time.Time { return noon }}
	err := a.run(t.Context(), append(args, "--server", address))
	return out.String(), errs.String(), exitCode(err)
}

// plainly takes from the environment what would change the output.
func plainly(t *testing.T) {
	for _, name := range []string{"LC_ALL", "NO_COLOR", "REASSURE_TOKEN", "REASSURE_SERVER"} {
		t.Setenv(name, "")
	}
	t.Setenv("LC_ALL", "C")
	t.Setenv("TERM", "xterm")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

func TestServerCommands(t *testing.T) {
	plainly(t)
	for _, c := range []struct {
		name, args string
		code       int
		asked      string // what was posted
	}{
		{"status", "status", 0, ""},
		{"status hosts", "status exp01 @amd", 3, ""},
		{"status well", "status EXP01 exp06", 0, ""},
		{"status json", "status exp02 --json", 0, ""},
		{"status nobody", "status nobody", 1, ""},
		{"why", "why exp04", 0, ""},
		{"why json", "why exp04 --json", 0, ""},
		{"why nobody", "why nobody", 1, ""},
		{"log", "log exp04", 0, ""},
		{"log attempt", "log exp04 --attempt a1", 0, ""},
		{"log no attempt", "log exp04 --attempt a9", 1, ""},
		{"log list", "log exp04 --list", 0, ""},
		{"rollout", "rollout exp0* --between 22:00-06:00 --now --why kernel --at-once 4 --stop-at 12.5% --canary exp01 --canary exp02", 0,
			`rollouts {"targets":["exp0*"],"between":"22:00-06:00","now":true,"canary":["exp01","exp02"],"at_once":4,"stop_at":12.5,"why":"kernel"}`},
		{"rollout defaults", "rollout @room7", 0, `rollouts {"targets":["@room7"]}`},
		{"rollout zero", "rollout exp01 --canaries 0 --stop-at 0", 0, `rollouts {"targets":["exp01"],"canaries":0,"stop_at":0}`},
		{"rollout share", "rollout exp01 --stop-at most", 2, ""},
		{"rollout canaries", "rollout exp01 --canaries 1 --canary exp01", 2, ""},
		{"reimage", "reimage exp01 exp02 --yes", 0, `rollouts {"targets":["exp01","exp02"],"force":true}`},
		{"rollouts", "rollouts", 0, ""},
		{"rollouts one", "rollouts K3M2X7QA", 0, ""},
		{"rollouts finished", "rollouts old23456", 0, ""},
		{"rollouts none", "rollouts zzz", 1, ""},
		{"stop", "stop k3m2x7qa --why wrong", 0, `rollouts/{id}/stop {"why":"wrong"}`},
		{"stop none", "stop zzz", 1, `rollouts/{id}/stop {}`},
		{"hold", "hold exp01 exp02 --why measuring", 0, `hold {"targets":["exp01","exp02"],"why":"measuring"}`},
		{"hold no reason", "hold exp01", 2, ""},
		{"hold nobody", "hold --why x", 2, ""},
		{"verify", "verify exp04 --why dirty", 0, `errands {"kind":"verify","targets":["exp04"],"why":"dirty"}`},
		{"verify last", "verify exp04 --last", 1, ""},
		{"verify running", "verify exp04 --running", 1, "hosts/{name}/verify"},
		{"verify running differs", "verify exp01 --running", 1, "hosts/{name}/verify"},
		{"verify both", "verify exp04 --last --wait", 2, ""},
		{"capture", "capture exp04 --why golden --now", 0, `errands {"kind":"capture","targets":["exp04"],"why":"golden","now":true}`},
		{"capture pattern", "capture exp04 --exclude srv", 2, ""},
		{"capture keep", "capture exp04 --keep /srv/*", 2, ""},
		{"capture two", "capture exp04 exp05", 2, ""},
		{"rescue", "rescue exp04 --why broken --now", 0, `errands {"kind":"rescue","targets":["exp04"],"why":"broken","now":true}`},
		{"rescue two", "rescue exp04 exp05", 2, ""},
		{"release", "release exp04", 0, `release {"targets":["exp04"]}`},
		{"reload", "reload", 0, "reload"},
		{"discover", "discover", 0, ""},
		{"discover extra", "discover adds x y z", 2, ""},
		{"known hosts", "known-hosts", 0, ""},
		{"coverage", "coverage", 3, ""},
		{"coverage json", "coverage --json", 3, ""},
	} {
		f := newFake(t)
		out, errs, code := ask(t, f.address, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.args, code, c.code)
		}
		if d := cmp.Diff(c.asked, strings.Join(f.asked, "\n")); d != "" {
			t.Errorf("%s: it posted something else: %s", c.args, d)
		}
		if errs != "" {
			errs = "on standard error: " + errs
		}
		golden(t, c.name, out+errs)
	}
}

// TestToken says who asks, and what to do when that is not enough.
func TestToken(t *testing.T) {
	plainly(t)
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "token"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(file, []byte("from-file\n"), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	got := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"not allowed"}`)
	}))
	defer server.Close()
	for _, c := range []struct {
		env, args, sent string
		code            int
		want            string
	}{
		{"", "reload", "", 1, "not allowed: name the file with the server's token (token in its state folder) with --token-file"},
		{"from-env", "reload", "Bearer from-env", 1, "not allowed"},
		{"from-env", "reload --token-file " + file, "Bearer from-file", 1, "not allowed"},
		{"", "reload --token-file " + empty, "", 1, "empty is empty"},
		{"", "reload --token-file " + dir + "/none", "", 1, "the token: open "},
		{"two words", "reload", "", 2, "one word"},
	} {
		got = ""
		t.Setenv("REASSURE_TOKEN", c.env)
		_, errs, code := ask(t, server.URL+"/lab", strings.Fields(c.args)...)
		if got != c.sent || code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%q, %s: sent %q, want %q; code %d, want %d; %s", c.env, c.args, got, c.sent, code, c.code, errs)
		}
	}
	t.Setenv("REASSURE_TOKEN", "")
	t.Setenv("REASSURE_SERVER", filepath.Join(dir, "nothing"))
	if _, errs, code := reassure(t, "status"); code != 1 || !strings.Contains(errs, "nobody answers at "+dir) || !strings.Contains(errs, "is reassure serve running?") {
		t.Errorf("no server: %d, %s", code, errs)
	}
	if _, errs, code := ask(t, "gopher://x", "status"); code != 2 || !strings.Contains(errs, "http://172.30.0.5/reassure") {
		t.Errorf("a wrong address: %d, %s", code, errs)
	}
	if _, errs, code := ask(t, filepath.Join(dir, "nothing"), "status", "--watch"); code != 1 || !strings.Contains(errs, "is reassure serve running?") {
		t.Errorf("watching no server: %d, %s", code, errs)
	}
}

// lines is an output that somebody reads while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// until waits for something to be printed.
func until(t *testing.T, l *lines, want string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(l.String(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q was not printed, but %q", want, l.String())
		}
	}
}

// start runs the program until the test stops it, which must not be an error.
func start(t *testing.T, stdin io.Reader, stdout, stderr io.Writer, args ...string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: func() time.Time { return noon }}
		ended <- a.run(ctx, args)
	}()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%q, stopped: %v", args, err)
		}
	}
}

// TestWatch has a status in a file follow its hosts, and the server come back.
func TestWatch(t *testing.T) {
	plainly(t)
	f := newFake(t)
	var out, errs lines
	stop := start(t, nil, &out, &errs, "status", "exp01", "exp02", "--watch", "--server", f.address)
	until(t, &out, "exp02  running   remote  [#########-----------]  45%  85.0 MiB/s  0:06 left  wads: gentoo.tar.zst\n")
	f.change("exp02", func() { f.hosts[1].Progress.Done = 990 * spec.MiB })
	until(t, &out, " 99% ")
	f.change("bye", func() { f.hosts[1].State, f.hosts[1].Reason = api.Current, "it is done" })
	until(t, &errs, "unexpected EOF: trying again")
	until(t, &out, "exp02  current   remote  it is done\n")
	stop()
	if got := out.String(); strings.Count(got, "exp01") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("a host that did not change, or a terminal's signs, were printed:\n%q", got)
	}
}

func TestFollowLog(t *testing.T) {
	plainly(t)
	f := newFake(t)
	var out, errs lines
	// The server's word is final.
	if _, wrong, code := ask(t, f.address, "log", "nobody", "--follow"); code != 1 || wrong != "no host is called \"nobody\"\n" {
		t.Errorf("the log of nobody: %d, %q", code, wrong)
	}
	stop := start(t, nil, &out, &errs, "log", "exp04", "--follow", "--server", f.address)
	until(t, &out, "12.5 wads[2J\n")
	f.change("exp04", func() { f.log += "20.0 more\n" })
	until(t, &out, "20.0 more\n")
	f.change("exp04", func() { f.log = "1.0 again\n" })
	until(t, &out, "1.0 again\n")
	stop()
	if want := "10.1 plan\n12.5 wads[2J\n20.0 more\n\n1.0 again\n"; out.String() != want {
		t.Errorf("the log is %q, want %q", out.String(), want)
	}
}

// newTerminal makes a terminal of that size; what is printed on it comes into screen.
func newTerminal(t *testing.T, columns, rows uint16) (keyboard, tty *os.File, screen *lines) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// File.Fd would make it one whose reader nothing can wake.
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(p uintptr) {
		fd := int(p)
		var get error
		number, get = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		failed = errors.Join(get, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}))
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = &lines{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(screen, master) //nolint:errcheck // it ends with an error when the terminal is closed
	}()
	t.Cleanup(func() {
		// The terminal hangs up, which ends whoever still reads from it.
		if err := errors.Join(master.Close(), tty.Close()); err != nil {
			t.Error(err)
		}
		<-done
	})
	return master, tty, screen
}

func TestTerminal(t *testing.T) {
	plainly(t)
	t.Setenv("LC_ALL", "C.UTF-8")
	f := newFake(t)
	status := func(columns, rows uint16) string {
		_, tty, screen := newTerminal(t, columns, rows)
		ask := &app{stdin: tty, stdout: tty, stderr: tty, now: func() time.Time { return noon }}
		if err := ask.run(t.Context(), []string{"status", "--server", f.address}); err != nil {
			t.Error(err)
		}
		fmt.Fprint(tty, "END")
		until(t, screen, "END")
		return strings.TrimSuffix(strings.ReplaceAll(screen.String(), "\r\n", "\n"), "END")
	}
	golden(t, "terminal", status(120, 40))
	golden(t, "terminal narrow", status(64, 40))
	t.Setenv("NO_COLOR", "1")
	golden(t, "terminal no colour", status(120, 40))

	// Eight rows have room for four hosts and what is left out, and a line for the cursor.
	t.Setenv("NO_COLOR", "")
	_, tty, screen := newTerminal(t, 100, 9)
	stop := start(t, nil, tty, tty, "status", "--watch", "--server", f.address)
	until(t, screen, "and 5 more")
	f.change("exp01", func() { f.hosts[0].State, f.hosts[0].Reason = api.Parked, "everything failed" })
	until(t, screen, "everything failed")
	stop()
	fmt.Fprint(tty, "END")
	until(t, screen, "END")
	if got := screen.String(); !strings.HasPrefix(got, "\x1b[?1049h\x1b[?25l") || !strings.Contains(got, "\x1b[?25h\x1b[?1049l") {
		t.Errorf("the terminal is not left as it was: %q", got)
	} else if _, after, _ := strings.Cut(got, "\x1b[?1049l"); strings.Count(after, "exp0") != 9 {
		t.Errorf("the last table does not stay: %q", after)
	}
}

func TestConfirm(t *testing.T) {
	plainly(t)
	for _, c := range []struct {
		args, typed string
		code        int
		posts       int
		want        string
	}{
		{"reimage exp0*", "y\n", 0, 1, "9 hosts:\r\n  exp01 exp02 exp03 exp04 exp05 exp06 exp07\r\n  exp08 exp09\r\nall of them will be reimaged, changed or not, and what is on their disks is lost. Go on? [y/N] "},
		{"rollout @amd", "Yes\n", 0, 1, "4 hosts:\r\n  exp02 exp04 exp06 exp08\r\nthose of them whose software changed will be reimaged"},
		{"reimage exp0*", "\n", 1, 0, "nothing was done"},
		{"reimage exp0*", "n\n", 1, 0, "nothing was done"},
		{"reimage exp0*", "\x04", 1, 0, "nothing was done"}, // Ctrl-D
		{"reimage exp01", "", 0, 1, "roll-out k3m2x7qa"},
		{"reimage exp0* --yes", "", 0, 1, "roll-out k3m2x7qa"},
		{"reimage nobody", "", 1, 0, `no host is called "nobody"`},
	} {
		f := newFake(t)
		keyboard, tty, screen := newTerminal(t, 44, 24)
		ended := make(chan error, 1)
		go func() {
			a := &app{stdin: tty, stdout: tty, stderr: tty, now: func() time.Time { return noon }}
			ended <- a.run(t.Context(), append(strings.Fields(c.args), "--server", f.address))
		}()
		if c.typed != "" {
			until(t, screen, "[y/N] ")
			if _, err := keyboard.WriteString(c.typed); err != nil {
				t.Fatal(err)
			}
		}
		if code := exitCode(<-ended); code != c.code || len(f.asked) != c.posts {
			t.Errorf("%s, %q: code %d, want %d; it posted %q", c.args, c.typed, code, c.code, f.asked)
		}
		until(t, screen, c.want)
	}

	// Ctrl-C, of which the program learns by its context.
	f := newFake(t)
	_, tty, screen := newTerminal(t, 80, 24)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		a := &app{stdin: tty, stdout: tty, stderr: tty, now: func() time.Time { return noon }}
		ended <- a.run(ctx, []string{"reimage", "exp0*", "--server", f.address})
	}()
	until(t, screen, "[y/N] ")
	cancel()
	if err := <-ended; err == nil || len(f.asked) != 0 {
		t.Errorf("Ctrl-C: %v, posted %q", err, f.asked)
	}
}

func TestCompletion(t *testing.T) {
	plainly(t)
	f := newFake(t)
	site := t.TempDir()
	inventory := "site: {url: http://172.30.0.5/reassure, server: 172.30.0.5, network: 172.30.0.0/24}\nhosts:\n  - {name: old01, mac: [\"00:09:3d:12:20:ed\"], ip: 172.30.0.11, profile: debian, groups: [attic]}\n"
	if err := os.WriteFile(filepath.Join(site, "site.yaml"), []byte(inventory), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ server, words, want, never string }{
		{f.address, "status exp01", "exp02\n", "exp01\n"},
		{f.address, "hold", "@room7\n", "old01"},
		{f.address, "why", "exp02\n", "@room7"},
		{f.address, "why exp01", ":4\n", "exp02"},
		{f.address, "stop", "k3m2x7qa\n", "exp01"},
		{f.address, "reimage exp01 --canary", "exp03\n", "k3m2x7qa"},
		{site + "/nothing", "rollout", "old01\n@attic\n", "exp01"},
	} {
		var out, errs bytes.Buffer
		t.Setenv("REASSURE_SERVER", c.server)
		err := run(t.Context(), append(append([]string{"__complete", "--site", site}, strings.Fields(c.words)...), ""), &out, &errs)
		if got := out.String(); err != nil || !strings.Contains(got, c.want) || strings.Contains(got, c.never) {
			t.Errorf("%s: %q, %v; want %q and never %q", c.words, got, err, c.want, c.never)
		}
	}
}

// TestVerifyWaits waits for what a PC finds, and says so by its exit status.
func TestVerifyWaits(t *testing.T) {
	plainly(t)
	digest := spec.Sum([]byte("software"))
	for _, c := range []struct {
		name  string
		found *api.Verified
		err   error
		want  string
	}{
		{"same", &api.Verified{At: noon, ID: "e1", Digest: digest, Verified: spec.Verified{Total: 1, Runtime: 1, Steps: true, Findings: []spec.Finding{{Path: "/var/log/x", What: "content", Runtime: true}}}}, nil,
			"it holds what it should, and 1 difference where the profile expects some\n  /var/log/x: content (runtime)\n"},
		{"differs", &api.Verified{At: noon, ID: "e1", Digest: digest, Verified: spec.Verified{Total: 3, Findings: []spec.Finding{{Path: "/etc/passwd", What: "mode", Want: "0644", Have: "0666"}, {Path: "/e\x1b[31mvil", What: "entry"}}}}, errUnequal,
			"3 differences; what its steps made was not judged\n  /etc/passwd: mode: 0666, should be 0644\n"},
		{"older one", &api.Verified{At: noon, ID: "e0", Digest: digest}, errUnequal, "exp04: not verified: failed: the disk is gone"},
	} {
		f := newFake(t)
		var out, errs lines
		ended := make(chan error, 1)
		go func() {
			a := &app{stdout: &out, stderr: &errs, now: func() time.Time { return noon }}
			ended <- a.run(t.Context(), []string{"--server", f.address, "verify", "exp04", "--wait"})
		}()
		until(t, &out, "will verify at its next boot")
		f.change("exp04", func() {
			f.errand, f.verified = nil, c.found
			f.attempts = []api.Attempt{{ID: "a3", Errand: spec.Verify, Result: api.Failed, Text: "the disk is gone"}}
		})
		until(t, &out, c.want)
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: it printed what a PC made up: %q", c.name, out.String())
		}
		if err := <-ended; !errors.Is(err, c.err) {
			t.Errorf("%s: it ended with %v, want %v", c.name, err, c.err)
		}
	}
}

// TestCaptureWaits waits for what becomes of a capture.
func TestCaptureWaits(t *testing.T) {
	plainly(t)
	for _, c := range []struct {
		attempt api.Attempt
		err     error
		want    string
	}{
		{api.Attempt{ID: "a3", Errand: spec.Capture, Result: api.Done, Text: "the boot server has it as /lab/wads/exp04-1.tar.zst, 1.2 GiB"}, nil, "exp04: capture done: the boot server has it as /lab/wads/exp04-1.tar.zst, 1.2 GiB\n"},
		{api.Attempt{ID: "a3", Errand: spec.Capture, Result: api.Failed, Text: "the disk\x1b[31m is gone"}, errNotCaptured, "exp04: capture failed: the disk[31m is gone\n"},
		{api.Attempt{ID: "a3", Errand: spec.Verify, Result: api.Done}, errNotCaptured, "it was given up before it began"},
	} {
		f := newFake(t)
		var out, errs lines
		ended := make(chan error, 1)
		go func() {
			a := &app{stdout: &out, stderr: &errs, now: func() time.Time { return noon }}
			ended <- a.run(t.Context(), []string{"--server", f.address, "capture", "exp04", "--wait"})
		}()
		until(t, &out, "at its next boot")
		f.change("exp04", func() { f.errand, f.attempts = nil, []api.Attempt{c.attempt} })
		until(t, &out, c.want)
		if err := <-ended; !errors.Is(err, c.err) {
			t.Errorf("%+v: it ended with %v, want %v", c.attempt, err, c.err)
		}
	}
}

// TestRescueWaits waits until somebody can log in, and says how.
func TestRescueWaits(t *testing.T) {
	plainly(t)
	running := api.Attempt{ID: "a3", Errand: spec.Rescue, Result: api.UnderWay}
	ready := running
	ready.Text = "ssh root@10.0.0.4; this boot's host key is ED25519 SHA256:abc\x1b[31m"
	for _, c := range []struct {
		name    string
		errand  string // that is under way in the end
		attempt api.Attempt
		err     error
		want    string
	}{
		{"ready", "e1", ready, nil, "exp04: ssh root@10.0.0.4; this boot's host key is ED25519 SHA256:abc[31m\n"},
		{"failed", "", api.Attempt{ID: "a3", Errand: spec.Rescue, Result: api.Failed, Text: "no address"}, errNotRescued, "exp04: not in rescue"},
	} {
		f := newFake(t)
		var out, errs lines
		ended := make(chan error, 1)
		go func() {
			a := &app{stdout: &out, stderr: &errs, now: func() time.Time { return noon }}
			ended <- a.run(t.Context(), []string{"--server", f.address, "rescue", "exp04", "--wait"})
		}()
		until(t, &out, "at its next boot")
		f.change("exp04", func() { f.attempts = []api.Attempt{running} })
		f.change("exp04", func() {
			f.attempts = []api.Attempt{c.attempt}
			if c.errand == "" {
				f.errand = nil
			}
		})
		until(t, &out, c.want)
		if err := <-ended; !errors.Is(err, c.err) {
			t.Errorf("%s: it ended with %v, want %v", c.name, err, c.err)
		}
	}
}
