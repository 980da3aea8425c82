package web

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reassure/image/coverage"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

var demo = flag.String("demo", "", "instead of testing, serve a made-up lab on this address (127.0.0.1:8080); its token is demo")

func TestMain(m *testing.M) {
	flag.Parse()
	if *demo == "" {
		os.Exit(m.Run())
	}
	lab := newFake(24)
	go lab.live(time.Second)
	l, err := net.Listen("tcp", *demo)
	if err != nil {
		log.Fatal(err)
	}
	s := New(lab, Options{Base: "/reassure", Title: "Lab 1", Version: "demo", Tokens: KnownTokens(map[string]string{"ada": "demo"})})
	fmt.Printf("http://%s/reassure/\n", l.Addr())
	log.Fatal(s.Serve(context.Background(), l, s.Handler()))
}

// fake is a lab in memory.
type fake struct {
	mu       sync.Mutex
	hosts    []api.HostDetail
	why      map[string]api.Why
	logs     map[string]string
	rollouts []api.Rollout
	unknown  []api.Unknown
	events   []string                      // "HOST KIND"
	calls    []string                      // what was asked for, and by whom
	fail     error                         // of the next change
	capture  func(tarball io.Reader) error // takes a capture in place of what follows
	viewers  []chan string
}

// manifestToken is what the fake takes from PCs.
const manifestToken = "pc-token"

func digest(n int) spec.Digest { return spec.Sum(fmt.Append(nil, n)) }

// newFake makes a lab of n hosts in all states.
func newFake(n int) *fake {
	now := time.Now().Truncate(time.Second)
	f := &fake{why: map[string]api.Why{}, logs: map[string]string{}}
	texts := map[api.State]string{
		api.Running:  "It is being reimaged since it was told Remote: wad debian.tar.zst changed.",
		api.Held:     "A person holds it.",
		api.Parked:   "Parked after 3 failed attempts: disk: no disk is fit: /dev/sda belongs to an LVM group; write overwrite: foreign into the profile.",
		api.Retrying: "Its last attempt failed: wad debian.tar.zst: connection reset after 1.21 GiB.",
		api.Armed:    "Rolled out, and waits for its turn: 16 others are under way.",
		api.Changed:  "Template conf.d/net changed; nobody has rolled that out.",
		api.Current:  "It has what it should have.",
		api.New:      "Nothing was rolled out to it yet.",
	}
	few := []api.State{
		api.Current, api.Current, api.Running, api.Running, api.Running, api.Current, api.Parked, api.Current, api.Armed, api.Armed,
		api.Current, api.Retrying, api.Current, api.Held, api.Changed, api.Current, api.Current, api.New,
	}
	for i := range n {
		state := few[i%len(few)]
		if n > 100 && i%9 != 0 {
			state = api.Current
		}
		h := api.HostDetail{Host: api.Host{
			Name: fmt.Sprintf("exp%02d", i+1), IP: fmt.Sprintf("172.30.%d.%d", i/200, 10+i%200),
			MACs:    []spec.MAC{{0x00, 0x09, 0x3d, 0x12, byte(i >> 8), byte(i)}},
			Profile: []string{"debian", "gentoo-reassure"}[i%3/2], Groups: []string{[]string{"rack1", "rack2"}[i%2]},
			State: state, Decision: "local", Reason: texts[state],
			Installed: digest(1), Wanted: digest(1), Candidate: digest(1),
			LastSeen: now.Add(-time.Duration(i*i+i) * time.Minute), LastDone: now.Add(-time.Duration(i+20) * time.Hour),
		}}
		switch state {
		case api.Running:
			h.Decision, h.Wanted, h.Candidate = "remote", digest(2), digest(2)
			h.Rollout = "r12"
			h.Progress = &api.Progress{
				Attempt: 1, Phase: "extract", Text: "debian.tar.zst", Done: spec.Size(i+1) * 150 * spec.MiB, Total: 1400 * spec.MiB,
				Rate: 87 * spec.MiB, ETA: float64(40 - i), Started: now.Add(-70 * time.Second), Updated: now,
			}
			h.LastSeen = now
			if i%3 == 0 {
				h.Progress.Phase, h.Progress.Text, h.Progress.Total = "steps", "ssh_keys", 0
				h.Progress.Rate, h.Progress.ETA = 0, 0
			}
		case api.Held:
			h.Hold = &api.Note{Text: "oscilloscope rig, until Friday", By: "ada", At: now.Add(-26 * time.Hour)}
		case api.Parked:
			h.Decision, h.Wanted, h.Candidate, h.Failures = "local", digest(2), digest(2), 3
			h.Parked = &api.Note{Text: "/dev/sda: WDC WD10EZEX, 931 GiB, holds lvm2", At: now.Add(-2 * time.Hour)}
		case api.Retrying:
			h.Decision, h.Wanted, h.Candidate, h.Failures, h.NextTry = "local", digest(2), digest(2), 1, now.Add(100*time.Second)
		case api.Armed:
			h.Wanted, h.Candidate, h.Rollout = digest(2), digest(2), "r12"
		case api.Changed:
			h.Candidate, h.Drift = digest(3), 1
		case api.New:
			h.Installed, h.Wanted, h.LastSeen, h.LastDone = spec.Digest{}, spec.Digest{}, time.Time{}, time.Time{}
		}
		f.detail(&h, now)
		f.hosts = append(f.hosts, h)
	}
	name := func(i int) string { return f.hosts[i%n].Name }
	f.rollouts = []api.Rollout{
		{ID: "r12", Started: now.Add(-6 * time.Minute), By: "ada", Why: "new compiler", Canaries: 2, AtOnce: 16, StopAt: 20, Between: "22:00-06:00",
			Waiting: []string{name(8), name(9)}, Running: []string{name(2), name(3), name(4)}, Done: []string{name(0), name(1), name(5), name(7)}, Failed: []string{name(11)}, Same: []string{name(10)}},
		{ID: "r11", Started: now.Add(-26 * time.Hour), By: "root", Force: true, Canaries: 1, AtOnce: 4, StopAt: 20,
			Done: []string{name(10)}, Failed: []string{name(6)}, Waiting: []string{name(12)}, Stopped: &api.Note{Text: "50 % failed, more than 20 %", At: now.Add(-25 * time.Hour)}},
		{ID: "r10", Started: now.Add(-50 * time.Hour), By: "ada", Canaries: 2, AtOnce: 16, StopAt: 20, Done: []string{name(1), name(2)}},
		{ID: "r9", Started: now.Add(-90 * time.Hour), By: "ada", Canaries: 2, AtOnce: 16, StopAt: 20, Done: []string{name(1), name(2)}},
	}
	f.unknown = []api.Unknown{
		{MAC: spec.MAC{0x52, 0x54, 0, 0xaa, 0xbb, 1}, IP: "172.30.0.200", What: "PXEClient, BIOS", First: now.Add(-3 * time.Hour), Last: now.Add(-4 * time.Minute), Count: 7},
		{MAC: spec.MAC{0x52, 0x54, 0, 0xaa, 0xbb, 2}, What: "PXEClient, UEFI x86-64", First: now.Add(-40 * time.Minute), Last: now.Add(-40 * time.Minute), Count: 1},
	}
	return f
}

