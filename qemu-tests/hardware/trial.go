package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// trial tries one row.
type trial struct {
	row
	programs *qemutests.Programs
	dir      string
	facts    map[string]string

	lab     *qemutests.Lab
	machine qemutests.Machine
}

const (
	// rowTime is enough for any row on a slow machine.
	rowTime = 30 * time.Minute
	// stepTime is enough for a PC to boot the network, be reimaged and boot its disk.
	stepTime = 12 * time.Minute
)

var (
	doneLine   = regexp.MustCompile(`REIMAGE DONE.*\n`)
	failedLine = regexp.MustCompile(`REIMAGE FAILED: .*\n`)
	panicked   = regexp.MustCompile(`(?m)(Kernel panic - not syncing|^panic: |^fatal error: ).*\n`)
	loginLine  = regexp.MustCompile(`(?m)^exp01 login: `)
)

// try tries a row.
func (r row) try(ctx context.Context, p *qemutests.Programs, dir string, facts map[string]string) error {
	t := trial{row: r, programs: p, dir: dir, facts: facts}
	return t.run(ctx)
}

// run reimages the PC twice, by its own boot order the second time.
func (t *trial) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, rowTime, fmt.Errorf("not within %v", rowTime))
	defer cancel()
	if err := t.prepare(ctx); err != nil {
		return err
	}
	defer t.lab.Web.Close()
	others, err := sums(t.machine.Disks[1:])
	if err != nil {
		return err
	}
	switch {
	case t.refused() != "":
		return t.refusal(ctx, t.refused())
	case t.odd == staleRAID:
		if err := t.refusal(ctx, "md"); err != nil {
			return err
		}
		accepting := "disk: {overwrite: foreign}\n" + t.files()["profiles/small.yaml"]
		if err := errors.Join(t.lab.Write("profiles/small.yaml", t.fill(accepting)), t.lab.Publish(ctx)); err != nil {
			return err
		}
	}
	if err := t.reimage(ctx, spec.ReimageFull); err != nil {
		return fmt.Errorf("the first reimage: %w", err)
	}
	if t.machine.Firmware != nil {
		t.machine.Firmware.OwnOrder = true
	}
	if err := errors.Join(t.lab.Write("templates/site/motd", "second\n"), t.lab.Publish(ctx)); err != nil {
		return err
	}
	if err := t.reimage(ctx, spec.ReimageDelta); err != nil {
		return fmt.Errorf("the second reimage, by the boot order that the first left: %w", err)
	}
	after, err := sums(t.machine.Disks[1:])
	if err == nil && !slices.Equal(others, after) {
		err = errors.New("another disk was written to")
	}
	return err
}

// prepare makes the row's lab, and what is on the PC's disks.
func (t *trial) prepare(ctx context.Context) error {
	profile, wad, kind := "small", "small.tar.zst", "generic"
	if t.odd == realSystem {
		profile, wad, kind = "debian", "debian.tar.zst", "debian"
	}
	from, err := t.programs.Wad(ctx, kind, kind+".tar.zst")
	if err != nil {
		return err
	}
	key, err := qemutests.NewKey()
	if err != nil {
		return err
	}
	setup := qemutests.Setup{Profile: profile, Files: map[string]string{}}
	t.machine = t.row.machine()
	if t.loader() {
		setup.Others = []spec.MAC{qemutests.LoaderMAC}
		setup.CommandLine = "reassure.nic=" + qemutests.DefaultMAC.String()
	}
	if t.lab, err = qemutests.NewLab(ctx, t.programs, t.dir, setup, key); err != nil {
		return err
	}
	for name, content := range t.files() {
		if err := t.lab.Write(name, t.fill(content)); err != nil {
			return err
		}
	}
	pack := command.Command{Args: []string{t.programs.Reassure, "wad", "pack", from, "-o", filepath.Join(t.lab.Site, "wads", wad)}, Timeout: 10 * time.Minute}
	if err := pack.Run(ctx); err != nil {
		return err
	}
	for i, d := range t.machine.Disks {
		if err := d.Make(filepath.Join(t.dir, fmt.Sprintf("disk%d", i))); err != nil {
			return err
		}
	}
	return t.lab.Publish(ctx)
}

// fill puts the key of whoever may log in into a file of the site. Nobody does here.
func (t *trial) fill(text string) string {
	return strings.ReplaceAll(text, "{{KEY}}", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA nobody")
}

// reimage switches the PC on, has it reimaged as it should be, and sees its own system boot.
func (t *trial) reimage(ctx context.Context, mode spec.Reimage) error {
	vm, err := t.powerOn(ctx)
	if err != nil {
		return err
	}
	defer vm.Kill()
	if err := expect(ctx, vm, doneLine, failedLine); err != nil {
		return err
	}
	if err := t.lab.Switch(ctx, "local"); err != nil {
		return err
	}
	start, err := t.lab.Web.Event(ctx, spec.EventStart)
	if err != nil {
		return err
	}
	plan, err := t.lab.Web.Event(ctx, spec.EventPlan)
	if err != nil {
		return err
	}
	t.facts["disk"] = plan.Plan.Disk.Device
	for _, n := range start.Facts.NICs {
		if n.MAC == qemutests.DefaultMAC {
			t.facts["driver"] = n.Driver
		}
	}
	switch {
	case t.facts["driver"] != t.driver():
		return fmt.Errorf("the card's driver is %q, and not %s", t.facts["driver"], t.driver())
	case plan.Plan.Disk.Serial != "RIGHT":
		return fmt.Errorf("the disk %s was written to", plan.Plan.Disk)
	case plan.Plan.Mode != mode:
		return fmt.Errorf("it was a reimage of mode %s, and not %s: %s", plan.Plan.Mode, mode, plan.Plan.Reason)
	case t.firmware == string(qemutests.SecureBoot) != strings.Contains(vm.Text(), "Secure boot enabled"):
		return errors.New("the kernel does not say of Secure Boot what is so")
	}
	return expect(ctx, vm, loginLine)
}

// refusal switches the PC on, which must be refused with a text, untouched.
func (t *trial) refusal(ctx context.Context, with string) error {
	before, err := sums(t.machine.Disks)
	if err != nil {
		return err
	}
	vm, err := t.powerOn(ctx)
	if err != nil {
		return err
	}
	defer vm.Kill()
	if err := expect(ctx, vm, regexp.MustCompile(`REIMAGE FAILED: (?s:.{0,500}?)`+regexp.QuoteMeta(with)), doneLine); err != nil {
		return err
	}
	if err := vm.Kill(); err != nil {
		return err
	}
	after, err := sums(t.machine.Disks)
	if err == nil && !slices.Equal(before, after) {
		err = errors.New("a disk was written to before it was refused")
	}
	return err
}

func (t *trial) powerOn(ctx context.Context) (*qemutests.VM, error) {
	if err := t.lab.Switch(ctx, "remote"); err != nil {
		return nil, err
	}
	t.lab.Web.Forget()
	return t.lab.PowerOn(ctx, nil, t.machine)
}

// expect waits for a line, unless another comes before it.
func expect(ctx context.Context, vm *qemutests.VM, want *regexp.Regexp, never ...*regexp.Regexp) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTime, fmt.Errorf("not within %v", stepTime))
	defer cancel()
	_, err := vm.Expect(ctx, want, append(never, panicked)...)
	return err
}

func sums(disks []*qemutests.Disk) ([]spec.Digest, error) {
	var all []spec.Digest
	for _, d := range disks {
		sum, err := d.Sum()
		if err != nil {
			return nil, err
		}
		all = append(all, sum)
	}
	return all, nil
}
