package stamp

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

func manifest() *spec.Manifest {
	serial := 0
	return &spec.Manifest{
		Schema: spec.ManifestSchema, Host: "exp01", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}},
		Profile: "debian", Serial: 1700000000,
		Table: spec.MBR,
		Partitions: []spec.Partition{
			{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Mount: "/", Bootable: true},
			{Name: "swap", Size: spec.Extent{Bytes: spec.GiB}, FileSystem: spec.Swap},
		},
		Wads: []spec.Wad{
			{Name: "base.tar", URLs: []string{"wads/base.tar"}, Size: 10, SHA256: spec.Sum([]byte("base")), Mount: "/"},
			{Name: "home.tar", URLs: []string{"wads/home.tar"}, Size: 10, SHA256: spec.Sum([]byte("home")), Mount: "/home"},
		},
		Files: []spec.File{
			{Path: "/etc/hostname", Template: "debian/hostname", Content: "exp01\n", Mode: 0o644},
			{Path: "/etc/fstab", Template: "debian/fstab", Content: "UUID=@reassure:uuid:root@ / ext4\n", Mode: 0o644},
			{Path: "/etc/hosts", Template: "hosts", Content: "172.30.0.11 exp01\n", Mode: 0o644, Volatile: true},
		},
		System: spec.System{Timezone: "Europe/Zurich"},
		Steps: []spec.Step{
			{Name: "greet", Run: &spec.Run{Command: []string{"/bin/echo", "hello"}}},
			{Name: "nx", AllowFailure: true, Timeout: spec.Duration(time.Minute), Run: &spec.Run{Command: []string{"/usr/bin/nxsetup"}}},
			{Name: "boot", BootLoader: &spec.BootLoader{Kind: "grub", Serial: &serial}},
		},
		OnFailure: spec.OnFailure{Then: spec.Hold},
	}
}

// TestDigestIsStable fails when a change of code would make every PC of every
// lab due for a reimage. If that is meant, change digestVersion and the value.
func TestDigestIsStable(t *testing.T) {
	const want = "sha256:30aafbe87917f58519f5be8f749711bc1fdffd925e13450fc14fee2ef080526f"
	if got := Digest(manifest()).String(); got != want {
		t.Errorf("digest = %s, want %s", got, want)
	}
}

func TestDigest(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*spec.Manifest)
		inputs []string // that differ; none means the same digest
	}{
		{"nothing", func(m *spec.Manifest) {}, nil},
		{"another host in /etc/hosts", func(m *spec.Manifest) { m.Files[2].Content += "172.30.0.12 exp02\n" }, nil},
		{"volatile mode", func(m *spec.Manifest) { m.Files[2].Mode = 0o600 }, nil},
		{"order of files", func(m *spec.Manifest) { slices.Reverse(m.Files) }, nil},
		{"serial", func(m *spec.Manifest) { m.Serial++ }, nil},
		{"order of a person", func(m *spec.Manifest) { m.Order = "again" }, nil},
		{"disk rule", func(m *spec.Manifest) { m.Disk.Serial = "X1" }, nil},
		{"mirrors", func(m *spec.Manifest) { m.Wads[0].URLs = []string{"http://mirror/base.tar"} }, nil},
		{"finish", func(m *spec.Manifest) { m.Finish, m.OnFailure.Then, m.Events = spec.PowerOff, "", "http://e" }, nil},
		{"profile's name", func(m *spec.Manifest) { m.Profile = "debian-12" }, nil},
		{"template's name", func(m *spec.Manifest) { m.Files[0].Template = "other" }, nil},
		{"time limit", func(m *spec.Manifest) { m.Steps[0].Timeout = spec.Duration(time.Hour) }, nil},

		{"time limit where failure is allowed", func(m *spec.Manifest) { m.Steps[1].Timeout++ }, []string{"step nx"}},
		{"allow failure", func(m *spec.Manifest) { m.Steps[0].AllowFailure = true }, []string{"step greet"}},
		{"step", func(m *spec.Manifest) { m.Steps[0].Run.Command[1] = "bye" }, []string{"step greet"}},
		{"boot loader's serial port", func(m *spec.Manifest) { m.Steps[2].BootLoader.Serial = nil }, []string{"step boot"}},
		{"order of steps", func(m *spec.Manifest) { m.Steps[0], m.Steps[1] = m.Steps[1], m.Steps[0] }, []string{"order of steps"}},
		{"step gone", func(m *spec.Manifest) { m.Steps = m.Steps[1:] }, []string{"order of steps", "step greet"}},
		{"wad's content", func(m *spec.Manifest) { m.Wads[0].SHA256[0]++ }, []string{"wad base.tar at /"}},
		{"wad's mount", func(m *spec.Manifest) { m.Wads[1].Mount = "/srv" }, []string{"order of wads", "wad home.tar at /home", "wad home.tar at /srv"}},
		{"overlay", func(m *spec.Manifest) { m.Wads[1].Overlay = true }, []string{"wad home.tar at /home"}},
		{"order of wads", func(m *spec.Manifest) { m.Wads[0], m.Wads[1] = m.Wads[1], m.Wads[0] }, []string{"order of wads"}},
		{"file's content", func(m *spec.Manifest) { m.Files[1].Content += "#\n" }, []string{"file /etc/fstab"}},
		{"file's owner", func(m *spec.Manifest) { m.Files[1].UID = 1 }, []string{"file /etc/fstab"}},
		{"no longer volatile", func(m *spec.Manifest) { m.Files[2].Volatile = false }, []string{"file /etc/hosts"}},
		{"layout", func(m *spec.Manifest) { m.Partitions[1].Size.Bytes *= 2 }, []string{"layout"}},
		{"table", func(m *spec.Manifest) { m.Table = spec.GPT }, []string{"layout"}},
		{"system", func(m *spec.Manifest) { m.System.Keymap = "us" }, []string{"system"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, changed := manifest(), manifest()
			c.change(changed)
			if same := Digest(before) == Digest(changed); same != (c.inputs == nil) {
				t.Errorf("same digest: %v", same)
			}
			if diff := cmp.Diff(c.inputs, differing(Inputs(before), Inputs(changed))); diff != "" {
				t.Errorf("inputs that differ (-want +got):\n%s", diff)
			}
		})
	}

	renamed := manifest()
	renamed.Steps[0].Name, renamed.Wads[0].Name = "say hello", "debian.tar"
	if Digest(renamed) != Digest(manifest()) {
		t.Error("a name changed the digest")
	}
}

