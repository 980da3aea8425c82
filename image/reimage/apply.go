package reimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"reassure/image/fetch"
	"reassure/image/logs"
	"reassure/image/reimage/chroot"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/mkfs"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/wad"
)

// apply destroys what is on the disk and builds the new system. The first write
// makes the disk unbootable, the last makes it bootable; whatever happens in
// between, an error or a power cut, leaves a disk that nothing boots from.
func (r *Reimager) apply(ctx context.Context, m *spec.Manifest, plan *spec.Plan) error {
	files, steps, err := expand(m, plan)
	if err != nil {
		return err
	}
	for _, p := range plan.Partitions {
		r.loadFileSystems(ctx, p.FileSystem)
	}
	// A server that lacks a wad is found out while the old system is still whole.
	streams, err := r.openWads(ctx, m)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range streams {
			s.Close()
		}
	}()
	// The search for RSA primes takes seconds: it runs beside the download.
	keys := chroot.StartKeys(ctx, steps)
	started := time.Now()

	r.phase("erase")
	if err := r.erase(ctx, plan); err != nil {
		return err
	}

	r.phase("format")
	if err := format(ctx, plan, r.Log); err != nil {
		return err
	}
	root := r.Options.MountRoot()
	mounts, err := mount.Mount(ctx, root, plan.Partitions, r.Log)
	if err != nil {
		return err
	}
	// Whatever fails below, nothing stays mounted: the next try needs the disk.
	defer mounts.Unmount(context.WithoutCancel(ctx))

	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()

	r.phase("extract")
	for i, w := range m.Wads {
		// Through the tree: a link in an earlier wad must not lead out of it.
		if err := tree.MkdirAll(path.Join(".", w.Mount), 0o755); err != nil {
			return fmt.Errorf("wad %s: its mount point %s: %w", w.Name, w.Mount, err)
		}
		if err := r.extract(ctx, w, streams[i], root, i, len(m.Wads)); err != nil {
			return err
		}
	}

	r.phase("configure")
	for _, f := range files {
		if err := layFile(tree, f); err != nil {
			return fmt.Errorf("template %s: %w", f.Path, err)
		}
	}

	r.phase("steps")
	summary, err := r.runSteps(ctx, m, plan, steps, keys, root)
	if err != nil {
		return err
	}

	r.phase("commit")
	boot, err := readBootFiles(tree, summary)
	if err != nil {
		return err
	}
	record := stamp.New(m)
	record.Started, record.Finished = started.UTC(), time.Now().UTC()
	record.DiskSerial, record.Image = plan.Disk.Serial, r.Info.Version
	text, err := record.Marshal()
	if err != nil {
		return err
	}
	if err := layFile(tree, spec.File{Path: spec.StampFile, Content: string(text), Mode: 0o644}); err != nil {
		return fmt.Errorf("stamp: %w", err)
	}
	tree.Close()
	if err := mounts.Unmount(ctx); err != nil {
		return err
	}
	return commit(plan, boot)
}

// openWads opens every wad of the manifest, so that the first byte of each has
// been seen before the disk is touched.
func (r *Reimager) openWads(ctx context.Context, m *spec.Manifest) ([]*fetch.Stream, error) {
	var streams []*fetch.Stream
	for _, w := range m.Wads {
		urls := make([]string, len(w.URLs))
		for i, u := range w.URLs {
			urls[i] = u
			if !strings.Contains(u, "://") {
				urls[i] = spec.URL(r.base, u)
			}
		}
		s, err := r.fetcher().Open(ctx, fetch.Source{Name: w.Name, URLs: urls, Size: w.Size, SHA256: w.SHA256})
		if err != nil {
			for _, s := range streams {
				s.Close()
			}
			return nil, fmt.Errorf("wad %s: %w", w.Name, err)
		}
		streams = append(streams, s)
	}
	return streams, nil
}

// erase makes the disk unbootable, removes what was on it, and writes the new
// partition table. It is the one place where destruction starts.
func (r *Reimager) erase(ctx context.Context, plan *spec.Plan) error {
	target, err := disk.Open(plan)
	if err != nil {
		return err
	}
	defer target.Close()
	r.wrote = true
	if err := target.Uncommit(); err != nil {
		return err
	}
	if err := target.Wipe(); err != nil {
		return err
	}
	if err := target.WriteTable(ctx); err != nil {
		return err
	}
	return target.Close()
}

