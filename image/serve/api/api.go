// Package api is what the boot server and its clients (the command line, the web
// page, scripts) say to each other, as JSON over HTTP. Everything is below the
// path of the site's URL:
//
//	GET  api/v1/hosts                 []Host
//	GET  api/v1/hosts/NAME            HostDetail
//	GET  api/v1/hosts/NAME/why        Why
//	GET  api/v1/hosts/NAME/log?attempt=ID   text; without attempt, the newest
//	GET  api/v1/rollouts              []Rollout
//	GET  api/v1/unknown               []Unknown: cards that asked and are nobody's
//	GET  api/v1/coverage              Coverage: drivers and firmware for what the PCs reported
//	GET  api/v1/known-hosts           text: ssh_known_hosts of the lab
//	GET  api/v1/stream                server-sent events: "host" with a host's name as data, "lab" when anything else changed
//	POST api/v1/rollouts              RolloutRequest -> Rollout
//	POST api/v1/rollouts/ID/stop      StopRequest -> Rollout
//	POST api/v1/errands               ErrandRequest -> []Outcome
//	POST api/v1/hosts/HOST/verify     -> Inspected: the PC's running system, compared now
//	POST api/v1/hold                  Targets -> []Outcome
//	POST api/v1/approve               ApproveRequest -> []Outcome
//	POST api/v1/accept                AcceptRequest -> []Outcome
//	POST api/v1/release               Targets -> []Outcome
//	POST api/v1/reload                nothing -> Reload
//
// A refusal is a status of 400 or above with an [Error]. What changes something
// needs the local socket, or the header "Authorization: Bearer TOKEN".
package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"reassure/image/coverage"
	"reassure/image/spec"
)

// Path is where the interface is, below the site's URL.
const Path = "api/v1"

// State is what a host is about, in one word. People see it.
type State string

// States, in the order in which the first that fits is taken.
const (
	Running  State = "running"  // it is being reimaged, or on an errand
	Held     State = "held"     // a person said hold
	Parked   State = "parked"   // too many attempts failed: a person has to look
	Retrying State = "retrying" // an attempt failed; the next is due
	Armed    State = "armed"    // it will be reimaged: at its next power-on, or when its turn comes
	Changed  State = "changed"  // its software changed in the site's files; nobody has rolled that out
	Current  State = "current"  // it has what it should have
	New      State = "new"      // nothing was rolled out to it yet
)

// Host is a host at a glance.
type Host struct {
	Name    string     `json:"name"`
	MACs    []spec.MAC `json:"macs"`
	IP      string     `json:"ip"`
	Profile string     `json:"profile"`
	Groups  []string   `json:"groups,omitempty"`

	State State `json:"state"`
	// Decision is what the PC would be told now: local, remote or wait.
	Decision string `json:"decision"`
	// Reason says in one sentence why.
	Reason string `json:"reason"`

	Installed spec.Digest `json:"installed,omitzero"` // as the PC reported
	Wanted    spec.Digest `json:"wanted,omitzero"`    // as was rolled out
	Candidate spec.Digest `json:"candidate,omitzero"` // as the site's files say now
	// Drift counts volatile files that differ from what is installed.
	Drift int `json:"drift,omitempty"`

	Order   string `json:"order,omitempty"`   // a forced reimage that is due
	Rollout string `json:"rollout,omitempty"` // what armed it
	Hold    *Note  `json:"hold,omitempty"`
	Parked  *Note  `json:"parked,omitempty"`

	Failures int       `json:"failures,omitempty"` // since it was last well
	NextTry  time.Time `json:"next_try,omitzero"`
	Progress *Progress `json:"progress,omitempty"` // while running
	LastSeen time.Time `json:"last_seen,omitzero"` // it asked, or reported
	LastDone time.Time `json:"last_done,omitzero"` // its last reimage was whole
}

// Note is what was said about a host, by whom and when.
type Note struct {
	Text string    `json:"text"`
	By   string    `json:"by,omitempty"`
	At   time.Time `json:"at"`
}

