// Package reimage is what runs on a PC that was booted Remote: it finds out
// what the PC should hold, decides whether it does already, and if not wipes
// the disk and builds the system anew.
//
// The order of things, and what each leaves behind when it is the last:
//
//	check      the image itself is whole and fits the running kernel
//	hardware   drivers for what is present
//	network    the card that the PC booted from has an address
//	manifest   fetched, its signature and host checked
//	decide     Keep: nothing is written, on into the PC's own system
//	plan       printed, sent to the server; nothing has been written so far
//	erase      the first write makes the disk unbootable
//	format, extract, configure, steps
//	commit     the stamp, everything flushed, and last the boot code
//
// [Decide] and [MakePlan] are pure; destruction starts in one function, erase.
// Every failure, a panic included, goes one way: [Reimager.Run] reports it to
// the server, on every console and in the kernel log, tries again with growing
// pauses, and then does what the profile says. A PC whose disk was not written
// to goes on into its own system, unless its profile says otherwise.
package reimage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"reassure/image/fetch"
	"reassure/image/kmod"
	"reassure/image/logs"
	"reassure/image/reimage/cmdline"
	"reassure/image/reimage/coldplug"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/facts"
	"reassure/image/reimage/local"
	"reassure/image/reimage/mount"
	"reassure/image/reimage/netup"
	"reassure/image/report"
	"reassure/image/sign"
	"reassure/image/spec"
)

// Reimager does one PC's reimage. All fields must be set.
type Reimager struct {
	Options cmdline.Options
	// Info is what the image says of itself.
	Info spec.ImageInfoFile
	// Keys are trusted for manifests; with none, only an insecure image goes on.
	Keys sign.Keyring
	Log  *slog.Logger
	// Screen shows phases and progress on every console.
	Screen *logs.Screen
	// Ring holds the last log lines, for reports of failures.
	Ring *logs.Ring

	network *netup.Network // nil until the network is up
	loader  *coldplug.Loader
	disks   string // names of the block devices, as of disksAt
	disksAt time.Time
	base    string // URL of the published tree
	facts   spec.Facts
	reports *report.Client // nil until a manifest names an events URL
	found   []Installed    // systems on this PC's disks, as of the last look
	attempt int
	wrote   bool   // the disk has been written to since power-on
	now     string // the current phase
}

// Run does the reimage, however many tries it takes, and returns what the PC
// should do next. It returns an error only with [spec.Hold].
func (r *Reimager) Run(ctx context.Context) (spec.Finish, error) {
	var policy spec.OnFailure // what goes while there is no manifest to say otherwise
	for r.attempt = 1; ; r.attempt++ {
		finish, m, err := r.tryOnce(ctx)
		if m != nil {
			policy = m.OnFailure
		}
		if err == nil {
			return finish, nil
		}
		last := r.attempt > retries(policy, r.Options)
		var refusal *Refusal
		if errors.As(err, &refusal) && !r.wrote {
			last = true // it is a person who has to act first
		}
		r.fail(err)
		if !last {
			pause := pauseBefore(policy, r.attempt)
			r.Log.Info(fmt.Sprintf("trying again in %v (try %d of %d)", pause, r.attempt+1, retries(policy, r.Options)+1))
			if err := sleep(ctx, pause); err != nil {
				return spec.Hold, err
			}
			continue
		}
		return r.giveUp(ctx, policy, err)
	}
}

// retries is how many more times than once a reimage is tried.
func retries(p spec.OnFailure, o cmdline.Options) int {
	switch {
	case o.Retries != nil:
		return *o.Retries
	case p.Retries != nil:
		return *p.Retries
	}
	return 2
}

// pauseBefore is how long to wait after a failed try, counted from 1.
func pauseBefore(p spec.OnFailure, try int) time.Duration {
	pause := time.Duration(p.Pause)
	if pause == 0 {
		pause = 10 * time.Second
	}
	const most = 10 * time.Minute
	for ; try > 1 && pause < most; try-- {
		pause *= 2
	}
	return min(pause, most)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Recover makes an error of a panic; it is to be deferred. A defect must not end
// the program: u-root's init would open a shell on a half-made system.
func Recover(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("a defect in ReAssure: %v\n%s", p, debug.Stack())
	}
}

