// Package build makes the netboot image: a kernel, and an initramfs that holds
// Go programs only, laid out as a TFTP root.
//
// An initramfs is a row of cpio archives, each compressed by itself, which the
// kernel unpacks one after the other:
//
//	microcode of processors, uncompressed, where the build host has it
//	tools     u-root's init, shell and a few commands, as one Go busybox
//	modules   kernel modules with their index files
//	firmware  what drivers load
//	bundles   programs of Debian that the configuration asks for
//	programs  reimage and chroothelper
//	site      keys, site files, what the image is; last of all a marker
//
// Each is kept in a cache by what it is made of, so that a build makes only
// what has changed. The same inputs give the same bytes, whatever the time, the
// folder or the umask. Results appear whole or not at all, and a build that
// fails leaves the one before.
package build

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"reassure/image/bootfiles"
	"reassure/image/command"
	"reassure/image/coverage"
	"reassure/image/fetch"
	"reassure/image/kmod"
	"reassure/image/sign"
	"reassure/image/spec"
)

// Options say what to build and where.
type Options struct {
	Source  string // the checkout: the folder with go.mod
	Out     string // the folder that gets the results
	Cache   string // kept between builds; may be removed at any time
	Config  *Config
	Flavour string
	// Kernel and Modules name a kernel of the site's own; empty means Debian's.
	Kernel, Modules string
	// Keys is a folder of public keys (*.pub) to trust.
	Keys string
	// Insecure makes an image that trusts unsigned manifests.
	Insecure bool
	// SecureBoot is the site's own key, which signs the unified kernel image.
	SecureBoot SecureBoot
	// Version is what the image calls itself.
	Version string
	// Syslinux are the folders with pxelinux.0 and its modules; empty means
	// where Debian puts them.
	Syslinux []string
	Log      *slog.Logger
}

// Image is what a build made: the content of image.json.
type Image struct {
	Version  string            `json:"version"`
	Flavour  string            `json:"flavour"`
	Insecure bool              `json:"insecure,omitempty"`
	Kernel   KernelInfo        `json:"kernel"`
	Go       string            `json:"go"`
	Tools    []string          `json:"tools"`
	Bundles  []string          `json:"bundles,omitempty"`
	Packages map[string]string `json:"go_modules"` // versions of all that our programs and the tools are made of
	// Debian are the packages that bundles and boot loaders were taken from.
	Debian   map[string]string   `json:"debian_packages,omitempty"`
	Groups   map[string][]string `json:"module_groups"`
	Modules  []string            `json:"modules"`
	LeftOut  []Missing           `json:"left_out"` // network and storage drivers that are not in the image
	Firmware []string            `json:"firmware"`
	// MissingFirmware are patterns of the configuration that match no file on
	// the build host.
	MissingFirmware []string      `json:"missing_firmware,omitempty"`
	Microcode       []string      `json:"microcode,omitempty"` // files that it was made of
	Keys            []string      `json:"keys"`
	CommandLine     string        `json:"command_line"`
	Segments        []SegmentInfo `json:"segments"`
	// Unified is nil where the image was not made one file.
	Unified *UnifiedInfo `json:"unified,omitempty"`
	Files   []FileInfo   `json:"files"`
}

// KernelInfo says which kernel an image has.
type KernelInfo struct {
	Release string `json:"release"`
	Package string `json:"package,omitempty"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256,omitempty"` // of the package
}

// SegmentInfo is one archive of the initramfs, sizes in bytes.
type SegmentInfo struct {
	Name     string `json:"name"`
	Packed   int64  `json:"packed"`
	Unpacked int64  `json:"unpacked"`
}

// FileInfo is one result.
type FileInfo struct {
	Name   string      `json:"name"`
	Size   int64       `json:"size"`
	SHA256 spec.Digest `json:"sha256"`
}

// Names of the results below Options.Out.
const (
	KernelFile    = bootfiles.Kernel
	InitramfsFile = bootfiles.Initramfs
	InfoFile      = "image.json"
	DriversFile   = coverage.File
	TFTPRoot      = "tftproot"
)

