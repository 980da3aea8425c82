package reimage

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"encoding/json"

	"github.com/google/go-cmp/cmp"

	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
	"reassure/image/stamp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func manifest() *spec.Manifest {
	return &spec.Manifest{
		Schema: spec.ManifestSchema, Host: "exp01", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}}, Profile: "lab",
		Serial: 1000, Digest: spec.Sum([]byte("software")), Table: spec.MBR,
		Partitions: []spec.Partition{
			{Name: "boot", Size: spec.Extent{Bytes: 256 * spec.MiB}, FileSystem: spec.Ext4, Label: "boot", Mount: "/boot", Bootable: true},
			{Name: "swap", Size: spec.Extent{Percent: 10}, FileSystem: spec.Swap},
			{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Label: "root", Mount: "/"},
		},
		Wads: []spec.Wad{{Name: "wad.tar", URLs: []string{"wads/wad.tar"}, Size: 400 * spec.MiB, SHA256: spec.Sum([]byte("wad")), Mount: "/"}},
		Files: []spec.File{{Path: "/etc/fstab", Mode: 0o644,
			Content: "UUID=" + spec.Token(spec.TokenUUID, "root") + " / ext4 defaults 0 1\n" + spec.Token(spec.TokenDevice, "swap") + " none swap sw 0 0\n"}},
		Steps: []spec.Step{{Name: "note", Run: &spec.Run{Command: []string{"echo", spec.Token(spec.TokenDisk, "")}}}},
	}
}

func target() spec.Disk {
	return spec.Disk{Device: "/dev/nvme0n1", Model: "Lab Disk", Serial: "S1", Bus: "nvme", Size: 8 * spec.GiB, LogicalSector: 512, PhysicalSector: 512,
		Contents: []spec.Content{{Partition: 1, Kind: "ntfs", Label: "Windows"}}}
}

// fixed is a source of "random" bytes that is the same in every run.
func fixed() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

