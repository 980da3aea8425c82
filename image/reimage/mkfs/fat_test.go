package mkfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const testVolumeID = "C0DE-1A2B"

func TestFATIsClean(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size   int64
		sector int
	}{
		{33 * mib, 512}, {64*mib - 512, 512}, {64 * mib, 512}, {64*mib + 512, 512}, {100 * mib, 0}, {127*mib + 1, 512},
		{260*mib - 512, 512}, {260 * mib, 512}, {512 * mib, 512}, {512*mib + 12345, 512}, {gib, 512}, {2 * gib, 512},
		{4*gib - 512, 512}, {4 * gib, 512}, {4*gib + 512, 512}, {8 * gib, 512}, {16 * gib, 512}, {32 * gib, 512}, {100 * gib, 512},
		{65 * mib, 1024}, {129 * mib, 2048},
		{257 * mib, 4096}, {260 * mib, 4096}, {512 * mib, 4096}, {4 * gib, 4096}, {100 * gib, 4096},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.size, c.sector), func(t *testing.T) {
			t.Parallel()
			f := sparse(t, c.size)
			defer remove(t, f)
			if err := FAT(f, c.size, Options{UUID: testVolumeID, Label: "EFI", SectorSize: c.sector}); err != nil {
				t.Fatal(err)
			}
			if info, err := f.Stat(); err != nil || info.Size() != c.size {
				t.Errorf("the file has %d bytes now, %v", info.Size(), err)
			}
			if out := tool(t, "fsck.fat", "-nv", f.Name()); !strings.Contains(out, "32 bit entries") || strings.Count(out, "1 files, 1/") != 1 {
				t.Errorf("fsck.fat: %s", out)
			}
			if got := probe(t, f.Name(), "VERSION"); got != "FAT32" {
				t.Errorf("blkid: version %q; want FAT32", got)
			}
		})
	}
}

// mtools write files and folders into what we made, on a disk full of garbage;
// fsck.fat and GRUB judge what is there then.
func TestFATTakesFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size   int64
		sector int
	}{{64 * mib, 512}, {300 * mib, 512}, {260 * mib, 4096}} {
		t.Run(fmt.Sprintf("%d of %d", c.size, c.sector), func(t *testing.T) {
			t.Parallel()
			f := garbage(t, c.size)
			defer remove(t, f)
			if err := FAT(f, c.size, Options{UUID: testVolumeID, Label: "BOOT", SectorSize: c.sector}); err != nil {
				t.Fatal(err)
			}
			if out := tool(t, "mdir", "-i", f.Name(), "::"); !strings.Contains(out, "Volume in drive : is BOOT") || !strings.Contains(out, testVolumeID) || !strings.Contains(out, "No files") {
				t.Errorf("mdir: %s", out)
			}
			content := strings.Repeat("grubx64.efi ", 300000)
			source := filepath.Join(t.TempDir(), "source")
			if err := os.WriteFile(source, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			tool(t, "mmd", "-i", f.Name(), "::/EFI", "::/EFI/debian")
			for i := range 40 {
				small := filepath.Join(t.TempDir(), "small")
				if err := os.WriteFile(small, []byte(strings.Repeat("x", i*100)), 0o600); err != nil {
					t.Fatal(err)
				}
				tool(t, "mcopy", "-i", f.Name(), small, fmt.Sprintf("::/a long file name %d.text", i))
			}
			tool(t, "mcopy", "-i", f.Name(), source, "::/EFI/debian/grubx64.efi")
			tool(t, "fsck.fat", "-n", f.Name())
			if got := tool(t, "mtype", "-i", f.Name(), "::/EFI/debian/grubx64.efi"); got != content {
				t.Errorf("mtype reads %d bytes; want %d", len(got), len(content))
			}
			if c.sector == 512 { // grub-fstest's sectors
				if got := tool(t, "grub-fstest", f.Name(), "cat", "(loop0)/efi/debian/grubx64.efi"); got != content {
					t.Errorf("GRUB reads %d bytes; want %d", len(got), len(content))
				}
			}
		})
	}
}

// holes writes to a file but leaves out what is zero: the file has holes there.
type holes struct{ *os.File }

func (h holes) WriteAt(p []byte, offset int64) (int, error) {
	if bytes.Count(p, []byte{0}) == len(p) {
		return len(p), nil
	}
	return h.File.WriteAt(p, offset)
}

