package chroot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// prepared is a new root in which programs can run, and how to undo that.
type prepared struct {
	root   string
	log    *slog.Logger
	before map[string]bool // what was mounted below root already
	undo   []func() error  // in the order of doing
}

// prepare makes a new root ready. What it returns is to be taken down even
// when there is an error.
func prepare(root string, o Options) (*prepared, error) {
	p := &prepared{root: root, log: o.Log, before: map[string]bool{}}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	mounts, err := mountsBelow(root)
	if err != nil {
		return p, err
	}
	for _, m := range mounts {
		p.before[m] = true
	}
	for _, m := range []struct {
		source, target, kind, data string
		flags                      uintptr
	}{
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
		{"/dev", "/dev", "", "", unix.MS_BIND},
		{"devpts", "/dev/pts", "devpts", "gid=5,mode=620", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		target := filepath.Join(root, m.target)
		// Mounting would follow it, out of the new system if it is absolute.
		if info, err := os.Lstat(target); err == nil && !info.IsDir() {
			return p, fmt.Errorf("%s of the new system is no folder, but %s: make the wad with a folder there, which may be empty", m.target, kindOf(info.Mode()))
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return p, err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return p, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if o.Job.Firmware == spec.UEFI {
		if err := unix.Mount("efivarfs", filepath.Join(root, "/sys/firmware/efi/efivars"), "efivarfs", 0, ""); err != nil {
			p.log.Warn("the new system cannot see the firmware's variables", "error", err)
		}
	}
	folder := filepath.Join(root, filepath.Dir(helperPath))
	if err := os.Mkdir(folder, 0o700); err != nil {
		return p, err
	}
	if err := copyFile(o.Helper, filepath.Join(root, helperPath)); err != nil {
		return p, fmt.Errorf("chroot helper: %w", err)
	}
	if err := p.linkDisks(o.ByUUID); err != nil {
		return p, err
	}
	if err := p.resolver(); err != nil {
		return p, err
	}
	return p, p.holdServices()
}

// kindOf names what is in a folder's place.
func kindOf(m fs.FileMode) string {
	if m&fs.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file"
}

// linkDisks makes what udev would: /dev/disk/by-uuid, without which grub-probe,
// and so update-grub, name the root by its device. /dev is that of the
// initramfs, so nothing of it stays in the new system.
func (p *prepared) linkDisks(byUUID map[string]string) error {
	folder := filepath.Join(p.root, "/dev/disk/by-uuid")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for id, device := range byUUID {
		link := filepath.Join(folder, id)
		if err := os.Symlink("../../"+filepath.Base(device), link); err != nil {
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			return err
		}
		p.undo = append(p.undo, func() error { return os.Remove(link) })
	}
	return nil
}

// resolver gives the new root the name servers of this side for a while. A link
// into /run finds its target in the tmpfs that is there now. A file, or none, makes
// room for ours and comes back, unless a step has written one of its own meanwhile:
// a mount in its place would refuse every program that renames over it, with EBUSY.
func (p *prepared) resolver() error {
	text, err := os.ReadFile("/" + resolvConf)
	if err != nil {
		return nil // no network configured: nothing to hand on
	}
	root, err := os.OpenRoot(p.root) // a link in the wad must not lead to this side's file
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Lstat(resolvConf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := root.Stat(path.Dir(resolvConf)); err != nil {
			return nil
		}
	case err != nil:
		return err
	case info.Mode().IsRegular():
		if err := root.Rename(resolvConf, resolvAside); err != nil {
			return err
		}
	case info.Mode()&os.ModeSymlink != 0:
		target, err := root.Readlink(resolvConf)
		if err != nil {
			return err
		}
		if !path.IsAbs(target) {
			target = path.Join("/etc", target)
		}
		if !below("/run", target) {
			return nil // leads somewhere that is none of our business
		}
		target = strings.TrimPrefix(path.Clean(target), "/")
		if err := root.MkdirAll(path.Dir(target), 0o755); err != nil {
			return err
		}
		return root.WriteFile(target, text, 0o644)
	default:
		return nil
	}
	p.undo = append(p.undo, func() error { return p.putBackResolver(text) })
	return root.WriteFile(resolvConf, text, 0o644)
}

// resolvConf is what names the name servers, and where the wad's own waits.
const (
	resolvConf  = "etc/resolv.conf"
	resolvAside = resolvConf + ".reassure"
)

// putBackResolver ends what resolver began; ours is the text that it wrote.
func (p *prepared) putBackResolver(ours []byte) error {
	root, err := os.OpenRoot(p.root)
	if err != nil {
		return err
	}
	defer root.Close()
	var now []byte
	if info, err := root.Lstat(resolvConf); err == nil && info.Mode().IsRegular() {
		if now, err = root.ReadFile(resolvConf); err != nil {
			return err
		}
	}
	if !bytes.Equal(now, ours) {
		return root.Remove(resolvAside) // a step has seen to it
	}
	err = root.Rename(resolvAside, resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return root.Remove(resolvConf)
	}
	return err
}

// holdServices keeps Debian's packages from starting services here
// (invoke-rc.d(8), policy-rc.d: 101 is "forbidden").
func (p *prepared) holdServices() error {
	if _, err := os.Stat(filepath.Join(p.root, "/usr/sbin")); err != nil {
		return nil
	}
	file := filepath.Join(p.root, "/usr/sbin/policy-rc.d")
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil // the wad has its own policy
	}
	if err != nil {
		return err
	}
	p.undo = append(p.undo, func() error { return os.Remove(file) })
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	return errors.Join(err, f.Chmod(0o755), f.Close())
}

// takeDown undoes everything, and ends what still runs in the new root.
func (p *prepared) takeDown() error {
	var failed []error
	if err := p.killAll(); err != nil {
		failed = append(failed, err)
	}
	for _, undo := range slices.Backward(p.undo) {
		if err := undo(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	mounts, err := mountsBelow(p.root)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, m := range slices.Backward(mounts) {
		if !p.before[m] {
			if err := p.unmount(m); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// unmountTries is how often, a tenth of a second apart, a busy mount is tried.
const unmountTries = 50

func (p *prepared) unmount(target string) error {
	var err error
	for range unmountTries {
		if err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	switch {
	case err == nil, errors.Is(err, unix.EINVAL): // gone with another
		return nil
	case err == unix.EBUSY:
		p.log.Warn("something in the new root stays busy; it is taken away as soon as that ends", "mount", target)
		err = unix.Unmount(target, unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// killAll ends every process whose root is the new root, until there is none.
func (p *prepared) killAll() error {
	var left []string
	for range unmountTries {
		left = nil
		roots, err := filepath.Glob("/proc/[0-9]*/root")
		if err != nil {
			return err
		}
		for _, r := range roots {
			target, err := os.Readlink(r)
			if err != nil || !below(p.root, target) {
				continue // gone, or of another root
			}
			pid, err := strconv.Atoi(strings.Split(r, "/")[2])
			if err != nil || pid == os.Getpid() {
				continue
			}
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(r), "comm"))
			left = append(left, fmt.Sprintf("%s (%d)", strings.TrimSpace(string(name)), pid))
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("processes in the new root do not end: %s", strings.Join(left, ", "))
}

// below says whether a path is folder or below it.
func below(folder, p string) bool {
	return p == folder || strings.HasPrefix(p, strings.TrimRight(folder, "/")+"/")
}

// mountsBelow returns the mount points below root, in the order of mounting.
func mountsBelow(root string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		// proc_pid_mountinfo(5) writes spaces and the like as octal.
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if point != root && below(root, point) {
			mounts = append(mounts, point)
		}
	}
	return mounts, nil
}
