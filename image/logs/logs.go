// Package logs tells people what a program does: slog handlers that write one
// plain line for each record (to consoles, to the kernel log, into a ring that
// failure reports are made of), and a [Screen] with banner, phases and
// progress that is as readable on a dumb serial line as on a VGA screen.
//
// Handlers are joined by [slog.NewMultiHandler]. Secrets are the caller's
// duty: what is logged is shown.
package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options say how a [Handler] writes. The zero value works.
type Options struct {
	// Level is the least that is written; nil means [slog.LevelInfo].
	Level slog.Leveler
	// Since, when set, puts the seconds that it returns before each line, as
	// the kernel log has them.
	Since func() time.Duration
	// Prefix, when set, begins each line, before the time.
	Prefix func(slog.Level) string
	// Hide is a secret that no line shows, whoever has it in a message; empty is
	// none.
	Hide string
	// MaxLine cuts longer lines, in bytes with the line end; 0 means never.
	MaxLine int
}

// Handler writes each record as one line: "[  12.345] warning: message
// key=value". A record is one Write, line end included; a record with line
// ends inside is one Write for each of its lines.
type Handler struct {
	out     *lockedWriter
	options Options
	attrs   string // as they are written, with a space before each
	group   string // prefix of keys, with its dot
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewHandler returns a handler that writes to w.
func NewHandler(w io.Writer, options Options) *Handler {
	return &Handler{out: &lockedWriter{w: w}, options: options}
}

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool {
	least := slog.LevelInfo
	if h.options.Level != nil {
		least = h.options.Level.Level()
	}
	return level >= least
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	var text strings.Builder
	switch {
	case r.Level >= slog.LevelError:
		text.WriteString("error: ")
	case r.Level >= slog.LevelWarn:
		text.WriteString("warning: ")
	}
	text.WriteString(strings.TrimRight(r.Message, "\n"))
	text.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&text, h.group, a)
		return true
	})
	shown := Hide(text.String(), h.options.Hide)
	head := ""
	if h.options.Prefix != nil {
		head = h.options.Prefix(r.Level)
	}
	if h.options.Since != nil {
		head += fmt.Sprintf("[%9.3f] ", h.options.Since().Seconds())
	}
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	for line := range strings.SplitSeq(shown, "\n") {
		if _, err := h.out.w.Write(cut(head+printable(line), h.options.MaxLine)); err != nil {
			return err
		}
	}
	return nil
}

// Hide returns s without the secret; an empty one is in nothing.
func Hide(s, secret string) string {
	if secret == "" {
		return s
	}
	return strings.ReplaceAll(s, secret, "(hidden)")
}

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var text strings.Builder
	for _, a := range attrs {
		appendAttr(&text, h.group, a)
	}
	copied := *h
	copied.attrs += text.String()
	return &copied
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	copied := *h
	copied.group += name + "."
	return &copied
}

func appendAttr(text *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range v.Group() {
			appendAttr(text, group, member)
		}
		return
	}
	s := v.String()
	if s == "" || strings.ContainsAny(s, " \"=\n\t") {
		s = strconv.Quote(s)
	}
	text.WriteString(" " + group + a.Key + "=" + s)
}

// printable replaces what could steer a terminal: text from a server or a
// program must not.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// cut ends a line, which has at most limit bytes then.
func cut(line string, limit int) []byte {
	if limit > 0 && len(line)+1 > limit {
		const mark = "..."
		end := max(0, limit-1-len(mark))
		for end > 0 && !utf8.RuneStart(line[end]) {
			end--
		}
		line = line[:end] + mark
	}
	return append([]byte(line), '\n')
}

// kmsgLine is the most that one write to /dev/kmsg may hold for the record to
// stay whole on consoles: LOG_LINE_MAX in kernel/printk/printk.c, 1024 less
// the room for its own prefix.
const kmsgLine = 976

// NewKmsg returns a handler for w, which is /dev/kmsg opened for writing. Each
// line is a record of its own, with "reassure: " before its text.
//
// No record is more severe than "notice": u-root's init has the kernel print
// what is more severe on the consoles, where these lines are already.
func NewKmsg(w io.Writer, level slog.Leveler, hide string) *Handler {
	return NewHandler(w, Options{Level: level, Hide: hide, MaxLine: kmsgLine, Prefix: func(l slog.Level) string {
		// Facility 1 is LOG_USER; the kernel refuses its own, 0.
		severity := 6
		switch {
		case l >= slog.LevelWarn:
			severity = 5
		case l < slog.LevelInfo:
			severity = 7
		}
		return fmt.Sprintf("<%d>reassure: ", 1<<3|severity)
	}})
}

// Ring keeps the last lines written to it. It is safe for concurrent use.
type Ring struct {
	mu    sync.Mutex
	lines []string // oldest at next, once full
	next  int
	size  int
	fresh int    // lines that Take has not returned
	part  []byte // an unfinished line
}

// NewRing returns a ring of the last n lines, at least one.
func NewRing(n int) *Ring { return &Ring{size: max(1, n)} }

// Write implements [io.Writer]; it never fails.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.part = append(r.part, p...)
	for {
		line, rest, ended := bytes.Cut(r.part, []byte("\n"))
		if !ended {
			return len(p), nil
		}
		r.part = append([]byte(nil), rest...)
		r.fresh++
		if len(r.lines) < r.size {
			r.lines = append(r.lines, string(line))
			continue
		}
		r.lines[r.next] = string(line)
		r.next = (r.next + 1) % r.size
	}
}

// Take returns the lines that it has not returned yet, the oldest first. Those that
// the ring no longer holds are one line that counts them.
func (r *Ring) Take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.kept()
	fresh, lost := r.fresh, max(0, r.fresh-len(all))
	r.fresh = 0
	if lost > 0 {
		return append([]string{fmt.Sprintf("(%d lines left out)", lost)}, all...)
	}
	return all[len(all)-fresh:]
}

// Lines returns the lines that are kept, the oldest first.
func (r *Ring) Lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept()
}

func (r *Ring) kept() []string {
	return append(append([]string(nil), r.lines[r.next:]...), r.lines[:r.next]...)
}
