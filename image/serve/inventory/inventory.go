// Package inventory takes over hosts that a lab has written down already, in
// ISC dhcpd's configuration or in a table, and writes them into the inventory,
// site.yaml, as a person would: between the lines that are there, which keep
// their order and their comments.
package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"reassure/image/conf"
	"reassure/image/spec"
)

// Entry is a host that was read, and where.
type Entry struct {
	spec.Host
	File string
	Line int // 0 for one that is from no file
}

// Options say how hosts are taken over. The zero value takes all, and leaves
// the profile empty where the file names none.
type Options struct {
	// Profile is what a host gets whose line names none.
	Profile string
	// Network picks among several addresses of one host.
	Network netip.Prefix
	// Wanted, where set, says by its name whether a host is meant; mistakes of
	// others do not matter.
	Wanted func(name string) bool
}

func (o Options) wants(name string) bool { return o.Wanted == nil || o.Wanted(name) }

// maxBytes is more than any lab's file has.
const maxBytes = 8 << 20

// Parse reads hosts from a file: a table when its name ends in .csv, else ISC
// dhcpd's configuration. The error is a [conf.Errors] with every mistake.
func Parse(file string, data []byte, o Options) ([]Entry, error) {
	if len(data) > maxBytes {
		return nil, conf.Errors{{File: file, Text: fmt.Sprintf("has %d bytes, more than the %d allowed: is it the right file?", len(data), maxBytes)}}
	}
	text := strings.TrimPrefix(string(data), "\uFEFF")
	read := dhcpd
	if strings.HasSuffix(strings.ToLower(file), ".csv") {
		read = table
	}
	entries, wrong := read(file, text, o)
	if len(wrong) > 0 {
		slices.SortStableFunc(wrong, func(a, b conf.Error) int { return a.Line - b.Line })
		return nil, wrong
	}
	if len(entries) == 0 {
		return nil, conf.Errors{{File: file, Text: "has no hosts in it: is it the right file?"}}
	}
	return entries, nil
}

// Check judges entries beside the hosts that an inventory has already. The
// error is a [conf.Errors] that names the places that the entries came from.
func Check(inv *spec.Inventory, entries []Entry) error {
	all := spec.Inventory{Site: inv.Site, Hosts: slices.Clone(inv.Hosts)}
	for _, e := range entries {
		all.Hosts = append(all.Hosts, e.Host)
	}
	var wrong conf.Errors
	for _, p := range all.Validate() {
		m := hostPath.FindStringSubmatch(p.Path)
		if m == nil {
			continue // a mistake of the inventory's own
		}
		i, err := strconv.Atoi(m[1])
		if err != nil || i < len(inv.Hosts) {
			continue
		}
		e := entries[i-len(inv.Hosts)]
		text := p.Text
		// What is an item of a list to who wrote the inventory is a name to others.
		if t := takenBy.FindStringSubmatch(text); t != nil {
			if before, err := strconv.Atoi(t[2]); err == nil && before >= 1 && before <= len(all.Hosts) {
				text = t[1] + "by the host " + all.Hosts[before-1].Name
				if before > len(inv.Hosts) && entries[before-1-len(inv.Hosts)].Line > 0 {
					text += fmt.Sprintf(" in line %d", entries[before-1-len(inv.Hosts)].Line)
				}
			}
		}
		wrong = append(wrong, conf.Error{File: e.File, Line: e.Line, Path: e.Name + m[2], Text: text})
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

var (
	hostPath = regexp.MustCompile(`^hosts\[(\d+)\](\..*)?$`)
	takenBy  = regexp.MustCompile(`^(.* is taken already, )by item (\d+) of the list$`)
)

// address reads an Ethernet address as people write it: pairs joined by colons or
// dashes, of which ISC dhcpd takes single digits, too; Cisco's three groups of
// four; twelve digits.
func address(s string) (spec.MAC, error) {
	var m spec.MAC
	in := s
	if pairs := strings.FieldsFunc(s, func(r rune) bool { return r == ':' || r == '-' }); len(pairs) == len(m) {
		for i, p := range pairs {
			if len(p) == 1 {
				pairs[i] = "0" + p
			}
		}
		in = strings.Join(pairs, ":")
	} else if len(s) == 12 {
		in = s[:4] + "." + s[4:8] + "." + s[8:]
	}
	if err := m.UnmarshalText([]byte(in)); err != nil {
		return m, fmt.Errorf("%q is not a MAC address: write six hexadecimal pairs, such as 00:09:3d:12:20:ed", s)
	}
	return m, nil
}

// choose returns the one address of a host.
func choose(addresses []string, network netip.Prefix) (netip.Addr, error) {
	var all, inside []netip.Addr
	for _, a := range addresses {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return ip, fmt.Errorf("%q is not an IP address: write one, such as 172.30.0.11", a)
		}
		all = append(all, ip)
		if network.Contains(ip) {
			inside = append(inside, ip)
		}
	}
	switch {
	case len(all) == 1:
		return all[0], nil
	case len(inside) == 1:
		return inside[0], nil
	case len(all) == 0:
		return netip.Addr{}, errors.New("has no address: write one, such as 172.30.0.11")
	}
	return netip.Addr{}, fmt.Errorf("has %d addresses, %s: leave one", len(all), strings.Join(addresses, ", "))
}

// merge joins what is one host with several cards: ISC dhcpd has a block for
// each, all with the same name and address.
func merge(entries []Entry) []Entry {
	var merged []Entry
	for _, e := range entries {
		i := slices.IndexFunc(merged, func(m Entry) bool { return strings.EqualFold(m.Name, e.Name) && m.IP == e.IP })
		if i < 0 {
			merged = append(merged, e)
			continue
		}
		merged[i].MACs = append(merged[i].MACs, e.MACs...)
		for _, g := range e.Groups {
			if !slices.Contains(merged[i].Groups, g) {
				merged[i].Groups = append(merged[i].Groups, g)
			}
		}
	}
	return merged
}
