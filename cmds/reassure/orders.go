package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
)

func (a *app) rolloutCommand(force bool) *cobra.Command {
	r := api.RolloutRequest{Force: force}
	var canaries int
	var stopAt string
	var yes bool
	c := &cobra.Command{
		Use:   "rollout HOST|@GROUP|PATTERN...",
		Short: "Reimage the PCs whose software changed, in waves",
		Long: `rollout arms those of the hosts whose software is another than what is installed:
each is reimaged at its next power-on when its turn has come, the canaries first,
then a number at once, until too large a share of them has failed. The others are
left alone.

On a terminal it names the hosts and asks first if there are several.`,
		Example: `  reassure rollout exp01
  reassure rollout @lab2 --between 22:00-06:00 --now --why 'new kernel'
  reassure rollout 'exp*' --canary exp01 --at-once 8 --stop-at 10%`,
	}
	if force {
		c.Use = "reimage HOST|@GROUP|PATTERN..."
		c.Short = "Reimage PCs, whether their software changed or not"
		c.Long = `reimage does what rollout does, with all of the hosts: also those that have the
software that they should have. The order stays until each has been reimaged,
whatever power cut comes in between.

On a terminal it names the hosts and asks first if there are several.`
		c.Example = `  reassure reimage exp01 --now
  reassure reimage @lab2 --between 22:00-06:00 --why 'disks replaced'`
	}
	c.Args = cobra.MinimumNArgs(1)
	c.ValidArgsFunction = a.completeHosts
	c.RunE = func(c *cobra.Command, targets []string) error {
		r.Targets = targets
		if c.Flags().Changed("canaries") {
			r.Canaries = &canaries
		}
		if stopAt != "" {
			percent, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(stopAt, "%")), 64)
			if err != nil || !(percent >= 0 && percent <= 100) {
				return usageError{fmt.Errorf("%s: --stop-at %q: write a percentage, such as 20%%", c.Name(), stopAt)}
			}
			r.StopAt = &percent
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		if !yes && terminal(a.stdin) != nil {
			if err := a.confirm(c.Context(), client, targets, force); err != nil {
				return err
			}
		}
		rollout, err := client.Rollout(c.Context(), r)
		if err != nil {
			return a.refused(err)
		}
		return a.showRollout(rollout, true)
	}
	f := c.Flags()
	f.StringVar(&r.Between, "between", "", "begin only at this `time` of the day by the server's clock, such as 22:00-06:00")
	f.BoolVar(&r.Now, "now", false, "reboot the PCs, or wake them, when their turn comes")
	f.IntVar(&canaries, "canaries", 0, "how many go first, by themselves (default as the server's configuration says)")
	f.StringSliceVar(&r.Canary, "canary", nil, "a `host` that goes first, instead")
	f.IntVar(&r.AtOnce, "at-once", 0, "how many may be reimaged at the same time (default as the server's configuration says)")
	f.StringVar(&stopAt, "stop-at", "", "begin no more when more than this `share` failed, such as 20% (default as the server's configuration says)")
	f.StringVar(&r.Why, "why", "", "what it is for, for those who look")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.MarkFlagsMutuallyExclusive("canaries", "canary")
	cobra.CheckErr(c.RegisterFlagCompletionFunc("canary", a.completeHosts)) // the flag is there
	return c
}

// confirm has a person look at what would be reimaged, if it is more than one PC.
func (a *app) confirm(ctx context.Context, client *api.Client, targets []string, force bool) error {
	hosts, err := a.pick(ctx, client, targets)
	if err != nil || len(hosts) < 2 {
		return err
	}
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = clean(h.Name)
	}
	what := "those of them whose software changed will be reimaged"
	if force {
		what = "all of them will be reimaged, changed or not"
	}
	return a.sure(ctx, fmt.Sprintf("%s:\n%s\n%s, and what is on their disks is lost. Go on? [y/N] ",
		count(len(hosts), "host"), wrap(names, cmp.Or(a.look().width, 80)), what))
}

// sure asks a person a question that has to be answered by yes.
func (a *app) sure(ctx context.Context, question string) error {
	fmt.Fprint(a.stdout, question)
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		if err != nil {
			line = ""
		}
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.stdout)
	case said := <-answer:
		if said == "y" || said == "yes" {
			return nil
		}
	}
	return errors.New("nothing was done")
}

