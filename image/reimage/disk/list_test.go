package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// TestDescribe reads folders as Linux 6.1's sysfs has them.
func TestDescribe(t *testing.T) {
	const pci = "devices/pci0000:00/"
	for _, c := range []struct {
		name  string
		at    string            // of the disk, below the root of sysfs
		files map[string]string // below at, or above it with ../
		want  spec.Disk
	}{
		{"nvme0n1", pci + "0000:00:06.0/0000:01:00.0/nvme/nvme0/nvme0n1", map[string]string{
			"size": "1000215216\n", "wwid": "eui.0025388b71b05a4a\n", "queue/logical_block_size": "4096\n", "queue/physical_block_size": "4096\n", "queue/rotational": "0\n",
			"../model": "SAMSUNG MZVLB512HAJQ-00000              \n", "../serial": "S3W8NX0M123456      \n", "device": "-> ..",
		}, spec.Disk{
			Device: "/dev/nvme0n1", Size: 1000215216 * 512, Model: "SAMSUNG MZVLB512HAJQ-00000", Serial: "S3W8NX0M123456", WWN: "eui.0025388b71b05a4a", Bus: "nvme",
			ByPath: "/dev/disk/by-path/pci-0000:01:00.0-nvme-1", LogicalSector: 4096, PhysicalSector: 4096,
		}},
		{"sda", pci + "0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", map[string]string{
			"size": "976773168\n", "queue/physical_block_size": "4096\n", "queue/rotational": "1\n", "removable": "0\n",
			"../../model": "ST500DM002-1BD14\n", "../../vpd_pg80": "\x00\x80\x00\x14            Z2AXYZ12", "../../wwid": "naa.5000c50012345678\n", "device": "-> ../..",
		}, spec.Disk{
			Device: "/dev/sda", Size: 976773168 * 512, Model: "ST500DM002-1BD14", Serial: "Z2AXYZ12", WWN: "naa.5000c50012345678", Bus: "ata",
			ByPath: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", LogicalSector: 512, PhysicalSector: 4096, Rotational: true,
		}},
		{"sdb", pci + "0000:00:14.0/usb2/2-3/2-3:1.0/host6/target6:0:0/6:0:0:0/block/sdb", map[string]string{
			"size": "60437492\n", "removable": "1\n", "ro": "1\n", "../../model": "Ultra Fit\n", "device": "-> ../..",
			"../../../../../../idVendor": "0781\n", "../../../../../../serial": "4C530001230405060708\n", "../../../../../../../idVendor": "1d6b\n", "../../../../../../../serial": "0000:00:14.0\n",
		}, spec.Disk{
			Device: "/dev/sdb", Size: 60437492 * 512, Model: "Ultra Fit", Serial: "4C530001230405060708", Bus: "usb",
			ByPath: "/dev/disk/by-path/pci-0000:00:14.0-usb-0:3:1.0-scsi-0:0:0:0", LogicalSector: 512, PhysicalSector: 512, Removable: true, ReadOnly: true,
		}},
		{"sdc", pci + "0000:00:14.0/usb2/2-4/2-4:1.0/host7/target7:0:0/7:0:0:0/block/sdc", map[string]string{
			"size": "8\n", "device": "-> ../..", "../../../../../../idVendor": "0781\n", "../../../../../../../idVendor": "1d6b\n", "../../../../../../../serial": "0000:00:14.0\n",
		}, spec.Disk{ // a stick without a serial number does not get that of its controller
			Device: "/dev/sdc", Size: 8 * 512, Bus: "usb", ByPath: "/dev/disk/by-path/pci-0000:00:14.0-usb-0:4:1.0-scsi-0:0:0:0", LogicalSector: 512, PhysicalSector: 512,
		}},
		{"mmcblk0", pci + "0000:00:1c.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0", map[string]string{
			"size": "61071360\n", "../../name": "BJTD4R\n", "../../cid": "150100424a54443452\n", "../../serial": "0x1a2b3c4d\n", "device": "-> ../..",
		}, spec.Disk{
			Device: "/dev/mmcblk0", Size: 61071360 * 512, Model: "BJTD4R", Serial: "0x1a2b3c4d", Bus: "mmc", ByPath: "/dev/disk/by-path/pci-0000:00:1c.0", LogicalSector: 512, PhysicalSector: 512,
		}},
		{"vda", pci + "0000:00:04.0/virtio1/block/vda", map[string]string{"size": "4194304\n", "serial": "RIGHT\n", "device": "-> ../.."}, spec.Disk{
			Device: "/dev/vda", Size: 2 * spec.GiB, Serial: "RIGHT", Bus: "virtio", ByPath: "/dev/disk/by-path/pci-0000:00:04.0", LogicalSector: 512, PhysicalSector: 512,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := t.TempDir()
			at := filepath.Join(sys, c.at)
			for name, content := range c.files {
				path := filepath.Join(at, name)
				err := os.MkdirAll(filepath.Dir(path), 0o755)
				if target, link := strings.CutPrefix(content, "-> "); err == nil && link {
					err = os.Symlink(target, path)
				} else if err == nil {
					err = os.WriteFile(path, []byte(content), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			block := filepath.Join(sys, "block", c.name)
			if err := errors.Join(os.Mkdir(filepath.Dir(block), 0o755), os.Symlink(filepath.Join("..", c.at), block)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, System{Sys: sys}.describe(c.name)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
