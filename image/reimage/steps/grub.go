package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"reassure/image/spec"
)

// Where grub-install leaves what the reimager commits.
const (
	BootImage = "/boot/grub/i386-pc/boot.img"
	CoreImage = "/boot/grub/i386-pc/core.img"
)

// bootLoader puts GRUB's files in place: its own, a grub.cfg that boots every
// kernel there is, and the settings from which update-grub will later write it
// anew. It does not touch what makes the disk boot: that is the commit.
//
// grub.cfg is written here rather than by update-grub, which takes 12 s (it
// looks for other systems on every disk) and without udev names the root by its
// device.
func (r *runner) bootLoader(ctx context.Context, s *spec.BootLoader) error {
	kernels, err := r.kernels()
	if err != nil {
		return err
	}
	place := r.grubForBIOS
	if r.job.Firmware == spec.UEFI {
		place = r.grubForUEFI
	}
	if err := place(ctx); err != nil {
		return err
	}
	if err := r.write("/boot/grub/grub.cfg", r.grubConfig(s, kernels), 0o600, 0, 0); err != nil {
		return err
	}
	return r.grubDefaults(ctx, s)
}

func (r *runner) grubForBIOS(ctx context.Context) error {
	install := r.grubTool("install")
	if err := r.exec(ctx, nil, "", nil, install, "--target=i386-pc", "--no-bootsector", "--boot-directory=/boot", r.job.Disk); err != nil {
		return err
	}
	for _, f := range []string{BootImage, CoreImage} {
		if !r.has(f) {
			return fmt.Errorf("%s left no %s", install, f)
		}
	}
	return nil
}

// grubTool is the name of a program of GRUB's.
func (r *runner) grubTool(name string) string {
	if _, err := r.find("grub-" + name); err != nil {
		return "grub2-" + name
	}
	return "grub-" + name
}

// kernel is one that GRUB can boot, by file names below /boot.
type kernel struct{ version, file, initrd string }

// kernels finds them as grub-mkconfig does (10_linux.in), the newest first.
func (t tree) kernels() ([]kernel, error) {
	entries, err := os.ReadDir(t.at("/boot"))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	var kernels []kernel
	for name := range names {
		var version string
		switch {
		case strings.HasSuffix(name, ".old"), strings.HasSuffix(name, ".dpkg-new"), strings.HasSuffix(name, ".dpkg-tmp"):
			continue
		case strings.HasPrefix(name, "vmlinuz-"), strings.HasPrefix(name, "kernel-"):
			_, version, _ = strings.Cut(name, "-")
		case name == "vmlinuz" || name == "bzImage" || name == "kernel":
		default:
			continue
		}
		if info, err := os.Stat(t.at(path.Join("/boot", name))); err != nil || !info.Mode().IsRegular() {
			continue
		}
		k := kernel{version: version, file: name}
		for _, initrd := range []string{
			"initrd.img-" + version, "initrd-" + version + ".img", "initramfs-" + version + ".img", "initrd-" + version, "initramfs-" + strings.TrimPrefix(name, "kernel-"),
			"initramfs-genkernel-" + version, "initramfs-genkernel-x86_64-" + version, "initramfs-" + version,
		} {
			if version != "" && names[initrd] || version == "" && names["initrd.img"] {
				k.initrd = initrd
				if version == "" {
					k.initrd = "initrd.img"
				}
				break
			}
		}
		kernels = append(kernels, k)
	}
	if len(kernels) == 0 {
		return nil, errors.New("there is no kernel in /boot: its wad holds none (vmlinuz-*, kernel-* or bzImage)")
	}
	slices.SortFunc(kernels, func(a, b kernel) int {
		// Where two have the same version, or none, the name that people link to
		// their choice, vmlinuz, comes first.
		return -cmp.Or(compareVersions(a.version, b.version), strings.Compare(a.file, b.file))
	})
	return kernels, nil
}

// compareVersions orders versions as people do: runs of digits by their value,
// and what is not released yet before its release (grub-mkconfig_lib's
// version_sort). genkernel's prefix, which ends in the PC's kind, is no part of
// a version.
func compareVersions(a, b string) int {
	early := strings.NewReplacer("-rc", "~rc", "_rc", "~rc", ".rc", "~rc", "-pre", "~pre", "_pre", "~pre", ".pre", "~pre")
	a, b = early.Replace(withoutGenkernel(a)), early.Replace(withoutGenkernel(b))
	for a != "" || b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if c := cmp.Compare(rank(a), rank(b)); c != 0 {
			return c
		}
		a, b = a[1:], b[1:]
	}
	return 0
}

