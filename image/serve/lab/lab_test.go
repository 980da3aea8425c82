package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/conf"
	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/sign"
	"reassure/image/spec"
	"reassure/image/wad"
)

const inventory = `
site: {url: http://172.30.0.5/reassure, server: 172.30.0.5, network: 172.30.0.0/24, domain: lab.example}
hosts:
  - {name: exp01, mac: ["52:54:00:00:00:01"], ip: 172.30.0.11, profile: pc, groups: [front]}
  - {name: exp02, mac: ["52:54:00:00:00:02", "52:54:00:00:01:02"], ip: 172.30.0.12, profile: pc, groups: [front], vars: {greeting: "hello"}}
  - {name: Desk, mac: ["52:54:00:00:00:03"], ip: 172.30.0.13, profile: pc}
`

const profile = `
table: mbr
partitions:
  - {name: root, size: rest, filesystem: ext4, mount: /, bootable: true}
wads:
  - {file: pc.tar}
templates:
  - {path: /etc/hosts, source: hosts, volatile: true}
  - {path: /etc/motd, source: motd}
steps:
  - name: boot loader
    boot_loader: {kind: grub}
`

// world is a lab and everything around it.
type world struct {
	t    *testing.T
	dir  string
	now  time.Time
	lab  *Lab
	keep *store.Store
	key  *sign.PrivateKey
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "site", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.Local)}
	w.write("site.yaml", inventory)
	w.write("profiles/pc.yaml", profile)
	w.write("templates/hosts", "{{range .Hosts}}{{.IP}} {{.Name}}\n{{end}}")
	w.write("templates/motd", `{{var "greeting" "welcome"}} to {{.Name}}`+"\n")
	w.write("wads/pc.tar", "a whole system, one day")
	private, _, _, err := sign.EnsureSiteKey(filepath.Join(w.dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	if w.key, err = sign.LoadPrivateKey(private); err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(func() { w.keep.Close() })
	return w
}

// open starts the server; a second time, as after kill -9.
func (w *world) open() {
	w.t.Helper()
	if w.keep != nil {
		if err := w.keep.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	if w.keep, err = store.Open(filepath.Join(w.dir, "lab.db")); err != nil {
		w.t.Fatal(err)
	}
	w.lab, err = Open(w.t.Context(), Options{
		Site: filepath.Join(w.dir, "site"), State: filepath.Join(w.dir, "state"), Store: w.keep, Signer: w.key,
		Policy: hosts.Policy{Most: 3, Pause: time.Minute, Lease: 10 * time.Minute},
		Waves:  Waves{Canaries: 2, AtOnce: 16, StopAt: 20},
		Now:    func() time.Time { return w.now },
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reload() api.Reload {
	w.t.Helper()
	r, err := w.lab.Reload(w.t.Context(), "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) rollout(r api.RolloutRequest) api.Rollout {
	w.t.Helper()
	roll, err := w.lab.Rollout(w.t.Context(), r, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return roll
}

// pc is one of the PCs.
type pc struct {
	*world
	name  string
	mac   spec.MAC
	ip    netip.Addr
	token string
	text  *spec.Manifest
}

func (w *world) pc(n int) *pc {
	return &pc{
		world: w, name: []string{"exp01", "exp02", "Desk"}[n-1],
		mac: spec.MAC{0x52, 0x54, 0, 0, 0, byte(n)}, ip: netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + n)}),
	}
}

func (p *pc) ask(want hosts.Decision, reason string) hosts.Answer {
	p.t.Helper()
	p.now = p.now.Add(5 * time.Minute)
	a := p.lab.Ask(p.mac, p.ip)
	if a.Decision != want || !strings.Contains(a.Reason, reason) {
		p.t.Errorf("%s is told %s (%s), want %s (... %s ...)", p.name, a.Decision, a.Reason, want, reason)
	}
	if (a.Token != "") != (a.Decision == hosts.Remote) {
		p.t.Errorf("%s is told %s with token %q", p.name, a.Decision, a.Token)
	}
	p.token = a.Token
	return a
}

func (p *pc) manifest() *spec.Manifest {
	p.t.Helper()
	text, signature, err := p.lab.Manifest(p.mac, p.token, p.ip)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := (sign.Keyring{p.key.Public()}).Verify(text, signature); err != nil {
		p.t.Error(err)
	}
	if p.text, err = spec.ParseManifest(text); err != nil {
		p.t.Fatal(err)
	}
	return p.text
}

func (p *pc) report(e spec.Event) {
	p.t.Helper()
	e.Host, e.MAC = p.name, p.mac
	if err := p.lab.Event(p.token, p.ip, p.name, e); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pc) installed() *spec.Installed {
	return &spec.Installed{Host: p.name, Digest: p.text.Digest, Serial: p.text.Serial, Order: p.text.Order, Whole: true}
}

// half takes the PC to the middle of a reimage.
func (p *pc) half() {
	p.t.Helper()
	p.manifest()
	p.report(spec.Event{Kind: spec.EventStart, Phase: "manifest", Facts: &spec.Facts{CPU: "a processor"}})
	p.report(spec.Event{Kind: spec.EventPhase, Phase: "extract", Wrote: true, Log: []string{"wad one"}})
	p.report(spec.Event{Kind: spec.EventProgress, Phase: "extract", Wrote: true, Done: 10, Total: 20})
}

func (p *pc) whole() {
	p.t.Helper()
	p.report(spec.Event{Kind: spec.EventKeys, Phase: "steps", HostKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF root@" + p.name}})
	p.report(spec.Event{Kind: spec.EventDone, Phase: "commit", Installed: p.installed(), Digest: p.text.Digest})
}

func (p *pc) reimage() {
	p.t.Helper()
	p.ask(hosts.Remote, "")
	p.half()
	p.whole()
}

func (w *world) host(name string) api.HostDetail {
	w.t.Helper()
	h, err := w.lab.Host(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func texts(changes []api.Change) []string {
	var all []string
	for _, c := range changes {
		all = append(all, c.Text)
	}
	return all
}

// What a PC is served binds the index of a wad that has one.
func TestServedIndex(t *testing.T) {
	w := newWorld(t)
	x, err := wad.PackFolder(t.Context(), t.TempDir(), filepath.Join(w.dir, "site/wads/pc.tar"), wad.FolderOptions{}, wad.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.reload()
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	p := w.pc(1)
	p.ask(hosts.Remote, "")
	if got := p.manifest().Wads[0].Index; got == nil || *got != x.Bound() {
		t.Errorf("index %+v; want %+v", got, x.Bound())
	}
}

// TestLife is what "Shown by" of the boot server asks for, without the PCs.
func TestLife(t *testing.T) {
	w := newWorld(t)
	one, two, desk := w.pc(1), w.pc(2), w.pc(3)

	// Nothing is armed by being there.
	for _, p := range []*pc{one, two, desk} {
		p.ask(hosts.Local, "nothing was rolled out")
	}
	roll := w.rollout(api.RolloutRequest{Targets: []string{"*"}, Canaries: new(0)})
	if diff := cmp.Diff([]string{"exp01", "exp02", "Desk"}, roll.Waiting); diff != "" {
		t.Errorf("waiting: %s", diff)
	}
	for _, p := range []*pc{one, two, desk} {
		p.reimage()
		p.ask(hosts.Local, "up to date")
	}
	if h := w.host("exp02"); h.State != api.Current || h.Facts == nil || h.Facts.CPU != "a processor" || len(h.History) != 1 {
		t.Errorf("exp02: %+v", h)
	}
	if r := w.lab.Rollouts()[0]; len(r.Done) != 3 || !r.Finished() {
		t.Errorf("the roll-out: %+v", r)
	}

	// A change of one host's variable arms nothing, and why names it.
	w.write("site.yaml", strings.Replace(inventory, "hello", "good morning", 1))
	r := w.reload()
	want := []api.ChangedHost{{Name: "exp02", Changes: []api.Change{{Text: "template /etc/motd: 1 line"}}}}
	if diff := cmp.Diff(want, r.Changed); diff != "" {
		t.Errorf("the reload tells: %s", diff)
	}
	two.ask(hosts.Local, "up to date")
	if h := w.host("exp02"); h.State != api.Changed {
		t.Errorf("exp02 is %s", h.State)
	}
	why, err := w.lab.Why("exp02", true)
	if err != nil {
		t.Fatal(err)
	}
	if len(why.Pending) != 1 || !strings.Contains(why.Pending[0].Diff, "-hello to exp02\n+good morning to exp02\n") || len(why.Due) != 0 {
		t.Errorf("why: %+v", why)
	}
	if why, err = w.lab.Why("exp02", false); err != nil || len(why.Pending) != 1 || why.Pending[0].Diff != "" {
		t.Errorf("why, for anybody: %+v, %v", why, err)
	}

	// Rolled out to all, it reimages the one that it touches.
	roll = w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	if diff := cmp.Diff([]string{"exp02"}, roll.Waiting); diff != "" {
		t.Errorf("waiting: %s", diff)
	}
	one.ask(hosts.Local, "up to date")
	desk.ask(hosts.Local, "up to date")
	if why, err = w.lab.Why("exp02", false); err != nil || cmp.Diff([]string{"template /etc/motd: 1 line"}, texts(why.Due)) != "" {
		t.Errorf("why: %+v, %v", why, err)
	}

	// A wad that is broken on the way: capped attempts, then parked.
	for i := range 3 {
		two.now = two.now.Add(time.Hour)
		two.ask(hosts.Remote, "")
		two.half()
		two.report(spec.Event{Kind: spec.EventFailure, Phase: "extract", Text: "wad pc.tar: wrong digest", Wrote: true, Final: true, Log: []string{"last words"}})
		if i < 2 {
			two.now = two.now.Add(-5 * time.Minute) // ask moves on by as much
			two.ask(hosts.Wait, "failed")
		}
	}
	a := two.ask(hosts.Wait, "parked: 3 attempts failed; the last: wad pc.tar: wrong digest")
	if a.Again < leastWait || a.Again > mostWait {
		t.Errorf("it asks again after %v", a.Again)
	}
	if h := w.host("exp02"); h.State != api.Parked || !strings.Contains(h.Parked.Text, "wrong digest") {
		t.Errorf("exp02: %+v", h)
	}
	log, err := w.lab.Log("exp02", "")
	for _, part := range []string{"told Remote at 172.30.0.12", "wad one", "last words", "FAILED in phase extract: wad pc.tar: wrong digest"} {
		if !strings.Contains(log, part) || err != nil {
			t.Errorf("the log lacks %q: %s, %v", part, log, err)
		}
	}
	outcome, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{"exp02"}}, "kim")
	if err != nil || cmp.Diff([]api.Outcome{{Host: "exp02", Text: "no longer parked"}}, outcome) != "" {
		t.Errorf("released: %v, %v", outcome, err)
	}
	two.reimage()
	two.ask(hosts.Local, "up to date")

	// An order, twice: the second time its disk carries it.
	w.rollout(api.RolloutRequest{Targets: []string{"exp02"}, Force: true})
	two.ask(hosts.Remote, "by order")
	if m := two.manifest(); m.Order == "" || m.Order != w.lab.Rollouts()[0].ID {
		t.Errorf("the manifest's order: %q", m.Order)
	}
	two.half()
	two.whole()
	two.ask(hosts.Local, "up to date")

	if got := w.lab.KnownHosts(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "exp02,exp02.lab.example,172.30.0.12 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF\n") {
		t.Errorf("known hosts:\n%s", got)
	}
}

// TestKilled kills the server at every point of a reimage.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	p := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	w.open()
	if s := w.host("exp01").State; s != api.Armed {
		t.Errorf("after a roll-out: %s", s)
	}
	p.ask(hosts.Remote, "")
	w.open()
	if s := w.host("exp01").State; s != api.Running {
		t.Errorf("after it was told Remote: %s", s)
	}
	// A lost packet has it ask once more, and the server is another by now.
	if a := p.lab.Ask(p.mac, p.ip); a.Decision != hosts.Remote || a.Token == "" || len(w.host("exp01").History) != 1 {
		t.Errorf("asked again: %+v, %+v", a, w.host("exp01").History)
	} else if b := p.lab.Ask(p.mac, p.ip); b.Token != a.Token {
		t.Errorf("asked once more, it gets another token")
	} else {
		p.token = a.Token
	}
	p.manifest()
	w.open()
	p.half()
	w.open()
	if h := w.host("exp01"); h.State != api.Running || h.Progress == nil {
		t.Errorf("in the middle of a reimage: %+v", h)
	}
	p.report(spec.Event{Kind: spec.EventProgress, Phase: "extract", Wrote: true, Done: 15, Total: 20})
	if g := w.host("exp01").Progress; g.Phase != "extract" || g.Done != 15 {
		t.Errorf("progress after the restart: %+v", g)
	}
	p.whole()
	w.open()
	p.ask(hosts.Local, "up to date")
	if log, err := w.lab.Log("exp01", ""); err != nil || !strings.Contains(log, "wad one") {
		t.Errorf("log: %s, %v", log, err)
	}

	// A PC whose power went in the middle is reimaged again.
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	p.ask(hosts.Remote, "")
	p.half()
	w.open()
	p.now = p.now.Add(time.Hour)
	p.ask(hosts.Wait, "attempt 1 of 3 failed")
	w.open()
	p.reimage()
	w.open()
	p.ask(hosts.Local, "up to date")

	// One that was held, parked or stopped stays so.
	if _, err := w.lab.Hold(t.Context(), api.Targets{Targets: []string{"@front"}, Why: "exam"}, "kim"); err != nil {
		t.Fatal(err)
	}
	roll := w.rollout(api.RolloutRequest{Targets: []string{"*"}, Force: true, Between: "22:00-06:00"})
	if _, err := w.lab.StopRollout(t.Context(), roll.ID, "not today", "kim"); err != nil {
		t.Fatal(err)
	}
	w.open()
	p.ask(hosts.Local, "held by kim: exam")
	w.pc(3).ask(hosts.Local, "stopped by kim: not today")
	if _, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{roll.ID}}, "kim"); err != nil {
		t.Fatal(err)
	}
	w.pc(3).ask(hosts.Local, "its turn comes between 22:00-06:00")
}

// TestWhoGetsIn: a token is one PC's, for one boot.
func TestWhoGetsIn(t *testing.T) {
	w := newWorld(t)
	one, two := w.pc(1), w.pc(2)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}})

	// Whoever asks for another's file from an address of his own gets no token.
	stranger := *one
	stranger.ip = netip.MustParseAddr("172.30.0.99")
	stranger.ask(hosts.Local, "it asks from 172.30.0.99")
	if h := w.host("exp01"); !strings.Contains(h.Reason, "it asks from 172.30.0.99, and the inventory gives it 172.30.0.11") {
		t.Errorf("nobody who looks is told why it gets nothing: %s", h.Reason)
	}
	w.lab.Seen(Sighting{MAC: one.mac, Address: netip.MustParseAddr("172.30.0.50")})
	one.ask(hosts.Local, "its card was given 172.30.0.50")
	one.ip = netip.MustParseAddr("172.30.0.50")
	first := one.ask(hosts.Remote, "").Token
	two.ask(hosts.Remote, "")

	event := spec.Event{Kind: spec.EventStart}
	for _, test := range []struct {
		name  string
		mac   spec.MAC
		host  string
		token string
		from  netip.Addr
		event spec.Event
	}{
		{"no token", one.mac, "exp01", "", one.ip, event},
		{"wrong token", one.mac, "exp01", "x" + first[1:], one.ip, event},
		{"another's token", one.mac, "exp01", two.token, two.ip, event},
		{"its token, for another", two.mac, "exp02", first, one.ip, event},
		{"its token, from elsewhere", one.mac, "exp01", first, two.ip, event},
	} {
		if _, _, err := w.lab.Manifest(test.mac, test.token, test.from); !errors.Is(err, api.ErrForbidden) {
			t.Errorf("manifest, %s: %v", test.name, err)
		}
		if err := w.lab.Event(test.token, test.from, test.host, test.event); !errors.Is(err, api.ErrForbidden) {
			t.Errorf("event, %s: %v", test.name, err)
		}
	}
	if err := w.lab.Event(first, one.ip, "exp01", spec.Event{Kind: spec.EventStart, Host: "exp02"}); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("a report in another's name: %v", err)
	}
	if err := w.lab.Event(first, one.ip, "nobody", event); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a report of nobody: %v", err)
	}
	if err := w.lab.Event(first, one.ip, one.mac.PXE(), event); err != nil {
		t.Errorf("a report by card: %v", err)
	}
	// A new boot takes the old one's token away.
	w.now = w.now.Add(time.Hour)
	one.ask(hosts.Local, "attempt 1 of 3 failed")
	if err := w.lab.Event(first, one.ip, "exp01", event); err != nil {
		t.Errorf("what an attempt that has ended repeats: %v", err)
	}
	w.now = w.now.Add(time.Hour)
	if one.ask(hosts.Remote, "").Token == first {
		t.Error("a token is given twice")
	}
	if err := w.lab.Event(first, one.ip, "exp01", event); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("a token that was replaced: %v", err)
	}
}

