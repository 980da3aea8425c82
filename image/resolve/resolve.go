// Package resolve turns what people write about a lab into manifests.
//
// A site is a folder:
//
//	site.yaml        the inventory: [spec.Inventory]
//	accepted.yaml    disks that people have accepted: [spec.Accepted]; may be missing
//	profiles/*.yaml  profiles: [spec.Profile]; the ready ones need not be here
//	templates/       templates of the site's own, and those that replace ready ones of the same name
//	wads/            wads
//
// Everything that only the PC knows stays a token (see [spec.Token]); all else
// is final in the manifest but its serial, which is the publisher's.
package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"reassure/image/conf"
	"reassure/image/render"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/templates"
)

// Names in a site folder.
const (
	InventoryFile   = "site.yaml"
	ProfilesFolder  = "profiles"
	TemplatesFolder = "templates"
	WadsFolder      = "wads"
)

// Site is a site folder that has been read.
type Site struct {
	Dir       string
	Inventory spec.Inventory
	Accepted  spec.Accepted

	places   *conf.Places
	profiles map[string]*profile
	peers    []render.Peer
}

// profile is a profile and where it came from.
type profile struct {
	spec.Profile
	file   string
	places *conf.Places
}

// Load reads the site in the folder dir, and every profile of it, used or not.
// The error is a [conf.Errors] with all mistakes of all files.
func Load(dir string) (*Site, error) {
	s := &Site{Dir: dir, profiles: map[string]*profile{}}
	var wrong conf.Errors
	if err := s.loadInventory(); err != nil {
		if !errors.As(err, &wrong) {
			return nil, err
		}
	}
	failed, err := s.loadProfiles(&wrong)
	if err != nil {
		return nil, err
	}
	for i, h := range s.Inventory.Hosts {
		if h.Profile == "" || failed[h.Profile] {
			continue // told already
		}
		if err := s.ready(h.Profile); err != nil {
			wrong = append(wrong, s.places.At(fmt.Sprintf("hosts[%d].profile", i), err.Error()))
		}
	}
	if err := s.loadAccepted(&wrong); err != nil {
		return nil, err
	}
	wrong = append(wrong, s.secretVars()...)
	if len(wrong) > 0 {
		return nil, wrong
	}
	s.peers = render.NewPeers(s.Inventory.Hosts)
	return s, nil
}

func (s *Site) loadInventory() error {
	file := filepath.Join(s.Dir, InventoryFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: name the site's folder with --site, or make one with reassure init", file)
	} else if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	s.places, err = conf.Parse(file, data, &s.Inventory)
	return err
}

