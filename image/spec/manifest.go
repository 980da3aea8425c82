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
	Events     string      `json:"events,omitempty"`
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
	ps.under("", validateSystem(m.System))
	ps.under("", validateSteps(m.Steps, false))
	ps.under("", validateEnd(m.Finish, m.OnFailure))
	ps.under("events", webAddress(m.Events, true))
	return ps
}

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
