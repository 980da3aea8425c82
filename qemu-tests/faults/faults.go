package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// fault is something that is wrong with the server, the network, the disk or the PC.
type fault struct {
	name   string
	server func(random *rand.Rand) []qemutests.Fault
	pc     func(m *qemutests.Machine)
	// disk has requests fail, for ever, as QEMU's blkdebug takes it: of a sector where the
	// old system holds something, say.
	disk func(random *rand.Rand, held int64) string
	// size is that of a disk which has another system on it than ours; 0 is the stage's.
	size spec.Size
	// profile changes the PC's profile.
	profile func(string) string
	// during does something to a PC that is switched on.
	during func(ctx context.Context, r *running) error
	// modes are those that it is tried in; nil is both.
	modes []string

	// untouched says that nothing may be written to the disk.
	untouched bool
	// breaks says that no reimage can come to its end.
	breaks bool
	// works says that the reimage must come to its end all the same.
	works bool
	// fails is how many times it is tried; 0 says that once is enough.
	fails int
	// reason is what the console, and the server if it can be reached then, are told.
	reason string
	// unheard says that the server cannot be told.
	unheard bool
}

// running is a PC that is being reimaged.
type running struct {
	lab    *qemutests.Lab
	vm     *qemutests.VM
	cable  *qemutests.Cable
	random *rand.Rand
	facts  map[string]string
}

// manifest is the end of the path of the PC's manifest.
const manifest = "manifests/01-52-54-00-12-34-56.json"

// faults are all of them.
func faults() []fault {
	all := rows()
	for i := range all {
		if all[i].modes == nil {
			all[i].modes = []string{full, delta}
		}
	}
	return all
}

