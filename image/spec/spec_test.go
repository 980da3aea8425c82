package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSize(t *testing.T) {
	for _, c := range []struct {
		in    string
		want  Size
		text  string
		human string
	}{
		{"0", 0, "0", "0 B"},
		{"512MiB", 512 * MiB, "512MiB", "512 MiB"},
		{" 8 GiB ", 8 * GiB, "8GiB", "8.00 GiB"},
		{"1TB", 1e12, "976562500KiB", "931 GiB"},
		{"4096", 4096, "4KiB", "4.00 KiB"},
		{"1000", 1000, "1000", "1000 B"},
		{"15B", 15, "15", "15 B"},
	} {
		var s Size
		if err := s.UnmarshalText([]byte(c.in)); err != nil || s != c.want {
			t.Errorf("%q = %d, %v; want %d", c.in, s, err, c.want)
		}
		text, _ := s.MarshalText()
		if string(text) != c.text || s.String() != c.human {
			t.Errorf("%q writes %q and %q; want %q and %q", c.in, text, s, c.text, c.human)
		}
		var again Size
		if err := again.UnmarshalText(text); err != nil || again != s {
			t.Errorf("%q does not survive: %v, %v", text, again, err)
		}
	}
	for _, in := range []string{"", "GiB", "-1", "1.5GiB", "1 XB", "99999999TiB", "1e3"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken as %d", in, s)
		}
	}
}

func TestExtent(t *testing.T) {
	for in, want := range map[string]Extent{
		"rest": {Rest: true}, "25%": {Percent: 25}, "12.5 %": {Percent: 12.5}, "1GiB": {Bytes: GiB},
	} {
		var e, again Extent
		if err := e.UnmarshalText([]byte(in)); err != nil || e != want {
			t.Errorf("%q = %+v, %v; want %+v", in, e, err, want)
		}
		if err := again.UnmarshalText([]byte(e.String())); err != nil || again != e {
			t.Errorf("%q does not survive: %+v, %v", in, again, err)
		}
	}
	for _, in := range []string{"", "0", "0%", "101%", "NaN%", "most", "-5%"} {
		var e Extent
		if err := e.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken as %+v", in, e)
		}
	}
}

