package netup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"reassure/image/spec"
)

// Waits for an answer grow from the first to the last, so that a server that
// is there is found at once, and one that starts is not flooded by a whole lab. The
// last is far from the 64 seconds of RFC 2131, 4.1: while a switch's spanning tree
// keeps a port shut, nothing tells when that ends, and the PC waits for its server for
// a minute in all. Up to spread is added at random, as that section wants: power comes back to
// all PCs at once.
const (
	firstWait = 2 * time.Second
	lastWait  = 4 * time.Second
	spread    = time.Second
)

// gatherRandom has the kernel begin to make random numbers, and returns a
// channel that is closed when it has them. The DHCP library asks for them
// without waiting, again and again for two minutes; on a PC without RDRAND the
// kernel has none yet, and begins to make them only when somebody waits
// (drivers/char/random.c, try_to_generate_entropy), which takes about a second.
func gatherRandom() <-chan struct{} {
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		var seed [1]byte
		_, _ = rand.Read(seed[:]) // it never fails
	}()
	return ready
}

// dhcp asks on all cards that have a carrier, until one gets a lease.
func (o *Options) dhcp(ctx context.Context, cards []*card, random <-chan struct{}) (*Network, error) {
	select {
	case <-random:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.DHCP)
	defer cancel()
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		round := time.NewTimer(time.Second)
		if n := o.ask(ctx, cards, wait+mathrand.N(spread)); n != nil {
			return n, nil
		}
		// An error that comes at once (a NAK, a card that is going down) must
		// not become a flood.
		select {
		case <-round.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil, noLease(cards, time.Since(begin), ctx.Err())
		}
		if !look(cards) {
			if err := o.awaitCarrier(ctx, cards, o.Carrier); err != nil {
				return nil, err
			}
		}
	}
}

func noLease(cards []*card, took time.Duration, cause error) error {
	var tried []string
	for _, c := range cards {
		switch {
		case !c.carrier && c.requests == 0:
			tried = append(tried, c.String()+" has no carrier")
		default:
			tried = append(tried, fmt.Sprintf("%v: %d requests, the last: %v", c, c.requests, c.lastErr))
		}
	}
	return fmt.Errorf("no DHCP lease after %v: %s: check that the DHCP server knows the card and that the switch port is on its network, or give an address by reassure.static: %w",
		took.Round(time.Second), strings.Join(tried, "; "), cause)
}

var errNoAnswer = errors.New("no answer")

// ask does one exchange of four messages on each card that has a carrier, on all at
// the same time: each has its switch port, which may open at any moment. The first
// that gets a lease counts, and nil means none.
func (o *Options) ask(ctx context.Context, cards []*card, wait time.Duration) *Network {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		card *card
		n    *Network
		err  error
	}
	results := make(chan result)
	asked := 0
	failed := func(c *card, err error) {
		c.lastErr = err
		o.Log.Info("no DHCP lease yet", "card", c.String(), "requests", c.requests, "error", err)
	}
	for _, c := range cards {
		if !c.carrier || ctx.Err() != nil {
			continue
		}
		name, err := o.tagged(c)
		if err != nil {
			failed(c, err)
			continue
		}
		c.requests++
		client, err := nclient4.New(name, nclient4.WithTimeout(wait), nclient4.WithRetry(1), nclient4.WithHWAddr(c.mac[:]))
		if err != nil {
			failed(c, fmt.Errorf("DHCP on %s: %w", name, err))
			continue
		}
		asked++
		go func() {
			defer client.Close()
			n, err := request(ctx, client, name, c.mac)
			results <- result{c, n, err}
		}()
	}
	var won *Network
	for range asked {
		r := <-results
		switch {
		case won != nil: // the others were told to stop
		case r.err != nil:
			failed(r.card, r.err)
		default:
			won = r.n
			cancel()
		}
	}
	return won
}

// request does the exchange on one interface.
func request(ctx context.Context, client *nclient4.Client, name string, mac spec.MAC) (*Network, error) {
	begin := time.Now()
	lease, err := client.Request(ctx, dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU,
		dhcpv4.OptionNTPServers, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, dhcpv4.OptionClasslessStaticRoute,
	))
	if errors.Is(err, nclient4.ErrNoResponse) || (err != nil && ctx.Err() != nil) {
		return nil, fmt.Errorf("%w in %v", errNoAnswer, time.Since(begin).Round(time.Second))
	}
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", name, err)
	}
	return fromACK(name, mac, lease.ACK)
}

// fromACK reads what a DHCP server gave (RFC 2131, 2132, 3442).
func fromACK(name string, mac spec.MAC, ack *dhcpv4.DHCPv4) (*Network, error) {
	n := &Network{Interface: name, MAC: mac}
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || (!ip.IsGlobalUnicast() && !ip.IsLinkLocalUnicast()) {
		return nil, fmt.Errorf("DHCP on %s: the server %v gave %v, which is no PC's address", name, ack.ServerIdentifier(), ack.YourIPAddr)
	}
	bits := ip.BitLen()
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask() // RFC 950's classes, as every client does
	}
	if ones, size := mask.Size(); size == 32 {
		bits = ones
	}
	n.Address = netip.PrefixFrom(ip, bits)
	if routers := addresses(ack.Router()); len(routers) > 0 {
		n.Gateway = routers[0]
	}
	// A client that gets classless routes must ignore the router option.
	if routes := ack.ClasslessStaticRoute(); len(routes) > 0 {
		n.Gateway = netip.Addr{}
		for _, r := range routes {
			gateway, ok := netip.AddrFromSlice(r.Router.To4())
			base, ok2 := netip.AddrFromSlice(r.Dest.IP.To4())
			ones, _ := r.Dest.Mask.Size()
			if !ok || !ok2 {
				continue
			}
			if ones == 0 && !gateway.IsUnspecified() {
				n.Gateway = gateway
				continue
			}
			n.Routes = append(n.Routes, Route{To: netip.PrefixFrom(base, ones).Masked(), Gateway: gateway})
		}
	}
	n.DNS = addresses(ack.DNS())
	n.NTP = addresses(ack.NTPServers())
	n.Domain = domain(ack.DomainName())
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil {
		n.MTU = int(mtu)
	}
	if ids := addresses([]net.IP{ack.ServerIdentifier()}); len(ids) > 0 {
		n.Server = ids[0]
	}
	if next := addresses([]net.IP{ack.ServerIPAddr}); len(next) > 0 {
		n.NextServer = next[0]
	} else if a, err := netip.ParseAddr(ack.TFTPServerName()); err == nil {
		n.NextServer = a
	}
	n.BootFile = ack.BootFileName
	if o := ack.BootFileNameOption(); o != "" {
		n.BootFile = o
	}
	if lease := ack.IPAddressLeaseTime(0); lease < 0xffffffff*time.Second {
		n.Lease = lease
	}
	return n, nil
}

// addresses are those of in that are IPv4 addresses of somebody.
func addresses(in []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range in {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && !a.IsUnspecified() {
			out = append(out, a)
		}
	}
	return out
}

// domain is a domain name as resolv.conf takes it, and empty where it is none:
// it comes from the network.
func domain(s string) string {
	s = strings.TrimRight(s, "\x00")
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" {
		return ""
	}
	return s
}
