package main

import (
	"strings"
	"testing"

	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// TestCheck: a judge that lets something pass is worse than none.
func TestCheck(t *testing.T) {
	const done, failed = "REIMAGE DONE host=exp01\n", "REIMAGE FAILED: extract: disk is gone\n"
	told := []spec.Event{{Kind: spec.EventFailure, Text: "disk is gone"}}
	for _, c := range []struct {
		name    string
		fault   fault
		outcome string
		console string
		events  []spec.Event
		want    string // in the error; empty is none
	}{
		{"whole", fault{works: true}, qemutests.NewSystem, done, nil, ""},
		{"failed, and says why", fault{breaks: true, reason: "gone"}, qemutests.NoBoot, failed, told, ""},
		{"untouched", fault{untouched: true, reason: "gone"}, qemutests.OldSystem, failed, told, ""},
		{"nobody can be told", fault{breaks: true, reason: "gone", unheard: true}, qemutests.NoBoot, failed, nil, ""},
		{"tried twice", fault{breaks: true, reason: "gone", fails: 2}, qemutests.NoBoot, failed + failed, told, ""},

		{"false success", fault{}, qemutests.NoBoot, done, nil, "the PC said that it is done"},
		{"false success at the server", fault{}, qemutests.NoBoot, failed, []spec.Event{{Kind: spec.EventDone}}, "reported that it is done"},
		{"false failure", fault{reason: "gone"}, qemutests.NewSystem, failed, told, "the PC said that it is done: false"},
		{"written to", fault{untouched: true}, qemutests.NoBoot, failed, told, "written to"},
		{"does not fail", fault{breaks: true}, qemutests.NewSystem, done, nil, "must fail"},
		{"does not get over it", fault{works: true}, qemutests.NoBoot, failed, told, "gets over"},
		{"tried once", fault{breaks: true, fails: 2}, qemutests.NoBoot, failed, told, "2 times"},
		{"says nothing", fault{breaks: true}, qemutests.NoBoot, "", told, "does not say that it failed"},
		{"says something else", fault{breaks: true, reason: "404"}, qemutests.NoBoot, failed, told, "does not say why"},
		{"tells the server something else", fault{breaks: true, reason: "gone"}, qemutests.NoBoot, failed, []spec.Event{{Kind: spec.EventFailure, Text: "?"}}, "was not told why"},
		{"tells the server nothing", fault{breaks: true, reason: "gone"}, qemutests.NoBoot, failed, nil, "was not told why"},
	} {
		err := c.fault.check(c.outcome, c.console, c.events)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// TestRows: each fault has a name of its own, and says what must come of it.
func TestRows(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range faults() {
		kinds := 0
		for _, is := range []bool{f.untouched, f.breaks, f.works} {
			if is {
				kinds++
			}
		}
		if kinds > 1 || seen[f.name] || len(f.modes) == 0 {
			t.Errorf("%s: %+v", f.name, f)
		}
		seen[f.name] = true
	}
	if len(seen) < 40 {
		t.Errorf("there are %d faults", len(seen))
	}
}
