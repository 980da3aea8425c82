package fsck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/reimage/mkfs"
	"reassure/image/spec"
)

var made = mkfs.Options{Label: "root", UUID: "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10"}

// fresh makes a file system in a file.
func fresh(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := mkfs.Make(t.Context(), spec.Ext4, file, made, nil); err != nil {
		t.Fatal(err)
	}
	return file
}

func tool(t *testing.T, debian, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: install the Debian package %s", name, debian)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// used has the file system mounted and written to, and returns a copy of the disk
// as a power cut would leave it while do runs.
func used(t *testing.T, file string, do func(dir string) io.Closer) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "mount", "mount", "-o", "loop", file, dir)
	defer tool(t, "mount", "umount", dir)
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), make([]byte, 10*i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if do != nil {
		defer do(dir).Close()
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	copyFile(t, file, cut)
	return cut
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	tool(t, "coreutils", "cp", "--sparse=always", from, to)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		make    func(t *testing.T) string
		damaged string // what it must say
	}{
		{name: "fresh", make: fresh},
		{name: "used", make: func(t *testing.T) string { f := fresh(t); used(t, f, nil); return f }},
		{name: "power cut", make: func(t *testing.T) string {
			cut := used(t, fresh(t), nil)
			if s := tool(t, "e2fsprogs", "dumpe2fs", "-h", cut); !strings.Contains(s, "needs_recovery") {
				t.Fatal("this shows nothing: the journal is empty")
			}
			return cut
		}},
		{name: "power cut with a deleted file open", make: func(t *testing.T) string {
			f := fresh(t)
			return used(t, f, func(dir string) io.Closer {
				open, err := os.Open(filepath.Join(dir, "file100"))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(open.Name()); err != nil {
					t.Fatal(err)
				}
				return open
			})
		}},
		{name: "other features", make: tuned("-O", "project,quota"), damaged: "features"},
		{name: "another label", make: tuned("-L", "toor"), damaged: "label"},
		{name: "panics on errors", make: tuned("-e", "panic"), damaged: "behaviour after errors"},
		{name: "mount options of its own", make: tuned("-E", "mount_opts=data=journal"), damaged: "data=journal"},
		{name: "no reserve", make: tuned("-m", "0"), damaged: "reserved blocks"},
		{name: "smaller", make: func(t *testing.T) string {
			f := fresh(t)
			tool(t, "e2fsprogs", "resize2fs", f, "40M")
			return f
		}, damaged: "blocks"},
		{name: "an inode that is none", make: debugged("set_inode_field <12> mode 0177777"), damaged: "e2fsck: "},
		{name: "two files in one block", make: debugged("set_inode_field <100> block[5] 9000", "set_inode_field <101> block[5] 9000"), damaged: "e2fsck: "},
		{name: "errors noted by the kernel", make: debugged("set_super_value state 2"), damaged: "noted errors"},
		{name: "no superblock", make: func(t *testing.T) string {
			f := fresh(t)
			overwrite(t, f, 1024, make([]byte, 1024))
			return f
		}, damaged: "magic number"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := test.make(t)
			err := Check(t.Context(), file, Options{Made: made})
			var damaged *Damaged
			switch {
			case test.damaged == "" && err != nil:
				t.Error(err)
			case test.damaged != "" && (!errors.As(err, &damaged) || !strings.Contains(err.Error(), test.damaged)):
				t.Errorf("the error is %v; want damage that says %q", err, test.damaged)
			case test.damaged == "":
				tool(t, "e2fsprogs", "e2fsck", "-fn", file) // nothing is left to do
			}
		})
	}
}

func tuned(args ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		f := fresh(t)
		tool(t, "e2fsprogs", "tune2fs", append(args, f)...)
		return f
	}
}

func debugged(requests ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		f := fresh(t)
		used(t, f, nil)
		for _, r := range requests {
			tool(t, "e2fsprogs", "debugfs", "-w", "-R", r, f)
		}
		return f
	}
}

func overwrite(t *testing.T, file string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

// TestRandomDamage has bytes of the metadata be anything: what is called whole is
// whole for Debian's own e2fsck, too.
func TestRandomDamage(t *testing.T) {
	t.Parallel()
	file := fresh(t)
	used(t, file, nil)
	random := rand.New(rand.NewPCG(1, 2))
	found := 0
	for i := range 60 {
		spoiled := filepath.Join(t.TempDir(), "spoiled")
		copyFile(t, file, spoiled)
		for range 1 + i%4 {
			// The superblock, descriptors, bitmaps and the inodes in use.
			overwrite(t, spoiled, random.Int64N(80<<10), []byte{byte(random.Uint32()), byte(random.Uint32())})
		}
		err := Check(context.Background(), spoiled, Options{Made: made})
		var damaged *Damaged
		switch {
		case err == nil:
			tool(t, "e2fsprogs", "e2fsck", "-fn", spoiled)
		case errors.As(err, &damaged):
			found++
		default:
			t.Errorf("image %d: %v", i, err)
		}
	}
	if found < 20 {
		t.Errorf("of 60 damaged images %d were found to be: this shows little", found)
	}
}

// TestProgramFails has e2fsck fail, die and hang, in either of its runs: the file system is
// not believed then, so that it is made anew, and the reason says why.
func TestProgramFails(t *testing.T) {
	t.Parallel()
	file := fresh(t)
	for _, run := range []string{"-p", "-f"} {
		for script, want := range map[string]string{
			"echo broken on purpose; exit 8": "broken on purpose",
			"kill -9 $$":                     "signal: killed",
			"sleep 1000":                     "no end after",
		} {
			program := filepath.Join(t.TempDir(), "e2fsck")
			if err := os.WriteFile(program, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n[ $1 != "+run+" ] || { "+script+"; }\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			var damaged *Damaged
			err := Check(t.Context(), file, Options{Made: made, Program: program, Limit: time.Second})
			if !errors.As(err, &damaged) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s, %s: the error is %v; want damage that says %q", run, script, err, want)
			}
		}
	}
}

func TestNoProgram(t *testing.T) {
	if err := available(filepath.Join(t.TempDir(), "e2fsck")); err == nil || !strings.Contains(err.Error(), "bundles: [e2fsck]") {
		t.Errorf("the error is %v; want the remedy", err)
	}
	if err := Available(); err != nil {
		t.Errorf("%v: install the Debian package e2fsck-static", err)
	}
}
