package spec

import (
	"fmt"
	"time"
)

// Firmware is how the PC was started.
type Firmware string

// Kinds of firmware.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Facts is what the reimager found on the PC.
type Facts struct {
	Firmware Firmware `json:"firmware"`
	Vendor   string   `json:"vendor,omitempty"`  // DMI system vendor
	Product  string   `json:"product,omitempty"` // DMI product name
	Serial   string   `json:"serial,omitempty"`  // DMI product serial
	CPU      string   `json:"cpu,omitempty"`
	CPUs     int      `json:"cpus"`
	Memory   Size     `json:"memory"`
	Kernel   string   `json:"kernel"` // release of the running kernel
	NICs     []NIC    `json:"nics"`
	Disks    []Disk   `json:"disks"`
	// Devices are what the PCI and USB buses show, whether it has a driver or
	// not: at most MaxDevices.
	Devices []Device `json:"devices,omitempty"`
}

// MaxDevices is how many different devices a PC reports.
const MaxDevices = 256

// Device is a device on a bus, or several that are alike.
type Device struct {
	Modalias string `json:"modalias"`
	Driver   string `json:"driver,omitempty"` // that has taken it
	Count    int    `json:"count,omitempty"`  // of them, where there are several
}

// NIC is a network card.
type NIC struct {
	Name   string `json:"name"` // the kernel's, eth0
	MAC    MAC    `json:"mac"`
	Driver string `json:"driver,omitempty"`
	Bus    string `json:"bus,omitempty"` // modalias
	Booted bool   `json:"booted,omitempty"`
}

// Disk is a whole disk and what is on it.
type Disk struct {
	Device         string `json:"device"`            // /dev/sda
	ByPath         string `json:"by_path,omitempty"` // as udev would name it below /dev/disk/by-path
	Model          string `json:"model,omitempty"`
	Serial         string `json:"serial,omitempty"`
	WWN            string `json:"wwn,omitempty"`
	Bus            string `json:"bus"` // ata, nvme, scsi, usb, virtio, mmc
	Size           Size   `json:"size"`
	LogicalSector  int    `json:"logical_sector"`  // bytes
	PhysicalSector int    `json:"physical_sector"` // bytes
	Rotational     bool   `json:"rotational,omitempty"`
	Removable      bool   `json:"removable,omitempty"`
	ReadOnly       bool   `json:"read_only,omitempty"`
	InUse          string `json:"in_use,omitempty"` // who holds it: a mount, md0, dm-0
	Table          Table  `json:"table,omitempty"`  // empty is none
	// Data says that there is something at the disk's start or end, known or not.
	Data bool `json:"data,omitempty"`
	// ID is the table's: see [Plan].
	ID         string     `json:"id,omitempty"`
	Partitions []Existing `json:"partitions,omitempty"`
	Contents   []Content  `json:"contents,omitempty"`
	// Uncommitted says that a reimage of ours has begun there, and that none has put boot
	// code for a BIOS there since: it was never finished, or finished for UEFI.
	Uncommitted bool `json:"uncommitted,omitempty"`
}

// Existing is a partition as the table on a disk has it.
type Existing struct {
	Number int    `json:"number"`
	Start  uint64 `json:"start"`  // bytes
	Length uint64 `json:"length"` // bytes
	// Type is a GPT's type GUID, 36 characters, or an MBR's system ID, "83".
	Type     string `json:"type"`
	PartUUID string `json:"partuuid"` // as in [Placed]
	Name     string `json:"name,omitempty"`
	Bootable bool   `json:"bootable,omitempty"`
}

// String names the disk for a person: device, model, size, serial.
func (d Disk) String() string {
	s := fmt.Sprintf("%s (%s, %s", d.Device, d.Size, d.Bus)
	if d.Model != "" {
		s += ", " + d.Model
	}
	if d.Serial != "" {
		s += ", serial " + d.Serial
	}
	return s + ")"
}

// Content is one signature found on a disk.
type Content struct {
	Partition int    `json:"partition,omitempty"` // 0 is the whole disk
	Start     uint64 `json:"start"`               // bytes from the start of the disk
	Size      Size   `json:"size,omitempty"`
	Kind      string `json:"kind"` // ext4, vfat, swap, lvm2, md, zfs, luks, ...
	Label     string `json:"label,omitempty"`
	UUID      string `json:"uuid,omitempty"`
	// Foreign content belongs to something that may span disks or hold what a
	// partition table does not show; it is never wiped without being asked for.
	Foreign bool `json:"foreign,omitempty"`
}

// Placed is a partition with its place on the target disk.
type Placed struct {
	Partition
	Number   int    `json:"number"`   // from 1
	Start    uint64 `json:"start"`    // bytes
	Length   uint64 `json:"length"`   // bytes
	Device   string `json:"device"`   // /dev/sda1
	UUID     string `json:"uuid"`     // of the file system to make: 36 characters, 9 (AAAA-BBBB) for vfat, empty for none
	PartUUID string `json:"partuuid"` // GPT: 36 characters; MBR: disk signature and number, "1a2b3c4d-01"
	// Kept marks a partition to preserve that is there: nothing in it is written to.
	Kept bool `json:"kept,omitempty"`
}

