package qemutests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"reassure/image/spec"
)

// writeLog writes a log as blklogwrites does.
func writeLog(t *testing.T, entries []Write, data map[int]byte) string {
	t.Helper()
	var b bytes.Buffer
	sector := func(values ...uint64) {
		s := make([]byte, writesSector)
		for i, v := range values {
			binary.LittleEndian.PutUint64(s[8*i:], v)
		}
		b.Write(s)
	}
	sector(writesMagic, writesVersion, uint64(len(entries)), writesSector)
	for i, e := range entries {
		flags := uint64(0)
		for bit, on := range []bool{e.Flush, e.FUA, e.Discard} {
			if on {
				flags |= 1 << bit
			}
		}
		sector(uint64(e.At/writesSector), uint64(e.Length/writesSector), flags)
		if !e.Discard {
			b.Write(bytes.Repeat([]byte{data[i]}, int(e.Length)))
		}
	}
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestWrites rebuilds disks after power cuts: what was flushed is always there, what was
// not sometimes, and nothing else ever.
func TestWrites(t *testing.T) {
	const s = writesSector
	log := writeLog(t, []Write{
		{At: 0, Length: s},                // a
		{Flush: true},                     //
		{At: s, Length: 2 * s},            // b
		{At: 4 * s, Length: s},            // c
		{At: 5 * s, Length: s, FUA: true}, // d
		{Flush: true},                     //
		{At: 0, Length: s},                // e
	}, map[int]byte{0: 'a', 2: 'b', 3: 'c', 4: 'd', 6: 'e'})
	w, err := ReadWrites(log)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if len(w.Entries) != 7 || w.Durable(1) != 0 || w.Durable(5) != 2 || w.Durable(7) != 6 {
		t.Fatalf("%d entries; durable %d, %d, %d", len(w.Entries), w.Durable(1), w.Durable(5), w.Durable(7))
	}
	seen := map[string]bool{}
	for seed := range uint64(300) {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(8 * s); err != nil {
			t.Fatal(err)
		}
		if err := w.Replay(f, 0, w.Durable(5)); err != nil {
			t.Fatal(err)
		}
		if err := w.Cut(f, 5, rand.New(rand.NewPCG(1, seed))); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		var short []byte
		for i := range 8 {
			c := data[i*s]
			if c == 0 {
				c = '.'
			}
			short = append(short, c)
		}
		seen[string(short)] = true
	}
	for got := range seen {
		switch got {
		case "a....d..", "abb..d..", "ab...d..", "a...cd..", "abb.cd..", "ab..cd..":
		default:
			t.Errorf("a disk was left as %s", got)
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d kinds of disks were left, want 6: %v", len(seen), seen)
	}
	if _, err := ReadWrites(filepath.Join("testdata", "none")); err == nil {
		t.Error("a log that is not there was read")
	}
}

// cuts is how many power cuts make test tries; make test-faults tries more, of deltas, too.
const cuts = 20

// TestPowerCutAnywhere notes all that a reimage writes, and makes disks as they would be had
// the plug been pulled at some moment. Each is the old disk, or boots nothing, or is the
// new system, whole.
func TestPowerCutAnywhere(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, SmallProfile)
	lab.publish()
	lab.decide("remote")
	dir := t.TempDir()
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous, Log: filepath.Join(dir, "log")}
	if err := errors.Join(disk.Make(filepath.Join(dir, "new")), CopyDisk(t.Context(), disk.Path(), filepath.Join(dir, "old")), os.WriteFile(disk.Log, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	plan, _ := lab.reimaged(Machine{Disks: []*Disk{disk}})
	writes, err := ReadWrites(disk.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer writes.Close()
	judge := &Judge{Dir: dir, Old: filepath.Join(dir, "old"), New: disk.Path(), Root: plan.Partitions[0]}
	all, outcomes := len(writes.Entries), map[string]int{}
	for n := range uint64(cuts) {
		random := rand.New(rand.NewPCG(n, uint64(all)))
		at := writes.Moment(n, random)
		switch n {
		case 0:
			at = 0
		case 1:
			at = all
		}
		cut := &Disk{Size: disk.Size, path: filepath.Join(dir, fmt.Sprint("cut", n))}
		if err := errors.Join(CopyDisk(t.Context(), judge.Old, cut.path), writes.Rebuild(cut, at, random)); err != nil {
			t.Fatal(err)
		}
		outcome, err := judge.Outcome(t.Context(), cut, false)
		if err != nil {
			t.Errorf("power cut %d, after write %d of %d: %v", n, at, all, err)
		}
		if want := []string{OldSystem, NewSystem}; n < 2 && outcome != want[n] {
			t.Errorf("after %d of %d writes the disk %s, want the %s", at, all, outcome, want[n])
		}
		outcomes[outcome]++
		if err := os.Remove(cut.path); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d power cuts: %v", cuts, outcomes)
	if outcomes[NoBoot] < cuts/4 {
		t.Errorf("of %d power cuts %d left a disk that does not boot: this shows little", cuts, outcomes[NoBoot])
	}
}
