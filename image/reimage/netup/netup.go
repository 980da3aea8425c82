// Package netup brings up the network of a PC that was booted over it: the
// card it booted from, else the one that the operator names, else every card
// that has a carrier; on a VLAN where asked; by DHCP or with a static
// address, or with one that IPv6 routers let it make. It changes nothing on cards that it does not use but to switch them
// on.
package netup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
)

// Options say which card to use, and how. The zero value is DHCP on the first
// card that gets an answer.
type Options struct {
	// NIC is a card's kernel name or MAC address; it wins over BootMAC.
	NIC string
	// BootMAC is the address of the card that booted; zero means unknown.
	BootMAC spec.MAC
	// VLAN is the tag to use on the card; 0 means none.
	VLAN int
	// Static is the address to take; nil means DHCP.
	Static *cmdline.Static
	// IPv6 is for networks without DHCP for IPv4: the kernel makes an address from what
	// routers advertise (RFC 4862). Static wins over it. Name servers are not asked for.
	IPv6 bool
	// MTU is the card's; 0 means DHCP's, or its own.
	MTU int
	// Carrier is how long a link may take; 0 means 60 seconds, which is more
	// than spanning tree takes to let a port pass.
	Carrier time.Duration
	// DHCP is how long DHCP, or IPv6, is tried once there is a carrier; 0 means 90 seconds.
	DHCP time.Duration
	// ResolvConf is the file for name servers; empty means /etc/resolv.conf.
	ResolvConf string
	Log        *slog.Logger
}

// Network is what came up.
type Network struct {
	Interface string // eth0, or eth0.12
	MAC       spec.MAC
	Address   netip.Prefix
	Gateway   netip.Addr // zero means none
	Routes    []Route    // besides the gateway's
	DNS       []netip.Addr
	Domain    string
	NTP       []netip.Addr
	MTU       int // 0 means the card's own

	// By DHCP only.
	Server     netip.Addr    // DHCP server
	NextServer netip.Addr    // siaddr, or option 66 where that is an address
	BootFile   string        // bootfile name
	Lease      time.Duration // 0 means for ever

	advertised bool // by IPv6 routers, to the kernel
}

// Route is a classless static route (RFC 3442).
type Route struct {
	To      netip.Prefix
	Gateway netip.Addr // unspecified means on the link
}

// card is a network card that may be used.
type card struct {
	name  string
	index int
	mac   spec.MAC

	carrier  bool
	requests int
	lastErr  error
}

func (c *card) String() string { return fmt.Sprintf("%s (%v)", c.name, c.mac) }

// Present says whether the card that Up would use is there, or any when none
// is named; it is the condition to wait for while drivers are loaded.
func Present(o Options) bool {
	_, err := o.candidates()
	return err == nil
}

