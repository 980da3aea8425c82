package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"reassure/image/nettest"
	"reassure/image/serve/card"
	"reassure/image/spec"
)

// namespace is one with switches and cables.
type namespace struct{ *nettest.Namespace }

func newNamespace(t *testing.T) *namespace {
	n := &namespace{nettest.New(t)}
	n.Up("lo")
	return n
}

// bridge makes a switch in the namespace, with addresses of the machine that it is in.
func (n *namespace) bridge(name string, addresses ...string) {
	n.T.Helper()
	n.Do(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
	n.Up(name, addresses...)
}

// cable joins a card in another namespace to a switch in this one.
func (n *namespace) cable(bridge string, to *namespace, card string, mac spec.MAC, addresses ...string) {
	n.T.Helper()
	port := fmt.Sprintf("p%02x%02x", mac[4], mac[5])
	n.Do(func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: card, PeerHardwareAddr: mac[:], PeerNamespace: to.FD}
		return errors.Join(netlink.LinkAdd(v), n.join(bridge, port))
	})
	to.Up(card, addresses...)
}

func (n *namespace) join(bridge, port string) error {
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	p, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(p, b), netlink.LinkSetUp(p))
}

// until waits for something that another process does.
func until(t *testing.T, what string, limit time.Duration, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen within %v", what, limit)
		}
	}
}

// inventory is a Backend and a LeaseStore of a few hosts.
type inventory struct {
	mu    sync.Mutex
	hosts map[spec.MAC]Host
	seen  []Sighting
	kept  map[spec.MAC]Lease
	fail  error // of SaveLease
}

func (i *inventory) Host(m spec.MAC) (Host, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	h, ok := i.hosts[m]
	return h, ok
}

func (i *inventory) Reserved(ip netip.Addr) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, h := range i.hosts {
		if h.IP == ip {
			return true
		}
	}
	return false
}

func (i *inventory) Seen(s Sighting) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = append(i.seen, s)
}

func (i *inventory) sightings(m spec.MAC) []Sighting {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(i.seen), func(s Sighting) bool { return s.MAC != m })
}

func (i *inventory) Leases() ([]Lease, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []Lease
	for _, l := range i.kept {
		all = append(all, l)
	}
	return all, nil
}

func (i *inventory) SaveLease(l Lease) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fail == nil {
		if i.kept == nil {
			i.kept = map[spec.MAC]Lease{}
		}
		i.kept[l.MAC] = l
	}
	return i.fail
}

func (i *inventory) DropLease(m spec.MAC) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.kept, m)
	return nil
}

func ip(s string) netip.Addr        { return netip.MustParseAddr(s) }
func network(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	knownMAC   = spec.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	secondMAC  = spec.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x57} // the same host's
	strangeMAC = spec.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x99}
	exp01      = Host{Name: "exp01", IP: ip("10.99.0.11")}
)

func labHosts() *inventory {
	return &inventory{hosts: map[spec.MAC]Host{knownMAC: exp01, secondMAC: exp01, {2, 0, 0, 0, 0, 1}: {Name: "exp02", IP: ip("10.99.0.12")}}}
}

// labSettings are those of the tests' lab; exp02's address is within the pool.
func labSettings(m Mode) Settings {
	s := Settings{
		Mode: m,
		Site: spec.Site{
			URL: "http://10.99.0.1/reassure", Server: ip("10.99.0.1"), Network: network("10.99.0.0/24"), Gateway: ip("10.99.0.254"),
			DNS: []netip.Addr{ip("10.99.0.253")}, NTP: []string{"10.99.0.252", "ntp.example"}, Domain: "lab.example",
		},
	}
	if m == ModeServer {
		s.Pool = Range{ip("10.99.0.12"), ip("10.99.0.14")}
	}
	return s
}

// serve runs a server in the namespace until the test ends, or stop is called.
func (n *namespace) serve(backend *inventory, s Settings, cards ...string) (stop func()) {
	n.T.Helper()
	var log nettest.Output
	server := &Server{
		Interfaces: cards, Settings: func() Settings { return s }, Backend: backend, Leases: backend,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	n.Do(server.Listen)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.T.Errorf("Run = %v", err)
		}
	})
	n.T.Cleanup(func() {
		stop()
		if n.T.Failed() {
			n.T.Logf("server:\n%s", &log)
		}
	})
	return stop
}

