// Package efivars reads the UEFI firmware's boot entries, chooses the one for the
// next start only, and gives a boot loader an entry behind the network's (UEFI
// 2.10, sections 3.1.3 and 3.3). It needs efivarfs mounted.
package efivars

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"

	"reassure/image/spec"
)

// Vars are the firmware's variables. The zero value is this PC's.
type Vars struct {
	// Dir is where efivarfs is mounted; empty means /sys/firmware/efi/efivars.
	Dir string
}

// global is EFI_GLOBAL_VARIABLE.
const global = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// attributes are non-volatile, boot service access, run-time access.
const attributes = 7

// Entry is one Boot#### variable.
type Entry struct {
	Number      uint16
	Active      bool
	Description string
	// PartUUID is the partition that the entry boots from, as the kernel's
	// PARTUUID: a GUID, or "1a2b3c4d-01" on an MBR. Empty is none: the network,
	// or a whole disk.
	PartUUID string
	// File is the loader on it, with backslashes.
	File string
	// Network says that it boots from the network.
	Network bool
	// MAC is the address of the card that it boots from; zero is none.
	MAC spec.MAC
	// Drive says that it boots from a disk, a stick or the like.
	Drive bool
	// App says that it is a program such as the firmware's set-up, which is started
	// when a person wants it.
	App bool
}

func (e Entry) String() string { return fmt.Sprintf("%s %q", e.name(), e.Description) }

func (e Entry) name() string { return fmt.Sprintf("Boot%04X", e.Number) }

func (v Vars) path(name string) string {
	dir := v.Dir
	if dir == "" {
		dir = "/sys/firmware/efi/efivars"
	}
	return filepath.Join(dir, name+"-"+global)
}

// read returns a variable's data, without the attributes that efivarfs puts
// before it.
func (v Vars) read(name string) ([]byte, error) {
	data, err := os.ReadFile(v.path(name))
	if err != nil {
		return nil, fmt.Errorf("UEFI variable %s: %w", name, err)
	}
	if len(data) < 4 {
		return nil, fmt.Errorf("UEFI variable %s has %d bytes, less than its attributes", name, len(data))
	}
	return data[4:], nil
}

// BootOrder returns the numbers of the entries that the firmware tries, in
// order. A firmware without the variable has none.
func (v Vars) BootOrder() ([]uint16, error) {
	data, err := v.read("BootOrder")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var order []uint16
	for ; len(data) >= 2; data = data[2:] {
		order = append(order, binary.LittleEndian.Uint16(data))
	}
	return order, nil
}

// BootCurrent returns the entry that this start came from.
func (v Vars) BootCurrent() (uint16, error) {
	data, err := v.read("BootCurrent")
	if err != nil {
		return 0, err
	}
	if len(data) < 2 {
		return 0, errors.New("UEFI variable BootCurrent is empty")
	}
	return binary.LittleEndian.Uint16(data), nil
}

// BootMAC returns the address of the card that this start came from; zero is none,
// or a start from elsewhere.
func (v Vars) BootMAC() (spec.MAC, error) {
	current, err := v.BootCurrent()
	if err != nil {
		return spec.MAC{}, err
	}
	name := Entry{Number: current}.name()
	data, err := v.read(name)
	if err != nil {
		return spec.MAC{}, err
	}
	e, err := parseEntry(data)
	if err != nil {
		return spec.MAC{}, fmt.Errorf("UEFI variable %s: %w", name, err)
	}
	return e.MAC, nil
}

// Entries returns all boot entries: those of the boot order first, in order,
// then the others by number. Entries that cannot be read are left out.
func (v Vars) Entries() ([]Entry, error) {
	order, err := v.BootOrder()
	if err != nil {
		return nil, err
	}
	others, err := v.numbers()
	if err != nil {
		return nil, err
	}
	others = slices.DeleteFunc(others, func(n uint16) bool { return slices.Contains(order, n) })
	var entries []Entry
	all := append(order, others...)
	for i, n := range all {
		if slices.Contains(all[:i], n) {
			continue
		}
		data, err := v.read(fmt.Sprintf("Boot%04X", n))
		if err != nil {
			continue
		}
		e, err := parseEntry(data)
		if err != nil {
			continue
		}
		e.Number = n
		entries = append(entries, e)
	}
	return entries, nil
}