// TestStrangerAsks: anybody can fetch a PC's text, and it changes nothing.
func TestStrangerAsks(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	stranger := netip.MustParseAddr("172.30.0.99")
	for _, at := range []string{"before it has used its token", "in the middle"} {
		for range 5 {
			if a := w.lab.Ask(one.mac, stranger); a.Token != "" || a.Decision == hosts.Remote {
				t.Errorf("%s: a stranger is told %+v", at, a)
			}
		}
		if h := w.host("exp01"); h.State != api.Running || h.Failures != 0 || len(h.History) != 1 {
			t.Errorf("%s: a stranger has made it %s, with %d failures", at, h.State, h.Failures)
		}
		if at == "before it has used its token" {
			one.half()
		}
	}
	one.whole()
	one.ask(hosts.Local, "up to date")
}

// TestLateDone: a PC that was silent for longer than its lease has finished all
// the same, and the server was restarted meanwhile.
func TestLateDone(t *testing.T) {
	w := newWorld(t)
	w.lab.Policy.Most = 1
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	one.half()
	w.now = w.now.Add(time.Hour)
	w.lab.expire()
	if s := w.host("exp01").State; s != api.Parked {
		t.Errorf("a PC that vanished is %s", s)
	}
	w.open()
	one.whole()
	one.ask(hosts.Local, "up to date")
	if h := w.host("exp01"); h.State != api.Current || h.Failures != 0 || h.History[0].Result != api.Done {
		t.Errorf("exp01: %+v", h)
	}
}