// Progress is how far a running reimage is.
type Progress struct {
	Attempt int       `json:"attempt"` // the reimager's own tries within this boot, from 1
	Phase   string    `json:"phase"`
	Text    string    `json:"text,omitempty"`
	Done    spec.Size `json:"done,omitempty"`
	Total   spec.Size `json:"total,omitempty"`
	Rate    spec.Size `json:"rate,omitempty"` // bytes a second
	ETA     float64   `json:"eta,omitempty"`  // seconds, of this phase
	Started time.Time `json:"started"`        // the PC was told Remote
	Updated time.Time `json:"updated"`
}

// HostDetail is everything about a host that anybody on the lab's network may know.
type HostDetail struct {
	Host
	Address  string      `json:"address,omitempty"` // that its card was last given
	Facts    *spec.Facts `json:"facts,omitempty"`
	Plan     *spec.Plan  `json:"plan,omitempty"` // the last
	HostKeys []string    `json:"host_keys,omitempty"`
	// Disk is known to be the host's own: it was reimaged on it, or a person accepted it.
	Disk *spec.DiskID `json:"disk,omitempty"`
	// Target is the disk that its rule meant when it last looked, with what was on it.
	Target *spec.Disk `json:"target,omitempty"`
	// Ask is what it is parked for, if a person has to say something.
	Ask spec.Ask `json:"ask,omitempty"`
	// Errand is what the PC is to do at its next boot besides a reimage.
	Errand *Errand `json:"errand,omitempty"`
	// Verified is what the last verification found.
	Verified *Verified `json:"verified,omitempty"`
	// History holds the attempts, newest first.
	History []Attempt `json:"history"`
}

// PlanWaits says whether the host's plan waits for a person.
func (h *HostDetail) PlanWaits() bool {
	return h.Plan != nil && (h.Ask == spec.AskPlan || h.Progress != nil && h.Progress.Phase == spec.PhaseApproval)
}

// Lost says what is on the disk that the host is to be reimaged on, in words of the PC:
// whoever prints it takes control characters out. There must be a Target.
func (h *HostDetail) Lost() string {
	lost := h.lost()
	if h.Disk != nil && h.Disk.Same(h.Target.Identity()) {
		return "(its own, known) " + lost
	}
	return lost
}

func (h *HostDetail) lost() string {
	var words []string
	foreign := false
	for _, c := range h.Target.Contents {
		word := c.Kind
		if c.Label != "" {
			word += ` "` + c.Label + `"`
		}
		if c.Size > 0 {
			word += " " + c.Size.String()
		}
		foreign = foreign || c.Foreign
		words = append(words, word)
	}
	switch {
	case foreign:
		return strings.Join(words, ", ") + "; refused until its profile says overwrite: foreign"
	case len(words) > 0:
		return strings.Join(words, ", ")
	case h.Target.Blank():
		return "nothing: it is blank"
	case len(h.Target.Partitions) == 1:
		return fmt.Sprintf("a %s table with 1 partition", h.Target.Table)
	case h.Target.Table != "":
		return fmt.Sprintf("a %s table with %d partitions", h.Target.Table, len(h.Target.Partitions))
	}
	return "data of no kind that we know"
}

// Errand is something that a person asked of a PC besides a reimage. It is done
// at the PC's next boot, and is tried once.
type Errand struct {
	spec.Errand
	Note
}

// Verified is what a verification of a disk found, and when.
type Verified struct {
	At time.Time `json:"at"`
	// ID is the errand's.
	ID     string      `json:"id"`
	Digest spec.Digest `json:"digest"` // of the software that it was compared with
	// Running says that the system ran meanwhile, and that its word was trusted.
	Running bool `json:"running,omitempty"`
	spec.Verified
}

// Inspected is what came of the verification of a running system.
type Inspected struct {
	Verified *Verified `json:"verified,omitempty"`
	// Text says why there is none.
	Text string `json:"text,omitempty"`
}

// ErrandRequest asks for an errand of hosts.
type ErrandRequest struct {
	Kind spec.ErrandKind `json:"kind"`
	Targets
	Now bool `json:"now,omitempty"` // reboot or wake the PCs
	// Exclude are patterns of what a capture leaves out; nil are the usual ones.
	Exclude []string `json:"exclude,omitempty"`
}

// Captured is a wad that a PC has sent.
type Captured struct {
	// File is where it lies on the boot server.
	File string    `json:"file"`
	Size spec.Size `json:"size"`
}

