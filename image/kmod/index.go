package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Index says which modules serve a device and in what order their files are
// loaded. It is what a PC needs of a [Tree].
type Index struct {
	files   map[string]string   // name -> path
	deps    map[string][]string // name -> paths, the first to load last
	soft    map[string][2][]string
	aliases []alias
	builtin map[string]bool
}

type alias struct{ pattern, module string }

// ReadIndex reads modules.dep, modules.alias, modules.softdep and
// modules.builtin in fsys, which is lib/modules/RELEASE. All but the first may
// be missing.
func ReadIndex(fsys fs.FS) (*Index, error) {
	x := &Index{files: map[string]string{}, deps: map[string][]string{}, soft: map[string][2][]string{}}
	lines := func(name string, each func(fields []string) bool) error {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
				continue
			}
			if !each(fields) {
				return fmt.Errorf("%s: cannot read the line %q", name, strings.TrimSpace(line))
			}
		}
		return nil
	}
	err := lines("modules.dep", func(f []string) bool {
		file, ok := strings.CutSuffix(f[0], ":")
		name := nameOf(file)
		x.files[name], x.deps[name] = file, f[1:]
		return ok && name != ""
	})
	if err != nil {
		return nil, err
	}
	err = lines("modules.alias", func(f []string) bool {
		if len(f) != 3 || f[0] != "alias" {
			return false
		}
		x.aliases = append(x.aliases, alias{f[1], Canonical(f[2])})
		return true
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = lines("modules.softdep", func(f []string) bool {
		if len(f) < 2 || f[0] != "softdep" {
			return false
		}
		var deps [2][]string
		into := 0
		for _, word := range f[2:] {
			switch word {
			case "pre:":
				into = 0
			case "post:":
				into = 1
			default:
				deps[into] = append(deps[into], Canonical(word))
			}
		}
		x.soft[Canonical(f[1])] = deps
		return true
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	x.builtin, err = readBuiltin(fsys)
	return x, err
}

// Builtin says whether the kernel has a module in itself.
func (x *Index) Builtin(name string) bool { return x.builtin[Canonical(name)] }

// Match returns the names of the modules that serve a modalias, or that
// request_module would load for it, sorted.
func (x *Index) Match(modalias string) []string {
	var found []string
	for _, a := range x.aliases {
		if MatchAlias(a.pattern, modalias) {
			found = append(found, a.module)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// LoadOrder returns the files to load for a module, by path below the folder of
// the kernel's modules: its softdeps before it, what it needs, itself, its
// softdeps after it. A module that is built in needs none. Softdeps that the
// image does not have are left out.
func (x *Index) LoadOrder(name string) ([]string, error) {
	name = Canonical(name)
	if x.builtin[name] {
		return nil, nil
	}
	if x.files[name] == "" {
		return nil, fmt.Errorf("there is no module %s in this image", name)
	}
	var order []string
	x.load(name, map[string]bool{}, &order)
	return order, nil
}

func (x *Index) load(name string, seen map[string]bool, order *[]string) {
	if seen[name] || x.files[name] == "" {
		return
	}
	seen[name] = true
	soft := func(names []string) {
		for _, n := range names {
			x.load(n, seen, order)
			for _, m := range x.Match(n) {
				x.load(m, seen, order)
			}
		}
	}
	soft(x.soft[name][0])
	for _, file := range slices.Backward(x.deps[name]) {
		x.load(nameOf(file), seen, order)
	}
	*order = append(*order, x.files[name])
	soft(x.soft[name][1])
}

// MatchAlias is fnmatch(3) without flags, as modprobe compares aliases; dashes and
// underscores outside brackets are the same.
func MatchAlias(pattern, s string) bool {
	// path.Match has no * over slashes; modaliases may have one.
	fold := strings.NewReplacer("/", "\x01", "-", "_")
	ok, err := path.Match(foldPattern(pattern, fold), fold.Replace(s))
	return ok && err == nil
}

// foldPattern folds a pattern but for its bracket expressions, where a dash
// means a range.
func foldPattern(pattern string, fold *strings.Replacer) string {
	var b strings.Builder
	for pattern != "" {
		open := strings.IndexByte(pattern, '[')
		shut := strings.IndexByte(pattern, ']')
		if open < 0 || shut < open {
			b.WriteString(fold.Replace(pattern))
			break
		}
		b.WriteString(fold.Replace(pattern[:open]))
		b.WriteString(pattern[open : shut+1])
		pattern = pattern[shut+1:]
	}
	return b.String()
}
