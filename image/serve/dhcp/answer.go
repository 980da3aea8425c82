package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"reassure/image/spec"
)

// Ports of the protocol.
const (
	ServerPort = 67
	ClientPort = 68
	// BootPort is where a boot ROM asks a server that only says what to boot
	// (PXE 2.1, section 2.2; "BINL" and "boot server" mean it).
	BootPort = 4011
)

// Request is a packet, and what is known of who sent it.
type Request struct {
	Packet *dhcpv4.DHCPv4
	Port   int // that it came to: ServerPort or BootPort
	Now    time.Time
	Host   Host // whose card it is, if Known
	Known  bool
}

// Pool is what a decision has to know of the pool's addresses.
type Pool interface {
	// Lease returns the lease that the card has or had last.
	Lease(spec.MAC) (Lease, bool)
	// Free returns the address to give to the card: the one it had, the one that
	// it wishes, or another; false when there is none left.
	Free(mac spec.MAC, wish netip.Addr, now time.Time) (netip.Addr, bool)
	// Reserved says whether ip is a host's of the inventory.
	Reserved(ip netip.Addr) bool
}

// Reply is what a packet is answered, and what that brings with it.
type Reply struct {
	// Packet is nil where silence is right.
	Packet *dhcpv4.DHCPv4
	// Reason says in words what is answered, or why nothing.
	Reason string
	Client Client
	// Address is the one that the card was given, has or wants.
	Address netip.Addr
	Given   bool // by this answer, for good: an offer is none

	// Hold keeps an address for the card until it asks for it.
	Hold netip.Addr
	// Grant must be durable before Packet is sent.
	Grant *Lease
	// Drop ends the card's lease.
	Drop bool
	// Decline is an address that somebody else uses.
	Decline netip.Addr
}

// Answer decides what a packet is answered.
func Answer(r Request, s *Settings, pool Pool) Reply {
	a := answerer{Request: r, s: s, pool: pool, mac: cardOf(r.Packet), kind: r.Packet.MessageType()}
	a.reply.Client = classify(r.Packet)
	a.reply.Address = a.named()
	switch p := r.Packet; {
	case !fromCard(p):
		a.silence("it is no request of an Ethernet card")
	case s.Mode != ModeServer && !s.Mode.proxies(), r.Port == BootPort && !s.Mode.proxies():
		a.silence("DHCP is %s here", s.Mode)
	case !s.Site.Server.Is4() || !s.Site.Network.Addr().Is4() || r.Known && !r.Host.IP.Is4():
		a.silence("the addresses of site.yaml are not IPv4")
	case a.kind == dhcpv4.MessageTypeNone:
		a.silence("it is BOOTP, without a DHCP message type")
	case s.Mode == ModeServer:
		a.serve()
	default:
		a.proxy()
	}
	return a.reply
}

// fromCard says whether a packet is a request, and its hardware address one card's.
func fromCard(p *dhcpv4.DHCPv4) bool {
	m := cardOf(p)
	return p.OpCode == dhcpv4.OpcodeBootRequest && p.HWType == iana.HWTypeEthernet &&
		len(p.ClientHWAddr) == len(m) && m != spec.MAC{} && m[0]&1 == 0
}

// cardOf returns the address of the card that a packet is from.
func cardOf(p *dhcpv4.DHCPv4) spec.MAC {
	var m spec.MAC
	copy(m[:], p.ClientHWAddr)
	return m
}

type answerer struct {
	Request
	s     *Settings
	pool  Pool
	mac   spec.MAC
	kind  dhcpv4.MessageType
	reply Reply
}

func (a *answerer) silence(format string, args ...any) {
	a.reply.Reason = fmt.Sprintf(format, args...)
}

// named is the address that a client says it has, or asks for.
func (a *answerer) named() netip.Addr {
	if ip := addr(a.Packet.ClientIPAddr); ip.IsValid() {
		return ip
	}
	return addr(a.Packet.RequestedIPAddress())
}

