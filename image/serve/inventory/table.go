package inventory

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"reassure/image/conf"
	"reassure/image/spec"
)

// columns that a table may have, in any order.
var (
	needed = []string{"name", "mac", "ip"}
	more   = []string{"profile", "groups"}
)

// table reads comma- or semicolon-separated values with a header line. Several
// MAC addresses or groups of one host have spaces between them; lines that begin
// with # are comments.
func table(file, text string, o Options) ([]Entry, conf.Errors) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment = '#'
	r.FieldsPerRecord = -1 // spreadsheets leave trailing columns out, or add empty ones
	r.TrimLeadingSpace = true
	r.Comma = delimiter(text)

	var wrong conf.Errors
	fail := func(line int, format string, args ...any) {
		wrong = append(wrong, conf.Error{File: file, Line: line, Text: fmt.Sprintf(format, args...)})
	}
	at := map[string]int{}
	var entries []Entry
	for first := true; ; first = false {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if p := (*csv.ParseError)(nil); errors.As(err, &p) {
			fail(p.Line, "is not a line of a table: %v: put quotes around the whole field, and write a quote in it twice", p.Err)
			break
		} else if err != nil {
			fail(0, "%v", err)
			break
		}
		line, _ := r.FieldPos(0)
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		if first {
			if bad := header(fields, at); bad != "" {
				fail(line, "%s", bad)
				break
			}
			continue
		}
		if !slices.ContainsFunc(fields, func(f string) bool { return f != "" }) {
			continue
		}
		cell := func(column string) string {
			if i, ok := at[column]; ok && i < len(fields) {
				return fields[i]
			}
			return ""
		}
		e := Entry{Host: spec.Host{Name: cell("name"), Profile: cell("profile")}, File: file, Line: line}
		if !o.wants(e.Name) {
			continue
		}
		if len(fields) > len(at) && slices.ContainsFunc(fields[len(at):], func(f string) bool { return f != "" }) {
			fail(line, "has %d fields, and the first line has %d: put quotes around a field that has a %q in it", len(fields), len(at), r.Comma)
			continue
		}
		if e.Name == "" {
			fail(line, "has no name")
			continue
		}
		if e.Profile == "" {
			e.Profile = o.Profile
		}
		e.Groups = list(cell("groups"))
		macs := list(cell("mac"))
		if len(macs) == 0 {
			fail(line, "%s has no MAC address", e.Name)
		}
		for _, m := range macs {
			mac, err := address(m)
			if err != nil {
				fail(line, "%s: %v", e.Name, err)
			}
			e.MACs = append(e.MACs, mac)
		}
		ip, err := choose(list(cell("ip")), o.Network)
		if err != nil {
			fail(line, "%s: ip: %v", e.Name, err)
		}
		e.IP = ip
		entries = append(entries, e)
	}
	return entries, wrong
}

// delimiter is what the first line that is no comment has more of.
func delimiter(text string) rune {
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		best, most := ',', 0
		for _, d := range []rune{',', ';', '\t'} {
			if n := strings.Count(line, string(d)); n > most {
				best, most = d, n
			}
		}
		return best
	}
	return ','
}

// header notes where the columns are, or says what is wrong with the first line.
func header(fields []string, at map[string]int) string {
	for len(fields) > 0 && fields[len(fields)-1] == "" {
		fields = fields[:len(fields)-1]
	}
	known := strings.Join(slices.Concat(needed, more), ", ")
	for i, f := range fields {
		column := strings.ToLower(f)
		if !slices.Contains(needed, column) && !slices.Contains(more, column) {
			return fmt.Sprintf("the first line names the columns, and %q is none of %s", f, known)
		}
		if _, twice := at[column]; twice {
			return fmt.Sprintf("the column %s is there twice", column)
		}
		at[column] = i
	}
	for _, column := range needed {
		if _, ok := at[column]; !ok {
			return fmt.Sprintf("there is no column %s: the first line names them, such as name,mac,ip,profile,groups", column)
		}
	}
	return ""
}

// list cuts a field that holds several things.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t,;|", r) })
}
