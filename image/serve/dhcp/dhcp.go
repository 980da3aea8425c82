// Package dhcp answers the PCs of a lab that ask for an address and for what to
// boot. It does so beside a site's own DHCP server, or in its place:
//
//	server   gives addresses: every host its own, and others one of a pool, if there is one
//	proxy    gives no address; adds what to boot to what the site's DHCP server says
//	auto     as proxy, and never a word to a card that is not in the inventory
//	off      does nothing; [Config] writes the configuration of dhcpd, Kea or dnsmasq
//
// A boot ROM says what it is, and is given what it can boot:
//
//	BIOS                  pxelinux, by TFTP (RFC 4578, architecture 0)
//	UEFI x86-64           an EFI program, by TFTP (architectures 7 and 9)
//	UEFI x86-64 by HTTP   the same program, as a URL (RFC 5970, architecture 16)
//	iPXE                  its script, as a URL if it has HTTP, else by TFTP
//
// Nothing here decides between Local and Remote: that is for the files that are
// named. A card that is not in the inventory gets an address, if there is a pool,
// and no file: its ROM goes on to the next boot device, which is the safe answer.
// With [Settings.AnswerUnknown] it gets the files, too, and finds in them what is
// there for everybody, which is Local.
//
// [Answer] decides, as a pure function of the packet and of what is known of its
// sender. [Server] is the sockets, and does what an answer brings with it.
//
// What differs from the letter of RFC 2131:
//
//   - A client is its Ethernet address. A boot ROM, a reimager and an installed
//     system call themselves by different client identifiers (option 61), and one
//     PC must not use up several addresses of the pool.
//   - A reply to a PC that has no address is broadcast, whatever its broadcast flag says.
//     Section 4.1 allows it; the other way needs raw frames, or an entry in the
//     neighbour table for an address that nobody answers for yet.
//   - No ping goes out before an address is offered. A client that finds its address
//     in use declines it, and the address then rests for ten minutes.
package dhcp

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"reassure/image/spec"
)

// Mode is how much of a site's DHCP this server does.
type Mode string

// Modes; the empty one is ModeOff.
const (
	ModeOff    Mode = "off"
	ModeServer Mode = "server"
	ModeProxy  Mode = "proxy"
	ModeAuto   Mode = "auto"
)

// UnmarshalText reads a mode.
func (m *Mode) UnmarshalText(text []byte) error {
	switch in := Mode(strings.TrimSpace(string(text))); in {
	case ModeServer, ModeProxy, ModeAuto, ModeOff:
		*m = in
		return nil
	default:
		return fmt.Errorf("%q is not a DHCP mode: write server, proxy, auto or off", in)
	}
}

// proxies says whether another server gives the addresses.
func (m Mode) proxies() bool { return m == ModeProxy || m == ModeAuto }

// Range is addresses, both ends included. Its text is "172.30.0.100-172.30.0.199".
// The zero value holds none.
type Range struct{ First, Last netip.Addr }

// UnmarshalText reads a range of IPv4 addresses; an empty text is none.
func (r *Range) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	if in == "" {
		*r = Range{}
		return nil
	}
	from, to, _ := strings.Cut(in, "-")
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	last, err2 := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil || err2 != nil || !first.Is4() || !last.Is4() {
		return fmt.Errorf("%q is not a range of addresses: write the first and the last, such as 172.30.0.100-172.30.0.199", in)
	}
	if last.Less(first) {
		return fmt.Errorf("%q ends before it begins: write the lower address first", in)
	}
	*r = Range{first, last}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Range) String() string {
	if !r.First.IsValid() {
		return ""
	}
	return r.First.String() + "-" + r.Last.String()
}

// Contains says whether ip is one of them.
func (r Range) Contains(ip netip.Addr) bool {
	return r.First.IsValid() && ip.Is4() && !ip.Less(r.First) && !r.Last.Less(ip)
}

// size is how many addresses there are.
func (r Range) size() int {
	if !r.First.IsValid() {
		return 0
	}
	return int(number(r.Last)-number(r.First)) + 1
}

// at is the address at a place, from 0.
func (r Range) at(i int) netip.Addr { return address(number(r.First) + uint32(i)) }

