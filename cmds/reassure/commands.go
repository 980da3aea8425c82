package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve"
	"reassure/image/serve/dhcp"
	"reassure/image/serve/hosts"
	"reassure/image/serve/publish"
	"reassure/image/sign"
	"reassure/templates"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Start a site folder, with comments that tell what to fill in",
		Example: `  reassure init lab
  $EDITOR lab/site.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := initSite(args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is ready: write your lab into %s, put wads into %s, then run reassure check.\n",
				args[0], filepath.Join(args[0], resolve.InventoryFile), filepath.Join(args[0], resolve.WadsFolder))
			return nil
		},
	}
}

// initSite makes a site folder. It adds to a folder that is there, but never
// writes over a file.
func initSite(dir string) error {
	files := []struct{ name, source string }{
		{resolve.InventoryFile, "init/site.yaml"},
		{serve.ConfigFile, "init/lab.yaml"},
		{resolve.ProfilesFolder + "/debian.yaml", "profiles/debian.yaml"},
		{resolve.ProfilesFolder + "/gentoo-reassure.yaml", "profiles/gentoo-reassure.yaml"},
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil {
			return fmt.Errorf("%s is there already: init only starts a site", filepath.Join(dir, f.name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("init: %w", err)
		}
	}
	for _, folder := range []string{resolve.ProfilesFolder, resolve.TemplatesFolder, resolve.WadsFolder} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	for _, file := range files {
		text, err := templates.FS.ReadFile(file.source)
		if err != nil {
			return fmt.Errorf("init: %w", err)
		}
		f, err := os.OpenFile(filepath.Join(dir, file.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return fmt.Errorf("init: %w", err)
		}
		_, err = f.Write(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	return nil
}

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Tell every mistake of the site at once, with file and line",
		Long: `check reads everything that publish would, resolves every host, and tells all
mistakes at once, one a line. It writes nothing that PCs see.`,
		Example: "  reassure check --site lab",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			site, wads, err := a.load()
			if err != nil {
				return err
			}
			manifests, err := site.ResolveAll(c.Context(), wads)
			a.remember(wads)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s: no mistakes; hosts: %d\n", filepath.Join(a.site, resolve.InventoryFile), len(manifests))
			return nil
		},
	}
}

func (a *app) publishCommand() *cobra.Command {
	o := publish.Options{}
	var key string
	var unsigned bool
	c := &cobra.Command{
		Use:   "publish --out DIR [--tftp DIR]",
		Short: "Write what PCs fetch: manifests, wads and boot files",
		Long: `publish resolves every host and writes the result as files: signed manifests and
wads into the folder that your web server serves as the site's url, and what
pxelinux, GRUB and iPXE read (pxelinux.cfg, grub, ipxe) into the TFTP server's
folder. It finds everything good before it writes anything, and writes only what
has changed. Which PC is reimaged is for "reassure switch" to say.`,
		Example: `  reassure publish --out /srv/www/reassure --tftp /srv/tftp
  reassure publish --out /srv/www/reassure --key /safe/site.key`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.out == "" {
				return usageError{errors.New("publish: name the folder that your web server serves with --out")}
			}
			site, wads, err := a.load()
			if err != nil {
				return err
			}
			o.Out, o.TFTP, o.Log = a.out, a.tftp, a.log()
			if !unsigned {
				signer, err := a.signer(key)
				if err != nil {
					return err
				}
				o.Signer = signer
			}
			result, err := publish.Publish(c.Context(), site, wads, o)
			a.remember(wads)
			if err != nil {
				return err
			}
			return a.tell(result)
		},
	}
	c.Flags().StringVar(&a.out, "out", "", "the `folder` that the web server serves")
	c.Flags().StringVar(&a.tftp, "tftp", "", "the TFTP server's `folder`; without it, boot files are left alone")
	c.Flags().StringVar(&key, "key", "", "the private key `file` to sign with (default reassure/site.key in your configuration folder)")
	c.Flags().BoolVar(&unsigned, "unsigned", false, "do not sign; only images built with INSECURE=1 accept this")
	c.Flags().BoolVar(&o.ReplaceBootFiles, "replace-boot-files", false, "write what boot loaders read even over a person's own")
	c.MarkFlagsMutuallyExclusive("key", "unsigned")
	return c
}

// tell says what publishing did, hosts first.
func (a *app) tell(r *publish.Result) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	same := 0
	for _, h := range r.Hosts {
		what := ""
		switch {
		case h.New:
			what = "new"
		case h.Reimage:
			what = "changed: reimaged at the next remote boot"
		case h.Changed:
			what = "changed, same software: no reimage"
		default:
			same++
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", h.Name, h.Digest.Short(), what)
	}
	for _, name := range r.Removed {
		fmt.Fprintf(w, "%s\t\tremoved: no such host any more\n", name)
	}
	for _, name := range r.Boot {
		fmt.Fprintf(w, "%s\t\twritten\n", name)
	}
	fmt.Fprintf(w, "hosts %d, unchanged %d, wads written %d\n", len(r.Hosts), same, r.Wads)
	return w.Flush()
}

func (a *app) switchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "switch HOST... local|remote --tftp DIR",
		Short: "Set boot decisions: local, the own disk, or remote, to be reimaged",
		Long: `switch sets what PCs are told when they are next powered on: pxelinux.cfg/01-MAC
