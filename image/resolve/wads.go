package resolve

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"reassure/image/spec"
	"reassure/image/wad"
)

// digestsFile is, in the wads folder, what the wads' digests were.
const digestsFile = ".digests.json"

// settled is how long a file must have been left alone before its digest is
// kept: a change within the clock's grain would leave the time as it was.
const settled = 2 * time.Second

// Wads measures the wads of a site, and remembers their digests in a file as
// long as path, size, time of change and inode stay the same.
type Wads struct {
	Dir string
	// Log gets a line for each wad that is read; nil means silence.
	Log *slog.Logger

	known map[string]WadInfo
	fresh map[string]bool // measured or found unchanged in this run
}

// WadInfo is what is known of a wad's file.
type WadInfo struct {
	Size    spec.Size   `json:"size"`
	ModTime time.Time   `json:"mod_time"`
	Inode   uint64      `json:"inode"`
	SHA256  spec.Digest `json:"sha256"`
	// Index is what binds the wad's index; nil if it has none.
	Index *spec.WadIndex `json:"index,omitempty"`
}

// Path is where a wad's file is.
func (w *Wads) Path(file string) string { return filepath.Join(w.Dir, filepath.FromSlash(file)) }

// Measure returns the size and digest of a wad, reading it only if it has changed.
func (w *Wads) Measure(ctx context.Context, file string) (WadInfo, error) {
	if w.known == nil {
		w.known, w.fresh = map[string]WadInfo{}, map[string]bool{}
		if text, err := os.ReadFile(filepath.Join(w.Dir, digestsFile)); err == nil {
			if json.Unmarshal(text, &w.known) != nil {
				w.known = map[string]WadInfo{} // it is only a memory
			}
		}
	}
	now, err := look(w.Path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return WadInfo{}, fmt.Errorf("there is no wad %s: put it there, or correct the name", w.Path(file))
	} else if err != nil {
		return WadInfo{}, err
	}
	if kept, ok := w.known[file]; ok && same(kept, now) && (kept.Index != nil || !hasIndex(w.Path(file))) {
		w.fresh[file] = true
		return kept, nil
	}
	if w.Log != nil {
		w.Log.Info("reading wad", "file", file, "size", now.Size)
	}
	if now.SHA256, now.Index, err = digest(ctx, w.Path(file)); err != nil {
		return WadInfo{}, err
	}
	if after, err := look(w.Path(file)); err != nil || !same(now, after) {
		return WadInfo{}, fmt.Errorf("the wad %s is being written at this moment: try again when it is complete", w.Path(file))
	}
	w.known[file] = now
	w.fresh[file] = true
	return now, nil
}

// Unchanged says whether the wad's file is still what it was when it was measured.
func (w *Wads) Unchanged(file string) bool {
	now, err := look(w.Path(file))
	return err == nil && same(w.known[file], now)
}

// Save keeps the digests for the next run. Those of wads that were not asked for
// in this one are dropped, and those of files that changed only just now.
func (w *Wads) Save() error {
	keep := map[string]WadInfo{}
	for file := range w.fresh {
		if info := w.known[file]; time.Since(info.ModTime) > settled {
			keep[file] = info
		}
	}
	if len(keep) == 0 {
		return nil
	}
	text, err := json.MarshalIndent(keep, "", "  ")
	if err != nil {
		return fmt.Errorf("digests of wads: %w", err)
	}
	target := filepath.Join(w.Dir, digestsFile)
	if old, err := os.ReadFile(target); err == nil && string(old) == string(text)+"\n" {
		return nil
	}
	if err := renameio.WriteFile(target, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("digests of wads, for the next time: %w", err)
	}
	return nil
}

func same(a, b WadInfo) bool {
	return a.Size == b.Size && a.Inode == b.Inode && a.ModTime.Equal(b.ModTime)
}

func look(path string) (WadInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return WadInfo{}, err
	}
	if !info.Mode().IsRegular() {
		return WadInfo{}, fmt.Errorf("the wad %s is not a regular file", path)
	}
	if info.Size() == 0 {
		return WadInfo{}, fmt.Errorf("the wad %s is empty: make it anew", path)
	}
	w := WadInfo{Size: spec.Size(info.Size()), ModTime: info.ModTime().UTC()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		w.Inode = st.Ino
	}
	return w, nil
}

// hasIndex says whether a wad has one, by its first bytes: one that was measured
// before there were indexes is measured again.
func hasIndex(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	start := make([]byte, 64)
	n, _ := io.ReadFull(f, start)
	return wad.HasIndex(start[:n])
}

// digest reads a wad to its end. Of its index it reads every entry, so that a
// damaged one is found here and not by the PCs.
func digest(ctx context.Context, path string) (spec.Digest, *spec.WadIndex, error) {
	f, err := os.Open(path)
	if err != nil {
		return spec.Digest{}, nil, err
	}
	defer f.Close()
	bound, err := index(f)
	if err != nil {
		return spec.Digest{}, nil, fmt.Errorf("the wad %s: %w", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return spec.Digest{}, nil, fmt.Errorf("reading wad %s: %w", path, err)
	}
	hash := sha256.New()
	buffer := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return spec.Digest{}, nil, fmt.Errorf("reading wad %s: %w", path, err)
		}
		n, err := f.Read(buffer)
		hash.Write(buffer[:n])
		if err == io.EOF {
			return spec.Digest(hash.Sum(nil)), bound, nil
		} else if err != nil {
			return spec.Digest{}, nil, fmt.Errorf("reading wad: %w", err)
		}
	}
}

// index judges the index of a wad; nil is one that has none.
func index(f *os.File) (*spec.WadIndex, error) {
	head, err := wad.ReadHead(f)
	if errors.Is(err, wad.ErrNoIndex) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	x, err := wad.ParseIndex(head)
	if err != nil {
		return nil, err
	}
	for _, err := range x.All() {
		if err != nil {
			return nil, err
		}
	}
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if info.Size() != x.FileSize() {
		return nil, fmt.Errorf("it has %d bytes, and by its index it should have %d: copy it again", info.Size(), x.FileSize())
	}
	bound := x.Bound()
	return &bound, nil
}
