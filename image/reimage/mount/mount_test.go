package mount

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

func TestFirstFill(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    []string
		flags uintptr
		data  string
	}{
		{name: "nothing", flags: unix.MS_NOATIME},
		{name: "what only fstab's readers know", in: []string{"defaults", "noauto", "nofail", "x-systemd.automount", "comment=x", "_netdev", "user"}, flags: unix.MS_NOATIME},
		{name: "what would hinder", in: []string{"ro", "noexec", "nodev", "nosuid", "sync", "discard", "relatime", "usrjquota=aquota.user"}, flags: unix.MS_NOATIME},
		{name: "what the file system must be told", in: []string{"defaults", "umask=0077", "errors=remount-ro", "subvol=@"}, flags: unix.MS_NOATIME, data: "umask=0077,errors=remount-ro,subvol=@"},
		{name: "flags", in: []string{"nodiratime", "lazytime"}, flags: unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_LAZYTIME},
	} {
		t.Run(tt.name, func(t *testing.T) {
			flags, data := FirstFill(tt.in)
			if flags != tt.flags || data != tt.data {
				t.Errorf("FirstFill(%q) = %#x, %q; want %#x, %q", tt.in, flags, data, tt.flags, tt.data)
			}
		})
	}
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: apt-get install e2fsprogs xfsprogs btrfs-progs util-linux", args[0])
	}
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// device returns a loop device with a file system on it, and its file.
func device(t *testing.T, mkfs ...string) (dev, file string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: run the tests as root")
	}
	file = filepath.Join(t.TempDir(), "disk")
	size := "32M"
	if mkfs[0] == "mkfs.xfs" || mkfs[0] == "mkfs.btrfs" {
		size = "320M" // the least that mkfs.xfs takes is 300 MiB
	}
	run(t, "truncate", "-s", size, file)
	run(t, append(mkfs, file)...)
	return attach(t, file), file
}

func attach(t *testing.T, file string) string {
	t.Helper()
	dev := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { detach(t, dev, file) })
	return dev
}

// detach waits until the kernel has let go of the file: whoever probes a new device
// has it open for a moment, and the kernel then clears it as the last one closes it. To
// ask twice could take the device from the next one that found it free.
func detach(t *testing.T, dev, file string) {
	t.Helper()
	backing := filepath.Join("/sys/class/block", filepath.Base(dev), "loop/backing_file")
	has := func() bool {
		name, err := os.ReadFile(backing)
		return err == nil && strings.TrimSpace(string(name)) == file
	}
	if !has() {
		return // a test has detached it itself
	}
	run(t, "losetup", "--detach", dev)
	for start := time.Now(); has(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Errorf("%s still has %s a minute after it was told to let go", dev, file)
			return
		}
	}
}

func place(name, dev, fs, at string, options ...string) spec.Placed {
	return spec.Placed{Device: dev, Partition: spec.Partition{Name: name, FileSystem: fs, Mount: at, Options: options}}
}

func TestMountAndUnmount(t *testing.T) {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	root, _ := device(t, "mkfs.ext4", "-q")
	boot, _ := device(t, "mkfs.ext4", "-q")
	parts := []spec.Placed{
		place("boot", boot, spec.Ext4, "/boot", "defaults", "noauto", "ro"),
		place("swap", "/dev/does-not-exist", spec.Swap, "/swap"),
		place("bios", "/dev/does-not-exist", spec.None, ""),
		place("root", root, spec.Ext4, "/", "errors=remount-ro"),
	}
	at := filepath.Join(t.TempDir(), "mnt")
	tree, err := Mount(ctx, at, parts, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Unmount(ctx) })
	if err := os.WriteFile(filepath.Join(at, "boot/kernel"), []byte("k"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tree.Sync(); err != nil {
		t.Error(err)
	}
	// Something that a helper left behind.
	if err := os.Mkdir(filepath.Join(at, "proc dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", filepath.Join(at, "proc dir"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}

	// And somebody who sits there.
	sleeper := exec.Command("sleep", "60")
	sleeper.Dir = filepath.Join(at, "boot")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	err = tree.Unmount(short)
	cancel()
	if err == nil || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "sleep (") || !strings.Contains(err.Error(), "working folder") {
		t.Errorf("Unmount under a process = %v; want who holds it", err)
	}
	_ = sleeper.Process.Kill()
	_ = sleeper.Wait()
	if err := tree.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if left, err := below(at); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v, %v", left, err)
	}
	if err := tree.Unmount(ctx); err != nil {
		t.Errorf("a second Unmount = %v", err)
	}
	// /boot was mounted on the root file system, not the other way round.
	got, err := ReadFileFromDevice(boot, spec.Ext4, "/kernel", 1)
	if err != nil || string(got) != "k" {
		t.Errorf("kernel = %q, %v", got, err)
	}
	if _, err := ReadFileFromDevice(root, spec.Ext4, "boot/kernel", 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file went to the root partition: %v", err)
	}
}

func TestMountFails(t *testing.T) {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	root, _ := device(t, "mkfs.ext4", "-q")
	at := filepath.Join(t.TempDir(), "mnt")
	_, err := Mount(ctx, at, []spec.Placed{place("root", root, spec.Ext4, "/"), place("home", "/dev/does-not-exist", spec.Ext4, "/home")}, log)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "partition home") {
		t.Errorf("Mount = %v; want the missing partition's name", err)
	}
	if left, err := below(at); err != nil || len(left) > 0 {
		t.Errorf("after the error %v is mounted, %v", left, err)
	}
	_, err = Mount(ctx, at, []spec.Placed{place("root", root, "nosuchfs", "/")}, log)
	if err == nil || !strings.Contains(err.Error(), "add its module to the image") {
		t.Errorf("Mount of an unknown file system = %v", err)
	}
}

