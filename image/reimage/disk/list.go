package disk

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"reassure/image/spec"
)

// System says where a PC's disks are looked for. The zero value is the PC itself.
type System struct {
	Sys  string // empty means /sys
	Dev  string // empty means /dev
	Proc string // empty means /proc
}

// virtual are block devices that are no disks of this PC: loop, RAM, compressed
// swap, mapped and RAID devices (which are made of disks), network block
// devices, optical drives and floppies, and the boot areas of eMMC.
var virtual = regexp.MustCompile(`^(loop|ram|zram|dm-|md|nbd|sr|fd|rbd|drbd|mtdblock|nullb)\d|^mmcblk\d+(boot\d+|rpmb|gp\d+)$`)

// List returns the whole disks of the PC, by device name, with what is on them.
// A disk that cannot be read is listed with what is known of it.
func List(ctx context.Context, s System) ([]spec.Disk, error) {
	for _, d := range []struct {
		path      *string
		otherwise string
	}{{&s.Sys, "/sys"}, {&s.Dev, "/dev"}, {&s.Proc, "/proc"}} {
		if *d.path == "" {
			*d.path = d.otherwise
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.Sys, "block"))
	if err != nil {
		return nil, err
	}
	used := s.inUse()
	var disks []spec.Disk
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := e.Name()
		if virtual.MatchString(name) {
			continue
		}
		d := s.describe(name)
		if d.Size == 0 {
			continue // a card reader without a card
		}
		d.InUse = s.holder(name, used)
		if f, err := os.Open(filepath.Join(s.Dev, name)); err == nil {
			if at, err := f.Seek(0, io.SeekEnd); err == nil && at > 0 {
				d.Table, d.Contents = Probe(f, at, int64(d.LogicalSector))
				d.Data = hasData(f, at)
				_, d.ID, d.Partitions = Table(f, at, int64(d.LogicalSector))
			}
			f.Close()
			d.Uncommitted = Uncommitted(f.Name())
		}
		disks = append(disks, d)
	}
	slices.SortFunc(disks, func(a, b spec.Disk) int { return strings.Compare(a.Device, b.Device) })
	return disks, nil
}

// looked is how much at either end of a disk is looked at for data.
const looked = 1 << 20

// hasData says whether a disk holds something at its start or its end: whatever is
// encrypted without a header has no signature that [Probe] would know. Flash that was
// erased reads as ones. What cannot be read counts as data.
func hasData(r io.ReaderAt, size int64) bool {
	n := min(size, looked)
	buf := make([]byte, n)
	for _, at := range []int64{0, size - n} {
		if _, err := r.ReadAt(buf, at); err != nil {
			return true
		}
		if (buf[0] != 0 && buf[0] != 0xff) || bytes.Count(buf, buf[:1]) != len(buf) {
			return true
		}
	}
	return false
}

// describe reads what sysfs says of a disk.
func (s System) describe(name string) spec.Disk {
	dir := filepath.Join(s.Sys, "block", name)
	read := func(below string) string {
		b, err := os.ReadFile(filepath.Join(dir, below))
		if err != nil {
			return ""
		}
		return strings.Join(strings.Fields(strings.ToValidUTF8(strings.Trim(string(b), "\x00"), "?")), " ")
	}
	number := func(below string, otherwise int) int {
		n, err := strconv.Atoi(read(below))
		if err != nil {
			return otherwise
		}
		return n
	}
	sectors, _ := strconv.ParseUint(read("size"), 10, 54)
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	d := spec.Disk{
		Device:         "/dev/" + strings.ReplaceAll(name, "!", "/"),
		Size:           spec.Size(sectors * 512), // sysfs counts in 512 bytes always
		Model:          read("device/model"),
		Serial:         firstOf(read("device/serial"), read("serial"), s.pageSerial(dir), read("device/cid"), usbSerial(real)),
		WWN:            firstOf(read("wwid"), read("device/wwid")),
		Bus:            bus(name, real),
		ByPath:         byPath(real, name),
		LogicalSector:  number("queue/logical_block_size", 512),
		PhysicalSector: number("queue/physical_block_size", 512),
		Rotational:     number("queue/rotational", 0) == 1,
		Removable:      number("removable", 0) == 1,
		ReadOnly:       number("ro", 0) == 1,
	}
	if d.Model == "" {
		d.Model = read("device/name") // MMC
	}
	return d
}

