package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"
)

// ManifestSchema is the version of [Manifest] that this code writes and reads.
const ManifestSchema = 1

// MaxManifest is the most bytes that a manifest may have.
const MaxManifest = 16 << 20

// Manifest is everything that the reimager must know to reimage one host. It
// is JSON; "publish" writes it as manifests/01-aa-bb-cc-dd-ee-ff.json, one copy
// for each of the host's MAC addresses, with its signature beside it (.minisig).
type Manifest struct {
	Schema  int    `json:"schema"`
	Host    string `json:"host"`
	MACs    []MAC  `json:"macs"`
	Profile string `json:"profile"`
	// Serial orders manifests of one host: the time of publication in seconds
	// since 1970. An older one than what is installed is refused.
	Serial int64 `json:"serial"`
	// Digest is the digest of the host's software: what decides whether the PC
	// must be reimaged.
	Digest Digest `json:"digest"`
	// Order identifies a reimage that a person asked for though nothing
	// changed; a disk whose stamp carries it has had it.
	Order string `json:"order,omitempty"`

	Disk       DiskRule    `json:"disk"`
	Table      Table       `json:"table"`
	Partitions []Partition `json:"partitions"`
	Wads       []Wad       `json:"wads"`
	Files      []File      `json:"files"`
	System     System      `json:"system"`
	Steps      []Step      `json:"steps"`
	Finish     Finish      `json:"finish,omitempty"`
	OnFailure  OnFailure   `json:"on_failure"`
	Mode       Reimage     `json:"mode,omitempty"`
	Keep       []string    `json:"keep,omitempty"`
	Runtime    []string    `json:"runtime,omitempty"`
	// Errand, if there is one, is what this boot is for instead of a reimage.
	Errand *Errand `json:"errand,omitempty"`
	// Finished is the digest of the index of the finished tree that this PC
	// reported last; zero where nobody remembers it.
	Finished Digest `json:"finished,omitzero"`
	// Accepted are the disks that are known to be this host's, or that a person has
	// accepted: with one, no other disk is written to. Without any, a disk is written
	// to that is blank or that carries a system of ours.
	Accepted []DiskID `json:"accepted,omitempty"`
	// Supersedes is the serial of a stamp that this manifest may replace though it is
	// higher than its own: a person has said so.
	Supersedes int64 `json:"supersedes,omitempty"`
	// Approve is who says that a plan is right, and Approved the digest ([Plan.Sum]) of
	// one that was found so.
	Approve  Approval `json:"approve,omitempty"`
	Approved Digest   `json:"approved,omitzero"`
	// DebugShell lets reassure.shell on the kernel command line open a shell.
	DebugShell bool `json:"debug_shell,omitempty"`
	// RescueKeys are as [Profile.RescueKeys].
	RescueKeys []string `json:"rescue_keys,omitempty"`
	// DryRun ends the reimage before its first write.
	DryRun bool `json:"dry_run,omitempty"`
	// Events is where to post what is done; without a scheme it is relative to
	// the base URL that the manifest came from. Empty is nowhere.
	Events string `json:"events,omitempty"`
}

// Wad is a wad as a manifest binds it.
type Wad struct {
	// Name is the file's name, for people.
	Name string `json:"name"`
	// URLs serve the same bytes, the best first. One without a scheme is
	// relative to the site's base URL.
	URLs []string `json:"urls"`
	Size Size     `json:"size"` // of the file as it is served
	// SHA256 is the digest of the file as it is served.
	SHA256 Digest `json:"sha256"`
	Mount  string `json:"mount"` // absolute
	// Overlay wads may replace files of those before.
	Overlay bool `json:"overlay,omitempty"`
	// Index binds the table of contents of an indexed wad; nil is a plain one.
	Index *WadIndex `json:"index,omitempty"`
}

// WadIndex is the start of an indexed wad's file, up to its first chunk.
type WadIndex struct {
	Size   Size   `json:"size"` // bytes
	SHA256 Digest `json:"sha256"`
}

// File is a rendered template.
type File struct {
	Path     string `json:"path"`
	Template string `json:"template"` // its source, for people
	Content  string `json:"content"`  // may hold tokens; see [ExpandTokens]
	Mode     Mode   `json:"mode"`
	UID      int    `json:"uid"`
	GID      int    `json:"gid"`
	Volatile bool   `json:"volatile,omitempty"`
}

// Errand is what a person asked of a PC besides a reimage. It writes nothing to the disk.
type Errand struct {
	Kind ErrandKind `json:"kind"`
	// ID tells this errand from others.
	ID string `json:"id"`
	// Exclude are patterns of what a capture leaves out; nil are the usual ones.
	Exclude []string `json:"exclude,omitempty"`
	// Released ends a rescue.
	Released bool `json:"released,omitempty"`
}

// ErrandKind is what an errand is.
type ErrandKind string

// Kinds of errands.
const (
	Verify  ErrandKind = "verify"  // compare the disk with the manifest
	Capture ErrandKind = "capture" // send the disk's system to the boot server, as a wad
	Rescue  ErrandKind = "rescue"  // let people log in over SSH
)

// ParseManifest reads a manifest strictly and judges it. Unknown fields, other
// schemas and anything after the JSON value are errors.
func ParseManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, more than the %d allowed", len(data), MaxManifest)
	}
	var head struct {
		Schema *int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("manifest is not JSON (does the server answer with an error page?): %w", err)
	}
	if head.Schema == nil || *head.Schema != ManifestSchema {
		return nil, fmt.Errorf("manifest schema is not %d: publish it with the same version of ReAssure that made the image", ManifestSchema)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	m := new(Manifest)
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("manifest has something after its end")
	}
	if err := m.Validate().Err(); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", m.Host, err)
	}
	return m, nil
}

