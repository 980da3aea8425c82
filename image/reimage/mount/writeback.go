package mount

import (
	"fmt"
	"os"
	"strconv"

	"reassure/image/spec"
)

// Writeback has the kernel write to disks from 64 MiB of dirty memory on. By itself
// it keeps back a tenth of the memory, so that on a PC with 16 GiB the disk would be
// idle until most wads are decompressed (Linux, admin-guide/sysctl/vm.rst,
// dirty_background_bytes).
func Writeback() error {
	const background = 64 * spec.MiB
	if err := os.WriteFile("/proc/sys/vm/dirty_background_bytes", []byte(strconv.FormatUint(uint64(background), 10)), 0); err != nil {
		return fmt.Errorf("have the kernel write early: %w: the disk idles at first", err)
	}
	return nil
}
