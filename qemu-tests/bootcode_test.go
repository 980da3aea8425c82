package qemutests

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"reassure/image/reimage/disk"
	"reassure/image/spec"
)

// TestBootCode commits a GRUB that grub-mkimage made, as the reimager would, to
// an MBR's gap and to a GPT's BIOS boot partition, and has a BIOS boot it.
func TestBootCode(t *testing.T) {
	t.Parallel()
	const modules = "/usr/lib/grub/i386-pc"
	dir := t.TempDir()
	early := filepath.Join(dir, "early.cfg")
	if err := os.WriteFile(early, []byte("serial --unit=0\nterminal_output serial\necho GRUB is whole\nhalt\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	core := filepath.Join(dir, "core.img")
	out, err := exec.Command("grub-mkimage", "--directory="+modules, "--format=i386-pc", "--config="+early, "--output="+core, "--prefix=/boot/grub",
		"biosdisk", "part_msdos", "part_gpt", "serial", "terminal", "echo", "halt").CombinedOutput()
	if err != nil {
		t.Fatalf("grub-mkimage (Debian packages grub-common and grub-pc-bin): %v\n%s", err, out)
	}
	bootText, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		t.Fatal(err)
	}
	coreText, err := os.ReadFile(core)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []spec.Table{spec.MBR, spec.GPT} {
		d := &Disk{Size: 128 * spec.MiB}
		if err := d.Make(filepath.Join(t.TempDir(), string(table))); err != nil {
			t.Fatal(err)
		}
		parts := []spec.Partition{{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Mount: "/"}}
		if table == spec.GPT {
			parts = append([]spec.Partition{{Name: "bios", Size: spec.Extent{Bytes: spec.MiB}, FileSystem: spec.None, Type: spec.TypeBIOSBoot}}, parts...)
		}
		plan := &spec.Plan{Table: table, Disk: spec.Disk{Device: d.Path(), Size: d.Size, LogicalSector: 512, PhysicalSector: 512}}
		if plan.Partitions, err = disk.Place(spec.BIOS, table, parts, plan.Disk); err != nil {
			t.Fatal(err)
		}
		if plan.DiskID, err = disk.Identify(plan.Partitions, table, rand.Reader); err != nil {
			t.Fatal(err)
		}
		target, err := disk.Open(plan)
		if err != nil {
			t.Fatal(err)
		}
		for _, do := range []func() error{
			target.Uncommit, target.Wipe, func() error { return target.WriteTable(t.Context()) },
			func() error { return target.Commit(bootText, coreText) }, target.Close,
		} {
			if err := do(); err != nil {
				t.Fatalf("%s: %v", table, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		vm, err := Machine{Dir: t.TempDir(), TFTP: t.TempDir(), Disks: []*Disk{d}, FromDisk: true}.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vm.Expect(ctx, regexp.MustCompile("GRUB is whole")); err != nil {
			t.Errorf("%s: %v", table, err)
		}
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
	}
}