func TestDecide(t *testing.T) {
	m := manifest()
	installed := func(spoil func(*Installed)) *Installed {
		i := &Installed{Disk: target(), Partition: 3, Whole: true,
			Stamp: stamp.New(m)}
		if spoil != nil {
			spoil(i)
		}
		return i
	}
	for _, c := range []struct {
		name       string
		order      string
		supersedes int64
		force      bool
		found      *Installed
		keep       bool
		reason     string
		refused    string
	}{
		{name: "blank disk", reason: "no system of ours"},
		{name: "up to date", found: installed(nil), keep: true, reason: "already up to date"},
		{name: "newer manifest, same software", found: installed(func(i *Installed) { i.Stamp.Serial-- }), keep: true, reason: "already up to date"},
		{name: "forced", force: true, found: installed(nil), reason: "reassure.force"},
		{name: "changed software", found: installed(func(i *Installed) { i.Stamp.Digest[0]++ }), reason: "software changed"},
		{name: "never committed", found: installed(func(i *Installed) { i.Whole = false }), reason: "never finished"},
		{name: "another host's disk", found: installed(func(i *Installed) { i.Stamp.Host = "exp02" }), reason: "installed as exp02"},
		{name: "ordered", order: "o1", found: installed(nil), reason: "order o1"},
		{name: "order had", order: "o1", found: installed(func(i *Installed) { i.Stamp.Order = "o1" }), keep: true, reason: "already up to date"},
		{name: "order had, software changed since", order: "o1", found: installed(func(i *Installed) { i.Stamp.Order = "o1"; i.Stamp.Digest[0]++ }), reason: "software changed"},
		{name: "another order had", order: "o2", found: installed(func(i *Installed) { i.Stamp.Order = "o1" }), reason: "order o2"},
		{name: "order had, and none now", found: installed(func(i *Installed) { i.Stamp.Order = "o1" }), keep: true, reason: "already up to date"},
		{name: "order cut short", order: "o1", found: installed(func(i *Installed) { i.Stamp.Order = "o1"; i.Whole = false }), reason: "never finished"},
		{name: "order had by another host", order: "o1", found: installed(func(i *Installed) { i.Stamp.Order = "o1"; i.Stamp.Host = "exp02" }), reason: "installed as exp02"},
		{name: "order had, and forced", order: "o1", force: true, found: installed(func(i *Installed) { i.Stamp.Order = "o1" }), reason: "reassure.force"},
		{name: "replayed", found: installed(func(i *Installed) { i.Stamp.Serial++ }), refused: "older than what the stamp"},
		{name: "replayed over what was never finished", found: installed(func(i *Installed) { i.Stamp.Serial++; i.Whole = false }), refused: "older than what the stamp"},
		{name: "released by a person", supersedes: 1001, found: installed(func(i *Installed) { i.Stamp.Serial++; i.Stamp.Digest[0]++ }), reason: "software changed"},
		{name: "another one released", supersedes: 1002, found: installed(func(i *Installed) { i.Stamp.Serial++ }), refused: "older than what the stamp"},
		{name: "replayed and forced", force: true, found: installed(func(i *Installed) { i.Stamp.Serial++ }), refused: "older than what the stamp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest()
			m.Order, m.Supersedes = c.order, c.supersedes
			d, err := Decide(m, target(), c.found, c.force)
			if c.refused != "" {
				var refusal *Refusal
				var asks *Question
				if !errors.As(err, &refusal) || !errors.As(err, &asks) || asks.Ask != spec.AskSerial || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("error is %v; want a refusal with %q", err, c.refused)
				}
				return
			}
			if err != nil || (d.Keep != nil) != c.keep || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("keep %v, reason %q, error %v; want keep %v, reason with %q", d.Keep != nil, d.Reason, err, c.keep, c.reason)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	m := manifest()
	facts := spec.Facts{Firmware: spec.BIOS, Disks: []spec.Disk{target()}}
	plan, err := MakePlan(m, facts, target(), nil, fixed())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "plan.json", append(text, '\n'))
	// The server reads it, and must mean the same plan; and so must the next boot.
	var read spec.Plan
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	again, err := MakePlan(m, facts, target(), nil, rand.NewChaCha8([32]byte{2}))
	if err != nil {
		t.Fatal(err)
	}
	if read.Sum() != plan.Sum() || again.Sum() != plan.Sum() || again.DiskID == plan.DiskID {
		t.Errorf("the plan is %v, read by the server %v, made again %v", plan.Sum(), read.Sum(), again.Sum())
	}
	golden(t, "plan.txt", []byte(strings.Join(plan.Describe(), "\n")+"\n"))

	files, steps, err := expand(m, plan)
	if err != nil {
		t.Fatal(err)
	}
	want := "UUID=" + plan.Partitions[2].UUID + " / ext4 defaults 0 1\n/dev/nvme0n1p2 none swap sw 0 0\n"
	if files[0].Content != want || steps[0].Run.Command[1] != "/dev/nvme0n1" {
		t.Errorf("expanded to %q and %q", files[0].Content, steps[0].Run.Command)
	}
	if strings.Contains(want, "@") || m.Files[0].Content == want {
		t.Error("the manifest itself was changed")
	}
}

