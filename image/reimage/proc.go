package reimage

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// peakMemory is the most memory that this process has had resident (VmHWM of
// proc_pid_status(5)).
func peakMemory() spec.Size {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 10, 54)
			return spec.Size(n) * spec.KiB
		}
	}
	return 0
}

// CheckImage refuses to work from an image that did not arrive whole, or that
// belongs to another kernel.
func CheckImage(info spec.ImageInfoFile) error {
	if _, err := os.Stat(spec.ImageComplete); err != nil {
		return fmt.Errorf("the image is not whole: the kernel had no room to unpack it. This PC needs more memory, or the smaller image (make image FLAVOUR=vm): %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	if release := unix.ByteSliceToString(name.Release[:]); release != info.Kernel {
		return fmt.Errorf("the kernel is %s but the image was made for %s: bzImage and initramfs.cpio.zst in the TFTP root do not belong together; copy both again", release, info.Kernel)
	}
	return nil
}