func TestDigestLeavesManifestAlone(t *testing.T) {
	m := manifest()
	Digest(m)
	if diff := cmp.Diff(manifest(), m); diff != "" {
		t.Error(diff)
	}
}

func differing(a, b map[string]spec.Digest) []string {
	names := map[string]bool{}
	for n, d := range a {
		if b[n] != d {
			names[n] = true
		}
	}
	for n, d := range b {
		if a[n] != d {
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func TestStampSurvives(t *testing.T) {
	m := manifest()
	m.Digest = Digest(m)
	s := New(m)
	s.Started = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.Finished = s.Started.Add(time.Minute)
	s.DiskSerial, s.Image = "QM00001", "1.0"
	text, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseStamp(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, again); diff != "" {
		t.Error(diff)
	}
	if !again.UpToDate(m) {
		t.Error("is not up to date with its own manifest")
	}
	for name, change := range map[string]func(*spec.Manifest){
		"other host":     func(m *spec.Manifest) { m.Host = "exp02" },
		"other software": func(m *spec.Manifest) { m.Digest[0]++ },
		"ordered":        func(m *spec.Manifest) { m.Order = "again" },
	} {
		other := *m
		change(&other)
		if again.UpToDate(&other) {
			t.Errorf("%s: is up to date", name)
		}
	}
	m.Order = "again"
	if s = New(m); !s.UpToDate(m) {
		t.Error("an order that was carried out is still due")
	}
	m.Order = ""
	if !s.UpToDate(m) {
		t.Error("an order that was taken back is due")
	}
}

func TestParseStampRefuses(t *testing.T) {
	m := manifest()
	m.Digest = Digest(m)
	text, err := New(m).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(key string, value any) string {
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		fields[key] = value
		out, _ := json.Marshal(fields)
		return string(out)
	}
	for name, c := range map[string]struct{ in, want string }{
		"empty":         {"", "not JSON"},
		"cut":           {string(text[:len(text)/2]), "not JSON"},
		"zeros":         {string(make([]byte, 512)), "not JSON"},
		"two":           {string(text) + string(text), "not JSON"},
		"other schema":  {edit("schema", 2), "schema 2"},
		"unknown field": {edit("colour", "red"), "colour"},
		"no digest":     {edit("digest", ""), "no digest"},
		"bad digest":    {edit("digest", "sha256:12"), "64 hexadecimal"},
		"no host":       {edit("host", ""), "no host"},
		"no serial":     {edit("serial", 0), "serial 0"},
		"too long":      {strings.Repeat(" ", maxStamp) + string(text), "more than"},
	} {
		if _, err := ParseStamp([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := new(Stamp).Marshal(); err == nil {
		t.Error("an empty stamp was written")
	}
}
