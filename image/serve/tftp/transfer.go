package tftp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pin/tftp/v3/netascii"

	"reassure/image/serve/files"
)

// Limits of a transfer.
const (
	// packetOverhead is what stands before a block's data in a packet: the headers of
	// IPv4 and UDP, and TFTP's own.
	packetOverhead = 20 + 8 + 4
	maxWindow      = 32
	// readAhead saves calls to read; the kernel has the file in memory.
	readAhead = 32 << 10
	// retries is how often a block is sent again before the client is given up:
	// with pauses of 1, 2, 4, 8, 8 and 8 seconds after 31 seconds.
	retries  = 5
	maxPause = 8 * time.Second
)

// errAborted is a transfer that the client has ended.
var errAborted = errors.New("ended by the client")

// transfer sends one file.
type transfer struct {
	conn    *net.UDPConn
	file    io.Reader
	options []byte // of the OACK; nil sends none
	block   int
	window  int
	pause   time.Duration
	steady  bool // the pause is the client's own, and does not grow

	// Blocks are counted from 1, without the 65535 at which their numbers on the
	// wire begin anew: clients that do not cope get no file as large as that.
	acked, filled, last int64    // the last block that: has arrived, was read, there is (0: not known yet)
	packets             [][]byte // the blocks after acked up to filled, by number modulo window
	answer              []byte
	sent                int64
	answered            *atomic.Bool // set at the first progress
}

func newTransfer(conn *net.UDPConn, f *files.File, req request, pause time.Duration, maxBlock int) *transfer {
	t := &transfer{conn: conn, block: 512, window: 1, pause: pause, answer: make([]byte, 516)}
	size := f.Size
	var file io.Reader = f
	if req.netascii {
		file, size = netascii.ToReader(f), -1 // it grows
	}
	for _, o := range req.options {
		value := o.value
		switch o.name {
		case "blksize":
			if value < 8 || value > 65464 {
				continue
			}
			t.block = min(value, max(maxBlock, 512))
			value = t.block
		case "tsize":
			if size <= 0 {
				continue // curl takes a size of 0 for a mistake
			}
			value = int(size)
		case "timeout":
			if value < 1 || value > 255 {
				continue
			}
			t.pause, t.steady = time.Duration(value)*time.Second, true
		case "windowsize":
			if value < 1 || value > 65535 {
				continue
			}
			t.window = min(value, maxWindow)
			value = t.window
		default:
			continue
		}
		if t.options == nil {
			t.options = []byte{0, opOACK}
		}
		t.options = fmt.Appendf(t.options, "%s\x00%d\x00", o.name, value)
	}
	t.file = bufio.NewReaderSize(file, readAhead)
	t.packets = make([][]byte, t.window)
	return t
}

// run sends everything, and returns how many bytes of the file have arrived.
func (t *transfer) run(ctx context.Context) (int64, error) {
	if t.options != nil {
		// A client takes it for block 0.
		if err := t.deliver(ctx, func() error { return t.write(t.options) }, func(block uint16) (progress, again bool) {
			return block == 0, false
		}); err != nil {
			return 0, err
		}
	}
	for t.last == 0 || t.acked < t.last {
		if err := t.fill(); err != nil {
			_, _ = t.conn.Write(errorPacket(errBroken))
			return t.sent, err
		}
		if err := t.deliver(ctx, t.sendWindow, t.ack); err != nil {
			return t.sent, err
		}
	}
	return t.sent, nil
}

// fill reads blocks until the window is full or the file ends, with a block that
// is not full.
func (t *transfer) fill() error {
	for t.last == 0 && t.filled-t.acked < int64(t.window) {
		next := t.filled + 1
		i := next % int64(t.window)
		if t.packets[i] == nil {
			t.packets[i] = make([]byte, 4+t.block)
		}
		p := t.packets[i][:4+t.block]
		binary.BigEndian.PutUint16(p, opData)
		binary.BigEndian.PutUint16(p[2:], uint16(next))
		n, err := io.ReadFull(t.file, p[4:])
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		t.packets[i] = p[:4+n]
		t.filled = next
		if n < t.block {
			t.last = next
		}
	}
	return nil
}

func (t *transfer) sendWindow() error {
	for b := t.acked + 1; b <= t.filled; b++ {
		if err := t.write(t.packets[b%int64(t.window)]); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) write(packet []byte) error {
	_, err := t.conn.Write(packet)
	return err
}

// ack takes the number of the last block that the client has. Within a window it
// has lost what follows (RFC 7440, section 4). That the last one was lost, too, is
// left to the timer where the window is a single block: a block that is sent twice
// because its answer came twice doubles everything after it (RFC 1123, section 4.2.3.1).
func (t *transfer) ack(block uint16) (progress, again bool) {
	more := int64(block - uint16(t.acked)) // modulo 65536
	if more == 0 {
		return false, t.window > 1
	}
	if more > t.filled-t.acked {
		return false, false // of a block long gone
	}
	for b := t.acked + 1; b <= t.acked+more; b++ {
		t.sent += int64(len(t.packets[b%int64(t.window)]) - 4)
	}
	t.acked += more
	return true, false
}

// deliver sends, and sends again, until an answer makes progress.
func (t *transfer) deliver(ctx context.Context, send func() error, acked func(block uint16) (progress, again bool)) error {
	pause, repeated := t.pause, false
	for try := 0; ; try++ {
		if err := send(); err != nil {
			return gone(err)
		}
		if err := t.conn.SetReadDeadline(time.Now().Add(pause)); err != nil {
			return err
		}
		if ctx.Err() != nil { // the deadline that it has set may be the one just lost
			return ctx.Err()
		}
		progress, err := t.listen(func(block uint16) (bool, bool) {
			progress, again := acked(block)
			// Once a window: its blocks make the client say so once each.
			again = again && !repeated
			repeated = repeated || again
			return progress, again
		}, send)
		if progress {
			t.answered.Store(true)
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return gone(err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if try == retries {
			return fmt.Errorf("no answer, with %d tries", try+1)
		}
		if !t.steady {
			pause = min(2*pause, maxPause)
		}
	}
}

// listen takes answers until one makes progress or none comes in time.
func (t *transfer) listen(acked func(block uint16) (progress, again bool), send func() error) (progress bool, err error) {
	for {
		n, err := t.conn.Read(t.answer)
		if err != nil {
			return false, err
		}
		if n < 4 {
			continue
		}
		switch binary.BigEndian.Uint16(t.answer) {
		case opAck:
			progress, again := acked(binary.BigEndian.Uint16(t.answer[2:]))
			if progress {
				return true, nil
			}
			if again {
				if err := send(); err != nil {
					return false, err
				}
			}
		case opError:
			return false, fmt.Errorf("%w: code %d: %.80q", errAborted, binary.BigEndian.Uint16(t.answer[2:]), text(t.answer[4:n]))
		}
	}
}

// gone says what an error of a connected socket means.
func gone(err error) error {
	if errors.Is(err, errRefused) {
		return fmt.Errorf("nobody is there any more: %w", err)
	}
	return err
}
