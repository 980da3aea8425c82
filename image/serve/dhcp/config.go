// Package dhcp writes the configuration of the DHCP server that a site runs:
// every PC of the inventory with its address, the boot server and pxelinux.
package dhcp

import (
	"fmt"
	"strings"

	"reassure/image/resolve"
)

// Kinds are the DHCP servers that [Config] knows.
func Kinds() []string { return []string{"dhcpd", "kea", "dnsmasq"} }

// Config returns the whole configuration of a DHCP server of that kind, from the
// template dhcp/KIND. card is the server's network card; empty leaves it to the
// server's own choice.
func Config(site *resolve.Site, kind, card string) (string, error) {
	known := false
	for _, k := range Kinds() {
		known = known || k == kind
	}
	if !known {
		return "", fmt.Errorf("%q is no DHCP server that is known here: write one of %s", kind, strings.Join(Kinds(), ", "))
	}
	if strings.ContainsAny(card, " \t\r\n\";{}") {
		return "", fmt.Errorf("%q is not the name of a network card", card)
	}
	s := site.Inventory.Site
	if !s.Network.Addr().Is4() || !s.Server.Is4() {
		return "", fmt.Errorf("site.network %v and site.server %v must be IPv4: PCs boot with DHCPv4", s.Network, s.Server)
	}
	source := "dhcp/" + kind
	text, err := site.Template(source)
	if err != nil {
		return "", err
	}
	lab := site.Lab()
	lab.Interface = card
	return lab.Text(source, text)
}
