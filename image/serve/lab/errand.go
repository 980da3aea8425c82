package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// Errand asks hosts for something besides a reimage, at their next boot.
func (l *Lab) Errand(ctx context.Context, q api.ErrandRequest, who string) ([]api.Outcome, error) {
	if q.Kind != spec.Verify && q.Kind != spec.Capture && q.Kind != spec.Rescue {
		return nil, fmt.Errorf("there is no errand %q: %w", q.Kind, api.ErrInvalid)
	}
	if q.Kind == spec.Capture {
		if err := checkCapture(q); err != nil {
			return nil, err
		}
	}
	id := strings.ToLower(rand.Text()[:8])
	given := map[string]bool{}
	out, err := l.each(q.Targets.Targets, func(k string) (string, error) {
		r := l.record(k)
		m, why := l.errandOf(k, q.Kind)
		if m == nil {
			return "left alone: " + why, nil
		}
		m.Errand = &spec.Errand{Kind: q.Kind, ID: id, Exclude: q.Exclude}
		text, err := m.Marshal()
		if err != nil {
			return "", err
		}
		e := &hosts.Errand{
			Errand:   api.Errand{Errand: *m.Errand, Note: api.Note{Text: q.Why, By: who, At: l.Now()}},
			Manifest: spec.Sum(text), Digest: m.Digest,
		}
		err = l.change(k, func(r *hosts.Record) { r.Errand = e }, store.Entry{Bucket: manifestsBucket, Key: e.Manifest.String(), Value: text})
		if err != nil {
			return "", err
		}
		given[r.Name] = true
		l.Logger.Info("errand", "kind", q.Kind, "id", id, "host", r.Name, "by", who, "why", q.Why)
		if !q.Now {
			return fmt.Sprintf("will %s at its next boot", does(q.Kind)), nil
		}
		go l.start(context.WithoutCancel(ctx), *l.hostOf(k), append([]string{}, r.HostKeys...))
		return fmt.Sprintf("is told to start, and will %s then", does(q.Kind)), nil
	})
	for i, o := range out {
		if given[o.Host] {
			out[i].Errand = id
		}
	}
	return out, err
}

// does says what a PC does on an errand.
func does(kind spec.ErrandKind) string {
	if kind == spec.Rescue {
		return "wait for people who log in"
	}
	return string(kind)
}

// errandOf returns a copy of the manifest that an errand of a host goes by, or
// why there is none.
func (l *Lab) errandOf(k string, kind spec.ErrandKind) (*spec.Manifest, string) {
	r := l.record(k)
	switch {
	case r.Boot != nil && r.Boot.Errand == "":
		return nil, "it is being reimaged"
	case kind == spec.Rescue && r.Boot != nil && r.Boot.Errand == spec.Rescue:
		return nil, "it is in rescue already: " + r.Boot.Text
	case kind == spec.Rescue && len(l.candidates[k].Rescuers()) == 0:
		return nil, "nobody could log in: write rescue_keys, or authorized_keys below system, into its profile"
	case kind == spec.Rescue:
	case r.Hold != nil:
		return nil, "it is held" + said(r.Hold)
	case r.Broken:
		return nil, "its last reimage was not finished, so that there is no system on its disk"
	}
	if kind == spec.Capture || kind == spec.Rescue {
		m := *l.candidates[k]
		l.serial = max(l.Now().Unix(), l.serial+1)
		m.Serial = l.serial
		return &m, ""
	}
	if r.Installed == nil {
		return nil, "what is installed on it is not known: roll out to it first"
	}
	was := l.manifest(r.Installed.Manifest)
	if was == nil {
		return nil, "the manifest that it was reimaged by is not kept here: roll out to it first"
	}
	m := *was
	return &m, ""
}

func said(n *api.Note) string {
	if n.Text == "" {
		return ""
	}
	return ": " + n.Text
}