// Build makes the image.
func Build(ctx context.Context, o Options) (*Image, error) {
	if err := o.SecureBoot.check(ctx, o); err != nil {
		return nil, err
	}
	kernel, err := FindKernel(ctx, o.Kernel, o.Modules, o.Cache, o.Log)
	if err != nil {
		return nil, err
	}
	tree, err := kernel.scan(o.Cache)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(o.Config, o.Flavour, tree)
	if err != nil {
		return nil, err
	}
	for _, p := range chosen.unused {
		o.Log.Debug("this kernel has no module for a pattern (built in, or not there)", "pattern", p)
	}
	info := &Image{
		Version: o.Version, Flavour: o.Flavour, Insecure: o.Insecure, Go: runtime.Version(), Tools: o.Config.Tools, Bundles: o.Config.bundlesOf(o.Flavour),
		Kernel: KernelInfo{Release: kernel.Release, Package: kernel.Package, Version: kernel.Version, SHA256: kernel.SHA256},
		Groups: chosen.groups, LeftOut: chosen.leftOut, CommandLine: o.Config.CommandLine,
	}
	info.Packages, err = moduleVersions(ctx, o.Source, o.Log, toolModules...)
	if err != nil {
		return nil, err
	}
	segments := []*segment{tools(o.Source, o.Config.Tools, info.Packages)}
	for _, n := range chosen.names {
		info.Modules = append(info.Modules, below(tree.Modules[n]))
	}
	slices.Sort(info.Modules)
	segments = append(segments, modules(kernel, tree, chosen.names))

	firmware, missing, err := readFirmware(o.Config.Firmware)
	if err != nil {
		return nil, err
	}
	info.MissingFirmware = missing
	for _, e := range firmware {
		info.Firmware = append(info.Firmware, strings.TrimPrefix(e.name, "lib/firmware/"))
	}
	if o.Config.Microcode.wants(o.Flavour) {
		ucode, names, err := microcode(o.Config.Microcode)
		if err != nil {
			return nil, err
		}
		if info.Microcode = names; len(names) > 0 {
			segments = slices.Insert(segments, 0, early(ucode))
		}
	}
	if len(firmware) > 0 {
		segments = append(segments, entriesSegment("firmware", firmware, ""))
	}
	extra, err := bundleEntries(info.Bundles)
	if err != nil {
		return nil, err
	}
	if len(extra) > 0 {
		segments = append(segments, entriesSegment("bundles", extra, ""))
	}
	programs, linked, err := buildPrograms(ctx, o)
	if err != nil {
		return nil, err
	}
	maps.Copy(info.Packages, linked)
	site, keys, err := siteEntries(o, kernel, tree, chosen)
	if err != nil {
		return nil, err
	}
	info.Keys = keys
	if info.Debian, err = owners(ctx, o, foreign(o, extra)); err != nil {
		return nil, err
	}
	segments = append(segments, entriesSegment("programs", programs, ""), entriesSegment("site", site, strings.TrimPrefix(spec.ImageComplete, "/")))

	var parts []compressed
	for _, s := range segments {
		c, err := s.compress(ctx, o.Cache, o.Log)
		if err != nil {
			return nil, err
		}
		parts = append(parts, c)
		info.Segments = append(info.Segments, SegmentInfo{Name: c.name, Packed: c.packed, Unpacked: c.unpacked})
	}
	drivers := coverage.NewCatalogue(tree, func(m *kmod.Module) string { return chosen.absent[m.Name] })
	drivers.Version, drivers.Flavour, drivers.Kernel, drivers.Firmware = o.Version, o.Flavour, kernel.Release, info.Firmware
	return info, layOut(ctx, o, kernel, parts, info, drivers)
}

// entriesSegment is a segment of files that are in memory.
func entriesSegment(name string, entries []entry, last string) *segment {
	return &segment{name: name, identity: name + " 1 " + last + " " + identityOf(entries), write: func(_ context.Context, w io.Writer) error {
		return writeEntries(w, entries, last)
	}}
}

// modules is the segment with kernel modules, decompressed, and their index.
func modules(k *Kernel, tree *kmod.Tree, names []string) *segment {
	folder := strings.TrimPrefix(path.Join(spec.ImageModules, k.Release), "/")
	index := tree.WriteIndex(names)
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(index)) {
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(index[name]))
	}
	return &segment{name: "modules", identity: fmt.Sprintf("modules 1 %s %x", k.identity, h.Sum(nil)), write: func(ctx context.Context, w io.Writer) error {
		fsys := os.DirFS(k.Modules)
		var entries []entry
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := kmod.Read(fsys, tree.Modules[n].Path)
			if err != nil {
				return err
			}
			file := tree.Modules[n].Path
			entries = append(entries, entry{name: path.Join(folder, file[:strings.LastIndex(file, ".ko")]+".ko"), data: data})
		}
		for name, data := range index {
			entries = append(entries, entry{name: path.Join(folder, name), data: data})
		}
		return writeEntries(w, entries, "")
	}}
}

// programTags leave HTTP/2 out of net/http (0.4 MiB unpacked): a PC fetches one file
// at a time, for which HTTP/1.1 does as well.
const programTags = "nethttpomithttp2"

