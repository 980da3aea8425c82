package hosts

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

var (
	t0      = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	policy  = Policy{Most: 3, Pause: time.Minute, Lease: 10 * time.Minute}
	first   = Software{Digest: spec.Sum([]byte("first")), Serial: 1, Manifest: spec.Sum([]byte("text first"))}
	second  = Software{Digest: spec.Sum([]byte("second")), Serial: 2, Manifest: spec.Sum([]byte("text second"))}
	ordered = Software{Digest: first.Digest, Serial: 3, Order: "order3", Manifest: spec.Sum([]byte("text three"))}
)

func anytime() Turn { return Turn{Now: true} }

func told(t *testing.T, r *Record, now time.Time, want Decision, reason string) {
	t.Helper()
	d, why := r.Decide(now, policy, anytime)
	if d != want || !strings.Contains(why, reason) {
		t.Errorf("decided %s (%s), want %s (... %s ...)", d, why, want, reason)
	}
}

func installed(s Software, whole bool) *spec.Installed {
	return &spec.Installed{Host: "exp01", Digest: s.Digest, Serial: s.Serial, Order: s.Order, Whole: whole}
}

// reimage takes a record through a whole attempt.
func reimage(r *Record, now time.Time) {
	r.Begin(now, policy, "a"+fmt.Sprint(now.Unix()), "token", "10.0.0.1", "due")
	r.Observe(spec.Event{Kind: spec.EventStart}, now, policy)
	r.Observe(spec.Event{Kind: spec.EventPhase, Phase: "extract", Wrote: true}, now, policy)
	r.Observe(spec.Event{Kind: spec.EventDone, Installed: installed(*r.Wanted, true)}, now.Add(time.Minute), policy)
}

func TestTold(t *testing.T) {
	held := &api.Note{Text: "exam on Friday", By: "kim", At: t0}
	for _, test := range []struct {
		name   string
		record Record
		turn   Turn
		want   Decision
		reason string
	}{
		{"nothing rolled out", Record{}, Turn{Now: true}, Local, "nothing was rolled out"},
		{"never heard of", Record{Wanted: &first}, Turn{Now: true}, Remote, "what is installed is not known"},
		{"up to date", Record{Wanted: &first, Installed: &first}, Turn{Now: true}, Local, "up to date"},
		{"other software", Record{Wanted: &second, Installed: &first}, Turn{Now: true}, Remote, "is installed"},
		{"forced", Record{Wanted: &ordered, Installed: &first}, Turn{Now: true}, Remote, "by order order3"},
		{"ordered and done", Record{Wanted: &ordered, Installed: &ordered}, Turn{Now: true}, Local, "up to date"},
		{"same software, another serial", Record{Wanted: &first, Installed: &Software{Digest: first.Digest, Serial: 99}}, Turn{Now: true}, Local, "up to date"},
		{"broken", Record{Wanted: &first, Broken: true}, Turn{Now: true}, Remote, "was not finished"},
		{"broken though it reported the same software once", Record{Wanted: &first, Installed: &first, Broken: true}, Turn{Now: true}, Remote, "was not finished"},
		{"held", Record{Wanted: &second, Installed: &first, Hold: held}, Turn{Now: true}, Local, "held by kim: exam on Friday"},
		{"held and broken", Record{Wanted: &second, Broken: true, Hold: held}, Turn{Now: true}, Wait, "exam on Friday"},
		{"parked", Record{Wanted: &second, Installed: &first, Parked: &api.Note{Text: "3 attempts failed"}}, Turn{Now: true}, Local, "parked: 3 attempts failed"},
		{"parked and broken", Record{Wanted: &second, Broken: true, Parked: &api.Note{Text: "why"}}, Turn{Now: true}, Wait, "parked: why"},
		{"pause", Record{Wanted: &second, Installed: &first, Failures: 1, NotUntil: t0.Add(time.Minute)}, Turn{Now: true}, Local, "attempt 1 of 3 failed"},
		{"pause and broken", Record{Wanted: &second, Broken: true, Failures: 1, NotUntil: t0.Add(time.Minute)}, Turn{Now: true}, Wait, "attempt 1 of 3 failed"},
		{"pause is over", Record{Wanted: &second, Installed: &first, Failures: 1, NotUntil: t0}, Turn{Now: true}, Remote, ""},
		{"not its turn", Record{Wanted: &second, Installed: &first}, Turn{Reason: "others first"}, Local, "others first"},
		{"not its turn and broken", Record{Wanted: &second, Broken: true}, Turn{Reason: "others first"}, Wait, "others first"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, why := test.record.Decide(t0, policy, func() Turn { return test.turn })
			if d != test.want || !strings.Contains(why, test.reason) {
				t.Errorf("decided %s (%s), want %s (... %s ...)", d, why, test.want, test.reason)
			}
		})
	}
}

