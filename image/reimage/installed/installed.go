// Package installed mounts the system that is on a disk as it mounts itself, by
// its own fstab, so that it can be read: nothing is written, not even a journal's
// replay. It needs no stamp of ours: the system may have been installed by hand.
package installed

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/reimage/disk"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
)

// FileSystem is a file system of an installed system.
type FileSystem struct {
	Device string
	Kind   string // of spec's
	Mount  string // absolute, in the system
}

// System is an installed system, mounted read-only.
type System struct {
	Root        string
	FileSystems []FileSystem
	// Missing are what its fstab names, as it names it, and the disk does not
	// have: another disk's, a server's.
	Missing []string
	mounted []string
}

const (
	fstab    = "etc/fstab"
	maxFstab = 1 << 20
)

// kinds are the file systems that a system is read from, by their signature.
var kinds = map[string]string{
	spec.Ext4: spec.Ext4, "ext3": spec.Ext4, "ext2": spec.Ext4, spec.XFS: spec.XFS, spec.Btrfs: spec.Btrfs, spec.VFAT: spec.VFAT,
}

// Find returns what file systems the disk's only system has, the root first, and
// what its fstab names beside them.
func Find(d spec.Disk) (all []FileSystem, missing []string, err error) {
	type candidate struct {
		content spec.Content
		fstab   []byte
	}
	var roots []candidate
	var why []error
	for _, c := range d.Contents {
		kind := kinds[c.Kind]
		if c.Partition == 0 || kind == "" || kind == spec.VFAT {
			continue
		}
		device := disk.PartitionDevice(d.Device, c.Partition)
		text, err := mount.ReadFileFromDevice(device, kind, fstab, maxFstab)
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", device, err))
			continue
		}
		roots = append(roots, candidate{c, text})
	}
	switch {
	case len(roots) == 0:
		return nil, nil, fmt.Errorf("no partition of %s holds a system with an /etc/fstab: %w", d, errors.Join(why...))
	case len(roots) > 1:
		var names []string
		for _, r := range roots {
			names = append(names, disk.PartitionDevice(d.Device, r.content.Partition))
		}
		return nil, nil, fmt.Errorf("%s holds several systems (%s), and nothing says which to take: capture the one you want over SSH, by reassure wad capture", d, strings.Join(names, ", "))
	}
	root := roots[0]
	all, missing = filesystems(string(root.fstab), d, root.content)
	return all, missing, nil
}

// filesystems reads an fstab (fstab(5)). Mounts that are no part of the system
// whenever it runs, and those of the kernel's own, are left out.
func filesystems(text string, d spec.Disk, root spec.Content) (all []FileSystem, missing []string) {
	all = []FileSystem{{disk.PartitionDevice(d.Device, root.Partition), kinds[root.Kind], "/"}}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		var options []string
		if len(f) > 3 {
			options = strings.Split(f[3], ",")
		}
		at := path.Clean(unescape(f[1]))
		if !strings.HasPrefix(at, "/") || at == "/" || f[2] == "swap" || slices.Contains(options, "noauto") || virtual(f[0], f[2]) {
			continue
		}
		c, found := lookup(unescape(f[0]), d)
		kind := kinds[c.Kind]
		if !found || kind == "" || c.Partition == root.Partition || slices.ContainsFunc(all, func(o FileSystem) bool { return o.Mount == at }) {
			missing = append(missing, fmt.Sprintf("%s (%s)", at, f[0]))
			continue
		}
		all = append(all, FileSystem{disk.PartitionDevice(d.Device, c.Partition), kind, at})
	}
	slices.SortStableFunc(all, func(a, b FileSystem) int { return strings.Compare(a.Mount, b.Mount) })
	return all, missing
}

func virtual(device, kind string) bool {
	return !strings.ContainsAny(device, "/=:") || slices.Contains([]string{"proc", "sysfs", "devpts", "tmpfs", "devtmpfs", "debugfs", "cgroup", "cgroup2", "efivarfs"}, kind)
}

