package spec

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// AskParameter is the kernel parameter of an image that no boot loader has loaded:
// it asks for its boot decision itself.
const AskParameter = "reassure.ask"

// ToldFolder is where it asks, below "boot/" of the published tree; each card has
// a file, 01-MAC.
const ToldFolder = "uki"

// ToldPath is where a card's boot decision is, for an image that asks itself.
func ToldPath(mac MAC) string { return "boot/" + ToldFolder + "/" + mac.PXE() }

// MaxTold is more than the text of a boot decision has, in bytes.
const MaxTold = 8192

// Told is a boot decision, for an image that asks itself. One of Local, Remote and
// Again is set.
type Told struct {
	Say    string // for people; may be empty
	Local  bool
	Remote bool
	// CommandLine is further kernel parameters, with Remote.
	CommandLine string
	// Again is how long to wait before the next question.
	Again time.Duration
}

// ParseTold reads a boot decision: lines "say TEXT", "local", "wait SECONDS" and
// "remote [PARAMETERS]". Lines that begin with # are for people. There must be
// exactly one decision.
func ParseTold(text []byte) (Told, error) {
	var t Told
	decisions := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case word == "say":
			t.Say = strings.TrimSpace(rest)
			continue
		case line == "local":
			t.Local = true
		case word == "remote":
			t.Remote, t.CommandLine = true, strings.TrimSpace(rest)
		case word == "wait":
			n, err := strconv.Atoi(rest)
			if err != nil || n < 1 || n > 86400 {
				return Told{}, fmt.Errorf("a boot decision waits for %q, which is no number of seconds", rest)
			}
			t.Again = time.Duration(n) * time.Second
		default:
			return Told{}, fmt.Errorf("a boot decision has a line %.80q", line)
		}
		decisions++
	}
	if decisions != 1 {
		return Told{}, fmt.Errorf("a boot decision must be one of local, remote and wait, and here are %d", decisions)
	}
	return t, nil
}