// tryOnce is one try, from the network to the commit. The manifest is returned
// as soon as there is one, for its policy.
func (r *Reimager) tryOnce(ctx context.Context) (finish spec.Finish, m *spec.Manifest, err error) {
	defer Recover(&err)
	r.Screen.Reset()
	if r.network == nil {
		r.phase("hardware")
		if err := r.loadDrivers(ctx); err != nil {
			return "", nil, err
		}
		r.phase("network")
		r.network, err = netup.Up(ctx, netup.Options{
			NIC: r.Options.NIC, BootMAC: r.Options.BootMAC, Static: r.Options.Static, VLAN: r.Options.VLAN, Log: r.Log,
		})
		if err != nil {
			return "", nil, fmt.Errorf("network: %w", err)
		}
	}
	r.phase("manifest")
	m, err = r.fetchManifest(ctx)
	if err != nil {
		return "", nil, err
	}
	if m.Events != "" && r.reports == nil {
		r.reports = report.New(m.Events, report.Options{Host: m.Host, MAC: r.network.MAC, Log: r.Log})
	}
	if err := r.look(ctx); err != nil {
		return "", m, err
	}
	r.event(spec.Event{Kind: spec.EventStart, Facts: &r.facts, Digest: m.Digest})

	r.phase("decide")
	target, err := disk.Choose(m.Disk, needed(m), r.facts.Disks)
	if err != nil {
		return "", m, &Refusal{err}
	}
	decision, err := Decide(m, target, r.installedOn(target), r.Options.Force)
	if err != nil {
		return "", m, err
	}
	if decision.Keep != nil {
		r.Log.Info(decision.Reason)
		r.event(spec.Event{Kind: spec.EventUpToDate, Digest: m.Digest, Text: decision.Reason})
		return r.goLocal(ctx, *decision.Keep)
	}
	r.Log.Info("to be reimaged: " + decision.Reason)
	plan, err := MakePlan(m, r.facts, target, rand.Reader)
	if err != nil {
		return "", m, err
	}
	for _, line := range Describe(plan) {
		r.Log.Info(line)
	}
	r.event(spec.Event{Kind: spec.EventPlan, Plan: plan, Digest: m.Digest, Text: decision.Reason})
	if r.Options.DryRun {
		return "", m, refuse("dry run: nothing was written (reassure.dry_run is on the kernel command line)")
	}
	if err := r.apply(ctx, m, plan); err != nil {
		return "", m, err
	}
	r.Screen.Done()
	r.Log.Info("REIMAGE DONE", "host", m.Host, "software", m.Digest.Short(), "peak_memory", peakMemory())
	r.event(spec.Event{Kind: spec.EventDone, Digest: m.Digest, Phases: r.Screen.Phases()})
	r.flush(ctx)
	if m.Finish == "" {
		m.Finish = spec.Reboot
	}
	if m.Finish == spec.Kexec {
		r.wrote = false
		if err := r.look(ctx); err != nil {
			return "", m, err
		}
		if found := r.installedOn(target); found != nil {
			return r.goLocal(ctx, *found)
		}
		return spec.Reboot, m, nil
	}
	return m.Finish, m, nil
}

// hardwareTime is how long the network card and a disk may take to appear.
const hardwareTime = 30 * time.Second

// loadDrivers loads the modules for what is in the PC, until its network card
// and a disk are there.
func (r *Reimager) loadDrivers(ctx context.Context) error {
	folder := filepath.Join(spec.ImageModules, r.Info.Kernel)
	index, err := kmod.ReadIndex(os.DirFS(folder))
	if err != nil {
		return fmt.Errorf("kernel modules of the image: %w", err)
	}
	preload := r.Info.Preload
	if r.Options.VLAN != 0 {
		preload = append(slices.Clone(preload), "8021q")
	}
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		preload = append(slices.Clone(preload), "efivarfs")
	}
	card := netup.Options{NIC: r.Options.NIC, BootMAC: r.Options.BootMAC}
	r.loader, err = coldplug.Run(ctx, coldplug.Options{
		Index: index, Folder: folder, Preload: preload,
		Parameters: r.Options.ModuleParameters, Blacklist: r.Options.Blacklist, Log: r.Log,
	}, hardwareTime, func() bool { return netup.Present(card) && len(diskNames()) > 0 })
	r.disks, r.disksAt = diskNames(), time.Now()
	if err := mount.Early(); err != nil { // efivarfs may be a module
		r.Log.Warn("a mount that may be missed", "error", err)
	}
	return err
}

