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
	// Mode is how a PC that has had this layout before is reimaged.
	Mode Reimage `yaml:"mode" json:"mode,omitempty"`
	// Keep are absolute paths of the installed system that a delta leaves as they
	// are, with all below them: what the PC itself made and should have for good.
	Keep []string `yaml:"keep" json:"keep,omitempty"`
	// Runtime are absolute paths that change while a system runs (logs, caches): a
	// delta resets them, and verify reports them apart. [] is none; left out, it
	// is [DefaultRuntime].
	Runtime []string `yaml:"runtime" json:"runtime,omitempty"`
	// Rollout: "auto" has the boot server roll every change of the software out
	// as soon as it reads it; empty waits for a person to say so.
	Rollout string `yaml:"rollout" json:"rollout,omitempty"`
	// LocalBoot is how these PCs go on when the boot server tells them Local.
	LocalBoot LocalBoot `yaml:"local_boot" json:"local_boot,omitzero"`
	// Approve is who says that a PC's plan is right before its first write.
	Approve Approval `yaml:"approve" json:"approve,omitempty"`
	// DebugShell lets reassure.shell on the kernel command line open a shell.
	DebugShell bool `yaml:"debug_shell" json:"debug_shell,omitempty"`
	// RescueKeys are OpenSSH public keys of those who may log in for a rescue; none means
	// those of System.
	RescueKeys []string `yaml:"rescue_keys" json:"rescue_keys,omitempty"`
	// DryRun has PCs do all of a reimage but the writing.
	DryRun bool `yaml:"dry_run" json:"dry_run,omitempty"`

	// Vars are the profile's own variables for templates; a host's of the
	// same name win.
	Vars map[string]string `yaml:"vars" json:"vars,omitempty"`
	// Secrets: "public" lets publish write password hashes into files that
	// any PC on the network can fetch.
	Secrets string `yaml:"secrets" json:"secrets,omitempty"`
}

// RolloutAuto is what [Profile.Rollout] may be.
const RolloutAuto = "auto"

// Reimage is how a disk gets its new content.
type Reimage string

// Ways to reimage. The zero value means ReimageAuto.
const (
	ReimageAuto  Reimage = "auto"  // delta where it can be, else full
	ReimageDelta Reimage = "delta" // as auto; a disk that had this layout and cannot be had by delta is reported
	ReimageFull  Reimage = "full"  // everything anew
	// ReimageRescue is no reimage: the PC waits for people to log in over SSH, and writes
	// nothing. It is for static sites; a boot server has an errand for it.
	ReimageRescue Reimage = "rescue"
)

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

// Partition tables. TableAuto is for profiles and manifests only; a PC has one of
// the others: see [Manifest.For].
const (
	MBR       Table = "mbr"
	GPT       Table = "gpt"
	TableAuto Table = "auto"
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
	// Preserve keeps the partition's content, whatever else is done to the disk;
	// it is made once, when the disk has no partition of this identity.
	Preserve bool `yaml:"preserve" json:"preserve,omitempty"`
	// Firmware is the one whose PCs have the partition; empty is both.
	Firmware Firmware `yaml:"firmware" json:"firmware,omitempty"`
}

