// Package mount mounts the partitions of a plan below one folder, and takes
// them away again so that everything is on the disk; reads single files from
// file systems that must not be changed; and makes the few mounts that
// u-root's init leaves out.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// Tree is a new system's file systems, mounted below Root.
type Tree struct {
	Root    string
	mounted []mounted // in the order of mounting
	log     *slog.Logger
}

type mounted struct {
	device string // to be flushed; empty is none
	at     string
}

// Mount mounts those of parts that have a file system and a mount point below
// root, parents first, making mount points that are missing. What is in the place of
// one and is no folder, a link to somewhere else above all, is removed: the file
// systems may be those of a system where users are root. Of partitions that are kept,
// and of an EFI system partition, there are only the mount points. After an error nothing
// of it is mounted.
func Mount(ctx context.Context, root string, parts []spec.Placed, log *slog.Logger) (*Tree, error) {
	t := &Tree{Root: filepath.Clean(root), log: log}
	for _, p := range mountable(parts) {
		if p.Kept || p.IsESP() {
			// Users may have made anything of what is kept: it is for the new system to
			// mount. An ESP is filled at the end, from what is in its place.
			if err := makePoint(t.Root, p.Mount); err != nil {
				return nil, errors.Join(fmt.Errorf("mount point of partition %s: %w", p.Name, err), t.Unmount(ctx))
			}
			continue
		}
		if err := t.mount(p); err != nil {
			return nil, errors.Join(err, t.Unmount(ctx))
		}
	}
	return t, nil
}

// mountable are the parts that have a file system and a mount point, parents first.
func mountable(parts []spec.Placed) []spec.Placed {
	parts = slices.Clone(parts)
	parts = slices.DeleteFunc(parts, func(p spec.Placed) bool {
		return p.Mount == "" || p.FileSystem == spec.Swap || p.FileSystem == spec.None || p.FileSystem == ""
	})
	slices.SortStableFunc(parts, func(a, b spec.Placed) int {
		return strings.Compare(filepath.Clean(a.Mount), filepath.Clean(b.Mount))
	})
	return parts
}

func (t *Tree) mount(p spec.Placed) error {
	at := filepath.Join(t.Root, p.Mount)
	if err := makePoint(t.Root, p.Mount); err != nil {
		return fmt.Errorf("mount point of partition %s: %w", p.Name, err)
	}
	options := p.Options
	if p.FileSystem == spec.Ext4 {
		// Zeroing the inode tables of a fresh file system would compete with
		// the extraction; the installed system does it when it is idle.
		options = append(slices.Clone(options), "noinit_itable")
	}
	flags, data := FirstFill(options)
	if err := unix.Mount(p.Device, at, p.FileSystem, flags, data); err != nil {
		return fmt.Errorf("mount partition %s (%s, %s) at %s with options %q: %w", p.Name, p.Device, p.FileSystem, at, data, explain(err, p.FileSystem))
	}
	t.log.Debug("mounted", "device", p.Device, "at", at, "type", p.FileSystem, "options", data)
	t.mounted = append(t.mounted, mounted{p.Device, at})
	return nil
}

// Look mounts those of parts that [Mount] would, so that nothing is written to
// them. A mount point that is not there, or is no folder, is an error.
func Look(ctx context.Context, root string, parts []spec.Placed, log *slog.Logger) (*Tree, error) {
	t := &Tree{Root: filepath.Clean(root), log: log}
	if err := os.MkdirAll(t.Root, 0o755); err != nil {
		return nil, err
	}
	for _, p := range mountable(parts) {
		if p.Kept || p.IsESP() {
			continue
		}
		if err := t.look(p); err != nil {
			return nil, errors.Join(fmt.Errorf("mount partition %s (%s) to look at it: %w", p.Name, p.Device, err), t.Unmount(ctx))
		}
	}
	return t, nil
}