// buildPrograms builds our own programs, and says which modules are in them.
// Go's build cache makes it quick.
func buildPrograms(ctx context.Context, o Options) ([]entry, map[string]string, error) {
	work, err := os.MkdirTemp("", "reassure-programs")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(work)
	env := append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	err = command.Command{
		Args: []string{"go", "build", "-trimpath", "-buildvcs=false", "-tags=" + programTags, "-ldflags=-s -w -buildid=", "-o", work + "/", "./cmds/reimage", "./cmds/chroothelper"},
		Dir:  o.Source, Env: env, Log: o.Log,
	}.Run(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("build the programs of the image: %w", err)
	}
	entries := []entry{{name: "bin/uinit", link: spec.ImageReimage}, {name: "bin/reboot", link: spec.ImageReimage}}
	linked := map[string]string{}
	for name, file := range map[string]string{spec.ImageReimage: "reimage", spec.ImageChrootHelper: "chroothelper"} {
		e, err := readEntry(strings.TrimPrefix(name, "/"), filepath.Join(work, file), true)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
		made, err := buildinfo.ReadFile(filepath.Join(work, file))
		if err != nil {
			return nil, nil, err
		}
		for _, m := range made.Deps {
			linked[m.Path] = m.Version
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, linked, nil
}

// siteEntries is what makes the image this site's: keys, files, and what it says
// of itself.
func siteEntries(o Options, k *Kernel, tree *kmod.Tree, chosen *selection) (entries []entry, keys []string, err error) {
	if !o.Insecure {
		ring, err := sign.LoadKeyring(os.DirFS(o.Keys))
		if err != nil {
			return nil, nil, fmt.Errorf("public keys in %s: %w", o.Keys, err)
		}
		if len(ring) == 0 {
			return nil, nil, fmt.Errorf("there is no public key (*.pub) in %s: PCs would trust nobody's manifests. Make one with reassure key, or build with INSECURE=1 for a lab where anybody may reimage the PCs", o.Keys)
		}
		found, _, err := readFolder(o.Keys, []string{"*.pub"}, strings.TrimPrefix(spec.ImageKeys, "/"))
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, found...)
		for _, key := range ring {
			keys = append(keys, key.ID.String())
		}
	}
	if o.Config.CA != "" {
		text, err := os.ReadFile(o.Config.CA)
		if err == nil {
			_, err = fetch.ParseAuthorities(text)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("ca: %s: %w", o.Config.CA, err)
		}
		e, err := readEntry(strings.TrimPrefix(spec.ImageCA, "/"), o.Config.CA, false)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
	}
	for _, inside := range slices.Sorted(maps.Keys(o.Config.Files)) {
		outside := o.Config.Files[inside]
		info, err := os.Stat(outside)
		if err != nil {
			return nil, nil, fmt.Errorf("site file %s: %w", inside, err)
		}
		e, err := readEntry(strings.TrimPrefix(inside, "/"), outside, info.Mode()&0o111 != 0)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
	}
	self := spec.ImageInfoFile{Version: o.Version, Kernel: k.Release, Flavour: o.Flavour, Insecure: o.Insecure, DebugShell: o.Config.DebugShell}
	for _, m := range o.Config.Preload {
		if slices.Contains(chosen.names, kmod.Canonical(m)) {
			self.Preload = append(self.Preload, kmod.Canonical(m))
		}
	}
	text, err := json.MarshalIndent(self, "", "  ")
	if err != nil {
		return nil, nil, err
	}
	entries = append(entries,
		entry{name: strings.TrimPrefix(spec.ImageInfo, "/"), data: append(text, '\n')},
		entry{name: strings.TrimPrefix(spec.ImageComplete, "/"), data: []byte("This is the last file of the image.\n")})
	return entries, keys, nil
}

// layOut writes the results. Each file appears by a rename, the kernel and the
// initramfs last and one right after the other: a PC that fetches one of each
// finds out by itself.
func layOut(ctx context.Context, o Options, k *Kernel, parts []compressed, info *Image, drivers *coverage.Catalogue) error {
	root := filepath.Join(o.Out, TFTPRoot)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := bootLoaders(o, root); err != nil {
		return err
	}
	initramfs, err := joined(parts)
	if err != nil {
		return fmt.Errorf("write %s: %w", InitramfsFile, err)
	}
	kernel, err := os.ReadFile(k.Image)
	if err != nil {
		return fmt.Errorf("write %s: %w", KernelFile, err)
	}
	one, unifiedInfo, err := unified(ctx, o, k.Release, kernel, initramfs)
	if err != nil {
		return err
	}
	info.Unified = unifiedInfo
	results := []result{{KernelFile, kernel}, {InitramfsFile, initramfs}}
	if one != nil {
		results = slices.Insert(results, 0, result{UnifiedFile, one})
	}
	var pending []*renameio.PendingFile
	defer func() {
		for _, p := range pending {
			_ = p.Cleanup() // does nothing to what was put in place
		}
	}()
	for _, r := range results {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := renameio.NewPendingFile(filepath.Join(o.Out, r.name), renameio.WithPermissions(0o644))
		if err != nil {
			return err
		}
		pending = append(pending, p)
		if _, err := p.Write(r.data); err != nil {
			return fmt.Errorf("write %s: %w", r.name, err)
		}
		info.Files = append(info.Files, FileInfo{Name: r.name, Size: int64(len(r.data)), SHA256: spec.Sum(r.data)})
	}
	text, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	for i, p := range pending {
		if err := p.CloseAtomicallyReplace(); err != nil {
			return fmt.Errorf("put %s in place: %w", results[i].name, err)
		}
		if err := linkOrCopy(filepath.Join(o.Out, results[i].name), filepath.Join(root, results[i].name)); err != nil {
			return err
		}
	}
	if one == nil {
		if err := removeUnified(o); err != nil {
			return err
		}
	}
	// The boot server judges by it what PCs report of themselves.
	catalogue, err := json.Marshal(drivers)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(o.Out, DriversFile), append(catalogue, '\n'), 0o644); err != nil {
		return err
	}
	if err := linkOrCopy(filepath.Join(o.Out, DriversFile), filepath.Join(root, DriversFile)); err != nil {
		return err
	}
	materials, err := bill(o.Out, info)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(o.Out, BillFile), materials, 0o644); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(o.Out, InfoFile), append(text, '\n'), 0o644)
}

