// Package hosts keeps what the boot server holds about each PC. So far that is
// its boot decision, which is a file in the TFTP root, once for every boot loader:
//
//	pxelinux.cfg/01-MAC -> remote.boot    Remote: the PC is reimaged
//	grub/grub.cfg-01-MAC -> remote.cfg
//	ipxe/01-MAC.ipxe -> remote.ipxe
//	no such file, or a link to default    Local: the PC boots its own disk
//
// Where the PC's profile has a way of its own to go on to the disk, these are links to
// remote.VALUE.boot and the like, and to local.VALUE.
//
// Each file changes in one atomic step, so that a PC which asks at that moment
// gets one decision or the other; it has one loader, and so reads one of them.
package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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
	// Mixed: a PC's cards, or its boot loaders, are told different things.
	Mixed Decision = "mixed"
	// Other: somebody has put a file of their own there.
	Other Decision = "other"
)

// ErrForeign: a PC's file is somebody's own.
var ErrForeign = errors.New("is a file of somebody's own")

// Decided returns a host's decision in the TFTP root.
func Decided(tftp string, host *spec.Host) (Decision, error) {
	var all Decision
	for _, mac := range host.MACs {
		for _, c := range choices(tftp, mac, spec.LocalBoot{}) {
			d, err := decided(tftp, c)
			if err != nil {
				return "", err
			}
			if all != "" && all != d {
				return Mixed, nil
			}
			all = d
		}
	}
	return all, nil
}

// choices are where a card's decision is: for every loader that has a folder
// there. pxelinux always counts.
func choices(tftp string, mac spec.MAC, own spec.LocalBoot) []bootfiles.Choice {
	all := bootfiles.Choices(mac, own)
	return slices.DeleteFunc(all, func(c bootfiles.Choice) bool {
		_, err := os.Stat(filepath.Join(tftp, filepath.Dir(c.Name)))
		return err != nil && c != all[0]
	})
}

func decided(tftp string, c bootfiles.Choice) (Decision, error) {
	name := filepath.Join(tftp, c.Name)
	target, err := os.Readlink(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Local, nil
	case err != nil:
		if info, gone := os.Lstat(name); gone == nil && info.Mode().IsRegular() {
			return Other, nil
		}
		return "", fmt.Errorf("boot decision: %w", err)
	case bootfiles.IsRemote(target):
		return Remote, nil
	case bootfiles.IsLocal(target):
		return Local, nil
	}
	return Other, nil
}

// Decide sets a host's decision for all its cards. own is as in [bootfiles.Choices]. A
// file of somebody's own is [ErrForeign], and then nothing is changed.
func Decide(tftp string, host *spec.Host, d Decision, own spec.LocalBoot) error {
	if d != Local && d != Remote {
		return fmt.Errorf("%q is no boot decision: write local or remote", d)
	}
	if info, err := os.Stat(filepath.Join(tftp, bootfiles.Folder)); err != nil || !info.IsDir() {
		return fmt.Errorf("%s has no folder %s: name the TFTP server's folder with --tftp", tftp, bootfiles.Folder)
	}
	var all []bootfiles.Choice
	for _, mac := range host.MACs {
		all = append(all, choices(tftp, mac, own)...)
	}
	for _, c := range all {
		if _, err := os.Stat(filepath.Join(tftp, c.Remote)); d == Remote && err != nil {
			return fmt.Errorf("there is nothing to boot from remote yet: run reassure publish: %w", err)
		}
		if _, err := os.Stat(filepath.Join(tftp, c.Local)); d == Local && err != nil {
			return fmt.Errorf("there is no text yet for this profile's local_boot: run reassure publish: %w", err)
		}
		now, err := decided(tftp, c)
		if err != nil {
			return err
		}
		if now == Other {
			return fmt.Errorf("%s %w: move it away", filepath.Join(tftp, c.Name), ErrForeign)
		}
	}
	for _, c := range all {
		if err := decide(tftp, c, d); err != nil {
			return fmt.Errorf("boot decision of %s: %w", host.Name, err)
		}
	}
	return nil
}

func decide(tftp string, c bootfiles.Choice, d Decision) error {
	name := filepath.Join(tftp, c.Name)
	to := c.Local
	if d == Remote {
		to = c.Remote
	}
	if to != "" {
		// Relative, for TFTP servers that see their folder as the root.
		to = filepath.Base(to)
		if now, err := os.Readlink(name); err == nil && now == to {
			return nil
		}
		return renameio.Symlink(to, name)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
