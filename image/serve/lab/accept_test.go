package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

func windows(serial string) *spec.Disk {
	return &spec.Disk{Device: "/dev/sda", Serial: serial, Model: "Lab Disk", Size: spec.GiB,
		Contents: []spec.Content{{Partition: 1, Kind: "ntfs", Label: "Windows"}}}
}

// asks takes a PC through a boot that ends in a question.
func (p *pc) asks(ask spec.Ask, text string, target *spec.Disk, found *spec.Installed) {
	p.t.Helper()
	p.ask(hosts.Remote, "")
	p.manifest()
	p.report(spec.Event{Kind: spec.EventStart, Phase: "manifest", Target: target, Installed: found})
	p.report(spec.Event{Kind: spec.EventFailure, Phase: "decide", Text: text, Ask: ask, Final: true})
}

func (w *world) accept(disks map[string]spec.DiskID) []api.Outcome {
	w.t.Helper()
	out, err := w.lab.AcceptDisks(w.t.Context(), api.AcceptRequest{Disks: disks}, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// TestDisks is a disk's life as the server sees it: a stranger's, accepted, the
// host's own, and replaced.
func TestDisks(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	roll := w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.asks(spec.AskDisk, "it holds ntfs", windows("S1"), nil)
	one.ask(hosts.Local, "parked: it holds ntfs")
	if h := w.host("exp01"); h.State != api.Parked || h.Failures != 0 || h.Ask != spec.AskDisk || h.Disk != nil || h.Target.Serial != "S1" {
		t.Errorf("exp01: %+v", h)
	}
	// Nobody has failed: the roll-out goes on.
	if r := w.lab.Rollouts()[0]; r.ID != roll.ID || r.Stopped != nil || len(r.Failed) != 0 || len(r.Waiting) != 1 {
		t.Errorf("the roll-out: %+v", r)
	}
	// A release alone has it ask once more.
	if _, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{"exp01"}}, "kim"); err != nil {
		t.Fatal(err)
	}
	one.asks(spec.AskDisk, "it holds ntfs", windows("S1"), nil)

	// What a person has seen is what counts.
	out := w.accept(map[string]spec.DiskID{"exp01": windows("S0").Identity(), "exp02": windows("S2").Identity()})
	if len(out) != 2 || !strings.Contains(out[0].Text, "another disk now") || !strings.Contains(out[1].Text, "not reported its disk") {
		t.Errorf("accepted: %+v", out)
	}
	one.ask(hosts.Local, "parked")
	if diff := cmp.Diff([]api.Outcome{{Host: "exp01", Text: "accepted, and no longer parked"}}, w.accept(map[string]spec.DiskID{"EXP01": windows("S1").Identity()})); diff != "" {
		t.Errorf("accepted: %s", diff)
	}
	w.open() // it is not forgotten
	one.ask(hosts.Remote, "")
	if diff := cmp.Diff([]spec.DiskID{windows("S1").Identity()}, one.manifest().Accepted); diff != "" {
		t.Errorf("the manifest: %s", diff)
	}
	one.report(spec.Event{Kind: spec.EventStart, Target: windows("S1")})
	one.whole()

	// Up to date on another disk takes no disk's place; reimaged on one does.
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	one.asks(spec.AskDisk, "not the disk that is known", windows("S3"), nil)
	if h := w.host("exp01"); h.Disk.Serial != "S1" {
		t.Errorf("its disk is %v", h.Disk)
	}
	w.accept(map[string]spec.DiskID{"exp01": windows("S3").Identity()})
	one.ask(hosts.Remote, "")
	one.manifest()
	one.report(spec.Event{Kind: spec.EventStart, Target: windows("S3")})
	one.whole()
	if h := w.host("exp01"); h.Disk.Serial != "S3" || h.Ask != "" || h.State != api.Current {
		t.Errorf("exp01: %+v", h)
	}
}

// A disk that a PC was reimaged on is known from then on, without anybody's word.
func TestDiskIsRemembered(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	blank := &spec.Disk{Device: "/dev/sda", Serial: "S1", Size: spec.GiB}
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	one.ask(hosts.Remote, "")
	if m := one.manifest(); len(m.Accepted) != 0 {
		t.Errorf("accepted: %v", m.Accepted)
	}
	one.report(spec.Event{Kind: spec.EventStart, Target: blank})
	one.whole()
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	one.ask(hosts.Remote, "")
	if diff := cmp.Diff([]spec.DiskID{blank.Identity()}, one.manifest().Accepted); diff != "" {
		t.Errorf("accepted: %s", diff)
	}
	one.report(spec.Event{Kind: spec.EventStart, Target: windows("S7")})
	one.report(spec.Event{Kind: spec.EventUpToDate, Installed: one.installed()})
	if h := w.host("exp01"); h.Disk.Serial != "S1" {
		t.Errorf("its disk is %v", h.Disk)
	}
}

// A stamp that claims to be newer than all that was ever published is told, and
// stays until a person has let it pass, once.
func TestStampFromTheFuture(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	future := &spec.Installed{Host: "exp01", Digest: spec.Sum([]byte("x")), Serial: 1 << 40, Whole: true}
	one.asks(spec.AskSerial, "older than what the stamp says", windows("S1"), future)
	one.ask(hosts.Local, "parked: older than what the stamp says")
	out, err := w.lab.Release(t.Context(), api.Targets{Targets: []string{"exp01"}}, "kim")
	if err != nil || len(out) != 1 || !strings.Contains(out[0].Text, "may replace what calls itself newer") {
		t.Errorf("released: %v, %v", out, err)
	}
	one.ask(hosts.Remote, "")
	if m := one.manifest(); m.Supersedes != 1<<40 || m.Serial >= m.Supersedes {
		t.Errorf("serial %d supersedes %d", m.Serial, m.Supersedes)
	}
	one.report(spec.Event{Kind: spec.EventStart, Target: windows("S1"), Installed: future})
	one.whole()
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}, Force: true})
	one.ask(hosts.Remote, "")
	if m := one.manifest(); m.Supersedes != 0 {
		t.Errorf("it still supersedes %d", m.Supersedes)
	}
}

