// Package render renders the texts of a site: files of the systems to install,
// strings of steps, and configurations of DHCP servers. Templates are those of
// text/template; a variable or field that is not there is an error, never an
// empty text.
//
// There is one type of data for each kind of template: [Host] for what is
// rendered once for each PC, [Lab] for what is rendered once for the whole lab.
//
// Functions, besides text/template's own:
//
//	uuid "root"           UUID of the file system on partition root     (a token; the PC replaces it)
//	partuuid "root"       PARTUUID of partition root                    (a token)
//	device "root"         device node of partition root                 (a token)
//	disk                  device node of the target disk                (a token)
//	var "name" "default"  a variable, or the default where it is not set
//	netmask NETWORK       255.255.255.0, of 172.30.0.0/24
//	prefix NETWORK        24
//	network NETWORK       172.30.0.0
//	broadcast NETWORK     172.30.0.255
//	cidr IP NETWORK       172.30.0.11/24
//	fqdn NAME DOMAIN      exp01.lab.example, or exp01 without a domain
//	upper, lower, trim TEXT
//	join LIST SEPARATOR
//	split TEXT SEPARATOR
//	replace TEXT OLD NEW
//	json VALUE            as JSON, with quotes
//
// The four first and var are there in templates of a host only.
package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"reassure/image/spec"
)

// Host is what the templates of one host see.
type Host struct {
	Peer
	Site  Site
	Hosts []Peer // all hosts of the lab, this one too, in the inventory's order
	// Vars are the profile's, under the site's, under the host's: a profile's
	// are defaults that may come from elsewhere, the site says what is so in
	// this lab, and the host what is so for this PC.
	Vars       map[string]string
	Partitions []spec.Partition
	Table      spec.Table
}

// Lab is what the templates of the whole lab see.
type Lab struct {
	Site  Site
	Hosts []Peer
	// Interface is the server's network card, where one was named.
	Interface string
	// EFI is what PCs with UEFI load first, a file of the TFTP root.
	EFI string
}

// Peer is a host as every template may know it. Addresses are text, empty where
// there is none.
type Peer struct {
	Name    string
	MAC     string // the first
	MACs    []string
	IP      string
	Profile string
	Groups  []string
}

// Site is a site's part of an inventory.
type Site struct {
	URL, BootURL, Server, Network, Gateway, Domain string
	DNS, NTP                                       []string
}

// NewSite and NewPeers give an inventory's parts the form that templates see.
func NewSite(s spec.Site) Site {
	site := Site{
		URL: s.URL, BootURL: s.Plain(), Server: address(s.Server), Network: s.Network.Masked().String(),
		Gateway: address(s.Gateway), Domain: s.Domain, NTP: s.NTP,
	}
	for _, a := range s.DNS {
		site.DNS = append(site.DNS, address(a))
	}
	return site
}

// NewPeers returns the hosts of an inventory in its order.
func NewPeers(hosts []spec.Host) []Peer {
	peers := make([]Peer, len(hosts))
	for i, h := range hosts {
		peers[i] = Peer{Name: h.Name, IP: address(h.IP), Profile: h.Profile, Groups: h.Groups}
		for _, m := range h.MACs {
			peers[i].MACs = append(peers[i].MACs, m.String())
		}
		if len(peers[i].MACs) > 0 {
			peers[i].MAC = peers[i].MACs[0]
		}
	}
	return peers
}

