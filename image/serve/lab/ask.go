package lab

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// Card returns the host that has a network card.
func (l *Lab) Card(mac spec.MAC) (*spec.Host, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.cards[mac]
	return h, ok
}

// Sighting is a card that was seen on the network.
type Sighting struct {
	MAC spec.MAC
	// Address is what it has, or takes; zero where that did not show.
	Address netip.Addr
	// What it says of itself: "PXE, BIOS".
	What string
}

// maxUnknown is how many unknown cards are remembered: anybody can make up more.
const maxUnknown = 1000

// seenPause is how often an unknown card is saved, at most.
const seenPause = time.Minute

// Seen notes a card that DHCP has seen.
func (l *Lab) Seen(s Sighting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.cards[s.MAC]; h != nil {
		if s.Address.IsValid() {
			l.addresses[s.MAC] = s.Address
		}
		l.record(key(h.Name)).LastSeen = l.Now() // not worth a save
		l.notify(h.Name)
		return
	}
	l.stranger(s)
}

func (l *Lab) stranger(s Sighting) {
	now := l.Now()
	u := l.unknown[s.MAC]
	switch {
	case u == nil && len(l.unknown) >= maxUnknown:
		return
	case u == nil:
		u = &api.Unknown{MAC: s.MAC, First: now}
		l.unknown[s.MAC] = u
	}
	fresh := now.Sub(u.Last) > seenPause
	u.Last = now
	u.Count++
	if s.Address.IsValid() {
		u.IP = s.Address.String()
	}
	if s.What != "" {
		u.What = s.What
	}
	if fresh {
		if err := l.Store.Save(entry(unknownBucket, s.MAC.String(), u)); err != nil {
			l.Logger.Warn("an unknown card will be forgotten", "mac", s.MAC, "error", err)
		}
		l.notify("")
	}
}

// Ask says what the PC with that card, at that address, is to boot. When it says
// Remote, an attempt has begun, and is saved.
func (l *Lab) Ask(mac spec.MAC, from netip.Addr) hosts.Answer {
	from = from.Unmap()
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.cards[mac]
	if h == nil {
		l.stranger(Sighting{MAC: mac, Address: from})
		return hosts.Answer{Decision: hosts.Local, Reason: "this PC is not in the inventory"}
	}
	k, now := key(h.Name), l.Now()
	r := l.record(k)
	// Whoever asks from elsewhere changes nothing: it may be anybody with a browser.
	if err := l.mayHave(mac, h, from); err != nil {
		decision, _ := r.Decide(now, l.Policy, func() hosts.Turn { return hosts.Turn{Reason: err.Error()} })
		l.elsewhere[k] = fmt.Sprintf("%v (at %s)", err, now.Local().Format("15:04:05"))
		l.notify(h.Name)
		l.Logger.Warn("the text of a PC was asked for from elsewhere", "host", h.Name, "address", from, "reason", err)
		return hosts.Answer{Host: h.Name, Decision: decision, Reason: err.Error(), Again: leastWait}
	}
	delete(l.elsewhere, k)
	if r.Repeats(now, from.String()) && (r.Hold == nil || r.Boot.Errand == spec.Rescue) {
		return l.repeat(k, r)
	}
	if r.Boot != nil {
		// It starts anew. What it was doing has ended, whatever it is told now.
		if err := l.change(k, func(r *hosts.Record) { r.Asked(now, l.Policy) }); err != nil {
			return l.unable(r, err)
		}
		r = l.record(k)
	} else {
		r.LastSeen = now
		l.notify(h.Name)
	}
	decision, reason := r.Decide(now, l.Policy, l.turn(k, now, nil))
	a := hosts.Answer{Host: h.Name, Decision: decision, Reason: reason, Again: l.again(r, now)}
	if decision != hosts.Remote {
		return a
	}
	if m := l.manifest(r.Next()); m != nil && !m.HasMAC(mac) {
		a.Decision, a.Reason = hosts.Local, fmt.Sprintf("card %v is new to it since its software was rolled out: roll it out again", mac)
		if r.Broken {
			a.Decision = hosts.Wait
		}
		return a
	}
	id, token := h.Name+"-"+now.UTC().Format("20060102-150405"), rand.Text()
	for n := 2; l.hasAttempt(r, id); n++ {
		id = fmt.Sprintf("%s-%s-%d", h.Name, now.UTC().Format("20060102-150405"), n)
	}
	if err := l.change(k, func(r *hosts.Record) { r.Begin(now, l.Policy, id, token, from.String(), reason) }); err != nil {
		return l.unable(r, err)
	}
	l.tokens[id] = token
	a.Token = token
	l.progress[k] = &api.Progress{Phase: "boot", Started: now, Updated: now}
	l.startLog(id, now, fmt.Sprintf("told Remote at %s: %s", from, reason))
	l.Logger.Info("remote", "host", h.Name, "address", from, "attempt", id, "reason", reason)
	return a
}

