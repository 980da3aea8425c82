package resolve

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/conf"
	"reassure/image/spec"
)

var update = flag.Bool("update", false, "write the golden manifests anew")

const siteYAML = `site:
  url: http://172.30.0.5/reassure
  server: 172.30.0.5
  network: 172.30.0.0/24
  gateway: 172.30.0.1
  dns: [172.30.0.5, 9.9.9.9]
  ntp: [ntp.lab.example]
  domain: lab.example
  events: http://172.30.0.5/events
  vars:
    authorized_keys: |
      ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJf0 one@lab
      ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJf1 two@lab
hosts:
  - name: exp01
    mac: ["00:09:3D:12:20:ED", "00:09:3D:12:20:EF"]
    ip: 172.30.0.11
    profile: gentoo-reassure
    vars: {nproc: "512"}
  - name: exp02
    mac: ["00:09:3D:12:20:EE"]
    ip: 172.30.0.12
    profile: debian
    disk: {serial: S1}
`

// site writes a site folder; files replace or add to those of the standard one.
func site(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{"site.yaml": siteYAML, "wads/wad.tar": "wad", "wads/template.tar": "template", "wads/debian.tar.zst": "debian"}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		put(t, filepath.Join(dir, name), text)
	}
	return dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func resolveAll(t *testing.T, dir string) ([]*spec.Manifest, error) {
	t.Helper()
	s, err := Load(dir)
	if err != nil {
		return nil, err
	}
	return s.ResolveAll(t.Context(), &Wads{Dir: filepath.Join(dir, WadsFolder)})
}

func mustResolve(t *testing.T, dir string) map[string]*spec.Manifest {
	t.Helper()
	all, err := resolveAll(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	byHost := map[string]*spec.Manifest{}
	for _, m := range all {
		byHost[m.Host] = m
	}
	return byHost
}

// TestReadyProfiles compares the manifests of the ready profiles with those that
// a person has looked at. With -update they are written anew.
func TestReadyProfiles(t *testing.T) {
	for host, m := range mustResolve(t, site(t, nil)) {
		if want := map[string]string{"exp01": "gentoo-reassure", "exp02": "debian"}[host]; m.Profile != want {
			t.Fatalf("%s has the profile %q, not %q", host, m.Profile, want)
		}
		got, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		golden := filepath.Join("testdata", m.Profile+".json")
		if *update {
			put(t, golden, string(got))
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got; go test -update accepts it):\n%s", host, diff)
		}
		m.Serial = 1
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := spec.ParseManifest(text); err != nil {
			t.Errorf("%s: the reimager refuses it: %v", host, err)
		}
	}
}

