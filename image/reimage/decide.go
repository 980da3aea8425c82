package reimage

import (
	"fmt"

	"reassure/image/spec"
	"reassure/image/stamp"
)

// Installed is a system that the reimager found on a disk by its stamp.
type Installed struct {
	Disk       spec.Disk
	Partition  int // number of the partition that holds the stamp, from 1
	FileSystem string
	Stamp      *stamp.Stamp
	// Whole says that the disk was committed: its boot code or loader is in
	// place. Without it the stamp speaks of a system that cannot boot.
	Whole bool

	running bool // it is the system that this program runs in
}

// Decision is what to do with a PC that was booted Remote.
type Decision struct {
	// Keep is the system to leave alone; nil means that the disk is to be reimaged.
	Keep *Installed
	// Reason is one sentence for people.
	Reason string
}

// Refusal is an error that trying again cannot mend: a person has to change
// something first. Nothing was written when it is returned.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// refuse makes a [Refusal].
func refuse(format string, args ...any) error { return &Refusal{fmt.Errorf(format, args...)} }

// Decide says whether the target disk must be reimaged. It is a pure function
// of the manifest, the chosen disk, and what is installed there (nil when
// nothing of ours is). It refuses a manifest that is older than what is there: somebody
// replays it, unless a person has said that it may take that one's place.
func Decide(m *spec.Manifest, target spec.Disk, found *Installed, force bool) (Decision, error) {
	switch {
	case found == nil:
		return Decision{Reason: fmt.Sprintf("%s carries no system of ours", target.Device)}, nil
	case replayed(m, found) != nil:
		return Decision{}, replayed(m, found)
	case !found.Whole:
		return Decision{Reason: fmt.Sprintf("the system on %s was never finished", target.Device)}, nil
	case force:
		return Decision{Reason: "asked for by reassure.force on the kernel command line"}, nil
	case found.Stamp.Host != m.Host:
		return Decision{Reason: fmt.Sprintf("%s was installed as %s", target.Device, found.Stamp.Host)}, nil
	case found.Stamp.Digest != m.Digest:
		return Decision{Reason: fmt.Sprintf("the software changed: %s is installed, %s is wanted", found.Stamp.Digest.Short(), m.Digest.Short())}, nil
	case m.Order != "" && m.Order != found.Stamp.Order:
		return Decision{Reason: fmt.Sprintf("asked for by order %s", m.Order)}, nil
	}
	if !found.Stamp.UpToDate(m) { // what the cases above do not put into words
		return Decision{Reason: "what is installed is not what is wanted"}, nil
	}
	return Decision{Keep: found, Reason: fmt.Sprintf("%s already up to date (software %s, installed as %s)", target.Device, m.Digest.Short(), m.Host)}, nil
}

// replayed asks about a manifest that is older than what is installed, unless a person has
// said that it may take that one's place.
func replayed(m *spec.Manifest, found *Installed) error {
	if m.Serial >= found.Stamp.Serial || m.Supersedes == found.Stamp.Serial {
		return nil
	}
	return question(spec.AskSerial, "the manifest for %s (serial %d) is older than what the stamp on %s says of itself (serial %d): somebody replays an old manifest, or has changed the stamp. Where the manifest is the right one, run reassure release %s; for a site without a boot server, add {host: %s, serial: %d} to stamps in %s, and publish",
		m.Host, m.Serial, found.Disk.Device, found.Stamp.Serial, m.Host, m.Host, found.Stamp.Serial, spec.AcceptedFile)
}
