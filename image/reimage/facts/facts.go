// Package facts finds out what a PC is: firmware, maker, processor, memory,
// kernel, network cards, and what its buses show. Its disks are the disk package's.
package facts

import (
	"bufio"
	"bytes"
	"cmp"
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
		Devices:  devices(root),
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

// maxModalias is longer than any that the kernel makes for these buses.
const maxModalias = 200

// devices returns what is on the PCI and USB buses, for the server to judge by.
// There are servers with hundreds of alike functions: those are one, with a count. Of too
// many, those that a reimage may need come first.
func devices(root fs.FS) []spec.Device {
	count := map[spec.Device]int{}
	for _, bus := range []string{"pci", "usb"} {
		dir := path.Join("sys/bus", bus, "devices")
		entries, err := fs.ReadDir(root, dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			d := spec.Device{Modalias: line(root, path.Join(dir, e.Name(), "modalias"))}
			if d.Modalias == "" || len(d.Modalias) > maxModalias {
				continue // a USB device has none, its interfaces do
			}
			if driver, err := fs.ReadLink(root, path.Join(dir, e.Name(), "driver")); err == nil {
				d.Driver = path.Base(driver)
			}
			count[d]++
		}
	}
	var found []spec.Device
	for d, n := range count {
		if n > 1 {
			d.Count = n
		}
		found = append(found, d)
	}
	slices.SortFunc(found, func(a, b spec.Device) int {
		return cmp.Or(rank(a.Modalias)-rank(b.Modalias), strings.Compare(a.Modalias, b.Modalias), strings.Compare(a.Driver, b.Driver))
	})
	return found[:min(len(found), spec.MaxDevices)]
}

// rank puts storage (class 01) and network (02) on PCI first, then USB.
func rank(modalias string) int {
	switch {
	case strings.Contains(modalias, "bc01sc"), strings.Contains(modalias, "bc02sc"):
		return 0
	case strings.HasPrefix(modalias, "usb:"):
		return 1
	}
	return 2
}
