package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
)

func (a *app) whyCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "why HOST",
		Short: "Say why a PC would be told what it would be told, and what differs",
		Long: `why says what the PC would be told if it were powered on now, and why; then what
differs between what is installed on it, what was rolled out to it, and what the
site's files say. Templates are shown as diffs to those who may change things.`,
		Example:           "  reassure why exp01",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			why, err := client.Why(c.Context(), args[0])
			if err != nil {
				return a.refused(err)
			}
			if asJSON {
				return a.json(why)
			}
			_, err = fmt.Fprint(a.stdout, explain(why))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// explain writes words first, then diffs.
func explain(w *api.Why) string {
	var words, diffs strings.Builder
	fmt.Fprintf(&words, "%s: %s: %s\n", clean(w.Host), clean(w.Decision), clean(w.Reason))
	for _, part := range []struct {
		title   string
		changes []api.Change
	}{
		{"rolled out, and not installed:", w.Due},
		{"in the site's files, and not rolled out (reassure rollout " + clean(w.Host) + "):", w.Pending},
		{"drift, which lands with the next reimage:", w.Drift},
	} {
		if len(part.changes) == 0 {
			continue
		}
		fmt.Fprintf(&words, "\n%s\n", part.title)
		for _, c := range part.changes {
			fmt.Fprintf(&words, "  %s\n", clean(c.Text))
			if c.Diff != "" {
				fmt.Fprintf(&diffs, "\n%s\n", strings.TrimRight(cleanText(c.Diff), "\n"))
			}
		}
	}
	return words.String() + diffs.String()
}

func (a *app) logCommand() *cobra.Command {
	var attempt string
	var follow, list bool
	c := &cobra.Command{
		Use:   "log HOST [--attempt ID] [--follow | --list]",
		Short: "Show the log of a PC's last reimage",
		Long: `log prints what the PC reported during its last reimage, or during the one that
--attempt names; --list lists them. With --follow it goes on until Ctrl-C, into
the next attempt, too.`,
		Example: `  reassure log exp01
  reassure log exp01 --list
  reassure log exp01 --follow`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, host := c.Context(), args[0]
			client, err := a.client()
			if err != nil {
				return err
			}
			if list {
				detail, err := client.Host(ctx, host)
				if err != nil {
					return a.refused(err)
				}
				return a.attempts(detail)
			}
			if !follow {
				text, err := client.Log(ctx, host, attempt)
				if err != nil {
					return a.refused(err)
				}
				_, err = fmt.Fprint(a.stdout, cleanText(text))
				return err
			}
			printed := ""
			return a.follow(ctx, client, func(name string) bool { return strings.EqualFold(name, host) }, func(trouble error) error {
				if trouble != nil {
					fmt.Fprintf(a.stderr, "%s: trying again\n", clean(trouble.Error()))
					return nil
				}
				text, err := client.Log(ctx, host, attempt)
				if errors.Is(err, api.ErrNotFound) && printed == "" {
					// Either there is no such host, or no attempt of it yet.
					if _, wrong := client.Host(ctx, host); wrong != nil {
						return wrong
					}
					return nil
				}
				if err != nil {
					return err
				}
				news, more := strings.CutPrefix(text, printed)
				if !more {
					news = "\n" + text // another attempt
				}
				printed = text
				_, err = fmt.Fprint(a.stdout, cleanText(news))
				return err
			})
		},
	}
	c.Flags().StringVar(&attempt, "attempt", "", "the `ID` of an attempt, from --list (default the newest)")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until Ctrl-C")
	c.Flags().BoolVar(&list, "list", false, "list the attempts instead")
	c.MarkFlagsMutuallyExclusive("follow", "list")
	c.MarkFlagsMutuallyExclusive("attempt", "list")
	return c
}

// attempts lists a host's, the newest first.
func (a *app) attempts(d *api.HostDetail) error {
	if len(d.History) == 0 {
		fmt.Fprintf(a.stdout, "%s was never told Remote\n", clean(d.Name))
		return nil
	}
	rows := [][]string{{"ATTEMPT", "STARTED", "TOOK", "WADS", "RESULT", "WHY"}}
	for _, t := range d.History {
		took := "-"
		if !t.Ended.IsZero() {
			took = duration(t.Ended.Sub(t.Started))
		}
		why := clean(t.Reason)
		if t.Text != "" {
			why = clean(t.Text)
		}
		rows = append(rows, []string{clean(t.ID), a.when(t.Started), took, t.Bytes.String(), clean(string(t.Result)), why})
	}
	return a.table(rows)
}
