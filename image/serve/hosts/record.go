package hosts

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// Record is what the boot server holds about a host, over restarts. Its methods
// are a pure state machine: they read no clock and do no I/O. Whoever calls one
// that changes the record saves it before acting on it.
//
//	          Arm                Begin                 Observe(done)
//	current ───────▶ armed ───────────────▶ running ─────────────────▶ current
//	                   ▲                       │ Observe(final failure), Expire, or it asks anew
//	                   │  after a pause        ▼
//	                   └───────────────── retrying ──▶ parked, after Policy.Most of them
//	                                                     │ Release
//	                   ◀─────────────────────────────────┘
//
// A final failure that asks something ([spec.Event].Ask) parks at once, and counts for
// nothing; Accept and Approve answer, as Release does.
type Record struct {
	Name string `json:"name"`
	// Wanted is the software that was rolled out to the host last.
	Wanted *Software `json:"wanted,omitempty"`
	// Installed is the software that the PC last reported to hold.
	Installed *Software `json:"installed,omitempty"`
	// Finished is the digest of the index of the finished tree that the PC reported
	// when it was last reimaged; zero is none.
	Finished spec.Digest `json:"finished,omitzero"`
	// Broken: the disk was written to and no reimage has been whole since.
	Broken bool `json:"broken,omitempty"`
	// Rollout is the roll-out that armed the host last.
	Rollout string `json:"rollout,omitempty"`

	// Disk is the host's own: the one that it was reimaged on last, or that a person
	// has accepted; nil is not known yet.
	Disk *spec.DiskID `json:"disk,omitempty"`
	// Target is the disk that the host's rule meant when it last looked, with what was
	// on it; nil: it could not tell.
	Target *spec.Disk `json:"target,omitempty"`
	// Stamp is the serial on that disk then; 0 is none.
	Stamp int64 `json:"stamp,omitempty"`
	// Supersedes is the serial on its disk that a person let pass though it is above
	// that of the host's manifest.
	Supersedes int64 `json:"supersedes,omitempty"`
	// Approved is the digest of the plan that was found right last.
	Approved spec.Digest `json:"approved,omitzero"`
	// Ask is what it is parked for, if a person has to say something.
	Ask spec.Ask `json:"ask,omitempty"`

	Hold     *api.Note `json:"hold,omitempty"`
	Parked   *api.Note `json:"parked,omitempty"`
	Failures int       `json:"failures,omitempty"` // attempts since it was last well, or released
	NotUntil time.Time `json:"not_until,omitzero"` // of the next attempt
	// Free: a person released it after it had failed, so that its roll-out's
	// waves do not hold it back.
	Free bool `json:"free,omitempty"`
	// Calls is how often the PC was told to start since it was armed or released,
	// without asking, and CalledAt when it was last.
	Calls    int       `json:"calls,omitempty"`
	CalledAt time.Time `json:"called_at,omitzero"`

	// Errand is to be done at the PC's next boot, before any reimage.
	Errand *Errand `json:"errand,omitempty"`
	// Verified is what the last verification found.
	Verified *api.Verified `json:"verified,omitempty"`

	// Boot is the attempt that is under way; nil is none.
	Boot *Boot `json:"boot,omitempty"`
	// Spent is what the attempt that ended last was known by: a PC posts again
	// what it got no answer to.
	Spent *Spent `json:"spent,omitempty"`
	// History holds the attempts that have ended, the newest last.
	History []api.Attempt `json:"history,omitempty"`

	Facts    *spec.Facts `json:"facts,omitempty"`
	Plan     *spec.Plan  `json:"plan,omitempty"`
	HostKeys []string    `json:"host_keys,omitempty"`
	LastSeen time.Time   `json:"last_seen,omitzero"`
	LastDone time.Time   `json:"last_done,omitzero"`
}

