package tree

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Attributes that the kernel itself keeps ACLs and labels in.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	selinux    = "security.selinux"
)

// describe gives an open file or directory, whose state is st, its metadata.
// The order matters: chown clears setuid bits and capabilities, chmod changes
// an ACL's mask, and all of them change what the kernel does next but not the
// time of the last change, which still comes last in case a file system differs.
func describe(fd int, st *unix.Stat_t, e *Entry) error {
	chowned := st.Uid != e.UID || st.Gid != e.GID
	if chowned {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err)
		}
	}
	if st.Mode&0o7777 != e.Mode || chowned && e.Mode&0o6000 != 0 {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return fmt.Errorf("set mode %04o: %w", e.Mode, err)
		}
	}
	for attr, value := range e.Xattrs {
		if err := setXattr(unix.Fsetxattr, fd, attr, value); err != nil {
			return err
		}
	}
	return setTime(fd, e)
}

// describeName does the same for an entry that cannot be opened, or better is not.
func describeName(at name, e *Entry) error {
	dir := at.folder.fd
	if !at.folder.fat {
		if err := unix.Fchownat(dir, at.base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err)
		}
		if e.Kind != Symlink {
			// It is ours and no link, so following does no harm.
			if err := unix.Fchmodat(dir, at.base, e.Mode, 0); err != nil {
				return fmt.Errorf("set mode %04o: %w", e.Mode, err)
			}
		}
		for attr, value := range e.Xattrs {
			if err := setXattr(unix.Lsetxattr, proc(dir)+"/"+at.base, attr, value); err != nil {
				return err
			}
		}
	}
	times, err := timesOf(e)
	if err != nil || times == nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir, at.base, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time %v: %w", e.ModTime, err)
	}
	return nil
}

func setXattr[T int | string](set func(T, string, []byte, int) error, file T, attr string, value []byte) error {
	err := set(file, attr, value, 0)
	switch {
	case err == nil:
		return nil
	case attr == selinux && errors.Is(err, unix.EOPNOTSUPP):
		return nil // a file system without labels is labelled by its mount
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("set attribute %s: %w: make a file system that holds it, such as ext4", attr, err)
	}
	return fmt.Errorf("set attribute %s: %w", attr, err)
}

// disinherit removes the ACL that a new entry got from its folder: an archive
// says all of an entry's permissions. The caller holds mu.
func (w *Writer) disinherit(at name, directory bool) error {
	if !at.folder.inherits {
		return nil
	}
	path := proc(at.folder.fd) + "/" + at.base
	if err := unix.Lremovexattr(path, aclAccess); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove the inherited ACL: %w", err)
	}
	if !directory {
		return nil
	}
	if err := unix.Lremovexattr(path, aclDefault); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove the inherited default ACL: %w", err)
	}
	return nil
}

func timesOf(e *Entry) (*[2]unix.Timespec, error) {
	if e.ModTime.IsZero() {
		return nil, nil
	}
	modified, err := unix.TimeToTimespec(e.ModTime)
	if err != nil {
		return nil, fmt.Errorf("set time %v: %w", e.ModTime, err)
	}
	return &[2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, modified}, nil
}

func setTime(fd int, e *Entry) error {
	times, err := timesOf(e)
	if err != nil || times == nil {
		return err
	}
	if err := setTimes(fd, times); err != nil {
		return fmt.Errorf("set time %v: %w", e.ModTime, err)
	}
	return nil
}

// setTimes sets an open file's times.
func setTimes(fd int, times *[2]unix.Timespec) error {
	// utimensat(2): no path means the descriptor itself. x/sys has no call for it.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
