package wad

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
	"reassure/image/tree"
)

// Extract reads a wad to its end and makes its tree below the folder root. It
// returns nil only if every entry was made and wire ended with io.EOF after
// nothing but zeros: a reader that withholds io.EOF until it has verified what
// it gave is thus asked for its judgement. An error of wire is returned before
// any other, because it explains the others. What was written is on its way to
// the disk, but nobody has waited for the last of it: sync.
//
// After an error the tree is of no use. A goroutine may then still wait in
// wire.Read until that returns: close wire, or end its context.
func Extract(ctx context.Context, wire io.Reader, root string, o Options) (Stats, error) {
	return unpack(ctx, root, o, func(ctx context.Context) (input, error) { return readAhead(ctx, wire), nil })
}

// input is an archive, decompressed.
type input interface {
	io.Reader
	// served is how many bytes were read.
	served() int64
	// ended says whether the reader was told of the end.
	ended() bool
	// failed is what was wrong with the data below the archive, if that is what
	// ended it.
	failed() error
	// close leaves nothing running but what waits for the wire.
	close()
}

// unpack extracts what open opens.
func unpack(ctx context.Context, root string, o Options, open func(context.Context) (input, error)) (Stats, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w, err := tree.NewWriter(root, o.Overlay)
	if err != nil {
		return Stats{}, err
	}
	defer w.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	in, err := open(ctx)
	if err != nil {
		return Stats{}, err
	}
	defer in.close()
	x := &extraction{
		Options: o, ctx: ctx, tree: w,
		in:      in,
		global:  globals{},
		writers: startWriters(ctx, cancel, o.Workers, o.MemoryLimit),
	}
	err = x.archive()
	if err != nil {
		cancel(err)
	}
	// Whatever failed first is the cause of what failed after it.
	if first := x.writers.wait(); first != nil {
		err = first
	}
	if err == nil {
		err = x.finish(root)
	}
	if err != nil && errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: make the partition larger than what the wad holds", err)
	}
	x.report(true)
	return x.stats, err
}

// extraction is the state of one Extract.
type extraction struct {
	Options
	ctx     context.Context
	tree    *tree.Writer
	in      input
	writers *writers
	global  globals
	late    []lateACL

	stats    Stats
	reported time.Time
	stripped bool // said so
}

func (x *extraction) archive() error {
	r := tar.NewReader(x.in)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return x.end()
		}
		if x.ctx.Err() != nil && x.in.failed() == nil {
			return context.Cause(x.ctx)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return unreadable(x.in, x.stats.Entries, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if err := x.global.take(h); err != nil {
				return err
			}
			continue
		}
		if err := x.entry(r, h); err != nil {
			if x.in.failed() != nil {
				return x.in.failed()
			}
			return &EntryError{h.Name, err}
		}
		x.stats.Entries++
		x.report(false)
	}
}

// unreadable explains why the header after so many entries could not be read.
func unreadable(in input, entries int, err error) error {
	if failure := in.failed(); failure != nil {
		return failure
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the wad is cut short after %d entries: %w", entries, err)
	}
	if entries == 0 && errors.Is(err, tar.ErrHeader) {
		return fmt.Errorf("this is no wad, neither plain nor compressed: %w", err)
	}
	return fmt.Errorf("the wad is damaged after %d entries: %w", entries, err)
}

