package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"reassure/image/serve/wads"
	"reassure/image/spec"
	"reassure/image/wad"
)

func (a *app) wadBuildCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "build debian",
		Short:   "Make a wad of a distribution's packages",
		Example: "  reassure wad build debian -o wads/debian.tar.zst",
	}
	c.AddCommand(a.wadDebianCommand())
	return c
}

func (a *app) wadDebianCommand() *cobra.Command {
	var o wads.DebianOptions
	var out string
	c := &cobra.Command{
		Use:   "debian -o FILE [--suite bookworm] [--packages a,b]",
		Short: "Make a wad of Debian's packages: a system that boots",
		Long: `debian makes a system of Debian's packages and packs it. The program mmdebstrap
does the work: apt-get install mmdebstrap. As root all is well; as anybody else
it needs uidmap, and a range of yours in /etc/subuid and /etc/subgid.

The system has what Debian calls required, a kernel, and
` + strings.Join(wads.DebianBase(), ", ") + `;
besides these, what --packages names. It has no SSH host keys, machine-id, host
name or users of its own: those come with the profile.

FILE ends in .tar.zst for an indexed wad, or in .tar for a plain tarball. It
appears when it is whole; what was there before is replaced.`,
		Example: `  reassure wad build debian -o wads/debian.tar.zst
  reassure wad build debian --suite trixie --packages vim,gnome-core --include-recommends -o wads/desk.tar.zst
  reassure wad build debian --mirror http://mirror.lab/debian --hook 'cp -a site/. "$1"/' -o wads/lab.tar.zst`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.verbose {
				o.Progress = cleanWriter{a.stderr}
			}
			o.Log, o.Temp = a.log(), os.Getenv("TMPDIR")
			p, err := a.packer(out)
			if err != nil {
				return err
			}
			if err := wads.Debian(c.Context(), o, p.pack); err != nil {
				return fmt.Errorf("wad build debian: %w", err)
			}
			return p.tell()
		},
	}
	f := c.Flags()
	f.StringVarP(&out, "output", "o", "", "the wad's `file`, .tar.zst or .tar")
	f.StringVar(&o.Suite, "suite", "bookworm", "Debian's release, by its `name`")
	f.StringArrayVar(&o.Mirrors, "mirror", nil, "where packages come from, an `address` or a line of sources.list(5); may be given more than once (default Debian's own, with security and updates)")
	f.StringSliceVar(&o.Packages, "packages", nil, "more `packages`, apart by commas")
	f.StringVar(&o.Kernel, "kernel", "", "the kernel's `package` (default linux-image-amd64)")
	f.BoolVar(&o.Recommends, "include-recommends", false, "install what packages recommend, too")
	f.StringArrayVar(&o.Hooks, "hook", nil, "a shell `command` that changes the tree before it is packed; its folder is $1; may be given more than once")
	f.StringVar(&o.Cache, "cache", "", "a `folder` that keeps packages for the next time; for root only")
	return c
}

