package wad

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/tree"
)

// sameIndex fails the test unless the index of an archive says what the tree
// that was made of it shows.
func sameIndex(t testing.TB, archive, extracted string) {
	t.Helper()
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	dir := t.TempDir()
	ofArchive, err := Pack(t.Context(), in, dir+"/archive", PackOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	ofTree, err := PackFolder(t.Context(), extracted, dir+"/tree", FolderOptions{}, PackOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Diff(ofArchive, ofTree, func(c Change) error {
		if c.Old == nil && c.New.Path == "." {
			return nil // no archive has to describe it
		}
		t.Errorf("archive's index, tree's: %q: %v\n%+v\n%+v", c.Path(), c.What, c.Old, c.New)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{dir + "/archive", dir + "/tree"} {
		if _, _, err := Verify(t.Context(), file, nil); err != nil {
			t.Errorf("verify: %v", err)
		}
	}
}

// packZoo makes an indexed wad of the zoo.
func packZoo(t testing.TB, o PackOptions) (source, file string, x *Index) {
	t.Helper()
	source, file = zoo(t), filepath.Join(t.TempDir(), "zoo.tar.zst")
	x, err := PackFolder(t.Context(), source, file, FolderOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return source, file, x
}

// An indexed wad is an ordinary .tar.zst: whoever unpacks it gets the same tree.
func TestPackedUnpacks(t *testing.T) {
	source, file, x := packZoo(t, PackOptions{piece: 512 << 10})
	tool(t, "bsdtar", "libarchive-tools")
	for _, test := range []struct {
		name, unpack string
		wrong        []string // what the program itself cannot
	}{
		{name: "GNU tar", unpack: "tar --zstd --xattrs --xattrs-include='*' --acls --numeric-owner --delay-directory-restore -xpf $A"},
		// It takes fractions of seconds before 1970 for later ones, and does not
		// undo what GNU tar and star do to a name with "=" or "%".
		{"bsdtar", "bsdtar --numeric-owner --acls --xattrs -xpf $A", []string{".: time", "etc/group: time", "usr/lib: user.k%25%3D", "usr/lib: user.k%="}},
		{name: "zstd and tar", unpack: "zstd -dc $A | tar --xattrs --xattrs-include='*' --acls --numeric-owner --delay-directory-restore -xpf -"},
	} {
		t.Run(test.name, func(t *testing.T) {
			theirs := t.TempDir()
			// Nothing is said but of the zoo's strange times.
			sh(t, theirs, "A="+file+"; "+test.unpack+" 2>&1 | tee ../says; test $(grep -v 'time stamp' ../says | wc -l) = 0")
			found, err := tree.Compare(theirs, source)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range found {
				if !slices.Contains(test.wrong, d.Path+": "+d.What) {
					t.Errorf("theirs, the source: %v", d)
				}
			}
		})
	}
	t.Run("Extract", func(t *testing.T) {
		ours := t.TempDir()
		stats, err := extract(t, file, ours, Options{})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, ours, source)
		if stats.Sparse != 3 {
			t.Errorf("%d sparse files; want 3", stats.Sparse)
		}
	})
	t.Run("Verify", func(t *testing.T) {
		if _, stats, err := Verify(t.Context(), file, nil); err != nil || int64(stats.Entries) != x.Members {
			t.Errorf("Verify counts %d entries, %v; want %d", stats.Entries, err, x.Members)
		}
	})
	t.Run("pieces", func(t *testing.T) {
		found := 0
		for m, err := range x.All() {
			if err != nil {
				t.Fatal(err)
			}
			if m.Size > 512<<10 && m.Regions == nil {
				found++
				content, err := os.ReadFile(filepath.Join(source, m.Path))
				if err != nil {
					t.Fatal(err)
				}
				var at int64
				for _, p := range m.Pieces {
					if p.Offset != at || sha256.Sum256(content[at:at+p.Length]) != p.SHA256 {
						t.Errorf("%s: piece at %d is not what the file has at %d", m.Path, p.Offset, at)
					}
					if from, to := x.Range(m.TarAt+p.Offset, p.Length); to-from > 1 {
						t.Errorf("%s: the piece at %d is in %d chunks", m.Path, at, to-from)
					}
					at += p.Length
				}
				if at != m.Size {
					t.Errorf("%s: pieces end at %d; want %d", m.Path, at, m.Size)
				}
			}
		}
		if found < 2 {
			t.Errorf("%d files with pieces; want at least 2", found)
		}
	})
}

// Packing the same tree gives the same bytes: whatever the order in which it was
// made, on however many cores, and out of its own archive.
func TestPackReproducible(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	names := make([]string, 300)
	for i := range names {
		names[i] = string(rune('a'+i%7)) + "/" + strings.Repeat("n", i%40) + string(rune('A'+i%26)) + strings.Repeat("z", i/26)
	}
	var want []byte
	for round, cores := range []int{1, 4, 2} {
		dir := filepath.Join(base, string(rune('x'+round)))
		random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Repeat([]byte(name), 2*len(name)*len(name)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "of several chunks"), bytes.Repeat([]byte("a line\n"), 1_000_000), 0o644); err != nil {
			t.Fatal(err)
		}
		sh(t, dir, "find . -exec touch -d '2020-02-02 02:02:02.5 UTC' {} +")
		out := filepath.Join(base, "out")
		before := runtime.GOMAXPROCS(cores)
		_, err := PackFolder(t.Context(), dir, out, FolderOptions{}, PackOptions{})
		runtime.GOMAXPROCS(before)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if want != nil && !bytes.Equal(got, want) {
			t.Errorf("on %d cores: %d bytes that are not the first round's %d", cores, len(got), len(want))
		}
		want = got
	}
	// Of its own archive, the index included.
	if _, err := Pack(t.Context(), bytes.NewReader(want), filepath.Join(base, "again"), PackOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(base, "again")); !bytes.Equal(got, want) {
		t.Error("the wad, packed again, is another one")
	}
}

// The archive of a tarball is kept byte for byte.
func TestPackKeepsTarball(t *testing.T) {
	source, dir := zoo(t), t.TempDir()
	sh(t, source, "tar --format=pax -S --xattrs --acls -cf "+dir+"/a.tar . && xz -k -1 "+dir+"/a.tar")
	for _, name := range []string{"a.tar", "a.tar.xz"} {
		in, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if _, err := Pack(t.Context(), in, dir+"/wad", PackOptions{Level: 1}); err != nil {
			t.Fatal(err)
		}
		sh(t, dir, "zstd -dc wad | cmp - a.tar; rm wad; test $(ls -A | wc -l) = 2")
	}
}

// What is refused, by name, and leaves nothing behind.
func TestPackRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"nothing", nil, "the wad is empty"},
		{"text", bytes.Repeat([]byte("hello, this is no archive\n"), 50), "no wad"},
		{"cut short", pack(t, file("a", "b"))[:600], "cut short"},
		{"no end", pack(t, file("a", "b"))[:1024], "cut short"},
		{"escape", pack(t, file("../a", "b")), `wad entry "../a"`},
		{"link to what is not there", pack(t, hardLink("a", "b")), `wad entry "a": hard link to "b"`},
		{"file over a full directory", pack(t, folder("a"), file("a/b", ""), file("a", "")), `wad entry "a": replace the directory`},
		{"through a file", pack(t, file("a", ""), file("a/b", "")), `wad entry "a/b"`},
		{"through a link to nothing", pack(t, symlink("a", "b"), file("a/b", "")), `wad entry "a/b"`},
		{"through a loop", pack(t, symlink("a", "b"), symlink("b", "a"), file("a/b", "")), "too many symbolic links"},
		{"something after the end", append(pack(t, file("a", "b")), 1), "after the end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			dir := t.TempDir()
			_, err := Pack(t.Context(), bytes.NewReader(test.archive), dir+"/wad", PackOptions{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Pack: %v; want %q", err, test.want)
			}
			if got := listing(t, dir); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		noLeaks(t)
		dir := t.TempDir()
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("enough")
		o := PackOptions{Progress: func(PackStats) { cancel(stop) }}
		source := t.TempDir()
		sh(t, source, "for i in $(seq 50); do echo $i >$i; done")
		if _, err := PackFolder(ctx, source, dir+"/wad", FolderOptions{}, o); !errors.Is(err, stop) {
			t.Errorf("PackFolder: %v; want %v", err, stop)
		}
		if got := listing(t, dir); len(got) != 0 {
			t.Errorf("left behind: %v", got)
		}
	})
}

// The same odd archives as for Extract: the index is of the tree that it makes.
func TestPackOdd(t *testing.T) {
	needRoot(t)
	setuid := file("su", "x")
	setuid.Mode = 0o6755
	for _, test := range []struct {
		name    string
		archive []byte
	}{
		{"no folders", pack(t, file("a/b/c", "d"), file("a/e", "f"))},
		{"folder later", pack(t, file("a/b/c", "d"), folder("a/b"), folder("."))},
		{"the last one wins", pack(t, file("a", "one"), file("a", "two"), symlink("b", "a"), file("b", "three"))},
		{"through a link", pack(t, folder("usr/lib"), symlink("lib", "usr/lib"), file("lib/a", "b"), symlink("abs", "/lib"), file("abs/c", "d"), symlink("up", "../../usr"), folder("up/share"))},
		{"folder over a link", pack(t, folder("b"), symlink("a", "b"), folder("a"), file("a/c", "d"))},
		{"link to what is replaced", pack(t, file("b", "one"), hardLink("a", "b"), file("b", "two"), hardLink("c", "a"))},
		{"link to itself", pack(t, file("b", "one"), hardLink("b", "b"), hardLink("a", "b"), hardLink("a", "b"))},
		{"link through a link", pack(t, folder("d"), file("d/b", "one"), symlink("l", "d"), hardLink("a", "l/b"))},
		{"link to a link", pack(t, symlink("l", "d"), hardLink("a", "l"))},
		{"over an empty folder", pack(t, folder("a"), file("a", "x"), setuid)},
		{"zeros at the end", append(pack(t, file("a", "b")), make([]byte, 5<<20)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			archive, ours := filepath.Join(t.TempDir(), "wad"), t.TempDir()
			if err := os.WriteFile(archive, test.archive, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := extract(t, archive, ours, Options{}); err != nil {
				t.Fatal(err)
			}
			sameIndex(t, archive, ours)
		})
	}
}

// What the folder's own nature can do to packing.
func TestPackFolder(t *testing.T) {
	needRoot(t)
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "wad")
	sh(t, dir, "mkdir -p a/b c; echo 1 >a/b/x; echo 2 >c/y; ln c/y c/z; ln c/y outside; echo 3 >d; truncate -s 5000000000 huge")
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != nil {
		t.Fatal(err)
	} else if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "socket")}); err != nil {
		t.Fatal(err)
	} else {
		unix.Close(fd)
	}
	skip := FolderOptions{Skip: func(path string) bool { return path == "a/b" || path == "outside" }}
	x, err := PackFolder(t.Context(), dir, out, skip, PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for m, err := range x.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Path)
		if m.Path == "c/z" && (m.Links != 2 || m.First != "c/y") {
			t.Errorf("c/z is one of %d names of %q; want 2 of c/y: the third was left out", m.Links, m.First)
		}
		if m.Path == "huge" && (m.Size != 5e9 || len(m.Regions) != 0 || m.Regions == nil) {
			t.Errorf("huge: %+v", m)
		}
	}
	if diff := cmp.Diff([]string{".", "a", "c", "c/y", "c/z", "d", "huge"}, got); diff != "" {
		t.Error(diff)
	}
	t.Run("a file grows", func(t *testing.T) {
		path := filepath.Join(dir, "d")
		o := skip
		o.Skip = func(name string) bool {
			if name == "huge" { // comes after d was counted and before it is read
				f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
				io.WriteString(f, "more")
				f.Close()
			}
			return false
		}
		growing := &growing{path: path}
		err := Tar(t.Context(), dir, growing, o)
		if !errors.Is(err, errChanged) || !strings.Contains(err.Error(), path) {
			t.Errorf("Tar: %v; want %v, and the name %s", err, errChanged, path)
		}
	})
}