// Software is one version of a host's software.
type Software struct {
	Digest spec.Digest `json:"digest"`
	Serial int64       `json:"serial"`
	// Order is the forced reimage that it belongs to, if it does.
	Order string `json:"order,omitempty"`
	// Manifest is the digest of the manifest's text; zero where the server has
	// never had it, for a PC that another server reimaged.
	Manifest spec.Digest `json:"manifest,omitzero"`
}

// Boot is an attempt that is under way.
type Boot struct {
	api.Attempt
	Manifest spec.Digest `json:"manifest"` // of the text that this boot gets
	Token    spec.Digest `json:"token"`    // SHA-256 of its token
	// Claimed: the PC has used the token, so that our program runs on it.
	Claimed bool `json:"claimed,omitempty"`
	// Released: its rescue is to end.
	Released bool      `json:"released,omitempty"`
	Heard    time.Time `json:"heard"` // of it, last
}

// Errand is an errand with the manifest that it is done by.
type Errand struct {
	api.Errand
	Manifest spec.Digest `json:"manifest"` // of its text
	Digest   spec.Digest `json:"digest"`   // of the software
}

// reason says it for people.
func (e *Errand) reason() string {
	what := map[spec.ErrandKind]string{spec.Verify: "to be verified", spec.Capture: "to be captured", spec.Rescue: "to be rescued"}
	return what[e.Kind] + by(&e.Note)
}

// Spent is the token of an attempt that has ended, and where it was used.
type Spent struct {
	Token   spec.Digest `json:"token"`
	Address string      `json:"address"`
}

// Policy is how often and how fast attempts follow each other.
type Policy struct {
	Most  int           // attempts until the host is parked
	Pause time.Duration // after the first that failed; it doubles
	Lease time.Duration // how long nothing may be heard of an attempt
}

// longestPause is where pauses stop growing.
const longestPause = time.Hour

// maxHistory is how many attempts are kept of each host.
const maxHistory = 20

// askAgain is how long a PC that has not yet used its token may ask for the same
// file again and get the same: boot loaders do, when a packet is lost.
const askAgain = 2 * time.Minute

// Turn says whether a roll-out lets a host begin now.
type Turn struct {
	Now    bool
	Reason string // why not
	// Wave: only the waves hold it back, which a released host need not wait for.
	Wave bool
}

// UpToDate says whether the host holds what was rolled out to it.
func (r *Record) UpToDate() bool {
	return r.Wanted != nil && r.Installed != nil && !r.Broken &&
		r.Installed.Digest == r.Wanted.Digest && (r.Wanted.Order == "" || r.Installed.Order == r.Wanted.Order)
}

// Due says whether the host is to be reimaged, sooner or later.
func (r *Record) Due() bool { return r.Wanted != nil && !r.UpToDate() }

// Decide says what the PC is to be told at time now, and why. turn is asked only
// when all else says Remote.
func (r *Record) Decide(now time.Time, p Policy, turn func() Turn) (Decision, string) {
	// A disk that does not boot has nothing to go on into.
	local := Local
	if r.Broken {
		local = Wait
	}
	switch {
	case r.rescue():
		return Remote, r.Errand.reason()
	case r.Hold != nil:
		return local, "held" + by(r.Hold)
	case r.errandDue():
		return Remote, r.Errand.reason()
	case r.Parked != nil:
		return local, "parked" + by(r.Parked)
	case r.Wanted == nil:
		return local, "nothing was rolled out to it yet"
	case r.UpToDate():
		return Local, "up to date: it holds software " + r.Wanted.Digest.Short()
	case now.Before(r.NotUntil):
		return local, fmt.Sprintf("attempt %d of %d failed; the next is due at %s", r.Failures, p.Most, clock(r.NotUntil))
	}
	if t := turn(); !t.Now && !(r.Free && t.Wave) {
		return local, t.Reason
	}
	return Remote, r.dueReason()
}

// errandDue says whether the PC's next boot is for its errand, unless the host is held. A
// disk that does not boot has no system to look at, but people may.
func (r *Record) errandDue() bool { return r.rescue() || r.Errand != nil && !r.Broken }

