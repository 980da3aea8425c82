package reimage

import (
	"fmt"
	"io"
	"slices"

	"reassure/image/reimage/disk"
	"reassure/image/spec"
)

// chooseMode says in the plan how the disk gets its new content: by delta if it
// holds this layout and a system of ours, else in full. In a delta the disk keeps
// its identities. It is a pure function: noCheck is why file systems cannot be
// checked in this image, nil if they can; again says that this boot has made a delta
// of this disk before and lost only its network.
func chooseMode(plan *spec.Plan, m *spec.Manifest, found *Installed, again bool, noCheck error) {
	placed, id, reason := sameSystem(plan, m, found, again, noCheck)
	if reason != nil {
		plan.Mode, plan.Reason = spec.ReimageFull, reason.Error()
		return
	}
	plan.Mode, plan.Partitions, plan.DiskID = spec.ReimageDelta, placed, id
	plan.Reason = "the disk holds this layout, and a system of ours"
}

// sameSystem returns the plan's partitions with the identities that are on the
// disk, and the table's; or why this must be a full install.
func sameSystem(plan *spec.Plan, m *spec.Manifest, found *Installed, again bool, noCheck error) ([]spec.Placed, string, error) {
	device := plan.Disk.Device
	switch {
	case m.Mode == spec.ReimageFull:
		return nil, "", fmt.Errorf("its profile asks for it")
	case again:
		// What is there was made by this program since power-on.
	case found == nil:
		return nil, "", fmt.Errorf("%s carries no system of ours", device)
	case !found.Whole:
		return nil, "", fmt.Errorf("the system on %s was never finished", device)
	case found.Stamp.Host != m.Host:
		return nil, "", fmt.Errorf("%s was installed as %s", device, found.Stamp.Host)
	case found.Stamp.DiskSerial != plan.Disk.Serial:
		return nil, "", fmt.Errorf("what is on %s is a copy of another disk (serial %s)", device, found.Stamp.DiskSerial)
	}
	for _, w := range m.Wads {
		if w.Index == nil {
			return nil, "", fmt.Errorf("the wad %s has no index: make it with reassure wad pack", w.Name)
		}
	}
	for _, p := range plan.Partitions {
		if !p.Kept && (p.FileSystem == spec.XFS || p.FileSystem == spec.Btrfs) {
			return nil, "", fmt.Errorf("partition %s is %s, which is not checked here: use %s", p.Name, p.FileSystem, spec.Ext4)
		}
	}
	if noCheck != nil {
		return nil, "", noCheck
	}
	if err := disk.SameTable(plan.Partitions, plan.Table, plan.Disk); err != nil {
		return nil, "", err
	}
	placed := slices.Clone(plan.Partitions)
	id, err := disk.Adopt(placed, plan.Disk, spec.Ext4)
	return placed, id, err
}

// insteadFull makes a plan one for a full install, with identities that are new
// but for those of partitions that are kept.
func insteadFull(plan *spec.Plan, reason error, random io.Reader) error {
	before := slices.Clone(plan.Partitions)
	id, err := disk.Identify(plan.Partitions, plan.Table, random)
	if err != nil {
		return err
	}
	kept := false
	for i, p := range before {
		if p.Kept {
			kept = true
			plan.Partitions[i] = p
		}
	}
	// On an MBR a partition's identity is made of the disk's.
	if !kept || plan.Table == spec.GPT {
		plan.DiskID = id
	} else {
		for i := range plan.Partitions {
			plan.Partitions[i].PartUUID = before[i].PartUUID
		}
	}
	plan.Mode, plan.Reason = spec.ReimageFull, reason.Error()
	return nil
}
