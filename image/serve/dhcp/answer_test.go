package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"reassure/image/spec"
)

// recorded is a packet of testdata; see README there.
type recorded struct {
	data []byte // of UDP
	port int    // it was sent to
}

func record(t testing.TB, name string) []recorded {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", name+".pcap"))
	if err != nil {
		t.Fatal(err)
	}
	var all []recorded
	for rest := file[24:]; len(rest) > 16; {
		size := binary.LittleEndian.Uint32(rest[8:])
		frame := rest[16 : 16+size]
		udp := frame[14+int(frame[14]&15)*4:]
		all = append(all, recorded{udp[8:binary.BigEndian.Uint16(udp[4:])], int(binary.BigEndian.Uint16(udp[2:]))})
		rest = rest[16+size:]
	}
	if len(all) == 0 {
		t.Fatalf("%s holds no packet", name)
	}
	return all
}

func parse(t testing.TB, data []byte) *dhcpv4.DHCPv4 {
	t.Helper()
	p, err := dhcpv4.FromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// ask has a fresh server decide.
func ask(p *dhcpv4.DHCPv4, port int, s Settings, known bool) Reply {
	pool, _ := loadLeases(nil)
	r := Request{Packet: p, Port: port, Now: start, Known: known}
	if known {
		r.Host = exp01
	}
	return Answer(r, &s, view{pool, &s, labHosts()})
}

// told is what a boot ROM reads in a reply, as it came over the wire.
type told struct {
	Message, Address, Next, File, Class, Vendor string
}

func tell(t testing.TB, r Reply) told {
	t.Helper()
	if r.Packet == nil {
		return told{}
	}
	p := parse(t, r.Packet.ToBytes())
	file := p.BootFileName
	if o := p.BootFileNameOption(); o != "" {
		file = o
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	return told{
		p.MessageType().String(), text(addr(p.YourIPAddr)), text(addr(p.ServerIPAddr)), file,
		p.ClassIdentifier(), hex.EncodeToString(p.Options.Get(dhcpv4.OptionVendorSpecificInformation)),
	}
}

func TestAnswerToBootROMs(t *testing.T) {
	const (
		script = "http://10.99.0.1/reassure/boot/ipxe/01-52-54-00-12-34-56.ipxe"
		direct = "060108ff" // discovery control: the file is in this packet
	)
	plain := func(p *dhcpv4.DHCPv4) { // a ROM that is not iPXE
		p.Options.Del(dhcpv4.OptionUserClassInformation)
		p.Options.Del(optionIPXE)
	}
	arch := func(n byte) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) {
			plain(p)
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, n}))
		}
	}
	server := told{Message: "OFFER", Address: "10.99.0.11", Next: "10.99.0.1"}
	proxy := told{Message: "OFFER", Next: "10.99.0.1", Class: "PXEClient"}
	with := func(base told, file, class, vendor string) told {
		base.File, base.Vendor = file, vendor
		if class != "" {
			base.Class = class
		}
		return base
	}
	ack := func(base told) told { base.Message = "ACK"; return base }
	for _, c := range []struct {
		name   string
		packet string
		at     int // which of the file
		edit   func(*dhcpv4.DHCPv4)
		mode   Mode
		change func(*Settings)
		lost   bool // the card is not in the inventory
		want   told
		reason string
	}{
		// iPXE, which is a boot loader already.
		{name: "iPXE", packet: "ipxe-virtio", mode: ModeServer, want: with(server, script, "", ""), reason: "for iPXE"},
		{name: "iPXE e1000", packet: "ipxe-e1000", mode: ModeServer, want: with(server, script, "", "")},
		{name: "iPXE rtl8139", packet: "ipxe-rtl8139", mode: ModeServer, want: with(server, script, "", "")},
		{name: "iPXE takes it", packet: "ipxe-virtio", at: 1, mode: ModeServer, want: with(ack(server), script, "", "")},
		{name: "iPXE, proxy", packet: "ipxe-virtio", mode: ModeProxy, want: with(proxy, script, "", direct)},
		{name: "iPXE, auto", packet: "ipxe-virtio", mode: ModeAuto, want: with(proxy, script, "", direct)},
		{
			name: "iPXE with its class as RFC 3004 says", packet: "ipxe-virtio", mode: ModeServer, want: with(server, script, "", ""),
			edit: func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptRFC3004UserClass([]string{"iPXE", "lab"})) },
		},
		{
			name: "iPXE without HTTP", packet: "ipxe-virtio", mode: ModeServer, want: with(server, "ipxe/01-52-54-00-12-34-56.ipxe", "", ""),
			edit: func(p *dhcpv4.DHCPv4) { p.Options.Del(optionIPXE) },
		},
		{
			name: "iPXE and HTTPS", packet: "ipxe-virtio", mode: ModeServer, want: with(server, "ipxe/01-52-54-00-12-34-56.ipxe", "", ""),
			change: func(s *Settings) { s.HTTP = "https://boot.example/r" },
		},
		{
			name: "iPXE with a file", packet: "ipxe-virtio", mode: ModeServer, want: with(server, "pxelinux.0", "", ""),
			change: func(s *Settings) { s.Files.IPXE = "pxelinux.0" },
		},
		{
			name: "long URL", packet: "ipxe-virtio", mode: ModeServer, want: with(server, "http://boot.example/"+strings.Repeat("x", 150)+"/boot/ipxe/01-52-54-00-12-34-56.ipxe", "", ""),
			change: func(s *Settings) { s.HTTP = "http://boot.example/" + strings.Repeat("x", 150) + "/" },
		},

		// A BIOS without iPXE.
		{name: "BIOS", packet: "ipxe-e1000", edit: plain, mode: ModeServer, want: with(server, "pxelinux.0", "", ""), reason: "for BIOS"},
		{name: "BIOS, proxy", packet: "ipxe-e1000", edit: plain, mode: ModeProxy, want: with(proxy, "pxelinux.0", "", direct)},
		{
			name: "BIOS, lpxelinux", packet: "ipxe-e1000", edit: plain, mode: ModeProxy, want: with(proxy, "lpxelinux.0", "", direct),
			change: func(s *Settings) { s.Files.BIOS = "lpxelinux.0" },
		},
		{
			name: "BIOS of before option 93", packet: "ipxe-e1000", mode: ModeServer, want: with(server, "pxelinux.0", "", ""),
			edit: func(p *dhcpv4.DHCPv4) {
				plain(p)
				p.Options.Del(dhcpv4.OptionClientSystemArchitectureType)
				p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
			},
		},

		// UEFI.
		{name: "UEFI", packet: "ovmf-pxe", mode: ModeServer, want: with(server, "shimx64.efi", "", ""), reason: "for UEFI x86-64"},
		{name: "UEFI takes another server's", packet: "ovmf-pxe", at: 1, mode: ModeServer, want: told{}, reason: "it takes the offer of 10.99.0.2"},
		{name: "UEFI, proxy", packet: "ovmf-pxe", mode: ModeProxy, want: with(proxy, "shimx64.efi", "", "")},
		{name: "UEFI, proxy, request", packet: "ovmf-pxe", at: 1, mode: ModeProxy, want: told{}, reason: "REQUEST at port 67 is for the site's own DHCP server"},
		{name: "UEFI, proxy, port 4011", packet: "ovmf-pxe", at: 2, mode: ModeProxy, want: with(ack(proxy), "shimx64.efi", "", "")},
		{name: "UEFI, auto, port 4011", packet: "ovmf-pxe", at: 2, mode: ModeAuto, want: with(ack(proxy), "shimx64.efi", "", "")},
		{
			name: "UEFI, iPXE", packet: "ovmf-pxe", mode: ModeProxy, want: with(proxy, "snponly.efi", "", ""),
			change: func(s *Settings) { s.Files.EFI = "snponly.efi" },
		},
		{name: "UEFI as RFC 4578 has it", packet: "ovmf-pxe", edit: arch(9), mode: ModeServer, want: with(server, "shimx64.efi", "", "")},
		{name: "UEFI by HTTP", packet: "ovmf-http", mode: ModeServer, want: with(server, "http://10.99.0.1/reassure/boot/shimx64.efi", "HTTPClient", "")},
		{name: "UEFI by HTTP, proxy", packet: "ovmf-http", mode: ModeProxy, want: with(proxy, "http://10.99.0.1/reassure/boot/shimx64.efi", "HTTPClient", "")},

		// Machines that our files are not for.
		{name: "UEFI of 32 bits", packet: "ovmf-pxe", edit: arch(6), mode: ModeServer, want: told{Message: "OFFER", Address: "10.99.0.11"}, reason: "no boot file for a machine that we have no files for (6, EFI IA32)"},
		{name: "UEFI ARM, proxy", packet: "ovmf-pxe", edit: arch(11), mode: ModeProxy, want: told{}, reason: "(11, EFI ARM64)"},
		{name: "UEFI ARM by HTTP, proxy", packet: "ovmf-http", edit: arch(19), mode: ModeProxy, want: told{}, reason: "(19, EFI ARM64 boot from HTTP)"},
		{
			name: "iPXE on ARM", packet: "ipxe-virtio", mode: ModeProxy, want: told{}, reason: "(11, EFI ARM64)",
			edit: func(p *dhcpv4.DHCPv4) {
				p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 11}))
			},
		},

		// Cards that are not in the inventory.
		{name: "stranger", packet: "ovmf-pxe", lost: true, mode: ModeServer, want: told{Message: "OFFER", Address: "10.99.0.13"}, reason: "no boot file, as the card is not in the inventory"},
		{
			name: "stranger, no pool", packet: "ovmf-pxe", lost: true, mode: ModeServer, want: told{}, reason: "there is no pool",
			change: func(s *Settings) { s.Pool = Range{} },
		},
		{
			name: "stranger, answered", packet: "ovmf-pxe", lost: true, mode: ModeServer, want: told{"OFFER", "10.99.0.13", "10.99.0.1", "shimx64.efi", "", ""},
			change: func(s *Settings) { s.AnswerUnknown = true },
		},
		{name: "stranger, proxy", packet: "ipxe-virtio", lost: true, mode: ModeProxy, want: told{}, reason: "not in the inventory"},
		{
			name: "stranger, proxy, answered", packet: "ipxe-virtio", edit: plain, lost: true, mode: ModeProxy, want: with(proxy, "pxelinux.0", "", direct),
			change: func(s *Settings) { s.AnswerUnknown = true },
		},
		{
			name: "stranger, auto", packet: "ipxe-virtio", lost: true, mode: ModeAuto, want: told{}, reason: "not in the inventory",
			change: func(s *Settings) { s.AnswerUnknown = true },
		},
		{name: "stranger, auto, port 4011", packet: "ovmf-pxe", at: 2, lost: true, mode: ModeAuto, want: told{}, reason: "not in the inventory"},

		// What no mode answers.
		{name: "off", packet: "ipxe-virtio", mode: ModeOff, want: told{}, reason: "DHCP is off here"},
		{
			name: "an operating system, proxy", packet: "ipxe-virtio", mode: ModeProxy, want: told{}, reason: "it does not ask what to boot",
			edit: func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptClassIdentifier("MSFT 5.0")) },
		},
		{name: "a reply", packet: "ipxe-virtio", mode: ModeServer, want: told{}, reason: "no request of an Ethernet card", edit: func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply }},
		{name: "a group's address", packet: "ipxe-virtio", mode: ModeServer, want: told{}, reason: "no request of an Ethernet card", edit: func(p *dhcpv4.DHCPv4) { p.ClientHWAddr[0] |= 1 }},
		{name: "BOOTP", packet: "ipxe-virtio", mode: ModeServer, want: told{}, reason: "BOOTP", edit: func(p *dhcpv4.DHCPv4) { p.Options.Del(dhcpv4.OptionDHCPMessageType) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := record(t, c.packet)[c.at]
			p := parse(t, r.data)
			if c.edit != nil {
				c.edit(p)
			}
			s := labSettings(c.mode)
			if c.change != nil {
				c.change(&s)
			}
			if ps := s.Validate(); len(ps) > 0 {
				t.Fatal(ps)
			}
			// What the packets of this lab ask for has one address in the pool that is wished.
			if c.lost {
				p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 99, 0, 13}))
			} else if p.MessageType() == dhcpv4.MessageTypeRequest && c.mode == ModeServer {
				p.UpdateOption(dhcpv4.OptRequestedIPAddress(exp01.IP.AsSlice()))
			}
			got := ask(p, r.port, s, !c.lost)
			if diff := cmp.Diff(c.want, tell(t, got)); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.Reason, c.reason) {
				t.Errorf("reason %q; want %q", got.Reason, c.reason)
			}
			if got.Packet == nil {
				return
			}
			sent := got.Packet
			if sent.TransactionID != p.TransactionID || cardOf(sent) != cardOf(p) || sent.OpCode != dhcpv4.OpcodeBootReply || addr(sent.ServerIdentifier()) != s.Site.Server {
				t.Errorf("it is no reply of ours to this card: %v", sent)
			}
			if uuid := sent.Options.Get(optionUUID); string(uuid) != string(p.Options.Get(optionUUID)) || len(uuid) != 17 {
				t.Errorf("the machine's identifier is % x, and was % x", uuid, p.Options.Get(optionUUID))
			}
		})
	}
}