// IsESP says whether UEFI looks for boot loaders there.
func (p Partition) IsESP() bool { return p.Kind() == TypeESP }

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
	oneOf(&ps, "rollout", p.Rollout, "", RolloutAuto)
	p.LocalBoot.validate(&ps, "local_boot")
	ps.under("", validateApproval(p.Approve))
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
	ps.under("", validateMode(p.Mode, p.Keep, p.Runtime))
	for i, w := range p.Wads {
		ps.under(fmt.Sprintf("wads[%d].mount", i), reachable(w.Mount, p.Partitions))
	}
	for i, t := range p.Templates {
		ps.under(fmt.Sprintf("templates[%d].path", i), reachable(t.Path, p.Partitions))
	}
	ps.under("", validateSystem(p.System))
	ps.under("", validateRescue(p.Mode == ReimageRescue, p.RescueKeys, p.System))
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
	oneOf(&ps, "table", string(table), string(TableAuto), string(MBR), string(GPT))
	if len(parts) == 0 {
		ps.addf("partitions", "there is none: name at least the one for /")
	}
	for i, p := range parts {
		at := fmt.Sprintf("partitions[%d]", i)
		if !partNamePattern.MatchString(p.Name) {
			ps.addf(at+".name", "%q: use 1 to 36 letters, digits, dots, dashes and underscores", p.Name)
		}
		if p.Size == (Extent{}) {
			ps.addf(at+".size", "is missing: write a size (512MiB), a share (25%%), or rest")
		}
		oneOf(&ps, at+".filesystem", p.FileSystem, Ext4, VFAT, Swap, XFS, Btrfs, None)
		oneOf(&ps, at+".type", p.Type, "", TypeLinux, TypeSwap, TypeESP, TypeBIOSBoot, TypeFAT)
		oneOf(&ps, at+".firmware", string(p.Firmware), "", string(BIOS), string(UEFI))
		if most, ok := maxLabel[p.FileSystem]; ok && len(p.Label) > most {
			ps.addf(at+".label", "%q is longer than the %d bytes that %s holds", p.Label, most, p.FileSystem)
		}
		if p.Mount != "" {
			ps.under(at+".mount", absolute(p.Mount, false))
			if p.FileSystem == Swap || p.FileSystem == None {
				ps.addf(at+".mount", "a partition with filesystem %s cannot be mounted", p.FileSystem)
			}
		}
		if p.IsESP() {
			switch {
			case p.FileSystem != VFAT && slices.Contains([]string{Ext4, Swap, XFS, Btrfs, None}, p.FileSystem):
				ps.addf(at+".filesystem", "%q: firmware reads vfat only on a partition of type %s", p.FileSystem, TypeESP)
			case p.Mount == "/":
				ps.addf(at+".mount", "a partition of type %s cannot be the root: mount it at /boot/efi", TypeESP)
			}
		}
		if p.Preserve {
			ps.under(at+".preserve", preservable(p))
		}
	}
	if table != TableAuto && !slices.ContainsFunc(parts, func(p Partition) bool { return p.Firmware != "" }) {
		ps.under("", validateTogether(table, parts, "", ""))
		return ps
	}
	ps.under("", validateTogether(tableFor(table, parts, BIOS), parts, BIOS, "on a PC with a BIOS, "))
	ps.under("", validateTogether(tableFor(table, parts, UEFI), parts, UEFI, "on a PC with UEFI, "))
	return ps
}

// validateTogether judges the partitions that the PCs with a firmware have, beside
// each other. An empty firmware is all of them; with begins what is said.
func validateTogether(table Table, parts []Partition, firmware Firmware, with string) Problems {
	var ps Problems
	count := 0
	names, mounts, labels := map[string]int{}, map[string]int{}, map[string]int{}
	rest, percent, bootable := -1, 0.0, -1
	for i, p := range parts {
		at := fmt.Sprintf("partitions[%d]", i)
		if !p.on(firmware) {
			continue
		}
		count++
		unique(&ps, at+".name", names, p.Name, i)
		switch {
		case p.Size.Rest && rest >= 0:
			ps.addf(at+".size", "%sonly one partition can have the rest; partitions[%d] has it already", with, rest)
		case p.Size.Rest:
			rest = i
		}
		percent += p.Size.Percent
		if p.Label != "" {
			unique(&ps, at+".label", labels, p.Label, i)
		}
		if p.Mount != "" {
			unique(&ps, at+".mount", mounts, path.Clean(p.Mount), i)
		}
		if p.Preserve && preservable(p) == nil && table == MBR && p.Label == "" {
			ps.addf(at+".label", "%sis missing: on an MBR a partition to preserve is known by its file system's label", with)
		}
		if p.Bootable && bootable >= 0 {
			ps.addf(at+".bootable", "%sonly one partition can be bootable; partitions[%d] is already", with, bootable)
		} else if p.Bootable {
			bootable = i
		}
	}
	if table == MBR && count > 4 {
		ps.addf("partitions", "%san MBR holds four primary partitions, not %d: use table gpt", with, count)
	}
	if table == GPT && count > 128 {
		ps.addf("partitions", "%sa GPT holds 128 partitions, not %d", with, count)
	}
	if percent > 100 {
		ps.addf("partitions", "%sthe shares add up to %g%%", with, percent)
	}
	if _, ok := mounts["/"]; !ok && len(parts) > 0 {
		ps.addf("partitions", "%snone is mounted at /", with)
	}
	return ps
}

