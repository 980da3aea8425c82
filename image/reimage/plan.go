package reimage

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"reassure/image/reimage/disk"
	"reassure/image/reimage/mkfs"
	"reassure/image/spec"
)

// MakePlan says what a reimage of the target will do, in full. It is a pure
// function of its arguments: the UUIDs of the new file systems come from
// random. Whatever the manifest asks for that this PC cannot give is refused
// here, before the first write. found is what is installed on the target; nil is
// nothing of ours.
func MakePlan(m *spec.Manifest, facts spec.Facts, target spec.Disk, found *Installed, random io.Reader) (*spec.Plan, error) {
	placed, err := disk.Place(facts.Firmware, m.Table, m.Partitions, target)
	if err != nil {
		return nil, &Refusal{fmt.Errorf("lay out %s: %w", target.Device, err)}
	}
	id, err := disk.Identify(placed, m.Table, random)
	if err != nil {
		return nil, err
	}
	var known map[string]string
	if found != nil {
		known = found.Stamp.Preserved
	}
	same, err := disk.Preserve(placed, m.Table, target, known, found != nil || target.Uncommitted)
	if err != nil {
		return nil, &Refusal{err}
	}
	if same != "" {
		id = same
	}
	plan := &spec.Plan{
		Host: m.Host, Profile: m.Profile, Digest: m.Digest,
		Firmware: facts.Firmware, Disk: target, Table: m.Table, DiskID: id,
		Partitions: placed, Wads: m.Wads, Finish: m.Finish, Mode: spec.ReimageFull,
	}
	for _, f := range m.Files {
		plan.Files = append(plan.Files, f.Path)
	}
	for _, s := range m.Steps {
		plan.Steps = append(plan.Steps, s.Name)
	}
	for _, p := range placed {
		if err := mkfs.Available(p.FileSystem); err != nil {
			return nil, &Refusal{fmt.Errorf("partition %s: %w", p.Name, err)}
		}
		if err := mkfs.Check(p.FileSystem, int64(p.Length), mkfs.Options{Label: p.Label, UUID: p.UUID, SectorSize: target.LogicalSector}); err != nil {
			return nil, &Refusal{fmt.Errorf("partition %s: %w", p.Name, err)}
		}
	}
	// A token that does not resolve is found out now, not on a wiped disk.
	if _, _, err := expand(m, plan); err != nil {
		return nil, &Refusal{fmt.Errorf("manifest of %s: %w", m.Host, err)}
	}
	if err := NameTaken(placed, target, facts.Disks); err != nil {
		return nil, &Refusal{err}
	}
	return plan, nil
}

// NameTaken refuses a label, or a UUID of a file system or a partition, that another
// disk of this PC carries too: whatever mounts by it could pick the wrong one. It is
// a pure function.
func NameTaken(placed []spec.Placed, target spec.Disk, disks []spec.Disk) error {
	same := func(a, b string) bool { return a != "" && strings.EqualFold(a, b) }
	for _, d := range disks {
		if d.Device == target.Device {
			continue
		}
		for _, p := range placed {
			for _, c := range d.Contents {
				switch {
				case p.Label != "" && p.Label == c.Label:
					return fmt.Errorf("the label %q of partition %s is on %s too: change one of them, or take that disk out", p.Label, p.Name, d)
				case same(p.UUID, c.UUID):
					return fmt.Errorf("the UUID %s of the file system on partition %s is on %s too, which looks like a copy of %s: take that disk out, give its file system another UUID, or have this one laid down anew by mode: full", p.UUID, p.Name, d, target)
				}
			}
			for _, e := range d.Partitions {
				if same(p.PartUUID, e.PartUUID) {
					return fmt.Errorf("the PARTUUID %s of partition %s is on %s too, which looks like a copy of %s: take that disk out, or have this one laid down anew by mode: full", p.PartUUID, p.Name, d, target)
				}
			}
		}
	}
	return nil
}

// expand fills in the tokens of the manifest's files and steps.
func expand(m *spec.Manifest, plan *spec.Plan) ([]spec.File, []spec.Step, error) {
	value := func(kind, name string) (string, error) {
		if kind == spec.TokenDisk {
			return plan.Disk.Device, nil
		}
		i := slices.IndexFunc(plan.Partitions, func(p spec.Placed) bool { return p.Name == name })
		if i < 0 {
			return "", fmt.Errorf("there is no partition named %q", name)
		}
		p := plan.Partitions[i]
		switch kind {
		case spec.TokenUUID:
			if p.UUID == "" {
				return "", fmt.Errorf("partition %q has no file system, so no UUID", name)
			}
			return p.UUID, nil
		case spec.TokenPartUUID:
			return p.PartUUID, nil
		case spec.TokenDevice:
			return p.Device, nil
		}
		return "", fmt.Errorf("there is no such token")
	}
	files := slices.Clone(m.Files)
	for i := range files {
		content, err := spec.ExpandTokens(files[i].Content, value)
		if err != nil {
			return nil, nil, fmt.Errorf("file %s: %w", files[i].Path, err)
		}
		files[i].Content = content
	}
	// What takes a token's place never needs escaping in JSON, so all strings
	// of the steps can be done in one go.
	text, err := json.Marshal(m.Steps)
	if err != nil {
		return nil, nil, err
	}
	expanded, err := spec.ExpandTokens(string(text), value)
	if err != nil {
		return nil, nil, fmt.Errorf("steps: %w", err)
	}
	var steps []spec.Step
	if err := json.Unmarshal([]byte(expanded), &steps); err != nil {
		return nil, nil, fmt.Errorf("steps: %w", err)
	}
	return files, steps, nil
}

// at returns the partition that holds a folder of the new system.
func at(plan *spec.Plan, folder string) spec.Placed {
	var best spec.Placed
	for _, p := range plan.Partitions {
		if p.Mount == "" || len(p.Mount) < len(best.Mount) {
			continue
		}
		if p.Mount == "/" || folder == p.Mount || strings.HasPrefix(folder, p.Mount+"/") {
			best = p
		}
	}
	return best
}

// within returns a path of the new system as its own partition names it.
func within(p spec.Placed, file string) string {
	if p.Mount == "/" {
		return path.Clean(file)
	}
	return path.Join("/", strings.TrimPrefix(path.Clean(file), p.Mount))
}
