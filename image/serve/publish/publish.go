// Package publish writes a site as a tree of files that any HTTP server can
// serve, and what the TFTP server needs to know about it.
//
//	OUT/manifests/01-MAC.json           one copy for each card of each host
//	OUT/manifests/01-MAC.json.minisig   its signature
//	OUT/wads/DIGEST/FILE                wads: hard links to the site's where possible
//	OUT/index.json                      the hosts: [Index]
//	TFTP/pxelinux.cfg, grub, ipxe       what boot loaders read: [reassure/image/bootfiles]
//
// Each file changes atomically. Wads come first and manifests after them, so that
// a PC never gets a manifest whose wads are not there. Nothing at all is written
// before the whole site has been found good. What has not changed is not
// written: a host whose manifest is the same keeps its serial and bytes.
//
// A wad that no manifest names any more stays for a day, for PCs that are being
// reimaged with it. Manifests of hosts that are no longer in the inventory go at
// once. Boot decisions (TFTP/pxelinux.cfg/01-MAC and the like) are never touched.
package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"reassure/image/bootfiles"
	"reassure/image/resolve"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// Signer signs manifests; [reassure/image/sign.PrivateKey] does. The same
// message and comment must give the same signature.
type Signer interface {
	Sign(message []byte, trustedComment string) []byte
}

// Options say where to publish. Out is needed.
type Options struct {
	// Out is the folder that the HTTP server serves as the site's URL.
	Out string
	// TFTP is the TFTP server's folder; empty leaves it alone.
	TFTP string
	// Signer signs the manifests; nil writes them without signatures, which
	// only images built to be insecure accept.
	Signer Signer
	// ReplaceBootFiles overwrites what boot loaders read even if a person wrote
	// it; boot decisions stay.
	ReplaceBootFiles bool
	// Now tells the time; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// keepWads is how long a wad stays that no manifest names any more.
const keepWads = 24 * time.Hour

// IndexFile is the index's name below Out.
const IndexFile = "index.json"

// Index says what is published.
type Index struct {
	Schema int `json:"schema"`
	// Serial is the highest that was ever given to a manifest.
	Serial int64         `json:"serial"`
	Hosts  []IndexedHost `json:"hosts"`
	// Retired are wads that no manifest names any more, with the time since when.
	Retired map[string]time.Time `json:"retired,omitempty"`
}

// IndexedHost is one host in an [Index].
type IndexedHost struct {
	Name     string      `json:"name"`
	MACs     []spec.MAC  `json:"macs"`
	IP       string      `json:"ip"`
	Profile  string      `json:"profile"`
	Digest   spec.Digest `json:"digest"`
	Serial   int64       `json:"serial"`
	Manifest string      `json:"manifest"` // below the site's URL
}

// Result says what publishing did.
type Result struct {
	Hosts   []HostResult
	Removed []string // manifests of hosts that are gone, below Out
	Wads    int      // written or linked
	Boot    []string // boot files written, below TFTP
}

// HostResult is what happened to one host's manifest.
type HostResult struct {
	Name   string
	Serial int64
	Digest spec.Digest
	// New: there was none before. Changed: it differs from the one before.
	// Reimage: its digest does, too.
	New, Changed, Reimage bool
}

// Publish publishes the site. Several runs at once wait for each other.
func Publish(ctx context.Context, site *resolve.Site, wads *resolve.Wads, o Options) (*Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &publishing{Options: o, site: site, wads: wads, result: &Result{}}
	var err error
	if p.manifests, err = site.ResolveAll(ctx, wads); err != nil {
		return nil, err
	}
	for _, m := range p.manifests {
		if m.Approve != "" && m.Approve != spec.ApproveAuto {
			return nil, fmt.Errorf("host %s: its profile %s has approve: %s, and where files alone are served there is nobody to ask: take it out, or run reassure serve", m.Host, m.Profile, m.Approve)
		}
	}
	if err := p.planBoot(); err != nil {
		return nil, err
	}
	if err := folder(o.Out); err != nil {
		return nil, err
	}
	unlock, err := lock(o.Out)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.readIndex(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{p.writeWads, p.writeBoot, p.writeManifests, p.removeOld, p.writeIndex} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("publishing: %w", err)
		}
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("publishing: %w", err)
		}
	}
	return p.result, nil
}

type publishing struct {
	Options
	site      *resolve.Site
	wads      *resolve.Wads
	manifests []*spec.Manifest
	boot      []bootfiles.File
	old, next Index
	result    *Result
}

