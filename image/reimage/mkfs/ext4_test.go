package mkfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	mib   = 1 << 20
	gib   = 1 << 30
	tib   = 1 << 40
	group = blocksPerGroup * blockSize
)

// ext4Sizes are sizes in bytes at which a layout may go wrong.
func ext4Sizes() []int64 {
	sizes := []int64{
		// Small, and not whole blocks or sectors.
		16 * mib, 16*mib + 1, 16*mib + 4095, 16*mib + 512, 17 * mib, 20 * mib, 31*mib + 513, 33 * mib, 48 * mib, 63 * mib, 64 * mib,
		100 * mib, 100 * 1000 * 1000, 200 * mib, 250*mib + 12345, 300 * mib, 500 * mib, 600 * mib, 700*mib - 1, 999 * mib,
		// Disks as they are sold, whole and less a first mebibyte.
		60022480896, 64023257088, 80026361856, 120034123776, 128035676160, 160041885696, 240057409536, 250059350016, 256060514304,
		320072933376, 500107862016, 1000204886016, 2000398934016,
		500107862016 - mib, 250059350016 - mib - 17*512,
		// Round ones.
		3 * gib, 5 * gib, 7 * gib, 10 * gib, 20 * gib, 50 * gib, 100 * gib, 200 * gib, 333 * gib, 10 * tib,
	}
	// Any, within the first few groups.
	for size := int64(16 * mib); size < gib; size += 33*mib + 5555 {
		sizes = append(sizes, size)
	}
	// Around mke2fs's borders for inodes and journals.
	for _, at := range []int64{512 * mib, gib, 2 * gib, 16 * gib, 32 * gib, 64 * gib, 128 * gib} {
		sizes = append(sizes, at-4096, at-1, at, at+1, at+4096)
	}
	// Whole groups, a block more and less, and the shortest last group that is
	// kept, and one block less; with that group in every role: inside a flex
	// group (2, 18), its only one (16, 32, 48), and with a superblock (1, 3, 9, 25, 27, 49, 81).
	for _, groups := range []int64{1, 2, 3, 4, 5, 9, 15, 16, 17, 18, 25, 27, 32, 48, 49, 81, 128} {
		at := groups * group
		kept := int64(0)
		for short := int64(1); short < blocksPerGroup; short++ {
			if l, err := layExt4(uint64(at + short*blockSize)); err == nil && int64(l.groups) == groups+1 {
				kept = short
				break
			}
		}
		sizes = append(sizes, at-4096, at, at+4096, at+(kept-1)*blockSize, at+kept*blockSize)
	}
	return sizes
}

func TestExt4IsCleanAtAllSizes(t *testing.T) {
	t.Parallel()
	sizes := map[int64]bool{}
	for _, size := range ext4Sizes() {
		if sizes[size] {
			continue
		}
		sizes[size] = true
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			f := sparse(t, size)
			defer remove(t, f)
			if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
				t.Fatal(err)
			}
			// No longer than it was, and clean: no question that -n would answer.
			if info, err := f.Stat(); err != nil || info.Size() != size {
				t.Errorf("the file has %d bytes now, %v", info.Size(), err)
			}
			tool(t, "e2fsck", "-fn", f.Name())
		})
	}
	t.Logf("%d sizes", len(sizes))
	if len(sizes) < 150 {
		t.Errorf("only %d sizes", len(sizes))
	}
}

// Above 16 TiB numbers of blocks need more than 32 bits. The file is in memory:
// a file on ext4 itself cannot be so large.
func TestExt4Above16TiB(t *testing.T) {
	t.Parallel()
	const size = 17*tib + 123*mib
	dir, err := os.MkdirTemp("/dev/shm", "mkfs")
	if err != nil {
		t.Fatalf("%v: mount a tmpfs there", err)
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
		t.Fatal(err)
	}
	tool(t, "e2fsck", "-fn", f.Name())
}

