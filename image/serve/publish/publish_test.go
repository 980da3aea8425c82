package publish

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/bootfiles"
	"reassure/image/resolve"
	"reassure/image/serve/hosts"
	"reassure/image/sign"
	"reassure/image/spec"
	"reassure/image/wad"
)

const (
	siteYAML = `site:
  url: http://172.30.0.5/reassure
  server: 172.30.0.5
  network: 172.30.0.0/24
hosts:
  - {name: exp01, mac: ["00:09:3d:12:20:ed", "00:09:3d:12:20:ef"], ip: 172.30.0.11, profile: tiny}
  - {name: exp02, mac: ["00:09:3d:12:20:ee"], ip: 172.30.0.12, profile: tiny}
`
	tiny = `table: mbr
partitions: [{name: root, size: rest, filesystem: ext4, mount: /}]
wads: [{file: base.tar}]
templates:
- {path: /etc/hosts, source: hosts, volatile: true}
- {path: /etc/hostname, source: debian/hostname}
`
	first  = "manifests/01-00-09-3d-12-20-ed.json"
	second = "manifests/01-00-09-3d-12-20-ef.json"
	other  = "manifests/01-00-09-3d-12-20-ee.json"
)

// lab is a site and where it is published.
type lab struct {
	t               *testing.T
	site, out, tftp string
	key             *sign.PrivateKey
	now             time.Time
}