// Plan is what a reimage will do, complete before the first write.
type Plan struct {
	Host       string   `json:"host"`
	Profile    string   `json:"profile"`
	Digest     Digest   `json:"digest"`
	Firmware   Firmware `json:"firmware"`
	Disk       Disk     `json:"disk"`
	Table      Table    `json:"table"`
	DiskID     string   `json:"disk_id"` // GPT: GUID; MBR: eight hexadecimal digits
	Partitions []Placed `json:"partitions"`
	Wads       []Wad    `json:"wads"`
	Files      []string `json:"files"`
	Steps      []string `json:"steps"`
	Finish     Finish   `json:"finish"`
	// Mode is ReimageDelta or ReimageFull, and Reason why it is not the other.
	Mode   Reimage `json:"mode"`
	Reason string  `json:"reason,omitempty"`
}

// EventKind says what an event is about.
type EventKind string

// Kinds of events.
const (
	EventStart    EventKind = "start"    // the reimager runs; Facts is set
	EventPlan     EventKind = "plan"     // Plan is set; nothing has been written yet
	EventPhase    EventKind = "phase"    // a phase began
	EventProgress EventKind = "progress" // Done and Total move
	EventStep     EventKind = "step"     // a step of the chroot helper ended
	EventKeys     EventKind = "keys"     // HostKeys is set
	EventFailure  EventKind = "failure"  // an attempt failed; Text is the reason, Log the last lines
	EventDone     EventKind = "done"     // the reimage is whole
	EventUpToDate EventKind = "uptodate" // nothing was written: the disk has this software already
	EventErrand   EventKind = "errand"   // the manifest's errand is done; nothing was written
	EventRescue   EventKind = "rescue"   // people can log in; Text says how
)

// Event is one thing that happened on a PC, as it is posted to the server: one
// JSON object in one POST.
type Event struct {
	Kind    EventKind `json:"kind"`
	Host    string    `json:"host,omitempty"`
	MAC     MAC       `json:"mac"`
	Time    time.Time `json:"time"`   // by the PC's clock, which may be wrong
	Uptime  float64   `json:"uptime"` // seconds since the kernel started
	Attempt int       `json:"attempt,omitempty"`
	Phase   string    `json:"phase,omitempty"`
	Text    string    `json:"text,omitempty"`

	Done  Size    `json:"done,omitempty"`
	Total Size    `json:"total,omitempty"`
	Rate  Size    `json:"rate,omitempty"` // bytes a second
	ETA   float64 `json:"eta,omitempty"`  // seconds

	Digest   Digest   `json:"digest,omitzero"`
	Facts    *Facts   `json:"facts,omitempty"`
	Plan     *Plan    `json:"plan,omitempty"`
	HostKeys []string `json:"host_keys,omitempty"` // public, as in ssh_host_*_key.pub
	Log      []string `json:"log,omitempty"`       // lines that no event before it has had; of a step, its output
	// Phases are the seconds that each phase took, in order.
	Phases []PhaseTime `json:"phases,omitempty"`
	// Installed is the system that the target disk holds: at the start, before
	// anything is done; when done or up to date, what the PC goes on into. nil
	// is none, or not known yet.
	Installed *Installed `json:"installed,omitempty"`
	// Wrote says that the disk has been written to since power-on: it does not
	// boot until a reimage is whole.
	Wrote bool `json:"wrote,omitempty"`
	// Finished is, when done, the digest of the index of the finished tree that
	// lies on the disk ([FinishedFile]).
	Finished Digest `json:"finished,omitzero"`
	// Verified is what came of an errand that verifies.
	Verified *Verified `json:"verified,omitempty"`
	// Final marks a failure after which this boot tries no more.
	Final bool `json:"final,omitempty"`
	// Target is, at the start, the disk that the manifest's rule means, unless that
	// cannot be told.
	Target *Disk `json:"target,omitempty"`
	// Ask is, with a final failure, what a person has to say before the next try.
	Ask Ask `json:"ask,omitempty"`
}

// Installed is a system on a disk as its stamp has it.
type Installed struct {
	Host   string `json:"host"`
	Digest Digest `json:"digest"`
	Serial int64  `json:"serial"`
	Order  string `json:"order,omitempty"`
	// Whole says that the disk was committed, so that the system can boot.
	Whole bool `json:"whole"`
}

// MaxFindings is how many differences a verification lists.
const MaxFindings = 500

// Verified is what a comparison of a disk with its manifest found.
type Verified struct {
	// Total is how many differences there are, and Runtime how many of them are
	// where the profile expects some.
	Total   int `json:"total"`
	Runtime int `json:"runtime,omitempty"`
	// Findings are the first MaxFindings, those that nobody expects first.
	Findings []Finding `json:"findings,omitempty"`
	// Steps says that what the steps made was compared, too; else it was left out
	// because nobody holds the digest of the index that has it.
	Steps bool `json:"steps,omitempty"`
}

// Same says whether the disk holds what it should.
func (v *Verified) Same() bool { return v.Total == v.Runtime }

// Inspection is what a running system is compared with.
type Inspection struct {
	Manifest *Manifest `json:"manifest"`
	// Base is the URL of the published tree, for the indexes of the wads.
	Base string `json:"base"`
}

// Finding is one difference of a disk.
type Finding struct {
	Path string `json:"path"` // absolute, in the installed system; any byte that is not UTF-8 as \xNN
	// What differs: entry, kind, mode, owner, time, content, ...
	What    string `json:"what"`
	Want    string `json:"want,omitempty"`
	Have    string `json:"have,omitempty"`
	Runtime bool   `json:"runtime,omitempty"`
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}
