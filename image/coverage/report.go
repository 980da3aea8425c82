package coverage

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Report is what was found out about a list of devices.
type Report struct {
	Version  string    `json:"version"`
	Flavour  string    `json:"flavour"`
	Kernel   string    `json:"kernel"`
	Verdicts []Verdict `json:"devices"` // the worst first within each kind
}

// kinds are those of a report, in its order, with what people see.
var kinds = [...]struct {
	kind  Kind
	title string
}{
	{Network, "Network cards"},
	{Storage, "Storage"},
	{Unknown, "Of unknown use: no driver goes by the number, and the list says no more (USB hubs, keyboards and disks need none)"},
	{Other, "Of no matter for a reimage"},
}

// Devices judges a list.
func (j *Judge) Devices(devices []Device) *Report {
	r := &Report{Version: j.c.Version, Flavour: j.c.Flavour, Kernel: j.c.Kernel}
	for _, d := range devices {
		r.Verdicts = append(r.Verdicts, j.Device(d))
	}
	order := func(k Kind) int {
		for i := range kinds {
			if kinds[i].kind == k {
				return i
			}
		}
		return len(kinds)
	}
	slices.SortStableFunc(r.Verdicts, func(a, b Verdict) int {
		return cmp.Or(order(a.Kind)-order(b.Kind), a.State.Compare(b.State))
	})
	return r
}

// Bad counts the devices that a reimage cannot count on.
func (r *Report) Bad() int {
	n := 0
	for i := range r.Verdicts {
		if !r.Verdicts[i].Good() {
			n++
		}
	}
	return n
}

// Write writes the report for a person.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "ReAssure %s, flavour %s, kernel %s\n", r.Version, r.Flavour, r.Kernel)
	needed := 0
	for _, k := range kinds {
		var of []Verdict
		for _, v := range r.Verdicts {
			if v.Kind == k.kind {
				of = append(of, v)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s\n", k.title)
		if k.kind == Network || k.kind == Storage {
			needed += len(of)
		}
		for _, v := range of {
			// Whether what does not matter has a driver does not, either.
			state := string(v.State)
			if k.kind == Other {
				state = "-"
			}
			name := v.Device.Text
			if v.Device.Count > 1 {
				name = strings.TrimSpace(fmt.Sprintf("%s (%d of them)", name, v.Device.Count))
			}
			fmt.Fprintf(&b, "%s\n", strings.TrimRight(fmt.Sprintf("  %-13s  %s  %-14s %s", state, v.Device.Number(), cmp.Or(v.Driver, "-"), name), " "))
			if text := v.Explain(); text != "" && k.kind != Other {
				fmt.Fprintf(&b, "%17s%s\n", "", text)
			}
		}
	}
	switch bad := r.Bad(); {
	case bad > 0:
		fmt.Fprintf(&b, "\nNOT COVERED: %d. A PC with one of these may not be reimaged.\n", bad)
	case needed == 0:
		b.WriteString("\nThere is no network card and no storage controller among these.\n")
	default:
		fmt.Fprintf(&b, "\nEvery network card and storage controller is covered: %d.\n", needed)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Explain says what a state means for this device, and what to do; empty when
// there is nothing to say.
func (v *Verdict) Explain() string {
	switch v.State {
	case NoDriver:
		if v.Good() {
			return "" // USB has classes, which lsusb does not show
		}
		return "this kernel has no driver for it: build with a newer one (scripts/newer-kernel; KERNEL= and MODULES=)"
	case LeftOut:
		return v.Why + ": choose its driver in the configuration (make image CONFIG=), or another flavour"
	case NoFirmware:
		return "its driver needs firmware that the image lacks: " + files(v.Missing)
	case Some:
		return "firmware that its driver may ask for is not in the image; most cards do without: " + files(v.Missing)
	}
	return ""
}

// shown is how many files are named before the rest is counted.
const shown = 4

func files(names []string) string {
	text := strings.Join(names[:min(len(names), shown)], ", ")
	if more := len(names) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if p := Package(names[0]); p != "" {
		text += " (Debian: " + p + ")"
	}
	return text
}

// Package is the Debian package that has a file below /lib/firmware, as Debian 12
// has them in its component non-free-firmware; "" is none that is known here.
func Package(file string) string {
	for _, p := range [...]struct{ prefix, name string }{
		{"rtl_nic/", "firmware-realtek"},
		{"bnx2/", "firmware-bnx2"},
		{"bnx2x/", "firmware-bnx2x"},
		{"qed/", "firmware-qlogic"}, {"qlogic/", "firmware-qlogic"}, {"ql2", "firmware-qlogic"},
		{"ctfw-", "firmware-qlogic"}, {"ct2fw-", "firmware-qlogic"}, {"cbfw-", "firmware-qlogic"},
		{"liquidio/", "firmware-cavium"},
		{"netronome/", "firmware-netronome"},
		{"myri10ge_", "firmware-myricom"},
		{"phanfw.bin", "firmware-netxen"},
		{"tigon/", misc}, {"e100/", misc}, {"intel/ice/", misc}, {"cxgb3/", misc}, {"cxgb4/", misc}, {"advansys/", misc},
		{"kaweth/", misc}, {"tehuti/", misc}, {"3com/", misc}, {"ene-ub6250/", misc},
	} {
		if strings.HasPrefix(file, p.prefix) {
			return p.name
		}
	}
	return ""
}

const misc = "firmware-misc-nonfree"
