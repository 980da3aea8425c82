package build

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"reassure/image/kmod"
)

type microcodeVendor struct {
	inside, folder string
	check          func([]byte) error
}

// microcodeVendors are the files in which the kernel looks for microcode before
// anything else runs (Documentation/x86/microcode.rst), and the folders where
// Debian's packages intel-microcode and amd64-microcode have what goes into them.
var microcodeVendors = [...]microcodeVendor{
	{"kernel/x86/microcode/AuthenticAMD.bin", "amd-ucode/", checkAMD},
	{"kernel/x86/microcode/GenuineIntel.bin", "intel-ucode/", checkIntel},
}

// microcode reads what the folder has of the microcode that is asked for; nothing
// is no error. names are the files, below the folder.
func microcode(c Microcode) (entries []entry, names []string, err error) {
	if c.Folder == "" {
		return nil, nil, nil
	}
	found, _, err := readFolder(c.Folder, c.Files, "")
	if err != nil {
		return nil, nil, fmt.Errorf("microcode: %w", err)
	}
	for _, v := range microcodeVendors {
		e := entry{name: v.inside}
		for _, f := range found {
			if !strings.HasPrefix(f.name, v.folder) {
				continue
			}
			if err := v.check(f.data); err != nil {
				return nil, nil, fmt.Errorf("microcode: %s: %w: install its Debian package anew, or leave it out of the configuration", filepath.Join(c.Folder, f.name), err)
			}
			e.data = append(e.data, f.data...)
			names = append(names, f.name)
		}
		if len(e.data) > 0 {
			entries = append(entries, e)
		}
	}
	return entries, names, nil
}

// checkIntel follows the updates of a file: the kernel gives up at the first that
// is none, and what comes after it would be lost (Intel SDM volume 3, 9.11.1).
func checkIntel(data []byte) error {
	if len(data) == 0 {
		return errors.New("it is empty")
	}
	for len(data) > 0 {
		const header = 48
		if len(data) < header || binary.LittleEndian.Uint32(data) != 1 {
			return errors.New("it is not Intel's microcode")
		}
		size := uint64(binary.LittleEndian.Uint32(data[32:]))
		if size == 0 {
			size = 2048
		}
		if size < header || size > uint64(len(data)) || size%1024 != 0 {
			return errors.New("it is cut off")
		}
		data = data[size:]
	}
	return nil
}

// checkAMD looks at the mark that a container of AMD's begins with
// (arch/x86/kernel/cpu/microcode/amd.c).
func checkAMD(data []byte) error {
	if len(data) < 12 || binary.LittleEndian.Uint32(data) != 0x00414d44 {
		return errors.New("it is not AMD's microcode")
	}
	return nil
}

// microcodeAlign is what the processor asks of an update's address (Intel SDM
// volume 3, 9.11.6); the kernel loads it from where it lies in the archive.
const microcodeAlign = 16

// writeEarly writes entries as an archive that the kernel reads uncompressed. It
// has no folders, so that the kernel, when it unpacks everything later, has
// nowhere to put the files, and wastes no memory on them. Zeros behind a name, which count
// as part of it, move its content to where it must lie.
func writeEarly(w io.Writer, entries []entry) error {
	at := 0
	write := func(data []byte) error {
		n, err := w.Write(data)
		at += n
		return err
	}
	pad := func(to int) error { return write(make([]byte, (to-at%to)%to)) }
	each := func(inode int, e entry, mode int) error {
		const header = 110
		size := len(e.name) + 1
		for len(e.data) > 0 && (at+header+size)%microcodeAlign != 0 {
			size++
		}
		h := "070701"
		for _, field := range [...]int{inode, mode, 0, 0, 1, 0, len(e.data), 0, 0, 0, 0, size, 0} {
			h += fmt.Sprintf("%08x", field)
		}
		return errors.Join(write([]byte(h)), write(append([]byte(e.name), make([]byte, size-len(e.name))...)), pad(4), write(e.data), pad(4))
	}
	for i, e := range entries {
		if err := each(i+1, e, 0o100644); err != nil {
			return err
		}
	}
	if err := each(0, entry{name: "TRAILER!!!"}, 0); err != nil {
		return err
	}
	return pad(512)
}

// early is the segment with microcode. It is the first, and the only one that is
// not compressed.
func early(entries []entry) *segment {
	return &segment{name: "microcode", plain: true, identity: "microcode 1 " + identityOf(entries), write: func(_ context.Context, w io.Writer) error {
		return writeEarly(w, entries)
	}}
}

// wants says whether a flavour gets microcode.
func (m Microcode) wants(flavour string) bool { return slices.Contains(m.Flavours, flavour) }

// packed are the endings of firmware that is compressed.
var packed = [...]string{".xz", ".zst"}

// readFirmware reads the firmware of the configuration. A file that a
// distribution keeps compressed is unpacked: not every kernel reads it so, and the
// image is compressed as a whole.
func readFirmware(f Firmware) (entries []entry, missing []string, err error) {
	for _, p := range f.Files {
		forms := []string{p}
		if !strings.HasSuffix(p, "*") {
			for _, ending := range packed {
				forms = append(forms, p+ending)
			}
		}
		found, without, err := readFolder(f.Folder, forms, "lib/firmware")
		if err != nil {
			return nil, nil, fmt.Errorf("firmware: %w", err)
		}
		if len(without) == len(forms) {
			missing = append(missing, p)
		}
		entries = append(entries, found...)
	}
	for i, e := range entries {
		if entries[i], err = plainFirmware(e); err != nil {
			return nil, nil, fmt.Errorf("firmware: /%s: %w", e.name, err)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.name == b.name }), missing, nil
}

func plainFirmware(e entry) (entry, error) {
	data, err := kmod.Decompress(e.name, e.data)
	for _, ending := range packed {
		e.name = strings.TrimSuffix(e.name, ending)
	}
	return entry{name: e.name, data: data}, err
}
