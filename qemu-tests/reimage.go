package qemutests

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"time"

	"reassure/image/spec"
)

// failed is what the reimager says when a try has failed; panicked is how a
// kernel or a Go program ends that has a defect.
var (
	failed   = regexp.MustCompile(`REIMAGE FAILED: .*\n`)
	panicked = regexp.MustCompile(`(?m)(Kernel panic - not syncing|^panic: |^fatal error: ).*\n`)
)

// Reimaged is how one reimage went.
type Reimaged struct {
	Reimage time.Duration // from power on until the PC restarts
	Boot    time.Duration // from power on until its own system asks for a login
	Memory  spec.Size     // the most that the reimager used
	Phases  []spec.PhaseTime
}

var (
	// To the end of the line: the console comes in pieces.
	doneLine   = regexp.MustCompile(`REIMAGE DONE.*\n`)
	memoryText = regexp.MustCompile(`peak_memory="?([0-9.]+) ?([KMG]i)?B`)
)

// ReimageOnce publishes the lab, reimages its PC, and boots it from its disk, the
// two parts timed apart as two power-ons.
func (l *Lab) ReimageOnce(ctx context.Context, watch io.Writer, disk *Disk) (*Reimaged, error) {
	if err := l.Publish(ctx); err != nil {
		return nil, err
	}
	if err := l.Switch(ctx, "remote"); err != nil {
		return nil, err
	}
	l.Web.Forget()
	pc, err := l.PowerOn(ctx, watch, Machine{Disks: []*Disk{disk}, NoReboot: true})
	if err != nil {
		return nil, err
	}
	defer pc.Kill()
	line, err := pc.Expect(ctx, doneLine, failed, panicked)
	if err != nil {
		return nil, err
	}
	if err := pc.Wait(ctx); err != nil {
		return nil, err
	}
	r := &Reimaged{Reimage: time.Since(pc.Started)}
	if r.Memory, err = peakMemory(line[0]); err != nil {
		return nil, err
	}
	done, err := l.Web.Event(ctx, spec.EventDone)
	if err != nil {
		return nil, err
	}
	r.Phases = done.Phases
	if err := l.Switch(ctx, "local"); err != nil {
		return nil, err
	}
	pc, err = l.PowerOn(ctx, watch, Machine{Disks: []*Disk{disk}, FromDisk: true})
	if err != nil {
		return nil, err
	}
	defer pc.Kill()
	login := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(l.Host) + ` login: `)
	if _, err := pc.Expect(ctx, login, panicked); err != nil {
		return nil, err
	}
	r.Boot = time.Since(pc.Started)
	return r, nil
}

// peakMemory reads the figure in the reimager's last line.
func peakMemory(line string) (spec.Size, error) {
	m := memoryText.FindStringSubmatch(line)
	if m == nil {
		return 0, fmt.Errorf("%q does not say how much memory was used", line)
	}
	var number float64
	if _, err := fmt.Sscan(m[1], &number); err != nil {
		return 0, fmt.Errorf("%q: %w", line, err)
	}
	unit := map[string]spec.Size{"": 1, "Ki": spec.KiB, "Mi": spec.MiB, "Gi": spec.GiB}[m[2]]
	return spec.Size(number * float64(unit)), nil
}
