package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"reassure/image/coverage"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

// judges keeps the judge of the image that PCs boot, until there is another image.
type judges struct {
	mu    sync.Mutex
	judge *coverage.Judge
	size  int64
	at    time.Time
	// said is what it said of modaliases: PCs of a lab are much alike.
	said map[string]coverage.Verdict
}

// mostSaid bounds what is remembered: PCs say what they like.
const mostSaid = 10_000

// of returns the judge of the image whose catalogue is in a file.
func (j *judges) of(file string) (*coverage.Judge, error) {
	const remedy = "make image writes it into tftproot/: copy it to the server's tftp.root with the rest"
	if file == "" {
		return nil, fmt.Errorf("nothing says what the image has of drivers: %s: %w", remedy, api.ErrNotFound)
	}
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s, which says what the image has of drivers, is not there: %s: %w", file, remedy, api.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("drivers of the image: %w", err)
	}
	if j.judge != nil && j.size == info.Size() && j.at.Equal(info.ModTime()) {
		return j.judge, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("drivers of the image: %w", err)
	}
	c, err := coverage.Read(text)
	if err != nil {
		return nil, fmt.Errorf("drivers of the image: %w", err)
	}
	j.judge, j.size, j.at, j.said = coverage.NewJudge(c), info.Size(), info.ModTime(), map[string]coverage.Verdict{}
	return j.judge, nil
}

// Coverage judges what the hosts reported by what the image has now.
func (l *Lab) Coverage() (api.Coverage, error) {
	type host struct {
		name    string
		devices []spec.Device
	}
	l.mu.Lock()
	var all []host
	for _, k := range l.order {
		h := host{name: l.hostOf(k).Name}
		if f := l.record(k).Facts; f != nil {
			h.devices = f.Devices // what was reported does not change, only is replaced
		}
		all = append(all, h)
	}
	l.mu.Unlock()

	l.judges.mu.Lock()
	defer l.judges.mu.Unlock()
	judge, err := l.judges.of(l.Drivers)
	if err != nil {
		return api.Coverage{}, err
	}
	image := judge.Catalogue()
	out := api.Coverage{Version: image.Version, Flavour: image.Flavour, Kernel: image.Kernel, Hosts: len(all)}
	type key struct{ number, driver string }
	at := map[key]int{}
	for _, h := range all {
		if len(h.devices) > 0 {
			out.Reported++
		}
		for _, d := range h.devices {
			v, ok := l.judges.verdict(d.Modalias)
			if !ok || v.State == coverage.Covered || v.Kind != coverage.Network && v.Kind != coverage.Storage {
				continue
			}
			k := key{v.Device.Bus + v.Device.Number(), v.Driver}
			i, ok := at[k]
			if !ok {
				i = len(out.Lacking)
				at[k] = i
				v.Device.Modalias = "" // they differ in what is of no matter here
				out.Lacking = append(out.Lacking, api.Lacking{Verdict: v})
			}
			if of := &out.Lacking[i].Hosts; !slices.Contains(*of, h.name) {
				*of = append(*of, h.name)
			}
		}
	}
	slices.SortStableFunc(out.Lacking, func(a, b api.Lacking) int {
		return cmp.Or(a.State.Compare(b.State), len(b.Hosts)-len(a.Hosts), strings.Compare(a.Device.Number(), b.Device.Number()))
	})
	return out, nil
}

// verdict judges what a PC calls a device; false when it is none that can be judged.
func (j *judges) verdict(modalias string) (coverage.Verdict, bool) {
	v, ok := j.said[modalias]
	if !ok {
		d, judgeable := coverage.FromModalias(modalias)
		if !judgeable {
			return v, false
		}
		if len(j.said) >= mostSaid {
			clear(j.said)
		}
		v = j.judge.Device(d)
		j.said[modalias] = v
	}
	return v, true
}
