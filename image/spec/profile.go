package spec

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Profile is what a class of hosts gets. A person writes it, as one YAML file.
type Profile struct {
	// Name is how an inventory refers to the profile. Empty means the file's
	// name without its ending.
	Name string `yaml:"name" json:"name"`
	// Description is one line for people.
	Description string `yaml:"description" json:"description,omitempty"`

	Disk       DiskRule    `yaml:"disk" json:"disk"`
	Table      Table       `yaml:"table" json:"table"`
	Partitions []Partition `yaml:"partitions" json:"partitions"`
	Wads       []WadRef    `yaml:"wads" json:"wads"`
	Templates  []Template  `yaml:"templates" json:"templates"`
	System     System      `yaml:"system" json:"system"`
	Steps      []Step      `yaml:"steps" json:"steps"`
	Finish     Finish      `yaml:"finish" json:"finish"`
	OnFailure  OnFailure   `yaml:"on_failure" json:"on_failure"`

	// Vars are the profile's own variables for templates; a host's of the
	// same name win.
	Vars map[string]string `yaml:"vars" json:"vars,omitempty"`
	// Secrets: "public" lets publish write password hashes into files that
	// any PC on the network can fetch.
	Secrets string `yaml:"secrets" json:"secrets,omitempty"`
}

// DiskRule says which of a PC's disks is the target. Every field that is set
// must match; then Pick decides among those that do. The zero value takes the
// only disk that is neither removable nor on USB.
type DiskRule struct {
	Serial     string `yaml:"serial" json:"serial,omitempty"`         // exact
	WWN        string `yaml:"wwn" json:"wwn,omitempty"`               // exact, without 0x or naa./eui. prefix
	Model      string `yaml:"model" json:"model,omitempty"`           // shell pattern
	Path       string `yaml:"path" json:"path,omitempty"`             // shell pattern over /dev/NAME and /dev/disk/by-path/NAME
	Bus        string `yaml:"bus" json:"bus,omitempty"`               // ata, nvme, scsi, usb, virtio, mmc
	MinSize    Size   `yaml:"min_size" json:"min_size,omitempty"`     // bytes
	MaxSize    Size   `yaml:"max_size" json:"max_size,omitempty"`     // bytes; 0 means no limit
	Rotational *bool  `yaml:"rotational" json:"rotational,omitempty"` // nil means either
	Pick       string `yaml:"pick" json:"pick,omitempty"`             // only (the default), smallest, largest
	// Overwrite: "foreign" lets the reimager wipe a disk whose content belongs
	// to something else: RAID, LVM, ZFS, LUKS, VMFS or bcache members.
	Overwrite string `yaml:"overwrite" json:"overwrite,omitempty"`
}

// Table is the kind of partition table.
type Table string

// Partition tables.
const (
	MBR Table = "mbr"
	GPT Table = "gpt"
)

// File systems that a profile may ask for.
const (
	Ext4  = "ext4"
	VFAT  = "vfat"
	Swap  = "swap"
	XFS   = "xfs"
	Btrfs = "btrfs"
	None  = "none"
)

// Partition types that a profile may name.
const (
	TypeLinux    = "linux"
	TypeSwap     = "swap"
	TypeESP      = "esp"
	TypeBIOSBoot = "bios-boot"
	TypeFAT      = "fat"
)

// Partition is one partition of the layout, in the order of the table.
type Partition struct {
	// Name identifies the partition in templates, tokens and messages.
	Name string `yaml:"name" json:"name"`
	Size Extent `yaml:"size" json:"size"`
	// FileSystem is ext4, vfat, swap, xfs, btrfs or none.
	FileSystem string `yaml:"filesystem" json:"filesystem"`
	// Type is the partition type. Empty means the usual one for the file system.
	Type string `yaml:"type" json:"type,omitempty"`
	// Label is the file system's label, at most 16 bytes for ext4 and 11 for vfat.
	Label string `yaml:"label" json:"label,omitempty"`
	// Mount is the absolute mount point in the new system; empty is none.
	Mount string `yaml:"mount" json:"mount,omitempty"`
	// Options go to mount, here and in the new system's fstab.
	Options []string `yaml:"options" json:"options,omitempty"`
	// Bootable sets the active flag of an MBR, or the legacy boot bit of a GPT.
	Bootable bool `yaml:"bootable" json:"bootable,omitempty"`
}

