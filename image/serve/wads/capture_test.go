package wads

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/tree"
	"reassure/image/wad"
)

// sh runs shell commands in a folder.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes files of other owners and enters other roots: run it as root")
	}
}

// pc is a PC to capture: a folder that a command enters as the root of a system
// whose programs are this machine's, mounted there.
type pc struct {
	dir   string
	enter string // runs its arguments in the PC
}

// newPC makes a PC with one of everything.
func newPC(t *testing.T) *pc {
	t.Helper()
	needRoot(t)
	p := &pc{dir: t.TempDir()}
	p.enter = p.dir + "/enter"
	sh(t, p.dir, `
mkdir -p root/{proc,sys,dev,run,tmp,usr,etc/ssh,etc/reassure,boot,home/u,srv,var/log/journal,var/lib/{systemd,dhcp,dbus},"mnt/my disk [a]",var/cache/apt/archives,root,lost+found,fake}
cd root
ln -s usr/bin bin; ln -s usr/sbin sbin; ln -s usr/lib lib; [ ! -e /lib64 ] || ln -s usr/lib64 lib64
echo 0123456789abcdef0123456789abcdef > etc/machine-id; cp etc/machine-id var/lib/dbus/
for k in rsa ed25519; do echo secret > etc/ssh/ssh_host_${k}_key; echo public > etc/ssh/ssh_host_${k}_key.pub; done
echo config > etc/ssh/sshd_config; echo {} > etc/reassure/stamp.json; echo index > etc/reassure/finished; echo mine > etc/reassure/site.yaml
echo seed > var/lib/systemd/random-seed; echo lease > var/lib/dhcp/dhclient.eth0.leases; echo log > var/log/syslog; echo log > var/log/journal/x
echo deb > var/cache/apt/archives/a.deb; echo lost > lost+found/1; echo swap > swapfile; echo r > run/r; echo t > tmp/t; echo p > proc/p; echo d > dev/d
chmod 1777 tmp; chmod 700 lost+found root
echo hello > home/u/f; chown -R 4711:4712 home/u; chmod 4755 home/u/f; ln home/u/f srv/hard; ln -s ../home srv/soft; mkfifo srv/fifo; mknod srv/null c 1 3
cp home/u/f srv/cap; setcap cap_net_raw+ep srv/cap; setfattr -n user.k -v v srv/cap; setfacl -m u:4711:rw srv/cap; setfacl -d -m u:4712:rx srv
truncate -s 3M srv/holes; echo end >> srv/holes; echo n > "$(printf 'srv/n\n\377 x')"; head -c 3000000 /dev/urandom > srv/big
touch -d '2001-02-03 04:05:06.123456789 UTC' srv/holes srv etc/ssh
echo kernel > boot/hidden
`)
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.dir + "/root/var/lib/socket"})
	if err != nil {
		t.Fatal(err)
	}
	socket.SetUnlinkOnClose(false)
	socket.Close()
	script := fmt.Sprintf(`#!/bin/sh
# In a mount namespace of its own, which goes with the last process in it.
exec unshare --mount --propagation private sh -c '
root=$1; shift
mount --bind "$root" "$root"; mount --bind /usr "$root/usr"; mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/dev"
mount -t tmpfs tmpfs "$root/boot"; echo kernel >"$root/boot/vmlinuz-1"; echo i >"$root/boot/initrd.img-1"
mount -t tmpfs tmpfs "$root/mnt/my disk [a]"; echo far >"$root/mnt/my disk [a]/far"
: >"$root/dev/null"; rm "$root/dev/null"; mknod -m 666 "$root/dev/null" c 1 3
exec chroot "$root" "$@"' enter %s/root "$@"
`, p.dir)
	if err := os.WriteFile(p.enter, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeSSH is a program that does as ssh, but runs body instead of logging in; in
// it, $ENTER runs a command in the PC.
func (p *pc) fakeSSH(t *testing.T, body string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ssh")
	script := "#!/bin/bash\nENTER=" + p.enter + `
echo "$*" >` + p.dir + `/arguments
while [ "$1" != -- ]; do shift; done; shift 2
` + body
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{path}
}

// into packs into dir/pc.tar.zst.
func into(dir string) Pack {
	return func(ctx context.Context, archive io.Reader) error {
		_, err := wad.Pack(ctx, archive, dir+"/pc.tar.zst", wad.PackOptions{})
		return err
	}
}

// unpacked extracts dir/pc.tar.zst, both by us and by GNU tar, which must agree.
func unpacked(t *testing.T, dir string) string {
	t.Helper()
	sh(t, dir, `mkdir ours theirs; tar --zstd -xpf pc.tar.zst -C theirs --numeric-owner --acls --xattrs --xattrs-include='*'`)
	f, err := os.Open(dir + "/pc.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := wad.Extract(t.Context(), f, dir+"/ours", wad.Options{}); err != nil {
		t.Fatal(err)
	}
	same(t, dir+"/ours", dir+"/theirs")
	return dir + "/ours"
}

func same(t *testing.T, got, want string) {
	t.Helper()
	differences, err := tree.Compare(got, want)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		switch d.Path {
		case "usr", "proc", "dev", "boot", "mnt/my disk [a]":
			// A mount point shows the owner, mode and time of what is mounted there.
			if d.What == "time" || d.What == "mode" {
				continue
			}
		}
		t.Errorf("got, want: %v", d)
	}
}