func TestReimageAndAgain(t *testing.T) {
	r := &Record{Name: "exp01"}
	r.Arm(first, "roll1")
	told(t, r, t0, Remote, "")
	reimage(r, t0)
	told(t, r, t0.Add(time.Hour), Local, "up to date")
	if r.State(first.Digest) != api.Current || r.State(second.Digest) != api.Changed {
		t.Errorf("states: %s and %s", r.State(first.Digest), r.State(second.Digest))
	}
	if n := len(r.History); n != 1 || r.History[0].Result != api.Done || !r.LastDone.Equal(t0.Add(time.Minute)) {
		t.Errorf("history: %+v, last done %v", r.History, r.LastDone)
	}
	if r.Installed.Manifest != first.Manifest {
		t.Error("it is forgotten which texts were installed")
	}
	// An order: armed until the disk says that it has been done.
	r.Arm(ordered, "order3")
	told(t, r, t0.Add(time.Hour), Remote, "order3")
	r.Begin(t0.Add(time.Hour), policy, "b", "token", "10.0.0.1", "due")
	r.Observe(spec.Event{Kind: spec.EventUpToDate, Installed: installed(first, true)}, t0.Add(time.Hour), policy)
	told(t, r, t0.Add(2*time.Hour), Remote, "order3")
	reimage(r, t0.Add(2*time.Hour))
	told(t, r, t0.Add(3*time.Hour), Local, "up to date")
}

// TestDoneUnheard: the PC was reimaged, and the word of it was lost.
func TestDoneUnheard(t *testing.T) {
	r := &Record{Name: "exp01"}
	r.Arm(first, "roll1")
	r.Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	r.Observe(spec.Event{Kind: spec.EventStart}, t0, policy)
	r.Observe(spec.Event{Kind: spec.EventPhase, Phase: "erase", Wrote: true}, t0, policy)
	told(t, r, t0.Add(time.Hour), Remote, "was not finished")
	r.Begin(t0.Add(time.Hour), policy, "b", "token2", "10.0.0.1", "due")
	if n := len(r.History); n != 1 || r.History[0].Result != api.Restarted {
		t.Fatalf("history: %+v", r.History)
	}
	// Its disk shows that it was whole.
	r.Observe(spec.Event{Kind: spec.EventStart, Installed: installed(first, true)}, t0.Add(time.Hour), policy)
	r.Observe(spec.Event{Kind: spec.EventUpToDate, Installed: installed(first, true)}, t0.Add(time.Hour), policy)
	told(t, r, t0.Add(2*time.Hour), Local, "up to date")
	if r.Failures != 0 || r.Installed.Manifest != first.Manifest {
		t.Errorf("failures %d, manifest %v", r.Failures, r.Installed.Manifest)
	}
}

func TestAttemptsAreCapped(t *testing.T) {
	for _, how := range []string{"failed", "vanished", "restarted"} {
		t.Run(how, func(t *testing.T) {
			r := &Record{Name: "exp01"}
			r.Arm(first, "roll1")
			now := t0
			var pauses []time.Duration
			for i := range 3 {
				told(t, r, now, Remote, "")
				r.Begin(now, policy, fmt.Sprint("a", i), "token", "10.0.0.1", "due")
				r.Observe(spec.Event{Kind: spec.EventStart}, now, policy)
				r.Observe(spec.Event{Kind: spec.EventPhase, Phase: "extract", Wrote: true}, now, policy)
				switch how {
				case "failed":
					r.Observe(spec.Event{Kind: spec.EventFailure, Text: "wad a.tar: wrong digest", Wrote: true}, now, policy)
					if r.Boot == nil {
						t.Fatal("the attempt ended though the PC tries again by itself")
					}
					r.Observe(spec.Event{Kind: spec.EventFailure, Text: "wad a.tar: wrong digest", Wrote: true, Final: true}, now, policy)
				case "vanished":
					if r.Expire(now.Add(policy.Lease-time.Second), policy) {
						t.Fatal("the attempt ended before its lease")
					}
					now = now.Add(policy.Lease)
					if !r.Expire(now, policy) {
						t.Fatal("the attempt did not end with its lease")
					}
				case "restarted":
					r.Asked(now, policy)
				}
				pauses = append(pauses, r.NotUntil.Sub(now))
				if i < 2 {
					told(t, r, now, Wait, fmt.Sprintf("attempt %d of 3 failed", i+1))
				}
				now = r.NotUntil
			}
			if diff := cmp.Diff([]time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute}, pauses); diff != "" {
				t.Errorf("pauses: %s", diff)
			}
			told(t, r, now.Add(24*time.Hour), Wait, "parked: 3 attempts failed")
			if how == "failed" && !strings.Contains(r.Parked.Text, "wad a.tar: wrong digest") {
				t.Errorf("parked: %s", r.Parked.Text)
			}
			if r.State(first.Digest) != api.Parked {
				t.Errorf("state %s", r.State(first.Digest))
			}
			if what := r.Release(); what != "no longer parked" {
				t.Errorf("released: %q", what)
			}
			told(t, r, now, Remote, "was not finished")
			reimage(r, now)
			told(t, r, now.Add(time.Hour), Local, "up to date")
		})
	}
}

