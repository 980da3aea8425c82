// Package serve is the boot server: one process that gives a lab's PCs addresses
// and boot files, decides which of them is reimaged, hands out manifests and
// wads, takes what the PCs report, and shows all of it.
//
// Its parts run beside each other until one fails or ctx ends; then all end:
//
//	dhcp    answers on the configured interfaces: as the network's server, or beside one
//	tftp    the TFTP root, and a text for each PC that is made when it asks
//	http    the same by HTTP; wads, manifests, events; the API and the web page
//	socket  the API for whoever may log in on this machine
//	lab     the records and decisions behind all of these
//
// It is configured by one file, lab.yaml ([Config]), beside the site that
// "reassure init" makes. The site is read again when one of its files changes, on
// SIGHUP and on "reassure reload"; lab.yaml itself only at the start.
package serve

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reassure/image/conf"
	"reassure/image/serve/dhcp"
	"reassure/image/spec"
)

// Config is lab.yaml. Relative paths are relative to its folder.
type Config struct {
	// Site is the site's folder; empty means lab.yaml's own.
	Site string `yaml:"site"`
	// State is the server's own folder: records, wads, tokens. It should be on
	// the file system of the site's wads, which are then not copied but linked.
	State string `yaml:"state"`
	// Socket is where this machine's commands reach the server.
	Socket string `yaml:"socket"`
	// Interfaces are the only ones that DHCP and TFTP answer on.
	Interfaces []string `yaml:"interfaces"`
	DHCP       DHCP     `yaml:"dhcp"`
	TFTP       TFTP     `yaml:"tftp"`
	HTTP       HTTP     `yaml:"http"`
	Attempts   Attempts `yaml:"attempts"`
	Waves      Waves    `yaml:"waves"`
	// Key is the private key that manifests are signed with; empty means the
	// site's own, where "make image" has it.
	Key string `yaml:"key"`
	// SSHKey is a private key that roll-outs with --now log into PCs with, as
	// root, to restart them.
	SSHKey string `yaml:"ssh_key"`

	dir string
}

// DHCP is the configuration of the DHCP side.
type DHCP struct {
	Mode dhcp.Mode `yaml:"mode"`
	// Pool is where PCs that are not in the inventory get an address from, in
	// mode server ("172.30.0.100-172.30.0.199"); empty gives them none.
	Pool dhcp.Range `yaml:"pool"`
	// Lease is how long an address is given for.
	Lease spec.Duration `yaml:"lease"`
	// Files are the boot loaders, files of the TFTP root.
	Files dhcp.Files `yaml:"files"`
	// AnswerUnknown tells PCs that are not in the inventory what to boot, too:
	// they find Local.
	AnswerUnknown bool `yaml:"answer_unknown"`
}

// TFTP is the configuration of the TFTP side.
type TFTP struct {
	// Root is the folder that "make image" made (out/tftproot).
	Root string `yaml:"root"`
	// Off leaves TFTP to another server; boot texts are then fetched by HTTP only.
	Off bool `yaml:"off"`
}

// HTTP is the configuration of the HTTP side.
type HTTP struct {
	// Listen are addresses and ports; empty means the site's server address and
	// the port of the site's URL.
	Listen []string `yaml:"listen"`
	// Certificate and Key are PEM files, where the site's URL is HTTPS. They are read
	// again when they change.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// BootListen is where boot files and wads, and nothing else, are served by plain HTTP
	// then; empty means as the site's boot_url says.
	BootListen []string `yaml:"boot_listen"`
}

// Attempts is how often a reimage is tried, and how fast.
type Attempts struct {
	Most  int           `yaml:"most"`
	Pause spec.Duration `yaml:"pause"` // after the first that failed; it doubles
	// Lease is how long a PC may be silent before its attempt counts as failed.
	Lease spec.Duration `yaml:"lease"`
}

// Waves are what a roll-out does unless its command says otherwise.
type Waves struct {
	Canaries *int `yaml:"canaries"`
	AtOnce   int  `yaml:"at_once"`
	StopAt   *int `yaml:"stop_at"` // percent
}

