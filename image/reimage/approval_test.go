package reimage

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reassure/image/spec"
)

// person is a boot server with somebody at it who approves the plan that was posted,
// at the second time that the PC asks.
type person struct {
	v        *victim
	m        spec.Manifest
	approves bool

	mu       sync.Mutex
	sum      spec.Digest // of the plan that was posted
	asked    int
	phases   []string
	requests []string
}

func (p *person) serve(w http.ResponseWriter, q *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, q.URL.Path)
	m := p.m
	if p.asked > 1 && p.approves {
		m.Approved = p.sum
	}
	switch q.URL.Path {
	case manifestName, manifestName + spec.SignatureSuffix:
		text := p.v.text(&m)
		if q.URL.Path != manifestName {
			p.asked++
			text = p.v.key.Sign(text, "host exp01")
		}
		_, _ = w.Write(text)
	case wadName:
		http.ServeContent(w, q, "x.bin", time.Time{}, bytes.NewReader(p.v.wad))
	case "/events/exp01":
		var e spec.Event
		if err := json.NewDecoder(q.Body).Decode(&e); err != nil {
			p.v.t.Error(err)
		}
		if e.Plan != nil {
			p.sum = e.Plan.Sum()
		}
		p.phases = append(p.phases, e.Phase)
	default:
		http.NotFound(w, q)
	}
}

func TestApproval(t *testing.T) {
	v := newVictim(t)
	before := v.sum()
	m := *v.genuine
	m.Approve, m.Events = spec.ApproveAsk, "events/exp01"

	// Nobody comes.
	nobody := &person{v: v, m: m}
	r := v.served(nobody.serve)
	r.patienceForApproval = 100 * time.Millisecond
	_, _, err := r.tryOnce(t.Context())
	var q *Question
	var refusal *Refusal
	if !errors.As(err, &q) || q.Ask != spec.AskPlan || !errors.As(err, &refusal) || !strings.Contains(err.Error(), "reassure approve exp01") || r.wrote {
		t.Errorf("error is %v, wrote %v", err, r.wrote)
	}
	if v.sum() != before {
		t.Error("the disk was written to before anybody approved")
	}

	// Another plan was approved once.
	other := &person{v: v, m: m}
	other.m.Approved = spec.Sum([]byte("another plan"))
	r = v.served(other.serve)
	r.patienceForApproval = 100 * time.Millisecond
	if _, _, err := r.tryOnce(t.Context()); !errors.As(err, &q) || r.wrote || v.sum() != before {
		t.Errorf("error is %v, wrote %v", err, r.wrote)
	}

	// Somebody comes.
	somebody := &person{v: v, m: m, approves: true}
	r = v.served(somebody.serve)
	if _, _, err := r.tryOnce(t.Context()); !r.wrote || v.sum() == before {
		t.Errorf("nothing was written: %v", err)
	}
	if !slices.Contains(somebody.phases, spec.PhaseApproval) {
		t.Errorf("nobody could see that it waits: %v", somebody.phases)
	}
}

// TestDryRun has all of a reimage be done but the writing.
func TestDryRun(t *testing.T) {
	v := newVictim(t)
	before := v.sum()
	for _, c := range []struct {
		name    string
		plain   bool
		profile bool
		spoil   func(wad []byte)
		says    string // an error; empty: the dry run is done
	}{
		{name: "said in the profile", profile: true},
		{name: "said on the command line"},
		{name: "a plain wad", plain: true},
		{name: "a damaged chunk", spoil: func(wad []byte) { wad[len(wad)-20] ^= 1 }, says: "wad a.tar.zst"},
		{name: "a damaged plain wad", plain: true, spoil: func(wad []byte) { wad[len(wad)-20] ^= 1 }, says: "wad a.tar.zst"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &person{v: v, m: *v.genuine}
			p.m.DryRun, p.m.Approve = c.profile, spec.ApproveAsk // nobody is asked about what is not done
			if c.plain {
				p.m.Wads = slices.Clone(p.m.Wads)
				p.m.Wads[0].Index = nil
			}
			damaged := *v
			damaged.wad = slices.Clone(v.wad)
			if c.spoil != nil {
				c.spoil(damaged.wad)
			}
			p.v = &damaged
			r := v.served(p.serve)
			r.Options.DryRun = !c.profile
			_, _, err := r.tryOnce(t.Context())
			var q *Question
			done := errors.As(err, &q) && q.Ask == spec.AskDryRun
			if done != (c.says == "") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v", err)
			}
			if !slices.Contains(p.requests, wadName) {
				t.Error("the wad was not fetched")
			}
			if r.wrote || v.sum() != before {
				t.Error("the disk was written to")
			}
		})
	}
}

// TestDebugShell: whoever writes to the kernel command line gets a shell only where the
// profile lets them.
func TestDebugShell(t *testing.T) {
	v := newVictim(t)
	before := v.sum()
	for _, allowed := range []bool{false, true} {
		p := &person{v: v, m: *v.genuine}
		p.m.DebugShell = allowed
		r := v.served(p.serve)
		r.Options.Shell = true
		finish, _, err := r.tryOnce(t.Context())
		var refusal *Refusal
		if allowed && (finish != spec.Shell || err != nil) || !allowed && (finish == spec.Shell || !errors.As(err, &refusal) || !strings.Contains(err.Error(), "debug_shell")) {
			t.Errorf("allowed %v: ends in %q, %v", allowed, finish, err)
		}
		if r.wrote || v.sum() != before {
			t.Error("the disk was written to")
		}
	}
}