// addr is ip, and invalid for 0.0.0.0.
func addr(ip net.IP) netip.Addr {
	if a, ok := netip.AddrFromSlice(ip.To4()); ok && !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// forUs says whether a packet that names a server names us, or names none.
func (a *answerer) forUs() bool {
	id := addr(a.Packet.ServerIdentifier())
	return !id.IsValid() || id == a.s.Site.Server
}

// serve is the server of RFC 2131, section 4.3.
func (a *answerer) serve() {
	// A relay agent's address is in the network of its clients.
	if relay := addr(a.Packet.GatewayIPAddr); relay.IsValid() && !a.s.Site.Network.Contains(relay) {
		a.silence("the relay agent %v is not in the network %v", relay, a.s.Site.Network)
		return
	}
	if !a.Known && a.s.Pool.size() == 0 {
		a.silence("the card is not in the inventory, and there is no pool")
		return
	}
	switch a.kind {
	case dhcpv4.MessageTypeDiscover:
		ip, ok := a.ours(a.reply.Address)
		if !ok {
			a.silence("the pool %v has no address left", a.s.Pool)
			return
		}
		if !a.Known {
			a.reply.Hold = ip
		}
		a.give(dhcpv4.MessageTypeOffer, ip, a.s.lease())
	case dhcpv4.MessageTypeRequest:
		a.request()
		if !a.reply.Given {
			// Where we give the addresses, nobody gets one by asking for it: tokens
			// are given to the address that a card was seen with.
			a.reply.Address = netip.Addr{}
		}
	case dhcpv4.MessageTypeInform:
		a.inform()
	case dhcpv4.MessageTypeRelease:
		if lease, ok := a.pool.Lease(a.mac); ok && a.forUs() && lease.IP == addr(a.Packet.ClientIPAddr) {
			a.reply.Drop = true
			a.silence("it gives %v back", lease.IP)
			return
		}
		a.silence("what it gives back is not a lease of the pool")
	case dhcpv4.MessageTypeDecline:
		a.decline()
	default:
		a.silence("a server does not answer %v", a.kind)
	}
}

// ours is the address that this card is to have.
func (a *answerer) ours(wish netip.Addr) (netip.Addr, bool) {
	if a.Known {
		return a.Host.IP, true
	}
	return a.pool.Free(a.mac, wish, a.Now)
}

// request answers the four states of a client that send DHCPREQUEST (RFC 2131,
// 4.3.2).
func (a *answerer) request() {
	if !a.forUs() {
		a.silence("it takes the offer of %v", addr(a.Packet.ServerIdentifier()))
		return
	}
	selecting := addr(a.Packet.ServerIdentifier()).IsValid()
	wanted := addr(a.Packet.RequestedIPAddress()) // SELECTING and INIT-REBOOT
	if ip := addr(a.Packet.ClientIPAddr); ip.IsValid() {
		wanted = ip // RENEWING and REBINDING
	}
	a.reply.Address = wanted
	if !wanted.IsValid() {
		a.silence("it asks for no address")
		return
	}
	if a.Known {
		// The inventory says who has which address: there is no doubt.
		if wanted == a.Host.IP {
			a.give(dhcpv4.MessageTypeAck, wanted, a.s.lease())
		} else {
			a.refuse("%v is not the address of %s, which is %v", wanted, a.Host.Name, a.Host.IP)
		}
		_, had := a.pool.Lease(a.mac)
		a.reply.Drop = had // it was in no inventory then
		return
	}
	ip, free := a.pool.Free(a.mac, wanted, a.Now)
	switch {
	case free && ip == wanted:
		a.grant(ip)
	case selecting:
		a.refuse("%v is not free any more", wanted)
	case a.s.Pool.Contains(wanted):
		// Nobody else gives addresses of our pool, so we may say no.
		a.refuse("%v is not this card's", wanted)
	case a.pool.Reserved(wanted):
		a.refuse("%v is another host's", wanted)
	case !a.s.Site.Network.Contains(wanted):
		a.refuse("%v is not in the network %v", wanted, a.s.Site.Network)
	default:
		// "If the DHCP server has no record of this client, then it MUST remain
		// silent": another server may have given it.
		a.silence("%v is neither of the pool nor a host's", wanted)
	}
}

// grant gives an address of the pool. A lease that has nearly all of its time left is
// good as it is: a client that asks in a loop must not make the disk busy.
func (a *answerer) grant(ip netip.Addr) {
	term := a.s.lease()
	if had, ok := a.pool.Lease(a.mac); ok && had.IP == ip {
		if left := had.Expires.Sub(a.Now).Truncate(time.Second); left > term-term/8 && left <= term {
			a.give(dhcpv4.MessageTypeAck, ip, left)
			return
		}
	}
	a.reply.Grant = &Lease{MAC: a.mac, IP: ip, Expires: a.Now.Add(term)}
	a.give(dhcpv4.MessageTypeAck, ip, term)
}

// inform answers a client that has an address and wants to know the rest.
func (a *answerer) inform() {
	ip := addr(a.Packet.ClientIPAddr)
	if !ip.IsValid() || !a.s.Site.Network.Contains(ip) {
		a.silence("it has no address in the network %v", a.s.Site.Network)
		return
	}
	a.give(dhcpv4.MessageTypeAck, netip.Addr{}, 0)
}

func (a *answerer) decline() {
	ip := addr(a.Packet.RequestedIPAddress())
	switch lease, leased := a.pool.Lease(a.mac); {
	case !a.forUs():
		a.silence("it declines what another server gave")
	case a.Known && ip == a.Host.IP:
		a.silence("somebody else uses %v, the address of %s: look for who, by its entry in the neighbour table", ip, a.Host.Name)
	case !a.Known && leased && lease.IP == ip:
		a.reply.Decline, a.reply.Drop = ip, true
		a.silence("somebody else uses %v: it rests", ip)
	default:
		a.silence("it declines an address that it was not given")
	}
}

// refuse makes a DHCPNAK, which has no address and few options (RFC 2131, table 3).
func (a *answerer) refuse(format string, args ...any) {
	p := a.begin(dhcpv4.MessageTypeNak)
	// Its address may be of another network: the relay agent is to broadcast.
	if addr(p.GatewayIPAddr).IsValid() {
		p.SetBroadcast()
	}
	a.reply.Reason = "refused: " + fmt.Sprintf(format, args...)
	o := options{p, maxReply(a.Packet)}
	o.add(dhcpv4.OptMessage(a.reply.Reason))
	a.reply.Packet = p
}

// begin makes a reply without any configuration in it.
func (a *answerer) begin(kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	req := a.Packet
	p := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: req.HWType, ClientHWAddr: req.ClientHWAddr,
		TransactionID: req.TransactionID, Flags: req.Flags & 0x8000,
		GatewayIPAddr: req.GatewayIPAddr, Options: dhcpv4.Options{},
	}
	p.UpdateOption(dhcpv4.OptMessageType(kind))
	p.UpdateOption(dhcpv4.OptServerIdentifier(a.s.Site.Server.AsSlice()))
	copied := []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier} // RFC 6842
	if addr(req.GatewayIPAddr).IsValid() {
		copied = append(copied, dhcpv4.OptionRelayAgentInformation) // RFC 3046, 2.2
	}
	if a.reply.Client.Kind != NoBoot && kind != dhcpv4.MessageTypeNak {
		copied = append(copied, optionUUID) // RFC 4578, 2.3
	}
	for _, code := range copied {
		// What is longer came in pieces, and nobody means it.
		if v := req.Options.Get(code); len(v) > 0 && len(v) <= 255 {
			p.UpdateOption(dhcpv4.OptGeneric(code, v))
		}
	}
	return p
}

