// Package lab is the lab as the boot server knows it: the site's files as they
// were last read, a record of every host, and the roll-outs. It decides what a
// PC is told, gives a PC its manifest, takes what it reports, and does what a
// person orders.
//
// Three versions of a host's software are kept apart:
//
//	candidate   as the site's files say now; changes with every valid edit
//	wanted      as it was rolled out; only an order changes it (or rollout: auto)
//	installed   as the PC reported
//
// wanted and installed decide. What changes in volatile files, and in what is not
// software (the disk rule, what to do on failure), goes into wanted at once, for
// it reimages nobody.
//
// Every change is saved before anybody is told of it; see package store. Progress
// is not: it is news, and the next one comes in a second.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/publish"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// Store keeps what must not be forgotten; [store.Store] does.
type Store interface {
	Load(bucket string, each func(key string, value []byte) error) error
	Get(bucket, key string) ([]byte, error)
	Save(entries ...store.Entry) error
}

// The store's buckets.
const (
	hostsBucket     = "hosts"     // host's name in lower case -> hosts.Record
	manifestsBucket = "manifests" // digest of its text -> text
	logsBucket      = "logs"      // attempt -> text
	rolloutsBucket  = "rollouts"  // ID -> hosts.Rollout
	unknownBucket   = "unknown"   // MAC -> api.Unknown
	metaBucket      = "meta"
)

// Waves are what a roll-out does unless it is told otherwise.
type Waves struct {
	Canaries int
	AtOnce   int
	StopAt   float64 // percent
}

// Options describe a [Lab]. Site, State, Store and Signer are needed.
type Options struct {
	Site  string // the site's folder
	State string // the server's own folder; wads go below it
	// Drivers is the file that says what the image that PCs boot has of drivers
	// ([coverage.File]); empty, or not there, means that nobody knows.
	Drivers string
	// Initramfs is the file of the image that PCs boot; the program that verifies a
	// running system comes from it.
	Initramfs string
	Store     Store
	Signer    publish.Signer
	Policy    hosts.Policy
	Waves     Waves
	// Neighbour returns the card that the kernel knows at an address; nil knows none.
	Neighbour func(netip.Addr) (spec.MAC, bool)
	// SSH logs into PCs as root to restart them; nil cannot.
	SSH ssh.Signer
	// Accept says what else is wrong with a site before it is taken; nil is nothing.
	Accept func(spec.Inventory) error
	// Ended is told of every attempt that has ended, and Read of every time that
	// the site was read, with its error; nil is nobody. They must not block.
	Ended func(api.Result)
	Read  func(error)
	// Interfaces are where wake-on-LAN packets go out.
	Interfaces []string
	Now        func() time.Time // nil means time.Now
	Logger     *slog.Logger     // nil means silence
}

// Lab is safe for concurrent use.
type Lab struct {
	Options
	base string // path of the site's URL, without a slash at its end

	reloading sync.Mutex             // held while the site is read
	read      atomic.Pointer[string] // fingerprint of the files that were judged last

	judges judges

	mu         sync.Mutex
	site       *resolve.Site
	candidates map[string]*spec.Manifest // by key
	cards      map[spec.MAC]*spec.Host
	order      []string       // keys, in the inventory's order
	places     map[string]int // of keys, in that order
	records    map[string]*hosts.Record
	rollouts   []*hosts.Rollout // the newest last
	unknown    map[spec.MAC]*api.Unknown
	texts      map[spec.Digest]*spec.Manifest // manifests read, by their text's digest
	drifted    map[[2]spec.Digest]int         // files that differ between two manifests' texts
	serial     int64                          // the highest ever given
	unsaved    error                          // why the last change could not be saved

	addresses map[spec.MAC]netip.Addr  // that DHCP has seen a card take
	elsewhere map[string]string        // by key: why the last that asked in its place was no good
	tokens    map[string]string        // attempt -> token, of those not yet used
	progress  map[string]*api.Progress // by key
	logs      map[string]*logText      // attempt -> log, of those under way
	captures  map[string]func()        // attempt -> ends the transfer that is under way
	sshPort   string                   // of PCs
	watchers  map[chan string]map[string]bool
}

