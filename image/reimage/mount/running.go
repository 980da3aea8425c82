package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// Running shows below root those of parts that [Mount] would mount, as the system
// that runs has them mounted, read-only and without what is mounted inside them. A
// part that is not mounted is looked at as [Look] does. Nothing is written, no time of
// a file's last use either. The caller has a mount namespace of its own.
func Running(ctx context.Context, root string, parts []spec.Placed, log *slog.Logger) (*Tree, error) {
	t := &Tree{Root: filepath.Clean(root), log: log}
	if err := os.MkdirAll(t.Root, 0o700); err != nil {
		return nil, err
	}
	for _, p := range mountable(parts) {
		if p.Kept || p.IsESP() {
			continue
		}
		if err := t.bind(p); err != nil {
			return nil, errors.Join(fmt.Errorf("partition %s (%s) of the running system: %w", p.Name, p.Device, err), t.Unmount(ctx))
		}
	}
	return t, nil
}

// bind shows one part.
func (t *Tree) bind(p spec.Placed) error {
	from, err := PointOf(p.Device)
	if errors.Is(err, os.ErrNotExist) {
		return t.look(p)
	}
	if err != nil {
		return err
	}
	at := filepath.Join(t.Root, p.Mount)
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show what is mounted at %s: %w", from, err)
	}
	t.mounted = append(t.mounted, mounted{at: at})
	// What is mounted over a mount point hides it.
	if device, err := deviceAt(at); err != nil {
		return err
	} else if want, err := deviceNumber(p.Device); err != nil {
		return err
	} else if p.FileSystem != spec.Btrfs && device != want {
		return fmt.Errorf("something else is mounted over it at %s: unmount that first", from)
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("show what is mounted at %s read-only: %w", from, err)
	}
	return nil
}

// PointOf returns where a device's whole file system is mounted; where it is not, the
// error is [os.ErrNotExist].
func PointOf(device string) (string, error) {
	want, err := deviceNumber(device)
	if err != nil {
		return "", err
	}
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.root != "/" {
			continue
		}
		// btrfs has numbers of its own; the source is then the device's name.
		if source, err := deviceNumber(m.source); m.device == want || err == nil && source == want {
			return m.point, nil
		}
	}
	return "", fmt.Errorf("%s is not mounted: %w", device, os.ErrNotExist)
}

func deviceNumber(path string) (string, error) {
	var s unix.Stat_t
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("%q is no device", path)
	}
	if err := unix.Stat(path, &s); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if s.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is no block device", path)
	}
	return number(s.Rdev), nil
}

func deviceAt(path string) (string, error) {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return number(s.Dev), nil
}

func number(n uint64) string { return fmt.Sprintf("%d:%d", unix.Major(n), unix.Minor(n)) }
