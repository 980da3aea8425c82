// Package delta makes an installed system what a full install would have made
// of the disk, by changing only what differs.
//
// What should be there is joined from the indexes of all wads, in the order of the
// manifest, and the rendered templates: [New]. Nothing of it is kept in memory but the
// names of folders and symbolic links, which say where an overlay's or a
// template's path leads. [Tree.Mend] then has each of the mounted file systems checked,
// by itself and without what is mounted inside, so that nothing hides below a
// mount point; and repaired, with content that is fetched chunk by chunk.
//
// The tree that comes out is the one that wad.Extract and the laying down of
// templates make, but for the times of folders in which an overlay or a
// template has put something: these are not compared.
package delta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"reassure/image/spec"
	"reassure/image/tree"
	"reassure/image/wad"
)

// Source is one wad.
type Source struct {
	Remote  *wad.Remote
	Mount   string // where its tree goes, absolute
	Overlay bool
}

// Change is one name that differs from what wads and templates hold, because a
// step made, changed or removed it.
type Change struct {
	Want *tree.Expected // nil: there is nothing of that name
	Path string         // as [tree.Clean] gives it
}

// Options say what should be on the disk.
type Options struct {
	Wads []Source
	// Files are the rendered templates, without tokens.
	Files []spec.File
	// Mounts are the mount points of the file systems, absolute; "/" may be left out.
	Mounts []string
	// Points are mount points of file systems that are not looked at, absolute.
	Points []string
	// Finished are what the steps left, in the order of [tree.Before]; their
	// content is not had from anywhere.
	Finished []Change
}

// Tree is what should be on the disk.
type Tree struct {
	layers []*layer
	mounts []string // clean, "." first, parents before what is in them
	// dropped counts the names that later layers take away from files with several.
	dropped map[group]int
	// unsettled are the folders whose time a later layer changed.
	unsettled map[string]bool
}

// layer is what one wad, or all templates, or the steps, put over what is below.
type layer struct {
	number int
	remote *wad.Remote // nil: items are all there is
	at     string      // where it goes, clean
	// moved are the members whose path leads through a symbolic link, with the
	// path where they end up; "" is nowhere.
	moved map[string]string
	items []*tree.Expected // sorted
	gone  map[string]bool  // names among items that are taken away
	text  map[string]string
}

// group is a file with several names.
type group struct {
	layer int
	first string
}

// origin is where the content of an expected file comes from.
type origin struct {
	layer  *layer
	member string // of the wad, the name that has the content
}

// New joins the layers. It reads the indexes, and fetches nothing.
func New(o Options) (*Tree, error) {
	t := &Tree{mounts: []string{"."}, dropped: map[group]int{}, unsettled: map[string]bool{}}
	places := newPlaces()
	ground := &layer{gone: map[string]bool{}}
	for _, m := range o.Mounts {
		clean, err := tree.Clean(m)
		if err != nil {
			return nil, fmt.Errorf("mount point %s: %w", m, err)
		}
		if clean != "." {
			t.mounts = append(t.mounts, clean)
		}
	}
	slices.SortFunc(t.mounts, walkOrder)
	t.mounts = slices.Compact(t.mounts)
	for _, m := range t.mounts {
		ground.imply(m)
	}
	for _, p := range o.Points {
		clean, err := tree.Clean(p)
		if err != nil {
			return nil, fmt.Errorf("mount point %s: %w", p, err)
		}
		ground.imply(clean)
	}
	ground.sort()
	t.add(ground, places)
	for _, w := range o.Wads {
		l := &layer{remote: w.Remote}
		clean, err := tree.Clean(w.Mount)
		if err != nil {
			return nil, fmt.Errorf("wad %s: %w", w.Mount, err)
		}
		if l.at, err = places.follow(clean); err != nil {
			return nil, fmt.Errorf("where a wad goes: %w", err)
		}
		if l.at != "." {
			above := &layer{gone: map[string]bool{}}
			above.imply(l.at)
			above.sort()
			t.add(above, places)
		}
		if len(t.layers) > 1 {
			if err := l.move(places, w.Overlay); err != nil {
				return nil, err
			}
		}
		if err := t.addWad(l, places); err != nil {
			return nil, err
		}
	}
	files, err := templates(o.Files, places)
	if err != nil {
		return nil, err
	}
	t.add(files, places)
	if len(o.Finished) > 0 {
		t.add(finished(o.Finished), places)
	}
	return t, t.count()
}

