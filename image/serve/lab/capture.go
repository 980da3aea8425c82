package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/spec"
	"reassure/image/wad"
)

// CapturesFolder is where captured wads go below the server's own folder, when it
// may not write to the site's.
const CapturesFolder = "captures"

// checkCapture judges what a person asks of a capture.
func checkCapture(q api.ErrandRequest) error {
	for _, p := range q.Exclude {
		if err := wad.CheckPattern(p); err != nil {
			return fmt.Errorf("%w: %w", err, api.ErrInvalid)
		}
	}
	return nil
}

// Capture takes the system of a PC, as a tarball that may be compressed, and
// makes a wad of it: in the wads of the site if this server may write there, else
// in its own folder. The tarball's end must be certain: whatever goes wrong on the
// way is to be an error of the reader. Then nothing is left. A PC that begins
// anew ends what it began before.
func (l *Lab) Capture(ctx context.Context, token string, from netip.Addr, host string, tarball io.Reader) (api.Captured, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	attempt, name, err := l.beginCapture(token, from, host, func() { cancel(errors.New("the PC has begun anew")) })
	if err != nil {
		return api.Captured{}, err
	}
	defer l.endCapture(attempt)
	folder, err := l.capturesFolder()
	if err != nil {
		return api.Captured{}, err
	}
	out := filepath.Join(folder, fmt.Sprintf("%s-%s.tar.zst", name, l.Now().Local().Format("20060102-150405")))
	index, err := wad.Pack(ctx, &roomy{r: tarball, folder: folder}, out, wad.PackOptions{Log: l.Logger})
	if err != nil {
		l.say(attempt, "capture failed: "+err.Error())
		return api.Captured{}, err
	}
	done := api.Captured{File: out, Size: spec.Size(index.FileSize())}
	l.say(attempt, fmt.Sprintf("captured: %s, %v", done.File, done.Size))
	l.Logger.Info("captured", "host", name, "file", done.File, "size", done.Size)
	return done, nil
}

// beginCapture says whose the token is: an attempt that is to capture.
func (l *Lab) beginCapture(token string, from netip.Addr, host string, cancel func()) (attempt, name string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.known(host)
	if err != nil {
		return "", "", err
	}
	if err := l.admit(r, token, from); err != nil {
		return "", "", err
	}
	if r.Boot.Errand != spec.Capture {
		return "", "", fmt.Errorf("%s: nobody asked for it to be captured: %w", r.Name, api.ErrForbidden)
	}
	if before := l.captures[r.Boot.ID]; before != nil {
		before()
	}
	if l.captures == nil {
		l.captures = map[string]func(){}
	}
	l.captures[r.Boot.ID] = cancel
	return r.Boot.ID, r.Name, nil
}

func (l *Lab) endCapture(attempt string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.captures, attempt)
}

// say adds a line of ours to an attempt's log, if that is still under way.
func (l *Lab) say(attempt, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.logs[attempt]; t != nil {
		t.add(stampTime(l.Now()) + " server: " + line)
	}
}

// capturesFolder is where a captured wad can be written.
func (l *Lab) capturesFolder() (string, error) {
	folder := filepath.Join(l.Site, resolve.WadsFolder)
	if unix.Access(folder, unix.W_OK) == nil {
		return folder, nil
	}
	folder = filepath.Join(l.State, CapturesFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("folder for captured wads: %w: let the boot server's user write there", err)
	}
	return folder, nil
}

// leastRoom is what a capture leaves free on the server's disk, where its own
// records are, too.
const leastRoom = 512 * spec.MiB

// roomy is a tarball that fails when the disk that it is packed onto gets full.
type roomy struct {
	r       io.Reader
	folder  string
	checked int64 // bytes since the last look
	started bool
}

func (r *roomy) Read(p []byte) (int, error) {
	if !r.started || r.checked >= 16<<20 {
		r.started, r.checked = true, 0
		var st unix.Statfs_t
		if err := unix.Statfs(r.folder, &st); err != nil {
			return 0, fmt.Errorf("room in %s: %w", r.folder, err)
		}
		if free := spec.Size(st.Bavail) * spec.Size(st.Bsize); free < leastRoom {
			return 0, fmt.Errorf("the boot server's disk has %v free below %s: make room there, and capture again", free, r.folder)
		}
	}
	n, err := r.r.Read(p)
	r.checked += int64(n)
	return n, err
}