// rescue says whether the PC's next boot is for people who log in: of a host that is held, too.
func (r *Record) rescue() bool { return r.Errand != nil && r.Errand.Kind == spec.Rescue }

// inRescue says whether the attempt under way is a rescue.
func (r *Record) inRescue() bool { return r.Boot != nil && r.Boot.Errand == spec.Rescue }

func (r *Record) dueReason() string {
	switch {
	case r.Broken:
		return "its last reimage was not finished"
	case r.Installed == nil:
		return fmt.Sprintf("software %s is wanted, and what is installed is not known", r.Wanted.Digest.Short())
	case r.Installed.Digest != r.Wanted.Digest:
		return fmt.Sprintf("software %s is installed, %s is wanted", r.Installed.Digest.Short(), r.Wanted.Digest.Short())
	}
	return "a reimage was asked for by order " + r.Wanted.Order
}

func by(n *api.Note) string {
	s := ""
	if n.By != "" {
		s = " by " + n.By
	}
	if n.Text != "" {
		s += ": " + n.Text
	}
	return s
}

// clock writes a time of day as people on the server's side of the world read it.
func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// Arm rolls software out to the host. A host that is parked stays so until it is released.
func (r *Record) Arm(s Software, rollout string) {
	r.Wanted, r.Rollout, r.Free = &s, rollout, false
	r.Calls, r.CalledAt = 0, time.Time{}
	// What failed before says nothing of other software.
	if r.Parked == nil {
		r.Failures, r.NotUntil = 0, time.Time{}
	}
}

// failedIn says whether the last attempt that the host made was one of a
// roll-out, and failed.
func (r *Record) failedIn(rollout string) bool {
	if r.Failures == 0 || len(r.History) == 0 {
		return false
	}
	for _, last := range slices.Backward(r.History) {
		if last.Errand == "" {
			return last.Rollout == rollout && last.Result != api.Done && last.Result != api.UpToDate
		}
	}
	return false
}

// Late notes that a PC whose attempt was given up as silent has finished all the
// same: it had only not been heard. It says whether that was so.
func (r *Record) Late(e spec.Event, now time.Time) bool {
	n := len(r.History)
	if n == 0 || r.Boot != nil || e.Installed == nil || !e.Installed.Whole || e.Kind != spec.EventDone && e.Kind != spec.EventUpToDate {
		return false
	}
	last := &r.History[n-1]
	if last.Result != api.Vanished {
		return false
	}
	s := Software{Digest: e.Installed.Digest, Serial: e.Installed.Serial, Order: e.Installed.Order}
	if r.Wanted != nil && r.Wanted.Digest == s.Digest && r.Wanted.Serial == s.Serial {
		s.Manifest = r.Wanted.Manifest
	}
	last.Result, last.Ended, last.Text = api.Done, now, "heard of again after it had been given up"
	if e.Kind == spec.EventUpToDate {
		last.Result = api.UpToDate
	} else {
		r.LastDone, r.Finished = now, e.Finished
	}
	r.Installed, r.Broken = &s, false
	r.settle(e.Kind)
	r.Failures, r.NotUntil, r.Parked, r.LastSeen = 0, time.Time{}, nil, now
	return true
}

// MostCalls is how often a PC is told to start that then does not ask: it may be
// in use, and boot from something else than the network.
const MostCalls = 2

// Call notes that the PC is told to start.
func (r *Record) Call(now time.Time) { r.Calls, r.CalledAt = r.Calls+1, now }

// Awaited says whether the PC was told to start and may still ask.
func (r *Record) Awaited(now time.Time, p Policy) bool {
	return r.Calls > 0 && now.Sub(r.CalledAt) < p.Lease
}

// Repeats says whether a PC that asks at time now from address is one that got
// Remote a moment ago and has not used it yet.
func (r *Record) Repeats(now time.Time, address string) bool {
	b := r.Boot
	return b != nil && !b.Claimed && b.Address == address && now.Sub(b.Started) < askAgain && b.Manifest == r.Next()
}

