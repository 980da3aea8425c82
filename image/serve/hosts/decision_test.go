package hosts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/spec"
)

var host = &spec.Host{Name: "exp01", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}, {0, 9, 0x3d, 0x12, 0x20, 0xef}}}

const (
	one = "pxelinux.cfg/01-00-09-3d-12-20-ed"
	two = "pxelinux.cfg/01-00-09-3d-12-20-ef"
)

func tftp(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(filepath.Join(dir, "pxelinux.cfg"), 0o755),
		os.WriteFile(filepath.Join(dir, "pxelinux.cfg/default"), []byte("Local"), 0o644),
		os.WriteFile(filepath.Join(dir, "pxelinux.cfg/remote.boot"), []byte("Remote"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func expect(t *testing.T, dir string, want Decision) {
	t.Helper()
	if got, err := Decided(dir, host); err != nil || got != want {
		t.Errorf("decision %q, %v; want %q", got, err, want)
	}
}

func TestDecide(t *testing.T) {
	dir := tftp(t)
	expect(t, dir, Local)
	for range 2 {
		if err := Decide(dir, host, Remote, spec.LocalBoot{}); err != nil {
			t.Fatal(err)
		}
		expect(t, dir, Remote)
	}
	for _, name := range []string{one, two} {
		if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != "remote.boot" {
			t.Errorf("%s -> %q, %v", name, to, err)
		}
		// What a TFTP server sees.
		if text, err := os.ReadFile(filepath.Join(dir, name)); string(text) != "Remote" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	for range 2 {
		if err := Decide(dir, host, Local, spec.LocalBoot{}); err != nil {
			t.Fatal(err)
		}
		expect(t, dir, Local)
		if _, err := os.Lstat(filepath.Join(dir, one)); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "pxelinux.cfg"))
	if err != nil || len(entries) != 2 {
		t.Errorf("something was left behind: %v, %v", entries, err)
	}
}

// TestEveryLoader has a TFTP root in which GRUB and iPXE have files, too.
func TestEveryLoader(t *testing.T) {
	dir := tftp(t)
	links := map[string]string{
		one: "remote.boot", "grub/grub.cfg-01-00:09:3d:12:20:ed": "remote.cfg", "ipxe/01-00-09-3d-12-20-ed.ipxe": "remote.ipxe",
		"uki/01-00-09-3d-12-20-ed": "remote",
	}
	for name, to := range links {
		err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755),
			os.WriteFile(filepath.Join(dir, filepath.Dir(name), to), []byte("Remote"), 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := Decide(dir, host, Remote, spec.LocalBoot{}); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Remote)
	for name, want := range links {
		if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != want {
			t.Errorf("%s -> %q, %v", name, to, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "ipxe/01-00-09-3d-12-20-ef.ipxe")); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Mixed)
	if err := Decide(dir, host, Local, spec.LocalBoot{}); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Local)
	for name := range links {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "grub/remote.cfg")); err != nil {
		t.Fatal(err)
	}
	if err := Decide(dir, host, Remote, spec.LocalBoot{}); err == nil || !strings.Contains(err.Error(), "reassure publish") {
		t.Error(err)
	}
	expect(t, dir, Local)
}

func TestFound(t *testing.T) {
	dir := tftp(t)
	if err := os.Symlink("default", filepath.Join(dir, one)); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Local)
	if err := Decide(dir, host, Remote, spec.LocalBoot{}); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Remote)
	if err := os.Remove(filepath.Join(dir, two)); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Mixed)
}

func TestRefuses(t *testing.T) {
	dir := tftp(t)
	if err := os.WriteFile(filepath.Join(dir, two), []byte("my own"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, Mixed)
	for _, d := range []Decision{Local, Remote} {
		if err := Decide(dir, host, d, spec.LocalBoot{}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), two) {
			t.Errorf("%s over somebody's own file: %v", d, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, one)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("one card was switched though the other could not be")
	}
	if err := Decide(dir, host, "remot", spec.LocalBoot{}); err == nil || !strings.Contains(err.Error(), "local or remote") {
		t.Error(err)
	}
	if err := Decide(t.TempDir(), host, Remote, spec.LocalBoot{}); err == nil || !strings.Contains(err.Error(), "--tftp") {
		t.Error(err)
	}
	empty := t.TempDir()
	if err := os.Mkdir(filepath.Join(empty, "pxelinux.cfg"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Decide(empty, host, Remote, spec.LocalBoot{}); err == nil || !strings.Contains(err.Error(), "reassure publish") {
		t.Error(err)
	}
	if err := Decide(empty, host, Local, spec.LocalBoot{}); err != nil {
		t.Error(err)
	}
}
