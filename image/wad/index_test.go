package wad

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"reassure/image/spec"
	"reassure/image/tree"
)

func regular(path string, tarAt, size int64) *Member {
	m := &Member{TarAt: tarAt}
	m.Path, m.Kind, m.Mode, m.Size, m.ModTime = path, tree.Regular, 0o644, size, time.Unix(1700000000, 5)
	m.SHA256 = spec.Sum([]byte(path))
	return m
}

func directory(path string) *Member {
	m := &Member{}
	m.Path, m.Kind, m.Mode, m.ModTime = path, tree.Directory, 0o755, time.Unix(1700000000, 0)
	return m
}

// headOf makes a head of members and one chunk for every MiB of archive.
func headOf(t testing.TB, tarSize int64, members ...*Member) []byte {
	t.Helper()
	w, err := newIndexWriter(7, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for left := tarSize; left > 0; left -= min(left, 1<<20) {
		w.chunk(1000, int(min(left, 1<<20)), spec.Sum([]byte{byte(left >> 20)}))
	}
	for _, m := range members {
		if err := w.put(m); err != nil { // whether it may be there is for the reader to judge
			t.Fatal(err)
		}
	}
	head, err := w.head()
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func readAll(head []byte) ([]*Member, error) {
	x, err := ParseIndex(head)
	if err != nil {
		return nil, err
	}
	var all []*Member
	for m, err := range x.All() {
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
	return all, nil
}

// What goes into an index comes out.
func TestIndexRoundTrip(t *testing.T) {
	sum := spec.Sum
	link := regular("usr/b", 512, 10)
	link.First, link.Links = "usr/a", 2
	first := regular("usr/a", 512, 10)
	first.First, first.Links = "usr/a", 2
	sparse := regular("usr/c", 4096, 1<<40)
	sparse.Regions = []Region{{1 << 20, 4096}, {1 << 39, 100}}
	hole := regular("usr/d", 1024, 1<<62)
	hole.Regions = []Region{}
	large := regular("usr/e", 10240, 3<<20+1)
	large.Pieces = []tree.Piece{
		{Offset: 0, Length: 1 << 20, SHA256: sum([]byte("0"))}, {Offset: 1 << 20, Length: 1 << 20, SHA256: sum([]byte("1"))},
		{Offset: 2 << 20, Length: 1 << 20, SHA256: sum([]byte("2"))}, {Offset: 3 << 20, Length: 1, SHA256: sum([]byte("3"))},
	}
	empty := regular("usr/f", 0, 0)
	empty.SHA256, empty.UID, empty.GID, empty.Mode = sum(nil), math.MaxUint32-1, 4711, 0o7777
	empty.Xattrs = map[string][]byte{"user.a": {}, "security.capability": {1, 0, 0, 2}}
	old := regular("usr/g", 512, 1)
	old.ModTime = time.Unix(-1<<40, 999999999)
	old.Xattrs = map[string][]byte{"user.a": {}, "security.capability": {1, 0, 0, 2}}
	symlink := directory("usr/h")
	symlink.Kind, symlink.Target, symlink.Mode = tree.Symlink, "\xff\n", 0o777
	device := directory("usr/i")
	device.Kind, device.Major, device.Minor = tree.BlockDevice, 4095, 1<<20-1
	implied := directory("usr/j")
	implied.Implied, implied.ModTime = true, time.Time{}
	members := []*Member{directory("."), directory("usr"), first, link, sparse, hole, large, empty, old, symlink, device, implied, regular("usr/\xfe\xff", 0, 1)}
	for i := range 3000 {
		members = append(members, regular(fmt.Sprintf("v%05d", i), int64(i)*512, int64(i%500)+1))
	}
	head := headOf(t, 5<<20, members...)
	got, err := readAll(head)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(members, got); diff != "" {
		t.Error(diff)
	}
	x, err := ParseIndex(head)
	if err != nil {
		t.Fatal(err)
	}
	if x.Level != 7 || x.Chunks != 5 || x.FileSize() != int64(len(head))+5000 || x.Members != int64(len(members)) {
		t.Errorf("level %d, %d chunks, file size %d, %d members", x.Level, x.Chunks, x.FileSize(), x.Members)
	}
	if b := x.Bound(); b.Size != spec.Size(len(head)) || b.SHA256 != spec.Sum(head) {
		t.Errorf("bound by %+v", b)
	}
	// Whoever reads the stream gets the head and not a byte more.
	stream := bytes.NewReader(append(bytes.Clone(head), "chunks"...))
	if read, err := ReadHead(stream); err != nil || !bytes.Equal(read, head) || stream.Len() != len("chunks") {
		t.Errorf("ReadHead: %d bytes, %v, and %d left; want %d", len(read), err, stream.Len(), len(head))
	}
}

// Chunks are found by offset, at their borders and beyond every stride.
func TestIndexChunks(t *testing.T) {
	head := headOf(t, 200<<20+77)
	x, err := ParseIndex(head)
	if err != nil {
		t.Fatal(err)
	}
	for i := range x.Chunks {
		c := x.Chunk(i)
		if c.At != int64(len(head))+int64(i)*1000 || c.TarAt != int64(i)<<20 {
			t.Fatalf("chunk %d is %+v", i, c)
		}
		for _, at := range []int64{c.TarAt, c.TarAt + c.TarSize - 1} {
			if got := x.At(at); got != i {
				t.Errorf("At(%d) = %d; want %d", at, got, i)
			}
		}
	}
	if from, to := x.Range(1<<20-1, 2); from != 0 || to != 2 {
		t.Errorf("two bytes across a border are in chunks %d to %d; want 0 to 2", from, to)
	}
}

// rawIndex is a head whose parts a test has made by itself.
func rawIndex(numbers []uint64, sizes, digests, pages []byte) []byte {
	e, _ := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
	body := []byte(indexMagic)
	for _, v := range numbers {
		body = binary.AppendUvarint(body, v)
	}
	packed := e.EncodeAll(sizes, nil)
	body = binary.AppendUvarint(body, uint64(len(packed)))
	body = append(body, packed...)
	body = append(append(body, digests...), pages...)
	head := binary.LittleEndian.AppendUint32([]byte(frontFrame+skipMagic), uint32(len(body)))
	return append(head, body...)
}

// rawPage is a page of columns.
func rawPage(count int, digests int, set map[int][]byte) []byte {
	e, _ := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
	var plain []byte
	for i := range columns {
		plain = binary.AppendUvarint(plain, uint64(len(set[i])))
		plain = append(plain, set[i]...)
	}
	packed := e.EncodeAll(plain, nil)
	page := binary.AppendUvarint(nil, uint64(count))
	page = binary.AppendUvarint(page, uint64(len(packed)))
	page = append(page, packed...)
	page = binary.AppendUvarint(page, uint64(digests))
	return append(page, make([]byte, digests*digestLen)...)
}

func uvarints(values ...uint64) []byte {
	var b []byte
	for _, v := range values {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// hostileIndexes are heads that must be refused, by what they say.
func hostileIndexes(t testing.TB) map[string]struct {
	head []byte
	want string
} {
	good := headOf(t, 1<<20, directory("."), directory("etc"), regular("etc/a", 512, 10))
	patched := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	oneChunk := func(members int, pages []byte) []byte {
		return rawIndex([]uint64{10, 1 << 20, 1 << 20, uint64(members), 1}, uvarints(100, 1<<20), make([]byte, digestLen), pages)
	}
	entry := func(kind byte, path string, more map[int][]byte) []byte {
		set := map[int][]byte{
			colKinds: {kind}, colPathLengths: uvarints(0, uint64(len(path))), colPathBytes: []byte(path),
			colOwners: uvarints(0, 0o644, 0, 0), colSeconds: {0}, colNanoseconds: {0},
		}
		for i, c := range more {
			set[i] = c
		}
		return oneChunk(1, rawPage(1, 0, set))
	}
	e, _ := zstd.NewWriter(nil)
	bomb := e.EncodeAll(make([]byte, 100<<20), nil)
	bombPage := append(append(uvarints(1, uint64(len(bomb))), bomb...), 0)
	twoFrames := append(e.EncodeAll(nil, nil), bomb...)
	twoFramesPage := append(append(uvarints(1, uint64(len(twoFrames))), twoFrames...), 0)
	type hostile = struct {
		head []byte
		want string
	}
	return map[string]hostile{
		"nothing":               {nil, "no index"},
		"another format":        {append([]byte("\x28\xb5\x2f\xfd"), make([]byte, 50)...), "no index"},
		"another version":       {patched(func(b []byte) []byte { b[headStart+len(indexMagic)-1]++; return b }), "version"},
		"cut short":             {good[:len(good)-1], "says that they are"},
		"something after":       {append(bytes.Clone(good), 0), "says that they are"},
		"length of all bits":    {patched(func(b []byte) []byte { binary.LittleEndian.PutUint32(b[headStart-4:], math.MaxUint32); return b }), "says that they are"},
		"pieces of no bytes":    {rawIndex([]uint64{10, 0, 0, 0, 0}, nil, nil, nil), "pieces"},
		"many chunks":           {rawIndex([]uint64{10, 1, 1, 0, math.MaxInt64}, nil, nil, nil), "number"},
		"fewer chunks":          {rawIndex([]uint64{10, 1, 1, 0, 2}, uvarints(1, 1), make([]byte, 2*digestLen), nil), "number"},
		"more chunks":           {rawIndex([]uint64{10, 1, 1, 0, 1}, uvarints(1, 1, 1, 1), make([]byte, digestLen), nil), "too many"},
		"archive too small":     {rawIndex([]uint64{10, 1, 1, 0, 1}, uvarints(1, 2), make([]byte, digestLen), nil), "together"},
		"archive too large":     {rawIndex([]uint64{10, 1, math.MaxInt64, 0, 1}, uvarints(1, 2), make([]byte, digestLen), nil), "together"},
		"huge chunk":            {rawIndex([]uint64{10, 1, MaxChunk + 1, 0, 1}, uvarints(1, MaxChunk+1), make([]byte, digestLen), nil), "number"},
		"empty chunk":           {rawIndex([]uint64{10, 1, 0, 0, 1}, uvarints(1, 0), make([]byte, digestLen), nil), "empty chunk"},
		"endless number":        {rawIndex([]uint64{10}, bytes.Repeat([]byte{0xff}, 40), nil, nil), ""},
		"lengths are a bomb":    {rawIndex([]uint64{10, 1, 1, 0, 1}, make([]byte, 50<<20), make([]byte, digestLen), nil), "lengths of chunks"},
		"page is a bomb":        {oneChunk(1, bombPage), "decompressed"},
		"page of two frames":    {oneChunk(1, twoFramesPage), "decompressed"},
		"empty page":            {oneChunk(0, rawPage(0, 0, nil)), "empty page"},
		"large page":            {oneChunk(2000, rawPage(2000, 0, nil)), "number"},
		"page that says more":   {oneChunk(1, rawPage(2, 0, map[int][]byte{colKinds: {2}})), ""},
		"more members":          {oneChunk(2, rawPage(1, 0, map[int][]byte{colKinds: {2}, colPathLengths: uvarints(0, 1), colPathBytes: []byte("a"), colOwners: uvarints(0, 0, 0, 0), colSeconds: {0}, colNanoseconds: {0}})), "says that they are 2"},
		"bytes left over":       {entry(2, "a", map[int][]byte{colTargets: {0}}), "too many of entries"},
		"name in a name":        {entry(2, "a/../b", nil), "name"},
		"absolute name":         {entry(2, "/a", nil), "name"},
		"empty name":            {entry(2, "", nil), "name"},
		"name with a zero":      {entry(2, "a\x00", nil), "name"},
		"slash at the end":      {entry(2, "a/", nil), "name"},
		"long name":             {entry(2, strings.Repeat("a/", 3000)+"a", nil), ""},
		"shared with nothing":   {oneChunk(1, rawPage(1, 0, map[int][]byte{colKinds: {2}, colPathLengths: uvarints(1, 1), colPathBytes: []byte("a")})), "number"},
		"no such kind":          {entry(9, "a", nil), "kind"},
		"socket":                {entry(byte(tree.Socket), "a", nil), "kind"},
		"kind zero":             {entry(0, "a", nil), "kind"},
		"file for the tree":     {entry(1, ".", map[int][]byte{colSizes: {0}}), "cannot be"},
		"folder with links":     {entry(2|flagLinks, "a", map[int][]byte{colLinks: {2, 0}}), "cannot be"},
		"sparse folder":         {entry(2|flagSparse, "a", map[int][]byte{colRegions: {0}}), "cannot be"},
		"no such owner":         {entry(2, "a", map[int][]byte{colOwners: uvarints(3)}), "number"},
		"large mode":            {entry(2, "a", map[int][]byte{colOwners: uvarints(0, 0o10000, 0, 0)}), "number"},
		"owner -1":              {entry(2, "a", map[int][]byte{colOwners: uvarints(0, 0, math.MaxUint32, 0)}), "number"},
		"a billion nanosecond":  {entry(2, "a", map[int][]byte{colNanoseconds: uvarints(1e9)}), "number"},
		"link to nothing":       {entry(3, "a", map[int][]byte{colTargets: {0}}), "to nothing"},
		"device too large":      {entry(4, "a", map[int][]byte{colDevices: uvarints(1<<12, 0)}), "number"},
		"one name of one":       {entry(6|flagLinks, "a", map[int][]byte{colLinks: {1, 0}}), "names"},
		"first name is later":   {entry(6|flagLinks, "a", map[int][]byte{colLinks: {2, 1, 'b'}}), "names"},
		"first name escapes":    {entry(6|flagLinks, "a", map[int][]byte{colLinks: append([]byte{2, 4}, "../b"...)}), "names"},
		"attributes unsorted":   {entry(2|flagXattrs, "a", map[int][]byte{colXattrs: {0, 2, 1, 'b', 0, 1, 'a', 0}}), "attribute"},
		"attribute no name":     {entry(2|flagXattrs, "a", map[int][]byte{colXattrs: {0, 1, 0, 0}}), "attribute"},
		"no such attributes":    {entry(2|flagXattrs, "a", map[int][]byte{colXattrs: {1}}), "number"},
		"many attributes":       {entry(2|flagXattrs, "a", map[int][]byte{colXattrs: uvarints(0, math.MaxInt64)}), "number"},
		"content outside":       {entry(1, "a", map[int][]byte{colSizes: uvarints(10), colPlaces: binary.AppendVarint(nil, 1<<20-9)}), "outside"},
		"content before":        {entry(1, "a", map[int][]byte{colSizes: uvarints(10), colPlaces: binary.AppendVarint(nil, -1)}), "outside"},
		"content far outside":   {entry(1, "a", map[int][]byte{colSizes: uvarints(math.MaxInt64), colPlaces: binary.AppendVarint(nil, math.MaxInt64)}), "outside"},
		"content no digest":     {entry(1, "a", map[int][]byte{colSizes: uvarints(10), colPlaces: {0}}), "fewer bytes"},
		"pieces no digests":     {rawIndex([]uint64{10, 1 << 10, 1 << 20, 1, 1}, uvarints(100, 1<<20), make([]byte, digestLen), rawPage(1, 1, map[int][]byte{colKinds: {1}, colPathLengths: uvarints(0, 1), colPathBytes: []byte("a"), colOwners: uvarints(0, 0, 0, 0), colSeconds: {0}, colNanoseconds: {0}, colSizes: uvarints(5000), colPlaces: {0}})), "too few digests"},
		"region outside":        {entry(1|flagSparse, "a", map[int][]byte{colSizes: uvarints(10), colRegions: uvarints(1, 5, 6)}), "number"},
		"region too long":       {entry(1|flagSparse, "a", map[int][]byte{colSizes: uvarints(10), colRegions: uvarints(1, 5, 6, 0)}), "number"},
		"empty region":          {entry(1|flagSparse, "a", map[int][]byte{colSizes: uvarints(10), colRegions: uvarints(1, 5, 0), colPlaces: {0}}), "empty region"},
		"out of order":          {headOf(t, 1<<20, directory("b"), directory("a")), `"a" after "b"`},
		"the same twice":        {headOf(t, 1<<20, directory("a"), directory("a")), `"a" after "a"`},
		"the tree is not first": {headOf(t, 1<<20, directory("a"), directory(".")), `"." after "a"`},
		"in no folder":          {headOf(t, 1<<20, directory("a"), regular("a/b/c", 0, 1)), "no folder"},
		"in a file":             {headOf(t, 1<<20, regular("a", 0, 1), regular("a/b", 0, 1)), "no folder"},
		"in another folder":     {headOf(t, 1<<20, directory("a"), directory("a-"), regular("b/c", 0, 1)), "no folder"},
	}
}

// Whoever makes an index by hand gets an error, and never more memory than a
// page's worth.
func TestHostileIndexes(t *testing.T) {
	for name, test := range hostileIndexes(t) {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := readAll(test.head)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %q", err, test.want)
			}
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 64<<20 {
				t.Errorf("it took %d MiB", spent>>20)
			}
			if _, err := ReadHead(bytes.NewReader(test.head)); err == nil && len(test.head) < headStart {
				t.Error("ReadHead takes it")
			}
		})
	}
}

// A stream that ends, or that is no indexed wad, is told apart.
func TestReadHead(t *testing.T) {
	head := headOf(t, 1<<20, directory("."))
	for _, n := range []int{0, 1, 9, 12, 20, 25, len(head) - 1} {
		if _, err := ReadHead(bytes.NewReader(head[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %d bytes: %v; want %v", n, err, io.ErrUnexpectedEOF)
		}
	}
	for _, other := range []string{"tar\x00", "\x28\xb5\x2f\xfd\x24\x00\x01\x00\x00 not ours, long enough", strings.Repeat("x", 100)} {
		if _, err := ReadHead(strings.NewReader(other)); !errors.Is(err, ErrNoIndex) {
			t.Errorf("%q: %v; want %v", other, err, ErrNoIndex)
		}
	}
	huge := bytes.Clone(head[:headStart+len(indexMagic)])
	binary.LittleEndian.PutUint32(huge[headStart-4:], maxHead)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ReadHead(bytes.NewReader(huge))
	runtime.ReadMemStats(&after)
	if err == nil || after.TotalAlloc-before.TotalAlloc > 1<<20 {
		t.Errorf("a length of %d and nothing behind it: %v, having taken %d bytes", maxHead, err, after.TotalAlloc-before.TotalAlloc)
	}
}

// A million entries: what the index has for each, and what memory it takes to
// go through them on a PC of 1 GiB.
func TestMillion(t *testing.T) {
	const files, perFolder = 1_000_000, 100
	w, err := newIndexWriter(DefaultLevel, pieceSize)
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	for i := range files {
		name := fmt.Sprintf("usr/share/package%05d/file-%02d.txt", i/perFolder, i%perFolder)
		if i == 0 {
			for _, d := range []string{".", "usr", "usr/share"} {
				if err := w.add(directory(d)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i%perFolder == 0 {
			if err := w.add(directory(filepath.Dir(name))); err != nil {
				t.Fatal(err)
			}
		}
		m := regular(name, at+512, int64(i*7919%6000)+1)
		at = roundUp(m.TarAt + m.Size)
		if i%2 == 1 {
			w.chunk(2000+i%1000, int(at-w.tarSize), spec.Digest(m.SHA256))
		}
		if err := w.add(m); err != nil {
			t.Fatal(err)
		}
	}
	head, err := w.head()
	if err != nil {
		t.Fatal(err)
	}
	w = nil
	head = slices.Clone(head)
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := memory()
	x, err := ParseIndex(head)
	if err != nil {
		t.Fatal(err)
	}
	parsed := memory() - before
	most, n := uint64(0), 0
	for _, err := range x.All() {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%100_000 == 0 {
			most = max(most, memory()-before)
		}
	}
	runtime.KeepAlive(head)
	t.Logf("%d entries, %d chunks: index of %.1f bytes an entry; parsed %.1f MiB more, while read %.1f MiB", n, x.Chunks, float64(len(head))/float64(n), float64(parsed)/(1<<20), float64(most)/(1<<20))
	if n != files+files/perFolder+3 || len(head) > 60*n || parsed > 8<<20 || most > 16<<20 {
		t.Errorf("%d entries, %d bytes, %d parsed, %d while read: too much for a small PC", n, len(head), parsed, most)
	}
}

// Whatever the bytes, reading an index ends, without a panic, and what it gives
// is a tree.
func FuzzIndex(f *testing.F) {
	f.Add(headOf(f, 1<<20, directory("."), directory("etc"), regular("etc/a", 512, 10)))
	for _, h := range hostileIndexes(f) {
		if len(h.head) < 1<<16 {
			f.Add(h.head)
		}
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		x, err := ParseIndex(head)
		if err != nil {
			return
		}
		last := ""
		for m, err := range x.All() {
			if err != nil {
				return
			}
			if last != "" && !tree.Before(last, m.Path) {
				t.Fatalf("%q after %q", m.Path, last)
			}
			last = m.Path
			if stored := m.Stored(); m.Size < 0 || stored < 0 || stored > m.Size || m.Size > 0 && (m.TarAt < 0 || m.TarAt+stored > x.TarSize) {
				t.Fatalf("%+v", m)
			}
			if m.Kind == tree.Regular && m.Stored() > 0 {
				if from, to := x.Range(m.TarAt, m.Stored()); from < 0 || from >= to || to > x.Chunks {
					t.Fatalf("%q is in chunks %d to %d of %d", m.Path, from, to, x.Chunks)
				}
			}
		}
	})
}

// A file that Find and Copy read is what the tree has, from wads with and
// without an index.
func TestContents(t *testing.T) {
	source, indexed, _ := packZoo(t, PackOptions{})
	plain := filepath.Join(t.TempDir(), "plain.tar.gz")
	sh(t, source, "tar --format=pax -S -czf "+plain+" .")
	for _, file := range []string{indexed, plain} {
		c, err := Open(t.Context(), file, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for name, path := range map[string]string{
			"etc/passwd": "etc/passwd", "/lib/hello2": "usr/lib/hello", "bin/../hello3": "hello3", "usr/lib/bigger": "bigger2",
			"many": "many", "onlyhole": "onlyhole", "usr/lib/nothing": "usr/lib/nothing", "name\n\377\376 latin": "name\n\377\376 latin",
		} {
			m, err := c.Find(name)
			if err != nil {
				t.Errorf("%s: Find: %v", file, err)
				continue
			}
			var got bytes.Buffer
			if err := c.Copy(t.Context(), &got, m); err != nil {
				t.Errorf("%s: Copy: %v", file, err)
			}
			want, err := os.ReadFile(filepath.Join(source, path))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s: %s: %d bytes; want %d others", file, name, got.Len(), len(want))
			}
		}
		for name, want := range map[string]string{"dangling": "no outside", "etc/nobody": "no etc/nobody", "etc": ""} {
			m, err := c.Find(name)
			if err == nil {
				err = c.Copy(t.Context(), io.Discard, m)
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s: %v; want %q", file, name, err, want)
			}
		}
	}
}