func TestPlanRefuses(t *testing.T) {
	// fresh is the root partition as a plan from the same source of random bytes has it.
	fresh := func() spec.Placed {
		plan, err := MakePlan(manifest(), spec.Facts{Firmware: spec.BIOS}, target(), nil, fixed())
		if err != nil {
			t.Fatal(err)
		}
		return plan.Partitions[2]
	}
	for _, c := range []struct {
		name  string
		spoil func(m *spec.Manifest, f *spec.Facts, d *spec.Disk)
		want  string
	}{
		{"small disk", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) { d.Size = 128 * spec.MiB }, "/dev/nvme0n1"},
		{"unknown partition in a token", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) {
			m.Files[0].Content = spec.Token(spec.TokenUUID, "home")
		}, `no partition named "home"`},
		{"token of nothing", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) {
			m.Steps[0].Run.Command[1] = spec.Token("colour", "root")
		}, "no such token"},
		{"label on another disk", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) {
			f.Disks = append(f.Disks, spec.Disk{Device: "/dev/sdb", Contents: []spec.Content{{Partition: 1, Kind: "ext4", Label: "root"}}})
		}, `label "root"`},
		{"UUID on another disk", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) {
			f.Disks = append(f.Disks, spec.Disk{Device: "/dev/sdb", Serial: "COPY", Contents: []spec.Content{{Partition: 1, Kind: "ext4", UUID: fresh().UUID}}})
		}, "serial COPY"},
		{"PARTUUID on another disk", func(m *spec.Manifest, f *spec.Facts, d *spec.Disk) {
			f.Disks = append(f.Disks, spec.Disk{Device: "/dev/sdb", Serial: "COPY", Partitions: []spec.Existing{{Number: 1, PartUUID: fresh().PartUUID}}})
		}, "serial COPY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, d := manifest(), target()
			f := spec.Facts{Firmware: spec.BIOS, Disks: []spec.Disk{d}}
			c.spoil(m, &f, &d)
			_, err := MakePlan(m, f, d, nil, fixed())
			var refusal *Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v; want a refusal with %q", err, c.want)
			}
		})
	}
}

func TestWithin(t *testing.T) {
	plan := &spec.Plan{Partitions: []spec.Placed{
		{Partition: spec.Partition{Name: "root", Mount: "/"}},
		{Partition: spec.Partition{Name: "swap"}},
		{Partition: spec.Partition{Name: "boot", Mount: "/boot"}},
	}}
	for folder, want := range map[string][2]string{
		"/boot": {"boot", "/"}, "/boot/grub": {"boot", "/grub"}, "/bootx": {"root", "/bootx"}, "/": {"root", "/"}, "/etc": {"root", "/etc"},
	} {
		p := at(plan, folder)
		if got := [2]string{p.Name, within(p, folder)}; got != want {
			t.Errorf("%s is on %q; want %q", folder, got, want)
		}
	}
}

func TestPauses(t *testing.T) {
	p := spec.OnFailure{Pause: spec.Duration(time.Second)}
	for try, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 1000: 10 * time.Minute} {
		if got := pauseBefore(p, try); got != want {
			t.Errorf("after try %d: %v; want %v", try, got, want)
		}
	}
	if got := pauseBefore(spec.OnFailure{}, 1); got != 10*time.Second {
		t.Errorf("default pause is %v", got)
	}
	one, zero := 1, 0
	if retries(spec.OnFailure{}, cmdline.Options{}) != 2 || retries(spec.OnFailure{Retries: &one}, cmdline.Options{}) != 1 ||
		retries(spec.OnFailure{Retries: &one}, cmdline.Options{Retries: &zero}) != 0 {
		t.Error("retries do not follow command line, profile, default")
	}
}

func TestLayFile(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A wad's resolv.conf often points into /run; it is replaced, never followed.
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	f := spec.File{Path: "/etc/resolv.conf", Content: "nameserver 1\n", Mode: 0o4750, UID: os.Getuid(), GID: os.Getgid()}
	if err := layFile(root, f); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(filepath.Join(dir, "etc/resolv.conf"))
	if err != nil || info.Mode() != os.ModeSetuid|0o750 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	if text, _ := os.ReadFile(outside); string(text) != "theirs" {
		t.Errorf("the file outside now holds %q", text)
	}
	// A folder that is a link out of the tree is an error, not a way out.
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := layFile(root, spec.File{Path: "/out/outside", Content: "ours", UID: os.Getuid(), GID: os.Getgid()}); err == nil {
		t.Error("wrote through a link out of the tree")
	}
	if text, _ := os.ReadFile(outside); string(text) != "theirs" {
		t.Errorf("the file outside now holds %q", text)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
