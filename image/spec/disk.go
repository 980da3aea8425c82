package spec

import (
	"fmt"
	"strings"
)

// DiskID is what one disk is known by, wherever it is plugged in.
type DiskID struct {
	Serial string `yaml:"serial" json:"serial,omitempty"`
	WWN    string `yaml:"wwn" json:"wwn,omitempty"`
	Model  string `yaml:"model" json:"model,omitempty"`
	// Size counts only where a disk has neither serial nor WWN.
	Size Size `yaml:"size" json:"size,omitempty"` // bytes
}

// Identity is what the disk is known by.
func (d Disk) Identity() DiskID {
	return DiskID{Serial: d.Serial, WWN: d.WWN, Model: d.Model, Size: d.Size}
}

// Blank says whether nothing at all was found on the disk.
func (d Disk) Blank() bool { return d.Table == "" && len(d.Contents) == 0 && !d.Data }

// Same says whether both are the same disk: their serials decide, else their WWNs, else
// model and size. Serials of different makers' disks may be equal, and bridges to USB have
// been seen that give all disks the same one, so the models must not differ then.
// A WWN beside a serial does not count: kernels have changed how they write it.
func (id DiskID) Same(other DiskID) bool {
	model := id.Model == other.Model
	switch {
	case id.Serial != "" || other.Serial != "":
		return id.Serial == other.Serial && (model || id.Model == "" || other.Model == "")
	case id.WWN != "" || other.WWN != "":
		return BareWWN(id.WWN) == BareWWN(other.WWN)
	}
	return model && id.Size == other.Size && id.Size != 0
}

// IsZero says whether nothing is known of the disk.
func (id DiskID) IsZero() bool { return id == DiskID{} }

// String names the disk for a person.
func (id DiskID) String() string {
	var words []string
	if id.Model != "" {
		words = append(words, id.Model)
	}
	switch {
	case id.Serial != "":
		words = append(words, "serial "+id.Serial)
	case id.WWN != "":
		words = append(words, "WWN "+id.WWN)
	default:
		words = append(words, fmt.Sprintf("%v, without a serial", id.Size))
	}
	return strings.Join(words, ", ")
}

// BareWWN takes away the prefixes by which sysfs, udev and labels differ.
func BareWWN(s string) string {
	s = strings.ToLower(s)
	for _, prefix := range []string{"0x", "naa.", "eui.", "nvme.", "wwn-"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return strings.TrimPrefix(s, "0x")
}

// Ask is what a PC waits for a person to say before it goes on.
type Ask string

// What a PC may ask.
const (
	AskDisk   Ask = "disk"    // may this disk be written to?
	AskSerial Ask = "serial"  // may this manifest replace what claims to be newer?
	AskPlan   Ask = "plan"    // is this plan right?
	AskDryRun Ask = "dry run" // no question: all was done but the writing
)

// Accepted is the file of a site that says what people have accepted ([AcceptedFile]).
type Accepted struct {
	// Disks may be written to, whatever is on them.
	Disks []AcceptedDisk `yaml:"disks"`
	// Stamps may be replaced though they claim to be newer than what is published.
	Stamps []AcceptedStamp `yaml:"stamps"`
}

// AcceptedFile is its name in the site's folder.
const AcceptedFile = "accepted.yaml"

// AcceptedDisk is a host's disk.
type AcceptedDisk struct {
	Host string `yaml:"host"`
	// ID of the disk.
	Serial string `yaml:"serial"`
	WWN    string `yaml:"wwn"`
	Model  string `yaml:"model"`
	Size   Size   `yaml:"size"`
}

// ID is what the disk is known by.
func (a AcceptedDisk) ID() DiskID {
	return DiskID{Serial: a.Serial, WWN: a.WWN, Model: a.Model, Size: a.Size}
}

// AcceptedStamp is the serial on a host's disk that may be replaced by a lower one.
type AcceptedStamp struct {
	Host   string `yaml:"host"`
	Serial int64  `yaml:"serial"`
}

// Validate returns every problem that shows in the file alone.
func (a *Accepted) Validate() Problems {
	var ps Problems
	for i, d := range a.Disks {
		at := fmt.Sprintf("disks[%d]", i)
		if d.Host == "" {
			ps.addf(at+".host", "is missing: whose disk is it?")
		}
		if d.Serial == "" && d.WWN == "" && (d.Model == "" || d.Size == 0) {
			ps.addf(at, "names no disk: write its serial or wwn, or model and size where it has neither")
		}
	}
	for i, s := range a.Stamps {
		at := fmt.Sprintf("stamps[%d]", i)
		if s.Host == "" {
			ps.addf(at+".host", "is missing: on whose disk is it?")
		}
		if s.Serial <= 0 {
			ps.addf(at+".serial", "is missing: write the one that the PC told")
		}
	}
	return ps
}
