// Command reassure is what an operator types: it keeps a site's folder, publishes
// it, runs the boot server, and says which PC is reimaged.
//
// Synopsis:
//
//	reassure init DIR                       start a site folder
//	reassure check                          tell every mistake of the site
//	reassure hosts                          list the hosts of the site
//	reassure hosts import FILE              take hosts over from dhcpd.conf or a table
//	reassure publish --out DIR --tftp DIR   write what PCs fetch, for a site without a boot server
//	reassure switch HOST... local|remote    set boot decisions, for a site without a boot server
//	reassure dhcp-config dhcpd|kea|dnsmasq  write a DHCP server's configuration
//	reassure template [NAME]                show a ready template or profile
//	reassure key                            show the signing key, and make it if there is none
//	reassure key new DIR                    make a further one, to rotate
//	reassure certificate --out DIR          make the server's certificate, by the site's own authority
//	reassure serve                          run the boot server
//	reassure wad pack DIR|TARBALL|- -o FILE make an indexed wad
//	reassure wad build debian -o FILE       make one of Debian's packages
//	reassure wad capture root@PC -o FILE    make one of a PC that runs
//	reassure wad ls|cat|info|verify FILE    look into a wad
//	reassure wad diff OLD NEW               tell what a reimage from one to another moves
//
// These ask the boot server that runs:
//
//	reassure status [HOST...] [--watch]     what each PC is doing
//	reassure why HOST                       why it would be told what, and what differs
//	reassure log HOST                       the log of its last reimage
//	reassure rollout HOST...                reimage the PCs whose software changed, in waves
//	reassure reimage HOST...                reimage PCs, changed or not
//	reassure rollouts                       how far the roll-outs are
//	reassure stop ID                        let no more PCs of a roll-out begin
//	reassure verify HOST...                 compare PCs' disks with what they should hold
//	reassure capture HOST                   make a wad of a PC's disk
//	reassure rescue HOST                    have a PC wait for people who log in over SSH
//	reassure hold HOST... --why TEXT        keep PCs from being reimaged
//	reassure release HOST...                lift a hold, a parking, a pause
//	reassure plan HOST                      what it would do to its disk, as it planned last
//	reassure approve HOST...                say that plans are right
//	reassure accept-disk HOST...            say that what is on PCs' disks may be lost
//	reassure reload                         read the site's files again, and tell what changed
//	reassure discover                       list network cards that asked and are no host's
//	reassure discover add MAC NAME IP       make one a host
//	reassure known-hosts                    the lab's ssh_known_hosts
//
// "reassure help COMMAND" has the options and examples. The site is the current
// folder, or --site. HOST is a host's name, @GROUP, or a shell pattern over
// either.
//
// The boot server is asked through its socket, /run/reassure/reassure.sock,
// which root and the socket's group may do everything through; --server, or
// REASSURE_SERVER, names another socket or an http address. Through http all may
// look; to change something, name the file with the server's token with
// --token-file, or put the token into REASSURE_TOKEN.
//
// There is no colour where NO_COLOR is set or the output is no terminal, and
// none but ASCII signs where the locale is not a UTF-8 one.
//
// Exit codes: 0 done; 1 failed or refused, nothing half-written; 2 the command
// line is wrong; 3 "status HOST" found a PC that is parked or whose last reimage
// failed.
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
	"time"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve/api"
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

// attention is that a host needs it; the output has said so.
type attention struct{}

func (attention) Error() string { return "a host needs attention" }

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, attention{}):
		return 3
	}
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return (&app{stdin: os.Stdin, stdout: stdout, stderr: stderr, now: time.Now}).run(ctx, args)
}

// app is what all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	site           string // folder
	out, tftp      string
	verbose        bool
	server         string // its socket or http address
	tokenFile      string
}

func (a *app) run(ctx context.Context, args []string) error {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	// Cobra has no type for these.
	if err != nil && (strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "if any flags in the group")) {
		err = usageError{err}
	}
	if err != nil && !errors.Is(err, attention{}) {
		fmt.Fprintln(a.stderr, cleanText(err.Error()))
	}
	return err
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "reassure",
		Short: "Keeps a lab's PCs: what they get, and which of them is reimaged",
		Long: `reassure keeps a site: a folder with the inventory of a lab (site.yaml), profiles,
templates and wads. It publishes the site for PCs to fetch, and sets each PC's
boot decision: local, its own disk, or remote, to be reimaged. Where the boot
server runs, it shows what each PC is doing, and rolls changes out.`,
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
	root.PersistentFlags().StringVar(&a.server, "server", "", "the boot server's `socket` or http address (default $REASSURE_SERVER, or "+api.DefaultSocket+")")
	root.PersistentFlags().StringVar(&a.tokenFile, "token-file", "", "the `file` with the boot server's token (default the token in $REASSURE_TOKEN)")
	root.AddCommand(a.initCommand(), a.checkCommand(), a.publishCommand(), a.switchCommand(), a.hostsCommand(),
		a.dhcpCommand(), a.templateCommand(), a.keyCommand(), a.certificateCommand(), a.serveCommand())
	root.AddCommand(a.statusCommand(), a.whyCommand(), a.logCommand(), a.coverageCommand(), a.rolloutCommand(false), a.rolloutCommand(true),
		a.rolloutsCommand(), a.stopCommand(), a.verifyCommand(), a.captureCommand(), a.rescueCommand(), a.holdCommand(), a.releaseCommand(), a.planCommand(), a.approveCommand(), a.acceptDiskCommand(), a.reloadCommand(), a.discoverCommand(),
		a.knownHostsCommand(), a.wadCommand())
	wrongArguments(root)
	return root
}

// wrongArguments has every command below c say so when they are.
func wrongArguments(c *cobra.Command) {
	for _, c := range c.Commands() {
		wrongArguments(c)
		if args := c.Args; args != nil {
			c.Args = func(c *cobra.Command, given []string) error {
				if err := args(c, given); err != nil {
					return usageError{fmt.Errorf("%s: %w; see %s --help", c.CommandPath(), err, c.CommandPath())}
				}
				return nil
			}
		}
	}
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
