// Package mkfs makes file systems, in Go alone: ext4, FAT32 and swap areas on
// anything that can be written at an offset, be it a partition or a regular
// file. xfs and btrfs are made by their own programs, where the image has them.
//
// Nothing is read from the device, so what it held before cannot mislead. The
// makers write little: they leave out whatever the on-disk format allows to be
// left as it is (inode tables and bitmaps of unused groups, the journal's
// blocks, a swap area's pages), and overwrite the places at both ends where
// blkid would find the signature of something older. The block that makes the
// file system a valid one is the last to be written.
package mkfs

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/command"
	"reassure/image/spec"
)

// Device is what a file system is made on.
type Device interface {
	io.WriterAt
}

// Options say what a file system is called.
type Options struct {
	// Label is at most 16 bytes for ext4, 15 for swap, 11 for FAT; empty is none.
	Label string
	// UUID is required: 36 characters for ext4 and swap, and for xfs and
	// btrfs; for FAT its volume ID, eight hexadecimal digits as "AAAA-BBBB".
	UUID string
	// SectorSize is the device's logical sector in bytes, a power of two from
	// 512 to 4096; 0 means 512. Only FAT's layout depends on it.
	SectorSize int
	// Time is when the file system was made; zero means now. Never give a device
	// the same UUID and time twice: with both the same, so is every byte, and an
	// ext4 could take the last one's journal for its own after a power cut.
	Time time.Time
}

// now returns the time to write.
func (o Options) now() time.Time {
	if o.Time.IsZero() {
		return time.Now()
	}
	return o.Time
}

// uuid returns the 16 bytes of o.UUID.
func (o Options) uuid() (id [16]byte, err error) {
	s := o.UUID
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		var raw []byte
		raw, err = hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
		copy(id[:], raw)
		if err == nil && id != [16]byte{} {
			return id, nil
		}
	}
	return id, fmt.Errorf("UUID %q is not one: write 36 characters, such as 5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10, not all of them 0", s)
}

// label returns the label, padded with zero bytes, if it fits in at most bytes.
func (o Options) label(most int) (padded [16]byte, err error) {
	if len(o.Label) > most {
		return padded, fmt.Errorf("label %q is longer than the %d bytes that there are: shorten it", o.Label, most)
	}
	copy(padded[:], o.Label)
	return padded, nil
}