// loadAccepted reads what people have accepted, if they have.
func (s *Site) loadAccepted(wrong *conf.Errors) error {
	file := filepath.Join(s.Dir, spec.AcceptedFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	places, err := conf.Parse(file, data, &s.Accepted)
	if err != nil {
		var mistakes conf.Errors
		errors.As(err, &mistakes)
		*wrong = append(*wrong, mistakes...)
		return nil
	}
	// A name that is mistyped must not leave a disk unaccepted without a word.
	known := func(at, name string) {
		if _, err := s.Host(name); err != nil {
			*wrong = append(*wrong, places.At(at+".host", err.Error()))
		}
	}
	for i, d := range s.Accepted.Disks {
		known(fmt.Sprintf("disks[%d]", i), d.Host)
	}
	for i, a := range s.Accepted.Stamps {
		known(fmt.Sprintf("stamps[%d]", i), a.Host)
	}
	return nil
}

// accepted puts into a manifest what people have accepted for its host.
func (r *resolving) accepted() {
	for _, d := range r.Accepted.Disks {
		if strings.EqualFold(d.Host, r.host.Name) {
			r.m.Accepted = append(r.m.Accepted, d.ID())
		}
	}
	for _, a := range r.Accepted.Stamps {
		if strings.EqualFold(a.Host, r.host.Name) {
			r.m.Supersedes = max(r.m.Supersedes, a.Serial)
		}
	}
}

// loadProfiles reads the profiles of the folder, and returns the names of those
// that have mistakes.
func (s *Site) loadProfiles(wrong *conf.Errors) (failed map[string]bool, err error) {
	files, err := filepath.Glob(filepath.Join(s.Dir, ProfilesFolder, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("site %q: %w", s.Dir, err)
	}
	failed = map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
		p, err := parseProfile(file, strings.TrimSuffix(filepath.Base(file), ".yaml"), data)
		if err != nil {
			var mistakes conf.Errors
			errors.As(err, &mistakes)
			*wrong = append(*wrong, mistakes...)
			failed[p.Name] = true
			continue
		}
		if other, taken := s.profiles[p.Name]; taken {
			*wrong = append(*wrong, p.places.At("name", fmt.Sprintf("the name %s is taken already, by %s", p.Name, other.file)))
			continue
		}
		s.profiles[p.Name] = p
	}
	return failed, nil
}

// parseProfile returns a profile that has a name, name unless it says another,
// even with an error.
func parseProfile(file, name string, data []byte) (*profile, error) {
	p := &profile{file: file}
	var err error
	p.places, err = conf.Parse(file, data, &p.Profile)
	if p.Name == "" {
		p.Name = name
	}
	return p, err
}

// ready sees to it that the profile name is loaded: the site's own, or the ready
// one of that name.
func (s *Site) ready(name string) error {
	if s.profiles[name] != nil {
		return nil
	}
	below := ProfilesFolder + "/" + name + ".yaml"
	if data, err := fs.ReadFile(templates.FS, below); err == nil {
		p, err := parseProfile(below+" (ready-made)", name, data)
		if err != nil {
			return err
		}
		s.profiles[name] = p
		return nil
	}
	var names []string
	for n := range s.profiles {
		names = append(names, n)
	}
	more, err := fs.Glob(templates.FS, ProfilesFolder+"/*.yaml")
	if err != nil {
		return err
	}
	for _, m := range more {
		names = append(names, strings.TrimSuffix(path.Base(m), ".yaml"))
	}
	slices.Sort(names)
	return fmt.Errorf("there is no profile %q: there are %s; %s would be another",
		name, strings.Join(slices.Compact(names), ", "), filepath.Join(s.Dir, below))
}

// Host returns the host of that name.
func (s *Site) Host(name string) (*spec.Host, error) {
	var names []string
	for i, h := range s.Inventory.Hosts {
		if strings.EqualFold(h.Name, name) {
			return &s.Inventory.Hosts[i], nil
		}
		names = append(names, h.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no host %q: %s names none at all", name, InventoryFile)
	}
	return nil, fmt.Errorf("there is no host %q in %s: there are %s", name, InventoryFile, strings.Join(names, ", "))
}

// Profile returns the profile of a host of the site.
func (s *Site) Profile(host *spec.Host) *spec.Profile { return &s.profiles[host.Profile].Profile }

// OwnLocalBoot is what of a host's way to go on is not the site's; the rest is empty.
func (s *Site) OwnLocalBoot(name string) spec.LocalBoot {
	own, common := s.LocalBoot(name), s.LocalBoot("")
	if own.BIOS == common.BIOS {
		own.BIOS = ""
	}
	if own.UEFI == common.UEFI {
		own.UEFI = ""
	}
	return own
}

// LocalBoot returns how a host goes on that is told Local; the host of no name is
// any PC.
func (s *Site) LocalBoot(name string) spec.LocalBoot {
	local := s.Inventory.Site.LocalBoot
	if host, err := s.Host(name); err == nil {
		local = s.Profile(host).LocalBoot.Or(local)
	}
	return local.Or(spec.LocalBoot{})
}

// Template returns the text of a template: the site's, or the ready one.
func (s *Site) Template(source string) (string, error) {
	if !fs.ValidPath(source) {
		return "", fmt.Errorf("%q: name a file below the templates folder", source)
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, TemplatesFolder, filepath.FromSlash(source)))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = fs.ReadFile(templates.FS, source)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no template %q: write %s, or name a ready one", source, filepath.Join(s.Dir, TemplatesFolder, source))
	}
	return string(text), err
}

// Lab returns what templates for the whole lab see.
func (s *Site) Lab() *render.Lab {
	return &render.Lab{Site: render.NewSite(s.Inventory.Site), Hosts: s.peers}
}