// diskNames are the block devices that the kernel shows, as one text.
func diskNames() string {
	found, _ := filepath.Glob("/sys/block/*/device") // virtual ones have none
	return strings.Join(found, " ")
}

// settleTime is how long the disks must have been the same before one is chosen.
const settleTime = time.Second

// settleDisks waits until no disk has appeared for a while: a rule such as "the
// only one" must have seen all of them. The network has usually taken longer.
func (r *Reimager) settleDisks(ctx context.Context) error {
	for {
		now := diskNames()
		if now == r.disks && time.Since(r.disksAt) >= settleTime {
			return nil
		}
		if now != r.disks {
			r.disks, r.disksAt = now, time.Now()
		}
		if err := sleep(ctx, settleTime/10); err != nil {
			return err
		}
	}
}

// loadFileSystems loads the modules of file systems, which mount(2) would ask
// modprobe for.
func (r *Reimager) loadFileSystems(ctx context.Context, kinds ...string) {
	for _, k := range kinds {
		if r.loader != nil && (k == spec.XFS || k == spec.Btrfs) { // the others are loaded at the start
			r.loader.Load(ctx, k)
		}
	}
}

// needed is the least that a disk must hold for the layout.
func needed(m *spec.Manifest) spec.Size {
	need := 2 * spec.MiB // table, alignment, and the backup table at the end
	for _, p := range m.Partitions {
		need += p.Size.Bytes
	}
	return max(need, m.Disk.MinSize)
}

// goLocal goes on into an installed system, without writing to its disk.
func (r *Reimager) goLocal(ctx context.Context, i Installed) (spec.Finish, *spec.Manifest, error) {
	r.flush(ctx)
	// It returns only when it could not.
	err := local.Boot(ctx, local.Options{
		Host: i.Stamp.Host, Firmware: r.facts.Firmware, Disk: i.Disk, Log: r.Log,
		Before: func(string) { r.Screen.Flush(2 * time.Second) },
	})
	return "", nil, &Refusal{err}
}

// fetchManifest gets the manifest for the card that the PC booted from, and
// judges it.
func (r *Reimager) fetchManifest(ctx context.Context) (*spec.Manifest, error) {
	address := r.Options.Manifest
	r.base = r.Options.URL
	if r.base == "" && r.network.NextServer.IsValid() {
		r.base = "http://" + r.network.NextServer.String() + "/reassure"
	}
	if address == "" {
		if r.base == "" {
			return nil, refuse("nobody says where the manifests are: put reassure.url=http://SERVER/PATH on the kernel command line, or have the DHCP server name a next-server")
		}
		address = spec.URL(r.base, spec.ManifestPath(r.network.MAC))
	} else if r.base == "" {
		r.base = address[:strings.LastIndex(address, "/")]
	}
	text, err := r.fetchSigned(ctx, address)
	if err != nil {
		return nil, err
	}
	m, err := spec.ParseManifest(text)
	if err != nil {
		return nil, &Refusal{fmt.Errorf("%s: %w", address, err)}
	}
	if !m.HasMAC(r.network.MAC) {
		return nil, refuse("the manifest at %s is for %s, not for this PC's card %s", address, m.Host, r.network.MAC)
	}
	return m, nil
}

