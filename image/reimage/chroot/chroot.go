// Package chroot hands a new system over to the chroot helper and takes it back.
//
// While the helper runs, the new root has what programs expect of a running
// system: /proc, /sys, /dev with its terminals, an empty /run, a resolv.conf
// that works, the links by UUID that udev would make (grub-probe looks for
// them), and a policy-rc.d that keeps packages' services from starting. When
// [Run] returns, whatever happened, all of that is gone again, and so is every
// process that a step left behind.
package chroot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"reassure/image/command"
	"reassure/image/reimage/steps"
	"reassure/image/spec"
)

// Job and Result are the helper's.
type (
	Job    = steps.Job
	Result = steps.Result
)

// Options say what is to be done where.
type Options struct {
	Root   string // where the new system is mounted
	Helper string // the helper's program, on this side
	Job    Job
	// ByUUID are the devices of the new file systems, by UUID.
	ByUUID map[string]string
	// Keys are this PC's own, from [StartKeys]; they are put into the job, but for
	// those in the job's Own, which the new system has already.
	Keys *Keys
	// Slack is what the helper may take beside its steps, each of which has a limit of
	// its own; 0 means 10 minutes.
	Slack time.Duration
	Log   *slog.Logger
	// OnResult, unless nil, is called with each step's result as it comes.
	OnResult func(Result)
}

// Summary is what a run left behind.
type Summary struct {
	Results  []Result
	HostKeys []string // public, a line each
	// BootImage and CoreImage are what the commit needs for a BIOS, as paths in the
	// new system; empty when no boot loader was among the steps.
	BootImage, CoreImage string
}

// helperPath is where the helper is for its run, in the new system.
const helperPath = "/run/reassure/chroothelper"

// Run does the job in the new root. A step that failed is an error that names
// it, unless its profile allows that.
func Run(ctx context.Context, o Options) (summary Summary, err error) {
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return summary, err
	}
	o.Job.HostKeys, o.Job.UserKeys, err = o.Keys.wait(ctx)
	if err != nil {
		return summary, fmt.Errorf("make this PC's keys: %w", err)
	}
	if err := o.keepKeys(root); err != nil {
		return summary, fmt.Errorf("keep this PC's keys: %w", err)
	}
	text, err := json.Marshal(o.Job)
	if err != nil {
		return summary, err
	}
	p, err := prepare(root, o)
	// Taken down on every way out, a panic's included.
	defer func() { err = errors.Join(err, p.takeDown()) }()
	if err != nil {
		return summary, fmt.Errorf("prepare the new root: %w", err)
	}
	results := &lineReader{each: func(line []byte) error {
		var result Result
		if err := json.Unmarshal(line, &result); err != nil {
			return fmt.Errorf("the chroot helper said %q: %w", line, err)
		}
		summary.Results = append(summary.Results, result)
		if result.Kind == "boot_loader" && result.Err == "" && o.Job.Firmware != spec.UEFI {
			summary.BootImage, summary.CoreImage = steps.BootImage, steps.CoreImage
		}
		if result.Kind == "ssh_keys" && result.Err == "" {
			summary.HostKeys = nil
			for _, t := range steps.KeyTypes {
				if pair, ok := o.Job.HostKeys[t]; ok {
					summary.HostKeys = append(summary.HostKeys, pair.Public)
				}
			}
		}
		if o.OnResult != nil {
			o.OnResult(result)
		}
		return nil
	}}
	if o.Slack == 0 {
		o.Slack = 10 * time.Minute
	}
	err = command.Command{
		Args: []string{helperPath}, Dir: "/", Timeout: steps.Limit(o.Job.Steps) + o.Slack, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Stdin: bytes.NewReader(text), Stdout: results,
		SysProcAttr: &syscall.SysProcAttr{Chroot: root}, Log: o.Log,
	}.Run(ctx)
	if results.err != nil {
		return summary, results.err
	}
	if err != nil {
		// A step's failure is better told by its own result.
		for _, r := range summary.Results {
			if r.Err != "" && !r.Allowed {
				return summary, fmt.Errorf("step %q: %s", r.Step, r.Err)
			}
		}
		return summary, fmt.Errorf("the chroot helper: %w", err)
	}
	return summary, nil
}

// lineReader hands on whole lines of what is written to it.
type lineReader struct {
	each func(line []byte) error
	rest []byte
	err  error
}

func (l *lineReader) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.rest = rest
		if l.err == nil {
			l.err = l.each(line)
		}
	}
}

// copyFile copies a program.
func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}
