// Package hosts keeps what the boot server holds about each PC. So far that is
// its boot decision, which is a file in the TFTP root, as pxelinux wants it:
//
//	pxelinux.cfg/01-MAC -> remote.boot    Remote: the PC is reimaged
//	no such file, or a link to default    Local: the PC boots its own disk
//
// Each file changes in one atomic step, so that a PC which asks at that moment
// gets one decision or the other.
package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"reassure/image/bootfiles"
	"reassure/image/spec"
)

// Decision is what a PC is told at power-on.
type Decision string

// Decisions. [Mixed] and [Other] are only found, never made.
const (
	Local  Decision = "local"
	Remote Decision = "remote"
	// Mixed: a PC's cards are told different things.
	Mixed Decision = "mixed"
	// Other: somebody has put a file of their own there.
	Other Decision = "other"
)

// ErrForeign: a PC's file in pxelinux.cfg is somebody's own.
var ErrForeign = errors.New("is a file of somebody's own")

// Decided returns a host's decision in the TFTP root.
func Decided(tftp string, host *spec.Host) (Decision, error) {
	var all Decision
	for _, mac := range host.MACs {
		d, err := decided(tftp, mac)
		if err != nil {
			return "", err
		}
		if all != "" && all != d {
			return Mixed, nil
		}
		all = d
	}
	return all, nil
}

func decided(tftp string, mac spec.MAC) (Decision, error) {
	target, err := os.Readlink(file(tftp, mac))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Local, nil
	case err != nil:
		if info, gone := os.Lstat(file(tftp, mac)); gone == nil && info.Mode().IsRegular() {
			return Other, nil
		}
		return "", fmt.Errorf("boot decision: %w", err)
	case target == bootfiles.Remote:
		return Remote, nil
	case target == bootfiles.Default:
		return Local, nil
	}
	return Other, nil
}

func file(tftp string, mac spec.MAC) string {
	return filepath.Join(tftp, bootfiles.Folder, mac.PXE())
}

// Decide sets a host's decision for all its cards. A file of somebody's own is
// [ErrForeign], and then nothing is changed.
func Decide(tftp string, host *spec.Host, d Decision) error {
	if d != Local && d != Remote {
		return fmt.Errorf("%q is no boot decision: write local or remote", d)
	}
	if info, err := os.Stat(filepath.Join(tftp, bootfiles.Folder)); err != nil || !info.IsDir() {
		return fmt.Errorf("%s has no folder %s: name the TFTP server's folder with --tftp", tftp, bootfiles.Folder)
	}
	if d == Remote {
		if _, err := os.Stat(filepath.Join(tftp, bootfiles.Folder, bootfiles.Remote)); err != nil {
			return fmt.Errorf("there is nothing to boot from remote yet: run reassure publish: %w", err)
		}
	}
	for _, mac := range host.MACs {
		now, err := decided(tftp, mac)
		if err != nil {
			return err
		}
		if now == Other {
			return fmt.Errorf("%s %w: move it away", file(tftp, mac), ErrForeign)
		}
	}
	for _, mac := range host.MACs {
		if err := decide(file(tftp, mac), d); err != nil {
			return fmt.Errorf("boot decision of %s: %w", host.Name, err)
		}
	}
	return nil
}

func decide(name string, d Decision) error {
	if d == Remote {
		// Relative, for TFTP servers that see their folder as the root.
		return renameio.Symlink(bootfiles.Remote, name)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