func number(ip netip.Addr) uint32 {
	b := ip.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// maxPool bounds what leases take of memory, and the search for a free address.
const maxPool = 4096

// Files are what a PC loads first, as names below the TFTP root, per kind of
// client. The zero value is usable.
type Files struct {
	// BIOS is pxelinux.0 unless given: lpxelinux.0 fetches by HTTP, and
	// undionly.kpxe is iPXE.
	BIOS string `yaml:"bios"`
	// EFI is shimx64.efi unless given: snponly.efi is iPXE.
	EFI string `yaml:"efi"`
	// IPXE is a file for clients that are iPXE already, in the place of their script.
	IPXE string `yaml:"ipxe"`
}

// Settings are what a person decides about DHCP.
type Settings struct {
	Mode Mode
	Site spec.Site
	// Pool has the addresses for cards that are not in the inventory (mode server).
	Pool Range
	// Lease is how long an address is good for; zero means an hour.
	Lease time.Duration
	Files Files
	// HTTP is the base of what the boot server serves by HTTP; empty means Site.URL.
	HTTP string
	// AnswerUnknown has cards that are not in the inventory told what to boot, too
	// (modes server and proxy): they will find Local.
	AnswerUnknown bool
}

// Validate returns every problem of the settings, with paths as lab.yaml has them.
func (s *Settings) Validate() spec.Problems {
	var ps spec.Problems
	bad := func(path, format string, args ...any) {
		ps = append(ps, spec.Problem{Path: path, Text: fmt.Sprintf(format, args...)})
	}
	if s.Mode == ModeOff || s.Mode == "" {
		return nil
	}
	if !s.Site.Network.Addr().Is4() || !s.Site.Server.Is4() {
		bad("site.network", "%v, and site.server %v, must be IPv4: PCs boot with DHCPv4", s.Site.Network, s.Site.Server)
		return ps
	}
	if p := s.Pool; p.First.IsValid() {
		network := s.Site.Network
		switch {
		case s.Mode.proxies():
			bad("dhcp.pool", "has no use in mode %s: the site's own DHCP server gives the addresses; leave it out", s.Mode)
		case !network.Contains(p.First) || !network.Contains(p.Last):
			bad("dhcp.pool", "%v is not in the network %v", p, network)
		case p.size() > maxPool:
			bad("dhcp.pool", "%v has %d addresses: give at most %d", p, p.size(), maxPool)
		}
	}
	if s.Lease != 0 && (s.Lease < time.Minute || s.Lease > 365*24*time.Hour) {
		bad("dhcp.lease", "%v is not between a minute and a year", s.Lease)
	}
	for name, file := range map[string]string{"bios": s.Files.BIOS, "efi": s.Files.EFI, "ipxe": s.Files.IPXE} {
		// A packet's file field holds 128 bytes, the last of them zero.
		if file != "" && (path.Clean("/"+file) != "/"+file || len(file) > 127 || strings.ContainsAny(file, " \t\r\n\\")) {
			bad("dhcp.files."+name, "%q is not the name of a file below the TFTP root", file)
		}
	}
	if s.HTTP != "" {
		if u, err := url.Parse(s.HTTP); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			bad("dhcp.http", "%q is not an http or https address", s.HTTP)
		}
	}
	slices.SortFunc(ps, func(a, b spec.Problem) int { return strings.Compare(a.Path, b.Path) })
	return ps
}

func (s *Settings) lease() time.Duration {
	if s.Lease == 0 {
		return time.Hour
	}
	return s.Lease
}

// bootURL is where a file of the TFTP root is, by HTTP.
func (s *Settings) bootURL(file string) string {
	base := s.HTTP
	if base == "" {
		base = s.Site.URL
	}
	return strings.TrimRight(base, "/") + "/boot/" + file
}

// broadcast is the network's broadcast address.
func (s *Settings) broadcast() netip.Addr {
	n := s.Site.Network.Masked()
	return address(number(n.Addr()) | uint32(1<<(32-n.Bits())-1))
}

// mayGive says whether ip can be a client's address at all.
func (s *Settings) mayGive(ip netip.Addr) bool {
	n := s.Site.Network
	edge := n.Bits() < 31 && (ip == n.Masked().Addr() || ip == s.broadcast()) // RFC 3021: a /31 has none
	return n.Contains(ip) && !edge && ip != s.Site.Server && ip != s.Site.Gateway && !slices.Contains(s.Site.DNS, ip)
}

// Host is what the inventory says of the PC that a network card is in.
type Host struct {
	Name string
	IP   netip.Addr
}

// Lease is an address of the pool, and whose it is until when.
type Lease struct {
	MAC     spec.MAC   `json:"mac"`
	IP      netip.Addr `json:"ip"`
	Expires time.Time  `json:"expires"`
}

// Backend is who knows the lab. Its methods must not block.
type Backend interface {
	// Host returns the host that has this card.
	Host(spec.MAC) (Host, bool)
	// Reserved says whether ip is a host's of the inventory.
	Reserved(ip netip.Addr) bool
	// Seen is told of every packet from a client that could be read.
	Seen(Sighting)
}

// LeaseStore keeps the pool's leases. What it was given is durable when it returns.
type LeaseStore interface {
	Leases() ([]Lease, error)
	// SaveLease replaces what was kept for the card.
	SaveLease(Lease) error
	// DropLease forgets the card's lease; there may be none.
	DropLease(spec.MAC) error
}

// Sighting is that a card asked something, and what it was told.
type Sighting struct {
	MAC       spec.MAC
	At        time.Time
	Interface string
	// Message is what it sent: DISCOVER, REQUEST, INFORM, RELEASE or DECLINE.
	Message string
	// IP is the address that the card has or is to have: what it was given by us, has
	// already (ciaddr), or asked for (option 50). It is invalid if none was named, and
	// in mode server if what was requested was not given.
	IP netip.Addr
	// Given says that we gave IP to the card, or said that it may keep it.
	Given bool
	// Client is what it is, in words.
	Client Client
	// HostName is what it calls itself (option 12).
	HostName string
	// Answer says in words what it was told, or why nothing.
	Answer string
}
