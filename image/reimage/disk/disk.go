// Package disk sees a PC's whole disks, chooses one, lays partitions out on it,
// and does all that is written to a disk outside its file systems: wiping,
// partition tables, and the boot code, which is the commit point.
//
// [List], [Choose], [Place] and [Identify] write nothing. A [Target] writes, in
// this order and no other:
//
//	Uncommit    the first write: boot code that only says the disk is not whole, and no FAT
//	Wipe        old signatures, at both ends of the disk and of its partitions
//	WriteTable  the new table, made known to the kernel
//	Commit      the last write for a BIOS: GRUB's core, flushed, and then its boot code;
//	            for UEFI it is esp.Commit's
//
// A disk between Uncommit and Commit does not boot: its LBA 0 holds a stub of a
// few instructions that prints a line and calls INT 18h, with which a BIOS goes
// on to the next boot device, such as the network. Zeros there would hang it,
// for a BIOS looks at the signature 55 AA only, which the partition table needs.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/backend/file"
	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// wipeEach is how much is zeroed at the start and at the end of the disk and of
// every partition, old and new: VMFS has its signature 1 MiB in, ZFS four
// labels within half a MiB of either end, md and fake RAIDs within the last
// 128 KiB.
const wipeEach = 2 << 20

// btrfsMirrors are where btrfs keeps copies of its superblock, in bytes from
// the start of a partition (btrfs on-disk format, "Superblock").
var btrfsMirrors = [...]int64{64 << 20, 256 << 30}

// Target is an opened disk that is to be written to. Nobody else can mount it
// or any of its partitions until it is closed.
type Target struct {
	plan    *spec.Plan
	backend backend.Storage
	f       *os.File
	size    int64
	sector  int64
}

// Open opens the plan's disk for itself alone. It fails if the disk is in use,
// or is not the one that the plan was made for.
func Open(plan *spec.Plan) (*Target, error) {
	device := plan.Disk.Device
	b, err := file.OpenFromPathWithExclusive(device, false, true)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s is in use (mounted, or part of something): it is left alone: %w", plan.Disk, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", plan.Disk, err)
	}
	f, err := b.Sys()
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("open %s: %w", plan.Disk, err)
	}
	t := &Target{plan: plan, backend: b, f: f, sector: int64(plan.Disk.LogicalSector)}
	if t.size, err = f.Seek(0, io.SeekEnd); err == nil && t.size != int64(plan.Disk.Size) {
		err = fmt.Errorf("it has %d bytes now, and had %d when the plan was made", t.size, uint64(plan.Disk.Size))
	}
	if err == nil && len(plan.Partitions) == 0 {
		err = errors.New("the plan has no partitions")
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("%s: %w", plan.Disk, err)
	}
	return t, nil
}

// Close gives the disk up. It may be called again.
func (t *Target) Close() error {
	if t.backend == nil {
		return nil
	}
	err := t.backend.Close()
	t.backend = nil
	return err
}

// Uncommit makes the disk unbootable, whatever is on it, and sees to it that
// this is on the disk before it returns. It is the first write of a reimage.
func (t *Target) Uncommit() error {
	sector := make([]byte, 512)
	if _, err := t.f.ReadAt(sector, 0); err != nil {
		return fmt.Errorf("read the boot sector of %s: %w", t.plan.Disk, err)
	}
	// UEFI firmware finds no loader in what is no FAT any more; much of it looks for one in
	// every FAT of a disk, whatever its type (EDK2, BmExpandMediaDevicePath). The
	// backup boot sector is sector 6 (Microsoft FAT specification, BPB_BkBootSec).
	kept := t.kept()
	for _, p := range partitions(t.f, t.size, t.sector) {
		first := make([]byte, 512)
		if _, err := t.f.ReadAt(first, p.start); err != nil {
			first[0] = 0 // it cannot be read: firmware cannot, either
		}
		stays := len(span{p.start, t.sector}.without(kept)) == 0
		if p.esp || fatLike(first) && !stays {
			for _, at := range []int64{p.start, p.start + 6*t.sector} {
				if err := t.zero(at, t.sector); err != nil {
					return err
				}
			}
		}
	}
	copy(sector, stub())
	if _, err := t.f.WriteAt(sector, 0); err != nil {
		return fmt.Errorf("write the boot sector of %s: %w", t.plan.Disk, err)
	}
	return t.flush()
}

// Wipe removes the signatures of whatever was on the disk, so that nothing
// finds an old file system or RAID member where the new ones begin or end. Nothing
// of partitions that are kept is touched; where there is one, neither is the table.
func (t *Target) Wipe() error {
	kept := t.kept()
	spans := []span{{0, t.size}}
	for _, p := range partitions(t.f, t.size, t.sector) {
		spans = append(spans, span{p.start, p.length})
	}
	for _, p := range t.plan.Partitions {
		spans = append(spans, span{int64(p.Start), int64(p.Length)})
	}
	for _, s := range spans {
		end := min(s.start+s.length, t.size)
		zeros := []span{{s.start, min(wipeEach, end-s.start)}, {max(s.start, end-wipeEach), min(wipeEach, end-s.start)}}
		for _, at := range btrfsMirrors {
			if s.start+at+4096 <= end {
				zeros = append(zeros, span{s.start + at, 4096})
			}
		}
		for _, z := range zeros {
			// LBA 0 keeps the stub, and loses its partition table below.
			if z.start == 0 {
				z.start, z.length = 512, z.length-512
			}
			for _, z := range z.without(kept) {
				if err := t.zero(z.start, z.length); err != nil {
					return err
				}
			}
		}
	}
	if len(kept) > 0 {
		return t.flush()
	}
	if err := t.zero(bootCode, 512-bootCode); err != nil {
		return err
	}
	return t.flush()
}

// zero writes zeros. An offset that is not at a sector's start is fine.
func (t *Target) zero(at, length int64) error {
	zeros := make([]byte, 256<<10)
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if _, err := t.f.WriteAt(zeros[:n], at); err != nil {
			return fmt.Errorf("wipe %s at byte %d: %w", t.plan.Disk, at, err)
		}
		at, length = at+n, length-n
	}
	return nil
}

// flush waits until everything written is on the disk itself: fsync on a block
// device writes the page cache and then has the disk empty its own.
func (t *Target) flush() error {
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", t.plan.Disk, err)
	}
	return nil
}