// lock keeps other runs out of the folder until the returned function is called.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("publishing: %w", err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("publishing: waiting for another run in %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

func (p *publishing) readIndex() error {
	text, err := os.ReadFile(filepath.Join(p.Out, IndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	if err := json.Unmarshal(text, &p.old); err != nil || p.old.Schema != 1 {
		return fmt.Errorf("%s was not written by this program (%v): is --out right? If it is, remove that file", filepath.Join(p.Out, IndexFile), err)
	}
	return nil
}

// planBoot makes the boot files' texts, and sees whether they may be written.
func (p *publishing) planBoot() error {
	if p.TFTP == "" {
		return nil
	}
	if info, err := os.Stat(p.TFTP); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a folder: name the TFTP server's with --tftp", p.TFTP)
	}
	o := bootfiles.RemoteOptions{
		URL: p.site.Inventory.Site.URL, CommandLine: p.site.Inventory.Site.CommandLine, Local: p.site.LocalBoot(""),
	}
	for _, h := range p.site.Inventory.Hosts {
		o.Own = append(o.Own, p.site.OwnLocalBoot(h.Name))
	}
	files, err := bootfiles.Files(bootfiles.Publish, o)
	if err != nil {
		return err
	}
	for _, f := range files {
		now, err := os.ReadFile(filepath.Join(p.TFTP, filepath.FromSlash(f.Name)))
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("boot files: %w", err)
		case err == nil && bytes.Equal(now, f.Text):
			continue
		case err == nil && !p.ReplaceBootFiles && !bootfiles.Publish.MayReplace(now):
			return fmt.Errorf("%s was written by a person (its first line does not say otherwise): move it away, or publish with --replace-boot-files",
				filepath.Join(p.TFTP, filepath.FromSlash(f.Name)))
		}
		p.boot = append(p.boot, f)
	}
	return nil
}

func (p *publishing) writeBoot(context.Context) error {
	for _, f := range p.boot {
		target := filepath.Join(p.TFTP, filepath.FromSlash(f.Name))
		if err := folder(filepath.Dir(target)); err != nil {
			return err
		}
		if err := write(target, f.Text); err != nil {
			return err
		}
		p.result.Boot = append(p.result.Boot, f.Name)
	}
	return p.writeLinks()
}

// writeLinks has PCs that were told Local or Remote be told the same in the way that
// their profiles have now. What is told them otherwise stays.
func (p *publishing) writeLinks() error {
	if p.TFTP == "" {
		return nil
	}
	for i := range p.site.Inventory.Hosts {
		h := &p.site.Inventory.Hosts[i]
		d, err := hosts.Decided(p.TFTP, h)
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		if d == hosts.Local || d == hosts.Remote {
			if err := hosts.Decide(p.TFTP, h, d, p.site.OwnLocalBoot(h.Name)); err != nil {
				return fmt.Errorf("host %s: %w", h.Name, err)
			}
		}
	}
	return nil
}

// writeManifests writes what has changed, all with the same new serial.
func (p *publishing) writeManifests(context.Context) error {
	if err := folder(filepath.Join(p.Out, "manifests")); err != nil {
		return err
	}
	before := map[string][]published{}
	highest := p.old.Serial
	for _, m := range p.manifests {
		for _, mac := range m.MACs {
			b := read(filepath.Join(p.Out, spec.ManifestPath(mac)))
			before[m.Host] = append(before[m.Host], b)
			highest = max(highest, b.serial)
		}
	}
	// Greater than all before, even if the clock was set back.
	serial := max(p.Now().Unix(), highest+1)
	p.next = Index{Schema: 1, Serial: highest, Hosts: []IndexedHost{}}
	for _, m := range p.manifests {
		r := HostResult{Name: m.Host, Digest: m.Digest, New: true}
		text, err := p.unchanged(m, before[m.Host])
		if err != nil {
			return err
		}
		for _, b := range before[m.Host] {
			r.New = r.New && b.text == nil
			r.Reimage = r.Reimage || b.text != nil && b.digest != m.Digest
		}
		if text == nil {
			r.Changed = !r.New
			m.Serial = serial
			p.next.Serial = serial
			if text, err = m.Marshal(); err != nil {
				return err
			}
		}
		r.Serial = m.Serial
		for _, mac := range m.MACs {
			target := filepath.Join(p.Out, spec.ManifestPath(mac))
			if p.Signer != nil {
				comment := fmt.Sprintf("host %s serial %d", m.Host, m.Serial)
				// First, so that a manifest is never without one.
				if err := write(target+spec.SignatureSuffix, p.Signer.Sign(text, comment)); err != nil {
					return err
				}
			} else if err := remove(target + spec.SignatureSuffix); err != nil {
				return err
			}
			if err := write(target, text); err != nil {
				return err
			}
		}
		p.result.Hosts = append(p.result.Hosts, r)
		p.next.Hosts = append(p.next.Hosts, p.indexed(m))
	}
	return nil
}

