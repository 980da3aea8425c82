package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/command"
	"reassure/image/fetch"
	"reassure/image/reimage"
	"reassure/image/reimage/mkfs"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/wad"
	qemutests "reassure/qemu-tests"
)

// wads is what installations are measured with.
type wads struct {
	indexed, tarZst, tar string // files of the same tree
	index                *wad.Index
	url                  string // of the folder that they are in
}

// install measures first installs of the debian wad.
func (b *bench) install(ctx context.Context) error {
	return b.withDebian(ctx, func(dir, tarball, url string) error {
		w, err := packWads(ctx, dir, "debian", tarball, 0)
		if err != nil {
			return err
		}
		w.url = url
		return b.installs(ctx, "install", w, b.runs, true)
	})
}

// installLarge measures those of a tree ten times as large.
func (b *bench) installLarge(ctx context.Context) error {
	return b.withDebian(ctx, func(dir, tarball, url string) error {
		large := filepath.Join(dir, "large.tar")
		if err := writeLarge(tarball, large); err != nil {
			return err
		}
		// The level decides how long packing takes, and little of what is measured.
		w, err := packWads(ctx, dir, "large", large, 3)
		if err != nil {
			return err
		}
		w.url = url
		return b.installs(ctx, "install.large", w, min(b.runs, 3), false)
	})
}

// withDebian runs something with a folder that is served at url and holds the
// debian wad as a plain tarball.
func (b *bench) withDebian(ctx context.Context, do func(dir, tarball, url string) error) (err error) {
	dir := filepath.Join(b.dir, "install")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	debian, err := (&qemutests.Programs{Tree: b.tree, Dir: b.dir}).Wad(ctx, "debian", "debian.tar.zst")
	if err != nil {
		return err
	}
	tarball := filepath.Join(dir, "debian.tar")
	if err := shell(ctx, `zstd -dcq "$1" >"$2"`, debian, tarball); err != nil {
		return err
	}
	url, stop, err := serveFolder(dir)
	if err != nil {
		return err
	}
	defer stop()
	return do(dir, tarball, url)
}

// installs measures both ways of installing, and what limits them, in turn.
func (b *bench) installs(ctx context.Context, name string, w wads, runs int, inMemory bool) error {
	var limit, vsTar, vsTarRAM, peaks []float64
	size := 8 * spec.GiB
	for range runs {
		var raw float64
		err := b.onDevice(ctx, b.dir, size, func(device string) error {
			start := time.Now()
			err := shell(ctx, `dd if="$1" of="$2" bs=1M conv=fsync status=none`, w.tar, device)
			raw = seconds(start)
			return err
		})
		if err != nil {
			return err
		}
		start := time.Now()
		if err := shell(ctx, `curl -fsS "$1" >/dev/null`, w.url+filepath.Base(w.indexed)); err != nil {
			return err
		}
		alone := seconds(start)
		ours, peak, err := b.ours(ctx, b.dir, size, w)
		if err != nil {
			return err
		}
		theirs, err := b.theirs(ctx, b.dir, size, w)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "  %s: ours %.2f s, %.0f MiB; curl | zstd | tar %.2f s; raw write %.2f s, fetch alone %.2f s\n", name, ours, peak, theirs, raw, alone)
		limit, vsTar = append(limit, ours/max(raw, alone)), append(vsTar, ours/theirs)
		peaks = append(peaks, peak)
		if !inMemory {
			continue
		}
		ours, theirs = 0, 0
		err = inRAM(filepath.Join(b.dir, "ram"), func(dir string) error {
			if ours, peak, err = b.ours(ctx, dir, size, w); err != nil {
				return err
			}
			theirs, err = b.theirs(ctx, dir, size, w)
			return err
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "  %s in RAM: ours %.2f s, curl | zstd | tar %.2f s\n", name, ours, theirs)
		vsTarRAM, peaks = append(vsTarRAM, ours/theirs), append(peaks, peak)
	}
	const what = "first install of an indexed wad by HTTP from loopback to a new ext4 on a loop device, with syncfs, against "
	b.note(name+".vs_limit", "ratio", what+"the slower of dd of the archive to a new device with fsync, and curl of the wad", limit)
	b.note(name+".vs_tar", "ratio", what+"curl | zstd -dc | tar -x with sync, each on a new file as the device", vsTar)
	if inMemory {
		b.note(name+".vs_tar_ram", "ratio", what+"curl | zstd -dc | tar -x with sync, both on devices in tmpfs", vsTarRAM)
	}
	b.note(name+".peak_memory.mib", "MiB", "VmHWM of the process that installs", peaks)
	return nil
}