// expect makes the tree that a capture of the PC should be.
func (p *pc) expect(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	sh(t, dir, `cp -a --sparse=always `+p.dir+`/root want; cd want
keep() { local f=$1 d; shift; for d; do touch -r "$d" "$f/t$(echo $d | tr / _)"; done; }
undo() { local f=$1 d; shift; for d; do touch -r "$f/t$(echo $d | tr / _)" "$d"; done; }
folders="var/lib etc etc/ssh etc/reassure var/lib/dbus var/lib/systemd var/lib/dhcp var/log var/log/journal var/cache/apt/archives . boot run tmp proc dev"
times=$(mktemp -d); keep $times $folders
: > etc/machine-id; chmod 444 etc/machine-id; touch -d @1790000000 etc/machine-id
rm -rf etc/ssh/ssh_host_* etc/reassure/{stamp.json,finished} var/lib/dbus/machine-id var/lib/systemd/random-seed var/lib/dhcp/*leases var/lib/socket var/log/syslog var/log/journal/x \
  var/cache/apt/archives/a.deb lost+found swapfile run/r tmp/t proc/p dev/d boot/hidden
undo $times $folders`)
	return dir + "/want"
}

func now() time.Time { return time.Unix(1790000000, 0) }

// A PC by way of a real ssh and a real sshd, on this machine.
func TestCapture(t *testing.T) {
	p := newPC(t)
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal("sshd is missing: apt-get install openssh-server")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	dir := t.TempDir()
	sh(t, dir, fmt.Sprintf(`mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f user; cp user.pub authorized
cat > sshd_config <<END
ListenAddress 127.0.0.1:%d
HostKey $PWD/host
AuthorizedKeysFile $PWD/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
ForceCommand %s sh -c "\$SSH_ORIGINAL_COMMAND"
END
echo "[127.0.0.1]:%d $(cut -d' ' -f1,2 host.pub)" > known
cat > ssh_config <<END
Host golden-pc
  HostName 127.0.0.1
  Port %d
  User root
  IdentityFile $PWD/user
  IdentitiesOnly yes
  UserKnownHostsFile $PWD/known
  BatchMode yes
END`, port, p.enter, port, port))
	server := exec.Command(sshd, "-D", "-e", "-f", dir+"/sshd_config")
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", said.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	ssh := []string{"ssh", "-F", dir + "/ssh_config"}

	t.Run("usual", func(t *testing.T) {
		out := t.TempDir()
		var stderr bytes.Buffer
		found, err := Capture(t.Context(), CaptureOptions{From: "golden-pc", SSH: ssh, Stderr: &stderr, Now: now}, into(out))
		if err != nil {
			t.Fatal(err)
		}
		if !found.Kernel {
			t.Error("the kernel was not seen")
		}
		if len(found.Mounts) != 1 || !strings.HasPrefix(found.Mounts[0], "/usr (") {
			t.Errorf("left out: %q; want /usr alone", found.Mounts)
		}
		same(t, unpacked(t, out), p.expect(t))
		if stderr.Len() > 0 {
			t.Errorf("said: %s", stderr.String())
		}
	})
	t.Run("mounts and exclusions", func(t *testing.T) {
		out := t.TempDir()
		_, err := Capture(t.Context(), CaptureOptions{
			From: "golden-pc", SSH: ssh, Now: now,
			Exclude:       []string{"/srv/[bh]*", "/home/u", "/proc/*", "/etc/machine-id", "/it's"},
			IncludeMounts: []string{"/boot", "/mnt/my disk [a]"},
		}, into(out))
		if err != nil && !strings.Contains(err.Error(), "mount point") {
			t.Fatal(err)
		}
		if err == nil {
			t.Fatal("a mount point with a pattern's characters was taken")
		}
		_, err = Capture(t.Context(), CaptureOptions{
			From: "golden-pc", SSH: ssh, Now: now,
			Exclude:       []string{"/srv/[bh]*", "/home/u", "/proc/*", "/etc/machine-id", "/it's"},
			IncludeMounts: []string{"/boot"},
		}, into(out))
		if err != nil {
			t.Fatal(err)
		}
		got := unpacked(t, out)
		for path, want := range map[string]bool{
			"boot/vmlinuz-1": true, "boot/hidden": false, "srv/big": false, "srv/hard": false, "srv/cap": true, "home/u": false, "home": true,
			"mnt/my disk [a]": true, "mnt/my disk [a]/far": false, "etc/ssh/ssh_host_rsa_key": true, "tmp/t": true, "usr": true, "usr/bin": false,
		} {
			if _, err := os.Lstat(filepath.Join(got, path)); (err == nil) != want {
				t.Errorf("%s: %v; want it there: %v", path, err, want)
			}
		}
	})
	t.Run("stranger", func(t *testing.T) {
		out := t.TempDir()
		sh(t, dir, "ssh-keygen -q -t ed25519 -N '' -f stranger; sed 's,/user$,/stranger,' ssh_config > stranger_config")
		_, err := Capture(t.Context(), CaptureOptions{From: "golden-pc", SSH: []string{"ssh", "-F", dir + "/stranger_config"}}, into(out))
		if err == nil || !strings.Contains(err.Error(), "Permission denied") || !strings.Contains(err.Error(), "golden-pc") || !strings.Contains(err.Error(), "see that ssh logs in") {
			t.Errorf("error: %v", err)
		}
		empty(t, out)
	})
}

