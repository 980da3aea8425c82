// Load switches a whole lab on at once: 200 PCs, or what a boot ROM and a boot
// loader of each say on the network, get their addresses, their own texts and the
// whole image from "reassure serve", by TFTP and by HTTP. That none gives up and
// every byte is right is tested, too (TestLoad); this measures.
//
// Synopsis:
//
//	go run ./qemu-tests/load [-clients 200] [-size 30MiB] [-out out/load.json]
//
// Description:
//
//	Server and PCs are in network namespaces that it makes, so it must run as
//	root. The server is a process of its own; the PCs share the machine with it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	qemutests "reassure/qemu-tests"

	"reassure/image/spec"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	clients := flags.Int("clients", 200, "`number` of PCs")
	size := 30 * spec.MiB
	flags.TextVar(&size, "size", size, "`size` of the image")
	out := flags.String("out", "", "`file` for the figures")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "reassure-load")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, err := os.Getwd()
	if err != nil {
		return err
	}
	programs, err := qemutests.Build(ctx, tree, dir, qemutests.FlavourVM)
	if err != nil {
		return err
	}
	done, err := qemutests.Load{Clients: *clients, Size: size}.Run(ctx, programs, filepath.Join(dir, "load"), func(s string) { fmt.Fprintln(stdout, s) })
	if err != nil {
		return err
	}
	figures, err := json.MarshalIndent(map[string]any{
		"clients": *clients, "image.mib": float64(size) / float64(spec.MiB), "cpus": runtime.NumCPU(),
		"load.dhcp.seconds": done.DHCP.Seconds(), "load.tftp.seconds": done.TFTP.Seconds(), "load.http.seconds": done.HTTP.Seconds(),
		"load.server.mib": float64(done.Memory) / float64(spec.MiB),
	}, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n", figures)
	if *out == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(*out, append(figures, '\n'), 0o644)
}