// TestParkedOnesHoldNobody: hosts that failed before a roll-out do not count in it.
func TestParkedOnesHoldNobody(t *testing.T) {
	w := newWorld(t)
	w.lab.Policy.Most = 1
	w.rollout(api.RolloutRequest{Targets: []string{"@front"}, StopAt: new(100.0)})
	for _, p := range []*pc{w.pc(1), w.pc(2)} {
		p.ask(hosts.Remote, "")
		p.half()
		p.report(spec.Event{Kind: spec.EventFailure, Text: "the disk is dead", Wrote: true, Final: true})
	}
	w.write("templates/motd", "another\n")
	w.reload()
	roll := w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	if len(roll.Failed) != 0 || len(roll.Waiting) != 3 {
		t.Errorf("standing: %+v", roll)
	}
	w.pc(1).ask(hosts.Wait, "parked")
	w.pc(3).reimage()
	if r := w.lab.Rollouts()[0]; r.Stopped != nil || len(r.Done) != 1 {
		t.Errorf("standing: %+v", r)
	}
}

// TestReleasedIsNotAboveAPerson: a host that was released waits for no wave, but
// for whoever stopped its roll-out, and for its time of the day.
func TestReleasedIsNotAboveAPerson(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	roll := w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	one.half()
	one.report(spec.Event{Kind: spec.EventFailure, Text: "broken wad", Wrote: true, Final: true})
	if _, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{"exp01"}}, "kim"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lab.StopRollout(t.Context(), roll.ID, "broken wad", "kim"); err != nil {
		t.Fatal(err)
	}
	one.ask(hosts.Wait, "stopped by kim: broken wad")
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Between: "22:00-06:00"})
	one.ask(hosts.Wait, "its turn comes between 22:00-06:00")
}

