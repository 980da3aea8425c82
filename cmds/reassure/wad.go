package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"reassure/image/spec"
	"reassure/image/tree"
	"reassure/image/wad"
)

func (a *app) wadCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "wad",
		Short: "Make wads, and look into them",
		Long: `A wad is a tarball of a whole system. An indexed one, as "wad pack" makes it, is
still an ordinary .tar.zst, which "tar --zstd -xf" unpacks; it has a table of
contents besides, with a digest of every file and of every chunk of the archive.
PCs check each chunk of it before they use it, unpack it with all processors, and
fetch of the next wad only what changed. Plain tarballs go on working, without
these.`,
		Example: `  reassure wad pack /srv/golden -o wads/lab.tar.zst
  reassure wad ls wads/lab.tar.zst`,
	}
	c.AddCommand(a.wadPackCommand(), a.wadBuildCommand(), a.wadCaptureCommand(), a.wadListCommand(), a.wadCatCommand(),
		a.wadInfoCommand(), a.wadVerifyCommand(), a.wadDiffCommand())
	return c
}

func (a *app) wadPackCommand() *cobra.Command {
	var out string
	var what wad.FolderOptions
	var o wad.PackOptions
	var exclude []string
	c := &cobra.Command{
		Use:   "pack FOLDER|TARBALL|- -o FILE",
		Short: "Make an indexed wad of a folder or a tarball",
		Long: `pack makes an indexed wad: of a folder with all that tar holds, numeric owners,
times to the nanosecond, hard links, holes, devices, attributes, ACLs and file
capabilities; of a tarball, plain or compressed by zstd, gzip, xz or bzip2, with
every byte of its archive. "-" is a tarball on standard input.

The same tree gives the same file, byte for byte. FILE appears when it is whole,
and takes the place of what was there; until then its folder needs room for it
twice. Sockets are left out. A file that changes while it is packed is an error:
pack what rests, or capture a PC that runs with "wad capture".

--level is on the scale of the zstd program; 10, the default, is as hard as this
compresses.`,
		Example: `  reassure wad pack /srv/golden -o wads/lab.tar.zst
  reassure wad pack stage3-amd64.tar.xz -o wads/gentoo.tar.zst
  ssh root@pc 'tar --xattrs --acls --numeric-owner --one-file-system -cf - -C / .' | reassure wad pack - -o wads/pc.tar.zst`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				return usageError{errors.New("name the wad's file with -o")}
			}
			for _, p := range exclude {
				if err := wad.CheckPattern(p); err != nil {
					return usageError{fmt.Errorf("wad pack: %w", err)}
				}
			}
			if len(exclude) > 0 {
				what.Skip = func(path string) bool { return wad.Excluded(exclude, "/"+path) }
			}
			if o.Level < 1 || o.Level > 22 {
				return usageError{fmt.Errorf("wad pack: there is no level %d: they go from 1 to 22", o.Level)}
			}
			o.Log = a.log()
			show := a.progress()
			x, err := a.packWad(c.Context(), args[0], out, what, o, show)
			show.done()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%s: %s of %s, %d entries; the index has %s\n", clean(out), spec.Size(x.FileSize()), spec.Size(x.TarSize), x.Members, spec.Size(x.Size))
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&out, "output", "o", "", "the wad's `file`")
	f.IntVar(&o.Level, "level", wad.DefaultLevel, "how hard to compress, `1` to 22")
	f.StringArrayVar(&exclude, "exclude", nil, "of a folder, leave out this absolute `path` in it with all below; *, ? and [abc] match within a name; FOLDER/* keeps the folder; may be given more than once")
	f.BoolVar(&what.OneFileSystem, "one-file-system", false, "of a folder, leave out what other file systems hold that are mounted in it")
	return c
}

// packWad packs a folder, a file or standard input.
func (a *app) packWad(ctx context.Context, from, out string, what wad.FolderOptions, o wad.PackOptions, show *progress) (*wad.Index, error) {
	if from == "-" {
		o.Progress = func(s wad.PackStats) { show.count(s, 0, 0) }
		return wad.Pack(ctx, a.stdin, out, o)
	}
	info, err := os.Stat(from)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		o.Progress = func(s wad.PackStats) { show.count(s, s.Bytes, s.Total) }
		return wad.PackFolder(ctx, from, out, what, o)
	}
	if what.Skip != nil || what.OneFileSystem {
		return nil, usageError{fmt.Errorf("%s is a tarball, and its archive is kept as it is: --exclude and --one-file-system are for folders", from)}
	}
	f, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := &counted{Reader: f}
	o.Progress = func(s wad.PackStats) { show.count(s, spec.Size(in.n.Load()), spec.Size(info.Size())) }
	x, err := wad.Pack(ctx, in, out, o)
	if err != nil {
		err = fmt.Errorf("%s: %w", from, err)
	}
	return x, err
}

