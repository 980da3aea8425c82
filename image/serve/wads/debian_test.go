package wads

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeTool puts a program in front of all others.
func fakeTool(t *testing.T, name, body string) (seen string) {
	t.Helper()
	dir := t.TempDir()
	seen = dir + "/arguments"
	script := "#!/bin/bash\nprintf '%s\\n' \"$@\" >" + seen + "\n" + body
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return seen
}

// Whatever becomes of mmdebstrap, what it had made in its folder goes, and so
// does the wad unless all was well.
func TestDebian(t *testing.T) {
	needRoot(t)
	const archive = `mkdir -p $TMPDIR/tree/etc; echo trixie >$TMPDIR/tree/etc/release; head -c 2000000 /dev/urandom >$TMPDIR/tree/big; cd $TMPDIR/tree; `
	for _, test := range []struct {
		name, body string
		o          DebianOptions
		after      time.Duration // interrupt
		want       string        // in the error
	}{
		{name: "well", body: archive + "setfacl -m u:4711:rw etc/release; echo I: working >&2; tar -c --format=pax ."},
		{name: "fails at once", body: "echo E: no such suite >&2; exit 1", want: "no such suite: see that the suite and the packages exist"},
		{name: "fails at the end", body: archive + "tar -c .; echo E: the end >&2; exit 25", want: "E: the end"},
		{name: "cleans up when interrupted", body: archive + "trap 'sleep 1; echo cleaned >$0.cleaned; exit 1' TERM; tar -c . | head -c 1000000; sleep 60 & wait", after: time.Second, want: "context canceled"},
		{name: "leaves something running", body: archive + "trap '' TERM; (trap '' TERM; sleep 300) >/dev/null 2>&1 & echo $! >$0.child; trap 'exit 1' TERM; wait", after: time.Second, want: "context canceled"},
		{name: "strange package", o: DebianOptions{Packages: []string{"--evil"}}, want: "no name of a package"},
		{name: "strange suite", o: DebianOptions{Suite: "-"}, want: "neither a suite nor a mirror"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := t.TempDir()
			o := test.o
			o.Temp = t.TempDir()
			var said bytes.Buffer
			o.Progress = &said
			seen := fakeTool(t, "mmdebstrap", test.body)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.after > 0 {
				time.AfterFunc(test.after, cancel)
			}
			start := time.Now()
			err := Debian(ctx, o, into(out))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error: %v; want %q", err, test.want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			empty(t, o.Temp)
			if test.want != "" {
				empty(t, out)
			} else {
				if got, err := os.ReadFile(unpacked(t, out) + "/etc/release"); err != nil || string(got) != "trixie\n" {
					t.Errorf("a file reads %q, %v", got, err)
				}
				if acl, err := exec.Command("getfacl", "-cnE", out+"/ours/etc/release").Output(); err != nil || !strings.Contains(string(acl), "user:4711:rw-") {
					t.Errorf("its ACL is %q, %v", acl, err)
				}
				if said.String() != "I: working\n" {
					t.Errorf("said %q", said.String())
				}
			}
			program := filepath.Dir(seen) + "/mmdebstrap"
			if strings.HasPrefix(test.name, "cleans up") {
				if _, err := os.Stat(program + ".cleaned"); err != nil {
					t.Errorf("it was not let clean up: %v", err)
				}
			}
			if strings.HasPrefix(test.name, "leaves") {
				child, err := os.ReadFile(program + ".child")
				if err != nil {
					t.Fatal(err)
				}
				// A process that was killed takes a moment to go.
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
					if err != nil || strings.Contains(string(stat), ") Z ") {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("it still runs: %s", stat)
						break
					}
				}
			}
		})
	}
}