func TestExt4Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		o    Options
		want string
	}{
		"too small":          {16*mib - 1, Options{UUID: testUUID}, "16 MiB"},
		"too large":          {64*tib + 1, Options{UUID: testUUID}, "64 TiB"},
		"no UUID":            {64 * mib, Options{}, "36 characters"},
		"nil UUID":           {64 * mib, Options{UUID: "00000000-0000-0000-0000-000000000000"}, "not all of them 0"},
		"UUID without dash":  {64 * mib, Options{UUID: "5b6f0a3e-4c57-4a1c-9a55+0d9c8f1f7a10"}, "36 characters"},
		"UUID with a letter": {64 * mib, Options{UUID: "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a1g"}, "36 characters"},
		"long label":         {64 * mib, Options{UUID: testUUID, Label: "seventeen letters"}, "shorten"},
	} {
		t.Run(name, func(t *testing.T) {
			f := sparse(t, 0)
			if err := Ext4(f, c.size, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Ext4 = %v; want %q", err, c.want)
			}
			if info, err := f.Stat(); err != nil || info.Size() != 0 {
				t.Errorf("something was written: %d bytes, %v", info.Size(), err)
			}
		})
	}
}

func TestExt4SaysWhatItWasTold(t *testing.T) {
	const size = 700 * mib
	f := sparse(t, size)
	made := time.Date(2039, 2, 3, 4, 5, 6, 7, time.UTC) // past 31 bits of seconds
	if err := Ext4(f, size, Options{UUID: testUUID, Label: "sixteen letters!", Time: made}); err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]string{"TYPE": "ext4", "UUID": testUUID, "LABEL": "sixteen letters!"} {
		if got := probe(t, f.Name(), tag); got != want {
			t.Errorf("blkid: %s = %q; want %q", tag, got, want)
		}
	}
	// mke2fs's own answers for the same size, all but what we choose otherwise.
	theirs := sparse(t, size)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^resize_inode", "-U", testUUID, "-L", "sixteen letters!", theirs.Name())
	t.Setenv("TZ", "UTC")
	ours := fields(tool(t, "tune2fs", "-l", f.Name()))
	for key, want := range fields(tool(t, "tune2fs", "-l", theirs.Name())) {
		switch key {
		case "Filesystem created", "Last write time", "Last checked":
			want = "Thu Feb  3 04:05:06 2039"
		case "Directory Hash Seed", "Checksum", "Lifetime writes":
			continue
		}
		if ours[key] != want {
			t.Errorf("%s: %q; mke2fs has %q", key, ours[key], want)
		}
	}
	for _, inode := range []string{"<2>", "<8>", "<11>"} {
		if out := tool(t, "debugfs", "-R", "stat "+inode, f.Name()); strings.Count(out, "Thu Feb  3 04:05:06 2039") != 4 {
			t.Errorf("inode %s is not dated as it should be:\n%s", inode, out)
		}
	}
}

// fields reads lines of "key: value".
func fields(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			all[key] = strings.TrimSpace(value)
		}
	}
	return all
}

