package hosts

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
)

// wave is a roll-out with its hosts' records.
type wave struct {
	*Rollout
	t       *testing.T
	records map[string]*Record
	called  map[string]bool
}

func newWave(t *testing.T, n int, r Rollout) *wave {
	w := &wave{Rollout: &r, t: t, records: map[string]*Record{}, called: map[string]bool{}}
	r.ID = "roll"
	for i := range n {
		name := fmt.Sprintf("pc%02d", i)
		r.Hosts = append(r.Hosts, name)
		w.records[name] = &Record{Name: name}
		w.records[name].Arm(first, "roll")
	}
	return w
}

func (w *wave) stand() Standing {
	return w.Stand(func(n string) *Record { return w.records[n] }, func(n string) bool { return w.called[n] })
}

// ask has a PC ask, and begins its attempt if it may.
func (w *wave) ask(name string) bool {
	turn := w.Turn(name, w.stand(), t0)
	if turn.Now {
		w.records[name].Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	} else if !strings.HasPrefix(turn.Reason, "roll-out roll: ") {
		w.t.Errorf("%s: reason %q", name, turn.Reason)
	}
	return turn.Now
}

func (w *wave) done(name string) { reimage(w.records[name], t0) }

func (w *wave) fail(name string) bool {
	w.records[name].Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	w.records[name].end(t0, policy, api.Failed, "broken")
	return w.Judge(w.stand(), t0)
}

func TestWaves(t *testing.T) {
	w := newWave(t, 10, Rollout{Canaries: 2, AtOnce: 3, StopAt: 20})
	if !w.ask("pc07") || !w.ask("pc01") {
		t.Fatal("the first two may not begin")
	}
	if w.ask("pc00") {
		t.Error("a third begins before the canaries are well")
	}
	w.done("pc07")
	if w.ask("pc00") {
		t.Error("a third begins before both canaries are well")
	}
	w.done("pc01")
	for _, name := range []string{"pc00", "pc02", "pc03"} {
		if !w.ask(name) {
			t.Errorf("%s may not begin", name)
		}
	}
	if w.ask("pc04") {
		t.Error("a fourth runs at once")
	}
	// One that vanishes gives its place back.
	w.records["pc00"].end(t0, policy, api.Vanished, "")
	w.Judge(w.stand(), t0)
	if !w.ask("pc04") {
		t.Error("the place of a PC that vanished stays taken")
	}
	s := w.stand()
	if len(s.Done) != 2 || len(s.Running) != 3 || len(s.Failed) != 1 || len(s.Waiting) != 4 {
		t.Errorf("standing: %+v", s)
	}
}

func TestStop(t *testing.T) {
	// A canary in two.
	w := newWave(t, 10, Rollout{Canaries: 2, AtOnce: 16, StopAt: 20})
	if !w.fail("pc00") {
		t.Error("one of two canaries failed, and it goes on")
	}
	if w.ask("pc01") {
		t.Error("it stopped, and another begins")
	}
	if !strings.Contains(w.Rollout.Stop.Text, "1 of 2 failed") {
		t.Errorf("reason: %s", w.Rollout.Stop.Text)
	}
	// The one that failed has its further attempts, until it is parked.
	if !w.Turn("pc00", w.stand(), t0).Now {
		t.Error("a host that had begun may not try again")
	}
	w.Rollout.Stop.By = "kim"
	if w.Turn("pc00", w.stand(), t0).Now {
		t.Error("a person said stop, and it tries again")
	}

	// In a wave of ten, two are a fifth and three are more.
	w = newWave(t, 50, Rollout{Canaries: 0, AtOnce: 10, StopAt: 20})
	if w.fail("pc00") || w.fail("pc01") {
		t.Error("two of ten stop it")
	}
	if !w.fail("pc02") {
		t.Error("three of ten do not stop it")
	}

	// One host alone is not stopped from trying again.
	w = newWave(t, 1, Rollout{Canaries: 2, AtOnce: 16, StopAt: 20})
	w.fail("pc00")
	if !w.Turn("pc00", w.stand(), t0).Now {
		t.Error("the only host may not try again")
	}
}

func TestNamedCanaries(t *testing.T) {
	w := newWave(t, 5, Rollout{Canary: []string{"pc03", "pc04"}, AtOnce: 16, StopAt: 20})
	if w.ask("pc00") {
		t.Error("pc00 begins before the canaries")
	}
	if !w.ask("pc03") || !w.ask("pc04") {
		t.Error("the canaries may not begin")
	}
	w.done("pc03")
	if turn := w.Turn("pc00", w.stand(), t0); turn.Now || !strings.Contains(turn.Reason, "waits for the canary pc04") {
		t.Errorf("turn: %+v", turn)
	}
	w.done("pc04")
	if !w.ask("pc00") {
		t.Error("pc00 may not begin after the canaries")
	}
}

// TestCanaryGone: a canary that was taken out of the inventory has proven nothing.
func TestCanaryGone(t *testing.T) {
	w := newWave(t, 3, Rollout{Canary: []string{"pc00"}, AtOnce: 16, StopAt: 20})
	delete(w.records, "pc00")
	if w.ask("pc01") {
		t.Error("pc01 begins though its canary never ran")
	}
}

func TestTakenOverAndCalled(t *testing.T) {
	w := newWave(t, 4, Rollout{Canaries: 1, AtOnce: 1, StopAt: 20})
	w.records["pc00"].Arm(second, "later")
	delete(w.records, "pc01")
	w.called["pc02"] = true
	s := w.stand()
	if strings.Join(s.Same, " ") != "pc00 pc01" || strings.Join(s.Running, " ") != "pc02" || strings.Join(s.Waiting, " ") != "pc03" {
		t.Errorf("standing: %+v", s)
	}
	if !w.ask("pc02") {
		t.Error("the PC that was called may not begin")
	}
}

func TestWindow(t *testing.T) {
	at := func(clock string) time.Time {
		d, err := time.Parse("15:04", clock)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, test := range []struct {
		window, clock string
		open          bool
	}{
		{"22:00-06:00", "21:59", false}, {"22:00-06:00", "22:00", true}, {"22:00-06:00", "03:00", true}, {"22:00-06:00", "06:00", false},
		{"08:30-12:00", "08:30", true}, {"08:30-12:00", "11:59", true}, {"08:30-12:00", "12:00", false}, {"08:30-12:00", "23:00", false},
	} {
		w, err := ParseWindow(test.window)
		if err != nil {
			t.Fatal(err)
		}
		if w.String() != test.window {
			t.Errorf("%s is written %s", test.window, w)
		}
		if got := w.Open(at(test.clock)); got != test.open {
			t.Errorf("%s at %s: %v, want %v", test.window, test.clock, got, test.open)
		}
	}
	for _, bad := range []string{"", "22", "22:00", "22:00-", "25:00-06:00", "06:00-06:00", "22:00-06:00-07:00"} {
		if w, err := ParseWindow(bad); err == nil {
			t.Errorf("%q was read as %v", bad, w)
		}
	}
	var always *Window
	if !always.Open(t0) || always.String() != "" {
		t.Error("no window is not always open")
	}
}
