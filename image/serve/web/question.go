package web

import (
	"encoding/json"
	"net/http"
	"net/url"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// question is what a host asks a person: whether a disk is its own, or whether its plan is
// right. The page shows it as "reassure accept-disk" and "reassure approve" do.
type question struct {
	Action string // accept or approve
	Host   string
	Disk   *spec.Disk
	Lost   string   // what is on the disk
	Plan   []string // its lines
	// Seen is what the answer is for: another disk, or plan, that comes up meanwhile is none
	// that a person has seen.
	Seen string
}

// asks says whether the action answers a question.
func (a action) asks() bool { return a.Name == "accept" || a.Name == "approve" }

// ask is the question that an action answers; nil where the host has none. A disk may be
// accepted before the host asks, once it has told which it is.
func ask(action string, h *api.HostDetail) *question {
	switch {
	case action == "accept" && h.Target != nil:
		seen, err := json.Marshal(h.Target.Identity())
		if err != nil {
			panic("a disk's identity is not JSON: " + err.Error()) // strings and a number always are
		}
		return &question{Action: action, Host: h.Name, Disk: h.Target, Lost: h.Lost(), Seen: string(seen)}
	case action == "approve" && h.PlanWaits():
		return &question{Action: action, Host: h.Name, Plan: h.Plan.Describe(), Seen: h.Plan.Sum().String()}
	}
	return nil
}

// answer does what a confirmed form says of the questions that it showed.
func (s *Server) answer(c *call, v visitor, name string, form url.Values, why string) ([]api.Outcome, error) {
	hosts, seen := form["host"], form["seen"]
	if len(hosts) != len(seen) {
		return nil, refusef(http.StatusUnprocessableEntity, "the form does not say what was seen of each host")
	}
	if form.Get("sure") == "" {
		return nil, refusef(http.StatusUnprocessableEntity, "nothing was done: tick that you are sure")
	}
	disks, plans := map[string]spec.DiskID{}, map[string]spec.Digest{}
	for i, host := range hosts {
		var err error
		if name == "accept" {
			var id spec.DiskID
			err = json.Unmarshal([]byte(seen[i]), &id)
			disks[host] = id
		} else {
			var sum spec.Digest
			err = sum.UnmarshalText([]byte(seen[i]))
			plans[host] = sum
		}
		if err != nil {
			return nil, refusef(http.StatusUnprocessableEntity, "what was seen of %s cannot be read", host)
		}
	}
	if name == "accept" {
		return s.accept(c, v, api.AcceptRequest{Disks: disks, Why: why})
	}
	return s.approve(c, v, api.ApproveRequest{Plans: plans, Why: why})
}