// Resolve returns the manifest of one host, with serial 0. The error is a
// [conf.Errors] with all mistakes, unless a wad cannot be read.
func (s *Site) Resolve(ctx context.Context, name string, wads *Wads) (*spec.Manifest, error) {
	host, err := s.Host(name)
	if err != nil {
		return nil, err
	}
	p := s.profiles[host.Profile]
	r := &resolving{
		Site: s, profile: p, host: host,
		data: &render.Host{
			Peer: s.peers[slices.IndexFunc(s.Inventory.Hosts, func(h spec.Host) bool { return h.Name == host.Name })],
			Site: render.NewSite(s.Inventory.Site), Hosts: s.peers,
			Vars:       render.MergeVars(p.Vars, s.Inventory.Site.Vars, host.Vars),
			Partitions: p.Partitions, Table: p.Table,
		},
		m: &spec.Manifest{
			Schema: spec.ManifestSchema, Host: host.Name, MACs: host.MACs, Profile: p.Name,
			Disk: p.Disk, Table: p.Table, Partitions: p.Partitions,
			Wads: []spec.Wad{}, Files: []spec.File{}, Steps: []spec.Step{},
			Finish: p.Finish, OnFailure: p.OnFailure, Events: s.Inventory.Site.Events,
			Mode: p.Mode, Keep: p.Keep, Runtime: p.Runtime, Approve: p.Approve, DryRun: p.DryRun, DebugShell: p.DebugShell,
			RescueKeys: p.RescueKeys,
		},
	}
	if p.Runtime == nil {
		r.m.Runtime = spec.DefaultRuntime()
	}
	if host.Disk != nil {
		r.m.Disk = *host.Disk
	}
	r.accepted()
	if err := r.wads(ctx, wads); err != nil {
		return nil, err
	}
	r.files()
	if err := r.system(); err != nil {
		return nil, err
	}
	if err := r.steps(); err != nil {
		return nil, err
	}
	if len(r.wrong) == 0 {
		r.judge()
	}
	if len(r.wrong) > 0 {
		return nil, r.wrong
	}
	return r.m, nil
}

// resolving is one host's manifest on its way.
type resolving struct {
	*Site
	*profile
	host  *spec.Host
	data  *render.Host
	m     *spec.Manifest
	wrong conf.Errors
}

// at notes a mistake at a place of the profile.
func (r *resolving) at(path, format string, args ...any) {
	r.wrong = append(r.wrong, r.profile.places.At(path, fmt.Sprintf(format, args...)))
}

func (r *resolving) wads(ctx context.Context, wads *Wads) error {
	for i, ref := range r.profile.Wads {
		info, err := wads.Measure(ctx, ref.File)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			r.at(fmt.Sprintf("wads[%d].file", i), "%v", err)
			continue
		}
		w := spec.Wad{Name: ref.File, Size: info.Size, SHA256: info.SHA256, Mount: ref.Mount, Overlay: ref.Overlay, Index: info.Index}
		if w.Mount == "" {
			w.Mount = "/"
		}
		w.URLs = append(w.URLs, PublishedWad(ref.File, info.SHA256))
		for _, base := range ref.Mirrors {
			w.URLs = append(w.URLs, spec.URL(base, PublishedWad(ref.File, info.SHA256)))
		}
		r.m.Wads = append(r.m.Wads, w)
	}
	return nil
}

// PublishedWad is where a wad is below the base URL of a published tree, and of
// its mirrors. The digest is in it, so that a PC that is being reimaged while a
// new wad of the same name is published still finds the old one.
func PublishedWad(file string, digest spec.Digest) string {
	return path.Join(WadsFolder, digest.Short(), file)
}

func (r *resolving) files() {
	seen := map[string]int{}
	for i, t := range r.profile.Templates {
		if before, taken := seen[t.Path]; taken {
			r.at(fmt.Sprintf("templates[%d].path", i), "templates[%d] makes %s already", before, t.Path)
		}
		seen[t.Path] = i
		text, ok := r.template(fmt.Sprintf("templates[%d].source", i), t.Source)
		if !ok {
			continue
		}
		mode := t.Mode
		if mode == 0 {
			mode = 0o644
		}
		r.m.Files = append(r.m.Files, spec.File{
			Path: t.Path, Template: t.Source, Content: text, Mode: mode, UID: t.UID, GID: t.GID, Volatile: t.Volatile,
		})
	}
}

// template renders the template file source, which the profile names at path.
func (r *resolving) template(path, source string) (string, bool) {
	text, err := r.Site.Template(source)
	if err != nil {
		r.at(path, "%v", err)
		return "", false
	}
	text, err = r.data.Text(source, text)
	if e := (*render.Error)(nil); errors.As(err, &e) {
		r.wrong = append(r.wrong, conf.Error{File: TemplatesFolder + "/" + e.Template, Line: e.Line, Text: e.Text})
		return "", false
	}
	return text, true
}

