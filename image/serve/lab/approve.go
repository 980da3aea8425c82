package lab

import (
	"context"
	"fmt"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// approvedKey is where in metaBucket it stands which plan was found right last for a
// profile.
func approvedKey(profile string) string { return "approved " + profile }

// Approve notes that plans are right. A host that has made another plan than the one
// that the person has seen is left alone.
func (l *Lab) Approve(_ context.Context, q api.ApproveRequest, who string) ([]api.Outcome, error) {
	seen := map[string]spec.Digest{}
	var targets []string
	for name, sum := range q.Plans {
		seen[key(name)] = sum
		targets = append(targets, name)
	}
	return l.each(targets, func(k string) (string, error) {
		r := l.record(k)
		sum, named := seen[k]
		switch {
		case !named:
			return "", fmt.Errorf("%s: name each host by itself, with its plan: %w", r.Name, api.ErrInvalid)
		case r.Plan == nil:
			return "left alone: it has made no plan yet, which it does at its next remote boot", nil
		case r.Plan.Sum() != sum:
			return "left alone: it has made another plan since: look again", nil
		}
		text := clone(r).Approve(sum)
		l.Logger.Info("plan approved", "host", r.Name, "plan", sum.Short(), "by", who, "why", q.Why)
		return text, l.change(k, func(r *hosts.Record) { r.Approve(sum) }, entry(metaBucket, approvedKey(r.Plan.Profile), r.Plan.Class()))
	})
}

// approvedBefore says whether an event is a plan that needs no person, because one like
// it was found right for its profile.
func (l *Lab) approvedBefore(r *hosts.Record, e spec.Event) bool {
	if e.Plan == nil {
		return false
	}
	m := l.manifest(r.Boot.Manifest)
	if m == nil || m.Approve != spec.ApproveSame || e.Plan.Profile != m.Profile {
		return false
	}
	text, err := l.Store.Get(metaBucket, approvedKey(m.Profile))
	if err != nil {
		l.Logger.Warn("a person has to approve a plan that might have been approved before", "host", r.Name, "error", err)
		return false
	}
	return string(text) == fmt.Sprintf("%q", e.Plan.Class().String())
}