// Marshal writes the manifest as it is published, having read it as the
// reimager will.
func (m *Manifest) Marshal() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", m.Host, err)
	}
	text = append(text, '\n')
	if _, err := ParseManifest(text); err != nil {
		return nil, err
	}
	return text, nil
}

// Validate returns every problem of the manifest.
func (m *Manifest) Validate() Problems {
	var ps Problems
	if !hostPattern.MatchString(m.Host) {
		ps.addf("host", "%q is not a host name", m.Host)
	}
	if len(m.MACs) == 0 {
		ps.addf("macs", "is empty")
	}
	if m.Digest.IsZero() {
		ps.addf("digest", "is missing")
	}
	if m.Serial <= 0 {
		ps.addf("serial", "%d is not a time of publication", m.Serial)
	}
	if len(m.Wads) == 0 {
		ps.addf("wads", "is empty")
	}
	for i, w := range m.Wads {
		at := fmt.Sprintf("wads[%d]", i)
		if w.SHA256.IsZero() {
			ps.addf(at+".sha256", "is missing: a wad without a digest cannot be trusted")
		}
		if w.Size == 0 {
			ps.addf(at+".size", "is missing")
		}
		if len(w.URLs) == 0 {
			ps.addf(at+".urls", "is empty")
		}
		ps.under(at+".mount", absolute(w.Mount, false))
	}
	for i, f := range m.Files {
		at := fmt.Sprintf("files[%d]", i)
		ps.under(at+".path", absolute(f.Path, false))
		if path.Clean(f.Path) == "/" {
			ps.addf(at+".path", "is the root folder")
		}
		if !utf8.ValidString(f.Content) {
			ps.addf(at+".content", "is not UTF-8 text")
		}
	}
	for i, s := range m.Steps {
		at := fmt.Sprintf("steps[%d]", i)
		if s.Run != nil && s.Run.StdinTemplate != "" {
			ps.addf(at+".run.stdin_template", "was not rendered")
		}
		if s.Write != nil && s.Write.Template != "" {
			ps.addf(at+".write.template", "was not rendered")
		}
		if s.BootLoader != nil && i != len(m.Steps)-1 {
			ps.addf(at, "the boot loader is not the last step")
		}
	}
	ps.under("", validateLayout(m.Disk, m.Table, m.Partitions))
	ps.under("", validateMode(m.Mode, m.Keep, m.Runtime))
	for i, w := range m.Wads {
		ps.under(fmt.Sprintf("wads[%d].mount", i), reachable(w.Mount, m.Partitions))
		if x := w.Index; x != nil && (x.Size == 0 || x.SHA256.IsZero() || x.Size >= w.Size) {
			ps.addf(fmt.Sprintf("wads[%d].index", i), "has no digest, or a size that cannot be")
		}
	}
	for i, f := range m.Files {
		ps.under(fmt.Sprintf("files[%d].path", i), reachable(f.Path, m.Partitions))
	}
	ps.under("", validateSystem(m.System))
	ps.under("", validateSteps(m.Steps, false))
	ps.under("", validateEnd(m.Finish, m.OnFailure))
	ps.under("", validateApproval(m.Approve))
	for i, id := range m.Accepted {
		if id.IsZero() {
			ps.addf(fmt.Sprintf("accepted[%d]", i), "names no disk")
		}
	}
	if m.Errand != nil {
		oneOf(&ps, "errand.kind", string(m.Errand.Kind), string(Verify), string(Capture), string(Rescue))
	}
	ps.under("", validateRescue(m.Rescue(), m.RescueKeys, m.System))
	if strings.Contains(m.Events, "://") || strings.ContainsAny(m.Events, " \t\r\n\"") || strings.HasPrefix(m.Events, "/") {
		ps.under("events", webAddress(m.Events, true))
	}
	return ps
}

// Rescue says whether this boot is for people who log in, and for nothing else.
func (m *Manifest) Rescue() bool {
	if m.Errand != nil {
		return m.Errand.Kind == Rescue
	}
	return m.Mode == ReimageRescue
}

// Rescuers are the OpenSSH public keys of those who may log in for a rescue.
func (m *Manifest) Rescuers() []string { return rescuers(m.RescueKeys, m.System) }

// Partition returns the partition of that name, and its number counted from 1.
func (m *Manifest) Partition(name string) (Partition, int, error) {
	for i, p := range m.Partitions {
		if p.Name == name {
			return p, i + 1, nil
		}
	}
	return Partition{}, 0, fmt.Errorf("there is no partition named %q", name)
}

// Root returns the partition mounted at /, and its number counted from 1.
func (m *Manifest) Root() (Partition, int) {
	for i, p := range m.Partitions {
		if p.Mount == "/" {
			return p, i + 1
		}
	}
	return Partition{}, 0
}

// HasMAC says whether the manifest is for a PC with this card.
func (m *Manifest) HasMAC(mac MAC) bool {
	for _, own := range m.MACs {
		if own == mac {
			return true
		}
	}
	return false
}

// ManifestPath is where, below the site's base URL, the manifest for a card is.
func ManifestPath(mac MAC) string { return "manifests/" + mac.PXE() + ".json" }

// SignatureSuffix is what a signature's name has after the signed file's.
const SignatureSuffix = ".minisig"

// URL joins a site's base URL and a path below it.
func URL(base, below string) string {
	return strings.TrimRight(base, "/") + "/" + strings.TrimLeft(below, "/")
}

// Absolute returns an address of the manifest as an absolute one: what has no
// scheme is below base.
func Absolute(base, address string) string {
	if strings.Contains(address, "://") {
		return address
	}
	return URL(base, address)
}

// EventsFolder is where a boot server takes events, below the base URL: the host's
// name or its card as MAC.PXE writes it follows.
const EventsFolder = "events/"
