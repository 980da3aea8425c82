package efivars

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Loader is a boot loader on a partition.
type Loader struct {
	// Description is what the firmware's menu shows, and what tells our entries
	// from others'.
	Description string
	Number      int    // of the partition, from 1
	Start, Size uint64 // in the disk's logical sectors
	PartUUID    string // as in [Entry]
	File        string // on the partition, with backslashes
}

// Install gives the loader an entry, and puts the network before it in the boot
// order: first the entry that this start came from if it is one of the network,
// else all that are, then the loader's, then the others as they were. There is one
// entry of its description afterwards; those for partitions that gone names, which
// are on the disk no more, are removed. What is as it should be is not written.
//
// No error of it keeps a PC from booting: firmware without an entry takes the
// removable-media path (UEFI 2.10, section 3.5.1.1).
func (v Vars) Install(l Loader, gone []string) error {
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	order, err := v.BootOrder()
	if err != nil {
		return err
	}
	option, err := l.option()
	if err != nil {
		return err
	}
	isGone := func(e Entry) bool {
		return slices.ContainsFunc(gone, func(id string) bool { return e.PartUUID != "" && strings.EqualFold(id, e.PartUUID) })
	}
	ours, found := uint16(0), false
	var left []Entry
	for _, e := range entries {
		switch {
		case e.Description == l.Description && !found:
			ours, found = e.Number, true
		case e.Description == l.Description, isGone(e):
			// First of all: it makes room for what is written.
			if err := v.remove(e.name()); err != nil {
				return fmt.Errorf("remove the old entry %s: %w", e, err)
			}
		default:
			left = append(left, e)
		}
	}
	taken, err := v.numbers()
	if err != nil {
		return err
	}
	for !found && slices.Contains(taken, ours) {
		ours++
	}
	if err := v.write(fmt.Sprintf("Boot%04X", ours), option); err != nil {
		return err
	}
	wanted := append(v.network(left), ours)
	for _, n := range order {
		if !slices.Contains(wanted, n) && slices.Contains(taken, n) {
			wanted = append(wanted, n)
		}
	}
	var data []byte
	for _, n := range wanted {
		data = binary.LittleEndian.AppendUint16(data, n)
	}
	return v.write("BootOrder", data)
}

// network returns the numbers of the entries that come before the disk.
func (v Vars) network(entries []Entry) (numbers []uint16) {
	current, err := v.BootCurrent()
	for _, e := range entries {
		// This program was started over the network: whatever the firmware's maker
		// calls that, it is no drive.
		if err == nil && e.Number == current && (e.Network || !e.Drive) {
			return []uint16{current}
		}
		if e.Network && e.Active {
			numbers = append(numbers, e.Number)
		}
	}
	return numbers
}

// option writes an EFI_LOAD_OPTION; see [parseEntry].
func (l Loader) option() ([]byte, error) {
	node := binary.LittleEndian.AppendUint32([]byte{4, 1, 42, 0}, uint32(l.Number))
	node = binary.LittleEndian.AppendUint64(node, l.Start)
	node = binary.LittleEndian.AppendUint64(node, l.Size)
	if id, err := uuid.Parse(l.PartUUID); err == nil {
		// As it lies on the disk: the change of byte order undoes itself.
		onDisk := uuid.MustParse(GUID([16]byte(id)))
		node = append(append(node, onDisk[:]...), 2, 2)
	} else {
		digits, _, _ := strings.Cut(l.PartUUID, "-")
		signature, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is not the PARTUUID of a partition", l.PartUUID)
		}
		node = binary.LittleEndian.AppendUint32(node, uint32(signature))
		node = append(append(node, make([]byte, 12)...), 1, 1)
	}
	file := text16(l.File)
	path := append(node, 4, 4)
	path = binary.LittleEndian.AppendUint16(path, uint16(4+len(file)))
	path = append(append(path, file...), 0x7f, 0xff, 4, 0)

	data := binary.LittleEndian.AppendUint32(nil, 1) // LOAD_OPTION_ACTIVE
	data = binary.LittleEndian.AppendUint16(data, uint16(len(path)))
	return append(append(data, text16(l.Description)...), path...), nil
}

// text16 is a text as UTF-16 with its zero.
func text16(s string) (b []byte) {
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// write gives a variable its data, if it has other.
func (v Vars) write(name string, data []byte) error {
	if before, err := v.read(name); err == nil && slices.Equal(before, data) {
		return nil
	}
	// efivarfs takes a variable as one write.
	whole := append(binary.LittleEndian.AppendUint32(nil, attributes), data...)
	err := v.changeable(name, func(file string) error { return os.WriteFile(file, whole, 0o644) })
	if err != nil {
		return fmt.Errorf("write the UEFI variable %s: %w", name, explain(err))
	}
	return nil
}

func (v Vars) remove(name string) error {
	if err := v.changeable(name, os.Remove); err != nil {
		return fmt.Errorf("UEFI variable %s: %w", name, explain(err))
	}
	return nil
}

// changeable does something to a variable, and takes its immutable flag away where
// it has one: efivarfs gives it to all that it does not know to be harmless
// (Documentation/filesystems/efivarfs.rst).
func (v Vars) changeable(name string, change func(file string) error) error {
	file := v.path(name)
	err := change(file)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	f, open := os.Open(file)
	if open != nil {
		return err
	}
	defer f.Close()
	flags, get := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if get != nil || flags&immutable == 0 {
		return err
	}
	if set := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); set != nil {
		return errors.Join(err, set)
	}
	return change(file)
}

// immutable is FS_IMMUTABLE_FL (include/uapi/linux/fs.h).
const immutable = 0x10

// explain adds the remedy.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: the firmware's memory for variables is full: remove old boot entries in the PC's set-up, or have it load its defaults", err)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: the firmware does not let its variables be changed: allow that in the PC's set-up, or put the network first in its boot order there", err)
	}
	return err
}
