package lab

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// Changes returns in words what differs between the software of two manifests of
// one host, was (nil is nothing at all) and is. With diffs, texts are shown.
// Whatever [stamp.Digest] counts, and nothing else, gives a change that is not volatile.
func Changes(was, is *spec.Manifest, diffs bool) []api.Change {
	if was == nil {
		was = &spec.Manifest{}
	}
	var all []api.Change
	add := func(volatile bool, diff string, format string, args ...any) {
		if !diffs {
			diff = ""
		}
		all = append(all, api.Change{Text: fmt.Sprintf(format, args...), Volatile: volatile, Diff: diff})
	}
	a, b := stamp.Inputs(was), stamp.Inputs(is)
	if a["layout"] != b["layout"] {
		diff := textDiff("layout", pretty(layout(was)), pretty(layout(is)))
		add(false, diff, "layout: %s", lines(diff))
	}
	if a["system"] != b["system"] {
		diff := textDiff("system", pretty(was.System), pretty(is.System))
		add(false, diff, "system settings: %s", lines(diff))
	}
	before := len(all)
	for _, c := range pairs(was.Wads, is.Wads, func(w spec.Wad) string { return w.Name + " at " + w.Mount }) {
		switch {
		case c.was == nil:
			add(false, "", "wad %s: new, sha256 %s", c.is.Name, c.is.SHA256.Short())
		case c.is == nil:
			add(false, "", "wad %s: no longer", c.was.Name)
		case c.was.SHA256 != c.is.SHA256:
			add(false, "", "wad %s: sha256 %s… -> %s…", c.is.Name, c.was.SHA256.Short(), c.is.SHA256.Short())
		case c.was.Overlay != c.is.Overlay:
			add(false, "", "wad %s: overlay %v -> %v", c.is.Name, c.was.Overlay, c.is.Overlay)
		}
	}
	if len(all) == before && a["order of wads"] != b["order of wads"] {
		add(false, "", "the order of the wads")
	}
	for _, c := range pairs(was.Files, is.Files, func(f spec.File) string { return f.Path }) {
		switch {
		case c.was == nil:
			add(c.is.Volatile, textDiff(c.is.Path, "", c.is.Content), "template %s: new", name(c.is))
		case c.is == nil:
			add(c.was.Volatile, textDiff(c.was.Path, c.was.Content, ""), "template %s: no longer", name(c.was))
		default:
			volatile := c.was.Volatile && c.is.Volatile
			var what []string
			diff := ""
			if c.was.Content != c.is.Content {
				diff = textDiff(c.is.Path, c.was.Content, c.is.Content)
				what = append(what, lines(diff))
			}
			if c.was.Mode != c.is.Mode || c.was.UID != c.is.UID || c.was.GID != c.is.GID {
				what = append(what, fmt.Sprintf("mode and owner %v %d:%d -> %v %d:%d", c.was.Mode, c.was.UID, c.was.GID, c.is.Mode, c.is.UID, c.is.GID))
			}
			if c.was.Volatile != c.is.Volatile {
				what = append(what, fmt.Sprintf("volatile %v -> %v", c.was.Volatile, c.is.Volatile))
			}
			if len(what) > 0 {
				add(volatile, diff, "template %s: %s", name(c.is), strings.Join(what, ", "))
			}
		}
	}
	before = len(all)
	for _, c := range pairs(was.Steps, is.Steps, func(s spec.Step) string { return s.Name }) {
		switch {
		case c.was == nil:
			add(false, "", "step %s: new", c.is.Name)
		case c.is == nil:
			add(false, "", "step %s: no longer", c.was.Name)
		case a["step "+c.is.Name] != b["step "+c.is.Name]:
			diff := textDiff("step "+c.is.Name, pretty(c.was), pretty(c.is))
			add(false, diff, "step %s: %s", c.is.Name, lines(diff))
		}
	}
	if len(all) == before && a["order of steps"] != b["order of steps"] {
		add(false, "", "the order of the steps")
	}
	return all
}

func layout(m *spec.Manifest) any {
	return struct {
		Table      spec.Table       `json:"table"`
		Partitions []spec.Partition `json:"partitions"`
	}{m.Table, m.Partitions}
}

// name is a template's, as its profile has it, with the place that it goes to.
func name(f *spec.File) string {
	if f.Template == "" || strings.HasSuffix(f.Path, "/"+f.Template) {
		return f.Path
	}
	return f.Template + " (" + f.Path + ")"
}

func pretty(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text) + "\n"
}

func textDiff(name, was, is string) string { return udiff.Unified("a/"+name, "b/"+name, was, is) }

// lines counts the lines that a diff adds or removes, the larger of the two.
func lines(diff string) string {
	add, remove := 0, 0
	for line := range strings.Lines(diff) {
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
		case strings.HasPrefix(line, "+"):
			add++
		case strings.HasPrefix(line, "-"):
			remove++
		}
	}
	if n := max(add, remove); n != 1 {
		return fmt.Sprintf("%d lines", n)
	}
	return "1 line"
}

// pair is one thing in two versions; nil is not there.
type pair[T any] struct{ was, is *T }

// pairs joins two lists by key, in the order of the second, then of the first.
func pairs[T any](was, is []T, by func(T) string) []pair[T] {
	var all []pair[T]
	for i := range is {
		p := pair[T]{is: &is[i]}
		if j := slices.IndexFunc(was, func(w T) bool { return by(w) == by(is[i]) }); j >= 0 {
			p.was = &was[j]
		}
		all = append(all, p)
	}
	for i := range was {
		if !slices.ContainsFunc(is, func(n T) bool { return by(n) == by(was[i]) }) {
			all = append(all, pair[T]{was: &was[i]})
		}
	}
	return all
}

// pending is what differs between what was rolled out to a host and a candidate.
func (l *Lab) pending(r *hosts.Record, candidate *spec.Manifest, diffs bool) []api.Change {
	if r.Wanted == nil {
		return []api.Change{{Text: "nothing was rolled out to it yet"}}
	}
	return software(l.compare(r.Wanted, candidate, diffs))
}

func software(all []api.Change) []api.Change {
	return slices.DeleteFunc(all, func(c api.Change) bool { return c.Volatile })
}

func volatile(all []api.Change) []api.Change {
	return slices.DeleteFunc(all, func(c api.Change) bool { return !c.Volatile })
}

// compare says what differs between a software whose manifest may be lost, and m.
func (l *Lab) compare(was *hosts.Software, m *spec.Manifest, diffs bool) []api.Change {
	if before := l.manifest(was.Manifest); before != nil {
		return Changes(before, m, diffs)
	}
	if was.Digest == m.Digest {
		return nil
	}
	return []api.Change{{Text: fmt.Sprintf("software %s -> %s; the server does not have the texts of the first", was.Digest.Short(), m.Digest.Short())}}
}
