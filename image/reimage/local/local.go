// Package local goes on from the netbooted reimager into the system that is on
// the disk, while the server still says Remote. On UEFI it has the firmware
// start the disk's entry next; else it starts the kernel that the disk's
// grub.cfg would start, by kexec.
package local

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/reimage/efivars"
	"reassure/image/reimage/grubcfg"
	"reassure/image/reimage/mount"
	"reassure/image/reimage/power"
	"reassure/image/spec"
)

// Options describe where to go on to.
type Options struct {
	// Host is the PC's name, for the remedy in errors.
	Host     string
	Firmware spec.Firmware
	// Disk holds the system. None of it may be mounted.
	Disk spec.Disk
	// KexecOnly leaves the firmware's boot entries alone.
	KexecOnly bool
	// Before is called when the next system is chosen, just before this one
	// ends: the place for last words. nil is nothing.
	Before func(next string)
	Log    *slog.Logger
}

// Boot goes on into the system on the disk. It returns only with an error,
// which says what was tried and what the operator can do.
func Boot(ctx context.Context, o Options) error {
	if o.Before == nil {
		o.Before = func(string) {}
	}
	var tried []error
	if o.Firmware == spec.UEFI && !o.KexecOnly {
		entry, err := next(o.Disk, efivars.Vars{})
		if err == nil {
			o.Log.Info("the firmware starts the disk next", "entry", entry.String(), "file", entry.File)
			o.Before(entry.String())
			err = power.Reboot()
		}
		tried = append(tried, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	entry, err := load(o)
	if err == nil {
		o.Log.Info("starting the disk's kernel", "entry", entry.Title, "kernel", entry.Kernel, "command_line", entry.CommandLine)
		o.Before(fmt.Sprintf("%q by kexec", entry.Title))
		err = power.Kexec()
	}
	return fmt.Errorf("go on into the system on %s: %w: switch the PC to its disk with \"reassure switch %s local\" and start it again",
		o.Disk.Device, errors.Join(append(tried, err)...), o.Host)
}

// next sets the firmware's entry for one of the disk's partitions as the next
// to start.
func next(disk spec.Disk, vars efivars.Vars) (efivars.Entry, error) {
	entries, err := vars.Entries()
	if err != nil {
		return efivars.Entry{}, err
	}
	device, err := os.Open(disk.Device)
	if err != nil {
		return efivars.Entry{}, err
	}
	defer device.Close()
	ids, err := partUUIDs(device, disk.LogicalSector)
	if err != nil {
		return efivars.Entry{}, fmt.Errorf("partitions of %s: %w", disk.Device, err)
	}
	for _, e := range entries {
		if e.Active && slices.ContainsFunc(ids, func(id string) bool { return strings.EqualFold(id, e.PartUUID) }) {
			return e, vars.SetBootNext(e.Number)
		}
	}
	return efivars.Entry{}, fmt.Errorf("the firmware has no boot entry for a partition of %s", disk.Device)
}

// partUUIDs returns the PARTUUIDs of a GPT's partitions (UEFI 2.10, section 5.3).
func partUUIDs(device io.ReaderAt, sector int) ([]string, error) {
	if sector == 0 {
		sector = 512
	}
	header := make([]byte, sector)
	if _, err := device.ReadAt(header, int64(sector)); err != nil {
		return nil, err
	}
	if string(header[:8]) != "EFI PART" {
		return nil, errors.New("there is no GPT")
	}
	start := binary.LittleEndian.Uint64(header[72:])
	count := binary.LittleEndian.Uint32(header[80:])
	size := binary.LittleEndian.Uint32(header[84:])
	if count > 1024 || size < 128 || size > 4096 || start > 1<<32 {
		return nil, errors.New("its GPT is damaged")
	}
	table := make([]byte, int(count)*int(size))
	if _, err := device.ReadAt(table, int64(start)*int64(sector)); err != nil {
		return nil, err
	}
	var ids []string
	for ; len(table) > 0; table = table[size:] {
		if [16]byte(table) != ([16]byte{}) { // a type of zeros is an unused entry
			ids = append(ids, efivars.GUID([16]byte(table[16:])))
		}
	}
	return ids, nil
}

// partitionDevice is the node of a disk's partition, as the kernel names it
// (block/partitions/core.c): a p stands between digits.
func partitionDevice(disk string, number int) string {
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// largest is the most that a grub.cfg, kernel or initrd may have, in bytes.
const (
	largestConfig = 4 << 20
	largestKernel = 1 << 30
)

// load reads the disk's grub.cfg, and loads what it would start for kexec.
func load(o Options) (*grubcfg.Entry, error) {
	entry, err := Choose(o.Disk, o.Firmware)
	if err != nil {
		return nil, err
	}
	kernel, err := o.open(entry.Title+": kernel", grubcfg.File{Partition: entry.Partition, Path: entry.Kernel})
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	initrd, flags := -1, unix.KEXEC_FILE_NO_INITRAMFS
	if len(entry.Initrds) > 0 {
		f, err := o.open(entry.Title+": initrd", entry.Initrds...)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		initrd, flags = int(f.Fd()), 0
	}
	if err := unix.KexecFileLoad(int(kernel.Fd()), initrd, entry.CommandLine, flags); err != nil {
		return nil, fmt.Errorf("load %s for kexec: %w%s", entry.Kernel, err, whyNoKexec(err))
	}
	return entry, nil
}

func whyNoKexec(err error) string {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return " (the running kernel has no kexec_file_load)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREJECTED):
		return " (under Secure Boot the kernel must be signed by a key that the running one trusts)"
	}
	return ""
}

// open returns the files of a system, one after the other, as one file in
// memory, so that nothing stays mounted: the boot loader, too, hands several
// initrds to the kernel as one.
func (o *Options) open(what string, files ...grubcfg.File) (*os.File, error) {
	fd, err := unix.MemfdCreate("reassure", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%s: memory for it: %w", what, err)
	}
	out := os.NewFile(uintptr(fd), what)
	for _, f := range files {
		if err := o.appendFile(out, f); err != nil {
			out.Close()
			return nil, fmt.Errorf("%s: %s of partition %d: %w", what, f.Path, f.Partition, err)
		}
	}
	return out, nil
}

func (o *Options) appendFile(out *os.File, f grubcfg.File) error {
	fs := fileSystem(o.Disk, f.Partition)
	if fs == "" {
		return fmt.Errorf("there is no file system that can be read")
	}
	return mount.ReadOnly(partitionDevice(o.Disk.Device, f.Partition), fs, func(root *os.Root) error {
		in, err := root.OpenFile(strings.TrimLeft(f.Path, "/"), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer in.Close()
		if info, err := in.Stat(); err != nil {
			return err
		} else if !info.Mode().IsRegular() || info.Size() > largestKernel {
			return fmt.Errorf("it is no regular file of at most %v", spec.Size(largestKernel))
		}
		_, err = io.Copy(out, in)
		return err
	})
}

// fileSystem is what partition number of the disk has, where that can be
// mounted to look for a system, else empty.
func fileSystem(disk spec.Disk, number int) string {
	for _, c := range disk.Contents {
		if c.Partition == number && number > 0 {
			switch c.Kind {
			case spec.Ext4, spec.XFS, spec.Btrfs, spec.VFAT:
				return c.Kind
			case "ext2", "ext3":
				return spec.Ext4 // its driver serves them
			}
		}
	}
	return ""
}

// Choose returns what the disk's grub.cfg would start. A partition that has it
// at /grub/grub.cfg is a /boot of its own, and comes before one that has a
// /boot/grub/grub.cfg, which it would hide.
func Choose(disk spec.Disk, firmware spec.Firmware) (*grubcfg.Entry, error) {
	var numbers []int
	for _, c := range disk.Contents {
		if fileSystem(disk, c.Partition) != "" && !slices.Contains(numbers, c.Partition) {
			numbers = append(numbers, c.Partition)
		}
	}
	var problems []error
	var entry *grubcfg.Entry
	for _, folder := range []string{"grub", "boot/grub"} {
		for _, n := range numbers {
			device := partitionDevice(disk.Device, n)
			err := mount.ReadOnly(device, fileSystem(disk, n), func(root *os.Root) error {
				var err error
				entry, err = chooseIn(root, folder, n, disk, firmware)
				return err
			})
			if err == nil {
				return entry, nil
			}
			if !errors.Is(err, os.ErrNotExist) {
				problems = append(problems, fmt.Errorf("%s: %w", device, err))
			}
		}
	}
	if len(problems) == 0 {
		return nil, fmt.Errorf("no partition of %s has a grub.cfg", disk.Device)
	}
	return nil, errors.Join(problems...)
}

func chooseIn(root *os.Root, folder string, number int, disk spec.Disk, firmware spec.Firmware) (*grubcfg.Entry, error) {
	script, err := mount.ReadFile(root, path.Join(folder, "grub.cfg"), largestConfig)
	if err != nil {
		return nil, err
	}
	environment, err := mount.ReadFile(root, path.Join(folder, "grubenv"), largestConfig)
	if err != nil {
		environment = nil // there need not be one
	}
	return grubcfg.Default(string(script), grubcfg.World{
		EFI: firmware == spec.UEFI, Self: number, Folder: "/" + folder, Environment: grubcfg.ParseEnvironment(string(environment)),
		Find: func(kind, value string) int {
			for _, c := range disk.Contents {
				if c.Partition > 0 && (kind == "fs-uuid" && strings.EqualFold(c.UUID, value) || kind == "label" && c.Label == value) {
					return c.Partition
				}
			}
			return 0
		},
		Exists: func(partition int, name string) bool {
			if partition != number {
				return false
			}
			_, err := root.Stat(strings.TrimLeft(name, "/"))
			return err == nil
		},
	})
}
