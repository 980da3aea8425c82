// Hardware reimages virtual PCs of many kinds: every firmware with every disk and every
// network card that the emulator has, and those that are odd in another way.
//
// Synopsis:
//
//	go run ./qemu-tests/hardware [-out FILE] [-share N] [-only REGEXP] [-list] [-again]
//
// Description:
//
//	Each PC is booted by its network card, reimaged, and boots its own disk; then its
//	software changes, it is switched on again, and must boot the network and be reimaged
//	once more, by delta. Where the firmware cannot boot a card, a virtio card boots the
//	PC, and reassure.nic names the one under test.
//
//	FILE is JSON, a row for each kind: {"trial", "result", "text", "commit", "seconds",
//	"at", "facts"}. What has passed with the same commit is not tried again, so that a
//	run that was stopped goes on where it was; -again tries it all the same. -share N
//	takes every Nth row, beginning at another one with every commit.
//
// It needs what "scripts/install-deps test" installs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	qemutests "reassure/qemu-tests"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hardware:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	trials := qemutests.Trials{Flavour: qemutests.FlavourFull}
	flags := flag.NewFlagSet("hardware", flag.ContinueOnError)
	trials.Register(flags, "hardware.json")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var all []qemutests.Trial
	for _, r := range rows() {
		all = append(all, qemutests.Trial{Name: r.String(), Run: r.try})
	}
	return trials.Run(ctx, os.Stdout, all)
}
