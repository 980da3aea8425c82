// Package reimage is what runs on a PC that was booted Remote: it finds out
// what the PC should hold, decides whether it does already, and if not wipes
// the disk and builds the system anew.
//
// The order of things, and what each leaves behind when it is the last:
//
//	check      the image itself is whole and fits the running kernel
//	hardware   drivers for what is present
//	network    the card that the PC booted from has an address
//	ask        where no boot loader has: whether this is to be a reimage at all
//	manifest   fetched, its signature and host checked
//	decide     Keep: nothing is written, on into the PC's own system; or a question
//	           that a person has to answer first: see [Recognise]
//	plan       printed, sent to the server; nothing has been written so far
//	approval   where the profile says approve: a person, or the plan's like
//	erase      the first write makes the disk unbootable
//	format, extract, configure, steps
//	commit     the stamp, everything flushed, and last the boot code,
//	           or on UEFI the name of the loaders' folder
//
// Where the disk holds the same layout and a system of ours, a delta takes the
// place of all that comes before the steps:
//
//	uncommit   the first write makes the disk unbootable
//	check      by e2fsck
//	repair     what differs from wads and templates is removed, or fetched
//
// Whatever goes wrong in a delta, but for the network, has the disk laid down in full.
//
// A manifest with an errand ends at decide: a capture sends the disk's system to the
// boot server and writes nothing; a rescue has an SSH server for the site's own keys, which
// is there at no other time.
//
// [Decide] and [MakePlan] are pure; destruction starts in one function, erase.
// Every failure, a panic included, goes one way: [Reimager.Run] reports it to
// the server, on every console and in the kernel log, tries again with growing
// pauses, and then does what the profile says. A PC whose disk was not written
// to goes on into its own system, unless its profile says otherwise; so does one
// that has no manifest after [serverTime].
//
// The boot server that gave this boot a token hears of everything as soon as the
// network is up, of the want of a manifest, too. Without a token events go where
// the manifest says, from then on.
package reimage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
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
	"reassure/image/reimage/fsck"
	"reassure/image/reimage/local"
	"reassure/image/reimage/mount"
	"reassure/image/reimage/netup"
	"reassure/image/report"
	"reassure/image/sign"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// Reimager does one PC's reimage. All fields but Trust must be set.
type Reimager struct {
	Options cmdline.Options
	// Info is what the image says of itself.
	Info spec.ImageInfoFile
	// Keys are trusted for manifests; with none, only an insecure image goes on.
	Keys sign.Keyring
	// Trust is for HTTPS, where the image has the site's own authority; then manifests
	// come by HTTPS only. May be nil.
	Trust fetch.DialTLS
	Log   *slog.Logger
	// Screen shows phases and progress on every console.
	Screen *logs.Screen
	// Ring holds the last log lines, for reports of failures.
	Ring *logs.Ring

	system   disk.System    // where disks are looked for; the zero value is the PC itself
	network  *netup.Network // nil until the network is up
	loader   *coldplug.Loader
	disks    string // names of the block devices, as of disksAt
	disksAt  time.Time
	base     string // URL of the published tree
	facts    spec.Facts
	reports  *report.Client // nil until it is known where events go
	limit    time.Time      // until when there must be a manifest; zero before the network
	found    []Installed    // systems on this PC's disks, as of the last look
	manifest *spec.Manifest // nil until there has been one in this boot
	attempt  int
	// patienceForApproval is how long a plan waits for a person; 0 means approvalTime.
	patienceForApproval time.Duration
	finished            spec.Digest // of the index that the last apply left; zero is none
	wrote               bool        // the disk has been written to since power-on
	own                 []string    // files that a delta has kept, and that make the PC the one that it is
	told                bool        // the server has said Remote to an image that asks
	again               bool        // a delta was begun since power-on, and failed by the network only
	now                 string      // the current phase
	// listen is where people log in for a rescue; nil is the network.
	listen func(netip.AddrPort) (net.Listener, error)
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
		last := r.lastTry(policy, err)
		r.fail(err, last)
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

// serverTime is how long a PC looks for its server and its manifest, from when its
// own network card is there, before it goes on into its own system. A switch port
// that spans its tree for half a minute must fit in, and a server that restarts.
const serverTime = time.Minute

// manifestTime is what is left for the manifest at the least once the network is up,
// however long a switch port took.
const manifestTime = 15 * time.Second

// impatient says whether serverTime counts: until there has been a manifest, which
// then says what goes, and unless a person wanted a number of tries.
func (r *Reimager) impatient() bool {
	return r.manifest == nil && !r.limit.IsZero() && r.Options.Retries == nil
}

// patience returns a context that ends when there is no manifest in time.
func (r *Reimager) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.limit.IsZero() {
		r.limit = time.Now().Add(serverTime)
	}
	if !r.impatient() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadlineCause(ctx, r.limit, fmt.Errorf("the server did not give this PC its manifest within %v", serverTime))
}

