package mkfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"reassure/image/spec"
)

var makers = map[string]func(Device, int64, Options) error{spec.Ext4: Ext4, spec.VFAT: FAT, spec.Swap: Swap}

// named returns options that suit a kind of file system.
func named(kind string) Options {
	switch kind {
	case spec.VFAT:
		return Options{UUID: testVolumeID, Label: "NEW"}
	case spec.XFS, spec.Btrfs:
		// mkfs.btrfs refuses a UUID that any device of this machine has, such as
		// another test's loop device.
		return Options{UUID: uuid.NewString(), Label: "new"}
	}
	return Options{UUID: testUUID, Label: "new"}
}

func TestSwap(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{40960, 5*mib + 777, gib, 64 * gib, 10 * tib} {
		f := sparse(t, size)
		if err := Swap(f, size, Options{UUID: testUUID, Label: "fifteen letters"}); err != nil {
			t.Fatal(err)
		}
		out := fields(tool(t, "swaplabel", f.Name()))
		if out["LABEL"] != "fifteen letters" || out["UUID"] != testUUID {
			t.Errorf("swaplabel: %v", out)
		}
		if got := signatures(t, f.Name()); got != "swap" {
			t.Errorf("wipefs sees %q", got)
		}
		theirs := sparse(t, size)
		tool(t, "mkswap", "-U", testUUID, "-L", "fifteen letters", theirs.Name())
		var ours, want [pageSize]byte
		if _, err := f.ReadAt(ours[:], 0); err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.ReadAt(want[:], 0); err != nil {
			t.Fatal(err)
		}
		if ours != want {
			t.Errorf("at %d bytes the header is not mkswap's", size)
		}
		remove(t, f)
	}
	for name, c := range map[string]struct {
		size int64
		o    Options
		want string
	}{
		"too small":  {40959, Options{UUID: testUUID}, "40 KiB"},
		"too large":  {16*tib + 4096, Options{UUID: testUUID}, "16 TiB"},
		"no UUID":    {mib, Options{}, "36 characters"},
		"long label": {mib, Options{UUID: testUUID, Label: "sixteen letters!"}, "shorten"},
	} {
		if err := Swap(sparse(t, 0), c.size, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Swap = %v; want %q", name, err, c.want)
		}
	}
}

