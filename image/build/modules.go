package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"reassure/image/kmod"
)

// selection is what a flavour takes of a kernel's modules.
type selection struct {
	names   []string            // sorted
	groups  map[string][]string // by group of the configuration
	leftOut []Missing
	unused  []string // patterns that match no module
}

// Missing is a driver that is not in an image, and why.
type Missing struct {
	Module string `json:"module"` // path below kernel/
	Why    string `json:"why"`
}

// covered are the folders whose drivers are all accounted for: each is in the
// image, or listed with the reason why not.
var covered = []string{
	"drivers/net/ethernet/", "drivers/net/usb/", "drivers/net/phy/", "drivers/net/fjes/", "drivers/net/hyperv/", "drivers/net/vmxnet3/",
	"drivers/ata/", "drivers/nvme/host/", "drivers/scsi/", "drivers/message/", "drivers/mmc/", "drivers/ufs/", "drivers/usb/storage/", "drivers/block/",
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
	s := &selection{groups: map[string][]string{}}
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
		if slices.Contains(s.names, m.Name) || !slices.ContainsFunc(covered, func(f string) bool { return strings.HasPrefix(file, f) }) {
			continue
		}
		reason, err := why(file)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			reason = fmt.Sprintf("flavour %s does not choose it", flavour)
		}
		s.leftOut = append(s.leftOut, Missing{Module: file, Why: reason})
	}
	slices.SortFunc(s.leftOut, func(a, b Missing) int { return strings.Compare(a.Module, b.Module) })
	slices.Sort(s.unused)
	return s, nil
}