// TestPardon: a roll-out that a person lets go on does not stop again for what had
// failed before.
func TestPardon(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	roll := w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	one.ask(hosts.Remote, "")
	one.half()
	one.report(spec.Event{Kind: spec.EventFailure, Text: "a dead disk", Wrote: true, Final: true})
	if r := w.lab.Rollouts()[0]; r.Stopped == nil {
		t.Fatalf("one of two canaries failed: %+v", r)
	}
	w.pc(2).ask(hosts.Local, "stopped")
	if _, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{roll.ID}}, "kim"); err != nil {
		t.Fatal(err)
	}
	w.pc(2).reimage()
	w.open()
	if r := w.lab.Rollouts()[0]; r.Stopped != nil {
		t.Errorf("it stopped again: %+v", r.Stopped)
	}
	w.pc(3).reimage()
}

// TestComesBack: a host that was armed, left the inventory and comes back is not
// reimaged unless somebody says so; nor is one by a card that its manifest lacks.
func TestComesBack(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	without := strings.Replace(inventory, `  - {name: exp01, mac: ["52:54:00:00:00:01"], ip: 172.30.0.11, profile: pc, groups: [front]}`+"\n", "", 1)
	w.write("site.yaml", without)
	w.reload()
	w.pc(1).ask(hosts.Local, "not in the inventory")
	w.write("site.yaml", inventory)
	w.reload()
	w.open()
	w.pc(1).ask(hosts.Local, "roll it out again")

	// Another card, and other software that nobody has rolled out.
	w.write("templates/motd", "edited\n")
	w.write("site.yaml", strings.Replace(inventory, "52:54:00:00:00:03", "52:54:00:00:09:03", 1))
	w.reload()
	desk := w.pc(3)
	desk.mac = spec.MAC{0x52, 0x54, 0, 0, 9, 3}
	desk.ask(hosts.Local, "roll it out again")
	w.rollout(api.RolloutRequest{Targets: []string{"desk", "exp01"}})
	desk.reimage()
	w.pc(1).reimage()
}

