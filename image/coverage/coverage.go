// Package coverage tells whether an image has drivers for devices, before
// anybody walks to a PC: which driver of which device is in the image, which is
// left out and why, which needs firmware that the image lacks, and which devices
// no driver of this kernel knows.
//
// What is asked about comes from a list that a person has ([Parse]), from this
// machine ([Host]), or from what a PC reported ([FromModalias]). What is known
// comes from a [Catalogue], which is written beside each image (drivers.json), so
// that no kernel is needed to answer. A list tells less of a device than the
// kernel knows: lspci -nn has no programming interface, a bare number no class.
// What is not told is taken to fit a driver's alias as long as the device's
// number, or its whole class as far as the list has it, does.
package coverage

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"reassure/image/kmod"
)

// File is the catalogue's name beside an image, and in the TFTP root.
const File = "drivers.json"

// Catalogue is what a kernel has of drivers, and what of these is in an image.
type Catalogue struct {
	Version string `json:"version"` // of ReAssure
	Flavour string `json:"flavour"`
	Kernel  string `json:"kernel"`
	// Drivers are those for devices on the PCI and USB buses and for virtio
	// devices, by file.
	Drivers []Driver `json:"drivers"`
	// Firmware is what the image has of it, below /lib/firmware.
	Firmware []string `json:"firmware"`
}

// Driver is a module of a kernel.
type Driver struct {
	File     string   `json:"file"` // below kernel/, without .ko
	Aliases  []string `json:"aliases"`
	Firmware []string `json:"firmware,omitempty"` // that it may ask for, below /lib/firmware
	// Why says why it is not in the image; empty means that it is there, or in
	// the kernel itself.
	Why string `json:"why,omitempty"`
}

// Name is the module's name.
func (d *Driver) Name() string { return kmod.Canonical(path.Base(d.File)) }

// buses are those whose devices are asked about.
var buses = [...]string{"pci:", "usb:", "virtio:"}

// NewCatalogue makes one of a kernel's modules; why says why a module is not in
// the image, or "" when it is.
func NewCatalogue(tree *kmod.Tree, why func(*kmod.Module) string) *Catalogue {
	c := &Catalogue{}
	add := func(m *kmod.Module, why string) {
		d := Driver{File: strings.TrimPrefix(m.Path, "kernel/"), Firmware: m.Firmware, Why: why}
		if i := strings.LastIndex(d.File, ".ko"); i >= 0 {
			d.File = d.File[:i]
		}
		for _, a := range m.Aliases {
			if slices.ContainsFunc(buses[:], func(b string) bool { return strings.HasPrefix(a, b) }) {
				d.Aliases = append(d.Aliases, a)
			}
		}
		if len(d.Aliases) > 0 {
			c.Drivers = append(c.Drivers, d)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(tree.Modules)) {
		add(tree.Modules[n], why(tree.Modules[n]))
	}
	for _, n := range slices.Sorted(maps.Keys(tree.BuiltinInfo)) {
		add(tree.BuiltinInfo[n], "")
	}
	slices.SortFunc(c.Drivers, func(a, b Driver) int { return strings.Compare(a.File, b.File) })
	return c
}

// Read reads a catalogue as a build wrote it.
func Read(text []byte) (*Catalogue, error) {
	c := new(Catalogue)
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("%s: %w", File, err)
	}
	if len(c.Drivers) == 0 {
		return nil, fmt.Errorf("%s names no driver: make image writes it", File)
	}
	return c, nil
}

// Kind is what a device or a driver is good for.
type Kind string

// Kinds. A reimage needs the first two.
const (
	Network Kind = "network"
	Storage Kind = "storage"
	Other   Kind = "other"
	Unknown Kind = "unknown"
)

// Folders of drivers below kernel/, and single drivers, that a reimage may need.
var (
	networkDrivers = [...]string{
		"drivers/net/ethernet/", "drivers/net/usb/", "drivers/net/phy/", "drivers/net/fjes/", "drivers/net/hyperv/", "drivers/net/vmxnet3/",
		"drivers/net/virtio_net", "drivers/net/xen-netfront", "drivers/net/thunderbolt-net",
	}
	storageDrivers = [...]string{
		"drivers/ata/", "drivers/nvme/host/", "drivers/scsi/", "drivers/message/", "drivers/mmc/", "drivers/ufs/", "drivers/usb/storage/", "drivers/block/",
		// Intel's Volume Management Device hides NVMe disks behind itself.
		"drivers/pci/controller/vmd",
	}
)

// KindOf says what a driver is for, by its file below kernel/.
func KindOf(file string) Kind {
	in := func(folders []string) bool {
		return slices.ContainsFunc(folders, func(f string) bool { return file == f || strings.HasSuffix(f, "/") && strings.HasPrefix(file, f) })
	}
	switch {
	case in(networkDrivers[:]):
		return Network
	case in(storageDrivers[:]):
		return Storage
	}
	return Other
}

// State is how well a device is covered, the worst first.
type State string

// States.
const (
	NoDriver   State = "no driver"     // no driver of this kernel knows it
	LeftOut    State = "left out"      // its driver is not in the image
	NoFirmware State = "no firmware"   // its driver is there, the firmware that it needs is not
	Some       State = "some firmware" // its driver works without what is missing, or has some of it
	Covered    State = "covered"
)

// Verdict is what was found out about one device.
type Verdict struct {
	Device Device `json:"device"`
	Kind   Kind   `json:"kind"`
	State  State  `json:"state"`
	// Driver is the one that counts, a name; empty when there is none.
	Driver string `json:"driver,omitempty"`
	// Why says why it is left out.
	Why string `json:"why,omitempty"`
	// Missing is firmware that the driver may ask for and the image lacks.
	Missing []string `json:"missing,omitempty"`
}

