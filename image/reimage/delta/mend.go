package delta

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/spec"
	"reassure/image/tree"
)

// CheckOptions are for [Tree.Check] and [Tree.Mend]. The zero value works.
type CheckOptions struct {
	// Keep are absolute paths that are left as they are, with all below.
	Keep []string
	// Runtime are absolute paths at which differences are expected.
	Runtime []string
	// Limit is how many names may differ on one file system before Mend gives up with
	// [tree.ErrTooMuch]; 0 means 200,000.
	Limit int
	// Progress is called now and then with what has been looked at so far, and with
	// how much of what content has arrived. It must not take long.
	Progress func(Stats)
	// Final has Mend give up with [ErrSteps] where a template's file differs: the
	// steps may have to see the new one.
	Final bool
	// Log gets a line for what was found; nil means silence.
	Log *slog.Logger

	since time.Time
}

// mostFaults is the default of CheckOptions.Limit: they are kept in memory, about
// 500 bytes each, and laying down so many anew is no slower.
const mostFaults = 200_000

// Stats counts what was found and done, on all file systems.
type Stats struct {
	Entries int       // looked at
	Read    spec.Size // of content
	Faults  int       // names that differ
	tree.RepairStats
}

// Check compares the file systems that are mounted below root with what should be
// on them, and yields each difference with its path in the whole tree. It changes
// nothing.
func (t *Tree) Check(ctx context.Context, root string, o CheckOptions) iter.Seq2[*tree.Fault, error] {
	return func(yield func(*tree.Fault, error) bool) {
		for _, m := range t.mounts {
			more := true
			err := t.alone(root, m, func(at string) error {
				for f, err := range tree.Check(ctx, at, t.Expected(m), t.options(m, o, nil)) {
					if err != nil {
						return err
					}
					f.Path = path.Join(m, f.Path)
					if more = yield(f, nil); !more {
						return nil
					}
				}
				return nil
			})
			if err != nil {
				yield(nil, fmt.Errorf("compare %s: %w", path.Join("/", m), err))
				return
			}
			if !more {
				return
			}
		}
	}
}

// Mend makes the file systems that are mounted below root what they should be. It
// syncs nothing. After an error they are neither what they were nor what they
// should be; [tree.ErrTooMuch] among others says that a full install is the better way.
func (t *Tree) Mend(ctx context.Context, root string, o CheckOptions) (Stats, error) {
	if o.Limit == 0 {
		o.Limit = mostFaults
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var total Stats
	for _, m := range t.mounts {
		err := t.alone(root, m, func(at string) error {
			before := total
			progress := func(s tree.CheckStats) {
				total.Entries, total.Read, total.Faults = before.Entries+s.Entries, before.Read+spec.Size(s.Bytes), before.Faults+s.Faults
				if o.Progress != nil {
					o.Progress(total)
				}
			}
			var faults []*tree.Fault
			for f, err := range tree.Check(ctx, at, t.Expected(m), t.options(m, o, progress)) {
				if err != nil {
					return err
				}
				faults = append(faults, f)
			}
			o.say(m, faults)
			if len(faults) == 0 {
				return nil
			}
			if o.Final {
				for _, f := range faults {
					if t.isTemplate(path.Join(m, f.Path)) {
						return fmt.Errorf("%s differs: %w", path.Join("/", m, f.Path), ErrSteps)
					}
				}
			}
			done, err := tree.Repair(ctx, at, t.Expected(m), faults, t.Content)
			total.Removed += done.Removed
			total.Made += done.Made
			total.Mended += done.Mended
			total.Bytes += done.Bytes
			return err
		})
		if err != nil {
			return total, fmt.Errorf("repair %s: %w", path.Join("/", m), err)
		}
	}
	return total, nil
}

// said is how many differences the log names.
const said = 20

func (o CheckOptions) say(mount string, faults []*tree.Fault) {
	for i, f := range faults {
		if i == said {
			o.Log.Info(fmt.Sprintf("and %d more differ", len(faults)-said))
			return
		}
		var what []string
		for _, d := range f.Differences {
			what = append(what, d.What)
		}
		o.Log.Info(fmt.Sprintf("differs: %q: %s", path.Join("/", mount, f.Path), strings.Join(what, ", ")))
	}
}

// options are those of one file system.
func (t *Tree) options(mount string, o CheckOptions, progress func(tree.CheckStats)) tree.CheckOptions {
	c := tree.CheckOptions{Limit: o.Limit, Progress: progress, Since: o.since}
	for _, list := range []struct {
		paths []string
		to    *[]string
	}{{o.Keep, &c.Keep}, {o.Runtime, &c.Runtime}} {
		for _, p := range list.paths {
			clean, err := tree.Clean(p)
			switch {
			case err != nil: // the manifest was judged before
			case mount == ".":
				*list.to = append(*list.to, clean)
			case clean == mount:
				*list.to = append(*list.to, ".")
			case below(mount, clean):
				*list.to = append(*list.to, strings.TrimPrefix(clean, mount+"/"))
			}
		}
	}
	return c
}

// alone calls do with a folder that shows one file system of the tree by itself: what is
// below the mount points in it shows, too.
func (t *Tree) alone(root, mount string, do func(at string) error) (err error) {
	at, err := os.MkdirTemp("", "reassure-delta")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(at)) }()
	if err := unix.Mount(filepath.Join(root, mount), at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s by itself: %w", path.Join("/", mount), err)
	}
	defer func() {
		if e := unix.Unmount(at, 0); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", at, e))
		}
	}()
	return do(at)
}
