package reimage

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"reassure/image/reimage/delta"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/esp"
	"reassure/image/reimage/mount"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/tree"
)

// verify compares the disk with its manifest, reports what differs, and goes on
// into the system. Nothing is written.
func (r *Reimager) verify(ctx context.Context, m *spec.Manifest, target spec.Disk) (spec.Finish, *spec.Manifest, error) {
	r.phase("verify")
	found, err := r.compare(ctx, m, target)
	if err != nil {
		return "", m, fmt.Errorf("verify: %w", err)
	}
	text := "the disk holds what it should"
	if !found.Same() {
		text = fmt.Sprintf("the disk differs in %d names", found.Total-found.Runtime)
	}
	if found.Runtime > 0 {
		text += fmt.Sprintf("; %d differ where it is expected", found.Runtime)
	}
	r.Screen.Done()
	r.Log.Info("VERIFIED: "+text, "host", m.Host)
	r.event(spec.Event{Kind: spec.EventErrand, Digest: m.Digest, Text: text, Verified: found, Phases: r.Screen.Phases()})
	// Whatever comes of that: the server knows that this errand is done.
	_, _, err = r.goLocal(ctx, Installed{Disk: target, Stamp: &stamp.Stamp{Host: m.Host}})
	r.Log.Warn("starting the PC anew", "reason", err)
	return spec.Reboot, m, nil
}

// compare reads the whole disk.
func (r *Reimager) compare(ctx context.Context, m *spec.Manifest, target spec.Disk) (v *spec.Verified, err error) {
	for _, w := range m.Wads {
		if w.Index == nil {
			return nil, refuse("the wad %s has no index to compare with: make it with reassure wad pack, and roll it out", w.Name)
		}
	}
	installed := r.installedOn(target)
	plan, err := MakePlan(m, r.facts, target, installed, rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &comparison{}
	if installed == nil || !installed.Whole {
		c.add("/", "system", "a whole one, with its stamp", "none")
		return c.verified(), nil
	}
	if err := disk.SameTable(plan.Partitions, plan.Table, target); err != nil {
		c.add("/", "partitions", "", err.Error())
		return c.verified(), nil
	}
	if plan.DiskID, err = disk.Adopt(plan.Partitions, target, spec.Ext4); err != nil {
		c.add("/", "file systems", "", err.Error())
		return c.verified(), nil
	}
	for _, p := range plan.Partitions {
		r.loadFileSystems(ctx, p.FileSystem)
	}
	files, _, err := expand(m, plan)
	if err != nil {
		return nil, err
	}
	wads, err := r.openWads(ctx, m)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, w := range wads {
			w.Close()
		}
	}()
	var changes []delta.Change
	total := spec.Size(0)
	for _, w := range wads {
		total += spec.Size(w.indexed.TarSize)
	}
	if x := r.believed(m, installed); x != nil {
		c.Steps, changes = true, x.Changes
	}
	should, err := expectation(files, wads, plan, changes)
	if err != nil {
		return nil, err
	}
	look := mount.Look
	if installed.running {
		look = mount.Running
	}
	mounts, err := look(ctx, r.Options.MountRoot(), plan.Partitions, r.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mounts.Unmount(context.WithoutCancel(ctx))) }()
	bar := r.Screen.Progress("compare", total, r.progressEvents())
	defer bar.End()
	o := delta.CheckOptions{
		Keep: append(delta.Own(), m.Keep...), Runtime: m.Runtime,
		Progress: func(s delta.Stats) { bar.Set(uint64(s.Read)) },
	}
	for f, err := range should.Check(ctx, mounts.Root, o) {
		if err != nil {
			return nil, err
		}
		c.fault(f)
	}
	if err := c.esps(plan, mounts.Root); err != nil {
		return nil, err
	}
	return c.verified(), nil
}

// esps compares each EFI system partition with what it was filled from.
func (c *comparison) esps(plan *spec.Plan, root string) error {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	for _, p := range mountedESPs(plan) {
		different, err := esp.Compare(p, tree, p.Mount)
		if err != nil {
			return err
		}
		for _, d := range different {
			c.add(path.Join(p.Mount, printable(d.Path)), d.What, d.Want, d.Have)
		}
	}
	return nil
}

// comparison collects findings.
type comparison struct {
	spec.Verified
	expected []spec.Finding // at runtime paths
}

// verified puts the findings together, those first that nobody expects.
func (c *comparison) verified() *spec.Verified {
	c.Findings = append(c.Findings, c.expected...)
	c.Findings = c.Findings[:min(len(c.Findings), spec.MaxFindings)]
	return &c.Verified
}

func (c *comparison) add(path, what, want, have string) {
	c.Total++
	c.Findings = append(c.Findings, spec.Finding{Path: path, What: what, Want: want, Have: have})
}

func (c *comparison) fault(f *tree.Fault) {
	c.Total++
	to := &c.Findings
	if f.Runtime {
		c.Runtime++
		to = &c.expected
	}
	if len(*to) >= spec.MaxFindings {
		return
	}
	finding := spec.Finding{Path: path.Join("/", printable(f.Path)), Runtime: f.Runtime}
	var what []string
	for _, d := range f.Differences {
		what = append(what, d.What)
	}
	slices.Sort(what)
	finding.What = strings.Join(slices.Compact(what), ", ")
	if len(f.Differences) == 1 {
		// Attributes may be long.
		finding.Want, finding.Have = short(printable(f.Differences[0].A)), short(printable(f.Differences[0].B))
	}
	*to = append(*to, finding)
}

func short(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// printable writes bytes that are no text as \xNN.
func printable(s string) string {
	quoted := fmt.Sprintf("%+q", s)
	return strings.ReplaceAll(cmp.Or(strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`), "."), `\"`, `"`)
}