// format makes all file systems at once.
func format(ctx context.Context, plan *spec.Plan, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range plan.Partitions {
		g.Go(func() error {
			err := mkfs.Make(ctx, p.FileSystem, p.Device, mkfs.Options{Label: p.Label, UUID: p.UUID, SectorSize: plan.Disk.LogicalSector}, log)
			if err != nil {
				return fmt.Errorf("make %s on %s (%s): %w", p.FileSystem, p.Name, p.Device, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// extract lays one wad down, with its progress on the consoles and at the server.
func (r *Reimager) extract(ctx context.Context, w spec.Wad, stream *fetch.Stream, root string, i, n int) error {
	name := w.Name
	if n > 1 {
		name = fmt.Sprintf("%s (%d of %d)", w.Name, i+1, n)
	}
	bar := r.Screen.Progress(name, w.Size, r.progressEvents())
	defer bar.End()
	stats, err := wad.Extract(ctx, io.TeeReader(stream, bar), filepath.Join(root, w.Mount), wad.Options{Log: r.Log, Overlay: w.Overlay})
	bar.End()
	if err := errors.Join(err, stream.Close()); err != nil {
		return fmt.Errorf("wad %s: %w", w.Name, err)
	}
	r.Log.Info("extracted", "wad", w.Name, "entries", stats.Entries, "bytes", spec.Size(stats.Bytes).String())
	return nil
}

// progressEvents returns what posts a sample to the server, once a second.
func (r *Reimager) progressEvents() func(logs.Sample) {
	var last time.Time
	return func(s logs.Sample) {
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		r.event(spec.Event{Kind: spec.EventProgress, Done: s.Done, Total: s.Total, Rate: s.Rate, ETA: s.ETA.Seconds()})
	}
}

// runSteps hands over to the chroot helper.
func (r *Reimager) runSteps(ctx context.Context, m *spec.Manifest, plan *spec.Plan, steps []spec.Step, keys *chroot.Keys, root string) (chroot.Summary, error) {
	rootPart, bootPart := at(plan, "/"), at(plan, "/boot")
	byUUID := map[string]string{}
	for _, p := range plan.Partitions {
		if p.UUID != "" {
			byUUID[p.UUID] = p.Device
		}
	}
	summary, err := chroot.Run(ctx, chroot.Options{
		Root: root, Helper: spec.ImageChrootHelper, Log: r.Log, Keys: keys, ByUUID: byUUID,
		Job: chroot.Job{
			Host: m.Host, System: m.System, Steps: steps,
			Disk: plan.Disk.Device, Firmware: plan.Firmware, Table: plan.Table,
			RootUUID: rootPart.UUID, RootPartUUID: rootPart.PartUUID,
			BootUUID: bootPart.UUID, BootFS: bootPart.FileSystem, BootPath: strings.TrimSuffix(within(bootPart, "/boot"), "/"),
		},
		OnResult: func(result chroot.Result) {
			text := fmt.Sprintf("%s: done", result.Step)
			switch {
			case result.Err != "" && result.Allowed:
				text = fmt.Sprintf("%s: failed, as its profile allows: %s", result.Step, result.Err)
				r.Log.Warn(text)
			case result.Err != "":
				text = fmt.Sprintf("%s: failed: %s", result.Step, result.Err)
			default:
				r.Log.Info("step done", "step", result.Step, "seconds", fmt.Sprintf("%.1f", result.Seconds))
			}
			r.event(spec.Event{Kind: spec.EventStep, Text: text, Log: result.Output})
		},
	})
	if err != nil {
		return summary, err
	}
	if len(summary.HostKeys) > 0 {
		r.event(spec.Event{Kind: spec.EventKeys, HostKeys: summary.HostKeys})
	}
	return summary, nil
}

// bootFiles is what the commit needs from the new system.
type bootFiles struct{ boot, core []byte }

// maxBootFile is more than any boot.img or core.img has, in bytes.
const maxBootFile = 4 << 20

func readBootFiles(tree *os.Root, s chroot.Summary) (bootFiles, error) {
	if s.BootImage == "" {
		return bootFiles{}, nil
	}
	var b bootFiles
	for _, f := range []struct {
		name string
		into *[]byte
	}{{s.BootImage, &b.boot}, {s.CoreImage, &b.core}} {
		file, err := tree.Open(strings.TrimPrefix(f.name, "/"))
		if err != nil {
			return b, fmt.Errorf("boot loader: %w", err)
		}
		*f.into, err = io.ReadAll(io.LimitReader(file, maxBootFile))
		file.Close()
		if err != nil {
			return b, fmt.Errorf("boot loader: %s: %w", f.name, err)
		}
	}
	return b, nil
}

// commit makes the disk bootable. Everything else is on it, unmounted and flushed.
func commit(plan *spec.Plan, b bootFiles) error {
	if b.boot == nil {
		return nil
	}
	target, err := disk.Open(plan)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := target.Commit(b.boot, b.core); err != nil {
		return err
	}
	return target.Close()
}

// layFile writes one file of the new system, in place of whatever is there.
// Symbolic links in its folder are followed only inside the tree.
func layFile(tree *os.Root, f spec.File) error {
	name := strings.TrimPrefix(path.Clean(f.Path), "/")
	if err := tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// A link that is in the way (resolv.conf into /run, say) is replaced, not followed.
	if err := tree.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.WriteString(file, f.Content); err != nil {
		return err
	}
	if err := file.Chown(f.UID, f.GID); err != nil {
		return err
	}
	// After chown, which takes the setuid bit away.
	if err := file.Chmod(f.Mode.FileMode()); err != nil {
		return err
	}
	return file.Close()
}