// lastTry says whether the try that ended with err was the last of this boot.
func (r *Reimager) lastTry(p spec.OnFailure, err error) bool {
	var refusal *Refusal
	switch {
	case r.attempt > retries(p, r.Options):
		return true
	case errors.As(err, &refusal) && !r.wrote:
		return true // it is a person who has to act first
	}
	return r.impatient() && time.Now().Add(pauseBefore(p, r.attempt)).After(r.limit)
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
		if r.Options.Ask {
			r.bootedFrom()
		}
		r.phase("network")
		waiting, cancel := r.patience(ctx)
		r.network, err = netup.Up(waiting, netup.Options{
			NIC: r.Options.NIC, BootMAC: r.Options.BootMAC, Static: r.Options.Static, VLAN: r.Options.VLAN,
			IPv6: r.Options.IPv6, MTU: r.Options.MTU, Log: r.Log,
		})
		cancel()
		if err != nil {
			return "", nil, fmt.Errorf("network: %w", err)
		}
		if least := time.Now().Add(manifestTime); r.limit.Before(least) {
			r.limit = least
		}
		r.base = baseURL(r.Options, r.network.NextServer, r.Trust != nil)
		r.reportByToken()
	}
	if r.Options.Ask && !r.told {
		r.phase("ask")
		remote, err := r.ask(ctx)
		if err == nil && !remote {
			err = r.leave(ctx)
		}
		if err != nil {
			return "", nil, err
		}
	}
	r.phase("manifest")
	if err := r.getManifest(ctx); err != nil {
		return "", nil, err
	}
	m = r.manifest
	if r.Options.Shell {
		if !m.DebugShell {
			return "", m, refuse("reassure.shell is on the kernel command line, and the profile %s does not allow it: write debug_shell: true into the profile, or into the configuration of the image for a shell without a manifest", m.Profile)
		}
		r.Log.Warn("a shell, as reassure.shell asks for and the profile allows")
		return spec.Shell, m, nil
	}
	if err := r.look(ctx); err != nil {
		if !m.Rescue() {
			return "", m, err
		}
		r.Log.Warn("the disks cannot be looked at", "error", err) // which may be why
	}
	m = m.For(r.facts.Firmware)
	need := needed(m)
	capture := m.Errand != nil && m.Errand.Kind == spec.Capture
	if capture || m.Rescue() {
		need = 0 // nothing has to fit
	}
	target, noTarget := disk.Choose(m.Disk, need, r.facts.Disks)
	start := spec.Event{Kind: spec.EventStart, Facts: &r.facts, Digest: m.Digest}
	if noTarget == nil {
		start.Installed, start.Target = r.installedOn(target).report(), &target
	}
	r.event(start)

	r.phase("decide")
	if m.Rescue() {
		var found *Installed
		if noTarget == nil {
			found = r.installedOn(target)
		}
		return r.rescue(ctx, m, found)
	}
	if noTarget != nil {
		return "", m, &Refusal{noTarget}
	}
	switch {
	case capture:
		return r.capture(ctx, m, target)
	case m.Errand != nil:
		return r.verify(ctx, m, target)
	}
	decision, err := Decide(m, target, r.installedOn(target), r.Options.Force)
	if err != nil {
		return "", m, err
	}
	if decision.Keep != nil {
		r.Log.Info(decision.Reason)
		r.event(spec.Event{Kind: spec.EventUpToDate, Digest: m.Digest, Text: decision.Reason, Installed: decision.Keep.report()})
		return r.goLocal(ctx, *decision.Keep)
	}
	r.Log.Info("to be reimaged: " + decision.Reason)
	found := r.installedOn(target)
	if err := Recognise(m, target, found); err != nil {
		return "", m, err
	}
	plan, err := MakePlan(m, r.facts, target, found, rand.Reader)
	if err != nil {
		return "", m, err
	}
	chooseMode(plan, m, found, r.again, fsck.Available())
	// A delta keeps the identities that are there, which a copy of the disk has, too.
	if err := NameTaken(plan.Partitions, target, r.facts.Disks); err != nil {
		return "", m, &Refusal{err}
	}
	if m.Mode == spec.ReimageDelta && found != nil && plan.Mode == spec.ReimageFull {
		r.Log.Warn("the profile wants a delta, and it cannot be: " + plan.Reason)
	}
	for _, line := range plan.Describe() {
		r.Log.Info(line)
	}
	r.event(spec.Event{Kind: spec.EventPlan, Plan: plan, Digest: m.Digest, Text: decision.Reason})
	if r.Options.DryRun || m.DryRun {
		return "", m, r.rehearse(ctx, m)
	}
	if err := r.approval(ctx, m, plan); err != nil {
		return "", m, err
	}
	if err := r.apply(ctx, m, plan); err != nil {
		return "", m, err
	}
	r.Screen.Done()
	r.Log.Info("REIMAGE DONE", "host", m.Host, "software", m.Digest.Short(), "peak_memory", peakMemory())
	r.event(spec.Event{
		Kind: spec.EventDone, Digest: m.Digest, Phases: r.Screen.Phases(),
		Installed: (&Installed{Stamp: stamp.New(m), Whole: true}).report(), Finished: r.finished,
	})
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
			err := r.start(ctx, *found, true)
			r.Log.Warn("going by the firmware instead of kexec", "reason", err)
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
	return "", nil, &Refusal{r.start(ctx, i, false)}
}