func rows() []fault {
	onlyFull := []string{full}
	const wad = ".tar.zst"
	return []fault{
		{name: "server/manifest gone", server: web(qemutests.Fault{Suffix: manifest, Status: 404}), untouched: true, unheard: true, reason: "404"},
		{name: "server/manifest corrupt", server: func(r *rand.Rand) []qemutests.Fault {
			return []qemutests.Fault{{Suffix: manifest, FlipAt: 1 + r.Int64N(500)}}
		}, untouched: true, unheard: true, reason: "signature"},
		{name: "server/manifest cut", server: web(qemutests.Fault{Suffix: manifest, CutAt: 300}), untouched: true, unheard: true, reason: "unexpected EOF"},
		{name: "server/manifest is a web page", server: web(qemutests.Fault{Suffix: manifest, Page: true}), modes: onlyFull, untouched: true, unheard: true, reason: "the server answers with a web page"},
		{name: "server/manifest by the byte", server: web(qemutests.Fault{Suffix: manifest, Rate: 1}), modes: onlyFull, untouched: true, unheard: true, reason: "did not give this PC its manifest within 1m0s"},
		{name: "server/manifest of too short a length", server: web(qemutests.Fault{Suffix: manifest, Length: -100}), modes: onlyFull, untouched: true, unheard: true, reason: "signature"},
		{name: "server/manifest of too long a length", server: web(qemutests.Fault{Suffix: manifest, Length: 100}), modes: onlyFull, untouched: true, unheard: true, reason: "unexpected EOF"},
		{name: "server/errors at first", server: web(qemutests.Fault{Suffix: manifest, Status: 503, Times: 2}, qemutests.Fault{Suffix: wad, Status: 500, Times: 2}), works: true},
		{name: "server/wad gone", server: web(qemutests.Fault{Suffix: wad, Status: 404}), untouched: true, reason: "404"},
		{name: "server/wad is a web page", server: web(qemutests.Fault{Suffix: wad, Page: true}), modes: onlyFull, untouched: true, reason: "small.tar.zst: it has 61 bytes instead of"},
		{name: "server/wad by the byte at first", server: web(qemutests.Fault{Suffix: wad, Rate: 1, Times: 2}), modes: onlyFull, works: true},
		{name: "server/index corrupt", server: func(r *rand.Rand) []qemutests.Fault {
			return []qemutests.Fault{{Suffix: wad, FlipAt: 20 + r.Int64N(1000)}}
		}, untouched: true, reason: "small.tar.zst"},
		{name: "server/wad corrupt once", server: func(r *rand.Rand) []qemutests.Fault {
			var all []qemutests.Fault
			for range 10 {
				all = append(all, qemutests.Fault{Suffix: wad, FlipAt: 20 + r.Int64N(50_000_000), Times: 1})
			}
			return all
		}, works: true},
		{name: "server/wad corrupt", server: web(qemutests.Fault{Suffix: wad, FlipAt: 20_000_000}), modes: onlyFull, profile: retries(1), fails: 2, breaks: true, reason: "small.tar.zst"},
		{name: "server/connections cut", server: web(qemutests.Fault{Suffix: wad, CutAt: 5_000_000, Times: 2}), works: true},
		{name: "server/wads of too short a length", server: web(qemutests.Fault{Suffix: wad, Length: -1000, Times: 3}), works: true},
		{name: "server/wads of too long a length", server: web(qemutests.Fault{Suffix: wad, Length: 1000, Times: 3}), works: true},
		{name: "server/slow", server: web(qemutests.Fault{Suffix: wad, Rate: 3_000_000}), works: true},
		{name: "server/restarted", during: func(ctx context.Context, r *running) error {
			return errors.Join(r.half(ctx), r.lab.Web.Restart(15*time.Second))
		}, works: true},

		{name: "network/a fifth lost", during: func(ctx context.Context, r *running) error {
			return r.spell(ctx, 90*time.Second, qemutests.Trouble{Loss: 0.2})
		}, unheard: true}, // mostly it works; now and then the minute for the manifest is over before
		{name: "network/late by 2 s", during: func(ctx context.Context, r *running) error {
			return r.spell(ctx, 90*time.Second, qemutests.Trouble{Delay: time.Second})
		}, works: true},
		{name: "network/cut and back", during: func(ctx context.Context, r *running) error {
			if err := errors.Join(r.half(ctx), r.vm.Link(false)); err != nil {
				return err
			}
			return errors.Join(pause(ctx, 20*time.Second), r.vm.Link(true))
		}, works: true},
		{name: "network/cut", during: func(ctx context.Context, r *running) error {
			return errors.Join(r.half(ctx), r.vm.Link(false))
		}, modes: onlyFull, breaks: true, unheard: true, reason: "small.tar.zst"},
		{name: "network/silent", during: func(ctx context.Context, r *running) error {
			err := r.half(ctx)
			r.cable.Set(qemutests.Trouble{Cut: true})
			return err
		}, modes: onlyFull, breaks: true, unheard: true, reason: "small.tar.zst"},
		{name: "network/half-open", during: func(ctx context.Context, r *running) error {
			err := r.half(ctx)
			r.cable.HalfOpen()
			return err
		}, works: true},
		{name: "network/no DHCP", during: func(ctx context.Context, r *running) error {
			return r.spell(ctx, 0, qemutests.Trouble{NoDHCP: true})
		}, modes: onlyFull, untouched: true, unheard: true, reason: "no DHCP lease"},
		{name: "network/DHCP gone meanwhile", during: func(ctx context.Context, r *running) error {
			err := r.half(ctx)
			r.cable.Set(qemutests.Trouble{NoDHCP: true})
			return err
		}, modes: onlyFull, works: true},
		{name: "network/two DHCP servers", during: func(ctx context.Context, r *running) error {
			return r.spell(ctx, 0, qemutests.Trouble{Other: netip.MustParsePrefix(qemutests.Network)})
		}, modes: onlyFull, works: true},
		{name: "network/DHCP of another network", during: func(ctx context.Context, r *running) error {
			return r.spell(ctx, 0, qemutests.Trouble{Other: netip.MustParsePrefix("192.0.2.0/24")})
		}, modes: onlyFull, untouched: true, unheard: true, reason: "did not give this PC its manifest within 1m0s"},

		{name: "disk/read error", disk: func(_ *rand.Rand, held int64) string {
			return fmt.Sprintf("inject-error.0.event=read_aio,inject-error.0.errno=5,inject-error.0.sector=%d", held)
		}},
		{name: "disk/write error", disk: func(r *rand.Rand, _ int64) string { return writesFail(1 + r.IntN(3)) }, breaks: true},
		{name: "disk/flush error", disk: func(*rand.Rand, int64) string { return "inject-error.0.event=flush_to_disk,inject-error.0.errno=5" }, breaks: true},
		{name: "disk/write-protected", pc: func(m *qemutests.Machine) { m.Disks[0].ReadOnly = true }, untouched: true, reason: "read-only|write-protect"},
		{name: "disk/too small for the layout", profile: func(p string) string { return strings.Replace(p, "size: rest", "size: 64GiB", 1) }, modes: onlyFull, untouched: true, reason: "64 ?GiB|too small"},
		{name: "disk/too small for the wad", size: 64 * spec.MiB, modes: onlyFull, untouched: true, reason: "for partition root, which has"},
		{name: "disk/gone", during: func(ctx context.Context, r *running) error {
			return errors.Join(r.half(ctx), r.vm.Vanish(0))
		}, breaks: true},
		{name: "disk/slow", pc: func(m *qemutests.Machine) { m.Disks[0].Rate = 5_000_000 }, works: true},

		{name: "pc/little memory", pc: func(m *qemutests.Machine) { m.Memory = 256 * spec.MiB }},
		{name: "pc/tmpfs full", profile: func(p string) string {
			return strings.Replace(p, "steps:\n", "steps:\n  - name: fills it\n    run: {command: [/bin/sh, -c, \"cat /dev/zero >/run/much\"]}\n", 1)
		}, breaks: true, reason: "fills it.*No space left on device"},
		{name: "pc/clock at 1970", pc: func(m *qemutests.Machine) { m.Clock = "1970-01-01" }, works: true},
		{name: "pc/clock at 2099", pc: func(m *qemutests.Machine) { m.Clock = "2099-01-01" }, works: true},
	}
}