func TestExt4IsReproducible(t *testing.T) {
	const size = 40 * mib
	o := Options{UUID: testUUID, Label: "root", Time: time.Unix(1700000000, 5)}
	var made [2][]byte
	for i := range made {
		f := sparse(t, size)
		if err := Ext4(f, size, o); err != nil {
			t.Fatal(err)
		}
		var err error
		if made[i], err = os.ReadFile(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("the same options gave different bytes")
	}
}

func TestExt4CopiesOfTheSuperblock(t *testing.T) {
	const size = 10 * gib
	f := sparse(t, size)
	if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []int64{1, 3, 5, 7, 9, 25, 27, 49} {
		at := fmt.Sprint(g * blocksPerGroup)
		out := fields(tool(t, "dumpe2fs", "-h", "-o", "superblock="+at, "-o", "blocksize=4096", f.Name()))
		if out["Filesystem UUID"] != testUUID || out["Block count"] != fmt.Sprint(size/blockSize) {
			t.Errorf("copy at block %s is for %q with %q blocks", at, out["Filesystem UUID"], out["Block count"])
		}
	}
	// With the first block and all first descriptors gone, e2fsck mends it from a copy.
	if _, err := f.WriteAt(make([]byte, 64*1024), 0); err != nil {
		t.Fatal(err)
	}
	if out, status := try(t, "e2fsck", "-fy", f.Name()); status > 1 {
		t.Fatalf("e2fsck -fy: exit status %d\n%s", status, out)
	}
	tool(t, "e2fsck", "-fn", f.Name())
}

func TestExt4IsResized(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to int64 }{
		{64 * mib, 300 * mib}, {300 * mib, 100 * mib}, {gib, 3*gib + 5*mib}, {5 * gib, 2 * gib}, {20 * gib, 100 * gib},
	} {
		t.Run(fmt.Sprintf("%d to %d", c.from, c.to), func(t *testing.T) {
			t.Parallel()
			f := sparse(t, max(c.from, c.to))
			if err := Ext4(f, c.from, Options{UUID: testUUID}); err != nil {
				t.Fatal(err)
			}
			tool(t, "e2fsck", "-fy", f.Name()) // resize2fs asks for it
			tool(t, "resize2fs", f.Name(), fmt.Sprintf("%ds", c.to/512))
			tool(t, "e2fsck", "-fn", f.Name())
			got := fields(tool(t, "dumpe2fs", "-h", f.Name()))["Block count"]
			if want := fmt.Sprint(c.to / blockSize); got != want {
				t.Errorf("%s blocks; want %s", got, want)
			}
		})
	}
}

// GRUB must find its files in what we make. They are put there by debugfs.
func TestGRUBReadsExt4(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("menuentry 'the lab' {}\n", 10000)
	source := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(source, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{16 * mib, 100 * mib, gib, 200 * gib, tib} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			f := sparse(t, size)
			defer remove(t, f)
			if err := Ext4(f, size, Options{UUID: testUUID, Label: "boot"}); err != nil {
				t.Fatal(err)
			}
			script := filepath.Join(t.TempDir(), "script")
			commands := "mkdir /boot\nmkdir /boot/grub\ncd /boot/grub\nwrite " + source + " grub.cfg\nsymlink alias grub.cfg\n"
			if err := os.WriteFile(script, []byte(commands), 0o600); err != nil {
				t.Fatal(err)
			}
			tool(t, "debugfs", "-w", "-f", script, f.Name())
			tool(t, "e2fsck", "-fn", f.Name())
			if got := tool(t, "grub-fstest", f.Name(), "cat", "(loop0)/boot/grub/alias"); got != content {
				t.Errorf("GRUB reads %d bytes; want %d", len(got), len(content))
			}
			if got := tool(t, "grub-fstest", f.Name(), "--", "ls", "-l", "(loop0)"); !strings.Contains(got, testUUID) || !strings.Contains(got, "boot") {
				t.Errorf("GRUB sees %q", got)
			}
		})
	}
}

// mounted mounts a file, runs do in it, and unmounts it.
func mounted(t *testing.T, f *os.File, options string, do func(dir string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting needs root: run the tests as root")
	}
	dir := t.TempDir()
	tool(t, "mount", "-t", "ext4", "-o", "loop,"+options, f.Name(), dir)
	defer tool(t, "umount", dir)
	do(dir)
}

