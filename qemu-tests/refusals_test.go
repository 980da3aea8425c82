package qemutests

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"reassure/image/spec"
)

func smallLab(t *testing.T, profile string) *labT {
	t.Helper()
	return newLab(t, Setup{
		Profile: "small",
		Files:   SmallFiles(profile),
		Wads:    map[string]string{"small.tar.zst": wad(t, "small", "small.tar.zst")},
	})
}

// previous fills a disk as a system before this one left it: boot code, a table,
// and data all over the place.
func previous(f *os.File) error {
	random := rand.NewChaCha8([32]byte{1})
	info, err := f.Stat()
	if err != nil {
		return err
	}
	block := make([]byte, 4096)
	for at := int64(0); at < info.Size(); at += info.Size() / 64 / 4096 * 4096 {
		if _, err := random.Read(block); err != nil {
			return err
		}
		if at == 0 { // an MBR with one partition of type 83 from sector 2048 on
			clear(block[446:510])
			copy(block[446:], []byte{0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 0, 0x10, 0})
			copy(block[510:], []byte{0x55, 0xaa})
		}
		if _, err := f.WriteAt(block, at); err != nil {
			return err
		}
	}
	return nil
}

// TestRefusals has things be wrong, one at a time. Whatever is wrong before the
// first write leaves every disk as it was; whatever is wrong after it leaves no
// disk that boots.
func TestRefusals(t *testing.T) {
	t.Parallel()
	one := func() []*Disk { return []*Disk{{Size: 2 * spec.GiB, Fill: previous}} }
	const manifest = "manifests/01-52-54-00-12-34-56.json"
	tests := []struct {
		name    string
		disks   []*Disk
		profile func(string) string
		spoil   func(t *testing.T, l *labT)
		reason  string // what the message must say
		written bool   // the fault shows only after the first write
	}{
		{name: "no disk", reason: `(?i)no .*disk`},
		{
			name:   "two disks",
			disks:  []*Disk{{Size: 2 * spec.GiB, Fill: previous, Serial: "FIRST"}, {Size: 3 * spec.GiB, Fill: previous, Serial: "SECOND"}},
			reason: `serial FIRST(?s:.*)serial SECOND`,
		},
		{
			name:   "a removable disk alone",
			disks:  []*Disk{{Size: 2 * spec.GiB, Fill: previous, Bus: "scsi", Removable: true, Serial: "STICK"}},
			reason: `(?i)removable`,
		},
		{
			name: "disk too small", disks: one(),
			profile: func(p string) string {
				return regexp.MustCompile(`size: rest, filesystem`).ReplaceAllString(p, "size: 64GiB, filesystem")
			},
			reason: `(?i)64.*GiB|too small`,
		},
		{
			name: "no manifest", disks: one(),
			spoil:  func(_ *testing.T, l *labT) { l.Web.Break(Fault{Suffix: manifest, Status: 404}) },
			reason: `manifest|404`,
		},
		{
			name: "an error page for a manifest", disks: one(),
			spoil: func(t *testing.T, l *labT) {
				if err := os.WriteFile(filepath.Join(l.WWW, manifest), []byte("<html>It works!</html>\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			reason: `manifest|signature`,
		},
		{
			name: "an altered manifest", disks: one(),
			spoil: func(t *testing.T, l *labT) {
				alter(t, filepath.Join(l.WWW, manifest), func(m map[string]any) { m["finish"] = "shell" })
			},
			reason: `(?i)sign`,
		},
		{
			name: "altered wad", disks: one(), written: true,
			spoil:  func(_ *testing.T, l *labT) { l.Web.Break(Fault{Suffix: ".tar.zst", FlipAt: 10_000_000}) },
			reason: `(?i)small\.tar\.zst`,
		},
		{
			name: "wad ends early", disks: one(), written: true,
			spoil:  func(_ *testing.T, l *labT) { l.Web.Break(Fault{Suffix: ".tar.zst", CutAt: 10_000_000}) },
			reason: `(?i)small\.tar\.zst`,
		},
		{
			name: "no wad", disks: one(),
			spoil:  func(_ *testing.T, l *labT) { l.Web.Break(Fault{Suffix: ".tar.zst", Status: 404}) },
			reason: `404`,
		},
		{
			name: "a step fails", disks: one(), written: true,
			profile: func(p string) string {
				return regexp.MustCompile(`(?m)^steps:\n`).ReplaceAllString(p, "steps:\n  - name: a step that fails\n    run: {command: [/bin/sh, -c, \"echo the reason >&2; exit 3\"]}\n")
			},
			reason: `a step that fails`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			profile := SmallProfile
			if test.profile != nil {
				profile = test.profile(profile)
			}
			lab := smallLab(t, profile)
			lab.publish()
			if test.spoil != nil {
				test.spoil(t, lab)
			}
			for i, d := range test.disks {
				if err := d.Make(filepath.Join(lab.Dir, "disk"+string(rune('a'+i)))); err != nil {
					t.Fatal(err)
				}
			}
			var before []spec.Digest
			for _, d := range test.disks {
				before = append(before, sum(t, d))
			}
			lab.decide("remote")
			pc := lab.powerOn(Machine{Disks: test.disks})
			// A reason may take several lines.
			pc.expect(`REIMAGE FAILED: (?s:.{0,500}?)(`+test.reason+`)`, 4*time.Minute)
			pc.off()
			for i, d := range test.disks {
				if !test.written && sum(t, d) != before[i] {
					t.Errorf("disk %d was written to", i)
				}
				if test.written && sum(t, d) == before[i] {
					t.Errorf("disk %d was not written to: this case shows nothing", i)
				}
				bootable(t, d, !test.written)
			}
		})
	}
}

// TestPowerCut pulls the plug in the middle of a reimage. The disk then boots
// nothing, even where it comes first, and the PC is reimaged again.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, SmallProfile)
	lab.publish()
	lab.decide("remote")
	disk := &Disk{Size: 2 * spec.GiB, Fill: previous}
	lab.Web.Break(Fault{Suffix: ".tar.zst", Rate: 2_000_000})
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}})
	lab.event(spec.EventProgress, 3*time.Minute)
	pc.off()
	bootable(t, disk, false)

	lab.Web.Break()
	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, DiskFirst: true})
	pc.expect(`REIMAGE DONE`, 3*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	// The disk comes first, and is whole: it boots though the server says Remote.
	pc.expect(`(?m)^exp01 login: `, 2*time.Minute)
	pc.login(lab, keys.HostKeys).says("hostname", "exp01")
}

// alter changes a JSON file.
func alter(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRemovableBesideDisk has a card or a stick in the PC, which is never the target.
func TestRemovableBesideDisk(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, SmallProfile)
	lab.publish()
	lab.decide("remote")
	disk := &Disk{Size: 2 * spec.GiB, Fill: previous, Bus: "ata"}
	stick := &Disk{Size: 1 * spec.GiB, Fill: previous, Bus: "scsi", Removable: true}
	if err := stick.Make(filepath.Join(lab.Dir, "stick")); err != nil {
		t.Fatal(err)
	}
	before := sum(t, stick)
	pc := lab.powerOn(Machine{Disks: []*Disk{disk, stick}})
	pc.expect(`REIMAGE DONE`, 4*time.Minute)
	pc.off()
	bootable(t, disk, true)
	if sum(t, stick) != before {
		t.Error("the stick was written to")
	}
}
