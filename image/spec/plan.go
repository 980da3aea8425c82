package spec

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Approval is who says that a plan is right before its first write.
type Approval string

// Ways to approve. The zero value means ApproveAuto.
const (
	ApproveAuto Approval = "auto" // nobody has to
	ApproveSame Approval = "same" // a person, unless a plan like it was approved for the profile last
	ApproveAsk  Approval = "ask"  // a person
)

// PhaseApproval is the phase in which a PC waits for its plan to be approved.
const PhaseApproval = "approval"

// Sum is the digest of what the plan does: of all but the identities that are made
// anew each time it is made, the names that the kernel gives to devices, and the reason
// for its mode.
func (plan *Plan) Sum() Digest { return plan.masked().digest() }

// Class is the digest of what the plan has in common with those of other hosts of its
// profile: what is lost, made and fetched, on a disk of the same model and size.
func (plan *Plan) Class() Digest {
	p := plan.masked()
	p.Host, p.Digest = "", Digest{}
	d := p.Disk
	p.Disk = Disk{Model: d.Model, Bus: d.Bus, Size: d.Size, LogicalSector: d.LogicalSector, Table: d.Table}
	for _, c := range d.Contents {
		p.Disk.Contents = append(p.Disk.Contents, Content{Partition: c.Partition, Size: c.Size, Kind: c.Kind, Label: c.Label, Foreign: c.Foreign})
	}
	for i := range p.Partitions {
		p.Partitions[i].UUID, p.Partitions[i].PartUUID = "", ""
	}
	return p.digest()
}

func (plan *Plan) masked() *Plan {
	p := *plan
	p.DiskID, p.Reason = "", ""
	p.Disk.Device, p.Disk.ByPath = "", ""
	p.Partitions = slices.Clone(p.Partitions)
	for i := range p.Partitions {
		q := &p.Partitions[i]
		q.Device = ""
		if !q.Kept {
			q.UUID, q.PartUUID = "", ""
		}
	}
	return &p
}

func (plan *Plan) digest() Digest {
	text, err := json.Marshal(plan)
	if err != nil {
		panic("spec: a plan is not JSON: " + err.Error()) // it holds nothing that JSON cannot
	}
	return Sum(text)
}

// Describe writes the plan for people, one line an item.
func (plan *Plan) Describe() []string {
	lines := []string{fmt.Sprintf("%s gets profile %s (software %s) on %s", plan.Host, plan.Profile, plan.Digest.Short(), plan.Disk)}
	if plan.Mode == ReimageDelta {
		lines = append(lines, "  delta  only what differs is written: "+plan.Reason)
	} else if plan.Reason != "" {
		lines = append(lines, "  full   everything is written: "+plan.Reason)
	}
	for _, c := range plan.Disk.Contents {
		if stays := slices.ContainsFunc(plan.Partitions, func(p Placed) bool {
			return p.Number == c.Partition && (p.Kept || plan.Mode == ReimageDelta)
		}); stays {
			continue
		}
		what := c.Kind
		if c.Label != "" {
			what += fmt.Sprintf(" %q", c.Label)
		}
		where := "the disk"
		if c.Partition > 0 {
			where = fmt.Sprintf("partition %d", c.Partition)
		}
		lines = append(lines, fmt.Sprintf("  lose   %s on %s", what, where))
	}
	for _, p := range plan.Partitions {
		mount := p.Mount
		if mount == "" {
			mount = "-"
		}
		verb := "make"
		switch {
		case p.Kept:
			verb = "keep"
		case plan.Mode == ReimageDelta && p.FileSystem == Ext4:
			verb = "mend"
		}
		lines = append(lines, fmt.Sprintf("  %s   %-15s %9s  %-5s on %s", verb, p.Device, Size(p.Length), p.FileSystem, mount))
	}
	for _, w := range plan.Wads {
		lines = append(lines, fmt.Sprintf("  fetch  %s, %s, sha256 %s, into %s", w.Name, w.Size, w.SHA256.Short(), w.Mount))
	}
	return append(lines, fmt.Sprintf("  write  %d files, run %d steps", len(plan.Files), len(plan.Steps)))
}
