package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/kmod"
	"reassure/image/sign"
	"reassure/image/spec"
)

// bzImage makes a file with a kernel's header and nothing behind it.
func bzImage(t *testing.T, release string) string {
	t.Helper()
	image := make([]byte, 0x600)
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x20e:], 0x300)
	copy(image[0x500:], release+" (builder@debian.org) #1 SMP\x00")
	file := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(file, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// ko makes the smallest ELF file with a .modinfo section.
func ko(fields ...string) []byte {
	info := []byte(strings.Join(fields, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v) // a buffer takes everything
		}
	}
	infoAt := uint64(64)
	namesAt := infoAt + uint64(len(info))
	le(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), namesAt+uint64(len(names)), uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.Write(info)
	b.Write(names)
	for _, s := range []struct {
		name, kind uint32
		at, size   uint64
	}{{}, {1, 1, infoAt, uint64(len(info))}, {10, 3, namesAt, uint64(len(names))}} {
		le(s.name, s.kind, uint64(0), uint64(0), s.at, s.size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	return b.Bytes()
}

const release = "6.1.0-1-test"

// modulesFolder makes lib/modules/RELEASE with a few modules.
func modulesFolder(t *testing.T, release, vermagic string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), release)
	for name, data := range map[string][]byte{
		"kernel/drivers/net/ethernet/a/a.ko":    ko("depends=mii", "alias=pci:v00008086d00000001sv*sd*bc*sc*i*", "vermagic="+vermagic+" SMP"),
		"kernel/drivers/net/mii.ko":             ko("vermagic=" + vermagic + " SMP"),
		"kernel/drivers/net/ethernet/b/b_cs.ko": ko("vermagic=" + vermagic + " SMP"),
		"kernel/drivers/ata/ahci.ko":            ko("vermagic=" + vermagic + " SMP"),
		"kernel/drivers/net/wireless/w.ko":      ko("vermagic=" + vermagic + " SMP"),
		"kernel/fs/ext4/ext4.ko":                ko("vermagic=" + vermagic + " SMP"),
		"modules.builtin":                       []byte("kernel/fs/vfat.ko\n"),
	} {
		file := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

const smallConfig = `
flavours:
  small:
    network: [drivers/net/ethernet/**, drivers/net/gone]
    file systems: [fs/**]
left_out:
  - {pattern: "drivers/net/ethernet/**/*_cs", why: PCMCIA}
preload: [ext4, vfat]
firmware: {folder: /nonesuch, files: ["a/*"]}
tools: [init]
command_line: loglevel=4
`

// options are those of a small build whose tools segment is in the cache, as it
// is for every build but the first.
func options(t *testing.T) Options {
	t.Helper()
	config, err := ParseConfig("small.yaml", []byte(smallConfig))
	if err != nil {
		t.Fatal(err)
	}
	keys := t.TempDir()
	if _, _, _, err := sign.EnsureSiteKey(keys); err != nil {
		t.Fatal(err)
	}
	source, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	syslinux := t.TempDir()
	for _, name := range loaders {
		if err := os.WriteFile(filepath.Join(syslinux, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{
		Source: source, Out: filepath.Join(t.TempDir(), "out"), Cache: cache(t), Config: config, Flavour: "small",
		Kernel: bzImage(t, release), Modules: modulesFolder(t, release, release), Keys: keys, Version: "test",
		Syslinux: []string{syslinux}, Log: slog.New(slog.DiscardHandler),
	}
	fillTools(t, &o)
	return o
}

// shared is one cache for all tests but those that are about it: packing our
// own programs takes seconds.
var shared = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "reassure-build-test") })

func cache(t *testing.T) string {
	t.Helper()
	folder, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestMain(m *testing.M) {
	code := m.Run()
	if folder, err := shared(); err == nil {
		_ = os.RemoveAll(folder) // a leftover in the temporary folder harms nobody
	}
	os.Exit(code)
}

// fillTools puts a tools segment into the cache: the real one takes half a minute.
func fillTools(t *testing.T, o *Options) {
	t.Helper()
	versions, err := moduleVersions(t.Context(), o.Source, o.Log, toolModules...)
	if err != nil {
		t.Fatal(err)
	}
	s := tools(o.Source, o.Config.Tools, versions)
	s.write = func(_ context.Context, w io.Writer) error {
		return writeEntries(w, []entry{{name: "bbin/bb", data: []byte("busybox"), executable: true}, {name: "init", link: "bbin/bb"}}, "")
	}
	if _, err := s.compress(t.Context(), o.Cache, o.Log); err != nil {
		t.Fatal(err)
	}
}

// digests are those of every file below a folder.
func digests(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		found[strings.TrimPrefix(name, folder)] = spec.Sum(data).Short()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestBuild(t *testing.T) {
	o := options(t)
	image, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bzImage", "initramfs.cpio.zst", "image.json", "tftproot/bzImage", "tftproot/initramfs.cpio.zst", "tftproot/vmlinuz", "tftproot/pxelinux.0", "tftproot/lpxelinux.0", "tftproot/ldlinux.c32", "tftproot/reboot.c32", "tftproot/libcom32.c32", "tftproot/chain.c32", "tftproot/libutil.c32", "tftproot/shimx64.efi", "tftproot/grubx64.efi", "tftproot/snponly.efi", "tftproot/undionly.kpxe", "tftproot/grub/grub.cfg", "tftproot/grub/remote.cfg", "tftproot/ipxe/boot.ipxe", "tftproot/ipxe/remote.ipxe", "tftproot/pxelinux.cfg/default", "tftproot/pxelinux.cfg/remote.boot"} {
		if _, err := os.Stat(filepath.Join(o.Out, name)); err != nil {
			t.Error(err)
		}
	}
	if link, _ := os.Readlink(filepath.Join(o.Out, "tftproot/vmlinuz")); link != "bzImage" {
		t.Errorf("vmlinuz leads to %q", link)
	}
	if diff := cmp.Diff([]string{"drivers/net/ethernet/a/a", "drivers/net/mii", "fs/ext4/ext4"}, image.Modules); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	wantMissing := []Missing{{"drivers/ata/ahci", "flavour small does not choose it"}, {"drivers/net/ethernet/b/b_cs", "PCMCIA"}}
	if diff := cmp.Diff(wantMissing, image.LeftOut); diff != "" {
		t.Errorf("left out (-want +got):\n%s", diff)
	}
	for _, m := range []string{"github.com/u-root/u-root", "github.com/diskfs/go-diskfs"} {
		if !strings.HasPrefix(image.Packages[m], "v") {
			t.Errorf("version of %s: %q", m, image.Packages[m])
		}
	}
	if diff := cmp.Diff([]string{"a/*"}, image.MissingFirmware); diff != "" {
		t.Errorf("missing firmware (-want +got):\n%s", diff)
	}

	// GNU cpio sees what the kernel will: folders first, the marker last.
	var list bytes.Buffer
	if err := List(&list, o.Out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"/bbin/bb", "/bin/uinit -> /usr/lib/reassure/reimage", "/bin/reboot -> /usr/lib/reassure/reimage", "/usr/lib/reassure/chroothelper", "/etc/reassure/keys/site.pub", "/etc/reassure/image.json",
		"/lib/modules/" + release + "/kernel/fs/ext4/ext4.ko", "/lib/modules/" + release + "/modules.dep",
	} {
		if !strings.Contains(list.String(), want+"\n") {
			t.Errorf("the image lacks %s:\n%s", want, list.String())
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(list.String()), spec.ImageComplete) {
		t.Errorf("the marker is not last:\n%s", list.String())
	}
	var text bytes.Buffer
	if err := Cat(&text, o.Out, spec.ImageInfo); err != nil {
		t.Fatal(err)
	}
	var info spec.ImageInfoFile
	if err := json.Unmarshal(text.Bytes(), &info); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec.ImageInfoFile{Version: "test", Kernel: release, Flavour: "small", Preload: []string{"ext4"}}, info); diff != "" {
		t.Errorf("what the image says of itself (-want +got):\n%s", diff)
	}
	if err := Inspect(io.Discard, o.Out); err != nil {
		t.Errorf("inspect: %v", err)
	}

	// Nothing changed: not one byte does. What others put into the TFTP root stays.
	own := filepath.Join(o.Out, "tftproot/pxelinux.cfg/remote.boot")
	if err := os.WriteFile(own, []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("remote.boot", filepath.Join(o.Out, "tftproot/pxelinux.cfg/01-00-09-3d-12-20-ed")); err != nil {
		t.Fatal(err)
	}
	before := digests(t, o.Out)
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, digests(t, o.Out)); diff != "" {
		t.Errorf("a second build changed (-before +after):\n%s", diff)
	}

	// Another folder, umask and cache: the same image.
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	other := options(t)
	other.Keys, other.Cache = o.Keys, t.TempDir()
	fillTools(t, &other)
	if _, err := Build(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/initramfs.cpio.zst", "/bzImage", "/image.json", "/drivers.json", "/sbom.cdx.json"} {
		if got := digests(t, other.Out)[name]; got != before[name] {
			t.Errorf("%s is %s there and %s here", name, got, before[name])
		}
	}
	var differ bytes.Buffer
	if err := Diff(&differ, o.Out, other.Out); err != nil || !strings.Contains(differ.String(), "hold the same") {
		t.Errorf("diff: %v\n%s", err, differ.String())
	}
}

func TestBuildRefuses(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, o *Options)
		ctx   context.Context
		want  string
	}{
		{"half a kernel", func(t *testing.T, o *Options) { o.Modules = "" }, nil, "belong together"},
		{"no kernel", func(t *testing.T, o *Options) { o.Kernel = "/nonesuch" }, nil, "/nonesuch"},
		{"not a bzImage", func(t *testing.T, o *Options) { o.Kernel = "/bin/sh" }, nil, "not a bzImage"},
		{"other modules", func(t *testing.T, o *Options) { o.Modules = modulesFolder(t, "5.10.0-2-test", "5.10.0-2-test") }, nil, "6.1.0-1-test, but the modules"},
		{"a module of another kernel", func(t *testing.T, o *Options) { o.Modules = modulesFolder(t, release, "5.10.0-2-test") }, nil, "5.10.0-2-test"},
		{"unknown flavour", func(t *testing.T, o *Options) { o.Flavour = "vanilla" }, nil, "it has small"},
		{"no keys", func(t *testing.T, o *Options) { o.Keys = t.TempDir() }, nil, "INSECURE=1"},
		{"site file is gone", func(t *testing.T, o *Options) { o.Config.Files = map[string]string{"/etc/x": "/nonesuch"} }, nil, "/nonesuch"},
		{"two of a name", func(t *testing.T, o *Options) {
			o.Config.Files = map[string]string{spec.ImageInfo: "/etc/hostname"}
		}, nil, "two files"},
		{"no pxelinux", func(t *testing.T, o *Options) { o.Syslinux = []string{"/nonesuch"} }, nil, "syslinux-common"},
		{"broken off", func(t *testing.T, o *Options) {}, cancelled, "cancel"},
		{"nowhere to write", func(t *testing.T, o *Options) { o.Out = "/proc/reassure" }, nil, "/proc/reassure"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t)
			if _, err := Build(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			good := o.Out
			before := digests(t, good)
			c.spoil(t, &o)
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			if _, err := Build(ctx, o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v; want one with %q", err, c.want)
			}
			if diff := cmp.Diff(before, digests(t, good)); diff != "" {
				t.Errorf("the last good image was touched (-before +after):\n%s", diff)
			}
		})
	}
}