// million measures the memory of a first install of a million files.
func (b *bench) million(ctx context.Context) error {
	dir := filepath.Join(b.dir, "million")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	url, stop, err := serveFolder(dir)
	if err != nil {
		return err
	}
	defer stop()
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeMillion(w)) }()
	file := filepath.Join(dir, "million.tar.zst")
	index, err := wad.Pack(ctx, r, file, wad.PackOptions{Level: 3})
	if err != nil {
		return errors.Join(err, r.Close())
	}
	// An ext4 has an inode for every 16 KiB.
	took, peak, err := b.ours(ctx, b.dir, 24*spec.GiB, wads{indexed: file, index: index, url: url})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "  a million files in %.0f s, %.0f MiB\n", took, peak)
	b.note("wad.peak_memory.mib", "MiB", "VmHWM of the process that installs 1,000,000 files", []float64{peak})
	return os.RemoveAll(dir)
}

// writeMillion writes an archive of a million small files.
func writeMillion(out io.Writer) error {
	buffered := bufio.NewWriterSize(out, 1<<20)
	w := tar.NewWriter(buffered)
	for i := range 1_000_000 {
		at := time.Unix(1_000_000_000+int64(i), 5)
		folder := fmt.Sprintf("usr/share/folder%06d/", i/20)
		if i%20 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755, ModTime: at}); err != nil {
				return err
			}
		}
		text := fmt.Sprintf("this is file number %d\n", i)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%sfile%07d", folder, i), Mode: 0o644, Size: int64(len(text)), ModTime: at}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buffered.Flush())
}

// writeLarge writes ten variations of an archive's tree into one.
func writeLarge(tarball, large string) error {
	out, err := os.Create(large)
	if err != nil {
		return err
	}
	defer out.Close()
	buffered := bufio.NewWriterSize(out, 1<<20)
	w := tar.NewWriter(buffered)
	for i := range 10 {
		if err := variation(w, tarball, byte(i)); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buffered.Flush(), out.Close())
}

// variation writes a tree with other beginnings of its files below a folder of its own.
func variation(w *tar.Writer, tarball string, i byte) error {
	in, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer in.Close()
	r := tar.NewReader(bufio.NewReaderSize(in, 1<<20))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		under := fmt.Sprintf("copy%d/", i)
		h.Name = under + h.Name
		if h.Typeflag == tar.TypeLink {
			h.Linkname = under + h.Linkname
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		start := make([]byte, min(h.Size, 8))
		if _, err := io.ReadFull(r, start); err != nil {
			return err
		}
		for at := range start {
			start[at] ^= i
		}
		if _, err := w.Write(start); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}

// packWads makes of a tarball an indexed wad, and what zstd makes of it.
func packWads(ctx context.Context, dir, name, tarball string, level int) (wads, error) {
	w := wads{indexed: filepath.Join(dir, name+"-indexed.tar.zst"), tarZst: filepath.Join(dir, name+".tar.zst"), tar: tarball}
	in, err := os.Open(tarball)
	if err != nil {
		return w, err
	}
	defer in.Close()
	if w.index, err = wad.Pack(ctx, in, w.indexed, wad.PackOptions{Level: level}); err != nil {
		return w, err
	}
	return w, shell(ctx, `zstd -q -T0 "-$1" -o "$3" "$2"`, strconv.Itoa(w.index.Level), tarball, w.tarZst)
}

// ours installs on a new device, and returns the seconds and the memory, in MiB.
func (b *bench) ours(ctx context.Context, dir string, size spec.Size, w wads) (took, peak float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	bound := w.index.Bound()
	restore, err := writeback()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	err = b.onFileSystem(ctx, dir, size, func(root string) error {
		start := time.Now()
		out, err := command.Command{Args: []string{
			self, "install", w.url + filepath.Base(w.indexed), strconv.FormatInt(w.index.FileSize(), 10),
			strconv.FormatUint(uint64(bound.Size), 10), bound.SHA256.String(), root,
		}, Timeout: time.Hour}.Output(ctx)
		took = seconds(start)
		if err != nil {
			return err
		}
		peak, err = strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		return err
	})
	return took, peak, err
}

// writeback has this machine's kernel write as early as the reimager's does.
func writeback() (restore func() error, err error) {
	const ratio = "/proc/sys/vm/dirty_background_ratio" // 0 where bytes are what counts
	before, err := os.ReadFile(ratio)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(before)) == "0" {
		return nil, errors.New("vm.dirty_background_bytes is set: set vm.dirty_background_ratio, which is put back afterwards")
	}
	return func() error { return os.WriteFile(ratio, before, 0) }, mount.Writeback()
}