is a link to remote.boot for a PC that is to be reimaged, and is not there for
one that boots its own disk; so are grub/grub.cfg-01-MAC for GRUB and
ipxe/01-MAC.ipxe for iPXE.`,
		Example: `  reassure switch exp01 exp02 remote --tftp /srv/tftp
  reassure switch exp01 local --tftp /srv/tftp`,
		Args: cobra.MinimumNArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			var words []string
			if len(given) > 0 {
				words = append(words, string(hosts.Local), string(hosts.Remote))
			}
			if site, err := resolve.Load(a.site); err == nil {
				for _, h := range site.Inventory.Hosts {
					if !slices.Contains(given, h.Name) {
						words = append(words, h.Name)
					}
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return a.switchHosts(args[:len(args)-1], args[len(args)-1])
		},
	}
	c.Flags().StringVar(&a.tftp, "tftp", "", "the TFTP server's `folder`")
	return c
}

func (a *app) switchHosts(names []string, decision string) error {
	d := hosts.Decision(decision)
	if d != hosts.Local && d != hosts.Remote {
		return usageError{fmt.Errorf("switch: the last word is local or remote, not %q", decision)}
	}
	if a.tftp == "" {
		return usageError{errors.New("switch: name the TFTP server's folder with --tftp")}
	}
	site, err := resolve.Load(a.site)
	if err != nil {
		return err
	}
	// All names first: half of a list of PCs switched is worse than none.
	for _, name := range names {
		if _, err := site.Host(name); err != nil {
			return err
		}
	}
	for _, name := range names {
		h, err := site.Host(name)
		if err != nil {
			return err
		}
		if err := hosts.Decide(a.tftp, h, d, site.OwnLocalBoot(name)); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%s: %s\n", h.Name, d)
	}
	return nil
}

func (a *app) dhcpCommand() *cobra.Command {
	var o dhcp.ConfigOptions
	c := &cobra.Command{
		Use:   "dhcp-config " + strings.Join(dhcp.Kinds(), "|"),
		Short: "Write a DHCP server's configuration from the inventory",
		Example: `  reassure dhcp-config dhcpd >/etc/dhcp/dhcpd.conf
  reassure dhcp-config kea --interface eth1 >/etc/kea/kea-dhcp4.conf
  reassure dhcp-config dnsmasq >/etc/dnsmasq.d/reassure.conf`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: dhcp.Kinds(),
		RunE: func(_ *cobra.Command, args []string) error {
			if !slices.Contains(dhcp.Kinds(), args[0]) {
				return usageError{fmt.Errorf("dhcp-config: there is no %q: write one of %s", args[0], strings.Join(dhcp.Kinds(), ", "))}
			}
			site, err := resolve.Load(a.site)
			if err != nil {
				return err
			}
			text, err := dhcp.Config(site, args[0], o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.stdout, text)
			return err
		},
	}
	c.Flags().StringVar(&o.Card, "interface", "", "the server's network `card`; without it, the DHCP server chooses")
	c.Flags().StringVar(&o.EFI, "efi", "", "what PCs with UEFI load, a `file` of the TFTP root: shimx64.efi unless given, snponly.efi, which is iPXE, or reassure.efi, the image as one file")
	return c
}

func (a *app) templateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "template [NAME]",
		Short: "Show a ready template or profile, to copy and change; without a name, list them",
		Example: `  reassure template
  mkdir -p templates/gentoo && reassure template gentoo/vmware_answers.txt >templates/gentoo/vmware_answers.txt`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				text, err := templates.FS.ReadFile(args[0])
				if err != nil {
					return fmt.Errorf("there is no ready template %q: reassure template lists them", args[0])
				}
				_, err = a.stdout.Write(text)
				return err
			}
			return fs.WalkDir(templates.FS, ".", func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					_, err = fmt.Fprintln(a.stdout, path)
				}
				return err
			})
		},
	}
}

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Show where the site's signing key is; make one if there is none",
		Long: `key names the two files of the site's signing key, and makes them if there are
none. publish signs with the private one; images trust the public ones that were
there when they were built.`,
		Example: "  reassure key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			private, public, err := a.siteKey()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "private  %s\npublic   %s\n", private, public)
			return nil
		},
	}
	c.AddCommand(&cobra.Command{
		Use:   "new DIR",
		Short: "Make a further signing key in a folder of its own",
		Long: `new makes a pair of keys in a folder, to take the place of the site's own. Images trust
as many public keys as they are built with, so that there is time: build the image with
both (the folder of make image KEYS= holds both .pub files, under any names), and once
all PCs boot it, sign with the new key (publish --key, key in lab.yaml) and build the
image without the old one.`,
		Example: "  reassure key new /safe/2027",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			private, public, created, err := sign.EnsureSiteKey(args[0])
			if err != nil {
				return err
			}
			if !created {
				return fmt.Errorf("%s is there already: name another folder", private)
			}
			fmt.Fprintf(a.stdout, "private  %s\npublic   %s\n", private, public)
			return nil
		},
	})
	return c
}
