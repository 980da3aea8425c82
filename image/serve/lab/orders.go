package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// pick returns the keys of the hosts that targets name, in the inventory's order.
func (l *Lab) pick(targets []string) ([]string, error) {
	all := make([]api.Host, len(l.order))
	for i, h := range l.site.Inventory.Hosts {
		all[i] = api.Host{Name: h.Name, Groups: h.Groups}
	}
	picked, err := api.Pick(all, targets)
	keys := make([]string, len(picked))
	for i, h := range picked {
		keys[i] = key(h.Name)
	}
	return keys, err
}

// Rollout rolls out what the site's files say to the hosts that it names, in waves.
func (l *Lab) Rollout(_ context.Context, r api.RolloutRequest, who string) (api.Rollout, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys, err := l.pick(r.Targets)
	if err != nil {
		return api.Rollout{}, err
	}
	roll, err := l.roll(keys, r, who)
	if err != nil {
		return api.Rollout{}, err
	}
	return l.summary(roll), nil
}

// maxRollouts is how many are remembered, and those that are not over besides.
const maxRollouts = 50

func (l *Lab) roll(keys []string, r api.RolloutRequest, who string) (*hosts.Rollout, error) {
	roll := &hosts.Rollout{
		ID: strings.ToLower(rand.Text()[:8]), Started: l.Now(), By: who, Why: r.Why, Force: r.Force, Now: r.Now,
		Canaries: l.Waves.Canaries, AtOnce: l.Waves.AtOnce, StopAt: l.Waves.StopAt, Hosts: keys,
	}
	if r.Between != "" {
		w, err := hosts.ParseWindow(r.Between)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
		roll.Window = w
	}
	if r.Canaries != nil {
		roll.Canaries = *r.Canaries
	}
	if r.AtOnce != 0 {
		roll.AtOnce = r.AtOnce
	}
	if r.StopAt != nil {
		roll.StopAt = *r.StopAt
	}
	if roll.Canaries < 0 || roll.AtOnce < 1 || roll.StopAt < 0 || roll.StopAt > 100 {
		return nil, fmt.Errorf("canaries %d, at once %d, stop at %g %%: these cannot be: %w", roll.Canaries, roll.AtOnce, roll.StopAt, api.ErrInvalid)
	}
	if len(r.Canary) > 0 {
		canary, err := l.pick(r.Canary)
		if err != nil {
			return nil, fmt.Errorf("canary: %w", err)
		}
		for _, c := range canary {
			if !slices.Contains(keys, c) {
				return nil, fmt.Errorf("the canary %s is not among the hosts of the roll-out: %w", c, api.ErrInvalid)
			}
		}
		roll.Canary = canary
	}
	order := ""
	if r.Force {
		order = roll.ID
	}
	// All or none: one transaction.
	var entries []store.Entry
	next := map[string]*hosts.Record{}
	serial := l.serial
	for _, k := range keys {
		old := l.record(k)
		m := l.candidates[k]
		if m.Mode == spec.ReimageRescue {
			l.serial = serial
			return nil, fmt.Errorf("%s: its profile %s says mode: rescue, which is for sites without a boot server: take that out, and run reassure rescue %s for a rescue: %w", m.Host, m.Profile, m.Host, api.ErrInvalid)
		}
		if !r.Force && old.Wanted != nil && old.Wanted.Digest == m.Digest && old.UpToDate() {
			roll.Same = append(roll.Same, k)
			continue
		}
		s, texts, err := l.write(m, order)
		if err != nil {
			l.serial = serial
			return nil, err
		}
		n := clone(old)
		n.Arm(s, roll.ID)
		next[k] = n
		entries = append(append(entries, texts...), entry(hostsBucket, k, n))
	}
	entries = append(entries, entry(rolloutsBucket, roll.ID, roll))
	keep := append(slices.Clone(l.rollouts), roll)
	for i := 0; len(keep) > maxRollouts && i < len(keep)-1; {
		// One that is not over holds back hosts that it has armed.
		if st := l.stand(keep[i]); len(st.Waiting)+len(st.Running)+len(st.Failed) > 0 {
			i++
			continue
		}
		entries = append(entries, store.Entry{Bucket: rolloutsBucket, Key: keep[i].ID})
		keep = slices.Delete(keep, i, i+1)
	}
	if err := l.Store.Save(entries...); err != nil {
		return nil, err
	}
	l.rollouts = keep
	for k, n := range next {
		l.records[k] = n
		l.notify(n.Name)
	}
	l.notify("")
	l.Logger.Info("rolled out", "rollout", roll.ID, "by", who, "hosts", len(next), "same", len(roll.Same), "force", r.Force)
	return roll, nil
}

// summary is a roll-out with the names that people gave their hosts.
func (l *Lab) summary(roll *hosts.Rollout) api.Rollout {
	s := roll.Summary(l.stand(roll))
	for _, list := range []*[]string{&s.Waiting, &s.Running, &s.Done, &s.Failed, &s.Same} {
		names := slices.Clone(*list)
		for i, k := range names {
			if r := l.records[k]; r != nil {
				names[i] = r.Name
			}
		}
		*list = names
	}
	return s
}

// Rollouts returns the roll-outs that are remembered, the newest first.
func (l *Lab) Rollouts() []api.Rollout {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []api.Rollout{}
	for i := len(l.rollouts) - 1; i >= 0; i-- {
		all = append(all, l.summary(l.rollouts[i]))
	}
	return all
}