// empty fails the test if there is something in a folder.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Whatever goes wrong on the way: an error that says what, and nothing is left.
func TestCaptureFails(t *testing.T) {
	p := newPC(t)
	for _, test := range []struct {
		name, ssh string
		o         CaptureOptions
		want      string // in the error; empty: none
		says      string // on standard error
	}{
		{name: "well", ssh: `exec $ENTER "$@"`},
		{name: "a login script that talks", ssh: `echo Welcome; echo; exec $ENTER "$@"`},
		{name: "some files changed", ssh: `printf '#!/bin/sh\n/usr/bin/tar "$@"\nexit $?1\n' >` + p.dir + `/root/fake/tar; chmod 755 ` + p.dir + `/root/fake/tar
			exec $ENTER env PATH=/fake:$PATH "$@"`, says: "some files changed"},
		{name: "tar fails at the end", ssh: `printf '#!/bin/sh\n/usr/bin/tar "$@"\ncase $* in *--create*) echo "tar: ./x: cannot read" >&2; exit 2;; esac\n' >` + p.dir + `/root/fake/tar; chmod 755 ` + p.dir + `/root/fake/tar
			exec $ENTER env PATH=/fake:$PATH "$@"`, want: "tar: ./x: cannot read"},
		{name: "cut in the middle", ssh: `$ENTER "$@" | head -c 1500000; exit 255`, want: "the connection failed or was cut"},
		{name: "cut in the greeting", ssh: `echo reassure-capture 1 machine-id=yes; exit 255`, want: "the connection failed or was cut"},
		{name: "ssh is killed", ssh: `$ENTER "$@" | head -c 1500000; kill -9 $$`, want: "signal: killed"},
		{name: "ends early and well", ssh: `$ENTER "$@" | head -c 1500000; exit 0`, want: "unexpected EOF"},
		{name: "nothing at all", ssh: `exit 0`, want: "ended before the archive"},
		{name: "talks without end", ssh: `yes`, want: "login scripts"},
		{name: "not root", ssh: `exec $ENTER setpriv --reuid=65534 --clear-groups "$@"`, want: "--sudo"},
		{name: "no GNU tar", ssh: `ln -sf /usr/bin/busybox ` + p.dir + `/root/fake/tar; exec $ENTER env PATH=/fake:$PATH "$@"`, want: "no GNU tar"},
		{name: "old tar", ssh: `rm -f ` + p.dir + `/root/fake/tar; printf '#!/bin/sh\necho "tar (GNU tar) 1.26"\n' >` + p.dir + `/root/fake/tar; chmod 755 ` + p.dir + `/root/fake/tar
			exec $ENTER env PATH=/fake:$PATH "$@"`, want: "older than 1.28"},
		{name: "sudo", o: CaptureOptions{Sudo: true}, ssh: `[ "$1 $2" = "sudo -n" ] || exit 3; shift 2; exec $ENTER "$@"`},
		{name: "no host", o: CaptureOptions{From: "-oProxyCommand=evil"}, want: "is no PC"},
		{name: "bad pattern", o: CaptureOptions{Exclude: []string{"etc"}}, want: "absolute path"},
		{name: "no ssh", o: CaptureOptions{SSH: []string{"/nonexistent/ssh"}}, want: "/nonexistent/ssh"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := t.TempDir()
			o := test.o
			var stderr bytes.Buffer
			o.Stderr, o.Now = &stderr, now
			if o.From == "" {
				o.From = "root@golden-pc"
			}
			if o.SSH == nil {
				o.SSH = p.fakeSSH(t, test.ssh)
			}
			sh(t, p.dir, "rm -rf root/fake; mkdir root/fake")
			_, err := Capture(t.Context(), o, into(out))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error: %v; want %q", err, test.want)
			}
			if !strings.Contains(stderr.String(), test.says) {
				t.Errorf("said %q; want %q", stderr.String(), test.says)
			}
			if test.want != "" {
				empty(t, out)
			} else if got, err := os.ReadFile(filepath.Join(unpacked(t, out), "etc/ssh/sshd_config")); err != nil || string(got) != "config\n" {
				t.Errorf("a file reads %q, %v", got, err)
			}
		})
	}
}

// What ssh is run with.
func TestCaptureArguments(t *testing.T) {
	p := newPC(t)
	if _, err := Capture(t.Context(), CaptureOptions{From: "root@golden-pc", SSH: p.fakeSSH(t, `exec $ENTER "$@"`)}, into(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(p.dir + "/arguments")
	if diff := cmp.Diff("-T -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -- root@golden-pc sh\n", string(got)); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// A person who has had enough: at once, and nothing is left.
func TestCaptureInterrupted(t *testing.T) {
	p := newPC(t)
	out := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2*time.Second, cancel)
	start := time.Now()
	_, err := Capture(ctx, CaptureOptions{From: "root@golden-pc", SSH: p.fakeSSH(t, `$ENTER "$@" | head -c 1500000; sleep 60`)}, into(out))
	if !errors.Is(err, context.Canceled) || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	empty(t, out)
}