// Good says whether a reimage can count on the device. Of a device whose kind
// nobody knows this is asked only where a person named it.
func (v *Verdict) Good() bool {
	switch v.State {
	case NoDriver, LeftOut, NoFirmware:
		return v.Kind == Other || v.Kind == Unknown && v.Device.Bus == "usb"
	}
	return true
}

// Judge answers for one catalogue. It is safe for concurrent use.
type Judge struct {
	c        *Catalogue
	firmware map[string]bool
	byNumber map[string][]rule // bus, vendor and product
	general  []rule
}

// rule is one alias of a driver.
type rule struct {
	driver *Driver
	alias  parts
}

// NewJudge returns a judge of a catalogue.
func NewJudge(c *Catalogue) *Judge {
	j := &Judge{c: c, firmware: map[string]bool{}, byNumber: map[string][]rule{}}
	for _, f := range c.Firmware {
		j.firmware[f] = true
	}
	for i := range c.Drivers {
		for _, a := range c.Drivers[i].Aliases {
			p, ok := split(a)
			if !ok {
				continue
			}
			r := rule{&c.Drivers[i], p}
			if key := p.number(); key != "" {
				j.byNumber[key] = append(j.byNumber[key], r)
			} else {
				j.general = append(j.general, r)
			}
		}
	}
	return j
}

// Catalogue is what the judge was made with.
func (j *Judge) Catalogue() *Catalogue { return j.c }

// Device judges one device. Where a bare number can be a PCI and a USB device, it
// is the one that a driver knows.
func (j *Judge) Device(d Device) Verdict {
	v := Verdict{Device: d, State: NoDriver, Kind: d.kind()}
	buses := []string{d.Bus}
	if d.Bus == "" {
		buses = []string{"pci", "usb"}
	}
	var found []*Driver
	var numbered bool // one of them goes by the device's number
	for _, bus := range buses {
		d.Bus = bus
		p := d.parts()
		if found = j.drivers(p); len(found) > 0 {
			v.Device.Bus = bus
			numbered = len(j.byNumber[p.number()]) > 0
			break
		}
	}
	if inner, ok := virtio(d); ok && len(found) > 0 {
		// virtio_pci is only the way to it.
		if served := j.drivers(inner); len(served) > 0 {
			found = served
		}
	}
	if v.Kind == Unknown || v.Kind == Other {
		for _, f := range found {
			if k := KindOf(f.File); k == Network || k == Storage {
				v.Kind = k
			} else if v.Kind == Unknown {
				v.Kind = Other
			}
		}
	}
	for i, f := range found {
		// A driver for what the device is goes before one for something that
		// it also is: USB network cards have a mode as a disk with drivers.
		if k := KindOf(f.File); i > 0 && v.Kind != Other && k != v.Kind {
			continue
		}
		state, missing := j.state(f)
		if i > 0 && preference(state) <= preference(v.State) && KindOf(v.Driver) == KindOf(f.File) {
			continue
		}
		v.State, v.Driver, v.Why, v.Missing = state, f.File, f.Why, missing
	}
	if v.Kind == Other && len(found) > 1 && !numbered {
		v.Driver = "" // several classes may be meant
	}
	if v.Driver != "" {
		v.Driver = kmod.Canonical(path.Base(v.Driver))
	}
	return v
}

// Compare orders states, the worst first.
func (s State) Compare(t State) int {
	all := [...]State{NoDriver, LeftOut, NoFirmware, Some, Covered}
	return slices.Index(all[:], s) - slices.Index(all[:], t)
}

// preference is which of a device's drivers counts: one that works, and of these
// the one that there is something to say about.
func preference(s State) int {
	return slices.Index([]State{NoDriver, LeftOut, NoFirmware, Covered, Some}, s)
}

// state is how well a device of a driver is covered.
func (j *Judge) state(d *Driver) (State, []string) {
	if d.Why != "" {
		return LeftOut, nil
	}
	var missing []string
	for _, f := range d.Firmware {
		if !j.firmware[f] {
			missing = append(missing, f)
		}
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	switch {
	case len(missing) == 0:
		return Covered, nil
	case len(missing) < len(d.Firmware) || worksWithout(d.Name()):
		return Some, missing
	}
	return NoFirmware, missing
}

// worksWithout names drivers that ask for firmware and move data without it, as
// their sources in Linux 6.1 have it: it tunes the card or adds offloads (r8169,
// r8152, tg3, e100, but for a few old revisions), the driver has a mode without
// (ice, isci), or the card has its own in flash memory.
func worksWithout(driver string) bool {
	switch driver {
	case "r8169", "r8152", "tg3", "e100", "ice", "isci", "cxgb4", "netxen_nic", "qlcnic", "myri10ge", "qla2xxx":
		return true
	}
	return false
}

// drivers are those that serve a device. One that knows its number goes before
// those for its class, which may find out that it is not theirs: ahci is for
// every RAID controller of Intel, and so for VMD, and declines.
func (j *Judge) drivers(d parts) []*Driver {
	var found []*Driver
	add := func(rules []rule) {
		for _, r := range rules {
			if r.alias.serves(d) && !slices.Contains(found, r.driver) {
				found = append(found, r.driver)
			}
		}
	}
	if key := d.number(); key != "" {
		add(j.byNumber[key])
	}
	if len(found) == 0 {
		add(j.general)
	}
	return found
}