// wrap writes words into lines.
func wrap(words []string, width int) string {
	var b strings.Builder
	column := 0
	for _, w := range words {
		if column > 0 && column+1+len(w) > width {
			b.WriteByte('\n')
			column = 0
		}
		if column == 0 {
			b.WriteByte(' ')
		}
		b.WriteString(" " + w)
		column += 1 + len(w)
	}
	return b.String()
}

// showRollout says what a roll-out is to do and has done.
func (a *app) showRollout(r *api.Rollout, fresh bool) error {
	var b strings.Builder
	id := clean(r.ID)
	fmt.Fprintf(&b, "roll-out %s", id)
	if r.By != "" {
		fmt.Fprintf(&b, " by %s", clean(r.By))
	}
	fmt.Fprintf(&b, ", %s", a.when(r.Started))
	if r.Why != "" {
		fmt.Fprintf(&b, ": %s", clean(r.Why))
	}
	b.WriteByte('\n')
	waves := fmt.Sprintf("%s first, then at most %d at once; no more begin when over %g%% failed", count(r.Canaries, "host"), r.AtOnce, r.StopAt)
	if r.Canaries == 0 {
		waves = fmt.Sprintf("at most %d at once; no more begin when over %g%% failed", r.AtOnce, r.StopAt)
	}
	if r.Between != "" {
		waves += "; between " + clean(r.Between)
	}
	if r.Now {
		waves += "; PCs are rebooted or woken"
	}
	if r.Force {
		waves += "; changed or not"
	}
	fmt.Fprintf(&b, "  %s\n", waves)
	for _, part := range []struct {
		title string
		names []string
	}{
		{"waiting", r.Waiting}, {"running", r.Running}, {"done", r.Done}, {"failed", r.Failed}, {"up to date already", r.Same},
	} {
		if len(part.names) > 0 {
			fmt.Fprintf(&b, "  %s: %s\n", part.title, clean(strings.Join(part.names, " ")))
		}
	}
	switch {
	case r.Stopped != nil:
		fmt.Fprintf(&b, "stopped%s: reassure release %s lets it go on\n", note(r.Stopped), id)
	case r.Finished():
		b.WriteString("nothing is left to do\n")
	case fresh:
		fmt.Fprintf(&b, "reassure status --watch shows it; reassure stop %s stops it\n", id)
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

// note writes who said what.
func note(n *api.Note) string {
	s := ""
	if n.By != "" {
		s += " by " + clean(n.By)
	}
	if n.Text != "" {
		s += " (" + clean(n.Text) + ")"
	}
	return s
}

func (a *app) rolloutsCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "rollouts [ID]",
		Short: "Show how far the roll-outs are",
		Example: `  reassure rollouts
  reassure rollouts k3m2x7qa`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeRollout,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			all, err := client.Rollouts(c.Context())
			if err != nil {
				return a.refused(err)
			}
			if len(args) == 1 {
				for i := range all {
					if !strings.EqualFold(all[i].ID, args[0]) {
						continue
					}
					if asJSON {
						return a.json(all[i])
					}
					return a.showRollout(&all[i], false)
				}
				return fmt.Errorf("there is no roll-out %q: reassure rollouts lists them", args[0])
			}
			if asJSON {
				return a.json(all)
			}
			if len(all) == 0 {
				fmt.Fprintln(a.stdout, "there are no roll-outs")
				return nil
			}
			rows := [][]string{{"ID", "STARTED", "STATE", "WAITING", "RUNNING", "DONE", "FAILED", "SAME", "BY", "WHY"}}
			for _, r := range all {
				state := "goes on"
				switch {
				case r.Stopped != nil:
					state = "stopped"
				case r.Finished():
					state = "finished"
				}
				row := []string{clean(r.ID), a.when(r.Started), state}
				for _, names := range [][]string{r.Waiting, r.Running, r.Done, r.Failed, r.Same} {
					row = append(row, strconv.Itoa(len(names)))
				}
				why := clean(r.Why)
				if r.Stopped != nil && r.Stopped.Text != "" {
					why = strings.TrimPrefix(why+"; stopped: "+clean(r.Stopped.Text), "; ")
				}
				rows = append(rows, append(row, dash(r.By), why))
			}
			return a.table(rows)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) completeRollout(c *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	if client, err := a.client(); err == nil && len(given) == 0 {
		if all, err := client.Rollouts(c.Context()); err == nil {
			for _, r := range all {
				ids = append(ids, r.ID)
			}
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) stopCommand() *cobra.Command {
	var why string
	c := &cobra.Command{
		Use:   "stop ID [--why TEXT]",
		Short: "Let no more PCs of a roll-out begin",
		Long: `stop lets no more PCs of a roll-out begin; those that are being reimaged go on. A
release of the roll-out lets it go on.`,
		Example: `  reassure stop k3m2x7qa --why 'the wad is wrong'
  reassure release k3m2x7qa`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeRollout,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.StopRollout(c.Context(), args[0], why)
			if err != nil {
				return a.refused(err)
			}
			return a.showRollout(r, false)
		},
	}
	c.Flags().StringVar(&why, "why", "", "the reason, for those who look")
	return c
}

func (a *app) holdCommand() *cobra.Command {
	var why string
	c := &cobra.Command{
		Use:               "hold HOST|@GROUP|PATTERN... --why TEXT",
		Short:             "Keep PCs from being reimaged, until they are released",
		Example:           "  reassure hold exp01 --why 'measuring until Friday'",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			if strings.TrimSpace(why) == "" {
				return usageError{errors.New("hold: say with --why what for: others will want to know")}
			}
			return a.each(c.Context(), api.Targets{Targets: targets, Why: why}, (*api.Client).Hold)
		},
	}
	c.Flags().StringVar(&why, "why", "", "the reason, for those who look")
	return c
}

func (a *app) releaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release HOST|@GROUP|PATTERN|ROLLOUT...",
		Short: "Lift what keeps PCs from being reimaged: a hold, a parking, a pause, a rescue",
		Long: `release lifts a hold, clears a PC that is parked because its attempts failed, and
ends the pause before the next attempt. A roll-out that has stopped goes on. Of a PC
that is in rescue, or to be, it ends the rescue, and nothing else.`,
		Example: `  reassure release exp01
  reassure release @lab2`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			return a.each(c.Context(), api.Targets{Targets: targets}, (*api.Client).Release)
		},
	}
}

