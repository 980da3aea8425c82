package command

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	ctx := context.Background()
	out, err := Command{Args: []string{"sh", "-c", "cat; echo $X"}, Stdin: strings.NewReader("in "), Env: []string{"X=1", "PATH=/bin:/usr/bin"}}.Output(ctx)
	if err != nil || string(out) != "in 1\n" {
		t.Errorf("Output = %q, %v; want %q", out, err, "in 1\n")
	}
	err = Command{Args: []string{"sh", "-c", "echo why >&2; exit 3"}}.Run(ctx)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "why") {
		t.Errorf("Run = %v; want exit 3 and the reason", err)
	}
	if err := (Command{Args: []string{"/no/such"}}).Run(ctx); !errors.Is(err, exec.ErrNotFound) && !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Run of a missing program = %v", err)
	}
	if err := (Command{}).Run(ctx); err == nil {
		t.Error("Run of nothing succeeded")
	}
}

func TestTimeoutKillsChildren(t *testing.T) {
	start := time.Now()
	err := Command{Args: []string{"sh", "-c", "sleep 60 & sleep 60"}, Timeout: 100 * time.Millisecond}.Run(context.Background())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Run = %v; want a time-out", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// A program that is given time cleans up, and what it leaves behind does not live on.
func TestGrace(t *testing.T) {
	dir := t.TempDir()
	script := `(trap '' TERM; sleep 300) >/dev/null 2>&1 & echo $! >child; trap 'sleep 0.5; echo well >cleaned; exit 1' TERM; touch ready; wait`
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(dir + "/ready"); err == nil {
				break
			}
		}
		cancel()
	}()
	err := Command{Args: []string{"sh", "-c", script}, Dir: dir, Grace: 30 * time.Second}.Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v; want that it was canceled", err)
	}
	if text, err := os.ReadFile(dir + "/cleaned"); err != nil || string(text) != "well\n" {
		t.Errorf("it did not clean up: %q, %v", text, err)
	}
	child, err := os.ReadFile(dir + "/child")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its child lives on: %s", stat)
		}
	}
	start := time.Now()
	err = Command{Args: []string{"sh", "-c", "trap '' TERM; sleep 60"}, Grace: 100 * time.Millisecond, Timeout: 100 * time.Millisecond}.Run(context.Background())
	if took := time.Since(start); err == nil || took > 20*time.Second {
		t.Errorf("one that does not end: %v after %v", err, took)
	}
}

// Only who is in the terminal's process group may read from it.
func TestTerminal(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		out, err := Command{Args: []string{"sh", "-c", "cut -d' ' -f5 /proc/$$/stat"}, Terminal: terminal}.Output(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if same := strings.TrimSpace(string(out)) == strconv.Itoa(syscall.Getpgrp()); same != terminal {
			t.Errorf("Terminal %v: process group %s, ours %d", terminal, out, syscall.Getpgrp())
		}
	}
}

func TestDaemonLeftBehindIsNoFailure(t *testing.T) {
	start := time.Now()
	out, err := Command{Args: []string{"sh", "-c", "sleep 30 & echo started"}}.Output(context.Background())
	if err != nil || string(out) != "started\n" || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %q, %v", time.Since(start), out, err)
	}
	if err := (Command{Args: []string{"sh", "-c", "sleep 30 & exit 3"}, Stdout: new(bytes.Buffer)}).Run(context.Background()); err == nil {
		t.Error("the exit status was lost")
	}
}

func TestErrorKeepsTheEndOfStderr(t *testing.T) {
	var all bytes.Buffer
	err := Command{Args: []string{"sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo end >&2; false"}, Stderr: &all}.Run(context.Background())
	if err == nil || !strings.HasSuffix(err.Error(), "end") || len(err.Error()) > keptStderr+200 || all.Len() != 100004 {
		t.Errorf("error of %d bytes, %d seen", len(err.Error()), all.Len())
	}
}

func TestOnePipeKeepsTheOrder(t *testing.T) {
	var both bytes.Buffer
	script := "i=0; while [ $i -lt 50 ]; do echo out; echo err >&2; i=$((i+1)); done"
	if err := (Command{Args: []string{"sh", "-c", script}, Stdout: &both, Stderr: &both}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("out\nerr\n", 50); both.String() != want {
		t.Errorf("got %q", both.String())
	}
}

func TestQuote(t *testing.T) {
	if got, want := Quote([]string{"a", "b c", "it's", ""}), `a 'b c' 'it'\''s' ''`; got != want {
		t.Errorf("Quote = %s; want %s", got, want)
	}
}
