package spec

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Inventory is the lab: what all its PCs share, and each of them. A person
// writes it, as one YAML file.
type Inventory struct {
	Site  Site   `yaml:"site" json:"site"`
	Hosts []Host `yaml:"hosts" json:"hosts"`
}

// Site is what all PCs of a lab share.
type Site struct {
	// URL is where the published tree is served, as PCs see it
	// ("http://172.30.0.5/reassure").
	URL string `yaml:"url" json:"url"`
	// BootURL is where boot loaders fetch what they fetch by HTTP, which is not to be
	// HTTPS; empty is URL, or, where that is HTTPS, the same path at http://SERVER.
	BootURL string `yaml:"boot_url" json:"boot_url,omitempty"`
	// Server is the boot server's address, DHCP's next-server.
	Server netip.Addr `yaml:"server" json:"server"`
	// Network is the lab's network and prefix ("172.30.0.0/24").
	Network netip.Prefix `yaml:"network" json:"network"`
	Gateway netip.Addr   `yaml:"gateway" json:"gateway,omitzero"`
	DNS     []netip.Addr `yaml:"dns" json:"dns,omitempty"`
	NTP     []string     `yaml:"ntp" json:"ntp,omitempty"`
	Domain  string       `yaml:"domain" json:"domain,omitempty"`
	// Events is where PCs post what they do; empty means nowhere.
	Events string `yaml:"events" json:"events,omitempty"`
	// CommandLine goes to the reimager's kernel ("console=ttyS0,115200").
	CommandLine string `yaml:"command_line" json:"command_line,omitempty"`
	// LocalBoot is how PCs that are told Local go on; a profile's wins.
	LocalBoot LocalBoot         `yaml:"local_boot" json:"local_boot,omitzero"`
	Vars      map[string]string `yaml:"vars" json:"vars,omitempty"`
}

// Host is one PC.
type Host struct {
	Name string `yaml:"name" json:"name"`
	// MACs are the addresses of the cards that it may boot from; the first is
	// the one that the new system's network is configured on.
	MACs    []MAC      `yaml:"mac" json:"mac"`
	IP      netip.Addr `yaml:"ip" json:"ip"`
	Profile string     `yaml:"profile" json:"profile"`
	Groups  []string   `yaml:"groups" json:"groups,omitempty"`
	// Disk, where given, replaces the profile's rule for this host.
	Disk *DiskRule         `yaml:"disk" json:"disk,omitempty"`
	Vars map[string]string `yaml:"vars" json:"vars,omitempty"`
}

// Plain is where the published tree is by plain HTTP, for what anybody may have:
// boot files and wads.
func (s Site) Plain() string {
	if s.BootURL != "" {
		return s.BootURL
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "https" {
		return s.URL
	}
	u.Scheme, u.Host = "http", s.Server.String()
	if s.Server.Is6() {
		u.Host = "[" + u.Host + "]"
	}
	return u.String()
}

// hostPattern is RFC 1123's rule for one label of a host name.
var hostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// Validate returns every problem of the inventory itself; whether its profiles
// exist is for whoever has them.
func (inv *Inventory) Validate() Problems {
	var ps Problems
	s := inv.Site
	ps.under("site.url", webAddress(s.URL, false))
	ps.under("site.events", webAddress(s.Events, true))
	ps.under("site.boot_url", webAddress(s.BootURL, true))
	if plain, err := url.Parse(s.BootURL); err == nil && s.BootURL != "" {
		if full, err := url.Parse(s.URL); err == nil && (plain.Scheme != "http" || strings.TrimRight(plain.Path, "/") != strings.TrimRight(full.Path, "/")) {
			ps.addf("site.boot_url", "%q: write an http address with the path of url, %s", s.BootURL, full.Path)
		}
	}
	if !s.Network.IsValid() {
		ps.addf("site.network", "is missing: write the lab's network and prefix, such as 172.30.0.0/24")
	}
	if !s.Server.IsValid() {
		ps.addf("site.server", "is missing: write the boot server's address")
	}
	if s.Gateway.IsValid() && s.Network.IsValid() && !s.Network.Contains(s.Gateway) {
		ps.addf("site.gateway", "%v is not in the network %v", s.Gateway, s.Network)
	}
	if strings.ContainsAny(s.CommandLine, "\r\n") {
		ps.addf("site.command_line", "cannot hold a line end")
	}
	s.LocalBoot.validate(&ps, "site.local_boot")
	names, macs, ips := map[string]int{}, map[string]int{}, map[string]int{}
	for i, h := range inv.Hosts {
		at := fmt.Sprintf("hosts[%d]", i)
		if !hostPattern.MatchString(h.Name) {
			ps.addf(at+".name", "%q: use letters, digits and dashes, at most 63 (RFC 1123)", h.Name)
		}
		unique(&ps, at+".name", names, strings.ToLower(h.Name), i)
		if len(h.MACs) == 0 {
			ps.addf(at+".mac", "is missing: the PC is known by it")
		}
		for j, m := range h.MACs {
			at := fmt.Sprintf("%s.mac[%d]", at, j)
			if m == (MAC{}) || m[0]&1 != 0 {
				ps.addf(at, "%v is not the address of one card", m)
			}
			unique(&ps, at, macs, m.String(), i)
		}
		switch {
		case !h.IP.IsValid():
			ps.addf(at+".ip", "is missing")
		case s.Network.IsValid() && !s.Network.Contains(h.IP):
			ps.addf(at+".ip", "%v is not in the network %v", h.IP, s.Network)
		default:
			unique(&ps, at+".ip", ips, h.IP.String(), i)
		}
		if h.Profile == "" {
			ps.addf(at+".profile", "is missing: name a profile")
		}
		for j, g := range h.Groups {
			if !namePattern.MatchString(g) {
				ps.addf(fmt.Sprintf("%s.groups[%d]", at, j), "%q: use lower-case letters, digits, dots and dashes", g)
			}
		}
	}
	return ps
}

// webAddress judges an absolute http or https URL.
func webAddress(s string, mayBeEmpty bool) Problems {
	if s == "" {
		if mayBeEmpty {
			return nil
		}
		return Problems{{Text: "is missing: write an http or https address"}}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || strings.ContainsAny(s, " \t\r\n") {
		return Problems{{Text: fmt.Sprintf("%q is not an http or https address", s)}}
	}
	return nil
}
