package coverage

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"reassure/image/kmod"
)

// Device is a device as a list has it. What the list does not say is empty.
type Device struct {
	Bus     string `json:"bus,omitempty"` // pci, usb or virtio; empty is either of the first two
	Vendor  string `json:"vendor"`        // four hexadecimal digits, as Product
	Product string `json:"product"`
	// Class is a PCI device's: base class and subclass, four hexadecimal digits.
	Class string `json:"class,omitempty"`
	// Modalias is the kernel's own name of it, which tells all.
	Modalias string `json:"modalias,omitempty"`
	// Text is what the list calls it.
	Text string `json:"text,omitempty"`
	// Count is how many of it there are.
	Count int `json:"count,omitempty"`
}

// Number is vendor and product as people write them.
func (d Device) Number() string { return d.Vendor + ":" + d.Product }

// kind is what the list alone tells of the device's use.
func (d Device) kind() Kind {
	switch {
	case d.Class == "0280":
		return Other // wireless, but for a few whose drivers tell
	case strings.HasPrefix(d.Class, "02"):
		return Network
	case strings.HasPrefix(d.Class, "01"), d.Class == "0805": // of these, SD and MMC
		return Storage
	case d.Class != "":
		return Other
	}
	return Unknown
}

// parts is an alias, or what is known of a device, field by field as the kernel
// writes them (scripts/mod/file2alias.c): small letters name a field, the rest is
// its value.
type parts struct {
	bus    string
	fields [12]struct{ key, value string }
}

// split takes an alias apart.
func split(alias string) (parts, bool) {
	var p parts
	bus, rest, ok := strings.Cut(alias, ":")
	if !ok {
		return p, false
	}
	p.bus = bus
	small := func(c byte) bool { return 'a' <= c && c <= 'z' }
	for n := 0; rest != ""; n++ {
		if n == len(p.fields) || !small(rest[0]) {
			return p, false
		}
		end := 0
		for end < len(rest) && small(rest[end]) {
			end++
		}
		p.fields[n].key, rest = rest[:end], rest[end:]
		for end = 0; end < len(rest) && !small(rest[end]); end++ {
		}
		p.fields[n].value, rest = rest[:end], rest[end:]
	}
	return p, true
}

func (p *parts) get(key string) string {
	for i := range p.fields {
		if p.fields[i].key == key {
			return p.fields[i].value
		}
	}
	return ""
}

func (p *parts) set(key, value string) {
	for i := range p.fields {
		if p.fields[i].key == "" || p.fields[i].key == key {
			p.fields[i].key, p.fields[i].value = key, value
			return
		}
	}
}

// literal says whether a field's value stands for nothing but itself.
func literal(value string) bool { return value != "" && !strings.ContainsAny(value, "*?[") }

// product is the name of a bus's field for what a device is beside its vendor.
func product(bus string) string {
	if bus == "usb" {
		return "p"
	}
	return "d"
}

// number is bus, vendor and product, or "" when the alias is not of one product.
func (p *parts) number() string {
	v, d := p.get("v"), p.get(product(p.bus))
	if !literal(v) || !literal(d) {
		return ""
	}
	return p.bus + " " + v + " " + d
}

// serves says whether an alias fits a device, as far as the device is known.
func (p *parts) serves(d parts) bool {
	if p.bus != d.bus {
		return false
	}
	numbered := p.number() != ""
	for _, f := range p.fields {
		if f.key == "" || f.value == "*" || f.value == "" {
			continue
		}
		known := d.get(f.key)
		if known == "" {
			// A class that is not known fits nothing by itself.
			if !numbered && (f.key == "bc" || f.key == "sc" || f.key == "dc" || f.key == "ic" || f.key == "isc") {
				return false
			}
			continue
		}
		if literal(f.value) {
			if f.value != known {
				return false
			}
			continue // most are, and this is much faster
		}
		if !kmod.MatchAlias(f.value, known) {
			return false
		}
	}
	return true
}

// parts is what is known of the device.
func (d Device) parts() parts {
	if p, ok := split(d.Modalias); ok {
		return p
	}
	var p parts
	p.bus = d.Bus
	upper := strings.ToUpper
	if d.Bus == "usb" {
		p.set("v", upper(d.Vendor))
		p.set("p", upper(d.Product))
		return p
	}
	p.set("v", "0000"+upper(d.Vendor))
	p.set("d", "0000"+upper(d.Product))
	if len(d.Class) == 4 {
		p.set("bc", upper(d.Class[:2]))
		p.set("sc", upper(d.Class[2:]))
	}
	return p
}

// virtio is the virtio device behind a PCI device of that vendor: it needs a
// driver of its own. The numbers are of the virtio specification, 1.2, 4.1.2.1.
func virtio(d Device) (parts, bool) {
	var p parts
	n, err := strconv.ParseUint(d.Product, 16, 16)
	if d.Vendor != "1af4" || d.Bus == "usb" || err != nil {
		return p, false
	}
	old := map[uint64]uint64{0x1000: 1, 0x1001: 2, 0x1004: 8, 0x1009: 9}
	switch {
	case old[n] != 0:
		n = old[n]
	case n > 0x1040 && n < 0x1080:
		n -= 0x1040
	default:
		return p, false
	}
	p.bus = "virtio"
	p.set("d", fmt.Sprintf("%08X", n))
	p.set("v", "00001AF4")
	return p, true
}

