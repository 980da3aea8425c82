package wad

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"reassure/image/fetch"
	"reassure/image/spec"
	"reassure/image/tree"
)

// packed is an indexed wad of a folder.
func packed(t testing.TB, dir string) []byte {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "wad.tar")
	sh(t, dir, fmt.Sprintf("tar --sort=name --format=pax --acls --xattrs --xattrs-include='*' --numeric-owner -S -cf %s .", tarball))
	in, err := os.Open(tarball)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out := tarball + ".zst"
	if _, err := Pack(t.Context(), in, out, PackOptions{Level: 3}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// indexOf parses the index of a wad, and says how a manifest binds it.
func indexOf(t testing.TB, file []byte) (*Index, spec.WadIndex) {
	t.Helper()
	head, err := ReadHead(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	x, err := ParseIndex(head)
	if err != nil {
		t.Fatal(err)
	}
	return x, spec.WadIndex{Size: spec.Size(len(head)), SHA256: spec.Sum(head)}
}

// server serves a file, and counts what it sends.
type server struct {
	url      string
	sent     atomic.Int64
	requests atomic.Int64
}

type sender struct {
	http.ResponseWriter
	s    *server
	left int64 // until the connection breaks
}

func (c *sender) Write(p []byte) (int, error) {
	n, _ := c.ResponseWriter.Write(p[:min(int64(len(p)), c.left)])
	c.s.sent.Add(int64(n))
	if c.left -= int64(n); c.left == 0 {
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// startServer serves a file; how changes requests and says after how many bytes
// their connections break.
func startServer(t testing.TB, file []byte, how func(n int64, r *http.Request) (cut int64)) *server {
	t.Helper()
	s := &server{}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cut := int64(1 << 62)
		if n := s.requests.Add(1); how != nil {
			cut = how(n, r)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&sender{w, s, cut}, r, "", time.Time{}, bytes.NewReader(file))
	}))
	t.Cleanup(web.Close)
	s.url = web.URL + "/golden.tar.zst"
	return s
}

// withoutRange has a server know nothing of ranges.
func withoutRange(_ int64, r *http.Request) int64 {
	r.Header.Del("Range")
	return 1 << 62
}

func remote(ctx context.Context, size int, bound spec.WadIndex, servers ...*server) (*Remote, error) {
	source := fetch.Source{Name: "golden.tar.zst", Size: spec.Size(size)}
	for _, s := range servers {
		source.URLs = append(source.URLs, s.url)
	}
	client := &fetch.Client{Pause: time.Millisecond, MaxPause: 2 * time.Millisecond, StallLimit: 2 * time.Second}
	return OpenRemote(ctx, client, source, bound)
}

// install lays a wad down from its servers.
func install(t testing.TB, to string, size int, bound spec.WadIndex, servers ...*server) error {
	t.Helper()
	r, err := remote(t.Context(), size, bound, servers...)
	if err != nil {
		return err
	}
	defer r.Close()
	moved := int64(0)
	_, err = r.Extract(t.Context(), to, Options{Moved: func(n int64) { moved += n }})
	if err == nil && moved != int64(size) {
		t.Errorf("progress ended at %d of %d bytes", moved, size)
	}
	return err
}

func TestRemoteExtract(t *testing.T) {
	golden := zoo(t)
	file := packed(t, golden)
	_, bound := indexOf(t, file)
	wrong := bytes.Clone(file)
	for i := int(bound.Size) + 10; i < len(wrong); i += 5000 {
		wrong[i] ^= 1
	}
	half := int64(bound.Size) + (int64(len(file))-int64(bound.Size))/2
	for _, test := range []struct {
		name    string
		servers func(t *testing.T) []*server
	}{
		{"served well", func(t *testing.T) []*server { return []*server{startServer(t, file, nil)} }},
		{"Range ignored", func(t *testing.T) []*server { return []*server{startServer(t, file, withoutRange)} }},
		{"cut again and again", func(t *testing.T) []*server {
			return []*server{startServer(t, file, func(int64, *http.Request) int64 { return 700_001 })}
		}},
		{"Range ignored, cut in the middle", func(t *testing.T) []*server {
			return []*server{startServer(t, file, func(n int64, r *http.Request) int64 {
				if withoutRange(n, r); n == 1 {
					return half
				}
				return 1 << 62
			})}
		}},
		{"first mirror sends damage", func(t *testing.T) []*server { return []*server{startServer(t, wrong, nil), startServer(t, file, nil)} }},
		{"second mirror sends damage, first cuts", func(t *testing.T) []*server {
			return []*server{startServer(t, file, func(int64, *http.Request) int64 { return 900_001 }), startServer(t, wrong, withoutRange)}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			to := t.TempDir()
			if err := install(t, to, len(file), bound, test.servers(t)...); err != nil {
				t.Fatal(err)
			}
			compare(t, to, golden)
		})
	}
}

// nothingWrong fails the test for anything in a tree that is not of the golden
// one. Files may be short, folders lack what comes later.
func nothingWrong(t testing.TB, got, golden string) {
	t.Helper()
	err := filepath.WalkDir(got, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(got, path)
		want, err := os.Lstat(filepath.Join(golden, name))
		if err != nil {
			t.Errorf("%s is there, and is in no wad", name)
			return nil
		}
		if d.Type() != want.Mode().Type() {
			t.Errorf("%s is %v instead of %v", name, d.Type(), want.Mode().Type())
		}
		if !d.Type().IsRegular() {
			return nil
		}
		a, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(golden, name))
		if err == nil && !bytes.HasPrefix(b, a) {
			t.Errorf("%s has content that the wad has not", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is done to a wad on its server, it is an error that says so, and
// nothing of it is on the disk.
func TestRemoteDamage(t *testing.T) {
	golden := zoo(t)
	file := packed(t, golden)
	x, bound := indexOf(t, file)

	other := t.TempDir()
	sh(t, other, "cp -a "+golden+"/. . ; echo other >usr/lib/hello; head -c 300000 /dev/urandom > usr/lib/big")
	another := packed(t, other)
	_, anotherBound := indexOf(t, another)

	swapped := bytes.Clone(file)
	a, b := -1, -1
	for i := range x.Chunks { // two of the same length, so that all others stay where they are
		for j := range i {
			if ci, cj := x.Chunk(i), x.Chunk(j); ci.Size == cj.Size && ci.SHA256 != cj.SHA256 {
				a, b = j, i
			}
		}
	}
	if a < 0 {
		// None: the second takes the place of the first, which is shorter.
		a, b = 0, 1
	}
	ca, cb := x.Chunk(a), x.Chunk(b)
	n := min(ca.Size, cb.Size)
	copy(swapped[ca.At:ca.At+n], file[cb.At:])
	copy(swapped[cb.At:cb.At+n], file[ca.At:])

	type damage struct {
		name  string
		file  []byte
		bound spec.WadIndex
		size  int // what the manifest says; 0 is right
		want  string
	}
	flip := func(at int64, want string) damage {
		d := bytes.Clone(file)
		d[at] ^= 0x20
		return damage{name: fmt.Sprintf("flip at byte %d", at), file: d, bound: bound, want: want}
	}
	cases := []damage{
		flip(0, "bytes from 0"), flip(10, "bytes from 0"), flip(14, "bytes from 0"), flip(25, "bytes from 0"),
		flip(x.Size/2, "bytes from 0"), flip(x.Size-1, "bytes from 0"),
		{name: "two chunks change places", file: swapped, bound: bound, want: fmt.Sprintf("chunk %d of %d", a+1, x.Chunks)},
		{name: "another wad", file: another, bound: bound, size: len(another), want: "bytes from 0"},
		{name: "another wad, of this size", file: append(bytes.Clone(another), make([]byte, max(0, len(file)-len(another)))...)[:len(file)], bound: bound, want: "bytes from 0"},
		{name: "chunks of another wad", file: append(append([]byte{}, file[:x.Size]...), append(another[anotherBound.Size:], make([]byte, len(file))...)...)[:len(file)], bound: bound, want: "chunk "},
		{name: "index of another wad in the manifest", file: file, bound: anotherBound, want: "bytes from 0"},
		{name: "cut short", file: file[:len(file)-1], bound: bound, want: "instead of"},
		{name: "cut short in the index", file: file[:x.Size-5], bound: bound, want: "instead of"},
		{name: "longer", file: append(bytes.Clone(file), 0), bound: bound, want: "instead of"},
		{name: "longer, as the manifest says", file: append(bytes.Clone(file), 0), bound: bound, size: len(file) + 1, want: "end at byte"},
		{name: "shorter, as the manifest says", file: file[:len(file)-1], bound: bound, size: len(file) - 1, want: "end at byte"},
		{name: "no index", file: file[x.Size:], size: len(file) - int(x.Size), bound: spec.WadIndex{Size: 100, SHA256: spec.Sum(file[x.Size:][:100])}, want: "no index"},
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 25 {
		i := rnd.IntN(x.Chunks)
		c := x.Chunk(i)
		cases = append(cases, flip(c.At+rnd.Int64N(c.Size), fmt.Sprintf("chunk %d of %d", i+1, x.Chunks)))
	}
	last := x.Chunk(x.Chunks - 1)
	cases = append(cases, flip(last.At+last.Size-1, fmt.Sprintf("chunk %d of %d", x.Chunks, x.Chunks)))
	for _, test := range cases {
		for _, how := range []struct {
			name string
			how  func(int64, *http.Request) int64
		}{{"", nil}, {", Range ignored", withoutRange}} {
			t.Run(test.name+how.name, func(t *testing.T) {
				noLeaks(t)
				to := t.TempDir()
				s := startServer(t, test.file, how.how)
				size := test.size
				if size == 0 {
					size = len(file)
				}
				err := install(t, to, size, test.bound, s)
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "golden.tar.zst") {
					t.Errorf("error: %v; want one of %q", err, test.want)
				}
				if err != nil && strings.HasPrefix(test.want, "chunk") && !strings.Contains(err.Error(), s.url) {
					t.Errorf("the error does not name the server: %v", err)
				}
				nothingWrong(t, to, golden)
			})
		}
	}
}

// crafted makes a wad whose index is right in itself and says of the chunks
// what it should not: frames are what is sent, plain how long they should be.
func crafted(t testing.TB, members []*Member, frames [][]byte, plain []int) []byte {
	t.Helper()
	w, err := newIndexWriter(3, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		w.chunk(len(f), plain[i], spec.Sum(f))
	}
	for _, m := range members {
		if err := w.add(m); err != nil {
			t.Fatal(err)
		}
	}
	head, err := w.head()
	if err != nil {
		t.Fatal(err)
	}
	return append(head, bytes.Join(frames, nil)...)
}

// tarOf makes an archive of one file.
func tarOf(t testing.TB, content []byte) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// Chunks that their index vouches for, and that still are not what it says, take
// no more memory than it says.
func TestRemoteChunks(t *testing.T) {
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(data []byte) []byte { return e.EncodeAll(data, nil) }
	archive := tarOf(t, []byte("content"))
	bomb := frame(make([]byte, 500<<20))
	var unsized bytes.Buffer
	stream, err := zstd.NewWriter(&unsized)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(stream, bytes.NewReader(bytes.Repeat(archive, 1000))); err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		frame []byte
		plain int
		want  string // "" is success
	}{
		{"as it says", frame(archive), len(archive), ""},
		{"a bomb", bomb, len(archive), "announces 524288000 bytes"},
		{"a bomb behind a right frame", append(frame(archive), bomb...), len(archive), "exceed"},
		{"a frame without a length", unsized.Bytes(), len(archive), "announces"},
		{"shorter", frame(archive[:1000]), len(archive), "announces 1000 bytes"},
		{"no frame", bytes.Repeat([]byte("no frame"), 100), len(archive), "chunk 1 of 1"},
		{"a frame that can be skipped", append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00"), 1, 2, 3, 4), len(archive), "announces"},
		{"a frame that ends early", frame(archive)[:20], len(archive), "chunk 1 of 1"},
		{"not the end of an archive", frame(archive[:1536]), 1536, "cut short"},
		{"more after the end", frame(append(bytes.Clone(archive), archive...)), 2 * len(archive), "after the end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			file := crafted(t, nil, [][]byte{test.frame}, []int{test.plain})
			_, bound := indexOf(t, file)
			to := t.TempDir()
			before := peak(t)
			err := install(t, to, len(file), bound, startServer(t, file, nil))
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error: %v; want one with %q", err, test.want)
			}
			if grown := peak(t) - before; grown > 100<<20 {
				t.Errorf("it took %d MiB of memory", grown>>20)
			}
		})
	}
}

// peak is the most memory that this process had at a time, in bytes.
func peak(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "VmHWM: %d kB", &kib)
	}
	return kib << 10
}