func TestMAC(t *testing.T) {
	var m MAC
	if err := m.UnmarshalText([]byte("00-09-3D-12-20-ED")); err != nil {
		t.Fatal(err)
	}
	if m.String() != "00:09:3d:12:20:ed" || m.PXE() != "01-00-09-3d-12-20-ed" {
		t.Errorf("got %v and %v", m, m.PXE())
	}
	if back, err := ParsePXE(m.PXE()); err != nil || back != m {
		t.Errorf("ParsePXE = %v, %v", back, err)
	}
	for _, in := range []string{"", "00:09", "00:09:3d:12:20:ed:00:01", "zz:09:3d:12:20:ed"} {
		if err := m.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
	for _, in := range []string{"", "00-09-3d-12-20-ed", "20-00-09-3d-12-20-ed"} {
		if _, err := ParsePXE(in); err == nil {
			t.Errorf("ParsePXE took %q", in)
		}
	}
}

func TestDigest(t *testing.T) {
	d := Sum([]byte("wad"))
	var back Digest
	if err := back.UnmarshalText([]byte(d.String())); err != nil || back != d {
		t.Errorf("%v does not survive: %v, %v", d, back, err)
	}
	for _, in := range []string{"sha256:", "sha256:12", strings.Repeat("a", 64), "md5:" + strings.Repeat("a", 64)} {
		if err := back.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
	if (Digest{}).String() != "" || (Digest{}).Short() != "none" {
		t.Error("no digest does not write as none")
	}
}

func TestMode(t *testing.T) {
	var m Mode
	if err := m.UnmarshalText([]byte("4755")); err != nil || m != 0o4755 || m.String() != "4755" {
		t.Errorf("got %v, %v", m, err)
	}
	for _, in := range []string{"", "0999", "10000", "rwx"} {
		if err := m.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestExpandTokens(t *testing.T) {
	value := func(kind, name string) (string, error) {
		if name == "none" {
			return "", errors.New("no such partition")
		}
		return kind + "=" + name, nil
	}
	in := "UUID=" + Token(TokenUUID, "root") + " on " + Token(TokenDisk, "") + " user@reassure.example"
	got, err := ExpandTokens(in, value)
	if want := "UUID=uuid=root on disk= user@reassure.example"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := ExpandTokens(Token(TokenUUID, "none"), value); err == nil || !strings.Contains(err.Error(), "@reassure:uuid:none@") {
		t.Errorf("error %v does not name the token", err)
	}
}

// sound returns a profile with nothing wrong, for tests to break.
func sound() *Profile {
	return &Profile{
		Name:  "lab",
		Table: MBR,
		Partitions: []Partition{
			{Name: "boot", Size: Extent{Bytes: 256 * MiB}, FileSystem: Ext4, Label: "boot", Mount: "/boot", Bootable: true},
			{Name: "swap", Size: Extent{Percent: 5}, FileSystem: Swap},
			{Name: "root", Size: Extent{Rest: true}, FileSystem: Ext4, Label: "root", Mount: "/"},
		},
		Wads:      []WadRef{{File: "wad.tar"}},
		Templates: []Template{{Path: "/etc/hostname", Source: "hostname"}},
		Steps:     []Step{{Name: "boot loader", BootLoader: &BootLoader{Kind: "grub"}}},
	}
}

func TestProfileValidate(t *testing.T) {
	if err := sound().Validate().Err(); err != nil {
		t.Fatalf("a sound profile is refused: %v", err)
	}
	minus := -1
	for _, c := range []struct {
		name  string
		spoil func(p *Profile)
		want  []string // paths of the problems
	}{
		{"bad name", func(p *Profile) { p.Name = "My Lab" }, []string{"name"}},
		{"no wads", func(p *Profile) { p.Wads = nil }, []string{"wads"}},
		{"wad outside", func(p *Profile) { p.Wads[0].File = "../wad" }, []string{"wads[0].file"}},
		{"wad mount", func(p *Profile) { p.Wads[0].Mount = "usr" }, []string{"wads[0].mount"}},
		{"template", func(p *Profile) { p.Templates[0] = Template{Path: "/etc/../x"} }, []string{"templates[0].path", "templates[0].source"}},
		{"no table", func(p *Profile) { p.Table = "" }, []string{"table"}},
		{"no partitions", func(p *Profile) { p.Partitions = nil }, []string{"partitions"}},
		{"no root", func(p *Profile) { p.Partitions[2].Mount = "/home" }, []string{"partitions"}},
		{"five in an MBR", func(p *Profile) {
			p.Partitions = append(p.Partitions, Partition{Name: "a", Size: Extent{Bytes: MiB}, FileSystem: None}, Partition{Name: "b", Size: Extent{Bytes: MiB}, FileSystem: None})
		}, []string{"partitions"}},
		{"two rests", func(p *Profile) { p.Partitions[0].Size = Extent{Rest: true} }, []string{"partitions[2].size"}},
		{"no size", func(p *Profile) { p.Partitions[0].Size = Extent{} }, []string{"partitions[0].size"}},
		{"too many shares", func(p *Profile) {
			p.Partitions[0].Size, p.Partitions[1].Size = Extent{Percent: 60}, Extent{Percent: 50}
		}, []string{"partitions"}},
		{"same names", func(p *Profile) { p.Partitions[1].Name = "boot" }, []string{"partitions[1].name"}},
		{"same labels", func(p *Profile) { p.Partitions[2].Label = "boot" }, []string{"partitions[2].label"}},
		{"label too long", func(p *Profile) { p.Partitions[0].Label = strings.Repeat("x", 17) }, []string{"partitions[0].label"}},
		{"mounted swap", func(p *Profile) { p.Partitions[1].Mount = "/swap" }, []string{"partitions[1].mount"}},
		{"file system", func(p *Profile) { p.Partitions[0].FileSystem = "ext9" }, []string{"partitions[0].filesystem"}},
		{"two bootable", func(p *Profile) { p.Partitions[2].Bootable = true }, []string{"partitions[2].bootable"}},
		{"disk rule", func(p *Profile) {
			p.Disk = DiskRule{Pick: "any", Bus: "scuzzy", Overwrite: "all", Model: "[", MinSize: 2, MaxSize: 1}
		}, []string{"disk.pick", "disk.bus", "disk.overwrite", "disk.model", "disk.max_size"}},
		{"password in clear", func(p *Profile) { p.System.RootPasswordHash = "secret" }, []string{"system.root_password_hash"}},
		{"private key", func(p *Profile) {
			p.System.AuthorizedKeys = []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}
		}, []string{"system.authorized_keys[0]"}},
		{"time zone", func(p *Profile) { p.System.Timezone = "../shadow" }, []string{"system.timezone"}},
		{"keymap", func(p *Profile) { p.System.Keymap = "us;rm" + " -rf" }, []string{"system.keymap"}},
		{"finish", func(p *Profile) { p.Finish = "explode" }, []string{"finish"}},
		{"failure", func(p *Profile) { p.OnFailure = OnFailure{Then: "cry", Retries: &minus} }, []string{"on_failure.then", "on_failure.retries"}},
		{"mode", func(p *Profile) { p.Mode = "some" }, []string{"mode"}},
		{"a rescue that nobody can log in for", func(p *Profile) { p.Mode, p.System.AuthorizedKeys = ReimageRescue, nil }, []string{"rescue_keys"}},
		{"a private key for rescues", func(p *Profile) { p.RescueKeys = []string{"ssh-ed25519 AAAA a", "-----BEGIN OPENSSH PRIVATE KEY-----"} }, []string{"rescue_keys[1]"}},
		{"kept paths", func(p *Profile) { p.Keep = []string{"/etc/ssh", "/", "etc", "/usr"} }, []string{"keep[1]", "keep[2]", "keep[3]"}},
		{"runtime paths", func(p *Profile) { p.Runtime = []string{"/etc", "/", "/a/../b"} }, []string{"runtime[1]", "runtime[2]"}},
		{"preserved root", func(p *Profile) { p.Partitions[2].Preserve = true }, []string{"partitions[2].preserve"}},
		{"preserved swap", func(p *Profile) { p.Partitions[1].Preserve = true }, []string{"partitions[1].preserve"}},
		{"something laid down on what is preserved", func(p *Profile) {
			p.Partitions[0].Mount, p.Partitions[0].Preserve = "/data", true
			p.Wads[0].Mount, p.Templates[0].Path = "/data", "/data/x"
		}, []string{"wads[0].mount", "templates[0].path"}},
		{"preserved data", func(p *Profile) {
			p.Partitions[0].Mount, p.Partitions[0].Preserve, p.Mode = "/data", true, ReimageDelta
		}, nil},
		{"no kind", func(p *Profile) { p.Steps = []Step{{Name: "x"}} }, []string{"steps[0]"}},
		{"two kinds", func(p *Profile) {
			p.Steps[0].Remove = &Remove{Paths: []string{"/x"}}
		}, []string{"steps[0]"}},
		{"nameless", func(p *Profile) { p.Steps[0].Name = "" }, []string{"steps[0].name"}},
		{"boot loader may fail", func(p *Profile) { p.Steps[0].AllowFailure = true }, []string{"steps[0].allow_failure"}},
		{"boot loader's command line", func(p *Profile) {
			p.Steps[0].BootLoader.CommandLine = "quiet $(reboot)"
		}, []string{"steps[0].boot_loader.command_line"}},
		{"remove all", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Remove: &Remove{Paths: []string{"/"}}}}
		}, []string{"steps[0].remove.paths[0]"}},
		{"regexp", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Edit: &Edit{Path: "/x", Replace: []Replacement{{Match: "("}}}}}
		}, []string{"steps[0].edit.replace[0].match"}},
		{"run", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Run: &Run{Stdin: "a", StdinFile: "/b", Env: []string{"c"}}}}
		}, []string{"steps[0].run.command", "steps[0].run", "steps[0].run.env[0]"}},
		{"keys", func(p *Profile) {
			p.Steps = []Step{{Name: "x", SSHKeys: &SSHKeys{Host: []string{"dsa"}, UserPath: "/root/.ssh/id"}}}
		}, []string{"steps[0].ssh_keys.host[0]", "steps[0].ssh_keys.user"}},
		{"limits", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Limits: &Limits{Rules: []LimitRule{{Domain: "*", Type: "firm", Item: "nproc", Value: "1 2"}}}}}
		}, []string{"steps[0].limits.rules[0].type", "steps[0].limits.rules[0].value"}},
		{"a service that is a folder", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Service: &Service{Name: "..", Runlevel: "..", Disable: true}}}
		}, []string{"steps[0].service.name", "steps[0].service.runlevel"}},
		{"service", func(p *Profile) {
			p.Steps = []Step{{Name: "x", Service: &Service{Name: "a b", Runlevel: "/"}}}
		}, []string{"steps[0].service.name", "steps[0].service.runlevel"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := sound()
			c.spoil(p)
			var got []string
			for _, problem := range p.Validate() {
				got = append(got, problem.Path)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("paths (-want +got):\n%s%v", diff, p.Validate())
			}
		})
	}
}

