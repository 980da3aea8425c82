package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/resolve"
	"reassure/image/spec"
)

// TestAcceptDisk shows what a person sees of a lab's first day, and what the server is told.
func TestAcceptDisk(t *testing.T) {
	plainly(t)
	f := newFake(t)
	f.targets = map[string]*spec.Disk{
		"exp01": {Device: "/dev/nvme0n1", Serial: "S1", Model: "Lab Disk", Size: 256 * spec.GiB, Contents: []spec.Content{
			{Partition: 1, Kind: "vfat", Size: 512 * spec.MiB}, {Partition: 2, Kind: "ntfs", Label: "Windows\x1b[2J", Size: 200 * spec.GiB}}},
		"exp02": {Device: "/dev/sda", Serial: "S2", Size: spec.TiB, Contents: []spec.Content{{Kind: "lvm2", Foreign: true}}},
		"exp03": {Device: "/dev/sda", WWN: "eui.00", Size: spec.TiB},
		"exp04": {Device: "/dev/sda", Serial: "S4", Size: spec.TiB, Data: true},
		"exp05": {Device: "/dev/sda", Serial: "S5", Size: spec.TiB, Table: spec.GPT, Partitions: make([]spec.Existing, 2)},
	}
	own := f.targets["exp05"].Identity()
	f.disks = map[string]*spec.DiskID{"exp05": &own}
	out, errs, code := ask(t, f.address, "accept-disk", "exp01", "exp02", "exp03", "exp04", "exp05", "--yes")
	if code != 0 || errs != "" {
		t.Errorf("code %d: %s", code, errs)
	}
	golden(t, "accept-disk", out)
	want := `accept {"disks":{"exp01":{"serial":"S1","model":"Lab Disk","size":"256GiB"},"exp02":{"serial":"S2","size":"1TiB"},"exp03":{"wwn":"eui.00","size":"1TiB"},"exp04":{"serial":"S4","size":"1TiB"},"exp05":{"serial":"S5","size":"1TiB"}}}`
	if len(f.asked) != 1 || f.asked[0] != want {
		t.Errorf("asked %q; want %q", f.asked, want)
	}
}

// TestAcceptDiskInFile does the same for a site without a boot server.
func TestAcceptDiskInFile(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir := t.TempDir()
	site, out := filepath.Join(dir, "lab"), filepath.Join(dir, "www")
	must(t, "init", site)
	lab := "site: {url: http://172.30.0.5/reassure, server: 172.30.0.5, network: 172.30.0.0/24}\n" +
		"hosts:\n  - {name: exp01, mac: [\"00:09:3d:12:20:ed\"], ip: 172.30.0.11, profile: debian}\n"
	for name, text := range map[string]string{"site.yaml": lab, "wads/debian.tar.zst": "wad"} {
		if err := os.WriteFile(filepath.Join(site, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "accept-disk", "EXP01", "--site", site, "--serial", `S1 "odd": #`, "--model", "Lab Disk")
	file := filepath.Join(site, spec.AcceptedFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A person may have written there, too.
	if err := os.WriteFile(file, append(text, "stamps:\n  - {host: exp01, serial: 12} # forged\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "accept-disk", "exp01", "--site", site, "--wwn", "eui.1")
	if got := must(t, "accept-disk", "exp01", "--site", site, "--wwn", "eui.1"); !strings.Contains(got, "already") {
		t.Errorf("a second time: %s", got)
	}
	if text, err = os.ReadFile(file); err != nil || !strings.Contains(string(text), "# forged") {
		t.Errorf("what a person wrote is gone: %s, %v", text, err)
	}
	must(t, "publish", "--site", site, "--out", out)
	data, err := os.ReadFile(filepath.Join(out, "manifests/01-00-09-3d-12-20-ed.json"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := spec.ParseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Accepted) != 2 || m.Accepted[0] != (spec.DiskID{WWN: "eui.1"}) || m.Accepted[1] != (spec.DiskID{Serial: `S1 "odd": #`, Model: "Lab Disk"}) || m.Supersedes != 12 {
		t.Errorf("accepted %+v, supersedes %d", m.Accepted, m.Supersedes)
	}
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"exp09", "--serial", "S1"}, `no host "exp09"`, 1},
		{[]string{"exp01", "--model", "M"}, "names no disk", 1},
		{[]string{"exp01", "--model", "M", "--size", "much"}, "--size", 2},
		{[]string{"exp01", "exp02", "--serial", "S1"}, "name one host", 2},
	} {
		if _, errs, code := reassure(t, append([]string{"accept-disk", "--site", site}, c.args...)...); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: code %d, %s; want %d, %q", c.args, code, errs, c.code, c.want)
		}
	}
	// A list that this program did not write is not torn apart.
	if err := os.WriteFile(file, []byte("disks: []\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := reassure(t, "accept-disk", "exp01", "--site", site, "--serial", "S1"); code != 1 || !strings.Contains(errs, `- {host: "exp01", serial: "S1"}`) {
		t.Errorf("code %d, %s", code, errs)
	}
	if _, err := resolve.Load(site); err != nil {
		t.Error(err)
	}
}