// TestOldSystem looks for each thing that the old chroot.sh did, and its order.
func TestOldSystem(t *testing.T) {
	m := mustResolve(t, site(t, nil))["exp01"]
	var names []string
	for _, s := range m.Steps {
		names = append(names, s.Name)
	}
	want := []string{
		"network of this PC", "host name of this PC", "link of the network card", "network at boot",
		"VMware configuration", "VMware is configured", "VMware at boot", "known hosts cleaned", "SSH keys", "NX setup",
		"known hosts are this PC", "known hosts of NX are this PC", "limits", "boot loader",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	step := func(name string) spec.Step { return m.Steps[slices.Index(names, name)] }
	if got := step("VMware configuration").Run.Stdin; strings.Count(got, "\n") != 6 || !strings.HasPrefix(got, "yes\nyes\n") {
		t.Errorf("answers: %q", got)
	}
	if !step("NX setup").AllowFailure || step("VMware configuration").AllowFailure {
		t.Error("the failure of NX alone is tolerated")
	}
	if got := step("limits").Limits.Rules[0]; got != (spec.LimitRule{Domain: "*", Type: "hard", Item: "nproc", Value: "512"}) {
		t.Errorf("limit: %+v", got)
	}
	if got := step("known hosts are this PC").KnownHosts; got.Keep || !slices.Equal(got.Names, []string{"exp01", "exp01.lab.example", "172.30.0.11", "localhost", "127.0.0.1"}) {
		t.Errorf("known hosts: %+v", got)
	}
	if !m.Wads[1].Overlay || m.Wads[1].Name != "template.tar" {
		t.Errorf("wads: %+v", m.Wads)
	}
}

func TestSystemAndDisk(t *testing.T) {
	all := mustResolve(t, site(t, nil))
	m := all["exp02"]
	if len(m.System.AuthorizedKeys) != 2 || !strings.HasSuffix(m.System.AuthorizedKeys[1], "two@lab") {
		t.Errorf("authorized keys: %q", m.System.AuthorizedKeys)
	}
	if m.Disk.Serial != "S1" || all["exp01"].Disk.Serial != "" {
		t.Error("the host's disk rule is not its own")
	}
	if got := m.Wads[0]; got.Size != 6 || got.SHA256 != spec.Sum([]byte("debian")) || got.URLs[0] != "wads/"+got.SHA256.Short()+"/debian.tar.zst" {
		t.Errorf("wad: %+v", got)
	}
	if m.Events != "http://172.30.0.5/events" {
		t.Errorf("events: %q", m.Events)
	}
}

const tiny = `table: mbr
partitions: [{name: root, size: rest, filesystem: ext4, mount: /}]
wads: [{file: wad.tar, mirrors: ["http://mirror/x/"]}]
`

// TestDigest changes the site and looks at which hosts are due for a reimage.
func TestDigest(t *testing.T) {
	dir := site(t, map[string]string{"profiles/gentoo-reassure.yaml": tiny + "templates: [{path: /etc/motd, source: motd}]\nsteps:\n- name: hello\n  run: {command: [/bin/echo, \"{{.Name}}\"]}\n", "templates/motd": "hello\n"})
	before := mustResolve(t, dir)
	for _, c := range []struct {
		name, file, text string
		want             []string // hosts whose digest changes
	}{
		{"a new host", "site.yaml", siteYAML + "  - {name: exp03, mac: [00:09:3d:12:20:f0], ip: 172.30.0.13, profile: debian}\n", nil},
		{"the server's address", "site.yaml", strings.ReplaceAll(siteYAML, "http://172.30.0.5", "http://172.30.0.6"), nil},
		{"a name server", "site.yaml", strings.ReplaceAll(siteYAML, "9.9.9.9", "9.9.9.8"), []string{"exp02"}},
		{"a host's address", "site.yaml", strings.ReplaceAll(siteYAML, "172.30.0.12", "172.30.0.14"), []string{"exp02"}},
		{"a ready template", "templates/fstab", "# none\n", []string{"exp02"}},
		{"a template", "templates/motd", "good day\n", []string{"exp01"}},
		{"a wad", "wads/wad.tar", "wad!", []string{"exp01"}},
		{"a step", "profiles/gentoo-reassure.yaml", tiny + "templates: [{path: /etc/motd, source: motd}]\nsteps:\n- name: hello\n  run: {command: [/bin/true]}\n", []string{"exp01"}},
		{"a comment", "profiles/gentoo-reassure.yaml", "# new\n" + tiny + "templates: [{path: /etc/motd, source: motd}]\nsteps:\n- name: hello\n  run: {command: [/bin/echo, \"{{.Name}}\"]}\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.file)
			old, missing := os.ReadFile(path)
			put(t, path, c.text)
			after := mustResolve(t, dir)
			var changed []string
			for _, host := range []string{"exp01", "exp02"} {
				if before[host].Digest != after[host].Digest {
					changed = append(changed, host)
				}
			}
			if !slices.Equal(changed, c.want) {
				t.Errorf("due for a reimage: %q, want %q", changed, c.want)
			}
			if missing != nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				return
			}
			put(t, path, string(old))
		})
	}
	if got := before["exp01"].Wads[0].URLs[1]; !strings.HasPrefix(got, "http://mirror/x/wads/") {
		t.Errorf("mirror: %s", got)
	}
}

