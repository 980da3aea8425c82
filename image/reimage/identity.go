package reimage

import (
	"fmt"
	"slices"

	"reassure/image/reimage/disk"
	"reassure/image/spec"
)

// Question is a refusal that ends when a person has said something: the boot server
// parks the PC until then.
type Question struct {
	Ask  spec.Ask
	Text string
}

func (q *Question) Error() string { return q.Text }

// question makes a refusal of a question.
func question(ask spec.Ask, format string, args ...any) error {
	return &Refusal{&Question{Ask: ask, Text: fmt.Sprintf(format, args...)}}
}

// Recognise says, by an error, that the target may not be written to before a person
// has looked: it is another disk than the one that is known to be this host's, or
// nobody knows it, it is not blank, and what is on it was not made by us for this very
// disk. It is a pure function of its arguments; found is as in [Decide].
//
// A stamp is no secret and no signature: whoever could write one onto a disk could have
// erased that as well.
func Recognise(m *spec.Manifest, target spec.Disk, found *Installed) error {
	known := slices.ContainsFunc(m.Accepted, target.Identity().Same)
	remedy := fmt.Sprintf("if it may be lost, run reassure accept-disk %s on the boot server; for a site without one, reassure accept-disk %s %s in the site's folder, and publish", m.Host, m.Host, flags(target))
	switch {
	case known:
		return nil
	case len(m.Accepted) > 0:
		return question(spec.AskDisk, "%s is not the disk that is known to be %s's (%v); it holds %s: %s",
			target, m.Host, m.Accepted[0], disk.Holds(target), remedy)
	case target.Blank(), target.Uncommitted:
		return nil
	case found != nil && found.Stamp.DiskSerial == target.Serial:
		return nil
	case m.Disk.Overwrite == "foreign":
		return nil
	case found != nil:
		return question(spec.AskDisk, "what is on %s is a copy of a system of ours that was made on another disk (serial %q): %s", target, found.Stamp.DiskSerial, remedy)
	}
	return question(spec.AskDisk, "%s carries no system of ours and is not blank, it holds %s: %s", target, disk.Holds(target), remedy)
}

// flags are what accept-disk is told of a disk.
func flags(d spec.Disk) string {
	switch {
	case d.Serial != "":
		return fmt.Sprintf("--serial %q", d.Serial)
	case d.WWN != "":
		return fmt.Sprintf("--wwn %q", d.WWN)
	}
	return fmt.Sprintf("--model %q --size %d", d.Model, uint64(d.Size))
}
