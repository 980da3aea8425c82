// Reimage reimages the PC that it runs on. It is the image's uinit: u-root's
// init starts it, and nobody types its name.
//
// Synopsis:
//
//	/usr/lib/reassure/reimage
//	reimage inspect <INSPECTION
//	reboot
//
// Description:
//
//	It loads the drivers of what is present, brings up the network card that the
//	PC booted from, fetches the PC's manifest, and then either leaves the disk
//	alone, because its stamp says that it holds that software already, or wipes
//	it and builds the system anew. See package reassure/image/reimage.
//
//	It ends in a reboot, in the installed system, or in a message that stays on
//	every console. Only when the profile says so it ends in a shell.
//
//	The boot server also sends it to a PC that runs its own system, to verify that
//	(reassure verify --running): with inspect it reads what the disk should hold
//	(spec.Inspection, as JSON), writes what differs (spec.Verified), and changes
//	nothing.
//
//	By the name of reboot, which the image has for people who log in for a rescue, it
//	starts the PC anew.
//
// Kernel parameters:
//
//	Those of package reassure/image/reimage/cmdline: reassure.url and so on,
//	and BOOTIF as pxelinux passes it.
//
// Files of the image:
//
//	/etc/reassure/image.json   what the image is
//	/etc/reassure/keys/*.pub   whose manifests are trusted
//	/etc/reassure/ca.pem       the site's own authorities for HTTPS, if it has any
//	/etc/reassure/complete     the last file of the image
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"reassure/image/fetch"
	"reassure/image/logs"
	"reassure/image/reimage"
	"reassure/image/reimage/cmdline"
	"reassure/image/reimage/mount"
	"reassure/image/reimage/power"
	"reassure/image/reimage/rescue"
	"reassure/image/sign"
	"reassure/image/spec"
)

func main() {
	do := run
	switch {
	case filepath.Base(os.Args[0]) == "reboot":
		do = reboot
	case slices.Equal(os.Args[1:], []string{"inspect"}):
		do = inspect
	}
	if err := do(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "reimage:", err)
		os.Exit(1)
	}
}

// reboot has a rescue end, which then starts the PC anew, and does that itself where it was
// not started from one.
func reboot(context.Context) error {
	if rescue.End() == nil {
		return nil
	}
	return power.Reboot()
}

// inspect compares the system that runs with what standard input says.
func inspect(ctx context.Context) error {
	debug.SetMemoryLimit(reimage.Memory)
	var i spec.Inspection
	if err := json.NewDecoder(os.Stdin).Decode(&i); err != nil {
		return fmt.Errorf("what the disk should hold: %w", err)
	}
	if i.Manifest == nil {
		return errors.New("what the disk should hold: there is no manifest: the boot server is of another version")
	}
	v, err := reimage.Inspect(ctx, i, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

// run returns only to have u-root's init start a shell.
func run(ctx context.Context) error {
	debug.SetMemoryLimit(reimage.Memory)
	// Somebody who leans on the keyboard must not end a reimage half-way.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTSTP)

	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	options, warnings := cmdline.Parse(string(text))
	consoles, err := logs.OpenConsoles("/")
	if err != nil {
		return err
	}
	screen := logs.NewScreen(consoles)
	ring := logs.NewRing(ringLines)
	log := newLog(options, screen, ring)
	for _, w := range warnings {
		log.Warn(w.Error())
	}

	finish, err := reimageThis(ctx, options, screen, ring, log)
	if err != nil {
		log.Error("This PC waits for a person. Its reimage ended with:")
		log.Error(err.Error())
		log.Error("Mend the cause, then press Ctrl-Alt-Del or the power button to start again.")
	}
	screen.Flush(2 * time.Second)
	for {
		switch finish {
		case spec.Shell:
			screen.Close(time.Second)
			return nil
		case spec.PowerOff:
			err = power.PowerOff()
		case spec.Reboot:
			err = power.Reboot()
		default:
			time.Sleep(time.Hour)
			continue
		}
		log.Error("the kernel refused", "error", err)
		finish = spec.Hold
	}
}

// ringLines is more than what is logged between one event and the next.
const ringLines = 200

// newLog returns a logger to every console, the kernel log, and the ring that
// reports of failures are made of.
func newLog(o cmdline.Options, screen *logs.Screen, ring *logs.Ring) *slog.Logger {
	level := slog.LevelInfo
	if o.Debug {
		level = slog.LevelDebug
	}
	options := logs.Options{Level: level, Since: logs.Uptime, Hide: string(o.Token)}
	handlers := []slog.Handler{logs.NewHandler(screen, options), logs.NewHandler(ring, options)}
	if kmsg, err := logs.OpenKmsg(); err == nil {
		handlers = append(handlers, logs.NewKmsg(kmsg, level, options.Hide))
	}
	return slog.New(slog.NewMultiHandler(handlers...))
}

func reimageThis(ctx context.Context, options cmdline.Options, screen *logs.Screen, ring *logs.Ring, log *slog.Logger) (finish spec.Finish, err error) {
	finish = spec.Hold // what a defect ends in
	defer reimage.Recover(&err)
	text, err := os.ReadFile(spec.ImageInfo)
	if err != nil {
		return spec.Hold, fmt.Errorf("this is not a ReAssure image: %w", err)
	}
	var info spec.ImageInfoFile
	if err := json.Unmarshal(text, &info); err != nil {
		return spec.Hold, fmt.Errorf("%s: %w", spec.ImageInfo, err)
	}
	screen.Banner("ReAssure "+info.Version, fmt.Sprintf("kernel %s, %s image", info.Kernel, info.Flavour))
	if err := reimage.CheckImage(info); err != nil {
		return spec.Hold, err
	}
	if err := mount.Early(); err != nil {
		log.Warn("a mount that may be missed", "error", err)
	}
	if err := mount.Writeback(); err != nil {
		log.Warn("this takes longer", "error", err)
	}
	keys, err := sign.LoadKeyring(os.DirFS(spec.ImageKeys))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spec.Hold, err
	}
	if options.Shell && info.DebugShell {
		return spec.Shell, nil
	}
	r := reimage.Reimager{Options: options, Info: info, Keys: keys, Log: log, Screen: screen, Ring: ring}
	authorities, err := os.ReadFile(spec.ImageCA)
	if err == nil {
		r.Trust, err = fetch.Trust(authorities)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spec.Hold, fmt.Errorf("%s: %w", spec.ImageCA, err)
	}
	return r.Run(ctx)
}
