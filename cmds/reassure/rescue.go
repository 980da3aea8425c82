package main

import (
	"context"
	"errors"
	"fmt"

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
			outcomes, err := client.Errand(c.Context(), r)
			if err != nil {
				return a.refused(err)
			}
			for _, o := range outcomes {
				fmt.Fprintf(a.stdout, "%s: %s\n", clean(o.Host), clean(o.Text))
				if o.Errand == "" {
					return errNotRescued
				}
			}
			if !wait {
				return nil
			}
			return a.awaitRescue(c.Context(), client, outcomes)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.Now, "now", false, "reboot the PC, or wake it")
	f.BoolVar(&wait, "wait", false, "wait until somebody can log in, and say how")
	f.StringVar(&r.Why, "why", "", "what it is for, for those who look")
	return c
}

// awaitRescue waits until people can log in on each of the hosts, and says how.
func (a *app) awaitRescue(ctx context.Context, client *api.Client, asked []api.Outcome) error {
	under := map[string]string{} // errand IDs
	for _, o := range asked {
		under[o.Host] = o.Errand
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	err := a.follow(ctx, client, func(string) bool { return true }, func(trouble error) error {
		if trouble != nil {
			fmt.Fprintf(a.stderr, "%s: trying again\n", clean(trouble.Error()))
			return nil
		}
		for name, id := range under {
			h, err := client.Host(ctx, name)
			if err != nil {
				return err
			}
			text, waiting := rescueOf(h, id)
			if waiting {
				continue
			}
			delete(under, name)
			if text == "" {
				failed = errNotRescued
				text = "not in rescue: it was released, or the attempt has failed: see reassure log " + h.Name
			}
			fmt.Fprintf(a.stdout, "%s: %s\n", clean(name), clean(text))
		}
		if len(under) == 0 {
			cancel()
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(under) > 0:
		return errNotRescued
	}
	return failed
}

// rescueOf says how to log in on a host; nothing, where that is not to be waited for any more.
func rescueOf(h *api.HostDetail, id string) (text string, waiting bool) {
	if h.Errand == nil || h.Errand.ID != id {
		return "", false
	}
	if len(h.History) > 0 && h.History[0].Result == api.UnderWay && h.History[0].Errand == spec.Rescue && h.History[0].Text != "" {
		return h.History[0].Text, false
	}
	return "", true
}
