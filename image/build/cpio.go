package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/google/renameio/v2"

	"reassure/image/command"
	"reassure/image/spec"
)

// entry is one file, folder or link of a segment. Its mode does not follow the
// build host's: files are 0644, or 0755 when they are to be run, folders 0755.
type entry struct {
	name       string // below /, without the leading slash
	data       []byte
	link       string // target, of a symbolic link
	executable bool
}

// segment is one cpio archive of an initramfs. The kernel unpacks one after the
// other; each is compressed by itself, and kept by what it holds.
type segment struct {
	name string
	// plain leaves it uncompressed.
	plain bool
	// identity says what is in it: what has the same identity has the same bytes.
	identity string
	// write makes the archive, uncompressed.
	write func(ctx context.Context, w io.Writer) error
}

// writeEntries writes a cpio archive of the entries, sorted, with the folders
// above them, without times or owners. An entry named by last comes last.
func writeEntries(w io.Writer, entries []entry, last string) error {
	c := cpio.NewWriter(w)
	folders := map[string]bool{".": true}
	slices.SortStableFunc(entries, func(a, b entry) int {
		if (a.name == last) != (b.name == last) {
			if a.name == last {
				return 1
			}
			return -1
		}
		return strings.Compare(a.name, b.name)
	})
	var header func(h *cpio.Header) error
	header = func(h *cpio.Header) error {
		if parent := path.Dir(h.Name); !folders[parent] {
			folders[parent] = true
			if err := header(&cpio.Header{Name: parent, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
				return err
			}
		}
		return c.WriteHeader(h)
	}
	for i, e := range entries {
		if i > 0 && entries[i-1].name == e.name {
			return fmt.Errorf("two files are to be /%s in the image", e.name)
		}
		h := &cpio.Header{Name: e.name, Mode: cpio.TypeReg | 0o644, Links: 1, Size: int64(len(e.data))}
		switch {
		case e.link != "": // a link's content is its target
			h.Mode, e.data, h.Size = cpio.TypeSymlink|0o777, []byte(e.link), int64(len(e.link))
		case e.executable:
			h.Mode = cpio.TypeReg | 0o755
		}
		if err := header(h); err != nil {
			return err
		}
		if _, err := c.Write(e.data); err != nil {
			return err
		}
	}
	return c.Close()
}

// identityOf digests entries, for a segment's identity.
func identityOf(entries []entry) string {
	h := sha256.New()
	for _, e := range entries {
		fmt.Fprintf(h, "%q %q %v %x\n", e.name, e.link, e.executable, sha256.Sum256(e.data))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// compressed is a segment in the cache.
type compressed struct {
	name     string
	file     string // zstd, unless the segment is plain
	unpacked int64
	packed   int64
}

// zstdLevel and zstdWindow are how segments are compressed. A window of 16 MiB instead of level 19's 8 lets
// the smaller of our two programs be written as what differs from the larger (0.33 MiB less). The kernel allows
// for 128 (lib/decompress_unzstd.c), and level 22 with as much packs modules by 2.5 % smaller,
// but while it unpacks, it needs the window in memory, and a PC may have 512 MiB. xz packs them by 13 %
// smaller, and the kernel takes five times as many instructions to unpack them: seconds on a PC,
// which only a link of less than about 1 MB/s makes good.
const (
	zstdLevel  = "-19"
	zstdWindow = "--zstd=wlog=24"
)

// compress makes a segment unless the cache has it.
func (s *segment) compress(ctx context.Context, cache string, log *slog.Logger) (compressed, error) {
	ending, how := ".cpio.zst", "zstd "+zstdLevel+" "+zstdWindow
	if s.plain {
		ending, how = ".cpio", "plain"
	}
	sum := sha256.Sum256([]byte("segment 1 " + how + " " + s.identity))
	out := compressed{name: s.name, file: filepath.Join(cache, "segments", s.name+"-"+hex.EncodeToString(sum[:12])+ending)}
	// What the cache says of the file is written after it, and only a file
	// that is as it says counts.
	record := strings.TrimSuffix(out.file, ending) + ".cpio.json"
	if data, err := os.ReadFile(out.file); err == nil {
		var r cached
		if text, err := os.ReadFile(record); err == nil && json.Unmarshal(text, &r) == nil && r.SHA256 == spec.Sum(data) {
			out.unpacked, out.packed = r.Unpacked, int64(len(data))
			return out, nil
		}
	}
	log.Info("making segment " + s.name)
	if err := os.MkdirAll(filepath.Dir(out.file), 0o755); err != nil {
		return out, err
	}
	work, err := os.MkdirTemp(filepath.Dir(out.file), "making")
	if err != nil {
		return out, err
	}
	defer os.RemoveAll(work)
	plain := filepath.Join(work, "cpio")
	f, err := os.Create(plain)
	if err != nil {
		return out, err
	}
	err = s.write(ctx, f)
	if err == nil {
		out.unpacked, err = f.Seek(0, io.SeekEnd)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return out, fmt.Errorf("segment %s: %w", s.name, err)
	}
	packed := plain
	if !s.plain {
		packed = filepath.Join(work, "zst")
		err = command.Command{Args: []string{"zstd", "--quiet", zstdLevel, zstdWindow, "-T0", "--no-progress", plain, "-o", packed}, Log: log}.Run(ctx)
		if err != nil {
			return out, fmt.Errorf("segment %s (zstd is in the Debian package zstd): %w", s.name, err)
		}
	}
	data, err := os.ReadFile(packed)
	if err != nil {
		return out, err
	}
	out.packed = int64(len(data))
	if err := os.Rename(packed, out.file); err != nil {
		return out, err
	}
	text, err := json.Marshal(cached{Unpacked: out.unpacked, SHA256: spec.Sum(data)})
	if err != nil {
		return out, err
	}
	return out, renameio.WriteFile(record, text, 0o644)
}

// cached is what the cache says of a segment.
type cached struct {
	Unpacked int64       `json:"unpacked"`
	SHA256   spec.Digest `json:"sha256"` // of the compressed file
}

// normalise copies a cpio archive, giving every file a mode that does not
// depend on the build host's umask.
func normalise(w io.Writer, r io.Reader) error {
	in, out := cpio.NewReader(r), cpio.NewWriter(w)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return out.Close()
		}
		if err != nil {
			return err
		}
		permissions := cpio.FileMode(0o644)
		switch {
		case h.Mode&^cpio.ModePerm == cpio.TypeDir, h.Mode&0o111 != 0:
			permissions = 0o755
		case h.Mode&^cpio.ModePerm == cpio.TypeSymlink:
			permissions = 0o777
		case h.Mode&^cpio.ModePerm == cpio.TypeChar:
			permissions = h.Mode & cpio.ModePerm
		}
		h.Mode = h.Mode&^cpio.ModePerm | permissions
		if h.Linkname != "" { // the reader has taken a link's content already
			h.Size = int64(len(h.Linkname))
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if h.Linkname != "" {
			_, err = io.WriteString(out, h.Linkname)
		} else {
			_, err = io.Copy(out, in)
		}
		if err != nil {
			return err
		}
	}
}

// readFolder reads files that match shell patterns below a folder.
func readFolder(folder string, patterns []string, into string) (entries []entry, missing []string, err error) {
	for _, p := range patterns {
		names, err := filepath.Glob(filepath.Join(folder, p))
		if err != nil {
			return nil, nil, err
		}
		found := false
		for _, n := range names {
			info, err := os.Stat(n) // through links: Debian has many
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			data, err := os.ReadFile(n)
			if err != nil {
				return nil, nil, err
			}
			found = true
			below, err := filepath.Rel(folder, n)
			if err != nil {
				return nil, nil, err
			}
			entries = append(entries, entry{name: path.Join(into, filepath.ToSlash(below)), data: data})
		}
		if !found {
			missing = append(missing, p)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.name == b.name && bytes.Equal(a.data, b.data) }), missing, nil
}

// readEntry reads one file of the host.
func readEntry(name, file string, executable bool) (entry, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, fmt.Errorf("%s, which is to be /%s in the image, is not there", file, name)
	}
	return entry{name: name, data: data, executable: executable}, err
}
