package serve

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

// neighbour returns the card that the kernel's neighbour table has for an address
// (ip neigh): whoever asks us something over Ethernet has just been put there.
func neighbour(address netip.Addr) (spec.MAC, bool) {
	entries, err := netlink.NeighList(0, unix.AF_INET)
	if err != nil {
		return spec.MAC{}, false
	}
	for _, e := range entries {
		const dead = netlink.NUD_FAILED | netlink.NUD_INCOMPLETE | netlink.NUD_NOARP
		if e.State&dead != 0 || len(e.HardwareAddr) != len(spec.MAC{}) || !e.IP.Equal(net.IP(address.AsSlice())) {
			continue
		}
		return spec.MAC(e.HardwareAddr), true
	}
	return spec.MAC{}, false
}
