package lab

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/coverage"
	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// image writes what an image has of drivers.
func (w *world) image(c coverage.Catalogue, at time.Time) {
	w.t.Helper()
	text, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(w.lab.Drivers, text, 0o644)
	}
	if err == nil {
		err = os.Chtimes(w.lab.Drivers, at, at)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestCoverage has PCs report their devices, and judges them by the image that
// they boot now, also when that is another than the one that they reported from.
func TestCoverage(t *testing.T) {
	w := newWorld(t)
	if _, err := w.lab.Coverage(); !errors.Is(err, api.ErrNotFound) || !strings.Contains(err.Error(), "make image") {
		t.Errorf("without a file: %v", err)
	}
	w.lab.Drivers = filepath.Join(w.dir, coverage.File)
	if _, err := w.lab.Coverage(); !errors.Is(err, api.ErrNotFound) || !strings.Contains(err.Error(), "make image") {
		t.Errorf("before there is one: %v", err)
	}
	const (
		bnx2  = "pci:v000014E4d00001639sv00001028sd00000235bc02sc00i00"
		other = "pci:v000014E4d00001639sv00001028sd00000236bc02sc00i00" // of another maker of boards
		ahci  = "pci:v00008086d0000A102sv00001028sd000007C5bc01sc06i01"
		newer = "pci:v00008086d0000125Csv00000000sd00000000bc02sc00i00"
		sound = "pci:v00008086d0000A170sv00001028sd000007C5bc04sc03i00"
	)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}})
	for n, devices := range map[int][]spec.Device{
		1: {{Modalias: bnx2, Count: 4}, {Modalias: other}, {Modalias: ahci, Driver: "ahci"}, {Modalias: sound}},
		2: {{Modalias: bnx2}, {Modalias: newer}, {Modalias: "nonsense"}, {Modalias: "usb:v"}},
	} {
		p := w.pc(n)
		p.ask(hosts.Remote, "")
		p.manifest()
		p.report(spec.Event{Kind: spec.EventStart, Phase: "manifest", Facts: &spec.Facts{Devices: devices}})
	}
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	image := coverage.Catalogue{Version: "0.1", Flavour: "full", Kernel: "6.1", Drivers: []coverage.Driver{
		{File: "drivers/net/ethernet/broadcom/bnx2", Aliases: []string{"pci:v000014E4d00001639sv*sd*bc*sc*i*"}, Firmware: []string{"bnx2/a.fw"}},
		{File: "drivers/ata/ahci", Aliases: []string{"pci:v*d*sv*sd*bc01sc06i01*"}},
	}}
	w.image(image, at)

	type lacking struct {
		Number, Driver string
		State          coverage.State
		Hosts          []string
	}
	short := func(c api.Coverage) (all []lacking) {
		for _, l := range c.Lacking {
			all = append(all, lacking{l.Device.Number(), l.Driver, l.State, l.Hosts})
		}
		return all
	}
	covered, err := w.lab.Coverage()
	if err != nil {
		t.Fatal(err)
	}
	want := []lacking{{"8086:125c", "", coverage.NoDriver, []string{"exp02"}}, {"14e4:1639", "bnx2", coverage.NoFirmware, []string{"exp01", "exp02"}}}
	if d := cmp.Diff(want, short(covered)); d != "" {
		t.Error(d)
	}
	sentences := []string{"1 of 2 PCs has a NIC that this kernel has no driver for", "2 of 2 PCs have a NIC whose firmware is not in the image"}
	if d := cmp.Diff(sentences, covered.Sentences()); d != "" || covered.Hosts != 3 || covered.Reported != 2 || !covered.Bad() {
		t.Errorf("%+v\n%s", covered, d)
	}

	// A new image is copied into the TFTP root, with the firmware and a newer kernel.
	image.Firmware = []string{"bnx2/a.fw"}
	image.Drivers = append(image.Drivers, coverage.Driver{File: "drivers/net/ethernet/intel/igc/igc", Aliases: []string{"pci:v00008086d0000125Csv*sd*bc*sc*i*"}})
	w.image(image, at.Add(time.Hour))
	if covered, err = w.lab.Coverage(); err != nil || len(covered.Lacking) > 0 || covered.Bad() || len(covered.Sentences()) > 0 {
		t.Errorf("with a better image: %+v, %v", covered, err)
	}

	if err := os.WriteFile(w.lab.Drivers, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lab.Coverage(); err == nil || !strings.Contains(err.Error(), coverage.File) {
		t.Errorf("a damaged file: %v", err)
	}
}
