// Package facts finds out what a PC is: firmware, maker, processor, memory,
// kernel and network cards. Its disks are the disk package's.
package facts

import (
	"bufio"
	"bytes"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"reassure/image/spec"
)

// Collect reads /proc and /sys below root, which is os.DirFS("/") in earnest.
// The card with the address booted is marked as the one that booted. What
// cannot be found out stays empty: facts are for people and for choosing, and
// none is worth a failure.
func Collect(root fs.FS, booted spec.MAC) spec.Facts {
	f := spec.Facts{
		Firmware: spec.BIOS,
		Vendor:   line(root, "sys/class/dmi/id/sys_vendor"),
		Product:  line(root, "sys/class/dmi/id/product_name"),
		Serial:   line(root, "sys/class/dmi/id/product_serial"),
		Memory:   memory(root),
		Kernel:   line(root, "proc/sys/kernel/osrelease"),
		NICs:     NICs(root, booted),
	}
	if _, err := fs.Stat(root, "sys/firmware/efi"); err == nil {
		f.Firmware = spec.UEFI
	}
	f.CPU, f.CPUs = processors(root)
	return f
}

// line returns a small file's text without spaces around it.
func line(root fs.FS, name string) string {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func processors(root fs.FS) (model string, count int) {
	text, err := fs.ReadFile(root, "proc/cpuinfo")
	if err != nil {
		return "", 0
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(key) {
		case "processor":
			count++
		case "model name":
			model = strings.Join(strings.Fields(value), " ")
		}
	}
	return model, count
}

func memory(root fs.FS) spec.Size {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, err := strconv.ParseUint(f[1], 10, 53)
			if err != nil {
				return 0
			}
			return spec.Size(n) * spec.KiB
		}
	}
	return 0
}

// NICs returns the Ethernet cards, by name: what has a device behind it, so
// neither lo nor a VLAN or bridge.
func NICs(root fs.FS, booted spec.MAC) []spec.NIC {
	const class = "sys/class/net"
	entries, err := fs.ReadDir(root, class)
	if err != nil {
		return nil
	}
	var nics []spec.NIC
	for _, e := range entries {
		dir := path.Join(class, e.Name())
		// ARPHRD_ETHER of include/uapi/linux/if_arp.h
		if line(root, path.Join(dir, "type")) != "1" {
			continue
		}
		if _, err := fs.Stat(root, path.Join(dir, "device")); err != nil {
			continue
		}
		n := spec.NIC{Name: e.Name(), Bus: line(root, path.Join(dir, "device/modalias"))}
		if err := n.MAC.UnmarshalText([]byte(line(root, path.Join(dir, "address")))); err != nil {
			continue
		}
		if driver, err := fs.ReadLink(root, path.Join(dir, "device/driver")); err == nil {
			n.Driver = path.Base(driver)
		}
		n.Booted = booted != (spec.MAC{}) && n.MAC == booted
		nics = append(nics, n)
	}
	slices.SortFunc(nics, func(a, b spec.NIC) int { return strings.Compare(a.Name, b.Name) })
	return nics
}
