package facts

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// tree makes files, and links where the text begins with "->".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if len(text) > 2 && text[:2] == "->" {
			err = os.Symlink(text[2:], full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCollect(t *testing.T) {
	virtio := "sys/devices/pci0000:00/0000:00:03.0/virtio0"
	root := tree(t, map[string]string{
		"sys/class/dmi/id/sys_vendor":               "Dell Inc.\n",
		"sys/class/dmi/id/product_name":             "OptiPlex 7050 \n",
		"sys/class/dmi/id/product_serial":           "ABC123\n",
		"proc/sys/kernel/osrelease":                 "6.1.0-44-amd64\n",
		"proc/meminfo":                              "MemTotal:        1009288 kB\nMemFree:          12 kB\n",
		"proc/cpuinfo":                              "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) \nflags : a\n\nprocessor\t: 1\nmodel name\t: Intel(R)  Xeon(R)\n",
		"sys/firmware/efi/fw_platform_size":         "64\n",
		virtio + "/modalias":                        "virtio:d00000001v00001AF4\n",
		virtio + "/driver":                          "->../../../../bus/virtio/drivers/virtio_net",
		virtio + "/net/eth0/address":                "52:54:00:12:34:56\n",
		virtio + "/net/eth0/type":                   "1\n",
		virtio + "/net/eth0/device":                 "->../../../virtio0",
		"sys/class/net/eth0":                        "->../../devices/pci0000:00/0000:00:03.0/virtio0/net/eth0",
		"sys/class/net/lo/type":                     "772\n",
		"sys/class/net/lo/address":                  "00:00:00:00:00:00\n",
		"sys/class/net/vlan5/type":                  "1\n",
		"sys/class/net/vlan5/address":               "52:54:00:12:34:56\n",
		"sys/class/net/bonding_masters":             "\n",
		"sys/bus/pci/devices/0000:00:01.0/modalias": "pci:v00008086d00007000sv00001AF4sd00001100bc06sc01i00\n",
		"sys/bus/pci/devices/0000:00:03.0/modalias": "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00\n",
		"sys/bus/pci/devices/0000:00:03.0/driver":   "->../../../bus/pci/drivers/virtio-pci",
		"sys/bus/pci/devices/0000:00:04.0/modalias": "pci:v00001234d00001111sv00001AF4sd00001100bc01sc06i01\n",
		"sys/bus/pci/devices/0000:00:05.0/modalias": "pci:v00001234d00001111sv00001AF4sd00001100bc01sc06i01\n",
		"sys/bus/usb/devices/1-1/product":           "QEMU USB Tablet\n",
		"sys/bus/usb/devices/1-1:1.0/modalias":      "usb:v0627p0001d0000dc00dsc00dp00ic03isc00ip00in00\n",
		"sys/bus/usb/devices/1-1:1.0/driver":        "->../../../bus/usb/drivers/usbhid",
		"sys/bus/usb/devices/1-2:1.0/modalias":      "usb:" + strings.Repeat("x", maxModalias) + "\n",
		"sys/bus/acpi/devices/PNP0A03:00/modalias":  "acpi:PNP0A03:\n",
	})
	booted := spec.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	want := spec.Facts{
		Firmware: spec.UEFI, Vendor: "Dell Inc.", Product: "OptiPlex 7050", Serial: "ABC123", CPU: "Intel(R) Xeon(R)", CPUs: 2,
		Memory: 1009288 * spec.KiB, Kernel: "6.1.0-44-amd64",
		NICs: []spec.NIC{{Name: "eth0", MAC: booted, Driver: "virtio_net", Bus: "virtio:d00000001v00001AF4", Booted: true}},
		Devices: []spec.Device{
			{Modalias: "pci:v00001234d00001111sv00001AF4sd00001100bc01sc06i01", Count: 2},
			{Modalias: "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00", Driver: "virtio-pci"},
			{Modalias: "usb:v0627p0001d0000dc00dsc00dp00ic03isc00ip00in00", Driver: "usbhid"},
			{Modalias: "pci:v00008086d00007000sv00001AF4sd00001100bc06sc01i00"},
		},
	}
	if diff := cmp.Diff(want, Collect(os.DirFS(root), booted)); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	want.NICs[0].Booted = false
	if diff := cmp.Diff(want, Collect(os.DirFS(root), spec.MAC{})); diff != "" {
		t.Errorf("facts when the card is unknown (-want +got):\n%s", diff)
	}
}

// TestDevicesAreBounded has a machine with more kinds of devices than are reported:
// those that matter are among those that are.
func TestDevicesAreBounded(t *testing.T) {
	files := fstest.MapFS{"sys/bus/pci/devices/nic/modalias": {Data: []byte("pci:v00008086d0000FFFFsv00000000sd00000000bc02sc00i00\n")}}
	for i := range 2 * spec.MaxDevices {
		files[fmt.Sprintf("sys/bus/pci/devices/%d/modalias", i)] = &fstest.MapFile{Data: fmt.Appendf(nil, "pci:v00008086d%08Xsv00000000sd00000000bc08sc80i00\n", i)}
	}
	got := devices(files)
	if len(got) != spec.MaxDevices || got[0].Modalias != "pci:v00008086d0000FFFFsv00000000sd00000000bc02sc00i00" {
		t.Errorf("%d devices, the first %v", len(got), got[0])
	}
}

func TestCollectNothing(t *testing.T) {
	if diff := cmp.Diff(spec.Facts{Firmware: spec.BIOS}, Collect(os.DirFS(t.TempDir()), spec.MAC{})); diff != "" {
		t.Errorf("facts of an empty tree (-want +got):\n%s", diff)
	}
}

// TestCollectHere reads the machine that runs the test.
func TestCollectHere(t *testing.T) {
	f := Collect(os.DirFS("/"), spec.MAC{})
	if f.CPUs < runtime.NumCPU() || f.Memory < 64*spec.MiB || f.Kernel == "" {
		t.Errorf("facts of this machine: %+v", f)
	}
}
