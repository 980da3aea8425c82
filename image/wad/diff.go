package wad

import (
	"bytes"
	"iter"
	"maps"
	"slices"

	"reassure/image/spec"
	"reassure/image/tree"
)

// Change is an entry in which two wads differ.
type Change struct {
	// Old and New are the entry in each; one of them is nil if it is only in the other.
	Old, New *Member
	// What differs, if it is in both: kind, mode, owner, time, target, device,
	// links, the name of an attribute, size, content.
	What []string
	// Fetch is the file bytes of the chunks that hold what has to be fetched for
	// it; neighbours may share them.
	Fetch spec.Size
}

// Path is the entry's.
func (c *Change) Path() string {
	if c.New != nil {
		return c.New.Path
	}
	return c.Old.Path
}

// Delta is what a reimage from one wad to another moves.
type Delta struct {
	Added, Removed, Changed int
	// Files is how many files' content is fetched, wholly or in part.
	Files int
	// Chunks is how many chunks are fetched, once each, and Fetch their bytes.
	Chunks int
	Fetch  spec.Size
	// Index is the size of the new wad's index, which is fetched as well.
	Index spec.Size
}

// Diff compares the tables of contents of two wads, and says what a PC with a
// must fetch to have b. It gives found each difference, in the order of
// [tree.Before]. A file that only moved is fetched again, as the reimager does.
func Diff(a, b *Index, found func(Change) error) (Delta, error) {
	d := Delta{Index: spec.Size(b.Size)}
	fetched := make([]bool, b.Chunks)
	change := func(c Change, parts []tree.Piece) error {
		for _, p := range parts {
			for stretch, at := range c.New.stored(p.Offset, p.Length) {
				from, to := b.Range(at, stretch.Length)
				for i := from; i < to; i++ {
					size := spec.Size(b.Chunk(i).Size)
					c.Fetch += size
					if !fetched[i] {
						fetched[i] = true
						d.Chunks++
						d.Fetch += size
					}
				}
			}
		}
		if len(parts) > 0 {
			d.Files++
		}
		return found(c)
	}
	err := pairs(a.All(), b.All(), func(old, now *Member) error {
		c := Change{Old: old, New: now}
		switch {
		case now == nil:
			d.Removed++
			return change(c, nil)
		case old == nil:
			d.Added++
			return change(c, now.fetches(nil))
		}
		if c.What = differences(old, now); c.What == nil {
			return nil
		}
		d.Changed++
		return change(c, now.fetches(old))
	})
	return d, err
}

// pairs goes through two lists of members at once.
func pairs(a, b iter.Seq2[*Member, error], each func(a, b *Member) error) error {
	nextA, stopA := iter.Pull2(a)
	defer stopA()
	nextB, stopB := iter.Pull2(b)
	defer stopB()
	ma, err, okA := nextA()
	mb, errB, okB := nextB()
	for okA || okB {
		if err == nil {
			err = errB
		}
		if err != nil {
			return err
		}
		var one, other *Member
		if okA && (!okB || !tree.Before(mb.Path, ma.Path)) {
			one = ma
		}
		if okB && (!okA || !tree.Before(ma.Path, mb.Path)) {
			other = mb
		}
		if err := each(one, other); err != nil {
			return err
		}
		if one != nil {
			ma, err, okA = nextA()
		}
		if other != nil {
			mb, errB, okB = nextB()
		}
	}
	return nil
}

// fetches lists the parts of a file that one who has old must fetch.
func (m *Member) fetches(old *Member) []tree.Piece {
	if m.Kind != tree.Regular || m.Stored() == 0 {
		return nil
	}
	if old == nil || old.Kind != tree.Regular {
		return []tree.Piece{{Length: m.Size}}
	}
	if old.Size == m.Size && old.SHA256 == m.SHA256 {
		return nil
	}
	if len(m.Pieces) == 0 {
		return []tree.Piece{{Length: m.Size}}
	}
	var parts []tree.Piece
	for i, p := range m.Pieces {
		if i >= len(old.Pieces) || old.Pieces[i] != p {
			parts = append(parts, p)
		}
	}
	return parts
}

// differences lists in what a disk with one entry differs from one with the other.
func differences(a, b *Member) []string {
	if a.Kind != b.Kind {
		return []string{"kind"}
	}
	var what []string
	check := func(name string, differ bool) {
		if differ {
			what = append(what, name)
		}
	}
	check("mode", a.Mode != b.Mode)
	check("owner", a.UID != b.UID || a.GID != b.GID)
	check("time", !a.Implied && !b.Implied && !a.ModTime.Equal(b.ModTime))
	check("target", a.Target != b.Target)
	check("device", a.Major != b.Major || a.Minor != b.Minor)
	check("links", a.First != b.First || max(a.Links, 1) != max(b.Links, 1))
	names := slices.Collect(maps.Keys(a.Xattrs))
	for name := range b.Xattrs {
		if _, both := a.Xattrs[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		va, inA := a.Xattrs[name]
		vb, inB := b.Xattrs[name]
		check(name, inA != inB || !bytes.Equal(va, vb))
	}
	check("size", a.Size != b.Size)
	check("content", a.SHA256 != b.SHA256)
	return what
}
