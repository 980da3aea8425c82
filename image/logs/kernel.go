package logs

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OpenKmsg opens the kernel log for [NewKmsg], and asks the kernel not to
// limit how much is written to it (Documentation/admin-guide/sysctl/kernel.rst,
// printk_devkmsg), which it refuses when its command line says otherwise.
func OpenKmsg() (*os.File, error) {
	_ = os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0) // it is only a wish
	return os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
}

// Uptime is how long ago the kernel started; it is meant for [Options].Since.
func Uptime() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