// failing is a store that takes nothing while it is full.
type failing struct {
	Store
	full bool
}

func (f *failing) Save(e ...store.Entry) error {
	if f.full {
		return errors.New("disk full")
	}
	return f.Store.Save(e...)
}

func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	disk := &failing{Store: w.lab.Store, full: true}
	w.lab.Store = disk
	w.write("site.yaml", inventory+`  - {name: new, mac: ["02:00:00:00:00:09"], ip: 172.30.0.14, profile: pc}`+"\n")
	if _, err := w.lab.Reload(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a reload that cannot be saved: %v", err)
	}
	if _, err := w.lab.Host("new"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("what could not be saved is in force: %v", err)
	}
	if _, err := w.lab.Rollout(t.Context(), api.RolloutRequest{Targets: []string{"exp01"}}, ""); err == nil {
		t.Error("a roll-out that cannot be saved is said to be one")
	}
	w.pc(1).ask(hosts.Local, "nothing was rolled out")
	disk.full = false
	w.reload()
	w.write("site.yaml", inventory)
	if r := w.reload(); cmp.Diff([]string{"new"}, r.Removed) != "" {
		t.Errorf("the reload tells %+v", r)
	}
}

// TestMovedPC: between its boot loader and our program, the site's DHCP server has
// given the PC another address.
func TestMovedPC(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	one.ip = netip.MustParseAddr("172.30.0.60")
	if _, _, err := w.lab.Manifest(one.mac, one.token, one.ip); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("an address that nobody was seen with: %v", err)
	}
	w.lab.Seen(Sighting{MAC: one.mac, Address: one.ip})
	one.half()
	one.whole()
	one.ask(hosts.Local, "up to date")
}

// TestOldRolloutsHold: however many roll-outs follow, one that has stopped holds
// back the hosts that it has armed.
func TestOldRolloutsHold(t *testing.T) {
	w := newWorld(t)
	bad := w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	if _, err := w.lab.StopRollout(t.Context(), bad.ID, "a bad wad", "kim"); err != nil {
		t.Fatal(err)
	}
	two := w.pc(2)
	for range maxRollouts + 10 {
		w.rollout(api.RolloutRequest{Targets: []string{"exp02"}, Force: true})
	}
	w.open()
	w.pc(1).ask(hosts.Local, "stopped by kim: a bad wad")
	two.reimage()
	if n := len(w.lab.Rollouts()); n > maxRollouts+1 {
		t.Errorf("%d roll-outs are remembered", n)
	}
}