// detail fills in what a host's page shows.
func (f *fake) detail(h *api.HostDetail, now time.Time) {
	f.why[h.Name] = api.Why{Host: h.Name, Decision: h.Decision, Reason: h.Reason}
	if h.State == api.New {
		return
	}
	h.Address = h.IP
	h.Facts = &spec.Facts{
		Firmware: spec.BIOS, Vendor: "Dell Inc.", Product: "OptiPlex 7010", Serial: "4XK2M5J", CPU: "Intel(R) Core(TM) i5-3470 CPU @ 3.20GHz", CPUs: 4,
		Memory: 8 * spec.GiB, Kernel: "6.1.0-38-amd64",
		NICs:  []spec.NIC{{Name: "eth0", MAC: h.MACs[0], Driver: "e1000e", Booted: true}},
		Disks: []spec.Disk{{Device: "/dev/sda", Model: "WDC WD10EZEX-08WN4A0", Serial: "WCC6Y5FHX3KZ", Bus: "ata", Size: 1000204886016, Rotational: true, Table: spec.MBR}},
	}
	h.Plan = &spec.Plan{
		Host: h.Name, Profile: h.Profile, Disk: h.Facts.Disks[0], Table: spec.MBR,
		Partitions: []spec.Placed{
			{Number: 1, Length: 512 << 20, Partition: spec.Partition{Name: "boot", FileSystem: "ext4", Mount: "/boot"}},
			{Number: 2, Length: 4 << 30, Partition: spec.Partition{Name: "swap", FileSystem: "swap"}},
			{Number: 3, Length: 900 << 30, Partition: spec.Partition{Name: "root", FileSystem: "ext4", Mount: "/"}},
		},
		Wads:  []spec.Wad{{Name: "debian.tar.zst", Size: 1400 * spec.MiB, SHA256: digest(9), Mount: "/"}},
		Files: []string{"/etc/hosts", "/etc/fstab"}, Steps: []string{"ssh keys", "limits", "boot loader"}, Finish: spec.Reboot,
	}
	if h.State == api.Parked {
		target := h.Facts.Disks[0]
		target.Contents = []spec.Content{{Kind: "vfat", Size: 512 * spec.MiB}, {Kind: "ntfs", Label: "Windows", Size: 900 * spec.GiB}}
		h.Target, h.Ask = &target, spec.AskDisk
	}
	h.HostKeys = []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBOdm2Qm0x5fnXwPmCTy2VfQ3b0Y5nq1l2o3p4q5r6s7 root@" + h.Name}
	phases := []spec.PhaseTime{{Name: "hardware", Seconds: 1.4}, {Name: "network", Seconds: 2.2}, {Name: "manifest", Seconds: .2}, {Name: "decide", Seconds: .3}, {Name: "erase", Seconds: .4}, {Name: "format", Seconds: 1.1}, {Name: "extract", Seconds: 31}, {Name: "configure", Seconds: .8}, {Name: "steps", Seconds: 9}, {Name: "commit", Seconds: 2.1}}
	add := func(id string, began, took time.Duration, result api.Result, reason, text string, keep int) {
		a := api.Attempt{ID: id, Started: now.Add(-began), Result: result, Reason: reason, Text: text, Digest: h.Wanted, Bytes: 1400 * spec.MiB, Phases: phases[:keep]}
		if took > 0 {
			a.Ended = a.Started.Add(took)
		}
		h.History = append(h.History, a)
		f.logs[h.Name+" "+id] = fmt.Sprintf("[    1.21] reimage: %s attempt %s\n[    2.48] network: eth0 %s\n%s", h.Name, id, h.IP, strings.Repeat("[    5.00] extract: debian.tar.zst usr/lib/x86_64-linux-gnu\n", 40))
	}
	f.logs[h.Name+" "] = ""
	switch h.State {
	case api.Running:
		add("a7", 70*time.Second, 0, api.UnderWay, "wad debian.tar.zst: sha256 1a2b… -> 3c4d…", "", 7)
	case api.Parked:
		add("a7", 2*time.Hour, 6*time.Second, api.Failed, "wad debian.tar.zst: sha256 1a2b… -> 3c4d…", "disk: no disk is fit: /dev/sda belongs to an LVM group", 4)
		add("a6", 3*time.Hour, 6*time.Second, api.Failed, "wad debian.tar.zst: sha256 1a2b… -> 3c4d…", "disk: no disk is fit: /dev/sda belongs to an LVM group", 4)
		add("a5", 4*time.Hour, 40*time.Minute, api.Vanished, "wad debian.tar.zst: sha256 1a2b… -> 3c4d…", "", 7)
	}
	add("a4", 50*time.Hour, 49*time.Second, api.Done, "Template fstab: 1 line.", "", 10)
	add("a3", 200*time.Hour, 4*time.Second, api.UpToDate, "Forced, but its disk has this order already.", "", 4)
	add("a2", 300*time.Hour, 52*time.Second, api.Done, "First reimage.", "", 10)
	w := f.why[h.Name]
	switch h.State {
	case api.Running, api.Parked, api.Armed, api.Retrying:
		w.Due = []api.Change{{Text: "wad debian.tar.zst: sha256 1a2b… → 3c4d…"}}
		w.Drift = []api.Change{{Text: "template hosts: 1 line", Volatile: true, Diff: "--- a/etc/hosts\n+++ b/etc/hosts\n@@ -1,2 +1,3 @@\n 127.0.0.1 localhost\n+172.30.0.33 exp24\n"}}
	case api.Changed:
		w.Pending = []api.Change{{Text: "template conf.d/net: 2 lines", Diff: "--- installed\n+++ now\n@@ -3,2 +3,2 @@\n config_lan0=\"dhcp\"\n-dns_servers=\"172.30.0.1\"\n+dns_servers=\"172.30.0.5 172.30.0.1\"\n"}}
	}
	f.why[h.Name] = w
}