// TestLease tells what a host's operating system is given.
func TestLease(t *testing.T) {
	p, err := dhcpv4.NewDiscovery(knownMAC[:], dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte{255, 1, 2, 3})),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionHostName, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionNTPServers, dhcpv4.OptionBroadcastAddress))
	if err != nil {
		t.Fatal(err)
	}
	s := labSettings(ModeServer)
	s.Lease = 80 * time.Minute
	r := ask(p, ServerPort, s, true)
	got := parse(t, r.Packet.ToBytes()).Options
	want := dhcpv4.OptionsFromList(
		dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer), dhcpv4.OptServerIdentifier(net.IP{10, 99, 0, 1}), dhcpv4.OptClientIdentifier([]byte{255, 1, 2, 3}),
		dhcpv4.OptIPAddressLeaseTime(80*time.Minute), dhcpv4.OptRenewTimeValue(40*time.Minute), dhcpv4.OptRebindingTimeValue(70*time.Minute),
		dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)), dhcpv4.OptRouter(net.IP{10, 99, 0, 254}), dhcpv4.OptBroadcastAddress(net.IP{10, 99, 0, 255}),
		dhcpv4.OptHostName("exp01"), dhcpv4.OptDNS(net.IP{10, 99, 0, 253}), dhcpv4.OptDomainName("lab.example"), dhcpv4.OptNTPServers(net.IP{10, 99, 0, 252}),
	)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if next := tell(t, r).Next; next != "10.99.0.1" {
		t.Errorf("next server = %q", next)
	}
	if to := r.To(ServerPort, netip.AddrPort{}); to != netip.MustParseAddrPort("255.255.255.255:68") {
		t.Errorf("sent to %v", to)
	}

	// A site that is not IPv4 is refused by Validate; a reload that is must do no harm.
	v6 := s
	v6.Site.Server, v6.Site.Network = netip.Addr{}, netip.Prefix{}
	if got := ask(p, ServerPort, v6, true); got.Packet != nil || !strings.Contains(got.Reason, "not IPv4") {
		t.Errorf("without addresses: %+v", got)
	}

	// A long list must not push out what matters, and no option is cut.
	for i := range 100 {
		s.Site.DNS = append(s.Site.DNS, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
	}
	r = ask(p, ServerPort, s, true)
	if size := len(r.Packet.ToBytes()); size > 548 || r.Packet.DomainName() != "lab.example" || r.Packet.DNS() != nil {
		t.Errorf("%d bytes, %v", size, r.Packet.Options)
	}
}

