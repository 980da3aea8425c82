package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"reassure/image/command"
	"reassure/image/fetch"
	"reassure/image/reimage/delta"
	"reassure/image/reimage/mkfs"
	"reassure/image/spec"
	"reassure/image/wad"
	qemutests "reassure/qemu-tests"
)

// share is what one of thirty PCs has of a gigabit port.
const share = "30mbit"

// link is a boot server and a PC, in namespaces of their own, with a cable between.
type link struct {
	segment *qemutests.Segment
	pc      *qemutests.Namespace
	server  *http.Server
	sent    atomic.Int64 // bytes of bodies
}

func newLink(ctx context.Context, folder string) (l *link, err error) {
	l = &link{}
	if l.segment, err = qemutests.NewSegment(ctx); err != nil {
		return nil, err
	}
	if l.pc, err = l.segment.Host(ctx, "172.30.0.11"); err != nil {
		return nil, err
	}
	listener, err := l.segment.Listen(ctx, qemutests.SegmentServer+":80")
	if err != nil {
		return nil, err
	}
	files := http.FileServer(http.Dir(folder))
	l.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		files.ServeHTTP(&sent{w, &l.sent}, r)
	})}
	go func() { _ = l.server.Serve(listener) }() // ended by Close
	return l, nil
}

func (l *link) Close() error {
	return errors.Join(l.server.Close(), l.pc.Close(), l.segment.Close())
}

// shape limits what reaches the PC; "" lifts it.
func (l *link) shape(ctx context.Context, rate string) error {
	_ = command.Command{Args: l.segment.Args("tc", "qdisc", "del", "dev", "veth1", "root")}.Run(ctx) // there may be none
	if rate == "" {
		return nil
	}
	return command.Command{Args: l.segment.Args("tc", "qdisc", "add", "dev", "veth1", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")}.Run(ctx)
}

// open fetches a wad's index.
func (l *link) open(ctx context.Context, file string) (*wad.Remote, error) {
	x, err := wad.OpenIndex(file)
	if err != nil {
		return nil, err
	}
	client := &fetch.Client{HTTP: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.pc.Dial(ctx, network, address)
	}}}}
	name := filepath.Base(file)
	return wad.OpenRemote(ctx, client, fetch.Source{Name: name, URLs: []string{"http://" + qemutests.SegmentServer + "/" + name}, Size: spec.Size(x.FileSize())}, x.Bound())
}

// sent counts what is sent.
type sent struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (s *sent) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.n.Add(int64(n))
	return n, err
}

// onDisk gives do a fresh ext4 file system on a loop device.
func (b *bench) onDisk(ctx context.Context, size spec.Size, do func(root string) error) (err error) {
	image, root := filepath.Join(b.dir, "disk"), filepath.Join(b.dir, "root")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	err = errors.Join(f.Truncate(int64(size)), mkfs.Ext4(f, int64(size), mkfs.Options{UUID: "6a1e3f52-0c7d-4e6b-9d55-2f1f0a8b7c12"}), f.Close(), os.MkdirAll(root, 0o755))
	if err != nil {
		return err
	}
	if err := (command.Command{Args: []string{"mount", "-o", "loop,noatime,noinit_itable", image, root}}).Run(ctx); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, command.Command{Args: []string{"umount", root}}.Run(context.WithoutCancel(ctx)))
	}()
	return do(root)
}

// cold empties the page cache.
func cold() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// timed returns the seconds that do takes, until all of it is on the disk.
func timed(root string, do func() error) (float64, error) {
	if err := cold(); err != nil {
		return 0, err
	}
	start := time.Now()
	err := do()
	d, openErr := os.Open(root)
	if openErr != nil {
		return 0, errors.Join(err, openErr)
	}
	err = errors.Join(err, unix.Syncfs(int(d.Fd())), d.Close())
	return seconds(start), err
}

// mend repairs a tree to what a wad holds; the fetching of its index is a part of it.
func (l *link) mend(ctx context.Context, file, root string) (delta.Stats, error) {
	r, err := l.open(ctx, file)
	if err != nil {
		return delta.Stats{}, err
	}
	t, err := delta.New(delta.Options{Wads: []delta.Source{{Remote: r, Mount: "/"}}})
	if err != nil {
		return delta.Stats{}, errors.Join(err, r.Close())
	}
	stats, err := t.Mend(ctx, root, delta.CheckOptions{})
	return stats, errors.Join(err, r.Close())
}

// install lays a wad down on an empty file system.
func (l *link) install(ctx context.Context, file, root string) error {
	r, err := l.open(ctx, file)
	if err != nil {
		return err
	}
	_, err = r.Extract(ctx, root, wad.Options{})
	return errors.Join(err, r.Close())
}