func (t *Tree) look(p spec.Placed) error {
	tree, err := os.OpenRoot(t.Root)
	if err != nil {
		return err
	}
	defer tree.Close()
	at := ""
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(p.Mount), "/"), "/") {
		if name == "" {
			break // the tree itself
		}
		at = filepath.Join(at, name)
		if info, err := tree.Lstat(at); err != nil {
			return err
		} else if !info.IsDir() {
			return fmt.Errorf("/%s on the disk is no folder", at)
		}
	}
	flags, data := Untouched(p.FileSystem)
	at = filepath.Join(t.Root, p.Mount)
	if err := unix.Mount(p.Device, at, p.FileSystem, flags, data); err != nil {
		return explain(err, p.FileSystem)
	}
	t.mounted = append(t.mounted, mounted{p.Device, at})
	return nil
}

// makePoint makes the folder point below root one that is there, through no link.
func makePoint(root, point string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	path := ""
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(point), "/"), "/") {
		if name == "" {
			return nil // the tree itself
		}
		path = filepath.Join(path, name)
		info, err := tree.Lstat(path)
		if err == nil && info.IsDir() {
			continue
		}
		if err == nil {
			err = tree.Remove(path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := tree.Mkdir(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// explain adds the remedy to errors of mount(2) that have one.
func explain(err error, fstype string) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the kernel has no %s: add its module to the image", err, fstype)
	}
	return err
}

// unmountPatience is how long a busy file system is tried again.
const unmountPatience = 10 * time.Second

// Unmount writes everything out and takes the file systems away, the last
// first, with whatever else was mounted below them; then each device's buffers
// are flushed. A file system that stays busy is an error that names who holds
// it. It goes on after an error, and may be called again.
func (t *Tree) Unmount(ctx context.Context) error {
	var errs []error
	// What others (a helper that was killed) left mounted below.
	if len(t.mounted) > 0 {
		points, err := below(t.Root)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range slices.Backward(points) {
			if !slices.ContainsFunc(t.mounted, func(m mounted) bool { return m.at == p }) {
				t.log.Debug("unmounting what was left there", "at", p)
				errs = append(errs, unmount(ctx, p))
			}
		}
	}
	var left []mounted
	for _, m := range slices.Backward(t.mounted) {
		if err := errors.Join(syncFS(m.at), unmount(ctx, m.at)); err != nil {
			errs = append(errs, err)
			left = append(left, m)
			continue
		}
		t.log.Debug("unmounted", "device", m.device, "at", m.at)
		if m.device != "" {
			errs = append(errs, Flush(m.device))
		}
	}
	slices.Reverse(left)
	t.mounted = left
	return errors.Join(errs...)
}

// Sync writes out everything that was written to the tree.
func (t *Tree) Sync() error {
	var errs []error
	for _, m := range t.mounted {
		errs = append(errs, syncFS(m.at))
	}
	return errors.Join(errs...)
}

// syncFS writes out the file system that is mounted there; unlike sync(2) it
// tells errors of writing (since Linux 5.8).
func syncFS(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("write out the file system at %s: %w", at, err)
	}
	return nil
}

// unmount tries again while the file system is busy: a process that was just
// killed needs a moment to let go, and nothing tells when it has.
func unmount(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeout(ctx, unmountPatience)
	defer cancel()
	pause := 10 * time.Millisecond
	for {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: it is no mount point
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		case <-ctx.Done():
			holders := Holders("/proc", at)
			if len(holders) == 0 {
				holders = []string{"nobody that /proc shows: a swap file, a loop device or the kernel"}
			}
			return fmt.Errorf("unmount %s: %w: held by %s", at, err, strings.Join(holders, ", "))
		}
	}
}

// Flush writes a block device's cached data to it, and forgets what was read
// from it, so that the next reader sees the disk.
func Flush(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", device, err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("flush %s: %w", device, err)
	}
	return nil
}

// Holders names the processes that use something at or below folder, by what
// /proc shows (proc is its path): "grub-install (812): working folder
// /mnt/gentoo/boot". It names at most one use of each process.
func Holders(proc, folder string) []string {
	processes, _ := os.ReadDir(proc) // no list is nobody known
	var out []string
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name())
		use := use(dir, folder)
		if use == "" {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(dir, "comm")) // it may be gone by now
		out = append(out, fmt.Sprintf("%s (%s): %s", strings.TrimSpace(string(name)), p.Name(), use))
	}
	return out
}

