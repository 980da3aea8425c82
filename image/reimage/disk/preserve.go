package disk

import (
	"fmt"
	"os"
	"strings"

	"reassure/image/spec"
)

// Preserve marks those partitions of a layout that are to be preserved and are on
// the disk already, gives them the identity that they have, and returns the ID
// that the table must keep for that, or "". It is a pure function.
//
// A partition is known by its identity and never by its place in a list: by the
// PartUUID that known, the stamp's record, has for its name. Where a reimage was cut
// and there is no stamp any more, or where it had none of it, and the disk is ours,
// it is known by its name in a GPT, and on an MBR by kind and label of its file system.
// What is known but not where the layout has its place is refused: nothing moves it.
func Preserve(placed []spec.Placed, table spec.Table, d spec.Disk, known map[string]string, ours bool) (diskID string, err error) {
	for i := range placed {
		p := &placed[i]
		if !p.Preserve || d.Table != table {
			continue
		}
		is, err := identify(p, table, d, known, ours)
		if err != nil {
			return "", err
		}
		if is == nil {
			continue
		}
		switch {
		case is.Start != p.Start || is.Length != p.Length:
			return "", fmt.Errorf("partition %s is to be preserved, and on %s it has %s from byte %d on; this layout has it with %s from byte %d on: give the partitions before it the sizes that they have, or leave preserve out, and it is made anew",
				p.Name, d.Device, spec.Size(is.Length), is.Start, spec.Size(p.Length), p.Start)
		case is.Type != typeOf(table, p.Partition):
			return "", fmt.Errorf("partition %s is to be preserved, and has type %s on %s instead of %s: name its type, or leave preserve out, and it is made anew", p.Name, is.Type, d.Device, typeOf(table, p.Partition))
		case table == spec.MBR && is.Number != p.Number:
			return "", fmt.Errorf("partition %s is to be preserved, and has number %d on %s; this layout has it as number %d: put it in that place of the list, or leave preserve out, and it is made anew", p.Name, is.Number, d.Device, p.Number)
		}
		if p.FileSystem != spec.None {
			id, kinds := "", []string{}
			for _, c := range d.Contents {
				if c.Partition == is.Number {
					kinds = append(kinds, c.Kind)
					if c.Kind == p.FileSystem {
						id = c.UUID
					}
				}
			}
			if id == "" {
				return "", fmt.Errorf("partition %s is to be preserved, and holds %s on %s instead of %s: name the file system that it has, or leave preserve out, and it is made anew",
					p.Name, strings.Join(append(kinds, []string{"nothing that is known"}[min(1, len(kinds)):]...), " and "), d.Device, p.FileSystem)
			}
			p.UUID = id
		}
		p.Kept, p.PartUUID = true, is.PartUUID
		if table == spec.MBR {
			diskID = d.ID
		}
	}
	// On an MBR a partition's identity is made of the table's.
	if diskID != "" {
		for i := range placed {
			placed[i].PartUUID = fmt.Sprintf("%s-%02x", diskID, placed[i].Number)
		}
	}
	return diskID, nil
}

// identify finds a partition on the disk; nil is none.
func identify(p *spec.Placed, table spec.Table, d spec.Disk, known map[string]string, ours bool) (*spec.Existing, error) {
	if id := known[p.Name]; id != "" {
		for i := range d.Partitions {
			if d.Partitions[i].PartUUID == id {
				return &d.Partitions[i], nil
			}
		}
		return nil, nil // somebody has removed it
	}
	if !ours {
		return nil, nil
	}
	var found *spec.Existing
	for i := range d.Partitions {
		is := &d.Partitions[i]
		same := table == spec.GPT && is.Name == p.Name
		if table == spec.MBR {
			for _, c := range d.Contents {
				same = same || c.Partition == is.Number && c.Kind == p.FileSystem && c.Label == p.Label && p.Label != ""
			}
		}
		if !same {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("partition %s is to be preserved, and the partitions %d and %d of %s could both be it: rename one of them", p.Name, found.Number, is.Number, d.Device)
		}
		found = is
	}
	return found, nil
}

// kept are the spans of the disk that must stay as they are.
func (t *Target) kept() []span {
	var all []span
	for _, p := range t.plan.Partitions {
		if p.Kept {
			all = append(all, span{int64(p.Start), int64(p.Length)})
		}
	}
	if len(all) > 0 {
		// What names them, until WriteTable puts the new one in its place: a power
		// cut in between would lose them. A GPT is at both ends.
		all = append(all, span{0, int64(align)}, span{t.size - int64(gptBackup), int64(gptBackup)})
	}
	return all
}

// span is a stretch of the disk, in bytes.
type span struct{ start, length int64 }

// without returns what is left of s without all of others.
func (s span) without(others []span) []span {
	left := []span{s}
	for _, o := range others {
		var next []span
		for _, l := range left {
			end := l.start + l.length
			if before := min(end, o.start) - l.start; before > 0 {
				next = append(next, span{l.start, before})
			}
			if from := max(l.start, o.start+o.length); from < end {
				next = append(next, span{from, end - from})
			}
		}
		left = next
	}
	return left
}

// Uncommitted says whether a disk's LBA 0 holds the stub: a reimage of ours has begun
// there, and has not finished for a BIOS.
func Uncommitted(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	code := make([]byte, bootCode)
	if _, err := f.ReadAt(code, 0); err != nil {
		return false
	}
	return string(code) == string(stub())
}
