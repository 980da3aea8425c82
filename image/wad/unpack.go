package wad

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 8
	// maxWindow is what the zstd program accepts without being asked: 2^27.
	maxWindow = 128 << 20
)

// wire watches what is read from the network: whatever a decompressor makes of
// it, the first failure and the end are known.
type wire struct {
	r   io.Reader
	err error // the first, io.EOF included
}

func (w *wire) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.r.Read(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// failure is why the wire ended, or nil if it has not or ended well.
func (w *wire) failure() error {
	if w.err == nil || w.err == io.EOF {
		return nil
	}
	return w.err
}

// refusal is an error of ours about data that need not be damaged.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// decompressor finds out by its first bytes what r is.
func decompressor(r *bufio.Reader) (plain io.Reader, format string, stop func(), err error) {
	stop = func() {}
	head, err := r.Peek(6)
	if len(head) == 0 {
		if err == io.EOF {
			err = refusal{fmt.Errorf("the wad is empty: %w", io.ErrUnexpectedEOF)}
		}
		return nil, "", stop, err
	}
	switch has := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }; {
	case has("\x1f\x8b"):
		plain, err = gzip.NewReader(r)
		return plain, "gzip", stop, err
	case has("BZh"):
		return bzip2.NewReader(r), "bzip2", stop, nil
	case has("\xfd7zXZ\x00"):
		head, _ = r.Peek(64)
		if size := xzDictionary(head); size > maxWindow {
			return nil, "xz", stop, refusal{fmt.Errorf("the wad's xz dictionary of %d MiB is too large for small PCs: at most %d MiB are accepted, so pack it with xz -9 or below", size>>20, maxWindow>>20)}
		}
		plain, err = xz.NewReader(r)
		return plain, "xz", stop, err
	case has("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && has(string(head[:1])+"\x2a\x4d\x18"):
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, "zstd", stop, err
		}
		return d, "zstd", d.Close, nil
	case has("\x04\x22\x4d\x18"), has("LZIP"), has("\x1f\x9d"), has("PK\x03\x04"), has("7z\xbc\xaf"), has("\x89LZO"):
		return nil, "", stop, refusal{errors.New("the wad is compressed in a way that is not read here: compress it by zstd")}
	}
	return r, "tar", stop, nil
}

// xzDictionary reads from the start of an xz file how large a dictionary its
// first block wants; 0 if that cannot be seen, which xz itself will judge. Later
// blocks are made with the same settings by every program that is known.
// (The .xz file format, 2.1.1 and 3.1.)
func xzDictionary(head []byte) int64 {
	const streamHeader = 12
	if len(head) < streamHeader+2 {
		return 0
	}
	flags, rest := head[streamHeader+1], head[streamHeader+2:]
	for _, present := range []byte{0x40, 0x80} { // compressed size, uncompressed size
		if flags&present != 0 {
			_, n := binary.Uvarint(rest)
			rest = rest[max(n, 0):]
		}
	}
	const lzma2 = 0x21
	if flags&3 != 0 || len(rest) < 3 || rest[0] != lzma2 || rest[1] != 1 {
		return 0
	}
	size, err := lzma.DecodeDictCap(rest[2])
	if err != nil {
		return 0
	}
	return size
}

// ahead decompresses on a goroutine of its own, a few chunks ahead of who reads.
type ahead struct {
	ctx   context.Context
	ready chan chunk
	free  chan []byte
	now   chunk
	rest  []byte // of now
	count int64  // bytes handed out
	told  bool   // the end was reported
}

type chunk struct {
	data []byte
	err  error // what came after data
}

func readAhead(ctx context.Context, in io.Reader) *ahead {
	a := &ahead{ctx: ctx, ready: make(chan chunk, aheadChunks), free: make(chan []byte, aheadChunks)}
	for range aheadChunks {
		a.free <- nil
	}
	go a.run(in)
	return a
}

func (a *ahead) run(in io.Reader) {
	w := &wire{r: in}
	r := bufio.NewReaderSize(w, 64<<10)
	plain, format, stop, err := decompressor(r)
	defer stop()
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.ctx.Done():
			return
		}
		if buf == nil {
			buf = make([]byte, aheadChunk)
		}
		n := 0
		for err == nil && n < len(buf) {
			var got int
			got, err = plain.Read(buf[n:])
			n += got
		}
		if err != nil {
			err = conclude(w, r, format, err)
		}
		select {
		case a.ready <- chunk{buf[:n], err}:
		case <-a.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// conclude says what the end of the decompressed stream means: io.EOF only if
// the wire ended there, and well.
func conclude(w *wire, r *bufio.Reader, format string, err error) error {
	if err == io.EOF {
		_, extra := r.ReadByte()
		if extra == nil {
			return fmt.Errorf("there is something after the end of the %s data", format)
		}
		if w.failure() == nil {
			return io.EOF
		}
	}
	if failure := w.failure(); failure != nil {
		return failure // the cause; what the decompressor says is the effect
	}
	var refused refusal
	switch {
	case errors.As(err, &refused):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("decompress %s: %w: at most %d MiB are accepted, so pack it without --long above 27", format, err, maxWindow>>20)
	case w.err == io.EOF && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		return fmt.Errorf("the %s data is cut short: %w", format, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("decompress %s: %w: the wad is damaged", format, err)
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			a.told = true
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.free <- a.now.data[:cap(a.now.data)]
			a.now.data = nil
		}
		select {
		case a.now = <-a.ready:
			a.rest = a.now.data
		case <-a.ctx.Done():
			return 0, context.Cause(a.ctx)
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	a.count += int64(n)
	return n, nil
}

func (a *ahead) served() int64 { return a.count }

func (a *ahead) close() {}

func (a *ahead) ended() bool { return len(a.rest) == 0 && a.now.err == io.EOF && a.told }

func (a *ahead) failed() error {
	if a.now.err == io.EOF || len(a.rest) > 0 {
		return nil
	}
	return a.now.err
}