// What people have accepted in the site's folder is in force as soon as it is read.
func TestAcceptedFile(t *testing.T) {
	w := newWorld(t)
	one := w.pc(1)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	before := w.lab.fingerprint()
	w.write(spec.AcceptedFile, "disks:\n  - {host: exp01, serial: S1}\n")
	if w.lab.fingerprint() == before {
		t.Error("nobody would read it")
	}
	for _, c := range w.reload().Changed {
		if c.Name == "exp01" {
			t.Errorf("an accepted disk is no change of software: %+v", c)
		}
	}
	one.ask(hosts.Remote, "")
	if diff := cmp.Diff([]spec.DiskID{{Serial: "S1"}}, one.manifest().Accepted); diff != "" {
		t.Errorf("accepted: %s", diff)
	}
}

func (w *world) approve(plans map[string]spec.Digest) []api.Outcome {
	w.t.Helper()
	out, err := w.lab.Approve(w.t.Context(), api.ApproveRequest{Plans: plans}, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// plans takes a PC to where its plan is known.
func (p *pc) plans(size spec.Size) *spec.Plan {
	p.t.Helper()
	p.ask(hosts.Remote, "")
	p.manifest()
	plan := &spec.Plan{Host: p.name, Profile: "pc", Digest: p.text.Digest, Disk: spec.Disk{Device: "/dev/sda", Serial: p.name, Size: size}, Wads: p.text.Wads}
	p.report(spec.Event{Kind: spec.EventPlan, Phase: "plan", Plan: plan})
	return plan
}

// TestApprove has plans wait for a person, and others go on because theirs are alike.
func TestApprove(t *testing.T) {
	w := newWorld(t)
	one, two, desk := w.pc(1), w.pc(2), w.pc(3)
	w.write("profiles/pc.yaml", profile+"approve: same\n")
	w.reload()
	w.rollout(api.RolloutRequest{Targets: []string{"*"}, Canaries: new(0)})

	plan := one.plans(spec.GiB)
	one.report(spec.Event{Kind: spec.EventPhase, Phase: spec.PhaseApproval})
	if h := w.host("exp01"); h.State != api.Running || h.Progress == nil || !strings.Contains(h.Progress.Text, "reassure approve exp01") {
		t.Errorf("exp01: %+v", h)
	}
	if m := one.manifest(); m.Approve != spec.ApproveSame || !m.Approved.IsZero() {
		t.Errorf("nobody has approved, and the manifest says %v, %v", m.Approve, m.Approved)
	}
	// One that asks again and again is not silent.
	w.now = w.now.Add(9 * time.Minute)
	one.manifest()
	w.now = w.now.Add(9 * time.Minute)
	w.lab.expire()
	out := w.approve(map[string]spec.Digest{"exp01": spec.Sum([]byte("x")), "exp02": plan.Sum()})
	if len(out) != 2 || !strings.Contains(out[0].Text, "another plan since") || !strings.Contains(out[1].Text, "no plan yet") {
		t.Errorf("approved: %+v", out)
	}
	if diff := cmp.Diff([]api.Outcome{{Host: "exp01", Text: "approved"}}, w.approve(map[string]spec.Digest{"exp01": plan.Sum()})); diff != "" {
		t.Error(diff)
	}
	if m := one.manifest(); m.Approved != plan.Sum() {
		t.Errorf("the manifest says %v", m.Approved)
	}
	one.whole()

	// The next is like it; the third has another disk, and nobody comes.
	alike := two.plans(spec.GiB)
	if m := two.manifest(); m.Approved != alike.Sum() || alike.Sum() == plan.Sum() {
		t.Errorf("the manifest says %v; want %v", m.Approved, alike.Sum())
	}
	two.whole()
	unlike := desk.plans(2 * spec.GiB)
	if m := desk.manifest(); !m.Approved.IsZero() {
		t.Errorf("the manifest says %v", m.Approved)
	}
	desk.report(spec.Event{Kind: spec.EventFailure, Phase: spec.PhaseApproval, Text: "the plan waits", Ask: spec.AskPlan, Final: true})
	desk.ask(hosts.Local, "parked: the plan waits")
	if h := w.host("Desk"); h.History[0].Result != api.Asked {
		t.Errorf("Desk: %+v", h.History)
	}
	w.open()
	if diff := cmp.Diff([]api.Outcome{{Host: "Desk", Text: "approved, and no longer parked"}}, w.approve(map[string]spec.Digest{"desk": unlike.Sum()})); diff != "" {
		t.Error(diff)
	}
	desk.plans(2 * spec.GiB)
	if m := desk.manifest(); m.Approved != unlike.Sum() {
		t.Errorf("the manifest says %v", m.Approved)
	}
	desk.whole()

	// The word was for one reimage. With approve: ask, no plan counts that was like it.
	w.write("profiles/pc.yaml", profile+"approve: ask\n")
	w.reload()
	w.rollout(api.RolloutRequest{Targets: []string{"*"}, Force: true, Canaries: new(0)})
	for _, p := range []*pc{one, two, desk} {
		p.plans(2 * spec.GiB)
		if m := p.manifest(); !m.Approved.IsZero() {
			t.Errorf("%s: the manifest says %v", p.name, m.Approved)
		}
	}
}