func TestBootLoaderIsLast(t *testing.T) {
	dir := site(t, map[string]string{"profiles/gentoo-reassure.yaml": tiny + "steps:\n- {name: boot, boot_loader: {kind: grub}}\n- {name: x, run: {command: [/bin/x]}}\n"})
	steps := mustResolve(t, dir)["exp01"].Steps
	if steps[0].Name != "x" || steps[1].Name != "boot" {
		t.Errorf("%+v", steps)
	}
}

// TestMistakes has mistakes that only show when several files are looked at, or
// when they are rendered.
func TestMistakes(t *testing.T) {
	const profile = "profiles/gentoo-reassure.yaml"
	step := func(s string) map[string]string { return map[string]string{profile: tiny + "steps:\n" + s} }
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"no such profile", map[string]string{"site.yaml": strings.Replace(siteYAML, "profile: debian", "profile: debain", 1)},
			`site.yaml:23: hosts[1].profile: there is no profile "debain": there are debian, gentoo-reassure`},
		{"profile in nobody's use", map[string]string{"profiles/other.yaml": "tabel: gpt\n"}, `profiles/other.yaml:1: tabel: there is no such key here: did you mean table?`},
		{"two profiles of one name", map[string]string{"profiles/a.yaml": "name: b\n" + tiny, "profiles/b.yaml": tiny}, "profiles/b.yaml:1: name: the name b is taken already, by"},
		{"no such wad", map[string]string{profile: strings.ReplaceAll(tiny, "wad.tar", "wda.tar")}, "profiles/gentoo-reassure.yaml:3: wads[0].file: there is no wad"},
		{"empty wad", map[string]string{"wads/debian.tar.zst": ""}, "debian.tar.zst is empty: make it anew (host exp02)"},
		{"no such template", map[string]string{profile: tiny + "templates:\n- path: /etc/motd\n  source: mtod\n"}, `gentoo-reassure.yaml:6: templates[0].source: there is no template "mtod"`},
		{"template outside", map[string]string{profile: tiny + "templates:\n- {path: /etc/motd, source: ../site.yaml}\n"}, "gentoo-reassure.yaml:5: templates[0].source: \"../site.yaml\": name a file below"},
		{"two templates for a path", map[string]string{profile: tiny + "templates:\n- {path: /etc/a, source: hosts}\n- {path: /etc/a, source: fstab}\n"}, "gentoo-reassure.yaml:6: templates[1].path: templates[0] makes /etc/a already"},
		{"variable missing in a template", map[string]string{"templates/fstab": "a\n{{.Vars.room}}\n"}, "templates/fstab:2: there is no variable room: set it in vars"},
		{"told once", map[string]string{"templates/hosts": "{{.Vars.room}}\n"}, "(2 hosts: exp01, ...)"},
		{"no such partition", map[string]string{"templates/fstab": "\n\n{{uuid \"home\"}}\n"}, `templates/fstab:3: {{uuid "home"}}: the profile has no partition "home": it has efi, swap, root (host exp02)`},
		{"variable missing in a step", step("- name: a\n  run:\n    command: [/bin/a, \"{{.Vars.room}}\"]\n"), "gentoo-reassure.yaml:7: steps[0].run.command[1]: there is no variable room"},
		{"stdin template", step("- name: a\n  run:\n    command: [/bin/a]\n    stdin_template: nowhere\n"), `gentoo-reassure.yaml:8: steps[0].run.stdin_template: there is no template "nowhere"`},
		{"rendered path", step("- name: one\n  remove: {paths: [/a]}\n- name: two\n  write: {path: '{{.Name}}/x', content: a}\n"), `gentoo-reassure.yaml:7: steps[1]: two: "exp01/x": write an absolute path`},
		{"rendered service", step("- name: one\n  service: {name: 'net.{{.Site.URL}}'}\n"), `gentoo-reassure.yaml:5: steps[0]: one: "net.http://172.30.0.5/reassure" is not the name of a service`},
		{"not text", map[string]string{profile: tiny + "templates:\n- {path: /etc/a, source: bin}\n", "templates/bin": "\xff\xfe"}, "gentoo-reassure.yaml:5: templates[0]: is not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolveAll(t, site(t, c.files))
			var all conf.Errors
			if !errors.As(err, &all) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nhas no\n%s", err, c.want)
			}
		})
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "reassure init") {
		t.Error(err)
	}
	s, err := Load(site(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Host("exp10"); err == nil || !strings.Contains(err.Error(), "there are exp01, exp02") {
		t.Error(err)
	}
}

// TestSecrets has what may not be served to everybody on the network.
func TestSecrets(t *testing.T) {
	const (
		profile = "profiles/gentoo-reassure.yaml"
		hash    = "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g."
		openssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
	)
	inTemplate := func(text string) map[string]string {
		return map[string]string{profile: tiny + "templates: [{path: /etc/x, source: x}]\n", "templates/x": text}
	}
	vars := func(line string) map[string]string {
		return map[string]string{"site.yaml": strings.Replace(siteYAML, "  vars:\n", "  vars:\n    "+line+"\n", 1)}
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // empty: published
	}{
		{"OpenSSH key", inTemplate("a\n" + openssh), "templates/x:2: /etc/x: there is a private key in it"},
		{"RSA key", inTemplate("-----BEGIN RSA PRIVATE KEY-----\n"), "private key"},
		{"encrypted key", inTemplate("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "private key"},
		{"PGP key", inTemplate("-----BEGIN PGP PRIVATE KEY BLOCK-----\n"), "private key"},
		{"minisign key", inTemplate("untrusted comment: minisign encrypted secret key\nRWRTY0IyAAAA\n"), "private key"},
		{"minisign key without its comment", inTemplate("RWRTY0IyVRbaJ0B6YbkTqSHjI7v0Yc7pQdAoBOO6\n"), "private key"},
		{"WireGuard key", inTemplate("[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n"), "templates/x:2"},
		{"key in a step", map[string]string{profile: tiny + "steps:\n- {name: a, run: {command: [/bin/true]}}\n- name: k\n  write:\n    path: /root/k\n    content: |\n      -----BEGIN EC PRIVATE KEY-----\n"},
			"gentoo-reassure.yaml:6: steps[1]: there is a private key"},
		{"key in a step that is named by a template", map[string]string{profile: tiny + "steps:\n- name: k{{.Name}}\n  run: {command: [/bin/x], stdin: '-----BEGIN PRIVATE KEY-----'}\n"}, "there is a private key"},
		{"key in a variable", vars("tls: '-----BEGIN PRIVATE KEY-----'"), "site.yaml:11: site.vars.tls: is a private key"},
		{"public key", inTemplate("-----BEGIN PUBLIC KEY-----\nssh-ed25519 AAAA a@b\nuntrusted comment: minisign public key\n"), ""},

		{"password variable", vars("nx_password: sesame"), "site.yaml:11: site.vars.nx_password: is a secret in clear"},
		{"token variable", vars("API_TOKEN: abc"), "is a secret in clear"},
		{"hashed variable", vars("nx_password: " + hash), ""},
		{"where a token is", vars("token_url: http://x"), ""},
		{"profile's variable", map[string]string{profile: tiny + "vars: {secret: x1}\n"}, "gentoo-reassure.yaml:4: vars.secret: is a secret in clear"},
		{"host's variable", map[string]string{"site.yaml": strings.Replace(siteYAML, `nproc: "512"`, `passwd: abc`, 1)}, "site.yaml:19: hosts[0].vars.passwd"},
		{"setting", inTemplate("user = a\n  db_password = \"sesame\"\n"), "templates/x:2: /etc/x: db_password has a secret in clear"},
		{"setting in YAML", inTemplate("password: sesame\n"), "secret in clear"},
		{"no secrets", inTemplate("passwd: files systemd\nPasswordAuthentication no\npassword required pam_unix.so\npassword = /etc/secret\ntoken=$TOKEN\n# password\nrequire-password: yes\n"), ""},

		{"hash in a template", inTemplate("root:" + hash + ":19000::::::\n"), "templates/x:1: /etc/x: there is a password hash in it"},
		{"hash in the profile", map[string]string{profile: tiny + "system: {root_password_hash: '" + hash + "'}\n"}, "gentoo-reassure.yaml:4: system.root_password_hash: anybody on the network"},
		{"hash in a public profile", map[string]string{profile: tiny + "secrets: public\nsystem: {root_password_hash: '" + hash + "'}\n"}, ""},
		{"locked", map[string]string{profile: tiny + "system: {root_password_hash: '*'}\n"}, ""},
		{"public does not cover keys", map[string]string{profile: tiny + "secrets: public\ntemplates: [{path: /etc/x, source: x}]\n", "templates/x": openssh}, "private key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolveAll(t, site(t, c.files))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nhas no\n%s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "sesame") {
				t.Error("the message tells the password")
			}
		})
	}
}

// TestWadsAreReadOnce counts readings.
func TestWadsAreReadOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.tar")
	put(t, path, "one")
	old := time.Now().Add(-time.Hour)
	touch := func(at time.Time) {
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	touch(old)
	measure := func(wantDigest string, wantRead bool) {
		t.Helper()
		var log bytes.Buffer
		w := &Wads{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))}
		info, err := w.Measure(t.Context(), "a.tar")
		if err != nil {
			t.Fatal(err)
		}
		if info.SHA256 != spec.Sum([]byte(wantDigest)) || info.Size != spec.Size(len(wantDigest)) {
			t.Errorf("%+v, want that of %q", info, wantDigest)
		}
		if read := log.Len() > 0; read != wantRead {
			t.Errorf("read: %v", read)
		}
		if err := w.Save(); err != nil {
			t.Fatal(err)
		}
	}
	measure("one", true)
	measure("one", false)
	put(t, path, "two") // of the same size, a moment ago
	measure("two", true)
	measure("two", true) // too fresh to be trusted
	touch(old.Add(time.Minute))
	measure("two", true)
	measure("two", false)
	put(t, path+".new", "six")
	if err := os.Chtimes(path+".new", old.Add(time.Minute), old.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // another inode
		t.Fatal(err)
	}
	measure("six", true)
	put(t, filepath.Join(dir, digestsFile), "{damaged")
	measure("six", true)
	measure("six", false)
}