// each asks for something to be done to hosts, and says what was.
func (a *app) each(ctx context.Context, t api.Targets, do func(*api.Client, context.Context, api.Targets) ([]api.Outcome, error)) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	outcomes, err := do(client, ctx, t)
	if err != nil {
		return a.refused(err)
	}
	for _, o := range outcomes {
		fmt.Fprintf(a.stdout, "%s: %s\n", clean(o.Host), clean(o.Text))
	}
	return nil
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Read the site's files again, and tell what changed",
		Long: `reload has the boot server read the site's files again. With a mistake in them, it
tells file, line and remedy, and the server goes on with what it had. Nothing is
reimaged by it, but hosts whose profile says rollout: auto are armed.`,
		Example: "  reassure reload",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.Reload(c.Context())
			if err != nil {
				return a.refused(err)
			}
			return a.showReload(r)
		},
	}
}

func (a *app) showReload(r *api.Reload) error {
	var b strings.Builder
	fmt.Fprintf(&b, "the site has %s\n", count(r.Hosts, "host"))
	if len(r.Added) > 0 {
		fmt.Fprintf(&b, "added: %s\n", clean(strings.Join(r.Added, " ")))
	}
	if len(r.Removed) > 0 {
		fmt.Fprintf(&b, "removed: %s\n", clean(strings.Join(r.Removed, " ")))
	}
	var waiting []string
	for _, h := range r.Changed {
		what := "changed"
		if h.Armed {
			what = "changed, and armed: its profile has rollout: auto"
		} else {
			waiting = append(waiting, clean(h.Name))
		}
		fmt.Fprintf(&b, "%s: %s\n", clean(h.Name), what)
		for _, c := range h.Changes {
			fmt.Fprintf(&b, "  %s\n", clean(c.Text))
		}
	}
	if len(r.Changed) == 0 {
		b.WriteString("no host's software changed\n")
	}
	if len(waiting) > 0 {
		fmt.Fprintf(&b, "they are reimaged by: reassure rollout %s\n", strings.Join(waiting, " "))
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

func (a *app) knownHostsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "known-hosts",
		Short:   "Print the lab's ssh_known_hosts: the keys that PCs reported",
		Example: "  reassure known-hosts >/etc/ssh/ssh_known_hosts",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			text, err := client.KnownHosts(c.Context())
			if err != nil {
				return a.refused(err)
			}
			_, err = fmt.Fprint(a.stdout, cleanText(text))
			return err
		},
	}
}
