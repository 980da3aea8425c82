package lab

import (
	"fmt"
	"slices"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// Hosts returns all hosts at a glance, in the inventory's order.
func (l *Lab) Hosts() []api.Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]api.Host, 0, len(l.order))
	stands := map[*hosts.Rollout]hosts.Standing{}
	for _, k := range l.order {
		all = append(all, l.view(k, stands))
	}
	return all
}

// view is a host at a glance. stands remembers where roll-outs stand, for views of
// many hosts at the same moment; it may be nil.
func (l *Lab) view(k string, stands map[*hosts.Rollout]hosts.Standing) api.Host {
	h, r, now := l.hostOf(k), l.record(k), l.Now()
	decision, reason := r.Decide(now, l.Policy, l.turn(k, now, stands))
	v := api.Host{
		Name: h.Name, MACs: h.MACs, IP: h.IP.String(), Profile: h.Profile, Groups: h.Groups,
		State: r.State(l.candidates[k].Digest), Decision: string(decision), Reason: reason,
		Candidate: l.candidates[k].Digest, Hold: r.Hold, Parked: r.Parked,
		Failures: r.Failures, LastSeen: r.LastSeen, LastDone: r.LastDone,
	}
	if r.Installed != nil {
		v.Installed = r.Installed.Digest
		v.Drift = l.drifts(r)
	}
	if r.Wanted != nil {
		v.Wanted = r.Wanted.Digest
	}
	if r.Due() {
		v.Order, v.Rollout = r.Wanted.Order, r.Rollout
	}
	if now.Before(r.NotUntil) {
		v.NextTry = r.NotUntil
	}
	if r.Calls >= hosts.MostCalls && r.Boot == nil && !r.Awaited(now, l.Policy) && r.Due() {
		v.Reason = fmt.Sprintf("it was told to start %d times and did not ask what to boot: is the network first in its boot order?", r.Calls)
	}
	if why := l.elsewhere[k]; why != "" && decision == hosts.Remote {
		v.Reason += "; but the last that asked in its place got nothing: " + why
	}
	if r.Boot != nil {
		v.Reason = "being reimaged: " + r.Boot.Reason
		if r.Boot.Errand != "" {
			v.Reason = r.Boot.Reason
		}
		if r.Boot.Errand == spec.Rescue && r.Boot.Text != "" {
			v.Reason = "in rescue: " + r.Boot.Text
		}
		if p := l.progress[k]; p != nil {
			c := *p
			v.Progress = &c
		}
	} else if v.State == api.Changed {
		v.Reason = "its software changed in the site's files; nothing was rolled out"
	}
	return v
}

// drift is what differs in volatile files between what is installed and what a
// reimage would lay down.
func (l *Lab) drift(r *hosts.Record, diffs bool) []api.Change {
	if r.Installed == nil || r.Wanted == nil {
		return nil
	}
	was, is := l.manifest(r.Installed.Manifest), l.manifest(r.Wanted.Manifest)
	if was == nil || is == nil || was == is {
		return nil
	}
	return volatile(Changes(was, is, diffs))
}

// drifts is how many files have drifted. It is asked for at every look at the
// lab, so the answer is kept.
func (l *Lab) drifts(r *hosts.Record) int {
	if r.Wanted == nil || r.Installed.Manifest == r.Wanted.Manifest {
		return 0
	}
	k := [2]spec.Digest{r.Installed.Manifest, r.Wanted.Manifest}
	n, ok := l.drifted[k]
	if !ok {
		if len(l.drifted) > 10_000 {
			clear(l.drifted)
		}
		n = len(l.drift(r, false))
		l.drifted[k] = n
	}
	return n
}

// Host returns everything about a host that anybody may know.
func (l *Lab) Host(name string) (api.HostDetail, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.known(name)
	if err != nil {
		return api.HostDetail{}, err
	}
	k := key(name)
	d := api.HostDetail{Host: l.view(k, nil), Facts: r.Facts, Plan: r.Plan, HostKeys: r.HostKeys, Verified: r.Verified, Disk: r.Disk, Target: r.Target, Ask: r.Ask, History: []api.Attempt{}}
	if r.Errand != nil {
		d.Errand = &r.Errand.Errand
	}
	for _, mac := range d.MACs {
		if a, ok := l.addresses[mac]; ok {
			d.Address = a.String()
		}
	}
	if r.Boot != nil {
		d.History = append(d.History, r.Boot.Attempt)
	}
	for _, a := range slices.Backward(r.History) {
		d.History = append(d.History, a)
	}
	return d, nil
}

// Why explains what a host would be told now. private adds the texts that differ.
func (l *Lab) Why(name string, private bool) (api.Why, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.known(name)
	if err != nil {
		return api.Why{}, err
	}
	k := key(name)
	v := l.view(k, nil)
	w := api.Why{Host: v.Name, Decision: v.Decision, Reason: v.Reason, Drift: l.drift(r, private)}
	if r.Due() && r.Installed != nil {
		if wanted := l.manifest(r.Wanted.Manifest); wanted != nil {
			w.Due = software(l.compare(r.Installed, wanted, private))
		}
	}
	if r.Due() && r.Wanted.Order != "" && (r.Installed == nil || r.Installed.Order != r.Wanted.Order) {
		w.Due = append(w.Due, api.Change{Text: "a reimage was asked for by order " + r.Wanted.Order})
	}
	if r.Wanted != nil && l.candidates[k].Digest != r.Wanted.Digest {
		w.Pending = l.pending(r, l.candidates[k], private)
	}
	return w, nil
}
