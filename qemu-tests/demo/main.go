// Demo shows one reimage, live: a virtual PC with a blank disk PXE boots, is
// reimaged with a small system, restarts, and that system asks for a login.
//
// Synopsis:
//
//	go run ./qemu-tests/demo
//
// Description:
//
//	What the PC writes to its serial console is shown as it comes. Nothing
//	outside a temporary folder is touched. It needs what "scripts/install-deps test"
//	installs, and, the first time, root to make the small wad.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	qemutests "reassure/qemu-tests"

	"reassure/image/spec"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("the demonstration took more than 15 minutes"))
	defer cancel()
	dir, err := os.MkdirTemp("", "reassure-demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(tree, "go.mod")); err != nil {
		return fmt.Errorf("run it from the root of the source tree: %w", err)
	}

	say := func(format string, args ...any) { fmt.Fprintf(stdout, "\n=== "+format+"\n\n", args...) }
	say("Building the image and a small wad (the first time takes a few minutes)")
	programs, err := qemutests.Build(ctx, tree, dir)
	if err != nil {
		return err
	}
	wad, err := programs.Wad(ctx, "small", "small.tar.zst")
	if err != nil {
		return err
	}
	signer, line, err := qemutests.NewKey()
	if err != nil {
		return err
	}
	files := qemutests.SmallFiles(strings.ReplaceAll(qemutests.SmallProfile, "{{KEY}}", line))
	lab, err := qemutests.NewLab(ctx, programs, filepath.Join(dir, "lab"), qemutests.Setup{
		Profile: "small", Files: files, Wads: map[string]string{"small.tar.zst": wad},
	}, signer)
	if err != nil {
		return err
	}
	defer lab.Web.Close()

	say("Power on: exp01 has a blank disk of 2 GiB and is told Remote")
	disk := &qemutests.Disk{Size: 2 * spec.GiB}
	done, err := lab.ReimageOnce(ctx, stdout, disk)
	if err != nil {
		return err
	}
	say("Reimaged in %.0f s, booted from its own disk in %.0f s", done.Reimage.Seconds(), done.Boot.Seconds())
	for _, p := range done.Phases {
		fmt.Fprintf(stdout, "  %-12s %6.1f s\n", p.Name, p.Seconds)
	}
	return nil
}