// step is one packet to a server that remembers.
type step struct {
	name    string
	mac     spec.MAC
	kind    dhcpv4.MessageType
	has     string // ciaddr
	wants   string // option 50
	server  string // option 54
	relay   string // giaddr
	later   time.Duration
	message string // ACK, NAK, OFFER or empty
	address string
	reason  string
	to      string
}

func (s step) packet() *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: s.mac[:], Options: dhcpv4.Options{}}
	p.UpdateOption(dhcpv4.OptMessageType(s.kind))
	if s.has != "" {
		p.ClientIPAddr = net.ParseIP(s.has)
	}
	if s.relay != "" {
		p.GatewayIPAddr = net.ParseIP(s.relay)
	}
	if s.wants != "" {
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(s.wants).To4()))
	}
	if s.server != "" {
		p.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(s.server).To4()))
	}
	return p
}

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	release  = dhcpv4.MessageTypeRelease
	decline  = dhcpv4.MessageTypeDecline
	inform   = dhcpv4.MessageTypeInform
)

func TestConversations(t *testing.T) {
	const (
		us, all = "10.99.0.1", "255.255.255.255:68"
		free1   = "10.99.0.13"
		free2   = "10.99.0.14"
	)
	a, b, c := strangeMAC, spec.MAC{2, 0, 0, 0, 0, 0xb}, spec.MAC{2, 0, 0, 0, 0, 0xc}
	for name, steps := range map[string][]step{
		"a host": {
			{name: "selecting", mac: knownMAC, kind: request, server: us, wants: "10.99.0.11", message: "ACK", address: "10.99.0.11", to: all},
			{name: "rebooting", mac: knownMAC, kind: request, wants: "10.99.0.11", message: "ACK", address: "10.99.0.11", to: all},
			{name: "renewing", mac: knownMAC, kind: request, has: "10.99.0.11", message: "ACK", address: "10.99.0.11", to: "10.99.0.11:68"},
			{name: "another address", mac: knownMAC, kind: request, wants: free1, message: "NAK", reason: "the address of exp01, which is 10.99.0.11", to: all},
			{name: "renewing another address", mac: knownMAC, kind: request, has: free1, message: "NAK", to: all},
			{name: "another server", mac: knownMAC, kind: request, server: "10.99.0.2", wants: "10.99.0.11", reason: "it takes the offer of 10.99.0.2"},
			{name: "no address", mac: knownMAC, kind: request, reason: "it asks for no address"},
			{name: "inform", mac: knownMAC, kind: inform, has: "10.99.0.11", message: "ACK", to: "10.99.0.11:68"},
			{name: "inform from elsewhere", mac: knownMAC, kind: inform, has: "192.0.2.1", reason: "no address in the network"},
			{name: "relayed", mac: knownMAC, kind: discover, relay: "10.99.0.7", message: "OFFER", address: "10.99.0.11", to: "10.99.0.7:67"},
			{name: "relayed refusal", mac: knownMAC, kind: request, wants: free1, relay: "10.99.0.7", message: "NAK", to: "10.99.0.7:67"},
			{name: "relayed from another network", mac: knownMAC, kind: discover, relay: "10.98.0.7", reason: "not in the network"},
			{name: "release", mac: knownMAC, kind: release, has: "10.99.0.11", reason: "not a lease of the pool"},
			{name: "decline", mac: knownMAC, kind: decline, wants: "10.99.0.11", reason: "somebody else uses 10.99.0.11, the address of exp01"},
			{name: "and again", mac: knownMAC, kind: discover, message: "OFFER", address: "10.99.0.11", to: all},
		},
		"the pool": {
			{name: "wish", mac: a, kind: discover, wants: free1, message: "OFFER", address: free1, to: all},
			{name: "same wish while it is offered", mac: b, kind: discover, wants: free1, message: "OFFER", address: free2, to: all},
			{name: "full", mac: c, kind: discover, reason: "has no address left"},
			{name: "take", mac: a, kind: request, wants: free1, server: us, message: "ACK", address: free1, to: all},
			{name: "take another's", mac: b, kind: request, wants: free1, server: us, message: "NAK", reason: "not free any more", to: all},
			{name: "the other comes back after its offer has ended", mac: b, kind: request, wants: free2, later: 2 * time.Minute, message: "ACK", address: free2, to: all},
			{name: "still full", mac: c, kind: discover, reason: "has no address left"},
			{name: "reboot", mac: a, kind: request, wants: free1, message: "ACK", address: free1, to: all},
			{name: "reboot with the other's", mac: a, kind: request, wants: free2, message: "NAK", to: all},
			{name: "release of the other's", mac: a, kind: release, has: free2, reason: "not a lease of the pool"},
			{name: "release", mac: a, kind: release, has: free1, server: us, reason: "gives 10.99.0.13 back"},
			{name: "now there is one", mac: c, kind: discover, message: "OFFER", address: free1, to: all},
			{name: "a lease ends, and is somebody's", mac: c, kind: request, wants: free2, later: 2 * time.Hour, message: "ACK", address: free2, to: all},
			{name: "its card has to begin anew", mac: b, kind: request, has: free2, message: "NAK", to: all},
		},
		"addresses that nobody may have": {
			{name: "a host's, in the pool", mac: a, kind: request, wants: "10.99.0.12", message: "NAK", to: all},
			{name: "a host's, outside the pool", mac: a, kind: request, wants: "10.99.0.11", message: "NAK", reason: "another host's", to: all},
			{name: "of another network", mac: a, kind: request, wants: "192.0.2.7", message: "NAK", reason: "not in the network", to: all},
			{name: "maybe another server's", mac: a, kind: request, wants: "10.99.0.200", reason: "neither of the pool nor a host's"},
			{name: "renewing what was lost", mac: a, kind: request, has: free1, message: "ACK", address: free1, to: "10.99.0.13:68"},
		},
		"declined": {
			{name: "take", mac: a, kind: request, wants: free1, server: us, message: "ACK", address: free1, to: all},
			{name: "another's decline", mac: b, kind: decline, wants: free1, server: us, reason: "an address that it was not given"},
			{name: "decline", mac: a, kind: decline, wants: free1, server: us, reason: "it rests"},
			{name: "another", mac: a, kind: discover, wants: free1, message: "OFFER", address: free2, to: all},
			{name: "rested", mac: b, kind: discover, wants: free1, later: 11 * time.Minute, message: "OFFER", address: free1, to: all},
		},
	} {
		t.Run(name, func(t *testing.T) {
			backend, now := labHosts(), start
			settings := labSettings(ModeServer)
			server := &Server{Settings: func() Settings { return settings }, Backend: backend, Leases: backend}
			server.pool, _ = loadLeases(backend)
			for _, s := range steps {
				now = now.Add(s.later)
				p := s.packet()
				r, err := server.decide(Request{Packet: p, Port: ServerPort, Now: now}, &settings)
				if err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
				got := tell(t, r)
				if got.Message != s.message || got.Address != s.address || !strings.Contains(r.Reason, s.reason) {
					t.Errorf("%s: %s %s (%s); want %s %s (%s)", s.name, got.Message, got.Address, r.Reason, s.message, s.address, s.reason)
				}
				if s.kind == request && (r.Address.IsValid() != (s.message == "ACK") || r.Given != (s.message == "ACK")) {
					t.Errorf("%s: the card is seen with %v, given %v", s.name, r.Address, r.Given)
				}
				if r.Packet == nil {
					continue
				}
				if to := r.To(ServerPort, netip.AddrPort{}); to.String() != s.to {
					t.Errorf("%s: sent to %v; want %s", s.name, to, s.to)
				}
				if s.message == "NAK" && (r.Packet.SubnetMask() != nil || r.Packet.IPAddressLeaseTime(0) != 0 || r.Packet.IsBroadcast() != (s.relay != "")) {
					t.Errorf("%s: %v", s.name, r.Packet.Summary())
				}
				// What was acknowledged is kept already.
				if kept := backend.kept[s.mac]; s.message == "ACK" && s.kind == request && s.mac != knownMAC && (kept.IP.String() != s.address || kept.Expires.Before(now)) {
					t.Errorf("%s: kept %+v", s.name, kept)
				}
			}
			// After a restart the server knows the same.
			again, err := loadLeases(backend)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(server.pool.card, again.card, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("after a restart (-before +after):\n%s", diff)
			}
		})
	}
}