// change changes a host and tells who watches.
func (f *fake) change(name string, with func(h *api.HostDetail)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.index(name); i >= 0 {
		// The page may hold the old one.
		h := f.hosts[i]
		if h.Progress != nil {
			p := *h.Progress
			h.Progress = &p
		}
		with(&h)
		f.hosts[i] = h
		w := f.why[name]
		w.Reason, w.Decision = h.Reason, h.Decision
		f.why[name] = w
	}
	f.tell(name)
}

func (f *fake) tell(name string) {
	for _, v := range f.viewers {
		select {
		case v <- name:
		default:
			panic("a viewer of the fake does not read")
		}
	}
}

// live moves what runs, for ever.
func (f *fake) live(every time.Duration) {
	for range time.Tick(every) {
		for _, h := range f.Hosts() {
			if h.State == api.Running {
				f.change(h.Name, func(h *api.HostDetail) {
					p := h.Progress
					p.Phase, p.Text, p.Total, p.Rate = "extract", "debian.tar.zst", 1400*spec.MiB, 87*spec.MiB
					p.Done = (p.Done + 40*spec.MiB) % p.Total
					p.ETA = float64((p.Total - p.Done) / p.Rate)
					h.LastSeen = time.Now()
				})
			}
		}
	}
}

func (f *fake) index(name string) int {
	return slices.IndexFunc(f.hosts, func(h api.HostDetail) bool { return h.Name == name })
}

