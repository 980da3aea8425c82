package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// parted cuts data into parts of many sizes, the first of which is the head.
func parted(data []byte) (head Part, rest []Part) {
	sizes := []int64{5000, 100, 100_000, 1, 777, 40_000, 300_000, 12, 4096}
	var all []Part
	for at, i := int64(0), 0; at < int64(len(data)); i++ {
		n := min(sizes[i%len(sizes)], int64(len(data))-at)
		all = append(all, Part{Offset: at, Size: n, SHA256: spec.Sum(data[at : at+n]), Number: i})
		at += n
	}
	return all[0], all[1:]
}

// some are parts here and there.
func some(parts []Part) []Part {
	var out []Part
	for i, p := range parts {
		if i%5 == 1 || i%7 == 3 {
			out = append(out, p)
		}
	}
	return out
}

// gather reads parts to the end, and fails the test for any that is not the
// file's.
func gather(t *testing.T, client *Client, source Source, data []byte, parts []Part, o PartOptions) error {
	t.Helper()
	head, _ := parted(data)
	p, got, err := client.OpenParts(t.Context(), source, head)
	if err != nil {
		return err
	}
	defer p.Close()
	if !bytes.Equal(got, data[:head.Size]) {
		t.Error("the head is not the file's")
	}
	blocks := p.Fetch(t.Context(), slices.Values(parts), o)
	defer blocks.Close()
	for _, want := range parts {
		b, err := blocks.Next()
		if err != nil {
			return err
		}
		if b.Part != want {
			t.Errorf("part %v came when %v was due", b.Part, want)
		}
		if !bytes.Equal(b.Data, data[want.Offset:want.end()]) {
			t.Errorf("part %d is not the file's", b.Number)
		}
		b.Release()
	}
	if _, err := blocks.Next(); err != io.EOF {
		t.Errorf("after the last part: %v", err)
		return err
	}
	return nil
}

// bad judges a PartError: whether it is about the part at an offset.
func bad(offset int64) func(error) bool {
	return func(err error) bool {
		var e *PartError
		return errors.As(err, &e) && e.Part.Offset <= offset && offset < e.Part.end()
	}
}