// TestReadingChangesNothing looks into file systems that were in use when
// their disk was copied, so that each has a journal to replay.
func TestReadingChangesNothing(t *testing.T) {
	for _, tt := range []struct {
		fs   string
		mkfs []string
	}{
		{spec.Ext4, []string{"mkfs.ext4", "-q"}},
		{spec.XFS, []string{"mkfs.xfs", "-q"}},
		{spec.Btrfs, []string{"mkfs.btrfs", "-q"}},
	} {
		t.Run(tt.fs, func(t *testing.T) {
			dev, file := device(t, tt.mkfs...)
			at := t.TempDir()
			if err := unix.Mount(dev, at, tt.fs, 0, ""); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(at, 0) }()
			if err := os.MkdirAll(filepath.Join(at, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"etc/stamp": "{}", "etc/long": "0123456789"} {
				if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for name, to := range map[string]string{"etc/out": "../../../etc/passwd", "etc/absolute": "/etc/passwd", "etc/in": "stamp"} {
				if err := os.Symlink(to, filepath.Join(at, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mkfifo(filepath.Join(at, "etc/fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			// What is to be read is in its place, and the journal is not empty.
			if err := unix.Unmount(at, 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(dev, at, tt.fs, 0, ""); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(at, "etc/late"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("late"); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			copied := file + ".copy"
			run(t, "cp", "--sparse=always", file, copied)
			if err := unix.Unmount(at, 0); err != nil {
				t.Fatal(err)
			}
			if tt.fs == spec.Btrfs || tt.fs == spec.XFS {
				// One kernel takes each file system's UUID once.
				detach(t, dev, file)
			}
			dev = attach(t, copied)
			before := digest(t, copied)
			for _, fs := range []string{tt.fs, ""} {
				for _, c := range []struct {
					path string
					want string
					err  string
				}{
					{path: "/etc/stamp", want: "{}"},
					{path: "etc/in", want: "{}"},
					{path: "/etc/none", err: "no such file"},
					{path: "/etc/long", err: "more than"},
					{path: "/etc/fifo", err: "not a regular file"},
					{path: "/etc/out", err: "escapes"},
					{path: "/etc/absolute", err: "escapes"},
				} {
					got, err := ReadFileFromDevice(dev, fs, c.path, 4)
					if string(got) != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
						t.Errorf("%q as %q = %q, %v; want %q, %q", c.path, fs, got, err, c.want, c.err)
					}
				}
			}
			if err := Flush(dev); err != nil {
				t.Error(err)
			}
			if after := digest(t, copied); !bytes.Equal(before, after) {
				t.Error("reading changed the disk")
			}
		})
	}
}

func digest(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return sum[:]
}

func TestReadOnlyOfNothing(t *testing.T) {
	dev, _ := device(t, "true")
	_, err := ReadFileFromDevice(dev, "", "/etc/stamp", 10)
	if err == nil || !strings.Contains(err.Error(), "as ext4") || !strings.Contains(err.Error(), "as btrfs") {
		t.Errorf("a blank device = %v; want what was tried", err)
	}
}

func TestReadMounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	text := "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 /b /mnt/a\\040b\\134c rw shared:3 master:4 - ext4 /dev/sda2 rw\nbroken\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readMounts(file)
	want := []entry{{"8:1", "/", "/", "/dev/sda1"}, {"8:2", "/b", `/mnt/a b\c`, "/dev/sda2"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" || err != nil {
		t.Errorf("mounts: %v (-want +got):\n%s", err, diff)
	}
}

// TestRunning looks at file systems that are mounted and in use, and at one that is not.
func TestRunning(t *testing.T) {
	dir := t.TempDir()
	system := filepath.Join(dir, "system")
	var parts []spec.Placed
	for _, at := range []string{"/", "/boot", "/data"} {
		dev, _ := device(t, "mkfs.ext4", "-q")
		parts = append(parts, spec.Placed{Partition: spec.Partition{Name: strings.TrimPrefix(at+"x", "/"), Mount: at, FileSystem: spec.Ext4}, Device: dev})
		if at == "/data" {
			break // it is not mounted
		}
		if err := os.MkdirAll(filepath.Join(system, at), 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, "mount", dev, filepath.Join(system, at))
		t.Cleanup(func() { run(t, "umount", filepath.Join(system, at)) })
	}
	run(t, "sh", "-c", "cd "+system+" && mkdir data boot/x && echo under >data/hidden && echo root >file && echo boot >boot/file")
	run(t, "mount", "-t", "tmpfs", "none", filepath.Join(system, "data"))
	busy, err := os.Create(filepath.Join(system, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()

	tree, err := Running(t.Context(), filepath.Join(dir, "look"), parts[:2], slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"file": "root", "boot/file": "boot", "data/hidden": "under"} {
		if got := run(t, "cat", filepath.Join(tree.Root, file)); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
		if err := os.WriteFile(filepath.Join(tree.Root, file), nil, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to %s: %v", file, err)
		}
	}
	if err := tree.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := busy.WriteString("still in use"); err != nil {
		t.Error(err)
	}

	// With what is not mounted.
	run(t, "umount", filepath.Join(system, "data"))
	if tree, err = Running(t.Context(), filepath.Join(dir, "look"), parts, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "ls", filepath.Join(tree.Root, "data")); got != "lost+found" {
		t.Errorf("the partition that was not mounted holds %q", got)
	}
	if err := tree.Unmount(t.Context()); err != nil {
		t.Error(err)
	}

	// Somebody hides a file system below another.
	run(t, "mount", "-t", "tmpfs", "none", filepath.Join(system, "boot"))
	_, err = Running(t.Context(), filepath.Join(dir, "look"), parts, slog.New(slog.DiscardHandler))
	run(t, "umount", filepath.Join(system, "boot"))
	if err == nil || !strings.Contains(err.Error(), "mounted over it") {
		t.Errorf("with /boot hidden: %v", err)
	}
	if left := run(t, "sh", "-c", "grep "+filepath.Join(dir, "look")+" /proc/self/mounts || true"); left != "" {
		t.Errorf("left mounted: %s", left)
	}
}

func TestHoldersFindMappedFiles(t *testing.T) {
	proc := t.TempDir()
	for _, d := range []string{"12/fd", "13/fd", "sys"} {
		if err := os.MkdirAll(filepath.Join(proc, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"12/comm": "sshd\n", "12/maps": "7f00-7f01 r-xp 00000000 08:01 12 /mnt/new/lib/libc.so\n7f02-7f03 rw-p 0 00:00 0\n",
		"13/comm": "other\n", "13/maps": "7f00-7f01 r-xp 00000000 08:01 12 /mnt/newer/lib/libc.so\n",
	} {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"sshd (12): mapped file /mnt/new/lib/libc.so"}, Holders(proc, "/mnt/new")); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
}

// TestHostileMountPoints has users put links where the file systems go, and leave
// things below them.
func TestHostileMountPoints(t *testing.T) {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	root, _ := device(t, "mkfs.ext4", "-q")
	boot, _ := device(t, "mkfs.ext4", "-q")
	efi, _ := device(t, "mkfs.ext4", "-q")
	at, outside := filepath.Join(t.TempDir(), "mnt"), t.TempDir()
	tree, err := Mount(ctx, at, []spec.Placed{place("root", root, spec.Ext4, "/")}, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(at, "boot")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	kept := place("data", "/dev/does-not-exist", spec.Ext4, "/data")
	kept.Kept = true
	tree, err = Mount(ctx, at, []spec.Placed{place("root", root, spec.Ext4, "/"), place("boot", boot, spec.Ext4, "/boot"), place("efi", efi, spec.Ext4, "/boot/efi"), kept}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Unmount(ctx) })
	points, err := below(at)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{at, at + "/boot", at + "/boot/efi"}, points); diff != "" {
		t.Errorf("mounted (-want +got):\n%s", diff)
	}
	if info, err := os.Lstat(filepath.Join(at, "data")); err != nil || !info.IsDir() {
		t.Errorf("the mount point of what is not mounted: %v, %v", info, err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there are %v, %v", left, err)
	}
}
