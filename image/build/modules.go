package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"reassure/image/coverage"
	"reassure/image/kmod"
)

// selection is what a flavour takes of a kernel's modules.
type selection struct {
	names   []string            // sorted
	groups  map[string][]string // by group of the configuration
	leftOut []Missing
	unused  []string // patterns that match no module
	// absent says of every module that was not chosen why.
	absent map[string]string
}

// Missing is a driver that is not in an image, and why.
type Missing struct {
	Module string `json:"module"` // path below kernel/
	Why    string `json:"why"`
}

// below is a module's path as patterns name it.
func below(m *kmod.Module) string {
	p := strings.TrimPrefix(m.Path, "kernel/")
	return p[:strings.LastIndex(p, ".ko")]
}

// choose applies a flavour's patterns to a kernel's modules.
func choose(c *Config, flavour string, tree *kmod.Tree) (*selection, error) {
	groups, ok := c.Flavours[flavour]
	if !ok {
		return nil, fmt.Errorf("there is no flavour %q in the configuration: it has %s", flavour, strings.Join(slices.Sorted(maps.Keys(c.Flavours)), ", "))
	}
	s := &selection{groups: map[string][]string{}, absent: map[string]string{}}
	why := func(file string) (string, error) {
		for _, l := range c.LeftOut {
			re, err := globs([]string{l.Pattern})
			if err != nil {
				return "", fmt.Errorf("left_out pattern %q: %w", l.Pattern, err)
			}
			if re.MatchString(file) {
				return l.Why, nil
			}
		}
		return "", nil
	}
	chosen := map[string]bool{}
	groups = maps.Clone(groups)
	for _, b := range c.bundlesOf(flavour) {
		if of := bundles[b].modules; len(of) > 0 {
			groups["bundle "+b] = of
		}
	}
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		for _, pattern := range groups[group] {
			re, err := globs([]string{pattern})
			if err != nil {
				return nil, fmt.Errorf("pattern %q of group %q: %w", pattern, group, err)
			}
			matched := false
			for _, m := range tree.Modules {
				if !re.MatchString(below(m)) {
					continue
				}
				matched = true
				reason, err := why(below(m))
				if err != nil {
					return nil, err
				}
				if reason == "" && !chosen[m.Name] {
					chosen[m.Name] = true
					s.groups[group] = append(s.groups[group], m.Name)
				}
			}
			if !matched {
				s.unused = append(s.unused, pattern)
			}
		}
		slices.Sort(s.groups[group])
	}
	var err error
	s.names, err = tree.Closure(slices.Sorted(maps.Keys(chosen))...)
	if err != nil {
		return nil, err
	}
	for _, m := range tree.Modules {
		file := below(m)
		if slices.Contains(s.names, m.Name) {
			continue
		}
		reason, err := why(file)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			reason = fmt.Sprintf("flavour %s does not choose it", flavour)
		}
		s.absent[m.Name] = reason
		// These are all accounted for.
		if k := coverage.KindOf(file); k == coverage.Network || k == coverage.Storage {
			s.leftOut = append(s.leftOut, Missing{Module: file, Why: reason})
		}
	}
	slices.SortFunc(s.leftOut, func(a, b Missing) int { return strings.Compare(a.Module, b.Module) })
	slices.Sort(s.unused)
	return s, nil
}
