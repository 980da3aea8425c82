package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve/hosts"
	"reassure/image/serve/inventory"
	"reassure/image/spec"
)

func (a *app) hostsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "hosts [HOST...]",
		Short:   "List the hosts of the site: addresses, profile, boot decision, digest of the software",
		Example: "  reassure hosts --tftp /srv/tftp",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			site, wads, err := a.load()
			if err != nil {
				return err
			}
			for _, name := range args {
				if _, err := site.Host(name); err != nil {
					return err
				}
			}
			w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tMAC\tIP\tPROFILE\tDECISION\tDIGEST")
			for i := range site.Inventory.Hosts {
				h := &site.Inventory.Hosts[i]
				if len(args) > 0 && !slices.ContainsFunc(args, func(n string) bool { return strings.EqualFold(n, h.Name) }) {
					continue
				}
				decision, digest := "-", "-"
				if a.tftp != "" {
					d, err := hosts.Decided(a.tftp, h)
					if err != nil {
						return err
					}
					decision = string(d)
				}
				if m, err := site.Resolve(c.Context(), h.Name, wads); err == nil {
					digest = m.Digest.Short()
				} else if c.Context().Err() != nil {
					return err
				} else {
					digest = "mistakes"
				}
				for j, mac := range h.MACs {
					if j == 0 {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, mac, h.IP, h.Profile, decision, digest)
					} else {
						fmt.Fprintf(w, "\t%s\t\t\t\t\n", mac)
					}
				}
			}
			a.remember(wads)
			return w.Flush()
		},
	}
	c.Flags().StringVar(&a.tftp, "tftp", "", "the TFTP server's `folder`, for the boot decisions")
	c.AddCommand(a.importCommand())
	return c
}

func (a *app) importCommand() *cobra.Command {
	var profile string
	var only []string
	var write bool
	c := &cobra.Command{
		Use:   "import dhcpd.conf|FILE.csv [--profile P] [--write]",
		Short: "Take hosts over from ISC dhcpd's configuration or a table",
		Long: `import reads the hosts of a lab that is written down already, and prints them as
site.yaml has them, or, with --write, adds them to it: after the last host, with
all else left as it is, and only if the site is good with them.

Of ISC dhcpd's configuration it reads the host blocks with hardware ethernet and
fixed-address, wherever they stand. A host's name is its option host-name, or
else the block's; blocks with the same name and address are one host with several
cards; named groups become groups. Files that are included are not followed.

Of a table whose first line is name,mac,ip and perhaps profile and groups, with
commas or semicolons, it reads every line.`,
		Example: `  reassure hosts import /etc/dhcp/dhcpd.conf --profile debian
  reassure hosts import /etc/dhcp/dhcpd.conf --profile debian --only 'exp*' --write
  reassure hosts import lab.csv --write`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.importHosts(args[0], profile, only, write)
		},
	}
	c.Flags().StringVar(&profile, "profile", "", "the `profile` of hosts that the file names none for (default that of all hosts of the site, if it is one)")
	c.Flags().StringSliceVar(&only, "only", nil, "take only hosts whose names fit this shell `pattern`")
	c.Flags().BoolVar(&write, "write", false, "add them to site.yaml")
	return c
}

func (a *app) importHosts(file, profile string, only []string, write bool) error {
	for _, pattern := range only {
		if _, err := path.Match(pattern, ""); err != nil {
			return usageError{fmt.Errorf("hosts import: --only: %q is not a shell pattern", pattern)}
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("hosts import: %w", err)
	}
	// Without a site they can still be printed.
	var inv spec.Inventory
	site, err := resolve.Load(a.site)
	if err == nil {
		inv = site.Inventory
	} else if _, missing := os.Stat(filepath.Join(a.site, resolve.InventoryFile)); write || !errors.Is(missing, fs.ErrNotExist) {
		return err
	}
	o := inventory.Options{Profile: profile, Network: inv.Site.Network}
	if o.Profile == "" {
		o.Profile = onlyProfile(inv.Hosts)
	}
	if len(only) > 0 {
		o.Wanted = func(name string) bool {
			return slices.ContainsFunc(only, func(p string) bool { ok, _ := path.Match(p, name); return ok })
		}
	}
	entries, err := inventory.Parse(file, data, o)
	if err != nil {
		return err
	}
	total := len(entries)
	entries = slices.DeleteFunc(entries, func(e inventory.Entry) bool {
		return slices.ContainsFunc(inv.Hosts, func(h spec.Host) bool {
			return strings.EqualFold(h.Name, e.Name) && h.IP == e.IP && slices.Equal(h.MACs, e.MACs)
		})
	})
	known := ""
	if n := total - len(entries); n > 0 {
		known = fmt.Sprintf(" (in it already: %d)", n)
	}
	if i := slices.IndexFunc(entries, func(e inventory.Entry) bool { return e.Profile == "" }); i >= 0 {
		return usageError{fmt.Errorf("hosts import: %s:%d: %s has no profile: name one with --profile", file, entries[i].Line, entries[i].Name)}
	}
	inventoryFile := filepath.Join(a.site, resolve.InventoryFile)
	if !write {
		if site != nil {
			if err := inventory.Check(&inv, entries); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprint(a.stdout, inventory.YAML(entries)); err != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "%s%s; --write adds them to %s\n", count(len(entries), "host"), known, inventoryFile)
		return nil
	}
	if len(entries) > 0 {
		if err := inventory.AddTo(a.site, entries); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.stdout, "%s: added %s%s\n", inventoryFile, count(len(entries), "host"), known)
	return nil
}

// onlyProfile is the profile of all hosts, or "" if they have several.
func onlyProfile(hosts []spec.Host) string {
	profile := ""
	for _, h := range hosts {
		if profile != "" && h.Profile != profile {
			return ""
		}
		profile = h.Profile
	}
	return profile
}
