package reimage

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/logs"
	"reassure/image/reimage/cmdline"
	"reassure/image/reimage/netup"
	"reassure/image/spec"
	"reassure/image/stamp"
)

const secret = "s3cr3t"

// site is a boot server: it notes what it is asked for and with which token.
type site struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	events []spec.Event
}

func newSite(t *testing.T, files map[string][]byte) *site {
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")))
		if r.Method == http.MethodPost {
			var e spec.Event
			if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
				t.Error(err)
			}
			s.events = append(s.events, e)
			return
		}
		data, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s
}

// booted is a reimager whose network is up.
func booted(t *testing.T, o cmdline.Options) (*Reimager, *logs.Ring) {
	ring := logs.NewRing(20)
	r := &Reimager{
		Options: o, Info: spec.ImageInfoFile{Insecure: true}, Ring: ring, Screen: logs.NewScreen(nil), attempt: 1,
		Log:     slog.New(logs.NewHandler(ring, logs.Options{Hide: string(o.Token)})),
		network: &netup.Network{MAC: manifest().MACs[0]},
	}
	r.base = baseURL(o, netip.Addr{}, false)
	t.Cleanup(func() {
		if r.reports != nil {
			r.reports.Close()
		}
	})
	return r, ring
}

// TestWhoIsShownTheToken fetches all that a reimage fetches.
func TestWhoIsShownTheToken(t *testing.T) {
	wad := []byte("a wad")
	m := manifest()
	m.Events = "events/exp01"
	mirror := newSite(t, map[string][]byte{"/wad.tar": wad})
	m.Wads[0] = spec.Wad{Name: "wad.tar", URLs: []string{"wads/wad.tar"}, Size: spec.Size(len(wad)), SHA256: spec.Sum(wad), Mount: "/"}
	m.Wads = append(m.Wads, m.Wads[0])
	m.Wads[1].URLs = []string{mirror.URL + "/wad.tar"}
	m.Wads[1].Mount = "/opt"
	text, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []cmdline.Secret{secret, ""} {
		s := newSite(t, map[string][]byte{"/lab/manifests/01-00-09-3d-12-20-ed.json": text, "/lab/wads/wad.tar": wad})
		r, _ := booted(t, cmdline.Options{URL: s.URL + "/lab", Token: token})
		mirror.asked = nil
		r.reportByToken()
		if err := r.getManifest(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.event(spec.Event{Kind: spec.EventStart})
		r.flush(t.Context())
		wads, err := r.openWads(t.Context(), r.manifest)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wads {
			if _, err := io.Copy(io.Discard, w.plain); err != nil {
				t.Error(err)
			}
			w.Close()
		}
		want := []string{"GET /lab/manifests/01-00-09-3d-12-20-ed.json Bearer " + secret, "POST /lab/events/01-00-09-3d-12-20-ed Bearer " + secret, "GET /lab/wads/wad.tar"}
		if token == "" {
			want = []string{"GET /lab/manifests/01-00-09-3d-12-20-ed.json", "POST /lab/events/exp01", "GET /lab/wads/wad.tar"}
		}
		if diff := cmp.Diff(want, s.asked); diff != "" {
			t.Errorf("with token %q the site was asked (-want +got):\n%s", string(token), diff)
		}
		if diff := cmp.Diff([]string{"GET /wad.tar"}, mirror.asked); diff != "" {
			t.Errorf("with token %q the mirror was asked (-want +got):\n%s", string(token), diff)
		}
	}
}

// TestNoManifestIsReported has each thing go wrong that leaves a PC without one.
func TestNoManifestIsReported(t *testing.T) {
	foreign := manifest()
	foreign.Host, foreign.MACs = "exp02", []spec.MAC{{2}}
	foreign.Wads[0].SHA256 = spec.Sum([]byte("x"))
	text, err := foreign.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const path = "/lab/manifests/01-00-09-3d-12-20-ed.json"
	for _, c := range []struct {
		name   string
		files  map[string][]byte
		signed bool // the image wants signatures
		want   string
	}{
		{name: "not there", want: "404"},
		{name: "not JSON", files: map[string][]byte{path: []byte("{")}, want: path},
		{name: "another PC's", files: map[string][]byte{path: text}, want: "for exp02"},
		{name: "no signature", files: map[string][]byte{path: text}, signed: true, want: "signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.files)
			r, _ := booted(t, cmdline.Options{URL: s.URL + "/lab", Token: secret})
			r.Info.Insecure = !c.signed
			r.reportByToken()
			r.phase("manifest")
			err := r.getManifest(t.Context())
			if err == nil {
				t.Fatal("there is one")
			}
			r.fail(err, true)
			r.flush(t.Context())
			e := s.events[len(s.events)-1]
			if e.Kind != spec.EventFailure || !e.Final || e.Wrote || e.Phase != "manifest" || !strings.Contains(e.Text, c.want) ||
				!strings.Contains(strings.Join(e.Log, "\n"), "REIMAGE FAILED") || e.MAC != r.network.MAC {
				t.Errorf("event is %+v", e)
			}
			for _, a := range s.asked {
				if strings.HasPrefix(a, "POST") && a != "POST /lab/events/01-00-09-3d-12-20-ed Bearer "+secret {
					t.Errorf("asked for %s", a)
				}
			}
		})
	}
}

