package qemutests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// Writes is what a disk was told to write, in order, as QEMU's blklogwrites noted it. The
// format is that of Linux's dm-log-writes (drivers/md/dm-log-writes.c): a superblock, then
// for each request a sector that describes it, and its data.
type Writes struct {
	Entries []Write
	log     *os.File
}

// Write is one request.
type Write struct {
	At, Length int64 // bytes on the disk
	// Flush says that all that was written before is on the disk for good; FUA that
	// this is. Discard has no data.
	Flush, FUA, Discard bool

	data int64 // where its data is in the log
}

const (
	writesMagic   = 0x6a736677736872
	writesVersion = 1
	writesSector  = 512
)

// ReadWrites reads a disk's log. The PC must be off.
func ReadWrites(file string) (_ *Writes, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("log of writes: %w", err), f.Close())
		}
	}()
	var sector [writesSector]byte
	if _, err := io.ReadFull(f, sector[:]); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	switch {
	case le.Uint64(sector[:]) != writesMagic:
		return nil, errors.New("it is none")
	case le.Uint64(sector[8:]) != writesVersion || le.Uint32(sector[24:]) != writesSector:
		return nil, fmt.Errorf("it has version %d and sectors of %d bytes", le.Uint64(sector[8:]), le.Uint32(sector[24:]))
	}
	w := &Writes{log: f}
	// The count in the superblock is behind when the plug is pulled: entries go on to the end.
	for at := int64(writesSector); ; {
		if _, err := f.ReadAt(sector[:], at); err == io.EOF {
			return w, nil
		} else if err != nil {
			return nil, err
		}
		flags := le.Uint64(sector[16:])
		e := Write{
			At: int64(le.Uint64(sector[0:])) * writesSector, Length: int64(le.Uint64(sector[8:])) * writesSector,
			Flush: flags&1 != 0, FUA: flags&2 != 0, Discard: flags&4 != 0, data: at + writesSector,
		}
		if flags == 0 && e.Length == 0 {
			return w, nil // what was made room for, and never written
		}
		at += writesSector
		if !e.Discard {
			at += e.Length
		}
		w.Entries = append(w.Entries, e)
	}
}

// Close closes the log.
func (w *Writes) Close() error { return w.log.Close() }

// do does a request, or the first part of it, on a disk.
func (w *Writes) do(e Write, length int64, disk *os.File) error {
	if e.Discard {
		if length == 0 {
			return nil
		}
		return unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.At, length)
	}
	_, err := io.Copy(io.NewOffsetWriter(disk, e.At), io.NewSectionReader(w.log, e.data, length))
	return err
}

// Durable is how many of the first n requests are on the disk for good: those before
// the last flush among them.
func (w *Writes) Durable(n int) int {
	for i := n - 1; i >= 0; i-- {
		if w.Entries[i].Flush {
			return i + 1
		}
	}
	return 0
}

// Replay does requests from to before to, in order.
func (w *Writes) Replay(disk *os.File, from, to int) error {
	for _, e := range w.Entries[from:to] {
		if err := w.do(e, e.Length, disk); err != nil {
			return err
		}
	}
	return nil
}

// Cut leaves a disk, on which the first w.Durable(n) requests have been done, as a power
// cut after request n may: of those that no flush has made sure of, any may be there, be
// lost, or have been cut between two sectors, in any order.
func (w *Writes) Cut(disk *os.File, n int, random *rand.Rand) error {
	begin := w.Durable(n)
	order := random.Perm(n - begin)
	// Most of them, or few: a cache that is nearly written out is as likely as a full one.
	share := random.Float64()
	for _, i := range order {
		e := w.Entries[begin+i]
		length := e.Length
		switch {
		case e.FUA:
		case random.Float64() > share:
			continue
		case random.IntN(8) == 0:
			length = random.Int64N(e.Length/writesSector+1) * writesSector
		}
		if err := w.do(e, length, disk); err != nil {
			return err
		}
	}
	return nil
}