func TestUnknownCards(t *testing.T) {
	w := newWorld(t)
	mac := spec.MAC{2, 0, 0, 0, 0, 9}
	for range 3 {
		if a := w.lab.Ask(mac, netip.MustParseAddr("172.30.0.77")); a.Decision != hosts.Local || a.Host != "" || a.Token != "" {
			t.Errorf("an unknown PC is told %+v", a)
		}
	}
	w.lab.Seen(Sighting{MAC: mac, What: "PXE, BIOS"})
	w.open()
	got := w.lab.Unknown()
	if len(got) != 1 || got[0].MAC != mac || got[0].IP != "172.30.0.77" {
		t.Errorf("unknown: %+v", got)
	}
	for i := range 3 * maxUnknown {
		w.lab.Seen(Sighting{MAC: spec.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}})
	}
	if n := len(w.lab.Unknown()); n != maxUnknown {
		t.Errorf("%d unknown cards are remembered", n)
	}
	w.write("site.yaml", inventory+`  - {name: new, mac: ["02:00:00:00:00:09"], ip: 172.30.0.14, profile: pc}`+"\n")
	w.reload()
	for _, u := range w.lab.Unknown() {
		if u.MAC == mac {
			t.Error("a card that was added is still unknown")
		}
	}
}

// TestNewHostReimagesNobody: it changes everybody's /etc/hosts, which is volatile.
func TestNewHostReimagesNobody(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	one.reimage()
	w.write("site.yaml", inventory+`  - {name: new, mac: ["02:00:00:00:00:09"], ip: 172.30.0.14, profile: pc}`+"\n")
	r := w.reload()
	if len(r.Changed) != 1 || r.Changed[0].Name != "new" || cmp.Diff([]string{"new"}, r.Added) != "" {
		t.Errorf("the reload tells %+v", r)
	}
	one.ask(hosts.Local, "up to date")
	if h := w.host("exp01"); h.Drift != 1 || h.State != api.Current {
		t.Errorf("exp01: drift %d, %s", h.Drift, h.State)
	}
	why, err := w.lab.Why("exp01", true)
	if err != nil || len(why.Drift) != 1 || !strings.Contains(why.Drift[0].Diff, "+172.30.0.14 new") {
		t.Errorf("why: %+v, %v", why, err)
	}
	// It lands with the next reimage.
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	one.reimage()
	if !strings.Contains(one.text.Files[0].Content, "172.30.0.14 new") {
		t.Errorf("the next reimage lays down %q", one.text.Files[0].Content)
	}
	if h := w.host("exp01"); h.Drift != 0 {
		t.Errorf("drift %d after the reimage", h.Drift)
	}
	w.write("site.yaml", inventory)
	if r := w.reload(); cmp.Diff([]string{"new"}, r.Removed) != "" {
		t.Errorf("the reload tells %+v", r)
	}
	if _, err := w.lab.Host("new"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a host that is gone: %v", err)
	}
}

// TestEditDuringRollout: what was rolled out is what is laid down.
func TestEditDuringRollout(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	wanted := w.host("exp01").Wanted
	w.write("templates/motd", "edited, and not yet meant for anybody\n")
	w.write("wads/pc.tar", "another system")
	w.reload()
	one.ask(hosts.Remote, "")
	m := one.manifest()
	if m.Digest != wanted || strings.Contains(m.Files[1].Content, "edited") {
		t.Errorf("the PC gets %v, and %v was rolled out", m.Digest, wanted)
	}
	// And its wad is still there.
	text, err := os.ReadFile(filepath.Join(w.dir, "state", m.Wads[0].URLs[0]))
	if err != nil || spec.Sum(text) != m.Wads[0].SHA256 {
		t.Errorf("its wad: %q, %v", text, err)
	}
}

func TestMistakesKeepTheOld(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	w.write("profiles/pc.yaml", strings.Replace(profile, "table: mbr", "table: mbr\ntabel: gpt", 1))
	_, err := w.lab.Reload(t.Context(), "test")
	var mistakes conf.Errors
	if !errors.As(err, &mistakes) || mistakes[0].Line != 3 || !strings.HasSuffix(mistakes[0].File, "profiles/pc.yaml") {
		t.Errorf("the error: %v", err)
	}
	w.pc(1).reimage()
	w.pc(1).ask(hosts.Local, "up to date")
}

