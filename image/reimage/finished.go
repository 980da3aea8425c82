package reimage

import (
	"context"
	"os"
	"time"

	"reassure/image/reimage/chroot"
	"reassure/image/reimage/delta"
	"reassure/image/spec"
)

// expectation is what the disk should hold before the steps. It is nil where a wad has
// no index. finished adds what the steps left.
func expectation(files []spec.File, wads []openedWad, plan *spec.Plan, finished []delta.Change) (*delta.Tree, error) {
	o := delta.Options{Files: files, Finished: finished}
	for _, w := range wads {
		if w.indexed == nil {
			return nil, nil
		}
		o.Wads = append(o.Wads, delta.Source{Remote: w.indexed, Mount: w.Mount, Overlay: w.Overlay})
	}
	for _, p := range plan.Partitions {
		switch {
		case p.Mount == "":
		case p.Kept, p.IsESP():
			o.Points = append(o.Points, p.Mount)
		default:
			o.Mounts = append(o.Mounts, p.Mount)
		}
	}
	return delta.New(o)
}

// believed returns the index of the finished tree that lies on the disk, if the
// boot server remembers it and it is of the software that is wanted. It is nil where the
// steps have to run.
func (r *Reimager) believed(m *spec.Manifest, found *Installed) *delta.Index {
	if m.Finished.IsZero() || found == nil || found.Stamp.Digest != m.Digest {
		return nil
	}
	text, err := found.read(spec.FinishedFile, delta.MaxIndex)
	if err != nil {
		r.Log.Warn("the index of the finished tree cannot be read: the steps will run again", "reason", err)
		return nil
	}
	if spec.Sum(text) != m.Finished {
		r.Log.Warn("the index of the finished tree is not the one that this PC reported: it is not believed")
		return nil
	}
	x, err := delta.ParseIndex(text)
	if err != nil || x.Software != m.Digest {
		r.Log.Warn("the index of the finished tree is of no use: the steps will run again", "reason", err)
		return nil
	}
	return x
}

// settled says whether everything that steps fill is kept in a delta: file systems
// that are made anew need the steps. An EFI system partition does not: it is filled from
// what is on the root's.
func settled(plan *spec.Plan) bool {
	for _, p := range plan.Partitions {
		if p.FileSystem != spec.Ext4 && p.Mount != "" && !p.Kept && !p.IsESP() {
			return false
		}
	}
	return true
}

// writeIndex leaves the index of the finished tree on the disk, and returns its digest. It
// is worth a try: without it, the steps of the next reimage run, whatever differs.
func (r *Reimager) writeIndex(ctx context.Context, m *spec.Manifest, should *delta.Tree, root *os.Root, since time.Time, summary chroot.Summary) spec.Digest {
	if should == nil {
		return spec.Digest{}
	}
	changes, err := should.Finished(ctx, root.Name(), since, delta.CheckOptions{Keep: m.Keep, Runtime: m.Runtime})
	var text []byte
	if err == nil {
		x := delta.Index{Software: m.Digest, BootImage: summary.BootImage, CoreImage: summary.CoreImage, Changes: changes}
		text, err = x.Marshal()
	}
	if err == nil {
		err = layFile(root, spec.File{Path: spec.FinishedFile, Content: string(text), Mode: 0o600})
	}
	if err != nil {
		r.Log.Warn("no index of the finished tree: the next reimage will run all steps", "reason", err)
		return spec.Digest{}
	}
	r.Log.Info("index of the finished tree", "changed_by_steps", len(changes), "bytes", len(text))
	return spec.Sum(text)
}
