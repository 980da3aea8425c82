package coverage

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"reassure/image/kmod"
)

var update = flag.Bool("update", false, "write the golden files anew")

// debian is what an image of Debian's kernel 6.1 has of drivers, cut down to what
// the lists of these tests touch, with a single file of firmware.
func debian(t *testing.T) *Catalogue {
	t.Helper()
	text, err := os.ReadFile("testdata/drivers.json")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Read(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestReports judges lists as people have them: of a workstation, a laptop with
// its disk behind VMD, a server, a dock, an old PC, and what somebody typed.
func TestReports(t *testing.T) {
	for _, c := range []struct {
		list    string
		bad     int
		without string // a driver that the flavour leaves out
		golden  string
	}{
		{list: "workstation.lspci-nnk"},
		{list: "workstation.lspci-nnk", without: "atlantic", bad: 1, golden: "workstation-without-atlantic"},
		{list: "laptop.lspci-nn"},
		{list: "laptop.lspci-nn", without: "vmd", bad: 1, golden: "laptop-without-vmd"},
		{list: "server.lspci-n", bad: 1},
		{list: "dock.lsusb"},
		{list: "old.lspci-nn", bad: 1},
		{list: "bare.txt", bad: 1},
		{list: "modaliases.txt"},
	} {
		if c.golden == "" {
			c.golden = c.list
		}
		t.Run(c.golden, func(t *testing.T) {
			catalogue := debian(t)
			for i := range catalogue.Drivers {
				if catalogue.Drivers[i].Name() == c.without {
					catalogue.Drivers[i].Why = "flavour vm does not choose it"
				}
			}
			text, err := os.ReadFile(filepath.Join("testdata", c.list))
			if err != nil {
				t.Fatal(err)
			}
			devices, err := Parse(c.list, bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			r := NewJudge(catalogue).Devices(devices)
			if r.Bad() != c.bad {
				t.Errorf("%d are not covered; want %d", r.Bad(), c.bad)
			}
			var got bytes.Buffer
			if err := r.Write(&got); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", c.golden+".golden")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSameInEveryForm has one card judged alike however it is written.
func TestSameInEveryForm(t *testing.T) {
	j := NewJudge(debian(t))
	for _, line := range []string{
		"00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (2) I219-LM [8086:15b7] (rev 31)",
		"0000:00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (2) I219-LM [8086:15b7]",
		"IOMMU Group 9 00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (2) I219-LM [8086:15b7] (rev 31)",
		"\t00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (2) I219-LM [8086:15b7] (rev 31)",
		"00:1f.6 0200: 8086:15b7 (rev 31)",
		"00:1f.6 Class 0200: 8086:15b7 (rev 31)",
		"8086:15b7", "8086:15B7 the one under the desk", "pci 8086:15b7", "pci:8086:15b7",
		"pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00",
		"/sys/bus/pci/devices/0000:00:1f.6/modalias:pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00",
		"alias: pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00\r",
	} {
		devices, err := Parse("list", strings.NewReader(line))
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		v := j.Device(devices[0])
		if v.Device.Number() != "8086:15b7" || v.Device.Bus != "pci" || v.Driver != "e1000e" || v.Kind != Network || v.State != Covered {
			t.Errorf("%q is %+v", line, v)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"lspci without numbers", "00:1f.6 Ethernet controller: Intel Corporation Ethernet Connection (2) I219-LM (rev 31)\n", "list:1: this line of lspci has no numbers: use lspci -nn"},
		{"prose", "8086:15b7\nmy laptop\n", "list:2: no device can be seen in this line"},
		{"half a modalias", "pci:v00008086d\n", "list:1: "},
		{"modalias without a product", "pci:v00008086d1\n", "list:1: this modalias is not whole"},
		{"nothing", "# nothing\n\n", "list names no device"},
		{"a line without end", strings.Repeat("x", maxLine+1), "list: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("list", strings.NewReader(c.text))
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v; want one that begins with %q", err, c.want)
			}
		})
	}
}

func TestHost(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }
	devices, err := Host(fstest.MapFS{
		"bus/pci/devices/0000:00:1f.6/modalias": file("pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00"),
		"bus/pci/devices/0000:02:00.0/modalias": file("pci:v00001B21d00000612sv00001B21sd00001060bc01sc06i01"),
		"bus/pci/devices/0000:03:00.0/modalias": file("pci:v00001B21d00000612sv00001B21sd00001060bc01sc06i01"),
		"bus/usb/devices/2-1/product":           file("USB 10/100/1000 LAN"),
		"bus/usb/devices/2-1:1.0/modalias":      file("usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00"),
		"bus/acpi/devices/PNP0A08:00/modalias":  file("acpi:PNP0A08:"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{
		{Bus: "pci", Vendor: "8086", Product: "15b7", Class: "0200", Modalias: "pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00", Count: 1},
		{Bus: "pci", Vendor: "1b21", Product: "0612", Class: "0106", Modalias: "pci:v00001B21d00000612sv00001B21sd00001060bc01sc06i01", Count: 2},
		{Bus: "usb", Vendor: "0bda", Product: "8153", Modalias: "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00", Text: "USB 10/100/1000 LAN", Count: 1},
	}
	if diff := cmp.Diff(want, devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if _, err := Host(fstest.MapFS{}); err == nil || !strings.Contains(err.Error(), "--ids") {
		t.Errorf("a machine without buses: %v", err)
	}
}

// TestServes has aliases of real drivers, and devices of which more or less is known.
func TestServes(t *testing.T) {
	for _, c := range []struct {
		name, alias, line string
		want              bool
	}{
		{"by number", "pci:v00008086d000015B7sv*sd*bc*sc*i*", "8086:15b7", true},
		{"another number", "pci:v00008086d000015B8sv*sd*bc*sc*i*", "8086:15b7", false},
		{"a number of another bus", "usb:v8086p15B7d*dc*dsc*dp*ic*isc*ip*in*", "pci 8086:15b7", false},
		{"one board only, and the list has no boards", "pci:v00008086d000015B7sv00001028sd*bc*sc*i*", "8086:15b7", true},
		{"one board only, and it is another", "pci:v00008086d000015B7sv00001029sd*bc*sc*i*", "pci:v00008086d000015B7sv00001028sd000006B7bc02sc00i00", false},
		{"whole class", "pci:v*d*sv*sd*bc01sc08i02*", "01:00.0 0108: 15b7:5017", true},
		{"another class", "pci:v*d*sv*sd*bc01sc08i02*", "01:00.0 0106: 15b7:5017", false},
		{"a class, and none is known", "pci:v*d*sv*sd*bc01sc08i02*", "15b7:5017", false},
		{"another interface of the class", "pci:v*d*sv*sd*bc01sc08i02*", "pci:v000015B7d00005017sv000015B7sd00005017bc01sc08i01", false},
		{"a vendor's whole class, and none is known", "pci:v00001002d*sv*sd*bc04sc03i00*", "1002:ab28", false},
		{"a revision in a range", "usb:v0D49p7010d0[0-4]*dc*dsc*dp*ic*isc*ip*in*", "usb:v0D49p7010d0310dc00dsc00dp00ic08isc06ip50in00", true},
		{"a revision out of it", "usb:v0D49p7010d0[0-4]*dc*dsc*dp*ic*isc*ip*in*", "usb:v0D49p7010d0500dc00dsc00dp00ic08isc06ip50in00", false},
		{"a class of interfaces", "usb:v*p*d*dc*dsc*dp*ic02isc06ip00in*", "ID 0bda:8153 Realtek", false},
	} {
		p, ok := split(c.alias)
		if !ok {
			t.Fatalf("cannot take %s apart", c.alias)
		}
		devices, err := Parse("list", strings.NewReader(c.line))
		if err != nil {
			t.Fatal(err)
		}
		d := devices[0]
		if d.Bus == "" {
			d.Bus = "pci"
		}
		if got := p.serves(d.parts()); got != c.want {
			t.Errorf("%s: %s serves %s: %v", c.name, c.alias, c.line, got)
		}
	}
}

// TestVirtio has a virtio card judged by the driver of what is behind virtio_pci.
func TestVirtio(t *testing.T) {
	c := debian(t)
	for i := range c.Drivers {
		if c.Drivers[i].Name() == "virtio_net" {
			c.Drivers[i].Why = "flavour metal does not choose it"
		}
	}
	for _, number := range []string{"1000", "1041"} {
		v := NewJudge(c).Device(Device{Bus: "pci", Vendor: "1af4", Product: number, Class: "0200"})
		if v.State != LeftOut || v.Driver != "virtio_net" {
			t.Errorf("1af4:%s without virtio_net: %+v", number, v)
		}
	}
}

func TestNewCatalogue(t *testing.T) {
	module := func(path string, aliases ...string) *kmod.Module {
		return &kmod.Module{Name: kmod.Canonical(strings.TrimSuffix(filepath.Base(path), ".ko.xz")), Path: path, Aliases: aliases, Firmware: []string{"f"}}
	}
	tree := &kmod.Tree{Modules: map[string]*kmod.Module{
		"a_b":  module("kernel/drivers/net/ethernet/a-b.ko.xz", "pci:v00000001d00000002sv*sd*bc*sc*i*", "dmi:*"),
		"ext4": module("kernel/fs/ext4/ext4.ko", "fs-ext4"),
	}, BuiltinInfo: map[string]*kmod.Module{"c": module("kernel/drivers/ata/c.ko", "pci:v*d*sv*sd*bc01sc06i01*")}}
	got := NewCatalogue(tree, func(m *kmod.Module) string { return "not " + m.Name })
	want := []Driver{
		{File: "drivers/ata/c", Aliases: []string{"pci:v*d*sv*sd*bc01sc06i01*"}, Firmware: []string{"f"}},
		{File: "drivers/net/ethernet/a-b", Aliases: []string{"pci:v00000001d00000002sv*sd*bc*sc*i*"}, Firmware: []string{"f"}, Why: "not a_b"},
	}
	if diff := cmp.Diff(want, got.Drivers); diff != "" {
		t.Errorf("drivers (-want +got):\n%s", diff)
	}
}

func TestRead(t *testing.T) {
	for _, text := range []string{"", "{}", `{"drivers": 1}`} {
		if _, err := Read([]byte(text)); err == nil || !strings.Contains(err.Error(), File) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestKindOf(t *testing.T) {
	for file, want := range map[string]Kind{
		"drivers/net/ethernet/realtek/r8169": Network, "drivers/net/virtio_net": Network, "drivers/net/wireless/ath/ath9k/ath9k": Other, "drivers/net/virtio_net2": Other,
		"drivers/nvme/host/nvme": Storage, "drivers/nvme/target/nvmet": Other, "drivers/pci/controller/vmd": Storage, "sound/pci/hda/snd-hda-intel": Other,
	} {
		if got := KindOf(file); got != want {
			t.Errorf("%s is %s; want %s", file, got, want)
		}
	}
}
