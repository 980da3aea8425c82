package command

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
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