// FromModalias is the device that the kernel names so; false when it is none that
// is asked about.
func FromModalias(modalias string) (Device, bool) {
	p, ok := split(modalias)
	v, n := p.get("v"), p.get(product(p.bus))
	d := Device{Bus: p.bus, Modalias: modalias}
	switch {
	case !ok || !literal(v) || !literal(n):
		return d, false
	case p.bus == "pci" && len(v) == 8 && len(n) == 8:
		d.Vendor, d.Product, d.Class = strings.ToLower(v[4:]), strings.ToLower(n[4:]), strings.ToLower(p.get("bc")+p.get("sc"))
	case p.bus == "usb" && len(v) == 4 && len(n) == 4:
		d.Vendor, d.Product = strings.ToLower(v), strings.ToLower(n)
	default:
		return d, false
	}
	return d, true
}

var (
	modaliasPattern = regexp.MustCompile(`\b(?:pci:v[0-9A-F]{8}d|usb:v[0-9A-F]{4}p)[0-9A-Za-z]+`)
	slotPattern     = regexp.MustCompile(`(?:^|\s)(?:[0-9a-f]{4,6}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\s+(.*)$`)
	namedPattern    = regexp.MustCompile(`^(.*?) \[([0-9a-f]{4})\]: (.*?) ?\[([0-9a-f]{4}):([0-9a-f]{4})\]`)
	numericPattern  = regexp.MustCompile(`^(?:Class )?([0-9a-f]{4}): ([0-9a-f]{4}):([0-9a-f]{4})`)
	usbPattern      = regexp.MustCompile(`\bID ([0-9a-fA-F]{4}):([0-9a-fA-F]{4})\s*(.*)$`)
	barePattern     = regexp.MustCompile(`^\s*(?:(pci|usb)[ :])?\s*([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?:\s+(.*))?$`)
	// Lines that come with these lists and name no device of their own: what
	// lspci -k and -v indent, and headings of scripts around it.
	besidePattern = regexp.MustCompile(`^(?:\s.*|#.*|IOMMU Group.*|--)?$`)
)

// maxLine is far more than any of these programs writes in one.
const maxLine = 64 << 10

// Parse reads a list of devices: what lspci -nn, lspci -n (with -k or -v, too) and
// lsusb print, modalias files of /sys, or plain numbers VVVV:DDDD; mixed, if need
// be. The same device many times is one, with a count.
func Parse(name string, r io.Reader) ([]Device, error) {
	var l list
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t\r")
		switch d, verdict := parseLine(line); verdict {
		case "":
			l.add(d)
		case beside:
		default:
			return nil, fmt.Errorf("%s:%d: %s: %q", name, n, verdict, strings.TrimSpace(line))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(l.devices) == 0 {
		return nil, fmt.Errorf("%s names no device: write into it what lspci -nn and lsusb print", name)
	}
	return l.devices, nil
}

// beside is the verdict on a line that names no device and need not.
const beside = "beside"

// parseLine reads a line; the verdict is empty when it names a device, beside, or
// what is wrong with it.
func parseLine(line string) (d Device, verdict string) {
	if m := modaliasPattern.FindString(line); m != "" {
		if d, ok := FromModalias(m); ok {
			return d, ""
		}
		return d, "this modalias is not whole"
	}
	if m := slotPattern.FindStringSubmatch(line); m != nil {
		if f := namedPattern.FindStringSubmatch(m[1]); f != nil {
			return Device{Bus: "pci", Class: f[2], Vendor: f[4], Product: f[5], Text: f[1] + ", " + f[3]}, ""
		}
		if f := numericPattern.FindStringSubmatch(m[1]); f != nil {
			return Device{Bus: "pci", Class: f[1], Vendor: f[2], Product: f[3]}, ""
		}
		return d, "this line of lspci has no numbers: use lspci -nn"
	}
	if f := usbPattern.FindStringSubmatch(line); f != nil {
		return Device{Bus: "usb", Vendor: strings.ToLower(f[1]), Product: strings.ToLower(f[2]), Text: f[3]}, ""
	}
	if f := barePattern.FindStringSubmatch(line); f != nil {
		return Device{Bus: f[1], Vendor: strings.ToLower(f[2]), Product: strings.ToLower(f[3]), Text: f[4]}, ""
	}
	if besidePattern.MatchString(line) {
		return d, beside
	}
	return d, "no device can be seen in this line; these can: what lspci -nn, lspci -n and lsusb print, modaliases, and numbers such as 8086:15b7"
}

// list gathers devices.
type list struct {
	devices []Device
	at      map[Device]int
}

func (l *list) add(d Device) {
	if l.at == nil {
		l.at = map[Device]int{}
	}
	i, ok := l.at[d]
	if !ok {
		i = len(l.devices)
		l.at[d] = i
		l.devices = append(l.devices, d)
	}
	l.devices[i].Count++
}

// Host lists the PCI and USB devices of the machine whose /sys that is.
func Host(sys fs.FS) ([]Device, error) {
	var l list
	for _, bus := range []string{"pci", "usb"} {
		dir := path.Join("bus", bus, "devices")
		entries, err := fs.ReadDir(sys, dir)
		if err != nil {
			continue // a machine may lack a bus
		}
		for _, e := range entries {
			text, err := fs.ReadFile(sys, path.Join(dir, e.Name(), "modalias"))
			if err != nil {
				continue // a USB device has none, its interfaces do
			}
			d, ok := FromModalias(strings.TrimSpace(string(text)))
			if !ok {
				continue
			}
			if bus == "usb" {
				// The device's own name is one above its interface's.
				name, _, _ := strings.Cut(e.Name(), ":")
				product, err := fs.ReadFile(sys, path.Join(dir, name, "product"))
				if err == nil {
					d.Text = strings.TrimSpace(string(product))
				}
			}
			l.add(d)
		}
	}
	if len(l.devices) == 0 {
		return nil, fmt.Errorf("this machine shows no PCI and no USB device in /sys/bus: name a list with --ids")
	}
	return l.devices, nil
}