// Open reads what the store holds and the site, and is ready to answer.
func Open(ctx context.Context, o Options) (*Lab, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Ended == nil {
		o.Ended = func(api.Result) {}
	}
	if o.Read == nil {
		o.Read = func(error) {}
	}
	if o.Neighbour == nil {
		o.Neighbour = func(netip.Addr) (spec.MAC, bool) { return spec.MAC{}, false }
	}
	l := &Lab{
		Options: o, sshPort: "22", records: map[string]*hosts.Record{}, unknown: map[spec.MAC]*api.Unknown{},
		texts: map[spec.Digest]*spec.Manifest{}, addresses: map[spec.MAC]netip.Addr{}, tokens: map[string]string{}, elsewhere: map[string]string{},
		drifted:  map[[2]spec.Digest]int{},
		progress: map[string]*api.Progress{}, logs: map[string]*logText{},
		watchers: map[chan string]map[string]bool{},
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	if _, err := l.Reload(ctx, ""); err != nil {
		return nil, err
	}
	return l, nil
}

// load reads the store.
func (l *Lab) load() error {
	err := l.Store.Load(hostsBucket, func(key string, value []byte) error {
		r := new(hosts.Record)
		l.records[key] = r
		return json.Unmarshal(value, r)
	})
	err = errors.Join(err, l.Store.Load(rolloutsBucket, func(_ string, value []byte) error {
		r := new(hosts.Rollout)
		l.rollouts = append(l.rollouts, r)
		return json.Unmarshal(value, r)
	}))
	err = errors.Join(err, l.Store.Load(unknownBucket, func(_ string, value []byte) error {
		u := new(api.Unknown)
		if err := json.Unmarshal(value, u); err != nil {
			return err
		}
		l.unknown[u.MAC] = u
		return nil
	}))
	meta, err2 := l.Store.Get(metaBucket, "serial")
	if err = errors.Join(err, err2); err != nil {
		return err
	}
	if meta != nil {
		if err := json.Unmarshal(meta, &l.serial); err != nil {
			return err
		}
	}
	slices.SortFunc(l.rollouts, func(a, b *hosts.Rollout) int { return a.Started.Compare(b.Started) })
	now := l.Now()
	for key, r := range l.records {
		if r.Boot == nil {
			continue
		}
		// The time that the server was away is not the PC's silence.
		r.Boot.Heard = now
		text, err := l.Store.Get(logsBucket, r.Boot.ID)
		if err != nil {
			return err
		}
		l.logs[r.Boot.ID] = &logText{text: text}
		l.progress[key] = &api.Progress{Started: r.Boot.Started, Updated: now}
		l.Logger.Info("goes on with a reimage that was under way", "host", r.Name, "attempt", r.Boot.ID)
	}
	return nil
}

// key is how a host's name is looked up.
func key(name string) string { return strings.ToLower(name) }

// record returns a host's record, a new one if there is none yet.
func (l *Lab) record(k string) *hosts.Record {
	r := l.records[k]
	if r == nil {
		r = &hosts.Record{Name: k}
		if i := slices.Index(l.order, k); i >= 0 {
			r.Name = l.site.Inventory.Hosts[i].Name
		}
		l.records[k] = r
	}
	return r
}

func entry(bucket, k string, v any) store.Entry {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lab: %T is not JSON: %v", v, err)) // the types hold nothing that JSON cannot
	}
	return store.Entry{Bucket: bucket, Key: k, Value: text}
}

// change applies do to a copy of a host's record, saves it with what more
// returns, and only then lets the copy take the record's place: what is not on
// the disk has not happened. It is called with the lab locked.
func (l *Lab) change(k string, do func(*hosts.Record), more ...store.Entry) error {
	old := l.record(k)
	next := clone(old)
	do(next)
	entries := append([]store.Entry{entry(hostsBucket, k, next)}, more...)
	var was *hosts.Rollout
	if roll := l.rolloutOf(next); roll != nil {
		c := *roll
		was = &c
		l.records[k] = next
		if l.settle(was, next, k) {
			entries = append(entries, entry(rolloutsBucket, was.ID, was))
		}
		l.records[k] = old
	}
	if ended := old.Boot; ended != nil && (next.Boot == nil || next.Boot.ID != ended.ID) {
		entries = append(entries, l.endLog(ended.ID, next)...)
	}
	l.unsaved = l.Store.Save(entries...)
	if err := l.unsaved; err != nil {
		l.Logger.Error("cannot save", "host", next.Name, "error", err)
		return err
	}
	if ended := old.Boot; ended != nil && (next.Boot == nil || next.Boot.ID != ended.ID) {
		delete(l.progress, k)
		delete(l.logs, ended.ID)
		delete(l.tokens, ended.ID)
		if n := len(next.History); n > 0 && next.History[n-1].ID == ended.ID {
			l.Ended(next.History[n-1].Result)
		}
	}
	if was != nil {
		*l.rolloutOf(next) = *was
	}
	l.records[k] = next
	l.notify(next.Name)
	return nil
}