// Next is the manifest that a Remote boot gets; zero is none.
func (r *Record) Next() spec.Digest {
	switch {
	case r.errandDue():
		return r.Errand.Manifest
	case r.Wanted != nil:
		return r.Wanted.Manifest
	}
	return spec.Digest{}
}

// Begin begins an attempt. One that was under way has ended: the PC asked anew.
func (r *Record) Begin(now time.Time, p Policy, id, token, address, reason string) {
	r.Asked(now, p)
	r.Calls, r.CalledAt = 0, time.Time{}
	a := api.Attempt{ID: id, Started: now, Result: api.UnderWay, Reason: reason, Address: address}
	if r.errandDue() {
		a.Digest, a.Errand = r.Errand.Digest, r.Errand.Kind
	} else {
		a.Digest, a.Order, a.Rollout = r.Wanted.Digest, r.Wanted.Order, r.Rollout
	}
	r.Boot = &Boot{Attempt: a, Manifest: r.Next(), Token: TokenDigest(token), Heard: now}
	r.LastSeen = now
}

// Asked notes that the PC asks what to boot: an attempt that was under way has
// come to its end without a word.
func (r *Record) Asked(now time.Time, p Policy) {
	r.LastSeen = now
	switch {
	case r.inRescue() && r.Boot.Claimed:
		r.end(now, p, api.Done, "the PC was started anew") // as people end it who have logged in
	case r.Boot != nil:
		r.end(now, p, api.Restarted, "the PC started anew in the middle of it"+r.phase())
	}
}

// Expire ends an attempt that nothing was heard of for the policy's lease, and
// says whether there was one.
func (r *Record) Expire(now time.Time, p Policy) bool {
	if r.Boot == nil || now.Sub(r.Boot.Heard) < p.Lease {
		return false
	}
	r.end(now, p, api.Vanished, fmt.Sprintf("nothing was heard of it for %v%s", p.Lease, r.phase()))
	return true
}

func (r *Record) phase() string {
	if n := len(r.Boot.Phases); n > 0 {
		return ", last seen in phase " + r.Boot.Phases[n-1].Name
	}
	if !r.Boot.Claimed {
		return ", before our program ran"
	}
	return ""
}

// TokenDigest is what is kept of a token.
func TokenDigest(token string) spec.Digest { return sha256.Sum256([]byte(token)) }

// HasToken says whether token is that of the attempt under way.
func (r *Record) HasToken(token string) bool {
	if r.Boot == nil {
		return false
	}
	d := TokenDigest(token)
	return subtle.ConstantTimeCompare(d[:], r.Boot.Token[:]) == 1
}

// Claim notes that the PC has used its token.
func (r *Record) Claim(now time.Time) {
	r.Boot.Claimed, r.Boot.Heard, r.LastSeen = true, now, now
}

