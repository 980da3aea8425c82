// Faults has everything go wrong that can, while PCs are reimaged, and judges what is left
// on their disks.
//
// Synopsis:
//
//	go run ./qemu-tests/faults [-count N] [-out FILE] [-share N] [-only REGEXP] [-list] [-again]
//
// Description:
//
//	power/full/N, power/delta/N
//	    A whole reimage is done once, with every write and flush of its disk noted. Then
//	    the disk is made as it would be had the plug been pulled at a random moment: what
//	    was flushed is there, and of the rest any part is, in any order, as a disk's cache
//	    may lose it. Every tenth is then booted.
//	kill/N
//	    A PC is switched off at a random moment of a reimage, and on again.
//	server/..., network/..., disk/..., pc/...
//	    The server, the network, the disk or the PC itself has a fault. What it says of
//	    that, on its console and to the server, is compared with its disk; and a disk that
//	    does not boot must be made whole by the next reimage.
//	served/...
//	    The boot server itself has one.
//
//	There are three good outcomes: the old system, untouched and whole; a disk that does not
//	boot, so that the PC goes on to the network and is reimaged; the new system, whole file
//	by file. A PC that says that it is done must have the third.
//
//	-count is how many trials there are of power cuts. FILE is JSON, a row for each trial:
//	{"trial", "result", "text", "commit", "seconds", "at", "facts"}, where facts has the
//	moment, the outcome, and how it was verified. What has passed with the same commit is
//	not tried again, unless -again is given. -share N takes every Nth trial, beginning at
//	another one with every commit.
//
// It needs root, and what "scripts/install-deps test" installs.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	qemutests "reassure/qemu-tests"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	trials := qemutests.Trials{Flavour: qemutests.FlavourVM}
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	trials.Register(flags, "faults.json")
	count := flags.Int("count", 200, "`number` of power cuts that are tried on a disk's log of writes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := &stage{}
	err := trials.Run(ctx, stdout, s.trials(*count))
	if out := flags.Lookup("out").Value.String(); !trials.Listing() {
		if tableErr := table(stdout, out); err == nil {
			err = tableErr
		}
	}
	return err
}

// table sums up the results of a file.
func table(w io.Writer, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var results []qemutests.Result
	if err := json.Unmarshal(text, &results); err != nil {
		return err
	}
	kinds, outcomes := map[string]map[string]int{}, map[string]bool{}
	for _, r := range results {
		kind := r.Trial[:strings.LastIndex(r.Trial, "/")]
		if kinds[kind] == nil {
			kinds[kind] = map[string]int{}
		}
		outcome := r.Facts["outcome"]
		if r.Text != "" {
			outcome = "BAD"
		}
		outcomes[outcome] = true
		kinds[kind][outcome]++
		kinds[kind]["all"]++
	}
	outcomes["BAD"] = true
	columns := append([]string{"all"}, slices.Sorted(maps.Keys(outcomes))...)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "fault\t%s\t\n", strings.Join(columns, "\t"))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(t, "%s\t", kind)
		for _, c := range columns {
			fmt.Fprintf(t, "%d\t", kinds[kind][c])
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
