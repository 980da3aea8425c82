package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/initramfs"
	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

const (
	// verifyTime limits the verification of a running system: a slow disk of 200 GB.
	verifyTime = time.Hour
	// program is what compares, in the image.
	program = "/usr/lib/reassure/reimage"
	// inspection has a PC run the program from a tmpfs that nobody else sees, and
	// that goes with the command: nothing is left on the PC, however this ends.
	inspection = `exec unshare --mount --propagation private sh -c 'mount -t tmpfs -o mode=0700 reassure /run && tar -xf - -C /run && exec /run/reimage inspect </run/inspection'`
	// maxVerified is more than what a PC answers, in bytes.
	maxVerified = 4 << 20
	// notFound is a shell's status for a program that is not there (POSIX, 2.8.2).
	notFound = 127
)

// VerifyRunning logs into a PC that runs its own system, has it compared with what was
// installed, and remembers what was found. That the PC could not be compared is no error.
func (l *Lab) VerifyRunning(ctx context.Context, name, who string) (api.Inspected, error) {
	l.mu.Lock()
	r, err := l.known(name)
	if err != nil {
		l.mu.Unlock()
		return api.Inspected{}, err
	}
	k := key(r.Name)
	h, keys := *l.hostOf(k), append([]string{}, r.HostKeys...)
	m, why := l.errandOf(k, spec.Verify)
	if m != nil {
		m.Finished = r.Finished
	}
	base := l.site.Inventory.Site.Plain() // the PC has no authority of ours, and wads need none
	l.mu.Unlock()
	if m == nil {
		return api.Inspected{Text: why}, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, verifyTime, fmt.Errorf("it was not done within %v", verifyTime))
	defer cancel()
	found, err := l.inspect(ctx, h, keys, spec.Inspection{Manifest: m, Base: base})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return api.Inspected{Text: err.Error()}, nil
	}
	v := &api.Verified{At: l.Now(), ID: strings.ToLower(rand.Text()[:8]), Digest: m.Digest, Running: true, Verified: *found}
	l.Logger.Info("verified while it runs", "host", h.Name, "by", who, "differences", v.Total-v.Runtime)
	l.mu.Lock()
	defer l.mu.Unlock()
	return api.Inspected{Verified: v}, l.change(k, func(r *hosts.Record) { r.Verified = v })
}

// inspect runs the image's own program on a PC.
func (l *Lab) inspect(ctx context.Context, h spec.Host, keys []string, i spec.Inspection) (*spec.Verified, error) {
	client, err := l.login(ctx, h, keys)
	if err != nil {
		return nil, fmt.Errorf("log in over SSH: %w", err)
	}
	defer client.Close()
	bundle, err := l.bundle(i)
	if err != nil {
		return nil, err
	}
	session, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	defer session.Close()
	out, complaints := &limited{most: maxVerified}, &limited{most: 16 << 10}
	session.Stdin, session.Stdout, session.Stderr = bundle, out, complaints
	if err := session.Run(inspection); err != nil {
		var ended *ssh.ExitError
		if said := strings.TrimSpace(complaints.String()); errors.As(err, &ended) && said != "" {
			if ended.ExitStatus() == notFound {
				said += ": the PC's own system needs unshare, mount and tar for this"
			}
			return nil, errors.New(harmless(strings.ReplaceAll(said, "\n", "; ")))
		}
		return nil, err
	}
	v := new(spec.Verified)
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		return nil, fmt.Errorf("its answer: %w", err)
	}
	return v, nil
}

// bundle is a tar archive of the program and of what it is told.
func (l *Lab) bundle(i spec.Inspection) (io.Reader, error) {
	code, err := initramfs.File(l.Initramfs, program)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: put the files that make image made into the TFTP root", err)
	}
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(i)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
		mode int64
	}{{"reimage", code, 0o700}, {"inspection", text, 0o600}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return &b, w.Close()
}

// limited keeps the first bytes of what is written to it.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, l.most-l.Len()))])
	return len(p), nil
}