// The kernel fills file systems on a used disk to the brim, while it clears the
// inode tables in the background.
func TestKernelFillsExt4(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{16 * mib, group + 19*mib + 777} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			f := garbage(t, size)
			if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
				t.Fatal(err)
			}
			tool(t, "e2fsck", "-fn", f.Name())
			files := 0
			name := func(dir string, i int) string {
				return filepath.Join(dir, fmt.Sprintf("folder %d", i%7), fmt.Sprintf("file %d with a name that fills its folder", i))
			}
			content := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, i*37%9000+1) }
			mounted(t, f, "init_itable=0", func(dir string) {
				if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "lost+found" {
					t.Errorf("the new root folder holds %v, %v", entries, err)
				}
				for i := range 7 {
					if err := os.Mkdir(filepath.Dir(name(dir, i)), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				for ; ; files++ {
					err := os.WriteFile(name(dir, files), content(files), 0o644)
					if errors.Is(err, syscall.ENOSPC) {
						os.Remove(name(dir, files))
						break
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				// What room is left for inodes or blocks.
				for i := 0; ; i++ {
					err := os.Mkdir(filepath.Join(dir, "lost+found", fmt.Sprint(i)), 0o700)
					if err == nil {
						err = os.Symlink(strings.Repeat("far away ", 20), filepath.Join(dir, fmt.Sprint("link ", i)))
					}
					if errors.Is(err, syscall.ENOSPC) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			})
			if files < 500 {
				t.Errorf("no room after %d files", files)
			}
			tool(t, "e2fsck", "-fn", f.Name())
			mounted(t, f, "ro", func(dir string) {
				for i := range files {
					if got, err := os.ReadFile(name(dir, i)); err != nil || !bytes.Equal(got, content(i)) {
						t.Fatalf("file %d of %d is damaged: %d bytes, %v", i, files, len(got), err)
					}
				}
			})
		})
	}
}

// A journal in more extents than an inode holds has a tree; the kernel must
// find its way.
func TestKernelMountsExt4WithALargeJournal(t *testing.T) {
	t.Parallel()
	const size = 200*gib + 5*group/3
	l, err := layExt4(size)
	if err != nil || l.journalTree == 0 {
		t.Fatalf("the journal needs no tree, %v: choose another size", err)
	}
	f := sparse(t, size)
	if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
		t.Fatal(err)
	}
	mounted(t, f, "noinit_itable", func(dir string) {
		// Folders in the root are spread over all groups (Orlov).
		for i := range 200 {
			sub := filepath.Join(dir, fmt.Sprint(i))
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(sub, "file"), make([]byte, 10000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	tool(t, "e2fsck", "-fn", f.Name())
}

// A PC is reimaged again and again with the same layout, so its new journal lies
// on its last one's transactions. After a power cut none of them may come back.
func TestOldJournalIsNotReplayed(t *testing.T) {
	t.Parallel()
	const size = 64 * mib
	f := garbage(t, size)
	work := func(dir, prefix string, n int) {
		for i := range n {
			path := filepath.Join(dir, fmt.Sprint(prefix, i))
			file, err := os.Create(path)
			if err == nil {
				_, err = file.WriteString(path)
				// Each is a transaction of its own.
				err = errors.Join(err, file.Sync(), file.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	make := func(second int64) {
		if err := Ext4(f, size, Options{UUID: testUUID, Time: time.Unix(1700000000+second, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	make(0)
	mounted(t, f, "noinit_itable", func(dir string) { work(dir, "old", 60) })
	make(1)
	cut := sparse(t, size)
	mounted(t, f, "noinit_itable", func(dir string) {
		work(dir, "new", 20)
		// What the disk would hold if power failed now.
		if _, err := io.Copy(cut, io.NewSectionReader(f, 0, size)); err != nil {
			t.Fatal(err)
		}
	})
	if out := tool(t, "dumpe2fs", "-h", cut.Name()); !strings.Contains(out, "needs_recovery") {
		t.Fatalf("nothing is to be replayed:\n%s", out)
	}
	mounted(t, cut, "noinit_itable", func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, e := range entries {
			switch {
			case strings.HasPrefix(e.Name(), "old"):
				t.Errorf("%s came back", e.Name())
			case strings.HasPrefix(e.Name(), "new"):
				found++
			}
		}
		if found != 20 {
			t.Errorf("%d files of 20 were kept", found)
		}
	})
	tool(t, "e2fsck", "-fn", cut.Name())
}
