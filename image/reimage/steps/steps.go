// Package steps is what the chroot helper does inside the new root: it takes
// away what no wad may bring along, sets what every system must be told, and
// then runs the profile's steps in order, the boot loader last.
//
// What goes, whatever the profile says (see [scrub]): the machine-id, random
// seeds, rules that name network cards, DHCP leases, and SSH host keys of the
// machine that the wad was made on.
//
// Each kind of step is a function in a file of its own: to add one, give
// [spec.Step] a field and its rules, and [runner.do] a case.
//
// Paths are resolved by the kernel, below Root. The helper runs chrooted, with
// "/" as its root, so no link in the tree leads out of it.
package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"reassure/image/spec"
)

// Job is what the helper is told, as JSON on its standard input.
type Job struct {
	Host   string      `json:"host"`
	System spec.System `json:"system"`
	// Steps are the manifest's, with their tokens expanded.
	Steps    []spec.Step   `json:"steps"`
	Disk     string        `json:"disk"` // /dev/sda
	Firmware spec.Firmware `json:"firmware"`
	Table    spec.Table    `json:"table"`
	// RootUUID and RootPartUUID are those of the root's file system and partition.
	RootUUID     string `json:"root_uuid"`
	RootPartUUID string `json:"root_partuuid"`
	// BootUUID is that of the file system with the kernels; BootFS its kind;
	// BootPath what comes before a kernel's name on it: "/boot", or "" where
	// /boot is a partition of its own.
	BootUUID string `json:"boot_uuid"`
	BootFS   string `json:"boot_fs"`
	BootPath string `json:"boot_path"`
	// ESP is the mount point of the EFI system partition, which is filled from there
	// afterwards; empty is none.
	ESP string `json:"esp,omitempty"`
	// HostKeys and UserKeys are this PC's own key pairs, by type.
	HostKeys map[string]KeyPair `json:"host_keys,omitempty"`
	UserKeys map[string]KeyPair `json:"user_keys,omitempty"`
	// Own are files that belong to this PC and not to a wad, and stay: see [Own].
	Own []string `json:"own,omitempty"`
}

// KeyPair is a key pair in OpenSSH's forms.
type KeyPair struct {
	Private string `json:"private"` // PEM, as ssh-keygen writes it
	Public  string `json:"public"`  // type and base64, without comment or line end
}

// Result is how a step went, as one line of JSON on the helper's standard output.
type Result struct {
	Step    string  `json:"step"`
	Kind    string  `json:"kind"`
	Seconds float64 `json:"seconds"`
	// Err is why it failed; Allowed says that its profile allows that.
	Err     string `json:"err,omitempty"`
	Allowed bool   `json:"allowed,omitempty"`
	// Output is the end of what the step's command wrote.
	Output []string `json:"output,omitempty"`
}

// defaultTimeout ends a step that names no time limit.
const defaultTimeout = 10 * time.Minute

// Limit is how long steps may take, all together.
func Limit(list []spec.Step) (all time.Duration) {
	for i := range list {
		all += limit(&list[i]) + giveUp
	}
	return all
}

func limit(s *spec.Step) time.Duration {
	if s.Timeout == 0 {
		return defaultTimeout
	}
	return time.Duration(s.Timeout)
}

// giveUp is how long a step that has had its time is given to end. One whose command was
// killed does; one that waits for a file of the wad's that is a pipe does not.
const giveUp = 10 * time.Second

// errStuck is a step that does not end: nothing more can be done beside it.
var errStuck = errors.New("it does not end")

// within does something, and comes back soon after ctx has ended, whether it has or not.
func within(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(giveUp):
		return fmt.Errorf("%w: %w", errStuck, ctx.Err())
	}
}

// Run does a job in the tree at root. Each result is handed to report as soon
// as it is known; the first failure that is not allowed ends the run and is
// returned.
func Run(ctx context.Context, root string, job Job, report func(Result)) error {
	r := &runner{tree: tree(root), job: job, output: new(tail)}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"leave the wad's identity behind", func(context.Context) error { return r.scrub(r.job.Own) }},
		{"system settings", func(context.Context) error { return r.settings() }},
	}
	for _, s := range steps {
		if err := r.timed(ctx, &spec.Step{Name: s.name}, "", s.do, report); err != nil {
			return err
		}
	}
	for i := range job.Steps {
		s := &job.Steps[i]
		if err := r.timed(ctx, s, s.Kind(), func(ctx context.Context) error { return r.do(ctx, s) }, report); err != nil {
			return err
		}
	}
	return nil
}

// runner is a job under way.
type runner struct {
	tree
	job    Job
	output *tail // of the current step
}

func (r *runner) timed(ctx context.Context, s *spec.Step, kind string, do func(context.Context) error, report func(Result)) error {
	ctx, cancel := context.WithTimeout(ctx, limit(s))
	defer cancel()
	r.output = new(tail) // a command that outlived its step may still hold the last one
	start := time.Now()
	err := within(ctx, do)
	result := Result{Step: s.Name, Kind: kind, Seconds: time.Since(start).Seconds(), Output: r.output.lines()}
	if err != nil {
		result.Err, result.Allowed = err.Error(), s.AllowFailure && !errors.Is(err, errStuck)
	}
	report(result)
	if err != nil && !result.Allowed {
		return fmt.Errorf("step %q: %w", s.Name, err)
	}
	return nil
}

// do does one step.
func (r *runner) do(ctx context.Context, s *spec.Step) error {
	switch s.Kind() {
	case "run":
		return r.run(ctx, s.Run)
	case "write":
		return r.write(s.Write.Path, s.Write.Content, s.Write.Mode, s.Write.UID, s.Write.GID)
	case "edit":
		return r.edit(s.Edit)
	case "remove":
		return r.remove(s.Remove.Paths...)
	case "symlink":
		return r.symlink(s.Symlink.Path, s.Symlink.Target)
	case "ssh_keys":
		return r.sshKeys(s.SSHKeys)
	case "known_hosts":
		return r.knownHosts(s.KnownHosts)
	case "boot_loader":
		return r.bootLoader(ctx, s.BootLoader)
	case "limits":
		return r.limits(s.Limits)
	case "service":
		return r.service(ctx, s.Service)
	}
	return errors.New("it is of no kind that this image knows: the image is older than the manifest")
}

// Main is the helper: it reads a job, does it in root, and writes results. The
// error of a failed step is in its result already, and returned as well.
func Main(ctx context.Context, root string, stdin io.Reader, stdout io.Writer) error {
	var job Job
	if err := json.NewDecoder(stdin).Decode(&job); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	out := json.NewEncoder(stdout)
	var lost error
	err := Run(ctx, root, job, func(result Result) {
		lost = errors.Join(lost, out.Encode(result))
	})
	return errors.Join(err, lost)
}

// kept is how much of a command's output a result carries, in bytes.
const kept = 4096

// tail keeps the end of what is written to it, by a command's standard output
// and standard error at the same time.
type tail struct {
	mu   sync.Mutex
	last []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p...)
	if extra := len(t.last) - kept; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	return len(p), nil
}

// lines are the lines of the tail, as valid UTF-8.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(t.last) {
		if text := strings.TrimRight(strings.ToValidUTF8(string(line), "?"), "\r\n\t "); text != "" {
			lines = append(lines, text)
		}
	}
	return lines
}
