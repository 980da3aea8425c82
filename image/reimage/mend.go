package reimage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"reassure/image/fetch"
	"reassure/image/reimage/delta"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/fsck"
	"reassure/image/reimage/mkfs"
	"reassure/image/reimage/mount"
	"reassure/image/reimage/steps"
	"reassure/image/spec"
)

// mend makes of the disk what lay would, by changing what differs, and leaves it
// mounted. Nothing is mounted, and no journal replayed, before the commit is undone
// and e2fsck has found nothing. After an error of the network this may be tried again; any
// other calls for lay. It returns the index of the finished tree if the disk holds that,
// so that no step has to run.
func (r *Reimager) mend(ctx context.Context, m *spec.Manifest, plan *spec.Plan, wads []openedWad) (mounts *mount.Tree, done *delta.Index, err error) {
	files, _, err := expand(m, plan)
	if err != nil {
		return nil, nil, err
	}
	// What contradicts itself is found out while the old system is still whole.
	should, err := expectation(files, wads, plan, nil)
	if err != nil {
		return nil, nil, err
	}
	total := spec.Size(0)
	for _, w := range wads {
		total += spec.Size(w.indexed.TarSize)
	}
	var final *delta.Tree
	if settled(plan) {
		if done = r.believed(m, r.installedOn(plan.Disk)); done != nil {
			if final, err = expectation(files, wads, plan, done.Changes); err != nil {
				return nil, nil, err
			}
		}
	}

	r.phase("uncommit")
	if err := r.uncommit(ctx, plan); err != nil {
		return nil, nil, err
	}

	r.phase("check")
	for _, p := range plan.Partitions {
		if p.FileSystem != spec.Ext4 || p.Kept {
			continue
		}
		r.Log.Info("checking file system", "partition", p.Name, "device", p.Device)
		made := mkfs.Options{Label: p.Label, UUID: p.UUID}
		if err := fsck.Check(ctx, p.Device, fsck.Options{Made: made, Log: r.Log}); err != nil {
			return nil, nil, err
		}
	}
	// What steps fill, and what nobody checks, is made anew.
	if err := formatSome(ctx, plan, r.Log, func(p spec.Placed) bool { return p.FileSystem != spec.Ext4 && !p.Kept }); err != nil {
		return nil, nil, err
	}
	mounts, err = mount.Mount(ctx, r.Options.MountRoot(), plan.Partitions, r.Log)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mounts.Unmount(context.WithoutCancel(ctx)))
		}
	}()

	own, err := ownFiles(mounts.Root, m)
	if err != nil {
		return mounts, nil, err
	}
	r.phase("repair")
	bar := r.Screen.Progress("compare and repair", total, r.progressEvents())
	defer bar.End()
	o := delta.CheckOptions{
		Keep: m.Keep, Runtime: m.Runtime, Log: r.Log,
		Progress: func(s delta.Stats) { bar.Set(uint64(s.Read)) },
	}
	var stats delta.Stats
	if final != nil {
		finished := o
		finished.Final, finished.Keep = true, append(delta.Own(), o.Keep...)
		stats, err = final.Mend(ctx, mounts.Root, finished)
		if errors.Is(err, delta.ErrSteps) {
			r.Log.Info("the steps will run again", "reason", err)
			done, final = nil, nil
		}
	}
	if final == nil {
		stats, err = should.Mend(ctx, mounts.Root, o)
	}
	bar.End()
	if err != nil {
		return mounts, nil, err
	}
	r.own = own
	r.Log.Info("repaired", "entries", stats.Entries, "read", stats.Read.String(), "differed", stats.Faults,
		"removed", stats.Removed, "made", stats.Made, "mended", stats.Mended, "fetched", spec.Size(stats.Bytes).String())
	return mounts, done, nil
}

func ownFiles(root string, m *spec.Manifest) ([]string, error) {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	return steps.Own(tree, m.Keep, m.Steps)
}

// uncommit makes the disk unbootable, and keeps its partitions: it is the first
// write of a delta. The table is written again, for all of it to be ours.
func (r *Reimager) uncommit(ctx context.Context, plan *spec.Plan) error {
	target, err := disk.Open(plan)
	if err != nil {
		return err
	}
	defer target.Close()
	r.wrote = true
	if err := target.Uncommit(); err != nil {
		return err
	}
	if err := target.WriteTable(ctx); err != nil {
		return err
	}
	return target.Close()
}

// insteadOfDelta says why the delta is given up, and makes the plan one for a full install.
func (r *Reimager) insteadOfDelta(plan *spec.Plan, cause error) error {
	reason := fmt.Errorf("the delta was given up: %w", cause)
	r.Log.Warn("laying the whole disk down anew: " + reason.Error())
	if err := insteadFull(plan, reason, rand.Reader); err != nil {
		return err
	}
	r.event(spec.Event{Kind: spec.EventPlan, Plan: plan, Digest: plan.Digest, Text: reason.Error()})
	return nil
}

// isNetwork says whether an error is one of getting content, which says nothing
// of the disk.
func isNetwork(err error) bool {
	var (
		network net.Error
		status  *fetch.StatusError
		stall   *fetch.StallError
		part    *fetch.PartError
		size    *fetch.SizeError
	)
	return errors.As(err, &network) || errors.As(err, &status) || errors.As(err, &stall) || errors.As(err, &part) ||
		errors.As(err, &size) || errors.Is(err, io.ErrUnexpectedEOF)
}
