package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve/api"
)

// client speaks to the boot server that is meant.
func (a *app) client() (*api.Client, error) {
	token := os.Getenv("REASSURE_TOKEN")
	if a.tokenFile != "" {
		text, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("the token: %w", err)
		}
		if token = strings.TrimSpace(string(text)); token == "" {
			return nil, fmt.Errorf("the token: %s is empty", a.tokenFile)
		}
	}
	client, err := api.NewClient(cmp.Or(a.server, os.Getenv("REASSURE_SERVER"), api.DefaultSocket), token)
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

// refused adds to a refusal what can be done about it.
func (a *app) refused(err error) error {
	if errors.Is(err, api.ErrForbidden) {
		return fmt.Errorf("%w: name the file with the server's token (token in its state folder) with --token-file, or ask through its socket, as root", err)
	}
	return err
}

// completeHosts completes names of hosts and groups: the server's, or those of
// the site where none answers.
func (a *app) completeHosts(c *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	seen := map[string]bool{}
	for _, g := range given {
		seen[g] = true
	}
	add := func(name string, groups []string) {
		for _, w := range append([]string{name}, groups...) {
			if w != name {
				w = "@" + w
			}
			if !seen[w] {
				words = append(words, w)
			}
			seen[w] = true
		}
	}
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second) // a person waits for it
	defer cancel()
	if client, err := a.client(); err == nil {
		if hosts, err := client.Hosts(ctx); err == nil {
			for _, h := range hosts {
				add(h.Name, h.Groups)
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		}
	}
	if site, err := resolve.Load(a.site); err == nil {
		for _, h := range site.Inventory.Hosts {
			add(h.Name, h.Groups)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeHost completes the one host that a command takes.
func (a *app) completeHost(c *cobra.Command, given []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words, directive := a.completeHosts(c, given, begun)
	var hosts []string
	for _, w := range words {
		if !strings.HasPrefix(w, "@") {
			hosts = append(hosts, w)
		}
	}
	return hosts, directive
}

// json prints a value for programs.
func (a *app) json(value any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(value)
}

// table prints rows in columns.
func (a *app) table(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// when writes a time by the reader's clock.
func (a *app) when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(a.now().Location()).Format("2006-01-02 15:04")
}

// duration writes hours, minutes and seconds.
func duration(d time.Duration) string {
	s := int(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func dash(s string) string { return cmp.Or(clean(s), "-") }

// clean takes out of a line what would steer a terminal: parts of what the
// server tells come from PCs.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return printable(r)
	}, s)
}

// cleanText is [clean] for many lines.
func cleanText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return printable(r)
	}, s)
}

// printable drops control characters, C0, DEL and C1 (ECMA-48), and those that
// turn the direction of writing.
func printable(r rune) rune {
	if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
		return -1
	}
	return r
}
