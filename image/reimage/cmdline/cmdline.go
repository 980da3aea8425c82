// Package cmdline reads what the kernel command line tells the reimager.
//
//	reassure.url=URL          base URL of the published tree, instead of http://NEXT-SERVER/reassure
//	reassure.manifest=URL     this manifest, whatever the card's address
//	reassure.token=TOKEN      secret of this one boot, by which the site's server knows the PC
//	reassure.dry_run          find everything out, print the plan, write nothing
//	reassure.force            reimage even a disk that is up to date
//	reassure.ask              the boot decision is not known yet: a unified kernel image asks the server, at
//	                          URL/boot/uki/01-MAC, and takes further parameters of this list from there
//	reassure.debug            log everything that is done
//	reassure.shell            a shell on the console instead of a reimage, where the profile or the image allows it
//	reassure.root=FOLDER      where the new system is mounted while it is made; /mnt/gentoo
//	reassure.static=IP/PREFIX[,GATEWAY[,DNS...]]
//	                          this address instead of DHCP; a gateway may be left empty
//	reassure.ipv6             an address by IPv6 router advertisements (SLAAC) instead of DHCP's, for a
//	                          static site: reassure.url then names its server by number, http://[fd00::5]/reassure
//	reassure.mtu=NUMBER       MTU of the card, instead of DHCP's or its own; 576 to 65535
//	reassure.vlan=NUMBER      tagged VLAN to use on the card, 1 to 4094
//	reassure.nic=MAC|NAME     the card to use, instead of the one that booted
//	reassure.retries=NUMBER   how many more times a failed reimage is tried, instead of the manifest's
//	BOOTIF=01-MAC             the card that booted, as pxelinux (IPAPPEND 2) and our other menus write it
//	MODULE.PARAMETER=VALUE    goes to the module when it is loaded, as modprobe(8) does it
//	modprobe.blacklist=A,B    modules that are not loaded because a device is there
//
// Words are split and quoted as the kernel does it (lib/cmdline.c, next_arg):
// double quotes keep spaces, there are no escapes, dashes and underscores in
// keys are the same. The last of several equal keys wins. A switch (dry_run,
// force, debug, shell, ipv6) takes no value, or 1, 0, yes, no, on, off, true, false.
//
// The token is a [Secret]: nothing that prints the options, or a warning about
// them, prints it. The kernel's own first lines and /proc/cmdline hold it, as they
// hold every parameter; a server that makes tokens makes one for each boot.
//
// The same settings are flags of the reimager (see [Options.Register]):
// reassure.dry_run is --dry-run there.
package cmdline

import (
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"reassure/image/spec"
)

// Options is what the command line says. The zero value says nothing.
type Options struct {
	URL      string   // base URL of the published tree; empty means by DHCP
	Manifest string   // URL; empty means by the card's address
	Token    Secret   // empty means that the server wants none
	DryRun   bool     // write nothing
	Force    bool     // reimage what is up to date
	Ask      bool     // for the boot decision
	Debug    bool     // log everything
	Shell    bool     // no reimage, a shell
	Root     string   // mount point of the new system; empty means spec.MountRoot
	Static   *Static  // nil means DHCP
	IPv6     bool     // by router advertisements, not by DHCP
	MTU      int      // 0 means DHCP's, or the card's own
	VLAN     int      // 0 means untagged
	NIC      string   // kernel name or MAC address; empty means the one that booted
	Retries  *int     // nil means as the manifest says
	BootMAC  spec.MAC // of the card that booted; zero means unknown

	// ModuleParameters are the settings of kernel modules, by module name
	// with underscores, as finit_module(2) takes them.
	ModuleParameters map[string]string
	// Blacklist names modules, with underscores, that devices do not load.
	Blacklist []string
}

// Secret is a text that fmt, log/slog and encoding/json do not show. Converting it
// to a string does.
type Secret string

// hidden is what is shown of a secret.
const hidden = "(hidden)"

// Format implements [fmt.Formatter], for every verb.
func (s Secret) Format(f fmt.State, _ rune) {
	if s != "" {
		_, _ = io.WriteString(f, hidden)
	}
}

// MarshalText implements [encoding.TextMarshaler].
func (s Secret) MarshalText() ([]byte, error) { return fmt.Append(nil, s), nil }

// Static is a fixed network configuration.
type Static struct {
	Address netip.Prefix
	Gateway netip.Addr // zero means none
	DNS     []netip.Addr
}

// MountRoot is Root, or its default.
func (o *Options) MountRoot() string {
	if o.Root == "" {
		return spec.MountRoot
	}
	return o.Root
}