// pageSerial reads the serial number that SCSI and ATA disks give in VPD page
// 80h: four bytes of header, then text (SPC-4, 7.8.13).
func (s System) pageSerial(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80"))
	if err != nil || len(b) < 4 {
		return ""
	}
	return strings.TrimSpace(text(b[4:]))
}

// usbSerial reads the serial number of the USB device that a disk is, or is behind, as
// udev does (systemd, udev-builtin-usb_id.c); real is the disk's place in sysfs. Linux
// asks no disk behind USB for its VPD pages.
func usbSerial(real string) string {
	for dir := filepath.Dir(real); strings.Contains(dir, "/usb"); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "idVendor")); err != nil {
			continue
		}
		serial, err := os.ReadFile(filepath.Join(dir, "serial"))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(text(serial))
	}
	return ""
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// bus names what a disk hangs on, by its name and its path in sysfs.
func bus(name, real string) string {
	switch {
	case strings.HasPrefix(name, "nvme"):
		return "nvme"
	case strings.HasPrefix(name, "mmcblk"):
		return "mmc"
	case strings.Contains(real, "/usb"):
		return "usb"
	case strings.HasPrefix(name, "vd"):
		return "virtio"
	case strings.Contains(real, "/ata"):
		return "ata"
	}
	return "scsi"
}

var (
	pciPattern  = regexp.MustCompile(`/(?:virtual/)?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])`)
	ataPattern  = regexp.MustCompile(`/ata(\d+)/`)
	scsiPattern = regexp.MustCompile(`/target\d+:\d+:\d+/\d+:(\d+:\d+:\d+)`)
	usbPattern  = regexp.MustCompile(`/\d+-([\d.]+:[\d.]+)/host\d+/`)
	nvmePattern = regexp.MustCompile(`/nvme\d+/nvme\d+(?:c\d+)?n(\d+)$`)
)

// byPath names a disk by where it is plugged in, in the form of udev's
// /dev/disk/by-path (systemd's udev-builtin-path_id.c) for PCI with NVMe,
// virtio, SCSI and USB. ATA ports are numbered as the kernel numbers them, not
// counted anew for each controller.
func byPath(real, name string) string {
	all := pciPattern.FindAllStringSubmatch(real, -1)
	if len(all) == 0 {
		return ""
	}
	path := "pci-" + all[len(all)-1][1]
	switch {
	case ataPattern.MatchString(real):
		path += "-ata-" + ataPattern.FindStringSubmatch(real)[1]
	case nvmePattern.MatchString(real):
		path += "-nvme-" + nvmePattern.FindStringSubmatch(real)[1]
	case scsiPattern.MatchString(real):
		if usb := usbPattern.FindStringSubmatch(real); usb != nil {
			path += "-usb-0:" + usb[1]
		}
		path += "-scsi-0:" + scsiPattern.FindStringSubmatch(real)[1]
	}
	return "/dev/disk/by-path/" + path
}

// inUse returns what holds each block device by name: mounts and swap.
func (s System) inUse() map[string]string {
	used := map[string]string{}
	mounts, _ := os.ReadFile(filepath.Join(s.Proc, "self/mounts"))
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.HasPrefix(f[0], "/dev/") {
			used[filepath.Base(f[0])] = "the mount at " + f[1]
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(s.Proc, "swaps"))
	for line := range strings.Lines(string(swaps)) {
		f := strings.Fields(line)
		if len(f) > 0 && strings.HasPrefix(f[0], "/dev/") {
			used[filepath.Base(f[0])] = "swap"
		}
	}
	return used
}

// holder says who uses a disk or one of its partitions, or "".
func (s System) holder(name string, used map[string]string) string {
	dir := filepath.Join(s.Sys, "block", name)
	parts, _ := filepath.Glob(filepath.Join(dir, name+"*", "partition"))
	devices := []string{dir}
	for _, p := range parts {
		devices = append(devices, filepath.Dir(p))
	}
	for _, d := range devices {
		if by := used[filepath.Base(d)]; by != "" {
			return by
		}
		holders, _ := os.ReadDir(filepath.Join(d, "holders"))
		if len(holders) > 0 {
			return fmt.Sprintf("%s, which is made of %s", holders[0].Name(), filepath.Base(d))
		}
	}
	return ""
}
