package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// kills is how many PCs are switched off for real.
const kills = 10

// bootEvery is how many rebuilt disks are judged by reading for one that is booted, too.
const bootEvery = 10

// trials are all: every kind in turn, so that a share has some of each.
func (s *stage) trials(count int) []qemutests.Trial {
	var all []qemutests.Trial
	add := func(name string, run func(ctx context.Context, dir string, facts map[string]string) error) {
		all = append(all, qemutests.Trial{Name: name, Run: func(ctx context.Context, p *qemutests.Programs, dir string, facts map[string]string) error {
			if err := errors.Join(s.set(ctx, p), os.MkdirAll(dir, 0o755)); err != nil {
				return err
			}
			return run(ctx, dir, facts)
		}})
	}
	modes := []string{full, delta}
	for i := range count {
		mode, n := modes[i%2], i/2
		add(fmt.Sprintf("power/%s/%03d", mode, n), func(ctx context.Context, dir string, facts map[string]string) error {
			return s.power(ctx, dir, mode, uint64(n), facts)
		})
	}
	for i := range kills {
		mode := modes[i%2]
		add(fmt.Sprintf("kill/%d", i), func(ctx context.Context, dir string, facts map[string]string) error {
			return s.kill(ctx, dir, mode, uint64(i), facts)
		})
	}
	add("served/disk full", s.fullServer)
	for _, f := range faults() {
		for _, mode := range f.modes {
			add(f.name+" "+mode, func(ctx context.Context, dir string, facts map[string]string) error {
				return s.fault(ctx, dir, mode, f, facts)
			})
		}
	}
	return all
}

// power rebuilds a disk as a power cut leaves it.
func (s *stage) power(ctx context.Context, dir, mode string, n uint64, facts map[string]string) (err error) {
	writes, err := qemutests.ReadWrites(s.logs[mode])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, writes.Close()) }()
	random := rand.New(rand.NewPCG(n, uint64(len(mode))))
	all, at := len(writes.Entries), writes.Moment(n, random)
	facts["moment"] = fmt.Sprintf("after write %d of %d, %d not flushed", at, all, at-writes.Durable(at))
	disk, err := s.copy(ctx, filepath.Join(dir, "disk"))
	if err != nil {
		return err
	}
	if err := writes.Rebuild(disk, at, random); err != nil {
		return err
	}
	facts["verified"] = "read"
	if facts["outcome"], err = s.judge(mode).Outcome(ctx, disk, false); err != nil {
		return err
	}
	if n%bootEvery != 0 {
		return nil
	}
	facts["verified"] = "read, booted"
	return s.boot(ctx, dir, mode, disk, facts["outcome"])
}

// powerOn switches a PC on that is to get the new system, from a server with faults. Off
// ends both.
func (s *stage) powerOn(ctx context.Context, dir, mode string, m qemutests.Machine, change func(string) string, faults ...qemutests.Fault) (lab *qemutests.Lab, vm *qemutests.VM, off func(), err error) {
	if lab, err = s.lab(ctx, filepath.Join(dir, "lab"), mode, second, change); err != nil {
		return nil, nil, nil, err
	}
	lab.Web.Break(faults...)
	if vm, err = lab.PowerOn(ctx, nil, m); err != nil {
		return nil, nil, nil, errors.Join(err, lab.Web.Close())
	}
	return lab, vm, func() {
		_ = vm.Kill()       // it was judged by what it left
		_ = lab.Web.Close() // and nobody asks any more
	}, nil
}

// boot switches a PC on whose disk comes first, and which is to be reimaged. A disk that
// boots does, and one that does not is made whole.
func (s *stage) boot(ctx context.Context, dir, mode string, disk *qemutests.Disk, outcome string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, fmt.Errorf("not within %v", runTime))
	defer cancel()
	_, vm, off, err := s.powerOn(ctx, dir, mode, qemutests.Machine{Disks: []*qemutests.Disk{disk}, DiskFirst: true}, nil)
	if err != nil {
		return err
	}
	defer off()
	if outcome == qemutests.NoBoot {
		if _, err := vm.Expect(ctx, doneLine, panicked, loginLine); err != nil {
			return err
		}
	}
	_, err = vm.Expect(ctx, loginLine, panicked, doneLine)
	return err
}