// TestLeaseIsKeptBeforeItIsGiven has the disk fail.
func TestLeaseIsKeptBeforeItIsGiven(t *testing.T) {
	backend, settings := labHosts(), labSettings(ModeServer)
	backend.fail = os.ErrPermission
	server := &Server{Backend: backend, Leases: backend}
	server.pool, _ = loadLeases(backend)
	p := step{mac: strangeMAC, kind: request, wants: "10.99.0.13"}.packet()
	if _, err := server.decide(Request{Packet: p, Port: ServerPort, Now: start}, &settings); err == nil {
		t.Error("a lease that is nowhere kept was given")
	}
	if len(server.pool.card) != 0 {
		t.Errorf("it is remembered: %v", server.pool.card)
	}
}

// TestRenewingInALoop must not make the disk busy, nor shorten what others may rely on.
func TestRenewingInALoop(t *testing.T) {
	backend, settings := labHosts(), labSettings(ModeServer)
	server := &Server{Backend: backend, Leases: backend}
	server.pool, _ = loadLeases(backend)
	p := step{mac: strangeMAC, kind: request, wants: "10.99.0.13"}.packet()
	for after, want := range map[time.Duration]time.Duration{0: time.Hour, 90*time.Second + 1: 3509 * time.Second, 30 * time.Minute: time.Hour} {
		backend.kept = nil
		server.pool, _ = loadLeases(nil)
		if _, err := server.decide(Request{Packet: p, Port: ServerPort, Now: start}, &settings); err != nil {
			t.Fatal(err)
		}
		backend.kept = nil
		r, err := server.decide(Request{Packet: p, Port: ServerPort, Now: start.Add(after)}, &settings)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Packet.IPAddressLeaseTime(0); got != want {
			t.Errorf("after %v the lease is for %v; want %v", after, got, want)
		}
		if wrote := len(backend.kept) > 0; wrote != (after > 10*time.Minute) {
			t.Errorf("after %v it was written: %v", after, wrote)
		}
	}
}

