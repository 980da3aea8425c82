// Package dhcp writes the configuration of the DHCP server that a site runs:
// every PC of the inventory with its address, the boot server, and the boot loader for what it is.
package dhcp

import (
	"fmt"
	"path"
	"strings"

	"reassure/image/resolve"
)

// Kinds are the DHCP servers that [Config] knows.
func Kinds() []string { return []string{"dhcpd", "kea", "dnsmasq"} }

// ConfigOptions are what a person says besides the inventory.
type ConfigOptions struct {
	// Card is the server's network card; empty leaves it to the server's own choice.
	Card string
	// EFI is what PCs with UEFI load, shimx64.efi unless given: snponly.efi is iPXE.
	EFI string
}

// Config returns the whole configuration of a DHCP server of that kind, from the
// template dhcp/KIND.
func Config(site *resolve.Site, kind string, o ConfigOptions) (string, error) {
	known := false
	for _, k := range Kinds() {
		known = known || k == kind
	}
	if !known {
		return "", fmt.Errorf("%q is no DHCP server that is known here: write one of %s", kind, strings.Join(Kinds(), ", "))
	}
	if strings.ContainsAny(o.Card, " \t\r\n\";{}") {
		return "", fmt.Errorf("%q is not the name of a network card", o.Card)
	}
	if o.EFI == "" {
		o.EFI = "shimx64.efi"
	}
	if strings.ContainsAny(o.EFI, " \t\r\n\",;{}\\") || path.IsAbs(o.EFI) {
		return "", fmt.Errorf("%q is not the name of a file in the TFTP root, such as snponly.efi", o.EFI)
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
	lab.Interface, lab.EFI = o.Card, o.EFI
	return lab.Text(source, text)
}
