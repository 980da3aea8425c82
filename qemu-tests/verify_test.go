package qemutests

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// TestVerify has the boot server remember what a PC's finished tree is: the disk is
// compared with all of it, and what its steps made is not made again as long as
// nobody has changed it.
func TestVerify(t *testing.T) {
	pc := &PC{
		Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1},
		Disk: &Disk{Size: 2 * spec.GiB, Fill: OwnSystem("the old system")}, Vars: map[string]string{"motd": "first"},
	}
	setup := small(t, pc)
	room := &servedT{roomT: newRoom(t, setup)}
	for name, file := range setup.Wads {
		if _, err := room.Reassure(t.Context(), "wad", "pack", file, "-o", filepath.Join(room.Site, "wads", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := room.Config("server"); err != nil {
		t.Fatal(err)
	}
	room.serve()
	room.ask("rollout", pc.Name)
	vm := room.powerOn(pc)
	vm.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(pc, vm, "first")

	// As it was laid down, and as its first boot left it.
	says(t, "verify --running", room.ask("verify", pc.Name, "--running"), "it holds what it should", "it ran meanwhile")
	says(t, "verify", room.ask("verify", pc.Name), "will verify at its next boot")
	press(t, vm)
	vm.expect(`VERIFIED: the disk holds what it should`, 2*time.Minute)
	room.runs(pc, vm, "first")
	says(t, "verify --last", room.ask("verify", pc.Name, "--last"), "it holds what it should")
	room.state(pc, api.Current, "local")

	// As a user left it: a file of the wad, one that a step made, and one of nobody's.
	login := func(do string) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, fmt.Errorf("not within a minute"))
		defer cancel()
		g, err := vm.Login(ctx, "root", room.Key, room.keys(pc))
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		(&guestT{g, t}).says(do+" && sync && echo so", "so")
	}
	login(`chmod 4777 /bin/busybox && echo evil >/usr/nobodys && echo "# evil" >>/boot/grub/grub.cfg`)
	found := []string{"/bin/busybox: mode", "/usr/nobodys: entry", "/boot/grub/grub.cfg: "}
	out, err := room.Ask(t.Context(), "verify", pc.Name, "--running")
	if err == nil {
		t.Error("verify --running says that all is well")
	}
	says(t, "verify --running", out+fmt.Sprint(err), append(found, "it ran meanwhile")...)
	room.ask("verify", pc.Name)
	press(t, vm)
	vm.expect(`VERIFIED: the disk differs in`, 2*time.Minute)
	room.runs(pc, vm, "first")
	if out, err = room.Ask(t.Context(), "verify", pc.Name, "--last"); err == nil {
		t.Error("verify --last says that all is well")
	}
	says(t, "verify --last", out+fmt.Sprint(err), found...)

	// What a step made was changed: all steps run. It was not: none does.
	room.ask("reimage", "--yes", pc.Name)
	press(t, vm)
	vm.expect(`the steps will run again`, 2*time.Minute)
	vm.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(pc, vm, "first")
	login(`chmod 777 /bin/busybox && echo evil >/usr/nobodys`)
	room.ask("reimage", "--yes", pc.Name)
	press(t, vm)
	vm.expect(`no step has to run`, 2*time.Minute)
	vm.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(pc, vm, "first")
	room.ask("verify", pc.Name)
	press(t, vm)
	vm.expect(`VERIFIED: the disk holds what it should`, 2*time.Minute)
}
