package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot fails a test that makes owners, devices and mounts.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes devices and files of other owners: run it as root")
	}
}

// sh runs shell commands in a folder.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// ext4 mounts a fresh file system that lies in memory, where a test that makes
// many files does not wait for a disk, and returns the folder.
func ext4(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		// A loop device is let go of a little after its file system.
		for _, sub := range []string{"/disk", "/memory"} {
			if err := unix.Unmount(dir+sub, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", sub, err)
			}
		}
	})
	sh(t, dir, `mkdir memory disk; mount -t tmpfs none memory; truncate -s 1G memory/image
mkfs.ext4 -q -O ^has_journal -N 200000 memory/image; mount -o loop memory/image disk`)
	return dir + "/disk"
}

// golden is a tree as it should be, and its content.
type golden struct {
	root    string
	entries []*Expected
}

// pieceSize is that of the pieces of the tests' large files.
const pieceSize = 32 << 10

// goldenOf describes a tree that is there.
func goldenOf(t testing.TB, root string) *golden {
	t.Helper()
	all, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{root: root}
	links := map[string]int{}
	for _, f := range all {
		links[f.first]++
	}
	for path, f := range all {
		e := &Expected{Entry: f.Entry}
		if f.Kind == Regular {
			e.Size, e.SHA256 = f.size, f.content
			data, err := os.ReadFile(filepath.Join(root, path))
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > pieceSize {
				for at := 0; at < len(data); at += pieceSize {
					part := data[at:min(len(data), at+pieceSize)]
					e.Pieces = append(e.Pieces, Piece{int64(at), int64(len(part)), sha256.Sum256(part)})
				}
			}
		}
		if n := links[f.first]; n > 1 {
			e.First, e.Links = f.first, n
		}
		g.entries = append(g.entries, e)
	}
	slices.SortFunc(g.entries, func(a, b *Expected) int {
		if Before(a.Path, b.Path) {
			return -1
		}
		return 1
	})
	return g
}

