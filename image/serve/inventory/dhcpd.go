package inventory

import (
	"fmt"
	"strings"

	"reassure/image/conf"
	"reassure/image/spec"
)

// word is one word of dhcpd.conf(5).
type word struct {
	text   string
	line   int
	quoted bool
}

// is says whether w is that keyword or sign; those are never quoted.
func (w word) is(s string) bool { return !w.quoted && strings.EqualFold(w.text, s) }

// words cuts a configuration into words: signs of one letter each, text between
// double quotes with backslashes, and whatever spaces part; "#" begins a comment.
func words(file, text string) ([]word, *conf.Error) {
	var all []word
	line := 1
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\n':
			line++
			i++
		case c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v':
			i++
		case c == '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '"':
			start := line
			var b strings.Builder
			for i++; ; i++ {
				if i >= len(text) || text[i] == '\n' {
					return nil, &conf.Error{File: file, Line: start, Text: `a text begins with " and does not end in its line: close it`}
				}
				if text[i] == '"' {
					break
				}
				if text[i] == '\\' && i+1 < len(text) && text[i+1] != '\n' {
					i++
				}
				b.WriteByte(text[i])
			}
			i++
			all = append(all, word{b.String(), start, true})
		case strings.IndexByte("{};,()=", c) >= 0:
			all = append(all, word{text[i : i+1], line, false})
			i++
		default:
			start := i
			for i < len(text) && strings.IndexByte(" \t\r\n\f\v#\"{};,()=", text[i]) < 0 {
				i++
			}
			all = append(all, word{text[start:i], line, false})
		}
	}
	return all, nil
}

// block is a pair of braces and what stands before them.
type block struct {
	head []word
	line int
	host *declared // of a host block
}

// declared is what a host block says.
type declared struct {
	label     string
	name      string // option host-name
	cards     []string
	addresses []string
	fixed     int // the line of fixed-address
	line      int
	groups    []string
	wrong     []conf.Error
}

// dhcpd reads the host blocks of a configuration of ISC dhcpd, wherever they
// stand: in groups, subnets, shared networks, pools. All else is passed over.
func dhcpd(file, text string, o Options) ([]Entry, conf.Errors) {
	all, bad := words(file, text)
	if bad != nil {
		return nil, conf.Errors{*bad}
	}
	var wrong conf.Errors
	fail := func(line int, format string, args ...any) {
		wrong = append(wrong, conf.Error{File: file, Line: line, Text: fmt.Sprintf(format, args...)})
	}
	var open []block
	var hosts []*declared
	var statement []word
	for _, w := range all {
		switch {
		case w.is("{"):
			b := block{head: statement, line: w.line}
			if len(statement) > 0 {
				b.line = statement[0].line
			}
			if len(statement) > 0 && statement[0].is("host") {
				b.host = &declared{line: b.line}
				if len(statement) == 2 {
					b.host.label = statement[1].text
				} else {
					fail(b.line, "host: write one name before the {")
				}
				for _, around := range open {
					if len(around.head) == 2 && around.head[0].is("group") {
						b.host.groups = append(b.host.groups, strings.ToLower(around.head[1].text))
					}
				}
				hosts = append(hosts, b.host)
			}
			open = append(open, b)
			statement = nil
		case w.is("}"):
			if len(statement) > 0 {
				fail(statement[0].line, "%s: end it with a semicolon", statement[0].text)
				if len(open) > 0 && open[len(open)-1].host != nil {
					open[len(open)-1].host.take(file, statement)
				}
				statement = nil
			}
			if len(open) == 0 {
				fail(w.line, "this } closes nothing: remove it")
				continue
			}
			open = open[:len(open)-1]
		case w.is(";"):
			if len(statement) > 0 {
				if statement[0].is("include") {
					fail(statement[0].line, "include %q is not followed: take the line out of a copy, import that, and then the other file by itself", join(statement[1:]))
				}
				if len(open) > 0 && open[len(open)-1].host != nil {
					open[len(open)-1].host.take(file, statement)
				}
			}
			statement = nil
		default:
			statement = append(statement, w)
		}
	}
	if len(statement) > 0 {
		fail(statement[0].line, "%s: end it with a semicolon", statement[0].text)
	}
	for _, b := range open {
		fail(b.line, "the { after %q is never closed: write its }", join(b.head))
	}
	var entries []Entry
	for _, h := range hosts {
		name := h.name
		if name == "" {
			// The label need not be a host name; often it is a full one.
			name, _, _ = strings.Cut(h.label, ".")
		}
		if !o.wants(name) {
			continue
		}
		e, bad := h.entry(file, name, o)
		wrong = append(wrong, bad...)
		entries = append(entries, e)
	}
	return merge(entries), wrong
}

// take notes one statement of a host block.
func (h *declared) take(file string, s []word) {
	fail := func(format string, args ...any) {
		h.wrong = append(h.wrong, conf.Error{File: file, Line: s[0].line, Text: fmt.Sprintf("host %s: ", h.label) + fmt.Sprintf(format, args...)})
	}
	// A semicolon that is missing makes one statement of two lines.
	whole := func(most int) bool {
		if len(s) > most {
			fail("%s: is a semicolon missing after it?", s[0].text)
		}
		return len(s) <= most
	}
	switch {
	case s[0].is("hardware"):
		if !whole(3) {
			return
		}
		if len(s) < 3 || !s[1].is("ethernet") {
			fail("%s: PCs boot over Ethernet only: write hardware ethernet and the MAC address", join(s))
			return
		}
		h.cards = append(h.cards, s[2].text)
	case s[0].is("fixed-address"):
		h.fixed = s[0].line
		for i, w := range s[1:] {
			if comma := i%2 == 1; comma != w.is(",") {
				fail("fixed-address: write addresses with commas between them, and a semicolon after the last")
				return
			}
			if !w.is(",") {
				h.addresses = append(h.addresses, w.text)
			}
		}
	case s[0].is("option") && len(s) > 1 && s[1].is("host-name"):
		if whole(3) && len(s) == 3 && s[2].quoted {
			h.name, _, _ = strings.Cut(s[2].text, ".")
		}
	}
}

func (h *declared) entry(file, name string, o Options) (Entry, []conf.Error) {
	e := Entry{Host: spec.Host{Name: name, Profile: o.Profile, Groups: h.groups}, File: file, Line: h.line}
	wrong := h.wrong
	fail := func(line int, format string, args ...any) {
		wrong = append(wrong, conf.Error{File: file, Line: line, Text: fmt.Sprintf("host %s: ", h.label) + fmt.Sprintf(format, args...)})
	}
	for _, c := range h.cards {
		mac, err := address(c)
		if err != nil {
			fail(h.line, "%v", err)
		}
		e.MACs = append(e.MACs, mac)
	}
	if len(h.wrong) > 0 {
		return e, wrong // what is missing may be in the line that was not understood
	}
	if len(h.cards) == 0 {
		fail(h.line, "has no hardware ethernet: write its MAC address, or leave the host out with --only")
	}
	if h.fixed == 0 {
		fail(h.line, "has no fixed-address: write one, or leave the host out with --only")
		return e, wrong
	}
	ip, err := choose(h.addresses, o.Network)
	if err != nil {
		fail(h.fixed, "fixed-address: %v", err)
	}
	e.IP = ip
	return e, wrong
}

func join(s []word) string {
	texts := make([]string, len(s))
	for i, w := range s {
		texts[i] = w.text
	}
	return strings.Join(texts, " ")
}