// essential are folders of a system that a reimage must be able to write to.
var essential = [...]string{"/", "/bin", "/boot", "/boot/efi", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var"}

// preservable says why a partition cannot be preserved.
func preservable(p Partition) Problems {
	switch {
	case p.Kind() == TypeESP || p.Kind() == TypeBIOSBoot || p.Kind() == TypeSwap:
		return Problems{{Text: fmt.Sprintf("a partition of type %s is made anew always: leave preserve out", p.Kind())}}
	case slices.Contains(essential[:], p.Mount):
		return Problems{{Text: fmt.Sprintf("%s is part of the system, which every reimage writes: preserve a partition for data only, such as one at /data", p.Mount)}}
	}
	return nil
}

// reachable says that a path is on a partition that may be preserved: nobody
// looks into such a one during a reimage.
func reachable(p string, parts []Partition) Problems {
	for _, q := range parts {
		if q.Preserve && q.Mount != "" && (p == q.Mount || strings.HasPrefix(p, q.Mount+"/")) {
			return Problems{{Text: fmt.Sprintf("%q is on partition %s, which is preserved: nothing is written there, so put it elsewhere", p, q.Name)}}
		}
	}
	return nil
}

// validateMode judges what profiles and manifests say of deltas.
func validateMode(mode Reimage, keep, runtime []string) Problems {
	var ps Problems
	oneOf(&ps, "mode", string(mode), "", string(ReimageAuto), string(ReimageDelta), string(ReimageFull), string(ReimageRescue))
	for _, list := range []struct {
		key   string
		paths []string
	}{{"keep", keep}, {"runtime", runtime}} {
		for i, p := range list.paths {
			at := fmt.Sprintf("%s[%d]", list.key, i)
			ps.under(at, absolute(p, false))
			switch {
			case p == "/":
				ps.addf(at, "is the whole system")
			case list.key == "keep" && slices.Contains(essential[:], p):
				ps.addf(at, "%q is part of the system, which every reimage writes: name files or folders below it", p)
			}
		}
	}
	return ps
}

func validateApproval(a Approval) Problems {
	var ps Problems
	oneOf(&ps, "approve", string(a), "", string(ApproveAuto), string(ApproveSame), string(ApproveAsk))
	return ps
}

// DefaultRuntime is [Profile.Runtime] where a profile does not say: what every
// system of the kinds that we know changes by running.
func DefaultRuntime() []string {
	return []string{
		"/var/log", "/var/cache", "/var/tmp", "/tmp", "/run",
		"/var/lib/systemd",                  // random seed, timers, backlights, catalogue, core dumps
		"/var/lib/dbus", "/var/lib/urandom", // machine ID and random seed, the older way
		"/var/lib/misc", "/var/spool", // OpenRC's random seed; mail and print jobs
		"/var/lib/dhcp", "/var/lib/dhcpcd", "/var/lib/NetworkManager", // leases
		"/var/lib/logrotate", "/var/lib/ntp", "/var/lib/chrony", // where they stand
		"/etc/machine-id", "/etc/adjtime", "/etc/mtab", // written at the first boot, and with the clock
		"/root/.bash_history", "/root/.cache",
	}
}

func validateSystem(s System) Problems {
	var ps Problems
	if s.RootPasswordHash != "" && !hashPattern.MatchString(s.RootPasswordHash) {
		ps.addf("system.root_password_hash", "is not a password hash: make one with mkpasswd or openssl passwd -6 (never write the password itself)")
	}
	ps.under("", validateKeys("system.authorized_keys", s.AuthorizedKeys))
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

func validateKeys(at string, keys []string) Problems {
	var ps Problems
	for i, k := range keys {
		if len(strings.Fields(k)) < 2 || strings.ContainsAny(k, "\r\n") || strings.Contains(k, "PRIVATE KEY") {
			ps.addf(fmt.Sprintf("%s[%d]", at, i), "is not one OpenSSH public key line (the content of a .pub file)")
		}
	}
	return ps
}

// validateRescue judges who may log in for a rescue; asked says that there is to be one.
func validateRescue(asked bool, keys []string, s System) Problems {
	ps := validateKeys("rescue_keys", keys)
	if asked && len(rescuers(keys, s)) == 0 {
		ps.addf("rescue_keys", "is empty, and so is system.authorized_keys: nobody could log in for a rescue")
	}
	return ps
}

func rescuers(keys []string, s System) []string {
	if len(keys) > 0 {
		return keys
	}
	return s.AuthorizedKeys
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
