package kmod

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ko makes the smallest ELF file that has a .modinfo section.
func ko(fields ...string) []byte {
	info := []byte(strings.Join(fields, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const header, section = 64, 64
	infoAt := uint64(header)
	namesAt := infoAt + uint64(len(info))
	tableAt := namesAt + uint64(len(names))
	var b bytes.Buffer
	b.Write([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	le := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	le(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), tableAt, uint32(0), uint16(header), uint16(0), uint16(0), uint16(section), uint16(3), uint16(2))
	b.Write(info)
	b.Write(names)
	sh := func(name, kind uint32, at, size uint64) {
		le(name, kind, uint64(0), uint64(0), at, size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	sh(0, 0, 0, 0)
	sh(1, 1, infoAt, uint64(len(info)))
	sh(10, 3, namesAt, uint64(len(names)))
	return b.Bytes()
}

func modules() fstest.MapFS {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(ko("depends=mii", "alias=usb:v0B95p7720d*dc*dsc*dp*ic*isc*ip*in*", "alias=platform:us-net"))
	_ = z.Close()
	file := func(data []byte) *fstest.MapFile { return &fstest.MapFile{Data: data} }
	return fstest.MapFS{
		"kernel/fs/ext4/ext4.ko":              file(ko("softdep=pre: crypto-crc32c", "depends=jbd2,mbcache", "alias=fs-ext4", "vermagic=6.1.0-1-amd64 SMP")),
		"kernel/fs/jbd2/jbd2.ko":              file(ko("depends=")),
		"kernel/fs/mbcache.ko":                file(ko("depends=")),
		"kernel/arch/crc32c-intel.ko":         file(ko("alias=crypto-crc32c", "alias=crc32c")),
		"kernel/drivers/net/usb/us-net.ko.gz": file(zipped.Bytes()),
		"kernel/drivers/net/mii.ko":           file(ko("depends=libphy")),
		"kernel/drivers/net/e1000e.ko":        file(ko("alias=pci:v00008086d000010D3sv*sd*bc*sc*i*", "firmware=e1000/x.bin", "softdep=post: late-one")),
		"kernel/drivers/net/late_one.ko":      file(ko()),
		"modules.builtin":                     file([]byte("kernel/drivers/net/phy/libphy.ko\n")),
		"modules.builtin.modinfo":             file([]byte("libphy.alias=mdio:*\x00libphy.license=GPL\x00libphy.file=drivers/net/phy/libphy\x00")),
	}
}

func TestScanAndClosure(t *testing.T) {
	tree, err := Scan(modules())
	if err != nil {
		t.Fatal(err)
	}
	want := &Module{Name: "ext4", Path: "kernel/fs/ext4/ext4.ko", Depends: []string{"jbd2", "mbcache"}, Aliases: []string{"fs-ext4"}, Pre: []string{"crypto_crc32c"}, Version: "6.1.0-1-amd64 SMP"}
	if diff := cmp.Diff(want, tree.Modules["ext4"]); diff != "" {
		t.Errorf("ext4 (-want +got):\n%s", diff)
	}
	builtin := map[string]*Module{"libphy": {Name: "libphy", Path: "kernel/drivers/net/phy/libphy.ko", Aliases: []string{"mdio:*"}}}
	if diff := cmp.Diff(builtin, tree.BuiltinInfo); diff != "" {
		t.Errorf("what is built in (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		names []string
		want  []string
	}{
		{[]string{"ext4"}, []string{"crc32c_intel", "ext4", "jbd2", "mbcache"}},
		{[]string{"us-net"}, []string{"mii", "us_net"}}, // libphy is built in
		{[]string{"e1000e", "mbcache"}, []string{"e1000e", "late_one", "mbcache"}},
	} {
		got, err := tree.Closure(c.names...)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("Closure(%q): %v (-want +got):\n%s", c.names, err, diff)
		}
	}
	if _, err := tree.Closure("nonesuch"); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("a module that is nowhere: %v", err)
	}
	if _, err := Scan(fstest.MapFS{}); err == nil {
		t.Error("an empty folder was taken for a kernel's modules")
	}
	broken := modules()
	broken["kernel/bad.ko"] = &fstest.MapFile{Data: []byte("not ELF")}
	if _, err := Scan(broken); err == nil || !strings.Contains(err.Error(), "kernel/bad.ko") {
		t.Errorf("a broken module: %v", err)
	}
}

func TestIndex(t *testing.T) {
	tree, err := Scan(modules())
	if err != nil {
		t.Fatal(err)
	}
	names, err := tree.Closure("ext4", "us_net", "e1000e")
	if err != nil {
		t.Fatal(err)
	}
	fsys := fstest.MapFS{}
	for name, data := range tree.WriteIndex(names) {
		fsys[name] = &fstest.MapFile{Data: data}
	}
	x, err := ReadIndex(fsys)
	if err != nil {
		t.Fatal(err)
	}
	for alias, want := range map[string][]string{
		"pci:v00008086d000010D3sv000015D9sd0000060Abc02sc00i00": {"e1000e"},
		"pci:v00008086d000010D4sv000015D9sd0000060Abc02sc00i00": nil,
		"usb:v0B95p7720d0001dcFFdsc01dp02icFFisc00ip00in00":     {"us_net"},
		"platform:us_net": {"us_net"}, // dashes and underscores are the same
		"fs-ext4":         {"ext4"},
		"crypto-crc32c":   {"crc32c_intel"},
	} {
		if diff := cmp.Diff(want, x.Match(alias)); diff != "" {
			t.Errorf("Match(%q) (-want +got):\n%s", alias, diff)
		}
	}
	for name, want := range map[string][]string{
		"ext4":   {"kernel/arch/crc32c-intel.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/mbcache.ko", "kernel/fs/ext4/ext4.ko"},
		"us-net": {"kernel/drivers/net/mii.ko", "kernel/drivers/net/usb/us-net.ko"},
		"e1000e": {"kernel/drivers/net/e1000e.ko", "kernel/drivers/net/late_one.ko"},
		"libphy": nil,
	} {
		got, err := x.LoadOrder(name)
		if err != nil {
			t.Errorf("LoadOrder(%q): %v", name, err)
		}
		// jbd2 and mbcache do not need each other; every other order is fixed.
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("LoadOrder(%q) (-want +got):\n%s", name, diff)
		}
	}
	if _, err := x.LoadOrder("nonesuch"); err == nil {
		t.Error("a module that is not there has a load order")
	}
	if !x.Builtin("libphy") || x.Builtin("ext4") {
		t.Error("Builtin is wrong")
	}
}

func TestReadIndexRefuses(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing":       {},
		"no colon":      {"modules.dep": "kernel/a.ko kernel/b.ko\n"},
		"bad alias":     {"modules.dep": "", "modules.alias": "alias x\n"},
		"bad softdep":   {"modules.dep": "", "modules.softdep": "softdep\n"},
		"not a module":  {"modules.dep": "kernel/readme.txt:\n"},
		"alias keyword": {"modules.dep": "", "modules.alias": "install a b\n"},
	} {
		fsys := fstest.MapFS{}
		for n, text := range files {
			fsys[n] = &fstest.MapFile{Data: []byte(text)}
		}
		if _, err := ReadIndex(fsys); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v*d*", "pci:v1d2", true},
		{"of:N*T*Cvendor,a-bC*", "of:NxT(null)Cvendor,a-bC", true},
		{"input:b*v[0-9A]*", "input:b1vA2", true},
		{"input:b*v[0-9A]*", "input:b1vB2", false},
		{"acpi*:PNP0A03:*", "acpi:PNP0A03:PNP0A08:", true},
		{"a*b", "a/x/b", true},
		{"a[", "a[", false},
	} {
		if got := MatchAlias(c.pattern, c.s); got != c.want {
			t.Errorf("MatchAlias(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// TestDecompressCutOff cuts a packed file everywhere: it must never be taken for a
// whole one.
func TestDecompressCutOff(t *testing.T) {
	data := []byte("what a driver loads")
	packed := map[string][]byte{}
	pack := func(ending string, w io.WriteCloser, b *bytes.Buffer, err error) {
		t.Helper()
		if err == nil {
			_, err = w.Write(data)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		packed[ending] = b.Bytes()
	}
	var x, g, z bytes.Buffer
	xw, err := xz.NewWriter(&x)
	pack(".xz", xw, &x, err)
	pack(".gz", gzip.NewWriter(&g), &g, nil)
	zw, err := zstd.NewWriter(&z)
	pack(".zst", zw, &z, err)
	for ending, whole := range packed {
		if got, err := Decompress("a.bin"+ending, whole); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %q, %v", ending, got, err)
		}
		for n := range len(whole) {
			// An empty zst file is a row of no frames, which is not wrong.
			if got, err := Decompress("a.bin"+ending, whole[:n]); err == nil && (ending != ".zst" || n > 0) {
				t.Errorf("%d of %d bytes of a %s file are taken for %q", n, len(whole), ending, got)
			}
		}
	}
}
