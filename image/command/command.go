// Package command runs external programs, and is the only place outside tests
// that does. Every run is logged with its quoted arguments and how it ended;
// may have a time limit, after which the whole process group is killed; and its
// error carries the end of what the program wrote to standard error.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"time"
)

// ErrNotFound is wrapped by the error of a program that is not installed.
var ErrNotFound = exec.ErrNotFound

// Command is one program to run. The zero value of every field but Args is usable.
type Command struct {
	// Args is the program, found in PATH unless it has a slash, and its arguments.
	Args []string
	// Dir is the working folder; empty means the caller's.
	Dir string
	// Env is the whole environment; nil means the caller's.
	Env []string
	// Stdin is read by the program; nil is an empty input.
	Stdin io.Reader
	// Stdout and Stderr get what the program writes; nil drops it, though the
	// end of standard error is always kept for the error. Where both are the
	// same pointer, the program has one pipe for both, which keeps their order;
	// otherwise they are written to at the same time.
	Stdout, Stderr io.Writer
	// Timeout ends the program; 0 means no limit but the context's.
	Timeout time.Duration
	// SysProcAttr may set a root folder; Setpgid is as Terminal has it.
	SysProcAttr *syscall.SysProcAttr
	// Terminal lets the program ask a person at the terminal, as ssh does for a
	// password: it stays in the caller's process group, for the terminal stops
	// whoever reads from another. What it has started is not killed with it.
	Terminal bool
	// TTY, if it is not nil, is a terminal that becomes the program's own: its input and
	// outputs, and what controls its session. Stdin, Stdout and Stderr do not count then.
	TTY *os.File
	// Grace, if it is not 0, is how long a program that must end is given to clean
	// up: it gets SIGTERM, and SIGKILL only then.
	Grace time.Duration
	// Log gets a line before and after; nil means silence.
	Log *slog.Logger
}

// Error says how a program failed.
type Error struct {
	Args   []string
	Stderr string        // the end of standard error, trimmed
	After  time.Duration // how long it ran
	Err    error         // *exec.ExitError, context.DeadlineExceeded, or why it did not start
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %v", Quote(e.Args), e.Err)
	if errors.Is(e.Err, context.DeadlineExceeded) {
		text = fmt.Sprintf("%s: no end after %v, killed", Quote(e.Args), e.After.Round(time.Second))
	}
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// keptStderr is how much of the end of standard error an [Error] carries, in bytes.
const keptStderr = 2048

// Run runs the command to its end. Any failure is an *[Error].
func (c Command) Run(ctx context.Context) error {
	if len(c.Args) == 0 {
		return &Error{Err: errors.New("no program named")}
	}
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout = c.Dir, c.Env, c.Stdin, c.Stdout
	var end tail
	cmd.Stderr = &end
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(c.Stderr, &end)
		if reflect.ValueOf(c.Stderr).Comparable() && c.Stdout == c.Stderr {
			cmd.Stdout = cmd.Stderr
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.SysProcAttr != nil {
		copied := *c.SysProcAttr
		cmd.SysProcAttr = &copied
	}
	// A program's children hold its pipes open: kill all of them, and do not
	// wait for those that got away.
	cmd.SysProcAttr.Setpgid = !c.Terminal && c.TTY == nil
	if c.TTY != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.TTY, c.TTY, c.TTY
		// Ctty is a number among the program's files. A session of its own is a group, too.
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
	}
	kill := func(s syscall.Signal) error {
		if c.Terminal {
			return syscall.Kill(cmd.Process.Pid, s)
		}
		return syscall.Kill(-cmd.Process.Pid, s)
	}
	cmd.Cancel = func() error { return kill(syscall.SIGKILL) }
	if c.Grace > 0 {
		cmd.Cancel = func() error { return kill(syscall.SIGTERM) }
	}
	cmd.WaitDelay = 2*time.Second + c.Grace

	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log.Debug("running", "command", Quote(c.Args))
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if ctx.Err() != nil && c.Grace > 0 && !c.Terminal && cmd.Process != nil {
		kill(syscall.SIGKILL) // what the program has left behind; mostly nothing
	}
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		// It ended well, but left something behind that holds its outputs, as
		// scripts that start services do. What that still says is not waited for.
		err = nil
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		failed := &Error{Args: c.Args, Stderr: strings.TrimSpace(string(end.last)), After: took, Err: err}
		log.Debug("failed", "command", Quote(c.Args), "after", took.Round(time.Millisecond), "error", err)
		return failed
	}
	log.Debug("finished", "command", Quote(c.Args), "after", took.Round(time.Millisecond))
	return nil
}

// Output runs the command and returns what it wrote to standard output.
func (c Command) Output(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run(ctx)
	return out.Bytes(), err
}

// Quote writes arguments as a shell would read them back.
func Quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if a != "" && strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%") == "" {
			quoted[i] = a
			continue
		}
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// tail keeps the last bytes written to it.
type tail struct{ last []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if extra := len(t.last) - keptStderr; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	return len(p), nil
}