// TestLocalBoot has a site and one of its profiles say how PCs go on to their disks.
func TestLocalBoot(t *testing.T) {
	dir := site(t, map[string]string{
		"site.yaml":            strings.Replace(siteYAML, "hosts:\n", "  local_boot: {bios: -1}\nhosts:\n", 1),
		"profiles/debian.yaml": "table: mbr\npartitions: [{name: root, size: rest, filesystem: ext4, mount: /}]\nwads: [{file: wad.tar}]\nlocal_boot: {bios: disk, uefi: next}\n",
	})
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]spec.LocalBoot{
		"":      {BIOS: "-1", UEFI: "disk"},
		"exp01": {BIOS: "-1", UEFI: "disk"},
		"exp02": {BIOS: "disk", UEFI: "next"},
	} {
		own := spec.LocalBoot{}
		if name == "exp02" {
			own = want
		}
		if got := s.OwnLocalBoot(name); got != own {
			t.Errorf("%q has %+v of its own, want %+v", name, got, own)
		}
		if got := s.LocalBoot(name); got != want {
			t.Errorf("%q: %+v, want %+v", name, got, want)
		}
	}
	put(t, filepath.Join(dir, "site.yaml"), strings.Replace(siteYAML, "hosts:\n", "  local_boot: {bios: 7, uefi: shell}\nhosts:\n", 1))
	_, err = Load(dir)
	for _, want := range []string{`site.local_boot.bios: "7": write one of 0, 4, 5, -1, disk`, `site.local_boot.uefi: "shell": write one of disk, next`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
