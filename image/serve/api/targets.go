package api

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Pick returns those of the hosts that targets name, in their order: hosts,
// groups ("@lab2"), and shell patterns over hosts or, with the @, over groups.
// Large and small letters are the same. A target that fits none is an error.
func Pick(hosts []Host, targets []string) ([]Host, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("name hosts, groups (@GROUP) or shell patterns: %w", ErrInvalid)
	}
	wanted := make([]bool, len(hosts))
	for _, t := range targets {
		pattern, group := strings.CutPrefix(strings.ToLower(t), "@")
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%q is not a shell pattern: %w", t, ErrInvalid)
		}
		found := false
		for i, h := range hosts {
			names := []string{h.Name}
			if group {
				names = h.Groups
			}
			if slices.ContainsFunc(names, func(n string) bool { ok, _ := path.Match(pattern, strings.ToLower(n)); return ok }) {
				wanted[i], found = true, true
			}
		}
		if !found && group {
			return nil, fmt.Errorf("no host is in a group %q: %w", pattern, ErrNotFound)
		} else if !found {
			return nil, fmt.Errorf("no host is called %q: %w", t, ErrNotFound)
		}
	}
	var picked []Host
	for i, h := range hosts {
		if wanted[i] {
			picked = append(picked, h)
		}
	}
	return picked, nil
}