// MergeVars lays variables over each other; the later win.
func MergeVars(layers ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, l := range layers {
		for k, v := range l {
			all[k] = v
		}
	}
	return all
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// Mounts returns the partitions that are mounted, each after those that its
// mount point is on.
func (h *Host) Mounts() []spec.Partition {
	mounts := slices.DeleteFunc(slices.Clone(h.Partitions), func(p spec.Partition) bool { return p.Mount == "" })
	slices.SortFunc(mounts, func(a, b spec.Partition) int { return strings.Compare(a.Mount, b.Mount) })
	return mounts
}

// Card is a network card of a host, for DHCP servers that know no hosts.
type Card struct {
	Peer
	MAC string
	ID  string // unique in the lab; the host's name, or exp01_2 for its second card
}

// Cards returns the cards of all hosts.
func (l *Lab) Cards() []Card {
	var cards []Card
	for _, h := range l.Hosts {
		for i, mac := range h.MACs {
			c := Card{Peer: h, MAC: mac, ID: h.Name}
			if i > 0 {
				// No host's name has an underscore.
				c.ID = fmt.Sprintf("%s_%d", h.Name, i+1)
			}
			cards = append(cards, c)
		}
	}
	return cards
}

// Text renders the template text, named name in errors, for one host.
func (h *Host) Text(name, text string) (string, error) {
	funcs := functions()
	for _, kind := range []string{spec.TokenUUID, spec.TokenPartUUID, spec.TokenDevice} {
		funcs[kind] = func(partition string) (string, error) { return h.token(kind, partition) }
	}
	funcs["disk"] = func() string { return spec.Token(spec.TokenDisk, "") }
	funcs["var"] = func(name, otherwise string) string {
		if v, ok := h.Vars[name]; ok {
			return v
		}
		return otherwise
	}
	return execute(name, text, funcs, h)
}

// token names a partition of the layout for the PC to fill in.
func (h *Host) token(kind, partition string) (string, error) {
	var names []string
	for _, p := range h.Partitions {
		if p.Name != partition {
			names = append(names, p.Name)
			continue
		}
		if kind == spec.TokenUUID && p.FileSystem == spec.None {
			return "", fmt.Errorf("partition %q has no file system, and so no UUID: use partuuid", partition)
		}
		return spec.Token(kind, partition), nil
	}
	return "", fmt.Errorf("the profile has no partition %q: it has %s", partition, strings.Join(names, ", "))
}

// Text renders the template text, named name in errors, for the whole lab.
func (l *Lab) Text(name, text string) (string, error) {
	return execute(name, text, functions(), l)
}

func functions() template.FuncMap {
	network := func(f func(netip.Prefix) string) func(string) (string, error) {
		return func(s string) (string, error) {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return "", fmt.Errorf("%q is not a network, such as 172.30.0.0/24", s)
			}
			return f(p.Masked()), nil
		}
	}
	return template.FuncMap{
		"netmask": network(func(p netip.Prefix) string { return lastOf(netip.PrefixFrom(zeroOf(p), p.Bits()), true) }),
		"prefix":  network(func(p netip.Prefix) string { return fmt.Sprint(p.Bits()) }),
		"network": network(func(p netip.Prefix) string { return p.Addr().String() }),
		"broadcast": network(func(p netip.Prefix) string {
			return lastOf(p, false)
		}),
		"cidr": func(ip, n string) (string, error) {
			p, err := netip.ParsePrefix(n)
			if err != nil {
				return "", fmt.Errorf("%q is not a network, such as 172.30.0.0/24", n)
			}
			return fmt.Sprintf("%s/%d", ip, p.Bits()), nil
		},
		"fqdn":  FQDN,
		"upper": strings.ToUpper, "lower": strings.ToLower, "trim": strings.TrimSpace,
		"join": strings.Join, "split": strings.Split, "replace": strings.ReplaceAll,
		"json": func(v any) (string, error) {
			text, err := json.Marshal(v)
			return string(text), err
		},
	}
}

// zeroOf is the address of p's kind whose bits are all 0.
func zeroOf(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// lastOf sets the bits of p's address that are the host's, or with mask those that are the network's.
func lastOf(p netip.Prefix, mask bool) string {
	raw := p.Addr().AsSlice()
	for i := range len(raw) * 8 {
		if (i < p.Bits()) == mask {
			raw[i/8] |= 0x80 >> (i % 8)
		}
	}
	a, _ := netip.AddrFromSlice(raw)
	return a.String()
}

// FQDN joins a host's name and a domain, which may be empty.
func FQDN(name, domain string) string { return strings.TrimSuffix(name+"."+domain, ".") }

// Error is a template that cannot be rendered.
type Error struct {
	Template string
	Line     int // 0 when it is not known
	Text     string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Template + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.Template, e.Line, e.Text)
}