// printed has udhcpc print what it got instead of configuring the card.
const printScript = "#!/bin/sh\n" +
	`echo "$1 ip=$ip mask=$subnet router=$router dns=$dns domain=$domain hostname=$hostname ntp=$ntpsrv lease=$lease server=$serverid broadcast=$broadcast siaddr=$siaddr file=$boot_file message=$message"` + "\n"

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (n *namespace) udhcpc(more ...string) string {
	n.T.Helper()
	out, err := n.Run(append([]string{"busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", script(n.T, printScript),
		"-O", "ntpsrv", "-O", "hostname", "-O", "broadcast"}, more...)...)
	if err != nil {
		out += "\n" + err.Error()
	}
	return out
}

func wants(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%s lacks %q:\n%s", what, p, got)
		}
	}
}

func TestUdhcpcGetsAddresses(t *testing.T) {
	server, known, second, strange := newNamespace(t), newNamespace(t), newNamespace(t), newNamespace(t)
	server.bridge("br0", "10.99.0.1/24")
	server.cable("br0", known, "eth0", knownMAC)
	server.cable("br0", second, "eth0", secondMAC)
	server.cable("br0", strange, "eth0", strangeMAC)
	backend := labHosts()
	stop := server.serve(backend, labSettings(ModeServer), "br0")

	// The fixed address, and all that is said of the lab; a wish changes nothing.
	got := known.udhcpc("-r", "10.99.0.77")
	wants(t, "a host's lease", got, "bound ip=10.99.0.11 mask=255.255.255.0 router=10.99.0.254 dns=10.99.0.253 domain=lab.example hostname=exp01 ntp=10.99.0.252 lease=3600 server=10.99.0.1 broadcast=10.99.0.255")
	wants(t, "its second card's", second.udhcpc(), "bound ip=10.99.0.11 ")

	// The pool skips the host's address that is in it, and remembers.
	got = strange.udhcpc("-r", "10.99.0.12")
	if !strings.Contains(got, "bound ip=10.99.0.13 ") && !strings.Contains(got, "bound ip=10.99.0.14 ") {
		t.Errorf("a stranger's lease:\n%s", got)
	}
	if strings.Contains(got, "hostname=exp") {
		t.Errorf("a stranger is called a host:\n%s", got)
	}
	all, _ := backend.Leases()
	if len(all) != 1 || all[0].MAC != strangeMAC || !strings.Contains(got, "ip="+all[0].IP.String()) {
		t.Fatalf("kept leases: %v", all)
	}
	stop()
	server.serve(backend, labSettings(ModeServer), "br0")
	wants(t, "after a restart", strange.udhcpc(), "bound ip="+all[0].IP.String()+" ")

	// What the lab was told.
	seen := backend.sightings(knownMAC)
	last := seen[len(seen)-1]
	if last.Message != "REQUEST" || last.IP != exp01.IP || !last.Given || last.Interface != "br0" || last.Client.Kind != NoBoot {
		t.Errorf("last sighting of the host: %+v", last)
	}
	if first := seen[0]; first.Message != "DISCOVER" || first.Given {
		t.Errorf("first sighting of the host: %+v", first)
	}
}