// Kind returns the partition type: Type, or the usual one for its file system.
func (p Partition) Kind() string {
	switch {
	case p.Type != "":
		return p.Type
	case p.FileSystem == Swap:
		return TypeSwap
	case p.FileSystem == VFAT:
		return TypeFAT
	}
	return TypeLinux
}

// WadRef names a wad as a profile does. The publisher finds its size and digest.
type WadRef struct {
	// File is the wad's name below the site's wads folder.
	File string `yaml:"file" json:"file"`
	// Mount is where in the new system it is extracted; empty means "/".
	Mount string `yaml:"mount" json:"mount,omitempty"`
	// Overlay marks a tarball that replaces files of the wads before it, as an
	// old site's template.tar does.
	Overlay bool `yaml:"overlay" json:"overlay,omitempty"`
	// Mirrors are further base URLs, each of a copy of the published tree.
	Mirrors []string `yaml:"mirrors" json:"mirrors,omitempty"`
}

// Template is a file rendered for each host and laid over the wads' tree.
type Template struct {
	// Path is the absolute path in the new system.
	Path string `yaml:"path" json:"path"`
	// Source is the template's name below the templates folder.
	Source string `yaml:"source" json:"source"`
	Mode   Mode   `yaml:"mode" json:"mode"` // 0 means 0644
	UID    int    `yaml:"uid" json:"uid"`
	GID    int    `yaml:"gid" json:"gid"`
	// Volatile templates are left out of the digest of a host's software: a
	// change in one is drift, and lands with the next reimage.
	Volatile bool `yaml:"volatile" json:"volatile,omitempty"`
}

// System is what every operating system needs to be told. The chroot helper
// knows where each kind of system keeps it. In a profile its strings are
// templates, as a step's are; one of AuthorizedKeys may become several lines, or none.
type System struct {
	// RootPasswordHash goes into /etc/shadow ("$6$..." or "$y$..."); empty
	// leaves the wad's.
	RootPasswordHash string   `yaml:"root_password_hash" json:"root_password_hash,omitempty"`
	AuthorizedKeys   []string `yaml:"authorized_keys" json:"authorized_keys,omitempty"` // OpenSSH public key lines for root
	Timezone         string   `yaml:"timezone" json:"timezone,omitempty"`               // Europe/Zurich
	Locale           string   `yaml:"locale" json:"locale,omitempty"`                   // en_US.UTF-8
	Keymap           string   `yaml:"keymap" json:"keymap,omitempty"`                   // us, de-latin1
}

// Finish is what the PC does when its reimage is whole.
type Finish string

// Ways to finish. The zero value means Reboot.
const (
	Reboot   Finish = "reboot"
	Kexec    Finish = "kexec"
	PowerOff Finish = "poweroff"
	Shell    Finish = "shell"
)

// OnFailure is what the PC does when a reimage fails.
type OnFailure struct {
	// Retries is how many more times it tries, with growing pauses; nil means 2.
	Retries *int `yaml:"retries" json:"retries,omitempty"`
	// Pause is the first pause between tries; it doubles each time. 0 means 10s.
	Pause Duration `yaml:"pause" json:"pause,omitempty"`
	// Then comes after the last try: local, hold, reboot, poweroff or shell;
	// empty means local.
	Then string `yaml:"then" json:"then,omitempty"`
}

// What [OnFailure] may end in, besides "reboot", "poweroff" and "shell".
const (
	// Local goes on into the system on the disk when nothing has been written
	// to it, and holds when something has or when there is none.
	Local = "local"
	// Hold stays, with the reason on every console.
	Hold = "hold"
)

