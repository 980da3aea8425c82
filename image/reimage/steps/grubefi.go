package steps

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// Where Debian and those after it have what UEFI starts with Secure Boot on, and
// where GRUB has its modules.
const (
	signedShim    = "/usr/lib/shim/shimx64.efi.signed"
	signedManager = "/usr/lib/shim/mmx64.efi.signed" // for keys of the owner's
	signedGRUB    = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
	modulesEFI    = "/usr/lib/grub/x86_64-efi"
)

// vendorFolder is what a signed GRUB was built with as the place of its grub.cfg.
var vendorFolder = regexp.MustCompile(`/EFI/([A-Za-z0-9._-]+)\x00`)

// grubForUEFI puts on the EFI system partition what firmware starts from the
// removable-media path: shim and the GRUB that Debian signed, where the wad has both,
// else a GRUB that is made here, which nobody signed. They are in the place of the
// partition, which is not mounted: see image/reimage/esp.
//
// grub-install does neither: it wants the partition mounted and writes there under
// final names, and with --no-nvram it still puts shim's fbx64.efi beside the loader, which at
// the next start makes a boot entry of its own, before the network's.
func (r *runner) grubForUEFI(ctx context.Context) error {
	if r.job.ESP == "" {
		return fmt.Errorf("the layout has no mounted partition of type esp for it")
	}
	boot, err := r.efiFolder()
	if err != nil {
		return err
	}
	if err := r.copyModules(); err != nil {
		return err
	}
	early := fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s/grub\n", r.job.BootUUID, r.job.BootPath)
	if !r.has(signedShim) || !r.has(signedGRUB) {
		return r.makeGRUB(ctx, path.Join(boot, "BOOTX64.EFI"), early)
	}
	grub, err := r.read(signedGRUB)
	if err != nil {
		return err
	}
	vendor := vendorFolder.FindStringSubmatch(grub)
	if vendor == nil {
		return fmt.Errorf("%s does not say where it looks for its grub.cfg: leave it out of the wad, for a GRUB that nobody signed", signedGRUB)
	}
	if err := r.write(path.Join(path.Dir(boot), vendor[1], "grub.cfg"), early+"configfile $prefix/grub.cfg\n", 0o600, 0, 0); err != nil {
		return err
	}
	for _, f := range [][2]string{{signedGRUB, "grubx64.efi"}, {signedManager, "mmx64.efi"}, {signedShim, "BOOTX64.EFI"}} {
		if f[0] == signedManager && !r.has(f[0]) {
			continue
		}
		if err := r.copy(f[0], path.Join(boot, f[1])); err != nil {
			return err
		}
	}
	return nil
}

// efiFolder makes the folder of the removable-media path an empty one. What a wad has of
// that name, in whatever case, is of another installation.
func (r *runner) efiFolder() (string, error) {
	folder := r.job.ESP
	for _, name := range []string{"EFI", "BOOT"} {
		entries, err := os.ReadDir(r.at(folder))
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		for _, e := range entries {
			if !strings.EqualFold(e.Name(), name) {
				continue
			}
			old := r.at(path.Join(folder, e.Name()))
			if name == "BOOT" {
				err = os.RemoveAll(old)
			} else if e.Name() != name {
				err = os.Rename(old, r.at(path.Join(folder, name)))
			}
			if err != nil {
				return "", err
			}
		}
		folder = path.Join(folder, name)
	}
	return folder, os.MkdirAll(r.at(folder), 0o755)
}

// copyModules puts GRUB's modules where its grub.cfg asks for them. With Secure Boot on
// a signed GRUB loads none; it has those that matter in itself.
func (r *runner) copyModules() error {
	entries, err := os.ReadDir(r.at(modulesEFI))
	if err != nil {
		return nil // a signed GRUB does without
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".mod" && ext != ".lst" {
			continue
		}
		if err := r.copy(path.Join(modulesEFI, e.Name()), path.Join("/boot/grub/x86_64-efi", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) copy(from, to string) error {
	text, err := r.read(from)
	if err != nil {
		return err
	}
	return r.write(to, text, 0o644, 0, 0)
}

// makeGRUB makes a GRUB that finds its folder by the UUID of the file system.
func (r *runner) makeGRUB(ctx context.Context, to, early string) error {
	if !r.has(modulesEFI) {
		return fmt.Errorf("the wad has no GRUB for UEFI: neither %s with %s (Debian's shim-signed and grub-efi-amd64-signed), nor %s (grub-efi-amd64-bin; Gentoo: GRUB_PLATFORMS=\"efi-64 pc\")",
			signedShim, signedGRUB, modulesEFI)
	}
	config := "/run/reassure-grub.cfg"
	if err := r.write(config, early, 0o600, 0, 0); err != nil {
		return err
	}
	defer os.Remove(r.at(config))
	args := []string{r.grubTool("mkimage"), "--format=x86_64-efi", "--directory=" + modulesEFI, "--config=" + config, "--prefix=/boot/grub", "--output=" + to}
	args = append(args, "part_gpt", "part_msdos", "search", "search_fs_uuid", "normal", "configfile", "linux", "echo", "test", "all_video")
	for _, fileSystem := range []string{"ext2", "fat", "xfs", "btrfs"} {
		if r.has(path.Join(modulesEFI, fileSystem+".mod")) {
			args = append(args, fileSystem)
		}
	}
	if err := r.exec(ctx, nil, "", nil, args...); err != nil {
		return err
	}
	return os.Chmod(r.at(to), 0o644)
}
