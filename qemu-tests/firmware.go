package qemutests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"reassure/image/command"
)

// Kind is what firmware a PC has.
type Kind string

// Kinds.
const (
	// UEFI is OVMF without Secure Boot.
	UEFI Kind = "UEFI"
	// SecureBoot is OVMF with Secure Boot on, and with the keys that PCs are sold
	// with, Microsoft's, and no others.
	SecureBoot Kind = "Secure Boot"
	// OwnKey is OVMF with Secure Boot on, and with one key alone: the one in Debian's
	// package, whose private half is there, too. See [Firmware.Identity].
	OwnKey Kind = "Secure Boot with a site's key"
)

// Firmware is a PC's UEFI, as a test wants it. Its variables, among them the boot
// order, are a file that outlives the PC's being switched off, as a [Disk] is. A PC
// without one has a BIOS.
type Firmware struct {
	Kind Kind // empty means UEFI
	// OwnOrder has the firmware go by the boot order in its variables alone.
	// Without it the emulator tells it at every power-on to take the network first,
	// then the disks one after the other, and OVMF writes that into its variables.
	OwnOrder bool
	// HTTPBoot has the firmware boot by HTTP and not by PXE.
	HTTPBoot bool

	variables string
}

// Variables is the file with the firmware's variables (as virt-fw-vars and OVMF
// have them), once the PC was switched on.
func (f *Firmware) Variables() string { return f.variables }

// ovmf is where Debian's package has the firmware.
const ovmf = "/usr/share/OVMF"

// files are the firmware's code, and the variables that it begins with.
func (f *Firmware) files() (code, variables string) {
	suffix := ".fd"
	switch f.Kind {
	case SecureBoot:
		suffix = ".ms.fd"
	case OwnKey:
		suffix = ".snakeoil.fd"
	}
	return filepath.Join(ovmf, "OVMF_CODE_4M"+suffix), filepath.Join(ovmf, "OVMF_VARS_4M"+suffix)
}

// secure says whether Secure Boot is on.
func (f *Firmware) secure() bool { return f != nil && (f.Kind == SecureBoot || f.Kind == OwnKey) }

// Identity writes the key and the certificate of [OwnKey] into a folder, as PEM files.
func Identity(ctx context.Context, dir string) (key, cert string, err error) {
	key, cert = filepath.Join(dir, "secureboot.key"), "/usr/share/ovmf/PkKek-1-snakeoil.pem"
	args := []string{"openssl", "pkey", "-in", "/usr/share/ovmf/PkKek-1-snakeoil.key", "-passin", "pass:snakeoil", "-out", key}
	if err := (command.Command{Args: args}).Run(ctx); err != nil {
		return "", "", fmt.Errorf("key of Debian's firmware: %w", err)
	}
	return key, cert, nil
}

// make makes the file of its variables in a folder, unless there is one.
func (f *Firmware) make(dir string) error {
	if f.variables != "" {
		return nil
	}
	_, from := f.files()
	to := filepath.Join(dir, "variables.fd")
	err := copyFile(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: apt-get install ovmf", err)
	}
	if err != nil {
		return fmt.Errorf("firmware: %w", errors.Join(err, os.RemoveAll(to)))
	}
	f.variables = to
	return nil
}

// processors is how many a PC has that is not given a number. Without KVM, OVMF in
// system management mode waits for a second one at every variable that it writes,
// for a minute in all.
func (f *Firmware) processors() int {
	if f.secure() {
		return 1
	}
	return 2
}

// arguments are the emulator's; nil is a BIOS. IPv6 is off in the firmware's set-up,
// as our README asks for: it would wait for an address at every power-on.
func (f *Firmware) arguments() []string {
	if f == nil {
		return []string{"-machine", "pc"}
	}
	code, _ := f.files()
	args := []string{"-machine", "q35", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n"}
	if f.HTTPBoot {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
	}
	if f.secure() {
		// Only code in system management mode may write the variables: without that
		// OVMF does not start.
		args[1] += ",smm=on"
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	return append(args,
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
		"-drive", "if=pflash,unit=1,format=raw,file="+f.variables)
}

// card is the network card's model as the emulator is told it. OVMF has a driver
// for virtio cards of its own, and the boot ROM that QEMU would give them is an
// iPXE that nobody signed: where it is there, shim fails. Other cards have nothing else.
func (f *Firmware) card(model string) string {
	if f != nil && strings.HasPrefix(model, "virtio-net") {
		model += ",romfile="
	}
	return model
}

// EFISystem fills a disk with the least that can be called a system for UEFI, signed
// as Debian's is: a table, and an EFI system partition with shim and GRUB where
// firmware looks without being told (UEFI Specification 2.10, section 3.5.1.1). It
// says own on the console and switches the PC off.
func EFISystem(own string) func(*os.File) error {
	return func(f *os.File) error {
		config := f.Name() + ".grub.cfg"
		if err := os.WriteFile(config, []byte("echo \""+own+"\"\nsleep 1\nhalt\n"), 0o644); err != nil {
			return err
		}
		partition := f.Name() + "@@1M" // as mtools write an offset
		for _, args := range [][]string{
			{"sgdisk", "--new=1:2048:0", "--typecode=1:ef00", f.Name()},
			{"mformat", "-i", partition, "-F", "-T", strconv.Itoa(48 << 11), "-h", "64", "-s", "32", "::"},
			{"mmd", "-i", partition, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"},
			{"mcopy", "-i", partition, "/usr/lib/shim/shimx64.efi.signed", "::/EFI/BOOT/BOOTX64.EFI"},
			{"mcopy", "-i", partition, "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "::/EFI/BOOT/grubx64.efi"},
			{"mcopy", "-i", partition, config, "::/EFI/debian/grub.cfg"},
		} {
			if err := (command.Command{Args: args, Timeout: time.Minute}).Run(context.Background()); err != nil {
				return err
			}
		}
		return nil
	}
}