// end judges what comes after the last entry.
func (x *extraction) end() error {
	if x.in.ended() {
		return fmt.Errorf("the wad is cut short after %d entries: tar's end marker is missing: %w", x.stats.Entries, io.ErrUnexpectedEOF)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := x.in.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return errors.New("there is something after the end of the archive: pack the wad as one archive")
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (x *extraction) entry(r *tar.Reader, h *tar.Header) error {
	switch h.Typeflag {
	case 'V': // GNU: the archive's label
		x.Log.Debug("wad: label", "label", h.Name)
		return nil
	case 'M':
		return errors.New("it is the continuation of another archive: pack the wad as one volume")
	}
	if err := x.global.apply(h); err != nil {
		return err
	}
	e, late, err := entry(h)
	if err != nil {
		return err
	}
	if strings.HasPrefix(h.Name, "/") && !x.stripped {
		x.stripped = true
		x.Log.Warn("wad: leading slashes are dropped from names", "first", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		e.Kind = tree.Regular
		err = x.file(r, h, e)
		x.stats.Files++
	case tar.TypeDir, 'D': // D: GNU's, with a list of names that only --incremental wants
		e.Kind = tree.Directory
		err = x.tree.Directory(e)
		x.stats.Directories++
	case tar.TypeSymlink:
		e.Kind, e.Target = tree.Symlink, h.Linkname
		err = x.tree.Symlink(e)
		x.stats.Symlinks++
	case tar.TypeLink:
		var target string
		if target, err = tree.Clean(h.Linkname); err == nil {
			err = x.tree.Link(e.Path, target)
		}
		late = nil // what it has, its first name has
		x.stats.HardLinks++
	case tar.TypeChar, tar.TypeBlock:
		e.Kind = tree.CharDevice
		if h.Typeflag == tar.TypeBlock {
			e.Kind = tree.BlockDevice
		}
		err = x.tree.Device(e)
		x.stats.Devices++
	case tar.TypeFifo:
		e.Kind, e.Major, e.Minor = tree.FIFO, 0, 0
		err = x.tree.Device(e)
		x.stats.FIFOs++
	default:
		return fmt.Errorf("entries of kind %q are not known", h.Typeflag)
	}
	x.late = append(x.late, late...)
	return err
}

// file reads a file's content and hands it to a writer.
func (x *extraction) file(r *tar.Reader, h *tar.Header, e *tree.Entry) error {
	f, err := x.tree.Begin(e)
	if err != nil {
		return err
	}
	job := &job{name: h.Name, file: f, sparse: isSparse(h)}
	if job.sparse {
		x.stats.Sparse++
	}
	if h.Size <= slabSize && !job.sparse {
		job.whole, err = x.writers.space(int(h.Size))
		if err == nil {
			_, err = io.ReadFull(r, job.whole.data)
		}
		if err != nil {
			job.drop()
			return err
		}
		x.stats.Bytes += spec.Size(h.Size)
		return x.writers.submit(job)
	}
	job.parts = make(chan part, 4)
	defer close(job.parts)
	if err := x.writers.submit(job); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		p, err := x.writers.space(int(min(left, slabSize)))
		if err != nil {
			return err
		}
		before := x.in.served()
		if _, err := io.ReadFull(r, p.data); err != nil {
			p.release()
			return err
		}
		left -= int64(len(p.data))
		x.stats.Bytes += spec.Size(len(p.data))
		if x.in.served() == before && job.sparse {
			// Nothing was taken from the archive: all of this is a hole.
			hole := int64(len(p.data))
			p.release()
			p = part{hole: hole}
		}
		if err := job.send(x.ctx, p); err != nil {
			return err
		}
		x.report(false)
	}
	return nil
}

// finish does what must wait for the whole tree.
func (x *extraction) finish(path string) error {
	if err := x.tree.Finish(); err != nil {
		if directory := (*fs.PathError)(nil); errors.As(err, &directory) {
			return &EntryError{directory.Path, directory.Err}
		}
		return err
	}
	if len(x.late) == 0 {
		return nil
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	users, err := accounts(root, "etc/passwd")
	if err != nil {
		return err
	}
	groups, err := accounts(root, "etc/group")
	if err != nil {
		return err
	}
	for _, l := range x.late {
		if err := l.acl.resolve(users, groups); err != nil {
			return &EntryError{l.entry, err}
		}
		if err := x.tree.SetXattr(l.path, l.attr, l.acl.binary()); err != nil {
			return &EntryError{l.entry, err}
		}
	}
	return nil
}

func (x *extraction) report(last bool) {
	if x.Progress == nil {
		return
	}
	if now := time.Now(); last || now.Sub(x.reported) >= 100*time.Millisecond {
		x.reported = now
		x.Progress(x.stats)
	}
}

// writers write files on goroutines of their own.
type writers struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	jobs   chan *job
	group  sync.WaitGroup
	slabs  slabs
}

func startWriters(ctx context.Context, cancel context.CancelCauseFunc, workers int, limit spec.Size) *writers {
	if workers <= 0 {
		// On two cores two beat one and three; ext4's journal and its folders'
		// locks keep many more from being of use.
		workers = min(max(2, runtime.GOMAXPROCS(0)), 4)
	}
	if limit == 0 {
		limit = 32 * spec.MiB
	}
	w := &writers{
		ctx: ctx, cancel: cancel,
		jobs:  make(chan *job, 256),
		slabs: slabs{left: max(4, int(limit/slabSize)), free: make(chan *slab, max(4, int(limit/slabSize)))},
	}
	for range workers {
		w.group.Go(w.run)
	}
	return w
}

func (w *writers) run() {
	for j := range w.jobs {
		if w.ctx.Err() != nil {
			j.drop()
			continue
		}
		if err := j.run(w.ctx); err != nil {
			w.cancel(&EntryError{j.name, err})
		}
	}
}

// submit queues a job; after an error its file is abandoned.
func (w *writers) submit(j *job) error {
	select {
	case w.jobs <- j:
		return nil
	case <-w.ctx.Done():
		j.drop()
		return context.Cause(w.ctx)
	}
}

// wait ends the writers and returns why the extraction was cancelled, if it was.
func (w *writers) wait() error {
	close(w.jobs)
	w.group.Wait()
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return nil
}

// space returns n bytes, at most slabSize, to be released after use.
func (w *writers) space(n int) (part, error) { return w.slabs.take(w.ctx, n) }