func (l *Lab) findRollout(id string) *hosts.Rollout {
	for _, r := range l.rollouts {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// setStop stops a roll-out, or lets it go on.
func (l *Lab) setStop(roll *hosts.Rollout, stop *api.Note) error {
	next := *roll
	next.Stop = stop
	if stop == nil {
		// It would stop again for what a person has just let pass.
		next.Pardoned = l.stand(roll).Failed
	}
	if err := l.Store.Save(entry(rolloutsBucket, roll.ID, &next)); err != nil {
		return err
	}
	*roll = next
	l.notify("")
	return nil
}

// StopRollout lets no more hosts of a roll-out begin.
func (l *Lab) StopRollout(_ context.Context, id, why, who string) (api.Rollout, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	roll := l.findRollout(id)
	if roll == nil {
		return api.Rollout{}, fmt.Errorf("roll-out %q: %w", id, api.ErrNotFound)
	}
	if who == "" {
		who = "a person"
	}
	if err := l.setStop(roll, &api.Note{Text: why, By: who, At: l.Now()}); err != nil {
		return api.Rollout{}, err
	}
	l.Logger.Info("roll-out stopped", "rollout", id, "by", who, "why", why)
	return l.summary(roll), nil
}

// Hold has hosts boot their own disks until they are released.
func (l *Lab) Hold(_ context.Context, t api.Targets, who string) ([]api.Outcome, error) {
	return l.each(t.Targets, func(k string) (string, error) {
		note := &api.Note{Text: t.Why, By: who, At: l.Now()}
		return "held", l.change(k, func(r *hosts.Record) { r.Hold = note })
	})
}

// AcceptDisks notes that disks are their hosts', whatever is on them. A host that reports
// another disk than the one that the person has seen is left alone.
func (l *Lab) AcceptDisks(_ context.Context, q api.AcceptRequest, who string) ([]api.Outcome, error) {
	seen := map[string]spec.DiskID{}
	var targets []string
	for name, id := range q.Disks {
		seen[key(name)] = id
		targets = append(targets, name)
	}
	return l.each(targets, func(k string) (string, error) {
		r := l.record(k)
		id, named := seen[k]
		switch {
		case !named:
			return "", fmt.Errorf("%s: name each host by itself, with its disk: %w", r.Name, api.ErrInvalid)
		case r.Target == nil:
			return "left alone: it has not reported its disk yet, which it does at its next remote boot", nil
		case r.Target.Identity() != id:
			return fmt.Sprintf("left alone: it reports another disk now (%v): look again", r.Target.Identity()), nil
		}
		text := clone(r).Accept(id)
		l.Logger.Info("disk accepted", "host", r.Name, "disk", id.String(), "by", who, "why", q.Why)
		return text, l.change(k, func(r *hosts.Record) { r.Accept(id) })
	})
}

// Release lifts whatever keeps hosts from being reimaged: a hold, a parking, the
// pause after a failure. A target may also be a roll-out that has stopped.
func (l *Lab) Release(_ context.Context, t api.Targets, who string) ([]api.Outcome, error) {
	var done []api.Outcome
	var rest []string
	l.mu.Lock()
	for _, name := range t.Targets {
		roll := l.findRollout(key(name))
		if roll == nil || l.candidates[key(name)] != nil {
			rest = append(rest, name)
			continue
		}
		text := "was not stopped"
		if roll.Stop != nil {
			text = "goes on"
			if err := l.setStop(roll, nil); err != nil {
				l.mu.Unlock()
				return done, err
			}
		}
		done = append(done, api.Outcome{Host: "roll-out " + roll.ID, Text: text})
	}
	l.mu.Unlock()
	if len(rest) == 0 && len(done) > 0 {
		return done, nil
	}
	more, err := l.each(rest, func(k string) (string, error) {
		if what := clone(l.record(k)).Release(); what != "" {
			return what, l.change(k, func(r *hosts.Record) { r.Release() })
		}
		return "nothing was holding it", nil
	})
	l.Logger.Info("released", "by", who, "targets", t.Targets)
	return append(done, more...), err
}

// each does something to every host that targets name.
func (l *Lab) each(targets []string, do func(k string) (string, error)) ([]api.Outcome, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys, err := l.pick(targets)
	if err != nil {
		return nil, err
	}
	var all []api.Outcome
	for _, k := range keys {
		text, err := do(k)
		if err != nil {
			return all, err
		}
		all = append(all, api.Outcome{Host: l.record(k).Name, Text: text})
	}
	return all, nil
}

// Unknown returns the cards that asked and are nobody's, the last seen first.
func (l *Lab) Unknown() []api.Unknown {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []api.Unknown{}
	for _, u := range l.unknown {
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b api.Unknown) int {
		if c := b.Last.Compare(a.Last); c != 0 {
			return c
		}
		return strings.Compare(a.MAC.String(), b.MAC.String())
	})
	return all
}

// KnownHosts returns the lab's ssh_known_hosts: the keys that PCs reported.
func (l *Lab) KnownHosts() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text strings.Builder
	for _, k := range l.order {
		h, r := l.hostOf(k), l.records[k]
		if r == nil {
			continue
		}
		names := h.Name
		if d := l.site.Inventory.Site.Domain; d != "" {
			names += "," + h.Name + "." + d
		}
		for _, line := range r.HostKeys {
			if words := strings.Fields(line); len(words) >= 2 {
				fmt.Fprintf(&text, "%s,%s %s %s\n", names, h.IP, words[0], words[1])
			}
		}
	}
	return text.String()
}