func TestParts(t *testing.T) {
	data := content()
	longer := append(bytes.Clone(data), 'x')
	_, all := parted(data)
	last := some(all)[8].Offset
	wrong := flipped(data, int(last))
	for _, test := range []struct {
		name    string
		servers []http.HandlerFunc
		want    func(error) bool // nil is success
		// all says that it fails only when all parts are wanted.
		all bool
	}{
		{name: "served well", servers: []http.HandlerFunc{good(data, `"a"`)}},
		{name: "ignores Range", servers: []http.HandlerFunc{whole(data)}},
		{name: "ignores Range, length not announced", servers: []http.HandlerFunc{chunked(data)}},
		{name: "cut again and again", servers: []http.HandlerFunc{cutting(400_003, good(data, `"a"`))}},
		{name: "ignores Range, cut twice", servers: []http.HandlerFunc{inTurn(cutting(1_000_003, whole(data)), cutting(2_000_003, whole(data)), whole(data))}},
		{name: "Range works at first only", servers: []http.HandlerFunc{inTurn(good(data, ""), whole(data))}},
		{name: "stalled, then served", servers: []http.HandlerFunc{inTurn(hang(data, 3000), good(data, `"a"`))}},
		{name: "503 twice, then served", servers: []http.HandlerFunc{inTurn(status(503), status(503), good(data, `"a"`))}},
		{name: "refuses ranges with 416", servers: []http.HandlerFunc{inTurn(status(416), whole(data))}},
		{name: "sends another range", servers: []http.HandlerFunc{inTurn(good(data, ""), func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=7-")
			good(data, "")(w, r)
		}, whole(data))}},
		{name: "sends less than was asked for", servers: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			var from int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+9_999))
			good(data, "")(w, r)
		}}},
		{name: "first mirror has no such file", servers: []http.HandlerFunc{status(404), good(data, `"b"`)}},
		{name: "first mirror has another length", servers: []http.HandlerFunc{good(longer, ""), good(data, `"b"`)}},
		{name: "damaged once on its way", servers: []http.HandlerFunc{inTurn(good(flipped(data, 100), ""), good(data, ""))}},
		{name: "first mirror has a wrong bit", servers: []http.HandlerFunc{good(wrong, ""), good(data, "")}},
		{name: "first mirror has a wrong bit and ignores Range", servers: []http.HandlerFunc{whole(wrong), good(data, "")}},
		{name: "first mirror has a wrong bit, second ignores Range", servers: []http.HandlerFunc{good(wrong, ""), whole(data)}},
		{name: "each mirror has another wrong bit", servers: []http.HandlerFunc{good(wrong, ""), good(flipped(data, 100), "")}},
		{name: "first mirror cuts, second has a wrong bit", servers: []http.HandlerFunc{cutting(250_001, good(data, "")), good(wrong, "")}},
		{name: "first mirror has all wrong", servers: []http.HandlerFunc{good(bytes.Repeat([]byte{1}, len(data)), ""), good(data, "")}},

		{name: "a bit is wrong", servers: []http.HandlerFunc{good(wrong, "")}, want: bad(last)},
		{name: "a bit is wrong, Range ignored", servers: []http.HandlerFunc{whole(wrong)}, want: bad(last)},
		{name: "a bit of the head is wrong", servers: []http.HandlerFunc{good(flipped(data, 7), "")}, want: bad(7)},
		{name: "a bit is wrong on both mirrors", servers: []http.HandlerFunc{good(wrong, ""), whole(wrong)}, want: func(err error) bool {
			return bad(last)(err) && strings.Count(err.Error(), "http://127.0.0.1") == 2
		}},
		{name: "not found", servers: []http.HandlerFunc{status(404)}, want: isStatus(404)},
		{name: "a web page", servers: []http.HandlerFunc{page}, want: func(err error) bool { return errors.Is(err, ErrWebPage) }},
		{name: "longer", servers: []http.HandlerFunc{good(longer, "")}, want: isSize(int64(len(longer)))},
		{name: "longer, Range ignored", servers: []http.HandlerFunc{whole(longer)}, want: isSize(int64(len(longer)))},
		{name: "longer, not announced", servers: []http.HandlerFunc{chunked(longer)}, want: isSize(int64(len(longer))), all: true},
		{name: "shorter", servers: []http.HandlerFunc{good(data[:len(data)-1], "")}, want: isSize(int64(len(data) - 1))},
		{name: "shorter, not announced", servers: []http.HandlerFunc{chunked(data[:100_000])}, want: func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{name: "stalls forever", servers: []http.HandlerFunc{hang(data, 20_000)}, want: isStall},
		{name: "gone after the head", servers: []http.HandlerFunc{inTurn(good(data, ""), status(410))}, want: isStatus(410)},
	} {
		for _, how := range []struct {
			name  string
			parts []Part
			o     PartOptions
		}{
			{"all at once", all, PartOptions{Sequential: true}},
			{"all by ranges", all, PartOptions{}},
			{"some", some(all), PartOptions{}},
			{"little memory", all, PartOptions{Memory: 1}},
		} {
			t.Run(test.name+"/"+how.name, func(t *testing.T) {
				noLeaks(t)
				source := Source{Name: "wad.tar.zst", Size: spec.Size(len(data))}
				for _, h := range test.servers {
					source.URLs = append(source.URLs, serve(t, h))
				}
				client := impatient()
				err := gather(t, client, source, data, how.parts, how.o)
				want := test.want
				if test.all && len(how.parts) < len(all) {
					want = nil
				}
				switch {
				case want == nil && err != nil:
					t.Errorf("failed: %v", err)
				case want != nil && (err == nil || !want(err)):
					t.Errorf("error: %v", err)
				case want != nil && !strings.Contains(err.Error(), "http://127.0.0.1"):
					t.Errorf("the error does not name the address: %v", err)
				}
			})
		}
	}
}

