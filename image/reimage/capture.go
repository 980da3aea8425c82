package reimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reassure/image/fetch"
	"reassure/image/reimage/installed"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/wad"
)

// capture sends the system that is on a disk to the boot server, and goes on into
// it. Nothing is written.
func (r *Reimager) capture(ctx context.Context, m *spec.Manifest, target spec.Disk) (spec.Finish, *spec.Manifest, error) {
	r.phase("capture")
	text, err := r.sendSystem(ctx, m, target)
	if err != nil {
		return "", m, fmt.Errorf("capture: %w", err)
	}
	r.Screen.Done()
	r.Log.Info("CAPTURED: "+text, "host", m.Host)
	r.event(spec.Event{Kind: spec.EventErrand, Digest: m.Digest, Text: text, Phases: r.Screen.Phases()})
	// Whatever comes of that: the server knows that this errand is done.
	_, _, err = r.goLocal(ctx, Installed{Disk: target, Stamp: &stamp.Stamp{Host: m.Host}})
	r.Log.Warn("starting the PC anew", "reason", err)
	return spec.Reboot, m, nil
}

// sendSystem streams the system as it is read, and says what became of it.
func (r *Reimager) sendSystem(ctx context.Context, m *spec.Manifest, target spec.Disk) (text string, err error) {
	if r.Options.Token == "" {
		return "", refuse("a system is sent to the boot server that told this PC to, and none did: run reassure serve, and then reassure capture %s", m.Host)
	}
	patterns := m.Errand.Exclude
	if patterns == nil {
		for _, e := range wad.Exclusions() {
			patterns = append(patterns, e.Pattern)
		}
	}
	for _, p := range patterns {
		if err := wad.CheckPattern(p); err != nil {
			return "", &Refusal{err}
		}
	}
	system, err := installed.Mount(target, r.Log)
	if err != nil {
		return "", &Refusal{err}
	}
	defer func() { err = errors.Join(err, system.Unmount()) }()
	for _, missing := range system.Missing {
		r.Log.Warn("left out: it is not on this disk", "mount", missing)
	}
	bar := r.Screen.Progress("the system of "+m.Host, system.Used(), r.progressEvents())
	defer bar.End()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, pipe := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := writeSystem(ctx, bar, pipe, system.Root, patterns, wad.FolderOptions{Log: r.Log})
		pipe.CloseWithError(err) // nil is the end
		written <- err
	}()
	client := fetch.Client{Log: r.Log, TLS: r.Trust, Token: string(r.Options.Token)}
	answer, err := client.Send(ctx, spec.URL(r.base, "captures/"+m.Host), body)
	cancel()
	body.CloseWithError(errors.New("it is sent no more"))
	if failed := <-written; err == nil && failed != nil {
		err = failed
	}
	bar.End()
	if err != nil {
		return "", err
	}
	var done struct {
		File string    `json:"file"`
		Size spec.Size `json:"size"`
	}
	if err := json.Unmarshal(answer, &done); err != nil || done.File == "" {
		return "", fmt.Errorf("the server's answer cannot be read: %q", answer)
	}
	text = fmt.Sprintf("the boot server has it as %s, %v", done.File, done.Size)
	if len(system.Missing) > 0 {
		text += "; left out, because it is not on this disk: " + strings.Join(system.Missing, ", ")
	}
	return text, nil
}

// writeSystem writes a folder as a compressed tarball to out, without what
// patterns match, and its plain bytes to count, too.
func writeSystem(ctx context.Context, count, out io.Writer, root string, patterns []string, o wad.FolderOptions) error {
	packed, err := wad.Compress(out)
	if err != nil {
		return err
	}
	plain := io.MultiWriter(packed, count)
	o.Skip = func(path string) bool { return wad.Excluded(patterns, "/"+path) }
	if _, err := os.Lstat(filepath.Join(root, "etc/machine-id")); err == nil && o.Skip("etc/machine-id") {
		if _, err := plain.Write(wad.EmptyMachineID(time.Now())); err != nil {
			return err
		}
	}
	if err := wad.Tar(ctx, root, plain, o); err != nil {
		return err // and no end, which an archive that is not whole must not have
	}
	return packed.Close()
}
