package stamp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"

	"reassure/image/spec"
)

// digestVersion is the first line of what is hashed. Whatever changes the rules
// below must change it, and makes every PC of every lab due for a reimage.
const digestVersion = "reassure software 1"

// Digest returns the digest of the software that m installs. It is the SHA-256
// of lines that each end in a line feed: digestVersion, then "KIND DIGEST" for
// every input, in this order: layout, system, the wads in their order, the
// files by path, the steps in their order. An input's DIGEST is that of its JSON
// as encoding/json writes it, with the keys of every object sorted.
//
// What counts is what ends on the disk:
//
//	layout   table kind and all of each partition
//	system   all of it
//	wad      digest, mount point, overlay
//	file     path, content (tokens not replaced), mode, owner; none that is volatile
//	step     all but its name; its time limit only where failure is allowed
//
// What does not count, and why:
//
//	host, MACs     the stamp has the host's name beside the digest; where it ends on the disk, it is in a file or a step
//	host list      it reaches the disk through /etc/hosts, which is volatile: a new PC must not reimage all others
//	profile        a name for people
//	disk rule      it says where, not what; on another disk there is no stamp, so that one is reimaged anyway
//	wads' names, URLs, sizes   where the bytes come from; the digest says what they are
//	files' templates           which text they were rendered from; the text counts
//	steps' names   they are for logs
//	time limits    a step that reached its end is the same however long it might have taken; but where
//	               failure is allowed, the limit decides whether the step has done its work
//	serial         each publication has a new one
//	order          asks for a reimage by itself; see [Stamp.UpToDate]
//	mode, keep, runtime   how a disk gets what it has, and what it may have besides
//	accepted, supersedes, approve, approved, dry_run, debug_shell, rescue_keys   whether it is done, not what
//	finish, on_failure, events   what the PC does around a reimage, not what it has after it
func Digest(m *spec.Manifest) spec.Digest {
	var text bytes.Buffer
	fmt.Fprintln(&text, digestVersion)
	for _, in := range inputs(m) {
		fmt.Fprintln(&text, in.kind, in.digest)
	}
	return spec.Sum(text.Bytes())
}

// Inputs returns the digest of each input of [Digest] under a name for people:
// "layout", "system", "wad debian.tar.zst at /", "file /etc/fstab", "step limits",
// and "order of wads" and "order of steps", so that whatever makes two digests
// differ is named. (A name alone may differ between two equal digests.)
func Inputs(m *spec.Manifest) map[string]spec.Digest {
	named := map[string]spec.Digest{}
	order := map[string][]string{}
	for _, in := range inputs(m) {
		name := in.kind
		if in.name != "" {
			name += " " + in.name
		}
		for n, base := 2, name; ; n++ {
			if _, taken := named[name]; !taken {
				break
			}
			name = fmt.Sprintf("%s (%d)", base, n)
		}
		named[name] = in.digest
		order[in.kind] = append(order[in.kind], name)
	}
	// Over names, so that a change inside one of them is told once.
	named["order of wads"] = sum(order["wad"])
	named["order of steps"] = sum(order["step"])
	return named
}

// input is one thing that decides what ends on the disk.
type input struct {
	kind   string // layout, system, wad, file, step
	name   string // for people; not hashed
	digest spec.Digest
}

func inputs(m *spec.Manifest) []input {
	type wad struct {
		SHA256  spec.Digest `json:"sha256"`
		Mount   string      `json:"mount"`
		Overlay bool        `json:"overlay"`
	}
	type file struct {
		Path    string    `json:"path"`
		Content string    `json:"content"`
		Mode    spec.Mode `json:"mode"`
		UID     int       `json:"uid"`
		GID     int       `json:"gid"`
	}
	ins := []input{
		{"layout", "", sum(map[string]any{"table": m.Table, "partitions": m.Partitions})},
		{"system", "", sum(m.System)},
	}
	for _, w := range m.Wads {
		ins = append(ins, input{"wad", w.Name + " at " + w.Mount, sum(wad{w.SHA256, w.Mount, w.Overlay})})
	}
	var files []input
	for _, f := range m.Files {
		if !f.Volatile {
			files = append(files, input{"file", f.Path, sum(file{f.Path, f.Content, f.Mode, f.UID, f.GID})})
		}
	}
	sort.SliceStable(files, func(i, j int) bool { return files[i].name < files[j].name })
	ins = append(ins, files...)
	for _, s := range m.Steps {
		name := s.Name
		s.Name = ""
		if !s.AllowFailure {
			s.Timeout = 0
		}
		ins = append(ins, input{"step", name, sum(s)})
	}
	return ins
}

// sum hashes a value's canonical JSON: keys sorted, so that the order of the
// fields in a Go type is free to change.
func sum(v any) spec.Digest {
	text, err := json.Marshal(v)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var plain any
		if err = d.Decode(&plain); err == nil {
			text, err = json.Marshal(plain)
		}
	}
	if err != nil {
		// The types hold nothing that JSON cannot; a digest of less would be a lie.
		panic(fmt.Sprintf("stamp: %T is not JSON: %v", v, err))
	}
	return spec.Sum(text)
}
