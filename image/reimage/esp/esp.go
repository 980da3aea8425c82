// Package esp fills the EFI system partition, and makes its boot loader one that
// firmware finds: on a PC with UEFI that is the commit.
//
// During a reimage nothing is mounted there. Whatever wads, templates and steps put
// below its mount point lies in the root's own file system, where a later delta
// compares it like everything else. When that is whole and flushed, [Fill] copies it
// onto the new, empty FAT, but what belongs into \EFI into \EFI.NEW, where no firmware and no
// boot entry looks; [Commit] renames the folder.
//
// The rename adds one directory entry and then deletes the other (vfat_rename in
// Linux's fs/fat/namei_vfat.c). Both are in the first sector of the root folder, for
// nothing but the label and what Fill made is there before them.
package esp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"reassure/image/reimage/mount"
	"reassure/image/spec"
)

// Loader is what firmware looks for on a disk that has no boot entry: the removable-media
// path for x86-64 (UEFI 2.10, section 3.5.1.1).
const Loader = "EFI/BOOT/BOOTX64.EFI"

// The folder of the boot loaders, and its name until the commit.
const (
	loaders = "EFI"
	waiting = "EFI.NEW"
)

// Fill copies what is below folder in the tree onto an ESP that was just made, waits
// until it is on the disk, and reads it back.
func Fill(ctx context.Context, p spec.Placed, from *os.Root, folder string) error {
	tree, err := from.OpenRoot(strings.TrimPrefix(path.Clean(folder), "/"))
	if err != nil {
		return failed(p, err)
	}
	defer tree.Close()
	err = mounted(ctx, p, func(to *os.Root) error { return fill(to, tree) })
	if err != nil {
		return failed(p, err)
	}
	err = mount.ReadOnly(p.Device, spec.VFAT, func(to *os.Root) error {
		different, err := compare(tree, to, waiting)
		if err == nil && len(different) > 0 {
			err = fmt.Errorf("the disk did not keep %s: what was read back differs; it is not to be trusted", different[0].Path)
		}
		return err
	})
	return failed(p, err)
}

// Commit makes what [Fill] has copied bootable, by one rename.
func Commit(ctx context.Context, p spec.Placed) error {
	return failed(p, mounted(ctx, p, func(to *os.Root) error {
		err := to.Rename(waiting, loaders)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing of the system is for firmware to boot
		}
		return err
	}))
}

// Bootable says whether firmware finds the [Loader] on a partition. Nothing is written.
func Bootable(device string) (bool, error) {
	found := false
	err := look(device, func(root *os.Root) error {
		info, err := root.Stat(Loader)
		found = err == nil && info.Mode().IsRegular() && info.Size() > 0
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return found, err
}

// Difference is one name on an ESP that is not as the tree has it.
type Difference struct{ Path, What, Want, Have string }

// Compare compares an ESP with what the tree has below folder. Nothing is written.
func Compare(p spec.Placed, from *os.Root, folder string) (different []Difference, err error) {
	tree, err := from.OpenRoot(strings.TrimPrefix(path.Clean(folder), "/"))
	if err != nil {
		return nil, failed(p, err)
	}
	defer tree.Close()
	err = look(p.Device, func(have *os.Root) error {
		different, err = compare(tree, have, loaders)
		return err
	})
	return different, failed(p, err)
}

// look reads a partition. The system that runs may have it mounted; the kernel then
// refuses to mount it read-only beside that.
func look(device string, do func(*os.Root) error) error {
	point, err := mount.PointOf(device)
	if errors.Is(err, fs.ErrNotExist) {
		return mount.ReadOnly(device, spec.VFAT, do)
	}
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(point)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

func failed(p spec.Placed, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("%w: make the partition larger", err)
	}
	return fmt.Errorf("EFI system partition %s (%s): %w", p.Name, p.Device, err)
}

// mounted has an ESP mounted while do runs, and flushed afterwards.
func mounted(ctx context.Context, p spec.Placed, do func(*os.Root) error) (err error) {
	dir, err := os.MkdirTemp("", "reassure-esp-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	p.Mount, p.Type = "/", "" // of a tree that has nothing else
	tree, err := mount.Mount(ctx, dir, []spec.Placed{p}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Unmount(context.WithoutCancel(ctx))) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

// fill copies a tree, its loaders to where they wait.
func fill(to, from *os.Root) error {
	return fs.WalkDir(from.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		at := place(name, waiting)
		switch {
		case d.IsDir():
			return to.MkdirAll(at, 0o755)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is no file and no folder, and FAT holds nothing else: leave it out of the wad", name)
		}
		return copyFile(to, at, from, name)
	})
}

func copyFile(to *os.Root, at string, from *os.Root, name string) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := to.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("there are two of %s, which differ in upper and lower case only: FAT holds one of them", name)
	}
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// place is where a name of the tree goes: for FAT a name is the same in upper and
// lower case.
func place(name, folder string) string {
	first, rest, _ := strings.Cut(name, "/")
	if strings.EqualFold(first, loaders) {
		first = folder
	}
	return path.Join(first, rest)
}

// compare lists what is not the same; folder is the name that the loaders' has.
func compare(want, have *os.Root, folder string) (different []Difference, err error) {
	key := strings.ToUpper
	expected := map[string]fs.DirEntry{}
	err = fs.WalkDir(want.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		at := place(name, folder)
		expected[key(at)] = d
		info, err := have.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			different = append(different, Difference{name, "entry", "there", "missing"})
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case err != nil:
			return err
		case info.IsDir() != d.IsDir():
			different = append(different, Difference{name, "kind", kind(d.IsDir()), kind(info.IsDir())})
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		same, err := equal(want, name, have, at)
		if err == nil && !same {
			different = append(different, Difference{Path: name, What: "content"})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(have.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		want, ok := expected[key(name)]
		if !ok {
			different = append(different, Difference{name, "entry", "none", kind(d.IsDir())})
		}
		if d.IsDir() && (!ok || !want.IsDir()) {
			return fs.SkipDir
		}
		return nil
	})
	slices.SortFunc(different, func(a, b Difference) int { return strings.Compare(a.Path, b.Path) })
	return different, err
}

func kind(folder bool) string {
	if folder {
		return "a folder"
	}
	return "a file"
}

func equal(a *os.Root, nameA string, b *os.Root, nameB string) (bool, error) {
	fa, err := a.Open(nameA)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := b.Open(nameB)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ba, bb := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		na, errA := io.ReadFull(fa, ba)
		nb, errB := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		atEnd := func(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
		switch {
		case errA != nil && !atEnd(errA):
			return false, errA
		case errB != nil && !atEnd(errB):
			return false, errB
		case errA != nil:
			return true, nil
		}
	}
}
