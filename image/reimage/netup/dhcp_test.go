package netup

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ack is a server's last message, of whom nobody knows whose server it is.
func ack(t testing.TB, address string, options ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(dhcpv4.WithReply(&dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, ClientHWAddr: pcMAC[:]}), dhcpv4.WithMessageType(dhcpv4.MessageTypeAck))
	if err != nil {
		t.Fatal(err)
	}
	m.YourIPAddr = net.ParseIP(address)
	for _, o := range options {
		m.UpdateOption(o)
	}
	return m
}

// TestHostileLease has a DHCP server say what harms whoever believes it.
func TestHostileLease(t *testing.T) {
	generic := func(code dhcpv4.OptionCode, value string) dhcpv4.Option {
		return dhcpv4.OptGeneric(code, []byte(value))
	}
	for _, address := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		if n, err := fromACK("eth0", pcMAC, ack(t, address)); err == nil || !strings.Contains(err.Error(), "no PC's address") {
			t.Errorf("%s: %+v, %v", address, n, err)
		}
	}
	n, err := fromACK("eth0", pcMAC, ack(t, "10.99.0.11",
		generic(dhcpv4.OptionDomainName, "lab\nnameserver 10.6.6.6"), dhcpv4.OptDNS(net.IPv4(10, 99, 0, 5), net.IPv4zero),
		generic(dhcpv4.OptionSubnetMask, "\xff\x00\xff\x00"), generic(dhcpv4.OptionRouter, "\x01"), generic(dhcpv4.OptionInterfaceMTU, "\x00"),
		generic(dhcpv4.OptionClasslessStaticRoute, "\x21\x0a\x00\x00\x00\x00\x0a\x63\x00\x01"), generic(dhcpv4.OptionTFTPServerName, "a;reboot"),
		generic(dhcpv4.OptionIPAddressLeaseTime, "\x00")))
	if err != nil {
		t.Fatal(err)
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := n.writeResolvConf(resolv); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(resolv); string(text) != "nameserver 10.99.0.5\n" {
		t.Errorf("resolv.conf = %q, %v", text, err)
	}
	if n.Gateway.IsValid() || len(n.Routes) > 0 || n.NextServer.IsValid() || n.MTU != 0 || n.Address.Addr() != a("10.99.0.11") {
		t.Errorf("network = %+v", n)
	}
}

// FuzzLease holds, for whatever a server may send, what the kernel, resolv.conf and the rest rely on.
func FuzzLease(f *testing.F) {
	f.Add(ack(f, "10.99.0.11", dhcpv4.OptRouter(net.IPv4(10, 99, 0, 1)), dhcpv4.OptDomainName("lab.example"), dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)),
		dhcpv4.OptIPAddressLeaseTime(time.Hour), dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: ipNet(p("10.50.0.0/16")), Router: net.IPv4(10, 99, 0, 3)})).ToBytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		n, err := fromACK("eth0", pcMAC, m)
		if err != nil {
			return
		}
		if !n.Address.IsValid() || strings.ContainsAny(n.Domain, " \t\r\n\x00") || n.MTU < 0 || n.MTU > 65535 || n.Lease < 0 {
			t.Errorf("%+v", n)
		}
		for _, r := range n.Routes {
			if !r.To.IsValid() || !r.Gateway.IsValid() {
				t.Errorf("route %+v", r)
			}
		}
		for _, d := range append(n.DNS, n.NTP...) {
			if !d.Is4() || d.IsUnspecified() {
				t.Errorf("server %v", d)
			}
		}
	})
}