func TestRemoteFetch(t *testing.T) {
	golden := zoo(t)
	sh(t, golden, "head -c 9000000 /dev/urandom >usr/lib/huge")
	file := packed(t, golden)
	x, bound := indexOf(t, file)
	var all []Want
	for m, err := range x.All() {
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == tree.Regular && (m.First == "" || m.First == m.Path) {
			all = append(all, Want{Member: m})
		}
	}
	var few, pieces, sparse []Want
	for i, w := range all {
		if i%40 == 0 {
			few = append(few, w)
		}
		if n := len(w.Pieces); n > 2 {
			pieces = append(pieces, Want{w.Member, []int{0, n - 1}})
		}
		if w.Regions != nil {
			sparse = append(sparse, w)
		}
	}
	if len(pieces) == 0 || len(sparse) < 3 {
		t.Fatalf("the tree has %d files of several pieces and %d sparse ones: nothing would be tested", len(pieces), len(sparse))
	}
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	for _, test := range []struct {
		name  string
		wants []Want
		how   func(int64, *http.Request) int64
		most  int64 // bytes that may be sent; 0 is any
	}{
		{"all", all, nil, int64(len(file))},
		{"all, in another order", backwards, nil, int64(len(file))},
		{"a few", few, nil, int64(len(file)) / 2},
		{"a few, Range ignored", few, withoutRange, int64(len(file))},
		{"a few, cut", few, func(int64, *http.Request) int64 { return 400_001 }, 0},
		{"pieces", pieces, nil, 0},
		{"sparse", sparse, nil, int64(bound.Size) + 300_000},
		{"nothing", nil, nil, int64(bound.Size)},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			s := startServer(t, file, test.how)
			r, err := remote(t.Context(), len(file), bound, s)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got := map[string]bool{}
			err = r.Fetch(t.Context(), slices.Clone(test.wants), func(w Want, c *Content) error {
				got[w.Path] = true
				content, err := io.ReadAll(struct{ io.Reader }{c})
				if err != nil {
					return err
				}
				want, err := os.ReadFile(filepath.Join(golden, w.Path))
				if err != nil {
					return err
				}
				if len(w.Only) > 0 {
					var some []byte
					for _, n := range w.Only {
						some = append(some, want[w.Pieces[n].Offset:][:w.Pieces[n].Length]...)
					}
					want = some
				}
				if !bytes.Equal(content, want) {
					t.Errorf("%s: %d bytes that are not its %d", w.Path, len(content), len(want))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(test.wants) {
				t.Errorf("%d files came of %d", len(got), len(test.wants))
			}
			if n := s.sent.Load(); test.most > 0 && n > test.most {
				t.Errorf("%d bytes were sent; at most %d are needed", n, test.most)
			}
		})
	}

	t.Run("holes stay holes", func(t *testing.T) {
		r, err := remote(t.Context(), len(file), bound, startServer(t, file, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		dir := t.TempDir()
		w, err := tree.NewWriter(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		err = r.Fetch(t.Context(), sparse, func(want Want, c *Content) error {
			f, err := w.Begin(&want.Entry)
			if err != nil {
				return err
			}
			if err := f.Create(); err != nil {
				f.Abandon()
				return err
			}
			if _, err := c.WriteTo(f); err != nil {
				f.Abandon()
				return err
			}
			return f.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range sparse {
			sh(t, dir, fmt.Sprintf(`cmp %[1]s %[2]s/%[1]s; [ $(du -k %[1]s | cut -f1) -le $(du -k %[2]s/%[1]s | cut -f1) ]`, want.Path, golden))
		}
	})

	t.Run("what is not read is judged, too", func(t *testing.T) {
		wrong := bytes.Clone(file)
		c := x.Chunk(x.At(few[1].TarAt))
		wrong[c.At+c.Size/2] ^= 1
		r, err := remote(t.Context(), len(file), bound, startServer(t, wrong, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		err = r.Fetch(t.Context(), slices.Clone(few), func(Want, *Content) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "chunk ") {
			t.Errorf("error: %v", err)
		}
	})

	t.Run("an error of the reader ends it", func(t *testing.T) {
		r, err := remote(t.Context(), len(file), bound, startServer(t, file, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		full := errors.New("disk full")
		calls := 0
		err = r.Fetch(t.Context(), slices.Clone(all), func(Want, *Content) error { calls++; return full })
		if !errors.Is(err, full) || calls != 1 {
			t.Errorf("%d calls, error: %v", calls, err)
		}
	})
}

// What an index says of a file, and its chunks do not hold, is an error.
func TestRemoteContent(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 100)
	archive := tarOf(t, content)
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := e.EncodeAll(archive, nil)
	member := func(change func(*Member)) *Member {
		m := &Member{TarAt: 512, Expected: tree.Expected{
			Entry: tree.Entry{Path: "file", Kind: tree.Regular, Mode: 0o644, ModTime: time.Unix(1e9, 0)},
			Size:  int64(len(content)), SHA256: spec.Sum(content),
		}}
		change(m)
		return m
	}
	for _, test := range []struct {
		name string
		m    *Member
		only []int
		want string
	}{
		{"right", member(func(*Member) {}), nil, ""},
		{"another digest", member(func(m *Member) { m.SHA256[0] ^= 1 }), nil, "not what the index says"},
		{"a folder", member(func(m *Member) { m.Kind = tree.Directory }), nil, "directory"},
		{"another name", member(func(m *Member) { m.First = "other"; m.Links = 2 }), nil, "other"},
		{"a piece that is none", member(func(*Member) {}), []int{1}, "no pieces"},
		{"past the archive", member(func(m *Member) { m.TarAt = int64(len(archive)) - 100 }), nil, "in no chunk"},
		{"before the archive", member(func(m *Member) { m.TarAt = -5 }), nil, "archive"},
		{"overflow", member(func(m *Member) { m.TarAt = 1 << 62; m.Size = 1 << 62 }), nil, "in no chunk"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			file := crafted(t, nil, [][]byte{frame}, []int{len(archive)})
			_, bound := indexOf(t, file)
			r, err := remote(t.Context(), len(file), bound, startServer(t, file, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var got []byte
			err = r.Fetch(t.Context(), []Want{{test.m, test.only}}, func(_ Want, c *Content) error {
				got, err = io.ReadAll(c)
				return err
			})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(content), string(got)); diff != "" {
					t.Error(diff)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: %v; want one with %q", err, test.want)
			}
		})
	}
}