// Result is how an attempt ended.
type Result string

// Results.
const (
	UnderWay  Result = "running"
	Done      Result = "done"
	UpToDate  Result = "up to date" // nothing was written
	Failed    Result = "failed"
	Vanished  Result = "vanished"  // nothing was heard of it any more
	Asked     Result = "asked"     // it ended in a question to a person; nothing was written
	Restarted Result = "restarted" // the PC asked anew in the middle of it
)

// Attempt is one Remote boot.
type Attempt struct {
	ID      string           `json:"id"`
	Started time.Time        `json:"started"`
	Ended   time.Time        `json:"ended,omitzero"`
	Result  Result           `json:"result"`
	Reason  string           `json:"reason,omitempty"` // why it was told Remote
	Text    string           `json:"text,omitempty"`   // why it failed
	Digest  spec.Digest      `json:"digest,omitzero"`
	Order   string           `json:"order,omitempty"`
	Rollout string           `json:"rollout,omitempty"`
	Errand  spec.ErrandKind  `json:"errand,omitempty"` // what it was, if no reimage
	Address string           `json:"address,omitempty"`
	Bytes   spec.Size        `json:"bytes,omitempty"` // of wads
	Phases  []spec.PhaseTime `json:"phases,omitempty"`
}

// Change is one input of a host's software that differs.
type Change struct {
	// Text says it in words: "wad gentoo.tar.zst: sha256 1a2b… -> 3c4d…",
	// "template conf.d/net: 2 lines".
	Text     string `json:"text"`
	Volatile bool   `json:"volatile,omitempty"`
	// Diff is a unified diff, only for whoever may change things: texts may
	// hold secrets.
	Diff string `json:"diff,omitempty"`
}

// Why explains a decision.
type Why struct {
	Host     string `json:"host"`
	Decision string `json:"decision"`
	Reason   string `json:"reason"`
	// Due is what differs between what is installed and what was rolled out.
	Due []Change `json:"due,omitempty"`
	// Pending is what differs between what was rolled out and the site's files.
	Pending []Change `json:"pending,omitempty"`
	// Drift is what differs in volatile files: it lands with the next reimage.
	Drift []Change `json:"drift,omitempty"`
}

// RolloutRequest asks for hosts to be reimaged. The zero value of a setting
// means as the server's configuration says.
type RolloutRequest struct {
	// Targets are hosts, groups ("@GROUP") and shell patterns over both.
	Targets []string `json:"targets"`
	// Force reimages even hosts that are up to date: an order.
	Force    bool     `json:"force,omitempty"`
	Between  string   `json:"between,omitempty"`  // "22:00-06:00", by the server's clock
	Now      bool     `json:"now,omitempty"`      // reboot or wake the PCs when their turn comes
	Canaries *int     `json:"canaries,omitempty"` // how many go first
	Canary   []string `json:"canary,omitempty"`   // which go first, instead
	AtOnce   int      `json:"at_once,omitempty"`
	StopAt   *float64 `json:"stop_at,omitempty"` // percent failed above which no more begin
	Why      string   `json:"why,omitempty"`
}

// Rollout is hosts being reimaged in waves.
type Rollout struct {
	ID       string    `json:"id"`
	Started  time.Time `json:"started"`
	By       string    `json:"by,omitempty"`
	Why      string    `json:"why,omitempty"`
	Force    bool      `json:"force,omitempty"`
	Between  string    `json:"between,omitempty"`
	Now      bool      `json:"now,omitempty"`
	Canaries int       `json:"canaries"`
	AtOnce   int       `json:"at_once"`
	StopAt   float64   `json:"stop_at"` // percent
	// Stopped says why no more begin; nil while it goes on.
	Stopped *Note `json:"stopped,omitempty"`

	// Hosts by how far they are. Same are those that needed nothing.
	Waiting []string `json:"waiting,omitempty"`
	Running []string `json:"running,omitempty"`
	Done    []string `json:"done,omitempty"`
	Failed  []string `json:"failed,omitempty"`
	Same    []string `json:"same,omitempty"`
}