// TestUdhcpcRenews has a client renew by unicast, and give its address back.
func TestUdhcpcRenews(t *testing.T) {
	server, strange := newNamespace(t), newNamespace(t)
	server.bridge("br0", "10.99.0.1/24")
	server.cable("br0", strange, "eth0", strangeMAC)
	backend := labHosts()
	settings := labSettings(ModeServer)
	settings.Pool = Range{ip("10.99.0.13"), ip("10.99.0.13")}
	server.serve(backend, settings, "br0")
	configure := script(t, strings.Replace(printScript, "#!/bin/sh\n", "#!/bin/sh\n[ $1 = bound ] && ip addr add $ip/24 dev eth0\n", 1))
	cmd, out := strange.Start("busybox", "udhcpc", "-i", "eth0", "-f", "-R", "-s", configure)
	until(t, "a lease", 20*time.Second, func() bool { return strings.Contains(out.String(), "bound ip=10.99.0.13") })
	_ = cmd.Process.Signal(unix.SIGUSR1)
	until(t, "a renewal", 20*time.Second, func() bool { return strings.Contains(out.String(), "renew ip=10.99.0.13") })
	seen := backend.sightings(strangeMAC)
	if last := seen[len(seen)-1]; last.Message != "REQUEST" || !last.Given || last.IP != ip("10.99.0.13") {
		t.Errorf("the renewal: %+v", last)
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	until(t, "the release", 20*time.Second, func() bool { all, _ := backend.Leases(); return len(all) == 0 })
}

// TestDhclientIsRefusedForeignAddress has ISC's client come back with the lease of
// another place.
func TestDhclientIsRefusedForeignAddress(t *testing.T) {
	for _, c := range []struct {
		name    string
		mac     spec.MAC
		foreign string
		want    string
	}{
		{"host in another network", knownMAC, "192.168.7.7", "10.99.0.11"},
		{"host with another address", knownMAC, "10.99.0.13", "10.99.0.11"},
		{"stranger in another network", strangeMAC, "192.168.7.7", "10.99.0.1"},
		{"stranger with a host's address", strangeMAC, "10.99.0.11", "10.99.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server, pc := newNamespace(t), newNamespace(t)
			server.bridge("br0", "10.99.0.1/24")
			server.cable("br0", pc, "eth0", c.mac)
			server.serve(labHosts(), labSettings(ModeServer), "br0")
			dir := t.TempDir()
			leases := filepath.Join(dir, "leases")
			old := fmt.Sprintf("lease {\n  interface \"eth0\";\n  fixed-address %s;\n  option subnet-mask 255.255.255.0;\n  option dhcp-lease-time 86400;\n  option dhcp-server-identifier %s;\n  renew 2 2037/01/06 00:00:00;\n  rebind 2 2037/01/06 00:00:00;\n  expire 2 2037/01/06 00:00:00;\n}\n", c.foreign, c.foreign)
			if err := os.WriteFile(leases, []byte(old), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := pc.Run("dhclient", "-4", "-d", "-1", "-v", "-cf", "/dev/null", "-lf", leases, "-pf", filepath.Join(dir, "pid"),
				"-sf", script(t, "#!/bin/sh\necho reason=$reason ip=$new_ip_address host=$new_host_name\n[ \"$reason\" != BOUND ] || kill $(cat "+filepath.Join(dir, "pid")+")\n"), "eth0")
			if errors.Is(err, exec.ErrNotFound) {
				t.Fatal("dhclient is missing: apt-get install isc-dhcp-client")
			}
			wants(t, "dhclient", out, "DHCPREQUEST for "+c.foreign, "DHCPNAK from 10.99.0.1", "reason=BOUND ip="+c.want)
		})
	}
}

// TestOnlyTheNamedInterface asks at two interfaces of a machine, one of which the
// server was told.
func TestOnlyTheNamedInterface(t *testing.T) {
	server, pc, other := newNamespace(t), newNamespace(t), newNamespace(t)
	server.bridge("br0", "10.99.0.1/24")
	server.bridge("br1", "10.98.0.1/24")
	server.cable("br0", pc, "eth0", knownMAC)
	server.cable("br1", other, "eth0", secondMAC)
	backend := labHosts()
	server.serve(backend, labSettings(ModeServer), "br0")
	if got := other.udhcpc(); strings.Contains(got, "bound") || !strings.Contains(got, "no lease") {
		t.Errorf("an answer on the other interface:\n%s", got)
	}
	wants(t, "on the named interface", pc.udhcpc(), "bound ip=10.99.0.11")
	if seen := backend.sightings(secondMAC); len(seen) != 0 {
		t.Errorf("heard on the other interface: %+v", seen)
	}

	// The site's own server on the other interface is not in our way, and a second
	// server on ours is found when it starts.
	server.Do(func() error {
		for _, name := range []string{"br0", "br1"} {
			c, err := card.Listen("DHCP", name, ServerPort, "", nil)
			if err == nil {
				_ = c.Close()
			}
			if (err == nil) != (name == "br1") || (err != nil && !strings.Contains(err.Error(), "another DHCP server runs on this machine")) {
				return fmt.Errorf("a second server on %s: %w", name, err)
			}
		}
		return nil
	})
}

func TestListenSaysWhatIsWrong(t *testing.T) {
	n := newNamespace(t)
	for name, c := range map[string]struct {
		cards []string
		mode  Mode
		want  string
	}{
		"no interface":      {nil, ModeProxy, "list the lab's under interfaces"},
		"unknown interface": {[]string{"enp9s9"}, ModeServer, "ip link"},
		"proxy with a pool": {[]string{"lo"}, ModeProxy, "dhcp.pool: has no use in mode proxy"},
	} {
		s := labSettings(c.mode)
		s.Pool = Range{ip("10.99.0.50"), ip("10.99.0.60")}
		if name == "no interface" {
			s.Pool = Range{}
		}
		n.Do(func() error {
			server := &Server{Interfaces: c.cards, Settings: func() Settings { return s }, Backend: labHosts()}
			if err := server.Listen(); err == nil || !strings.Contains(err.Error(), c.want) {
				return fmt.Errorf("%s: %v, want %q", name, err, c.want)
			}
			return nil
		})
	}
}

func TestOffOpensNothing(t *testing.T) {
	n := newNamespace(t)
	n.serve(labHosts(), labSettings(ModeOff), "lo")
	n.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: ServerPort})
		if err != nil {
			return err
		}
		return c.Close()
	})
}