// give makes an offer or an acknowledgement, with an address for a time or, for
// DHCPINFORM, without.
func (a *answerer) give(kind dhcpv4.MessageType, ip netip.Addr, term time.Duration) {
	p := a.begin(kind)
	site := &a.s.Site
	o := options{p, maxReply(a.Packet)}
	words := []string{fmt.Sprint(kind)}
	if ip.IsValid() {
		p.YourIPAddr = ip.AsSlice()
		a.reply.Address, a.reply.Given = ip, kind == dhcpv4.MessageTypeAck
		words = append(words, fmt.Sprintf("address %v for %v", ip, term))
		o.add(dhcpv4.OptIPAddressLeaseTime(term))
		o.add(dhcpv4.OptRenewTimeValue(term / 2))
		o.add(dhcpv4.OptRebindingTimeValue(term / 8 * 7))
	}
	if kind == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = a.Packet.ClientIPAddr // RFC 2131, table 3
	}
	o.add(dhcpv4.OptSubnetMask(net.CIDRMask(site.Network.Bits(), 32)))
	if site.Gateway.Is4() {
		o.add(dhcpv4.OptRouter(site.Gateway.AsSlice()))
	}
	// What to boot comes before what can be left out if the packet gets full.
	switch file := a.bootFile(); {
	case a.reply.Client.Kind == NoBoot:
		if a.Known {
			a.next(o) // the reimager looks for the published tree there
		}
	case file == "":
		words = append(words, a.noFile())
	default:
		a.name(o, file)
		words = append(words, file+" for "+a.reply.Client.String())
		if a.reply.Client.Kind == UEFIHTTP {
			o.add(dhcpv4.OptClassIdentifier("HTTPClient")) // UEFI 2.10, 24.7.3.1: else it is not for it
		}
		if a.reply.Client.Kind == IPXE {
			// It would wait two seconds for a proxy's offer.
			o.add(dhcpv4.OptGeneric(optionIPXE, []byte{ipxeNoProxies, 1, 1}))
		}
	}
	for _, option := range a.configuration() {
		if a.Packet.IsOptionRequested(option.Code) {
			o.add(option)
		}
	}
	a.reply.Packet, a.reply.Reason = p, strings.Join(words, ", ")
}

