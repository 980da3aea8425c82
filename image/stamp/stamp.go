// Package stamp says what is installed on a PC: the [Stamp] is the record that
// a reimage leaves on the disk ([spec.StampFile]), and [Digest] is the digest of
// a host's software, which decides whether the PC must be reimaged.
//
// The initramfs imports this package: it holds no YAML and no templates.
package stamp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"reassure/image/spec"
)

// Schema is the version of [Stamp] that this code writes and reads.
const Schema = 1

// maxStamp is the most bytes that a stamp may have.
const maxStamp = 1 << 20

// Stamp is the record, on a PC's disk, of what is installed there.
type Stamp struct {
	Schema  int    `json:"schema"`
	Host    string `json:"host"`
	Profile string `json:"profile"`
	// Digest and Inputs are the software's, as the manifest gave them.
	Digest spec.Digest            `json:"digest"`
	Inputs map[string]spec.Digest `json:"inputs"`
	// Order is the reimage that a person had asked for, if one had.
	Order string `json:"order,omitempty"`
	// Serial is the manifest's; an older manifest is not installed over it.
	Serial int64 `json:"serial"`
	// Started and Finished are times by the PC's clock, which may be wrong.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// DiskSerial is the serial number of the disk, which tells a clone from the original.
	DiskSerial string `json:"disk_serial,omitempty"`
	// Preserved are the identities of the partitions that every reimage leaves as they
	// are, by their names in the profile.
	Preserved map[string]string `json:"preserved,omitempty"`
	// Image is the version of the image that did it.
	Image string `json:"image"`
}

// New returns the stamp of a reimage by m. The caller adds what only the PC
// knows: the times, the disk and the image.
func New(m *spec.Manifest) *Stamp {
	return &Stamp{
		Schema: Schema, Host: m.Host, Profile: m.Profile, Digest: m.Digest,
		Inputs: Inputs(m), Order: m.Order, Serial: m.Serial,
	}
}

// UpToDate says whether a disk with this stamp needs no reimage by m: it is the
// same host's, it holds the same software, and a reimage that a person asked
// for has been done.
func (s *Stamp) UpToDate(m *spec.Manifest) bool {
	return s.Host == m.Host && s.Digest == m.Digest && (m.Order == "" || s.Order == m.Order)
}

// Marshal writes the stamp as indented JSON, with a line end.
func (s *Stamp) Marshal() ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("stamp: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseStamp reads a stamp strictly: another schema, an unknown field, a missing
// digest or anything after the JSON value is an error. A disk whose stamp cannot
// be read counts as one without a stamp.
func ParseStamp(data []byte) (*Stamp, error) {
	if len(data) > maxStamp {
		return nil, fmt.Errorf("stamp has %d bytes, more than the %d allowed", len(data), maxStamp)
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("stamp is not JSON: %w", err)
	}
	if head.Schema != Schema {
		return nil, fmt.Errorf("stamp has schema %d, and this program reads %d", head.Schema, Schema)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	s := new(Stamp)
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("stamp: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("stamp has something after its end")
	}
	return s, s.validate()
}

func (s *Stamp) validate() error {
	switch {
	case s.Schema != Schema:
		return fmt.Errorf("stamp has schema %d, not %d", s.Schema, Schema)
	case s.Host == "":
		return fmt.Errorf("stamp names no host")
	case s.Digest.IsZero():
		return fmt.Errorf("stamp of %s has no digest", s.Host)
	case s.Serial <= 0:
		return fmt.Errorf("stamp of %s has serial %d, which is not a time of publication", s.Host, s.Serial)
	}
	return nil
}