// result is a file for [Options.Out] and the TFTP root.
type result struct {
	name string
	data []byte
}

// joined is the initramfs: its archives, one after the other.
func joined(parts []compressed) ([]byte, error) {
	var all []byte
	for _, p := range parts {
		data, err := os.ReadFile(p.file)
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	return all, nil
}

// linkOrCopy gives a file a second name, or a second copy on another file system.
func linkOrCopy(from, to string) error {
	temporary := to + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, temporary) == nil {
		return os.Rename(temporary, to)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return renameio.WriteFile(to, data, 0o644)
}

// syslinuxFolders are where Debian's packages pxelinux and syslinux-common put
// what is needed.
var syslinuxFolders = []string{"/usr/lib/PXELINUX", "/usr/lib/syslinux/modules/bios"}

// loaders are the boot loaders of PCs with a BIOS, and the modules that our
// texts for them name.
var loaders = []string{"pxelinux.0", "lpxelinux.0", "ldlinux.c32", "reboot.c32", "chain.c32", "libcom32.c32", "libutil.c32"}

// efiLoader is a boot loader of PCs with UEFI. Debian's packages have it; where
// they are not installed, the image is for BIOS only.
type efiLoader struct{ name, file, pkg string }

var efiLoaders = []efiLoader{
	{"shimx64.efi", "/usr/lib/shim/shimx64.efi.signed", "shim-signed"},
	{"grubx64.efi", "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "grub-efi-amd64-signed"},
	{"snponly.efi", "/usr/lib/ipxe/snponly.efi", "ipxe"},
	{"undionly.kpxe", "/usr/lib/ipxe/undionly.kpxe", "ipxe"},
}

// bootLoaders puts the boot loaders and their configuration into the TFTP root.
// Texts that somebody else wrote stay.
func bootLoaders(o Options, root string) error {
	folders := o.Syslinux
	if len(folders) == 0 {
		folders = syslinuxFolders
	}
next:
	for _, name := range loaders {
		for _, f := range folders {
			data, err := os.ReadFile(filepath.Join(f, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := renameio.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
				return err
			}
			continue next
		}
		return fmt.Errorf("%s is in none of %s: install the Debian packages pxelinux and syslinux-common", name, strings.Join(folders, ", "))
	}
	for _, l := range efiLoaders {
		data, err := os.ReadFile(l.file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			o.Log.Info("the TFTP root has no "+l.name+": install the Debian package "+l.pkg+" to have it", "missing", l.file)
			continue
		case err != nil:
			return err
		}
		if err := renameio.WriteFile(filepath.Join(root, l.name), data, 0o644); err != nil {
			return err
		}
	}
	texts, err := bootfiles.Files(bootfiles.MkImage, bootfiles.RemoteOptions{CommandLine: o.Config.CommandLine})
	if err != nil {
		return err
	}
	for _, text := range texts {
		file := filepath.Join(root, text.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		before, err := os.ReadFile(file)
		if err == nil && bootfiles.WrittenBy(before) != bootfiles.MkImage {
			o.Log.Info("left alone, for somebody else wrote it: " + file)
			continue
		}
		if err := renameio.WriteFile(file, text.Text, 0o644); err != nil {
			return err
		}
	}
	return renameio.Symlink(KernelFile, filepath.Join(root, "vmlinuz"))
}