func newLab(t *testing.T) *lab {
	t.Helper()
	key, err := sign.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &lab{t: t, site: filepath.Join(dir, "site"), out: filepath.Join(dir, "www", "reassure"), tftp: filepath.Join(dir, "tftp"),
		key: key, now: time.Unix(1_700_000_000, 0)}
	l.put("site.yaml", siteYAML)
	l.put("profiles/tiny.yaml", tiny)
	l.put("wads/base.tar", "base")
	if err := os.MkdirAll(l.tftp, 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// put writes a file of the site, as a new file in the place of an old one.
func (l *lab) put(name, text string) {
	l.t.Helper()
	path := filepath.Join(l.site, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) try(ctx context.Context, change func(*Options)) (*Result, error) {
	site, err := resolve.Load(l.site)
	if err != nil {
		return nil, err
	}
	o := Options{Out: l.out, TFTP: l.tftp, Signer: l.key, Now: func() time.Time { return l.now }}
	if change != nil {
		change(&o)
	}
	return Publish(ctx, site, &resolve.Wads{Dir: filepath.Join(l.site, "wads")}, o)
}

func (l *lab) publish() *Result {
	l.t.Helper()
	r, err := l.try(l.t.Context(), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *lab) manifest(name string) *spec.Manifest {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.out, name))
	if err != nil {
		l.t.Fatal(err)
	}
	m, err := spec.ParseManifest(text)
	if err != nil {
		l.t.Fatal(err)
	}
	return m
}

// state is every file below a folder: inode, time and content.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		files[name] = fmt.Sprint(info.ModTime(), " ", info.Sys().(*syscall.Stat_t).Ino, " ", string(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPublish(t *testing.T) {
	l := newLab(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	r := l.publish()
	if len(r.Hosts) != 2 || !r.Hosts[0].New || r.Wads != 1 || len(r.Boot) != 7 {
		t.Errorf("%+v", r)
	}
	m := l.manifest(first)
	if m.Host != "exp01" || m.Serial != l.now.Unix() || m.Digest != r.Hosts[0].Digest {
		t.Errorf("%+v", m)
	}
	ring, err := sign.LoadKeyring(fstest.MapFS{"site.pub": {Data: l.key.Public().Text()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{first, second, other} {
		text, err := os.ReadFile(filepath.Join(l.out, name))
		if err != nil {
			t.Fatal(err)
		}
		signature, err := os.ReadFile(filepath.Join(l.out, name+spec.SignatureSuffix))
		if err != nil {
			t.Fatal(err)
		}
		comment, err := ring.Verify(text, signature)
		if err != nil || !strings.Contains(comment, "host exp0") || !strings.Contains(comment, "serial 1700000000") {
			t.Errorf("%s: %q, %v", name, comment, err)
		}
	}
	// What a PC does: the wad at the address that the manifest gives.
	text, err := os.ReadFile(filepath.Join(l.out, m.Wads[0].URLs[0]))
	if err != nil || spec.Sum(text) != m.Wads[0].SHA256 {
		t.Errorf("wad: %v", err)
	}
	source, _ := os.Stat(filepath.Join(l.site, "wads/base.tar"))
	if there, err := os.Stat(filepath.Join(l.out, m.Wads[0].URLs[0])); err != nil || !os.SameFile(source, there) {
		t.Error("the wad takes room twice on one file system")
	}
	for _, boot := range []string{
		"pxelinux.cfg/default", "pxelinux.cfg/remote.boot", "grub/grub.cfg", "grub/remote.cfg", "ipxe/boot.ipxe", "ipxe/remote.ipxe", "uki/remote",
	} {
		text, err := os.ReadFile(filepath.Join(l.tftp, boot))
		if err != nil || bootfiles.WrittenBy(text) != bootfiles.Publish {
			t.Errorf("%s: %q, %v", boot, text, err)
		}
	}
	for _, boot := range []string{"pxelinux.cfg/remote.boot", "grub/remote.cfg", "ipxe/remote.ipxe", "uki/remote"} {
		if text, _ := os.ReadFile(filepath.Join(l.tftp, boot)); !regexp.MustCompile(`(?m) reassure\.url=http://172\.30\.0\.5/reassure( |$)`).Match(text) {
			t.Errorf("%s: %s", boot, text)
		}
	}
	// A web server that is nobody can read all of it.
	for _, dir := range []string{l.out, filepath.Join(l.tftp, "pxelinux.cfg"), filepath.Join(l.tftp, "grub"), filepath.Join(l.tftp, "ipxe"), filepath.Join(l.tftp, "uki")} {
		if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := os.Stat(path)
			want := fs.FileMode(0o004)
			if e.IsDir() {
				want = 0o005
			}
			if err == nil && info.Mode().Perm()&want != want {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// A manifest binds the index of a wad that has one.
func TestPublishIndex(t *testing.T) {
	l := newLab(t)
	x, err := wad.PackFolder(t.Context(), t.TempDir(), filepath.Join(l.site, "wads/base.tar"), wad.FolderOptions{}, wad.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.publish()
	if got := l.manifest(first).Wads[0]; got.Index == nil || *got.Index != x.Bound() {
		t.Errorf("index %+v; want %+v", got.Index, x.Bound())
	}
}

func TestPublishTwiceChangesNothing(t *testing.T) {
	l := newLab(t)
	l.publish()
	before, bootBefore := state(t, l.out), state(t, l.tftp)
	l.now = l.now.Add(time.Hour)
	r := l.publish()
	if diff := cmp.Diff(before, state(t, l.out)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(bootBefore, state(t, l.tftp)); diff != "" {
		t.Error(diff)
	}
	if r.Hosts[0].New || r.Hosts[0].Changed || r.Wads != 0 || r.Boot != nil {
		t.Errorf("%+v", r)
	}
}

func TestChanges(t *testing.T) {
	l := newLab(t)
	l.publish()
	serial := l.now.Unix()

	// A new host: the others get it in /etc/hosts, and are not reimaged for it.
	l.now = l.now.Add(time.Hour)
	l.put("site.yaml", siteYAML+"  - {name: exp03, mac: ['00:09:3d:12:20:f0'], ip: 172.30.0.13, profile: tiny}\n")
	digest := l.manifest(first).Digest
	r := l.publish()
	if h := r.Hosts[0]; !h.Changed || h.Reimage || h.New {
		t.Errorf("a new host: %+v", h)
	}
	if m := l.manifest(first); m.Digest != digest || m.Serial != serial+3600 || !strings.Contains(m.Files[0].Content, "exp03") {
		t.Errorf("serial %d, digest %v", m.Serial, m.Digest)
	}

	// A clock that was set back: the serial still grows.
	l.now = l.now.Add(-24 * time.Hour)
	l.put("wads/base.tar", "better")
	r = l.publish()
	if h := r.Hosts[0]; !h.Changed || !h.Reimage {
		t.Errorf("a new wad: %+v", h)
	}
	if m := l.manifest(second); m.Serial != serial+3601 {
		t.Errorf("serial %d after %d", m.Serial, serial+3600)
	}

	// Only one host changes: the other keeps its bytes.
	before := state(t, l.out)
	l.put("site.yaml", siteYAML+"  - {name: exp03, mac: ['00:09:3d:12:20:f0'], ip: 172.30.0.13, profile: tiny, disk: {serial: X}}\n")
	r = l.publish()
	after := state(t, l.out)
	if before[first] != after[first] || before[first+".minisig"] != after[first+".minisig"] || r.Hosts[0].Changed || !r.Hosts[2].Changed || r.Hosts[2].Reimage {
		t.Errorf("%+v", r)
	}

	// A host goes, and comes back: its serial is still greater than before.
	highest := l.manifest("manifests/01-00-09-3d-12-20-f0.json").Serial
	decision := filepath.Join(l.tftp, "pxelinux.cfg", "01-00-09-3d-12-20-f0")
	if err := os.Symlink("remote.boot", decision); err != nil {
		t.Fatal(err)
	}
	l.put("site.yaml", siteYAML)
	r = l.publish()
	if len(r.Removed) != 1 || r.Removed[0] != "manifests/01-00-09-3d-12-20-f0.json" {
		t.Errorf("removed: %q", r.Removed)
	}
	for _, gone := range []string{"", ".minisig"} {
		if _, err := os.Stat(filepath.Join(l.out, "manifests/01-00-09-3d-12-20-f0.json"+gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q is still there: %v", gone, err)
		}
	}
	if to, err := os.Readlink(decision); err != nil || to != "remote.boot" {
		t.Errorf("the boot decision was touched: %v", err)
	}
	l.put("site.yaml", siteYAML+"  - {name: exp03, mac: ['00:09:3d:12:20:f0'], ip: 172.30.0.13, profile: tiny}\n")
	l.publish()
	if m := l.manifest("manifests/01-00-09-3d-12-20-f0.json"); m.Serial <= highest {
		t.Errorf("serial %d after %d", m.Serial, highest)
	}

	// Another key: the same manifest, newly signed.
	var err error
	before = state(t, l.out)
	if l.key, err = sign.NewKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	l.publish()
	if after := state(t, l.out); after[first] != before[first] || after[first+".minisig"] == before[first+".minisig"] {
		t.Error("a new key signs nothing, or changes the manifest")
	}
}

func TestOrderStays(t *testing.T) {
	l := newLab(t)
	l.publish()
	m := l.manifest(first)
	m.Order = "again"
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{first, second} {
		if err := os.WriteFile(filepath.Join(l.out, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.publish()
	if got := l.manifest(first); got.Order != "again" || got.Serial <= m.Serial {
		t.Errorf("order %q, serial %d", got.Order, got.Serial)
	}
}

func TestOldWads(t *testing.T) {
	l := newLab(t)
	l.publish()
	was := filepath.Join(l.out, l.manifest(first).Wads[0].URLs[0])
	l.put("wads/base.tar", "better")
	l.publish()
	if _, err := os.Stat(was); err != nil {
		t.Error("PCs that are being reimaged lost their wad:", err)
	}
	l.now = l.now.Add(23 * time.Hour)
	l.publish()
	if _, err := os.Stat(was); err != nil {
		t.Error(err)
	}
	stray := filepath.Join(l.out, "wads/mine/big.tar")
	if err := errors.Join(os.MkdirAll(filepath.Dir(stray), 0o755), os.WriteFile(stray, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	l.now = l.now.Add(2 * time.Hour)
	l.publish()
	if _, err := os.Stat(filepath.Dir(was)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an old wad stays for ever:", err)
	}
	l.now = l.now.Add(48 * time.Hour)
	l.publish()
	if _, err := os.Stat(stray); err != nil {
		t.Error("somebody's own file is gone:", err)
	}
	if wad, err := os.ReadFile(filepath.Join(l.out, l.manifest(first).Wads[0].URLs[0])); err != nil || string(wad) != "better" {
		t.Errorf("%q, %v", wad, err)
	}
}

// TestWadIsCopied has a wad that the web server could not read, and one that is
// a symbolic link.
func TestWadIsCopied(t *testing.T) {
	l := newLab(t)
	path := filepath.Join(l.site, "wads/base.tar")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l.publish()
	target := filepath.Join(l.out, l.manifest(first).Wads[0].URLs[0])
	info, err := os.Lstat(target)
	if err != nil || info.Mode() != 0o644 {
		t.Fatalf("%v, %v", info, err)
	}
	if r := l.publish(); r.Wads != 0 {
		t.Error("it is copied each time")
	}
	// Written to by somebody: replaced.
	if err := os.WriteFile(target, []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.publish()
	if text, _ := os.ReadFile(target); string(text) != "base" {
		t.Errorf("%q", text)
	}
	if err := errors.Join(os.Chmod(path, 0o644), os.Rename(path, path+".real"), os.Symlink("base.tar.real", path), os.Remove(target)); err != nil {
		t.Fatal(err)
	}
	l.publish()
	if info, err := os.Lstat(target); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
}

// TestNothingIsWrittenOnMistakes looks at both trees after each refusal.
func TestNothingIsWrittenOnMistakes(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(*lab)
		want   string
	}{
		{"profile", func(l *lab) { l.put("profiles/tiny.yaml", tiny+"tabel: x\n") }, "did you mean table?"},
		{"template of the last host", func(l *lab) {
			l.put("templates/debian/hostname", `{{if eq .Name "exp02"}}{{.Vars.x}}{{end}}`)
		}, "no variable x"},
		{"wad", func(l *lab) { os.Remove(filepath.Join(l.site, "wads/base.tar")) }, "there is no wad"},
		{"nobody to ask", func(l *lab) { l.put("profiles/tiny.yaml", tiny+"approve: same\n") }, "approve: same"},
		{"private key", func(l *lab) { l.put("templates/debian/hostname", "-----BEGIN PRIVATE KEY-----\n") }, "private key"},
		{"command line", func(l *lab) {
			l.put("site.yaml", strings.Replace(siteYAML, "hosts:", "  command_line: "+strings.Repeat("x", 3000)+"\nhosts:", 1))
		}, "shorten command_line"},
		{"a person's default", func(l *lab) {
			os.WriteFile(filepath.Join(l.tftp, "pxelinux.cfg/default"), []byte("default menu.c32\n"), 0o644)
		}, "default was written by a person"},
		{"no TFTP folder", func(l *lab) { l.tftp += "/nowhere" }, "--tftp"},
		{"damaged index", func(l *lab) { os.WriteFile(filepath.Join(l.out, "index.json"), []byte("[]"), 0o644) }, "is --out right?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.publish()
			tftp := l.tftp
			l.put("templates/hosts", "changed\n")
			c.break_(l)
			before, bootBefore := state(t, l.out), state(t, tftp)
			if _, err := l.try(t.Context(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if diff := cmp.Diff(before, state(t, l.out)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(bootBefore, state(t, tftp)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReplaceBootFiles(t *testing.T) {
	l := newLab(t)
	name := filepath.Join(l.tftp, "pxelinux.cfg/remote.boot")
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("default Remote\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.try(t.Context(), func(o *Options) { o.ReplaceBootFiles = true }); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(name); bootfiles.WrittenBy(text) != bootfiles.Publish {
		t.Errorf("%s", text)
	}
}

func TestCancelled(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.try(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(l.out); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was written")
	}
}

// TestReadersSeeWholeManifests reads while others publish.
func TestReadersSeeWholeManifests(t *testing.T) {
	l := newLab(t)
	l.publish()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			text, err := os.ReadFile(filepath.Join(l.out, first))
			if err != nil {
				t.Error(err)
				return
			}
			m, err := spec.ParseManifest(text)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(l.out, m.Wads[0].URLs[0])); err != nil {
				t.Error("a manifest names a wad that is not there:", err)
				return
			}
		}
	})
	for i := range 20 {
		l.put("wads/base.tar", strings.Repeat("x", i+1))
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				if _, err := l.try(t.Context(), nil); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
	close(stop)
	readers.Wait()
}

// TestOwnLocalBoot has a profile go on to its PCs' disks in a way of its own, then in
// another, then as the site does. What each PC is told stays what it was.
func TestOwnLocalBoot(t *testing.T) {
	l := newLab(t)
	l.put("site.yaml", strings.NewReplacer("hosts:\n", "  local_boot: {bios: 4}\nhosts:\n", "172.30.0.12, profile: tiny", "172.30.0.12, profile: own").Replace(siteYAML))
	l.put("profiles/own.yaml", tiny)
	l.publish()
	file := func(name string) string { return filepath.Join(l.tftp, name) }
	link := func(name string) string {
		to, err := os.Readlink(file(name))
		if err != nil {
			return ""
		}
		return to
	}
	const bios, uefi, common = "pxelinux.cfg/01-00-09-3d-12-20-ee", "grub/grub.cfg-01-00:09:3d:12:20:ee", "pxelinux.cfg/01-00-09-3d-12-20-ed"
	for _, c := range []struct {
		name, profile    string
		local, remote    [2]string // links of the BIOS and of UEFI
		biosDoes, grubOn string    // parts of the texts that Local leads to
	}{
		{"BIOS", "local_boot: {bios: disk}\n", [2]string{"local.disk", ""}, [2]string{"remote.disk.boot", "remote.cfg"}, "com32 chain.c32", ""},
		{"UEFI", "local_boot: {uefi: next}\n", [2]string{"", "local.next.cfg"}, [2]string{"remote.boot", "remote.next.cfg"}, "", "exit 1"},
		{"as the site", "local_boot: {bios: 4, uefi: disk}\n", [2]string{"", ""}, [2]string{"remote.boot", "remote.cfg"}, "", ""},
		{"both", "local_boot: {bios: -1, uefi: next}\n", [2]string{"local.-1", "local.next.cfg"}, [2]string{"remote.-1.boot", "remote.next.cfg"}, "localboot -1", "exit 1"},
		{"nothing", "", [2]string{"", ""}, [2]string{"remote.boot", "remote.cfg"}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.put("profiles/own.yaml", tiny+c.profile)
			l.publish()
			site, err := resolve.Load(l.site)
			if err != nil {
				t.Fatal(err)
			}
			host, err := site.Host("exp02")
			if err != nil {
				t.Fatal(err)
			}
			told := func(d hosts.Decision, want [2]string) {
				t.Helper()
				if got := [2]string{link(bios), link(uefi)}; got != want {
					t.Errorf("%s leads to %q, want %q", d, got, want)
				}
				if got, err := hosts.Decided(l.tftp, host); got != d || err != nil {
					t.Errorf("it is told %s, %v; want %s", got, err, d)
				}
			}
			told(hosts.Local, c.local)
			for name, part := range map[string]string{bios: c.biosDoes, uefi: c.grubOn} {
				if text, err := os.ReadFile(file(name)); part != "" && (err != nil || !strings.Contains(string(text), part) || strings.Contains(string(text), "configfile")) {
					t.Errorf("%s leads to %v\n%s\nwhich lacks %q", name, err, text, part)
				}
			}
			own := site.OwnLocalBoot("exp02")
			if err := hosts.Decide(l.tftp, host, hosts.Remote, own); err != nil {
				t.Fatal(err)
			}
			told(hosts.Remote, c.remote)
			if text, err := os.ReadFile(file(bios)); err != nil || !strings.Contains(string(text), "kernel /bzImage") || !strings.Contains(string(text), c.biosDoes) {
				t.Errorf("Remote leads to %v\n%s", err, text)
			}
			// A profile that changes meanwhile leaves the PC Remote.
			l.put("profiles/own.yaml", tiny+"local_boot: {bios: 5}\n")
			l.publish()
			told(hosts.Remote, [2]string{"remote.5.boot", "remote.cfg"})
			l.put("profiles/own.yaml", tiny+c.profile)
			l.publish()
			told(hosts.Remote, c.remote)
			if err := hosts.Decide(l.tftp, host, hosts.Local, own); err != nil {
				t.Fatal(err)
			}
			told(hosts.Local, c.local)
		})
	}
	if got := link(common); got != "" {
		t.Errorf("a PC of another profile is led to %s", got)
	}
	// Somebody's own file stays, and so does the rest.
	if err := os.WriteFile(file(common), []byte("default mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.put("profiles/tiny.yaml", tiny+"local_boot: {bios: disk}\n")
	l.publish()
	if text, err := os.ReadFile(file(common)); err != nil || string(text) != "default mine\n" {
		t.Errorf("a person's file became %q, %v", text, err)
	}
}
