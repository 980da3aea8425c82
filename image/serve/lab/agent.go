package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// Manifest returns the manifest of the attempt that token belongs to, and its
// signature, to the PC that it was made for.
func (l *Lab) Manifest(mac spec.MAC, token string, from netip.Addr) (text, signature []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.cards[mac]
	if h == nil {
		return nil, nil, fmt.Errorf("no host has the card %v: %w", mac, api.ErrNotFound)
	}
	k := key(h.Name)
	r := l.record(k)
	if err := l.admit(r, token, from); err != nil {
		return nil, nil, err
	}
	text, err = l.Store.Get(manifestsBucket, r.Boot.Manifest.String())
	if err == nil && text == nil {
		err = fmt.Errorf("the manifest of attempt %s: %w", r.Boot.ID, api.ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	if text, err = l.remembering(text, r); err != nil {
		return nil, nil, err
	}
	// One that asks again and again waits for a person to approve its plan.
	now := l.Now()
	r.Boot.Heard = now
	if !r.Boot.Claimed {
		if err := l.change(k, func(r *hosts.Record) { r.Claim(now) }); err != nil {
			return nil, nil, err
		}
		delete(l.tokens, r.Boot.ID)
	}
	return text, l.Signer.Sign(text, fmt.Sprintf("host %s serial %d", h.Name, l.serialOf(r))), nil
}

// remembering adds to a manifest what the server remembers of the PC's disk, and what
// people have said of it.
func (l *Lab) remembering(text []byte, r *hosts.Record) ([]byte, error) {
	if r.Finished.IsZero() && r.Disk == nil && r.Supersedes == 0 && r.Approved.IsZero() && !r.Boot.Released {
		return text, nil
	}
	m, err := spec.ParseManifest(text)
	if err != nil {
		return nil, err
	}
	m.Finished, m.Approved = r.Finished, r.Approved
	if r.Disk != nil && !slices.Contains(m.Accepted, *r.Disk) {
		m.Accepted = append(m.Accepted, *r.Disk)
	}
	if r.Supersedes != 0 {
		m.Supersedes = r.Supersedes
	}
	if m.Errand != nil {
		m.Errand.Released = r.Boot.Released
	}
	return m.Marshal()
}

func (l *Lab) serialOf(r *hosts.Record) int64 {
	if m := l.manifest(r.Boot.Manifest); m != nil {
		return m.Serial
	}
	return 0
}

// admit says whether token and address are those of the attempt under way.
func (l *Lab) admit(r *hosts.Record, token string, from netip.Addr) error {
	switch {
	case token == "":
		return fmt.Errorf("%s: a token is needed, and only a PC that was told Remote has one: %w", r.Name, api.ErrForbidden)
	case !r.HasToken(token):
		return fmt.Errorf("%s: this token is not, or no longer, that of a reimage under way: %w", r.Name, api.ErrForbidden)
	case r.Boot.Address != from.Unmap().String() && !l.moved(r, from.Unmap()):
		return fmt.Errorf("%s: this token was given to another address: %w", r.Name, api.ErrForbidden)
	}
	return nil
}

// moved says whether a PC has another address than its boot loader had: a site's
// DHCP server may know the two by different client identifiers.
func (l *Lab) moved(r *hosts.Record, from netip.Addr) bool {
	h := l.hostOf(key(r.Name))
	return h != nil && slices.ContainsFunc(h.MACs, func(mac spec.MAC) bool { return l.mayHave(mac, h, from) == nil })
}

// Event takes what a PC reports. host is how the PC names itself in the address
// that it posts to: its name, or 01-MAC.
func (l *Lab) Event(token string, from netip.Addr, host string, e spec.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := key(host)
	if mac, err := spec.ParsePXE(k); err == nil {
		if h := l.cards[mac]; h != nil {
			k = key(h.Name)
		}
	}
	r := l.records[k]
	if r == nil || l.candidates[k] == nil {
		return fmt.Errorf("host %q: %w", host, api.ErrNotFound)
	}
	if l.repeated(r, token, from) {
		if e.Host != "" && key(e.Host) != k {
			return fmt.Errorf("%s reports as %s: %w", r.Name, e.Host, api.ErrForbidden)
		}
		now := l.Now()
		if !clone(r).Late(e, now) {
			return nil
		}
		l.Logger.Info("a PC that was given up has finished", "host", r.Name)
		return l.change(k, func(r *hosts.Record) { r.Late(e, now) })
	}
	if err := l.admit(r, token, from); err != nil {
		return err
	}
	if e.Host != "" && key(e.Host) != k {
		return fmt.Errorf("%s reports as %s: %w", r.Name, e.Host, api.ErrForbidden)
	}
	now := l.Now()
	l.note(r.Boot.ID, now, e)
	l.advance(k, r, e, now)
	delete(l.tokens, r.Boot.ID)
	like := l.approvedBefore(r, e)
	observe := func(r *hosts.Record) bool {
		changed := r.Observe(e, now, l.Policy)
		if like {
			r.Approved = e.Plan.Sum()
		}
		return changed
	}
	next := clone(r)
	if !observe(next) {
		l.records[k] = next
		l.notify(r.Name)
		return nil
	}
	entries := []store.Entry{}
	if log := l.logs[r.Boot.ID]; log != nil {
		entries = append(entries, store.Entry{Bucket: logsBucket, Key: r.Boot.ID, Value: log.text})
	}
	if err := l.change(k, func(r *hosts.Record) { observe(r) }, entries...); err != nil {
		return err
	}
	switch e.Kind {
	case spec.EventDone, spec.EventUpToDate:
		l.Logger.Info(string(e.Kind), "host", r.Name, "software", e.Digest.Short())
	case spec.EventFailure:
		l.Logger.Warn("a reimage failed", "host", r.Name, "reason", e.Text, "final", e.Final)
	}
	return nil
}

// repeated says whether the event belongs to the attempt that has ended last: a
// PC posts again what it got no answer to.
func (l *Lab) repeated(r *hosts.Record, token string, from netip.Addr) bool {
	return r.Boot == nil && r.Spent != nil && token != "" && r.Spent.Token == hosts.TokenDigest(token) &&
		(r.Spent.Address == from.Unmap().String() || l.moved(r, from.Unmap()))
}

// advance keeps the progress of a running reimage, which is not saved.
func (l *Lab) advance(k string, r *hosts.Record, e spec.Event, now time.Time) {
	p := l.progress[k]
	if p == nil {
		p = &api.Progress{Started: r.Boot.Started}
		l.progress[k] = p
	}
	if e.Phase != p.Phase && e.Phase != "" {
		*p = api.Progress{Started: p.Started, Phase: e.Phase}
	}
	p.Attempt, p.Updated = e.Attempt, now
	switch e.Kind {
	case spec.EventProgress:
		p.Text, p.Done, p.Total, p.Rate, p.ETA = e.Text, e.Done, e.Total, e.Rate, e.ETA
	case spec.EventStep, spec.EventFailure, spec.EventRescue:
		p.Text = firstLine(e.Text)
	case spec.EventPhase:
		if e.Phase == spec.PhaseApproval {
			p.Text = "waits for a person: reassure approve " + r.Name
		}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// maxLog is how many bytes are kept of an attempt's log; its middle is cut out.
const maxLog = 256 << 10

// logText is the log of an attempt under way.
type logText struct{ text []byte }

func (t *logText) add(line string) {
	if len(line) > 4096 {
		line = line[:4096] + " ..."
	}
	line = harmless(line)
	t.text = append(append(t.text, line...), '\n')
	if len(t.text) > maxLog {
		const cut = "... (lines left out here)\n"
		head, tail := t.text[:maxLog/4], t.text[len(t.text)-maxLog/2:]
		t.text = append(append(append([]byte{}, head...), "\n"+cut...), tail...)
	}
}

// harmless leaves out control characters: what a PC sends is shown on terminals.
func harmless(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, line)
}

func (l *Lab) startLog(id string, now time.Time, line string) {
	t := &logText{}
	t.add(stampTime(now) + " server: " + line)
	l.logs[id] = t
}

func stampTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// note adds an event to its attempt's log.
func (l *Lab) note(id string, now time.Time, e spec.Event) {
	t := l.logs[id]
	if t == nil {
		t = &logText{}
		l.logs[id] = t
	}
	at := stampTime(now) + " "
	for _, line := range e.Log {
		for part := range strings.Lines(line) {
			t.add("    " + strings.TrimRight(part, "\n"))
		}
	}
	switch e.Kind {
	case spec.EventProgress:
	case spec.EventPhase:
		t.add(at + "phase " + e.Phase)
	case spec.EventFailure:
		t.add(at + "FAILED in phase " + e.Phase + ": " + e.Text)
	case spec.EventKeys:
		t.add(at + "reported its SSH host keys")
	default:
		line := at + string(e.Kind)
		if e.Text != "" {
			line += ": " + e.Text
		}
		t.add(line)
	}
}

// endLog returns what saves the log of an attempt that has ended.
func (l *Lab) endLog(id string, r *hosts.Record) []store.Entry {
	t := &logText{}
	if under := l.logs[id]; under != nil {
		t.text = append(t.text, under.text...)
	}
	for _, a := range r.History {
		if a.ID == id {
			t.add(fmt.Sprintf("%s server: %s", stampTime(a.Ended), strings.TrimSuffix(string(a.Result)+": "+a.Text, ": ")))
		}
	}
	return []store.Entry{{Bucket: logsBucket, Key: id, Value: t.text}}
}

// Log returns the log of one of a host's attempts; without an attempt, of its newest.
func (l *Lab) Log(name, attempt string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.known(name)
	if err != nil {
		return "", err
	}
	if attempt == "" {
		switch n := len(r.History); {
		case r.Boot != nil:
			attempt = r.Boot.ID
		case n > 0:
			attempt = r.History[n-1].ID
		default:
			return "", fmt.Errorf("%s has never been told Remote: %w", r.Name, api.ErrNotFound)
		}
	}
	if !l.hasAttempt(r, attempt) {
		return "", fmt.Errorf("%s has no attempt %q: %w", r.Name, attempt, api.ErrNotFound)
	}
	if t := l.logs[attempt]; t != nil {
		return string(t.text), nil
	}
	text, err := l.Store.Get(logsBucket, attempt)
	return string(text), err
}

// known returns the record of a host of the inventory.
func (l *Lab) known(name string) (*hosts.Record, error) {
	k := key(name)
	if l.candidates[k] == nil {
		return nil, fmt.Errorf("host %q: %w", name, api.ErrNotFound)
	}
	return l.record(k), nil
}
