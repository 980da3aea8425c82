package disk

import (
	"fmt"
	"path"
	"strings"

	"reassure/image/spec"
)

// ChoiceError says why no disk was chosen. It lists every disk of the PC.
type ChoiceError struct {
	Reason string
	Disks  []Judged
}

// Judged is a disk and why it is not the target; an empty Against is a candidate.
type Judged struct {
	Disk    spec.Disk
	Against string
}

func (e *ChoiceError) Error() string {
	var b strings.Builder
	b.WriteString(e.Reason)
	var example string
	for _, j := range e.Disks {
		verdict := j.Against
		if verdict == "" {
			verdict = "a candidate"
		}
		fmt.Fprintf(&b, "\n  %s, holds %s: %s", j.Disk, Holds(j.Disk), verdict)
		if example == "" && j.Against == "" && j.Disk.Serial != "" {
			example = j.Disk.Serial
		}
	}
	if example != "" {
		fmt.Fprintf(&b, "\n  To say which one, put into the profile or into the host's entry: disk: {serial: %q}", example)
	}
	return b.String()
}

// Holds says in a few words what is on a disk.
func Holds(d spec.Disk) string {
	var words []string
	for _, c := range d.Contents {
		word := c.Kind
		if c.Label != "" {
			word += fmt.Sprintf(" %q", c.Label)
		}
		if c.Partition > 0 {
			word = fmt.Sprintf("%d: %s", c.Partition, word)
		}
		words = append(words, word)
	}
	switch {
	case len(words) > 0:
		return strings.Join(words, ", ")
	case d.Table != "":
		return "an empty " + string(d.Table) + " partition table"
	}
	return "nothing that we know"
}

// Choose returns the disk that the rule means. need is the least that the
// target must hold, in bytes. It is a pure function, and refuses whenever there
// is doubt: the error is a *[ChoiceError].
func Choose(rule spec.DiskRule, need spec.Size, disks []spec.Disk) (spec.Disk, error) {
	judged := make([]Judged, len(disks))
	var candidates []spec.Disk
	for i, d := range disks {
		judged[i] = Judged{Disk: d, Against: against(rule, need, d)}
		if judged[i].Against == "" {
			candidates = append(candidates, d)
		}
	}
	refuse := func(format string, args ...any) (spec.Disk, error) {
		return spec.Disk{}, &ChoiceError{Reason: fmt.Sprintf(format, args...), Disks: judged}
	}
	switch {
	case len(disks) == 0:
		return refuse("this PC has no disk that the image has a driver for: look for the controller's firmware setting (RAID, VMD), and for its driver in out/image.json")
	case len(candidates) == 0:
		return refuse("none of the %d disks may be the target; nothing was written:", len(disks))
	}
	best := candidates[0]
	for _, d := range candidates[1:] {
		if d.Size == best.Size && rule.Pick != "" && rule.Pick != "only" {
			return refuse("pick: %s does not decide between %s and %s, which have the same size; nothing was written:", rule.Pick, best.Device, d.Device)
		}
		switch {
		case rule.Pick == "smallest" && d.Size < best.Size, rule.Pick == "largest" && d.Size > best.Size:
			best = d
		case rule.Pick == "" || rule.Pick == "only":
			return refuse("%d disks could be the target and the profile does not say which; nothing was written:", len(candidates))
		}
	}
	return best, nil
}

// against says why a disk is not the target, or "".
func against(rule spec.DiskRule, need spec.Size, d spec.Disk) string {
	named := rule.Serial != "" || rule.WWN != "" || rule.Path != ""
	switch {
	case rule.Serial != "" && d.Serial != rule.Serial:
		return fmt.Sprintf("its serial is not %q", rule.Serial)
	case rule.WWN != "" && spec.BareWWN(d.WWN) != spec.BareWWN(rule.WWN):
		return fmt.Sprintf("its WWN is not %q", rule.WWN)
	case rule.Model != "" && !matches(rule.Model, d.Model):
		return fmt.Sprintf("its model is not %q", rule.Model)
	case rule.Path != "" && !matches(rule.Path, d.Device) && !matches(rule.Path, d.ByPath):
		return fmt.Sprintf("its path is not %q", rule.Path)
	case rule.Bus != "" && d.Bus != rule.Bus:
		return fmt.Sprintf("it is not on bus %s", rule.Bus)
	case rule.Rotational != nil && d.Rotational != *rule.Rotational:
		return fmt.Sprintf("rotational is not %v", *rule.Rotational)
	case rule.MinSize != 0 && d.Size < rule.MinSize:
		return fmt.Sprintf("it is smaller than min_size %v", rule.MinSize)
	case rule.MaxSize != 0 && d.Size > rule.MaxSize:
		return fmt.Sprintf("it is larger than max_size %v", rule.MaxSize)
	case d.Size < need:
		return fmt.Sprintf("it is too small: the layout needs %v", need)
	case d.Removable:
		return "it is removable"
	case d.Bus == "usb" && !named && rule.Bus != "usb":
		return "it is on USB, and no rule names it"
	case d.ReadOnly:
		return "it is read-only"
	case d.InUse != "":
		return "it is in use by " + d.InUse
	}
	if rule.Overwrite != "foreign" {
		for _, c := range d.Contents {
			if c.Foreign {
				return fmt.Sprintf("it holds %s, which may belong to more than this disk; to lose it, write disk: {overwrite: foreign}", c.Kind)
			}
		}
	}
	return ""
}

// matches is [path.Match] without its special treatment of slashes: a pattern
// for /dev/sd* should be as easy as one for a model.
func matches(pattern, s string) bool {
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x01"), strings.ReplaceAll(s, "/", "\x01"))
	return s != "" && ok && err == nil
}
