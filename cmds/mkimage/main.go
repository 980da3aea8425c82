// Mkimage builds the netboot image, and looks into one.
//
// Synopsis:
//
//	mkimage build [OPTIONS]
//	mkimage inspect [FOLDER]
//	mkimage ls [FOLDER]
//	mkimage cat PATH [FOLDER]
//	mkimage diff FOLDER FOLDER
//	mkimage coverage --ids FILE|--host [FOLDER]
//
// Description:
//
//	build makes bzImage, initramfs.cpio.zst, image.json, drivers.json and tftproot/ in the
//	folder of its results. inspect says in short what an image is; ls lists the
//	files of its initramfs, cat writes one of them to standard output, and diff
//	says in what two images differ. FOLDER is a folder of results; without it
//	it is out.
//
//	coverage tells before anybody walks to a PC whether the image has drivers and
//	firmware for its network cards and storage controllers. FILE (- is standard input) holds what
//	lspci -nn, lspci -n or lsusb print there, modaliases of /sys, or numbers such
//	as 8086:15b7, mixed if need be; --host asks about this machine. The exit code is
//	1 when a network card or a storage controller is not covered.
//
// Options of coverage:
//
//	-ids FILE         the devices that are asked about
//	-host             those of this machine
//	-json             print JSON
//
// Options of build:
//
//	-out FOLDER       results; out
//	-source FOLDER    the checkout; .
//	-cache FOLDER     what is kept between builds; reassure in the user's cache folder
//	-config FILE      what goes into the image; the default is image/build/image.yaml
//	-flavour NAME     which modules; full
//	-kernel FILE      a bzImage of your own, with -modules
//	-modules FOLDER   its lib/modules/RELEASE
//	-keys FOLDER      public keys to trust; reassure in the user's configuration folder, where a key is made when there is none
//	-insecure         trust unsigned manifests
//	-secureboot-key FILE, -secureboot-cert FILE
//	                  sign reassure.efi for Secure Boot: PEM files
//	-v                say everything
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"reassure/image/build"
	"reassure/image/coverage"
	"reassure/image/logs"
	"reassure/image/sign"
	"reassure/image/spec"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) && !errors.Is(err, errNotCovered) {
			fmt.Fprintln(os.Stderr, "mkimage:", err)
		}
		os.Exit(1)
	}
}

const usage = `usage: mkimage build [OPTIONS]        make the image (mkimage build -h lists the options)
       mkimage inspect [FOLDER]      say what an image is
       mkimage ls [FOLDER]           list the files of its initramfs
       mkimage cat PATH [FOLDER]     write one of them to standard output
       mkimage diff FOLDER FOLDER    say in what two images differ
       mkimage coverage --ids FILE|--host [FOLDER]
                                     say which devices it has drivers and firmware for
`

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errors.New("say what to do")
	}
	folder := func(i int) string {
		if len(args) > i {
			return args[i]
		}
		return "out"
	}
	switch verb := args[0]; {
	case verb == "build":
		return runBuild(ctx, args[1:], stdout, stderr)
	case verb == "inspect" && len(args) <= 2:
		return build.Inspect(stdout, folder(1))
	case verb == "ls" && len(args) <= 2:
		return build.List(stdout, folder(1))
	case verb == "cat" && (len(args) == 2 || len(args) == 3):
		return build.Cat(stdout, folder(2), args[1])
	case verb == "diff" && len(args) == 3:
		return build.Diff(stdout, args[1], args[2])
	case verb == "coverage":
		return runCoverage(args[1:], stdin, stdout, stderr)
	case verb == "help" || verb == "-h" || verb == "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	fmt.Fprint(stderr, usage)
	return fmt.Errorf("cannot make sense of %q", args)
}

// errNotCovered is only an exit code: the report has said it.
var errNotCovered = errors.New("something is not covered")

