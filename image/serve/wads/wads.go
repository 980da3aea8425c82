// Package wads makes wads: of a PC that runs, over SSH ([Capture]), and of
// Debian's packages ([Debian]).
//
// Both stream an archive from an external program and have it packed as it
// comes. The archive's end is withheld until that program has ended well, so that a
// connection that is cut, or a program that fails half-way, is a failure of the
// packing, which then leaves nothing.
package wads

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"reassure/image/command"
)

// Pack makes a wad of an archive, read to its end. Whatever goes wrong, an error
// of the reader included, it leaves nothing half-written.
type Pack func(ctx context.Context, archive io.Reader) error

// stream runs a program and has what it writes packed. lead, if there is one,
// reads what comes before the archive, and returns the archive.
func stream(ctx context.Context, c command.Command, lead func(io.Reader) (io.Reader, error), pack Pack) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	c.Stdout = w
	done := make(chan error, 1)
	go func() {
		err := c.Run(ctx)
		w.CloseWithError(err) // nil is io.EOF
		done <- err
	}()
	archive, err := io.Reader(r), error(nil)
	if lead != nil {
		archive, err = lead(r)
	}
	if err == nil {
		err = pack(ctx, archive)
	}
	if err != nil {
		// Whichever failed first made the other fail.
		cancel(err)
	}
	r.CloseWithError(errors.New("nobody packs it any more"))
	if ran := <-done; ran != nil && (err == nil || errors.Is(err, ran)) {
		return ran
	}
	return err
}

func quiet(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