// TestServerGone stops to look for a server that never answers, in time, and says why.
func TestServerGone(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	r, _ := booted(t, cmdline.Options{URL: gone.URL})
	r.limit = time.Now().Add(300 * time.Millisecond)
	begin := time.Now()
	err := r.getManifest(t.Context())
	if took := time.Since(begin); err == nil || took > 5*time.Second || !strings.Contains(err.Error(), "within 1m0s") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("after %v: %v", took, err)
	}
	if !r.lastTry(spec.OnFailure{}, err) {
		t.Error("it tries again when the time is over")
	}
}

func TestLastTry(t *testing.T) {
	soon, later := time.Now().Add(time.Second), time.Now().Add(time.Hour)
	many := 5
	for _, c := range []struct {
		name string
		r    Reimager
		p    spec.OnFailure
		err  error
		last bool
	}{
		{name: "first of three", r: Reimager{attempt: 1, limit: later}},
		{name: "third of three", r: Reimager{attempt: 3, limit: later}, last: true},
		{name: "no manifest, and no time for the pause", r: Reimager{attempt: 1, limit: soon}, last: true},
		{name: "no manifest, but a person wants more", r: Reimager{attempt: 1, limit: soon, Options: cmdline.Options{Retries: &many}}},
		{name: "there was a manifest", r: Reimager{attempt: 1, limit: soon, manifest: manifest()}},
		{name: "before the network", r: Reimager{attempt: 1}},
		{name: "refused", r: Reimager{attempt: 1, limit: later}, err: refuse("no"), last: true},
		{name: "refused on a disk that is not whole", r: Reimager{attempt: 1, limit: later, wrote: true}, err: refuse("no")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.err == nil {
				c.err = errors.New("failed")
			}
			if got := c.r.lastTry(c.p, c.err); got != c.last {
				t.Errorf("last is %v", got)
			}
		})
	}
}

// TestEvents posts a reimage's events one after the other: the log lines in
// order and once, the state of the disk, and never the token.
func TestEvents(t *testing.T) {
	s := newSite(t, nil)
	r, _ := booted(t, cmdline.Options{URL: s.URL, Token: secret})
	r.Log.Info("before the network")
	r.reportByToken()
	r.manifest = manifest()
	r.phase("erase")
	r.wrote = true
	r.Log.Info("wiped")
	r.event(spec.Event{Kind: spec.EventProgress, Done: 1, Total: 2})
	r.Log.Info("step done")
	r.event(spec.Event{Kind: spec.EventStep, Text: "a: done", Log: []string{"reassure.token=" + secret}})
	r.fail(errors.New("a step said "+secret), false)
	r.flush(t.Context())

	type told struct {
		Kind  spec.EventKind
		Phase string
		Text  string
		Log   []string
		Wrote bool
		Final bool
	}
	var got []told
	for _, e := range s.events {
		if e.Host != "exp01" || e.Attempt != 1 {
			t.Errorf("event of %q, attempt %d", e.Host, e.Attempt)
		}
		got = append(got, told{e.Kind, e.Phase, e.Text, e.Log, e.Wrote, e.Final})
	}
	want := []told{
		{Kind: spec.EventPhase, Phase: "erase", Log: []string{"before the network"}},
		{Kind: spec.EventProgress, Phase: "erase", Wrote: true},
		{Kind: spec.EventStep, Phase: "erase", Text: "a: done", Wrote: true, Log: []string{"reassure.token=(hidden)", "wiped", "step done"}},
		{Kind: spec.EventFailure, Phase: "erase", Text: "a step said (hidden)", Wrote: true, Log: []string{
			"error: REIMAGE FAILED: erase: a step said (hidden)", "error: The disk is not whole and will not boot.",
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestInstalledIsReported(t *testing.T) {
	m := manifest()
	m.Order = "o1"
	i := &Installed{Disk: target(), Partition: 3, Stamp: stamp.New(m)}
	want := &spec.Installed{Host: "exp01", Digest: m.Digest, Serial: 1000, Order: "o1"}
	if diff := cmp.Diff(want, i.report()); diff != "" {
		t.Errorf("not whole (-want +got):\n%s", diff)
	}
	i.Whole, want.Whole = true, true
	if diff := cmp.Diff(want, i.report()); diff != "" {
		t.Errorf("whole (-want +got):\n%s", diff)
	}
	if got := (*Installed)(nil).report(); got != nil {
		t.Errorf("of nothing: %+v", got)
	}
}
