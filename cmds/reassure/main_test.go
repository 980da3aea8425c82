package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reassure runs the program and returns its output, error output and exit code.
func reassure(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	err := run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), exitCode(err)
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := reassure(t, args...)
	if code != 0 {
		t.Fatalf("reassure %q: exit code %d: %s", args, code, errs)
	}
	return out
}

// TestFirstLab is what the README has a newcomer do.
func TestFirstLab(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir := t.TempDir()
	site, out, tftp := filepath.Join(dir, "lab"), filepath.Join(dir, "www"), filepath.Join(dir, "tftp")
	if err := os.Mkdir(tftp, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "init", site)
	if got := must(t, "check", "--site", site); !strings.Contains(got, "no mistakes; hosts: 0") {
		t.Errorf("check of a new site: %s", got)
	}
	// The example's comment signs go, and nothing else.
	file := filepath.Join(site, "site.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	edited := string(text)
	for _, line := range []string{"- name: exp01", "  mac:", "  ip:", "  profile:"} {
		edited = strings.Replace(edited, "  #"+line, "  "+line, 1)
	}
	if err := errors.Join(os.WriteFile(file, []byte(edited), 0o644), os.WriteFile(filepath.Join(site, "wads/debian.tar.zst"), []byte("wad"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if got := must(t, "check", "-s", site); !strings.Contains(got, "hosts: 1") {
		t.Errorf("check: %s", got)
	}
	if got := must(t, "publish", "--site", site, "--out", out, "--tftp", tftp); !strings.Contains(got, "exp01") || !strings.Contains(got, "new") {
		t.Errorf("publish: %s", got)
	}
	if _, err := os.Stat(filepath.Join(out, "manifests/01-00-09-3d-12-20-ed.json.minisig")); err != nil {
		t.Error(err)
	}
	if got := must(t, "publish", "--site", site, "--out", out, "--tftp", tftp); got != "hosts 1, unchanged 1, wads written 0\n" {
		t.Errorf("publish again: %q", got)
	}
	if got := must(t, "switch", "EXP01", "remote", "--site", site, "--tftp", tftp); got != "exp01: remote\n" {
		t.Errorf("switch: %q", got)
	}
	fields := strings.Fields(strings.Split(must(t, "hosts", "--site", site, "--tftp", tftp), "\n")[1])
	if len(fields) != 6 || strings.Join(fields[:5], " ") != "exp01 00:09:3d:12:20:ed 172.30.0.11 debian remote" || len(fields[5]) != 12 {
		t.Errorf("hosts: %q", fields)
	}
	must(t, "switch", "exp01", "local", "--site", site, "--tftp", tftp)
	if _, err := os.Lstat(filepath.Join(tftp, "pxelinux.cfg/01-00-09-3d-12-20-ed")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if got := must(t, "dhcp-config", "dnsmasq", "--site", site, "--interface", "eth1"); !strings.Contains(got, "interface=eth1\n") {
		t.Errorf("dhcp-config: %s", got)
	}
}

func TestMistakes(t *testing.T) {
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	dir := t.TempDir()
	site := filepath.Join(dir, "lab")
	must(t, "init", site)
	bad := filepath.Join(dir, "bad")
	must(t, "init", bad)
	for name, text := range map[string]string{
		"site.yaml":            "site:\n  url: ftp://x\n  servr: 1.2.3.4\n  network: 172.30.0.0/24\n",
		"profiles/debian.yaml": "tabel: gpt\n",
	} {
		if err := os.WriteFile(filepath.Join(bad, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(dir, "open.key")
	if err := os.WriteFile(key, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"check --site " + bad, 1, []string{"site.yaml:2: site.url:", "site.yaml:3: site.servr: there is no such key here: did you mean server?", "debian.yaml:1: tabel:"}},
		{"check --site " + dir, 1, []string{"site.yaml is not there", "reassure init"}},
		{"init " + site, 1, []string{"site.yaml is there already"}},
		{"publish --site " + site, 2, []string{"--out"}},
		{"publish --site " + site + " --out " + dir + "/w --key " + key, 1, []string{"open.key", "chmod 600"}},
		{"publish --site " + site + " --out " + dir + "/w --key a --unsigned", 2, []string{"key", "unsigned"}},
		{"publish --site " + bad + " --out " + dir + "/w", 1, []string{"did you mean"}},
		{"switch exp01 --site " + site, 2, []string{"requires at least 2 arg"}},
		{"switch exp01 Remote --tftp " + dir, 2, []string{`not "Remote"`}},
		{"switch exp01 remote --site " + site, 2, []string{"--tftp"}},
		{"switch exp01 remote --tftp " + dir + " --site " + site, 1, []string{`there is no host "exp01"`}},
		{"hosts nobody --site " + site, 1, []string{`there is no host "nobody"`}},
		{"dhcp-config udhcpd --site " + site, 2, []string{"dhcpd, kea, dnsmasq"}},
		{"template nowhere", 1, []string{"reassure template lists them"}},
		{"wad capture root@pc", 2, []string{"with -o"}},
		{"wad capture root@pc -o x.zip", 2, []string{".tar.zst"}},
		{"wad capture -o x.tar", 2, []string{"accepts 1 arg"}},
		{"wad capture root@pc -o x.tar --keep /nothing", 2, []string{"--show-excludes"}},
		{"wad capture root@pc -o x.tar --exclude nothing", 2, []string{"absolute path"}},
		{"wad capture -- -oProxyCommand=x", 2, []string{"with -o"}},
		{"wad build debian", 2, []string{"with -o"}},
		{"wad build debian -o " + dir + "/none/x.tar", 1, []string{"there is no folder"}},
		{"wad build debian -o " + dir + "/x.tar --packages --evil", 1, []string{"no name of a package"}},
		{"frobnicate", 2, []string{"unknown command"}},
		{"check --colour", 2, []string{"unknown flag", "--help"}},
		{"check extra", 2, []string{"check"}},
	} {
		_, errs, code := reassure(t, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.args, code, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: %s has no %q", c.args, errs, want)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "w")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was published after a mistake")
	}
}

func TestHelpHasExamples(t *testing.T) {
	a := &app{}
	commands := a.root().Commands()
	for i := 0; i < len(commands); i++ {
		c := commands[i]
		commands = append(commands, c.Commands()...)
		if c.HasParent() && c.Parent().Name() == "completion" {
			continue // cobra's own
		}
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example or no description", c.Name())
		}
		for line := range strings.Lines(c.Example) {
			words := strings.Fields(strings.Split(strings.Split(line, "&& ")[strings.Count(line, "&& ")], ">")[0])
			if words[0] != "reassure" {
				continue
			}
			if _, _, err := a.root().Find(words[1:]); err != nil {
				t.Errorf("example %q: %v", line, err)
			}
		}
	}
	for _, name := range strings.Fields(must(t, "template")) {
		if must(t, "template", name) == "" {
			t.Errorf("template %s is empty", name)
		}
	}
	if got := must(t); !strings.Contains(got, "reassure publish --out") {
		t.Errorf("without arguments: %s", got)
	}
}
