package reimage

import (
	"errors"
	"strings"
	"testing"

	"reassure/image/spec"
	"reassure/image/stamp"
)

// installedAs is a disk that holds the manifest's system, as it was planned.
func installedAs(t *testing.T, m *spec.Manifest) (spec.Disk, *Installed) {
	t.Helper()
	d := target()
	d.Contents = nil
	plan, err := MakePlan(m, spec.Facts{Firmware: spec.BIOS, Disks: []spec.Disk{d}}, d, nil, fixed())
	if err != nil {
		t.Fatal(err)
	}
	d.Table, d.ID = m.Table, "1a2b3c4d"
	types := map[string]string{spec.Ext4: "83", spec.Swap: "82"}
	for i, p := range plan.Partitions {
		d.Partitions = append(d.Partitions, spec.Existing{Number: p.Number, Start: p.Start, Length: p.Length, Type: types[p.FileSystem], PartUUID: "1a2b3c4d-0" + string(rune('1'+i))})
		d.Contents = append(d.Contents, spec.Content{Partition: p.Number, Kind: p.FileSystem, Label: p.Label, UUID: "old-" + p.Name})
	}
	s := stamp.New(m)
	s.DiskSerial = d.Serial
	return d, &Installed{Disk: d, Partition: 3, FileSystem: spec.Ext4, Stamp: s, Whole: true}
}

func TestMode(t *testing.T) {
	for _, c := range []struct {
		name    string
		spoil   func(m *spec.Manifest, d *spec.Disk, i *Installed)
		nothing bool // of ours is found
		again   bool
		noCheck error
		full    string // why; "" is a delta
	}{
		{name: "as it was"},
		{name: "other software", spoil: func(m *spec.Manifest, _ *spec.Disk, _ *Installed) { m.Digest[0]++ }},
		{name: "the profile wants full", spoil: func(m *spec.Manifest, _ *spec.Disk, _ *Installed) { m.Mode = spec.ReimageFull }, full: "profile asks"},
		{name: "blank", nothing: true, full: "no system of ours"},
		{name: "never finished", spoil: func(_ *spec.Manifest, _ *spec.Disk, i *Installed) { i.Whole = false }, full: "never finished"},
		{name: "lost its network in a delta", nothing: true, again: true},
		{name: "another host's", spoil: func(_ *spec.Manifest, _ *spec.Disk, i *Installed) { i.Stamp.Host = "exp02" }, full: "installed as exp02"},
		{name: "a copy of another disk", spoil: func(_ *spec.Manifest, _ *spec.Disk, i *Installed) { i.Stamp.DiskSerial = "S2" }, full: "copy of another disk"},
		{name: "a wad without an index", spoil: func(m *spec.Manifest, _ *spec.Disk, _ *Installed) { m.Wads[0].Index = nil }, full: "no index"},
		{name: "no e2fsck", noCheck: errors.New("this image has no e2fsck"), full: "no e2fsck"},
		{name: "another table", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Table = spec.GPT }, full: "gpt, and not mbr"},
		{name: "a partition more", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) {
			d.Partitions = append(d.Partitions, spec.Existing{Number: 4})
		}, full: "4 partitions"},
		{name: "a partition less", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Partitions = d.Partitions[:2] }, full: "2 partitions"},
		{name: "moved", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Partitions[1].Start += 512 }, full: "place differs"},
		{name: "resized", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Partitions[2].Length -= 512 }, full: "size differs"},
		{name: "of another type", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Partitions[0].Type = "07" }, full: "type differs"},
		{name: "another file system", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Contents[2].Kind = "ext3" }, full: "holds ext3 root, and not ext4 root"},
		{name: "another label", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Contents[0].Label = "toor" }, full: "holds ext4 toor"},
		{name: "nothing known there", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Contents = d.Contents[:2] }, full: "holds nothing"},
		{name: "two signatures", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) {
			d.Contents = append(d.Contents, spec.Content{Partition: 3, Kind: "xfs"})
		}, full: "ext4 root and xfs"},
		{name: "swap used for something else", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Contents[1].Kind = "ntfs" }},
		{name: "the same UUID twice", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.Contents[2].UUID = d.Contents[0].UUID }, full: "same UUID"},
		{name: "no disk signature", spoil: func(_ *spec.Manifest, d *spec.Disk, _ *Installed) { d.ID = "00000000" }, full: "no ID"},
		{name: "xfs", spoil: func(m *spec.Manifest, _ *spec.Disk, _ *Installed) { m.Partitions[0].FileSystem = spec.XFS }, full: "not checked here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest()
			m.Wads[0].Index = &spec.WadIndex{Size: 1000, SHA256: spec.Sum([]byte("index"))}
			d, found := installedAs(t, m)
			if c.spoil != nil {
				c.spoil(m, &d, found)
			}
			plan := &spec.Plan{Disk: d, Table: m.Table, Wads: m.Wads}
			fresh, err := MakePlan(manifest(), spec.Facts{Firmware: spec.BIOS, Disks: []spec.Disk{d}}, target(), nil, fixed())
			if err != nil {
				t.Fatal(err)
			}
			plan.DiskID, plan.Partitions = fresh.DiskID, fresh.Partitions
			for i := range plan.Partitions {
				plan.Partitions[i].Partition = m.Partitions[i]
			}
			if c.nothing {
				found = nil
			}
			chooseMode(plan, m, found, c.again, c.noCheck)
			if c.full != "" {
				if plan.Mode != spec.ReimageFull || !strings.Contains(plan.Reason, c.full) {
					t.Errorf("%s, because %s; want full, because %s", plan.Mode, plan.Reason, c.full)
				}
				if plan.DiskID != fresh.DiskID || plan.Partitions[2].UUID != fresh.Partitions[2].UUID {
					t.Error("a full install has identities of the disk")
				}
				return
			}
			if plan.Mode != spec.ReimageDelta {
				t.Fatalf("%s, because %s; want a delta", plan.Mode, plan.Reason)
			}
			if plan.DiskID != "1a2b3c4d" || plan.Partitions[2].UUID != "old-root" || plan.Partitions[2].PartUUID != "1a2b3c4d-03" {
				t.Errorf("the identities are %s, %+v", plan.DiskID, plan.Partitions[2])
			}
			if err := insteadFull(plan, errors.New("it failed"), fixed()); err != nil || plan.Mode != spec.ReimageFull || plan.Reason != "it failed" ||
				plan.DiskID == "1a2b3c4d" || plan.Partitions[2].UUID == "old-root" {
				t.Errorf("instead in full: %v, %+v", err, plan)
			}
		})
	}
}
