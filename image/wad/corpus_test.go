package wad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// data lists the parts of a file that are no holes. The last may be shorter
// than it is on the disk: what matters is what reads as something.
func data(t *testing.T, path string) (regions []Region, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return regions, info.Size()
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		regions = append(regions, Region{from, at - from})
	}
}

// Files of more than the 8 GiB that an octal header can tell, each nearly all
// hole: the size is told in base 256 or by a pax record, and the same holes come out.
func TestBig(t *testing.T) {
	source := t.TempDir()
	sh(t, source, `truncate -s 9G end; printf x | dd of=end bs=1 seek=9663676000 conv=notrunc status=none
truncate -s 10G start; printf y | dd of=start conv=notrunc status=none
truncate -s 8589934592 limit`)
	for _, test := range []struct{ name, pack string }{
		{"gnu", "tar --format=gnu -S -cf $A ."},
		{"old gnu", "tar --format=oldgnu -S -cf $A ."},
		{"pax 0.0", "tar --format=pax -S --sparse-version=0.0 -cf $A ."},
		{"pax 0.1", "tar --format=pax -S --sparse-version=0.1 -cf $A ."},
		{"pax 1.0", "tar --format=pax -S --sparse-version=1.0 -cf $A ."},
		{"bsdtar", "bsdtar --format=pax -cf $A ."},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			tmp := t.TempDir()
			sh(t, source, "A="+tmp+"/wad; mkdir "+tmp+"/ours "+tmp+"/theirs; "+test.pack)
			if _, err := extract(t, tmp+"/wad", tmp+"/ours", Options{}); err != nil {
				t.Fatal(err)
			}
			sh(t, tmp, "tar -xf wad -C theirs")
			for _, name := range []string{"end", "start", "limit"} {
				got, size := data(t, tmp+"/ours/"+name)
				want, wantSize := data(t, tmp+"/theirs/"+name)
				if diff := cmp.Diff(want, got); diff != "" || size != wantSize {
					t.Errorf("%s has %d bytes; want %d; what is no hole (-want +got):\n%s", name, size, wantSize, diff)
				}
				for _, r := range got {
					sh(t, tmp, fmt.Sprintf("cmp --ignore-initial=%d --bytes=%d ours/%s theirs/%s", r.Offset, r.Length, name, name))
				}
			}
		})
	}
}

// header is a block of a ustar archive, made by hand where archive/tar writes none such.
type header [512]byte

func (h *header) put(at int, text string) *header {
	copy(h[at:], text)
	return h
}

// sum gives the header its checksum.
func (h *header) sum() []byte {
	h.put(148, "        ")
	n := 0
	for _, b := range h {
		n += int(b)
	}
	h.put(148, fmt.Sprintf("%06o\x00 ", n))
	return h[:]
}

func ustar(name string, kind byte, size int64) *header {
	var h header
	h.put(0, name).put(100, "0000644\x00").put(108, "0000000\x00").put(116, "0000000\x00")
	h.put(124, fmt.Sprintf("%011o\x00", size)).put(136, "07346545075\x00").put(257, "ustar\x0000")
	h[156] = kind
	return &h
}

// padded is content with the zeros that fill its last block.
func padded(body string) []byte {
	return append([]byte(body), make([]byte, (512-len(body)%512)%512)...)
}

// records is the content of a pax header, in the order given.
func records(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		rest := " " + pairs[i] + "=" + pairs[i+1] + "\n"
		n := len(rest) + 1
		for len(fmt.Sprint(n))+len(rest) != n {
			n++
		}
		fmt.Fprintf(&b, "%d%s", n, rest)
	}
	return b.String()
}

// pax is an extended header.
func pax(kind byte, pairs ...string) []byte {
	body := records(pairs...)
	return append(ustar("PaxHeaders/x", kind, int64(len(body))).sum(), padded(body)...)
}

