package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// plant makes a tree: names that end in / are folders, values that begin with
// -> are links, others are files.
func plant(t *testing.T, files map[string]string) tree {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(content, "->"); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(file, 0o755)
		case link:
			err = os.Symlink(target, file)
		default:
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree(root)
}

func (t tree) mustRead(tb testing.TB, p string) string {
	tb.Helper()
	text, err := os.ReadFile(t.at(p))
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

func mode(t *testing.T, file string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestWrite(t *testing.T) {
	r := plant(t, map[string]string{"target": "theirs", "etc/link": "->../target"})
	if err := r.write("/etc/new/deep/file", "text", 0o4755, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if got := r.mustRead(t, "/etc/new/deep/file"); got != "text" || mode(t, r.at("/etc/new/deep/file")) != 0o755|os.ModeSetuid {
		t.Errorf("content %q, mode %v", got, mode(t, r.at("/etc/new/deep/file")))
	}
	if err := r.write("/etc/link", "ours", 0, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if r.mustRead(t, "/target") != "theirs" || mode(t, r.at("/etc/link")) != 0o644 {
		t.Error("a link was followed, not replaced")
	}
	if left, _ := filepath.Glob(r.at("/etc/.reassure-*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
	if err := r.write("/target/below", "x", 0, 0, 0); err == nil {
		t.Error("wrote below a file")
	}
}

func TestEdit(t *testing.T) {
	const before = "hostname=\"HOSTNAME\"\n# IPADDR\nip=IPADDR\n"
	for _, c := range []struct {
		name string
		edit spec.Edit
		want string
		err  string
	}{
		{"replace all", spec.Edit{Replace: []spec.Replacement{{Match: `\bIPADDR\b`, With: "1.2.3.4"}}}, "hostname=\"HOSTNAME\"\n# 1.2.3.4\nip=1.2.3.4\n", ""},
		{"a line's start, a group", spec.Edit{Replace: []spec.Replacement{{Match: `^(ip)=.*$`, With: "${1}=x"}}}, "hostname=\"HOSTNAME\"\n# IPADDR\nip=x\n", ""},
		{"in order", spec.Edit{Replace: []spec.Replacement{{Match: "HOSTNAME", With: "A"}, {Match: "A\"", With: "B\""}}}, "hostname=\"B\"\n# IPADDR\nip=IPADDR\n", ""},
		{"no match", spec.Edit{Replace: []spec.Replacement{{Match: "GATEWAY", With: "x"}}}, "", `nothing in it matches "GATEWAY"`},
		{"no match, optional", spec.Edit{Replace: []spec.Replacement{{Match: "GATEWAY", With: "x", Optional: true}}}, before, ""},
		{"append", spec.Edit{Append: "more"}, before + "more\n", ""},
		{"append what is there", spec.Edit{Append: "# IPADDR\n"}, before, ""},
		{"append what is there at the end", spec.Edit{Append: "ip=IPADDR"}, before, ""},
		{"append what is there commented out", spec.Edit{Append: "IPADDR"}, before + "IPADDR\n", ""},
		{"append what a longer line begins with", spec.Edit{Append: "ip=IP"}, before + "ip=IP\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := plant(t, map[string]string{"etc/conf": before})
			if err := os.Chmod(r.at("/etc/conf"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.edit.Path = "/etc/conf"
			err := r.edit(&c.edit)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || r.mustRead(t, "/etc/conf") != before {
					t.Fatalf("error is %v; want one with %q, and nothing changed", err, c.err)
				}
				return
			}
			if got := r.mustRead(t, "/etc/conf"); err != nil || got != c.want || mode(t, r.at("/etc/conf")) != 0o600 {
				t.Errorf("%v: got %q, mode %v; want %q", err, got, mode(t, r.at("/etc/conf")), c.want)
			}
		})
	}
	if err := plant(t, nil).edit(&spec.Edit{Path: "/none", Append: "x"}); err == nil {
		t.Error("edited a file that is not there")
	}
}

func TestRemove(t *testing.T) {
	r := plant(t, map[string]string{"a/1.lease": "", "a/2.lease": "", "a/keep": "", "dir/deep/file": "", "dangling": "->nowhere", "out": "->a"})
	if err := r.remove("/a/*.lease", "/dir", "/dangling", "/out", "/none/*"); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(string(r))
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{"a"}, left); diff != "" || r.mustRead(t, "/a/keep") != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	for _, p := range []string{"/", "/*/..", "/a/.."} {
		if err := r.remove(p); err == nil || !r.has("/a/keep") {
			t.Fatalf("%q: %v; want a refusal", p, err)
		}
	}
	lent := plant(t, map[string]string{"bin/sh": "", "dev/sda": "", "proc/1/": "", "sys/x": ""})
	for _, p := range []string{"/dev/sd*", "/dev", "/*", "/proc/1", "/sys/x"} {
		if err := lent.remove(p); err == nil || !lent.has("/dev/sda") || !lent.has("/bin/sh") {
			t.Errorf("%q: %v; want a refusal: these are the reimager's", p, err)
		}
	}
}

func TestSymlink(t *testing.T) {
	r := plant(t, map[string]string{"etc/file": "x", "etc/old": "->file", "etc/folder/": ""})
	for _, p := range []string{"/etc/new/link", "/etc/file", "/etc/old"} {
		if err := r.symlink(p, "/target"); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if got, _ := os.Readlink(r.at(p)); got != "/target" {
			t.Errorf("%s leads to %q", p, got)
		}
	}
	if err := r.symlink("/etc/folder", "/target"); err == nil {
		t.Error("replaced a folder")
	}
}

func TestLimits(t *testing.T) {
	r := plant(t, nil)
	err := r.limits(&spec.Limits{Rules: []spec.LimitRule{{Domain: "*", Type: "hard", Item: "nproc", Value: "2048"}, {Domain: "@lab", Type: "-", Item: "core", Value: "0"}}})
	if err != nil || !strings.HasSuffix(r.mustRead(t, "/etc/security/limits.d/90-reassure.conf"), "\n* hard nproc 2048\n@lab - core 0\n") {
		t.Errorf("%v: %q", err, r.mustRead(t, "/etc/security/limits.d/90-reassure.conf"))
	}
}

func TestServiceOpenRC(t *testing.T) {
	r := &runner{tree: plant(t, map[string]string{"sbin/openrc": "", "etc/init.d/vmware": "", "etc/runlevels/boot/old": "->/etc/init.d/old"})}
	ctx := context.Background()
	if err := r.service(ctx, &spec.Service{Name: "vmware"}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.Readlink(r.at("/etc/runlevels/default/vmware")); got != "/etc/init.d/vmware" {
		t.Errorf("the link leads to %q", got)
	}
	if err := r.service(ctx, &spec.Service{Name: "old", Runlevel: "boot", Disable: true}); err != nil || r.has("/etc/runlevels/boot/old") {
		t.Errorf("not disabled: %v", err)
	}
	if err := r.service(ctx, &spec.Service{Name: "none"}); err == nil || !strings.Contains(err.Error(), "/etc/init.d/none") {
		t.Errorf("a service that is not there: %v", err)
	}
	bare := &runner{tree: plant(t, nil)}
	if err := bare.service(ctx, &spec.Service{Name: "x"}); err == nil {
		t.Error("a system without an init took a service")
	}
}

func TestScrub(t *testing.T) {
	goes := []string{
		"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_ed25519_key.pub", "etc/dropbear/dropbear_rsa_host_key",
		"var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/misc/random-seed",
		"var/lib/seedrng/seed.credit", "var/lib/systemd/credential.secret",
		"etc/udev/rules.d/70-persistent-net.rules", "etc/udev/rules.d/75-persistent-net-generator.rules",
		"var/lib/dhcp/dhclient.eth0.leases", "var/lib/dhcpcd/eth0.lease", "var/lib/NetworkManager/internal-1-eth0.lease",
	}
	stays := []string{"etc/udev/rules.d/70-reassure-net.rules", "etc/ssh/sshd_config", "etc/machine-id", "var/lib/dhcp/keep"}
	files := map[string]string{}
	for _, f := range slices.Concat(goes, stays) {
		files[f] = "x"
	}
	r := plant(t, files)
	if err := r.scrub(nil); err != nil {
		t.Fatal(err)
	}
	for _, f := range goes {
		if r.has(f) {
			t.Errorf("%s survived", f)
		}
	}
	for _, f := range stays {
		if !r.has(f) {
			t.Errorf("%s is gone", f)
		}
	}
	if got := r.mustRead(t, "etc/machine-id"); got != "" {
		t.Errorf("machine-id is %q", got)
	}
	if err := plant(t, nil).scrub(nil); err != nil {
		t.Errorf("a tree without leftovers: %v", err)
	}
}

// TestOwn has a PC keep what it is known by, and nothing that somebody has put links to.
func TestOwn(t *testing.T) {
	r := plant(t, map[string]string{
		"etc/ssh/ssh_host_rsa_key": "mine", "etc/ssh/ssh_host_rsa_key.pub": "mine", "etc/ssh/ssh_host_ecdsa_key": "not kept", "etc/ssh/sshd_config": "x",
		"etc/machine-id": "mine", "root/.ssh/id_ed25519": "mine", "elsewhere/random-seed": "x", "var/lib/misc/": "",
	})
	if err := os.MkdirAll(r.at("var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"var/lib/systemd": "../../elsewhere", "var/lib/misc/random-seed": "/elsewhere/random-seed"} {
		if err := os.Symlink(target, r.at(link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(r.at("/"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	keep := []string{"/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub", "/etc/machine-id", "/root/.ssh", "/var/lib/systemd", "/var/lib/misc", "/etc/gone"}
	own, err := Own(root, keep, []spec.Step{{SSHKeys: &spec.SSHKeys{User: "ed25519"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc/machine-id", "/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub", "/root/.ssh/id_ed25519"}
	if diff := cmp.Diff(want, own); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
	if err := r.scrub(own); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"etc/machine-id", "etc/ssh/ssh_host_rsa_key", "root/.ssh/id_ed25519"} {
		if got := r.mustRead(t, f); got != "mine" {
			t.Errorf("%s is %q", f, got)
		}
	}
	if r.has("etc/ssh/ssh_host_ecdsa_key") {
		t.Error("a key that nobody wanted to keep was kept")
	}
}

const shadow = "root:*:19000:0:99999:7:::\nlab:$6$a$b:19000:0:99999:7:::\n"

func TestSettings(t *testing.T) {
	base := map[string]string{"etc/shadow": shadow, "usr/share/zoneinfo/Europe/Zurich": "TZif", "etc/debian_version": "12", "usr/lib/systemd/systemd": "", "etc/systemd/system/": ""}
	r := &runner{tree: plant(t, base), job: Job{System: spec.System{
		RootPasswordHash: "$6$salt$hash", AuthorizedKeys: []string{"ssh-ed25519 AAAA a", "ssh-rsa BBBB b"},
		Timezone: "Europe/Zurich", Locale: "de_CH.UTF-8", Keymap: "de-latin1",
	}}}
	if err := os.Chmod(r.at("/etc/shadow"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := r.settings(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(r.mustRead(t, "/etc/shadow"), "\n")
	if f := strings.Split(lines[0], ":"); f[1] != "$6$salt$hash" || f[2] == "19000" || len(f) != 9 || lines[1]+"\n" != strings.SplitAfter(shadow, "\n")[1] {
		t.Errorf("shadow is %q", lines)
	}
	for file, want := range map[string]os.FileMode{"/etc/shadow": 0o640, "/root/.ssh": os.ModeDir | 0o700, "/root/.ssh/authorized_keys": 0o600} {
		if got := mode(t, r.at(file)); got != want {
			t.Errorf("%s has mode %v, not %v", file, got, want)
		}
	}
	for file, want := range map[string]string{
		"/root/.ssh/authorized_keys": "ssh-ed25519 AAAA a\nssh-rsa BBBB b\n",
		"/etc/timezone":              "Europe/Zurich\n",
		"/etc/default/locale":        "LANG=de_CH.UTF-8\n",
		"/etc/vconsole.conf":         "KEYMAP=de-latin1\n",
	} {
		if got := r.mustRead(t, file); got != want {
			t.Errorf("%s is %q", file, got)
		}
	}
	if got, _ := os.Readlink(r.at("/etc/localtime")); got != "/usr/share/zoneinfo/Europe/Zurich" {
		t.Errorf("localtime leads to %q", got)
	}
	if got := r.mustRead(t, "/etc/default/keyboard"); !strings.Contains(got, "XKBLAYOUT=\"de\"\nXKBVARIANT=\"\"\n") {
		t.Errorf("keyboard is %q", got)
	}

	// A clock that is behind: the wad's day stays, and is never 0.
	for _, c := range []struct {
		line string
		now  time.Time
		want string
	}{
		{"root:*:19000:0:99999:7:::", time.Unix(0, 0), "19000"},
		{"root:*::0:99999:7:::", time.Unix(0, 0), "1"},
		{"root:*:0:0:99999:7:::", time.Unix(86400*20000+5, 0), "20000"},
	} {
		r := plant(t, map[string]string{"etc/shadow": c.line + "\n"})
		err := r.password("root", "$6$a$b", c.now)
		if f := strings.Split(r.mustRead(t, "/etc/shadow"), ":"); err != nil || f[1] != "$6$a$b" || f[2] != c.want {
			t.Errorf("%q at %v became %q, %v", c.line, c.now, f, err)
		}
	}
	folder := plant(t, map[string]string{"usr/share/zoneinfo/Europe/": ""})
	if err := folder.timezone("Europe"); err == nil || folder.has("/etc/localtime") {
		t.Errorf("a folder was taken for a time zone: %v", err)
	}

	bad := &runner{tree: plant(t, map[string]string{"etc/shadow": "lab:x:1:::::::\n"}), job: Job{System: spec.System{RootPasswordHash: "$6$a$b", Timezone: "Mars/Base"}}}
	err := bad.settings()
	if err == nil || !strings.Contains(err.Error(), "no line for root") || !strings.Contains(err.Error(), "Mars/Base") {
		t.Errorf("both mistakes should be told: %v", err)
	}
	gentoo := &runner{tree: plant(t, map[string]string{"sbin/openrc": "", "etc/profile.env": "export LANG='de_DE'\nexport PAGER='less'\n", "etc/conf.d/keymaps": "keymap=\"us\"\nwindowkeys=\"YES\"\n"}), job: Job{System: spec.System{Locale: "C.UTF-8", Keymap: "de"}}}
	if err := gentoo.settings(); err != nil {
		t.Fatal(err)
	}
	if got := gentoo.mustRead(t, "/etc/conf.d/keymaps"); got != "keymap=\"de\"\nwindowkeys=\"YES\"\n" {
		t.Errorf("keymaps is %q", got)
	}
	if got := gentoo.mustRead(t, "/etc/profile.env"); got != "export LANG=\"C.UTF-8\"\nexport PAGER='less'\n" {
		t.Errorf("profile.env is %q", got)
	}
	if got := gentoo.mustRead(t, "/etc/env.d/02locale"); got != "LANG=C.UTF-8\n" {
		t.Errorf("02locale is %q", got)
	}
}

// TestModesAreKept has a file that nobody may read stay so.
func TestModesAreKept(t *testing.T) {
	for _, want := range []os.FileMode{0, 0o640, 0o755 | os.ModeSetuid} {
		r := plant(t, map[string]string{"etc/shadow": shadow})
		if err := os.Chmod(r.at("/etc/shadow"), want); err != nil {
			t.Fatal(err)
		}
		if err := r.edit(&spec.Edit{Path: "/etc/shadow", Append: "more"}); err != nil {
			t.Fatal(err)
		}
		if got := mode(t, r.at("/etc/shadow")); got != want {
			t.Errorf("mode %v became %v", want, got)
		}
	}
}

func TestSetVariable(t *testing.T) {
	for before, want := range map[string]string{
		"":                    "A=\"x\"\n",
		"B=1":                 "B=1\nA=\"x\"\n",
		"# A=1\nB=2\n":        "A=\"x\"\nB=2\n",
		"A=1\nAA=2\n A='3'\n": "A=\"x\"\nAA=2\n#\n",
		"export A=1\n":        "export A=1\nA=\"x\"\n",
		"A=\"x\"\n":           "A=\"x\"\n",
	} {
		r := plant(t, map[string]string{"f": before})
		if err := r.setVariable("/f", "A", "x"); err != nil || r.mustRead(t, "/f") != want {
			t.Errorf("%q became %q, %v; want %q", before, r.mustRead(t, "/f"), err, want)
		}
	}
}

var pair = KeyPair{Private: "-----BEGIN OPENSSH PRIVATE KEY-----\n", Public: "ssh-ed25519 AAAA"}

func TestKeysAndKnownHosts(t *testing.T) {
	r := &runner{tree: plant(t, map[string]string{"root/.ssh/known_hosts": "old ssh-rsa OLD\n"}), job: Job{Host: "exp01",
		HostKeys: map[string]KeyPair{"ed25519": pair, "rsa": {Private: "p", Public: "ssh-rsa BBBB"}}, UserKeys: map[string]KeyPair{"ed25519": pair}}}
	if err := r.knownHosts(&spec.KnownHosts{OwnKeys: true, Names: []string{"exp01"}}); err == nil || !strings.Contains(err.Error(), "ssh_keys") {
		t.Errorf("own keys before there are any: %v", err)
	}
	if err := r.sshKeys(&spec.SSHKeys{Host: []string{"rsa", "ed25519"}, User: "ed25519", PublicCopies: []string{"/root/.ssh/id.pub"}}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]os.FileMode{
		"/etc/ssh/ssh_host_ed25519_key": 0o600, "/etc/ssh/ssh_host_ed25519_key.pub": 0o644, "/etc/ssh/ssh_host_rsa_key": 0o600,
		"/root/.ssh": os.ModeDir | 0o700, "/root/.ssh/id_ed25519": 0o600, "/root/.ssh/id_ed25519.pub": 0o644, "/root/.ssh/id.pub": 0o644,
	} {
		if got := mode(t, r.at(file)); got != want {
			t.Errorf("%s has mode %v, not %v", file, got, want)
		}
	}
	if got := r.mustRead(t, "/root/.ssh/id.pub"); got != "ssh-ed25519 AAAA root@exp01\n" {
		t.Errorf("id.pub is %q", got)
	}
	own := "exp01,10.0.0.1 ssh-rsa BBBB\nexp01,10.0.0.1 ssh-ed25519 AAAA\n"
	names := []string{"exp01", "10.0.0.1"}
	for range 2 { // a second time changes nothing
		if err := r.knownHosts(&spec.KnownHosts{Keep: true, OwnKeys: true, Names: names}); err != nil || r.mustRead(t, "/root/.ssh/known_hosts") != "old ssh-rsa OLD\n"+own {
			t.Errorf("%v: known_hosts is %q", err, r.mustRead(t, "/root/.ssh/known_hosts"))
		}
	}
	if err := r.knownHosts(&spec.KnownHosts{OwnKeys: true, Names: names}); err != nil || r.mustRead(t, "/root/.ssh/known_hosts") != own {
		t.Errorf("%v: known_hosts is %q", err, r.mustRead(t, "/root/.ssh/known_hosts"))
	}
	if err := r.sshKeys(&spec.SSHKeys{Host: []string{"rsa"}, User: "ed25519", UserPath: "/etc/ssh/root_key"}); err != nil || mode(t, r.at("/etc/ssh")) != os.ModeDir|0o755 {
		t.Errorf("%v: a key's folder that was there has mode %v", err, mode(t, r.at("/etc/ssh")))
	}
	if err := r.sshKeys(&spec.SSHKeys{}); err == nil || !strings.Contains(err.Error(), "ecdsa") {
		t.Errorf("a key that was not made: %v", err)
	}
}

// TestKnownHostsOwner: what NX's user had is still that user's.
func TestKnownHostsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test gives files away: run it as root")
	}
	r := &runner{tree: plant(t, map[string]string{"home/nx/.ssh/known_hosts": "old\n", "home/other/": "", "etc/ssh/ssh_host_rsa_key.pub": "ssh-rsa BBBB root@exp01\n"})}
	for p, uid := range map[string]int{"/home/nx": 101, "/home/nx/.ssh": 101, "/home/nx/.ssh/known_hosts": 102, "/home/other": 103} {
		if err := os.Chown(r.at(p), uid, uid+100); err != nil {
			t.Fatal(err)
		}
	}
	for p, uid := range map[string]int{"/home/nx/.ssh/known_hosts": 102, "/home/nx/.ssh/known_hosts2": 101, "/home/other/.ssh/known_hosts": 103} {
		if err := r.knownHosts(&spec.KnownHosts{Path: p, OwnKeys: true, Names: []string{"a"}}); err != nil {
			t.Fatal(err)
		}
		if u, g, err := r.owner(p); err != nil || u != uid || g != uid+100 || r.mustRead(t, p) != "a ssh-rsa BBBB\n" {
			t.Errorf("%s: owner %d:%d, %v, %q; want %d:%d", p, u, g, err, r.mustRead(t, p), uid, uid+100)
		}
	}
	if u, g, _ := r.owner("/home/other/.ssh"); u != 103 || g != 203 {
		t.Errorf("a new .ssh is %d:%d", u, g)
	}
}

func TestKernels(t *testing.T) {
	r := plant(t, map[string]string{
		"boot/vmlinuz-6.1.0-9-amd64": "", "boot/vmlinuz-6.1.0-10-amd64": "", "boot/initrd.img-6.1.0-10-amd64": "",
		"boot/vmlinuz-6.10.1": "", "boot/initramfs-6.10.1.img": "", "boot/vmlinuz-6.1.0-9-amd64.old": "", "boot/kernel-5.4.0-gentoo": "",
		"boot/bzImage": "", "boot/vmlinuz": "->bzImage", "boot/System.map-6.1.0-9-amd64": "", "boot/grub/": "", "boot/vmlinuz-folder/": "",
	})
	got, err := r.kernels()
	if err != nil {
		t.Fatal(err)
	}
	want := []kernel{
		{"6.10.1", "vmlinuz-6.10.1", "initramfs-6.10.1.img"},
		{"6.1.0-10-amd64", "vmlinuz-6.1.0-10-amd64", "initrd.img-6.1.0-10-amd64"},
		{"6.1.0-9-amd64", "vmlinuz-6.1.0-9-amd64", ""},
		{"5.4.0-gentoo", "kernel-5.4.0-gentoo", ""},
		{"", "vmlinuz", ""},
		{"", "bzImage", ""},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(kernel{})); diff != "" {
		t.Errorf("kernels (-want +got):\n%s", diff)
	}
	if _, err := plant(t, map[string]string{"boot/grub/": ""}).kernels(); err == nil || !strings.Contains(err.Error(), "no kernel") {
		t.Errorf("no kernel: %v", err)
	}
}

func TestCompareVersions(t *testing.T) {
	oldest := []string{
		"", "5.4.0-gentoo", "genkernel-x86_64-5.10.1-gentoo", "6.1-rc9", "6.1-rc10", "6.1", "6.1.0-rc1-amd64", "6.1.0-9-amd64",
		"6.1.0-9-cloud-amd64", "6.1.0-10-amd64", "6.1.9", "6.1.010", "6.1.99999999999999999999999", "6.10.1",
	}
	for i, a := range oldest {
		for j, b := range oldest {
			if got := compareVersions(a, b); got != sign(i-j) {
				t.Errorf("compareVersions(%q, %q) = %d; want %d", a, b, got, sign(i-j))
			}
		}
	}
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestGrubConfig(t *testing.T) {
	zero := 0
	r := &runner{tree: plant(t, map[string]string{"etc/os-release": "NAME=x\nPRETTY_NAME=\"Debian 'GNU/Linux' $12\"\n"}), job: Job{
		Table: spec.MBR, RootUUID: "11111111-2222-3333-4444-555555555555", RootPartUUID: "1a2b3c4d-03", BootUUID: "99999999-2222-3333-4444-555555555555",
	}}
	kernels := []kernel{{"6.1.0-10", "vmlinuz-6.1.0-10", "initrd.img-6.1.0-10"}, {"", "bzImage", ""}}
	for _, c := range []struct {
		name string
		set  func() *spec.BootLoader
	}{
		{"separate-boot", func() *spec.BootLoader {
			return &spec.BootLoader{Kind: "grub", CommandLine: "console=ttyS0", Serial: &zero, Menu: spec.Duration(3 * time.Second)}
		}},
		{"one-partition", func() *spec.BootLoader {
			r.job.BootPath, r.job.BootUUID, r.job.BootFS, r.job.Table = "/boot", r.job.RootUUID, spec.XFS, spec.GPT
			return &spec.BootLoader{Kind: "grub"}
		}},
	} {
		text := r.grubConfig(c.set(), kernels)
		file := filepath.Join("testdata", c.name+".cfg")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), text); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
		if out, err := exec.Command("grub-script-check", file).CombinedOutput(); err != nil {
			t.Errorf("grub-script-check (Debian package grub-common): %v\n%s", err, out)
		}
	}
}

func TestRunReports(t *testing.T) {
	root := plant(t, map[string]string{"answers": "yes\n"})
	shell := func(script string) *spec.Run { return &spec.Run{Command: []string{"/bin/sh", "-c", script}} }
	job := Job{Steps: []spec.Step{
		{Name: "talks", Run: shell("echo out; echo err >&2; echo $HOME $X"), AllowFailure: true},
		{Name: "reads", Run: &spec.Run{Command: []string{"/bin/sh", "-c", "read a; test \"$a\" = yes"}, StdinFile: "/answers"}},
		{Name: "NX setup", Run: shell("echo worked; exit 3"), AllowFailure: true},
		{Name: "hangs", Run: shell("sleep 60 & sleep 60"), Timeout: spec.Duration(200 * time.Millisecond)},
		{Name: "never", Run: shell("touch never")},
	}}
	job.Steps[0].Run.Env = []string{"X=1"}
	var results []Result
	start := time.Now()
	err := Run(context.Background(), string(root), job, func(r Result) { results = append(results, r) })
	if err == nil || !strings.Contains(err.Error(), `step "hangs"`) || !strings.Contains(err.Error(), "killed") || time.Since(start) > 30*time.Second {
		t.Fatalf("error after %v: %v", time.Since(start), err)
	}
	var names []string
	for _, r := range results {
		names = append(names, r.Step)
	}
	if diff := cmp.Diff([]string{"leave the wad's identity behind", "system settings", "talks", "reads", "NX setup", "hangs"}, names); diff != "" {
		t.Fatalf("steps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"out", "err", "/root 1"}, results[2].Output); diff != "" || results[2].Kind != "run" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if nx := results[4]; !nx.Allowed || !strings.Contains(nx.Err, "exit status 3") || nx.Output[0] != "worked" {
		t.Errorf("the failure that is allowed: %+v", nx)
	}
	if last := results[5]; last.Allowed || last.Err == "" {
		t.Errorf("the failure that is not: %+v", last)
	}
}

// TestStuck has a step read a pipe that a wad has in a file's place. It ends, by name, and
// nothing runs beside it, whatever its profile allows.
func TestStuck(t *testing.T) {
	r := plant(t, map[string]string{"etc/": ""})
	if err := syscall.Mkfifo(r.at("/etc/conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	job := Job{Steps: []spec.Step{
		{Name: "edits a pipe", Edit: &spec.Edit{Path: "/etc/conf", Append: "x"}, Timeout: spec.Duration(100 * time.Millisecond), AllowFailure: true},
		{Name: "never", Write: &spec.Write{Path: "/etc/never"}},
	}}
	var last Result
	err := Run(t.Context(), string(r), job, func(r Result) { last = r })
	if err == nil || !strings.Contains(err.Error(), `step "edits a pipe": it does not end`) || last.Step != "edits a pipe" || last.Allowed || r.has("/etc/never") {
		t.Errorf("error is %v, the last result %+v", err, last)
	}
	if got := Limit(job.Steps); got < 10*time.Minute || got > 11*time.Minute {
		t.Errorf("the steps may take %v", got)
	}
}

// TestOutputKeepsItsOrder: standard output and standard error are told as a
// terminal would show them.
func TestOutputKeepsItsOrder(t *testing.T) {
	script := "i=0; while [ $i -lt 50 ]; do echo out; echo err >&2; i=$((i+1)); done"
	job := Job{Steps: []spec.Step{{Name: "both", Run: &spec.Run{Command: []string{"/bin/sh", "-c", script}}}}}
	var last Result
	if err := Run(t.Context(), string(plant(t, nil)), job, func(r Result) { last = r }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Repeat([]string{"out", "err"}, 50), last.Output); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestMainSpeaksJSON(t *testing.T) {
	root := plant(t, nil)
	text, _ := json.Marshal(Job{Steps: []spec.Step{{Name: "link", Symlink: &spec.Symlink{Path: "/l", Target: "x"}}, {Name: "odd"}}})
	var out bytes.Buffer
	err := Main(context.Background(), string(root), bytes.NewReader(text), &out)
	if err == nil || !strings.Contains(err.Error(), "older than the manifest") {
		t.Errorf("a step of no kind: %v", err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 4 || !strings.Contains(out.String(), `"kind":"symlink"`) {
		t.Errorf("said %q", out.String())
	}
	if err := Main(context.Background(), string(root), strings.NewReader("x"), &out); err == nil {
		t.Error("took a job that is none")
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for range 1000 {
		_, _ = tl.Write([]byte("0123456789\xff\n"))
	}
	lines := tl.lines()
	if len(tl.last) != kept || lines[len(lines)-1] != "0123456789?" {
		t.Errorf("%d bytes, last line %q", len(tl.last), lines[len(lines)-1])
	}
}