// start starts an installed system, by kexec alone if that is asked for. It returns only
// when it could not.
func (r *Reimager) start(ctx context.Context, i Installed, byKexec bool) error {
	r.flush(ctx)
	return local.Boot(ctx, local.Options{
		Host: i.Stamp.Host, Firmware: r.facts.Firmware, Disk: i.Disk, KexecOnly: byKexec, Log: r.Log,
		Before: func(string) { r.Screen.Flush(2 * time.Second) },
	})
}

// baseURL is the URL of the published tree, as far as anybody says it.
func baseURL(o cmdline.Options, next netip.Addr, secure bool) string {
	switch {
	case o.URL != "":
		return o.URL
	case next.IsValid() && secure:
		return "https://" + next.String() + "/reassure"
	case next.IsValid():
		return "http://" + next.String() + "/reassure"
	case o.Manifest != "":
		return o.Manifest[:strings.LastIndex(o.Manifest, "/")]
	}
	return ""
}

// getManifest gets the manifest, and begins to report where it says.
func (r *Reimager) getManifest(ctx context.Context) error {
	m, err := r.fetchManifest(ctx)
	if err != nil {
		return err
	}
	r.manifest = m
	if m.Events != "" && r.reports == nil {
		r.reportTo(spec.Absolute(r.base, m.Events))
	}
	return nil
}

