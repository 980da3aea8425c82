package reimage

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"reassure/image/logs"
	"reassure/image/reimage/cmdline"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/facts"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// InspectionTree is where [Inspect] shows the running system's file systems. It is below
// /run, where whoever calls it mounts a tmpfs of its own.
const InspectionTree = "/run/tree"

// Inspect compares the system that it runs in with its manifest, as a PC that was
// booted to verify does, while the system goes on: it sees what changes meanwhile, and
// trusts the kernel that runs. Nothing is written. The caller has a mount
// namespace of its own.
func Inspect(ctx context.Context, i spec.Inspection, log *slog.Logger) (v *spec.Verified, err error) {
	defer Recover(&err)
	r := Reimager{
		Options: cmdline.Options{Root: InspectionTree}, Log: log, Screen: logs.NewScreen(nil), Ring: logs.NewRing(1),
		base: i.Base, facts: facts.Collect(os.DirFS("/"), spec.MAC{}),
	}
	if r.facts.Disks, err = disk.List(ctx, disk.System{}); err != nil {
		return nil, fmt.Errorf("list the disks: %w", err)
	}
	own, err := runningSystem(r.facts.Firmware, r.facts.Disks)
	if err != nil {
		return nil, err
	}
	r.found = []Installed{*own}
	return r.compare(ctx, i.Manifest.For(r.facts.Firmware), own.Disk)
}

// runningSystem finds the system that this program runs in on one of the disks.
func runningSystem(firmware spec.Firmware, disks []spec.Disk) (*Installed, error) {
	for _, d := range disks {
		for _, c := range d.Contents {
			if c.Partition == 0 || !slices.Contains(rootFileSystems, c.Kind) {
				continue
			}
			if at, err := mount.PointOf(disk.PartitionDevice(d.Device, c.Partition)); err != nil || at != "/" {
				continue
			}
			i := &Installed{Disk: d, Partition: c.Partition, FileSystem: c.Kind, running: true}
			text, err := i.read(spec.StampFile, maxStamp)
			if err != nil {
				return nil, fmt.Errorf("stamp of the system that runs: %w: it was not made by a reimage", err)
			}
			if i.Stamp, err = stamp.ParseStamp(text); err != nil {
				return nil, fmt.Errorf("stamp of the system that runs: %w", err)
			}
			i.Whole, err = committed(firmware, d)
			return i, err
		}
	}
	return nil, fmt.Errorf("the system that runs has its root on none of %d disks: reimage the PC first", len(disks))
}