func (g *golden) all() iter.Seq2[*Expected, error] {
	return func(yield func(*Expected, error) bool) {
		for _, e := range g.entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// content delivers from the golden tree, last need first, several at a time.
func (g *golden) content(_ context.Context, needs []Need, deliver Deliver) error {
	errs := make(chan error)
	for i := len(needs) - 1; i >= 0; i-- {
		go func() {
			n := needs[i]
			f, err := os.Open(filepath.Join(g.root, n.Want.Path))
			if err != nil {
				errs <- err
				return
			}
			defer f.Close()
			if n.Pieces == nil {
				errs <- deliver(i, -1, f)
				return
			}
			for _, p := range n.Pieces {
				part := n.Want.Pieces[p]
				err = errors.Join(err, deliver(i, p, io.NewSectionReader(f, part.Offset, part.Length)))
			}
			errs <- err
		}()
	}
	var all error
	for range needs {
		all = errors.Join(all, <-errs)
	}
	return all
}

// lay writes the golden tree to a new folder, as a full install does.
func (g *golden) lay(t testing.TB, root string) {
	t.Helper()
	w, err := NewWriter(root, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	made := map[string]string{}
	for _, e := range g.entries {
		if first := made[e.First]; e.First != "" && first != "" {
			err = w.Link(e.Path, first)
		} else {
			made[e.First] = e.Path
			switch e.Kind {
			case Directory:
				err = w.Directory(&e.Entry)
			case Symlink:
				err = w.Symlink(&e.Entry)
			case Regular:
				err = g.layFile(w, e)
			default:
				err = w.Device(&e.Entry)
			}
		}
		if err != nil {
			t.Fatalf("%q: %v", e.Path, err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
}

func (g *golden) layFile(w *Writer, e *Expected) error {
	data, err := os.ReadFile(filepath.Join(g.root, e.Path))
	if err != nil {
		return err
	}
	f, err := w.Begin(&e.Entry)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Create(), f.WriteSparse(data)); err != nil {
		f.Abandon()
		return err
	}
	return f.Close()
}

// check returns what is wrong with a tree.
func (g *golden) check(t testing.TB, root string, o CheckOptions) []*Fault {
	t.Helper()
	faults, err := collectFaults(Check(t.Context(), root, g.all(), o))
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return faults
}

func collectFaults(seq iter.Seq2[*Fault, error]) (all []*Fault, err error) {
	for f, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, f)
	}
	return all, nil
}

// repair checks and repairs a tree, and fails the test unless it is then the same.
func (g *golden) repair(t testing.TB, root string, o CheckOptions) RepairStats {
	t.Helper()
	faults := g.check(t, root, o)
	stats, err := Repair(t.Context(), root, g.all(), faults, g.content)
	if err != nil {
		t.Fatalf("repair: %v", err)
	}
	for _, f := range g.check(t, root, o) {
		t.Errorf("after the repair: %q: %v", f.Path, f.Differences)
	}
	return stats
}

// same fails the test for each difference of a tree from the golden one.
func (g *golden) same(t testing.TB, root string) {
	t.Helper()
	differences, err := Compare(g.root, root)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		t.Errorf("%v", d)
	}
}

// summary is what a person would read, a line a difference.
func summary(faults []*Fault) string {
	var lines []string
	for _, f := range faults {
		for _, d := range f.Differences {
			mark := ""
			if f.Runtime {
				mark = " (runtime)"
			}
			lines = append(lines, fmt.Sprintf("%s: %s: %s -> %s%s", d.Path, d.What, d.A, d.B, mark))
		}
	}
	return strings.Join(lines, "\n")
}

// randomName returns a name of any bytes that a name can have.
func randomName(r *rand.Rand) string {
	switch r.IntN(8) {
	case 0:
		n := 1 + r.IntN(255)
		name := make([]byte, n)
		for i := range name {
			for name[i] == 0 || name[i] == '/' {
				name[i] = byte(r.Uint32())
			}
		}
		if s := string(name); s != "." && s != ".." {
			return s
		}
	case 1:
		return "new\nline " + string(rune('a'+r.IntN(26)))
	case 2:
		return fmt.Sprintf("%c-%c", 'a'+r.IntN(3), 'a'+r.IntN(26)) // sorts around '/'
	case 3:
		return fmt.Sprintf("%c.%c", 'a'+r.IntN(3), 'a'+r.IntN(26))
	}
	return string(rune('a' + r.IntN(26)))
}

// forest makes random trees and damages them.
type forest struct {
	*rand.Rand
	t testing.TB
}

func (f forest) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f forest) data() []byte {
	n := f.IntN(200)
	if f.IntN(4) == 0 {
		n = f.IntN(5 * pieceSize)
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(f.Uint32())
	}
	if n > 9000 && f.IntN(2) == 0 {
		clear(p[f.IntN(n/2) : n/2+f.IntN(n/2)])
	}
	return p
}

// grow makes n random entries below root, and returns the paths of all entries.
func (f forest) grow(root string, n int) {
	for range n {
		folder := f.folder(root)
		f.make(filepath.Join(folder, randomName(f.Rand)), root)
	}
}

// entries lists the paths below root.
func (f forest) entries(root string, want func(os.FileInfo) bool) []string {
	var all []string
	f.must(filepath.Walk(root, func(path string, i os.FileInfo, err error) error {
		if err == nil && want(i) {
			all = append(all, path)
		}
		return err
	}))
	return all
}

func (f forest) folder(root string) string {
	all := f.entries(root, os.FileInfo.IsDir)
	for {
		// Paths stay short enough for the test's own calls.
		if path := all[f.IntN(len(all))]; len(path) < 2000 {
			return path
		}
	}
}

// make makes one random entry, if there is none.
func (f forest) make(path, root string) {
	var err error
	switch f.IntN(12) {
	case 0, 1, 2:
		err = os.Mkdir(path, 0o755)
	case 3:
		err = os.Symlink([]string{"..", "/etc/passwd", "nowhere", "a", strings.Repeat("l", 200)}[f.IntN(5)], path)
	case 4:
		err = unix.Mkfifo(path, 0o600)
	case 5:
		err = unix.Mknod(path, []uint32{unix.S_IFCHR, unix.S_IFBLK}[f.IntN(2)]|0o600, int(unix.Mkdev(uint32(f.IntN(3)), uint32(f.IntN(70000)))))
	case 6, 7:
		all := f.entries(root, func(i os.FileInfo) bool { return !i.IsDir() })
		if len(all) > 0 {
			err = os.Link(all[f.IntN(len(all))], path)
		}
	default:
		if _, err = os.Lstat(path); err != nil {
			err = os.WriteFile(path, f.data(), 0o644)
		}
	}
	if err == nil {
		f.describe(path)
	} else if !errors.Is(err, os.ErrExist) {
		f.must(err)
	}
}

// describe gives an entry random metadata.
func (f forest) describe(path string) {
	i, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	f.must(err)
	if f.IntN(2) == 0 {
		f.must(unix.Lchown(path, f.IntN(3), f.IntN(3)))
	}
	link := i.Mode()&os.ModeSymlink != 0
	if !link && f.IntN(2) == 0 {
		f.must(unix.Chmod(path, []uint32{0o644, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o600}[f.IntN(7)]))
	}
	if f.IntN(4) == 0 {
		f.must(unix.Lsetxattr(path, "trusted.t"+fmt.Sprint(f.IntN(2)), []byte{byte(f.IntN(3))}, 0))
	}
	if !link && f.IntN(4) == 0 {
		// A minimal ACL with one named user: linux/posix_acl_xattr.h.
		acl := []byte{2, 0, 0, 0}
		for _, entry := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 5, uint32(f.IntN(3))}, {4, 5, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 5, ^uint32(0)}} {
			acl = append(acl, byte(entry[0]), 0, byte(entry[1]), 0, byte(entry[2]), byte(entry[2]>>8), byte(entry[2]>>16), byte(entry[2]>>24))
		}
		attr := aclAccess
		if i.IsDir() && f.IntN(2) == 0 {
			attr = aclDefault
		}
		f.must(unix.Lsetxattr(path, attr, acl, 0))
	}
	if i.Mode().IsRegular() && f.IntN(6) == 0 {
		f.must(unix.Setxattr(path, "security.capability", []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	}
	if f.IntN(2) == 0 {
		at := unix.NsecToTimespec(int64(f.IntN(2e9))*1e9 + int64(f.IntN(1e9)))
		f.must(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// damage does one thing that somebody with root could do, and keeps times where it can.
func (f forest) damage(root string) {
	all := f.entries(root, func(os.FileInfo) bool { return true })
	path := all[f.IntN(len(all))]
	if len(path) > 2000 {
		return
	}
	var before unix.Stat_t
	f.must(unix.Lstat(path, &before))
	regular := before.Mode&unix.S_IFMT == unix.S_IFREG
	stealthy := func() {
		f.must(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{before.Atim, before.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
	}
	switch f.IntN(10) {
	case 0:
		if path != root {
			f.must(os.RemoveAll(path))
		}
	case 1:
		if path != root {
			f.must(os.RemoveAll(path))
			f.make(path, root)
		}
	case 2:
		f.describe(path)
	case 3, 4:
		if regular && before.Size > 0 {
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			f.must(err)
			_, err = file.WriteAt([]byte{byte(f.Uint32())}, f.Int64N(before.Size))
			f.must(err)
			f.must(file.Close())
			stealthy()
		}
	case 5:
		if regular {
			f.must(os.Truncate(path, f.Int64N(before.Size*2+1)))
			stealthy()
		}
	case 6:
		other := filepath.Join(f.folder(root), randomName(f.Rand))
		if before.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := os.Link(path, other); err != nil && !errors.Is(err, os.ErrExist) {
				f.must(err)
			}
		}
	case 7:
		other := all[f.IntN(len(all))]
		// Swap two entries, unless one holds the other.
		err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
			f.must(err)
		}
	case 8:
		if regular || before.Mode&unix.S_IFMT == unix.S_IFDIR {
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			f.must(err)
			// No dump, no access time: those that do not hinder the rest of the test.
			flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			f.must(err)
			f.must(unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|0xc0))
			f.must(unix.Close(fd))
		}
	default:
		f.grow(root, 1+f.IntN(4))
	}
}

// Whatever somebody does to a tree, a repair makes it the same as a full
// install in everything, and then a check finds nothing.
func TestRepairIsFull(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	base := ext4(t)
	for round := range rounds {
		ok := t.Run(fmt.Sprint(round), func(t *testing.T) {
			f := forest{rand.New(rand.NewPCG(uint64(round), 4)), t}
			dir := filepath.Join(base, fmt.Sprint(round))
			f.must(os.MkdirAll(dir+"/golden", 0o755))
			f.must(os.MkdirAll(dir+"/disk", 0o755))
			defer os.RemoveAll(dir)
			f.grow(dir+"/golden", f.IntN(60))
			g := goldenOf(t, dir+"/golden")
			g.lay(t, dir+"/disk")
			g.same(t, dir+"/disk")
			if faults := g.check(t, dir+"/disk", CheckOptions{}); len(faults) > 0 {
				t.Fatalf("a tree that was just laid down is wrong:\n%s", summary(faults))
			}
			for range f.IntN(25) {
				f.damage(dir + "/disk")
			}
			differences, err := Compare(g.root, dir+"/disk")
			f.must(err)
			if faults := g.check(t, dir+"/disk", CheckOptions{}); len(differences) > 0 && len(faults) == 0 {
				t.Errorf("not found: %v", differences)
			}
			g.repair(t, dir+"/disk", CheckOptions{Workers: 1 + f.IntN(4)})
			g.same(t, dir+"/disk")
		})
		if !ok {
			break
		}
	}
}
