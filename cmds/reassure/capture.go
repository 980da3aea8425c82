package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// errNotCaptured is the status of a capture that came to nothing.
var errNotCaptured = errors.New("not captured")

func (a *app) captureCommand() *cobra.Command {
	r := api.ErrandRequest{Kind: spec.Capture}
	var exclude, keep []string
	var wait bool
	c := &cobra.Command{
		Use:   "capture HOST",
		Short: "Make a wad of the system on a PC's disk, at its next boot",
		Long: `capture has a PC send the system on its disk to the boot server, which makes a wad
of it: HOST-DATE.tar.zst among the site's wads, or, where the boot server may not
write there, below its state folder. The PC boots our image, mounts its file
systems as its own fstab has them, without writing to the disk, and goes on into
its own system afterwards. Nothing changes meanwhile, unlike with a PC that runs
("reassure wad capture").

The PC need not have been installed by ReAssure, but its disk must hold one system
only, in file systems that the image has drivers for: ext4, btrfs, xfs and vfat, not
in LVM, RAID or encrypted.

What belongs to that one PC stays there: "reassure wad capture --show-excludes" lists it.`,
		Example: `  reassure capture golden --now --wait
  reassure capture golden --exclude '/home/*'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			all, err := exclusions(exclude, keep)
			if err != nil {
				return usageError{fmt.Errorf("capture: %w", err)}
			}
			if len(exclude)+len(keep) > 0 {
				for _, e := range all {
					r.Exclude = append(r.Exclude, e.Pattern)
				}
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			r.Targets.Targets = targets
			outcomes, err := a.errand(c.Context(), client, r)
			if err != nil || !wait {
				return err
			}
			return a.awaitErrands(c.Context(), client, outcomes, errandOver, a.showCaptured, errNotCaptured)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.Now, "now", false, "reboot the PC, or wake it")
	f.BoolVar(&wait, "wait", false, "wait until it is done, and say where the wad is")
	f.StringVar(&r.Why, "why", "", "what it is for, for those who look")
	excludeFlags(c, &exclude, &keep)
	return c
}

// showCaptured prints what came of a capture, and says whether there is a wad.
func (a *app) showCaptured(h *api.HostDetail, _ string) bool {
	for _, attempt := range h.History {
		if attempt.Errand != spec.Capture {
			continue
		}
		fmt.Fprintf(a.stdout, "%s: capture %s: %s\n", clean(h.Name), clean(string(attempt.Result)), clean(attempt.Text))
		return attempt.Result == api.Done
	}
	fmt.Fprintf(a.stdout, "%s: not captured: it was given up before it began\n", clean(h.Name))
	return false
}