var (
	namePattern     = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	partNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,35}$`)
	hashPattern     = regexp.MustCompile(`^([*!]|!?\$[0-9a-z]+\$[^:\s]+)$`)
)

// Validate returns every problem that can be seen without the files that the
// profile names.
func (p *Profile) Validate() Problems {
	var ps Problems
	if p.Name != "" && !namePattern.MatchString(p.Name) {
		ps.addf("name", "%q: use lower-case letters, digits, dots, dashes and underscores", p.Name)
	}
	if p.Secrets != "" && p.Secrets != "public" {
		ps.addf("secrets", "%q: leave it out, or write public", p.Secrets)
	}
	if len(p.Wads) == 0 {
		ps.addf("wads", "there is none: a profile needs at least one wad to lay down")
	}
	for i, w := range p.Wads {
		at := fmt.Sprintf("wads[%d]", i)
		if w.File == "" || path.IsAbs(w.File) || path.Clean(w.File) != w.File || strings.HasPrefix(w.File, "..") {
			ps.addf(at+".file", "%q: name a file below the wads folder", w.File)
		}
		ps.under(at+".mount", absolute(w.Mount, true))
	}
	for i, t := range p.Templates {
		at := fmt.Sprintf("templates[%d]", i)
		ps.under(at+".path", absolute(t.Path, false))
		if t.Source == "" {
			ps.addf(at+".source", "is missing: name the template file")
		}
	}
	ps.under("", validateLayout(p.Disk, p.Table, p.Partitions))
	ps.under("", validateSystem(p.System))
	ps.under("", validateSteps(p.Steps, true))
	ps.under("", validateEnd(p.Finish, p.OnFailure))
	return ps
}

// maxLabel is the most bytes that a file system's label has.
var maxLabel = map[string]int{Ext4: 16, VFAT: 11, Swap: 15, XFS: 12, Btrfs: 255, None: 0}

// validateLayout judges what profiles and manifests say of disks.
func validateLayout(rule DiskRule, table Table, parts []Partition) Problems {
	var ps Problems
	oneOf(&ps, "disk.pick", rule.Pick, "", "only", "smallest", "largest")
	oneOf(&ps, "disk.bus", rule.Bus, "", "ata", "nvme", "scsi", "usb", "virtio", "mmc")
	oneOf(&ps, "disk.overwrite", rule.Overwrite, "", "foreign")
	for _, f := range []struct{ key, pattern string }{{"model", rule.Model}, {"path", rule.Path}} {
		if _, err := path.Match(f.pattern, ""); err != nil {
			ps.addf("disk."+f.key, "%q is not a shell pattern", f.pattern)
		}
	}
	if rule.MaxSize != 0 && rule.MaxSize < rule.MinSize {
		ps.addf("disk.max_size", "%v is below min_size %v", rule.MaxSize, rule.MinSize)
	}
	oneOf(&ps, "table", string(table), string(MBR), string(GPT))
	if len(parts) == 0 {
		ps.addf("partitions", "there is none: name at least the one for /")
	}
	if table == MBR && len(parts) > 4 {
		ps.addf("partitions", "an MBR holds four primary partitions, not %d: use table gpt", len(parts))
	}
	if table == GPT && len(parts) > 128 {
		ps.addf("partitions", "a GPT holds 128 partitions, not %d", len(parts))
	}
	names, mounts, labels := map[string]int{}, map[string]int{}, map[string]int{}
	rest, percent, bootable := -1, 0.0, -1
	for i, p := range parts {
		at := fmt.Sprintf("partitions[%d]", i)
		if !partNamePattern.MatchString(p.Name) {
			ps.addf(at+".name", "%q: use 1 to 36 letters, digits, dots, dashes and underscores", p.Name)
		}
		unique(&ps, at+".name", names, p.Name, i)
		switch {
		case p.Size.Rest && rest >= 0:
			ps.addf(at+".size", "only one partition can have the rest; partitions[%d] has it already", rest)
		case p.Size.Rest:
			rest = i
		case p.Size == Extent{}:
			ps.addf(at+".size", "is missing: write a size (512MiB), a share (25%%), or rest")
		}
		percent += p.Size.Percent
		oneOf(&ps, at+".filesystem", p.FileSystem, Ext4, VFAT, Swap, XFS, Btrfs, None)
		oneOf(&ps, at+".type", p.Type, "", TypeLinux, TypeSwap, TypeESP, TypeBIOSBoot, TypeFAT)
		if most, ok := maxLabel[p.FileSystem]; ok && len(p.Label) > most {
			ps.addf(at+".label", "%q is longer than the %d bytes that %s holds", p.Label, most, p.FileSystem)
		}
		if p.Label != "" {
			unique(&ps, at+".label", labels, p.Label, i)
		}
		if p.Mount != "" {
			ps.under(at+".mount", absolute(p.Mount, false))
			unique(&ps, at+".mount", mounts, path.Clean(p.Mount), i)
			if p.FileSystem == Swap || p.FileSystem == None {
				ps.addf(at+".mount", "a partition with filesystem %s cannot be mounted", p.FileSystem)
			}
		}
		if p.Bootable && bootable >= 0 {
			ps.addf(at+".bootable", "only one partition can be bootable; partitions[%d] is already", bootable)
		} else if p.Bootable {
			bootable = i
		}
	}
	if percent > 100 {
		ps.addf("partitions", "the shares add up to %g%%", percent)
	}
	if _, ok := mounts["/"]; !ok && len(parts) > 0 {
		ps.addf("partitions", "none is mounted at /")
	}
	return ps
}

func validateSystem(s System) Problems {
	var ps Problems
	if s.RootPasswordHash != "" && !hashPattern.MatchString(s.RootPasswordHash) {
		ps.addf("system.root_password_hash", "is not a password hash: make one with mkpasswd or openssl passwd -6 (never write the password itself)")
	}
	for i, k := range s.AuthorizedKeys {
		if len(strings.Fields(k)) < 2 || strings.ContainsAny(k, "\r\n") || strings.Contains(k, "PRIVATE KEY") {
			ps.addf(fmt.Sprintf("system.authorized_keys[%d]", i), "is not one OpenSSH public key line (the content of a .pub file)")
		}
	}
	if t := s.Timezone; t != "" && (path.IsAbs(t) || path.Clean(t) != t || strings.HasPrefix(t, "..")) {
		ps.addf("system.timezone", "%q: write a name of the time zone database, such as Europe/Zurich", t)
	}
	for _, f := range []struct{ key, value string }{{"locale", s.Locale}, {"keymap", s.Keymap}} {
		if strings.ContainsAny(f.value, " \t\r\n\"'$`\\/") {
			ps.addf("system."+f.key, "%q has a character that no %s has", f.value, f.key)
		}
	}
	return ps
}

