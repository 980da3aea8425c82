// Package stamp holds the record of what is installed on a PC, and the digest
// of a host's software, which decides whether the PC must be reimaged.
//
// The digest covers what ends up on the disk: every wad's digest and mount
// point, the partition table, the system settings, the steps, and every
// rendered template that is not volatile, all before tokens are filled in. It
// leaves out, each for its reason:
//
//   - our own programs' version: a new image reimages nobody;
//   - volatile templates (/etc/hosts): a PC added to the lab changes everyone's;
//   - URLs, mirrors, sizes and names of wads: where the same bytes come from;
//   - the rule that picks the disk: the disk that was picked stays right;
//   - serial, order, events, finish and failure policy: they end with the reimage.
package stamp

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"reassure/image/spec"
)

// Schema is the version of [Stamp] that this code writes and reads.
const Schema = 1

// Stamp is what an installed system's disk says of it, at [spec.StampFile]. It
// is the last file written, and not to be believed unless the disk was also
// committed. Users with root can change it: it tells what was installed, not
// what is there now.
type Stamp struct {
	Schema     int         `json:"schema"`
	Host       string      `json:"host"`
	Profile    string      `json:"profile"`
	Digest     spec.Digest `json:"digest"`
	Serial     int64       `json:"serial"` // of the manifest
	Order      string      `json:"order,omitempty"`
	Started    time.Time   `json:"started"`
	Finished   time.Time   `json:"finished"`
	DiskSerial string      `json:"disk_serial,omitempty"`
	Image      string      `json:"image,omitempty"` // version of ReAssure
}

// Marshal writes the stamp as a file holds it.
func (s Stamp) Marshal() ([]byte, error) {
	s.Schema = Schema
	text, err := json.MarshalIndent(s, "", "  ")
	return append(text, '\n'), err
}

// Parse reads a stamp. Fields that it does not know are let be, so that an
// older image can tell that a newer one has been at work.
func Parse(text []byte) (Stamp, error) {
	var s Stamp
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&s); err != nil {
		return Stamp{}, fmt.Errorf("stamp: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Stamp{}, fmt.Errorf("stamp: something comes after its end")
	}
	if s.Schema != Schema {
		return Stamp{}, fmt.Errorf("stamp: schema %d, this image reads %d", s.Schema, Schema)
	}
	if s.Digest.IsZero() || s.Host == "" {
		return Stamp{}, fmt.Errorf("stamp: host or digest is missing")
	}
	return s, nil
}

// Inputs returns the digest of each thing that the digest of a host's software
// is made of, by a name for people: "wad debian.tar.zst", "template
// /etc/hostname", "step boot loader", "order of steps", "partitions", "system".
func Inputs(m *spec.Manifest) map[string]spec.Digest {
	inputs := map[string]spec.Digest{
		"partitions": sum(struct {
			Table      spec.Table       `json:"table"`
			Partitions []spec.Partition `json:"partitions"`
		}{m.Table, m.Partitions}),
		"system": sum(m.System),
	}
	var order []string
	for i, w := range m.Wads {
		inputs[fmt.Sprintf("wad %d %s", i+1, w.Mount)] = sum(struct {
			SHA256  spec.Digest `json:"sha256"`
			Overlay bool        `json:"overlay"`
		}{w.SHA256, w.Overlay})
	}
	for _, f := range m.Files {
		if !f.Volatile {
			f.Template = "" // a template renamed is the same file
			inputs["template "+f.Path] = sum(f)
		}
	}
	for _, s := range m.Steps {
		inputs["step "+s.Name] = sum(s)
		order = append(order, s.Name)
	}
	inputs["order of steps"] = sum(order)
	return inputs
}

// Digest returns the digest of a host's software: SHA-256 over a version line
// and one line for each of [Inputs], sorted by name.
func Digest(m *spec.Manifest) spec.Digest {
	inputs := Inputs(m)
	h := sha256.New()
	fmt.Fprintln(h, "reassure software 1")
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		fmt.Fprintf(h, "%q %s\n", name, inputs[name])
	}
	return spec.Digest(h.Sum(nil))
}

// sum digests a value by its JSON, whose order of fields is that of the type.
func sum(v any) spec.Digest {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // the types here always marshal
	}
	return spec.Sum(text)
}
