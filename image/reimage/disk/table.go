package disk

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"reassure/image/spec"
)

// WriteTable writes the plan's partition table, keeping the stub in LBA 0, and
// waits until the kernel shows the partitions. The disk must have been wiped.
func (t *Target) WriteTable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return fmt.Errorf("partition table for %s: %w", t.plan.Disk, err)
	}
	table, err := t.table()
	if err != nil {
		return fmt.Errorf("partition table for %s: %w", t.plan.Disk, err)
	}
	file, err := t.backend.Writable()
	if err != nil {
		return fmt.Errorf("partition table for %s: %w", t.plan.Disk, err)
	}
	// The signature is there first, for the kernel reads it with the table.
	if t.plan.Table == spec.MBR {
		if err := t.writeSignature(); err != nil {
			return err
		}
	}
	if err := table.Write(file, t.size); err != nil {
		return fmt.Errorf("partition table for %s: %w", t.plan.Disk, err)
	}
	if t.plan.Table == spec.GPT {
		if err := t.mendProtective(); err != nil {
			return err
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := t.tellKernel(); err != nil {
		return err
	}
	return t.waitForNodes()
}

// check refuses a plan whose partitions overlap or lie outside the disk: the
// library writes whatever it is given.
func (t *Target) check() error {
	end := uint64(t.size)
	if t.plan.Table == spec.GPT {
		end -= gptBackup
	}
	before := align
	for _, p := range t.plan.Partitions {
		if p.Start < before || p.Length == 0 || p.Start%align != 0 || p.Length%align != 0 || p.Start+p.Length > end || p.Start+p.Length < p.Start {
			return fmt.Errorf("partition %s at byte %d with %d bytes overlaps another, is not aligned, or leaves the disk", p.Name, p.Start, p.Length)
		}
		before = p.Start + p.Length
	}
	return nil
}

var gptTypes = map[string]gpt.Type{
	spec.TypeLinux: gpt.LinuxFilesystem, spec.TypeSwap: gpt.LinuxSwap, spec.TypeFAT: gpt.MicrosoftBasicData,
	spec.TypeESP: gpt.EFISystemPartition, spec.TypeBIOSBoot: gpt.BIOSBoot,
}

// mbrTypes are the system IDs; da is "non-file-system data", which a BIOS boot
// partition on an MBR would be.
var mbrTypes = map[string]mbr.Type{spec.TypeLinux: 0x83, spec.TypeSwap: 0x82, spec.TypeFAT: 0x0c, spec.TypeESP: 0xef, spec.TypeBIOSBoot: 0xda}

// legacyBootable is bit 2 of a GPT entry's attributes (UEFI 2.10, table 5.8).
const legacyBootable = 1 << 2

// writer is a partition table of the library.
type writer interface {
	Write(f backend.WritableFile, size int64) error
}

func (t *Target) table() (writer, error) {
	sector := uint64(t.sector)
	if t.plan.Table == spec.GPT {
		table := &gpt.Table{LogicalSectorSize: int(t.sector), PhysicalSectorSize: int(t.sector), GUID: t.plan.DiskID, ProtectiveMBR: true}
		for _, p := range t.plan.Partitions {
			entry := &gpt.Partition{
				Index: p.Number, Start: p.Start / sector, End: (p.Start+p.Length)/sector - 1, Size: p.Length,
				Type: gptTypes[p.Kind()], Name: p.Name, GUID: p.PartUUID,
			}
			if p.Bootable {
				entry.Attributes = legacyBootable
			}
			table.Partitions = append(table.Partitions, entry)
		}
		return table, nil
	}
	table := &mbr.Table{LogicalSectorSize: int(t.sector), PhysicalSectorSize: int(t.sector)}
	for _, p := range t.plan.Partitions {
		if (p.Start+p.Length)/sector > math.MaxUint32 {
			return nil, fmt.Errorf("partition %s ends beyond what an MBR reaches", p.Name)
		}
		table.Partitions = append(table.Partitions, &mbr.Partition{
			Index: p.Number, Bootable: p.Bootable, Type: mbrTypes[p.Kind()],
			Start: uint32(p.Start / sector), Size: uint32(p.Length / sector),
			// Cylinders, heads and sectors end at 8 GB: this says "see the LBA".
			StartHead: 0xfe, StartSector: 0xff, StartCylinder: 0xff, EndHead: 0xfe, EndSector: 0xff, EndCylinder: 0xff,
		})
	}
	return table, nil
}

// writeSignature writes the disk signature, which PARTUUIDs are made of: little
// endian at byte 440.
func (t *Target) writeSignature() error {
	signature, err := hex.DecodeString(t.plan.DiskID)
	if err != nil || len(signature) != 4 {
		return fmt.Errorf("%q is not a disk signature of eight hexadecimal digits", t.plan.DiskID)
	}
	slices.Reverse(signature)
	if _, err := t.f.WriteAt(append(signature, 0, 0), bootCode); err != nil {
		return fmt.Errorf("write the disk signature of %s: %w", t.plan.Disk, err)
	}
	return nil
}

// mendProtective corrects the one entry of the protective MBR: its length in
// sectors, which ends at 32 bits (UEFI 2.10, 5.2.3), and its end in cylinders,
// heads and sectors. The library cuts the length off instead.
func (t *Target) mendProtective() error {
	entry := make([]byte, 16)
	if _, err := t.f.ReadAt(entry, 446); err != nil {
		return fmt.Errorf("read the protective MBR of %s: %w", t.plan.Disk, err)
	}
	copy(entry[1:4], []byte{0x00, 0x02, 0x00})
	copy(entry[5:8], []byte{0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[12:], uint32(min(t.size/t.sector-1, math.MaxUint32)))
	if _, err := t.f.WriteAt(entry, 446); err != nil {
		return fmt.Errorf("write the protective MBR of %s: %w", t.plan.Disk, err)
	}
	return nil
}
