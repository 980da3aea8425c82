// Package spec holds the types that ReAssure's programs agree on, and the rules
// that make a value of them valid. It does no I/O, so that every program may
// import it, the initramfs included.
//
// Three kinds of configuration meet here and are never mixed up:
//
//   - A [Profile] and an [Inventory] are written by a person, in YAML.
//   - A [Manifest] is what the two resolve to for one host. It is JSON, it is
//     signed, and it is the only thing that the initramfs reads.
//   - A [Plan] is what the reimager will do with a manifest on the PC that it
//     finds itself on: pure data, printed, sent to the server, then carried out.
//
// Every Validate method returns all problems at once, each with the path of the
// field it is about ("partitions[2].size"), so that whoever read the file can
// add the line.
package spec

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	// Path names the field: keys joined by dots, list items by [index].
	Path string
	// Text says what is wrong and what to do about it.
	Text string
}

func (p Problem) String() string {
	if p.Path == "" {
		return p.Text
	}
	return p.Path + ": " + p.Text
}

// Problems is an error that holds every problem found in one configuration.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns ps as an error, or nil when there are no problems.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// addf notes a problem at path.
func (ps *Problems) addf(path, format string, args ...any) {
	*ps = append(*ps, Problem{Path: path, Text: fmt.Sprintf(format, args...)})
}

// under notes every problem in sub, with its path placed below path.
func (ps *Problems) under(path string, sub Problems) {
	for _, p := range sub {
		switch {
		case path == "":
		case p.Path == "":
			p.Path = path
		case strings.HasPrefix(p.Path, "["):
			p.Path = path + p.Path
		default:
			p.Path = path + "." + p.Path
		}
		*ps = append(*ps, p)
	}
}