// ConfigFile is the configuration's name in a folder that "reassure init" makes.
const ConfigFile = "lab.yaml"

// DefaultSocket is where commands look for the server.
const DefaultSocket = "/run/reassure/reassure.sock"

// Validate returns every problem that shows in the file alone.
func (c *Config) Validate() spec.Problems {
	var ps spec.Problems
	add := func(path, format string, args ...any) {
		ps = append(ps, spec.Problem{Path: path, Text: fmt.Sprintf(format, args...)})
	}
	if c.DHCP.Mode == "" {
		add("dhcp.mode", "is missing: write server, proxy (beside the site's own DHCP server), auto (proxy for known PCs only), or off")
	}
	if len(c.Interfaces) == 0 && (c.DHCP.Mode != dhcp.ModeOff || !c.TFTP.Off) {
		add("interfaces", "is missing: name the network cards that DHCP and TFTP answer on, and no others")
	}
	for i, name := range c.Interfaces {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, " /\t") {
			add(fmt.Sprintf("interfaces[%d]", i), "%q is not the name of a network card", name)
		}
	}
	if c.TFTP.Root == "" {
		add("tftp.root", "is missing: name the folder that make image made (out/tftproot)")
	}
	if c.State == "" {
		add("state", "is missing: name a folder for the server's own (/var/lib/reassure)")
	}
	for key, listen := range map[string][]string{"http.listen": c.HTTP.Listen, "http.boot_listen": c.HTTP.BootListen} {
		for i, l := range listen {
			if _, err := netip.ParseAddrPort(l); err != nil {
				add(fmt.Sprintf("%s[%d]", key, i), "%q: write an address and a port, such as 172.30.0.5:80", l)
			}
		}
	}
	if (c.HTTP.Certificate == "") != (c.HTTP.Key == "") {
		add("http.certificate", "certificate and key go together: name both, or neither")
	}
	if c.Attempts.Most < 0 {
		add("attempts.most", "%d: write 1 or more", c.Attempts.Most)
	}
	if n := c.Waves.Canaries; n != nil && *n < 0 {
		add("waves.canaries", "%d: write 0 or more", *n)
	}
	if c.Waves.AtOnce < 0 {
		add("waves.at_once", "%d: write 1 or more", c.Waves.AtOnce)
	}
	if n := c.Waves.StopAt; n != nil && (*n < 0 || *n > 100) {
		add("waves.stop_at", "%d: write a share in percent, 0 to 100", *n)
	}
	return ps
}

// Load reads lab.yaml and fills in what it leaves out.
func Load(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: name it with --config, or make one with reassure init", file)
	} else if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := &Config{}
	if err := conf.Decode(file, data, c); err != nil {
		return nil, err
	}
	if c.dir, err = filepath.Abs(filepath.Dir(file)); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, path := range []*string{&c.Site, &c.State, &c.TFTP.Root, &c.Key, &c.SSHKey, &c.Socket, &c.HTTP.Certificate, &c.HTTP.Key} {
		switch {
		case *path == "" && path == &c.Site:
			*path = c.dir
		case *path != "" && !filepath.IsAbs(*path):
			*path = filepath.Join(c.dir, *path)
		}
	}
	or := func(d *spec.Duration, usual time.Duration) {
		if *d == 0 {
			*d = spec.Duration(usual)
		}
	}
	or(&c.DHCP.Lease, time.Hour)
	or(&c.Attempts.Pause, time.Minute)
	or(&c.Attempts.Lease, 10*time.Minute)
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if c.Attempts.Most == 0 {
		c.Attempts.Most = 3
	}
	if c.Waves.Canaries == nil {
		c.Waves.Canaries = new(2)
	}
	if c.Waves.AtOnce == 0 {
		c.Waves.AtOnce = 16
	}
	if c.Waves.StopAt == nil {
		c.Waves.StopAt = new(20)
	}
	return c, nil
}
