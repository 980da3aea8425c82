package mount

import (
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// FirstFill translates an fstab's options into what mount(2) takes while the
// new system is being written. Left out are those for fstab's readers only
// (defaults, nofail, noauto, x-*, ...) and those that would stop or slow the
// work (ro, noexec, nosuid, nodev, sync, discard); access times are off.
func FirstFill(options []string) (flags uintptr, data string) {
	flags = unix.MS_NOATIME
	var kept []string
	for _, o := range options {
		switch key, _, _ := strings.Cut(o, "="); {
		case o == "", key == "comment", strings.HasPrefix(key, "x-"), strings.HasPrefix(key, "X-"):
		case fstabOnly(o), hinders(o), timesOfAccess(o):
		case o == "nodiratime":
			flags |= unix.MS_NODIRATIME
		case o == "lazytime":
			flags |= unix.MS_LAZYTIME
		case o == "nolazytime":
		default:
			kept = append(kept, o)
		}
	}
	return flags, strings.Join(kept, ",")
}

func fstabOnly(o string) bool {
	switch o {
	case "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "loop":
		return true
	}
	return false
}

// hinders says whether an option keeps the reimager or the programs of its
// steps from their work, or makes it slow, or is the default anyhow.
func hinders(o string) bool {
	switch o {
	case "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync", "discard",
		"usrquota", "grpquota", "prjquota", "quota", "uquota", "gquota", "pquota":
		return true
	}
	return strings.HasPrefix(o, "usrjquota=") || strings.HasPrefix(o, "grpjquota=") || strings.HasPrefix(o, "jqfmt=")
}

func timesOfAccess(o string) bool {
	switch o {
	case "atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime", "diratime":
		return true
	}
	return false
}

// Untouched returns the flags and data for mount(2) with which nothing is written to
// a file system, not even a journal's replay.
func Untouched(fstype string) (flags uintptr, data string) {
	replay := map[string]string{spec.Ext4: "noload", "ext3": "noload", spec.XFS: "norecovery", spec.Btrfs: "rescue=nologreplay"}
	return unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, replay[fstype]
}