// TestFloodLeavesHostsAlone has thousands of made-up cards ask.
func TestFloodLeavesHostsAlone(t *testing.T) {
	backend, settings := labHosts(), labSettings(ModeServer)
	settings.Pool = Range{ip("10.99.0.100"), ip("10.99.0.149")}
	server := &Server{Backend: backend, Leases: backend}
	server.pool, _ = loadLeases(backend)
	for i := range 5000 {
		mac := spec.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}
		s := step{mac: mac, kind: discover}
		if i%2 == 0 {
			s.kind, s.wants = request, settings.Pool.at(i%50).String()
		}
		if _, err := server.decide(Request{Packet: s.packet(), Port: ServerPort, Now: start.Add(time.Duration(i) * time.Millisecond)}, &settings); err != nil {
			t.Fatal(err)
		}
	}
	if l := server.pool; len(l.card) > 50 || len(l.ip) > 50 || len(l.held) > 50 || len(backend.kept) > 50 {
		t.Errorf("%d leases, %d addresses, %d held, %d kept for a pool of 50", len(l.card), len(l.ip), len(l.held), len(backend.kept))
	}
	r, err := server.decide(Request{Packet: step{mac: knownMAC, kind: discover}.packet(), Port: ServerPort, Now: start}, &settings)
	if err != nil || tell(t, r).Address != "10.99.0.11" {
		t.Errorf("a host gets %v, %v", tell(t, r), err)
	}

	admitted := 0
	for range 10000 {
		if _, ok := server.admit(start); ok {
			admitted++
		}
	}
	if admitted != floodBurst {
		t.Errorf("%d packets were looked at in no time", admitted)
	}
	if missed, ok := server.admit(start.Add(time.Second)); !ok || missed != 10000-floodBurst {
		t.Errorf("a second later: %v, %d missed", ok, missed)
	}
}

