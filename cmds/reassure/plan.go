package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

func (a *app) planCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "plan HOST",
		Short: "Show what a PC would do to its disk, as it planned last",
		Long: `plan shows the plan that a PC has made last, before its first write: what it found
on its disk, and what it keeps, loses, makes and fetches.`,
		Example:           "  reassure plan exp01",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			d, err := client.Host(c.Context(), args[0])
			if err != nil {
				return a.refused(err)
			}
			if d.Plan == nil {
				return fmt.Errorf("%s has made no plan yet: it does when it is told Remote", clean(d.Name))
			}
			if asJSON {
				return a.json(d.Plan)
			}
			a.showPlan(d)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// showPlan prints a host's plan.
func (a *app) showPlan(d *api.HostDetail) {
	fmt.Fprintln(a.stdout, cleanText(strings.Join(d.Plan.Describe(), "\n")))
	if d.PlanWaits() {
		fmt.Fprintf(a.stdout, "it waits for: reassure approve %s\n", clean(d.Name))
	}
}

func (a *app) approveCommand() *cobra.Command {
	var yes bool
	var why string
	c := &cobra.Command{
		Use:   "approve HOST|@GROUP|PATTERN...",
		Short: "Say that PCs' plans are right, so that they go on",
		Long: `approve shows the plans of those of the hosts that wait for a person (their profile
says approve: ask or same), asks, and lets them go on. With approve: same, other
PCs of the profile whose plans are like that one then need no person.`,
		Example:           "  reassure approve exp01",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			hosts, err := a.pick(c.Context(), client, targets)
			if err != nil {
				return err
			}
			plans := map[string]spec.Digest{}
			for _, h := range hosts {
				d, err := client.Host(c.Context(), h.Name)
				if err != nil {
					return a.refused(err)
				}
				if !d.PlanWaits() {
					continue
				}
				plans[h.Name] = d.Plan.Sum()
				a.showPlan(d)
			}
			if len(plans) == 0 {
				return errors.New("none of them waits for its plan to be approved")
			}
			if !yes && terminal(a.stdin) != nil {
				if err := a.sure(c.Context(), fmt.Sprintf("Is this right, for %s? [y/N] ", count(len(plans), "host"))); err != nil {
					return err
				}
			}
			outcomes, err := client.Approve(c.Context(), api.ApproveRequest{Plans: plans, Why: why})
			if err != nil {
				return a.refused(err)
			}
			for _, o := range outcomes {
				fmt.Fprintf(a.stdout, "%s: %s\n", clean(o.Host), clean(o.Text))
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().StringVar(&why, "why", "", "the reason, for those who look")
	return c
}
