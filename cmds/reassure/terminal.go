package main

import (
	"cmp"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"reassure/image/serve/api"
)

// terminal returns the terminal that v is, or nil.
func terminal(v any) *os.File {
	f, ok := v.(*os.File)
	if !ok {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return f
}

// look is how a table is to look. The zero value is for a file.
type look struct {
	width, height int // of the terminal; 0 is without end
	unicode       bool
	colour        bool
}

// look finds out what the output can show; it may change while a program runs.
func (a *app) look() look {
	locale := strings.ToLower(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))) // in the order of POSIX 8.2
	l := look{unicode: strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")}
	f := terminal(a.stdout)
	if f == nil {
		return l
	}
	l.width, l.height = 80, 24
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		l.width, l.height = int(size.Col), int(size.Row)
	}
	// https://no-color.org: set to anything but the empty text.
	l.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return l
}

// colours of states: SGR parameters of ECMA-48. Each state is also a word, for
// those who do not see colours.
func colour(s api.State) string {
	switch s {
	case api.Parked:
		return "1;31"
	case api.Retrying, api.Held:
		return "33"
	case api.Running:
		return "36"
	case api.Armed, api.Changed:
		return "35"
	case api.Current:
		return "32"
	}
	return ""
}

func (l look) paint(s, sgr string) string {
	if !l.colour || sgr == "" {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}

// clip cuts a line at the terminal's edge, where used columns are taken already.
func (l look) clip(s string, used int) string {
	if l.width == 0 || used+utf8.RuneCountInString(s) <= l.width {
		return s
	}
	dots := "..."
	if l.unicode {
		dots = "…"
	}
	room := max(l.width-used-utf8.RuneCountInString(dots), 0)
	return string([]rune(s)[:room]) + dots
}

// bar draws how much of a whole is done.
func (l look) bar(share float64, width int) string {
	share = min(max(share, 0), 1)
	if !l.unicode {
		full := int(share * float64(width))
		return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
	}
	eighths := int(share * float64(width) * 8)
	s := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return "▕" + s + strings.Repeat(" ", width-utf8.RuneCountInString(s)) + "▏"
}

// pad fills a column.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-utf8.RuneCountInString(s), 0))
}