// theirs does the same by curl, zstd and tar.
func (b *bench) theirs(ctx context.Context, dir string, size spec.Size, w wads) (took float64, err error) {
	err = b.onFileSystem(ctx, dir, size, func(root string) error {
		start := time.Now()
		// tar need not read what follows the archive's end; zstd would die of that.
		err := shell(ctx, `curl -fsS "$1" | zstd -dcq | { tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C "$2"; cat >/dev/null; }; sync -f "$2"`, w.url+filepath.Base(w.tarZst), root)
		took = seconds(start)
		return err
	})
	return took, err
}

// installOnce is what ours measures: "bench install URL SIZE INDEX-SIZE INDEX-SHA256 FOLDER"
// lays a wad down, writes it out, and prints how much memory that took, in MiB.
func installOnce(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 5 {
		return errors.New("install: this is for bench itself")
	}
	size, err := strconv.ParseUint(args[1], 10, 63)
	if err != nil {
		return err
	}
	indexSize, err := strconv.ParseUint(args[2], 10, 63)
	if err != nil {
		return err
	}
	var sum spec.Digest
	if err := sum.UnmarshalText([]byte(args[3])); err != nil {
		return err
	}
	debug.SetMemoryLimit(reimage.Memory)
	source := fetch.Source{Name: filepath.Base(args[0]), URLs: []string{args[0]}, Size: spec.Size(size)}
	r, err := wad.OpenRemote(ctx, &fetch.Client{}, source, spec.WadIndex{Size: spec.Size(indexSize), SHA256: sum})
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Extract(ctx, args[4], wad.Options{}); err != nil {
		return err
	}
	root, err := os.Open(args[4])
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Syncfs(int(root.Fd())), root.Close()); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			_, err = fmt.Fprintf(stdout, "%.1f\n", kib/1024)
			return err
		}
	}
	return errors.New("/proc/self/status has no VmHWM")
}

// onDevice runs something with a new loop device on a new file.
func (b *bench) onDevice(ctx context.Context, dir string, size spec.Size, do func(device string) error) (err error) {
	file := filepath.Join(dir, "device")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	if err := errors.Join(f.Truncate(int64(size)), f.Close()); err != nil {
		return err
	}
	out, err := command.Command{Args: []string{"losetup", "--find", "--show", file}, Timeout: time.Minute}.Output(ctx)
	if err != nil {
		return err
	}
	device := strings.TrimSpace(string(out))
	defer func() {
		err = errors.Join(err, command.Command{Args: []string{"losetup", "--detach", device}, Timeout: time.Minute}.Run(context.WithoutCancel(ctx)))
	}()
	return do(device)
}

// onFileSystem runs something with a file system on a new device, as the
// reimager makes and mounts it.
func (b *bench) onFileSystem(ctx context.Context, dir string, size spec.Size, do func(root string) error) error {
	return b.onDevice(ctx, dir, size, func(device string) error {
		log := slog.New(slog.DiscardHandler)
		if err := mkfs.Make(ctx, spec.Ext4, device, mkfs.Options{UUID: "0f0a5f2e-7f0b-4c38-9a43-6d8f5a1c2b3d"}, log); err != nil {
			return err
		}
		root := filepath.Join(dir, "root")
		tree, err := mount.Mount(ctx, root, []spec.Placed{{Partition: spec.Partition{Name: "root", FileSystem: spec.Ext4, Mount: "/"}, Device: device}}, log)
		if err != nil {
			return err
		}
		return errors.Join(do(root), tree.Unmount(context.WithoutCancel(ctx)))
	})
}

// inRAM runs something with a folder whose files are in memory.
func inRAM(dir string, do func(dir string) error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=90%"); err != nil {
		return fmt.Errorf("tmpfs at %s: %w: run it as root", dir, err)
	}
	err := do(dir)
	return errors.Join(err, unix.Unmount(dir, 0))
}

// serveFolder serves a folder on loopback.
func serveFolder(dir string) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: time.Minute}
	go s.Serve(l) // until it is closed
	return "http://" + l.Addr().String() + "/", func() { s.Close() }, nil
}

// shell runs a line of shell with arguments.
func shell(ctx context.Context, line string, args ...string) error {
	return command.Command{Args: append([]string{"bash", "-euo", "pipefail", "-c", line, "bash"}, args...), Timeout: time.Hour}.Run(ctx)
}
