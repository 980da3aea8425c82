package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"

	"reassure/image/command"
	"reassure/image/kmod"
)

// Kernel is a kernel and its modules, as files on this machine.
type Kernel struct {
	Image   string // bzImage
	Modules string // lib/modules/RELEASE
	Release string // uname -r
	// Package, Version and SHA256 are those of the Debian package; empty for a
	// kernel of the site's own.
	Package, Version, SHA256 string
	// identity tells this kernel and its modules from any other.
	identity string
}

// debianKernel is the metapackage whose kernel is taken by default.
const debianKernel = "linux-image-amd64"

// FindKernel returns the kernel to build with: the one that image and modules
// name (a bzImage, and a lib/modules/RELEASE folder), or when both are empty
// Debian's own, downloaded into cache and unpacked there without installing it.
func FindKernel(ctx context.Context, image, modules, cache string, log *slog.Logger) (*Kernel, error) {
	k := &Kernel{Image: image, Modules: modules}
	switch {
	case image == "" && modules == "":
		if err := k.download(ctx, cache, log); err != nil {
			return nil, err
		}
	case image == "" || modules == "":
		return nil, errors.New("KERNEL and MODULES belong together: give both, or neither for Debian's kernel")
	}
	release, err := imageRelease(k.Image)
	if err != nil {
		return nil, err
	}
	k.Release = release
	if own := filepath.Base(filepath.Clean(k.Modules)); own != release {
		return nil, fmt.Errorf("the kernel %s is release %s, but the modules in %s are for %s: they must be of one build", k.Image, release, k.Modules, own)
	}
	if k.identity == "" {
		if k.identity, err = identify(k.Image, k.Modules); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// imageRelease reads the release in a bzImage's header: the two bytes at 0x20e
// are where the version string is, less 0x200 (Documentation/arch/x86/boot.rst).
func imageRelease(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 0x210)
	if _, err := io.ReadFull(f, head); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return "", fmt.Errorf("%s is not a bzImage: name the kernel that a boot loader would load (vmlinuz-...), not vmlinux", file)
	}
	version := make([]byte, 256)
	n, err := f.ReadAt(version, int64(binary.LittleEndian.Uint16(head[0x20e:]))+0x200)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("kernel: %w", err)
	}
	release, _, _ := strings.Cut(string(version[:n]), " ")
	if release == "" || strings.ContainsRune(release, 0) {
		return "", fmt.Errorf("%s does not say which release it is", file)
	}
	return release, nil
}

// identify digests a kernel and the names, sizes and times of its modules.
func identify(image, modules string) (string, error) {
	data, err := os.ReadFile(image)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(data)
	err = filepath.WalkDir(modules, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(h, name[len(modules):], info.Size(), info.ModTime().UnixNano())
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

var (
	dependsPattern = regexp.MustCompile(`(?m)^Depends:.*\b(linux-image-[0-9][^ ,]*)`)
	fieldPattern   = regexp.MustCompile(`(?m)^(Version|SHA256): (\S+)`)
)

// download gets Debian's kernel. apt knows the mirror, checks the signature of
// its index and the package's digest against that.
func (k *Kernel) download(ctx context.Context, cache string, log *slog.Logger) error {
	name, err := aptShow(ctx, debianKernel, dependsPattern, log)
	if err != nil {
		return err
	}
	k.Package = name[0][1]
	fields, err := aptShow(ctx, k.Package, fieldPattern, log)
	if err != nil {
		return err
	}
	for _, f := range fields {
		switch f[1] {
		case "Version":
			k.Version = f[2]
		case "SHA256":
			k.SHA256 = f[2]
		}
	}
	if k.Version == "" || k.SHA256 == "" {
		return fmt.Errorf("apt-cache does not say the version and digest of %s: run apt-get update", k.Package)
	}
	k.identity = k.Package + "_" + k.Version + "_" + k.SHA256
	tree := filepath.Join(cache, "kernels", k.Package+"_"+strings.ReplaceAll(k.Version, ":", "%3a"))
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := k.unpack(ctx, tree, log); err != nil {
			return err
		}
	}
	release := strings.TrimPrefix(k.Package, "linux-image-")
	release = strings.TrimSuffix(release, "-unsigned")
	k.Image = filepath.Join(tree, "boot", "vmlinuz-"+release)
	k.Modules = filepath.Join(tree, "lib/modules", release)
	if _, err := os.Stat(k.Modules); err != nil {
		k.Modules = filepath.Join(tree, "usr/lib/modules", release) // from Debian 13 on
	}
	return nil
}

// unpack downloads the package and unpacks it to tree, which appears whole or
// not at all.
func (k *Kernel) unpack(ctx context.Context, tree string, log *slog.Logger) error {
	log.Info("downloading " + k.Package + " " + k.Version)
	if err := os.MkdirAll(filepath.Dir(tree), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(tree), "making")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// apt drops its privileges for the download, into a folder it must reach.
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	err = command.Command{Args: []string{"apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", k.Package + "=" + k.Version}, Dir: work, Log: log}.Run(ctx)
	if err != nil {
		return fmt.Errorf("download %s (if the list of packages is old, run apt-get update): %w", k.Package, err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get downloaded %d files for %s", len(debs), k.Package)
	}
	data, err := os.ReadFile(debs[0])
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != k.SHA256 {
		return fmt.Errorf("%s has digest %x, and apt-cache says %s: run apt-get update and try again", filepath.Base(debs[0]), sum, k.SHA256)
	}
	log.Info("unpacking " + filepath.Base(debs[0]))
	if err := (command.Command{Args: []string{"dpkg-deb", "--extract", debs[0], filepath.Join(work, "tree")}, Log: log}).Run(ctx); err != nil {
		return fmt.Errorf("unpack %s: %w", k.Package, err)
	}
	return os.Rename(filepath.Join(work, "tree"), tree)
}

func aptShow(ctx context.Context, name string, want *regexp.Regexp, log *slog.Logger) ([][]string, error) {
	out, err := command.Command{Args: []string{"apt-cache", "show", "--no-all-versions", name}, Log: log}.Output(ctx)
	found := want.FindAllStringSubmatch(string(out), -1)
	if err != nil || found == nil {
		return nil, errors.Join(fmt.Errorf("apt does not know the package %s: run apt-get update (as root), or name a kernel by KERNEL= and MODULES=", name), err)
	}
	return found, nil
}

// scan reads what the kernel's modules say of themselves; once read it is kept
// in the cache, for there are thousands.
func (k *Kernel) scan(cache string) (*kmod.Tree, error) {
	sum := sha256.Sum256([]byte("scan 2 " + k.identity))
	kept := filepath.Join(cache, "modules", hex.EncodeToString(sum[:8])+".json")
	if text, err := os.ReadFile(kept); err == nil {
		tree := new(kmod.Tree)
		if json.Unmarshal(text, tree) == nil && len(tree.Modules) > 0 {
			return tree, nil
		}
	}
	tree, err := kmod.Scan(os.DirFS(k.Modules))
	if err != nil {
		return nil, fmt.Errorf("modules in %s: %w", k.Modules, err)
	}
	for _, m := range tree.Modules {
		if release, _, _ := strings.Cut(m.Version, " "); release != "" && release != k.Release {
			return nil, fmt.Errorf("module %s is for kernel %s, and the kernel is %s: they must be of one build", m.Path, release, k.Release)
		}
	}
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return nil, err
	}
	return tree, renameio.WriteFile(kept, text, 0o644)
}