// repeat gives a PC that has not yet used its token the same answer again.
func (l *Lab) repeat(k string, r *hosts.Record) hosts.Answer {
	token := l.tokens[r.Boot.ID]
	if token == "" {
		// Only its digest is kept over a restart of the server.
		token = rand.Text()
		if err := l.change(k, func(r *hosts.Record) { r.Boot.Token = hosts.TokenDigest(token) }); err != nil {
			return l.unable(r, err)
		}
		l.tokens[r.Boot.ID] = token
	}
	return hosts.Answer{Host: r.Name, Decision: hosts.Remote, Reason: r.Boot.Reason, Token: token}
}

func (l *Lab) hasAttempt(r *hosts.Record, id string) bool {
	for _, a := range r.History {
		if a.ID == id {
			return true
		}
	}
	return r.Boot != nil && r.Boot.ID == id
}

// unable answers a PC whose fate cannot be saved: its own disk, if that boots.
func (l *Lab) unable(r *hosts.Record, err error) hosts.Answer {
	a := hosts.Answer{Host: r.Name, Decision: hosts.Local, Again: time.Minute, Reason: "the boot server cannot save what it decides: " + err.Error()}
	if r.Broken {
		a.Decision = hosts.Wait
	}
	return a
}

// Bounds on when a PC that waits asks again.
const (
	leastWait = 15 * time.Second
	mostWait  = 2 * time.Minute
)

func (l *Lab) again(r *hosts.Record, now time.Time) time.Duration {
	return min(max(r.NotUntil.Sub(now), leastWait), mostWait)
}

// mayHave says whether whoever asks from an address is the card's own PC, as far
// as the network shows: nobody else may have its token.
func (l *Lab) mayHave(mac spec.MAC, h *spec.Host, from netip.Addr) error {
	if assigned, ok := l.addresses[mac]; ok {
		if assigned != from {
			return fmt.Errorf("it asks from %v, but its card was given %v", from, assigned)
		}
		return nil
	}
	if owner, ok := l.Neighbour(from); ok {
		if owner != mac {
			return fmt.Errorf("it asks from %v, which is the address of card %v", from, owner)
		}
		return nil
	}
	if h.IP != from {
		return fmt.Errorf("it asks from %v, and the inventory gives it %v", from, h.IP)
	}
	return nil
}

// turn is what the host's roll-out says, when it is asked. stands is as in view.
func (l *Lab) turn(k string, now time.Time, stands map[*hosts.Rollout]hosts.Standing) func() hosts.Turn {
	return func() hosts.Turn {
		r := l.record(k)
		roll := l.rolloutOf(r)
		if roll == nil {
			return hosts.Turn{Reason: "what armed it is forgotten: roll it out again"}
		}
		s, ok := stands[roll]
		if !ok {
			s = l.stand(roll)
			if stands != nil {
				stands[roll] = s
			}
		}
		return roll.Turn(k, s, now)
	}
}

func (l *Lab) rolloutOf(r *hosts.Record) *hosts.Rollout {
	for i := len(l.rollouts) - 1; i >= 0; i-- {
		if l.rollouts[i].ID == r.Rollout {
			return l.rollouts[i]
		}
	}
	return nil
}

func (l *Lab) stand(roll *hosts.Rollout) hosts.Standing {
	now := l.Now()
	return roll.Stand(
		func(k string) *hosts.Record {
			if l.candidates[k] == nil {
				return nil
			}
			return l.records[k]
		},
		func(k string) bool { return l.record(k).Awaited(now, l.Policy) })
}

// settle brings a roll-out up to date after a change of one of its hosts, and
// says whether it is to be saved.
func (l *Lab) settle(roll *hosts.Rollout, r *hosts.Record, k string) bool {
	changed := false
	if r.Boot == nil && r.UpToDate() {
		for _, list := range [][]string{roll.Done, roll.Same} {
			for _, name := range list {
				if name == k {
					return false
				}
			}
		}
		roll.Done = append(roll.Done, k)
		changed = true
	}
	if roll.Judge(l.stand(roll), l.Now()) {
		l.Logger.Error("a roll-out has stopped", "rollout", roll.ID, "reason", roll.Stop.Text)
		changed = true
	}
	return changed
}

var _ Store = (*store.Store)(nil)