// Finished says whether nothing of it is left to do.
func (r *Rollout) Finished() bool { return len(r.Waiting)+len(r.Running)+len(r.Failed) == 0 }

// StopRequest stops a roll-out.
type StopRequest struct {
	Why string `json:"why,omitempty"`
}

// Targets names hosts, as [RolloutRequest] does, and says why.
type Targets struct {
	Targets []string `json:"targets"`
	Why     string   `json:"why,omitempty"`
}

// AcceptRequest says which disks are their hosts', whatever is on them.
type AcceptRequest struct {
	// Disks by the names of their hosts, as the person has seen them.
	Disks map[string]spec.DiskID `json:"disks"`
	Why   string                 `json:"why,omitempty"`
}

// ApproveRequest says which plans are right.
type ApproveRequest struct {
	// Plans by the names of their hosts: digests ([spec.Plan.Sum]) of what the person has seen.
	Plans map[string]spec.Digest `json:"plans"`
	Why   string                 `json:"why,omitempty"`
}

// Outcome is what was done to one host.
type Outcome struct {
	Host string `json:"host"`
	Text string `json:"text"`
	// Errand is the ID of the errand that the host has got; empty is none.
	Errand string `json:"errand,omitempty"`
}

// Reload is what reading the site again brought.
type Reload struct {
	Hosts   int           `json:"hosts"`
	Changed []ChangedHost `json:"changed,omitempty"`
	Added   []string      `json:"added,omitempty"`
	Removed []string      `json:"removed,omitempty"`
}

// ChangedHost is a host whose software is another than was rolled out to it.
type ChangedHost struct {
	Name    string   `json:"name"`
	Changes []Change `json:"changes"`
	// Armed says that its profile has rollout: auto.
	Armed bool `json:"armed,omitempty"`
}

// Unknown is a card that asked and is no host's.
type Unknown struct {
	MAC   spec.MAC  `json:"mac"`
	IP    string    `json:"ip,omitempty"`
	What  string    `json:"what,omitempty"` // what it said of itself: "PXEClient, BIOS"
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count"`
}

// Error is a refusal.
type Error struct {
	Text string `json:"error"`
}

func (e *Error) Error() string { return e.Text }

// Coverage is what the image that PCs boot lacks for the network cards and storage
// controllers that they have, as they reported them.
type Coverage struct {
	Version string `json:"version"` // of the image, as its flavour and its kernel
	Flavour string `json:"flavour"`
	Kernel  string `json:"kernel"`
	// Hosts is how many there are, and Reported how many of them have said what
	// devices they have: each does when it boots the image.
	Hosts    int `json:"hosts"`
	Reported int `json:"reported"`
	// Lacking are devices of which something is not in the image, the worst first.
	Lacking []Lacking `json:"lacking"`
}

// Lacking is a device, and the hosts that have it.
type Lacking struct {
	coverage.Verdict
	Hosts []string `json:"hosts"`
}

// Sentences say for how many PCs something is not in the image.
func (c *Coverage) Sentences() []string {
	var out []string
	for _, kind := range []struct {
		kind coverage.Kind
		noun string
	}{{coverage.Network, "a NIC"}, {coverage.Storage, "a storage controller"}} {
		for _, state := range []struct {
			state coverage.State
			words string
		}{
			{coverage.NoDriver, "that this kernel has no driver for"},
			{coverage.LeftOut, "whose driver is not in the image"},
			{coverage.NoFirmware, "whose firmware is not in the image"},
			{coverage.Some, "for which some firmware is not in the image; most do without"},
		} {
			var of []string
			for _, l := range c.Lacking {
				if l.Kind == kind.kind && l.State == state.state {
					of = append(of, l.Hosts...)
				}
			}
			slices.Sort(of)
			if n := len(slices.Compact(of)); n > 0 {
				verb := "have"
				if n == 1 {
					verb = "has"
				}
				out = append(out, fmt.Sprintf("%d of %d PCs %s %s %s", n, c.Reported, verb, kind.noun, state.words))
			}
		}
	}
	return out
}

// Bad says whether there is a device that a reimage cannot count on.
func (c *Coverage) Bad() bool {
	return slices.ContainsFunc(c.Lacking, func(l Lacking) bool { return !l.Good() })
}