// regular lists the files below a folder that have content and one name.
func regular(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Size > 0 && st.Nlink == 1 {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// alter gives a file other content of the same size that compresses alike: its
// halves change places.
func alter(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(data) == 1 {
		data[0] ^= 1
	}
	data = slices.Concat(data[(len(data)+1)/2:], data[:(len(data)+1)/2])
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	return data, errors.Join(err, f.Close())
}

// deltas measures indexed wads: their making, and what a reimage costs of a PC
// that has nearly what it should have.
func (b *bench) deltas(ctx context.Context) (err error) {
	programs := &qemutests.Programs{Tree: b.tree, Dir: b.dir}
	source, err := programs.Wad(ctx, "debian", "debian.tar.zst")
	if err != nil {
		return err
	}
	folder := filepath.Join(b.dir, "deltas")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	tarball, one := filepath.Join(folder, "tree.tar"), filepath.Join(folder, "one.tar.zst")
	first, second := filepath.Join(folder, "first.tar.zst"), filepath.Join(folder, "second.tar.zst")
	if err := (command.Command{Args: []string{"zstd", "-qdf", source, "-o", tarball}, Timeout: time.Minute}).Run(ctx); err != nil {
		return err
	}
	pack := func(to string) error {
		f, err := os.Open(tarball)
		if err != nil {
			return err
		}
		_, err = wad.Pack(ctx, f, to, wad.PackOptions{})
		return errors.Join(err, f.Close())
	}
	var packing []float64
	for range b.runs {
		a, err := timed(folder, func() error { return pack(first) })
		if err != nil {
			return err
		}
		z, err := timed(folder, func() error {
			return command.Command{Args: []string{"zstd", "-qf", "-T0", fmt.Sprint("-", wad.DefaultLevel), tarball, "-o", one}, Timeout: 10 * time.Minute}.Run(ctx)
		})
		if err != nil {
			return err
		}
		packing = append(packing, a/z)
	}
	b.note("wad.pack.vs_zstd", "ratio", fmt.Sprintf("reassure wad pack of the debian tree, against zstd -T0 -%d of it", wad.DefaultLevel), packing)
	sizes := make([]float64, 2)
	for i, file := range []string{first, one} {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		sizes[i] = float64(info.Size())
	}
	b.note("wad.size.vs_zstd", "ratio", fmt.Sprintf("the indexed wad of the debian tree, against one stream of zstd -%d", wad.DefaultLevel), []float64{sizes[0] / sizes[1]})

	l, err := newLink(ctx, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	const size = 4 * spec.GiB

	// One file of a hundred changes.
	random := rand.New(rand.NewPCG(1, 1))
	alone := 0
	err = b.onDisk(ctx, size, func(root string) error {
		if err := l.install(ctx, first, root); err != nil {
			return err
		}
		files, err := regular(root)
		if err != nil {
			return err
		}
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(wad.DefaultLevel)))
		if err != nil {
			return err
		}
		defer encoder.Close()
		for _, i := range random.Perm(len(files))[:len(files)/100] {
			data, err := alter(files[i])
			if err != nil {
				return err
			}
			alone += len(encoder.EncodeAll(data, nil))
		}
		return command.Command{Args: []string{"tar", "-C", root, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--format=pax", "--exclude=./lost+found", "-cf", tarball, "."}, Timeout: 10 * time.Minute}.Run(ctx)
	})
	if err != nil {
		return err
	}
	if err := pack(second); err != nil {
		return err
	}
	index, err := wad.OpenIndex(second)
	if err != nil {
		return err
	}

	var little, dirty, bytesRatio, none []float64
	for range min(b.runs, 3) {
		var full float64
		err := b.onDisk(ctx, size, func(root string) error {
			if err := l.shape(ctx, share); err != nil {
				return err
			}
			full, err = timed(root, func() error { return l.install(ctx, first, root) })
			return err
		})
		if err != nil {
			return err
		}
		err = b.onDisk(ctx, size, func(root string) error {
			if err := l.shape(ctx, ""); err != nil {
				return err
			}
			if err := l.install(ctx, first, root); err != nil {
				return err
			}
			// Nothing to do, against reading everything.
			n, err := timed(root, func() error {
				s, err := l.mend(ctx, first, root)
				if err == nil && s.Faults > 0 {
					err = fmt.Errorf("a fresh install has %d faults", s.Faults)
				}
				return err
			})
			if err != nil {
				return err
			}
			c, err := timed(root, func() error {
				return command.Command{Args: []string{"bash", "-c", `find "$1" -xdev -type f -print0 | xargs -0 cat >/dev/null`, "bash", root}, Timeout: 10 * time.Minute}.Run(ctx)
			})
			if err != nil {
				return err
			}
			none = append(none, n/c)
			fmt.Fprintf(b.out, "  full %.2f s; nothing to do %.2f s, cat %.2f s", full, n, c)
			if err := l.shape(ctx, share); err != nil {
				return err
			}
			l.sent.Store(0)
			t, err := timed(root, func() error { _, err := l.mend(ctx, second, root); return err })
			if err != nil {
				return err
			}
			fetched := l.sent.Load() - index.Size
			fmt.Fprintf(b.out, "; 1 %%: %.2f s, %d bytes and the index of %d for %d\n", t, fetched, index.Size, alone)
			little, bytesRatio = append(little, t/full), append(bytesRatio, float64(fetched)/float64(alone))
			if err := mess(root, random); err != nil {
				return err
			}
			if t, err = timed(root, func() error { _, err := l.mend(ctx, second, root); return err }); err != nil {
				return err
			}
			fmt.Fprintf(b.out, "  dirty: %.2f s\n", t)
			dirty = append(dirty, t/full)
			return nil
		})
		if err != nil {
			return err
		}
	}
	b.note("delta.none.vs_cat", "ratio", "a pass that finds nothing to do, against cat of all files, both with cold caches", none)
	b.note("delta.1pct.bytes_ratio", "ratio", "bytes fetched without the index when 1 % of the files changed, against those files compressed one by one", bytesRatio)
	b.note("delta.1pct.vs_full_shaped", "ratio", "the repair when 1 % of the files changed, against a full install, through "+share, little)
	b.note("dirty.vs_full_shaped", "ratio", "the repair of 1,000 changed, 500 added and 500 deleted files, against a full install, through "+share, dirty)
	return nil
}

// mess does to a tree what an experiment may.
func mess(root string, random *rand.Rand) error {
	files, err := regular(root)
	if err != nil {
		return err
	}
	order := random.Perm(len(files))
	for n, i := range order[:2000] {
		switch {
		case n < 1000:
			_, err = alter(files[i])
		case n < 1500:
			err = os.WriteFile(files[i]+".new", bytes.Repeat([]byte(files[i]), 100), 0o644)
		default:
			err = os.Remove(files[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}
