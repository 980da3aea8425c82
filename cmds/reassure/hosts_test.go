package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTakeOver brings an old lab into a new site, and a card that asked.
func TestTakeOver(t *testing.T) {
	plainly(t)
	dir := t.TempDir()
	site := filepath.Join(dir, "lab")
	must(t, "init", site)
	conf := filepath.Join(dir, "dhcpd.conf")
	text := `group amd {
	host exp01 { hardware ethernet 00:09:3D:12:20:ED; fixed-address 172.30.0.11; }
	host exp02 { hardware ethernet 00:09:3D:12:20:EE; fixed-address 172.30.0.12; }
}
host printer { hardware ethernet 00:09:3D:12:20:99; }
`
	table := filepath.Join(dir, "lab.csv")
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o644), os.WriteFile(table, []byte("name;mac;ip\nexp02;00:09:3d:12:20:ee;172.30.0.12\nexp03;00:09:3d:12:20:ef;172.30.0.13\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(site, "site.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	yaml := `  - name: exp01
    mac: ["00:09:3d:12:20:ed"]
    ip: 172.30.0.11
    profile: debian
    groups: [amd]
  - name: exp02
    mac: ["00:09:3d:12:20:ee"]
    ip: 172.30.0.12
    profile: debian
    groups: [amd]
`
	for _, c := range []struct {
		args     string
		code     int
		out, err string
	}{
		{"hosts import FILE", 1, "", conf + ":5: host printer: has no fixed-address: write one, or leave the host out with --only\n"},
		{"hosts import FILE --only exp*", 2, "", "hosts import: " + conf + ":2: exp01 has no profile: name one with --profile\n"},
		{"hosts import FILE --only [", 2, "", "hosts import: --only: \"[\" is not a shell pattern\n"},
		{"hosts import FILE --only exp* --profile debian", 0, yaml, "2 hosts; --write adds them to " + file + "\n"},
		{"hosts import " + dir + "/none", 1, "", "hosts import: open " + dir + "/none: no such file or directory\n"},
	} {
		out, errs, code := reassure(t, append(strings.Fields(strings.Replace(c.args, "FILE", conf, 1)), "--site", site)...)
		if code != c.code || out != c.out || errs != c.err {
			t.Errorf("%s: code %d, want %d:\n%s", c.args, code, c.code, cmp.Diff(c.out+c.err, out+errs))
		}
	}
	// Without a site, what is printed is a beginning.
	if out, _, code := reassure(t, "hosts", "import", conf, "--only", "exp*", "--profile", "debian", "--site", dir); code != 0 || out != yaml {
		t.Errorf("without a site: %d, %s", code, out)
	}
	if _, errs, code := reassure(t, "hosts", "import", conf, "--only", "exp*", "--profile", "debian", "--site", dir, "--write"); code != 1 || !strings.Contains(errs, "site.yaml is not there") {
		t.Errorf("writing without a site: %d, %s", code, errs)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != string(before) {
		t.Error("site.yaml was written")
	}
	for _, c := range []struct{ args, out string }{
		{"hosts import " + conf + " --only exp* --profile debian --write", file + ": added 2 hosts\n"},
		{"hosts import " + conf + " --only exp* --write", file + ": added 0 hosts (in it already: 2)\n"},
		{"hosts import " + table + " --write", file + ": added 1 host (in it already: 1)\n"},
		{"discover add 00:09:3d:12:20:f0 exp04 172.30.0.14 --group amd", file + ": added exp04 with the profile debian\n"},
	} {
		if out := must(t, append(strings.Fields(c.args), "--site", site)...); out != c.out {
			t.Errorf("%s: %s", c.args, cmp.Diff(c.out, out))
		}
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := string(before) + yaml + `  - name: exp03
    mac: ["00:09:3d:12:20:ef"]
    ip: 172.30.0.13
    profile: debian
  - name: exp04
    mac: ["00:09:3d:12:20:f0"]
    ip: 172.30.0.14
    profile: debian
    groups: [amd]
`
	if d := cmp.Diff(want, string(after)); d != "" {
		t.Error(d)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"discover add 00:09:3d:12:20 exp05 172.30.0.15", 2, "is not a MAC address"},
		{"discover add 00:09:3d:12:20:f1 exp05 exp05.lab", 2, "is not an IP address"},
		{"discover add 00:09:3d:12:20:f1 exp05 10.0.0.5", 1, "exp05.ip: 10.0.0.5 is not in the network"},
		{"discover add 00:09:3d:12:20:f0 exp05 172.30.0.15", 1, "discover add: exp05.mac[0]: \"00:09:3d:12:20:f0\" is taken already, by the host exp04"},
		{"discover add 00:09:3d:12:20:f1 exp05 172.30.0.15 --profile none", 1, `there is no profile "none"`},
		{"discover add 00:09:3d:12:20:f1", 2, "accepts 3 arg(s)"},
		{"hosts import " + table + " extra", 2, "accepts 1 arg(s)"},
		{"hosts exp04 nobody", 1, `there is no host "nobody"`},
	} {
		out, errs, code := reassure(t, append(strings.Fields(c.args), "--site", site)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: code %d, want %d: %s%s", c.args, code, c.code, out, errs)
		}
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != string(after) {
		t.Error("site.yaml was written after a mistake")
	}
}