// setting is one thing that can be said, as a kernel parameter or as a flag.
type setting struct {
	name   string // as a kernel parameter, below "reassure."
	value  string // what its value is called; empty for a switch
	usage  string
	accept func(*Options, string) error
}

func settings() []setting {
	return []setting{
		{"url", "URL", "base `URL` of the published tree", func(o *Options, v string) error { return setURL(&o.URL, v) }},
		{"manifest", "URL", "`URL` of the manifest", func(o *Options, v string) error { return setURL(&o.Manifest, v) }},
		{"token", "TOKEN", "secret `token` of this boot", setToken},
		{"dry_run", "", "print the plan and write nothing", func(o *Options, v string) error { return setSwitch(&o.DryRun, v) }},
		{"force", "", "reimage even a disk that is up to date", func(o *Options, v string) error { return setSwitch(&o.Force, v) }},
		{"ask", "", "ask for the boot decision", func(o *Options, v string) error { return setSwitch(&o.Ask, v) }},
		{"debug", "", "log everything that is done", func(o *Options, v string) error { return setSwitch(&o.Debug, v) }},
		{"shell", "", "open a shell instead of reimaging", func(o *Options, v string) error { return setSwitch(&o.Shell, v) }},
		{"root", "FOLDER", "`folder` that the new system is mounted on", setRoot},
		{"static", "ADDRESS", "`address` IP/PREFIX[,GATEWAY[,DNS...]] instead of DHCP", setStatic},
		{"ipv6", "", "an address by IPv6 router advertisements", func(o *Options, v string) error { return setSwitch(&o.IPv6, v) }},
		{"mtu", "NUMBER", "`MTU` of the card", setMTU},
		{"vlan", "NUMBER", "tagged VLAN `number` on the card", setVLAN},
		{"nic", "CARD", "network `card` to use, by MAC address or kernel name", setNIC},
		{"retries", "NUMBER", "`number` of further tries after a failure", setRetries},
	}
}

// Parse reads a command line as /proc/cmdline holds it. What it does not
// understand is left out of the options and told in the warnings: a PC that
// has booted must not be stopped by a typing error.
func Parse(text string) (Options, []error) {
	var o Options
	warnings := o.Add(text)
	return o, warnings
}

// Add reads more of a command line, as [Parse] does. What it says wins.
func (o *Options) Add(text string) []error {
	var warnings []error
	known := settings()
	for _, p := range split(text) {
		key := underscores(p.key)
		if name, ours := strings.CutPrefix(key, "reassure."); ours {
			i := slices.IndexFunc(known, func(s setting) bool { return s.name == name })
			if i < 0 {
				warnings = append(warnings, fmt.Errorf("kernel command line: there is no %s: it is ignored", p.key))
				continue
			}
			if known[i].value != "" && !p.hasValue {
				warnings = append(warnings, fmt.Errorf("kernel command line: %s needs a value: write %s=%s", p.key, p.key, known[i].value))
				continue
			}
			if err := known[i].accept(o, p.value); err != nil {
				warnings = append(warnings, fmt.Errorf("kernel command line: %s: %w; it is ignored", p.key, err))
			}
			continue
		}
		switch module, parameter, dotted := strings.Cut(key, "."); {
		case key == "BOOTIF":
			mac, err := spec.ParsePXE(p.value)
			if err != nil {
				warnings = append(warnings, fmt.Errorf("kernel command line: BOOTIF: %w; it is ignored", err))
				continue
			}
			o.BootMAC = mac
		case key == "modprobe.blacklist":
			for m := range strings.SplitSeq(p.value, ",") {
				if m != "" {
					o.Blacklist = append(o.Blacklist, underscores(m))
				}
			}
		case dotted && module != "" && parameter != "" && !strings.ContainsAny(module, "/="):
			o.addModuleParameter(module, parameter, p)
		}
	}
	return warnings
}

func (o *Options) addModuleParameter(module, parameter string, p parameterWord) {
	text := parameter
	if p.hasValue {
		value := p.value
		if strings.ContainsAny(value, " \t") {
			value = `"` + value + `"`
		}
		text += "=" + value
	}
	if o.ModuleParameters == nil {
		o.ModuleParameters = map[string]string{}
	}
	if had := o.ModuleParameters[module]; had != "" {
		text = had + " " + text
	}
	o.ModuleParameters[module] = text
}

// Register adds the settings to a flag set. A flag changes o, so that flags
// parsed after the command line win.
func (o *Options) Register(flags *flag.FlagSet) {
	for _, s := range settings() {
		name := strings.ReplaceAll(s.name, "_", "-")
		set := func(v string) error { return s.accept(o, v) }
		if s.value == "" {
			flags.BoolFunc(name, s.usage, set)
			continue
		}
		flags.Func(name, s.usage, set)
	}
}

