package hosts

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"reassure/image/serve/api"
)

// Rollout is hosts that are reimaged in waves: first the canaries, then the
// others, so many at once, until too many have failed. It is pure, as [Record] is.
//
// A host counts as failed from its first failed attempt until one goes well:
// to wait until it is parked would let the next ones run into the same fault.
type Rollout struct {
	ID       string    `json:"id"`
	Started  time.Time `json:"started"`
	By       string    `json:"by,omitempty"`
	Why      string    `json:"why,omitempty"`
	Force    bool      `json:"force,omitempty"`
	Window   *Window   `json:"window,omitempty"`
	Now      bool      `json:"now,omitempty"`
	Canaries int       `json:"canaries"`
	// Canary names the canaries; empty means those that ask first.
	Canary []string  `json:"canary,omitempty"`
	AtOnce int       `json:"at_once"`
	StopAt float64   `json:"stop_at"` // percent
	Hosts  []string  `json:"hosts"`
	Stop   *api.Note `json:"stop,omitempty"`
	// Pardoned are hosts that had failed when a person let it go on.
	Pardoned []string `json:"pardoned,omitempty"`
	// Done are the hosts that it has reimaged; Same those that needed nothing,
	// or that a later roll-out has taken over.
	Done []string `json:"done,omitempty"`
	Same []string `json:"same,omitempty"`
}

// Window is the part of the day in which hosts may begin. It may go over midnight.
type Window struct {
	From, To time.Duration // since midnight, by the server's clock
}

// ParseWindow reads "22:00-06:00".
func ParseWindow(s string) (*Window, error) {
	from, to, ok := strings.Cut(s, "-")
	a, err := time.Parse("15:04", strings.TrimSpace(from))
	b, err2 := time.Parse("15:04", strings.TrimSpace(to))
	if !ok || err != nil || err2 != nil || a.Equal(b) {
		return nil, fmt.Errorf("%q is not a part of the day: write two times, such as 22:00-06:00", s)
	}
	midnight := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	return &Window{From: a.Sub(midnight), To: b.Sub(midnight)}, nil
}

func (w *Window) String() string {
	if w == nil {
		return ""
	}
	write := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", int(d.Hours()), int(d.Minutes())%60) }
	return write(w.From) + "-" + write(w.To)
}

// Open says whether t is in the window. A nil window is always open.
func (w *Window) Open(t time.Time) bool {
	if w == nil {
		return true
	}
	at := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
	if w.From < w.To {
		return at >= w.From && at < w.To
	}
	return at >= w.From || at < w.To
}

// Standing is how far each host of a roll-out is.
type Standing struct {
	Waiting, Running, Done, Failed, Same []string
}

// Stand sorts the hosts. record returns a host's record, or nil for one that is
// gone; called says whether a host was told to start and is awaited.
func (r *Rollout) Stand(record func(string) *Record, called func(string) bool) Standing {
	s := Standing{Done: slices.Clone(r.Done), Same: slices.Clone(r.Same)}
	over := make(map[string]bool, len(r.Done)+len(r.Same))
	for _, list := range [][]string{r.Done, r.Same} {
		for _, name := range list {
			over[name] = true
		}
	}
	for _, name := range r.Hosts {
		if over[name] {
			continue
		}
		h := record(name)
		switch {
		case h == nil || h.Rollout != r.ID:
			s.Same = append(s.Same, name)
		case h.Boot != nil:
			s.Running = append(s.Running, name)
		case h.UpToDate():
			s.Done = append(s.Done, name)
		case h.failedIn(r.ID):
			s.Failed = append(s.Failed, name)
		case called(name):
			s.Running = append(s.Running, name)
		default:
			s.Waiting = append(s.Waiting, name)
		}
	}
	return s
}

// Turn says whether a host may begin at time now.
func (r *Rollout) Turn(host string, s Standing, now time.Time) Turn {
	not := func(format string, args ...any) Turn {
		return Turn{Reason: fmt.Sprintf("roll-out "+r.ID+": "+format, args...)}
	}
	begun := slices.Contains(s.Running, host) || slices.Contains(s.Failed, host)
	switch {
	case r.Stop != nil && (!begun || r.Stop.By != ""):
		// One that stopped by itself lets those try on that had begun.
		t := not("stopped%s", by(r.Stop))
		t.Wave = r.Stop.By == ""
		return t
	case !r.Window.Open(now):
		return not("its turn comes between %v", r.Window)
	case begun:
		return Turn{Now: true}
	}
	if canary, wait := r.canary(host, s); canary {
		return Turn{Now: true}
	} else if wait != "" {
		t := not("%s", wait)
		t.Wave = true
		return t
	}
	if len(s.Running) >= r.AtOnce {
		t := not("%d PCs are being reimaged, and no more at once", len(s.Running))
		t.Wave = true
		return t
	}
	return Turn{Now: true}
}

// canary says whether host may begin as a canary, or else what it waits for.
func (r *Rollout) canary(host string, s Standing) (bool, string) {
	if len(r.Canary) > 0 {
		if slices.Contains(r.Canary, host) {
			return true, ""
		}
		for _, c := range r.Canary {
			if !slices.Contains(s.Done, c) && !slices.Contains(r.Same, c) && !slices.Contains(r.Pardoned, c) {
				return false, "waits for the canary " + c
			}
		}
		return false, ""
	}
	failed := r.counted(s.Failed)
	begun := len(s.Running) + len(s.Done) + len(failed)
	switch {
	case begun < r.Canaries:
		return true, ""
	case len(s.Done) < min(r.Canaries, len(r.Hosts)-len(s.Same)-(len(s.Failed)-len(failed))):
		return false, "waits until the first " + plural(r.Canaries, "PC is", "PCs are") + " well"
	}
	return false, ""
}

// counted are the failed hosts that no person has pardoned.
func (r *Rollout) counted(failed []string) []string {
	return slices.DeleteFunc(slices.Clone(failed), func(name string) bool { return slices.Contains(r.Pardoned, name) })
}

// canaries is how many there are.
func (r *Rollout) canaries() int {
	if len(r.Canary) > 0 {
		return len(r.Canary)
	}
	return r.Canaries
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Judge stops a roll-out of which too many have failed, and says whether it did.
// The share is of those that have begun, but of no fewer than one wave holds: one
// failure among the first three is no trend, one canary in two is.
func (r *Rollout) Judge(s Standing, now time.Time) bool {
	failed := r.counted(s.Failed)
	if r.Stop != nil || len(failed) == 0 {
		return false
	}
	total := len(r.Hosts) - len(s.Same)
	wave := r.AtOnce
	if n := r.canaries(); len(s.Done) < n {
		wave = n
	}
	of := max(len(s.Running)+len(s.Done)+len(failed), min(wave, total))
	if 100*float64(len(failed)) <= r.StopAt*float64(of) {
		return false
	}
	r.Stop = &api.Note{Text: fmt.Sprintf("%d of %d failed, more than %g %%: %s", len(failed), of, r.StopAt, strings.Join(failed, ", ")), At: now}
	return true
}

// Summary is the roll-out for people.
func (r *Rollout) Summary(s Standing) api.Rollout {
	return api.Rollout{
		ID: r.ID, Started: r.Started, By: r.By, Why: r.Why, Force: r.Force, Between: r.Window.String(), Now: r.Now,
		Canaries: r.canaries(), AtOnce: r.AtOnce, StopAt: r.StopAt, Stopped: r.Stop,
		Waiting: s.Waiting, Running: s.Running, Done: s.Done, Failed: s.Failed, Same: s.Same,
	}
}