// TestBundles has a bundle's program run with nothing but what the image has.
func TestBundles(t *testing.T) {
	o := options(t)
	o.Config.Bundles = []string{"xfs", "btrfs", "e2fsck"}
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	entries, err := bundleEntries(o.Config.Bundles)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		file := filepath.Join(root, e.name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, e.data, 0o755); err != nil {
			t.Fatal(err)
		}
		var same bytes.Buffer
		if err := Cat(&same, o.Out, e.name); err != nil || !bytes.Equal(same.Bytes(), e.data) {
			t.Errorf("/%s in the image: %v", e.name, err)
		}
	}
	for _, b := range bundles {
		cmd := exec.Command(b.program, "-V")
		cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Chroot: root}, "/"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not run by itself: %v\n%s", b.program, err, out)
		}
	}
}

// TestOwnAuthority has the site's authority be in the image, and nothing else in its place.
func TestOwnAuthority(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	o := options(t)
	o.Config.CA = filepath.Join(files(t, map[string][]byte{"ca.pem": text}), "ca.pem")
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := Cat(&got, o.Out, spec.ImageCA); err != nil || !bytes.Equal(got.Bytes(), text) {
		t.Errorf("%s is %q, %v", spec.ImageCA, got.Bytes(), err)
	}
	o.Config.CA = filepath.Join(files(t, map[string][]byte{"ca.pem": []byte("nonsense")}), "ca.pem")
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "ca.pem: there is no certificate in it") {
		t.Errorf("error is %v", err)
	}
}