func use(dir, folder string) string {
	for _, link := range []struct{ name, what string }{{"cwd", "working folder"}, {"root", "root folder"}, {"exe", "program"}} {
		if to, err := os.Readlink(filepath.Join(dir, link.name)); err == nil && within(to, folder) {
			return link.what + " " + to
		}
	}
	files, _ := os.ReadDir(filepath.Join(dir, "fd"))
	for _, f := range files {
		if to, err := os.Readlink(filepath.Join(dir, "fd", f.Name())); err == nil && within(to, folder) {
			return "open file " + to
		}
	}
	maps, _ := os.ReadFile(filepath.Join(dir, "maps"))
	for line := range strings.Lines(string(maps)) {
		if _, file, ok := strings.Cut(line, "/"); ok && within("/"+strings.TrimSpace(file), folder) {
			return "mapped file /" + strings.TrimSpace(file)
		}
	}
	return ""
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// below returns the mount points at and below folder, in the order in which
// they were mounted.
func below(folder string) ([]string, error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	var points []string
	for _, m := range mounts {
		if within(m.point, folder) {
			points = append(points, m.point)
		}
	}
	return points, err
}

// entry is one mount.
type entry struct {
	device string // its number, major:minor
	root   string // which part of the file system it shows
	point  string
	source string
}

func readMounts(mountinfo string) ([]entry, error) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, fmt.Errorf("list of mounts: %w", err)
	}
	// proc_pid_mountinfo(5): ID, parent, device, root, mount point, options, fields
	// that may be missing, a dash, type, source. Space, tab, newline and backslash
	// are octal escapes.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []entry
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if len(f) < 5 || dash < 5 || len(f) < dash+3 {
			continue
		}
		mounts = append(mounts, entry{device: f[2], root: unescape.Replace(f[3]), point: unescape.Replace(f[4]), source: unescape.Replace(f[dash+2])})
	}
	return mounts, nil
}

// ReadOnly mounts a device so that nothing is written to it, not even a
// journal's replay, and calls read with the folder, through which no link
// leads out. An empty fstype tries those that an installed system may have. It
// is unmounted before ReadOnly returns.
func ReadOnly(device, fstype string, read func(*os.Root) error) (err error) {
	dir, err := os.MkdirTemp("", "reassure-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	types := []string{fstype}
	if fstype == "" {
		types = []string{spec.Ext4, spec.XFS, spec.Btrfs, spec.VFAT}
	}
	var tried []error
	for _, fs := range types {
		flags, data := Untouched(fs)
		err := unix.Mount(device, dir, fs, flags, data)
		if err != nil {
			tried = append(tried, fmt.Errorf("look into %s as %s: %w", device, fs, explain(err, fs)))
			continue
		}
		defer func() {
			if busy := unmount(context.Background(), dir); busy != nil {
				// Whoever holds it keeps a read-only file system, no more.
				err = errors.Join(err, busy, unix.Unmount(dir, unix.MNT_DETACH))
			}
		}()
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		return read(root)
	}
	return errors.Join(tried...)
}

// ReadFileFromDevice returns a regular file of at most limit bytes from a file
// system that is not mounted; see [ReadOnly]. A file that is not there is
// [os.ErrNotExist].
func ReadFileFromDevice(device, fstype, path string, limit int64) ([]byte, error) {
	var data []byte
	err := ReadOnly(device, fstype, func(root *os.Root) error {
		var err error
		data, err = ReadFile(root, path, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", path, device, err)
	}
	return data, nil
}

// ReadFile returns a regular file of at most limit bytes. A leading slash of
// path means root.
func ReadFile(root *os.Root, path string, limit int64) ([]byte, error) {
	// O_NONBLOCK: a FIFO of that name must not stop us.
	f, err := root.OpenFile(strings.TrimLeft(path, "/"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is %v, not a regular file", info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it has more than the %d bytes allowed", limit)
	}
	return data, nil
}
