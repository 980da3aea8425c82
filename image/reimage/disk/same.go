package disk

import (
	"fmt"
	"slices"
	"strings"

	"reassure/image/spec"
)

// typeOf is a partition's type as [spec.Existing] has it.
func typeOf(table spec.Table, p spec.Partition) string {
	if table == spec.GPT {
		return strings.ToLower(string(gptTypes[p.Kind()]))
	}
	return fmt.Sprintf("%02x", byte(mbrTypes[p.Kind()]))
}

// ESPs returns the EFI system partitions of a disk.
func ESPs(d spec.Disk) []spec.Existing {
	esp := typeOf(d.Table, spec.Partition{Type: spec.TypeESP})
	return slices.DeleteFunc(slices.Clone(d.Partitions), func(e spec.Existing) bool { return e.Type != esp })
}

// SameTable says, by an error, in what the table on a disk differs from the one
// that a layout would be given. It is a pure function.
func SameTable(placed []spec.Placed, table spec.Table, d spec.Disk) error {
	switch {
	case d.Table == "":
		return fmt.Errorf("%s has no partition table", d.Device)
	case d.Table != table:
		return fmt.Errorf("the partition table of %s is %s, and not %s", d.Device, d.Table, table)
	case len(d.Partitions) != len(placed):
		return fmt.Errorf("%s has %d partitions, and not %d", d.Device, len(d.Partitions), len(placed))
	}
	for i, p := range placed {
		is := d.Partitions[i]
		var what string
		switch {
		case is.Number != p.Number:
			what = "number"
		case is.Start != p.Start:
			what = "place"
		case is.Length != p.Length:
			what = "size"
		case is.Type != typeOf(table, p.Partition):
			what = "type"
		case table == spec.GPT && is.Name != p.Name:
			what = "name"
		default:
			continue
		}
		return fmt.Errorf("partition %d of %s is not %s as it is wanted: its %s differs", is.Number, d.Device, p.Name, what)
	}
	return nil
}

// Adopt gives a layout the identities of the same one on the disk, as
// [SameTable] has found it, and returns the table's. The file systems of the
// kinds in must have the label that they would be given; one of another kind that
// is not there keeps the identity that it has.
func Adopt(placed []spec.Placed, d spec.Disk, must ...string) (diskID string, err error) {
	if strings.Trim(d.ID, "0-") == "" {
		return "", fmt.Errorf("the partition table of %s has no ID", d.Device)
	}
	taken := map[string]string{}
	for i := range placed {
		p := &placed[i]
		p.PartUUID = d.Partitions[i].PartUUID
		if before, ok := taken[p.PartUUID]; ok {
			return "", fmt.Errorf("the partitions %s and %s of %s have the same UUID", before, p.Name, d.Device)
		}
		taken[p.PartUUID] = p.Name
		if p.Kept {
			continue // what it holds is for nobody to judge
		}
		var kinds []string
		for _, c := range d.Contents {
			switch {
			case c.Partition != p.Number:
				continue
			case c.Kind == p.FileSystem && c.Label == p.Label && c.UUID != "":
				p.UUID = c.UUID
			}
			kinds = append(kinds, strings.TrimSpace(c.Kind+" "+c.Label))
		}
		for _, kind := range must {
			if p.FileSystem != kind {
				continue
			}
			if want := strings.TrimSpace(p.FileSystem + " " + p.Label); len(kinds) != 1 || kinds[0] != want {
				return "", fmt.Errorf("partition %s (%s) holds %s, and not %s", p.Name, p.Device, strings.Join(append(kinds, []string{"nothing"}[min(len(kinds), 1):]...), " and "), want)
			}
		}
		if p.UUID == "" {
			continue
		}
		if before, ok := taken[p.UUID]; ok {
			return "", fmt.Errorf("the file systems on %s and %s of %s have the same UUID", before, p.Name, d.Device)
		}
		taken[p.UUID] = p.Name
	}
	return d.ID, nil
}
