package disk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"reassure/image/reimage/mkfs"
	"reassure/image/spec"
)

// withData is a layout with a partition to preserve.
func withData(table spec.Table) []spec.Partition {
	parts := lab(table)
	for i := range parts {
		if parts[i].Mount == "/boot" {
			parts[i].Size = spec.Extent{Bytes: 32 * spec.MiB}
			parts[i].Name, parts[i].Mount, parts[i].Preserve, parts[i].Bootable, parts[i].Label = "data", "/data", true, false, "data"
		}
	}
	return parts
}

// look is what the reimager sees of a disk.
func look(t *testing.T, name string) spec.Disk {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := spec.Disk{Device: name, Size: spec.Size(info.Size()), LogicalSector: 512, PhysicalSector: 512, Bus: "virtio"}
	d.Table, d.Contents = Probe(f, info.Size(), 512)
	_, d.ID, d.Partitions = Table(f, info.Size(), 512)
	d.Uncommitted = Uncommitted(name)
	return d
}

// erase does what comes before the file systems, up to a step.
func erase(t *testing.T, p *spec.Plan, steps int) {
	t.Helper()
	target, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for _, step := range []func() error{target.Uncommit, target.Wipe, func() error { return target.WriteTable(t.Context()) }}[:steps] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func dataOf(p *spec.Plan) *spec.Placed {
	return &p.Partitions[slices.IndexFunc(p.Partitions, func(p spec.Placed) bool { return p.Preserve })]
}

// TestPreserve has a partition stay as it is, byte for byte, in another layout; a power
// cut after any of the steps leaves it where it is found again without a stamp.
func TestPreserve(t *testing.T) {
	for _, table := range []spec.Table{spec.MBR, spec.GPT} {
		for steps := 1; steps <= 3; steps++ {
			name := image(t, 2*spec.GiB)
			first := plan(t, name, table, 512, withData(table))
			erase(t, first, 3)
			data := *dataOf(first)
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			part := &at{f, int64(data.Start)}
			if err := mkfs.Ext4(part, int64(data.Length), mkfs.Options{Label: "data", UUID: data.UUID}); err != nil {
				t.Fatal(err)
			}
			before := make([]byte, data.Length)
			random := rand.NewChaCha8([32]byte{2})
			for _, where := range []int64{2 << 20, int64(data.Length) - 2<<20, int64(data.Length) - 4096} {
				noise := make([]byte, 4096)
				random.Read(noise)
				if _, err := part.WriteAt(noise, where); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := f.ReadAt(before, int64(data.Start)); err != nil {
				t.Fatal(err)
			}
			d := look(t, name)

			// The next layout has two partitions where there was one.
			parts := withData(table)
			last := parts[len(parts)-1]
			parts[len(parts)-1].Size = spec.Extent{Bytes: 512 * spec.MiB}
			last.Name, last.Mount, last.Label = "more", "/srv", "more"
			parts = append(parts, last)
			second := func(d spec.Disk, known map[string]string, ours bool) *spec.Plan {
				placed, err := Place(spec.UEFI, table, parts, d)
				if table == spec.MBR {
					placed, err = Place(spec.BIOS, table, parts, d)
				}
				if err != nil {
					t.Fatal(err)
				}
				id, err := Identify(placed, table, random)
				if err != nil {
					t.Fatal(err)
				}
				same, err := Preserve(placed, table, d, known, ours)
				if err != nil {
					t.Fatal(err)
				}
				if same != "" {
					id = same
				}
				return &spec.Plan{Disk: d, Table: table, DiskID: id, Partitions: placed}
			}
			p := second(d, map[string]string{"data": data.PartUUID}, true)
			if now := dataOf(p); !now.Kept || now.PartUUID != data.PartUUID || now.UUID != data.UUID {
				t.Fatalf("%s: the partition is not known by the stamp: %+v", table, now)
			}
			erase(t, p, steps)
			d = look(t, name)
			if !d.Uncommitted {
				t.Fatalf("%s: after %d steps the disk does not say that it is not whole", table, steps)
			}
			// The stamp is gone.
			p = second(d, nil, d.Uncommitted)
			if now := dataOf(p); !now.Kept || now.PartUUID != data.PartUUID || now.UUID != data.UUID {
				t.Errorf("%s: cut after %d steps the partition is not known: %+v\n%+v", table, steps, now, d)
			}
			erase(t, p, 3)
			after := make([]byte, data.Length)
			if _, err := f.ReadAt(after, int64(data.Start)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Errorf("%s: bytes of what is preserved have changed", table)
			}
			if err := SameTable(p.Partitions, table, look(t, name)); err != nil {
				t.Errorf("%s: %v", table, err)
			}
		}
	}
}

// at is a part of a file.
type at struct {
	f     *os.File
	start int64
}

func (a *at) WriteAt(p []byte, off int64) (int, error) { return a.f.WriteAt(p, a.start+off) }

func TestPreserveRefuses(t *testing.T) {
	name := image(t, 3*spec.GiB)
	for _, c := range []struct {
		name  string
		spoil func(parts []spec.Partition, d *spec.Disk)
		ours  bool
		known string
		kept  bool
		want  string
	}{
		{name: "as it was", ours: true, kept: true},
		{name: "not our disk", kept: false},
		{name: "another name, known by its identity", ours: true, known: "same", kept: true, spoil: func(_ []spec.Partition, d *spec.Disk) { d.Partitions[2].Name = "renamed" }},
		{name: "another name", ours: true, kept: false, spoil: func(_ []spec.Partition, d *spec.Disk) { d.Partitions[2].Name = "renamed" }},
		{name: "removed by somebody", ours: true, known: "gone", kept: false},
		{name: "elsewhere", ours: true, want: "from byte", spoil: func(parts []spec.Partition, _ *spec.Disk) { parts[1].Size = spec.Extent{Bytes: 65 * spec.MiB} }},
		{name: "smaller", ours: true, want: "from byte", spoil: func(parts []spec.Partition, _ *spec.Disk) { parts[2].Size = spec.Extent{Bytes: 31 * spec.MiB} }},
		{name: "two of that name", ours: true, want: "could both be it", spoil: func(_ []spec.Partition, d *spec.Disk) { d.Partitions[3].Name = "data" }},
		{name: "other content", ours: true, want: "holds xfs", spoil: func(_ []spec.Partition, d *spec.Disk) { d.Contents[0].Kind = "xfs" }},
		{name: "no content", ours: true, want: "nothing that is known", spoil: func(_ []spec.Partition, d *spec.Disk) { d.Contents = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			parts := withData(spec.GPT)
			was := plan(t, name, spec.GPT, 512, parts)
			d := was.Disk
			d.Table, d.ID = spec.GPT, was.DiskID
			for _, p := range was.Partitions {
				d.Partitions = append(d.Partitions, spec.Existing{Number: p.Number, Start: p.Start, Length: p.Length, Name: p.Name, PartUUID: p.PartUUID, Type: typeOf(spec.GPT, p.Partition)})
			}
			d.Contents = []spec.Content{{Partition: 3, Kind: spec.Ext4, Label: "data", UUID: "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10"}}
			if c.spoil != nil {
				c.spoil(parts, &d)
			}
			placed, err := Place(spec.UEFI, spec.GPT, parts, d)
			if err != nil {
				t.Fatal(err)
			}
			known := map[string]string{"same": was.Partitions[2].PartUUID, "gone": "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a11", "": ""}[c.known]
			_, err = Preserve(placed, spec.GPT, d, map[string]string{"data": known}, c.ours)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("the error is %v; want one with %q", err, c.want)
				}
				return
			}
			if err != nil || placed[2].Kept != c.kept {
				t.Errorf("kept: %v, %v; want %v", placed[2].Kept, err, c.kept)
			}
		})
	}
}
