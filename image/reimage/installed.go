package reimage

import (
	"errors"
	"log/slog"
	"os"
	"slices"

	"reassure/image/reimage/disk"
	"reassure/image/reimage/esp"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// report is what the server is told of a system; nil of none.
func (i *Installed) report() *spec.Installed {
	if i == nil {
		return nil
	}
	return &spec.Installed{Host: i.Stamp.Host, Digest: i.Stamp.Digest, Serial: i.Stamp.Serial, Order: i.Stamp.Order, Whole: i.Whole}
}

// read returns a file of the system, of at most limit bytes. The system may be the
// one that runs.
func (i *Installed) read(path string, limit int64) ([]byte, error) {
	if !i.running {
		return mount.ReadFileFromDevice(disk.PartitionDevice(i.Disk.Device, i.Partition), i.FileSystem, path, limit)
	}
	root, err := os.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return mount.ReadFile(root, path, limit)
}

// rootFileSystems are those that a root of ours may be on.
var rootFileSystems = []string{spec.Ext4, spec.XFS, spec.Btrfs}

// maxStamp is more than any stamp has, in bytes.
const maxStamp = 64 << 10

// committed says whether this PC's firmware finds a boot loader of ours on the disk: a
// disk that was installed for the other kind does not boot.
func committed(firmware spec.Firmware, d spec.Disk) (bool, error) {
	if firmware != spec.UEFI {
		return disk.Committed(d.Device)
	}
	var errs []error
	for _, p := range disk.ESPs(d) {
		if !slices.ContainsFunc(d.Contents, func(c spec.Content) bool { return c.Partition == p.Number && c.Kind == spec.VFAT }) {
			continue
		}
		found, err := esp.Bootable(disk.PartitionDevice(d.Device, p.Number))
		if found {
			return true, nil
		}
		errs = append(errs, err)
	}
	return false, errors.Join(errs...)
}

// findInstalled looks for stamps on every partition that could be a root. It
// mounts read-only, without replaying journals: not one sector is written.
func findInstalled(firmware spec.Firmware, disks []spec.Disk, log *slog.Logger) []Installed {
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
			whole, err := committed(firmware, d)
			if err != nil {
				log.Warn("cannot tell whether the disk boots", "disk", d.Device, "reason", err)
			}
			found = append(found, Installed{Disk: d, Partition: c.Partition, FileSystem: c.Kind, Stamp: s, Whole: whole && err == nil})
			break // one system of ours a disk
		}
	}
	return found
}