// TestReload changes the pool and the inventory under a running server.
func TestReload(t *testing.T) {
	backend, settings := labHosts(), labSettings(ModeServer)
	server := &Server{Backend: backend, Leases: backend}
	server.pool, _ = loadLeases(backend)
	do := func(s step, want string) {
		t.Helper()
		r, err := server.decide(Request{Packet: s.packet(), Port: ServerPort, Now: start}, &settings)
		if err != nil {
			t.Fatal(err)
		}
		if got := tell(t, r); got.Message+" "+got.Address != want {
			t.Errorf("%+v: %s %s (%s); want %s", s, got.Message, got.Address, r.Reason, want)
		}
	}
	do(step{mac: strangeMAC, kind: request, wants: "10.99.0.13"}, "ACK 10.99.0.13")
	settings.Pool = Range{ip("10.99.0.20"), ip("10.99.0.29")}
	do(step{mac: strangeMAC, kind: request, has: "10.99.0.13"}, " ") // it is not ours any more
	do(step{mac: strangeMAC, kind: discover, wants: "10.99.0.22"}, "OFFER 10.99.0.22")
	do(step{mac: strangeMAC, kind: request, wants: "10.99.0.22"}, "ACK 10.99.0.22")
	backend.hosts[strangeMAC] = Host{Name: "exp03", IP: ip("10.99.0.33")}
	do(step{mac: strangeMAC, kind: request, has: "10.99.0.22"}, "NAK ")
	do(step{mac: strangeMAC, kind: discover}, "OFFER 10.99.0.33")
	if len(backend.kept) != 0 {
		t.Errorf("a host of the inventory still has a lease of the pool: %v", backend.kept)
	}
}