// kill switches a PC off in the middle of its reimage.
func (s *stage) kill(ctx context.Context, dir, mode string, n uint64, facts map[string]string) error {
	random := rand.New(rand.NewPCG(n, 7))
	disk, err := s.copy(ctx, filepath.Join(dir, "disk"))
	if err != nil {
		return err
	}
	if err := s.half(ctx, dir, mode, disk, time.Duration(random.Int64N(int64(20*time.Second))), facts); err != nil {
		return err
	}
	facts["verified"] = "read, booted"
	if facts["outcome"], err = s.judge(mode).Outcome(ctx, disk, true); err != nil {
		return err
	}
	return s.boot(ctx, filepath.Join(dir, "again"), mode, disk, facts["outcome"])
}

// half pulls the plug some time after the plan is known, at the latest when all is done.
func (s *stage) half(ctx context.Context, dir, mode string, disk *qemutests.Disk, after time.Duration, facts map[string]string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, fmt.Errorf("not within %v", runTime))
	defer cancel()
	lab, vm, off, err := s.powerOn(ctx, dir, mode, qemutests.Machine{Disks: []*qemutests.Disk{disk}, NoReboot: true}, nil)
	if err != nil {
		return err
	}
	defer off()
	if _, err := lab.Web.Event(ctx, spec.EventPlan); err != nil {
		return err
	}
	waiting, stop := context.WithTimeout(ctx, after)
	defer stop()
	facts["moment"] = fmt.Sprintf("%.1f s after the plan", after.Seconds())
	if vm.Wait(waiting) == nil {
		facts["moment"] += ", when all was done"
	}
	return vm.Kill()
}

// held is a sector where a disk holds something.
func held(file string, random *rand.Rand) (sector int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		at, err := unix.Seek(int(f.Fd()), random.Int64N(int64(diskSize)), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			continue // nothing from there on
		}
		return at / 4096 * 8, err
	}
}

// machine is the PC with a fault, and its disk.
func (s *stage) machine(ctx context.Context, dir, mode string, f fault, random *rand.Rand, facts map[string]string) (m qemutests.Machine, err error) {
	disk := &qemutests.Disk{Size: f.size, Fill: qemutests.OwnSystem("another system")}
	if f.size != 0 {
		err = disk.Make(filepath.Join(dir, "disk"))
	} else {
		disk, err = s.copy(ctx, filepath.Join(dir, "disk"))
	}
	if err != nil {
		return m, err
	}
	m = qemutests.Machine{Disks: []*qemutests.Disk{disk}, NoReboot: true}
	if f.pc != nil {
		f.pc(&m)
	}
	if f.during != nil {
		m.Cable = &qemutests.Cable{}
	}
	if f.disk != nil {
		held, err := held(disk.Path(), random)
		if err != nil {
			return m, err
		}
		disk.Errors = f.disk(random, held)
		facts["moment"] = disk.Errors
	}
	return m, nil
}