// fetchManifest gets the manifest for the card that the PC booted from, and
// judges it.
func (r *Reimager) fetchManifest(ctx context.Context) (*spec.Manifest, error) {
	address := r.Options.Manifest
	if address == "" {
		if r.base == "" {
			return nil, refuse("nobody says where the manifests are: put reassure.url=http://SERVER/PATH on the kernel command line, or have the DHCP server name a next-server")
		}
		address = spec.URL(r.base, spec.ManifestPath(r.network.MAC))
	}
	if r.Trust != nil && !strings.HasPrefix(address, "https://") {
		return nil, refuse("this image has the site's own authority built in, and takes no manifest from %s, which is not https: write an https address as url into the site's file, or build an image without ca", address)
	}
	waiting, cancel := r.patience(ctx)
	defer cancel()
	text, err := r.fetchSigned(waiting, address)
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
	site := r.fetcher()
	site.Token = string(r.Options.Token)
	for try := 1; ; try++ {
		text, err := site.Get(ctx, address, spec.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("manifest for %s: %w", r.network.MAC, err)
		}
		if r.Info.Insecure {
			r.Log.Warn("INSECURE IMAGE: the manifest's signature is not checked")
			return text, nil
		}
		signature, err := site.Get(ctx, address+spec.SignatureSuffix, maxSignature)
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

// fetcher is for what anybody may have; the token is for what is this PC's own.
func (r *Reimager) fetcher() *fetch.Client { return &fetch.Client{Log: r.Log, TLS: r.Trust} }

// look finds out what the PC is and what is on its disks.
func (r *Reimager) look(ctx context.Context) error {
	if err := r.settleDisks(ctx); err != nil {
		return err
	}
	var err error
	r.facts = facts.Collect(os.DirFS("/"), r.Options.BootMAC)
	r.facts.Disks, err = disk.List(ctx, r.system)
	if err != nil {
		return fmt.Errorf("list the disks: %w", err)
	}
	for _, d := range r.facts.Disks {
		for _, c := range d.Contents {
			r.loadFileSystems(ctx, c.Kind)
		}
	}
	r.found = findInstalled(r.facts.Firmware, r.facts.Disks, r.Log)
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

// reportByToken begins to report to the boot server that gave this boot a token. Without
// one nobody is known yet who would listen.
func (r *Reimager) reportByToken() {
	// A token is nobody else's to see.
	if r.Options.Token != "" && r.base != "" && (r.Trust == nil || strings.HasPrefix(r.base, "https://")) {
		r.reportTo(spec.URL(r.base, spec.EventsFolder+r.network.MAC.PXE()))
	}
}

// reportTo has events posted to url from now on.
func (r *Reimager) reportTo(url string) {
	r.reports = report.New(url, report.Options{MAC: r.network.MAC, Token: string(r.Options.Token), TLS: r.Trust, Log: r.Log})
}

// event completes an event and hands it to the reporter. All but progress carry
// the log lines that no event before had; a step's own output comes before them.
func (r *Reimager) event(e spec.Event) {
	if r.reports == nil {
		return
	}
	e.Time, e.Uptime, e.Attempt, e.Phase = time.Now().UTC(), logs.Uptime().Seconds(), r.attempt, r.now
	e.Wrote = r.wrote
	if r.manifest != nil {
		e.Host = r.manifest.Host
	}
	token := string(r.Options.Token)
	if e.Kind != spec.EventProgress {
		e.Log = append(slices.Clone(e.Log), r.Ring.Take()...)
	}
	// A program of the new system may have printed /proc/cmdline.
	for i := range e.Log {
		e.Log[i] = logs.Hide(e.Log[i], token)
	}
	e.Text = logs.Hide(e.Text, token)
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

// fail is the one place where a failure becomes known; after the last no more
// tries follow in this boot.
func (r *Reimager) fail(err error, last bool) {
	state := "Nothing was written to the disk."
	if r.wrote {
		state = "The disk is not whole and will not boot."
	}
	q := (*Question)(nil)
	if errors.As(err, &q) && q.Ask == spec.AskDryRun {
		r.Screen.Done()
		r.Log.Info("DRY RUN DONE: " + q.Text)
		r.event(spec.Event{Kind: spec.EventFailure, Text: q.Text, Phases: r.Screen.Phases(), Final: last, Ask: q.Ask})
		return
	}
	r.Screen.Failed(errors.New(logs.Hide(err.Error(), string(r.Options.Token))))
	r.Log.Error(fmt.Sprintf("REIMAGE FAILED: %s: %v", r.now, err))
	r.Log.Error(state)
	e := spec.Event{Kind: spec.EventFailure, Text: err.Error(), Phases: r.Screen.Phases(), Final: last}
	if last && q != nil {
		e.Ask = q.Ask
	}
	r.event(e)
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
		if r.Options.Ask {
			r.Log.Error(r.leave(ctx).Error())
		}
	}
	return spec.Hold, cause
}
