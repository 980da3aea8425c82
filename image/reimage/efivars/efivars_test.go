package efivars

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

// debian is a Boot entry as efibootmgr(8) writes it for Debian on a GPT:
// HD(1,GPT,cf28e0ab-1f2c-4a7c-9ad2-6a2b7a5a5f01,0x800,0x100000)/File(\EFI\debian\shimx64.efi)
const debian = "01000000" + "6200" + "640065006200690061006e000000" +
	"04012a00" + "01000000" + "0008000000000000" + "0000100000000000" + "abe028cf2c1f7c4a9ad26a2b7a5a5f01" + "0202" +
	"04043400" + "5c004500460049005c00640065006200690061006e005c007300680069006d007800360034002e006500660069000000" +
	"7fff0400"

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vars(t *testing.T, values map[string][]byte) Vars {
	t.Helper()
	v := Vars{Dir: t.TempDir()}
	for name, data := range values {
		if err := os.WriteFile(v.path(name), append([]byte{7, 0, 0, 0}, data...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// option makes a load option by hand.
func option(active uint32, description string, path ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, active)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	for _, u := range append(utf16.Encode([]rune(description)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, path...)
}

func TestEntries(t *testing.T) {
	mbr := append([]byte{4, 1, 42, 0, 2, 0, 0, 0}, make([]byte, 34)...)
	copy(mbr[24:], []byte{0x4d, 0x3c, 0x2b, 0x1a})
	mbr[40], mbr[41] = 1, 1
	v := vars(t, map[string][]byte{
		"BootOrder":   {3, 0, 1, 0, 9, 0},
		"BootCurrent": {3, 0},
		"Boot0001":    unhex(t, debian),
		"Boot0003":    option(1, "UEFI PXEv4 (MAC:525400123456)", 0x7f, 0xff, 4, 0),
		"Boot00AB":    option(0, "Old", append(mbr, 0x7f, 0xff, 4, 0)...),
		"Boot0004":    {1, 0, 0},                                        // cut
		"Boot0005":    option(1, "loops", 4, 4, 0, 0),                   // a node of no length
		"BootNextish": {1, 0},                                           // not an entry
		"Boot0006":    append(option(1, "x"), []byte("loader data")...), // no path
	})
	got, err := v.Entries()
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Number: 3, Active: true, Description: "UEFI PXEv4 (MAC:525400123456)"},
		{Number: 1, Active: true, Description: "debian", PartUUID: "cf28e0ab-1f2c-4a7c-9ad2-6a2b7a5a5f01", File: `\EFI\debian\shimx64.efi`, Drive: true},
		{Number: 6, Active: true, Description: "x"},
		{Number: 0xab, Description: "Old", PartUUID: "1a2b3c4d-02", Drive: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if n, err := v.BootCurrent(); n != 3 || err != nil {
		t.Errorf("BootCurrent = %d, %v", n, err)
	}
	if got[1].String() != `Boot0001 "debian"` {
		t.Errorf("String = %s", got[1])
	}
}

// TestBootMAC reads which card a start from the network came from.
func TestBootMAC(t *testing.T) {
	// PciRoot(0x0)/Pci(0x3,0x0)/MAC(525400123456,0x1)/IPv4(0.0.0.0,...), as OVMF writes it.
	path := unhex(t, "02010c00d041030a00000000"+"010106000003"+"030b2500525400123456"+strings.Repeat("00", 26)+"01"+"030c1b00"+strings.Repeat("00", 23)+"7fff0400")
	v := vars(t, map[string][]byte{
		"BootCurrent": {2, 0},
		"Boot0002":    option(1, "UEFI PXEv4 (MAC:525400123456)", path...),
		"Boot0003":    unhex(t, debian),
	})
	if got, err := v.BootMAC(); err != nil || got.String() != "52:54:00:12:34:56" {
		t.Errorf("%v, %v", got, err)
	}
	entries, err := v.Entries()
	if err != nil || !entries[0].Network || entries[0].MAC.String() != "52:54:00:12:34:56" {
		t.Errorf("%+v, %v", entries, err)
	}
	for current, wantErr := range map[byte]bool{3: false, 4: true} {
		if err := os.WriteFile(v.path("BootCurrent"), []byte{7, 0, 0, 0, current, 0}, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := v.BootMAC(); got.String() != "00:00:00:00:00:00" || (err != nil) != wantErr {
			t.Errorf("from entry %d: %v, %v", current, got, err)
		}
	}
}

func TestSetBootNext(t *testing.T) {
	v := vars(t, nil)
	if err := v.SetBootNext(0x1234); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(v.Dir, "BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	if diff := cmp.Diff([]byte{7, 0, 0, 0, 0x34, 0x12}, got); diff != "" || err != nil {
		t.Errorf("BootNext: %v (-want +got):\n%s", err, diff)
	}
}

func TestNoVariables(t *testing.T) {
	v := vars(t, nil)
	if order, err := v.BootOrder(); order != nil || err != nil {
		t.Errorf("BootOrder = %v, %v; want none", order, err)
	}
	if _, err := v.BootCurrent(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("BootCurrent = %v", err)
	}
	if _, err := (Vars{Dir: filepath.Join(v.Dir, "none")}).Entries(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Entries = %v", err)
	}
}

func FuzzParseEntry(f *testing.F) {
	seed, err := hex.DecodeString(debian)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEntry(data)
		if err == nil && len(e.Description) > 2*len(data) {
			t.Errorf("%d bytes give a description of %d", len(data), len(e.Description))
		}
	})
}