// What mmdebstrap is run with, and its hooks on a tree.
func TestDebianHooks(t *testing.T) {
	needRoot(t)
	cache := t.TempDir() + "/it's cache"
	sh(t, filepath.Dir(cache), fmt.Sprintf("mkdir -p %q; echo deb > %q/kept.deb", cache, cache))
	seen := fakeTool(t, "mmdebstrap", `tar -c -T /dev/null`)
	err := Debian(t.Context(), DebianOptions{
		Suite: "trixie", Mirrors: []string{"http://mirror.lab/debian", "deb http://other trixie main"}, Packages: []string{"vim", "g++"}, Kernel: "linux-image-rt-amd64",
		Recommends: true, Hooks: []string{`touch "$1"/hooked`}, Cache: cache, Temp: t.TempDir(),
	}, func(_ context.Context, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	var rest, setup, customize []string
	for _, a := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if hook, ok := strings.CutPrefix(a, "--setup-hook="); ok {
			setup = append(setup, hook)
		} else if hook, ok := strings.CutPrefix(a, "--customize-hook="); ok {
			customize = append(customize, hook)
		} else if !strings.HasPrefix(a, "--essential-hook=") {
			rest = append(rest, a)
		}
	}
	want := []string{
		"--mode=root", "--variant=minbase", "--format=tar", "--skip=cleanup/reproducible", "--include=linux-image-rt-amd64,grub-pc,grub-efi-amd64-bin,grub-efi-amd64-signed,shim-signed,openssh-server,systemd-sysv,udev,ifupdown,iproute2,vim,g++",
		`--aptopt=Apt::Install-Recommends "true"`, "--skip=essential/unlink", "trixie", "-", "http://mirror.lab/debian", "deb http://other trixie main",
	}
	if diff := cmp.Diff(want, rest); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	root := t.TempDir()
	for _, hook := range setup {
		sh(t, root, "sh -c "+quoted(hook)+" exec "+root)
	}
	sh(t, root, `test -e var/cache/apt/archives/kept.deb; echo new > var/cache/apt/archives/new.deb
mkdir -p etc/ssh var/lib/dbus var/lib/systemd var/log/apt; touch etc/ssh/ssh_host_rsa_key etc/ssh/ssh_host_rsa_key.pub etc/hostname etc/resolv.conf var/lib/systemd/random-seed var/log/dpkg.log; echo 1 > etc/machine-id; touch etc/ssh/sshd_config`)
	for _, hook := range customize {
		sh(t, root, "sh -c "+quoted(hook)+" exec "+root)
	}
	left, err := filepath.Glob(root + "/etc/*")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(root + "/etc/ssh/*")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{root + "/etc/machine-id", root + "/etc/ssh", root + "/etc/ssh/sshd_config"}, append(left, more...)); diff != "" {
		t.Errorf("in etc (-want +got):\n%s", diff)
	}
	sh(t, root, `test ! -s etc/machine-id; test -e hooked; test ! -e var/cache/apt/archives/new.deb; test ! -e var/lib/systemd/random-seed`)
	if _, err := os.Stat(cache + "/new.deb"); err != nil {
		t.Error(err)
	}
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func TestDebianWithoutTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Debian(t.Context(), DebianOptions{Temp: t.TempDir()}, into(t.TempDir()))
	if err == nil || !strings.Contains(err.Error(), "apt-get install mmdebstrap") || errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}

// A folder that something is mounted in stays, for it may be /dev.
func TestRemove(t *testing.T) {
	needRoot(t)
	dir := t.TempDir() + "/tree"
	sh(t, filepath.Dir(dir), "mkdir -p tree/dev tree/etc outside; echo keep > outside/null; echo x > tree/etc/x")
	if err := unix.Mount(filepath.Dir(dir)+"/outside", dir+"/dev", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := remove(dir)
	if gone := unix.Unmount(dir+"/dev", 0); gone != nil {
		t.Fatal(gone)
	}
	if err == nil || !strings.Contains(err.Error(), "mounted on "+dir+"/dev") {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir) + "/outside/null"); err != nil {
		t.Error(err)
	}
	if err := remove(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it is still there")
	}
}