// The largest volumes.
func TestFATAtItsLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size    int64
		sectors uint32
	}{
		{2 * tib, 1<<32 - 1}, {200 * gib, 200 << 21},
	} {
		f := sparse(t, c.size)
		if err := FAT(holes{f}, c.size, Options{UUID: testVolumeID, Label: "LARGE"}); err != nil {
			t.Fatal(err)
		}
		tool(t, "fsck.fat", "-n", f.Name())
		if got := probe(t, f.Name(), "LABEL"); got != "LARGE" {
			t.Errorf("blkid: label %q of %d bytes", got, c.size)
		}
		out := tool(t, "file", "--brief", f.Name())
		for _, want := range []string{"sectors/cluster 64", "serial number 0xc0de1a2b", `label: "LARGE `, "FAT (32 bit)"} {
			if !strings.Contains(out, want) {
				t.Errorf("file: %q lacks %q", out, want)
			}
		}
		var sectors [4]byte
		if _, err := f.ReadAt(sectors[:], 0x20); err != nil || binary.LittleEndian.Uint32(sectors[:]) != c.sectors {
			t.Errorf("%d sectors, %v; want %d", binary.LittleEndian.Uint32(sectors[:]), err, c.sectors)
		}
		if out := tool(t, "mdir", "-i", f.Name(), "::"); !strings.Contains(out, "No files") {
			t.Errorf("mdir: %s", out)
		}
		remove(t, f)
	}
}

func TestFATRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		size int64
		o    Options
		want string
	}{
		"nothing":            {0, Options{UUID: testVolumeID}, "at least 33 MiB"},
		"one sector of data": {33 * 512, Options{UUID: testVolumeID}, "at least 33 MiB"},
		"too small":          {32 * mib, Options{UUID: testVolumeID}, "at least 33 MiB"},
		"too small for 4K":   {256 * mib, Options{UUID: testVolumeID, SectorSize: 4096}, "at least 257 MiB"},
		"64 MiB of 4K":       {64 * mib, Options{UUID: testVolumeID, SectorSize: 4096}, "at least 257 MiB"},
		"too large":          {2*tib + 512, Options{UUID: testVolumeID}, "2 TiB"},
		"too many clusters":  {16 * tib, Options{UUID: testVolumeID, SectorSize: 4096}, "clusters"},
		"odd sector":         {64 * mib, Options{UUID: testVolumeID, SectorSize: 520}, "520"},
		"no volume ID":       {64 * mib, Options{}, "AAAA-BBBB"},
		"ext4's UUID":        {64 * mib, Options{UUID: testUUID}, "AAAA-BBBB"},
		"dash elsewhere":     {64 * mib, Options{UUID: "123-45678"}, "AAAA-BBBB"},
		"long label":         {64 * mib, Options{UUID: testVolumeID, Label: "twelve bytes"}, "at most 11"},
		"label with a dot":   {64 * mib, Options{UUID: testVolumeID, Label: "a.b"}, "ASCII letters"},
		"label not in ASCII": {64 * mib, Options{UUID: testVolumeID, Label: "Böot"}, "ASCII letters"},
	} {
		t.Run(name, func(t *testing.T) {
			f := sparse(t, 0)
			if err := FAT(f, c.size, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("FAT = %v; want %q", err, c.want)
			}
			if info, err := f.Stat(); err != nil || info.Size() != 0 {
				t.Errorf("something was written: %d bytes, %v", info.Size(), err)
			}
		})
	}
}

func TestFATSaysWhatItWasTold(t *testing.T) {
	t.Parallel()
	for label, dated := range map[string]string{"EFI": "2024-02-29", "lower case": "2024-02-29", "ELEVENBYTES": "2024-02-29", "": ""} {
		f := sparse(t, 100*mib)
		o := Options{UUID: "00a0-beef", Label: label, Time: time.Date(2024, 2, 29, 23, 59, 59, 0, time.UTC)}
		if err := FAT(f, 100*mib, o); err != nil {
			t.Fatal(err)
		}
		tool(t, "fsck.fat", "-n", f.Name())
		for tag, want := range map[string]string{"TYPE": "vfat", "UUID": "00A0-BEEF", "LABEL": label, "LABEL_FATBOOT": label} {
			if got := probe(t, f.Name(), tag); got != want {
				t.Errorf("blkid: %s = %q; want %q", tag, got, want)
			}
		}
		// The root folder's own entry, and when it was made.
		raw := make([]byte, 32)
		b, err := layFAT(100*mib, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(raw, int64(fatReserved+2*b.SectorsPerFAT)*512); err != nil {
			t.Fatal(err)
		}
		if day := int(raw[24]) | int(raw[25])<<8; label != "" && fmt.Sprintf("%d-%02d-%02d", 1980+day>>9, day>>5&15, day&31) != dated {
			t.Errorf("label %q is dated %#x", label, day)
		}
	}
}