func runCoverage(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var ids string
	var host, asJSON bool
	flags := flag.NewFlagSet("mkimage coverage", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&ids, "ids", "", "`file` with what lspci -nn, lspci -n or lsusb print, modaliases, or numbers such as 8086:15b7; - is standard input")
	flags.BoolVar(&host, "host", false, "ask about the devices of this machine")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 1 || host == (ids != "") {
		return errors.New("say which devices, by --ids FILE or --host, and then the folder of the image, if it is not out")
	}
	out := "out"
	if flags.NArg() == 1 {
		out = flags.Arg(0)
	}
	text, err := os.ReadFile(filepath.Join(out, build.DriversFile))
	if err != nil {
		return fmt.Errorf("%s is no folder of an image (make image makes one): %w", out, err)
	}
	catalogue, err := coverage.Read(text)
	if err != nil {
		return fmt.Errorf("in %s: %w", out, err)
	}
	var devices []coverage.Device
	switch {
	case host:
		devices, err = coverage.Host(os.DirFS("/sys"))
	case ids == "-":
		devices, err = coverage.Parse("standard input", stdin)
	default:
		f, openErr := os.Open(ids)
		if openErr != nil {
			return openErr
		}
		defer f.Close()
		devices, err = coverage.Parse(ids, f)
	}
	if err != nil {
		return err
	}
	report := coverage.NewJudge(catalogue).Devices(devices)
	if asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		err = e.Encode(report)
	} else {
		err = report.Write(stdout)
	}
	if err == nil && report.Bad() > 0 {
		return errNotCovered
	}
	return err
}

func runBuild(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o := build.Options{Version: spec.Version}
	var config string
	var verbose bool
	flags := flag.NewFlagSet("mkimage build", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Out, "out", "out", "`folder` for the results")
	flags.StringVar(&o.Source, "source", ".", "the checkout's `folder`")
	flags.StringVar(&o.Cache, "cache", "", "`folder` for what is kept between builds (default reassure in the user's cache folder)")
	flags.StringVar(&config, "config", "", "YAML `file` that says what goes into the image")
	flags.StringVar(&o.Flavour, "flavour", "full", "`name` of the selection of modules")
	flags.StringVar(&o.Kernel, "kernel", "", "a bzImage `file` of your own")
	flags.StringVar(&o.Modules, "modules", "", "its lib/modules/RELEASE `folder`")
	flags.StringVar(&o.Keys, "keys", "", "`folder` of public keys to trust (default reassure in the user's configuration folder)")
	flags.BoolVar(&o.Insecure, "insecure", false, "trust unsigned manifests")
	flags.StringVar(&o.SecureBoot.Key, "secureboot-key", "", "PEM `file` with the RSA key that signs reassure.efi for Secure Boot, without a passphrase")
	flags.StringVar(&o.SecureBoot.Cert, "secureboot-cert", "", "PEM `file` with its certificate, which is in the PCs' db")
	flags.BoolVar(&verbose, "v", false, "say everything that is done")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("cannot make sense of %q: build takes options only", flags.Args())
	}
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	o.Log = slog.New(logs.NewHandler(stderr, logs.Options{Level: level}))

	name, text := "the default configuration (image/build/image.yaml)", build.DefaultConfig
	if config != "" {
		var err error
		name = config
		if text, err = os.ReadFile(config); err != nil {
			return err
		}
	}
	var err error
	if o.Config, err = build.ParseConfig(name, text); err != nil {
		return err
	}
	if o.Cache == "" {
		if o.Cache, err = os.UserCacheDir(); err != nil {
			return fmt.Errorf("%w: name one with -cache", err)
		}
		o.Cache = filepath.Join(o.Cache, "reassure")
	}
	if err := siteKey(&o); err != nil {
		return err
	}
	if o.Insecure {
		o.Log.Warn("INSECURE: this image lets anybody on the network reimage PCs that boot it")
	}
	start := time.Now()
	image, err := build.Build(ctx, o)
	if err != nil {
		return err
	}
	build.Summary(stdout, o.Out, image, time.Since(start))
	return nil
}

// siteKey sees to it that the image trusts somebody: without -keys that is the
// site's own key, which is made when there is none.
func siteKey(o *build.Options) error {
	if o.Insecure || o.Keys != "" {
		return nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return fmt.Errorf("%w: name the folder of your public keys with -keys", err)
	}
	o.Keys = filepath.Join(config, "reassure")
	private, _, created, err := sign.EnsureSiteKey(o.Keys)
	if err != nil {
		return err
	}
	if created {
		o.Log.Warn(fmt.Sprintf("made your site's signing key: %s. Whoever has it can reimage your PCs; without it you must build the image anew. Back it up.", private))
	}
	return nil
}
