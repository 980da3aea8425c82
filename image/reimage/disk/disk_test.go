package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/spec"
)

// image makes a sparse file of that size and returns its path.
func image(t *testing.T, size spec.Size) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, int64(size)); err != nil {
		t.Fatal(err)
	}
	return name
}

// tool runs a program of Debian that judges what we made.
func tool(t *testing.T, debian, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: install the Debian package %s", name, debian)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func lab(table spec.Table) []spec.Partition {
	parts := []spec.Partition{
		{Name: "boot", Size: spec.Extent{Bytes: 256 * spec.MiB}, FileSystem: spec.Ext4, Mount: "/boot", Bootable: true},
		{Name: "swap", Size: spec.Extent{Percent: 10}, FileSystem: spec.Swap},
		{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Mount: "/"},
	}
	if table == spec.GPT {
		parts = append([]spec.Partition{
			{Name: "bios", Size: spec.Extent{Bytes: spec.MiB}, FileSystem: spec.None, Type: spec.TypeBIOSBoot},
			{Name: "esp", Size: spec.Extent{Bytes: 64 * spec.MiB}, FileSystem: spec.VFAT, Type: spec.TypeESP, Mount: "/boot/efi"},
		}, parts...)
	}
	return parts
}

// plan makes a plan for a file.
func plan(t *testing.T, name string, table spec.Table, sector int, parts []spec.Partition) *spec.Plan {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	d := spec.Disk{Device: name, Size: spec.Size(info.Size()), LogicalSector: sector, PhysicalSector: sector, Bus: "virtio"}
	placed, err := Place(spec.UEFI, table, parts, d)
	if table == spec.MBR {
		placed, err = Place(spec.BIOS, table, parts, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(placed, table, rand.NewChaCha8([32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	return &spec.Plan{Disk: d, Table: table, DiskID: id, Partitions: placed}
}

// write does to a file what a reimage does, up to the table.
func write(t *testing.T, p *spec.Plan) {
	t.Helper()
	target, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for _, do := range []func() error{target.Uncommit, target.Wipe, func() error { return target.WriteTable(context.Background()) }, target.Close} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTables(t *testing.T) {
	for _, c := range []struct {
		table  spec.Table
		sector int
		size   spec.Size
	}{
		{spec.MBR, 512, spec.GiB},
		{spec.MBR, 512, 2*spec.TiB - spec.MiB},
		{spec.GPT, 512, spec.GiB},
		{spec.GPT, 512, spec.GiB + 12345*512},
		{spec.GPT, 512, 3 * spec.TiB},
		{spec.GPT, 4096, 2 * spec.GiB},
		{spec.GPT, 4096, 10 * spec.TiB},
	} {
		t.Run(fmt.Sprintf("%s/%d/%v", c.table, c.sector, c.size), func(t *testing.T) {
			name := image(t, c.size)
			p := plan(t, name, c.table, c.sector, lab(c.table))
			write(t, p)

			var judged struct {
				PartitionTable struct {
					Label, ID  string
					SectorSize int
					Partitions []struct {
						Start, Size uint64
						Type, UUID  string
						Name        string
						Bootable    bool
					}
				}
			}
			// sfdisk takes the sector size from the device only.
			seen := name
			if c.sector != 512 {
				seen = strings.TrimSpace(tool(t, "mount", "losetup", "--find", "--show", "--read-only", "--sector-size", fmt.Sprint(c.sector), name))
				t.Cleanup(func() { tool(t, "mount", "losetup", "--detach", seen) })
			}
			if err := json.Unmarshal([]byte(tool(t, "fdisk", "sfdisk", "--json", seen)), &judged); err != nil {
				t.Fatal(err)
			}
			got := judged.PartitionTable
			if len(got.Partitions) != len(p.Partitions) {
				t.Fatalf("sfdisk sees %d partitions, not %d", len(got.Partitions), len(p.Partitions))
			}
			for i, g := range got.Partitions {
				w := p.Partitions[i]
				if g.Start*uint64(c.sector) != w.Start || g.Size*uint64(c.sector) != w.Length {
					t.Errorf("%s is at %d with %d sectors; want bytes %d, %d", w.Name, g.Start, g.Size, w.Start, w.Length)
				}
				if c.table == spec.GPT && (g.Name != w.Name || !strings.EqualFold(g.UUID, w.PartUUID)) {
					t.Errorf("%s has name %q and UUID %s", w.Name, g.Name, g.UUID)
				}
				if c.table == spec.MBR && g.Bootable != w.Bootable {
					t.Errorf("%s: bootable is %v", w.Name, g.Bootable)
				}
			}
			if id := strings.TrimPrefix(strings.ToLower(got.ID), "0x"); id != p.DiskID {
				t.Errorf("the disk's ID is %s, not %s", id, p.DiskID)
			}
			if out := tool(t, "fdisk", "sfdisk", "--verify", seen); !strings.Contains(out, "No errors detected") {
				t.Errorf("sfdisk --verify: %s", out)
			}
			if c.table == spec.GPT && c.sector == 512 {
				if out := tool(t, "gdisk", "sgdisk", "-v", name); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v: %s", out)
				}
			}
			// Our own eyes see the same, and the disk does not count as committed.
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if table, _ := Probe(f, int64(c.size), int64(c.sector)); table != c.table {
				t.Errorf("Probe sees table %q", table)
			}
			for i, e := range partitions(f, int64(c.size), int64(c.sector)) {
				if w := p.Partitions[i]; uint64(e.start) != w.Start || uint64(e.length) != w.Length || e.number != w.Number {
					t.Errorf("we see %+v for %s", e, w.Name)
				}
			}
			if whole, err := Committed(name); whole || err != nil {
				t.Errorf("committed: %v, %v", whole, err)
			}
		})
	}
}

// TestStaleTables lays each kind of table over each other kind.
func TestStaleTables(t *testing.T) {
	name := image(t, 2*spec.GiB)
	for _, table := range []spec.Table{spec.GPT, spec.MBR, spec.MBR, spec.GPT, spec.GPT} {
		write(t, plan(t, name, table, 512, lab(table)))
		want := "dos"
		if table == spec.GPT {
			want = "gpt"
		}
		if out := tool(t, "fdisk", "sfdisk", "--dump", name); !strings.Contains(out, "label: "+want) {
			t.Errorf("want %s:\n%s", want, out)
		}
		if out := tool(t, "util-linux", "wipefs", "--noheadings", "--output", "TYPE", name); strings.TrimSpace(strings.ReplaceAll(out, "PMBR", "")) != "" &&
			strings.Contains(out, "gpt") != (table == spec.GPT) {
			t.Errorf("after %s wipefs sees %q", table, out)
		}
	}
}

// TestWipe puts file systems where the old and the new partitions are and
// expects blkid to see none of them afterwards.
func TestWipe(t *testing.T) {
	name := image(t, 2*spec.GiB)
	old := plan(t, name, spec.MBR, 512, []spec.Partition{
		{Name: "a", Size: spec.Extent{Bytes: 300 * spec.MiB}, FileSystem: spec.Ext4, Mount: "/"},
		{Name: "b", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Mount: "/b"},
	})
	write(t, old)
	for _, p := range old.Partitions {
		tool(t, "e2fsprogs", "mke2fs", "-q", "-F", "-t", "ext4", "-E", fmt.Sprintf("offset=%d", p.Start), name, fmt.Sprintf("%dk", p.Length/1024))
	}
	fresh := plan(t, name, spec.MBR, 512, lab(spec.MBR))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// A swap signature where the new root will begin, inside the old "b".
	if _, err := f.WriteAt([]byte("SWAPSPACE2"), int64(fresh.Partitions[2].Start)+4086); err != nil {
		t.Fatal(err)
	}
	if _, contents := Probe(f, int64(2*spec.GiB), 512); len(contents) != 2 {
		t.Fatalf("before: %+v", contents)
	}
	write(t, fresh)
	if _, contents := Probe(f, int64(2*spec.GiB), 512); len(contents) != 0 {
		t.Errorf("after: %+v", contents)
	}
	for _, p := range append(old.Partitions, fresh.Partitions...) {
		out, _ := exec.Command("blkid", "-p", "-O", fmt.Sprint(p.Start), "-S", fmt.Sprint(p.Length), name).Output()
		if strings.Contains(string(out), " TYPE=") {
			t.Errorf("at %d blkid sees %s", p.Start, out)
		}
	}
}

func TestWipeWritesLittle(t *testing.T) {
	name := image(t, 2*spec.TiB-spec.MiB)
	write(t, plan(t, name, spec.MBR, 512, lab(spec.MBR)))
	out := tool(t, "coreutils", "du", "--block-size=1M", name)
	var mib int
	if _, err := fmt.Sscan(out, &mib); err != nil || mib > 32 {
		t.Errorf("a disk of 2 TiB took %s of writing", out)
	}
}

func TestUncommitHidesESP(t *testing.T) {
	name := image(t, 2*spec.GiB)
	p := plan(t, name, spec.GPT, 512, lab(spec.GPT))
	write(t, p)
	esp := p.Partitions[1]
	tool(t, "dosfstools", "mkfs.fat", "-F", "32", "--offset", fmt.Sprint(esp.Start/512), name, fmt.Sprint(esp.Length/1024))
	blkid := func() string {
		out, _ := exec.Command("blkid", "-p", "-O", fmt.Sprint(esp.Start), "-S", fmt.Sprint(esp.Length), name).Output()
		return string(out)
	}
	if !strings.Contains(blkid(), "vfat") {
		t.Fatalf("there is no ESP to begin with: %s", blkid())
	}
	target, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := target.Uncommit(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(blkid(), "vfat") {
		t.Errorf("the firmware would still find a loader: %s", blkid())
	}
	// In a FAT that is no ESP, too, unless it is to be preserved.
	root := &p.Partitions[len(p.Partitions)-1]
	tool(t, "dosfstools", "mkfs.fat", "-F", "32", "--offset", fmt.Sprint(root.Start/512), name, fmt.Sprint(root.Length/1024))
	esp = *root
	for _, root.Kept = range []bool{true, false} {
		if err := target.Uncommit(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(blkid(), "vfat") != root.Kept {
			t.Errorf("a FAT that is kept: %v, and now there is %q", root.Kept, blkid())
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	name := image(t, spec.GiB)
	p := plan(t, name, spec.MBR, 512, lab(spec.MBR))
	p.Disk.Size -= 512
	if _, err := Open(p); err == nil || !strings.Contains(err.Error(), "when the plan was made") {
		t.Errorf("another disk: %v", err)
	}
	gone := *p
	gone.Disk.Device = name + ".gone"
	if _, err := Open(&gone); err == nil {
		t.Error("opened a disk that is not there")
	}
	if _, err := os.Stat(gone.Disk.Device); err == nil {
		t.Error("made a disk that was not there")
	}
	p.Disk.Size += 512
	p.Partitions[1].Start -= align
	target, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := target.WriteTable(context.Background()); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("overlapping partitions: %v", err)
	}
}

func TestCommit(t *testing.T) {
	for _, table := range []spec.Table{spec.MBR, spec.GPT} {
		name := image(t, 2*spec.GiB)
		p := plan(t, name, table, 512, lab(table))
		write(t, p)
		boot, core := make([]byte, 512), bytes.Repeat([]byte{0xc0, 0xde}, 20000)
		copy(boot, []byte{0xeb, 0x63})
		boot[510], boot[511] = 0x55, 0xaa
		target, err := Open(p)
		if err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string][2][]byte{
			"no boot.img":        {nil, core},
			"unsigned boot.img":  {make([]byte, 512), core},
			"no core.img":        {boot, nil},
			"core.img too large": {boot, make([]byte, spec.MiB)},
		} {
			if err := target.Commit(bad[0], bad[1]); err == nil && !(table == spec.GPT && name == "core.img too large") {
				t.Errorf("%s was committed", name)
			}
		}
		if table == spec.MBR {
			if whole, _ := Committed(name); whole {
				t.Error("a failed commit counts")
			}
		}
		if err := target.Commit(boot, core); err != nil {
			t.Fatal(err)
		}
		if err := target.Close(); err != nil {
			t.Fatal(err)
		}
		if whole, err := Committed(name); !whole || err != nil {
			t.Errorf("%s: committed: %v, %v", table, whole, err)
		}
		if out := tool(t, "fdisk", "sfdisk", "--verify", name); !strings.Contains(out, "No errors") {
			t.Errorf("the table did not survive: %s", out)
		}
	}
}

func TestProbe(t *testing.T) {
	const size = 300 << 20
	for _, c := range []struct {
		kind, debian string
		make         []string
		label        string
	}{
		{"ext4", "e2fsprogs", []string{"mke2fs", "-q", "-F", "-t", "ext4", "-L", "lab"}, "lab"},
		{"ext3", "e2fsprogs", []string{"mke2fs", "-q", "-F", "-t", "ext3", "-L", "lab"}, "lab"},
		{"ext2", "e2fsprogs", []string{"mke2fs", "-q", "-F", "-t", "ext2", "-L", "lab"}, "lab"},
		{"vfat", "dosfstools", []string{"mkfs.fat", "-F", "32", "-n", "LAB"}, "LAB"},
		{"vfat", "dosfstools", []string{"mkfs.fat", "-F", "16"}, ""},
		{"swap", "util-linux", []string{"mkswap", "-L", "lab"}, "lab"},
	} {
		t.Run(strings.Join(c.make, " "), func(t *testing.T) {
			name := image(t, size)
			tool(t, c.debian, c.make[0], append(c.make[1:], name)...)
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			table, contents := Probe(f, size, 512)
			if table != "" || len(contents) != 1 || contents[0].Kind != c.kind || contents[0].Label != c.label || contents[0].Foreign {
				t.Fatalf("table %q, contents %+v", table, contents)
			}
			want := strings.TrimSpace(tool(t, "util-linux", "blkid", "-p", "-s", "UUID", "-o", "value", name))
			if contents[0].UUID != want {
				t.Errorf("UUID %s; blkid says %s", contents[0].UUID, want)
			}
		})
	}
	for kind, put := range map[string]struct {
		at    int64
		magic string
	}{
		"md":        {4096, "\xfc\x4e\x2b\xa9"},
		"lvm2":      {512, "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00abcdefghLVM2 001"},
		"luks":      {0, "LUKS\xba\xbe\x00\x02"},
		"zfs":       {128 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
		"bcache":    {4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
		"vmfs":      {1 << 20, "\x0d\xd0\x01\xc0"},
		"ceph":      {0, "bluestore block device\n"},
		"isw raid":  {size - 1024, "Intel Raid ISM Cfg Sig. 1.3.00"},
		"ddf raid":  {size - 512, "\xde\x11\xde\x11"},
		"bitlocker": {0, "\xeb\x58\x90-FVE-FS-" + strings.Repeat("\x00", 499) + "\x55\xaa"},
	} {
		t.Run(kind, func(t *testing.T) {
			name := image(t, size)
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(put.magic), put.at); err != nil {
				t.Fatal(err)
			}
			_, contents := Probe(f, size, 512)
			if len(contents) != 1 || contents[0].Kind != kind || !contents[0].Foreign {
				t.Errorf("contents %+v", contents)
			}
		})
	}
}

func FuzzProbe(f *testing.F) {
	small := make([]byte, 64<<10)
	copy(small[510:], "\x55\xaa")
	f.Add(append([]byte(nil), small...), 512)
	small[446+4], small[446+8] = 0x05, 1
	f.Add(append([]byte(nil), small...), 512)
	small[446+4] = 0xee
	copy(small[512:], "EFI PART")
	f.Add(small, 4096)
	f.Fuzz(func(t *testing.T, data []byte, sector int) {
		_, contents := Probe(bytes.NewReader(data), int64(len(data)), int64(sector))
		for _, c := range contents {
			if c.Start > uint64(len(data)) || strings.ContainsAny(c.Label, "\x1b\n\x00") {
				t.Errorf("%+v", c)
			}
		}
	})
}

// What has no signature is data all the same: a volume encrypted without a header, say.
func TestHasData(t *testing.T) {
	const size = 4 << 20
	for _, c := range []struct {
		name string
		at   int64 // where a byte is put; -1 is nowhere
		fill byte
		want bool
	}{
		{"zeros", -1, 0, false},
		{"ones, as erased flash", -1, 0xff, false},
		{"all the same, but neither", -1, 0x55, true},
		{"a byte at the start", 0, 0, true},
		{"a byte in the first MiB", 700_000, 0, true},
		{"a byte at the end", size - 1, 0, true},
		{"a byte in erased flash", 5, 0xff, true},
	} {
		disk := bytes.Repeat([]byte{c.fill}, size)
		if c.at >= 0 {
			disk[c.at] ^= 1
		}
		if got := hasData(bytes.NewReader(disk), size); got != c.want {
			t.Errorf("%s: %v; want %v", c.name, got, c.want)
		}
	}
	if !hasData(bytes.NewReader(nil), size) {
		t.Error("a disk that cannot be read is taken for blank")
	}
}
