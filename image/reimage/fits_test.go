package reimage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/spec"
)

// TestFits has a wad be too large for one of its partitions.
func TestFits(t *testing.T) {
	site, folder := newWadSite(t), t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"boot/kernel": 3 << 20, "file": 5 << 20} {
		if err := os.WriteFile(filepath.Join(folder, name), bytes.Repeat([]byte("x"), size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Another name takes no room.
	if err := os.Link(filepath.Join(folder, "file"), filepath.Join(folder, "same")); err != nil {
		t.Fatal(err)
	}
	site.pack("a.tar.zst", folder)
	w := openedWad{Wad: spec.Wad{Name: "a.tar.zst", Mount: "/"}, indexed: site.open("a.tar.zst", "/", false).Remote}
	below := w
	below.Mount = "/data"
	for _, c := range []struct {
		name             string
		wad              openedWad
		root, boot, data spec.Size
		want             string
	}{
		{"fits", w, 5 * spec.MiB, 3 * spec.MiB, 0, ""},
		{"no room on the root", w, 5*spec.MiB - 1, 3 * spec.MiB, 0, "has 5.00 MiB for partition root, which has"},
		{"no room on another", w, 50 * spec.MiB, 2 * spec.MiB, 0, "has 3.00 MiB for partition boot, which has 2.00 MiB"},
		{"mounted elsewhere", below, 1 * spec.MiB, 1 * spec.MiB, 8 * spec.MiB, ""},
		{"mounted elsewhere, without room", below, 50 * spec.MiB, 50 * spec.MiB, 7 * spec.MiB, "for partition data"},
		{"plain, of which nobody knows", openedWad{}, 1, 1, 1, ""},
	} {
		plan := &spec.Plan{Partitions: []spec.Placed{
			{Partition: spec.Partition{Name: "boot", Mount: "/boot"}, Length: uint64(c.boot)}, {Partition: spec.Partition{Name: "root", Mount: "/"}, Length: uint64(c.root)},
			{Partition: spec.Partition{Name: "data", Mount: "/data"}, Length: uint64(c.data)}, {Partition: spec.Partition{Name: "swap"}},
		}}
		err := fits(plan, []openedWad{c.wad})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v; want %q", c.name, err, c.want)
		}
	}
}
