package mkfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const testUUID = "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10"

// packages says which Debian package has a program that judges our work.
var packages = map[string]string{
	"blkid": "util-linux", "wipefs": "util-linux", "swaplabel": "util-linux", "mount": "mount", "umount": "mount", "sfdisk": "fdisk",
	"e2fsck": "e2fsprogs", "dumpe2fs": "e2fsprogs", "debugfs": "e2fsprogs", "resize2fs": "e2fsprogs", "tune2fs": "e2fsprogs", "mke2fs": "e2fsprogs",
	"fsck.fat": "dosfstools", "mkfs.fat": "dosfstools", "mcopy": "mtools", "mdir": "mtools", "mtype": "mtools", "mmd": "mtools",
	"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "grub-fstest": "grub-common", "file": "file", "mkswap": "util-linux", "losetup": "mount", "findmnt": "util-linux",
}

// try runs a program and returns its output and exit status.
func try(tb testing.TB, args ...string) (string, int) {
	tb.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", args[0]))
	}
	if err != nil {
		tb.Fatalf("%s is missing: install the Debian package %s", args[0], packages[args[0]])
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=0", "MTOOLSRC=/dev/null")
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		tb.Fatalf("%s: %v", args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// tool runs a program that must succeed and returns its output.
func tool(tb testing.TB, args ...string) string {
	tb.Helper()
	out, status := try(tb, args...)
	if status != 0 {
		tb.Fatalf("%s: exit status %d\n%s", strings.Join(args, " "), status, out)
	}
	return out
}

// sparse returns a new file full of holes.
func sparse(tb testing.TB, size int64) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "disk"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// garbage returns a new file without one zero byte in it, a disk that was used
// before: whatever is not written shows.
func garbage(tb testing.TB, size int64) *os.File {
	tb.Helper()
	f := sparse(tb, size)
	piece := make([]byte, 1<<20)
	for i := range piece {
		piece[i] = byte(i*7) | 1
	}
	for at := int64(0); at < size; at += int64(len(piece)) {
		if _, err := f.WriteAt(piece[:min(int64(len(piece)), size-at)], at); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

// remove gives a file's room back before the test ends.
func remove(tb testing.TB, f *os.File) {
	tb.Helper()
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		tb.Fatal(err)
	}
}

// probe returns what blkid says of a file, without its cache.
func probe(tb testing.TB, path, tag string) string {
	tb.Helper()
	out, _ := try(tb, "blkid", "-p", "-o", "value", "-s", tag, path)
	return strings.TrimSpace(out)
}

// signatures returns the kinds of all signatures on a file, each once.
func signatures(tb testing.TB, path string) string {
	tb.Helper()
	var kinds []string
	seen := map[string]bool{}
	for kind := range strings.FieldsSeq(tool(tb, "wipefs", "--no-act", "--noheadings", "--output", "TYPE", path)) {
		if !seen[kind] {
			kinds, seen[kind] = append(kinds, kind), true
		}
	}
	return strings.Join(kinds, " ")
}
