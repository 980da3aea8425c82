package chroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// helper builds the chroot helper, once.
var helper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "chroothelper")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "chroothelper")
	cmd := exec.Command("go", "build", "-o", file, "reassure/cmds/chroothelper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return file, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if file, err := helper(); err == nil {
		_ = os.RemoveAll(filepath.Dir(file)) // a leftover in the temporary folder harms nobody
	}
	os.Exit(code)
}

// newRoot makes a small system: Debian's static busybox, with the programs
// that the steps here use.
func newRoot(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test changes its root folder and mounts: run it as root")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install the Debian package busybox-static", err)
	}
	root := t.TempDir()
	for _, d := range []string{"bin", "etc", "usr/sbin", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "cat", "test", "kill", "ls", "readlink", "mount"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// listing is every file of a tree with its mode and content.
func listing(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%v %s", info.Mode(), strings.TrimPrefix(name, root))
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += " " + spec.Sum(data).Short()
		case info.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(name)
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func shell(name, script string) spec.Step {
	return spec.Step{Name: name, Run: &spec.Run{Command: []string{"/bin/sh", "-c", script}}}
}

// run runs steps in root and expects nothing of it to be left there.
func run(t *testing.T, ctx context.Context, root string, list ...spec.Step) (Summary, string, error) {
	t.Helper()
	program, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	before := listing(t, root)
	var log bytes.Buffer
	summary, err := Run(ctx, Options{
		Root: root, Helper: program, Job: Job{Host: "exp01", Steps: list}, Keys: StartKeys(ctx, list),
		ByUUID: map[string]string{"1234-abcd": "/dev/sda7"}, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	mounts, mountsErr := mountsBelow(root)
	if mountsErr != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %q, %v", mounts, mountsErr)
	}
	if roots, _ := filepath.Glob("/proc/[0-9]*/root"); slices.ContainsFunc(roots, func(r string) bool {
		target, _ := os.Readlink(r)
		return below(root, target)
	}) {
		t.Error("a process is still in the new root")
	}
	if diff := cmp.Diff(before, listing(t, root)); diff != "" && err == nil && !t.Failed() {
		t.Logf("what the steps changed:\n%s", diff)
	}
	if _, err := os.Lstat("/dev/disk/by-uuid/1234-abcd"); err == nil {
		t.Error("the link by UUID is still there")
	}
	return summary, log.String(), err
}

func TestWhatStepsSee(t *testing.T) {
	root := newRoot(t)
	if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte("nameserver 203.0.113.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := listing(t, root)
	summary, _, err := run(t, t.Context(), root, shell("look", `
		set -e
		test -e /proc/self/status; test -d /sys/class; test -c /dev/null; test -c /dev/pts/ptmx; test ! -e /run/none
		readlink /dev/disk/by-uuid/1234-abcd
		cat /usr/sbin/policy-rc.d
		test "$HOME" = /root
		! test -e /etc/passwd
		cat /etc/resolv.conf
	`))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	want := append([]string{"../../sda7", "#!/bin/sh", "exit 101"}, strings.Split(strings.TrimSpace(string(ours)), "\n")...)
	got := summary.Results[len(summary.Results)-1].Output
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the step saw (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, listing(t, root)); diff != "" {
		t.Errorf("the tree was changed (-before +after):\n%s", diff)
	}
}

func TestResolvConfIsPutBack(t *testing.T) {
	for name, plant := range map[string]func(file string) error{
		"missing":        func(string) error { return nil },
		"link into run":  func(f string) error { return os.Symlink("/run/systemd/resolve/stub-resolv.conf", f) },
		"link, relative": func(f string) error { return os.Symlink("../run/resolvconf/resolv.conf", f) },
		"link elsewhere": func(f string) error { return os.Symlink("/nonesuch/resolv.conf", f) },
	} {
		t.Run(name, func(t *testing.T) {
			root := newRoot(t)
			if err := plant(filepath.Join(root, "etc/resolv.conf")); err != nil {
				t.Fatal(err)
			}
			before := listing(t, root)
			script := "test -s /etc/resolv.conf"
			if name == "link elsewhere" {
				script = "! test -e /etc/resolv.conf"
			}
			if _, _, err := run(t, t.Context(), root, shell("look", script)); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, listing(t, root)); diff != "" {
				t.Errorf("the tree was changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestStepsMayWriteResolvConf has steps do what they do to it in the ways that
// programs have. What they leave stays, and this machine's own is as it was.
func TestStepsMayWriteResolvConf(t *testing.T) {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	const theirs, wads = "nameserver 203.0.113.7\n", "nameserver 203.0.113.1\n"
	for name, script := range map[string]string{
		"in place":     "echo nameserver 203.0.113.7 >/etc/resolv.conf",
		"by rename":    "echo nameserver 203.0.113.7 >/etc/new; mv /etc/new /etc/resolv.conf",
		"after it was": "rm /etc/resolv.conf; echo nameserver 203.0.113.7 >/etc/resolv.conf",
		"as a link":    "echo nameserver 203.0.113.7 >/etc/real; ln -sf real /etc/resolv.conf",
	} {
		for _, before := range []string{wads, ""} {
			t.Run(fmt.Sprintf("%s, with %d bytes before", name, len(before)), func(t *testing.T) {
				root := newRoot(t)
				file := filepath.Join(root, "etc/resolv.conf")
				if before != "" {
					if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if _, _, err := run(t, t.Context(), root, shell("write", "set -e; "+script)); err != nil {
					t.Error(err)
				}
				if text, err := os.ReadFile(file); err != nil || string(text) != theirs {
					t.Errorf("the new system's is %q, %v", text, err)
				}
				if left, _ := filepath.Glob(file + ".*"); left != nil {
					t.Errorf("left behind: %v", left)
				}
				if now, _ := os.ReadFile("/etc/resolv.conf"); string(now) != string(host) {
					if err := os.WriteFile("/etc/resolv.conf", host, 0o644); err != nil {
						t.Error(err)
					}
					t.Errorf("this machine's own was changed to %q", now)
				}
			})
		}
	}
}

// TestMountPointsAreFolders plants a link where a mount would follow it out of the
// new system.
func TestMountPointsAreFolders(t *testing.T) {
	for _, name := range []string{"/proc", "/sys", "/dev", "/run"} {
		t.Run(name, func(t *testing.T) {
			root, outside := newRoot(t), t.TempDir()
			if err := errors.Join(os.RemoveAll(filepath.Join(root, name)), os.Symlink(outside, filepath.Join(root, name))); err != nil {
				t.Fatal(err)
			}
			_, _, err := run(t, t.Context(), root, shell("look", "true"))
			if err == nil || !strings.Contains(err.Error(), name+" of the new system is no folder, but a symbolic link") {
				t.Errorf("error is %v", err)
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), outside) || strings.Contains(string(mounts), root+"/") {
				t.Errorf("something stays mounted: %v", err)
			}
		})
	}
}

func TestOwnPolicyStays(t *testing.T) {
	root := newRoot(t)
	policy := filepath.Join(root, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(policy, []byte("mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, t.Context(), root, shell("look", `test "$(cat /usr/sbin/policy-rc.d)" = mine`)); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(policy); string(text) != "mine" {
		t.Errorf("the wad's own policy is %q", text)
	}
}

func TestWhateverStepsDo(t *testing.T) {
	for _, c := range []struct {
		name string
		step spec.Step
		want string // in the error; empty means none
	}{
		{"fails", shell("bad one", "echo why >&2; exit 3"), `step "bad one"`},
		{"fails, and may", spec.Step{Name: "NX", AllowFailure: true, Run: &spec.Run{Command: []string{"/bin/sh", "-c", "exit 1"}}}, ""},
		{"is not there", spec.Step{Name: "gone", Run: &spec.Run{Command: []string{"nonesuch"}}}, "lacks the package"},
		{"hangs", spec.Step{Name: "slow", Timeout: spec.Duration(300 * time.Millisecond), Run: &spec.Run{Command: []string{"/bin/sleep", "1000"}}}, "killed"},
		{"leaves a daemon", shell("daemon", "sleep 1000 </dev/null >/dev/null 2>&1 & echo started"), ""},
		{"leaves a mount", shell("mounter", "mount -t tmpfs none /tmp"), ""},
		{"kills the helper", shell("killer", "kill -9 $PPID; sleep 1000"), "chroot helper"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			before := listing(t, root)
			summary, _, err := run(t, t.Context(), root, c.step)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error is %v; want %q", err, c.want)
			}
			if c.step.AllowFailure && !summary.Results[len(summary.Results)-1].Allowed {
				t.Errorf("results are %+v", summary.Results)
			}
			if diff := cmp.Diff(before, listing(t, root)); diff != "" {
				t.Errorf("the tree was changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	root := newRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, _, err := run(t, ctx, root, shell("slow", "sleep 1000")); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestNoRoom(t *testing.T) {
	root := newRoot(t)
	_, err := Run(t.Context(), Options{Root: root, Helper: "/nonesuch"})
	if err == nil || !strings.Contains(err.Error(), "/nonesuch") {
		t.Errorf("without a helper: %v", err)
	}
	if mounts, _ := mountsBelow(root); len(mounts) > 0 {
		t.Errorf("still mounted: %q", mounts)
	}
}

// TestKeys has OpenSSH judge the keys, and sees that they get where they belong
// without passing through the log.
func TestKeys(t *testing.T) {
	root := newRoot(t)
	summary, log, err := run(t, t.Context(), root, spec.Step{Name: "keys", SSHKeys: &spec.SSHKeys{User: "ed25519"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(summary.HostKeys) != 3 {
		t.Errorf("host keys: %q", summary.HostKeys)
	}
	files := map[string]string{"root/.ssh/id_ed25519": "(ED25519)"}
	for kind, says := range map[string]string{"rsa": "3072", "ecdsa": "(ECDSA)", "ed25519": "(ED25519)"} {
		files["etc/ssh/ssh_host_"+kind+"_key"] = says
	}
	for name, says := range files {
		file := filepath.Join(root, name)
		out, err := exec.Command("ssh-keygen", "-lf", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), says) || !strings.Contains(string(out), "root@exp01") {
			t.Errorf("ssh-keygen -l (Debian package openssh-client) says of %s: %s%v", name, out, err)
		}
		derived, err := exec.Command("ssh-keygen", "-yf", file).Output()
		public, _ := os.ReadFile(file + ".pub")
		if err != nil || strings.Fields(string(derived))[1] != strings.Fields(string(public))[1] {
			t.Errorf("the halves of %s do not belong together: %v", name, err)
		}
		private, _ := os.ReadFile(file)
		if secret := strings.Split(string(private), "\n")[2]; strings.Contains(log, secret) {
			t.Errorf("the log has %s", name)
		}
	}
	if host, _ := os.ReadFile(filepath.Join(root, "etc/ssh/ssh_host_ed25519_key.pub")); !slices.ContainsFunc(summary.HostKeys, func(k string) bool { return strings.HasPrefix(string(host), k+" ") }) {
		t.Errorf("reported are %q, not %s", summary.HostKeys, host)
	}
}

// TestOwnKeys has those keys stay that are the PC's own already, and others be made anew.
func TestOwnKeys(t *testing.T) {
	root := newRoot(t)
	step := spec.Step{Name: "keys", SSHKeys: &spec.SSHKeys{User: "ed25519"}}
	if _, _, err := run(t, t.Context(), root, step); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	host, user, other := read("etc/ssh/ssh_host_ed25519_key"), read("root/.ssh/id_ed25519"), read("etc/ssh/ssh_host_rsa_key")
	if err := os.WriteFile(filepath.Join(root, "etc/ssh/ssh_host_ecdsa_key"), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	list := []spec.Step{step}
	summary, err := Run(t.Context(), Options{
		Root: root, Helper: program, Keys: StartKeys(t.Context(), list),
		Job: Job{Host: "exp01", Steps: list, Own: []string{"/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ecdsa_key", "/root/.ssh/id_ed25519"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if read("etc/ssh/ssh_host_ed25519_key") != host || read("root/.ssh/id_ed25519") != user {
		t.Error("keys of the PC's own are gone")
	}
	if read("etc/ssh/ssh_host_rsa_key") == other {
		t.Error("a key that is not to be kept was kept")
	}
	if !strings.Contains(read("etc/ssh/ssh_host_ecdsa_key"), "PRIVATE KEY") {
		t.Error("what is no key was kept as one")
	}
	public := read("etc/ssh/ssh_host_ed25519_key.pub")
	if !slices.ContainsFunc(summary.HostKeys, func(k string) bool { return strings.HasPrefix(public, k+" ") }) {
		t.Errorf("reported are %q, not %s", summary.HostKeys, public)
	}
}

func TestKeysRefuse(t *testing.T) {
	k := StartKeys(t.Context(), []spec.Step{{SSHKeys: &spec.SSHKeys{Host: []string{"dsa"}}}})
	if _, _, err := k.wait(t.Context()); err == nil || !strings.Contains(err.Error(), "dsa") {
		t.Errorf("a type that does not exist: %v", err)
	}
	if host, user, err := (*Keys)(nil).wait(t.Context()); host != nil || user != nil || err != nil {
		t.Error("no keys are something")
	}
}
