package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"

	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// row is one kind of PC.
type row struct {
	firmware string // BIOS, or one of the emulator's kinds of UEFI
	disk     string // a key of disks
	nic      string // the emulator's model
	odd      string // what else is special; empty is nothing
}

func (r row) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s/%s/%s/%s", r.firmware, r.disk, r.nic, r.odd), "/")
}

// bios is a firmware; the others are [qemutests.Kind]s.
const bios = "BIOS"

var firmwares = []string{bios, string(qemutests.UEFI), string(qemutests.SecureBoot)}

// nvme4k is a disk whose logical sectors have 4096 bytes.
const nvme4k = "4Kn NVMe"

var disks = []string{"virtio", "ata", "nvme", "scsi", "usb", nvme4k}

// usbNet is a card that no firmware boots from.
const usbNet = "usb-net"

var nics = []string{"virtio-net-pci", "e1000", "e1000e", "rtl8139", "vmxnet3", usbNet}

// What else may be special.
const (
	threeDisks = "three disks of which one is right"
	staleRAID  = "a stale RAID member"
	little     = "512 MiB of memory"
	huge       = "a disk of 3 TB"
	realSystem = "a whole Debian"
)

// rows are all kinds of PCs: every disk with every card, once, and every firmware with
// each of both, twice; and the odd ones.
func rows() []row {
	var all []row
	for d, disk := range disks {
		for n, nic := range nics {
			all = append(all, row{firmwares[(d+n)%len(firmwares)], disk, nic, ""})
		}
	}
	for _, firmware := range firmwares {
		all = append(all, row{firmware, "nvme", "virtio-net-pci", realSystem})
	}
	uefi := string(qemutests.UEFI)
	return append(all,
		row{uefi, "nvme", "virtio-net-pci", threeDisks},
		row{bios, "ata", "e1000", staleRAID},
		row{bios, "virtio", "virtio-net-pci", little},
		row{uefi, "virtio", "e1000e", little},
		row{uefi, "scsi", "virtio-net-pci", huge},
	)
}

// loader says whether another card has to boot the PC. With Secure Boot OVMF itself boots
// virtio cards only; the boot ROMs that QEMU has for others are signed by nobody.
func (r row) loader() bool {
	return r.nic == usbNet || r.firmware == string(qemutests.SecureBoot) && r.nic != "virtio-net-pci"
}

// refused is the text with which this PC must be refused, or "".
func (r row) refused() string {
	if r.firmware == bios && r.disk == nvme4k {
		return "4096" // GRUB for a BIOS reads sectors of 512 bytes
	}
	return ""
}

// driver is the Linux driver of the row's card.
func (r row) driver() string {
	switch r.nic {
	case "virtio-net-pci":
		return "virtio_net"
	case "rtl8139":
		return "8139cp"
	case usbNet:
		return "cdc_ether"
	}
	return r.nic
}

// machine is the row's PC, with disks that are as the factory or its former owner left
// them. The first is the one to be reimaged.
func (r row) machine() qemutests.Machine {
	target := &qemutests.Disk{Size: 2 * spec.GiB, Bus: r.disk, Serial: "RIGHT"}
	if r.disk == nvme4k {
		target.Bus, target.Sector = "nvme", 4096
	}
	m := qemutests.Machine{NIC: r.nic, Disks: []*qemutests.Disk{target}}
	if r.firmware != bios {
		m.Firmware = &qemutests.Firmware{Kind: qemutests.Kind(r.firmware)}
		if r.nic != "virtio-net-pci" {
			m.BootFile = "ipxe/boot.ipxe" // for the card's boot ROM, which is an iPXE
		}
	}
	if r.loader() {
		m.Loader, m.BootFile = "virtio-net-pci", ""
	}
	switch r.odd {
	case threeDisks:
		m.Disks = append(m.Disks,
			&qemutests.Disk{Size: 2 * spec.GiB, Bus: "ata", Serial: "WRONG1", Fill: text("do not touch")},
			&qemutests.Disk{Size: 2 * spec.GiB, Bus: "virtio", Serial: "WRONG2", Fill: text("nor this")})
	case staleRAID:
		target.Fill = raidMember
	case little:
		m.Memory = 512 * spec.MiB
	case huge:
		target.Size = 3_000_000_000_000
	case realSystem:
		target.Size = 8 * spec.GiB
	}
	return m
}