func clone(r *hosts.Record) *hosts.Record {
	text, err := json.Marshal(r)
	next := new(hosts.Record)
	if err == nil {
		err = json.Unmarshal(text, next)
	}
	if err != nil {
		panic("lab: a record is not JSON: " + err.Error())
	}
	return next
}

// notify tells watchers that a host changed; "" is anything else.
func (l *Lab) notify(name string) {
	for ch, waiting := range l.watchers {
		waiting[name] = true
		for n := range waiting {
			select {
			case ch <- n:
				delete(waiting, n)
				continue
			default:
			}
			break
		}
	}
}

// watcherQueue is how many names may wait for a watcher before they merge.
const watcherQueue = 64

// Subscribe returns the names of hosts that change from now on; "" is the lab as
// a whole. A slow reader gets each name once, however often it changed.
func (l *Lab) Subscribe(ctx context.Context) <-chan string {
	ch := make(chan string, watcherQueue)
	l.mu.Lock()
	l.watchers[ch] = map[string]bool{}
	l.mu.Unlock()
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				l.mu.Lock()
				delete(l.watchers, ch)
				close(ch)
				l.mu.Unlock()
				return
			case <-tick.C: // what did not fit before
				l.mu.Lock()
				for n := range l.watchers[ch] {
					select {
					case ch <- n:
						delete(l.watchers[ch], n)
						continue
					default:
					}
					break
				}
				l.mu.Unlock()
			}
		}
	}()
	return ch
}

// Run watches the site's files and the attempts until ctx ends.
func (l *Lab) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var files watch
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		l.expire()
		l.call(ctx)
		if i%2 != 0 {
			continue
		}
		if files.due(l.fingerprint(), l.lastRead(), l.Now()) {
			l.Logger.Info("the site's files changed")
			if _, err := l.Reload(ctx, "a changed file"); err != nil && ctx.Err() == nil {
				l.Logger.Error("the site's files could not be taken; what was read before stays in force", "error", err)
			}
		}
	}
}

// watch decides when files that were changed are read.
type watch struct {
	seen   string    // their fingerprint at the last look
	missed string    // of those that could not be taken
	tried  time.Time // when that was
}

// due says whether files with the fingerprint now are to be read. read is that of
// the files that were judged last.
func (w *watch) due(now, read string, at time.Time) bool {
	settled := now == w.seen // those that are being written change from look to look
	w.seen = now
	if now == read || !settled || now == w.missed && at.Sub(w.tried) < retryReload {
		return false
	}
	w.missed, w.tried = now, at
	return true
}

// retryReload is how long a site rests that could not be read for a reason that
// may pass, such as a full disk.
const retryReload = 30 * time.Second

// lastRead is the fingerprint of the files that were judged last.
func (l *Lab) lastRead() string {
	if p := l.read.Load(); p != nil {
		return *p
	}
	return ""
}

// expire ends the attempts of PCs that have vanished.
func (l *Lab) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.Now()
	for k, r := range l.records {
		if r.Boot == nil || now.Sub(r.Boot.Heard) < l.Policy.Lease {
			continue
		}
		_ = l.change(k, func(r *hosts.Record) { r.Expire(now, l.Policy) }) // told by change; tried again in a second
	}
}

// wadFolder is where wads are, below the state folder.
func (l *Lab) wadFolder() *publish.WadFolder {
	return &publish.WadFolder{
		Out: l.State, Copy: true, Log: l.Logger,
		Wads: &resolve.Wads{Dir: filepath.Join(l.Site, resolve.WadsFolder), Log: l.Logger},
	}
}

// Healthy says what keeps the server from its work: PCs are told Local while
// nothing can be saved.
func (l *Lab) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unsaved
}

// Base is the path of the site's URL, without a slash at its end.
func (l *Lab) Base() string { return l.base }

// Inventory returns the site as it was last read.
func (l *Lab) Inventory() spec.Inventory {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.site.Inventory
}

// LocalBoot returns how a host goes on that is told Local; the host of no name is any PC.
func (l *Lab) LocalBoot(host string) spec.LocalBoot {
	l.mu.Lock()
	site := l.site
	l.mu.Unlock()
	return site.LocalBoot(host)
}

// Template returns the text of one of the site's templates, or the ready one.
func (l *Lab) Template(source string) (string, error) {
	l.mu.Lock()
	site := l.site
	l.mu.Unlock()
	return site.Template(source)
}