func TestBootPortRepliesToSender(t *testing.T) {
	r := record(t, "ovmf-pxe")[2]
	reply := ask(parse(t, r.data), r.port, labSettings(ModeProxy), true)
	from := netip.MustParseAddrPort("10.99.0.58:4011")
	if to := reply.To(r.port, from); to != from {
		t.Errorf("sent to %v", to)
	}
	// A boot server names the item that it was asked for.
	p := parse(t, record(t, "ipxe-e1000")[2].data)
	p.Options.Del(dhcpv4.OptionServerIdentifier)
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{71, 4, 0, 1, 0, 0, 255}))
	if got := tell(t, ask(p, BootPort, labSettings(ModeProxy), true)); got.Vendor != "060108"+"470400010000"+"ff" || got.Message != "ACK" {
		t.Errorf("told %+v", got)
	}
	p.UpdateOption(dhcpv4.OptServerIdentifier(net.IP{10, 99, 0, 7}))
	if got := ask(p, BootPort, labSettings(ModeProxy), true); got.Packet != nil || got.Reason != "it asks 10.99.0.7" {
		t.Errorf("asked another: %+v", got)
	}
}

func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"none":             {func(*Settings) {}, ""},
		"off":              {func(s *Settings) { *s = Settings{} }, ""},
		"IPv6":             {func(s *Settings) { s.Site.Server = ip("fd00::1") }, "must be IPv4"},
		"pool elsewhere":   {func(s *Settings) { s.Pool.Last = ip("10.99.1.7") }, "dhcp.pool: 10.99.0.12-10.99.1.7 is not in the network 10.99.0.0/24"},
		"pool too big":     {func(s *Settings) { s.Site.Network = network("10.99.0.0/16"); s.Pool.Last = ip("10.99.255.1") }, "at most 4096"},
		"lease":            {func(s *Settings) { s.Lease = time.Second }, "dhcp.lease: 1s is not between a minute and a year"},
		"file":             {func(s *Settings) { s.Files.EFI = "../x" }, "dhcp.files.efi"},
		"absolute file":    {func(s *Settings) { s.Files.BIOS = "/srv/tftp/pxelinux.0" }, "dhcp.files.bios"},
		"address of files": {func(s *Settings) { s.HTTP = "boot.example" }, "dhcp.http"},
	} {
		s := labSettings(ModeServer)
		c.change(&s)
		if got := s.Validate().Error(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for text, want := range map[string]string{
		"10.0.0.1-10.0.0.9": "", " 10.0.0.1 - 10.0.0.9 ": "", "": "", "10.0.0.1": "write the first and the last", "10.0.0.9-10.0.0.1": "ends before it begins", "fd00::1-fd00::2": "not a range",
	} {
		var r Range
		err := r.UnmarshalText([]byte(text))
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("range %q: %v, want %q", text, err, want)
		}
		var again Range
		if out, _ := r.MarshalText(); err == nil && (again.UnmarshalText(out) != nil || again != r) {
			t.Errorf("range %q becomes %q", text, out)
		}
	}
	for text, ok := range map[string]bool{"server": true, "proxy": true, "auto": true, "off": true, "on": false, "": false} {
		var m Mode
		if err := m.UnmarshalText([]byte(text)); (err == nil) != ok || (ok && string(m) != text) {
			t.Errorf("mode %q: %q, %v", text, m, err)
		}
	}
}