func (a *app) wadCaptureCommand() *cobra.Command {
	var o wads.CaptureOptions
	var out string
	var exclude, keep []string
	var show bool
	c := &cobra.Command{
		Use:   "capture root@PC -o FILE",
		Short: "Make a wad of a PC that runs, over SSH",
		Long: `capture reads the whole system of a PC that runs and packs it: its root file
system, and of others those that --include-mount names. It logs in by the
system's ssh, with your configuration, agent and known_hosts. The PC needs GNU
tar, and nothing is written there.

What belongs to that one PC stays there: machine-id, SSH host keys, random seeds,
DHCP leases, names of network cards, logs, caches, what the kernel shows in /proc,
/sys and /dev, and what goes with a reboot. --show-excludes lists it all.
--exclude leaves out more, --keep less. Templates and steps of the profile give
each PC its own host name, network and keys.

Files that change while they are read are in the wad as they were at that moment:
stop databases and the like first, or capture a PC that is off (reassure capture).

FILE ends in .tar.zst for an indexed wad, or in .tar for a plain tarball. It
appears when it is whole: a connection that is cut leaves nothing.`,
		Example: `  reassure wad capture root@golden-pc -o wads/lab.tar.zst --include-mount /boot
  reassure wad capture --sudo kim@golden-pc -o wads/lab.tar.zst --exclude '/home/*' --exclude /opt/matlab
  reassure wad capture --show-excludes`,
		Args: func(c *cobra.Command, args []string) error {
			if show {
				return cobra.NoArgs(c, args)
			}
			return cobra.ExactArgs(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			all, err := exclusions(exclude, keep)
			if err != nil {
				return usageError{fmt.Errorf("wad capture: %w", err)}
			}
			if show {
				rows := [][]string{{"PATTERN", "WHY IT STAYS"}}
				for _, e := range all {
					rows = append(rows, []string{clean(e.Pattern), e.Why})
				}
				return a.table(rows)
			}
			o.From, o.Exclude = args[0], []string{}
			for _, e := range all {
				o.Exclude = append(o.Exclude, e.Pattern)
			}
			o.Stderr, o.Log, o.Now = cleanWriter{a.stderr}, a.log(), a.now
			p, err := a.packer(out)
			if err != nil {
				return err
			}
			found, err := wads.Capture(c.Context(), o, p.pack)
			if err != nil {
				return err
			}
			for _, m := range found.Mounts {
				fmt.Fprintf(a.stderr, "left out: %s: --include-mount takes it in\n", clean(m))
			}
			if !found.Kernel {
				fmt.Fprintln(a.stderr, "there is no kernel in the PC's /boot: as it is, the wad will not boot")
			}
			return p.tell()
		},
	}
	f := c.Flags()
	f.StringVarP(&out, "output", "o", "", "the wad's `file`, .tar.zst or .tar")
	excludeFlags(c, &exclude, &keep)
	f.StringArrayVar(&o.IncludeMounts, "include-mount", nil, "take in the file system that is mounted at this `path`, too; may be given more than once")
	f.BoolVar(&o.Sudo, "sudo", false, "read by sudo there, which must ask for no password")
	f.BoolVar(&show, "show-excludes", false, "list what is left out, and why")
	return c
}

func excludeFlags(c *cobra.Command, exclude, keep *[]string) {
	f := c.Flags()
	f.StringArrayVar(exclude, "exclude", nil, "leave out this `path` as well, with all below it; *, ? and [abc] match within a name; FOLDER/* keeps the folder; may be given more than once")
	f.StringArrayVar(keep, "keep", nil, "do not leave out this `pattern` of --show-excludes; may be given more than once")
}

// exclusions are the usual ones without those in keep, and those of a person.
func exclusions(more, keep []string) ([]wad.Exclusion, error) {
	all := wad.Exclusions()
	for _, k := range keep {
		n := len(all)
		all = slices.DeleteFunc(all, func(e wad.Exclusion) bool { return e.Pattern == k })
		if len(all) == n {
			return nil, fmt.Errorf("nothing is left out by %q: --show-excludes lists the patterns that --keep takes", k)
		}
	}
	for _, p := range more {
		if err := wad.CheckPattern(p); err != nil {
			return nil, err
		}
		all = append(all, wad.Exclusion{Pattern: p, Why: "you said so"})
	}
	return all, nil
}

// packer makes one wad, indexed or plain as its name has it.
type packer struct {
	*app
	out string
}

func (a *app) packer(out string) (*packer, error) {
	switch {
	case out == "":
		return nil, usageError{errors.New("name the wad's file with -o")}
	case !strings.HasSuffix(out, ".tar.zst") && !strings.HasSuffix(out, ".tar"):
		return nil, usageError{fmt.Errorf("%s: the name must end in .tar.zst, or in .tar for a plain tarball", out)}
	}
	if info, err := os.Stat(filepath.Dir(out)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s: there is no folder %s", out, filepath.Dir(out))
	}
	return &packer{a, out}, nil
}

func (p *packer) pack(ctx context.Context, archive io.Reader) error {
	if strings.HasSuffix(p.out, ".tar.zst") {
		_, err := wad.Pack(ctx, archive, p.out, wad.PackOptions{Log: p.log()})
		return err
	}
	f, err := renameio.NewPendingFile(p.out, renameio.WithPermissions(0o644))
	if err != nil {
		return fmt.Errorf("write %s: %w", p.out, err)
	}
	defer f.Cleanup()
	if _, err := io.Copy(f, archive); err != nil {
		return fmt.Errorf("write %s: %w", p.out, err)
	}
	return f.CloseAtomicallyReplace()
}

func (p *packer) tell() error {
	info, err := os.Stat(p.out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s: %s\n", p.out, spec.Size(info.Size()))
	return err
}

// cleanWriter passes on what other machines say, without what could steer a terminal.
type cleanWriter struct{ to io.Writer }

func (w cleanWriter) Write(p []byte) (int, error) {
	_, err := io.WriteString(w.to, cleanText(string(p)))
	return len(p), err
}
