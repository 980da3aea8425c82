package spec

import (
	"fmt"
	"slices"
	"strings"
)

// on says whether a PC with this firmware has the partition; empty is any.
func (p Partition) on(firmware Firmware) bool {
	return p.Firmware == "" || firmware == "" || p.Firmware == firmware
}

// tableFor is the partition table that a PC with this firmware gets. UEFI boots
// from a GPT, and a BIOS does if GRUB has a partition there for its core.
func tableFor(table Table, parts []Partition, firmware Firmware) Table {
	if table != TableAuto {
		return table
	}
	if firmware == UEFI || slices.ContainsFunc(parts, func(p Partition) bool { return p.on(firmware) && p.Kind() == TypeBIOSBoot }) {
		return GPT
	}
	return MBR
}

// For returns the manifest as it is for a PC with this firmware: with the table
// and the partitions that such a PC has. Of files, lines go that hold a token of a
// partition that it does not have: one template of /etc/fstab is right for both.
func (m *Manifest) For(firmware Firmware) *Manifest {
	of := *m
	of.Table = tableFor(m.Table, m.Partitions, firmware)
	of.Partitions = slices.DeleteFunc(slices.Clone(m.Partitions), func(p Partition) bool { return !p.on(firmware) })
	missing := func(kind, name string) (string, error) {
		named := func(p Partition) bool { return p.Name == name }
		if slices.ContainsFunc(m.Partitions, named) && !slices.ContainsFunc(of.Partitions, named) {
			return "", fmt.Errorf("partition %s is not on PCs with %s", name, firmware)
		}
		return "", nil
	}
	of.Files = slices.Clone(m.Files)
	for i := range of.Files {
		if _, err := ExpandTokens(of.Files[i].Content, missing); err == nil {
			continue
		}
		var kept strings.Builder
		for line := range strings.Lines(of.Files[i].Content) {
			if _, err := ExpandTokens(line, missing); err == nil {
				kept.WriteString(line)
			}
		}
		of.Files[i].Content = kept.String()
	}
	return &of
}