// configuration is what a client is told if it asks.
func (a *answerer) configuration() []dhcpv4.Option {
	site := &a.s.Site
	list := []dhcpv4.Option{dhcpv4.OptBroadcastAddress(a.s.broadcast().AsSlice())}
	if a.Known {
		list = append(list, dhcpv4.OptHostName(a.Host.Name))
	}
	if dns := v4(site.DNS); len(dns) > 0 {
		list = append(list, dhcpv4.OptDNS(dns...))
	}
	if site.Domain != "" {
		list = append(list, dhcpv4.OptDomainName(site.Domain))
	}
	var ntp []netip.Addr
	for _, s := range site.NTP {
		if ip, err := netip.ParseAddr(s); err == nil { // option 42 has no names
			ntp = append(ntp, ip)
		}
	}
	if ips := v4(ntp); len(ips) > 0 {
		list = append(list, dhcpv4.OptNTPServers(ips...))
	}
	return list
}

func v4(in []netip.Addr) []net.IP {
	var out []net.IP
	for _, ip := range in {
		if ip.Is4() {
			out = append(out, ip.AsSlice())
		}
	}
	return out
}

// proxy adds to another server's answers (PXE 2.1, section 2.2.3; RFC 4578).
func (a *answerer) proxy() {
	c := a.reply.Client
	var kind dhcpv4.MessageType
	switch {
	case c.Kind == NoBoot:
		a.silence("it does not ask what to boot, and the site's own DHCP server gives the addresses")
		return
	case a.Port == ServerPort && a.kind == dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case a.Port == BootPort && (a.kind == dhcpv4.MessageTypeRequest || a.kind == dhcpv4.MessageTypeInform):
		kind = dhcpv4.MessageTypeAck
	default:
		a.silence("%v at port %d is for the site's own DHCP server", a.kind, a.Port)
		return
	}
	if !a.forUs() {
		a.silence("it asks %v", addr(a.Packet.ServerIdentifier()))
		return
	}
	file := a.bootFile()
	if file == "" {
		a.silence("%s", a.noFile())
		return
	}
	p := a.begin(kind)
	if kind == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = a.Packet.ClientIPAddr
	}
	o := options{p, maxReply(a.Packet)}
	class := "PXEClient"
	if c.Kind == UEFIHTTP {
		class = "HTTPClient"
	}
	o.add(dhcpv4.OptClassIdentifier(class))
	a.name(o, file)
	a.vendorOptions(o)
	a.reply.Packet = p
	a.reply.Reason = fmt.Sprintf("%v, %s for %v", kind, file, c)
}

// Options within option 43 (PXE 2.1, table 2-1).
const (
	pxeDiscoveryControl = 6
	pxeBootItem         = 71
	pxeEnd              = 255
)