func setURL(to *string, v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%q is not an http or https address", v)
	}
	*to = v
	return nil
}

// setToken takes what an Authorization header may carry: token68 of RFC 9110, 11.2.
// An error does not show the value.
func setToken(o *Options, v string) error {
	text := strings.TrimRight(v, "=")
	if text == "" || strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~+/", r)
	}) {
		return fmt.Errorf("it may hold letters, digits and -._~+/ only, with = at its end")
	}
	o.Token = Secret(v)
	return nil
}

func setSwitch(to *bool, v string) error {
	switch strings.ToLower(v) {
	case "", "1", "y", "yes", "on", "true":
		*to = true
	case "0", "n", "no", "off", "false":
		*to = false
	default:
		return fmt.Errorf("%q is neither yes nor no", v)
	}
	return nil
}

func setRoot(o *Options, v string) error {
	if !path.IsAbs(v) || path.Clean(v) == "/" {
		return fmt.Errorf("%q is not a folder to mount on: write an absolute path such as %s", v, spec.MountRoot)
	}
	o.Root = path.Clean(v)
	return nil
}

func setStatic(o *Options, v string) error {
	fields := strings.Split(v, ",")
	var s Static
	var err error
	if s.Address, err = netip.ParsePrefix(fields[0]); err != nil || s.Address.Addr().IsUnspecified() {
		return fmt.Errorf("%q is not an address with its prefix: write it as 172.30.0.11/24", fields[0])
	}
	for i, f := range fields[1:] {
		if f == "" {
			continue
		}
		a, err := netip.ParseAddr(f)
		if err != nil {
			return fmt.Errorf("%q is not an IP address", f)
		}
		if i == 0 {
			s.Gateway = a
		} else {
			s.DNS = append(s.DNS, a)
		}
	}
	o.Static = &s
	return nil
}

// setMTU takes what every IPv4 host must (RFC 791) up to what an IPv4 packet can have.
func setMTU(o *Options, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 576 || n > 65535 {
		return fmt.Errorf("%q is not an MTU: write a number from 576 to 65535", v)
	}
	o.MTU = n
	return nil
}

func setVLAN(o *Options, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 4094 {
		return fmt.Errorf("%q is not a VLAN: write a number from 1 to 4094", v)
	}
	o.VLAN = n
	return nil
}

func setNIC(o *Options, v string) error {
	var mac spec.MAC
	if strings.ContainsAny(v, ":-") {
		if err := mac.UnmarshalText([]byte(v)); err != nil {
			return err
		}
		o.NIC = mac.String()
		return nil
	}
	// 15 bytes is the kernel's limit (IFNAMSIZ).
	if v == "" || len(v) > 15 || strings.ContainsAny(v, "/ \t") {
		return fmt.Errorf("%q is neither a MAC address nor the name of a network card", v)
	}
	o.NIC = v
	return nil
}

func setRetries(o *Options, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a number of tries", v)
	}
	o.Retries = &n
	return nil
}

// underscores spells a key or a module's name as the kernel compares it.
func underscores(s string) string { return strings.ReplaceAll(s, "-", "_") }

// parameterWord is one word of the command line.
type parameterWord struct {
	key, value string
	hasValue   bool
}

// split is lib/cmdline.c's next_arg, repeated.
func split(text string) []parameterWord {
	var words []parameterWord
	for {
		text = strings.TrimLeftFunc(text, isSpace)
		if text == "" {
			return words
		}
		quoted := text[0] == '"'
		if quoted {
			text = text[1:]
		}
		end, equals, inQuote := 0, 0, quoted
		for ; end < len(text); end++ {
			c := text[end]
			if !inQuote && isSpace(rune(c)) {
				break
			}
			if equals == 0 && c == '=' {
				equals = end
			}
			if c == '"' {
				inQuote = !inQuote
			}
		}
		word := text[:end]
		text = text[end:]
		p := parameterWord{key: word}
		if equals > 0 {
			p = parameterWord{key: word[:equals], value: word[equals+1:], hasValue: true}
			if v, ok := strings.CutPrefix(p.value, `"`); ok {
				p.value = strings.TrimSuffix(v, `"`)
			} else if quoted {
				p.value = strings.TrimSuffix(p.value, `"`)
			}
		} else if quoted {
			p.key = strings.TrimSuffix(word, `"`)
		}
		words = append(words, p)
	}
}

// isSpace is the ASCII part of the kernel's isspace.
func isSpace(r rune) bool { return r == ' ' || (r >= '\t' && r <= '\r') }
