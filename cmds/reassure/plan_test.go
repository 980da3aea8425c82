package main

import (
	"fmt"
	"strings"
	"testing"

	"reassure/image/spec"
)

func TestPlanAndApprove(t *testing.T) {
	plainly(t)
	f := newFake(t)
	plan := func(host string) *spec.Plan {
		return &spec.Plan{
			Host: host, Profile: "lab", Digest: spec.Sum([]byte("software")), Mode: spec.ReimageFull, Reason: "no system of ours",
			Disk:       spec.Disk{Device: "/dev/sda", Bus: "ata", Model: "Lab\x1b[2J Disk", Serial: "S1", Size: 8 * spec.GiB, Contents: []spec.Content{{Partition: 1, Kind: "ntfs", Label: "Windows"}}},
			Partitions: []spec.Placed{{Partition: spec.Partition{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: "ext4", Mount: "/"}, Number: 1, Device: "/dev/sda1", Length: uint64(8 * spec.GiB)}},
			Wads:       []spec.Wad{{Name: "debian.tar.zst", Size: spec.GiB, Mount: "/"}}, Files: []string{"/etc/motd"}, Steps: []string{"boot loader"},
		}
	}
	f.plans = map[string]*spec.Plan{"exp01": plan("exp01"), "exp03": plan("exp03"), "exp04": plan("exp04")}
	f.asks = map[string]spec.Ask{"exp04": spec.AskPlan}
	f.hosts[2].Progress.Phase = spec.PhaseApproval
	show := func(name string, code int, args ...string) {
		t.Helper()
		out, errs, got := ask(t, f.address, args...)
		if got != code {
			t.Errorf("%v: code %d; want %d", args, got, code)
		}
		golden(t, name, out+errs)
	}
	show("plan", 0, "plan", "exp03")
	show("plan none", 1, "plan", "exp02")
	show("plan json", 0, "plan", "exp01", "--json")
	show("approve nothing", 1, "approve", "exp01", "exp02", "--yes")
	if len(f.asked) != 0 {
		t.Errorf("asked %q", f.asked)
	}
	show("approve", 0, "approve", "exp0*", "--yes", "--why", "looked at it")
	want := fmt.Sprintf(`approve {"plans":{"exp03":"%v","exp04":"%v"},"why":"looked at it"}`, f.plans["exp03"].Sum(), f.plans["exp04"].Sum())
	if strings.Join(f.asked, "\n") != want {
		t.Errorf("asked %q; want %q", f.asked, want)
	}
}