func walkOrder(a, b string) int {
	switch {
	case a == b:
		return 0
	case tree.Before(a, b):
		return -1
	}
	return 1
}

// imply has a folder be there, and those above it.
func (l *layer) imply(folder string) {
	for ; ; folder = path.Dir(folder) {
		l.items = append(l.items, &tree.Expected{Entry: tree.Entry{Path: folder, Kind: tree.Directory, Mode: 0o755}, Implied: true})
		if folder == "." {
			return
		}
	}
}

// sort puts items in order. Of two with one path the last wins, but a folder that
// is only implied.
func (l *layer) sort() {
	slices.SortStableFunc(l.items, func(a, b *tree.Expected) int { return walkOrder(a.Path, b.Path) })
	var kept []*tree.Expected
	for _, e := range l.items {
		if n := len(kept); n > 0 && kept[n-1].Path == e.Path {
			if !e.Implied {
				kept[n-1] = e
			}
			continue
		}
		kept = append(kept, e)
	}
	l.items = kept
}

// templates are the layer of rendered files: each takes the place of whatever is
// there, in a folder that is found through symbolic links.
func templates(files []spec.File, places *places) (*layer, error) {
	l := &layer{text: map[string]string{}, gone: map[string]bool{}}
	for _, f := range files {
		clean, err := tree.Clean(f.Path)
		if err == nil && clean == "." {
			err = errors.New("it is the root folder")
		}
		folder := ""
		if err == nil {
			folder, err = places.follow(path.Dir(clean))
		}
		if err != nil {
			return nil, fmt.Errorf("template %s: %w", f.Path, err)
		}
		at := path.Join(folder, path.Base(clean))
		l.imply(folder)
		l.items = append(l.items, &tree.Expected{
			Entry: tree.Entry{Path: at, Kind: tree.Regular, Mode: uint32(f.Mode), UID: uint32(f.UID), GID: uint32(f.GID)},
			Size:  int64(len(f.Content)), SHA256: spec.Sum([]byte(f.Content)), Origin: origin{layer: l, member: at},
		})
		l.text[at] = f.Content
	}
	l.sort()
	return l, nil
}

// finished is the layer of what the steps left.
func finished(changes []Change) *layer {
	l := &layer{gone: map[string]bool{}}
	l.imply(ownFolder)
	for _, c := range changes {
		e := c.Want
		if e == nil {
			l.gone[c.Path] = true
			e = &tree.Expected{Entry: tree.Entry{Path: c.Path}}
		}
		l.items = append(l.items, e)
	}
	l.sort()
	return l
}

// add puts a layer of items over those that are there.
func (t *Tree) add(l *layer, places *places) {
	l.number = len(t.layers)
	t.layers = append(t.layers, l)
	named := map[string]bool{}
	for _, e := range l.items {
		named[e.Path] = !e.Implied
		t.unsettle(l, e, named, places)
		places.note(e, l.gone[e.Path])
	}
}

// unsettle notes that an entry changes the time of the folder that it comes into,
// unless its own layer sets that afterwards.
func (t *Tree) unsettle(l *layer, e *tree.Expected, named map[string]bool, places *places) {
	above := path.Dir(e.Path)
	// A folder that is only implied, and there already, changes nothing.
	if l.number > 0 && !named[above] && !(e.Implied && places.folders[e.Path]) {
		t.unsettled[above] = true
	}
}

