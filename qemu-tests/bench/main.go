// Bench measures what the project has promised of sizes and times, prints a
// table, and writes the figures to a file.
//
// Synopsis:
//
//	go run ./qemu-tests/bench [-out FILE] [-runs N] [-only REGEXP]
//
// Description:
//
//	Each figure is the median of several runs. Ratios are taken run by run, both
//	sides in turn, so that a machine that is busy for a while slows both.
//	FILE is JSON: {"name": {"value", "unit", "runs", "min", "max", "how"}}.
//
// Environment:
//
//	BASELINE  folder of the same job done in shell (build.sh, run.sh), for
//	          e2e.vs_shell; without it that figure is left out, with a note
//
// It needs root, and what "scripts/install-deps bench" installs.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"reassure/image/command"
	"reassure/image/reimage/mkfs"
	"reassure/image/spec"
	"reassure/image/wad"
	qemutests "reassure/qemu-tests"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// Figure is one measurement.
type Figure struct {
	Value float64 `json:"value"` // the median
	Unit  string  `json:"unit"`
	Runs  int     `json:"runs"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	How   string  `json:"how"`
}

// measurement makes one or more figures.
type measurement struct {
	names []string
	run   func(b *bench, ctx context.Context) error
}

// bench is one run of the program.
type bench struct {
	tree, dir string
	runs      int
	out       io.Writer
	programs  *qemutests.Programs // made when first needed
	figures   map[string]Figure
	notes     map[string]string // why a figure is missing
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	if len(args) > 0 && args[0] == "install" {
		return installOnce(ctx, args[1:], stdout)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	out := flags.String("out", "out/bench.json", "write the figures to this `file`")
	runs := flags.Int("runs", 5, "runs of each measurement; those that boot PCs make do with 3")
	only := flags.String("only", "", "measure only names that match this `regexp`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *runs < 1 {
		return fmt.Errorf("-runs %d: give at least 1", *runs)
	}
	b := &bench{runs: *runs, out: stdout, figures: map[string]Figure{}, notes: map[string]string{}}
	if b.tree, err = os.Getwd(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.tree, "go.mod")); err != nil {
		return fmt.Errorf("run it from the root of the source tree: %w", err)
	}
	if b.dir, err = os.MkdirTemp("", "reassure-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()

	var failures error
	for _, m := range []measurement{
		{[]string{"mkfs.ext4.2tib.seconds"}, (*bench).mkfs2TiB},
		{[]string{"extract.plain.vs_tar"}, (*bench).extract},
		{[]string{"wad.pack.vs_zstd", "wad.size.vs_zstd", "delta.none.vs_cat", "delta.1pct.bytes_ratio", "delta.1pct.vs_full_shaped", "dirty.vs_full_shaped"}, (*bench).deltas},
		{[]string{"dirty.vs_rsync", "dirty.vs_casync", "install.vs_partclone"}, (*bench).others},
		{[]string{"install.vs_limit", "install.vs_tar", "install.vs_tar_ram", "install.peak_memory.mib"}, (*bench).install},
		{[]string{"install.large.vs_limit", "install.large.vs_tar", "install.large.peak_memory.mib"}, (*bench).installLarge},
		{[]string{"wad.peak_memory.mib"}, (*bench).million},
		{[]string{"image.full.mib", "image.vm.mib"}, (*bench).imageSizes},
		{[]string{"image.warm.seconds", "image.codechange.seconds"}, (*bench).imageTimes},
		{[]string{"reimage.peak_memory.mib", "e2e.vs_shell"}, (*bench).endToEnd},
	} {
		if !slices.ContainsFunc(m.names, chosen.MatchString) {
			continue
		}
		fmt.Fprintln(stdout, "measuring", strings.Join(m.names, ", "))
		if err := m.run(b, ctx); err != nil {
			failures = errors.Join(failures, fmt.Errorf("%s: %w", strings.Join(m.names, ", "), err))
		}
		if ctx.Err() != nil {
			return errors.Join(failures, ctx.Err())
		}
	}
	b.table()
	return errors.Join(b.write(*out), failures)
}

// note records runs of a measurement.
func (b *bench) note(name, unit, how string, values []float64) {
	sorted := slices.Sorted(slices.Values(values))
	b.figures[name] = Figure{
		Value: sorted[len(sorted)/2], Unit: unit, Runs: len(sorted), Min: sorted[0], Max: sorted[len(sorted)-1], How: how,
	}
}

// table prints everything for a person.
func (b *bench) table() {
	var names []string
	for n := range b.figures {
		names = append(names, n)
	}
	for n := range b.notes {
		names = append(names, n)
	}
	slices.Sort(names)
	fmt.Fprintf(b.out, "\n%-28s %10s %-8s %5s %10s %10s\n", "name", "median", "unit", "runs", "min", "max")
	for _, n := range names {
		f, ok := b.figures[n]
		if !ok {
			fmt.Fprintf(b.out, "%-28s %s\n", n, b.notes[n])
			continue
		}
		fmt.Fprintf(b.out, "%-28s %10.2f %-8s %5d %10.2f %10.2f\n", n, f.Value, f.Unit, f.Runs, f.Min, f.Max)
	}
}

// write puts the figures into a file, which keeps those that were not measured now.
func (b *bench) write(name string) error {
	all := map[string]Figure{}
	old, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(old, &all)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is not a file of figures; remove it: %w", name, err)
	}
	for n, f := range b.figures {
		all[n] = f
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(name, append(text, '\n'), 0o644)
}

func seconds(since time.Time) float64 { return time.Since(since).Seconds() }

// mkfs2TiB makes an ext4 file system on a sparse file.
func (b *bench) mkfs2TiB(ctx context.Context) error {
	const size = int64(2 * spec.TiB)
	var times []float64
	for range b.runs {
		name := filepath.Join(b.dir, "ext4")
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := f.Truncate(size); err != nil {
			return errors.Join(err, f.Close())
		}
		start := time.Now()
		err = mkfs.Ext4(f, size, mkfs.Options{UUID: "6a1e3f52-0c7d-4e6b-9d55-2f1f0a8b7c11", Label: "bench"})
		if err == nil {
			err = f.Sync()
		}
		times = append(times, seconds(start))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		check := command.Command{Args: []string{"dumpe2fs", "-h", name}, Timeout: time.Minute}
		if err := errors.Join(check.Run(ctx), os.Remove(name)); err != nil {
			return fmt.Errorf("what was made is no ext4 (Debian package e2fsprogs): %w", err)
		}
	}
	b.note("mkfs.ext4.2tib.seconds", "s", "mkfs.Ext4 on a sparse file of 2 TiB, and fsync", times)
	return nil
}

// extract unpacks the debian wad with ours and with zstd and tar, in turn.
func (b *bench) extract(ctx context.Context) error {
	programs := &qemutests.Programs{Tree: b.tree, Dir: b.dir}
	file, err := programs.Wad(ctx, "debian", "debian.tar.zst")
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(b.dir, &fs); err != nil {
		return err
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		b.notes["extract.plain.vs_tar"] = b.dir + " is not on ext4: name another place by TMPDIR"
		return nil
	}
	timed := func(unpack func(dir string) error) (float64, error) {
		dir, err := os.MkdirTemp(b.dir, "tree")
		if err != nil {
			return 0, err
		}
		start := time.Now()
		err = unpack(dir)
		if d, openErr := os.Open(dir); openErr == nil {
			// What is still in memory has not been laid down.
			err = errors.Join(err, unix.Syncfs(int(d.Fd())), d.Close())
		} else {
			err = errors.Join(err, openErr)
		}
		took := seconds(start)
		return took, errors.Join(err, os.RemoveAll(dir))
	}
	ours := func(dir string) error {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = wad.Extract(ctx, f, dir, wad.Options{})
		return errors.Join(err, f.Close())
	}
	theirs := func(dir string) error {
		return command.Command{Args: []string{
			"bash", "-c", `set -o pipefail; zstd -dc "$1" | tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C "$2"`, "bash", file, dir,
		}, Timeout: 10 * time.Minute}.Run(ctx)
	}
	var ratios []float64
	for range b.runs {
		a, err := timed(ours)
		if err != nil {
			return err
		}
		t, err := timed(theirs)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "  ours %.2f s, zstd -dc | tar -x %.2f s\n", a, t)
		ratios = append(ratios, a/t)
	}
	b.note("extract.plain.vs_tar", "ratio", "wad.Extract against zstd -dc | tar -x of the debian wad on one ext4, each with syncfs", ratios)
	return nil
}

// makeImage builds an image and returns how long that took.
func (b *bench) makeImage(ctx context.Context, tree, flavour, out string) (float64, error) {
	start := time.Now()
	var said bytes.Buffer
	err := command.Command{
		Args: []string{"make", "--silent", "image", "FLAVOUR=" + flavour, "OUT=" + out}, Dir: tree, Env: b.env(), Stdout: &said, Timeout: 20 * time.Minute,
	}.Run(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, said.Bytes())
	}
	return seconds(start), nil
}

// env keeps the signing key of whoever runs this out of it.
func (b *bench) env() []string { return (&qemutests.Programs{Dir: b.dir}).Env() }

// imageSizes weighs what PCs fetch by TFTP.
func (b *bench) imageSizes(ctx context.Context) error {
	for _, flavour := range []string{"full", "vm"} {
		out := filepath.Join(b.dir, "image-"+flavour)
		if _, err := b.makeImage(ctx, b.tree, flavour, out); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(out, "image.json"))
		if err != nil {
			return err
		}
		var info struct {
			Segments []struct {
				Name   string
				Packed int64
			}
			Files []struct {
				Name string
				Size int64
			}
		}
		if err := json.Unmarshal(text, &info); err != nil {
			return fmt.Errorf("image.json: %w", err)
		}
		var bytes int64
		for _, f := range info.Files {
			bytes += f.Size
		}
		for _, s := range info.Segments {
			if s.Name == "firmware" || s.Name == "microcode" {
				bytes -= s.Packed
			}
		}
		b.note("image."+flavour+".mib", "MiB", "bzImage and initramfs of make image FLAVOUR="+flavour+", without firmware and microcode", []float64{float64(bytes) / (1 << 20)})
	}
	return nil
}

// imageTimes builds again with nothing changed, and with one program changed.
func (b *bench) imageTimes(ctx context.Context) error {
	// In a copy: the change must not show in anybody's work.
	tree := filepath.Join(b.dir, "source")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	err := command.Command{Args: []string{
		"bash", "-c", `set -o pipefail; git ls-files -z --cached --others --exclude-standard | tar -c --null --ignore-failed-read -T - | tar -x -C "$1"`, "bash", tree,
	}, Dir: b.tree}.Run(ctx)
	if err != nil {
		return err
	}
	out := filepath.Join(b.dir, "image-again")
	if _, err := b.makeImage(ctx, tree, "vm", out); err != nil {
		return err
	}
	var warm, changed []float64
	for i := range b.runs {
		t, err := b.makeImage(ctx, tree, "vm", out)
		if err != nil {
			return err
		}
		warm = append(warm, t)
		text := fmt.Sprintf("package spec\n\n// BenchRun makes this build differ from the one before.\nfunc BenchRun() int { return %d }\n", time.Now().UnixNano()+int64(i))
		if err := os.WriteFile(filepath.Join(tree, "image", "spec", "bench_run.go"), []byte(text), 0o644); err != nil {
			return err
		}
		if t, err = b.makeImage(ctx, tree, "vm", out); err != nil {
			return err
		}
		changed = append(changed, t)
	}
	b.note("image.warm.seconds", "s", "make image FLAVOUR=vm with nothing changed", warm)
	b.note("image.codechange.seconds", "s", "make image FLAVOUR=vm with package image/spec changed", changed)
	return nil
}

// endToEnd reimages a PC with the debian wad, in turn with the same job in shell.
func (b *bench) endToEnd(ctx context.Context) error {
	var err error
	if b.programs, err = qemutests.Build(ctx, b.tree, b.dir, qemutests.FlavourVM); err != nil {
		return err
	}
	file, err := b.programs.Wad(ctx, "debian", "debian.tar.zst")
	if err != nil {
		return err
	}
	baseline := os.Getenv("BASELINE")
	shell := ""
	if baseline == "" {
		b.notes["e2e.vs_shell"] = "not measured: BASELINE names no folder with the same job in shell"
	} else {
		shell = filepath.Join(b.dir, "shell")
		if err := (command.Command{Args: []string{filepath.Join(baseline, "build.sh"), shell}, Timeout: 10 * time.Minute}).Run(ctx); err != nil {
			return fmt.Errorf("baseline: %w", err)
		}
	}
	key, err := qemutests.NewKey()
	if err != nil {
		return err
	}
	var memory, ratios []float64
	for i := range min(b.runs, 3) {
		r, err := b.reimage(ctx, file, key, key.Line, i)
		if err != nil {
			return err
		}
		memory = append(memory, float64(r.Memory)/float64(spec.MiB))
		ours := (r.Reimage + r.Boot).Seconds()
		fmt.Fprintf(b.out, "  ours %.1f s (reimage %.1f, boot %.1f):", ours, r.Reimage.Seconds(), r.Boot.Seconds())
		for _, p := range r.Phases {
			fmt.Fprintf(b.out, " %s %.1f", p.Name, p.Seconds)
		}
		fmt.Fprintln(b.out)
		if shell == "" {
			continue
		}
		theirs, err := runShell(ctx, baseline, shell, file)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "  shell %.1f s\n", theirs)
		ratios = append(ratios, ours/theirs)
	}
	b.note("reimage.peak_memory.mib", "MiB", "VmHWM of the reimager at the end of a reimage with the debian wad", memory)
	if len(ratios) > 0 {
		b.note("e2e.vs_shell", "ratio", "power on to login with the debian wad, against run.sh of $BASELINE, both with 2 vCPU and 1 GiB", ratios)
	}
	return nil
}

// reimage is one reimage of a PC with the debian wad, in a lab of its own.
func (b *bench) reimage(ctx context.Context, file string, signer qemutests.Signer, line string, i int) (r *qemutests.Reimaged, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("no end after 15 minutes"))
	defer cancel()
	dir := filepath.Join(b.dir, "lab"+strconv.Itoa(i))
	lab, err := qemutests.NewLab(ctx, b.programs, dir, qemutests.Setup{
		Profile: "lab-debian",
		Files: map[string]string{
			"profiles/lab-debian.yaml": strings.ReplaceAll(qemutests.DebianProfile, "{{KEY}}", line),
			"templates/site/motd":      "bench\n",
		},
		Wads: map[string]string{"debian.tar.zst": file},
	}, signer)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Web.Close(), os.RemoveAll(dir)) }()
	return lab.ReimageOnce(ctx, nil, &qemutests.Disk{Size: 8 * spec.GiB})
}

var shellTotal = regexp.MustCompile(`(?m)^TOTAL ([0-9.]+) s wall`)

// runShell does the same job in shell and returns its seconds.
func runShell(ctx context.Context, baseline, built, file string) (float64, error) {
	out, err := command.Command{
		Args: []string{filepath.Join(baseline, "run.sh"), built}, Env: append(os.Environ(), "WAD="+file, "SSH=0"), Timeout: 30 * time.Minute,
	}.Output(ctx)
	if err != nil {
		return 0, fmt.Errorf("baseline: %w", err)
	}
	m := shellTotal.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("baseline: no line TOTAL in what run.sh says:\n%s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
