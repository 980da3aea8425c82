// Package fsck says whether an ext4 file system that users have had root on can
// be mounted and believed: it is one that we made, and e2fsck finds nothing
// wrong with it.
//
// A crafted file system can crash the kernel that mounts it, or show other
// files than another kernel sees. e2fsck is Debian's own, linked statically; an
// image has it with the bundle e2fsck.
package fsck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"reassure/image/command"
	"reassure/image/reimage/mkfs"
)

// Program is where e2fsck is in an image.
const Program = "/usr/sbin/e2fsck.static"

// Available says, by an error, that this image has no e2fsck.
func Available() error { return available(Program) }

func available(program string) error {
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("this image has no e2fsck: write \"bundles: [e2fsck]\" in the image configuration and build it again (%w)", err)
	}
	return nil
}

// Damaged is a file system that is not to be mounted.
type Damaged struct {
	Device string
	Why    string // e2fsck's own words, or ours
}

func (d *Damaged) Error() string {
	return fmt.Sprintf("the file system on %s is damaged: %s", d.Device, d.Why)
}

// Options for [Check].
type Options struct {
	// Made is what the file system was made with. SectorSize and Time do not matter.
	Made mkfs.Options
	// Program is e2fsck's; empty means [Program].
	Program string
	// Limit is for each of its two runs; 0 means half an hour, which is more than a
	// check takes on a disk that is not about to fail.
	Limit time.Duration
	Log   *slog.Logger // nil means silence
}

// Check has e2fsck finish what the last mount left undone (replay the journal,
// release files that were deleted while open), which writes, and then check all of
// it, which does not. A *[Damaged] is about the file system.
func Check(ctx context.Context, device string, o Options) error {
	if o.Program == "" {
		o.Program = Program
	}
	if o.Limit == 0 {
		o.Limit = 30 * time.Minute
	}
	now, err := judge(device, o.Made)
	if err != nil {
		return err
	}
	// A time in the future counts as damage, and the PC's clock may be wrong.
	env := []string{"E2FSCK_TIME=" + fmt.Sprint(now), "PATH=/nonexistent", "LC_ALL=C"}
	for _, args := range [][]string{
		// Only that: without -f a file system that is not marked as having errors
		// gets no other check.
		{o.Program, "-p", device},
		{o.Program, "-f", "-n", device},
	} {
		var said bytes.Buffer
		err := command.Command{Args: args, Env: env, Stdout: &said, Stderr: &said, Timeout: o.Limit, Log: o.Log}.Run(ctx)
		var exit interface {
			error
			ExitCode() int
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case errors.As(err, &exit) && exit.ExitCode() == 1 && args[1] == "-p": // e2fsck(8): corrected
		case errors.As(err, &exit), errors.Is(err, context.DeadlineExceeded):
			return &Damaged{device, words(said.String(), err)}
		default:
			return err
		}
	}
	return nil
}

// judge looks at the superblock, and returns a time that is not before any in it.
func judge(device string, made mkfs.Options) (now int64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if err := mkfs.Ext4Same(f, size, made); err != nil {
		return 0, &Damaged{device, err.Error()}
	}
	latest, noted, err := mkfs.Ext4Times(f)
	if err != nil {
		return 0, &Damaged{device, err.Error()}
	}
	if noted {
		return 0, &Damaged{device, "the kernel has noted errors in it"}
	}
	return max(time.Now().Unix(), latest+1), nil
}

// words is what e2fsck said, without what it says always; at most a few lines.
func words(said string, err error) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Pass ") || strings.HasPrefix(line, "e2fsck ") || strings.Contains(line, "WARNING: Filesystem still has errors") {
			continue
		}
		lines = append(lines, line)
		if len(lines) == 5 {
			break
		}
	}
	if len(lines) == 0 {
		return err.Error()
	}
	return "e2fsck: " + strings.Join(lines, "; ")
}
