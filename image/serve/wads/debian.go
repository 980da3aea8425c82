package wads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reassure/image/command"
)

// DebianOptions are those of [Debian]. The zero value makes a small system of
// the current stable Debian.
type DebianOptions struct {
	// Suite is Debian's release; empty means bookworm.
	Suite string
	// Mirrors are where the packages come from: addresses, or lines of
	// sources.list(5). None means Debian's own, with security and updates.
	Mirrors []string
	// Packages are those that the system gets besides what it needs to boot.
	Packages []string
	// Kernel is the kernel's package; empty means linux-image-amd64.
	Kernel string
	// Recommends installs what packages recommend, too.
	Recommends bool
	// Hooks are shell commands that change the tree before it is packed; its
	// folder is $1.
	Hooks []string
	// Cache is a folder that keeps packages for the next time; empty keeps none. It
	// needs root: in a user namespace apt is somebody else.
	Cache string
	// Temp is where the tree is made; empty means the usual folder.
	Temp string
	// Progress gets what the tools say; nil drops it.
	Progress io.Writer
	Log      *slog.Logger
}

// debianKernel and debianBase are what a wad needs to be reimaged onto a PC by a profile such
// as templates/profiles/debian.yaml, and to boot there: a kernel, GRUB for a BIOS and for
// UEFI, there with what Secure Boot asks for, an init,
// the network as our templates configure it, and a way in.
const debianKernel, debianBase = "linux-image-amd64", "grub-pc grub-efi-amd64-bin grub-efi-amd64-signed shim-signed openssh-server systemd-sysv udev ifupdown iproute2"

// DebianBase returns the packages that every wad of Debian has besides a kernel
// and what Debian itself calls required.
func DebianBase() []string { return strings.Fields(debianBase) }

const (
	// grub-pc asks which disk it may write to; its answer here must be: none.
	// The reimager installs the boot loader, on the PC.
	grubAnswers = `printf '%s\n' 'grub-pc grub-pc/install_devices multiselect' 'grub-pc grub-pc/install_devices_empty boolean true' | chroot "$1" debconf-set-selections`

	// What packages made that must differ from PC to PC, and what was this
	// machine's. An empty machine-id has systemd make one (machine-id(5)).
	noIdentity = `rm -f "$1"/etc/ssh/ssh_host_*key "$1"/etc/ssh/ssh_host_*key.pub "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/lib/dbus/machine-id "$1"/var/lib/systemd/random-seed && : >"$1"/etc/machine-id`

	// Lists of packages are fetched anew; logs are of the making.
	trim = `rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/ldconfig/aux-cache "$1"/var/log/bootstrap.log "$1"/var/log/dpkg.log "$1"/var/log/alternatives.log "$1"/var/log/apt/*`
)

// Debian makes a system of Debian's packages that boots, by mmdebstrap, and has
// it packed. It needs root, or what mmdebstrap needs without (its mode unshare).
func Debian(ctx context.Context, o DebianOptions, pack Pack) (err error) {
	// mmdebstrap makes its tree there; whatever becomes of it, the folder goes.
	temp, err := os.MkdirTemp(o.Temp, "reassure-wad-")
	if err != nil {
		return fmt.Errorf("folder for the tree: %w: name another with TMPDIR", err)
	}
	// apt's own user reads its packages there.
	if err := os.Chmod(temp, 0o755); err != nil {
		return fmt.Errorf("folder for the tree: %w", err)
	}
	defer func() {
		if gone := remove(temp); gone != nil {
			err = errors.Join(err, fmt.Errorf("something is left in %s: %w: remove it by hand", temp, gone))
		}
	}()
	args, err := o.arguments()
	if err != nil {
		return err
	}
	c := command.Command{
		Args: args, Env: append(os.Environ(), "TMPDIR="+temp, "LC_ALL=C",
			// mmdebstrap's own options for tar leave ACLs out.
			"TAR_OPTIONS=--acls --xattrs --xattrs-include=*"),
		Stderr: o.Progress, Grace: time.Minute, Log: quiet(o.Log),
	}
	err = stream(ctx, c, nil, pack)
	var failed *command.Error
	if !errors.As(err, &failed) || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, command.ErrNotFound) {
		return errors.New("a wad of Debian is made by mmdebstrap, which is not installed here: apt-get install mmdebstrap")
	}
	remedy := "see that the suite and the packages exist there; --mirror names another mirror, --verbose shows what the tools say"
	if os.Getuid() != 0 {
		remedy = "run it as root, or have mmdebstrap do without: apt-get install uidmap, and a range of yours in /etc/subuid and /etc/subgid"
	}
	// Without its arguments, which are long and say nothing.
	return fmt.Errorf("mmdebstrap: %w: %s: %s", failed.Err, failed.Stderr, remedy)
}

// remove removes a folder, but never through a mount: mmdebstrap has the machine's
// own /dev in its tree, in a mount namespace of its own, for as long as it runs.
func remove(folder string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], folder+"/") { // proc_pid_mountinfo(5)
			return fmt.Errorf("something is mounted on %s", f[4])
		}
	}
	return os.RemoveAll(folder)
}

func (o *DebianOptions) arguments() ([]string, error) {
	suite, kernel := o.Suite, o.Kernel
	if suite == "" {
		suite = "bookworm"
	}
	if kernel == "" {
		kernel = debianKernel
	}
	mode := "root"
	if os.Getuid() != 0 {
		mode = "unshare"
	}
	packages := append(append([]string{kernel}, DebianBase()...), o.Packages...)
	for _, p := range packages {
		// mmdebstrap's --include takes apt's patterns and files, too.
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.:=/~") != "" || strings.HasPrefix(p, "-") || strings.HasPrefix(p, "/") {
			return nil, fmt.Errorf("%q is no name of a package", p)
		}
	}
	for _, s := range append([]string{suite}, o.Mirrors...) {
		if s == "" || s == "-" || strings.HasPrefix(s, "-") {
			return nil, fmt.Errorf("%q is neither a suite nor a mirror", s)
		}
	}
	args := []string{
		"mmdebstrap", "--mode=" + mode, "--variant=minbase", "--format=tar",
		// Our hooks do that, and a person's come after them.
		"--skip=cleanup/reproducible",
		"--include=" + strings.Join(packages, ","),
		"--essential-hook=" + grubAnswers,
	}
	if o.Recommends {
		// For this run only: the system itself keeps apt's own default.
		args = append(args, `--aptopt=Apt::Install-Recommends "true"`)
	}
	if o.Cache != "" && mode != "root" {
		return nil, errors.New("a cache of packages needs root: leave it out, or name a proxy for apt in http_proxy")
	}
	if o.Cache != "" {
		cache, err := filepath.Abs(o.Cache)
		if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		// mmdebstrap(1), EXAMPLES: the hooks that keep packages. Copies, not the
		// folder itself: apt removes what it does not want.
		kept := command.Quote([]string{cache})
		args = append(args, "--skip=essential/unlink",
			`--setup-hook=mkdir -p "$1"/var/cache/apt/archives && find `+kept+` -maxdepth 1 -name '*.deb' -exec cp -t "$1"/var/cache/apt/archives {} +`,
			`--customize-hook=find "$1"/var/cache/apt/archives -maxdepth 1 -name '*.deb' -exec cp -u -t `+kept+` {} + ; rm -f "$1"/var/cache/apt/archives/*.deb`)
	}
	args = append(args, "--customize-hook="+noIdentity, "--customize-hook="+trim)
	for _, h := range o.Hooks {
		args = append(args, "--customize-hook="+h)
	}
	return append(append(args, suite, "-"), o.Mirrors...), nil
}
