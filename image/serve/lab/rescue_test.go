package lab

import (
	"errors"
	"strings"
	"testing"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

const rescueKeys = "rescue_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF ann]\n"

func (w *world) rescue(who string) string {
	w.t.Helper()
	out, err := w.lab.Errand(w.t.Context(), api.ErrandRequest{Kind: spec.Rescue, Targets: api.Targets{Targets: []string{who}}}, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return out[0].Text
}

func (w *world) release(who string) string {
	w.t.Helper()
	out, err := w.lab.Release(w.t.Context(), api.Targets{Targets: []string{who}}, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return out[0].Text
}

// TestRescueOrder takes a rescue from the order to its end. The PC need not have had anything
// from us, and may be held.
func TestRescueOrder(t *testing.T) {
	w := newWorld(t)
	p := w.pc(1)
	if said := w.rescue("exp01"); !strings.HasPrefix(said, "left alone: nobody could log in") {
		t.Errorf("without a key it is said that it %s", said)
	}
	w.write("profiles/pc.yaml", profile+rescueKeys)
	was := w.host("exp01").Candidate
	w.reload()
	if w.host("exp01").Candidate != was {
		t.Error("a key for rescues counts as software")
	}
	if _, err := w.lab.Hold(t.Context(), api.Targets{Targets: []string{"exp01"}, Why: "exam"}, "kim"); err != nil {
		t.Fatal(err)
	}
	p.ask(hosts.Local, "held")
	if said := w.rescue("exp01"); said != "will wait for people who log in at its next boot" {
		t.Errorf("it is said that it %s", said)
	}
	first := p.ask(hosts.Remote, "to be rescued by kim")
	if again := p.lab.Ask(p.mac, p.ip); again.Token != first.Token {
		t.Error("a boot loader that asks again gets another answer")
	}
	m := p.manifest()
	if m.Errand == nil || m.Errand.Kind != spec.Rescue || m.Errand.Released || strings.Join(m.Rescuers(), "") != "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF ann" {
		t.Errorf("its manifest has errand %+v, and keys %q", m.Errand, m.Rescuers())
	}
	p.report(spec.Event{Kind: spec.EventStart, Phase: "manifest", Facts: &spec.Facts{}})
	p.report(spec.Event{Kind: spec.EventPhase, Phase: "rescue"})
	const how = "ssh root@172.30.0.11; this boot's host key is ED25519 SHA256:x"
	p.report(spec.Event{Kind: spec.EventRescue, Phase: "rescue", Text: how})
	says := func() {
		t.Helper()
		why, err := w.lab.Why("exp01", false)
		if h := w.host("exp01"); err != nil || h.State != api.Running || !strings.Contains(h.Reason, how) || !strings.Contains(why.Reason, how) || h.History[0].Text != how {
			t.Errorf("it says %+v; %+v, %v", h, why, err)
		}
	}
	says()
	if got := w.host("exp01").Progress; got == nil || got.Text != how {
		t.Errorf("its progress is %+v", got)
	}
	if w.lab.KnownHosts() != "" {
		t.Errorf("the key of a rescue is among those of the PCs' own systems: %s", w.lab.KnownHosts())
	}
	if said := w.rescue("exp01"); !strings.Contains(said, "in rescue already") {
		t.Errorf("a second time it is said that it %s", said)
	}

	// A server that starts anew knows it as before.
	w.open()
	says()
	if p.manifest().Errand.Released {
		t.Error("it is released")
	}
	if said := w.release("exp01"); said != "its rescue ends within seconds; it stays held: release it again to lift that" {
		t.Errorf("release says %q", said)
	}
	if !p.manifest().Errand.Released {
		t.Error("it is not released")
	}
	p.report(spec.Event{Kind: spec.EventErrand, Phase: "rescue", Text: "released"})
	p.ask(hosts.Local, "held")
	if _, _, err := w.lab.Manifest(p.mac, first.Token, p.ip); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("its token is still good: %v", err)
	}

	// Ended by a person at the PC, and called off before it began.
	w.rescue("exp01")
	p.ask(hosts.Remote, "to be rescued")
	p.manifest()
	p.report(spec.Event{Kind: spec.EventRescue, Phase: "rescue", Text: how})
	p.ask(hosts.Local, "held")
	if got := w.host("exp01").History[0]; got.Result != api.Done || got.Errand != spec.Rescue {
		t.Errorf("it ended as %+v", got)
	}
	w.rescue("exp01")
	if said := w.release("exp01"); !strings.HasPrefix(said, "its rescue is called off") {
		t.Errorf("release says %q", said)
	}
	p.ask(hosts.Local, "held")
}

// A profile for static sites is not rolled out by a boot server: people who wrote "rescue"
// would find the disk wiped.
func TestRescueProfile(t *testing.T) {
	w := newWorld(t)
	w.write("profiles/pc.yaml", profile+rescueKeys+"mode: rescue\n")
	w.reload()
	for _, force := range []bool{false, true} {
		_, err := w.lab.Rollout(t.Context(), api.RolloutRequest{Targets: []string{"exp01"}, Force: force}, "kim")
		if !errors.Is(err, api.ErrInvalid) || !strings.Contains(err.Error(), "reassure rescue exp01") {
			t.Errorf("force %v: %v", force, err)
		}
	}
	w.pc(1).ask(hosts.Local, "nothing was rolled out")
}