// Headers as star writes them, which Debian has no package of, and others by
// hand: each comes out as GNU tar has it, or is refused with its name.
func TestOddHeaders(t *testing.T) {
	needRoot(t)
	// base256 is a number as GNU tar writes those that octal digits cannot tell.
	base256 := func(n uint64) string {
		b := make([]byte, 12)
		b[0] = 0x80
		for i := 11; i > 3; i, n = i-1, n>>8 {
			b[i] = byte(n)
		}
		return string(b)
	}
	star := func(name string, kind byte, size int64) *header {
		// star's own: "tar" in the last bytes, times of access and change before
		// them, and a prefix that is shorter for it.
		return ustar(name, kind, size).put(257, "ustar\x0000").put(476, "07346545075 ").put(488, "07346545075 ").put(508, "tar\x00")
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	long := strings.Repeat("n", 120)
	for _, test := range []struct {
		name    string
		wad     []byte
		want    map[string]string
		refused string // name of the entry; "-" where none can be told
		differs string // why GNU tar does otherwise
	}{
		{name: "xstar", wad: join(star("a", '0', 3).sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "xstar, prefix", wad: join(star("a", '0', 3).put(345, "deep/folder").sum(), padded("abc")), want: map[string]string{"deep": "/", "deep/folder": "/", "deep/folder/a": "abc"}},
		{name: "old star", wad: join(star("a", '0', 3).put(257, "\x00\x00\x00\x00\x00\x00\x00\x00").sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "exustar", wad: join(pax('g', "SCHILY.archtype", "exustar"), pax('x', "atime", "1.5", "ctime", "2.5", "mtime", "1000000000.25", "SCHILY.dev", "2049", "SCHILY.ino", "17", "SCHILY.nlink", "1", "SCHILY.filetype", "regular"),
			ustar("a", '0', 3).sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "exustar, ACL with numbers", wad: join(pax('x', "SCHILY.acl.access", "user::rw-,user:lab:r--:4711,group::r--,mask::r--,other::r--"), ustar("a", '0', 3).sum(), padded("abc")), want: map[string]string{"a": "abc"}, differs: "libacl refuses the fourth field, which star writes"},
		{name: "contiguous file", wad: join(ustar("a", '7', 3).sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "file of an old archive", wad: join(ustar("a", 0, 3).put(257, "\x00\x00\x00\x00\x00\x00\x00\x00").sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "folder of an old archive", wad: join(ustar("d/", 0, 0).put(257, "\x00\x00\x00\x00\x00\x00\x00\x00").sum()), want: map[string]string{"d": "/"}},
		{name: "name of 100 bytes without an end", wad: join(ustar(long[:100], '0', 3).sum(), padded("abc")), want: map[string]string{long[:100]: "abc"}},
		{name: "long name of GNU", wad: join(ustar("././@LongLink", 'L', 121).put(257, "ustar  \x00").sum(), padded(long+"\x00"), ustar(long[:100], '0', 3).put(257, "ustar  \x00").sum(), padded("abc")), want: map[string]string{long: "abc"}},
		{name: "long name of GNU that leads out", wad: join(ustar("././@LongLink", 'L', 10).put(257, "ustar  \x00").sum(), padded("../../out\x00"), ustar("a", '0', 3).put(257, "ustar  \x00").sum(), padded("abc")), refused: "../../out"},
		{name: "name by pax that leads out", wad: join(pax('x', "path", "x/../../out"), ustar("a", '0', 3).sum(), padded("abc")), refused: "x/../../out"},
		{name: "link by pax that leads out", wad: join(pax('x', "linkpath", "../out"), ustar("a", '1', 0).sum()), refused: "a"},
		{name: "size by pax", wad: join(pax('x', "size", "3"), ustar("a", '0', 0).sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "the last of two records", wad: join(pax('x', "path", "no", "path", "yes"), ustar("a", '0', 3).sum(), padded("abc")), want: map[string]string{"yes": "abc"}},
		{name: "size in base 256", wad: join(ustar("a", '0', 0).put(124, base256(3)).sum(), padded("abc")), want: map[string]string{"a": "abc"}},
		{name: "9 GiB that are not there", wad: join(ustar("a", '0', 0).put(124, base256(9<<30)).sum(), padded("abc")), refused: "-"},
		{name: "8 EiB in base 256", wad: join(ustar("a", '0', 0).put(124, base256(1<<63-1)).sum(), padded("abc")), refused: "a"},
		{name: "more than 8 EiB", wad: join(ustar("a", '0', 0).put(124, base256(1<<63)).sum(), padded("abc")), refused: "-"},
		{name: "negative size", wad: join(ustar("a", '0', 0).put(124, strings.Repeat("\xff", 12)).sum(), padded("abc")), refused: "-"},
		{name: "8 EiB by pax", wad: join(pax('x', "size", "9223372036854775807"), ustar("a", '0', 0).sum(), padded("abc")), refused: "a"},
		{name: "more than 8 EiB by pax", wad: join(pax('x', "size", "9223372036854775808"), ustar("a", '0', 0).sum(), padded("abc")), refused: "-"},
		{name: "8 EiB of hole", wad: join(pax('x', "GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "a", "GNU.sparse.size", "9223372036854775807", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,3"), ustar("x", '0', 3).sum(), padded("abc")), refused: "a"},
		{name: "8 EiB of hole, old", wad: join(ustar("a", 'S', 3).put(257, "ustar  \x00").put(386, "00000000000\x0000000000003\x00").put(483, base256(1<<63-1)).sum(), padded("abc")), refused: "a"},
		{name: "hole beyond the end", wad: join(pax('x', "GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "a", "GNU.sparse.size", "2", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "10,3"), ustar("x", '0', 3).sum(), padded("abc")), refused: "-"},
		{name: "map that goes back", wad: join(pax('x', "GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "a", "GNU.sparse.size", "20", "GNU.sparse.numblocks", "2", "GNU.sparse.map", "10,2,0,1"), ustar("x", '0', 3).sum(), padded("abc")), refused: "-"},
		{name: "map 1.0 that never ends", wad: join(pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "a", "GNU.sparse.realsize", "20"), ustar("x", '0', 512).sum(), padded("99999999\n0\n1\n")), refused: "-"},
		{name: "record with a length that is wrong", wad: join(ustar("x", 'x', 12).sum(), padded("99 path=abc\n"), ustar("a", '0', 3).sum(), padded("abc")), refused: "-"},
		{name: "global header that names everything", wad: join(pax('g', "path", "evil"), ustar("a", '0', 3).sum(), padded("abc")), refused: "-"},
		{name: "wrong checksum", wad: join(ustar("a", '0', 3).put(148, "000001\x00 ")[:], padded("abc")), refused: "-"},
		{name: "user that no Linux has", wad: join(pax('x', "uid", "4294967295"), ustar("a", '0', 3).sum(), padded("abc")), refused: "a"},
		{name: "time that no Linux has", wad: join(pax('x', "mtime", "99999999999999999999"), ustar("a", '0', 3).sum(), padded("abc")), refused: "-"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			tmp := t.TempDir()
			sh(t, tmp, "mkdir ours theirs")
			archive := append(bytes.Clone(test.wad), make([]byte, 1024)...)
			if err := os.WriteFile(tmp+"/wad", archive, 0o600); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err := extract(t, tmp+"/wad", tmp+"/ours", Options{})
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if test.refused != "" {
				var e *EntryError
				if _, packed := Pack(t.Context(), bytes.NewReader(archive), tmp+"/packed", PackOptions{}); packed == nil {
					t.Error("it is packed, though it cannot be extracted")
				}
				if err == nil || test.refused != "-" && (!errors.As(err, &e) || e.Entry != test.refused) {
					t.Errorf("error: %v; want one that names %q", err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, listing(t, tmp+"/ours")); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			cmd := exec.Command("tar", "-xpf", "../wad", "--numeric-owner", "--acls")
			cmd.Dir = tmp + "/theirs"
			said, err := cmd.CombinedOutput()
			if test.differs != "" {
				t.Logf("GNU tar: %v: %s (%s)", err, said, test.differs)
				return
			}
			if err != nil {
				t.Errorf("GNU tar: %v: %s", err, said)
			}
			compareSince(t, tmp+"/ours", tmp+"/theirs", start)
		})
	}
}

// FuzzTar takes archives that are broken in any way: no panic, nothing beside
// the root, and an end, on a disk of 32 MiB and within seconds.
func FuzzTar(f *testing.F) {
	needRoot(f)
	disk := f.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=32m,nr_inodes=4096"); err != nil {
		f.Fatal(err)
	}
	// From here on it has no name, and goes with this process, however that ends.
	fd, err := unix.Open(disk, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err := errors.Join(err, unix.Unmount(disk, unix.MNT_DETACH)); err != nil {
		f.Fatal(err)
	}
	disk = fmt.Sprintf("/proc/self/fd/%d", fd)
	source := f.TempDir()
	tool(f, "setfacl", "acl")
	sh(f, source, `mkdir d; echo text > d/file; ln d/file hard; ln -s d/file soft; mkfifo fifo; mknod null c 1 3
truncate -s 100k holes; printf x | dd of=holes bs=1 seek=50000 conv=notrunc status=none; setfattr -n user.k -v v d/file; setfacl -m u:4711:rwx d
echo l > "$(printf 'n%.0s' {1..120})"`)
	for _, options := range []string{"--format=v7 --exclude=n* --exclude=null --exclude=fifo", "--format=ustar --exclude=nnn*", "--format=oldgnu -S", "--format=gnu -S", "--format=gnu --listed-incremental=" + f.TempDir() + "/snar",
		"--format=pax -S --sparse-version=0.0 --acls --xattrs", "--format=pax -S --sparse-version=0.1", "--format=pax -S --sparse-version=1.0 --acls --xattrs"} {
		archive, err := exec.Command("bash", "-c", "cd "+source+" && tar -b1 -cf - "+options+" *").Output()
		if err != nil {
			f.Fatalf("tar %s: %v", options, err)
		}
		f.Add(archive)
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		top, err := os.MkdirTemp(disk, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(top)
		root := filepath.Join(top, "1", "2", "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err = Extract(ctx, bytes.NewReader(archive), root, Options{MemoryLimit: 1, Workers: 2})
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("no end: %v", err)
		}
		for _, dir := range []string{top, filepath.Dir(filepath.Dir(root)), filepath.Dir(root)} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Fatalf("%s holds %v", dir, entries)
			}
		}
		if entries, err := os.ReadDir(disk); err != nil || len(entries) != 1 {
			t.Fatalf("the disk holds %v", entries)
		}
	})
}
