package reimage

import (
	"errors"
	"strings"
	"testing"

	"reassure/image/spec"
	"reassure/image/stamp"
)

// TestRecognise is the matrix of what is known of a disk and what is on it.
func TestRecognise(t *testing.T) {
	windows := target()
	blank := target()
	blank.Contents = nil
	headless := blank
	headless.Data = true
	empty := blank
	empty.Table = spec.GPT
	cut := blank
	cut.Uncommitted, cut.Table, cut.Data = true, spec.MBR, true
	nameless := windows
	nameless.Serial = ""
	byWWN := nameless
	byWWN.WWN = "eui.0025"

	ours := func(serial string) *Installed {
		s := stamp.New(manifest())
		s.DiskSerial = serial
		return &Installed{Stamp: s, Whole: true}
	}
	S1, other := spec.DiskID{Serial: "S1", Model: "Lab Disk"}, spec.DiskID{Serial: "S2", Model: "Lab Disk"}
	for _, c := range []struct {
		name     string
		disk     spec.Disk
		found    *Installed
		accepted []spec.DiskID
		foreign  bool
		asks     string // part of the question; empty: it may be written to
	}{
		{name: "blank", disk: blank},
		{name: "a stranger's", disk: windows, asks: "is not blank"},
		{name: "an empty table", disk: empty, asks: "is not blank"},
		{name: "data without a signature", disk: headless, asks: "is not blank"},
		{name: "a stranger's, accepted", disk: windows, accepted: []spec.DiskID{S1}},
		{name: "a stranger's, accepted without its model", disk: windows, accepted: []spec.DiskID{{Serial: "S1"}}},
		{name: "a stranger's, one of two accepted", disk: windows, accepted: []spec.DiskID{other, S1}},
		{name: "a stranger's, foreign allowed", disk: windows, foreign: true},
		{name: "ours", disk: windows, found: ours("S1")},
		{name: "a copy of ours", disk: windows, found: ours("S9"), asks: `made on another disk (serial "S9")`},
		{name: "a copy of ours, accepted", disk: windows, found: ours("S9"), accepted: []spec.DiskID{S1}},
		{name: "cut in the middle", disk: cut},
		{name: "another disk, blank", disk: blank, accepted: []spec.DiskID{other}, asks: "not the disk that is known"},
		{name: "another disk, ours", disk: windows, found: ours("S1"), accepted: []spec.DiskID{other}, asks: "not the disk that is known"},
		{name: "another disk, cut", disk: cut, accepted: []spec.DiskID{other}, asks: "not the disk that is known"},
		{name: "another disk, foreign allowed", disk: windows, accepted: []spec.DiskID{other}, foreign: true, asks: "not the disk that is known"},
		{name: "the same serial on another model", disk: windows, accepted: []spec.DiskID{{Serial: "S1", Model: "Other"}}, asks: "not the disk that is known"},
		{name: "no serial, the same model and size", disk: nameless, accepted: []spec.DiskID{nameless.Identity()}},
		{name: "no serial, another size", disk: nameless, accepted: []spec.DiskID{{Model: "Lab Disk", Size: spec.GiB}}, asks: "--model \"Lab Disk\" --size 8589934592"},
		{name: "by WWN", disk: byWWN, accepted: []spec.DiskID{{WWN: "nvme.0025"}}},
		{name: "by another WWN", disk: byWWN, accepted: []spec.DiskID{{WWN: "eui.0026"}}, asks: "--wwn \"eui.0025\""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest()
			m.Accepted = c.accepted
			if c.foreign {
				m.Disk.Overwrite = "foreign"
			}
			err := Recognise(m, c.disk, c.found)
			if c.asks == "" {
				if err != nil {
					t.Errorf("asks %v", err)
				}
				return
			}
			var refusal *Refusal
			var q *Question
			if !errors.As(err, &refusal) || !errors.As(err, &q) || q.Ask != spec.AskDisk || !strings.Contains(err.Error(), c.asks) {
				t.Errorf("error is %v; want a question with %q", err, c.asks)
			}
			if err != nil && !strings.Contains(err.Error(), "accept-disk exp01") {
				t.Errorf("%v: names no remedy", err)
			}
		})
	}
}
