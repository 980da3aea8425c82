// Package bootfiles makes the files in the TFTP root that tell a PC at power-on
// what to boot, each in the language of the boot loader that reads it:
//
//	pxelinux.cfg/default           pxelinux, Local: the PC's own disk; for every PC without a file of its own
//	pxelinux.cfg/remote.boot       Remote: kernel and initramfs of the reimager
//	pxelinux.cfg/01-MAC            one PC's boot decision: a link to remote.boot, or none
//	grub/grub.cfg                  the same for GRUB: on to the PC's own file, else Local
//	grub/remote.cfg                Remote
//	grub/grub.cfg-01-MAC           a link to remote.cfg, or none; with colons in the MAC address
//	ipxe/boot.ipxe                 the same for iPXE: on to the PC's own file, else Local
//	ipxe/remote.ipxe               Remote
//	ipxe/01-MAC.ipxe               a link to remote.ipxe, or none
//	uki/remote                     Remote, for an image that no loader has loaded (spec.ParseTold)
//	uki/01-MAC                     a link to remote, or none
//
// pxelinux's names and texts are near those of the sites that ReAssure comes from.
// Where a profile has its PCs go on to their disks in another way than the site's, its
// PCs' files are links to remote.VALUE.boot and remote.VALUE.cfg, and where they are
// told Local to local.VALUE and local.VALUE.cfg.
//
// All but the links begin with a line that says which program wrote them, so that
// no program takes away what a person or a better informed program wrote.
package bootfiles

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"reassure/image/spec"
)

// Where pxelinux's files are, below the TFTP root.
const (
	Folder  = "pxelinux.cfg"
	Default = "default"
	Remote  = "remote.boot"
)

// Kernel and Initramfs are the image's names in the TFTP root.
const (
	Kernel    = "bzImage"
	Initramfs = "initramfs.cpio.zst"
)

// Writer is a program that writes these files.
type Writer string

// The programs that do. What [Publish] writes knows the site; what [MkImage]
// writes is for a first try; [Serve] makes its own at every power-on.
const (
	MkImage Writer = "mkimage"
	Publish Writer = "reassure publish"
	Serve   Writer = "reassure serve"
)

// maxCommandLine is the longest kernel command line on x86, less one for the
// zero byte (COMMAND_LINE_SIZE, arch/x86/include/asm/setup.h).
const maxCommandLine = 2047

// added is what a loader adds to the command line, at most: which kernel and
// initramfs it has loaded, and the card.
const added = "BOOT_IMAGE=(tftp,255.255.255.255)/" + Kernel + " " + " BOOTIF=01-00-00-00-00-00-00"

// RemoteOptions are what a PC that is reimaged is told. The zero value leaves
// the reimager to find the published tree by itself.
type RemoteOptions struct {
	// URL is the base of the published tree; empty means http://NEXT-SERVER/reassure.
	URL string
	// CommandLine is further kernel parameters, such as "console=ttyS0,115200".
	CommandLine string
	// Local is how PCs go on that are told Local, or whose image cannot be loaded.
	Local spec.LocalBoot
	// Own are what profiles have in its place, as [Choices] takes it.
	Own []spec.LocalBoot
}

// File is one of the texts that do not change with a PC's boot decision.
type File struct {
	Name string // below the TFTP root
	Text []byte
}

