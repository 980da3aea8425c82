package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Early makes the mounts that the reimager needs and finds missing: /proc,
// /sys, /dev and its pts and shm, /tmp, /run, and efivarfs on UEFI. u-root's
// init makes most of them, but devpts, say, only where its folder is. efivarfs
// may be a module, and is left out until the kernel knows it: call Early again when
// modules are loaded. What is mounted already is left alone. It goes on after an error.
func Early() error {
	// Without /proc the list of mounts is empty, and /proc is the first.
	var errs []error
	for _, m := range []struct {
		at, fstype, data string
		flags            uintptr
		only             string // a file that must exist
	}{
		{at: "/proc", fstype: "proc", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{at: "/sys", fstype: "sysfs", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{at: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
		{at: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "ptmxmode=0666,mode=0620,gid=5"},
		{at: "/dev/shm", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		{at: "/tmp", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		{at: "/run", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755"},
		{
			at: "/sys/firmware/efi/efivars", fstype: "efivarfs", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
			only: "/sys/firmware/efi",
		},
	} {
		if m.only != "" {
			if _, err := os.Stat(m.only); err != nil || !known(m.fstype) {
				continue
			}
		}
		mounts, err := readMounts("/proc/self/mountinfo")
		if err != nil && m.at != "/proc" {
			errs = append(errs, err)
			continue
		}
		if slices.ContainsFunc(mounts, func(e entry) bool { return e.point == m.at }) {
			continue
		}
		// sysfs makes its own mount points, and refuses others.
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Mount(m.fstype, m.at, m.fstype, m.flags, m.data); err != nil {
			errs = append(errs, fmt.Errorf("mount %s at %s: %w", m.fstype, m.at, explain(err, m.fstype)))
		}
	}
	return errors.Join(errs...)
}

// known says whether the kernel has a file system, without asking for its module.
func known(fstype string) bool {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return true // mount(2) will tell
	}
	return slices.Contains(strings.Fields(string(text)), fstype)
}