// addWad puts a wad over what is there.
func (t *Tree) addWad(l *layer, places *places) error {
	l.number = len(t.layers)
	t.layers = append(t.layers, l)
	named := map[string]bool{}
	for e, err := range l.expected() {
		if err != nil {
			return err
		}
		if l.number > 1 { // else nothing is below it but mount points
			if e.Kind == tree.Directory {
				named[e.Path] = !e.Implied
			}
			t.unsettle(l, e, named, places)
		}
		places.note(e, false)
	}
	return nil
}

// move finds those members of a wad whose path leads through a symbolic link
// of what is below.
func (l *layer) move(places *places, overlay bool) error {
	l.moved = map[string]string{}
	for m, err := range l.remote.All() {
		if err != nil {
			return err
		}
		at := path.Join(l.at, m.Path)
		if at == "." {
			continue
		}
		folder, err := places.follow(path.Dir(at))
		if err != nil {
			return fmt.Errorf("entry %q of a wad: %w", m.Path, err)
		}
		now := path.Join(folder, path.Base(at))
		if m.Kind == tree.Directory && overlay && places.links[now] != "" {
			// tar --keep-directory-symlink: see tree.Writer.
			if to, err := places.follow(now); err == nil && places.folders[to] {
				l.moved[m.Path] = ""
				continue
			}
		}
		if now != at {
			l.moved[m.Path] = now
			e := l.place(m)
			l.items = append(l.items, e)
		}
	}
	l.sort()
	return nil
}

// place returns a member as it is expected on the disk.
func (l *layer) place(m *wad.Member) *tree.Expected {
	e := m.Expected
	at := path.Join(l.at, m.Path)
	if now, ok := l.moved[m.Path]; ok {
		at = now
	}
	o := origin{layer: l, member: m.Path}
	if m.Links > 1 {
		o.member = cmp.Or(m.First, m.Path)
	}
	e.Path, e.Origin = at, o
	return &e
}

