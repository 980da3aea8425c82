package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Operations of RFC 1350, section 5, and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// refusal is what a client is told, with its code.
type refusal struct {
	code uint16
	text string
}

func (r refusal) Error() string { return r.text }

// What clients are told.
var (
	errNone    = refusal{1, "file not found"}
	errWrite   = refusal{2, "this server is for reading"}
	errBusy    = refusal{0, "too many transfers: try again"}
	errBroken  = refusal{0, "the file cannot be read"}
	errRequest = refusal{4, "the request is not one of TFTP"}
	errMode    = refusal{4, "ask in mode octet"}
)

// errNoRequest is a packet that belongs to a transfer, or to nothing.
var errNoRequest = errors.New("not a request")

var errRefused = unix.ECONNREFUSED

// errorPacket is a refusal on the wire.
func errorPacket(err error) []byte {
	var r refusal
	if !errors.As(err, &r) {
		r = refusal{0, "failed"}
	}
	p := binary.BigEndian.AppendUint16([]byte{0, opError}, r.code)
	return append(append(p, r.text...), 0)
}

// request is a request to read.
type request struct {
	name     string
	netascii bool
	options  []option // in the client's order, each name once
}

type option struct {
	name  string // in lower case
	value int
}

// maxOptions is more than there are.
const maxOptions = 16

// parse reads a packet that came to the server's own port.
func parse(p []byte) (request, error) {
	if len(p) < 2 {
		return request{}, errNoRequest
	}
	switch binary.BigEndian.Uint16(p) {
	case opRead:
	case opWrite:
		return request{}, errWrite
	default:
		return request{}, errNoRequest
	}
	fields := bytes.Split(p[2:], []byte{0})
	// Some ROMs pad their requests, and some leave out the last zero.
	if len(fields) < 2 || len(fields[0]) == 0 {
		return request{}, errRequest
	}
	r := request{name: string(fields[0])}
	switch strings.ToLower(string(fields[1])) {
	case "octet":
	case "netascii":
		r.netascii = true
	default:
		return request{}, errMode
	}
	seen := map[string]bool{}
	for f := fields[2:]; len(f) >= 2 && len(f[0]) > 0 && len(seen) < maxOptions; f = f[2:] {
		name := strings.ToLower(string(f[0]))
		value, err := strconv.Atoi(string(f[1]))
		if err != nil || seen[name] {
			continue // an option that is not understood is not answered (RFC 2347)
		}
		seen[name] = true
		r.options = append(r.options, option{name, value})
	}
	return r, nil
}

// text is a string of a packet, up to its zero.
func text(p []byte) string {
	s, _, _ := bytes.Cut(p, []byte{0})
	return string(s)
}