func execute(name, text string, funcs template.FuncMap, data any) (string, error) {
	// The parser finds its own place in messages by this name.
	t, err := template.New("t").Option("missingkey=error").Funcs(funcs).Parse(text)
	if err != nil {
		return "", explain(name, err, data)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return "", explain(name, err, data)
	}
	return out.String(), nil
}

var (
	parsePlace  = regexp.MustCompile(`^template: t:(\d+)(?::\d+)?: (?s:(.*))$`)
	executing   = regexp.MustCompile(`^executing "t" at <(?s:(.*?))>: (?s:(.*))$`)
	calling     = regexp.MustCompile(`^error calling (\w+): (?s:(.*))$`)
	missingKey  = regexp.MustCompile(`map has no entry for key "(.*)"$`)
	missingPart = regexp.MustCompile(`can't evaluate field (\w+) in type`)
	missingFunc = regexp.MustCompile(`function "(\w+)" not defined`)
)

// explain words an error of text/template with its place and the remedy.
func explain(name string, err error, data any) *Error {
	e := &Error{Template: name, Text: err.Error()}
	m := parsePlace.FindStringSubmatch(e.Text)
	if m == nil {
		return e
	}
	fmt.Sscan(m[1], &e.Line)
	e.Text = m[2]
	if m := executing.FindStringSubmatch(e.Text); m != nil {
		e.Text = fmt.Sprintf("{{%s}}: %s", m[1], m[2])
		if called := calling.FindStringSubmatch(m[2]); called != nil {
			e.Text = fmt.Sprintf("{{%s}}: %s", m[1], called[2])
		}
	}
	switch {
	case missingKey.MatchString(e.Text):
		key := missingKey.FindStringSubmatch(e.Text)[1]
		e.Text = fmt.Sprintf("there is no variable %s: set it in vars of the host, the site or the profile, or write {{var %q \"DEFAULT\"}}", key, key)
	case missingPart.MatchString(e.Text):
		e.Text = fmt.Sprintf("there is no .%s here: there are %s", missingPart.FindStringSubmatch(e.Text)[1], strings.Join(fields(data), ", "))
	case missingFunc.MatchString(e.Text):
		e.Text = fmt.Sprintf("there is no function %s; a field begins with a dot, as in {{.Name}}", missingFunc.FindStringSubmatch(e.Text)[1])
	}
	return e
}

// fields names what a template may use.
func fields(data any) []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(data).Elem()) {
		if f.Anonymous {
			continue
		}
		if f.Type == reflect.TypeFor[Site]() {
			for _, inner := range reflect.VisibleFields(f.Type) {
				names = append(names, "."+f.Name+"."+inner.Name)
			}
			continue
		}
		names = append(names, "."+f.Name)
	}
	for i := range reflect.TypeOf(data).NumMethod() {
		if m := reflect.TypeOf(data).Method(i); m.Type.NumIn() == 1 {
			names = append(names, "."+m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Strings renders every string in the value that v points to, in place: fields,
// items of lists, values behind pointers, at any depth. Each error names, as its
// template, the path of the string below at, in the words of YAML.
func (h *Host) Strings(at string, v any) []*Error {
	return h.strings(at, reflect.ValueOf(v).Elem())
}

func (h *Host) strings(at string, v reflect.Value) (failed []*Error) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			failed = h.strings(at, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			failed = append(failed, h.strings(at+"."+key, v.Field(i))...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			failed = append(failed, h.strings(fmt.Sprintf("%s[%d]", at, i), v.Index(i))...)
		}
	case reflect.String:
		if !strings.Contains(v.String(), "{{") {
			break
		}
		text, err := h.Text(at, v.String())
		if e := (*Error)(nil); errors.As(err, &e) {
			return []*Error{e}
		}
		v.SetString(text)
	}
	return failed
}
