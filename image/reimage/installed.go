package reimage

import (
	"log/slog"
	"slices"

	"reassure/image/reimage/disk"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// rootFileSystems are those that a root of ours may be on.
var rootFileSystems = []string{spec.Ext4, spec.XFS, spec.Btrfs}

// maxStamp is more than any stamp has, in bytes.
const maxStamp = 64 << 10

// findInstalled looks for stamps on every partition that could be a root. It
// mounts read-only, without replaying journals: not one sector is written.
func findInstalled(disks []spec.Disk, log *slog.Logger) []Installed {
	var found []Installed
	for _, d := range disks {
		if d.InUse != "" || d.Removable {
			continue
		}
		for _, c := range d.Contents {
			if c.Partition == 0 || !slices.Contains(rootFileSystems, c.Kind) {
				continue
			}
			device := disk.PartitionDevice(d.Device, c.Partition)
			text, err := mount.ReadFileFromDevice(device, c.Kind, spec.StampFile, maxStamp)
			if err != nil {
				log.Debug("no stamp", "partition", device, "reason", err)
				continue
			}
			s, err := stamp.ParseStamp(text)
			if err != nil {
				log.Warn("a stamp that cannot be read does not count", "partition", device, "reason", err)
				continue
			}
			whole, err := disk.Committed(d.Device)
			if err != nil {
				log.Warn("cannot tell whether the disk boots", "disk", d.Device, "reason", err)
			}
			found = append(found, Installed{Disk: d, Partition: c.Partition, FileSystem: c.Kind, Stamp: s, Whole: whole && err == nil})
			break // one system of ours a disk
		}
	}
	return found
}
