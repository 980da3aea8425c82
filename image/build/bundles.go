package build

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/u-root/mkuimage/ldd"
)

// bundles are programs of Debian that an image may carry besides our own, with
// the package that has each.
var bundles = map[string]struct{ program, debian string }{
	"xfs":   {"/usr/sbin/mkfs.xfs", "xfsprogs"},
	"btrfs": {"/usr/sbin/mkfs.btrfs", "btrfs-progs"},
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
		needed, err := ldd.FList(b.program)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: the libraries of %s: %w", n, b.program, err)
		}
		files = append(append(files, b.program), needed...)
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
