package lab

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/ssh"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
)

// imageWith writes an initramfs with a script in the place of the program.
func imageWith(t *testing.T, script string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "initramfs.cpio.zst")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	c := cpio.NewWriter(z)
	err = c.WriteHeader(&cpio.Header{Name: strings.TrimPrefix(program, "/"), Mode: 0o100755, Size: int64(len(script))})
	_, werr := io.WriteString(c, script)
	if err := errors.Join(err, werr, c.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestVerifyRunning has this machine play the PC: what the server sends is run for real.
func TestVerifyRunning(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: run the tests as root")
	}
	w := newWorld(t)
	admin, own := newKey(t), newKey(t)
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	p := w.pc(1)
	p.reimage()
	w.lab.hostOf("exp01").IP = netip.MustParseAddr("127.0.0.1")
	w.lab.sshPort = "22023"
	ran := sshd(t, "127.0.0.1:22023", own, admin.PublicKey(), func(command string, ch ssh.Channel) uint32 {
		c := exec.Command("sh", "-c", command)
		c.Stdin, c.Stdout, c.Stderr = ch, ch, ch.Stderr()
		if err := c.Run(); c.ProcessState == nil {
			t.Error(err)
		}
		return uint32(c.ProcessState.ExitCode())
	})
	verify := func(want string) *api.Verified {
		t.Helper()
		got, err := w.lab.VerifyRunning(t.Context(), "exp01", "me")
		if err != nil {
			t.Fatal(err)
		}
		if want == "" && got.Verified == nil || !strings.Contains(got.Text, want) {
			t.Errorf("it says %q, want %q", got.Text, want)
		}
		return got.Verified
	}

	verify("no ssh_key")
	w.lab.SSH = admin
	if err := w.lab.change("exp01", func(r *hosts.Record) { r.HostKeys = nil }); err != nil {
		t.Fatal(err)
	}
	verify("has reported no SSH host key")
	if err := w.lab.change("exp01", func(r *hosts.Record) {
		r.HostKeys = []string{string(ssh.MarshalAuthorizedKey(own.PublicKey()))}
	}); err != nil {
		t.Fatal(err)
	}

	before, err := os.ReadDir("/run")
	if err != nil {
		t.Fatal(err)
	}
	w.lab.Initramfs = imageWith(t, `#!/bin/sh
[ "$1" = inspect ] && grep -q '"base":"http' && grep -q '"host":"exp01"' /run/inspection && [ "$(stat -c %a /run)" = 700 ] || exit 9
echo '{"total": 2, "runtime": 1, "findings": [{"path": "/etc/motd", "what": "content"}], "steps": true}'
`)
	v := verify("")
	if v.Total != 2 || v.Runtime != 1 || len(v.Findings) != 1 || !v.Running || v.Digest.IsZero() || v.ID == "" {
		t.Errorf("found %+v", v)
	}
	if h, err := w.lab.Host("exp01"); err != nil || h.Verified == nil || h.Verified.ID != v.ID {
		t.Errorf("the server remembers %+v, %v", h.Verified, err)
	}
	after, err := os.ReadDir("/run")
	if err != nil || len(after) != len(before) {
		t.Errorf("/run had %d names, and has %d: %v", len(before), len(after), err)
	}
	if got := <-ran; !strings.HasPrefix(got, "root: exec unshare") {
		t.Errorf("the PC ran %q", got)
	}

	w.lab.Initramfs = imageWith(t, "#!/bin/sh\nprintf 'the system that runs has no \\033stamp' >&2\nexit 1")
	verify("the system that runs has no stamp")
	w.lab.Initramfs = imageWith(t, "#!/bin/sh\necho unshare: not found >&2\nexit 127")
	verify("not found: the PC's own system needs unshare")
	w.lab.Initramfs = imageWith(t, "#!/bin/sh\necho nonsense")
	verify("its answer")
	w.lab.Initramfs = filepath.Join(t.TempDir(), "none")
	verify("put the files that make image made")
	if _, err := w.lab.VerifyRunning(t.Context(), "nobody", "me"); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a host that is not there: %v", err)
	}
	if err := w.lab.change("exp01", func(r *hosts.Record) { r.Installed = nil }); err != nil {
		t.Fatal(err)
	}
	verify("is not known")
}

func TestLimited(t *testing.T) {
	l := &limited{most: 5}
	for range 3 {
		if n, err := l.Write([]byte("abc")); n != 3 || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
	}
	if !bytes.Equal(l.Bytes(), []byte("abcab")) {
		t.Errorf("it keeps %q", l.Bytes())
	}
}