// openWad opens a wad to look into it; one without an index takes a while.
func (a *app) openWad(ctx context.Context, file string) (*wad.Contents, error) {
	show := a.progress()
	defer show.done()
	return wad.Open(ctx, file, func(s wad.PackStats) { show.count(s, 0, 0) })
}

func (a *app) wadListCommand() *cobra.Command {
	var long bool
	c := &cobra.Command{
		Use:   "ls FILE [PATH...]",
		Short: "List what a wad holds",
		Long: `ls lists a wad's tree, or what is at and below each PATH of it. Of an indexed wad
only the index is read, of another all of it.

With -l there are, in this order: mode, owner and group by number, size, time, name.
"=" is the first name of the same file; "," a device's numbers. A name with
characters that could steer a terminal is quoted.`,
		Example: `  reassure wad ls -l wads/debian.tar.zst etc/ssh`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := a.openWad(c.Context(), args[0])
			if err != nil {
				return err
			}
			defer w.Close()
			under := args[1:]
			found := make([]bool, len(under))
			out := bufio.NewWriter(a.stdout)
			for m, err := range w.All() {
				if err != nil {
					return err
				}
				show := len(under) == 0
				for i, p := range under {
					if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" || m.Path == p || strings.HasPrefix(m.Path, p+"/") {
						show, found[i] = true, true
					}
				}
				if !show {
					continue
				}
				line := quoted(m.Path)
				if long {
					line = longLine(m)
				}
				if _, err := fmt.Fprintln(out, line); err != nil {
					return err
				}
			}
			if err := out.Flush(); err != nil {
				return err
			}
			if i := slices.Index(found, false); i >= 0 {
				return fmt.Errorf("%s: the wad has no %s", args[0], quoted(under[i]))
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "with mode, owner, size, time and targets")
	return c
}

// quoted is a name as a terminal may be shown it.
func quoted(name string) string {
	if clean(name) == name && strings.ToValidUTF8(name, "") == name {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// longLine describes an entry as ls -l does.
func longLine(m *wad.Member) string {
	size := fmt.Sprint(m.Size)
	switch m.Kind {
	case tree.CharDevice, tree.BlockDevice:
		size = fmt.Sprintf("%d,%d", m.Major, m.Minor)
	case tree.Regular:
	default:
		size = "-"
	}
	when := "-"
	if !m.Implied {
		when = m.ModTime.UTC().Format("2006-01-02T15:04:05.999999999Z")
	}
	line := fmt.Sprintf("%s %5d %5d %11s %-30s %s", modeText(m), m.UID, m.GID, size, when, quoted(m.Path))
	switch {
	case m.Kind == tree.Symlink:
		line += " -> " + quoted(m.Target)
	case m.First != "" && m.First != m.Path:
		line += " = " + quoted(m.First)
	}
	return line
}

// modeText is a mode as ls writes it; a plus is for attributes.
func modeText(m *wad.Member) string {
	text := []byte("?rwxrwxrwx")
	text[0] = map[tree.Kind]byte{tree.Regular: '-', tree.Directory: 'd', tree.Symlink: 'l', tree.CharDevice: 'c', tree.BlockDevice: 'b', tree.FIFO: 'p'}[m.Kind]
	for i := range 9 {
		if m.Mode&(0o400>>i) == 0 {
			text[i+1] = '-'
		}
	}
	for _, special := range []struct {
		bit uint32
		at  int
		set byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		switch {
		case m.Mode&special.bit == 0:
		case text[special.at] == '-':
			text[special.at] = special.set - 'a' + 'A'
		default:
			text[special.at] = special.set
		}
	}
	if len(m.Xattrs) > 0 {
		return string(text) + "+"
	}
	return string(text) + " "
}

func (a *app) wadCatCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cat FILE PATH...",
		Short: "Print files that a wad holds",
		Long: `cat writes the content of files to standard output. Symbolic links are followed as
the new system will follow them. What is printed was checked by its digest if the
wad has an index.`,
		Example: `  reassure wad cat wads/debian.tar.zst etc/os-release`,
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := a.openWad(c.Context(), args[0])
			if err != nil {
				return err
			}
			defer w.Close()
			for _, name := range args[1:] {
				m, err := w.Find(name)
				if err == nil {
					err = w.Copy(c.Context(), a.stdout, m)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
			}
			return nil
		},
	}
}