// lookup finds a disk's partition by how an fstab names it.
func lookup(name string, d spec.Disk) (spec.Content, bool) {
	number, by := 0, ""
	tag, value, tagged := strings.Cut(name, "=")
	value = strings.Trim(value, `"`)
	for prefix, is := range map[string]string{"/dev/disk/by-uuid/": "UUID", "/dev/disk/by-label/": "LABEL", "/dev/disk/by-partuuid/": "PARTUUID"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			tag, value, tagged = is, rest, true
		}
	}
	switch {
	case tagged && (tag == "UUID" || tag == "LABEL"):
		by = tag
	case tagged && tag == "PARTUUID":
		// Of an MBR it ends in the partition's number (block/partitions/msdos.c);
		// of a GPT it says nothing that is known here.
		if id, last, ok := strings.Cut(value, "-"); ok && len(id) == 8 && len(last) == 2 {
			n, _ := strconv.ParseInt(last, 16, 32)
			number = int(n)
		}
	case strings.HasPrefix(name, "/dev/"):
		// The disk may have another name now than when that was written.
		digits := len(name) - len(strings.TrimRight(name, "0123456789"))
		number, _ = strconv.Atoi(name[len(name)-digits:])
		rest := strings.TrimSuffix(name[:len(name)-digits], "p")
		if digits == 0 || strings.Contains(strings.TrimPrefix(rest, "/dev/"), "/") {
			number = 0
		}
	}
	for _, c := range d.Contents {
		switch {
		case c.Partition == 0:
		case by == "UUID" && strings.EqualFold(c.UUID, value), by == "LABEL" && c.Label == value && value != "", number != 0 && c.Partition == number:
			return c, true
		}
	}
	return spec.Content{}, false
}

// unescape undoes the octal escapes of fstab(5).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(s)
}

// Mount mounts the system that is on a disk below a folder of its own.
func Mount(d spec.Disk, log *slog.Logger) (*System, error) {
	all, missing, err := Find(d)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "reassure-system-")
	if err != nil {
		return nil, err
	}
	s := &System{Root: dir, FileSystems: all, Missing: missing}
	for _, f := range all {
		err := clean(f)
		if err == nil {
			err = s.mount(f)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("mount %s of the installed system (%s, %s): %w", f.Mount, f.Device, f.Kind, err), s.Unmount())
		}
		log.Info("mounted read-only", "device", f.Device, "type", f.Kind, "at", f.Mount)
	}
	return s, nil
}

// clean says whether an ext4 is whole without its journal, which is not replayed
// here. XFS and btrfs judge that themselves when they are mounted.
func clean(f FileSystem) error {
	if f.Kind != spec.Ext4 {
		return nil
	}
	device, err := os.Open(f.Device)
	if err != nil {
		return err
	}
	defer device.Close()
	// struct ext4_super_block: s_feature_incompat, and of that
	// EXT4_FEATURE_INCOMPAT_RECOVER (fs/ext4/ext4.h).
	var incompat [4]byte
	if _, err := device.ReadAt(incompat[:], 1024+0x60); err != nil {
		return err
	}
	if incompat[0]&4 != 0 {
		return errors.New("it was not unmounted: start the PC, shut it down in the usual way, and try again")
	}
	return nil
}

// mount mounts one file system where a path leads inside the system: a link there
// must not lead out of it.
func (s *System) mount(f FileSystem) error {
	top, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	at, err := unix.Openat2(top, f.Mount, &how)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	name := fmt.Sprintf("/proc/self/fd/%d", at)
	place, err := os.Readlink(name)
	if err != nil {
		return err
	}
	flags, data := mount.Untouched(f.Kind)
	if err := unix.Mount(f.Device, name, f.Kind, flags|unix.MS_NOATIME, data); err != nil {
		return err
	}
	s.mounted = append(s.mounted, place)
	return nil
}

// Unmount takes the file systems away; it may be called again.
func (s *System) Unmount() error {
	var errs []error
	for _, m := range slices.Backward(s.mounted) {
		// Whoever still reads from it keeps a read-only file system, no more.
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	s.mounted = nil
	return errors.Join(append(errs, os.Remove(s.Root))...)
}

// Used is how much the system's files take on the disk, in bytes.
func (s *System) Used() spec.Size {
	var used spec.Size
	for _, m := range s.mounted {
		var st unix.Statfs_t
		if unix.Statfs(m, &st) == nil { // it is an estimate
			used += spec.Size(st.Blocks-st.Bfree) * spec.Size(st.Bsize)
		}
	}
	return used
}
