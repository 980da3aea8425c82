package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
	"reassure/image/wad"
	qemutests "reassure/qemu-tests"
)

// others does with what else people use what a reimage does: a dirty PC is repaired by
// rsync and by casync, and a blank one laid down by partclone, each through the same
// slow link.
func (b *bench) others(ctx context.Context) (err error) {
	source, err := (&qemutests.Programs{Tree: b.tree, Dir: b.dir}).Wad(ctx, "debian", "debian.tar.zst")
	if err != nil {
		return err
	}
	folder := filepath.Join(b.dir, "others")
	tree, indexed, image := filepath.Join(folder, "tree"), filepath.Join(folder, "debian.tar.zst"), filepath.Join(folder, "image.zst")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	tarball := filepath.Join(folder, "tree.tar")
	if err := shell(ctx, `zstd -dcq "$1" >"$2"; tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C "$3" -f "$2"`, source, tarball, tree); err != nil {
		return err
	}
	plain, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer plain.Close()
	if _, err := wad.Pack(ctx, plain, indexed, wad.PackOptions{}); err != nil {
		return err
	}
	l, err := newLink(ctx, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	const size = 4 * spec.GiB

	// Their servers' side.
	if err := shell(ctx, `casync make --store="$1/casync.castr" "$1/casync.caidx" "$2" >/dev/null`, folder, tree); err != nil {
		return err
	}
	err = b.onDevice(ctx, folder, size, func(device string) error {
		root := filepath.Join(folder, "golden")
		return shell(ctx, `mkfs.ext4 -q "$1"; mkdir "$2"; mount "$1" "$2"; cp -a "$3/." "$2"; umount "$2"; partclone.ext4 -c -L /dev/null -s "$1" -o - 2>/dev/null | zstd -q -T0 "-$4" >"$5"`,
			device, root, tree, fmt.Sprint(wad.DefaultLevel), image)
	})
	if err != nil {
		return err
	}
	conf := filepath.Join(folder, "rsyncd.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "use chroot = no\nuid = root\ngid = root\n[tree]\npath = %s\n", tree), 0o600); err != nil {
		return err
	}
	daemon, err := l.segment.Start(ctx, folder, nil, "rsync", "--daemon", "--no-detach", "--config", conf, "--address", qemutests.SegmentServer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Kill()) }()

	// pc runs a line of shell on the PC, and returns how long that took.
	pc := func(root, line string, args ...string) (float64, error) {
		return timed(root, func() error {
			return command.Command{Args: l.pc.Args(append([]string{"bash", "-euo", "pipefail", "-c", line, "bash"}, args...)...), Timeout: time.Hour}.Run(ctx)
		})
	}
	// messed gives do a PC that somebody has worked with, the same one every time.
	messed := func(do func(root string) error) error {
		return b.onDisk(ctx, size, func(root string) error {
			err := errors.Join(l.shape(ctx, ""), l.install(ctx, indexed, root))
			if err == nil {
				err = mess(root, rand.New(rand.NewPCG(2, 2)))
			}
			if err == nil {
				err = l.shape(ctx, share)
			}
			if err != nil {
				return err
			}
			return do(root)
		})
	}
	const url = "http://" + qemutests.SegmentServer + "/"
	var vsRsync, vsCasync, vsPartclone []float64
	for range min(b.runs, 3) {
		var ours, rsync, casync, full, partclone float64
		for _, m := range []struct {
			took *float64
			run  func(root string) (float64, error)
		}{
			{&ours, func(root string) (float64, error) {
				return timed(root, func() error { _, err := l.mend(ctx, indexed, root); return err })
			}},
			{&rsync, func(root string) (float64, error) {
				return pc(root, `rsync -aHAXx --numeric-ids --checksum --delete "rsync://$1/tree/" "$2/"`, qemutests.SegmentServer, root)
			}},
			{&casync, func(root string) (float64, error) {
				// In the place of what is there it ends with "Stale file handle".
				beside := filepath.Join(folder, "beside")
				took, err := pc(folder, `casync extract --seed="$2" --store="$1casync.castr" "$1casync.caidx" "$3" >/dev/null`, url, root, beside)
				return took, errors.Join(err, os.RemoveAll(beside))
			}},
		} {
			err := messed(func(root string) (err error) {
				*m.took, err = m.run(root)
				return err
			})
			if err != nil {
				return err
			}
		}
		err := b.onDisk(ctx, size, func(root string) (err error) {
			full, err = timed(root, func() error { return l.install(ctx, indexed, root) })
			return err
		})
		if err != nil {
			return err
		}
		err = b.onDevice(ctx, folder, size, func(device string) (err error) {
			partclone, err = pc(folder, `curl -fsS "$1image.zst" | zstd -dcq | partclone.ext4 -r -q -L /dev/null -s - -o "$2" 2>/dev/null; sync "$2"`, url, device)
			return err
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "  dirty: ours %.2f s, rsync %.2f s, casync %.2f s; full: ours %.2f s, partclone %.2f s\n", ours, rsync, casync, full, partclone)
		vsRsync, vsCasync, vsPartclone = append(vsRsync, ours/rsync), append(vsCasync, ours/casync), append(vsPartclone, full/partclone)
	}
	const dirty = "the repair of 1,000 changed, 500 added and 500 deleted files through " + share + ", against "
	b.note("dirty.vs_rsync", "ratio", dirty+"rsync -aHAXx --numeric-ids --checksum --delete", vsRsync)
	b.note("dirty.vs_casync", "ratio", dirty+"casync extract --seed=TREE into a folder beside it", vsCasync)
	b.note("install.vs_partclone", "ratio", "a full install through "+share+fmt.Sprintf(", against curl | zstd -dc | partclone.ext4 -r of an image packed with zstd -%d", wad.DefaultLevel), vsPartclone)
	return nil
}