func (r *resolving) system() error {
	if err := clone(r.profile.System, &r.m.System); err != nil {
		return err
	}
	r.strings("system", &r.m.System)
	// A variable may hold several keys, one a line, or none.
	var keys []string
	for _, k := range r.m.System.AuthorizedKeys {
		for line := range strings.Lines(k) {
			if line = strings.TrimSpace(line); line != "" {
				keys = append(keys, line)
			}
		}
	}
	r.m.System.AuthorizedKeys = keys
	return nil
}

// strings renders all strings of a part of the profile.
func (r *resolving) strings(path string, v any) {
	for _, e := range r.data.Strings(path, v) {
		r.at(e.Template, "%s", e.Text)
	}
}

func (r *resolving) steps() error {
	var steps []spec.Step
	if err := clone(r.profile.Steps, &steps); err != nil {
		return err
	}
	r.strings("steps", &steps)
	last := []spec.Step{}
	for i, step := range steps {
		switch {
		case step.Run != nil && step.Run.StdinTemplate != "":
			step.Run.Stdin, _ = r.template(fmt.Sprintf("steps[%d].run.stdin_template", i), step.Run.StdinTemplate)
			step.Run.StdinTemplate = ""
		case step.Write != nil && step.Write.Template != "":
			step.Write.Content, _ = r.template(fmt.Sprintf("steps[%d].write.template", i), step.Write.Template)
			step.Write.Template = ""
		case step.KnownHosts != nil && step.KnownHosts.OwnKeys && len(step.KnownHosts.Names) == 0:
			step.KnownHosts.Names = r.names()
		}
		if step.BootLoader != nil {
			last = append(last, step)
			continue
		}
		r.m.Steps = append(r.m.Steps, step)
	}
	r.m.Steps = append(r.m.Steps, last...)
	return nil
}

// names are what this PC calls itself.
func (r *resolving) names() []string {
	names := []string{r.host.Name, render.FQDN(r.host.Name, r.Inventory.Site.Domain), r.data.IP, "localhost", "127.0.0.1"}
	return slices.Compact(names)
}

// judge completes the manifest, and notes what only shows in the whole.
func (r *resolving) judge() {
	r.m.Digest = stamp.Digest(r.m)
	published := *r.m
	published.Serial = 1 // the publisher's to set
	for _, p := range published.Validate() {
		at := r.profile.places.At(p.Path, p.Text+" (once its templates are rendered)")
		// The manifest's steps and files have other places than the profile's.
		var i int
		if _, err := fmt.Sscanf(p.Path, "steps[%d]", &i); err == nil && i < len(r.m.Steps) {
			at = r.stepPlace(r.m.Steps[i].Name, at.Text)
		} else if _, err := fmt.Sscanf(p.Path, "files[%d]", &i); err == nil {
			at = r.profile.places.At(fmt.Sprintf("templates[%d]", i), at.Text)
		}
		r.wrong = append(r.wrong, at)
	}
	r.secrets()
}

// stepPlace is a mistake at the step of that name.
func (r *resolving) stepPlace(name, text string) conf.Error {
	i := slices.IndexFunc(r.profile.Steps, func(s spec.Step) bool { return s.Name == name })
	if i < 0 { // its name is a template
		return r.profile.places.At("steps", fmt.Sprintf("%s: %s", name, text))
	}
	return r.profile.places.At(fmt.Sprintf("steps[%d]", i), fmt.Sprintf("%s: %s", name, text))
}

// clone copies a part of a profile deeply, so that rendering leaves the profile alone.
func clone(from, to any) error {
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		return fmt.Errorf("copying a profile: %w", err)
	}
	return nil
}

// ResolveAll returns the manifests of all hosts, in the inventory's order. A
// mistake that several hosts have is told once, with their names.
func (s *Site) ResolveAll(ctx context.Context, wads *Wads) ([]*spec.Manifest, error) {
	var all []*spec.Manifest
	var wrong conf.Errors
	hosts := map[conf.Error][]string{}
	for _, h := range s.Inventory.Hosts {
		m, err := s.Resolve(ctx, h.Name, wads)
		var mistakes conf.Errors
		if err != nil && !errors.As(err, &mistakes) {
			return nil, fmt.Errorf("host %s: %w", h.Name, err)
		}
		for _, e := range mistakes {
			if hosts[e] == nil {
				wrong = append(wrong, e)
			}
			hosts[e] = append(hosts[e], h.Name)
		}
		all = append(all, m)
	}
	for i, e := range wrong {
		names := hosts[e]
		who := "host " + names[0]
		if len(names) > 1 {
			who = fmt.Sprintf("%d hosts: %s, ...", len(names), names[0])
		}
		wrong[i].Text += " (" + who + ")"
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return all, nil
}
