package qemutests

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// raidMember fills a disk as the first member of a Linux RAID: a superblock of
// version 1.2 at 4 KiB, of which the reimager looks at the magic number.
func raidMember(f *os.File) error {
	_, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, 0xa92b4efc), 4096)
	return err
}

// TestRightDisk is a lab's first day on a PC with four disks: the one that the rule
// means is a stranger's, and nothing is written before a person accepts it. The others
// stay as they are to the last sector, then and always; and when one of them becomes a
// copy of it, it is refused by name.
func TestRightDisk(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Setup{
		Profile: "small", CommandLine: "reassure.force",
		Files: SmallFiles(strings.Replace(SmallProfile, "disk: {overwrite: foreign}", "disk: {bus: virtio, pick: smallest}", 1)),
	})
	lab.pack(wad(t, "small", "small.tar.zst"))
	lab.publish()
	system := &Disk{Size: 1 * spec.GiB, Fill: previous, Serial: "SYSTEM"}
	data := &Disk{Size: 2 * spec.GiB, Fill: previous, Serial: "DATA"}
	raid := &Disk{Size: 512 * spec.MiB, Fill: raidMember, Serial: "RAID"}
	stick := &Disk{Size: 512 * spec.MiB, Fill: previous, Bus: "scsi", Removable: true, Serial: "STICK"}
	disks := []*Disk{data, raid, stick, system}
	sums := map[*Disk]spec.Digest{}
	for _, d := range disks {
		if err := d.Make(filepath.Join(lab.Dir, "disk-"+d.Serial)); err != nil {
			t.Fatal(err)
		}
		sums[d] = sum(t, d)
	}
	unchanged := func(disks ...*Disk) {
		t.Helper()
		for _, d := range disks {
			if sum(t, d) != sums[d] {
				t.Errorf("disk %s was written to", d.Serial)
			}
		}
	}
	powerOn := func(what string) *vmT {
		t.Helper()
		lab.decide("remote")
		pc := lab.powerOn(Machine{Disks: disks})
		pc.expect(what, 4*time.Minute)
		return pc
	}

	powerOn(`REIMAGE FAILED: (?s:.{0,300}?)serial SYSTEM(?s:.{0,200}?)is not blank(?s:.{0,300}?)--serial "SYSTEM"`).off()
	unchanged(disks...)

	if err := lab.reassure(t.Context(), "accept-disk", "exp01", "--serial", "SYSTEM", "--site", lab.Site); err != nil {
		t.Fatal(err)
	}
	lab.publish()
	powerOn(`REIMAGE DONE`).off()
	bootable(t, system, true)
	unchanged(data, raid, stick)

	// The disk is copied to the larger one, as people do who want a larger one.
	copied, err := os.ReadFile(system.Path())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(data.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(copied, 0)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	sums[data], sums[system] = sum(t, data), sum(t, system)
	powerOn(`REIMAGE FAILED: (?s:.{0,300}?)(?:UUID|label)(?s:.{0,100}?)serial DATA`).off()
	unchanged(disks...)
}