// plant returns a function that writes a text at an offset; below 0 counts from the end.
func plant(text string, offsets ...int64) func(*testing.T, *os.File, int64) {
	return func(t *testing.T, f *os.File, size int64) {
		for _, at := range offsets {
			if at < 0 {
				at += size
			}
			if _, err := f.WriteAt([]byte(text), at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// formerly has what a partition may have held before, and what wipefs calls it.
var formerly = map[string]struct {
	kind string
	make func(t *testing.T, f *os.File, size int64)
}{
	"btrfs": {"btrfs", func(t *testing.T, f *os.File, _ int64) { tool(t, "mkfs.btrfs", "-f", "-q", f.Name()) }},
	"xfs":   {"xfs", func(t *testing.T, f *os.File, _ int64) { tool(t, "mkfs.xfs", "-f", "-q", f.Name()) }},
	"ext4":  {"ext4", func(t *testing.T, f *os.File, _ int64) { tool(t, "mke2fs", "-F", "-q", "-t", "ext4", f.Name()) }},
	"vfat":  {"vfat", func(t *testing.T, f *os.File, _ int64) { tool(t, "mkfs.fat", f.Name()) }},
	"swap":  {"swap", func(t *testing.T, f *os.File, _ int64) { tool(t, "mkswap", f.Name()) }},
	"GPT": {"gpt", func(t *testing.T, f *os.File, _ int64) {
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte("label: gpt\n,\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "sh", "-c", `sfdisk -q "$1" < "$2"`, "sh", f.Name(), script)
	}},
	"LVM2":          {"LVM2_member", plant("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00\x8c\x95\x0a\x5f\x20\x00\x00\x00LVM2 001", 512)},
	"LUKS":          {"crypto_LUKS", plant("LUKS\xba\xbe\x00\x01", 0)},
	"md 1.0 at end": {"linux_raid_member", plantMD},
	"Promise RAID":  {"promise_fasttrack_raid_member", plant("Promise Technology, Inc.", -3087*512)},
	"DDF RAID":      {"ddf_raid_member", plant("\xDE\x11\xDE\x1101.02.00", -512)},
	"VMFS":          {"VMFS_volume_member", plant("\x0d\xd0\x01\xc0", 1<<20)},
	"zfs": {"zfs_member", func(t *testing.T, f *os.File, size int64) {
		for i := range int64(32) {
			for _, label := range []int64{0, 256 << 10, size&^(256<<10-1) - 512<<10, size&^(256<<10-1) - 256<<10} {
				plant("\x0c\xb1\xba\x00\x00\x00\x00\x00", label+128<<10+i<<10)(t, f, size)
			}
		}
	}},
}

// plantMD writes a version 1.0 superblock of Linux's RAID, 8 KiB before the end.
func plantMD(t *testing.T, f *os.File, size int64) {
	at := (size/512 - 16) &^ 7
	super := make([]byte, 256)
	binary.LittleEndian.PutUint32(super[0:], 0xa92b4efc)
	binary.LittleEndian.PutUint32(super[4:], 1)
	copy(super[16:], "sixteen bytes ID")
	binary.LittleEndian.PutUint64(super[144:], uint64(at)) // super_offset
	sum := uint64(0)
	for i := 0; i < len(super); i += 4 {
		sum += uint64(binary.LittleEndian.Uint32(super[i:]))
	}
	binary.LittleEndian.PutUint32(super[216:], uint32(sum)+uint32(sum>>32))
	if _, err := f.WriteAt(super, at*512); err != nil {
		t.Fatal(err)
	}
}

func TestNothingOlderIsFound(t *testing.T) {
	t.Parallel()
	const size = 310*mib + 512
	for before, old := range formerly {
		for kind, maker := range makers {
			t.Run(before+", then "+kind, func(t *testing.T) {
				t.Parallel()
				f := sparse(t, size)
				defer remove(t, f)
				old.make(t, f, size)
				if got := signatures(t, f.Name()); !strings.Contains(" "+got+" ", " "+old.kind+" ") {
					t.Fatalf("before, wipefs sees %q; want %s", got, old.kind)
				}
				if err := maker(f, size, named(kind)); err != nil {
					t.Fatal(err)
				}
				if got := signatures(t, f.Name()); got != kind {
					t.Errorf("wipefs sees %q; want %s alone", got, kind)
				}
				if got := probe(t, f.Name(), "TYPE"); got != kind {
					t.Errorf("blkid sees %q; want %s", got, kind)
				}
			})
		}
	}
}

// recorded keeps all writes, and fails one of them if told to.
type recorded struct {
	offsets []int64
	data    [][]byte
	fail    int // the number of the write that fails, from 1
}

func (r *recorded) WriteAt(p []byte, offset int64) (int, error) {
	if len(r.offsets)+1 == r.fail {
		return 0, syscall.EIO
	}
	r.offsets, r.data = append(r.offsets, offset), append(r.data, bytes.Clone(p))
	return len(p), nil
}

// Until the last write nothing may take what is there for a file system, and an
// error of any write is returned, and is the end of writing.
func TestValidOnlyInTheEnd(t *testing.T) {
	t.Parallel()
	const size = 40 * mib
	for kind, maker := range makers {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			all := &recorded{}
			if err := maker(all, size, named(kind)); err != nil {
				t.Fatal(err)
			}
			f := sparse(t, size)
			for i := range all.offsets {
				if got := signatures(t, f.Name()); got != "" {
					t.Errorf("after %d writes of %d, wipefs sees %s", i, len(all.offsets), got)
				}
				if _, err := f.WriteAt(all.data[i], all.offsets[i]); err != nil {
					t.Fatal(err)
				}
				cut := &recorded{fail: i + 1}
				if err := maker(cut, size, named(kind)); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), fmt.Sprintf("at byte %d", all.offsets[i])) {
					t.Errorf("write %d failed, and the maker says %v", i+1, err)
				}
				if len(cut.offsets) != i {
					t.Errorf("write %d failed, and %d writes came after it", i+1, len(cut.offsets)-i)
				}
			}
			if got := signatures(t, f.Name()); got != kind {
				t.Errorf("in the end, wipefs sees %q", got)
			}
		})
	}
}

func TestMake(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for kind, want := range map[string]string{spec.Ext4: "ext4", spec.VFAT: "vfat", spec.Swap: "swap", spec.XFS: "xfs", spec.Btrfs: "btrfs", spec.None: ""} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := sparse(t, 400*mib)
			var said bytes.Buffer
			o := named(kind)
			if err := Make(ctx, kind, f.Name(), o, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))); err != nil {
				t.Fatal(err)
			}
			for tag, want := range map[string]string{"TYPE": want, "UUID": o.UUID, "LABEL": o.Label} {
				if kind == spec.None {
					want = ""
				}
				if got := probe(t, f.Name(), tag); got != want {
					t.Errorf("blkid: %s = %q; want %q", tag, got, want)
				}
			}
			if kind != spec.None && !strings.Contains(said.String(), f.Name()) {
				t.Errorf("the log does not name the device: %s", said.String())
			}
		})
	}
}

func TestMakeRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	missing := filepath.Join(dir, "sda1")
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		ctx          context.Context
		kind, device string
		o            Options
		want         string
	}{
		"missing device":      {ctx, spec.Ext4, missing, named(spec.Ext4), "no such file"},
		"missing, xfs":        {ctx, spec.XFS, missing, named(spec.XFS), "no such file"},
		"folder":              {ctx, spec.Ext4, dir, named(spec.Ext4), "neither a block device nor a regular file"},
		"character device":    {ctx, spec.Swap, "/dev/null", named(spec.Swap), "neither a block device nor a regular file"},
		"too small":           {ctx, spec.Ext4, small, named(spec.Ext4), "16 MiB"},
		"unknown file system": {ctx, "ntfs", small, Options{}, "use ext4, vfat"},
		"stopped":             {ended, spec.Ext4, small, named(spec.Ext4), "canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Make(c.ctx, c.kind, c.device, c.o, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.device) {
				t.Errorf("Make = %v; want %q and the device's name", err, c.want)
			}
		})
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the missing device was made: %v", err)
	}
	if err := available(dir, spec.XFS); err == nil || !strings.Contains(err.Error(), "bundles: [xfs]") {
		t.Errorf("without mkfs.xfs: %v; want the configuration that adds it", err)
	}
	if err := Available(spec.Btrfs); err != nil {
		t.Errorf("%v: install the Debian package btrfs-progs", err)
	}
	if err := available(dir, spec.Ext4); err != nil {
		t.Errorf("ext4 needs no program: %v", err)
	}
}

// What Check lets pass can be made, and what it refuses cannot.
func TestCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind string
		size int64
		o    Options
		want string
	}{
		"ext4":              {spec.Ext4, 16 * mib, named(spec.Ext4), ""},
		"small ext4":        {spec.Ext4, 16*mib - 1, named(spec.Ext4), "16 MiB"},
		"vfat":              {spec.VFAT, 33 * mib, named(spec.VFAT), ""},
		"small vfat":        {spec.VFAT, 32 * mib, named(spec.VFAT), "33 MiB"},
		"swap":              {spec.Swap, 40960, named(spec.Swap), ""},
		"small swap":        {spec.Swap, 40959, named(spec.Swap), "40 KiB"},
		"xfs":               {spec.XFS, 300 * mib, named(spec.XFS), ""},
		"small xfs":         {spec.XFS, 300*mib - 4096, named(spec.XFS), "larger"},
		"xfs, long label":   {spec.XFS, gib, Options{UUID: testUUID, Label: "thirteen byte"}, "shorten"},
		"btrfs":             {spec.Btrfs, 114294784, named(spec.Btrfs), ""},
		"small btrfs":       {spec.Btrfs, 114294784 - 4096, named(spec.Btrfs), "larger"},
		"btrfs, no UUID":    {spec.Btrfs, gib, Options{}, "36 characters"},
		"nothing":           {spec.None, 0, Options{}, ""},
		"unknown":           {"ntfs", gib, Options{}, "use ext4, vfat"},
		"small, of nothing": {spec.Ext4, 0, named(spec.Ext4), "16 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(c.kind, c.size, c.o)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check = %v; want %q", err, c.want)
			}
			if err == nil {
				f := sparse(t, c.size)
				if err := Make(context.Background(), c.kind, f.Name(), c.o, nil); err != nil {
					t.Errorf("Make = %v", err)
				}
			}
		})
	}
}