// Observe notes what the PC reports of the attempt under way. It says whether
// the record has changed in a way that must be saved; progress has not.
func (r *Record) Observe(e spec.Event, now time.Time, p Policy) (changed bool) {
	b := r.Boot
	if !b.Claimed {
		changed = true
	}
	r.Claim(now)
	if e.Facts != nil {
		r.Facts, changed = e.Facts, true
	}
	if e.Plan != nil {
		r.Plan, changed = e.Plan, true
	}
	if len(e.HostKeys) > 0 {
		r.HostKeys, changed = e.HostKeys, true
	}
	if e.Phase != "" && (len(b.Phases) == 0 || b.Phases[len(b.Phases)-1].Name != e.Phase) {
		// Only the names so far; the times come at the end.
		b.Phases, changed = append(b.Phases, spec.PhaseTime{Name: e.Phase}), true
	}
	if len(e.Phases) > 0 {
		b.Phases = e.Phases
	}
	if e.Wrote && !r.Broken && e.Kind != spec.EventDone {
		// Whatever was installed is no more.
		r.Broken, r.Installed, changed = true, nil, true
	}
	switch e.Kind {
	case spec.EventStart:
		changed = true
		r.Target, r.Stamp = e.Target, 0
		if e.Installed != nil {
			r.Stamp = e.Installed.Serial
		}
		if e.Installed != nil && e.Installed.Whole {
			r.setInstalled(e.Installed)
		} else if e.Installed != nil {
			r.Installed, r.Broken = nil, true
		} else {
			r.Installed = nil
		}
	case spec.EventProgress:
		b.Bytes = max(b.Bytes, e.Done)
	case spec.EventFailure:
		changed = true
		b.Text = e.Text
		if e.Final {
			r.Ask = e.Ask
			r.end(now, p, api.Failed, e.Text)
		}
	case spec.EventRescue:
		changed = true
		b.Text = e.Text
	case spec.EventErrand:
		changed = true
		if e.Verified != nil && r.Errand != nil && b.Errand == spec.Verify {
			r.Verified = &api.Verified{At: now, ID: r.Errand.ID, Digest: b.Digest, Verified: *e.Verified}
		}
		r.end(now, p, api.Done, e.Text)
	case spec.EventDone, spec.EventUpToDate:
		changed = true
		r.well(e, now, p)
	}
	return changed
}

// setInstalled takes what a PC says that its disk holds.
func (r *Record) setInstalled(i *spec.Installed) {
	s := Software{Digest: i.Digest, Serial: i.Serial, Order: i.Order}
	// Which text that was is known if it is one that we gave.
	for _, known := range []*Software{r.Installed, r.Wanted} {
		if known != nil && known.Digest == s.Digest && known.Serial == s.Serial {
			s.Manifest = known.Manifest
		}
	}
	r.Installed, r.Broken = &s, false
}

// well ends an attempt after which the PC holds what this boot was given.
func (r *Record) well(e spec.Event, now time.Time, p Policy) {
	b := r.Boot
	s := Software{Digest: b.Digest, Order: b.Order, Manifest: b.Manifest}
	if e.Installed != nil {
		s.Digest, s.Serial, s.Order = e.Installed.Digest, e.Installed.Serial, e.Installed.Order
	}
	if e.Kind == spec.EventUpToDate {
		// It keeps the texts that it had.
		s.Manifest = spec.Digest{}
		for _, known := range []*Software{r.Installed, r.Wanted} {
			if known != nil && known.Digest == s.Digest && known.Serial == s.Serial {
				s.Manifest = known.Manifest
			}
		}
	} else {
		r.LastDone, r.Finished = now, e.Finished
		if r.Plan != nil {
			// Progress comes once a second, and for one wad at a time.
			b.Bytes = 0
			for _, w := range r.Plan.Wads {
				b.Bytes += w.Size
			}
		}
	}
	r.Installed, r.Broken = &s, false
	r.settle(e.Kind)
	result := api.Done
	if e.Kind == spec.EventUpToDate {
		result = api.UpToDate
	}
	r.end(now, p, result, e.Text)
}

// settle remembers which disk the host has been reimaged on, and that what people have
// said of this reimage is used up. A disk that was only found up to date takes no
// other's place.
func (r *Record) settle(how spec.EventKind) {
	if r.Target != nil && (how == spec.EventDone || r.Disk == nil) {
		id := r.Target.Identity()
		r.Disk = &id
	}
	r.Supersedes, r.Approved = 0, spec.Digest{}
}

// Accept notes that a disk is the host's, whatever is on it, and says what followed.
func (r *Record) Accept(id spec.DiskID) string {
	r.Disk = &id
	if r.Ask != spec.AskDisk {
		return "accepted"
	}
	r.Ask, r.Parked = "", nil
	return "accepted, and no longer parked"
}

