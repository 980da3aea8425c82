package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// nodeDeadline is how long the kernel may take to show new partitions.
const nodeDeadline = 20 * time.Second

// isDevice says whether the target is a block device; tests use regular files,
// of which the kernel knows no partitions.
func (t *Target) isDevice() (bool, error) {
	info, err := t.f.Stat()
	if err != nil {
		return false, err
	}
	return info.Mode()&os.ModeDevice != 0, nil
}

// tellKernel has the kernel read the new table. BLKRRPART does it in one go,
// and is refused while anything has a partition open, if only for a moment:
// then each partition is taken away and added by BLKPG.
func (t *Target) tellKernel() error {
	if device, err := t.isDevice(); err != nil || !device {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), unix.BLKRRPART, 0)
	if errno == 0 {
		return nil
	}
	if err := t.tellEach(); err != nil {
		return fmt.Errorf("%s: the kernel does not take the new partition table: %w; %w", t.plan.Disk, errno, err)
	}
	return nil
}

// Operations of BLKPG, and its arguments (include/uapi/linux/blkpg.h).
const (
	blkpgAdd = 1
	blkpgDel = 2
)

type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [64]byte // names, which the kernel does not read
	_             [64]byte
	_             [4]byte
}

type blkpgArgument struct {
	operation, flags, length int32
	_                        [4]byte
	data                     unsafe.Pointer
}

func (t *Target) blkpg(operation int32, p blkpgPartition) error {
	argument := blkpgArgument{operation: operation, length: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&argument)))
	if errno != 0 {
		return fmt.Errorf("partition %d: %w", p.number, errno)
	}
	return nil
}

func (t *Target) tellEach() error {
	old, err := filepath.Glob(filepath.Join("/sys/class/block", filepath.Base(t.plan.Disk.Device), "*", "partition"))
	if err != nil {
		return err
	}
	for _, name := range old {
		number, err := readNumber(name)
		if err != nil {
			return err
		}
		if err := t.blkpg(blkpgDel, blkpgPartition{number: int32(number)}); err != nil && !errors.Is(err, unix.ENXIO) {
			return err
		}
	}
	for _, p := range t.plan.Partitions {
		if err := t.blkpg(blkpgAdd, blkpgPartition{start: int64(p.Start), length: int64(p.Length), number: int32(p.Number)}); err != nil {
			return err
		}
	}
	return nil
}

// waitForNodes waits until the kernel shows every partition of the plan, in the
// right place, and its device is there.
func (t *Target) waitForNodes() error {
	if device, err := t.isDevice(); err != nil || !device {
		return err
	}
	deadline := time.Now().Add(nodeDeadline)
	for _, p := range t.plan.Partitions {
		for {
			err := shown(p)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the kernel does not show partition %s (%s): %w", p.Name, p.Device, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// shown says whether sysfs and /dev show a partition as the plan has it.
func shown(p spec.Placed) error {
	for name, want := range map[string]uint64{"start": p.Start, "size": p.Length} {
		units, err := readNumber(filepath.Join("/sys/class/block", filepath.Base(p.Device), name))
		if err != nil {
			return err
		}
		// sysfs counts in units of 512 bytes, whatever the disk's sectors are.
		if units*512 != want {
			return fmt.Errorf("its %s is %d bytes, not %d", name, units*512, want)
		}
	}
	_, err := os.Stat(p.Device)
	return err
}

func readNumber(file string) (uint64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 54)
}

// forget drops what the kernel has cached of the disk, so that the next read
// comes from the disk itself.
func (t *Target) forget() error {
	if device, err := t.isDevice(); err != nil || !device {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), unix.BLKFLSBUF, 0); errno != 0 {
		return fmt.Errorf("flush the buffers of %s: %w", t.plan.Disk, errno)
	}
	return nil
}
