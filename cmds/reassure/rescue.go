package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// errNotRescued is the status of a rescue that came to nothing.
var errNotRescued = errors.New("nobody can log in")

func (a *app) rescueCommand() *cobra.Command {
	r := api.ErrandRequest{Kind: spec.Rescue}
	var wait bool
	c := &cobra.Command{
		Use:   "rescue HOST",
		Short: "Have a PC wait for people who log in over SSH, at its next boot",
		Long: `rescue has a PC boot our image and wait for people who log in as root over SSH, with
the image's shell and tools. Only those can whose keys the PC's profile lists in
rescue_keys, or else in authorized_keys below system; there are no passwords. Nothing is
written to its disk but what they write themselves, and none of its file systems is
mounted: mount does that.

The PC's SSH key is made anew in each rescue. Its fingerprint is on the PC's console, and
in "status", "why" and what --wait prints, as the PC reported it: compare it with what ssh
shows, and have ssh remember nothing:

  ssh -o UserKnownHostsFile=/dev/null -o ServerAliveInterval=30 root@172.30.0.11

The command reboot there ends it, and so does "reassure release HOST", also before it has
begun; a hold or a parking of the host is not lifted by that. Then the PC is told what it
would have been told: hold it first if it must not be reimaged.`,
		Example: `  reassure rescue exp01 --now --wait
  reassure release exp01`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(c *cobra.Command, targets []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			r.Targets.Targets = targets
			outcomes, err := a.errand(c.Context(), client, r)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(outcomes, func(o api.Outcome) bool { return o.Errand == "" }) {
				return errNotRescued
			}
			if !wait {
				return nil
			}
			return a.awaitErrands(c.Context(), client, outcomes, rescueReady, a.showRescue, errNotRescued)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.Now, "now", false, "reboot the PC, or wake it")
	f.BoolVar(&wait, "wait", false, "wait until somebody can log in, and say how")
	f.StringVar(&r.Why, "why", "", "what it is for, for those who look")
	return c
}

// rescueReady says whether there is nothing more to wait for: somebody can log in, or
// nobody ever will.
func rescueReady(h *api.HostDetail, id string) bool {
	return errandOver(h, id) || loginText(h) != ""
}

// loginText says how to log in on a host; "" while nobody can.
func loginText(h *api.HostDetail) string {
	if len(h.History) > 0 && h.History[0].Result == api.UnderWay && h.History[0].Errand == spec.Rescue {
		return h.History[0].Text
	}
	return ""
}

// showRescue prints how to log in on a host, and says whether one can.
func (a *app) showRescue(h *api.HostDetail, id string) bool {
	text := loginText(h)
	ok := !errandOver(h, id) && text != ""
	if !ok {
		text = "not in rescue: it was released, or the attempt has failed: see reassure log " + h.Name
	}
	fmt.Fprintf(a.stdout, "%s: %s\n", clean(h.Name), clean(text))
	return ok
}
