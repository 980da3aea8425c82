package disk

import (
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"unicode"

	"github.com/google/uuid"

	"reassure/image/spec"
)

// align is what every partition's start and length are multiples of, in bytes:
// more than any sector, erase block or RAID chunk that matters.
const align = uint64(spec.MiB)

// gptBackup is the room that the backup of a GPT takes at the end of a disk, in
// bytes, rounded up.
const gptBackup = align

// mbrMost is how much of a disk an MBR's 32-bit sector numbers reach, in bytes.
func mbrMost(sector int) uint64 { return math.MaxUint32 * uint64(sector) }

// PartitionDevice names a partition's device as the kernel does: /dev/sda1, and
// /dev/nvme0n1p1 where the disk's own name ends in a digit.
func PartitionDevice(disk string, number int) string {
	if disk != "" && unicode.IsDigit(rune(disk[len(disk)-1])) {
		return fmt.Sprintf("%sp%d", disk, number)
	}
	return fmt.Sprintf("%s%d", disk, number)
}

// Place gives each partition of a layout its place on a disk. It is a pure
// function; what this PC's firmware could not boot is refused here.
func Place(firmware spec.Firmware, table spec.Table, parts []spec.Partition, d spec.Disk) ([]spec.Placed, error) {
	if err := bootable(firmware, table, parts, d); err != nil {
		return nil, err
	}
	end := uint64(d.Size) / align * align
	if table == spec.GPT {
		end = (uint64(d.Size) - min(gptBackup, uint64(d.Size))) / align * align
	}
	sizes := make([]uint64, len(parts))
	rest, need := -1, align // the first MiB holds the table and the boot loader's core
	for i, p := range parts {
		switch {
		case p.Size.Rest:
			rest = i
			need += align
			continue
		case p.Size.Percent > 0:
			sizes[i] = uint64(float64(d.Size)*p.Size.Percent/100) / align * align
		default:
			sizes[i] = (uint64(p.Size.Bytes) + align - 1) / align * align
		}
		sizes[i] = max(sizes[i], align)
		need += sizes[i]
	}
	if need > end {
		return nil, fmt.Errorf("%s is too small: the layout needs %v, and %v can be used", d, spec.Size(need), spec.Size(end))
	}
	if rest >= 0 {
		sizes[rest] = end - (need - align)
	}
	placed := make([]spec.Placed, len(parts))
	start := align
	for i, p := range parts {
		placed[i] = spec.Placed{Partition: p, Number: i + 1, Start: start, Length: sizes[i], Device: PartitionDevice(d.Device, i+1)}
		start += sizes[i]
		if table == spec.MBR && start > mbrMost(d.LogicalSector) {
			return nil, fmt.Errorf("partition %s ends at %v of %s, but an MBR reaches only %v: use table gpt (for a BIOS, with a partition of type %s), or sizes that stay below", p.Name, spec.Size(start), d, spec.Size(mbrMost(d.LogicalSector)), spec.TypeBIOSBoot)
		}
	}
	return placed, nil
}

// bootable refuses a layout that the firmware could not boot.
func bootable(firmware spec.Firmware, table spec.Table, parts []spec.Partition, d spec.Disk) error {
	has := map[string]bool{}
	for _, p := range parts {
		if !p.IsESP() || p.Mount != "" {
			has[p.Kind()] = true
		}
	}
	switch {
	case firmware == spec.BIOS && d.LogicalSector != 512:
		return fmt.Errorf("%s has sectors of %d bytes, and this PC was started by its BIOS: GRUB's boot code for BIOS reads sectors of 512 bytes only. Start the PC by UEFI, or have the disk reformatted to 512-byte sectors", d, d.LogicalSector)
	case firmware == spec.BIOS && table == spec.GPT && !has[spec.TypeBIOSBoot]:
		return fmt.Errorf("a GPT that a BIOS boots needs a partition of type %s (1MiB, filesystem none) for the boot loader: add one, or use table mbr", spec.TypeBIOSBoot)
	case firmware == spec.UEFI && !has[spec.TypeESP]:
		return fmt.Errorf("this PC was started by UEFI, and the layout has no partition of type %s (vfat, mounted at /boot/efi): add one, with firmware: uefi and table: auto if other PCs of the profile have a BIOS; or start the PC by its BIOS (CSM)", spec.TypeESP)
	}
	return nil
}

// Identify gives the new table and its file systems fresh identities, from
// random, and returns the disk's.
func Identify(placed []spec.Placed, table spec.Table, random io.Reader) (diskID string, err error) {
	fresh := func() (string, error) {
		id, err := uuid.NewRandomFromReader(random)
		return id.String(), err
	}
	if table == spec.GPT {
		if diskID, err = fresh(); err != nil {
			return "", err
		}
	} else {
		var signature [4]byte
		for signature == [4]byte{} { // zero means "none"
			if _, err := io.ReadFull(random, signature[:]); err != nil {
				return "", err
			}
		}
		diskID = hex.EncodeToString(signature[:])
	}
	for i := range placed {
		p := &placed[i]
		p.PartUUID = fmt.Sprintf("%s-%02x", diskID, p.Number)
		if table == spec.GPT {
			if p.PartUUID, err = fresh(); err != nil {
				return "", err
			}
		}
		switch p.FileSystem {
		case spec.None:
		case spec.VFAT:
			var serial [4]byte
			if _, err := io.ReadFull(random, serial[:]); err != nil {
				return "", err
			}
			p.UUID = fmt.Sprintf("%02X%02X-%02X%02X", serial[0], serial[1], serial[2], serial[3])
		default:
			if p.UUID, err = fresh(); err != nil {
				return "", err
			}
		}
	}
	return diskID, nil
}