func TestInsecureIsSaid(t *testing.T) {
	o := options(t)
	o.Insecure, o.Keys = true, ""
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Inspect(&out, o.Out); err != nil || !strings.Contains(out.String(), "INSECURE") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestInspectFindsChanges(t *testing.T) {
	o := options(t)
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.Out, KernelFile), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Inspect(&out, o.Out); err == nil || !strings.Contains(out.String(), "CHANGED") {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := Inspect(&out, t.TempDir()); err == nil || !strings.Contains(err.Error(), "make image") {
		t.Errorf("no image: %v", err)
	}
	if err := Cat(&out, o.Out, "/nonesuch"); err == nil || !strings.Contains(err.Error(), "/nonesuch") {
		t.Errorf("no such file: %v", err)
	}
}

// TestDamagedCache cuts and spoils what the cache holds: it must be made anew,
// never used.
func TestDamagedCache(t *testing.T) {
	o := options(t)
	o.Cache = t.TempDir()
	fillTools(t, &o)
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	want := digests(t, o.Out)
	files, err := filepath.Glob(filepath.Join(o.Cache, "segments", "modules-*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, f := range files {
		if err := os.Truncate(f, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, digests(t, o.Out)); diff != "" {
		t.Errorf("a damaged cache was used (-want +got):\n%s", diff)
	}
}

func TestConfig(t *testing.T) {
	if _, err := ParseConfig("image.yaml", DefaultConfig); err != nil {
		t.Fatalf("the default: %v", err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"typing error", strings.Replace(smallConfig, "preload", "prelaod", 1), "image.yaml:8: "},
		{"ending", strings.Replace(smallConfig, "drivers/net/gone", "drivers/net/gone.ko", 1), "image.yaml:4: "},
		{"no reason", strings.Replace(smallConfig, ", why: PCMCIA", "", 1), "left_out"},
		{"no init", strings.Replace(smallConfig, "[init]", "[ls]", 1), "must have init"},
		{"bundle", smallConfig + "bundles: [zfs]\n", "write one of btrfs, e2fsck, xfs"},
		{"bundle of a flavour", smallConfig + "flavour_bundles: {small: [zfs]}\n", "flavour"},
		{"no flavour", "tools: [init]\n", "there is none"},
		{"microcode elsewhere", smallConfig + "microcode: {folder: /x, files: [\"rtl_nic/*\"]}\n", "below intel-ucode/ or amd-ucode/"},
		{"microcode", smallConfig + "microcode: {folder: /x, flavours: [large]}\n", "write one of small"},
		{"site file", smallConfig + "files: {etc/x: /y}\n", "absolute path"},
	} {
		_, err := ParseConfig("image.yaml", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// defaultTree is a few modules of Debian's kernel.
func defaultTree() *kmod.Tree {
	tree := &kmod.Tree{Modules: map[string]*kmod.Module{}, Builtin: map[string]bool{}}
	for _, p := range []string{
		"drivers/net/ethernet/realtek/r8169", "drivers/net/ethernet/broadcom/tg3", "drivers/net/usb/r8152", "drivers/net/virtio_net", "drivers/net/ethernet/8390/pcnet_cs",
		"drivers/nvme/host/nvme", "drivers/scsi/megaraid/megaraid_sas", "drivers/scsi/st", "drivers/mmc/host/sdhci", "drivers/pci/controller/vmd", "drivers/usb/storage/uas", "drivers/net/wireless/ath/ath9k/ath9k", "fs/xfs/xfs",
	} {
		name := kmod.Canonical(filepath.Base(p))
		tree.Modules[name] = &kmod.Module{Name: name, Path: "kernel/" + p + ".ko"}
	}
	return tree
}

// TestDefaultModules holds the promise of the full flavour: every wired network
// and storage driver is in it, but for those whose reason is written down.
func TestDefaultModules(t *testing.T) {
	config, err := ParseConfig("image.yaml", DefaultConfig)
	if err != nil {
		t.Fatal(err)
	}
	tree := defaultTree()
	s, err := choose(config, "full", tree)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"megaraid_sas", "nvme", "r8152", "r8169", "sdhci", "tg3", "uas", "virtio_net", "vmd"}, s.names); diff != "" {
		t.Errorf("chosen (-want +got):\n%s", diff)
	}
	for _, m := range s.leftOut {
		if strings.Contains(m.Why, "does not choose") {
			t.Errorf("%s is left out without a reason", m.Module)
		}
	}
	if !slices.ContainsFunc(s.leftOut, func(m Missing) bool { return m.Module == "drivers/scsi/st" && m.Why == "tape drives" }) {
		t.Errorf("left out: %+v", s.leftOut)
	}
}

func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"drivers/ata/**", "drivers/ata/ahci", true}, {"drivers/ata/**", "drivers/ata/a/b", true}, {"drivers/ata/*", "drivers/ata/a/b", false},
		{"fs/nls/nls_ascii", "fs/nls/nls_ascii", true}, {"fs/nls/nls_ascii", "fs/nls/nls_ascii2", false}, {"a/**/*_cs", "a/b/c/x_cs", true}, {"a.b", "axb", false},
	} {
		re, err := globs([]string{c.pattern})
		if err != nil || re.MatchString(c.path) != c.want {
			t.Errorf("%q matches %q: %v, %v", c.pattern, c.path, !c.want, err)
		}
	}
}

func TestWriteEntries(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Fatalf("%v: install the Debian package cpio", err)
	}
	var b bytes.Buffer
	err := writeEntries(&b, []entry{
		{name: "a-last", data: []byte("end")}, {name: "usr/lib/x", data: []byte("x"), executable: true}, {name: "bin/l", link: "../usr/lib/x"},
	}, "a-last")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-itv", "--quiet", "--numeric-uid-gid")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		lines = append(lines, strings.Join(append([]string{f[0], f[2], f[3], f[4]}, f[8:]...), " "))
	}
	want := []string{
		"drwxr-xr-x 0 0 0 bin", "lrwxrwxrwx 0 0 12 bin/l -> ../usr/lib/x", "drwxr-xr-x 0 0 0 usr", "drwxr-xr-x 0 0 0 usr/lib", "-rwxr-xr-x 0 0 1 usr/lib/x", "-rw-r--r-- 0 0 3 a-last",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("cpio sees (-want +got):\n%s", diff)
	}
	if err := writeEntries(io.Discard, []entry{{name: "a"}, {name: "a"}}, ""); err == nil {
		t.Error("took two files of one name")
	}
}
