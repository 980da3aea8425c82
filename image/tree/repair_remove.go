package tree

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxDepth is how deep removeAll goes down. A folder below is first moved up:
// users can nest folders far deeper than files can be open.
const maxDepth = 64

// removeAll removes a name from an open folder, with all below, whatever users
// did to prevent that. It enters no other file system. A name that is not there
// is fine.
func removeAll(folder int, base string) error {
	done, err := removeOne(folder, base)
	if err != nil || done {
		return err
	}
	fd, err := openToRemove(folder, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	d := &demolition{top: fd}
	if err := d.empty(fd, 1); err != nil {
		return err
	}
	return unlink(folder, base, unix.AT_REMOVEDIR)
}

// demolition is the removal of one folder.
type demolition struct {
	top   int
	moved int // folders that were moved into top
}

// empty removes all that is in an open folder.
func (d *demolition) empty(fd, depth int) error {
	buf := make([]byte, 16<<10)
	// Reading goes on while names vanish; a file system may then skip some, so
	// it ends only when a whole reading finds none.
	for found := true; found; {
		found = false
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return err
		}
		for {
			n, err := again(func() (int, error) { return unix.Getdents(fd, buf) })
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			for _, name := range parseNames(buf[:n], nil) {
				found = true
				if err := d.remove(fd, name.name, depth); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (d *demolition) remove(fd int, base string, depth int) error {
	done, err := removeOne(fd, base)
	if err != nil || done {
		return err
	}
	if depth >= maxDepth {
		return d.lift(fd, base)
	}
	below, err := openToRemove(fd, base)
	if err != nil {
		return err
	}
	err = d.empty(below, depth+1)
	unix.Close(below)
	if err != nil {
		return err
	}
	return unlink(fd, base, unix.AT_REMOVEDIR)
}

// lift moves a folder to the top.
func (d *demolition) lift(fd int, base string) error {
	for {
		d.moved++
		name := strconv.Itoa(d.moved)
		err := unix.Renameat2(fd, base, d.top, name, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EPERM) {
			if err := unlockNames(fd, base); err != nil {
				return err
			}
			err = unix.Renameat2(fd, base, d.top, name, unix.RENAME_NOREPLACE)
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return fmt.Errorf("move %q up, which is nested too deep: %w", base, err)
		}
		return nil
	}
}

// removeOne removes a name that is no folder, or an empty one; false means that
// it is a folder with something in it.
func removeOne(folder int, base string) (bool, error) {
	err := unlink(folder, base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unlink(folder, base, unix.AT_REMOVEDIR)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return false, nil
	}
	return false, err
}

// unlink removes a name; flags that forbid it are cleared.
func unlink(folder int, base string, how int) error {
	err := unix.Unlinkat(folder, base, how)
	if errors.Is(err, unix.EPERM) {
		if err := unlockNames(folder, base); err != nil {
			return err
		}
		err = unix.Unlinkat(folder, base, how)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove %q: %w", base, ErrMounted)
	}
	if err != nil {
		return fmt.Errorf("remove %q: %w", base, err)
	}
	return nil
}

// unlockNames clears the flags of a folder and of what a name in it is.
func unlockNames(folder int, base string) error {
	// The descriptor of the folder may be one for paths only.
	fd, err := openIn(folder, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = clearFlags(fd)
	unix.Close(fd)
	if err != nil {
		return err
	}
	st, err := stat(folder, base)
	if err != nil || st.kind != Regular && st.kind != Directory {
		return err
	}
	if fd, err = openIn(folder, base, unix.O_RDONLY); err != nil {
		return err
	}
	defer unix.Close(fd)
	return clearFlags(fd)
}

// openToRemove opens a folder of the same file system.
func openToRemove(folder int, base string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := again(func() (int, error) { return unix.Openat2(folder, base, &how) })
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("enter %q: %w", base, ErrMounted)
	}
	return fd, err
}