// Make makes a file system of the kind on a device: a partition, or a regular
// file of the size that the file system shall have. It is on stable storage
// when Make returns.
//
// Kind is one of spec's: Ext4, VFAT, Swap, XFS, Btrfs, or None, which does
// nothing. The device must exist; a block device that the kernel uses (mounted,
// swap, part of an array) is refused. The logical sector size is the block
// device's own; o.SectorSize counts for regular files only. A nil log means
// silence.
func Make(ctx context.Context, kind, device string, o Options, log *slog.Logger) error {
	if kind == spec.None {
		return nil
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	start := time.Now()
	size, err := makeOn(ctx, kind, device, o, log)
	if err != nil {
		return fmt.Errorf("making %s on %s: %w", kind, device, err)
	}
	log.Info("file system made", "kind", kind, "device", device, "size", spec.Size(size).String(),
		"label", o.Label, "uuid", o.UUID, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// makeOn does what Make promises, and returns the device's size in bytes.
func makeOn(ctx context.Context, kind, device string, o Options, log *slog.Logger) (size int64, err error) {
	f, size, sector, err := open(ctx, device)
	if err != nil {
		return 0, err
	}
	if sector != 0 {
		o.SectorSize = sector
	}
	if err := errors.Join(ctx.Err(), Check(kind, size, o), Available(kind)); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	switch kind {
	case spec.Ext4:
		err = Ext4(f, size, o)
	case spec.VFAT:
		err = FAT(f, size, o)
	case spec.Swap:
		err = Swap(f, size, o)
	default:
		// The program wants the device for itself, and flushes it.
		if err := f.Close(); err != nil {
			return 0, err
		}
		return size, makeByProgram(ctx, programs, kind, device, o, log)
	}
	if err == nil {
		err = f.Sync()
	}
	return size, errors.Join(err, f.Close())
}

// openPatience is how long a device that somebody holds is asked for: a program that is
// just being started has whatever is open here until its exec, so that a device can be
// held for a moment after its Close.
const openPatience = 2 * time.Second

// open opens a device for writing, and returns its size in bytes and its
// logical sector size, which is 0 for a regular file. It makes nothing: a
// missing device node must not become a file in the initramfs.
func open(ctx context.Context, device string) (f *os.File, size int64, sector int, err error) {
	info, err := os.Stat(device)
	if err != nil {
		return nil, 0, 0, err
	}
	flags := os.O_RDWR
	switch {
	case info.Mode().IsRegular():
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		// Without O_CREAT it is the block layer's: EBUSY if someone holds the device.
		flags |= os.O_EXCL
	default:
		return nil, 0, 0, fmt.Errorf("%s is neither a block device nor a regular file: name the partition", device)
	}
	for end := time.Now().Add(openPatience); ; time.Sleep(10 * time.Millisecond) {
		f, err = os.OpenFile(device, flags, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: it is in use; unmount it, or stop the array, volume or swap on it", err)
		}
		return nil, 0, 0, err
	}
	size, err = f.Seek(0, io.SeekEnd)
	if err == nil && flags&os.O_EXCL != 0 {
		sector, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		if err != nil {
			err = fmt.Errorf("asking %s for its sector size: %w", device, err)
		}
	}
	if err != nil {
		return nil, 0, 0, errors.Join(err, f.Close())
	}
	return f, size, sector, nil
}

// Check says whether Make would refuse a kind of file system for its size in
// bytes or its options: a plan can ask before anything is destroyed. It does no
// I/O; whether this machine has what it takes, [Available] knows.
func Check(kind string, size int64, o Options) (err error) {
	switch kind {
	case spec.None:
		return nil
	case spec.Ext4:
		_, err = newExt4(size, o)
		return err
	case spec.VFAT:
		_, err = layFAT(size, o)
		return err
	case spec.Swap:
		if _, err = swapPage(size, o); err != nil {
			err = fmt.Errorf("swap area of %d bytes: %w", size, err)
		}
		return err
	case spec.XFS, spec.Btrfs:
		// What mkfs.xfs and mkfs.btrfs of Debian 12 ask for.
		least, label := int64(300<<20), 12
		if kind == spec.Btrfs {
			least, label = 114294784, 255
		}
		if size < least {
			return fmt.Errorf("%s of %d bytes: it needs at least %s: make the partition larger, or use ext4", kind, size, spec.Size(least))
		}
		if len(o.Label) > label {
			return fmt.Errorf("%s: label %q is longer than the %d bytes that there are: shorten it", kind, o.Label, label)
		}
		if _, err := o.uuid(); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		return nil
	}
	return fmt.Errorf("file system %q is not one that can be made: use %s, %s, %s, %s, %s or %s",
		kind, spec.Ext4, spec.VFAT, spec.Swap, spec.XFS, spec.Btrfs, spec.None)
}

// Available says, by an error, that this machine lacks the program that makes a
// kind of file system.
func Available(kind string) error { return available(programs, kind) }

// programs is the folder of mkfs.xfs and mkfs.btrfs.
const programs = "/usr/sbin"

func available(folder, kind string) error {
	if kind != spec.XFS && kind != spec.Btrfs {
		return nil
	}
	if _, err := os.Stat(folder + "/mkfs." + kind); err != nil {
		return fmt.Errorf("this image does not carry mkfs.%s: write \"bundles: [%s]\" in the image configuration and build the image again, or use filesystem: %s (%w)",
			kind, kind, spec.Ext4, err)
	}
	return nil
}

// limit is far more than a mkfs takes on a disk that answers.
const limit = 10 * time.Minute

// makeByProgram makes an xfs or btrfs file system by its own mkfs, from a folder. Neither
// program discards the old blocks first: on some disks that takes minutes.
func makeByProgram(ctx context.Context, folder, kind, device string, o Options, log *slog.Logger) error {
	args := []string{folder + "/mkfs." + kind, "-f", "-q", "-K"}
	if kind == spec.XFS {
		args = append(args, "-m", "uuid="+o.UUID)
	} else {
		args = append(args, "-U", o.UUID)
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	return command.Command{Args: append(args, device), Timeout: limit, Log: log}.Run(ctx)
}

// writer writes pieces of a file system until one fails, and keeps that error.
type writer struct {
	dev Device
	err error
}

// at writes data at an offset in bytes; what names it in the error.
func (w *writer) at(offset int64, what string, data []byte) {
	if w.err != nil {
		return
	}
	if _, err := w.dev.WriteAt(data, offset); err != nil {
		w.err = fmt.Errorf("writing the %s at byte %d: %w", what, offset, err)
	}
}

// zero writes zero bytes from an offset up to another.
func (w *writer) zero(from, to int64, what string) {
	zeros := make([]byte, min(1<<20, max(0, to-from)))
	for ; from < to && w.err == nil; from += int64(len(zeros)) {
		w.at(from, what, zeros[:min(int64(len(zeros)), to-from)])
	}
}

// encode writes a structure of fixed size to the start of dst.
func encode(dst []byte, order binary.ByteOrder, structure any) {
	if _, err := binary.Encode(dst, order, structure); err != nil {
		panic(err) // a structure that does not fit: a mistake in this package
	}
}

// How much is overwritten at each end, so that blkid (util-linux,
// libblkid/src/superblocks) finds nothing older than what is made. At the start
// the farthest that it looks is VMFS, 2 MiB; at the end Promise's RAID, 3087
// sectors. In between are zfs labels, md 0.90 and 1.0, DDF, GPT's backup table.
const (
	foreignHead = 4 << 20
	foreignTail = 2 << 20
)

// clearEnds overwrites both ends of a device of size bytes.
func (w *writer) clearEnds(size int64) {
	w.zero(0, min(size, foreignHead), "zeros over old signatures")
	w.zero(max(foreignHead, size-foreignTail), size, "zeros over old signatures")
}