// web is what is wrong with a server, whatever happens.
func web(f ...qemutests.Fault) func(*rand.Rand) []qemutests.Fault {
	return func(*rand.Rand) []qemutests.Fault { return f }
}

// retries has a PC try as often again.
func retries(n int) func(string) string {
	return func(p string) string {
		return strings.Replace(p, "retries: 0", fmt.Sprintf("retries: %d, pause: 1s", n), 1)
	}
}

// writesFail has every write fail after so many flushes: which sectors are written, and in
// what order, is another with every reimage (QEMU's docs/devel/blkdebug.txt).
func writesFail(flushes int) string {
	var rules strings.Builder
	for i := range flushes {
		fmt.Fprintf(&rules, "set-state.%d.event=flush_to_disk,set-state.%d.state=%d,set-state.%d.new_state=%d,", i, i, i+1, i, i+2)
	}
	return fmt.Sprintf("%sinject-error.0.event=write_aio,inject-error.0.errno=5,inject-error.0.state=%d", rules.String(), flushes+1)
}

// half waits until a random part, up to a half, of the wad is on the disk, or of a delta done.
func (r *running) half(ctx context.Context) error {
	part := r.random.Float64() / 2
	e, err := r.lab.Web.Await(ctx, "progress", func(e spec.Event) bool {
		return e.Kind == spec.EventProgress && float64(e.Done) >= part*float64(e.Total) || e.Kind == spec.EventDone || e.Kind == spec.EventFailure
	})
	r.facts["moment"] = fmt.Sprintf("%s, %v of %v", e.Phase, e.Done, e.Total)
	if err == nil && e.Kind != spec.EventProgress {
		err = errors.New("all was over before")
	}
	return err
}

var networkLine = regexp.MustCompile(`-> network`)

// spell has something be wrong with the network from when our program looks for it, and
// for as long; 0 is to the end.
func (r *running) spell(ctx context.Context, long time.Duration, t qemutests.Trouble) error {
	if _, err := r.vm.Expect(ctx, networkLine, panicked); err != nil {
		return err
	}
	r.cable.Set(t)
	if long == 0 {
		return nil
	}
	err := pause(ctx, long)
	r.cable.Set(qemutests.Trouble{})
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