// A mirror that sends damaged parts is not asked forever.
func TestPartsBlame(t *testing.T) {
	data := content()
	wrong := bytes.Clone(data)
	for i := 6000; i < len(wrong); i += 1000 {
		wrong[i] ^= 1
	}
	var asked atomic.Int32
	first := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		good(wrong, "")(w, r)
	})
	second := serve(t, cutting(100_003, good(data, "")))
	_, all := parted(data)
	client := impatient()
	client.Attempts = 30
	err := gather(t, client, Source{Name: "wad", URLs: []string{first, second}, Size: spec.Size(len(data))}, data, all, PartOptions{Sequential: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n > 1+mostBadParts { // 1: the head
		t.Errorf("a mirror that sends nothing but damage was asked %d times", n)
	}
}

// What is fetched is what was asked for, and little more.
func TestPartsBytes(t *testing.T) {
	data := content()
	var sent, requests atomic.Int64
	count := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			h(&counter{w, &sent}, r)
		}
	}
	head, all := parted(data)
	wanted := head.Size
	parts := some(all)
	for _, p := range parts {
		wanted += p.Size
	}
	source := Source{Name: "wad", URLs: []string{serve(t, count(good(data, "")))}, Size: spec.Size(len(data))}
	if err := gather(t, impatient(), source, data, parts, PartOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, most := sent.Load(), wanted+int64(len(parts))*nearby; got < wanted || got > most {
		t.Errorf("%d bytes were sent for %d that were wanted", got, wanted)
	}

	// A server that ignores Range sends the file once, not once for each part.
	sent.Store(0)
	requests.Store(0)
	source.URLs[0] = serve(t, count(whole(data)))
	if err := gather(t, impatient(), source, data, parts, PartOptions{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(int64(1), requests.Load()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if got := sent.Load(); got > int64(len(data)) {
		t.Errorf("%d bytes were sent of a file of %d", got, len(data))
	}
}

type counter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// Without a reader that takes blocks, no more arrive than Memory has room for.
func TestPartsMemory(t *testing.T) {
	noLeaks(t)
	data := content()
	head, all := parted(data)
	client := impatient()
	p, _, err := client.OpenParts(t.Context(), Source{Name: "wad", URLs: []string{serve(t, good(data, ""))}, Size: spec.Size(len(data))}, head)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var decoded atomic.Int64
	for i := range all {
		all[i].Decoded = 2 * all[i].Size
	}
	const limit = 2 << 20
	blocks := p.Fetch(t.Context(), slices.Values(all), PartOptions{Memory: limit, Decode: func(_ Part, dst, data []byte) ([]byte, error) {
		decoded.Add(int64(3 * len(data)))
		return append(append(dst, data...), data...), nil
	}})
	defer blocks.Close()
	time.Sleep(300 * time.Millisecond)
	if n := decoded.Load(); n == 0 || n > limit {
		t.Errorf("%d bytes are in memory; the limit is %d", n, limit)
	}
	total := int64(0)
	for {
		b, err := blocks.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += int64(len(b.Data))
		b.Release()
	}
	if want := 2 * (int64(len(data)) - head.Size); total != want {
		t.Errorf("%d bytes came; want %d", total, want)
	}
}

func TestPartsRefused(t *testing.T) {
	data := content()
	head, all := parted(data)
	url := serve(t, good(data, ""))
	broken := errors.New("no good")
	for _, test := range []struct {
		name   string
		parts  iter.Seq[Part]
		decode func(Part, []byte, []byte) ([]byte, error)
		want   string
	}{
		{"backwards", slices.Values([]Part{all[3], all[2]}), nil, "cannot be a part"},
		{"past the end", slices.Values([]Part{{Offset: int64(len(data)) - 1, Size: 2}}), nil, "cannot be a part"},
		{"empty", slices.Values([]Part{{Offset: 1}}), nil, "cannot be a part"},
		{"overflow", slices.Values([]Part{{Offset: 1 << 62, Size: 1 << 62}}), nil, "cannot be a part"},
		{"decodes to something shorter", slices.Values(all), func(_ Part, dst, _ []byte) ([]byte, error) { return dst, nil }, "decode to 0 bytes"},
		{"does not decode", slices.Values(all), func(Part, []byte, []byte) ([]byte, error) { return nil, broken }, broken.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			p, _, err := impatient().OpenParts(t.Context(), Source{Name: "wad", URLs: []string{url}, Size: spec.Size(len(data))}, head)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			blocks := p.Fetch(t.Context(), func(yield func(Part) bool) {
				for part := range test.parts {
					if part.Decoded = 1; !yield(part) {
						return
					}
				}
			}, PartOptions{Decode: test.decode})
			defer blocks.Close()
			for err == nil {
				var b *Block
				if b, err = blocks.Next(); err == nil {
					b.Release()
				}
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: %v; want one with %q", err, test.want)
			}
		})
	}
}

func TestPartsCancel(t *testing.T) {
	data := content()
	head, all := parted(data)
	for _, test := range []struct {
		name string
		end  func(cancel func(), b *Blocks)
		want error
	}{
		{"context", func(cancel func(), _ *Blocks) { cancel() }, context.Canceled},
		{"close", func(_ func(), b *Blocks) { b.Close() }, errClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			url := serve(t, inTurn(good(data, ""), hang(data, 10)))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p, _, err := (&Client{}).OpenParts(ctx, Source{Name: "wad", URLs: []string{url}, Size: spec.Size(len(data))}, head)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			blocks := p.Fetch(ctx, slices.Values(all), PartOptions{Sequential: true})
			defer blocks.Close()
			time.AfterFunc(50*time.Millisecond, func() { test.end(cancel, blocks) })
			if _, err := blocks.Next(); !errors.Is(err, test.want) {
				t.Errorf("error: %v; want %v", err, test.want)
			}
		})
	}
}