// profile is what the row's PC gets. One profile is for both kinds of firmware.
func (r row) profile() string {
	p, esp := qemutests.SmallProfile, "  - {name: efi, size: 64MiB, filesystem: vfat, type: esp, label: EFI, mount: /boot/efi, firmware: uefi}\n"
	if r.odd == realSystem {
		p = qemutests.DebianProfile
	}
	p = strings.Replace(p, "disk: {overwrite: foreign}\n", "", 1) // every disk is new, or as a row has it
	p = strings.Replace(p, "table: mbr\npartitions:\n", "table: auto\npartitions:\n"+esp, 1)
	switch {
	case r.odd == threeDisks:
		p = "disk: {serial: RIGHT}\n" + p
	case r.disk == nvme4k: // FAT32 has 65,525 clusters at least
		p = strings.Replace(p, "size: 64MiB, filesystem: vfat", "size: 260MiB, filesystem: vfat", 1)
	case r.disk == "usb":
		p = "disk: {bus: usb}\n" + p
	}
	return p
}

// files are a site's for the row.
func (r row) files() map[string]string {
	if r.odd == realSystem {
		return map[string]string{"profiles/debian.yaml": r.profile(), "templates/site/motd": "first\n"}
	}
	files := qemutests.SmallFiles(strings.Replace(r.profile(), "system:\n", "  - {path: /etc/motd, source: site/motd}\nsystem:\n", 1))
	files["templates/site/motd"] = "first\n"
	return files
}

// text fills a disk with a line every megabyte.
func text(line string) func(*os.File) error {
	return func(f *os.File) error {
		for at := range int64(64) {
			if _, err := f.WriteAt([]byte(line+"\n"), at<<20); err != nil {
				return err
			}
		}
		return nil
	}
}

// raidMember leaves what a software RAID writes 4 KiB into each of its disks: a version
// 1.2 superblock (Linux, include/uapi/linux/raid/md_p.h).
func raidMember(f *os.File) error {
	super := make([]byte, 256+2*2)
	le := binary.LittleEndian
	le.PutUint32(super[0:], 0xa92b4efc)
	le.PutUint32(super[4:], 1)                            // major version
	copy(super[16:], bytes.Repeat([]byte{0x5a}, 16))      // UUID of the set
	copy(super[32:], "oldserver:0")                       // its name
	le.PutUint32(super[72:], 1)                           // level
	le.PutUint64(super[80:], uint64(2*spec.GiB/512)-2048) // size in sectors
	le.PutUint32(super[92:], 2)                           // disks
	le.PutUint64(super[128:], 2048)                       // where data begins
	le.PutUint64(super[136:], uint64(2*spec.GiB/512)-2048)
	le.PutUint64(super[144:], 8) // where this is
	le.PutUint32(super[220:], 2) // most disks
	le.PutUint32(super[216:], checksum(super))
	_, err := f.WriteAt(super, 4096)
	return err
}

// checksum is calc_sb_1_csum of Linux's drivers/md/md.c: the sum of the 32-bit words,
// folded once, with the field of the checksum at zero.
func checksum(super []byte) uint32 {
	sum := uint64(0)
	words := slices.Clone(super)
	clear(words[216:220])
	for ; len(words) >= 4; words = words[4:] {
		sum += uint64(binary.LittleEndian.Uint32(words))
	}
	return uint32(sum&0xffffffff) + uint32(sum>>32)
}
