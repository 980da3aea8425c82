package qemutests

import (
	"strings"

	"reassure/image/spec"
)

// DebianProfile is what a site's own profile may look like: the ready one's
// parts, and what the tests look at.
const DebianProfile = `
description: Debian with systemd, for tests
table: auto
partitions:
  - {name: efi, size: 512MiB, filesystem: vfat, type: esp, label: EFI, mount: /boot/efi, options: [umask=0077], firmware: uefi}
  - {name: swap, size: 256MiB, filesystem: swap, label: swap}
  - {name: root, size: rest, filesystem: ext4, label: root, mount: /, options: [noatime, errors=remount-ro], bootable: true}
wads:
  - {file: debian.tar.zst}
templates:
  - {path: /etc/hostname, source: debian/hostname}
  - {path: /etc/hosts, source: hosts, volatile: true}
  - {path: /etc/fstab, source: fstab}
  - {path: /etc/systemd/network/10-lan.link, source: debian/lan.link}
  - {path: /etc/systemd/network/20-lan.network, source: debian/lan.network}
  - {path: /etc/resolv.conf, source: resolv.conf}
  - {path: /etc/motd, source: site/motd}
system:
  root_password_hash: "*"
  authorized_keys: ["{{KEY}}"]
  timezone: Europe/Zurich
  locale: C.UTF-8
steps:
  - name: network
    service: {name: systemd-networkd}
  - name: SSH keys
    ssh_keys: {user: ed25519}
  - name: known hosts
    known_hosts: {own_keys: true}
  - name: limits
    limits: {rules: [{domain: "@lab", type: hard, item: nproc, value: "321"}]}
  - name: boot loader
    boot_loader: {kind: grub, command_line: "console=tty0 console=ttyS0,115200", serial: 0}
on_failure: {retries: 0, then: poweroff}
secrets: public
`

// SmallProfile lays down the small wad, and gives up at the first failure.
const SmallProfile = `
description: the small wad, for tests
disk: {overwrite: foreign}
table: mbr
partitions:
  - {name: root, size: rest, filesystem: ext4, label: root, mount: /, bootable: true}
wads:
  - {file: small.tar.zst}
templates:
  - {path: /etc/hostname, source: site/hostname}
  - {path: /etc/fstab, source: site/fstab}
  - {path: /etc/network/interfaces, source: site/interfaces}
system:
  authorized_keys: ["{{KEY}}"]
steps:
  - name: SSH keys
    ssh_keys: {host: [ed25519]}
  - name: boot loader
    boot_loader: {kind: grub, command_line: "console=tty0 console=ttyS0,115200"}
on_failure: {retries: 0, then: poweroff}
`

// SmallFiles are the files of a site whose one PC gets the small wad.
func SmallFiles(profile string) map[string]string {
	return map[string]string{
		"profiles/small.yaml":     profile,
		"templates/site/hostname": "exp01\n",
		"templates/site/fstab":    "UUID=" + spec.Token(spec.TokenUUID, "root") + " / ext4 defaults 0 1\n",
		"templates/site/interfaces": "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n" +
			"\taddress " + Address + "\n\tnetmask 255.255.255.0\n\tgateway " + Server + "\n",
	}
}

// SmallRoomFiles are the files of a site whose PCs, on a segment, get the small wad.
func SmallRoomFiles() map[string]string {
	files := SmallFiles(strings.Replace(SmallProfile, "system:\n", "  - {path: /etc/motd, source: site/motd}\nsystem:\n", 1))
	files["templates/site/hostname"] = "{{.Name}}\n"
	files["templates/site/motd"] = "{{.Name}}: {{var \"motd\" \"first\"}}\n"
	files["templates/site/interfaces"] = "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n" +
		"\taddress {{.IP}}\n\tnetmask 255.255.255.0\n"
	return files
}