// unchanged returns the bytes that all copies of a host's manifest have, and
// sets its serial, if nothing but the serial would change; otherwise nil.
func (p *publishing) unchanged(m *spec.Manifest, before []published) ([]byte, error) {
	// A reimage that somebody asked for stays asked for.
	for _, b := range before {
		if b.text != nil {
			m.Order = b.order
		}
	}
	for _, b := range before {
		if b.text == nil || !bytes.Equal(b.text, before[0].text) {
			return nil, nil
		}
	}
	if before[0].serial <= 0 {
		return nil, nil
	}
	m.Serial = before[0].serial
	text, err := m.Marshal()
	if err != nil || !bytes.Equal(text, before[0].text) {
		return nil, err
	}
	return text, nil
}

// published is a manifest that is there already.
type published struct {
	text   []byte // nil: there is none
	serial int64
	order  string
	digest spec.Digest
}

// read is lenient: a manifest of another version still has a serial.
func read(path string) published {
	text, err := os.ReadFile(path)
	if err != nil {
		return published{}
	}
	b := published{text: text}
	var m struct {
		Serial int64       `json:"serial"`
		Order  string      `json:"order"`
		Digest spec.Digest `json:"digest"`
	}
	if json.Unmarshal(text, &m) == nil {
		b.serial, b.order, b.digest = m.Serial, m.Order, m.Digest
	}
	return b
}

func (p *publishing) indexed(m *spec.Manifest) IndexedHost {
	h := IndexedHost{Name: m.Host, MACs: m.MACs, Profile: m.Profile, Digest: m.Digest, Serial: m.Serial, Manifest: spec.ManifestPath(m.MACs[0])}
	if host, err := p.site.Host(m.Host); err == nil {
		h.IP = host.IP.String()
	}
	return h
}

// manifestName is what this package gives to manifests and their signatures.
var manifestName = regexp.MustCompile(`^01(-[0-9a-f]{2}){6}\.json(\.minisig)?$`)

// removeOld removes the manifests of hosts that are gone, and wads that nobody
// has named for a day.
func (p *publishing) removeOld(context.Context) error {
	current := map[string]bool{}
	named := map[string]bool{}
	for _, m := range p.manifests {
		for _, mac := range m.MACs {
			name := filepath.Base(spec.ManifestPath(mac))
			current[name], current[name+spec.SignatureSuffix] = true, true
		}
		for _, w := range m.Wads {
			named[resolve.PublishedWad(w.Name, w.SHA256)] = true
		}
	}
	entries, err := os.ReadDir(filepath.Join(p.Out, "manifests"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !current[e.Name()] && manifestName.MatchString(e.Name()) {
			if err := remove(filepath.Join(p.Out, "manifests", e.Name())); err != nil {
				return err
			}
			if strings.HasSuffix(e.Name(), ".json") {
				p.result.Removed = append(p.result.Removed, "manifests/"+e.Name())
			}
		}
	}
	p.next.Retired, err = p.wadFolder().Retire(named, p.old.Retired, p.Now())
	return err
}

func (p *publishing) wadFolder() *WadFolder { return &WadFolder{Out: p.Out, Wads: p.wads, Log: p.Log} }

func (p *publishing) writeWads(ctx context.Context) (err error) {
	p.result.Wads, err = p.wadFolder().Write(ctx, p.manifests)
	return err
}

func (p *publishing) writeIndex(context.Context) error {
	text, err := json.MarshalIndent(p.next, "", "  ")
	if err != nil {
		return err
	}
	return write(filepath.Join(p.Out, IndexFile), append(text, '\n'))
}

// write makes a file that everybody may read, atomically, unless it is there
// with this content.
func write(path string, text []byte) error {
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
		return nil
	}
	return renameio.WriteFile(path, text, 0o644, renameio.WithStaticPermissions(0o644))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// folder makes a folder that everybody may enter, whatever the umask.
func folder(path string) error {
	var made []string
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil {
			break
		}
		made = append(made, at)
	}
	slices.Reverse(made)
	for _, at := range made {
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("folder: %w", err)
		}
		if err := os.Chmod(at, 0o755); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
	}
	return nil
}
