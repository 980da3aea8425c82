package efivars

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Paths of boot entries: PXE over a card, HTTP over one on USB, a stick, a DVD, a
// network application of the firmware's maker's, and the firmware's own shell.
const (
	end     = "7fff0400"
	pxe     = "02010c00d041030a00000000" + "01010600" + "0003" + "030b2500" + "525400123456" + "0000000000000000000000000000000000000000000000000000" + "00" + "030c1b00" + "0000000000000000000000000000000000000000000000" + end
	usbHTTP = "02010c00d041030a00000000" + "03050600" + "0100" + "030b2500" + "525400123457" + "0000000000000000000000000000000000000000000000000000" + "00" + "03180400" + end
	stick   = "02010c00d041030a00000000" + "03050600" + "0200" + end
	dvd     = "02010c00d041030a00000000" + "03010800" + "01000000" + end
	vendor  = "04061400" + "000102030405060708090a0b0c0d0e0f" + end
)

func path(t *testing.T, description, nodes string) []byte {
	t.Helper()
	return option(1, description, unhex(t, nodes)...)
}

var loader = Loader{
	Description: "ReAssure", Number: 1, Start: 0x800, Size: 0x100000,
	PartUUID: "cf28e0ab-1f2c-4a7c-9ad2-6a2b7a5a5f01", File: `\EFI\BOOT\BOOTX64.EFI`,
}

// found is what the firmware would find: the boot order by names, and all names.
func found(t *testing.T, v Vars) (order []string, all map[string]int) {
	t.Helper()
	entries, err := v.Entries()
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := v.BootOrder()
	if err != nil {
		t.Fatal(err)
	}
	all = map[string]int{}
	for i, e := range entries {
		all[e.Description]++
		if i < len(numbers) {
			order = append(order, e.Description)
		}
	}
	return order, all
}

func TestInstall(t *testing.T) {
	ours := func(t *testing.T) []byte {
		t.Helper()
		data, err := loader.option()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, c := range []struct {
		name string
		vars map[string][]byte
		gone []string
		want []string // in the boot order
	}{
		{name: "new firmware without an order", want: []string{"ReAssure"}},
		{
			"the disk was first, and started over the network by its menu",
			map[string][]byte{
				"BootOrder": {0, 0, 1, 0, 2, 0, 3, 0}, "BootCurrent": {2, 0},
				"Boot0000": path(t, "Windows", stick), "Boot0001": path(t, "DVD", dvd), "Boot0002": path(t, "PXE", pxe), "Boot0003": path(t, "PXE 2", pxe),
			},
			nil, []string{"PXE", "ReAssure", "Windows", "DVD", "PXE 2"},
		},
		{
			"a card on USB", map[string][]byte{"BootOrder": {0, 0, 1, 0}, "BootCurrent": {1, 0}, "Boot0000": path(t, "DVD", dvd), "Boot0001": path(t, "HTTP", usbHTTP)},
			nil, []string{"HTTP", "ReAssure", "DVD"},
		},
		{
			"a network entry that only its maker understands",
			map[string][]byte{"BootOrder": {0, 0, 1, 0}, "BootCurrent": {1, 0}, "Boot0000": path(t, "DVD", dvd), "Boot0001": path(t, "LAN", vendor)},
			nil, []string{"LAN", "ReAssure", "DVD"},
		},
		{
			"started from a stick: all of the network comes first",
			map[string][]byte{"BootOrder": {0, 0, 1, 0, 2, 0}, "BootCurrent": {0, 0}, "Boot0000": path(t, "stick", stick), "Boot0001": path(t, "PXE", pxe), "Boot0002": path(t, "HTTP", usbHTTP)},
			nil, []string{"PXE", "HTTP", "ReAssure", "stick"},
		},
		{
			"a second reimage, with duplicates, and entries of what was on the disk",
			map[string][]byte{
				"BootOrder": {1, 0, 0, 0, 4, 0, 4, 0, 9, 0}, "BootCurrent": {0, 0},
				"Boot0000": path(t, "PXE", pxe), "Boot0001": unhex(t, debian), "Boot0004": ours(t), "Boot0005": ours(t), "Boot0006": unhex(t, debian),
			},
			[]string{"CF28E0AB-1F2C-4A7C-9AD2-6A2B7A5A5F01"}, []string{"PXE", "ReAssure"},
		},
		{
			"an entry that cannot be read stays", map[string][]byte{"BootOrder": {7, 0, 0, 0}, "BootCurrent": {0, 0}, "Boot0000": path(t, "PXE", pxe), "Boot0007": {1}},
			nil, []string{"PXE", "ReAssure"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := vars(t, c.vars)
			for range 2 { // the second time changes nothing
				if err := v.Install(loader, c.gone); err != nil {
					t.Fatal(err)
				}
				order, all := found(t, v)
				if diff := cmp.Diff(c.want, order); diff != "" {
					t.Errorf("boot order (-want +got):\n%s", diff)
				}
				for name, n := range all {
					if n > 1 {
						t.Errorf("%d entries are named %s", n, name)
					}
				}
			}
			if c.vars["Boot0007"] != nil {
				if n, err := v.BootOrder(); err != nil || n[len(n)-1] != 7 {
					t.Errorf("BootOrder = %v, %v", n, err)
				}
			}
		})
	}
}

// TestOption compares an entry with the one that efibootmgr writes.
func TestOption(t *testing.T) {
	l := loader
	l.Description, l.File = "debian", `\EFI\debian\shimx64.efi`
	got, err := l.option()
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != debian {
		t.Errorf("the entry is\n%x, want\n%s", got, debian)
	}
	l.PartUUID = "1a2b3c4d-02"
	if got, err = l.option(); err != nil {
		t.Fatal(err)
	}
	e, err := parseEntry(got)
	e.PartUUID = strings.TrimSuffix(e.PartUUID, "-01") // the number
	if err != nil || e.PartUUID != "1a2b3c4d" {
		t.Errorf("on an MBR: %+v, %v", e, err)
	}
	l.PartUUID = "?"
	if _, err := l.option(); err == nil {
		t.Error("a partition without an identity got an entry")
	}
}

// TestWornOut has firmware whose memory is full, or that is read-only.
func TestWornOut(t *testing.T) {
	v := vars(t, map[string][]byte{"BootOrder": {0, 0}, "Boot0000": path(t, "PXE", pxe)})
	if os.Getuid() != 0 {
		t.Fatal("mounting takes root: run the tests as root")
	}
	if err := syscall.Mount("tmpfs", v.Dir, "tmpfs", 0, "nr_inodes=3"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(v.Dir, 0)
	for name, data := range map[string][]byte{"BootOrder": {0, 0}, "Boot0000": path(t, "PXE", pxe)} {
		if err := os.WriteFile(v.path(name), append([]byte{7, 0, 0, 0}, data...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Install(loader, nil); err == nil || !strings.Contains(err.Error(), "memory for variables is full") {
		t.Errorf("full: %v", err)
	}
	if err := syscall.Mount("", v.Dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := v.Install(loader, nil); err == nil || !strings.Contains(err.Error(), "does not let its variables be changed") {
		t.Errorf("read-only: %v", err)
	}
	if _, err := os.Stat(filepath.Join(v.Dir, "Boot0001-"+global)); !os.IsNotExist(err) {
		t.Errorf("half an entry is left: %v", err)
	}
	if err := (Vars{Dir: filepath.Join(v.Dir, "none")}).Install(loader, nil); err == nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no variables at all: %v", err)
	}
}
