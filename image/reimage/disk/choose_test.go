package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"reassure/image/spec"
)

func TestChoose(t *testing.T) {
	yes := true
	sda := spec.Disk{Device: "/dev/sda", Model: "Old Disk", Serial: "A", WWN: "naa.5000", Bus: "ata", Size: 500 * spec.GiB, Rotational: true, ByPath: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"}
	nvme := spec.Disk{Device: "/dev/nvme0n1", Model: "New Disk", Serial: "N", Bus: "nvme", Size: 250 * spec.GiB,
		Contents: []spec.Content{{Partition: 1, Kind: "ntfs", Label: "Windows"}}}
	twin := nvme
	twin.Device, twin.Serial = "/dev/nvme1n1", "N2"
	usb := spec.Disk{Device: "/dev/sdb", Serial: "U", Bus: "usb", Size: 32 * spec.GiB}
	stick := usb
	stick.Device, stick.Removable = "/dev/sdc", true
	member := sda
	member.Contents = []spec.Content{{Kind: "md", Foreign: true}}
	mounted := sda
	mounted.InUse = "the mount at /srv"
	locked := sda
	locked.ReadOnly = true

	for _, c := range []struct {
		name  string
		rule  spec.DiskRule
		disks []spec.Disk
		want  string // device; empty means refused
		says  string
	}{
		{"the only one", spec.DiskRule{}, []spec.Disk{sda}, "/dev/sda", ""},
		{"beside sticks", spec.DiskRule{}, []spec.Disk{usb, sda, stick}, "/dev/sda", ""},
		{"none", spec.DiskRule{}, nil, "", "no disk"},
		{"two", spec.DiskRule{}, []spec.Disk{sda, nvme}, "", "does not say which"},
		{"two, pick only", spec.DiskRule{Pick: "only"}, []spec.Disk{sda, nvme}, "", `serial: "A"`},
		{"smallest", spec.DiskRule{Pick: "smallest"}, []spec.Disk{sda, nvme, usb}, "/dev/nvme0n1", ""},
		{"largest", spec.DiskRule{Pick: "largest"}, []spec.Disk{nvme, sda}, "/dev/sda", ""},
		{"smallest of equals", spec.DiskRule{Pick: "smallest"}, []spec.Disk{nvme, twin}, "", "same size"},
		{"by serial", spec.DiskRule{Serial: "N2"}, []spec.Disk{sda, nvme, twin}, "/dev/nvme1n1", ""},
		{"serial is gone", spec.DiskRule{Serial: "X"}, []spec.Disk{sda}, "", `its serial is not "X"`},
		{"by WWN", spec.DiskRule{WWN: "0x5000"}, []spec.Disk{sda, nvme}, "/dev/sda", ""},
		{"by model", spec.DiskRule{Model: "New*"}, []spec.Disk{sda, nvme}, "/dev/nvme0n1", ""},
		{"by device", spec.DiskRule{Path: "/dev/nvme*"}, []spec.Disk{sda, nvme}, "/dev/nvme0n1", ""},
		{"by path", spec.DiskRule{Path: "*-ata-1"}, []spec.Disk{sda, nvme}, "/dev/sda", ""},
		{"by bus", spec.DiskRule{Bus: "nvme"}, []spec.Disk{sda, nvme}, "/dev/nvme0n1", ""},
		{"by spinning", spec.DiskRule{Rotational: &yes}, []spec.Disk{sda, nvme}, "/dev/sda", ""},
		{"by size", spec.DiskRule{MaxSize: 300 * spec.GiB}, []spec.Disk{sda, nvme}, "/dev/nvme0n1", ""},
		{"by least size", spec.DiskRule{MinSize: 300 * spec.GiB}, []spec.Disk{sda, nvme}, "/dev/sda", ""},
		{"USB only by name", spec.DiskRule{}, []spec.Disk{usb}, "", "no rule names it"},
		{"USB by name", spec.DiskRule{Serial: "U"}, []spec.Disk{usb, sda}, "/dev/sdb", ""},
		{"never removable", spec.DiskRule{Serial: "U"}, []spec.Disk{stick}, "", "removable"},
		{"read-only", spec.DiskRule{}, []spec.Disk{locked}, "", "read-only"},
		{"in use", spec.DiskRule{}, []spec.Disk{mounted}, "", "/srv"},
		{"RAID member", spec.DiskRule{}, []spec.Disk{member}, "", "overwrite: foreign"},
		{"RAID member, told so", spec.DiskRule{Overwrite: "foreign"}, []spec.Disk{member}, "/dev/sda", ""},
		{"too small", spec.DiskRule{}, []spec.Disk{{Device: "/dev/sda", Size: spec.GiB, Bus: "ata"}}, "", "too small"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Choose(c.rule, 8*spec.GiB, c.disks)
			if c.want != "" {
				if err != nil || d.Device != c.want {
					t.Errorf("chose %s, %v; want %s", d.Device, err, c.want)
				}
				return
			}
			var choice *ChoiceError
			if !errors.As(err, &choice) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error is %v; want one with %q", err, c.says)
			}
			for _, d := range c.disks {
				if !strings.Contains(err.Error(), d.Device) {
					t.Errorf("the error does not list %s:\n%v", d.Device, err)
				}
			}
		})
	}
}

