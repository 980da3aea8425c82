package dhcp

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Kind is what a client can boot.
type Kind string

// Kinds.
const (
	NoBoot      Kind = "no boot client" // an operating system, or a ROM that wants an address only
	BIOS        Kind = "BIOS"
	UEFI        Kind = "UEFI x86-64"
	UEFIHTTP    Kind = "UEFI x86-64 by HTTP"
	IPXE        Kind = "iPXE"
	Unsupported Kind = "a machine that we have no files for"
)

// Client is what a client says that it is. Its texts hold printable ASCII only.
type Client struct {
	Kind      Kind
	Arch      string // of option 93, in words; empty without one
	Vendor    string // option 60
	UserClass string // option 77

	http, https bool // what iPXE can fetch by
}

func (c Client) String() string {
	if c.Kind == Unsupported {
		return fmt.Sprintf("%s (%s)", c.Kind, c.Arch)
	}
	return string(c.Kind)
}

// Option codes that the library has no name for.
const (
	optionIPXE = dhcpv4.GenericOptionCode(175) // Etherboot's, now iPXE's: options of its own
	optionUUID = dhcpv4.OptionClientMachineIdentifier
)

// Options within option 175 (iPXE, src/include/ipxe/dhcp.h and features.h).
const (
	ipxeHTTP      = 0x13 // it has HTTP
	ipxeHTTPS     = 0x14 // it has HTTPS
	ipxeNoProxies = 0xb0 // it need not wait for a proxy's offer
)

// classify tells what a client is (RFC 4578, RFC 5970, RFC 3004).
func classify(req *dhcpv4.DHCPv4) Client {
	vendor := req.Options.Get(dhcpv4.OptionClassIdentifier)
	class := userClass(req.Options.Get(dhcpv4.OptionUserClassInformation))
	c := Client{Kind: NoBoot, Vendor: printable(vendor), UserClass: printable([]byte(class))}
	byPXE := bytes.HasPrefix(vendor, []byte("PXEClient"))
	byHTTP := bytes.HasPrefix(vendor, []byte("HTTPClient"))
	archs := architectures(req, string(vendor))
	var names []string
	for _, a := range archs {
		names = append(names, fmt.Sprintf("%d, %s", uint16(a), a))
	}
	c.Arch = strings.Join(names, "; ")
	if class == "iPXE" && (byPXE || byHTTP) {
		features := subOptions(req.Options.Get(optionIPXE))
		_, c.http = features[ipxeHTTP]
		_, c.https = features[ipxeHTTPS]
		if c.Kind = IPXE; !runsOurs(archs) {
			c.Kind = Unsupported
		}
		return c
	}
	switch {
	case !byPXE && !byHTTP:
	case byHTTP:
		c.Kind = Unsupported
		for _, a := range archs {
			if a == iana.EFI_X86_64_HTTP {
				c.Kind = UEFIHTTP
			}
		}
	case len(archs) == 0:
		c.Kind = BIOS // PXE before 2.1, which has no option 93, knew PCs only
	default:
		c.Kind = Unsupported
		for _, a := range archs {
			switch a {
			case iana.INTEL_X86PC:
				c.Kind = BIOS
			case iana.EFI_X86_64, iana.EFI_BC:
				// RFC 4578 has 7 as EFI byte code and 9 as x86-64; firmware has
				// them the other way round, and IANA's registry follows it.
				c.Kind = UEFI
			default:
				continue
			}
			break
		}
	}
	return c
}

// runsOurs says whether a machine of these architectures can run our image.
func runsOurs(archs []iana.Arch) bool {
	for _, a := range archs {
		switch a {
		case iana.INTEL_X86PC, iana.EFI_X86_64, iana.EFI_BC, iana.EFI_X86_64_HTTP, iana.INTEL_X86PC_HTTP:
			return true
		}
	}
	return len(archs) == 0
}

// architectures returns those of option 93, else the one that is in the vendor
// class ("PXEClient:Arch:00007:UNDI:003016"), most wanted first.
func architectures(req *dhcpv4.DHCPv4, vendor string) []iana.Arch {
	if archs := req.ClientArch(); len(archs) > 0 {
		return archs
	}
	parts := strings.Split(vendor, ":")
	if len(parts) >= 3 && parts[1] == "Arch" {
		if n, err := strconv.ParseUint(parts[2], 10, 16); err == nil {
			return []iana.Arch{iana.Arch(n)}
		}
	}
	return nil
}

// userClass returns the first class of option 77. RFC 3004 puts a length before
// each; iPXE and others send the bare text.
func userClass(data []byte) string {
	if len(data) > 1 && int(data[0]) < len(data) && data[0] > 0 && data[0] < ' ' {
		return string(data[1 : 1+int(data[0])])
	}
	return string(data)
}

// subOptions reads options within an option; what is cut off is not there.
func subOptions(data []byte) map[byte][]byte {
	options := map[byte][]byte{}
	for len(data) >= 2 {
		code, n := data[0], int(data[1])
		if code == 0 || code == 255 { // padding; end
			if code == 255 {
				break
			}
			data = data[1:]
			continue
		}
		if len(data) < 2+n {
			break
		}
		options[code] = data[2 : 2+n]
		data = data[2+n:]
	}
	return options
}

// printable is a text of the network for logs and pages: short, and harmless to a
// terminal.
func printable(data []byte) string {
	const most = 64
	var b strings.Builder
	for _, c := range data {
		switch {
		case b.Len() == most:
			return b.String() + "..."
		case c == 0:
		case c < ' ' || c > '~':
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
