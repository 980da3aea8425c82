package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func bothKinds() (Table, []Partition) {
	return TableAuto, []Partition{
		{Name: "efi", Size: Extent{Bytes: 64 * MiB}, FileSystem: VFAT, Type: TypeESP, Mount: "/boot/efi", Firmware: UEFI},
		{Name: "root", Size: Extent{Rest: true}, FileSystem: Ext4, Mount: "/"},
	}
}

// TestManifestFor: one profile is two layouts, and two fstabs.
func TestManifestFor(t *testing.T) {
	m := &Manifest{Host: "exp01", Files: []File{
		{Path: "/etc/fstab", Content: "UUID=@reassure:uuid:root@ /\nUUID=@reassure:uuid:efi@ /boot/efi vfat\n# @reassure:uuid:none@\nlast"},
		{Path: "/etc/hostname", Content: "exp01\n"},
	}}
	m.Table, m.Partitions = bothKinds()
	for _, c := range []struct {
		firmware Firmware
		more     []Partition
		table    Table
		names    string
		fstab    string
	}{
		{UEFI, nil, GPT, "efi root", m.Files[0].Content},
		{BIOS, nil, MBR, "root", "UUID=@reassure:uuid:root@ /\n# @reassure:uuid:none@\nlast"},
		{
			BIOS, []Partition{{Name: "bios", FileSystem: None, Type: TypeBIOSBoot, Firmware: BIOS}}, GPT, "root bios",
			"UUID=@reassure:uuid:root@ /\n# @reassure:uuid:none@\nlast",
		},
	} {
		whole := *m
		whole.Partitions = append(m.Partitions[:2:2], c.more...)
		of := whole.For(c.firmware)
		var names []string
		for _, p := range of.Partitions {
			names = append(names, p.Name)
		}
		if of.Table != c.table || strings.Join(names, " ") != c.names {
			t.Errorf("%s: table %s with %v, want %s with %s", c.firmware, of.Table, names, c.table, c.names)
		}
		if diff := cmp.Diff([]string{c.fstab, "exp01\n"}, []string{of.Files[0].Content, of.Files[1].Content}); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", c.firmware, diff)
		}
		if m.Files[0].Content == of.Files[0].Content && c.firmware == BIOS || len(m.Partitions) != 2 {
			t.Errorf("%s: the manifest itself was changed", c.firmware)
		}
	}
}

// TestValidateBothKinds: what is wrong for PCs of one kind is told, and of which.
func TestValidateBothKinds(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(table *Table, parts *[]Partition)
		want   string
	}{
		{"right", func(*Table, *[]Partition) {}, ""},
		{"two roots, one for each kind", func(_ *Table, p *[]Partition) {
			(*p)[1].Firmware = UEFI
			*p = append(*p, Partition{Name: "root", Size: Extent{Rest: true}, FileSystem: XFS, Mount: "/", Firmware: BIOS})
		}, ""},
		{"no root for one", func(_ *Table, p *[]Partition) { (*p)[1].Firmware = UEFI }, "on a PC with a BIOS, none is mounted at /"},
		{"too many for an MBR", func(_ *Table, p *[]Partition) {
			for _, name := range []string{"a", "b", "c", "d"} {
				*p = append(*p, Partition{Name: name, Size: Extent{Bytes: MiB}, FileSystem: None})
			}
		}, "on a PC with a BIOS, an MBR holds four"},
		{"firmware that is none", func(_ *Table, p *[]Partition) { (*p)[0].Firmware = "efi" }, `"efi": write one of bios, uefi`},
		{"an ESP of ext4", func(_ *Table, p *[]Partition) { (*p)[0].FileSystem = Ext4 }, "reads vfat only"},
		{"a table that is none", func(table *Table, _ *[]Partition) { *table = "apm" }, "write one of auto, mbr, gpt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, parts := bothKinds()
			c.change(&table, &parts)
			err := validateLayout(DiskRule{}, table, parts).Err()
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one of %q", err, c.want)
			}
		})
	}
}