func TestAuto(t *testing.T) {
	w := newWorld(t)
	w.write("profiles/pc.yaml", profile+"rollout: auto\n")
	r := w.reload()
	if len(r.Changed) != 3 || !r.Changed[0].Armed {
		t.Errorf("the reload tells %+v", r)
	}
	w.pc(1).reimage()
	w.write("templates/motd", "another\n")
	w.reload()
	w.pc(1).ask(hosts.Remote, "")
	// Reading the same again rolls nothing out.
	n := len(w.lab.Rollouts())
	w.reload()
	if len(w.lab.Rollouts()) != n {
		t.Error("a reload without a change begins another roll-out")
	}
}

func TestTargets(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		targets []string
		want    string
	}{
		{[]string{"exp01"}, "exp01"}, {[]string{"EXP01", "exp01"}, "exp01"}, {[]string{"exp*"}, "exp01 exp02"}, {[]string{"@front"}, "exp01 exp02"},
		{[]string{"@f*", "desk"}, "exp01 exp02 desk"}, {[]string{"desk", "exp0[2-9]"}, "exp02 desk"}, {[]string{"*"}, "exp01 exp02 desk"},
	} {
		got, err := w.lab.pick(test.targets)
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%v: %v, %v; want %s", test.targets, got, err, test.want)
		}
	}
	for _, bad := range [][]string{nil, {"exp9*"}, {"@back"}, {"exp01", "nobody"}, {"exp0["}} {
		if got, err := w.lab.pick(bad); err == nil {
			t.Errorf("%v: %v", bad, got)
		}
		if _, err := w.lab.Rollout(t.Context(), api.RolloutRequest{Targets: bad}, ""); err == nil {
			t.Errorf("%v was rolled out", bad)
		}
	}
	if n := len(w.lab.Rollouts()); n != 0 {
		t.Errorf("%d roll-outs were made by requests that were refused", n)
	}
}

