package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve"
)

func (a *app) certificateCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "certificate --out DIR",
		Short: "Make a certificate for the server, by the site's own authority",
		Long: `certificate makes server.pem and server.key for the site's server, by its address
and the name in site.url, signed by the site's own authority. That is made once, in
your configuration folder, where the signing key is, too: ca.pem goes into the image
(ca in its configuration), ca.key to nobody; back it up. Run it again to renew the
server's certificate, which is good for three years: the running server sees it.`,
		Example: "  reassure certificate --out /etc/reassure",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if out == "" {
				return usageError{errors.New("certificate: name the folder for server.pem and server.key with --out")}
			}
			site, err := resolve.Load(a.site)
			if err != nil {
				return err
			}
			u, err := url.Parse(site.Inventory.Site.URL)
			if err != nil {
				return fmt.Errorf("site.url: %w", err)
			}
			names := slices.Compact([]string{u.Hostname(), site.Inventory.Site.Server.String()})
			config, err := os.UserConfigDir()
			if err != nil {
				return fmt.Errorf("the folder of your keys: %w", err)
			}
			dir := filepath.Join(config, "reassure")
			created, err := serve.Certify(dir, out, names, a.now())
			if err != nil {
				return fmt.Errorf("certificate: %w", err)
			}
			if created {
				fmt.Fprintf(a.stderr, "made your site's authority: %s\nName it as ca in the image's configuration, and build the image. Back it up with its key.\n", filepath.Join(dir, serve.AuthorityFile))
			}
			fmt.Fprintf(a.stdout, "%s is for %v\n", filepath.Join(out, "server.pem"), names)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `folder` for server.pem and server.key")
	return c
}
