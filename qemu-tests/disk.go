package qemutests

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// Disk is a disk of a PC, as a test wants it. Its bytes are a sparse file that
// outlives the PC's being switched off.
type Disk struct {
	Size   spec.Size // 0 means 8 GiB
	Bus    string    // virtio (the default), nvme, ata, scsi or usb
	Sector int       // logical sector size in bytes; 0 means 512
	Serial string    // empty means diskN
	// Removable marks a card or a stick; it needs Bus scsi.
	Removable bool
	// Log is a file that notes every write and flush, for [ReadWrites]; empty is none.
	Log string
	// Errors has requests fail, as QEMU's blkdebug takes it: rules of
	// "inject-error.0.event=...,inject-error.0.sector=...".
	Errors string
	// ReadOnly is a disk with its write protection on.
	ReadOnly bool
	// Rate is what it reads and writes a second, at most, in bytes; 0 is all it can.
	Rate spec.Size
	// Fill writes what is on the disk before the PC is first switched on.
	Fill func(*os.File) error

	path string
}

// Path is the raw image, once [Disk.Make] has made it.
func (d *Disk) Path() string { return d.path }

// Make makes the disk's file.
func (d *Disk) Make(path string) error {
	if d.Size == 0 {
		d.Size = 8 * spec.GiB
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(d.Size)); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if d.Fill != nil {
		if err := d.Fill(f); err != nil {
			return fmt.Errorf("filling disk %s: %w", path, err)
		}
	}
	d.path = path
	return f.Close()
}

// Sum returns a digest of the disk's content. Blocks of zeros do not count,
// wherever they are stored or not, so that a sparse disk takes no time.
func (d *Disk) Sum() (spec.Digest, error) {
	f, err := os.Open(d.path)
	if err != nil {
		return spec.Digest{}, fmt.Errorf("disk: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	const size = 64 << 10
	block, zeros := make([]byte, size), make([]byte, size)
	for at := int64(0); at < int64(d.Size); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole to the end
		}
		if err != nil {
			return spec.Digest{}, fmt.Errorf("disk %s: %w", d.path, err)
		}
		at = data / size * size
		n, err := f.ReadAt(block, at)
		if err != nil && err != io.EOF {
			return spec.Digest{}, fmt.Errorf("disk %s: %w", d.path, err)
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
			h.Write(block[:n])
		}
		at += size
	}
	return spec.Digest(h.Sum(nil)), nil
}

// bootCode is how much of an MBR is code; what follows is the disk's signature
// and its table.
const bootCode = 440

// notWhole is what the code in the MBR says of itself while a reimage is under
// way: it only has the firmware go on to the next thing to boot.
const notWhole = "this disk is not whole yet"

// Bootable says whether firmware that reads an MBR finds code there that boots
// the disk: that is what commits a reimage on a PC with a BIOS.
func (d *Disk) Bootable() (bool, error) {
	f, err := os.Open(d.path)
	if err != nil {
		return false, fmt.Errorf("disk: %w", err)
	}
	defer f.Close()
	var code [bootCode]byte
	if _, err := io.ReadFull(f, code[:]); err != nil {
		return false, fmt.Errorf("disk %s: %w", d.path, err)
	}
	return code != [bootCode]byte{} && !bytes.Contains(code[:], []byte(notWhole)), nil
}

// arguments are the emulator's for disk number n.
func (d *Disk) arguments(n int) ([]string, error) {
	id, serial, sector := fmt.Sprintf("disk%d", n), d.Serial, d.Sector
	if serial == "" {
		serial = id
	}
	if sector == 0 {
		sector = 512
	}
	// The format is written out: guessing would let a guest choose it.
	drive := "if=none,id=" + id + ",discard=unmap,"
	switch {
	case d.Log != "":
		// Whoever does not care for flushes is not told of them.
		drive += "cache=writeback,driver=blklogwrites,file.driver=file,file.discard=unmap,file.filename=" + d.path + ",log.driver=file,log.filename=" + d.Log
	case d.Errors != "":
		drive += "cache=writeback,driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=" + d.path
		for _, option := range strings.Split(d.Errors, ",") {
			drive += ",file." + option
		}
	default:
		drive += "format=raw,cache=unsafe,file=" + d.path
	}
	if d.ReadOnly {
		drive += ",readonly=on"
	}
	if d.Rate > 0 {
		drive += fmt.Sprintf(",throttling.bps-total=%d", d.Rate)
	}
	args := []string{"-drive", drive}
	blocks := fmt.Sprintf(",drive=%s,serial=%s,bootindex=%d,logical_block_size=%d,physical_block_size=%d", id, serial, n+1, sector, max(sector, 512))
	switch d.Bus {
	case "", "virtio":
		args = append(args, "-device", "virtio-blk-pci"+blocks)
	case "nvme":
		args = append(args, "-device", "nvme"+blocks)
	case "ata":
		args = append(args, "-device", fmt.Sprintf("ich9-ahci,id=ahci%d", n), "-device", fmt.Sprintf("ide-hd,bus=ahci%d.0%s", n, blocks))
	case "scsi":
		if d.Removable {
			blocks += ",removable=on"
		}
		args = append(args, "-device", fmt.Sprintf("virtio-scsi-pci,id=scsi%d", n), "-device", fmt.Sprintf("scsi-hd,bus=scsi%d.0%s", n, blocks))
	case "usb":
		args = append(args, "-device", fmt.Sprintf("qemu-xhci,id=xhci%d", n), "-device", fmt.Sprintf("usb-storage,bus=xhci%d.0%s", n, blocks))
	default:
		return nil, fmt.Errorf("disk %d: unknown bus %q", n, d.Bus)
	}
	return args, nil
}
