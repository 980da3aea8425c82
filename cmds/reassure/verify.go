package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

func (a *app) verifyCommand() *cobra.Command {
	r := api.ErrandRequest{Kind: spec.Verify}
	var wait, last, running bool
	c := &cobra.Command{
		Use:   "verify HOST|@GROUP|PATTERN...",
		Short: "Compare PCs' disks with what they should hold, byte by byte",
		Long: `verify has PCs read their whole disks at their next boot, without writing to them,
and compare every file with the software that was installed: content, owner, mode,
times, attributes, and that there is nothing else. Each then goes on into its own
system. What the profile names as runtime (logs, caches) is counted apart.

With --running the boot server logs into PCs that are up (ssh_key in lab.yaml) and has
them compare themselves at once, without a reboot. A PC whose kernel somebody has
changed can lie about that; at a boot it cannot.

With --wait, --running, or --last for what was found before, it prints each difference, and
ends with status 1 if there is one that nobody expects.`,
		Example: `  reassure verify exp01 --now --wait
  reassure verify @lab2
  reassure verify @lab2 --running
  reassure verify exp01 --last`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if last {
				return a.showVerified(c.Context(), client, targets)
			}
			if running {
				return a.verifyRunning(c.Context(), client, targets)
			}
			r.Targets.Targets = targets
			outcomes, err := a.errand(c.Context(), client, r)
			if err != nil || !wait {
				return err
			}
			return a.awaitErrands(c.Context(), client, outcomes, errandOver, a.showOne, errUnequal)
		},
	}
	f := c.Flags()
	f.BoolVar(&r.Now, "now", false, "reboot the PCs, or wake them")
	f.BoolVar(&wait, "wait", false, "wait until all are done, and print what was found")
	f.BoolVar(&last, "last", false, "print what was found last; ask nothing of the PCs")
	f.BoolVar(&running, "running", false, "compare now, while the PCs run their own systems")
	f.StringVar(&r.Why, "why", "", "what it is for, for those who look")
	c.MarkFlagsMutuallyExclusive("last", "running", "now")
	c.MarkFlagsMutuallyExclusive("last", "running", "wait")
	return c
}

// errUnequal is the status of a verification that found something.
var errUnequal = errors.New("not all PCs hold what they should")

// errand orders something, and prints what the boot server says of each host.
func (a *app) errand(ctx context.Context, client *api.Client, r api.ErrandRequest) ([]api.Outcome, error) {
	outcomes, err := client.Errand(ctx, r)
	if err != nil {
		return nil, a.refused(err)
	}
	for _, o := range outcomes {
		fmt.Fprintf(a.stdout, "%s: %s\n", clean(o.Host), clean(o.Text))
	}
	return outcomes, nil
}

// errandOver says whether a host has the errand no longer.
func errandOver(h *api.HostDetail, id string) bool { return h.Errand == nil || h.Errand.ID != id }

// awaitErrands waits until the hosts that have something to do are ready, and shows
// what came of it; unless all is well, it returns bad.
func (a *app) awaitErrands(ctx context.Context, client *api.Client, asked []api.Outcome, ready, show func(h *api.HostDetail, id string) bool, bad error) error {
	under := map[string]string{} // errand IDs
	unequal := false
	for _, o := range asked {
		if o.Errand == "" {
			unequal = true // it was left alone
			continue
		}
		under[o.Host] = o.Errand
	}
	if len(under) == 0 {
		return bad
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := maps.Clone(under) // it is looked into while hosts are taken out of under
	err := a.follow(ctx, client, func(host string) bool { return all[host] != "" }, func(trouble error) error {
		if trouble != nil {
			fmt.Fprintf(a.stderr, "%s: trying again\n", clean(trouble.Error()))
			return nil
		}
		for name, id := range under {
			h, err := client.Host(ctx, name)
			if err != nil {
				return err
			}
			if !ready(h, id) {
				continue
			}
			delete(under, name)
			if !show(h, id) {
				unequal = true
			}
		}
		if len(under) == 0 {
			cancel()
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(under) > 0 || unequal:
		return bad
	}
	return nil
}

func (a *app) showVerified(ctx context.Context, client *api.Client, targets []string) error {
	hosts, err := a.pick(ctx, client, targets)
	if err != nil {
		return err
	}
	equal := true
	for _, host := range hosts {
		h, err := client.Host(ctx, host.Name)
		if err != nil {
			return a.refused(err)
		}
		if h.Verified == nil {
			fmt.Fprintf(a.stdout, "%s: was never verified\n", clean(h.Name))
			equal = false
			continue
		}
		equal = a.showOne(h, h.Verified.ID) && equal
	}
	if !equal {
		return errUnequal
	}
	return nil
}

// atOnce is how many running PCs are compared at the same time.
const atOnce = 8

func (a *app) verifyRunning(ctx context.Context, client *api.Client, targets []string) error {
	hosts, err := a.pick(ctx, client, targets)
	if err != nil {
		return err
	}
	var out sync.Mutex
	equal := true
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, h := range hosts {
		group.Go(func() error {
			found, err := client.VerifyRunning(ctx, h.Name)
			if err != nil {
				return a.refused(err)
			}
			out.Lock()
			defer out.Unlock()
			if found.Verified == nil {
				fmt.Fprintf(a.stdout, "%s: not verified: %s\n", clean(h.Name), clean(found.Text))
				equal = false
				return nil
			}
			equal = a.showVerdict(h.Name, found.Verified) && equal
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if !equal {
		return errUnequal
	}
	return nil
}

// showOne prints what errand id of a host found, and says whether it is all right.
func (a *app) showOne(h *api.HostDetail, id string) bool {
	v := h.Verified
	if v == nil || v.ID != id {
		why := "it did not come to an end"
		for _, attempt := range h.History {
			if attempt.Errand == spec.Verify {
				why = string(attempt.Result)
				if attempt.Text != "" {
					why += ": " + attempt.Text
				}
				break
			}
		}
		fmt.Fprintf(a.stdout, "%s: not verified: %s\n", clean(h.Name), clean(why))
		return false
	}
	return a.showVerdict(h.Name, v)
}

// showVerdict prints what a verification found, and says whether it is all right.
func (a *app) showVerdict(host string, v *api.Verified) bool {
	fmt.Fprintf(a.stdout, "%s: %s\n", clean(host), verdict(v, a.when(v.At)))
	for _, f := range v.Findings {
		line := fmt.Sprintf("  %s: %s", f.Path, f.What)
		if f.Want != "" || f.Have != "" {
			line += fmt.Sprintf(": %s, should be %s", f.Have, f.Want)
		}
		if f.Runtime {
			line += " (runtime)"
		}
		fmt.Fprintln(a.stdout, clean(line))
	}
	if rest := v.Total - len(v.Findings); rest > 0 {
		fmt.Fprintf(a.stdout, "  and %d more\n", rest)
	}
	return v.Same()
}

// verdict says in a line what a verification found.
func verdict(v *api.Verified, when string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "verified %s with software %s: ", when, v.Digest.Short())
	if v.Same() {
		b.WriteString("it holds what it should")
	} else {
		fmt.Fprintf(&b, "%s", count(v.Total-v.Runtime, "difference"))
	}
	if v.Runtime > 0 {
		fmt.Fprintf(&b, ", and %s where the profile expects some", count(v.Runtime, "difference"))
	}
	if v.Running {
		b.WriteString("; it ran meanwhile")
	}
	if !v.Steps {
		b.WriteString("; what its steps made was not judged")
	}
	return b.String()
}
