package reimage

import (
	"fmt"
	"path"

	"reassure/image/spec"
	"reassure/image/tree"
)

// fits refuses a wad whose content alone is more than its partitions hold, while the old
// system is still whole. What is little less may still not fit, for file systems need room
// themselves; that is found out when it is laid down, as it is with btrfs, which may
// compress. Only an index says how much there is. Overlays may replace what others bring, so each wad counts by itself.
func fits(plan *spec.Plan, wads []openedWad) error {
	for _, w := range wads {
		if w.indexed == nil {
			continue
		}
		need := map[string]int64{} // by the mount points of partitions
		for m, err := range w.indexed.All() {
			if err != nil {
				return fmt.Errorf("index of wad %s: %w", w.Name, err)
			}
			if m.Kind == tree.Regular && (m.First == "" || m.First == m.Path) {
				need[at(plan, path.Join("/", w.Mount, m.Path)).Mount] += m.Stored()
			}
		}
		for _, p := range plan.Partitions {
			if n := need[p.Mount]; p.Mount != "" && p.FileSystem != spec.Btrfs && n > int64(p.Length) {
				return fmt.Errorf("wad %s has %v for partition %s, which has %v: take a larger disk, or make the partition larger", w.Name, spec.Size(n), p.Name, spec.Size(p.Length))
			}
		}
	}
	return nil
}
