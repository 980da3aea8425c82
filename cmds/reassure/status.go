package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"reassure/image/serve/api"
)

func (a *app) statusCommand() *cobra.Command {
	var watch, asJSON bool
	c := &cobra.Command{
		Use:   "status [HOST...] [--watch] [--json]",
		Short: "Show what each PC is doing, and why",
		Long: `status shows every host, or those that are named: its state, what it would be told
if it were powered on now, and why, or how far its reimage is.

  running   it is being reimaged, or verified, captured or rescued
  parked    too many attempts failed; see "why" and "log", then "release"
  retrying  an attempt failed; the next is due
  held      a person said hold
  armed     it will be reimaged, at its next power-on or when its turn comes
  changed   its software changed in the site's files; "rollout" reimages it
  new       nothing was rolled out to it yet
  current   it has what it should have

With --watch it shows every change until it is stopped with Ctrl-C: on a terminal
the table stays in place, elsewhere a line is printed for each change. With
--watch and --json, each is the whole list in one line.

Where hosts are named and one of them is parked or retrying, the exit code is 3.`,
		Example: `  reassure status
  reassure status @lab2 'exp0*' --watch
  reassure status exp01 --json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if watch {
				return a.watchStatus(c.Context(), client, targets, asJSON)
			}
			hosts, err := a.pick(c.Context(), client, targets)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(hosts)
			} else {
				_, err = fmt.Fprintln(a.stdout, strings.Join(a.statusTable(hosts, a.look(), 0), "\n"))
			}
			if err == nil && len(targets) > 0 && slices.ContainsFunc(hosts, func(h api.Host) bool { return h.State == api.Parked || h.State == api.Retrying }) {
				return attention{}
			}
			return err
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on until Ctrl-C")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// pick asks for the hosts that are meant; all without targets.
func (a *app) pick(ctx context.Context, client *api.Client, targets []string) ([]api.Host, error) {
	hosts, err := client.Hosts(ctx)
	if err != nil {
		return nil, a.refused(err)
	}
	if len(targets) == 0 {
		return hosts, nil
	}
	return api.Pick(hosts, targets)
}

// urgency is how soon a person wants to know of a state.
var urgency = []api.State{api.Parked, api.Retrying, api.Held, api.Running, api.Armed, api.Changed, api.New, api.Current}

// heading is how many lines of a table are above its first row.
const heading = 3

// statusTable draws hosts, in the order that they have. With rows, it has no
// more of them: those that a person wants to know of last are left out.
func (a *app) statusTable(hosts []api.Host, l look, rows int) []string {
	in := map[api.State]int{}
	for _, h := range hosts {
		in[h.State]++
	}
	summary := count(len(hosts), "host")
	sep := ": "
	for _, s := range urgency {
		if in[s] > 0 {
			summary += sep + l.paint(fmt.Sprintf("%d %s", in[s], s), colour(s))
			sep = ", "
		}
	}
	if bare := unpainted.ReplaceAllString(summary, ""); l.clip(bare, 0) != bare {
		summary = l.clip(bare, 0) // a line that is too long would push the others down
	}
	lines := []string{summary}
	if len(hosts) == 0 {
		return lines
	}
	left := 0
	if room := rows - heading; rows > 0 && len(hosts) > room {
		room = max(room-1, 1) // the last line says how many are left out
		left = len(hosts) - room
		hosts = mostUrgent(hosts, room)
	}
	name := len("HOST")
	for _, h := range hosts {
		name = max(name, utf8.RuneCountInString(clean(h.Name)))
	}
	state := len("retrying")
	boot := len("remote")
	used := name + state + boot + 6
	lines = append(lines, "", pad("HOST", name)+"  "+pad("STATE", state)+"  "+pad("BOOT", boot)+"  WHY, OR HOW FAR")
	for _, h := range hosts {
		lines = append(lines, pad(clean(h.Name), name)+"  "+l.paint(string(h.State), colour(h.State))+pad("", state-len(h.State))+
			"  "+pad(dash(h.Decision), boot)+"  "+l.clip(a.doing(h, l), used))
	}
	if left > 0 {
		lines = append(lines, fmt.Sprintf("and %d more, which the screen has no room for", left))
	}
	return lines
}

var unpainted = regexp.MustCompile("\x1b\\[[0-9;]*m")

// mostUrgent keeps n hosts and their order.
func mostUrgent(hosts []api.Host, n int) []api.Host {
	keep := make([]bool, len(hosts))
	for _, s := range append(slices.Clone(urgency), "") {
		for i, h := range hosts {
			if n > 0 && !keep[i] && (h.State == s || s == "") {
				keep[i] = true
				n--
			}
		}
	}
	var kept []api.Host
	for i, h := range hosts {
		if keep[i] {
			kept = append(kept, h)
		}
	}
	return kept
}

// doing is a running host's progress, or any other's reason.
func (a *app) doing(h api.Host, l look) string {
	p := h.Progress
	if h.State != api.Running || p == nil {
		s := clean(h.Reason)
		if h.NextTry.After(a.now()) {
			s += "; the next try is at " + h.NextTry.In(a.now().Location()).Format("15:04:05")
		}
		return s
	}
	var parts []string
	if p.Total > 0 {
		share := min(float64(p.Done)/float64(p.Total), 1)
		width := 20
		if l.width > 0 && l.width < 100 {
			width = 10
		}
		parts = append(parts, l.bar(share, width)+fmt.Sprintf(" %3d%%", int(share*100)))
	}
	if p.Rate > 0 {
		parts = append(parts, p.Rate.String()+"/s")
	}
	if p.ETA > 0 {
		parts = append(parts, duration(time.Duration(p.ETA*float64(time.Second)))+" left")
	}
	what := clean(p.Phase)
	if text := clean(p.Text); text != "" && text != what {
		what = strings.TrimPrefix(what+": "+text, ": ")
	}
	if p.Attempt > 1 {
		what += fmt.Sprintf(" (try %d)", p.Attempt)
	}
	return strings.TrimSpace(strings.Join(append(parts, what), "  "))
}

// watchStatus shows hosts whenever one of them changes.
func (a *app) watchStatus(ctx context.Context, client *api.Client, targets []string, asJSON bool) error {
	var hosts []api.Host
	var before map[string]string // rows that were printed
	onScreen := terminal(a.stdout) != nil && !asJSON
	if onScreen {
		// The alternate screen keeps what was there before; the cursor is in the way.
		fmt.Fprint(a.stdout, "\x1b[?1049h\x1b[?25l")
		defer func() {
			fmt.Fprint(a.stdout, "\x1b[?25h\x1b[?1049l")
			if hosts != nil {
				fmt.Fprintln(a.stdout, strings.Join(a.statusTable(hosts, a.look(), 0), "\n"))
			}
		}()
	}
	draw := func(trouble error) error {
		switch {
		case onScreen:
			l := a.look()
			lines := a.statusTable(hosts, l, l.height-1)
			if trouble != nil {
				lines[0] = l.paint(l.clip(clean(trouble.Error())+": trying again", 0), "1;31")
			}
			_, err := fmt.Fprint(a.stdout, "\x1b[H"+strings.Join(lines, "\x1b[K\r\n")+"\x1b[J")
			return err
		case trouble != nil:
			fmt.Fprintf(a.stderr, "%s: trying again\n", clean(trouble.Error()))
			return nil
		case asJSON:
			return json.NewEncoder(a.stdout).Encode(hosts)
		}
		lines := a.statusTable(hosts, a.look(), 0)
		rows := map[string]string{}
		for i, h := range hosts {
			rows[h.Name] = lines[i+heading]
			if before != nil && before[h.Name] != rows[h.Name] {
				fmt.Fprintln(a.stdout, rows[h.Name])
			}
		}
		if before == nil {
			fmt.Fprintln(a.stdout, strings.Join(lines, "\n"))
		}
		before = rows
		return nil
	}
	return a.follow(ctx, client, func(string) bool { return true }, func(trouble error) error {
		if trouble == nil {
			now, err := a.pick(ctx, client, targets)
			if err != nil {
				return err
			}
			hosts = now
		}
		return draw(trouble)
	})
}

// pause is how long a change waits for others, so that two hundred PCs at work
// do not keep the server and the terminal busy with one table.
const pause = 500 * time.Millisecond

// again is how long a server that is gone is left alone.
const again = 2 * time.Second

// follow calls show once the server listens and after changes of hosts that
// concern, until ctx ends, which is no error. When the server goes away, it
// calls show with the trouble, and tries again.
func (a *app) follow(ctx context.Context, client *api.Client, concern func(host string) bool, show func(trouble error) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	nudge := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	listen := func() {
		ended <- client.Stream(ctx, func(host string) error {
			if host == "" || concern(host) {
				nudge()
			}
			return nil
		})
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)

	seen := false
	wait := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	go listen()
	for {
		var trouble error
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
			nudge()
			continue
		case <-changed:
			trouble = show(nil)
			var said *api.Error
			if trouble != nil && (!seen || errors.As(trouble, &said) || errors.Is(trouble, api.ErrNotFound)) && ctx.Err() == nil {
				return trouble
			}
			if trouble == nil {
				seen = true
				wait(pause)
				continue
			}
			go func() {
				wait(again)
				nudge()
			}()
		case trouble = <-ended:
			if ctx.Err() == nil && !seen {
				return a.refused(trouble)
			}
			go func() {
				wait(again)
				listen()
			}()
		}
		if ctx.Err() != nil {
			return nil
		}
		if err := show(trouble); err != nil {
			return err
		}
	}
}
