package netup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// askRouters has the kernel ask for routers on a card every few seconds until one
// answers. By itself it would double the pause up to an hour (RFC 7559), and spend the
// minute that a PC waits for its server in three questions, all of them while a
// switch's spanning tree kept the port shut. Where that cannot be set it asks all the same.
func askRouters(card string) {
	for name, value := range map[string]string{"disable_ipv6": "0", "accept_ra": "1", "autoconf": "1", "router_solicitation_max_interval": "4"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+card+"/"+name, []byte(value), 0o644)
	}
}

// advertised waits until the kernel has made an address from what a router
// advertises, on any card that has a carrier.
func (o *Options) advertised(ctx context.Context, cards []*card) (*Network, error) {
	ctx, cancel := context.WithTimeout(ctx, o.DHCP)
	defer cancel()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	begin := time.Now()
	on := map[*card]string{}
	for {
		look(cards)
		for _, c := range cards {
			if !c.carrier {
				continue
			}
			if on[c] == "" {
				name, err := o.tagged(c)
				if err != nil {
					return nil, err
				}
				if on[c] = name; o.VLAN != 0 {
					askRouters(name)
				}
			}
			address, err := global(on[c])
			if err != nil {
				return nil, err
			}
			if address.IsValid() {
				return &Network{Interface: on[c], MAC: c.mac, Address: address, advertised: true}, nil
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("no IPv6 address after %v on %s: check that a router advertises a prefix for addresses (flag A), or give an address by reassure.static: %w",
				time.Since(begin).Round(time.Second), names(cards), ctx.Err())
		}
	}
}

// global is an IPv6 address of an interface that can be used by now, for more than its own link.
func global(name string) (netip.Prefix, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("network card %s: %w", name, err)
	}
	found, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return netip.Prefix{}, nil // it is looked at again
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, a := range found {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) != 0 {
			continue
		}
		bits, _ := a.Mask.Size()
		return netip.PrefixFrom(ip, bits), nil
	}
	return netip.Prefix{}, nil
}
