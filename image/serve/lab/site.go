package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reassure/image/conf"
	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/serve/store"
	"reassure/image/spec"
)

// Reload reads the site again. A site with mistakes changes nothing: the error
// tells them all, with file and line. by is who asked for it.
func (l *Lab) Reload(ctx context.Context, by string) (_ api.Reload, err error) {
	l.reloading.Lock()
	defer l.reloading.Unlock()
	read := l.fingerprint()
	defer func() {
		if err == nil || errors.Is(err, api.ErrInvalid) {
			l.read.Store(&read)
		}
		l.Read(err)
	}()
	site, err := resolve.Load(l.Site)
	if err != nil {
		return api.Reload{}, mistake(err)
	}
	address, err := url.Parse(site.Inventory.Site.URL)
	if err != nil {
		return api.Reload{}, fmt.Errorf("site.url: %w", err)
	}
	base := strings.TrimSuffix(address.Path, "/")
	if l.site != nil && base != l.base {
		return api.Reload{}, fmt.Errorf("site.url now has the path %q instead of %q: restart the server to have it take another", base, l.base)
	}
	if l.Accept != nil {
		if err := l.Accept(site.Inventory); err != nil {
			return api.Reload{}, &invalid{err}
		}
	}
	wads := l.wadFolder()
	manifests, err := site.ResolveAll(ctx, wads.Wads)
	if err != nil {
		return api.Reload{}, mistake(err)
	}
	if err := wads.Wads.Save(); err != nil {
		l.Logger.Warn("the next reload will read the wads again", "error", err)
	}
	if _, err := wads.Write(ctx, manifests); err != nil {
		return api.Reload{}, err
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	result, err := l.take(site, base, manifests)
	if err != nil {
		return api.Reload{}, err
	}
	if err := l.sweep(wads.Retire); err != nil {
		l.Logger.Warn("cannot tidy up", "error", err)
	}
	l.notify("")
	l.Logger.Info("read the site", "by", by, "hosts", result.Hosts, "changed", len(result.Changed), "added", len(result.Added), "removed", len(result.Removed))
	return result, nil
}

// mistake marks what a person has to mend in the site's files.
func mistake(err error) error {
	if e := (conf.Errors)(nil); errors.As(err, &e) {
		return &invalid{err}
	}
	return err
}

// invalid is an [api.ErrInvalid] whose text is the mistakes alone, one a line.
type invalid struct{ error }

func (i *invalid) Unwrap() []error { return []error{i.error, api.ErrInvalid} }

// take makes a site that was found good the one in force.
func (l *Lab) take(site *resolve.Site, base string, manifests []*spec.Manifest) (api.Reload, error) {
	result := api.Reload{Hosts: len(manifests)}
	old := l.order
	names := map[string]string{}
	for _, k := range old {
		names[k] = l.record(k).Name
	}
	var known []spec.MAC
	var entries []store.Entry
	for _, h := range site.Inventory.Hosts {
		for _, mac := range h.MACs {
			if l.unknown[mac] != nil {
				known = append(known, mac)
				entries = append(entries, store.Entry{Bucket: unknownBucket, Key: mac.String()})
			}
		}
	}
	// A store that takes nothing refuses the site before any of it is in force.
	if err := l.Store.Save(append(entries, entry(metaBucket, "serial", l.serial))...); err != nil {
		return result, err
	}
	for _, mac := range known {
		delete(l.unknown, mac)
	}
	l.site, l.base = site, base
	l.candidates, l.cards, l.order = map[string]*spec.Manifest{}, map[spec.MAC]*spec.Host{}, nil
	l.places = map[string]int{}
	for i, m := range manifests {
		h := &site.Inventory.Hosts[i]
		k := key(m.Host)
		// Relative, so that the PC sends what it reports where it got this from.
		m.Events = "events/" + m.Host
		l.candidates[k] = m
		l.places[k] = len(l.order)
		l.order = append(l.order, k)
		for _, mac := range h.MACs {
			l.cards[mac] = h
		}
		if !slices.Contains(old, k) {
			result.Added = append(result.Added, m.Host)
		}
	}
	for _, k := range old {
		if l.candidates[k] == nil {
			result.Removed = append(result.Removed, names[k])
			// Should it come back one day, nobody has ordered that it be reimaged.
			if err := l.change(k, func(r *hosts.Record) { r.Rollout = "" }); err != nil {
				return result, err
			}
		}
	}
	var auto []string
	for _, k := range l.order {
		r, m := l.record(k), l.candidates[k]
		if r.Wanted != nil && r.Wanted.Digest == m.Digest {
			if err := l.refresh(k, m); err != nil {
				return result, err
			}
			continue
		}
		changed := api.ChangedHost{Name: m.Host, Changes: l.pending(r, m, false)}
		if site.Profile(l.hostOf(k)).Rollout == spec.RolloutAuto {
			changed.Armed = true
			auto = append(auto, k)
		}
		result.Changed = append(result.Changed, changed)
	}
	if len(auto) > 0 {
		if _, err := l.roll(auto, api.RolloutRequest{Why: "its software changed, and its profile has rollout: auto"}, ""); err != nil {
			return result, err
		}
	}
	return result, nil
}

func (l *Lab) hostOf(k string) *spec.Host {
	if i, ok := l.places[k]; ok {
		return &l.site.Inventory.Hosts[i]
	}
	return nil
}

// refresh takes over into what is wanted whatever has changed but the software.
func (l *Lab) refresh(k string, candidate *spec.Manifest) error {
	r := l.record(k)
	m := *candidate
	m.Order = r.Wanted.Order
	m.Serial = r.Wanted.Serial
	text, err := m.Marshal()
	if err != nil {
		return err
	}
	if spec.Sum(text) == r.Wanted.Manifest {
		return nil
	}
	s, entries, err := l.write(candidate, r.Wanted.Order)
	if err != nil {
		return err
	}
	return l.change(k, func(r *hosts.Record) { r.Wanted = &s }, entries...)
}

// write makes a manifest of a candidate: with a serial of its own, above all before.
func (l *Lab) write(candidate *spec.Manifest, order string) (hosts.Software, []store.Entry, error) {
	m := *candidate
	m.Order = order
	// Greater than all before, even if the clock was set back.
	l.serial = max(l.Now().Unix(), l.serial+1)
	m.Serial = l.serial
	text, err := m.Marshal()
	if err != nil {
		return hosts.Software{}, nil, err
	}
	s := hosts.Software{Digest: m.Digest, Serial: m.Serial, Order: order, Manifest: spec.Sum(text)}
	return s, []store.Entry{{Bucket: manifestsBucket, Key: s.Manifest.String(), Value: text}, entry(metaBucket, "serial", l.serial)}, nil
}

// manifest returns a manifest by its text's digest, or nil where there is none.
func (l *Lab) manifest(d spec.Digest) *spec.Manifest {
	if d.IsZero() {
		return nil
	}
	if m, ok := l.texts[d]; ok {
		return m
	}
	text, err := l.Store.Get(manifestsBucket, d.String())
	if err != nil || text == nil {
		return nil
	}
	m, err := spec.ParseManifest(text)
	if err != nil {
		l.Logger.Warn("a manifest of an earlier version cannot be read", "error", err)
		m = nil
	}
	l.texts[d] = m
	return m
}

// sweep forgets manifests, logs and wads that nothing refers to any more.
func (l *Lab) sweep(retire func(named map[string]bool, retired map[string]time.Time, now time.Time) (map[string]time.Time, error)) error {
	texts, attempts, wads := map[string]bool{}, map[string]bool{}, map[string]bool{}
	name := func(m *spec.Manifest) {
		if m != nil {
			for _, w := range m.Wads {
				wads[resolve.PublishedWad(w.Name, w.SHA256)] = true
			}
		}
	}
	for _, m := range l.candidates {
		name(m)
	}
	for _, r := range l.records {
		for _, s := range []*hosts.Software{r.Wanted, r.Installed} {
			if s != nil {
				texts[s.Manifest.String()] = true
			}
		}
		if r.Wanted != nil {
			name(l.manifest(r.Wanted.Manifest))
		}
		if r.Errand != nil {
			texts[r.Errand.Manifest.String()] = true
			name(l.manifest(r.Errand.Manifest))
		}
		if r.Boot != nil {
			texts[r.Boot.Manifest.String()], attempts[r.Boot.ID] = true, true
			name(l.manifest(r.Boot.Manifest))
		}
		for _, a := range r.History {
			attempts[a.ID] = true
		}
	}
	var gone []store.Entry
	for bucket, keep := range map[string]map[string]bool{manifestsBucket: texts, logsBucket: attempts} {
		err := l.Store.Load(bucket, func(k string, _ []byte) error {
			if !keep[k] {
				gone = append(gone, store.Entry{Bucket: bucket, Key: k})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	retired := map[string]time.Time{}
	text, err := l.Store.Get(metaBucket, "retired")
	if err != nil {
		return err
	}
	if text != nil {
		if err := json.Unmarshal(text, &retired); err != nil {
			return err
		}
	}
	next, err := retire(wads, retired, l.Now())
	if err != nil {
		return err
	}
	for d := range l.texts {
		if !texts[d.String()] {
			delete(l.texts, d)
		}
	}
	return l.Store.Save(append(gone, entry(metaBucket, "retired", next))...)
}

// fingerprint changes when any of the site's files does.
func (l *Lab) fingerprint() string {
	var all strings.Builder
	note := func(path string, info fs.FileInfo) {
		fmt.Fprintln(&all, path, info.Size(), info.ModTime().UnixNano())
	}
	for _, name := range []string{resolve.InventoryFile, spec.AcceptedFile} {
		if info, err := os.Stat(filepath.Join(l.Site, name)); err == nil {
			note(name, info)
		}
	}
	for _, folder := range []string{resolve.ProfilesFolder, resolve.TemplatesFolder, resolve.WadsFolder} {
		_ = filepath.WalkDir(filepath.Join(l.Site, folder), func(path string, e fs.DirEntry, err error) error {
			// Dot-files are editors' and our own.
			if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") {
				return nil // what cannot be read is for Reload to tell
			}
			if info, err := os.Stat(path); err == nil {
				note(path, info)
			}
			return nil
		})
	}
	return spec.Sum([]byte(all.String())).String()
}
