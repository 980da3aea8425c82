package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve/inventory"
	"reassure/image/spec"
)

func (a *app) discoverCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "discover",
		Short: "List network cards that asked the boot server and are no host's",
		Example: `  reassure discover
  reassure discover add 00:09:3d:12:20:ed exp01 172.30.0.11 --profile debian`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			cards, err := client.Unknown(c.Context())
			if err != nil {
				return a.refused(err)
			}
			if asJSON {
				return a.json(cards)
			}
			if len(cards) == 0 {
				fmt.Fprintln(a.stdout, "every card that asked is a host's")
				return nil
			}
			rows := [][]string{{"MAC", "IP", "ASKED", "FIRST", "LAST", "SAID"}}
			for _, u := range cards {
				rows = append(rows, []string{u.MAC.String(), dash(u.IP), count(u.Count, "time"), a.when(u.First), a.when(u.Last), clean(u.What)})
			}
			if err := a.table(rows); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, "\nreassure discover add MAC NAME IP --profile PROFILE makes one a host")
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(a.discoverAddCommand())
	return c
}

func (a *app) discoverAddCommand() *cobra.Command {
	var profile string
	var groups []string
	c := &cobra.Command{
		Use:   "add MAC NAME IP [--profile P]",
		Short: "Make a card a host: add it to site.yaml",
		Long: `add writes a host into the site's site.yaml, after the last one, with all else left
as it is, and only if the site is good with it. The boot server reads it by
itself, or at "reassure reload". Nothing is reimaged by that.`,
		Example: "  reassure discover add 00:09:3d:12:20:ed exp01 172.30.0.11 --profile debian",
		Args:    cobra.ExactArgs(3),
		RunE: func(_ *cobra.Command, args []string) error {
			e := inventory.Entry{Host: spec.Host{Name: args[1], Profile: profile, Groups: groups}, File: "discover add"}
			var mac spec.MAC
			if err := mac.UnmarshalText([]byte(args[0])); err != nil {
				return usageError{fmt.Errorf("discover add: %w", err)}
			}
			ip, err := netip.ParseAddr(args[2])
			if err != nil {
				return usageError{fmt.Errorf("discover add: %q is not an IP address: write one, such as 172.30.0.11", args[2])}
			}
			e.MACs, e.IP = []spec.MAC{mac}, ip
			if e.Profile == "" {
				site, err := resolve.Load(a.site)
				if err != nil {
					return err
				}
				if e.Profile = onlyProfile(site.Inventory.Hosts); e.Profile == "" {
					return usageError{errors.New("discover add: name the host's profile with --profile")}
				}
			}
			if err := inventory.AddTo(a.site, []inventory.Entry{e}); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s: added %s with the profile %s\n", filepath.Join(a.site, resolve.InventoryFile), e.Name, e.Profile)
			return nil
		},
	}
	c.Flags().StringVar(&profile, "profile", "", "its `profile` (default that of all hosts of the site, if it is one)")
	c.Flags().StringSliceVar(&groups, "group", nil, "a `group` that it is in")
	return c
}