// expected gives the layer's entries in order.
func (l *layer) expected() iter.Seq2[*tree.Expected, error] {
	return func(yield func(*tree.Expected, error) bool) {
		rest := l.items
		if l.remote != nil {
			for m, err := range l.remote.All() {
				if err != nil {
					yield(nil, err)
					return
				}
				if _, moved := l.moved[m.Path]; moved {
					continue
				}
				e := l.place(m)
				for len(rest) > 0 && walkOrder(rest[0].Path, e.Path) < 0 {
					if !yield(rest[0], nil) {
						return
					}
					rest = rest[1:]
				}
				if len(rest) > 0 && rest[0].Path == e.Path {
					if rest[0].Implied {
						rest = rest[1:]
					} else {
						continue // the other name of it was the later one; both cannot be
					}
				}
				if !yield(e, nil) {
					return
				}
			}
		}
		for _, e := range rest {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// places knows which names are folders and which are symbolic links.
type places struct {
	folders map[string]bool
	links   map[string]string
}

func newPlaces() *places {
	return &places{folders: map[string]bool{".": true}, links: map[string]string{}}
}

func (p *places) note(e *tree.Expected, gone bool) {
	if e.Implied && p.links[e.Path] != "" {
		return
	}
	delete(p.links, e.Path)
	if e.Kind == tree.Directory && !gone {
		p.folders[e.Path] = true
		return
	}
	delete(p.folders, e.Path)
	if e.Kind == tree.Symlink && !gone {
		p.links[e.Path] = e.Target
	}
}

// mostLinks is how many symbolic links one path may lead through, as in Linux
// (path_resolution(7)).
const mostLinks = 40

// follow returns where a path of the system leads, as a process in it would find.
func (p *places) follow(name string) (string, error) {
	at, rest, links := ".", name, 0
	for rest != "" && rest != "." {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		target, ok := p.links[next]
		if !ok {
			at = next
			continue
		}
		if links++; links > mostLinks {
			return "", fmt.Errorf("%s leads through more than %d symbolic links", name, mostLinks)
		}
		if strings.HasPrefix(target, "/") {
			at = "."
		}
		rest = target + "/" + rest
	}
	return at, nil
}

// count finds the files with several names of which later layers take some away.
func (t *Tree) count() error {
	if len(t.layers) < 3 {
		return nil
	}
	return t.merge(func(_ *tree.Expected, below []*tree.Expected, numbers []int) bool {
		for i, e := range below {
			if e.Links > 1 {
				t.dropped[group{numbers[i], e.First}]++
			}
		}
		return true
	})
}

// errStop ends a merge that nobody wants to see more of.
var errStop = errors.New("enough")

// merge joins the layers. It calls each for every path with what is to be there
// (nil for nothing), what is not though a layer has it, and the numbers of the
// layers of those.
func (t *Tree) merge(each func(e *tree.Expected, lost []*tree.Expected, numbers []int) bool) error {
	type head struct {
		e    *tree.Expected
		next func() (*tree.Expected, error, bool)
	}
	heads := make([]head, len(t.layers))
	for i, l := range t.layers {
		next, stop := iter.Pull2(l.expected())
		defer stop()
		heads[i].next = next
	}
	advance := func(i int) error {
		e, err, ok := heads[i].next()
		if !ok {
			e = nil
		} else if err != nil {
			return err
		}
		heads[i].e = e
		return nil
	}
	for i := range heads {
		if err := advance(i); err != nil {
			return err
		}
	}
	// Below under, nothing counts that comes from a layer before since: it was a folder there.
	under, since := "", 0
	var lost []*tree.Expected
	var numbers []int
	for {
		at := ""
		for i := range heads {
			if e := heads[i].e; e != nil && (at == "" || tree.Before(e.Path, at)) {
				at = e.Path
			}
		}
		if at == "" {
			return nil
		}
		if under != "" && !strings.HasPrefix(at, under+"/") {
			under = ""
		}
		var now *tree.Expected
		from := 0
		lost, numbers = lost[:0], numbers[:0]
		lose := func(e *tree.Expected, i int) { lost, numbers = append(lost, e), append(numbers, i) }
		for i := range heads {
			e := heads[i].e
			if e == nil || e.Path != at {
				continue
			}
			gone := t.layers[i].gone[at]
			switch {
			case under != "" && i < since:
				lose(e, i)
			case now != nil && now.Kind == tree.Directory && e.Kind == tree.Directory && !gone:
				now = joined(now, e)
				from = i
			default:
				if now != nil {
					lose(now, from)
					if now.Kind == tree.Directory {
						under, since = at, i
					}
				}
				if now != nil && e.Origin == nil && e.Kind == tree.Regular && now.Kind == tree.Regular && e.Size == now.Size && e.SHA256 == now.SHA256 {
					// A step changed what is around the content: that is still to be had.
					c := *e
					c.Origin, c.Pieces = now.Origin, now.Pieces
					e = &c
				}
				if now, from = e, i; gone {
					now = nil
					if under == "" || at != under {
						under, since = at, i
					}
				}
			}
			if err := advance(i); err != nil {
				return err
			}
		}
		if !each(now, lost, numbers) {
			return errStop
		}
	}
}

// joined is a folder that two layers have: it gets the later one's metadata, and keeps
// what attributes that does not set.
func joined(a, b *tree.Expected) *tree.Expected {
	if b.Implied {
		return a
	}
	e := *b
	if len(a.Xattrs) > 0 {
		e.Xattrs = maps.Clone(a.Xattrs)
		maps.Copy(e.Xattrs, b.Xattrs)
	}
	return &e
}

// Expected gives all that should be on the file system mounted at mount
// (absolute), with paths relative to it, in the order of [tree.Before].
func (t *Tree) Expected(mount string) iter.Seq2[*tree.Expected, error] {
	return func(yield func(*tree.Expected, error) bool) {
		here, err := tree.Clean(mount)
		if err != nil {
			yield(nil, err)
			return
		}
		var inside []string // mount points of others
		for _, m := range t.mounts {
			if m != here && below(here, m) {
				inside = append(inside, m)
			}
		}
		err = t.merge(func(e *tree.Expected, _ []*tree.Expected, _ []int) bool {
			if e == nil || !below(here, e.Path) {
				return true
			}
			e = t.settled(e)
			for _, m := range inside {
				switch {
				case e.Path == m:
					// On this file system it is an empty folder, that mounting has made.
					e = &tree.Expected{Entry: tree.Entry{Path: m, Kind: tree.Directory, Mode: 0o755}, Implied: true}
				case below(m, e.Path):
					return true
				}
			}
			if here != "." {
				c := *e
				c.Path = cmp.Or(strings.TrimPrefix(strings.TrimPrefix(e.Path, here), "/"), ".")
				e = &c
			}
			return yield(e, nil)
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

// below says whether a path is a folder, or in it.
func below(folder, path string) bool {
	return folder == "." || path == folder || strings.HasPrefix(path, folder+"/")
}

// settled corrects an entry for what other layers did around it.
func (t *Tree) settled(e *tree.Expected) *tree.Expected {
	switch {
	case e.Kind == tree.Directory && t.unsettled[e.Path] && !e.ModTime.IsZero():
		c := *e
		c.ModTime = time.Time{}
		return &c
	case e.Links > 1:
		o, ok := e.Origin.(origin)
		if !ok {
			return e
		}
		c := *e
		c.Links -= t.dropped[group{o.layer.number, e.First}]
		if c.Links <= 1 {
			c.Links, c.First = 0, ""
		} else {
			// Two layers may have groups of one name.
			c.First = fmt.Sprintf("%d/%s", o.layer.number, o.member)
		}
		return &c
	}
	return e
}

// isTemplate says whether a path is that of a template's file.
func (t *Tree) isTemplate(path string) bool {
	for _, l := range t.layers {
		if _, ok := l.text[path]; ok {
			return true
		}
	}
	return false
}

// Content fetches what a repair needs: from the wads, and from the templates.
func (t *Tree) Content(ctx context.Context, needs []tree.Need, deliver tree.Deliver) error {
	byWad := map[*layer]map[string]int{}
	for i, n := range needs {
		o, ok := n.Want.Origin.(origin)
		if !ok {
			return fmt.Errorf("%s was made by a step, and only steps can make it again: %w", n.Want.Path, ErrSteps)
		}
		if o.layer.remote == nil {
			if err := deliver(i, -1, strings.NewReader(o.layer.text[o.member])); err != nil {
				return err
			}
			continue
		}
		if byWad[o.layer] == nil {
			byWad[o.layer] = map[string]int{}
		}
		byWad[o.layer][o.member] = i
	}
	for _, l := range t.layers {
		if len(byWad[l]) == 0 {
			continue
		}
		if err := l.fetch(ctx, byWad[l], needs, deliver); err != nil {
			return err
		}
	}
	return nil
}

// ErrSteps is returned for content that neither a wad nor a template holds.
var ErrSteps = errors.New("the steps have to run again")

// fetch fetches the wanted members of a wad; wanted has the number of its need.
func (l *layer) fetch(ctx context.Context, wanted map[string]int, needs []tree.Need, deliver tree.Deliver) error {
	wants := make([]wad.Want, 0, len(wanted))
	for m, err := range l.remote.All() {
		if err != nil {
			return err
		}
		if i, ok := wanted[m.Path]; ok {
			wants = append(wants, wad.Want{Member: m, Only: needs[i].Pieces})
		}
	}
	if len(wants) != len(wanted) {
		return fmt.Errorf("of %d files that are needed the index has %d", len(wanted), len(wants))
	}
	return l.remote.Fetch(ctx, wants, func(w wad.Want, c *wad.Content) error {
		i := wanted[w.Path]
		if len(w.Only) == 0 {
			return deliver(i, -1, c)
		}
		for _, n := range w.Only {
			// Content is all wanted pieces, one after the other.
			if err := deliver(i, n, io.LimitReader(c, w.Pieces[n].Length)); err != nil {
				return err
			}
		}
		return nil
	})
}
