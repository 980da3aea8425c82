// Demo shows a lab of two PCs, live: "reassure serve" gives virtual PCs their
// addresses and what to boot, tells them Local, reimages both after a roll-out,
// and tells them Local again.
//
// Synopsis:
//
//	go run ./qemu-tests/demo
//
// Description:
//
//	It shows what an operator types and sees. Server and PCs are in a network
//	of their own, which takes root. Nothing outside a temporary folder is touched.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	qemutests "reassure/qemu-tests"

	"reassure/image/serve/api"
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
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Minute, errors.New("the demonstration took more than 20 minutes"))
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
	d := &demo{out: stdout}
	d.say("Building the image and a small wad (the first time takes a few minutes)")
	programs, err := qemutests.Build(ctx, tree, dir, qemutests.FlavourVM)
	if err != nil {
		return err
	}
	wad, err := programs.Wad(ctx, "small", "small.tar.zst")
	if err != nil {
		return err
	}
	key, err := qemutests.NewKey()
	if err != nil {
		return err
	}
	files := qemutests.SmallRoomFiles()
	for name, text := range files {
		files[name] = strings.ReplaceAll(text, "{{KEY}}", key.Line)
	}
	for i := range 2 {
		name := fmt.Sprintf("exp%02d", i+1)
		d.pcs = append(d.pcs, &qemutests.PC{
			Name: name, IP: fmt.Sprintf("172.30.0.%d", i+11), MAC: spec.MAC{0x52, 0x54, 0, 0, 0, byte(i + 1)},
			Disk: &qemutests.Disk{Size: 2 * spec.GiB, Fill: qemutests.OwnSystem("the old system of " + name)},
		})
	}
	d.room, err = qemutests.NewRoom(ctx, programs, filepath.Join(dir, "room"), qemutests.RoomSetup{
		PCs: d.pcs, Profile: "small", Files: files, Wads: map[string]string{"small.tar.zst": wad},
	}, key)
	if err != nil {
		return err
	}
	defer d.room.Close()
	if err := d.room.Config("server"); err != nil {
		return err
	}
	return d.show(ctx)
}

// demo is a lab that is shown.
type demo struct {
	out  io.Writer
	room *qemutests.Room
	pcs  []*qemutests.PC
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "\n=== "+format+"\n\n", args...) }

// types shows a command of the operator, and what it writes.
func (d *demo) types(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.out, "$ reassure %s\n", strings.Join(args, " "))
	text, err := d.room.Ask(ctx, args...)
	fmt.Fprintln(d.out, text)
	return err
}

func (d *demo) show(ctx context.Context) error {
	d.say("reassure serve --config lab.yaml")
	server, err := d.room.Serve(ctx)
	if err != nil {
		return err
	}
	defer server.Kill()
	if _, err := server.Expect(ctx, regexp.MustCompile(`\bready\b.*\n`)); err != nil {
		return err
	}
	d.say("Two PCs, each with an old system. Nothing was rolled out: they are told Local")
	if err := d.boot(ctx, "the old system of %s"); err != nil {
		return err
	}
	if err := d.types(ctx, "status"); err != nil {
		return err
	}
	d.say("Roll out what the site's files say, and power both on")
	if err := d.types(ctx, "rollout", "--yes", "--why", "first install", "exp*"); err != nil {
		return err
	}
	began := time.Now()
	if err := d.boot(ctx, "%s login: "); err != nil {
		return err
	}
	d.say("Both reimaged and in their new systems, %.0f s after power-on", time.Since(began).Seconds())
	for _, args := range [][]string{{"status"}, {"why", "exp01"}, {"log", "exp01"}} {
		if err := d.types(ctx, args...); err != nil {
			return err
		}
	}
	d.say("Power on once more: nothing has changed, so they boot their own disks")
	return d.boot(ctx, "%s login: ")
}

// boot switches both PCs on until their consoles say so, and off again.
func (d *demo) boot(ctx context.Context, until string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go d.watch(ctx)
	var running []*qemutests.VM
	defer func() {
		for _, vm := range running {
			_ = vm.Kill()
		}
	}()
	for _, pc := range d.pcs {
		vm, err := d.room.PowerOn(ctx, pc, nil)
		if err != nil {
			return err
		}
		running = append(running, vm)
	}
	for i, vm := range running {
		line := regexp.MustCompile(regexp.QuoteMeta(fmt.Sprintf(until, d.pcs[i].Name)))
		if _, err := vm.Expect(ctx, line, regexp.MustCompile(`REIMAGE FAILED: .*\n`)); err != nil {
			return err
		}
		fmt.Fprintf(d.out, "%s: %q on its console\n", d.pcs[i].Name, line)
	}
	return nil
}

// watch shows how far the PCs are, every few seconds that something has changed.
func (d *demo) watch(ctx context.Context) {
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(3 * time.Second):
		}
		text, err := d.room.Ask(ctx, "status", "--json")
		var hosts []api.Host
		if err != nil || json.Unmarshal([]byte(text), &hosts) != nil {
			continue
		}
		line := ""
		for _, h := range hosts {
			line += fmt.Sprintf("%s %s", h.Name, h.State)
			if p := h.Progress; p != nil {
				line += " " + p.Phase
				if p.Total > 0 {
					line += fmt.Sprintf(" %d %%", 100*p.Done/p.Total)
				}
			}
			line += "   "
		}
		if line != last {
			fmt.Fprintln(d.out, strings.TrimSpace(line))
			last = line
		}
	}
}