// Up brings the network up. Its error says what was tried.
func Up(ctx context.Context, o Options) (*Network, error) {
	if o.Carrier == 0 {
		o.Carrier = time.Minute
	}
	if o.DHCP == 0 {
		o.DHCP = 90 * time.Second
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	random := gatherRandom()
	if err := linkUp("lo"); err != nil {
		return nil, err
	}
	cards, err := o.candidates()
	if err != nil {
		return nil, err
	}
	for _, c := range cards {
		if o.IPv6 && o.Static == nil {
			askRouters(c.name)
		}
		if err := linkUp(c.name); err != nil {
			o.Log.Warn("a network card cannot be switched on", "card", c.String(), "error", err)
			c.lastErr = err
		}
	}
	if err := o.awaitCarrier(ctx, cards, o.Carrier); err != nil {
		return nil, err
	}
	if o.VLAN != 0 {
		// Of no card would this work better.
		if _, err := o.tagged(cards[0]); errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
	}
	var n *Network
	switch {
	case o.Static != nil:
		n, err = o.static(cards)
	case o.IPv6:
		n, err = o.advertised(ctx, cards)
	default:
		n, err = o.dhcp(ctx, cards, random)
	}
	if err != nil {
		return nil, err
	}
	if o.MTU != 0 {
		n.MTU = o.MTU
	}
	if err := n.apply(o.ResolvConf, o.Log); err != nil {
		return nil, err
	}
	o.Log.Info("network is up", n.attrs()...)
	return n, nil
}

// attrs are what is worth a log line.
func (n *Network) attrs() []any {
	attrs := []any{"card", n.Interface, "mac", n.MAC, "address", n.Address}
	for _, a := range []struct {
		key   string
		value netip.Addr
	}{{"gateway", n.Gateway}, {"dhcp_server", n.Server}, {"next_server", n.NextServer}} {
		if a.value.IsValid() {
			attrs = append(attrs, a.key, a.value)
		}
	}
	if len(n.DNS) > 0 {
		attrs = append(attrs, "dns", fmt.Sprint(n.DNS))
	}
	if n.Lease > 0 {
		attrs = append(attrs, "lease", n.Lease)
	}
	return attrs
}

// candidates returns the cards to try.
func (o *Options) candidates() ([]*card, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	var all []*card
	for _, l := range links {
		a := l.Attrs()
		// Cards have no kind of their own; veth stands for one in tests.
		if a.EncapType != "ether" || len(a.HardwareAddr) != 6 || (l.Type() != "device" && l.Type() != "veth") {
			continue
		}
		all = append(all, &card{name: a.Name, index: a.Index, mac: spec.MAC(a.HardwareAddr)})
	}
	if len(all) == 0 {
		return nil, errors.New("there is no network card: its driver is not in the image, or the firmware has it switched off")
	}
	wanted := func(*card) bool { return true }
	var what string
	switch {
	case o.NIC != "":
		what = fmt.Sprintf("no network card is %s, as reassure.nic wants it", o.NIC)
		wanted = func(c *card) bool { return c.name == o.NIC || strings.EqualFold(c.mac.String(), o.NIC) }
	case o.BootMAC != spec.MAC{}:
		what = fmt.Sprintf("no network card has %v, the address that this PC booted from (is its driver in the image?)", o.BootMAC)
		wanted = func(c *card) bool { return c.mac == o.BootMAC }
	}
	chosen := slices.DeleteFunc(slices.Clone(all), func(c *card) bool { return !wanted(c) })
	if len(chosen) == 0 {
		names := make([]string, len(all))
		for i, c := range all {
			names[i] = c.String()
		}
		return nil, fmt.Errorf("%s; there are %s: reassure.nic=NAME takes another", what, strings.Join(names, ", "))
	}
	return chosen, nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("network card %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch on network card %s: %w", name, err)
	}
	return nil
}

// look renews what is known of the cards' carriers, and says whether any has one.
func look(cards []*card) bool {
	some := false
	for _, c := range cards {
		link, err := netlink.LinkByIndex(c.index)
		c.carrier = err == nil && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		some = some || c.carrier
	}
	return some
}

// awaitCarrier waits until one of the cards has a carrier.
func (o *Options) awaitCarrier(ctx context.Context, cards []*card, limit time.Duration) error {
	done := make(chan struct{})
	defer close(done)
	updates := make(chan netlink.LinkUpdate, 16)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watch network cards: %w", err)
	}
	// The library's sender must not hang when nobody reads any more.
	defer func() {
		go func() {
			for range updates {
			}
		}()
	}()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	patience := time.NewTimer(min(3*time.Second, limit/2))
	defer patience.Stop()
	again := time.NewTicker(time.Second) // for drivers that announce nothing
	defer again.Stop()
	for {
		if look(cards) {
			return nil
		}
		select {
		case _, open := <-updates:
			if !open {
				updates = nil
			}
		case <-again.C:
		case <-patience.C:
			o.Log.Info("waiting for a carrier; a switch port with spanning tree takes up to a minute", "cards", names(cards), "limit", limit)
		case <-ctx.Done():
			return fmt.Errorf("no carrier after %v on %s: check cable and switch port: %w", limit, names(cards), ctx.Err())
		}
	}
}

func names(cards []*card) string {
	var out []string
	for _, c := range cards {
		out = append(out, c.String())
	}
	return strings.Join(out, ", ")
}

