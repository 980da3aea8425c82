package stamp

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

func manifest() *spec.Manifest {
	return &spec.Manifest{
		Host: "exp01", Serial: 5, Table: spec.MBR,
		Partitions: []spec.Partition{{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Mount: "/"}},
		Wads:       []spec.Wad{{Name: "a.tar", URLs: []string{"wads/a.tar"}, SHA256: spec.Sum([]byte("a")), Mount: "/"}},
		Files: []spec.File{
			{Path: "/etc/hostname", Template: "hostname", Content: "exp01\n"},
			{Path: "/etc/hosts", Content: "10.0.0.1 exp01\n", Volatile: true},
		},
		Steps: []spec.Step{{Name: "one", Remove: &spec.Remove{Paths: []string{"/a"}}}, {Name: "two", Remove: &spec.Remove{Paths: []string{"/b"}}}},
	}
}

func TestDigest(t *testing.T) {
	base := Digest(manifest())
	for _, c := range []struct {
		name   string
		change func(m *spec.Manifest)
		input  string // that differs; empty means that the digest stays
	}{
		{"nothing", func(m *spec.Manifest) {}, ""},
		{"a PC joined the lab", func(m *spec.Manifest) { m.Files[1].Content += "10.0.0.2 exp02\n" }, ""},
		{"wad moved to another server", func(m *spec.Manifest) { m.Wads[0].URLs = []string{"http://b/a.tar"}; m.Wads[0].Name = "b.tar" }, ""},
		{"published again", func(m *spec.Manifest) { m.Serial++; m.Order = "x" }, ""},
		{"finish", func(m *spec.Manifest) { m.Finish = spec.PowerOff; m.OnFailure.Then = spec.Hold }, ""},
		{"disk rule", func(m *spec.Manifest) { m.Disk.Serial = "S1" }, ""},
		{"template renamed", func(m *spec.Manifest) { m.Files[0].Template = "other" }, ""},
		{"wad", func(m *spec.Manifest) { m.Wads[0].SHA256[0]++ }, "wad 1 /"},
		{"template", func(m *spec.Manifest) { m.Files[0].Content = "exp02\n" }, "template /etc/hostname"},
		{"template's mode", func(m *spec.Manifest) { m.Files[0].Mode = 0o600 }, "template /etc/hostname"},
		{"layout", func(m *spec.Manifest) { m.Partitions[0].FileSystem = spec.XFS }, "partitions"},
		{"table", func(m *spec.Manifest) { m.Table = spec.GPT }, "partitions"},
		{"step", func(m *spec.Manifest) { m.Steps[0].Remove.Paths[0] = "/c" }, "step one"},
		{"order of steps", func(m *spec.Manifest) { m.Steps[0], m.Steps[1] = m.Steps[1], m.Steps[0] }, "order of steps"},
		{"system", func(m *spec.Manifest) { m.System.Timezone = "UTC" }, "system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest()
			c.change(m)
			if changed := Digest(m) != base; changed != (c.input != "") {
				t.Errorf("the digest changed: %v", changed)
			}
			before, after := Inputs(manifest()), Inputs(m)
			for name := range after {
				if differs := before[name] != after[name]; differs != (name == c.input) {
					t.Errorf("input %q differs: %v", name, differs)
				}
			}
		})
	}
}

func TestStamp(t *testing.T) {
	s := Stamp{Schema: Schema, Host: "exp01", Profile: "lab", Digest: spec.Sum(nil), Serial: 7, Started: time.Unix(1, 0).UTC(), Finished: time.Unix(2, 0).UTC()}
	text, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(text)
	if diff := cmp.Diff(s, back); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for name, in := range map[string]string{
		"empty":         "",
		"not JSON":      "x",
		"cut":           string(text[:len(text)-3]),
		"two":           string(text) + string(text),
		"other schema":  strings.Replace(string(text), `"schema": 1`, `"schema": 2`, 1),
		"without host":  strings.Replace(string(text), `"exp01"`, `""`, 1),
		"no digest":     strings.Replace(string(text), s.Digest.String(), "", 1),
		"broken digest": strings.Replace(string(text), "sha256:", "sha1:", 1),
	} {
		if got, err := Parse([]byte(in)); err == nil {
			t.Errorf("%s was taken: %+v", name, got)
		}
	}
}