// Files returns the texts for all loaders.
func Files(by Writer, o RemoteOptions) ([]File, error) {
	if strings.ContainsAny(o.URL, " \t\r\n\"'\\;${}") {
		return nil, fmt.Errorf("boot files: the URL %q cannot hold spaces, quotes or what a boot loader takes for more", o.URL)
	}
	if n := len(added) + len("initrd=/ reassure.url=  ") + len(Initramfs) + len(o.URL) + len(o.CommandLine); n > maxCommandLine {
		return nil, fmt.Errorf("boot files: the kernel's command line has up to %d bytes, and Linux takes %d: shorten command_line in site.yaml", n, maxCommandLine)
	}
	var files []File
	for _, f := range []struct {
		loader Loader
		names  []string
	}{
		{PXELinux, []string{Default, Remote}},
		{GRUB, []string{"grub.cfg", "remote.cfg"}},
		{IPXE, []string{"boot.ipxe", "remote.ipxe"}},
		{Unified, []string{"remote"}},
	} {
		if i := strings.IndexAny(o.CommandLine, f.loader.special()); i >= 0 {
			return nil, fmt.Errorf("boot files: the command line holds %q, which %s takes for more: change command_line in site.yaml", o.CommandLine[i], f.loader)
		}
		write := func(name, template string, local spec.LocalBoot) error {
			text, err := f.loader.render(template, nil, fixed{by, Kernel, Initramfs, o.URL, o.CommandLine, local.Or(spec.LocalBoot{})})
			files = append(files, File{path.Join(f.loader.folder(), name), text})
			return err
		}
		for _, name := range f.names {
			if err := write(name, name, o.Local); err != nil {
				return nil, err
			}
		}
		made := map[string]bool{}
		for _, own := range o.Own {
			v := f.loader.own(own)
			if v == "" || made[v] {
				continue
			}
			made[v] = true
			local, remote := f.loader.variants(v)
			if err := errors.Join(write(local, f.loader.goesOn(), own.Or(o.Local)), write(remote, f.names[1], own.Or(o.Local))); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// own is what of a way to go on is for a loader; those that know one way have none.
func (l Loader) own(o spec.LocalBoot) string {
	switch l {
	case PXELinux:
		return o.BIOS
	case GRUB:
		return o.UEFI
	}
	return ""
}

// variants are the names of a loader's texts for PCs that go on in a way of their own.
func (l Loader) variants(value string) (local, remote string) {
	if l == PXELinux {
		return "local." + value, "remote." + value + ".boot"
	}
	return "local." + value + ".cfg", "remote." + value + ".cfg"
}

// goesOn is the template of a text that does nothing but go on to the PC's own disk.
func (l Loader) goesOn() string {
	if l == PXELinux {
		return Default
	}
	return "local.cfg"
}

// fixed is what the texts are made with that are the same for every PC.
type fixed struct {
	Writer                    Writer
	KernelName, InitramfsName string
	URL, CommandLine          string
	Local                     spec.LocalBoot
}

// folder is where a loader's files are below the TFTP root.
func (l Loader) folder() string {
	if l == PXELinux {
		return Folder
	}
	return string(l)
}

// Choice is where one PC's boot decision is for one loader: a link to Remote, or to
// Local, or none where that is empty. All are below the TFTP root, in the same folder.
type Choice struct{ Name, Remote, Local string }

// Choices returns where the decision for a card is, for all loaders. own is how its PC
// goes on to its disk, as far as that is not the site's way: the rest is empty.
func Choices(mac spec.MAC, own spec.LocalBoot) []Choice {
	all := []Choice{
		{Folder + "/" + mac.PXE(), Folder + "/" + Remote, ""},
		{"grub/grub.cfg-01-" + mac.String(), "grub/remote.cfg", ""},
		{"ipxe/" + mac.PXE() + ".ipxe", "ipxe/remote.ipxe", ""},
		{spec.ToldFolder + "/" + mac.PXE(), spec.ToldFolder + "/remote", ""},
	}
	for i, l := range []Loader{PXELinux, GRUB} {
		if v := l.own(own); v != "" {
			local, remote := l.variants(v)
			all[i].Local, all[i].Remote = path.Join(l.folder(), local), path.Join(l.folder(), remote)
		}
	}
	return all
}

// IsRemote says whether a name, in the folder of any loader, is what a link leads to
// for Remote; IsLocal, for Local.
func IsRemote(name string) bool {
	return !strings.Contains(name, "/") && (name == "remote" || strings.HasPrefix(name, "remote."))
}

// IsLocal is described at [IsRemote].
func IsLocal(name string) bool {
	return !strings.Contains(name, "/") && (name == Default || strings.HasPrefix(name, "local."))
}

// WrittenBy returns the program that wrote a file with this text, or "" if it
// was a person. A script of iPXE says so in its second line.
func WrittenBy(text []byte) Writer {
	line, _, _ := strings.Cut(strings.TrimPrefix(string(text), "#!ipxe\n"), "\n")
	rest, ok := strings.CutPrefix(line, "# Written by ")
	by, _, ends := strings.Cut(rest, ";")
	if w := Writer(by); ok && ends && (w == MkImage || w == Publish) {
		return w
	}
	return ""
}

// MayReplace says whether a program may put a file of its own in the place of
// text: publish replaces what either program wrote, mkimage only its own.
func (w Writer) MayReplace(text []byte) bool {
	by := WrittenBy(text)
	return by == w || w == Publish && by == MkImage
}