func (f *fake) Hosts() []api.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]api.Host, len(f.hosts))
	for i, h := range f.hosts {
		out[i] = h.Host
	}
	return out
}

func (f *fake) Host(name string) (api.HostDetail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.index(name); i >= 0 {
		return f.hosts[i], nil
	}
	return api.HostDetail{}, fmt.Errorf("host %q: %w", name, api.ErrNotFound)
}

func (f *fake) Why(name string, private bool) (api.Why, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.why[name]
	if !ok {
		return w, fmt.Errorf("host %q: %w", name, api.ErrNotFound)
	}
	if !private {
		bare := func(list []api.Change) []api.Change {
			list = slices.Clone(list)
			for i := range list {
				list[i].Diff = ""
			}
			return list
		}
		w.Due, w.Pending, w.Drift = bare(w.Due), bare(w.Pending), bare(w.Drift)
	}
	return w, nil
}

func (f *fake) Log(name, attempt string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.index(name); i >= 0 && attempt == "" && len(f.hosts[i].History) > 0 {
		attempt = f.hosts[i].History[0].ID
	}
	text, ok := f.logs[name+" "+attempt]
	if !ok {
		return "", fmt.Errorf("log of %q, attempt %q: %w", name, attempt, api.ErrNotFound)
	}
	return text, nil
}

func (f *fake) Rollouts() []api.Rollout {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rollouts)
}

// called notes a change that was asked for.
func (f *fake) called(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	err := f.fail
	f.fail = nil
	return err
}

func (f *fake) Rollout(_ context.Context, r api.RolloutRequest, by string) (api.Rollout, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("rollout %v force=%v now=%v between=%q why=%q by %s", r.Targets, r.Force, r.Now, r.Between, r.Why, by); err != nil {
		return api.Rollout{}, err
	}
	out := api.Rollout{ID: "r13", Started: time.Now(), By: by, Why: r.Why, Force: r.Force, Waiting: r.Targets, Canaries: 2, AtOnce: 16, StopAt: 20}
	f.rollouts = slices.Insert(f.rollouts, 0, out)
	f.tell("")
	return out, nil
}

func (f *fake) StopRollout(_ context.Context, id, why, by string) (api.Rollout, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("stop %s why=%q by %s", id, why, by); err != nil {
		return api.Rollout{}, err
	}
	for i := range f.rollouts {
		if f.rollouts[i].ID == id {
			f.rollouts[i].Stopped = &api.Note{Text: why, By: by, At: time.Now()}
			f.tell("")
			return f.rollouts[i], nil
		}
	}
	return api.Rollout{}, fmt.Errorf("roll-out %q: %w", id, api.ErrNotFound)
}

func (f *fake) Approve(_ context.Context, r api.ApproveRequest, by string) ([]api.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("approve %v why=%q by %s", r.Plans, r.Why, by); err != nil {
		return nil, err
	}
	var out []api.Outcome
	for name := range r.Plans {
		out = append(out, api.Outcome{Host: name, Text: "approved"})
	}
	return out, nil
}

func (f *fake) AcceptDisks(_ context.Context, r api.AcceptRequest, by string) ([]api.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("accept %v why=%q by %s", r.Disks, r.Why, by); err != nil {
		return nil, err
	}
	var out []api.Outcome
	for name := range r.Disks {
		out = append(out, api.Outcome{Host: name, Text: "accepted"})
	}
	return out, nil
}

func (f *fake) Hold(_ context.Context, t api.Targets, by string) ([]api.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("hold %v why=%q by %s", t.Targets, t.Why, by); err != nil {
		return nil, err
	}
	var out []api.Outcome
	for _, name := range t.Targets {
		i := f.index(name)
		if i < 0 {
			return nil, fmt.Errorf("host %q: %w", name, api.ErrNotFound)
		}
		f.hosts[i].State, f.hosts[i].Reason, f.hosts[i].Progress = api.Held, "A person holds it.", nil
		f.hosts[i].Hold = &api.Note{Text: t.Why, By: by, At: time.Now()}
		out = append(out, api.Outcome{Host: name, Text: "held"})
		f.tell(name)
	}
	return out, nil
}

