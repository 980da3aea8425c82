// Package power ends the running kernel: reboot, power off, or another kernel.
// Everything is written out first. None of its functions returns but with an
// error, and all need a system whose file systems are unmounted already.
package power

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reboot starts the PC anew, through its firmware.
func Reboot() error { return end("reboot", unix.LINUX_REBOOT_CMD_RESTART) }

// PowerOff switches the PC off.
func PowerOff() error { return end("power off", unix.LINUX_REBOOT_CMD_POWER_OFF) }

// Kexec goes on with the kernel that was loaded by kexec_file_load(2).
func Kexec() error { return end("start the loaded kernel", unix.LINUX_REBOOT_CMD_KEXEC) }

// end is reboot(2). A kernel that cannot power a PC off halts it, which does
// not return either.
func end(what string, command int) error {
	unix.Sync()
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: the kernel went on", what)
}