func TestInventoryValidate(t *testing.T) {
	var inv Inventory
	text := `{"site": {"url": "http://172.30.0.5/reassure", "server": "172.30.0.5", "network": "172.30.0.0/24", "gateway": "172.30.0.1"},
		"hosts": [{"name": "exp01", "macs": [], "ip": "172.30.0.11", "profile": "lab"}]}`
	if err := json.Unmarshal([]byte(text), &inv); err != nil {
		t.Fatal(err)
	}
	inv.Hosts[0].MACs = []MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}}
	if err := inv.Validate().Err(); err != nil {
		t.Fatalf("a sound inventory is refused: %v", err)
	}
	second := inv.Hosts[0]
	second.Name = "EXP01"
	third := Host{Name: "exp_03", MACs: []MAC{{1, 2, 3, 4, 5, 6}}, Groups: []string{"A"}}
	inv.Hosts = append(inv.Hosts, second, third)
	inv.Site.URL, inv.Site.Events = "ftp://x", "http://"
	var got []string
	for _, p := range inv.Validate() {
		got = append(got, p.Path)
	}
	want := []string{"site.url", "site.events", "hosts[1].name", "hosts[1].mac[0]", "hosts[1].ip",
		"hosts[2].name", "hosts[2].mac[0]", "hosts[2].ip", "hosts[2].profile", "hosts[2].groups[0]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

// manifest returns a sound manifest as JSON, changed by spoil.
func manifest(t *testing.T, spoil func(m map[string]any)) []byte {
	t.Helper()
	p := sound()
	m := Manifest{
		Schema: ManifestSchema, Host: "exp01", MACs: []MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}}, Profile: p.Name, Serial: 1,
		Digest: Sum([]byte("x")), Table: p.Table, Partitions: p.Partitions,
		Wads:  []Wad{{Name: "wad.tar", URLs: []string{"wads/wad.tar"}, Size: 10240, SHA256: Sum([]byte("y")), Mount: "/"}},
		Files: []File{{Path: "/etc/hostname", Content: "exp01\n", Mode: 0o644}},
		Steps: p.Steps,
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var loose map[string]any
	if err := json.Unmarshal(text, &loose); err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		spoil(loose)
	}
	text, err = json.Marshal(loose)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestParseManifest(t *testing.T) {
	m, err := ParseManifest(manifest(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if root, n := m.Root(); root.Name != "root" || n != 3 || !m.HasMAC(m.MACs[0]) || m.HasMAC(MAC{}) {
		t.Errorf("root is %q, number %d", root.Name, n)
	}
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"error page", []byte("<html>404</html>"), "error page"},
		{"other schema", manifest(t, func(m map[string]any) { m["schema"] = 2 }), "schema"},
		{"unknown field", manifest(t, func(m map[string]any) { m["colour"] = "red" }), "colour"},
		{"trailing", append(manifest(t, nil), '{', '}'), "not JSON"},
		{"no digest", manifest(t, func(m map[string]any) { m["digest"] = "" }), "digest"},
		{"old serial", manifest(t, func(m map[string]any) { m["serial"] = 0 }), "serial"},
		{"no wad digest", manifest(t, func(m map[string]any) { m["wads"].([]any)[0].(map[string]any)["sha256"] = "" }), "wads[0].sha256"},
		{"index larger than its wad", manifest(t, func(m map[string]any) {
			m["wads"].([]any)[0].(map[string]any)["index"] = map[string]any{"size": "1TiB", "sha256": Sum(nil).String()}
		}), "wads[0].index"},
		{"file at the root", manifest(t, func(m map[string]any) { m["files"].([]any)[0].(map[string]any)["path"] = "/" }), "root folder"},
		{"path with dots", manifest(t, func(m map[string]any) { m["files"].([]any)[0].(map[string]any)["path"] = "/etc/../../x" }), "files[0].path"},
		{"boot loader not last", manifest(t, func(m map[string]any) {
			m["steps"] = append(m["steps"].([]any), map[string]any{"name": "late", "remove": map[string]any{"paths": []string{"/x"}}})
		}), "not the last"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseManifest(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v; want one with %q", err, c.want)
			}
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schema":1}`))
	f.Add([]byte(`{"schema":1,"host":"a","partitions":[{"name":"r","size":"rest","mount":"/"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		// What is taken once is taken again after a round trip.
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseManifest(text); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStepKinds(t *testing.T) {
	steps := []Step{{Run: &Run{}}, {Write: &Write{}}, {Edit: &Edit{}}, {Remove: &Remove{}}, {Symlink: &Symlink{}},
		{SSHKeys: &SSHKeys{}}, {KnownHosts: &KnownHosts{}}, {BootLoader: &BootLoader{}}, {Limits: &Limits{}}, {Service: &Service{}}}
	var kinds []string
	for i := range steps {
		kinds = append(kinds, steps[i].Kind())
		text, _ := json.Marshal(steps[i])
		if !strings.Contains(string(text), fmt.Sprintf("%q:", kinds[i])) {
			t.Errorf("kind %q is not the step's key: %s", kinds[i], text)
		}
	}
	if slices.Contains(kinds, "") {
		t.Errorf("kinds %q", kinds)
	}
}