// vendorOptions adds option 43: discovery control 8 tells the ROM that the boot file
// is in this packet, and that it need ask no further. EFI firmware takes it for
// a menu without items, and asks at port 4011 when there is none.
func (a *answerer) vendorOptions(o options) {
	if k := a.reply.Client.Kind; k != BIOS && k != IPXE {
		return
	}
	v := []byte{pxeDiscoveryControl, 1, 8}
	// A boot server names the item that it was asked for.
	if item := subOptions(a.Packet.Options.Get(dhcpv4.OptionVendorSpecificInformation))[pxeBootItem]; a.Port == BootPort && len(item) == 4 {
		v = append(append(v, pxeBootItem, 4), item...)
	}
	o.add(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, append(v, pxeEnd)))
}

// bootFile is what the client is to load: a name below the TFTP root, or a URL; empty
// for none.
func (a *answerer) bootFile() string {
	if !a.Known && (!a.s.AnswerUnknown || a.s.Mode == ModeAuto) {
		return ""
	}
	file := func(given, usual string) string {
		if given != "" {
			return given
		}
		return usual
	}
	f := a.s.Files
	switch c := a.reply.Client; c.Kind {
	case BIOS:
		return file(f.BIOS, "pxelinux.0")
	case UEFI:
		return file(f.EFI, "shimx64.efi")
	case UEFIHTTP:
		return a.s.bootURL(file(f.EFI, "shimx64.efi"))
	case IPXE:
		if f.IPXE != "" {
			return f.IPXE
		}
		script := "ipxe/" + a.mac.PXE() + ".ipxe"
		url := a.s.bootURL(script)
		if c.http && strings.HasPrefix(url, "http:") || c.https && strings.HasPrefix(url, "https:") {
			return url
		}
		return script
	}
	return ""
}

// noFile says why bootFile is empty.
func (a *answerer) noFile() string {
	if a.reply.Client.Kind == Unsupported {
		return "no boot file for " + a.reply.Client.String()
	}
	return "no boot file, as the card is not in the inventory"
}

// name puts the boot file into a reply.
func (a *answerer) name(o options, file string) {
	if len(file) < 128 {
		o.BootFileName = file
	}
	if len(file) >= 128 || a.Packet.IsOptionRequested(dhcpv4.OptionBootfileName) {
		o.add(dhcpv4.OptBootFileName(file))
	}
	a.next(o)
}

// next puts the boot server's address into a reply.
func (a *answerer) next(o options) {
	server := a.s.Site.Server
	o.ServerIPAddr = server.AsSlice()
	if a.Packet.IsOptionRequested(dhcpv4.OptionTFTPServerName) {
		o.add(dhcpv4.OptTFTPServerName(server.String()))
	}
}

// options adds options to a packet as long as it stays below a size.
type options struct {
	*dhcpv4.DHCPv4
	most int
}

// add leaves out what has no room: a cut option could mean something else.
func (o options) add(option dhcpv4.Option) {
	value := option.Value.ToBytes()
	if len(value) > 255 {
		return
	}
	size := 240 + 1 + 2 + len(value) // header and cookie, end, this one
	for _, v := range o.Options {
		size += 2 + len(v)
	}
	if size <= o.most {
		o.Options[option.Code.Code()] = value
	}
}

// maxReply is how many bytes a client takes. It says so with the headers of IP
// and UDP (RFC 2132, 9.10), and takes 576 at least (RFC 2131, 2). One Ethernet
// frame is the most, as boot ROMs do not reassemble.
func maxReply(req *dhcpv4.DHCPv4) int {
	const headers = 20 + 8
	most := 576
	if v := req.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		most = min(max(most, int(binary.BigEndian.Uint16(v))), 1500)
	}
	return most - headers
}

// To is where a reply goes (RFC 2131, 4.1; PXE 2.1, 2.2.4 for port 4011), given
// where the request came from.
func (r *Reply) To(port int, from netip.AddrPort) netip.AddrPort {
	relay, client := addr(r.Packet.GatewayIPAddr), addr(r.Packet.ClientIPAddr)
	switch {
	case port == BootPort && from.Addr().IsValid() && !from.Addr().IsUnspecified():
		return from
	case relay.IsValid():
		return netip.AddrPortFrom(relay, ServerPort)
	case client.IsValid() && r.Packet.MessageType() == dhcpv4.MessageTypeAck:
		return netip.AddrPortFrom(client, ClientPort)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), ClientPort)
}
