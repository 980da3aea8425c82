package qemutests

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// TestFirstDay is a lab's first day, by the boot server: the PC's disk is a stranger's, so
// that it is parked until a person accepts it; and its plan waits for a person, too. Nothing
// is written before both have been said.
func TestFirstDay(t *testing.T) {
	room, pc, untouched := withStranger(t, "DAYONE")
	room.ask("rollout", pc.Name)

	vm := room.powerOn(pc)
	vm.expect(`REIMAGE FAILED: decide: (?s:.{0,300}?)serial DAYONE(?s:.{0,300}?)is not blank`, 4*time.Minute)
	room.await(pc, "parked", time.Minute, func(h api.Host) bool { return h.State == api.Parked })
	vm.off()
	room.state(pc, api.Parked, "local")
	untouched("before a person accepted it")
	says(t, "accept-disk", room.ask("accept-disk", pc.Name, "--yes"), "DAYONE", "exp01: accepted, and no longer parked")

	vm = room.powerOn(pc)
	vm.expect(`-> approval`, 4*time.Minute)
	room.await(pc, "waiting", time.Minute, func(h api.Host) bool { return h.Progress != nil && h.Progress.Phase == spec.PhaseApproval })
	says(t, "plan", room.ask("plan", pc.Name), "serial DAYONE", "make   /dev/vda1", "it waits for: reassure approve exp01")
	untouched("before a person approved the plan")
	says(t, "approve", room.ask("approve", pc.Name, "--yes"), "exp01: approved")
	vm.expect(`REIMAGE DONE`, 5*time.Minute)
	room.runs(pc, vm, "first")
	room.state(pc, api.Current, "local")
}

// withStranger is a room whose boot server runs, and a PC there whose disk, with that
// serial number, holds what nobody has accepted yet; untouched fails the test if it was
// written to.
func withStranger(t *testing.T, serial string) (room *servedT, pc *PC, untouched func(when string)) {
	t.Helper()
	pc = &PC{
		Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1},
		Disk: &Disk{Size: 2 * spec.GiB, Fill: OwnSystem("the old system"), Serial: serial}, Vars: map[string]string{"motd": "first"},
	}
	setup := small(t, pc)
	setup.Files["profiles/small.yaml"] = strings.Replace(setup.Files["profiles/small.yaml"], "disk: {overwrite: foreign}\n", "approve: ask\n", 1)
	room = &servedT{roomT: newRoom(t, setup)}
	if err := pc.Disk.Make(filepath.Join(room.Dir, "disk")); err != nil {
		t.Fatal(err)
	}
	before := sum(t, pc.Disk)
	if err := room.Config("server"); err != nil {
		t.Fatal(err)
	}
	room.serve()
	return room, pc, func(when string) {
		t.Helper()
		if sum(t, pc.Disk) != before {
			t.Errorf("the disk was written to %s", when)
		}
	}
}