func TestSubscribe(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	news := w.lab.Subscribe(ctx)
	// Nobody reads; more changes than fit are merged, and none is lost.
	for range 3 * watcherQueue {
		if _, err := w.lab.Hold(ctx, api.Targets{Targets: []string{"*"}}, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.lab.StopRollout(ctx, w.rollout(api.RolloutRequest{Targets: []string{"*"}}).ID, "", ""); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	late := time.After(10 * time.Second)
	for !(seen["exp01"] && seen["exp02"] && seen["Desk"] && seen[""]) {
		select {
		case name := <-news:
			seen[name] = true
		case <-late:
			t.Fatalf("seen only %v", seen)
		}
	}
	cancel()
	for range news {
	}
}

func TestVanished(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	one.half()
	w.now = w.now.Add(9 * time.Minute)
	w.lab.expire()
	if s := w.host("exp01").State; s != api.Running {
		t.Errorf("before its lease: %s", s)
	}
	w.now = w.now.Add(2 * time.Minute)
	w.lab.expire()
	h := w.host("exp01")
	if h.State != api.Retrying || h.History[0].Result != api.Vanished || !strings.Contains(h.History[0].Text, "last seen in phase extract") {
		t.Errorf("after its lease: %+v", h)
	}
}

func TestLogIsBoundedAndClean(t *testing.T) {
	log := &logText{}
	for i := range 20000 {
		log.add(fmt.Sprintf("line %d \x1b[31mred\x1b[0m %s", i, strings.Repeat("x", i%200)))
	}
	if len(log.text) > maxLog {
		t.Errorf("the log has %d bytes", len(log.text))
	}
	text := string(log.text)
	if !strings.HasPrefix(text, "line 0 [31mred") || !strings.Contains(text, "line 19999 ") || strings.Count(text, "left out here") != 1 {
		t.Errorf("its ends are not there, or its cuts pile up (%d)", strings.Count(text, "left out here"))
	}
}

// TestWatch: files are read once they have settled, those with mistakes once, and
// those that could not be taken in passing again after a while.
func TestWatch(t *testing.T) {
	var w watch
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for i, look := range []struct {
		now, read string
		after     time.Duration
		want      bool
	}{
		{"a", "a", 0, false},
		{"b", "a", 2 * time.Second, false},             // being written
		{"c", "a", 2 * time.Second, false},             // still
		{"c", "a", 2 * time.Second, true},              // settled
		{"c", "c", 2 * time.Second, false},             // taken, or judged to have mistakes
		{"d", "c", 2 * time.Second, false},             // the next edit
		{"d", "c", 2 * time.Second, true},              // cannot be taken: the disk is full
		{"d", "c", 2 * time.Second, false},             // not at every look
		{"d", "c", retryReload - 4*time.Second, false}, // nor yet
		{"d", "c", 2 * time.Second, true},              // but again
		{"e", "c", 2 * time.Second, false},             // what is edited meanwhile does not wait for that
		{"e", "c", 2 * time.Second, true},
	} {
		at = at.Add(look.after)
		if got := w.due(look.now, look.read, at); got != look.want {
			t.Errorf("look %d: %v, want %v", i, got, look.want)
		}
	}
}

// BenchmarkHosts looks at a lab of 500 PCs that wait for their turn.
func BenchmarkHosts(b *testing.B) {
	l := manyHosts(500)
	for b.Loop() {
		if n := len(l.Hosts()); n != 500 {
			b.Fatal(n)
		}
	}
}

// BenchmarkCall looks for PCs to start in the same lab, where nobody's turn has come.
func BenchmarkCall(b *testing.B) {
	l := manyHosts(500)
	l.rollouts[0].Now = true
	l.rollouts[0].Stop = &api.Note{By: "kim"}
	for b.Loop() {
		l.call(b.Context())
	}
}

// manyHosts is a lab of PCs of which half are done and half wait.
func manyHosts(n int) *Lab {
	l := &Lab{Options: Options{Now: time.Now}, records: map[string]*hosts.Record{}, candidates: map[string]*spec.Manifest{}, places: map[string]int{}, site: &resolve.Site{}}
	roll := &hosts.Rollout{ID: "roll", Canaries: 2, AtOnce: 16, StopAt: 20}
	for i := range n {
		name := fmt.Sprintf("pc%03d", i)
		l.places[name] = i
		l.order = append(l.order, name)
		l.site.Inventory.Hosts = append(l.site.Inventory.Hosts, spec.Host{Name: name})
		l.candidates[name] = &spec.Manifest{}
		l.records[name] = &hosts.Record{Name: name}
		l.records[name].Arm(hosts.Software{Digest: spec.Sum([]byte("x"))}, "roll")
		roll.Hosts = append(roll.Hosts, name)
		if i%2 == 0 {
			roll.Done = append(roll.Done, name)
		}
	}
	l.rollouts = append(l.rollouts, roll)
	return l
}

// TestErrand takes a verification from the order to its result.
func TestErrand(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	p := w.pc(1)
	p.reimage()
	verify := func(targets ...string) []string {
		t.Helper()
		out, err := w.lab.Errand(t.Context(), api.ErrandRequest{Kind: spec.Verify, Targets: api.Targets{Targets: targets, Why: "dirty?"}}, "kim")
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, o := range out {
			texts = append(texts, o.Host+": "+o.Text)
		}
		return texts
	}
	want := []string{"exp01: will verify at its next boot", "exp02: left alone: what is installed on it is not known: roll out to it first"}
	if d := cmp.Diff(want, verify("exp01", "exp02")); d != "" {
		t.Error(d)
	}
	w.open() // over a restart
	p.ask(hosts.Remote, "to be verified by kim: dirty?")
	m := p.manifest()
	if m.Errand == nil || m.Errand.Kind != spec.Verify || m.Errand.ID == "" || m.Serial != w.pcSerial("exp01") {
		t.Errorf("the manifest has errand %+v and serial %d", m.Errand, m.Serial)
	}
	if h := w.host("exp01"); h.Errand == nil || !strings.HasPrefix(h.Reason, "to be verified") {
		t.Errorf("meanwhile it says %q, errand %+v", h.Reason, h.Errand)
	}
	p.report(spec.Event{Kind: spec.EventStart, Installed: p.installed()})
	p.report(spec.Event{Kind: spec.EventErrand, Verified: &spec.Verified{Total: 1, Findings: []spec.Finding{{Path: "/etc/passwd", What: "mode"}}}})
	h := w.host("exp01")
	if h.Errand != nil || h.Verified == nil || h.Verified.ID != m.Errand.ID || h.Verified.Total != 1 || h.State != api.Current {
		t.Errorf("afterwards: %+v", h)
	}
	p.ask(hosts.Local, "up to date")
	if _, err := w.lab.Hold(t.Context(), api.Targets{Targets: []string{"exp01"}, Why: "exam"}, "kim"); err != nil {
		t.Fatal(err)
	}
	if got := verify("exp01"); !strings.Contains(got[0], "left alone: it is held: exam") {
		t.Errorf("a held one: %q", got)
	}
	if _, err := w.lab.Errand(t.Context(), api.ErrandRequest{Kind: "wash", Targets: api.Targets{Targets: []string{"exp01"}}}, ""); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("an errand that is none: %v", err)
	}
}

// pcSerial is that of the software that a host holds.
func (w *world) pcSerial(name string) int64 { return w.lab.record(name).Installed.Serial }

// TestFinished has the server remember what index a PC's finished tree has.
func TestFinished(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	p := w.pc(1)
	p.ask(hosts.Remote, "")
	p.half()
	if !p.text.Finished.IsZero() {
		t.Errorf("nobody reported an index, and the manifest has %v", p.text.Finished)
	}
	first := spec.Sum([]byte("the finished tree"))
	p.report(spec.Event{Kind: spec.EventDone, Phase: "commit", Installed: p.installed(), Finished: first})
	w.open()
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	p.ask(hosts.Remote, "")
	if p.half(); p.text.Finished != first {
		t.Errorf("the manifest has %v, not %v", p.text.Finished, first)
	}
	p.whole() // an image that writes no index
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	p.ask(hosts.Remote, "")
	if p.manifest(); !p.text.Finished.IsZero() {
		t.Errorf("what is on the disk has no index, and the manifest has %v", p.text.Finished)
	}
}
