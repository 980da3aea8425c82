// Package conf reads the YAML files that people write, strictly, and tells them
// every mistake at once with its place: file, line, field, what is wrong and
// what to do about it.
//
// The YAML that it takes is the plain part: one document; mappings, sequences
// and scalars; anchors and aliases, as long as what they stand for stays small.
// Merge keys (<<) and tags of one's own are refused. A scalar's text reaches the
// Go value as it is written (mode: 0644 is "0644", not 420), so types with an
// UnmarshalText method decide for themselves what they take.
//
// A key with nothing after it is an empty mapping or sequence where one belongs,
// so that all lines under it may be commented out; anywhere else it is an error.
package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"reassure/image/spec"
)

// Limits on what is read. A lab of ten thousand PCs stays far below both.
const (
	maxBytes = 8 << 20
	// maxAliased is how many nodes all aliases of a file may stand for
	// together: a few lines of nested ones can mean billions.
	maxAliased = 100_000
)

// Error is one mistake in a file.
type Error struct {
	File string
	Line int    // from 1; 0 means the file as a whole
	Path string // of the field, as in [spec.Problem]; may be empty
	Text string // what is wrong, and the remedy
}

func (e Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += ":" + strconv.Itoa(e.Line)
	}
	if e.Path != "" {
		s += ": " + e.Path
	}
	return s + ": " + e.Text
}

// Errors are all mistakes found in one or more files, one line each.
type Errors []Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Validator is what a type has that knows rules beyond its fields' types.
type Validator interface{ Validate() spec.Problems }

// Decode reads the YAML file name, whose content is data, into the value that
// into points to. The error is an [Errors] with every mistake: unknown and
// repeated keys, values of the wrong type or that an UnmarshalText refuses, and
// then, if into is a [Validator], what that finds. Fields are named by their yaml tags.
func Decode(name string, data []byte, into any) error {
	_, err := Parse(name, data, into)
	return err
}

// Parse is [Decode], and also tells where each field is, for mistakes that only
// somebody who knows more files can find. The places are there even with an
// error, unless the file is not YAML at all.
func Parse(name string, data []byte, into any) (*Places, error) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic("conf: into must be a pointer")
	}
	p := &Places{file: name, lines: map[string]int{}}
	root, bad := document(name, data)
	if bad != nil {
		return p, Errors{*bad}
	}
	d := &decoder{places: p}
	d.value(root, v.Elem(), "")
	if validator, ok := into.(Validator); ok {
		d.validate(validator.Validate())
	}
	if len(d.errors) > 0 {
		return p, d.errors
	}
	return p, nil
}

// Places tells where in a file each field is.
type Places struct {
	file  string
	lines map[string]int
}

// At returns the mistake text about the field at path, with its line, or that
// of the nearest field above it that is in the file.
func (p *Places) At(path, text string) Error {
	for at := path; ; at = parent(at) {
		if line, ok := p.lines[at]; ok || at == "" {
			return Error{File: p.file, Line: line, Path: path, Text: text}
		}
	}
}

// parent takes the last key or index off a path.
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i > 0 {
		return path[:i]
	}
	return ""
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

// remedies are for what the YAML parser says.
var remedies = []struct{ said, remedy string }{
	{"mapping values are not allowed", "put quotes around a value that has a colon and a space in it, and line up the keys"},
	{"did not find expected key", "line this and the next lines up with the keys that they belong to"},
	{"did not find expected '-' indicator", "line up the items of the list that begins here, and the keys after it"},
	{"did not find expected ',' or", "close the bracket that is opened here, or put a comma between the items"},
	{"could not find expected ':'", "write a key, a colon and a space"},
	{"found unexpected end of stream", "close the quote or bracket that is open"},
	{"found character that cannot start any token", "put quotes around the value"},
	{"unknown anchor", "define it further up with &NAME, or put quotes around a value that begins with *"},
	{"unknown escape character", "use single quotes, in which a backslash is only itself"},
}

// document parses data as the one YAML document that it must be.
func document(name string, data []byte) (*yaml.Node, *Error) {
	if len(data) > maxBytes {
		return nil, &Error{File: name, Text: fmt.Sprintf("has %d bytes, more than the %d allowed: is it the right file?", len(data), maxBytes)}
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(line) {
			return nil, &Error{File: name, Line: i + 1, Text: "is not UTF-8 text: save the file as UTF-8"}
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	err := d.Decode(&doc)
	if err == nil {
		switch err = d.Decode(&second); {
		case err == nil:
			return nil, &Error{File: name, Line: second.Line, Text: "a second document begins here: keep one, and remove the line ---"}
		case errors.Is(err, io.EOF) && !isNull(doc.Content[0]):
			return doc.Content[0], nil
		}
	}
	if errors.Is(err, io.EOF) {
		return nil, &Error{File: name, Text: "is empty"}
	}
	return nil, notYAML(name, string(data), err.Error())
}

// notYAML words what the parser said, and finds the line, which the parser
// leaves out at times and miscounts at others.
func notYAML(name, text, said string) *Error {
	line := 1
	if m := yamlError.FindStringSubmatch(said); m != nil {
		if m[1] != "" {
			line, _ = strconv.Atoi(m[1])
		}
		said = m[2]
	}
	switch {
	case strings.HasPrefix(said, "did not find expected"):
		// The parser counts from 0, the scanner from 1 (yaml/v3 decode.go, parser.fail).
		line++
	case strings.HasPrefix(said, "control characters"):
		line = lineWith(text, func(l string) bool {
			return strings.ContainsFunc(l, func(r rune) bool { return r < ' ' && r != '\t' && r != '\r' || r == 0x7f })
		})
	case strings.HasPrefix(said, "unknown anchor"):
		anchor := strings.Split(said, "'")
		line = lineWith(text, func(l string) bool { return len(anchor) > 1 && strings.Contains(l, "*"+anchor[1]) })
	}
	// At a tab the parser names its line, or the one before.
	lines := strings.Split(text, "\n")
	for at := line; at <= min(line+1, len(lines)); at++ {
		if strings.HasPrefix(strings.TrimLeft(lines[at-1], " "), "\t") {
			return &Error{File: name, Line: at, Text: "begins with a tab: YAML is indented with spaces"}
		}
	}
	bad := &Error{File: name, Line: line, Text: "is not YAML: " + said}
	for _, r := range remedies {
		if strings.Contains(said, r.said) {
			bad.Text += ": " + r.remedy
			break
		}
	}
	return bad
}

// lineWith returns the number of the first line that is meant, or 1.
func lineWith(text string, meant func(string) bool) int {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if meant(strings.TrimRight(line, "\r\n")) {
			return n
		}
	}
	return 1
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
