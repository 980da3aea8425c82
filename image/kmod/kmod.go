// Package kmod knows the kernel's modules: what a module's file says of itself,
// which others it needs, and which modules serve a device. It is pure: all files
// come through [fs.FS], and loading a module is somebody else's work.
//
// An unpacked kernel package has no modules.dep and no modules.alias, and the
// build host may lack depmod. So [Scan] reads every module, [Tree.Closure] finds
// what a selection needs, and [Tree.WriteIndex] writes the files that depmod
// would (modules.dep(5)), for [ReadIndex] to read on the PC.
package kmod

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Module is what a module's file says of itself, in its .modinfo section
// (include/linux/moduleinfo.h).
type Module struct {
	Name     string // with underscores
	Path     string // below the folder of the kernel's modules
	Depends  []string
	Aliases  []string
	Pre      []string // softdep: loaded before
	Post     []string // softdep: loaded after
	Firmware []string
	Version  string // vermagic: release and options of its kernel
}

// Canonical writes a module's name as the kernel has it: with underscores.
func Canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// nameOf returns the module's name for a file's, or "" when it is no module.
func nameOf(file string) string {
	base := path.Base(file)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return Canonical(name)
		}
	}
	return ""
}

// Read returns a module's file decompressed, as the kernel wants it; its
// signature, at the end, stays.
func Read(fsys fs.FS, file string) ([]byte, error) {
	data, err := fs.ReadFile(fsys, file)
	if err != nil {
		return nil, err
	}
	plain, err := Decompress(file, data)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	return plain, nil
}

// Decompress returns a file's content as its name's ending says that it is packed:
// distributions pack modules and firmware as .xz, .zst or .gz.
func Decompress(file string, data []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch path.Ext(file) {
	case ".xz":
		// A stream that breaks off between its blocks looks whole to the reader;
		// its footer ends in YZ (xz-file-format.txt, 2.1.2.4).
		if !bytes.HasSuffix(bytes.TrimRight(data, "\x00"), []byte("YZ")) {
			return nil, fmt.Errorf("xz: %w", io.ErrUnexpectedEOF)
		}
		r, err = xz.NewReader(bytes.NewReader(data))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(data))
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(data)); err == nil {
			defer d.Close()
		}
		r = d
	default:
		return data, nil
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Parse reads what a module's decompressed file says of itself.
func Parse(file string, data []byte) (*Module, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	m := &Module{Name: nameOf(file), Path: file}
	m.read(info)
	return m, nil
}

func (m *Module) read(info []byte) {
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.Depends = append(m.Depends, Canonical(d))
				}
			}
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "firmware":
			m.Firmware = append(m.Firmware, value)
		case "vermagic":
			m.Version = value
		case "file": // only what is built in says where it was
			m.Path = "kernel/" + value + ".ko"
		case "softdep":
			into := &m.Pre
			for word := range strings.FieldsSeq(value) {
				switch word {
				case "pre:":
					into = &m.Pre
				case "post:":
					into = &m.Post
				default:
					*into = append(*into, Canonical(word))
				}
			}
		}
	}
}

// Tree is every module of one kernel.
type Tree struct {
	Modules map[string]*Module
	// Builtin are the modules that the kernel has in itself.
	Builtin map[string]bool
	// BuiltinInfo is what modules.builtin.modinfo says of those that say
	// something, by name.
	BuiltinInfo map[string]*Module
}

// Scan reads every module below fsys, which is lib/modules/RELEASE.
func Scan(fsys fs.FS) (*Tree, error) {
	t := &Tree{Modules: map[string]*Module{}, Builtin: map[string]bool{}, BuiltinInfo: map[string]*Module{}}
	err := fs.WalkDir(fsys, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || nameOf(file) == "" {
			return nil
		}
		data, err := Read(fsys, file)
		if err != nil {
			return err
		}
		m, err := Parse(file, data)
		if err != nil {
			return err
		}
		t.Modules[m.Name] = m
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(t.Modules) == 0 {
		return nil, errors.New("there is no module in it")
	}
	t.Builtin, err = readBuiltin(fsys)
	if err != nil {
		return nil, err
	}
	if info, err := fs.ReadFile(fsys, "modules.builtin.modinfo"); err == nil {
		for field := range bytes.SplitSeq(info, []byte{0}) {
			name, rest, ok := strings.Cut(string(field), ".")
			if !ok {
				continue
			}
			name = Canonical(name)
			m := t.BuiltinInfo[name]
			if m == nil {
				m = &Module{Name: name}
				t.BuiltinInfo[name] = m
			}
			m.read([]byte(rest))
		}
	}
	return t, nil
}

func readBuiltin(fsys fs.FS) (map[string]bool, error) {
	builtin := map[string]bool{}
	text, err := fs.ReadFile(fsys, "modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return builtin, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if name := nameOf(strings.TrimSpace(line)); name != "" {
			builtin[name] = true
		}
	}
	return builtin, nil
}