func (a *app) wadInfoCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "info FILE",
		Short:   "Tell a wad's sizes and what is in it",
		Example: "  reassure wad info wads/debian.tar.zst",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := a.openWad(c.Context(), args[0])
			if err != nil {
				return err
			}
			defer w.Close()
			kinds := map[tree.Kind]int{}
			var content, largest, holes int64
			var newest time.Time
			more, links := 0, 0
			for m, err := range w.All() {
				if err != nil {
					return err
				}
				if m.First != "" && m.First != m.Path {
					links++
					continue
				}
				kinds[m.Kind]++
				content += m.Size
				holes += m.Size - m.Stored()
				largest = max(largest, m.Size)
				if len(m.Xattrs) > 0 {
					more++
				}
				if !m.Implied && m.ModTime.After(newest) {
					newest = m.ModTime
				}
			}
			size := func(n int64) string { return fmt.Sprintf("%s (%d)", spec.Size(n), n) }
			rows := [][]string{
				{"file", size(int64(w.FileSize))},
				{"archive", size(int64(w.TarSize))},
				{"ratio", fmt.Sprintf("%.3f", float64(w.FileSize)/float64(max(w.TarSize, 1)))},
				{"entries", fmt.Sprint(w.Entries)},
			}
			for _, k := range []tree.Kind{tree.Regular, tree.Directory, tree.Symlink, tree.CharDevice, tree.BlockDevice, tree.FIFO} {
				if kinds[k] > 0 {
					rows = append(rows, []string{"  " + plural(k), fmt.Sprint(kinds[k])})
				}
			}
			rows = append(rows,
				[]string{"  more names of files", fmt.Sprint(links)},
				[]string{"  with attributes", fmt.Sprint(more)},
				[]string{"content", size(content)},
				[]string{"  of it holes", size(holes)},
				[]string{"  largest file", size(largest)},
				[]string{"newest entry", newest.UTC().Format(time.RFC3339)},
			)
			if x := w.Index; x != nil {
				bound := x.Bound()
				rows = append(rows,
					[]string{"index", fmt.Sprintf("%s, %.1f bytes an entry", size(x.Size), float64(x.Size)/float64(max(x.Members, 1)))},
					[]string{"  sha256", bound.SHA256.String()},
					[]string{"chunks", fmt.Sprint(x.Chunks)},
					[]string{"pieces of large files", spec.Size(x.PieceSize).String()},
					[]string{"level", fmt.Sprint(x.Level)},
				)
			} else {
				rows = append(rows, []string{"index", "none: \"reassure wad pack\" makes a wad that has one"})
			}
			return a.table(rows)
		},
	}
}

func plural(k tree.Kind) string {
	if k == tree.Directory {
		return "directories"
	}
	return k.String() + "s"
}

func (a *app) wadVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE...",
		Short: "Read wads to their end, and compare the index with the archive",
		Long: `verify reads each wad to its end. Of an indexed one it checks every chunk by its
digest, and that the index says of every entry what the archive holds. Of any
other it checks that it can be unpacked: its digest is in the manifests.`,
		Example: "  reassure wad verify wads/debian.tar.zst",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, file := range args {
				show := a.progress()
				var total spec.Size
				if x, err := wad.OpenIndex(file); err == nil {
					total = spec.Size(x.TarSize)
				}
				x, stats, err := wad.Verify(c.Context(), file, func(s wad.PackStats) { show.count(s, s.Bytes, total) })
				show.done()
				switch {
				case err != nil:
					return err
				case x == nil:
					fmt.Fprintf(a.stdout, "%s: %d entries in %s can be unpacked; it has no index\n", clean(file), stats.Entries, stats.Bytes)
				default:
					fmt.Fprintf(a.stdout, "%s: %d entries in %s, %d chunks: all are as the index says\n", clean(file), stats.Entries, stats.Bytes, x.Chunks)
				}
			}
			return nil
		},
	}
}

func (a *app) wadDiffCommand() *cobra.Command {
	var totals bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Tell what a reimage from one wad to another moves",
		Long: `diff compares the indexes of two wads. Each line is an entry: "+" is only in NEW,
"-" only in OLD, "~" in both, and what differs. The last lines sum up, and say
how much a PC that has OLD fetches to have NEW.`,
		Example: `  reassure wad diff wads/debian-11.tar.zst wads/debian-12.tar.zst --totals`,
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var both [2]*wad.Index
			for i, file := range args {
				x, err := wad.OpenIndex(file)
				if err != nil {
					return err
				}
				both[i] = x
			}
			out := bufio.NewWriter(a.stdout)
			d, err := wad.Diff(both[0], both[1], func(c wad.Change) error {
				if totals {
					return nil
				}
				line := "~ "
				switch {
				case c.Old == nil:
					line = "+ "
				case c.New == nil:
					line = "- "
				}
				line += quoted(c.Path())
				if len(c.What) > 0 {
					line += ": " + clean(strings.Join(c.What, ", "))
				}
				_, err := fmt.Fprintln(out, line)
				return err
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%d added, %d removed, %d changed\n", d.Added, d.Removed, d.Changed)
			fmt.Fprintf(out, "to fetch: %s in %s for %s, and the index, %s; the whole wad has %s\n",
				d.Fetch, count(d.Chunks, "chunk"), count(d.Files, "file"), d.Index, spec.Size(both[1].FileSize()))
			return out.Flush()
		},
	}
	c.Flags().BoolVar(&totals, "totals", false, "only the last lines")
	return c
}
