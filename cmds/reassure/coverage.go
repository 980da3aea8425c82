package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
)

func (a *app) coverageCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "coverage [--json]",
		Short: "Show which PCs have devices that the image has no driver or firmware for",
		Long: `coverage judges the network cards and storage controllers that the PCs reported when
they last booted the image, by what the image that they boot now has of drivers and
firmware. For PCs that never booted it, mkimage coverage answers from a list that
lspci -nn prints there.

  no driver      no driver of the image's kernel knows the device
  left out       its driver is not in the image
  no firmware    its driver is there, and the firmware that it needs is not
  some firmware  its driver may ask for what is not there; most devices do without

The exit code is 3 when a PC has one of the first three.`,
		Example: `  reassure coverage
  reassure coverage --json | jq '.lacking[].hosts'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			covered, err := client.Coverage(c.Context())
			if err != nil {
				return a.refused(err)
			}
			if asJSON {
				err = a.json(covered)
			} else {
				err = a.coverage(covered)
			}
			if err == nil && covered.Bad() {
				return attention{}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// coverage prints what the image lacks.
func (a *app) coverage(c *api.Coverage) error {
	fmt.Fprintf(a.stdout, "image %s, flavour %s, kernel %s\n", clean(c.Version), clean(c.Flavour), clean(c.Kernel))
	fmt.Fprintf(a.stdout, "%d of %d PCs have reported their devices\n", c.Reported, c.Hosts)
	for _, s := range c.Sentences() {
		fmt.Fprintln(a.stdout, s)
	}
	if len(c.Lacking) == 0 {
		if c.Reported > 0 {
			fmt.Fprintln(a.stdout, "the image has drivers and firmware for all of their network cards and storage controllers")
		}
		return nil
	}
	for _, l := range c.Lacking {
		fmt.Fprintf(a.stdout, "\n%s  %s, %s, driver %s\n", clean(l.Device.Number()), l.Kind, l.State, clean(cmp.Or(l.Driver, "none")))
		if text := l.Explain(); text != "" {
			fmt.Fprintf(a.stdout, "  %s\n", clean(text))
		}
		fmt.Fprintf(a.stdout, "  %s: %s\n", count(len(l.Hosts), "PC"), clean(strings.Join(l.Hosts, " ")))
	}
	return nil
}