// numbers returns those of all Boot#### variables.
func (v Vars) numbers() ([]uint16, error) {
	files, err := os.ReadDir(filepath.Dir(v.path("")))
	if err != nil {
		return nil, fmt.Errorf("UEFI variables: %w", err)
	}
	var all []uint16
	for _, f := range files {
		digits, ok := strings.CutPrefix(strings.TrimSuffix(f.Name(), "-"+global), "Boot")
		n, err := strconv.ParseUint(digits, 16, 16)
		if ok && err == nil && len(digits) == 4 {
			all = append(all, uint16(n))
		}
	}
	slices.Sort(all)
	return all, nil
}

// SetBootNext has the firmware use an entry at the next start, and only then.
func (v Vars) SetBootNext(n uint16) error {
	return v.write("BootNext", binary.LittleEndian.AppendUint16(nil, n))
}

// parseEntry reads an EFI_LOAD_OPTION: attributes, length of the path list,
// description as UTF-16 with its zero, path list, data of the loader's own.
func parseEntry(data []byte) (Entry, error) {
	bad := errors.New("it is no UEFI load option")
	if len(data) < 6 {
		return Entry{}, bad
	}
	flags := binary.LittleEndian.Uint32(data)
	// LOAD_OPTION_ACTIVE, LOAD_OPTION_HIDDEN, LOAD_OPTION_CATEGORY_APP (section 3.1.3)
	e := Entry{Active: flags&1 != 0, App: flags&8 != 0 || flags&0x1f00 == 0x100}
	length := int(binary.LittleEndian.Uint16(data[4:]))
	rest := data[6:]
	description, rest, ok := utf16Text(rest)
	if !ok || len(rest) < length {
		return Entry{}, bad
	}
	e.Description = description
	// Device path nodes: type, subtype, length with this header (section 10).
	for path := rest[:length]; len(path) >= 4; {
		size := int(binary.LittleEndian.Uint16(path[2:]))
		if size < 4 || size > len(path) {
			return Entry{}, bad
		}
		node := path[4:size]
		e.Network = e.Network || isNetwork(path[0], path[1], node)
		e.Drive = e.Drive || isDrive(path[0], path[1], node)
		switch [2]byte{path[0], path[1]} {
		case [2]byte{3, 11}: // messaging, MAC address, padded to 32 bytes
			if len(node) >= 32 {
				e.MAC = spec.MAC(node[:6])
			}
		case [2]byte{4, 1}: // media, hard drive
			if len(node) >= 38 {
				e.PartUUID = partUUID(node)
			}
		case [2]byte{4, 4}: // media, file path
			text, _, _ := utf16Text(node)
			e.File += text
		case [2]byte{0x7f, 0xff}: // end of all
			return e, nil
		}
		path = path[size:]
	}
	return e, nil
}

// isNetwork says whether a node is a MAC address, IPv4, IPv6 or a URI, or a boot
// ROM's device of the network (UEFI 2.10, sections 10.3.4 and 10.3.6).
func isNetwork(kind, sub byte, node []byte) bool {
	switch kind {
	case 3:
		return sub == 11 || sub == 12 || sub == 13 || sub == 24
	case 5:
		return len(node) > 0 && (node[0] == 0x06 || node[0] == 0x80)
	}
	return false
}

// isDrive says whether a node is of a disk, a stick, a card or a disc: ATAPI, SCSI,
// USB, SATA, NVMe, SD, eMMC; a partition, a CD; or a boot ROM's device of that kind.
func isDrive(kind, sub byte, node []byte) bool {
	switch kind {
	case 3:
		return slices.Contains([]byte{1, 2, 5, 15, 18, 23, 26, 29}, sub)
	case 4:
		return sub == 1 || sub == 2
	case 5:
		return len(node) > 0 && node[0] >= 1 && node[0] <= 5
	}
	return false
}

// partUUID reads a hard drive node: number, start, size, signature, format of
// the table, type of the signature.
func partUUID(node []byte) string {
	switch node[37] {
	case 1:
		return fmt.Sprintf("%08x-%02x", binary.LittleEndian.Uint32(node[20:]), binary.LittleEndian.Uint32(node))
	case 2:
		return GUID([16]byte(node[20:36]))
	}
	return ""
}

// GUID writes a GUID as it lies on disk or in a variable: the first three
// fields of it are little-endian.
func GUID(b [16]byte) string {
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return uuid.UUID(b).String()
}

// utf16Text reads little-endian UTF-16 up to its zero, and returns what follows.
func utf16Text(b []byte) (text string, rest []byte, ok bool) {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			return string(utf16.Decode(units)), b[2:], true
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units)), b, false
}