// tagged returns the interface to use on a card, which is a new one for a VLAN.
func (o *Options) tagged(c *card) (string, error) {
	if o.VLAN == 0 {
		return c.name, nil
	}
	name := fmt.Sprintf("%s.%d", c.name, o.VLAN)
	if len(name) >= unix.IFNAMSIZ {
		name = fmt.Sprintf("vlan%d", o.VLAN)
	}
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: c.index, HardwareAddr: c.mac[:]}, VlanId: o.VLAN}
	switch err := netlink.LinkAdd(vlan); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "", fmt.Errorf("VLAN %d on %s: %w: add the module 8021q to the image's preload list", o.VLAN, c.name, err)
	case err != nil && !errors.Is(err, unix.EEXIST):
		return "", fmt.Errorf("VLAN %d on %s: %w", o.VLAN, c.name, err)
	}
	return name, linkUp(name)
}

// static takes the first card that has a carrier.
func (o *Options) static(cards []*card) (*Network, error) {
	i := slices.IndexFunc(cards, func(c *card) bool { return c.carrier })
	if i < 0 {
		return nil, fmt.Errorf("no carrier on %s", names(cards))
	}
	name, err := o.tagged(cards[i])
	if err != nil {
		return nil, err
	}
	return &Network{Interface: name, MAC: cards[i].mac, Address: o.Static.Address, Gateway: o.Static.Gateway, DNS: o.Static.DNS}, nil
}

// apply gives the interface its address, and the system its routes and name servers.
func (n *Network) apply(resolvConf string, log *slog.Logger) error {
	link, err := netlink.LinkByName(n.Interface)
	if err != nil {
		return fmt.Errorf("network card %s: %w", n.Interface, err)
	}
	// 68 is the least that IPv4 takes (RFC 791); less than 576 is a mistake.
	if n.MTU >= 576 && n.MTU != link.Attrs().MTU {
		// Most that a PC fetches comes through in spite of it, or the fetch says what does not.
		if err := setMTU(link, n.MTU); err != nil {
			log.Warn("the network card keeps its own MTU: mend reassure.mtu, or the DHCP server's option interface-mtu", "card", n.Interface,
				"mtu", link.Attrs().MTU, "wanted", n.MTU, "error", err)
		}
	}
	// What routers advertise, the kernel has applied.
	if !n.advertised {
		address := &netlink.Addr{IPNet: ipNet(n.Address)}
		if n.Address.Addr().Is6() {
			// Else the address cannot be used for a second (RFC 4862, 5.4), and the first connection fails.
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("address %v on %s: %w", n.Address, n.Interface, err)
		}
	}
	for _, r := range n.Routes {
		if err := n.route(link, r.To, r.Gateway); err != nil {
			return err
		}
	}
	if n.Gateway.IsValid() {
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if n.Gateway.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := n.route(link, everything, n.Gateway); err != nil {
			return err
		}
	}
	if len(n.DNS) == 0 {
		return nil
	}
	return n.writeResolvConf(resolvConf)
}

// setMTU sets it on what carries a VLAN, too, whose own cannot be larger.
func setMTU(link netlink.Link, mtu int) error {
	if link.Type() == "vlan" {
		parent, err := netlink.LinkByIndex(link.Attrs().ParentIndex)
		if err != nil {
			return err
		}
		if parent.Attrs().MTU < mtu {
			if err := netlink.LinkSetMTU(parent, mtu); err != nil {
				return err
			}
		}
	}
	return netlink.LinkSetMTU(link, mtu)
}

func (n *Network) route(link netlink.Link, to netip.Prefix, gateway netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	if gateway.IsUnspecified() {
		r.Scope = netlink.SCOPE_LINK
	} else {
		r.Gw = gateway.AsSlice()
		if !n.Address.Contains(gateway) {
			// As networks with /32 leases have it.
			r.SetFlag(netlink.FLAG_ONLINK)
		}
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %v by %v on %s: %w", to, gateway, n.Interface, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (n *Network) writeResolvConf(name string) error {
	var text bytes.Buffer
	if n.Domain != "" {
		fmt.Fprintf(&text, "search %s\n", n.Domain)
	}
	for _, d := range n.DNS {
		fmt.Fprintf(&text, "nameserver %v\n", d)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	if err := os.WriteFile(name, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	return nil
}