func TestPlaceRefuses(t *testing.T) {
	disk := spec.Disk{Device: "/dev/sda", Size: 100 * spec.GiB, LogicalSector: 512}
	native := disk
	native.LogicalSector = 4096
	big := disk
	big.Size = 3 * spec.TiB
	for _, c := range []struct {
		name     string
		firmware spec.Firmware
		table    spec.Table
		disk     spec.Disk
		parts    []spec.Partition
		says     string
	}{
		{"4Kn on BIOS", spec.BIOS, spec.MBR, native, lab(spec.MBR), "4096 bytes"},
		{"GPT on BIOS", spec.BIOS, spec.GPT, disk, lab(spec.MBR), "bios-boot"},
		{"no ESP on UEFI", spec.UEFI, spec.GPT, disk, lab(spec.MBR), "esp"},
		{"an ESP that is not mounted on UEFI", spec.UEFI, spec.GPT, disk, append(lab(spec.MBR), spec.Partition{Name: "efi", Size: spec.Extent{Bytes: spec.MiB}, FileSystem: spec.VFAT, Type: spec.TypeESP}), "mounted at /boot/efi"},
		{"MBR beyond 2 TiB", spec.BIOS, spec.MBR, big, lab(spec.MBR), "use table gpt"},
		{"too small", spec.BIOS, spec.MBR, spec.Disk{Device: "/dev/sda", Size: 200 * spec.MiB, LogicalSector: 512}, lab(spec.MBR), "too small"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Place(c.firmware, c.table, c.parts, c.disk); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v; want one with %q", err, c.says)
			}
		})
	}
	if _, err := Place(spec.UEFI, spec.GPT, lab(spec.GPT), native); err != nil {
		t.Errorf("4Kn on UEFI is refused: %v", err)
	}
}

// TestPlaceAlways lays random layouts out and expects none to overlap, to leave
// the disk, or to be unaligned.
func TestPlaceAlways(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	placedSome := 0
	for range 2000 {
		d := spec.Disk{Device: "/dev/nvme0n1", Size: spec.Size(r.Uint64N(uint64(4*spec.TiB))) / 512 * 512, LogicalSector: 512}
		table := []spec.Table{spec.MBR, spec.GPT}[r.IntN(2)]
		parts := []spec.Partition{{Name: "b", Type: spec.TypeBIOSBoot, Size: spec.Extent{Bytes: 1}}}
		for i := range 1 + r.IntN(3) {
			e := spec.Extent{Bytes: spec.Size(1 + r.Uint64N(uint64(spec.TiB)))}
			switch {
			case i == 0 && r.IntN(2) == 0:
				e = spec.Extent{Rest: true}
			case r.IntN(3) == 0:
				e = spec.Extent{Percent: 1 + 40*r.Float64()}
			}
			parts = append(parts, spec.Partition{Name: fmt.Sprint(i), Size: e})
		}
		placed, err := Place(spec.BIOS, table, parts, d)
		if err != nil {
			continue
		}
		placedSome++
		end := align
		for i, p := range placed {
			if p.Start < end || p.Start%align != 0 || p.Length%align != 0 || p.Length == 0 {
				t.Fatalf("%+v on %v: %+v", parts, d.Size, placed)
			}
			if want := parts[i].Size.Bytes; uint64(want) > p.Length {
				t.Fatalf("%s has %d bytes and asked for %d", p.Name, p.Length, want)
			}
			if p.Device != fmt.Sprintf("/dev/nvme0n1p%d", i+1) {
				t.Fatalf("device %s", p.Device)
			}
			end = p.Start + p.Length
		}
		if room := uint64(d.Size); end > room || (table == spec.GPT && end > room-34*512) {
			t.Fatalf("ends at %d of %d", end, room)
		}
	}
	if placedSome < 200 {
		t.Fatalf("only %d layouts could be placed", placedSome)
	}
}

func TestIdentify(t *testing.T) {
	d := spec.Disk{Device: "/dev/sda", Size: 100 * spec.GiB, LogicalSector: 512}
	for _, table := range []spec.Table{spec.MBR, spec.GPT} {
		placed, err := Place(spec.UEFI, table, lab(spec.GPT), d)
		if err != nil {
			t.Fatal(err)
		}
		random := rand.NewChaCha8([32]byte{7})
		first, err := Identify(placed, table, random)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, p := range placed {
			want := 36
			switch p.FileSystem {
			case spec.VFAT:
				want = 9
			case spec.None:
				want = 0
			}
			if len(p.UUID) != want || seen[p.UUID] || seen[p.PartUUID] || p.PartUUID == "" {
				t.Errorf("%s: UUID %q, PARTUUID %q", p.Name, p.UUID, p.PartUUID)
			}
			seen[p.UUID] = p.UUID != ""
			seen[p.PartUUID] = true
			if table == spec.MBR && p.PartUUID != fmt.Sprintf("%s-%02x", first, p.Number) {
				t.Errorf("%s: PARTUUID %q of disk %s", p.Name, p.PartUUID, first)
			}
		}
		if second, _ := Identify(placed, table, random); second == first {
			t.Error("two installs have the same disk ID")
		}
	}
}
