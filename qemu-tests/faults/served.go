package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/command"
	"reassure/image/serve/api"
	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// fullServer has the boot server's own disk be full before a PC asks, and while it
// is being reimaged. The PC boots its own system, untouched, or the new one, whole, and
// the server does not take it for one that is still being reimaged.
func (s *stage) fullServer(ctx context.Context, dir string, facts map[string]string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*runTime, fmt.Errorf("it came to no end within %v", 2*runTime))
	defer cancel()
	const own = "the old system of exp01"
	pc := &qemutests.PC{Name: "exp01", IP: "172.30.0.11", MAC: qemutests.DefaultMAC, Disk: &qemutests.Disk{Size: diskSize, Fill: qemutests.OwnSystem(own)}}
	files := qemutests.SmallRoomFiles()
	for name, text := range files {
		files[name] = strings.ReplaceAll(text, "{{KEY}}", s.key.Line)
	}
	room, err := qemutests.NewRoom(ctx, s.programs, dir, qemutests.RoomSetup{PCs: []*qemutests.PC{pc}, Profile: "small", Files: files, Wads: map[string]string{"small.tar.zst": s.wads[second]}}, s.key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.Close()) }()
	state, unmount, err := smallDisk(ctx, dir, filepath.Join(room.Site, "state"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	if err := room.Config("server"); err != nil {
		return err
	}
	server, err := room.Serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Kill()) }()
	if _, err := server.Expect(ctx, regexp.MustCompile(`\bready\b.*\n`)); err != nil {
		return err
	}
	if _, err := room.Ask(ctx, "rollout", "--yes", pc.Name); err != nil {
		return err
	}

	if err := state.fill(); err != nil {
		return err
	}
	vm, err := room.PowerOn(ctx, pc, nil)
	if err != nil {
		return err
	}
	defer vm.Kill()
	// Small changes find room in the file that there is; where they do not, nobody may be
	// told Remote.
	if _, err := vm.Expect(ctx, doneLine, panicked, failedLine, regexp.MustCompile(own)); err != nil {
		if !strings.Contains(vm.Text(), own) {
			return err
		}
		if err := healthy(ctx, room); err == nil {
			return errors.New("the server does not say what keeps it from its work")
		}
		if err := errors.Join(state.empty(), vm.Reset()); err != nil {
			return err
		}
		if _, err := await(ctx, room, pc, func(h api.Host) bool { return h.Progress != nil && h.Progress.Phase == "extract" }); err != nil {
			return err
		}
		if err := state.fill(); err != nil {
			return err
		}
		if _, err := vm.Expect(ctx, doneLine, panicked, failedLine); err != nil {
			return err
		}
	}
	facts["server"] = fmt.Sprint(healthy(ctx, room))
	// It asks, and the server's disk is still full: that is long enough for it.
	if err := pause(ctx, 20*time.Second); err != nil {
		return err
	}
	if err := state.empty(); err != nil {
		return err
	}
	if _, err := vm.Expect(ctx, loginLine, panicked); err != nil {
		return err
	}
	// Where the PC's word that it is done was lost, its attempt counts as failed when it
	// starts the next time, and a person has to release it: it then finds that it holds
	// what it should.
	if err := vm.Reset(); err != nil {
		return err
	}
	last, err := await(ctx, room, pc, func(h api.Host) bool { return h.State != api.Running })
	if err != nil {
		return err
	}
	facts["said"], facts["outcome"], facts["verified"] = "done", qemutests.NewSystem, fmt.Sprintf("booted; at the server: %s, %s", last.State, last.Reason)
	if last.State == api.Current {
		return nil
	}
	if _, err := room.Ask(ctx, "release", pc.Name); err != nil {
		return err
	}
	if err := vm.Reset(); err != nil {
		return err
	}
	_, err = await(ctx, room, pc, func(h api.Host) bool { return h.State == api.Current })
	return err
}

// healthy says what keeps the boot server from its work.
func healthy(ctx context.Context, room *qemutests.Room) error {
	_, err := room.Get(ctx, "/healthz")
	return err
}

// await waits until the boot server says something of a PC.
func await(ctx context.Context, room *qemutests.Room, pc *qemutests.PC, is func(api.Host) bool) (h api.Host, err error) {
	for {
		text, err := room.Ask(ctx, "status", "--json")
		if err != nil {
			return h, err
		}
		var all []api.Host
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return h, err
		}
		for _, h = range all {
			if h.Name == pc.Name && is(h) {
				return h, nil
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return h, fmt.Errorf("%w; the server says %s", err, text)
		}
	}
}

// stateDisk is a file system for the boot server's state.
type stateDisk struct{ dir string }

// smallDisk mounts one that holds little more than the wad.
func smallDisk(ctx context.Context, dir, at string) (d *stateDisk, unmount func() error, err error) {
	file := filepath.Join(dir, "state.disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, int64(256*spec.MiB)), os.MkdirAll(at, 0o755)); err != nil {
		return nil, nil, err
	}
	run := func(args ...string) error {
		return command.Command{Args: args, Timeout: time.Minute}.Run(context.WithoutCancel(ctx))
	}
	if err := errors.Join(run("mkfs.ext4", "-q", file), run("mount", "-o", "loop", file, at)); err != nil {
		return nil, nil, err
	}
	return &stateDisk{at}, func() error { return run("umount", at) }, nil
}

func (d *stateDisk) file() string { return filepath.Join(d.dir, "fills-it") }

// fill fills it to the last byte.
func (d *stateDisk) fill() error {
	f, err := os.Create(d.file())
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		switch _, err := f.Write(make([]byte, size)); {
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		case err != nil:
			return err
		}
	}
	return f.Sync()
}

func (d *stateDisk) empty() error { return os.Remove(d.file()) }
