package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. Its text is a whole number with an optional unit:
// "512MiB", "8GiB", "1TB", "4096". Binary units are powers of 1024, decimal
// ones (kB, MB, GB, TB) powers of 1000, as disk makers count.
type Size uint64

// Binary units of [Size].
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var sizeUnits = []struct {
	name  string
	bytes uint64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// UnmarshalText reads a size; see [Size] for its form.
func (s *Size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	number, unit := in, uint64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(in, u.name); ok {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a size: write a whole number and a unit, such as 512MiB or 8GiB", in)
	}
	if n > math.MaxInt64/unit {
		return fmt.Errorf("%q is more than any disk holds", in)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the size exactly, in the largest binary unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range sizeUnits[:4] {
		if s != 0 && uint64(s)%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", uint64(s)/u.bytes, u.name), nil
		}
	}
	return strconv.AppendUint(nil, uint64(s), 10), nil
}

// String writes the size for a person: three significant digits, binary units.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if v := float64(s) / float64(u.bytes); v >= 1 {
			switch {
			case v >= 100:
				return fmt.Sprintf("%.0f %s", v, u.name)
			case v >= 10:
				return fmt.Sprintf("%.1f %s", v, u.name)
			}
			return fmt.Sprintf("%.2f %s", v, u.name)
		}
	}
	return fmt.Sprintf("%d B", uint64(s))
}

// Extent is the size of a partition as a profile asks for it: a [Size], a share
// of the disk ("25%"), or "rest", which is whatever the others leave.
type Extent struct {
	Bytes   Size
	Percent float64 // of the whole disk, above 0 and at most 100
	Rest    bool
}

// UnmarshalText reads "rest", "25%" or a size.
func (e *Extent) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	if in == "rest" {
		*e = Extent{Rest: true}
		return nil
	}
	if number, ok := strings.CutSuffix(in, "%"); ok {
		p, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(p > 0 && p <= 100) {
			return fmt.Errorf("%q is not a share of the disk: write a number above 0 and up to 100 before the %%", in)
		}
		*e = Extent{Percent: p}
		return nil
	}
	var s Size
	if err := s.UnmarshalText(text); err != nil {
		return fmt.Errorf("%q is not a partition size: write a size (512MiB), a share (25%%), or rest", in)
	}
	if s == 0 {
		return fmt.Errorf("a partition cannot have size 0")
	}
	*e = Extent{Bytes: s}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (e Extent) MarshalText() ([]byte, error) {
	switch {
	case e.Rest:
		return []byte("rest"), nil
	case e.Percent != 0:
		return append(strconv.AppendFloat(nil, e.Percent, 'g', -1, 64), '%'), nil
	}
	return e.Bytes.MarshalText()
}

func (e Extent) String() string {
	text, _ := e.MarshalText()
	return string(text)
}

// MAC is an Ethernet address. Its text is six hexadecimal pairs joined by
// colons or dashes; it is written in lower case with colons.
type MAC [6]byte

// UnmarshalText reads an Ethernet address.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(strings.TrimSpace(string(text)))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("%q is not a MAC address: write six hexadecimal pairs, such as 00:09:3d:12:20:ed", text)
	}
	copy(m[:], hw)
	return nil
}

// MarshalText writes the address in lower case with colons.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// PXE writes the address as pxelinux names its per-host file and as BOOTIF
// carries it: ARP hardware type, then the address, joined by dashes
// ("01-00-09-3d-12-20-ed").
func (m MAC) PXE() string { return "01-" + strings.ReplaceAll(m.String(), ":", "-") }

// ParsePXE reads what [MAC.PXE] writes.
func ParsePXE(s string) (MAC, error) {
	var m MAC
	address, ok := strings.CutPrefix(s, "01-")
	if !ok {
		return m, fmt.Errorf("%q is not a PXE hardware address: it must begin with 01- (Ethernet)", s)
	}
	return m, m.UnmarshalText([]byte(address))
}

// Digest names content by its hash. Its text is "sha256:" and 64 hexadecimal
// digits. The zero value is no digest.
type Digest [sha256.Size]byte

// Sum returns the digest of data.
func Sum(data []byte) Digest { return sha256.Sum256(data) }

// IsZero says whether d is no digest at all.
func (d Digest) IsZero() bool { return d == Digest{} }

// UnmarshalText reads a digest; an empty text is no digest.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "sha256:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != len(d) {
		return fmt.Errorf("%q is not a digest: write sha256: and 64 hexadecimal digits", text)
	}
	copy(d[:], raw)
	return nil
}

// MarshalText writes the digest; no digest is the empty text.
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return []byte{}, nil
	}
	return []byte("sha256:" + hex.EncodeToString(d[:])), nil
}

func (d Digest) String() string {
	text, _ := d.MarshalText()
	return string(text)
}

// Short writes enough of the digest for a person to tell two apart.
func (d Digest) Short() string {
	if d.IsZero() {
		return "none"
	}
	return hex.EncodeToString(d[:6])
}

// Duration is a [time.Duration] with a text form: "90s", "10m".
type Duration time.Duration

// UnmarshalText reads a duration that is not negative.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write a number and a unit, such as 90s or 10m", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }

// Mode is a file's permission bits with setuid, setgid and sticky, as chmod
// takes them. Its text is octal: "0644", "4755".
type Mode uint32

// UnmarshalText reads an octal mode.
func (m *Mode) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(string(text)), "0o"), 8, 32)
	if err != nil || v > 0o7777 {
		return fmt.Errorf("%q is not a file mode: write octal digits, such as \"0644\"", text)
	}
	*m = Mode(v)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m Mode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// FileMode returns the mode as package os has it; 0 means 0644.
func (m Mode) FileMode() fs.FileMode {
	if m == 0 {
		m = 0o644
	}
	mode := fs.FileMode(m & 0o777)
	for _, bit := range []struct {
		octal Mode
		mode  fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if m&bit.octal != 0 {
			mode |= bit.mode
		}
	}
	return mode
}