// TestNothingWritten: what failed before the first write leaves the PC its system.
func TestNothingWritten(t *testing.T) {
	r := &Record{Name: "exp01", Installed: &first}
	r.Arm(second, "roll1")
	r.Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	r.Observe(spec.Event{Kind: spec.EventStart, Installed: installed(first, true)}, t0, policy)
	r.Observe(spec.Event{Kind: spec.EventFailure, Text: "two disks", Final: true}, t0, policy)
	told(t, r, t0, Local, "attempt 1 of 3 failed")
	if !cmp.Equal(r.Installed, &first) {
		t.Errorf("installed: %+v", r.Installed)
	}
}

func TestRepeats(t *testing.T) {
	r := &Record{Name: "exp01"}
	r.Arm(first, "roll1")
	r.Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	if !r.Repeats(t0.Add(time.Second), "10.0.0.1") {
		t.Error("a lost packet begins another attempt")
	}
	if r.Repeats(t0.Add(time.Second), "10.0.0.2") {
		t.Error("another address gets the same token")
	}
	if r.Repeats(t0.Add(askAgain), "10.0.0.1") {
		t.Error("it repeats for ever")
	}
	if !r.HasToken("token") || r.HasToken("other") || r.HasToken("") {
		t.Error("tokens are mixed up")
	}
	r.Claim(t0.Add(time.Second))
	if r.Repeats(t0.Add(2*time.Second), "10.0.0.1") {
		t.Error("a token that was used is given once more")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	r := &Record{Name: "exp01"}
	r.Arm(first, "roll1")
	for i := range 50 {
		r.Installed = nil
		reimage(r, t0.Add(time.Duration(i)*time.Hour))
	}
	if len(r.History) != maxHistory {
		t.Errorf("%d attempts are kept", len(r.History))
	}
}

func TestProgressIsNotSaved(t *testing.T) {
	r := &Record{Name: "exp01"}
	r.Arm(first, "roll1")
	r.Begin(t0, policy, "a", "token", "10.0.0.1", "due")
	r.Observe(spec.Event{Kind: spec.EventPhase, Phase: "extract", Wrote: true}, t0, policy)
	if r.Observe(spec.Event{Kind: spec.EventProgress, Phase: "extract", Done: 5, Wrote: true}, t0, policy) {
		t.Error("every progress would be saved")
	}
	if r.Boot.Bytes != 5 {
		t.Errorf("bytes: %v", r.Boot.Bytes)
	}
}

// TestErrand is done once, before any reimage, and says nothing of reimages.
func TestErrand(t *testing.T) {
	errand := &Errand{
		Errand:   api.Errand{Errand: spec.Errand{Kind: spec.Verify, ID: "e1"}, Note: api.Note{Text: "a strange crash", By: "kim"}},
		Manifest: spec.Sum([]byte("text errand")), Digest: first.Digest,
	}
	found := &spec.Verified{Total: 2, Runtime: 1}
	fresh := func() *Record {
		r := &Record{Name: "exp01", Parked: &api.Note{Text: "3 attempts failed"}, Failures: 3}
		r.Arm(second, "roll1")
		r.Installed, r.Errand = &first, errand
		told(t, r, t0, Remote, "to be verified by kim: a strange crash")
		r.Begin(t0, policy, "a1", "token", "10.0.0.1", "errand")
		if b := r.Boot; b.Manifest != errand.Manifest || b.Errand != spec.Verify || b.Digest != first.Digest || b.Rollout != "" {
			t.Errorf("it began %+v", b)
		}
		if !r.Repeats(t0.Add(time.Second), "10.0.0.1") {
			t.Error("a boot loader that asks again gets another answer")
		}
		r.Observe(spec.Event{Kind: spec.EventStart, Installed: installed(first, true)}, t0, policy)
		return r
	}
	for name, end := range map[string]func(r *Record){
		"done": func(r *Record) { r.Observe(spec.Event{Kind: spec.EventErrand, Verified: found}, t0, policy) },
		"failed": func(r *Record) {
			r.Observe(spec.Event{Kind: spec.EventFailure, Text: "disk gone", Final: true}, t0, policy)
		},
		"silent":   func(r *Record) { r.Expire(t0.Add(time.Hour), policy) },
		"anew":     func(r *Record) { r.Asked(t0, policy) },
		"reported": func(r *Record) { r.Observe(spec.Event{Kind: spec.EventErrand}, t0, policy) },
	} {
		r := fresh()
		end(r)
		if r.Boot != nil || r.Errand != nil || r.Failures != 3 || r.Parked == nil || *r.Installed != first {
			t.Errorf("%s: afterwards it is %+v", name, r)
		}
		if got := r.Verified != nil; got != (name == "done") {
			t.Errorf("%s: verified: %v", name, got)
		}
		told(t, r, t0.Add(time.Hour), Local, "parked")
	}
	r := fresh()
	r.Boot, r.Hold = nil, &api.Note{Text: "exam"}
	told(t, r, t0, Local, "held")
	r.Hold, r.Broken, r.Parked, r.Failures = nil, true, nil, 0
	told(t, r, t0, Remote, "was not finished")
	// A host stays failed in its roll-out, whatever it was asked since.
	r = &Record{History: []api.Attempt{{Rollout: "roll1", Result: api.Failed}, {Errand: spec.Verify, Result: api.Done}}, Failures: 1}
	if !r.failedIn("roll1") {
		t.Error("a verification made its failure forgotten")
	}
}

// TestRescueOrder is for people: it comes before a hold, and for a disk that does not boot, and
// its end lifts nothing else.
func TestRescueOrder(t *testing.T) {
	errand := &Errand{
		Errand:   api.Errand{Errand: spec.Errand{Kind: spec.Rescue, ID: "e1"}, Note: api.Note{By: "kim"}},
		Manifest: spec.Sum([]byte("text errand")), Digest: first.Digest,
	}
	for _, test := range []struct {
		name string
		make func(r *Record)
		then Decision
		says string
		left string // what a release of the rescue says besides
	}{
		{"of a PC that is well", func(r *Record) { r.Wanted, r.Installed = &first, &first }, Local, "up to date", ""},
		{"of one that is held", func(r *Record) { r.Hold = &api.Note{Text: "exam"} }, Local, "held", "stays held"},
		{"of one that is parked", func(r *Record) { r.Arm(second, "roll1"); r.Parked = &api.Note{Text: "3 attempts failed"} }, Local, "parked", "stays parked"},
		{"of a disk that does not boot", func(r *Record) { r.Arm(second, "roll1"); r.Broken = true }, Remote, "was not finished", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			fresh := func() *Record {
				r := &Record{Name: "exp01", Errand: errand}
				test.make(r)
				told(t, r, t0, Remote, "to be rescued by kim")
				r.Begin(t0, policy, "a1", "token", "10.0.0.1", "errand")
				if b := r.Boot; b.Manifest != errand.Manifest || b.Errand != spec.Rescue || b.Rollout != "" {
					t.Errorf("it began %+v", b)
				}
				r.Claim(t0)
				r.Observe(spec.Event{Kind: spec.EventRescue, Text: "ssh root@10.0.0.1"}, t0, policy)
				if r.Boot.Text != "ssh root@10.0.0.1" {
					t.Errorf("how to log in is not kept: %+v", r.Boot)
				}
				return r
			}
			over := func(how string, r *Record, result api.Result) {
				t.Helper()
				if n := len(r.History); r.Boot != nil || r.Errand != nil || n == 0 || r.History[n-1].Result != result {
					t.Errorf("%s: afterwards it is %+v", how, r)
				}
				told(t, r, t0.Add(time.Minute), test.then, test.says)
			}
			r := fresh()
			if said := r.Release(); !strings.HasPrefix(said, "its rescue ends") || !strings.Contains(said, test.left) || !r.Boot.Released {
				t.Errorf("release: %q, %+v", said, r.Boot)
			}
			r.Observe(spec.Event{Kind: spec.EventErrand, Text: "released"}, t0, policy)
			over("released", r, api.Done)
			r = fresh()
			r.Asked(t0, policy)
			over("reboot in its shell", r, api.Done)
			r = fresh()
			r.Expire(t0.Add(time.Hour), policy)
			over("silent", r, api.Vanished)
			r = &Record{Name: "exp01", Errand: errand}
			test.make(r)
			if said := r.Release(); !strings.HasPrefix(said, "its rescue is called off") || !strings.Contains(said, test.left) || r.Errand != nil {
				t.Errorf("release before it began: %q", said)
			}
			told(t, r, t0, test.then, test.says)
		})
	}
}