// fault reimages a PC that has a fault, until it has its new system, or has given up. A
// disk that does not boot then must be made whole by the next reimage.
func (s *stage) fault(ctx context.Context, dir, mode string, f fault, facts map[string]string) error {
	limited, cancel := context.WithTimeoutCause(ctx, 2*runTime, fmt.Errorf("it came to no end within %v", 2*runTime))
	defer cancel()
	random := rand.New(rand.NewPCG(uint64(len(f.name)), uint64(len(mode))))
	var broken []qemutests.Fault
	if f.server != nil {
		broken = f.server(random)
	}
	m, err := s.machine(ctx, dir, mode, f, random, facts)
	if err != nil {
		return err
	}
	disk := m.Disks[0]
	before, err := disk.Sum()
	if err != nil {
		return err
	}
	lab, vm, off, err := s.powerOn(limited, dir, mode, m, f.profile, broken...)
	if err != nil {
		return err
	}
	defer off()
	if err := s.toItsEnd(limited, f, &running{lab, vm, m.Cable, random, facts}); err != nil {
		return err
	}
	facts["said"] = "failed"
	if doneLine.MatchString(vm.Text()) {
		facts["said"] = "done"
	}
	after, err := disk.Sum()
	if err != nil {
		return err
	}
	facts["verified"], facts["outcome"] = "read", qemutests.OldSystem
	if after != before {
		if facts["outcome"], err = s.judge(mode).Outcome(ctx, disk, true); err != nil {
			return err
		}
	}
	if err := f.check(facts["outcome"], vm.Text(), lab.Web.Events()); err != nil || facts["outcome"] != qemutests.NoBoot || f.size != 0 {
		return err
	}
	good := *disk
	good.Errors, good.Rate = "", 0
	facts["verified"] = "read, made whole by the next reimage"
	return s.boot(ctx, filepath.Join(dir, "again"), mode, &good, qemutests.NoBoot)
}

// toItsEnd waits until a PC has its new system, or has given up, and switches itself off:
// its profile says so of both. Without a manifest it has no profile, and goes on into its
// own system, which would write.
func (s *stage) toItsEnd(ctx context.Context, f fault, r *running) error {
	if f.during != nil {
		ending, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			err := f.during(ending, r)
			if err != nil && ending.Err() == nil && r.vm.IsOn() {
				done <- fmt.Errorf("what was to go wrong did not: %w", err)
				_ = r.vm.Kill() // nothing is to be seen of it
			}
			close(done)
		}()
		err := s.toItsEnd(ctx, fault{}, r)
		stop()
		return errors.Join(<-done, err)
	}
	if _, err := r.vm.Expect(ctx, ownSystem, panicked); err == nil {
		return errors.Join(r.vm.Pause(), r.vm.Kill())
	} else if ctx.Err() != nil {
		return err
	}
	if panicked.MatchString(r.vm.Text()) {
		return errors.New("there was a panic on the console")
	}
	return r.vm.Wait(ctx)
}

var failedLine = regexp.MustCompile(`REIMAGE FAILED: `)

// longestReason is where on the console the reason of a failure ends at the latest, in bytes.
const longestReason = 2000

// check says whether what a PC said, on its console and to the server, is what its disk is,
// and what the fault is to lead to.
func (f fault) check(outcome, console string, events []spec.Event) error {
	done := doneLine.MatchString(console)
	var failure *spec.Event
	for _, e := range events {
		switch e.Kind {
		case spec.EventFailure:
			failure = &e
		case spec.EventDone:
			if outcome != qemutests.NewSystem {
				return fmt.Errorf("the PC reported that it is done, and its disk: %s", outcome)
			}
		}
	}
	reason := regexp.MustCompile(f.reason)
	switch {
	case done != (outcome == qemutests.NewSystem):
		return fmt.Errorf("the PC said that it is done: %v, and its disk: %s", done, outcome)
	case f.untouched && outcome != qemutests.OldSystem:
		return errors.New("the disk was written to")
	case f.breaks && done:
		return errors.New("the fault is one that a reimage must fail of, and this one did not")
	case f.works && !done:
		return errors.New("the fault is one that a reimage gets over, and this one did not")
	case !done && len(failedLine.FindAllString(console, -1)) < max(1, f.fails):
		return fmt.Errorf("the console does not say that it failed, %d times", max(1, f.fails))
	case !done && !slices.ContainsFunc(failedLine.FindAllStringIndex(console, -1), func(at []int) bool {
		return reason.MatchString(console[at[1]:min(len(console), at[1]+longestReason)])
	}):
		return fmt.Errorf("the console does not say why: %q", f.reason)
	case !done && !f.unheard && (failure == nil || !reason.MatchString(failure.Text)):
		return fmt.Errorf("the server was not told why (%q): %+v", f.reason, failure)
	}
	return nil
}