// A device that is mounted must not be written to.
func TestMakeRefusesADeviceInUse(t *testing.T) {
	t.Parallel()
	f := sparse(t, 320*mib)
	if err := Make(context.Background(), spec.Ext4, f.Name(), named(spec.Ext4), nil); err != nil {
		t.Fatal(err)
	}
	mounted(t, f, "noinit_itable", func(dir string) {
		device := strings.TrimSpace(tool(t, "findmnt", "-n", "-o", "SOURCE", dir))
		for _, kind := range []string{spec.Swap, spec.XFS} {
			err := Make(context.Background(), kind, device, named(kind), nil)
			if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "unmount") {
				t.Errorf("Make of %s on %s, which is mounted: %v", kind, device, err)
			}
		}
	})
	tool(t, "e2fsck", "-fn", f.Name())
}

// A program that is being started holds what was open for a moment after it was closed.
func TestMakeWhileProgramsStart(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(context.Background())
	var starters sync.WaitGroup
	defer func() { stop(); starters.Wait() }()
	for range 4 {
		starters.Go(func() {
			for ctx.Err() == nil {
				tool(t, "true")
			}
		})
	}
	f := sparse(t, 64*mib)
	device := strings.TrimSpace(tool(t, "losetup", "--find", "--show", f.Name()))
	defer tool(t, "losetup", "--detach", device)
	for range 10 {
		for _, kind := range []string{spec.Swap, spec.VFAT} {
			if err := Make(ctx, kind, device, named(kind), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A disk with sectors of 4096 bytes is asked for them.
func TestMakeAsksForTheSectorSize(t *testing.T) {
	t.Parallel()
	f := sparse(t, 300*mib)
	device := strings.TrimSpace(tool(t, "losetup", "--find", "--show", "--sector-size", "4096", f.Name()))
	defer tool(t, "losetup", "--detach", device)
	if err := Make(context.Background(), spec.VFAT, device, named(spec.VFAT), nil); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "fsck.fat", "-nv", device); !strings.Contains(out, "4096 bytes per logical sector") {
		t.Errorf("fsck.fat: %s", out)
	}
	for _, kind := range []string{spec.Ext4, spec.Swap} {
		if err := Make(context.Background(), kind, device, named(kind), nil); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if got := signatures(t, device); got != kind {
			t.Errorf("wipefs sees %q; want %s", got, kind)
		}
	}
}

// TestProgramFails has mkfs.xfs and mkfs.btrfs fail and hang: the error says which, and why.
func TestProgramFails(t *testing.T) {
	for _, kind := range []string{spec.XFS, spec.Btrfs} {
		for script, want := range map[string]string{
			"echo broken on purpose >&2; exit 3": "exit status 3: broken on purpose",
			"kill -9 $$":                         "signal: killed",
			"sleep 1000":                         "no end after",
		} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "mkfs."+kind), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			err := makeByProgram(ctx, dir, kind, "/nonexistent", Options{UUID: "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10"}, nil)
			cancel()
			if err == nil || !strings.Contains(err.Error(), "mkfs."+kind) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error is %v; want one with %q", script, err, want)
			}
		}
	}
}