// Provider returns the modules that an alias such as "crypto-crc32c" or a name
// means: what request_module would load.
func (t *Tree) Provider(name string) []string {
	if c := Canonical(name); t.Modules[c] != nil {
		return []string{c}
	}
	var found []string
	for _, m := range t.Modules {
		if slices.ContainsFunc(m.Aliases, func(a string) bool { return MatchAlias(a, name) }) {
			found = append(found, m.Name)
		}
	}
	slices.Sort(found)
	return found
}

// Closure returns the modules and all that they need, soft dependencies too, by
// name, sorted. What is built into the kernel is left out. A hard dependency
// that is nowhere is an error; a soft one is not.
func (t *Tree) Closure(names ...string) ([]string, error) {
	seen := map[string]bool{}
	var add func(name, by string, hard bool) error
	add = func(name, by string, hard bool) error {
		if seen[name] {
			return nil
		}
		m := t.Modules[name]
		if m == nil {
			if t.Builtin[name] || !hard {
				return nil
			}
			return fmt.Errorf("module %s, which %s needs, is neither a file nor built into the kernel", name, by)
		}
		seen[name] = true
		for _, d := range m.Depends {
			if err := add(d, name, true); err != nil {
				return err
			}
		}
		for _, d := range slices.Concat(m.Pre, m.Post) {
			for _, p := range append(t.Provider(d), d) {
				if err := add(p, name, false); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, n := range names {
		if err := add(Canonical(n), "the configuration", true); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// WriteIndex returns the index files for a selection of modules, by name: what
// depmod would write if there were no others.
func (t *Tree) WriteIndex(names []string) map[string][]byte {
	var dep, alias, soft, builtin bytes.Buffer
	chosen := map[string]bool{}
	for _, n := range names {
		chosen[n] = true
	}
	for _, n := range slices.Sorted(slices.Values(names)) {
		m := t.Modules[n]
		fmt.Fprintf(&dep, "%s:", plainPath(m.Path))
		for _, d := range t.chain(n) {
			fmt.Fprintf(&dep, " %s", plainPath(t.Modules[d].Path))
		}
		dep.WriteByte('\n')
		for _, a := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, n)
		}
		if len(m.Pre)+len(m.Post) > 0 {
			fmt.Fprintf(&soft, "softdep %s", n)
			if len(m.Pre) > 0 {
				fmt.Fprintf(&soft, " pre: %s", strings.Join(m.Pre, " "))
			}
			if len(m.Post) > 0 {
				fmt.Fprintf(&soft, " post: %s", strings.Join(m.Post, " "))
			}
			soft.WriteByte('\n')
		}
	}
	for _, n := range slices.Sorted(maps.Keys(t.Builtin)) {
		fmt.Fprintf(&builtin, "kernel/%s.ko\n", n)
	}
	return map[string][]byte{
		"modules.dep": dep.Bytes(), "modules.alias": alias.Bytes(),
		"modules.softdep": soft.Bytes(), "modules.builtin": builtin.Bytes(),
	}
}

// chain returns all hard dependencies of a module, each before those that need it.
func (t *Tree) chain(name string) []string {
	var order []string
	var visit func(string)
	visit = func(n string) {
		for _, d := range t.Modules[n].Depends {
			if t.Modules[d] != nil && !slices.Contains(order, d) {
				visit(d)
				order = append(order, d)
			}
		}
	}
	visit(name)
	slices.Reverse(order) // modules.dep has the one to load first last
	return order
}

// plainPath is a module's path without the ending of a compression.
func plainPath(p string) string {
	i := strings.LastIndex(p, ".ko")
	return p[:i+len(".ko")]
}
