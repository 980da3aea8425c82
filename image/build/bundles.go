package build

import (
	"debug/elf"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/u-root/mkuimage/ldd"
)

// bundles are programs of Debian that an image may carry besides our own, with
// the package that has each, and modules that are of no use without it.
var bundles = map[string]struct {
	program, debian string
	modules         []string // patterns
}{
	"xfs":   {"/usr/sbin/mkfs.xfs", "xfsprogs", []string{"fs/xfs/**"}},
	"btrfs": {"/usr/sbin/mkfs.btrfs", "btrfs-progs", []string{"fs/btrfs/**"}},
	// Linked statically it is 0.7 MiB in the image; with libraries it would be more.
	"e2fsck": {"/usr/sbin/e2fsck.static", "e2fsck-static", nil},
}

// bundleEntries are the files of the bundles that are asked for: each program,
// and the libraries and the loader that it needs, where they are on this machine.
func bundleEntries(names []string) ([]entry, error) {
	var files []string
	for _, n := range names {
		b := bundles[n]
		if _, err := os.Stat(b.program); err != nil {
			return nil, fmt.Errorf("bundle %s: %w: install the Debian package %s", n, err, b.debian)
		}
		files = append(files, b.program)
		dynamic, err := hasInterpreter(b.program)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %s: %w", n, b.program, err)
		}
		if !dynamic {
			continue
		}
		needed, err := ldd.FList(b.program)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: the libraries of %s: %w", n, b.program, err)
		}
		files = append(files, needed...)
	}
	slices.Sort(files)
	var entries []entry
	for _, f := range slices.Compact(files) {
		// A link to a library is given the library's content: one file less to
		// find on the PC.
		e, err := readEntry(strings.TrimPrefix(f, "/"), f, true)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// hasInterpreter says whether a program is linked dynamically.
func hasInterpreter(program string) (bool, error) {
	f, err := elf.Open(program)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

// bundlesOf are the bundles of a flavour, by name.
func (c *Config) bundlesOf(flavour string) []string {
	all := slices.Concat(c.Bundles, c.FlavourBundles[flavour])
	slices.Sort(all)
	return slices.Compact(all)
}
