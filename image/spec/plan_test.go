package spec

import "testing"

func TestPlanSums(t *testing.T) {
	plan := func() *Plan {
		return &Plan{
			Host: "exp01", Profile: "lab", Digest: Sum([]byte("exp01's")), Firmware: BIOS, Table: GPT, DiskID: "a", Mode: ReimageFull, Reason: "why",
			Disk: Disk{Device: "/dev/sda", Serial: "S1", Model: "Lab Disk", Size: GiB, Contents: []Content{{Partition: 1, Kind: "ext4", UUID: "u", Label: "root"}}},
			Partitions: []Placed{
				{Partition: Partition{Name: "data"}, Length: 1, Device: "/dev/sda1", UUID: "d", PartUUID: "p", Kept: true},
				{Partition: Partition{Name: "root"}, Length: 2, Device: "/dev/sda2", UUID: "r", PartUUID: "q"},
			},
			Wads: []Wad{{Name: "a.tar", SHA256: Sum([]byte("a"))}}, Files: []string{"/etc/motd"}, Steps: []string{"one"},
		}
	}
	for _, c := range []struct {
		name        string
		change      func(*Plan)
		same, class bool // whether it is the same plan, and one of the same class
	}{
		{"nothing", func(*Plan) {}, true, true},
		{"identities that are made anew", func(p *Plan) { p.DiskID, p.Partitions[1].UUID, p.Partitions[1].PartUUID = "b", "s", "t" }, true, true},
		{"the kernel's names", func(p *Plan) { p.Disk.Device, p.Partitions[0].Device, p.Partitions[1].Device = "/dev/sdb", "1", "2" }, true, true},
		{"another PC", func(p *Plan) { p.Host, p.Digest, p.Disk.Serial = "exp02", Sum([]byte("exp02's")), "S2" }, false, true},
		{"another file system of the same kind", func(p *Plan) { p.Disk.Contents[0].UUID = "v" }, false, true},
		{"another partition is kept", func(p *Plan) { p.Partitions[0].PartUUID = "x" }, false, true},
		{"something else is lost", func(p *Plan) { p.Disk.Contents[0].Kind = "ntfs" }, false, false},
		{"nothing is kept", func(p *Plan) { p.Partitions[0].Kept = false }, false, false},
		{"another size", func(p *Plan) { p.Partitions[1].Length = 3 }, false, false},
		{"another model", func(p *Plan) { p.Disk.Model = "Other" }, false, false},
		{"another wad", func(p *Plan) { p.Wads[0].SHA256[0]++ }, false, false},
		{"another mode", func(p *Plan) { p.Mode = ReimageDelta }, false, false},
		{"another step", func(p *Plan) { p.Steps[0] = "two" }, false, false},
	} {
		a, b := plan(), plan()
		c.change(b)
		if got := a.Sum() == b.Sum(); got != c.same {
			t.Errorf("%s: the same plan: %v; want %v", c.name, got, c.same)
		}
		if got := a.Class() == b.Class(); got != c.class {
			t.Errorf("%s: of the same class: %v; want %v", c.name, got, c.class)
		}
		if b.Partitions[1].Device == "" || b.Disk.Device == "" {
			t.Errorf("%s: the plan itself was changed", c.name)
		}
	}
}
