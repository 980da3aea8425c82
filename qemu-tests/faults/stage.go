package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// stage is what all trials begin with: a disk with an old system, and what full and delta
// reimages to a new one make of it, with all that they wrote on the way.
type stage struct {
	programs *qemutests.Programs // nil until it is set
	key      *qemutests.Key
	wads     map[string]string // indexed, by the motd of who gets it
	root     spec.Placed

	old   string            // a disk
	whole map[string]string // mode -> disk
	logs  map[string]string // mode -> log of writes
}

// Modes of reimages.
const (
	full  = "full"
	delta = "delta"
)

// Systems, by their motd.
const (
	first  = "first"
	second = "second"
)

// diskSize is that of all disks.
const diskSize = 1 * spec.GiB

const (
	// runTime is enough for a PC to boot the network and be reimaged.
	runTime = 10 * time.Minute
)

var (
	doneLine  = regexp.MustCompile(`REIMAGE DONE.*\n`)
	loginLine = regexp.MustCompile(`(?m)^exp01 login: `)
	ownSystem = regexp.MustCompile(`going on into the PC's own system`)
	panicked  = regexp.MustCompile(`(?m)(Kernel panic - not syncing|^panic: |^fatal error: ).*\n`)
)

// set makes the stage, the first time.
func (s *stage) set(ctx context.Context, p *qemutests.Programs) (err error) {
	if s.programs != nil {
		return nil
	}
	from, err := p.Wad(ctx, "small", "small.tar.zst")
	if err != nil {
		return err
	}
	if s.key, err = qemutests.NewKey(); err != nil {
		return err
	}
	dir := filepath.Join(p.Dir, "stage")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := s.pack(ctx, p, dir, from); err != nil {
		return err
	}
	s.programs = p
	defer func() {
		if err != nil {
			s.programs = nil
		}
	}()
	s.old, s.whole, s.logs = filepath.Join(dir, "old"), map[string]string{}, map[string]string{}
	disk := &qemutests.Disk{Size: diskSize}
	if err := disk.Make(s.old); err != nil {
		return err
	}
	plan, err := s.once(ctx, filepath.Join(dir, "first"), full, first, disk)
	if err != nil {
		return fmt.Errorf("the old system: %w", err)
	}
	s.root = plan.Partitions[0]
	for _, mode := range []string{full, delta} {
		s.whole[mode], s.logs[mode] = filepath.Join(dir, mode), filepath.Join(dir, mode+".log")
		if err := os.WriteFile(s.logs[mode], nil, 0o600); err != nil {
			return err
		}
		disk, err := s.copy(ctx, s.whole[mode])
		if err != nil {
			return err
		}
		disk.Log = s.logs[mode]
		plan, err := s.once(ctx, filepath.Join(dir, mode+".lab"), mode, second, disk)
		if err != nil {
			return fmt.Errorf("a %s reimage: %w", mode, err)
		}
		if string(plan.Mode) != mode {
			return fmt.Errorf("the %s reimage was one of mode %s: %s", mode, plan.Mode, plan.Reason)
		}
	}
	return nil
}

// news is what the second wad has that the first has not: what deltas fetch.
const news = 20 // files of 1 MiB each

// pack makes the wads of both systems of a tarball.
func (s *stage) pack(ctx context.Context, p *qemutests.Programs, dir, tarball string) error {
	tree := filepath.Join(dir, "tree")
	s.wads = map[string]string{first: filepath.Join(dir, first+".tar.zst"), second: filepath.Join(dir, second+".tar.zst")}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	run := func(args ...string) error { return command.Command{Args: args, Timeout: 10 * time.Minute}.Run(ctx) }
	if err := errors.Join(
		run("tar", "--zstd", "--xattrs", "--acls", "--numeric-owner", "-xpf", tarball, "-C", tree),
		run(p.Reassure, "wad", "pack", tree, "-o", s.wads[first])); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	content := make([]byte, 1<<20)
	for i := range news {
		if _, err := random.Read(content); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tree, "srv", fmt.Sprint("news", i)), content, 0o644); err != nil {
			return err
		}
	}
	return errors.Join(run(p.Reassure, "wad", "pack", tree, "-o", s.wads[second]), os.RemoveAll(tree))
}

// copy returns a disk with the old system.
func (s *stage) copy(ctx context.Context, to string) (*qemutests.Disk, error) {
	disk := &qemutests.Disk{Size: diskSize}
	err := disk.Make(to)
	if err == nil {
		err = qemutests.CopyDisk(ctx, s.old, to)
	}
	return disk, err
}

// lab makes a lab whose PC gets the system that greets with motd. Change, unless nil,
// changes its profile.
func (s *stage) lab(ctx context.Context, dir, mode, motd string, change func(string) string) (*qemutests.Lab, error) {
	profile := strings.Replace(qemutests.SmallProfile, "system:\n", "  - {path: /etc/motd, source: site/motd}\nsystem:\n", 1) + "mode: " + strings.Replace(mode, delta, "auto", 1) + "\n"
	if change != nil {
		profile = change(profile)
	}
	files := qemutests.SmallFiles(profile)
	files["templates/site/motd"] = motd + "\n"
	for name, text := range files {
		files[name] = strings.ReplaceAll(text, "{{KEY}}", s.key.Line)
	}
	lab, err := qemutests.NewLab(ctx, s.programs, dir, qemutests.Setup{Profile: "small", Files: files, Wads: map[string]string{"small.tar.zst": s.wads[motd]}}, s.key)
	if err == nil {
		err = lab.Publish(ctx)
	}
	if err == nil {
		err = lab.Switch(ctx, "remote")
	}
	return lab, err
}

// once has a disk reimaged, without a fault.
func (s *stage) once(ctx context.Context, dir, mode, motd string, disk *qemutests.Disk) (*spec.Plan, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, fmt.Errorf("not within %v", runTime))
	defer cancel()
	lab, err := s.lab(ctx, dir, mode, motd, nil)
	if err != nil {
		return nil, err
	}
	defer lab.Web.Close()
	vm, err := lab.PowerOn(ctx, nil, qemutests.Machine{Disks: []*qemutests.Disk{disk}, NoReboot: true})
	if err != nil {
		return nil, err
	}
	defer vm.Kill()
	if _, err := vm.Expect(ctx, doneLine, panicked); err != nil {
		return nil, err
	}
	if err := vm.Wait(ctx); err != nil {
		return nil, err
	}
	e, err := lab.Web.Event(ctx, spec.EventPlan)
	if err != nil {
		return nil, err
	}
	return e.Plan, nil
}

// judge is for disks that have begun as the old system.
func (s *stage) judge(mode string) *qemutests.Judge {
	return &qemutests.Judge{Dir: s.programs.Dir, Old: s.old, New: s.whole[mode], Root: s.root}
}