// Approve notes that the host's plan of that digest is right, and says what followed.
func (r *Record) Approve(sum spec.Digest) string {
	r.Approved = sum
	if r.Ask != spec.AskPlan {
		return "approved"
	}
	r.Ask, r.Parked = "", nil
	return "approved, and no longer parked"
}

// end moves the attempt under way into the history.
func (r *Record) end(now time.Time, p Policy, result api.Result, text string) {
	a := r.Boot.Attempt
	a.Ended, a.Result = now, result
	r.Spent = &Spent{r.Boot.Token, r.Boot.Address}
	if text != "" {
		a.Text = text
	}
	r.Boot = nil
	r.History = append(r.History, a)
	if n := len(r.History) - maxHistory; n > 0 {
		r.History = append([]api.Attempt{}, r.History[n:]...)
	}
	if a.Errand != "" {
		// It is tried once, and says nothing of reimages.
		r.Errand = nil
		return
	}
	if result == api.Done || result == api.UpToDate {
		r.Failures, r.NotUntil, r.Parked, r.Free, r.Ask = 0, time.Time{}, nil, false, ""
		return
	}
	if result == api.Failed && r.Ask != "" {
		// Nothing has failed, and trying again would only ask again.
		r.Parked = &api.Note{Text: text, At: now}
		r.History[len(r.History)-1].Result = api.Asked
		return
	}
	r.Failures++
	pause := p.Pause
	for i := 1; i < r.Failures && pause < longestPause; i++ {
		pause *= 2
	}
	r.NotUntil = now.Add(min(pause, longestPause))
	if r.Failures >= p.Most && r.Parked == nil {
		r.Parked = &api.Note{Text: fmt.Sprintf("%d attempts failed; the last: %s", r.Failures, a.Text), At: now}
	}
}

// Release lifts a hold and a parking, and says what it lifted; nothing is "". A rescue is
// ended before that, and alone: whoever ends it has not said that the disk may be lost.
func (r *Record) Release() string {
	switch {
	case r.inRescue():
		r.Boot.Released = true
		return "its rescue ends within seconds" + r.leftOver()
	case r.rescue():
		r.Errand = nil
		return "its rescue is called off" + r.leftOver()
	}
	was := ""
	switch {
	case r.Hold != nil && r.Parked != nil:
		was = "no longer held, and no longer parked"
	case r.Hold != nil:
		was = "no longer held"
	case r.Parked != nil:
		was = "no longer parked"
	case r.Failures > 0:
		was = "its next attempt may begin at once"
	case r.Calls >= MostCalls:
		was = "it may be told to start again"
	}
	switch r.Ask {
	case spec.AskSerial:
		r.Supersedes = r.Stamp
		was = strings.TrimPrefix(was+", and its next reimage may replace what calls itself newer", ", and ")
	case spec.AskDisk:
		was += ", and asks again at its next boot: reassure accept-disk says that what is on its disk may be lost"
	}
	r.Free = r.Free || r.Failures > 0
	r.Ask = ""
	r.Calls, r.CalledAt = 0, time.Time{}
	r.Hold, r.Parked, r.Failures, r.NotUntil = nil, nil, 0, time.Time{}
	return was
}

// leftOver says what the end of a rescue does not lift.
func (r *Record) leftOver() string {
	switch {
	case r.Hold != nil:
		return "; it stays held: release it again to lift that"
	case r.Parked != nil:
		return "; it stays parked: release it again to lift that"
	}
	return ""
}

// State is the record's state in one word. candidate is the digest that the
// site's files ask for; zero is none.
func (r *Record) State(candidate spec.Digest) api.State {
	switch {
	case r.Boot != nil:
		return api.Running
	case r.Hold != nil:
		return api.Held
	case r.Parked != nil:
		return api.Parked
	case r.Failures > 0 && r.Due():
		return api.Retrying
	case r.Due():
		return api.Armed
	case r.Wanted == nil:
		return api.New
	case !candidate.IsZero() && candidate != r.Wanted.Digest:
		return api.Changed
	}
	return api.Current
}
