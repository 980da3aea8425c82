package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

func (a *app) acceptDiskCommand() *cobra.Command {
	var yes bool
	var why, size string
	var id spec.DiskID
	c := &cobra.Command{
		Use:   "accept-disk HOST|@GROUP|PATTERN...",
		Short: "Say that PCs' disks are theirs, and what is on them may be lost",
		Long: `accept-disk shows, in one table, on which disk each of the hosts is to be
reimaged and what would be lost there, asks, and has the boot server remember the
disks. A PC whose disk is not blank and carries no system of ours, or has been
replaced, is parked until then.

What belongs to a RAID, LVM, ZFS, LUKS and the like is refused all the same, until
the profile says overwrite: foreign.

For a site without a boot server, name one host and its disk, as the PC's console
does: it is written into accepted.yaml in the site's folder, and publish puts it
into the host's manifest.`,
		Example: `  reassure accept-disk @lab2
  reassure accept-disk exp01 --serial S3Z8NB0K && reassure publish --out /srv/www/reassure`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeHosts,
		RunE: func(c *cobra.Command, targets []string) error {
			if size != "" {
				if err := id.Size.UnmarshalText([]byte(size)); err != nil {
					return usageError{fmt.Errorf("accept-disk: --size: %w", err)}
				}
			}
			if !id.IsZero() {
				if len(targets) != 1 {
					return usageError{errors.New("accept-disk: a disk is one host's: name one host with it")}
				}
				return a.acceptInFile(targets[0], id)
			}
			return a.acceptDisks(c.Context(), targets, why, yes)
		},
	}
	f := c.Flags()
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.StringVar(&why, "why", "", "the reason, for those who look")
	f.StringVar(&id.Serial, "serial", "", "without a boot server: the disk's `serial`")
	f.StringVar(&id.WWN, "wwn", "", "the same for its `WWN`, where it has no serial")
	f.StringVar(&id.Model, "model", "", "the same for its `model`")
	f.StringVar(&size, "size", "", "the same for its `size`, where it has neither serial nor WWN")
	return c
}

// acceptDisks shows what would be lost where, and has the server remember the disks.
func (a *app) acceptDisks(ctx context.Context, targets []string, why string, yes bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	hosts, err := a.pick(ctx, client, targets)
	if err != nil {
		return err
	}
	rows := [][]string{{"HOST", "DISK", "SIZE", "MODEL", "SERIAL", "WOULD BE LOST"}}
	disks := map[string]spec.DiskID{}
	var silent []string
	for _, h := range hosts {
		d, err := client.Host(ctx, h.Name)
		if err != nil {
			return a.refused(err)
		}
		if d.Target == nil {
			silent = append(silent, clean(h.Name))
			continue
		}
		disks[h.Name] = d.Target.Identity()
		rows = append(rows, []string{clean(h.Name), dash(d.Target.Device), d.Target.Size.String(), dash(d.Target.Model),
			dash(cmp.Or(d.Target.Serial, d.Target.WWN)), clean(d.Lost())})
	}
	if len(disks) > 0 {
		if err := a.table(rows); err != nil {
			return err
		}
	}
	if len(silent) > 0 {
		fmt.Fprintf(a.stdout, "not known yet, for they have not told which disk is theirs (they do when they are told Remote): %s\n", strings.Join(silent, " "))
	}
	if len(disks) == 0 {
		return errors.New("there is no disk to accept")
	}
	if !yes && terminal(a.stdin) != nil {
		if err := a.sure(ctx, fmt.Sprintf("All of this may be lost on %s. Go on? [y/N] ", count(len(disks), "disk"))); err != nil {
			return err
		}
	}
	outcomes, err := client.Accept(ctx, api.AcceptRequest{Disks: disks, Why: why})
	if err != nil {
		return a.refused(err)
	}
	for _, o := range outcomes {
		fmt.Fprintf(a.stdout, "%s: %s\n", clean(o.Host), clean(o.Text))
	}
	return nil
}

// acceptInFile notes a disk in the site's folder.
func (a *app) acceptInFile(name string, id spec.DiskID) error {
	site, err := resolve.Load(a.site)
	if err != nil {
		return err
	}
	host, err := site.Host(name)
	if err != nil {
		return err
	}
	file := filepath.Join(a.site, spec.AcceptedFile)
	all := site.Accepted
	if slices.ContainsFunc(all.Disks, func(d spec.AcceptedDisk) bool { return d.Host == host.Name && d.ID() == id }) {
		fmt.Fprintf(a.stdout, "%s: %v is in %s already\n", host.Name, id, file)
		return nil
	}
	all.Disks = append(all.Disks, spec.AcceptedDisk{Host: host.Name, Serial: id.Serial, WWN: id.WWN, Model: id.Model, Size: id.Size})
	if err := all.Validate().Err(); err != nil {
		return fmt.Errorf("accept-disk: %w", err)
	}
	text := acceptedText(all)
	if was, err := os.ReadFile(file); err == nil {
		// What people have written there besides stays.
		if text, err = acceptedLine(was, all.Disks[len(all.Disks)-1]); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("accept-disk: %w", err)
	}
	if err := renameio.WriteFile(file, text, 0o644); err != nil {
		return fmt.Errorf("accept-disk: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s: %v is in %s: publish puts it into the manifest\n", host.Name, id, file)
	return nil
}

const acceptedHead = `# What people have accepted: "reassure accept-disk HOST --serial SERIAL" adds to it.
# disks: what is on these may be lost. stamps: serials on hosts' disks that may be
# replaced though they are above those that are published: {host: exp01, serial: 1790000000}.
disks:
`

func acceptedText(all spec.Accepted) []byte {
	text := []byte(acceptedHead)
	for _, d := range all.Disks {
		text = append(text, acceptedItem(d)...)
	}
	return text
}

// acceptedLine puts a disk first into the list that a file has.
func acceptedLine(was []byte, d spec.AcceptedDisk) ([]byte, error) {
	const list = "disks:\n"
	at := bytes.Index(was, []byte("\n"+list))
	switch {
	case bytes.HasPrefix(was, []byte(list)):
		at = len(list)
	case at >= 0:
		at += 1 + len(list)
	default:
		return nil, fmt.Errorf("it has no line that reads disks: alone, so that nothing can be added: write into it\ndisks:\n%s", acceptedItem(d))
	}
	return slices.Concat(was[:at], []byte(acceptedItem(d)), was[at:]), nil
}

// acceptedItem is one disk as the file has it: its strings are JSON's, which are YAML's.
func acceptedItem(d spec.AcceptedDisk) string {
	fields := map[string]any{"host": d.Host}
	for key, value := range map[string]string{"serial": d.Serial, "wwn": d.WWN, "model": d.Model} {
		if value != "" {
			fields[key] = value
		}
	}
	if d.Size != 0 {
		fields["size"] = uint64(d.Size)
	}
	var words []string
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		value, err := json.Marshal(fields[key])
		if err != nil {
			panic("accepted.yaml: " + err.Error()) // strings and numbers always can
		}
		words = append(words, key+": "+string(value))
	}
	return "  - {" + strings.Join(words, ", ") + "}\n"
}