// fetchSigned gets a manifest and checks its signature. The two are two files:
// whoever comes between the writing of one and the other sees a mismatch, so
// that is looked at again before it counts.
func (r *Reimager) fetchSigned(ctx context.Context, address string) ([]byte, error) {
	for try := 1; ; try++ {
		text, err := r.fetcher().Get(ctx, address, spec.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("manifest for %s: %w", r.network.MAC, err)
		}
		if r.Info.Insecure {
			r.Log.Warn("INSECURE IMAGE: the manifest's signature is not checked")
			return text, nil
		}
		signature, err := r.fetcher().Get(ctx, address+spec.SignatureSuffix, maxSignature)
		if err != nil {
			return nil, fmt.Errorf("signature of the manifest: %w", err)
		}
		_, err = r.Keys.Verify(text, signature)
		if err == nil {
			return text, nil
		}
		if try == signatureTries {
			return nil, refuse("manifest at %s: %w", address, err)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

const (
	maxSignature   = 4096 // bytes; minisign's have about 300
	signatureTries = 3
)

func (r *Reimager) fetcher() *fetch.Client { return &fetch.Client{Log: r.Log} }

// look finds out what the PC is and what is on its disks.
func (r *Reimager) look(ctx context.Context) error {
	if err := r.settleDisks(ctx); err != nil {
		return err
	}
	var err error
	r.facts = facts.Collect(os.DirFS("/"), r.Options.BootMAC)
	r.facts.Disks, err = disk.List(ctx, disk.System{})
	if err != nil {
		return fmt.Errorf("list the disks: %w", err)
	}
	for _, d := range r.facts.Disks {
		for _, c := range d.Contents {
			r.loadFileSystems(ctx, c.Kind)
		}
	}
	r.found = findInstalled(r.facts.Disks, r.Log)
	return nil
}

func (r *Reimager) installedOn(d spec.Disk) *Installed {
	for i := range r.found {
		if r.found[i].Disk.Device == d.Device {
			return &r.found[i]
		}
	}
	return nil
}

// phase ends the current phase and begins the next.
func (r *Reimager) phase(name string) {
	r.now = name
	r.Screen.Phase(name)
	r.event(spec.Event{Kind: spec.EventPhase})
}

// event completes an event and hands it to the reporter.
func (r *Reimager) event(e spec.Event) {
	if r.reports == nil {
		return
	}
	e.Time, e.Uptime, e.Attempt, e.Phase = time.Now().UTC(), logs.Uptime().Seconds(), r.attempt, r.now
	r.reports.Post(e)
}

// flush gives the last events a moment to reach the server.
func (r *Reimager) flush(ctx context.Context) {
	if r.reports == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := r.reports.Flush(ctx); err != nil {
		r.Log.Warn("the last events did not reach the server", "error", err)
	}
}

// fail is the one place where a failure becomes known.
func (r *Reimager) fail(err error) {
	state := "Nothing was written to the disk."
	if r.wrote {
		state = "The disk is not whole and will not boot."
	}
	r.Screen.Failed(err)
	r.Log.Error(fmt.Sprintf("REIMAGE FAILED: %s: %v", r.now, err))
	r.Log.Error(state)
	r.event(spec.Event{Kind: spec.EventFailure, Text: err.Error(), Log: r.Ring.Lines(), Phases: r.Screen.Phases()})
}

// giveUp does what the policy says after the last try.
func (r *Reimager) giveUp(ctx context.Context, p spec.OnFailure, cause error) (spec.Finish, error) {
	r.flush(ctx)
	switch p.Then {
	case string(spec.Reboot), string(spec.PowerOff), string(spec.Shell):
		r.Log.Error("giving up: " + p.Then)
		return spec.Finish(p.Then), nil
	case "", spec.Local:
		if r.wrote {
			break
		}
		if r.facts.Disks == nil {
			if err := r.look(ctx); err != nil {
				r.Log.Warn("cannot look for the PC's own system", "error", err)
				break
			}
		}
		for _, i := range r.found {
			if !i.Whole {
				continue
			}
			r.Log.Info(fmt.Sprintf("going on into the PC's own system on %s, which is untouched", i.Disk.Device))
			if _, _, err := r.goLocal(ctx, i); err != nil {
				r.Log.Error(err.Error())
			}
		}
	}
	return spec.Hold, cause
}