// growing writes to a file once its content is on the way.
type growing struct{ path string }

func (g *growing) Write(p []byte) (int, error) {
	if string(p) == "3\n" || strings.HasPrefix(string(p), "3\nmore") {
		f, err := os.OpenFile(g.path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if _, err := io.WriteString(f, "x"); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Every damage to a file is found, and named.
func TestVerifyDamage(t *testing.T) {
	_, path, x := packZoo(t, PackOptions{Level: 1})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if x.Chunks < 5 {
		t.Fatalf("%d chunks are too few for this test", x.Chunks)
	}
	flip := func(at int64) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	for _, test := range []struct {
		name   string
		damage func([]byte) []byte
		want   string
	}{
		{"none", func(b []byte) []byte { return b }, ""},
		{"a chunk", flip(x.Chunk(2).At + 5), "chunk 2"},
		{"the last byte", flip(int64(len(good)) - 1), "chunk"},
		{"cut short", func(b []byte) []byte { return b[:len(b)-1] }, "bytes"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "bytes"},
		{"cut in the index", func(b []byte) []byte { return b[:100] }, "cut short"},
		{"the index's version", flip(int64(headStart + len(indexMagic) - 1)), "version"},
		{"a page", flip(x.Size - 2000), "index"},
		{"swapped chunks", func(b []byte) []byte {
			c, d := x.Chunk(0), x.Chunk(1)
			head, one, two := b[:c.At], b[c.At:d.At], b[d.At:d.At+d.Size]
			return bytes.Join([][]byte{head, two, one, b[d.At+d.Size:]}, nil)
		}, "chunk 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "wad")
			if err := os.WriteFile(file, test.damage(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := Verify(t.Context(), file, nil)
			if test.want == "" {
				if err != nil {
					t.Errorf("Verify: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("Verify: %v; want %q, and the file's name", err, test.want)
			}
		})
	}
}

// What a reimage from one wad to another moves.
func TestDiff(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sh(t, dir, `mkdir tree; cd tree; mkdir etc old; echo one >etc/same; echo two >etc/changed; echo three >old/gone; echo four >etc/mode
head -c 5000000 /dev/urandom >big; ln etc/same etc/same2; for i in $(seq 200); do echo $i >many$i; done; find . -exec touch -d @1000000000 {} +`)
	index := func(name string) *Index {
		x, err := PackFolder(t.Context(), dir+"/tree", dir+"/"+name, FolderOptions{}, PackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	a := index("a")
	sh(t, dir, `cd tree; rm -r old; echo TWO >etc/changed; chmod 600 etc/mode; echo new >etc/new; printf x | dd of=big bs=1 seek=4500000 conv=notrunc status=none
rm etc/same2; cp etc/same etc/same2; setfattr -n user.k -v v many7; find . -exec touch -d @1000000000 {} +`)
	b := index("b")
	got := map[string]string{}
	delta, err := Diff(a, b, func(c Change) error {
		switch {
		case c.Old == nil:
			got[c.Path()] = "added"
		case c.New == nil:
			got[c.Path()] = "removed"
		default:
			got[c.Path()] = strings.Join(c.What, " ")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"old": "removed", "old/gone": "removed", "etc/changed": "content", "etc/mode": "mode", "etc/new": "added", "big": "content",
		"etc/same": "links", "etc/same2": "links", "many7": "user.k",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Of the large file only its last piece, which holds the byte.
	if delta.Added != 1 || delta.Removed != 2 || delta.Changed != 6 || delta.Files != 3 || delta.Fetch < 800_000 || delta.Fetch > 1_200_000 {
		t.Errorf("%+v", delta)
	}
	if same, err := Diff(a, a, func(c Change) error { t.Errorf("%q differs from itself", c.Path()); return nil }); err != nil || same.Fetch != 0 {
		t.Errorf("%+v, %v", same, err)
	}
}
