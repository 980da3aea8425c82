package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"reassure/image/spec"
)

// bootCode is how many bytes of LBA 0 are code; the disk signature follows.
const bootCode = 440

// notWhole is what the stub prints.
const notWhole = "ReAssure: this disk is not whole yet; it will be reimaged.\r\n"

// stub returns the boot code of a disk that is not committed, bootCode bytes.
func stub() []byte {
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0xfb,                         // sti
		0xfc,                         // cld
		0xea, 0x11, 0x7c, 0x00, 0x00, // jmp 0:0x7c11, for BIOSes that come by 0x7c0:0
		0xbe, 0x27, 0x7c, // mov si, text
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x09, // jz done
		0xb4, 0x0e, // mov ah, 0x0e (teletype)
		0xbb, 0x07, 0x00, // mov bx, 7
		0xcd, 0x10, // int 0x10
		0xeb, 0xf2, // jmp next
		0xcd, 0x18, // done: int 0x18 (next boot device)
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	return append(append(code, notWhole...), make([]byte, bootCode-len(code)-len(notWhole))...)
}

// Places in GRUB's boot.img (include/grub/i386/pc/boot.h) and in the first
// sector of core.img, which is its diskboot.img.
const (
	grubKernelSector = 0x5c  // u64: LBA of core.img
	grubBootDrive    = 0x64  // u8: 0xff means the drive that the BIOS names
	grubDriveCheck   = 0x66  // two bytes of a jump, for floppies
	grubBlockList    = 0x1f4 // u64 first LBA after this one, u16 count, u16 segment
	grubSegment      = 0x820 // where the second sector goes: 0x8200
)

// Commit makes the disk boot: GRUB's core.img goes into the gap behind an MBR,
// or into the BIOS boot partition of a GPT, and is flushed and read back; only
// then boot.img goes into LBA 0.
//
// grub-bios-setup does the same, but has both in flight at once: a power cut
// there could leave boot code without its core. Reed-Solomon codes, which it
// adds unless told not to, are left out: nothing else writes there.
func (t *Target) Commit(boot, core []byte) error {
	if len(boot) != 512 || boot[510] != 0x55 || boot[511] != 0xaa {
		return errors.New("GRUB's boot.img is not a boot sector of 512 bytes")
	}
	if len(core) < 1024 {
		return errors.New("GRUB's core.img is too short")
	}
	at, room, err := t.coreRoom()
	if err != nil {
		return err
	}
	sectors := (len(core) + 511) / 512
	if int64(sectors)*512 > room {
		return fmt.Errorf("GRUB's core.img has %d bytes and does not fit into the %d there are", len(core), room)
	}
	padded := make([]byte, sectors*512)
	copy(padded, core)
	list := padded[grubBlockList:]
	binary.LittleEndian.PutUint64(list, uint64(at/512)+1)
	binary.LittleEndian.PutUint16(list[8:], uint16(sectors-1))
	binary.LittleEndian.PutUint16(list[10:], grubSegment)
	if _, err := t.f.WriteAt(padded, at); err != nil {
		return fmt.Errorf("write GRUB's core to %s: %w", t.plan.Disk, err)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := t.forget(); err != nil {
		return err
	}
	back := make([]byte, len(padded))
	if _, err := t.f.ReadAt(back, at); err != nil {
		return fmt.Errorf("read GRUB's core back from %s: %w", t.plan.Disk, err)
	}
	if !bytes.Equal(back, padded) {
		return fmt.Errorf("%s did not keep GRUB's core: what was read back differs; the disk is not to be trusted", t.plan.Disk)
	}

	sector := make([]byte, 512)
	if _, err := t.f.ReadAt(sector, 0); err != nil {
		return fmt.Errorf("read the boot sector of %s: %w", t.plan.Disk, err)
	}
	copy(sector[:bootCode], boot)
	binary.LittleEndian.PutUint64(sector[grubKernelSector:], uint64(at/512))
	sector[grubBootDrive] = 0xff
	sector[grubDriveCheck], sector[grubDriveCheck+1] = 0x90, 0x90
	sector[510], sector[511] = 0x55, 0xaa
	if _, err := t.f.WriteAt(sector, 0); err != nil {
		return fmt.Errorf("write the boot sector of %s: %w", t.plan.Disk, err)
	}
	return t.flush()
}

// coreRoom returns where core.img goes, and how much fits there, in bytes.
func (t *Target) coreRoom() (at, room int64, err error) {
	if t.sector != 512 {
		return 0, 0, fmt.Errorf("%s has sectors of %d bytes, which GRUB's boot code for BIOS cannot read", t.plan.Disk, t.sector)
	}
	if t.plan.Table == spec.MBR {
		return 512, int64(t.plan.Partitions[0].Start) - 512, nil
	}
	for _, p := range t.plan.Partitions {
		if p.Kind() == spec.TypeBIOSBoot {
			return int64(p.Start), int64(p.Length), nil
		}
	}
	return 0, 0, fmt.Errorf("%s has no partition of type %s", t.plan.Disk, spec.TypeBIOSBoot)
}

// Committed says whether a disk's LBA 0 holds boot code other than the stub.
// It opens the disk for reading only.
func Committed(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sector := make([]byte, 512)
	if _, err := f.ReadAt(sector, 0); err != nil {
		return false, fmt.Errorf("read the boot sector of %s: %w", device, err)
	}
	code := sector[:bootCode]
	return sector[510] == 0x55 && sector[511] == 0xaa &&
		!bytes.Equal(code, stub()) && !bytes.Equal(code, make([]byte, bootCode)), nil
}
