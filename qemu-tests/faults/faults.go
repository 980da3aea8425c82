package main

import (
	"fmt"
	"math/rand/v2"

	"reassure/image/spec"
	qemutests "reassure/qemu-tests"
)

// fault is something that is wrong with the server or the PC.
type fault struct {
	name   string
	server func(random *rand.Rand) []qemutests.Fault
	pc     func(m *qemutests.Machine)
	// disk has requests for a sector fail, for ever: that of a random write of a
	// reimage without faults, or of something that the old system holds.
	disk func(written, held int64) string
	// untouched says that nothing may be written to the disk.
	untouched bool
	// breaks says that no reimage can come to its end.
	breaks bool
	// works says that the reimage must come to its end all the same.
	works bool
}

// manifest is the end of the path of the PC's manifest.
const manifest = "manifests/01-52-54-00-12-34-56.json"

func faults() []fault {
	web := func(f ...qemutests.Fault) func(*rand.Rand) []qemutests.Fault {
		return func(*rand.Rand) []qemutests.Fault { return f }
	}
	return []fault{
		{name: "server/manifest gone", server: web(qemutests.Fault{Suffix: manifest, Status: 404}), untouched: true},
		{name: "server/manifest corrupt", server: func(r *rand.Rand) []qemutests.Fault {
			return []qemutests.Fault{{Suffix: manifest, FlipAt: 1 + r.Int64N(500)}}
		}, untouched: true},
		{name: "server/manifest cut", server: web(qemutests.Fault{Suffix: manifest, CutAt: 300}), untouched: true},
		{name: "server/errors at first", server: web(qemutests.Fault{Suffix: manifest, Status: 503, Times: 2}, qemutests.Fault{Suffix: ".tar.zst", Status: 500, Times: 2}), works: true},
		{name: "server/wad gone", server: web(qemutests.Fault{Suffix: ".tar.zst", Status: 404}), untouched: true},
		{name: "server/index corrupt", server: func(r *rand.Rand) []qemutests.Fault {
			return []qemutests.Fault{{Suffix: ".tar.zst", FlipAt: 20 + r.Int64N(1000)}}
		}, untouched: true},
		{name: "server/connections cut", server: web(qemutests.Fault{Suffix: ".tar.zst", CutAt: 5_000_000, Times: 2}), works: true},
		{name: "server/slow", server: web(qemutests.Fault{Suffix: ".tar.zst", Rate: 3_000_000}), works: true},
		{name: "disk/read error", disk: func(_, held int64) string { return inject("read_aio", held) }},
		{name: "disk/write error", disk: func(written, _ int64) string { return inject("write_aio", written) }, breaks: true},
		{name: "disk/flush error", disk: func(_, _ int64) string { return "inject-error.0.event=flush_to_disk,inject-error.0.errno=5" }, breaks: true},
		{name: "disk/write-protected", pc: func(m *qemutests.Machine) { m.Disks[0].ReadOnly = true }, untouched: true},
		{name: "pc/little memory", pc: func(m *qemutests.Machine) { m.Memory = 256 * spec.MiB }},
		{name: "pc/clock at 1970", pc: func(m *qemutests.Machine) { m.Clock = "1970-01-01" }, works: true},
		{name: "pc/clock at 2099", pc: func(m *qemutests.Machine) { m.Clock = "2099-01-01" }, works: true},
	}
}

// inject has requests of a kind that touch a sector fail (QEMU's docs/devel/blkdebug.txt).
func inject(event string, sector int64) string {
	return fmt.Sprintf("inject-error.0.event=%s,inject-error.0.errno=5,inject-error.0.sector=%d", event, sector)
}
