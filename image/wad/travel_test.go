package wad

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestExclusions(t *testing.T) {
	var patterns []string
	seen := map[string]bool{}
	for _, e := range Exclusions() {
		if err := CheckPattern(e.Pattern); err != nil || e.Why == "" || seen[e.Pattern] {
			t.Errorf("%+v: %v", e, err)
		}
		seen[e.Pattern] = true
		patterns = append(patterns, e.Pattern)
	}
	for path, want := range map[string]bool{
		"/proc": false, "/proc/1": true, "/dev/null": true, "/tmp/.hidden": true, "/run": false, "/lost+found": true, "/boot/lost+found": true, "/a/b/lost+found": false,
		"/etc/ssh/ssh_host_ed25519_key": true, "/etc/ssh/ssh_host_rsa_key.pub": true, "/etc/ssh/ssh_config": false, "/etc/ssh/sshd_config": false,
		"/etc/machine-id": true, "/var/lib/dhcp/dhclient.eth0.leases": true, "/etc/udev/rules.d/70-persistent-net.rules": true, "/etc/udev/rules.d/80-own.rules": false,
		"/var/log": false, "/var/log/syslog": true, "/var/log/syslog.1": true, "/var/log/apt": false, "/var/log/apt/history.log": true, "/var/log/journal/x": true,
		"/etc/reassure/stamp.json": true, "/etc/reassure/site.yaml": false, "/swapfile": true, "/home/kim": false, "/etc/shadow": false, "/root/.ssh/authorized_keys": false,
	} {
		if got := Excluded(patterns, path); got != want {
			t.Errorf("%s: excluded %v, want %v", path, got, want)
		}
	}
	for _, bad := range []string{"", "/", "/*", "etc", "./etc", "/etc/", "/etc/../x", "/[", "/a\nb", "//x"} {
		if err := CheckPattern(bad); err == nil {
			t.Errorf("the pattern %q is taken", bad)
		}
	}
}

// What a machine-id's place is kept by comes before an archive, and is part of it.
func TestEmptyMachineID(t *testing.T) {
	archive := append(EmptyMachineID(time.Unix(1790000000, 5)), pack(t, folder("./etc"), file("./etc/motd", "x"))...)
	root := t.TempDir()
	if _, err := Extract(t.Context(), bytes.NewReader(archive), root, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, root); got["etc/machine-id"] != "" || got["etc/motd"] != "x" || len(got) != 3 {
		t.Errorf("the tree is %v", got)
	}
}

// guarded is a buffer that may be looked at while somebody writes.
type guarded struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (g *guarded) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(p)
}

func (g *guarded) bytes() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.text.Bytes())
}

// What is sent can be read again, and a stream without its end is known to be none.
func TestCompress(t *testing.T) {
	archive := pack(t, file("a", strings.Repeat("text ", 100000)))
	var sent guarded
	w, err := Compress(&sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	before := sent.bytes() // it goes on writing meanwhile
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole := sent.bytes()
	if len(whole) > len(archive)/10 {
		t.Errorf("%d bytes of %d are sent", len(whole), len(archive))
	}
	if _, err := Extract(t.Context(), bytes.NewReader(whole), t.TempDir(), Options{}); err != nil {
		t.Error(err)
	}
	if _, err := Extract(t.Context(), bytes.NewReader(before), t.TempDir(), Options{}); err == nil {
		t.Error("a stream without its end is taken")
	}
}
