package qemutests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
	"reassure/image/tree"
)

// Judge says what a fault has left on a disk.
type Judge struct {
	// Dir is where disks are mounted meanwhile.
	Dir string
	// Old is the disk's file before the reimage, New one that a whole reimage has made of it.
	Old, New string
	// Root is the new system's root.
	Root spec.Placed
}

// Outcomes: all that a reimage may leave behind.
const (
	OldSystem = "old system"
	NoBoot    = "does not boot"
	NewSystem = "new system"
)

// madeAnew are the files that hold what is another after each reimage: identities of
// file systems, keys, and when it was.
var madeAnew = regexp.MustCompile(`^(etc/fstab|etc/ssh/ssh_host_.*|etc/reassure/.*|boot/grub/(grub.cfg|grubenv|i386-pc/(core.img|load.cfg)))$`)

// Outcome says what a PC would boot from a disk. What boots and is neither the old nor the
// new system, whole, is an error. A disk of another run than New's has a new
// system with identities, keys and times of its own.
func (j *Judge) Outcome(ctx context.Context, disk *Disk, otherRun bool) (string, error) {
	before := Disk{Size: disk.Size, path: j.Old}
	want, err := before.Sum()
	if err != nil {
		return "", err
	}
	switch got, err := disk.Sum(); {
	case err != nil:
		return "", err
	case got == want:
		return OldSystem, nil
	}
	boots, err := disk.Bootable()
	if err != nil || !boots {
		return NoBoot, err
	}
	differs, err := j.compare(ctx, disk.Path(), otherRun)
	if err != nil {
		return "", err
	}
	if differs != nil {
		return "", fmt.Errorf("THE DISK BOOTS, and what it boots is not whole: it was written to, and is not the new system: %w", differs)
	}
	return NewSystem, nil
}

// compare says in what a disk's boot code and root differ from the new system's, as the
// kernel would find them: with the journal replayed. Neither is changed. What each reimage
// makes anew counts only where own is false.
func (j *Judge) compare(ctx context.Context, disk string, own bool) (differs, err error) {
	// The boot sector and GRUB's core, up to the first partition.
	want, err := head(j.New, int64(j.Root.Start))
	if err != nil {
		return nil, err
	}
	got, err := head(disk, int64(j.Root.Start))
	if err != nil {
		return nil, err
	}
	if !own && !bytes.Equal(want, got) {
		return errors.New("boot sector, table or GRUB's core differ"), nil
	}
	dir, err := os.MkdirTemp(j.Dir, "compare")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var folders []string
	for i, from := range []string{j.New, disk} {
		image, folder := filepath.Join(dir, fmt.Sprint("disk", i)), filepath.Join(dir, fmt.Sprint("root", i))
		if err := CopyDisk(ctx, from, image); err != nil {
			return nil, err
		}
		if err := os.Mkdir(folder, 0o755); err != nil {
			return nil, err
		}
		options := fmt.Sprintf("loop,offset=%d,sizelimit=%d", j.Root.Start, j.Root.Length)
		if err := (command.Command{Args: []string{"mount", "-o", options, image, folder}, Timeout: time.Minute}).Run(ctx); err != nil {
			return fmt.Errorf("its root cannot be mounted: %w", err), nil
		}
		defer func() {
			err = errors.Join(err, command.Command{Args: []string{"umount", folder}, Timeout: time.Minute}.Run(context.WithoutCancel(ctx)))
		}()
		folders = append(folders, folder)
	}
	list, err := tree.Compare(folders[0], folders[1])
	if own {
		list = slices.DeleteFunc(list, func(d tree.Difference) bool { return d.What == "time" || madeAnew.MatchString(d.Path) })
	}
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return fmt.Errorf("%d differences, the first: %v", len(list), list[0]), nil
}

func head(file string, size int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, size))
}

// CopyDisk copies a disk's file, holes as holes.
func CopyDisk(ctx context.Context, from, to string) error {
	return command.Command{Args: []string{"cp", "--sparse=always", from, to}, Timeout: 10 * time.Minute}.Run(ctx)
}

// Moment is one of the moments at which power is cut in a reimage. The first and the last
// writes decide about what boots, the many between do not: n goes through all kinds.
func (w *Writes) Moment(n uint64, random *rand.Rand) int {
	all := len(w.Entries)
	switch n % 5 {
	case 0:
		return random.IntN(all + 1)
	case 1:
		return random.IntN(min(all, 60) + 1)
	case 2:
		return random.IntN(min(all, 3) + 1)
	case 3:
		return all - random.IntN(min(all, 200)+1)
	}
	return all - random.IntN(min(all, 6)+1)
}

// Rebuild makes of a disk as it was before what a power cut after request n leaves.
func (w *Writes) Rebuild(disk *Disk, n int, random *rand.Rand) error {
	f, err := os.OpenFile(disk.Path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(w.Replay(f, 0, w.Durable(n)), w.Cut(f, n, random), f.Close())
}
