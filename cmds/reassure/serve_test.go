package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestServeAndAsk runs the boot server, without DHCP and TFTP, and asks it
// everything through its socket and by HTTP.
func TestServeAndAsk(t *testing.T) {
	plainly(t)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir := t.TempDir()
	site, socket := filepath.Join(dir, "lab"), filepath.Join(dir, "run", "socket")
	must(t, "init", site)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	config := "dhcp: {mode: \"off\"}\ntftp: {root: " + dir + ", off: true}\nstate: " + dir + "/state\nsocket: " + socket + "\nhttp: {listen: [\"" + address + "\"]}\n"
	table := "name,mac,ip,groups\nexp01,00:09:3d:12:20:ed,172.30.0.11,amd\nexp02,00:09:3d:12:20:ee,172.30.0.12,amd\nexp03,00:09:3d:12:20:ef,172.30.0.13,\n"
	if err := errors.Join(free.Close(),
		os.WriteFile(filepath.Join(site, "lab.yaml"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(dir, "lab.csv"), []byte(table), 0o644),
		os.WriteFile(filepath.Join(site, "wads/debian.tar.zst"), []byte("wad"), 0o644)); err != nil {
		t.Fatal(err)
	}
	must(t, "hosts", "import", filepath.Join(dir, "lab.csv"), "--profile", "debian", "--write", "--site", site)

	var out, log lines
	stop := start(t, nil, &out, &log, "serve", "--config", filepath.Join(site, "lab.yaml"))
	defer stop()
	until(t, &log, "msg=ready")
	t.Setenv("REASSURE_SERVER", socket)

	var screen, errs lines
	leave := start(t, nil, &screen, &errs, "status", "--watch")
	until(t, &screen, "exp03")

	id := ""
	for _, c := range []struct {
		args string
		code int
		want string // a pattern
	}{
		{"status", 0, `^3 hosts: 3 new\n\nHOST .*\nexp01  new       local   `},
		{"hold @amd --why measuring", 0, `^exp01: held\nexp02: held\n$`},
		{"status exp01", 0, `exp01  held      local   .*measuring`},
		{"why EXP02", 0, `^exp02: local: .*measuring`},
		{"release @amd", 0, `^exp01: .*\nexp02: .*\n$`},
		{"rollout exp0* --canary exp01 --at-once 2 --why first", 0, `^roll-out (\w+) by .*: first\n  \d hosts? first, then at most 2 at once; no more begin when over 20% failed\n  waiting: exp01 exp02 exp03\nreassure status --watch`},
		{"rollouts", 0, `\nID  +\S+ \S+  goes on  3        0        0     0       0     .*first\n`},
		{"rollouts ID", 0, `^roll-out ID by`},
		{"status exp01", 0, `exp01  armed     remote  `},
		{"status exp03", 0, `exp03  armed     local   .*waits for the canary exp01`},
		{"stop ID --why wrong", 0, `stopped by .* \(wrong\): reassure release ID lets it go on\n`},
		{"release ID", 0, `^roll-out ID: goes on\n$`},
		{"reimage exp03", 0, `changed or not\n  waiting: exp03\n`},
		{"reload", 0, `^the site has 3 hosts\nno host's software changed\n$`},
		{"discover", 0, `^every card that asked is a host's\n$`},
		{"known-hosts", 0, `^$`},
		{"log exp01 --list", 0, `^exp01 was never told Remote\n$`},
		{"log exp01", 1, `exp01`},
		{"stop nothing", 1, `nothing`},
		{"why nobody", 1, `nobody`},
		{"status nobody", 1, `no host is called "nobody"`},
		{"rollout exp01 --between lunch", 1, `lunch`},
		{"hold nobody --why x", 1, `no host is called "nobody"`},

		{"status --server http://ADDRESS", 0, `^3 hosts: 3 armed\n`},
		{"status --server http://ADDRESS/reassure", 0, `^3 hosts: 3 armed\n`},
		{"status --server http://ADDRESS/elsewhere", 1, `as no boot server does|there is no`},
		{"hold exp01 --why x --server http://ADDRESS", 1, `--token-file`},
		{"hold exp01 --why x --server http://ADDRESS --token-file STATE/token", 0, `^exp01: held\n$`},
	} {
		r := strings.NewReplacer("ID", id, "ADDRESS", address, "STATE", dir+"/state")
		said, wrong, code := reassure(t, strings.Fields(r.Replace(c.args))...)
		m := regexp.MustCompile(strings.ReplaceAll(c.want, "ID", id)).FindStringSubmatch(said + wrong)
		if code != c.code || m == nil {
			t.Errorf("%s: code %d, want %d and %q:\n%s%s", r.Replace(c.args), code, c.code, c.want, said, wrong)
		} else if len(m) > 1 {
			id = m[1]
		}
	}

	// A mistake in a file is told with its place, through the server.
	file := filepath.Join(site, "site.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "  - {name: exp04}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, wrong, code := reassure(t, "reload"); code != 1 || !regexp.MustCompile(`site\.yaml:\d+: hosts\[3\]\.mac: is missing`).MatchString(wrong) {
		t.Errorf("reload of a site with a mistake: %d, %s", code, wrong)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	until(t, &screen, "exp01  held ")
	leave()
}
