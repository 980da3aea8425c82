package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"reassure/image/command"
	"reassure/image/tree"
)

// madeAnew are the files that hold what is another after each reimage: identities of
// file systems, keys, and when it was.
var madeAnew = regexp.MustCompile(`^(etc/fstab|etc/ssh/ssh_host_.*|etc/reassure/.*|boot/grub/(grub.cfg|grubenv|i386-pc/(core.img|load.cfg)))$`)

// compare says in what a disk's boot code and root differ from a golden disk's, as the
// kernel would find them: with the journal replayed. Neither is changed. What each reimage
// makes anew counts only where own is false.
func (s *stage) compare(ctx context.Context, golden, disk string, own bool) (differs, err error) {
	// The boot sector and GRUB's core, up to the first partition.
	want, err := head(golden, int64(s.root.Start))
	if err != nil {
		return nil, err
	}
	got, err := head(disk, int64(s.root.Start))
	if err != nil {
		return nil, err
	}
	if !own && !bytes.Equal(want, got) {
		return errors.New("boot sector, table or GRUB's core differ"), nil
	}
	dir, err := os.MkdirTemp(s.programs.Dir, "compare")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var folders []string
	for i, from := range []string{golden, disk} {
		image, folder := filepath.Join(dir, fmt.Sprint("disk", i)), filepath.Join(dir, fmt.Sprint("root", i))
		if err := (command.Command{Args: []string{"cp", "--sparse=always", from, image}, Timeout: 10 * time.Minute}).Run(ctx); err != nil {
			return nil, err
		}
		if err := os.Mkdir(folder, 0o755); err != nil {
			return nil, err
		}
		options := fmt.Sprintf("loop,offset=%d,sizelimit=%d", s.root.Start, s.root.Length)
		if err := (command.Command{Args: []string{"mount", "-o", options, image, folder}, Timeout: time.Minute}).Run(ctx); err != nil {
			return fmt.Errorf("its root cannot be mounted: %w", err), nil
		}
		defer func() {
			err = errors.Join(err, command.Command{Args: []string{"umount", folder}, Timeout: time.Minute}.Run(context.WithoutCancel(ctx)))
		}()
		folders = append(folders, folder)
	}
	list, err := tree.Compare(folders[0], folders[1])
	if own {
		list = slices.DeleteFunc(list, func(d tree.Difference) bool { return d.What == "time" || madeAnew.MatchString(d.Path) })
	}
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return fmt.Errorf("%d differences, the first: %v", len(list), list[0]), nil
}

func head(file string, size int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, size))
}
