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
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"reassure/image/fetch"
	"reassure/image/logs"
	"reassure/image/reimage/chroot"
	"reassure/image/reimage/delta"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/efivars"
	"reassure/image/reimage/esp"
	"reassure/image/reimage/mkfs"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/wad"
)

// Memory is what the program that reimages should give to
// [runtime/debug.SetMemoryLimit], in bytes: above it garbage is collected more
// often. It is less than the 256 MiB that the program may have in all, and that
// a PC of 1 GiB has beside the initramfs, the kernel and what the steps run.
const Memory = 192 << 20

// apply destroys what is on the disk and builds the new system. The first write
// makes the disk unbootable, the last makes it bootable; whatever happens in
// between, an error or a power cut, leaves a disk that nothing boots from.
func (r *Reimager) apply(ctx context.Context, m *spec.Manifest, plan *spec.Plan) error {
	for _, p := range plan.Partitions {
		r.loadFileSystems(ctx, p.FileSystem)
	}
	// A server that lacks a wad is found out while the old system is still whole.
	wads, err := r.openWads(ctx, m)
	if err != nil {
		return err
	}
	defer func() {
		for _, w := range wads {
			w.Close()
		}
	}()
	if err := fits(plan, wads); err != nil {
		return &Refusal{err}
	}
	// The search for RSA primes takes seconds: it runs beside the download.
	making, stop := context.WithCancel(ctx)
	defer stop()
	keys := chroot.StartKeys(making, m.Steps)
	started := time.Now()

	r.own = nil
	var mounts *mount.Tree
	var done *delta.Index // nil: the steps have to run
	if plan.Mode == spec.ReimageDelta {
		mounts, done, err = r.mend(ctx, m, plan, wads)
		r.again = isNetwork(err)
		switch {
		case ctx.Err() != nil, r.again:
			return err
		case err != nil:
			if err := r.insteadOfDelta(plan, err); err != nil {
				return err
			}
		}
	}
	if plan.Mode != spec.ReimageDelta {
		mounts, err = r.lay(ctx, m, plan, wads)
	}
	if err != nil {
		return err
	}
	// Whatever fails below, nothing stays mounted: the next try needs the disk.
	defer mounts.Unmount(context.WithoutCancel(ctx))
	tree, err := os.OpenRoot(mounts.Root)
	if err != nil {
		return err
	}
	defer tree.Close()
	var summary chroot.Summary
	if done != nil {
		r.Log.Info("no step has to run: what they made is as they left it")
		r.finished = m.Finished
		summary.BootImage, summary.CoreImage = done.BootImage, done.CoreImage
	} else if summary, err = r.finish(ctx, m, plan, wads, keys, tree); err != nil {
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
	for _, p := range plan.Partitions {
		if p.Preserve {
			if record.Preserved == nil {
				record.Preserved = map[string]string{}
			}
			record.Preserved[p.Name] = p.PartUUID
		}
	}
	text, err := record.Marshal()
	if err != nil {
		return err
	}
	if err := layFile(tree, spec.File{Path: spec.StampFile, Content: string(text), Mode: 0o644}); err != nil {
		return fmt.Errorf("stamp: %w", err)
	}
	esps := mountedESPs(plan)
	for _, p := range esps {
		if err := esp.Fill(ctx, p, tree, p.Mount); err != nil {
			return err
		}
	}
	tree.Close()
	if err := mounts.Unmount(ctx); err != nil {
		return err
	}
	// Before the disk can boot: the PC must ask its server first.
	if plan.Firmware == spec.UEFI && len(esps) > 0 {
		r.bootOrder(plan, esps[0])
	}
	return commit(ctx, plan, boot)
}

// mountedESPs are the EFI system partitions that the new system has.
func mountedESPs(plan *spec.Plan) []spec.Placed {
	return slices.DeleteFunc(slices.Clone(plan.Partitions), func(p spec.Placed) bool { return !p.IsESP() || p.Mount == "" })
}

// bootEntry is what the firmware calls our systems.
const bootEntry = "ReAssure"

// bootOrder has UEFI try the network first, and then the disk.
func (r *Reimager) bootOrder(plan *spec.Plan, p spec.Placed) {
	sector := uint64(plan.Disk.LogicalSector)
	// Entries for what was on the disk go.
	var gone []string
	for _, old := range plan.Disk.Partitions {
		gone = append(gone, old.PartUUID)
	}
	err := efivars.Vars{}.Install(efivars.Loader{
		Description: bootEntry, Number: p.Number, Start: p.Start / sector, Size: p.Length / sector, PartUUID: p.PartUUID,
		File: `\` + strings.ReplaceAll(esp.Loader, "/", `\`),
	}, gone)
	if err != nil {
		r.Log.Warn("the disk boots without an entry of its own in the firmware, but the network may not be first in the boot order, so that this PC does not ask its server: look into its set-up", "error", err)
		return
	}
	r.Log.Info("the firmware tries the network first, and then this disk", "entry", bootEntry)
}

// finish runs the steps, and leaves an index of what they made.
func (r *Reimager) finish(ctx context.Context, m *spec.Manifest, plan *spec.Plan, wads []openedWad, keys *chroot.Keys, root *os.Root) (chroot.Summary, error) {
	r.phase("steps")
	// Only now is it settled which UUIDs the disk has.
	files, steps, err := expand(m, plan)
	if err != nil {
		return chroot.Summary{}, err
	}
	should, err := expectation(files, wads, plan, nil)
	if err == nil {
		err = delta.Prepare(root)
	}
	if err != nil {
		return chroot.Summary{}, err
	}
	since := time.Now()
	summary, err := r.runSteps(ctx, m, plan, steps, keys, root.Name())
	if err != nil {
		return summary, err
	}
	r.finished = r.writeIndex(ctx, m, should, root, since, summary)
	return summary, nil
}

// lay lays the whole disk down anew, and leaves it mounted.
func (r *Reimager) lay(ctx context.Context, m *spec.Manifest, plan *spec.Plan, wads []openedWad) (mounts *mount.Tree, err error) {
	files, _, err := expand(m, plan)
	if err != nil {
		return nil, err
	}
	r.phase("erase")
	if err := r.erase(ctx, plan); err != nil {
		return nil, err
	}

	r.phase("format")
	if err := format(ctx, plan, r.Log); err != nil {
		return nil, err
	}
	root := r.Options.MountRoot()
	mounts, err = mount.Mount(ctx, root, plan.Partitions, r.Log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mounts.Unmount(context.WithoutCancel(ctx)))
		}
	}()
	tree, err := os.OpenRoot(root)
	if err != nil {
		return mounts, err
	}
	defer tree.Close()

	r.phase("extract")
	for i, w := range m.Wads {
		// Through the tree: a link in an earlier wad must not lead out of it.
		if err := tree.MkdirAll(path.Join(".", w.Mount), 0o755); err != nil {
			return mounts, fmt.Errorf("wad %s: its mount point %s: %w", w.Name, w.Mount, err)
		}
		if err := r.extract(ctx, wads[i], root, i, len(m.Wads)); err != nil {
			return mounts, err
		}
	}

	r.phase("configure")
	for _, f := range files {
		if err := layFile(tree, f); err != nil {
			return mounts, fmt.Errorf("template %s: %w", f.Path, err)
		}
	}
	return mounts, nil
}

// openedWad is a wad of the manifest, on its servers.
type openedWad struct {
	spec.Wad
	// One of the two: with an index, or plain.
	indexed *wad.Remote
	plain   *fetch.Stream
}

// Close lets go of the servers.
func (w openedWad) Close() error {
	if w.indexed != nil {
		return w.indexed.Close()
	}
	return w.plain.Close()
}

// openWads opens every wad of the manifest: of an indexed one the index is there
// and right, of others the first byte has been seen, before the disk is touched.
func (r *Reimager) openWads(ctx context.Context, m *spec.Manifest) ([]openedWad, error) {
	var all []openedWad
	for _, w := range m.Wads {
		source := fetch.Source{Name: w.Name, Size: w.Size, SHA256: w.SHA256}
		for _, u := range w.URLs {
			source.URLs = append(source.URLs, spec.Absolute(r.base, u))
		}
		opened := openedWad{Wad: w}
		var err error
		if w.Index != nil {
			opened.indexed, err = wad.OpenRemote(ctx, r.fetcher(), source, *w.Index)
		} else {
			opened.plain, err = r.fetcher().Open(ctx, source)
		}
		if err != nil {
			for _, w := range all {
				w.Close()
			}
			return nil, fmt.Errorf("wad %s: %w", w.Name, err)
		}
		all = append(all, opened)
	}
	return all, nil
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
	return formatSome(ctx, plan, log, func(p spec.Placed) bool { return !p.Kept })
}

func formatSome(ctx context.Context, plan *spec.Plan, log *slog.Logger, which func(spec.Placed) bool) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range plan.Partitions {
		if !which(p) {
			continue
		}
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
func (r *Reimager) extract(ctx context.Context, w openedWad, root string, i, n int) error {
	name := w.Name
	if n > 1 {
		name = fmt.Sprintf("%s (%d of %d)", w.Name, i+1, n)
	}
	bar := r.Screen.Progress(name, w.Size, r.progressEvents())
	defer bar.End()
	at, o := filepath.Join(root, w.Mount), wad.Options{Log: r.Log, Overlay: w.Overlay}
	var stats wad.Stats
	var err error
	if w.indexed != nil {
		o.Moved = func(bytes int64) { bar.Add(uint64(bytes)) }
		stats, err = w.indexed.Extract(ctx, at, o)
	} else {
		stats, err = wad.Extract(ctx, io.TeeReader(w.plain, bar), at, o)
	}
	bar.End()
	if err := errors.Join(err, w.Close()); err != nil {
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
	esps := append(mountedESPs(plan), spec.Placed{}) // or none
	summary, err := chroot.Run(ctx, chroot.Options{
		Root: root, Helper: spec.ImageChrootHelper, Log: r.Log, Keys: keys, ByUUID: byUUID,
		Job: chroot.Job{
			Host: m.Host, System: m.System, Steps: steps, Own: r.own,
			Disk: plan.Disk.Device, Firmware: plan.Firmware, Table: plan.Table,
			RootUUID: rootPart.UUID, RootPartUUID: rootPart.PartUUID,
			ESP:      esps[0].Mount,
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
func commit(ctx context.Context, plan *spec.Plan, b bootFiles) error {
	for _, p := range mountedESPs(plan) {
		if err := esp.Commit(ctx, p); err != nil {
			return err
		}
	}
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
