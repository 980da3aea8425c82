// Command reassure is what an operator types: it keeps a site's folder, publishes
// it, and says which PC is reimaged.
//
// Synopsis:
//
//	reassure init DIR                       start a site folder
//	reassure check                          tell every mistake of the site
//	reassure publish --out DIR --tftp DIR   write what PCs fetch
//	reassure switch HOST... local|remote    set boot decisions
//	reassure hosts                          list the hosts
//	reassure dhcp-config dhcpd|kea|dnsmasq  write a DHCP server's configuration
//	reassure template [NAME]                show a ready template or profile
//	reassure key                            show the signing key, and make it if there is none
//
// "reassure help COMMAND" has the options and examples. The site is the current
// folder, or --site. Exit codes: 0 done; 1 failed, nothing half-written; 2 the
// command line is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/sign"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err))
}

// usageError is a wrong command line.
type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	// Cobra has no type for these.
	if err != nil && (strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "if any flags in the group")) {
		err = usageError{err}
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return err
}

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	site           string // folder
	out, tftp      string
	verbose        bool
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "reassure",
		Short: "Keeps a lab's PCs: what they get, and which of them is reimaged",
		Long: `reassure keeps a site: a folder with the inventory of a lab (site.yaml), profiles,
templates and wads. It publishes the site for PCs to fetch, and sets each PC's
boot decision: local, its own disk, or remote, to be reimaged.`,
		Example: `  reassure init lab && cd lab
  $EDITOR site.yaml
  reassure check
  reassure publish --out /srv/www/reassure --tftp /srv/tftp
  reassure switch exp01 remote --tftp /srv/tftp`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.PersistentFlags().StringVarP(&a.site, "site", "s", ".", "the site's `folder`")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "tell what is done")
	root.AddCommand(a.initCommand(), a.checkCommand(), a.publishCommand(), a.switchCommand(), a.hostsCommand(),
		a.dhcpCommand(), a.templateCommand(), a.keyCommand())
	for _, c := range root.Commands() {
		if args := c.Args; args != nil {
			c.Args = func(c *cobra.Command, given []string) error {
				if err := args(c, given); err != nil {
					return usageError{fmt.Errorf("%s: %w; see %s --help", c.CommandPath(), err, c.CommandPath())}
				}
				return nil
			}
		}
	}
	return root
}

// log tells what is done, on standard error.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

// load reads the site and prepares to measure its wads.
func (a *app) load() (*resolve.Site, *resolve.Wads, error) {
	site, err := resolve.Load(a.site)
	if err != nil {
		return nil, nil, err
	}
	return site, &resolve.Wads{Dir: filepath.Join(a.site, resolve.WadsFolder), Log: a.log()}, nil
}

// remember keeps the digests of wads; that it cannot is no failure.
func (a *app) remember(wads *resolve.Wads) {
	if err := wads.Save(); err != nil {
		a.log().Warn("the next run will read the wads again", "error", err)
	}
}

// signer returns the key in the file path, or the site's own, which is made when
// there is none.
func (a *app) signer(path string) (*sign.PrivateKey, error) {
	if path == "" {
		private, _, err := a.siteKey()
		if err != nil {
			return nil, err
		}
		path = private
	}
	return sign.LoadPrivateKey(path)
}

// siteKey returns the paths of the site's keys, where mkimage has them too.
func (a *app) siteKey() (private, public string, err error) {
	config, err := os.UserConfigDir()
	if err != nil {
		return "", "", fmt.Errorf("the folder of your keys: %w: name your private key with --key", err)
	}
	private, public, created, err := sign.EnsureSiteKey(filepath.Join(config, "reassure"))
	if err != nil {
		return "", "", err
	}
	if created {
		fmt.Fprintf(a.stderr, "made your site's signing key: %s\nWhoever has it can reimage your PCs; images trust it only if they are built after this. Back it up.\n", private)
	}
	return private, public, nil
}
