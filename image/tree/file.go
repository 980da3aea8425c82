package tree

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// holeBlock is the unit in which holes are looked for: no file system has
// smaller ones.
const holeBlock = 4096

// File is a regular file of a [Writer]. Its name is taken when it is begun; its
// content is written in one go, from any one goroutine: Create, then Write or
// Hole as often as needed, then Close. Abandon instead of any of these gives up.
type File struct {
	w      *Writer
	at     name
	e      *Entry
	number uint64        // from 1, in the order of the archive
	done   chan struct{} // closed when the file is whole or given up
	fd     int
	size   int64
	holey  bool // the end may not have been written
}

// Begin takes the name of a file. Every File must see Close or Abandon, or
// later entries may wait for it forever.
func (w *Writer) Begin(e *Entry) (*File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, err := w.place(e.Path)
	if err != nil {
		return nil, err
	}
	w.begun++
	f := &File{w: w, at: at, e: e, number: w.begun, done: make(chan struct{}), fd: -1}
	w.writing[at] = f
	return f, nil
}

// Create makes the file, in place of what is there if the rules allow.
func (f *File) Create() error {
	create := func() error {
		// The final mode at once: mostly it needs no chmod then.
		const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := again(func() (int, error) {
			return unix.Openat(f.at.folder.fd, f.at.base, flags, f.e.Mode&0o777)
		})
		f.fd = fd
		return err
	}
	err := create()
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if errors.Is(err, unix.EEXIST) {
		err = f.w.make(f.at, f.number-1, create)
	}
	if err != nil {
		return err
	}
	f.w.made[f.w.hash(f.at)] = struct{}{}
	return f.w.disinherit(f.at, false)
}

// Write appends to the file.
func (f *File) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := again(func() (int, error) { return unix.Write(f.fd, p[done:]) })
		if err != nil {
			return done, fmt.Errorf("write at byte %d: %w", f.size, err)
		}
		done += n
		f.size += int64(n)
	}
	f.holey = false
	return done, nil
}

// Hole appends n zero bytes without writing them.
func (f *File) Hole(n int64) error {
	if n == 0 {
		return nil
	}
	if _, err := unix.Seek(f.fd, n, unix.SEEK_CUR); err != nil {
		return fmt.Errorf("leave a hole of %d bytes at byte %d: %w", n, f.size, err)
	}
	f.size += n
	f.holey = true
	return nil
}

// WriteSparse appends p, its blocks of zero bytes as holes.
func (f *File) WriteSparse(p []byte) error {
	for len(p) > 0 {
		n := 0
		zero := isZero(block(p))
		for n < len(p) && isZero(block(p[n:])) == zero {
			n += len(block(p[n:]))
		}
		var err error
		if zero {
			err = f.Hole(int64(n))
		} else {
			_, err = f.Write(p[:n])
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func block(p []byte) []byte { return p[:min(len(p), holeBlock)] }

// isZero counts because that is what the machine does many bytes at a time.
func isZero(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }

// Close gives the file its metadata and lets it go.
func (f *File) Close() error {
	err := f.finish()
	f.Abandon()
	return err
}

func (f *File) finish() error {
	if f.holey {
		if err := unix.Ftruncate(f.fd, f.size); err != nil {
			return fmt.Errorf("set size %d: %w", f.size, err)
		}
	}
	if f.at.folder.fat {
		return setTime(f.fd, f.e)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if err := describe(f.fd, &st, f.e); err != nil {
		return err
	}
	// NFS and others tell of a full disk only here.
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}

// Abandon lets the file go, in whatever state it is.
func (f *File) Abandon() {
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.writing, f.at)
	f.w.unuse(f.at.folder)
	close(f.done)
}
