package build

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"reassure/image/coverage"
)

// intelUpdate is an update of Intel's of that size with a mark in it.
func intelUpdate(size int, mark string) []byte {
	u := make([]byte, size)
	binary.LittleEndian.PutUint32(u, 1)
	binary.LittleEndian.PutUint32(u[32:], uint32(size))
	copy(u[48:], mark)
	return u
}

// files makes files below a new folder.
func files(t *testing.T, content map[string][]byte) string {
	t.Helper()
	folder := t.TempDir()
	for name, data := range content {
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

var microcodeFiles = []string{"intel-ucode/06-*", "amd-ucode/*.bin"}

// TestMicrocode has the first thing of the initramfs be an archive that cpio and
// the kernel can read without decompressing anything, aligned as processors ask.
func TestMicrocode(t *testing.T) {
	amd := append([]byte("DMA\x00"), "microcode of AMD"...)
	first, second := intelUpdate(2048, "first"), intelUpdate(3072, "second")
	o := options(t)
	o.Config.Microcode = Microcode{Flavours: []string{"small"}, Files: microcodeFiles, Folder: files(t, map[string][]byte{
		"intel-ucode/06-01-02": first, "intel-ucode/06-9e-0a": second,
		"intel-ucode/0f-04-01":        []byte("of a processor that is not asked for"),
		"amd-ucode/microcode_amd.bin": amd, "amd-ucode/microcode_amd.bin.asc": []byte("a signature"),
	})}
	image, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"amd-ucode/microcode_amd.bin", "intel-ucode/06-01-02", "intel-ucode/06-9e-0a"}, image.Microcode); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	initramfs, err := os.ReadFile(filepath.Join(o.Out, InitramfsFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"kernel/x86/microcode/AuthenticAMD.bin": amd, "kernel/x86/microcode/GenuineIntel.bin": append(slices.Clone(first), second...)} {
		at := bytes.Index(initramfs, want)
		if at < 0 || at%16 != 0 {
			t.Errorf("%s is at %d of the initramfs, uncompressed; want a multiple of 16", name, at)
		}
		cmd := exec.Command("cpio", "-i", "--quiet", "--to-stdout", name)
		cmd.Stdin = bytes.NewReader(initramfs)
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("cpio finds %d bytes of %s, %v; want %d", len(got), name, err, len(want))
		}
		var got bytes.Buffer
		if err := Cat(&got, o.Out, name); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("mkimage cat %s: %d bytes, %v", name, got.Len(), err)
		}
	}
	// What follows is found behind it.
	var list bytes.Buffer
	if err := List(&list, o.Out); err != nil || !strings.Contains(list.String(), "/bbin/bb\n") {
		t.Errorf("the rest of the image: %v\n%s", err, list.String())
	}
	if s := image.Segments[0]; s.Name != "microcode" || s.Packed != s.Unpacked {
		t.Errorf("the first segment: %+v", s)
	}

	o.Config.Microcode.Flavours = nil
	if image, err = Build(t.Context(), o); err != nil || image.Microcode != nil || image.Segments[0].Name != "tools" {
		t.Errorf("for other flavours only: %v, %+v", err, image)
	}
}

func TestMicrocodeRefuses(t *testing.T) {
	whole := intelUpdate(2048, "")
	for _, c := range []struct {
		name, file string
		data       []byte
		want       string
	}{
		{"empty", "intel-ucode/06-01-02", nil, "empty"},
		{"a page of the web", "intel-ucode/06-01-02", []byte("<html>"), "not Intel's"},
		{"cut off", "intel-ucode/06-01-02", whole[:1024], "cut off"},
		{"something behind it", "intel-ucode/06-01-02", append(slices.Clone(whole), 2, 0), "not Intel's"},
		{"not AMD's", "amd-ucode/microcode_amd.bin", whole, "not AMD's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := microcode(Microcode{Folder: files(t, map[string][]byte{c.file: c.data}), Files: microcodeFiles})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.file) {
				t.Errorf("error %v; want one of %s with %q", err, c.file, c.want)
			}
		})
	}
	if entries, names, err := microcode(Microcode{Folder: "/nonesuch", Files: microcodeFiles}); len(entries)+len(names) > 0 || err != nil {
		t.Errorf("a machine without: %v, %v", names, err)
	}
}

// TestFirmware has files as distributions keep them: plain, packed, linked.
func TestFirmware(t *testing.T) {
	data := bytes.Repeat([]byte("firmware "), 1000)
	var x bytes.Buffer
	w, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	folder := files(t, map[string][]byte{"rtl_nic/a.fw": data, "rtl_nic/b.fw.xz": x.Bytes(), "tigon/c.bin.zst": z.EncodeAll(data, nil), "tigon/unasked.bin": data})
	if err := os.Symlink("a.fw", filepath.Join(folder, "rtl_nic/d.fw")); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.Config.Firmware = Firmware{Folder: folder, Files: []string{"rtl_nic/*", "tigon/c.bin", "bnx2/*", "gone.bin"}}
	image, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"rtl_nic/a.fw", "rtl_nic/b.fw", "rtl_nic/d.fw", "tigon/c.bin"}, image.Firmware); diff != "" {
		t.Errorf("firmware (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"bnx2/*", "gone.bin"}, image.MissingFirmware); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	for _, name := range image.Firmware {
		var got bytes.Buffer
		if err := Cat(&got, o.Out, "/lib/firmware/"+name); err != nil || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
		}
	}
	text, err := os.ReadFile(filepath.Join(o.Out, TFTPRoot, DriversFile))
	if err != nil {
		t.Fatal(err)
	}
	c, err := coverage.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(image.Firmware, c.Firmware); diff != "" || c.Kernel != release || c.Flavour != "small" {
		t.Errorf("what the boot server is told: %+v\n%s", c, diff)
	}

	if err := os.WriteFile(filepath.Join(folder, "rtl_nic/b.fw.xz"), x.Bytes()[:20], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "rtl_nic/b.fw.xz") {
		t.Errorf("damaged firmware: %v", err)
	}
}

// TestBundleModules has modules that are of no use without a bundle's program come
// with it, and not otherwise.
func TestBundleModules(t *testing.T) {
	config, err := ParseConfig("image.yaml", DefaultConfig)
	if err != nil {
		t.Fatal(err)
	}
	tree := defaultTree()
	for _, c := range []struct {
		bundles []string
		want    bool
	}{{nil, false}, {[]string{"btrfs"}, false}, {[]string{"btrfs", "xfs"}, true}} {
		config.Bundles = c.bundles
		s, err := choose(config, "full", tree)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(s.names, "xfs"); got != c.want {
			t.Errorf("with bundles %q the module xfs is there: %v", c.bundles, got)
		}
	}
}
