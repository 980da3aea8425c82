package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/reimage/efivars"
)

// TestFollowing looks for what the firmware starts after an image from the network.
func TestFollowing(t *testing.T) {
	const setUp, off, pxe, http, disk, stick = 0, 1, 2, 3, 4, 5
	network := []byte{3, 12, 4, 0, 0x7f, 0xff, 4, 0} // IPv4
	withPath := func(description string, flags byte, path []byte) []byte {
		b := entry(description, 0, nil)
		b = b[:len(b)-4]
		b[0], b[4] = flags, byte(len(path))
		return append(b, path...)
	}
	for _, c := range []struct {
		name    string
		order   []byte
		current int // negative is none
		want    int
		refuse  string
	}{
		{"the disk", []byte{setUp, pxe, http, disk, stick}, pxe, disk, ""},
		{"the disk, from HTTP", []byte{setUp, pxe, http, disk, stick}, http, disk, ""},
		{"whatever comes next", []byte{pxe, off, stick, disk}, pxe, stick, ""},
		{"the network last, by hand", []byte{disk, stick, pxe}, pxe, disk, ""},
		{"an order without this start", []byte{stick, disk}, pxe, stick, ""},
		{"nothing else", []byte{setUp, pxe, http}, pxe, 0, "none but the network's"},
		{"not in the order", []byte{pxe}, pxe, 0, "none but the network's"},
		{"nobody says", []byte{pxe, disk}, -1, 0, "BootCurrent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vars := efivars.Vars{Dir: t.TempDir()}
			file := func(name string) string {
				return filepath.Join(vars.Dir, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c")
			}
			write := func(name string, data []byte) {
				t.Helper()
				if err := os.WriteFile(file(name), append([]byte{7, 0, 0, 0}, data...), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var order []byte
			for _, n := range c.order {
				order = append(order, n, 0)
			}
			write("BootOrder", order)
			if c.current >= 0 {
				write("BootCurrent", []byte{byte(c.current), 0})
			}
			write("Boot0000", withPath("UiApp", 1|8, []byte{0x7f, 0xff, 4, 0})) // hidden, and without its category in the first byte
			write("Boot0001", withPath("switched off", 0, []byte{0x7f, 0xff, 4, 0}))
			write("Boot0002", withPath("UEFI PXEv4", 1, network))
			write("Boot0003", withPath("UEFI HTTPv4", 1, network))
			write("Boot0004", withPath("UEFI Misc Device", 1, []byte{0x7f, 0xff, 4, 0}))
			write("Boot0005", withPath("UEFI Stick", 1, []byte{0x7f, 0xff, 4, 0}))
			e, err := following(vars)
			if c.refuse != "" {
				if err == nil || !strings.Contains(err.Error(), c.refuse) {
					t.Errorf("error %v, want %q", err, c.refuse)
				}
				if _, err := os.Stat(file("BootNext")); err == nil {
					t.Error("the firmware was told something")
				}
				return
			}
			next, _ := os.ReadFile(file("BootNext"))
			if err != nil || int(e.Number) != c.want || len(next) != 6 || int(next[4]) != c.want {
				t.Errorf("%v, %v, BootNext %x; want entry %d", e, err, next, c.want)
			}
		})
	}
}