// rank orders versions by their first byte: ~ comes before the end, and the end
// before all else.
func rank(s string) int {
	switch {
	case s == "":
		return 0
	case s[0] == '~':
		return -1
	}
	return int(s[0])
}

func withoutGenkernel(version string) string {
	if rest, ok := strings.CutPrefix(version, "genkernel-"); ok {
		if _, version, ok := strings.Cut(rest, "-"); ok {
			return version
		}
	}
	return version
}

func digits(s string) int {
	return len(s) - len(strings.TrimLeft(s, "0123456789"))
}

// grubConfig writes a grub.cfg.
func (r *runner) grubConfig(s *spec.BootLoader, kernels []kernel) string {
	var b strings.Builder
	b.WriteString("# Written by ReAssure for the first boot; update-grub writes it anew.\n")
	modules := []string{"part_msdos", "ext2"}
	if r.job.Table == spec.GPT {
		modules[0] = "part_gpt"
	}
	switch r.job.BootFS {
	case spec.XFS, spec.Btrfs:
		modules[1] = r.job.BootFS
	case spec.VFAT:
		modules[1] = "fat"
	}
	if r.job.Firmware == spec.UEFI {
		modules = append(modules, "all_video") // without it GRUB's linux warns that there is no console
	}
	for _, m := range modules {
		fmt.Fprintf(&b, "insmod %s\n", m)
	}
	if s.Serial != nil {
		fmt.Fprintf(&b, "serial --unit=%d --speed=115200\nterminal_input console serial\nterminal_output console serial\n", *s.Serial)
	}
	fmt.Fprintf(&b, "set default=0\nset timeout=%d\nsearch --no-floppy --fs-uuid --set=root %s\n", seconds(s.Menu), r.job.BootUUID)
	title := r.osName()
	for _, k := range kernels {
		name := title
		if k.version != "" {
			name += ", Linux " + k.version
		}
		// The kernel by itself knows PARTUUID only; UUID takes an initramfs.
		root := "root=PARTUUID=" + r.job.RootPartUUID
		if k.initrd != "" {
			root = "root=UUID=" + r.job.RootUUID
		}
		fmt.Fprintf(&b, "\nmenuentry '%s' {\n\tlinux %s/%s %s\n", name, r.job.BootPath, k.file, strings.TrimSpace(root+" ro "+s.CommandLine))
		if k.initrd != "" {
			fmt.Fprintf(&b, "\tinitrd %s/%s\n", r.job.BootPath, k.initrd)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func seconds(d spec.Duration) int { return int(time.Duration(d).Round(time.Second) / time.Second) }

// osName is what os-release(5) calls the system, without what grub.cfg would
// take for something else.
func (t tree) osName() string {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := t.read(p)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				return strings.Map(func(c rune) rune {
					if c < ' ' || strings.ContainsRune(`'"\$`, c) {
						return -1
					}
					return c
				}, v)
			}
		}
	}
	return "Linux"
}

// grubDefaults sets in /etc/default/grub what grub.cfg has, for update-grub.
func (r *runner) grubDefaults(ctx context.Context, s *spec.BootLoader) error {
	const file = "/etc/default/grub"
	settings := [][2]string{
		{"GRUB_CMDLINE_LINUX_DEFAULT", ""},
		{"GRUB_CMDLINE_LINUX", s.CommandLine},
		{"GRUB_TIMEOUT", strconv.Itoa(seconds(s.Menu))},
		{"GRUB_DISABLE_OS_PROBER", "true"},
	}
	if s.Serial != nil {
		settings = append(settings, [2]string{"GRUB_TERMINAL", "console serial"},
			[2]string{"GRUB_SERIAL_COMMAND", fmt.Sprintf("serial --unit=%d --speed=115200", *s.Serial)})
	}
	for _, kv := range settings {
		if err := r.setVariable(file, kv[0], kv[1]); err != nil {
			return err
		}
	}
	// Otherwise the next upgrade of Debian's grub-pc asks which disk it is for; and
	// that of its grub-efi-amd64 puts the disk before the network, and leaves the
	// removable-media path as it was.
	answers := "grub-pc grub-pc/install_devices multiselect " + r.job.Disk + "\n"
	if r.job.Firmware == spec.UEFI {
		answers = "grub-efi-amd64 grub2/update_nvram boolean false\ngrub-efi-amd64 grub2/force_efi_extra_removable boolean true\n"
	}
	if _, err := r.find("debconf-set-selections"); err == nil {
		return r.exec(ctx, nil, answers, nil, "debconf-set-selections")
	}
	return nil
}