func TestPoolLeavesOutWhatIsNoClients(t *testing.T) {
	s := labSettings(ModeServer)
	s.Pool = Range{ip("10.99.0.252"), ip("10.99.0.255")} // 252 is NTP's; 253 DNS, 254 the gateway, 255 broadcast
	pool, _ := loadLeases(nil)
	v := view{pool, &s, labHosts()}
	got, ok := v.Free(strangeMAC, ip("10.99.0.254"), start)
	if !ok || got != ip("10.99.0.252") {
		t.Errorf("Free = %v, %v", got, ok)
	}
	pool.grant(Lease{strangeMAC, got, start.Add(time.Hour)})
	if got, ok := v.Free(secondMAC, netip.Addr{}, start); ok {
		t.Errorf("Free = %v from a full pool", got)
	}
}

func TestTextOfTheNetworkIsHarmless(t *testing.T) {
	p := parse(t, record(t, "ipxe-virtio")[0].data)
	p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:\x1b[2J\n" + strings.Repeat("x", 200)))
	c := classify(p)
	if want := "PXEClient:?[2J?" + strings.Repeat("x", 49) + "..."; c.Vendor != want {
		t.Errorf("vendor = %q; want %q", c.Vendor, want)
	}
}

// FuzzAnswer holds, for any packet in any mode, what must never happen.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"ipxe-virtio", "ovmf-pxe", "ovmf-http"} {
		for _, r := range record(f, name) {
			for mode := range byte(4) {
				f.Add(r.data, mode, mode&1 == 0)
			}
		}
	}
	modes := []Mode{ModeServer, ModeProxy, ModeAuto, ModeOff}
	f.Fuzz(func(t *testing.T, data []byte, flags byte, known bool) {
		p, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		s := labSettings(modes[flags&3])
		s.AnswerUnknown = flags&4 != 0
		port := ServerPort
		if flags&8 != 0 {
			port = BootPort
		}
		r := ask(p, port, s, known)
		if r.Reason == "" {
			t.Error("it gives no reason")
		}
		if r.Packet == nil {
			return
		}
		to := r.To(port, netip.MustParseAddrPort("10.99.0.58:4011"))
		wire := r.Packet.ToBytes()
		got, err := dhcpv4.FromBytes(wire)
		if err != nil {
			t.Fatalf("the reply cannot be read: %v", err)
		}
		switch {
		case s.Mode == ModeOff:
			t.Error("off, and it answers")
		case len(wire) > 1500-28:
			t.Errorf("%d bytes do not fit into a frame", len(wire))
		case got.OpCode != dhcpv4.OpcodeBootReply || got.TransactionID != p.TransactionID || cardOf(got) != cardOf(p) || addr(got.ServerIdentifier()) != s.Site.Server:
			t.Errorf("it is no reply of ours to this card: %v", got)
		case !to.IsValid() || !to.Addr().Is4():
			t.Errorf("it goes to %v", to)
		}
		file := got.BootFileName + got.BootFileNameOption()
		if !known && file != "" && (!s.AnswerUnknown || s.Mode == ModeAuto) {
			t.Errorf("a stranger is told to boot %q", file)
		}
		address := addr(got.YourIPAddr)
		switch {
		case s.Mode != ModeServer && (address.IsValid() || got.IPAddressLeaseTime(0) != 0 || file == ""):
			t.Errorf("as a proxy it says %v", got.Summary())
		case known && address.IsValid() && address != exp01.IP, !known && address.IsValid() && address != ip("10.99.0.13") && address != ip("10.99.0.14"):
			t.Errorf("it gives %v", address)
		case r.Grant != nil && (known || r.Grant.IP != address || got.MessageType() != dhcpv4.MessageTypeAck):
			t.Errorf("it grants %+v", r.Grant)
		}
		if c := classify(p); !known && c.Kind == Unsupported && file != "" {
			t.Errorf("%v is told to boot %q", c, file)
		}
	})
}