func (f *fake) VerifyRunning(_ context.Context, host, by string) (api.Inspected, error) {
	return api.Inspected{Text: by + " may not look into " + host}, nil
}

func (f *fake) Errand(_ context.Context, r api.ErrandRequest, by string) ([]api.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("errand %s %v now=%v why=%q by %s", r.Kind, r.Targets.Targets, r.Now, r.Why, by); err != nil {
		return nil, err
	}
	return []api.Outcome{{Host: "exp01", Text: "will verify at its next boot"}}, nil
}

func (f *fake) Capture(_ context.Context, token string, from netip.Addr, host string, tarball io.Reader) (api.Captured, error) {
	if token != manifestToken {
		return api.Captured{}, fmt.Errorf("%s: not its token: %w", host, api.ErrForbidden)
	}
	if f.capture != nil {
		return api.Captured{}, f.capture(tarball)
	}
	n, err := io.Copy(io.Discard, tarball)
	if err != nil {
		return api.Captured{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("capture %s from %v: %d bytes", host, from, n); err != nil {
		return api.Captured{}, err
	}
	return api.Captured{File: "/lab/wads/" + host + ".tar.zst", Size: spec.Size(n)}, nil
}

func (f *fake) Release(_ context.Context, t api.Targets, by string) ([]api.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("release %v by %s", t.Targets, by); err != nil {
		return nil, err
	}
	var out []api.Outcome
	for _, name := range t.Targets {
		if i := f.index(name); i >= 0 {
			f.hosts[i].State, f.hosts[i].Hold, f.hosts[i].Parked, f.hosts[i].Reason = api.Current, nil, nil, "It has what it should have."
			f.tell(name)
		}
		out = append(out, api.Outcome{Host: name, Text: "released"})
	}
	return out, nil
}

func (f *fake) Reload(_ context.Context, by string) (api.Reload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("reload by %s", by); err != nil {
		return api.Reload{}, err
	}
	f.tell("")
	return api.Reload{Hosts: len(f.hosts), Changed: []api.ChangedHost{{Name: f.hosts[0].Name, Changes: []api.Change{{Text: "template conf.d/net: 2 lines"}}}}}, nil
}

func (f *fake) Unknown() []api.Unknown {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.unknown)
}

func (f *fake) Coverage() (api.Coverage, error) {
	return api.Coverage{Version: "0.1", Flavour: "full", Kernel: "6.1.0-44-amd64", Hosts: len(f.hosts), Reported: 2, Lacking: []api.Lacking{{
		Verdict: coverage.Verdict{
			Device: coverage.Device{Bus: "pci", Vendor: "14e4", Product: "1639", Class: "0200"}, Kind: coverage.Network, State: coverage.NoFirmware,
			Driver: "bnx2", Missing: []string{"bnx2/bnx2-mips-06-6.2.3.fw"},
		}, Hosts: []string{"exp01"},
	}}}, nil
}

func (f *fake) KnownHosts() string { return "exp01,172.30.0.10 ssh-ed25519 AAAA\n" }

func (f *fake) Subscribe(ctx context.Context) <-chan string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan string, 10000)
	f.viewers = append(f.viewers, c)
	go func() {
		<-ctx.Done()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.viewers = slices.DeleteFunc(f.viewers, func(v chan string) bool { return v == c })
		close(c)
	}()
	return c
}

func (f *fake) Manifest(mac spec.MAC, token string, from netip.Addr) (text, signature []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.hosts, func(h api.HostDetail) bool { return slices.Contains(h.MACs, mac) }) {
		return nil, nil, api.ErrNotFound
	}
	if token != manifestToken || !from.IsLoopback() {
		return nil, nil, fmt.Errorf("%w: the token is not this PC's", api.ErrForbidden)
	}
	return []byte(`{"host":"exp01"}`), []byte("untrusted comment: signature\n"), nil
}

func (f *fake) Event(token string, from netip.Addr, host string, e spec.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if token != manifestToken || !from.IsLoopback() {
		return fmt.Errorf("%w: the token is not this PC's", api.ErrForbidden)
	}
	if host == "broken" {
		return errors.New("store: disk full")
	}
	f.events = append(f.events, host+" "+string(e.Kind))
	return nil
}

// asked are the changes that were asked for, so far.
func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}