func validateEnd(finish Finish, f OnFailure) Problems {
	var ps Problems
	oneOf(&ps, "finish", string(finish), "", string(Reboot), string(Kexec), string(PowerOff), string(Shell))
	oneOf(&ps, "on_failure.then", f.Then, "", Local, Hold, string(Reboot), string(PowerOff), string(Shell))
	if f.Retries != nil && (*f.Retries < 0 || *f.Retries > 100) {
		ps.addf("on_failure.retries", "%d: write 0 to 100", *f.Retries)
	}
	return ps
}

// absolute judges a path in the new system.
func absolute(p string, mayBeEmpty bool) Problems {
	if p == "" && mayBeEmpty {
		return nil
	}
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return Problems{{Text: fmt.Sprintf("%q: write an absolute path without . or .. in it", p)}}
	}
	return nil
}

// oneOf notes a problem unless value is among allowed; an empty string in
// allowed means that the field may be left out.
func oneOf(ps *Problems, at, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	names := slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" })
	if value == "" {
		ps.addf(at, "is missing: write %s", strings.Join(names, ", "))
		return
	}
	ps.addf(at, "%q: write one of %s", value, strings.Join(names, ", "))
}

// unique notes a problem when another item had the same value before.
func unique(ps *Problems, at string, seen map[string]int, value string, i int) {
	if before, ok := seen[value]; ok {
		ps.addf(at, "%q is taken already, by item %d of the list", value, before+1)
		return
	}
	seen[value] = i
}
