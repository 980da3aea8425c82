package netup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"reassure/image/fetch"
	"reassure/image/nettest"
	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
)

var sameAddress = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(Network{}, "Lease"), cmpopts.IgnoreUnexported(Network{})}

// namespace is one that may have a DHCP server.
type namespace struct{ *nettest.Namespace }

func newNamespace(t *testing.T) *namespace { return &namespace{nettest.New(t)} }

var (
	pcMAC    = spec.MAC{0x02, 0, 0, 0, 0, 0x11}
	otherMAC = spec.MAC{0x02, 0, 0, 0, 0, 0x22}
)

// lab is a server's namespace and a PC's, joined by a cable from srv0 to eth0;
// the PC has a second card, eth1, whose cable ends at srv1.
func lab(t *testing.T) (server, pc *namespace) {
	t.Helper()
	server, pc = newNamespace(t), newNamespace(t)
	server.Do(func() error {
		for i, mac := range []spec.MAC{pcMAC, otherMAC} {
			v := &netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("srv%d", i)}, PeerName: fmt.Sprintf("eth%d", i),
				PeerHardwareAddr: mac[:], PeerNamespace: pc.FD,
			}
			if err := netlink.LinkAdd(v); err != nil {
				return err
			}
		}
		return nil
	})
	server.Up("lo")
	return server, pc
}

// dnsmasq serves DHCP in a namespace until the test ends.
func (n *namespace) dnsmasq(args ...string) {
	n.T.Helper()
	dir := n.T.TempDir()
	n.Start(append([]string{
		"dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--log-dhcp", "--log-facility=-", "--user=root",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--pid-file=" + filepath.Join(dir, "pid"), "--no-ping", "--bind-interfaces",
	}, args...)...)
}

func TestMain(m *testing.M) {
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		fmt.Fprintln(os.Stderr, "dnsmasq is missing: apt-get install dnsmasq-base")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bringUp runs Up in the PC's namespace, and returns its log.
func (n *namespace) bringUp(o Options) (*Network, string, error) {
	n.T.Helper()
	var log nettest.Output
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	if o.ResolvConf == "" {
		o.ResolvConf = filepath.Join(n.T.TempDir(), "resolv.conf")
	}
	var network *Network
	var err error
	n.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		network, err = Up(ctx, o)
		return nil
	})
	return network, log.String(), err
}

func a(s string) netip.Addr   { return netip.MustParseAddr(s) }
func p(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var fixed = "--dhcp-host=" + pcMAC.String() + ",10.99.0.11"

func TestLease(t *testing.T) {
	server, pc := lab(t)
	server.Up("srv0", "10.99.0.1/24")
	server.dnsmasq("--interface=srv0", "--dhcp-range=10.99.0.50,10.99.0.99,1h", fixed, "--domain=lab.example", "--dhcp-boot=pxelinux.0,boot,10.99.0.5",
		"--dhcp-option=option:dns-server,10.99.0.5,10.99.0.6", "--dhcp-option=option:ntp-server,10.99.0.7", "--dhcp-option=option:mtu,1400")
	resolv := filepath.Join(t.TempDir(), "etc/resolv.conf")
	got, _, err := pc.bringUp(Options{BootMAC: pcMAC, ResolvConf: resolv})
	if err != nil {
		t.Fatal(err)
	}
	want := &Network{
		Interface: "eth0", MAC: pcMAC, Address: p("10.99.0.11/24"), Gateway: a("10.99.0.1"), DNS: []netip.Addr{a("10.99.0.5"), a("10.99.0.6")},
		Domain: "lab.example", NTP: []netip.Addr{a("10.99.0.7")}, MTU: 1400, Server: a("10.99.0.1"), NextServer: a("10.99.0.5"), BootFile: "pxelinux.0",
	}
	if diff := cmp.Diff(want, got, sameAddress); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
	if got.Lease != time.Hour {
		t.Errorf("lease = %v; want 1h", got.Lease)
	}
	if text, err := os.ReadFile(resolv); string(text) != "search lab.example\nnameserver 10.99.0.5\nnameserver 10.99.0.6\n" {
		t.Errorf("resolv.conf = %q, %v", text, err)
	}
	// What iproute2 sees, which is another reader of the kernel's state.
	pc.shows([]string{"ip", "-4", "addr", "show", "dev", "eth0"}, "inet 10.99.0.11/24", "mtu 1400")
	pc.shows([]string{"ip", "route"}, "default via 10.99.0.1 dev eth0")
	pc.shows([]string{"ip", "link", "show", "lo"}, "UP")
	pc.shows([]string{"ip", "link", "show", "eth1"}, "state DOWN")

	// Once more, as after a failed reimage.
	if again, _, err := pc.bringUp(Options{BootMAC: pcMAC}); err != nil || again.Address != got.Address {
		t.Errorf("the second time: %+v, %v", again, err)
	}
}

func (n *namespace) shows(args []string, parts ...string) {
	n.T.Helper()
	var out []byte
	n.Do(func() error {
		var err error
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("ip is missing: apt-get install iproute2")
		}
		return err
	})
	for _, want := range parts {
		if !strings.Contains(string(out), want) {
			n.T.Errorf("%q lacks %q:\n%s", args, want, out)
		}
	}
}

func TestClasslessRoutes(t *testing.T) {
	server, pc := lab(t)
	server.Up("srv0", "10.99.0.1/24")
	server.dnsmasq("--interface=srv0", "--dhcp-range=10.99.0.50,10.99.0.99,255.255.255.0,infinite", fixed,
		"--dhcp-option=option:classless-static-route,0.0.0.0/0,10.99.0.2,10.50.0.0/16,10.99.0.3,10.51.0.0/16,0.0.0.0")
	got, _, err := pc.bringUp(Options{NIC: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Gateway != a("10.99.0.2") || len(got.Routes) != 2 || got.Lease != 0 {
		t.Errorf("network = %+v", got)
	}
	pc.shows([]string{"ip", "route"}, "default via 10.99.0.2", "10.50.0.0/16 via 10.99.0.3", "10.51.0.0/16 dev eth0 scope link")
}

func TestLateCarrierAndLateServer(t *testing.T) {
	server, pc := lab(t)
	// Both come while Up waits, from the server's side.
	go func() {
		time.Sleep(700 * time.Millisecond)
		server.Up("srv0", "10.99.0.1/24")
		time.Sleep(2500 * time.Millisecond) // longer than the first wait
		server.dnsmasq("--interface=srv0", "--dhcp-range=10.99.0.50,10.99.0.99", fixed)
	}()
	got, log, err := pc.bringUp(Options{BootMAC: pcMAC, Carrier: time.Second})
	if err != nil || got.Address != p("10.99.0.11/24") {
		t.Fatalf("Up = %+v, %v", got, err)
	}
	for _, want := range []string{"waiting for a carrier", "no DHCP lease yet"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

func TestEveryCard(t *testing.T) {
	server, pc := lab(t)
	server.Up("srv0") // a network without a DHCP server
	server.Up("srv1", "10.98.0.1/24")
	server.dnsmasq("--interface=srv1", "--dhcp-range=10.98.0.50,10.98.0.99")
	got, _, err := pc.bringUp(Options{})
	if err != nil || got.Interface != "eth1" || got.MAC != otherMAC || !p("10.98.0.0/24").Contains(got.Address.Addr()) {
		t.Errorf("Up = %+v, %v", got, err)
	}
	// Without an option of its own dnsmasq gives itself as next server.
	if err == nil && got.NextServer != a("10.98.0.1") {
		t.Errorf("next server = %v", got.NextServer)
	}
}

// TestVLAN takes a lease on a VLAN where the kernel has them (8021q), and where
// it has not, wants to be told so.
func TestVLAN(t *testing.T) {
	server, pc := lab(t)
	server.Up("srv0")
	supported := true
	server.Do(func() error {
		parent, err := netlink.LinkByName("srv0")
		if err != nil {
			return err
		}
		err = netlink.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "srv0.12", ParentIndex: parent.Attrs().Index}, VlanId: 12})
		if errors.Is(err, unix.EOPNOTSUPP) {
			supported = false
			return nil
		}
		return err
	})
	if supported {
		server.Up("srv0.12", "10.97.0.1/24")
		server.dnsmasq("--interface=srv0.12", "--dhcp-range=10.97.0.50,10.97.0.99", "--dhcp-host="+pcMAC.String()+",10.97.0.11")
	}
	got, _, err := pc.bringUp(Options{BootMAC: pcMAC, VLAN: 12, DHCP: 20 * time.Second})
	switch {
	case !supported && (!errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "8021q")):
		t.Errorf("Up in a kernel without VLANs = %v", err)
	case supported && (err != nil || got.Interface != "eth0.12" || got.Address != p("10.97.0.11/24") || got.MAC != pcMAC):
		t.Errorf("Up = %+v, %v", got, err)
	}
}

func TestStatic(t *testing.T) {
	server, pc := lab(t)
	server.Up("srv0", "10.99.0.1/24")
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	got, _, err := pc.bringUp(Options{
		BootMAC: pcMAC, ResolvConf: resolv,
		Static: &cmdline.Static{Address: p("10.99.0.12/24"), Gateway: a("10.99.0.1"), DNS: []netip.Addr{a("10.99.0.9")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Network{Interface: "eth0", MAC: pcMAC, Address: p("10.99.0.12/24"), Gateway: a("10.99.0.1"), DNS: []netip.Addr{a("10.99.0.9")}}
	if diff := cmp.Diff(want, got, sameAddress); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
	pc.shows([]string{"ip", "addr", "show", "dev", "eth0"}, "inet 10.99.0.12/24")
	pc.shows([]string{"ip", "route"}, "default via 10.99.0.1")
}

// span puts a switch that spans its tree between the PC's card and the server: the
// port has a carrier at once, and passes nothing for twice delay (IEEE 802.1D, 8.4: it
// listens, then learns). The server is then on br0.
func (n *namespace) span(delay time.Duration, address string) {
	n.T.Helper()
	n.shows([]string{"ip", "link", "add", "br0", "type", "bridge", "stp_state", "1", "forward_delay", fmt.Sprint(int(delay.Seconds() * 100))})
	n.shows([]string{"ip", "link", "set", "srv0", "master", "br0"})
	n.Up("br0", address)
	n.Up("srv0")
}

func TestSpanningTree(t *testing.T) {
	server, pc := lab(t)
	server.span(2*time.Second, "10.99.0.1/24")
	server.dnsmasq("--interface=br0", "--dhcp-range=10.99.0.50,10.99.0.99", fixed)
	got, log, err := pc.bringUp(Options{BootMAC: pcMAC})
	if err != nil || got.Address != p("10.99.0.11/24") {
		t.Fatalf("Up = %+v, %v", got, err)
	}
	if !strings.Contains(log, "no DHCP lease yet") {
		t.Errorf("the port passed everything at once, which shows nothing:\n%s", log)
	}
}

// TestLongSpanningTree has the port shut for 45 seconds, of the minute that a PC has.
// Its other card has a carrier, too, and leads to a network where nobody answers.
func TestLongSpanningTree(t *testing.T) {
	for _, options := range []Options{{}, {BootMAC: pcMAC}, {Static: &cmdline.Static{Address: p("10.99.0.12/24")}, NIC: "eth0"}, {IPv6: true}} {
		t.Run(fmt.Sprintf("card known %v static %v IPv6 %v", options.BootMAC == pcMAC, options.Static != nil, options.IPv6), func(t *testing.T) {
			t.Parallel()
			server, pc := lab(t)
			server.span(22500*time.Millisecond, "10.99.0.1/24")
			server.Up("br0", "fd00:99::1/64")
			server.Up("srv1")
			server.dnsmasq("--interface=br0", "--dhcp-range=10.99.0.50,10.99.0.99", fixed, "--enable-ra", "--dhcp-range=fd00:99::,ra-only")
			var web net.Listener
			server.Do(func() (err error) {
				web, err = net.Listen("tcp", ":80")
				return err
			})
			t.Cleanup(func() { _ = web.Close() })
			begin := time.Now()
			got, log, err := pc.bringUp(options)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%v after %v", got.Address, time.Since(begin))
			if options.Static == nil && time.Since(begin) < 40*time.Second {
				t.Errorf("the port passed too early, which shows nothing:\n%s", log)
			}
			// Much later would leave nothing of the minute for the manifest.
			if time.Since(begin) > 58*time.Second {
				t.Errorf("it took %v:\n%s", time.Since(begin), log)
			}
			// What a fetch does then: it tries again until the minute is over.
			to := "10.99.0.1:80"
			if options.IPv6 {
				to = "[fd00:99::1]:80"
			}
			pc.Do(func() error {
				for {
					conn, err := net.DialTimeout("tcp", to, 2*time.Second)
					if err == nil {
						return conn.Close()
					}
					if time.Since(begin) > time.Minute {
						return fmt.Errorf("nobody is reached after a minute: %w", err)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		})
	}
}

func TestMTU(t *testing.T) {
	for _, tt := range []struct {
		name  string
		dhcp  string
		mtu   int
		want  string
		warns string
	}{
		{name: "by parameter", mtu: 1280, want: "mtu 1280"},
		{name: "the parameter wins", dhcp: "--dhcp-option=option:mtu,1400", mtu: 9000, want: "mtu 9000"},
		{name: "none", want: "mtu 1500"},
		{name: "less than IPv4 has", dhcp: "--dhcp-option=option:mtu,68", want: "mtu 1500"},
		// veth takes 65535, and the cable's other end does not limit it.
		{name: "more than the card takes", mtu: 70000, want: "mtu 1500", warns: "keeps its own MTU"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, pc := lab(t)
			server.Up("srv0", "10.99.0.1/24")
			args := []string{"--interface=srv0", "--dhcp-range=10.99.0.50,10.99.0.99", fixed}
			if tt.dhcp != "" {
				args = append(args, tt.dhcp)
			}
			server.dnsmasq(args...)
			_, log, err := pc.bringUp(Options{BootMAC: pcMAC, MTU: tt.mtu})
			if err != nil {
				t.Fatal(err)
			}
			pc.shows([]string{"ip", "link", "show", "dev", "eth0"}, tt.want)
			if !strings.Contains(log, tt.warns) {
				t.Errorf("the log lacks %q:\n%s", tt.warns, log)
			}
		})
	}
}

// TestIPv6 is a lab without IPv4: an address from what a router advertises, or
// a static one; and the published tree's server at the other end.
func TestIPv6(t *testing.T) {
	for _, tt := range []struct {
		name    string
		router  bool
		options Options
		want    string
	}{
		{name: "advertised", router: true, options: Options{IPv6: true, MTU: 1400}, want: "fd00:99::ff:fe00:11/64"},
		{name: "static", options: Options{IPv6: true, NIC: "eth0", Static: &cmdline.Static{Address: p("fd00:99::11/64"), Gateway: a("fe80::1")}}, want: "fd00:99::11/64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, pc := lab(t)
			server.Up("srv0", "fd00:99::1/64")
			server.Up("srv1") // nobody advertises anything there
			if tt.router {
				server.dnsmasq("--interface=srv0", "--enable-ra", "--dhcp-range=fd00:99::,ra-only")
			}
			var web net.Listener
			server.Do(func() (err error) {
				web, err = net.Listen("tcp", "[fd00:99::1]:80")
				return err
			})
			go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s by IPv6", r.URL.Path) }))
			t.Cleanup(func() { _ = web.Close() })

			got, _, err := pc.bringUp(tt.options)
			if err != nil {
				t.Fatal(err)
			}
			if got.Interface != "eth0" || got.MAC != pcMAC || got.Address != p(tt.want) {
				t.Errorf("network = %+v", got)
			}
			pc.Do(func() error {
				// At the first try: the address can be used at once. The dialler stays on this thread, in this namespace.
				conn, err := net.Dial("tcp6", "[fd00:99::1]:80")
				if err != nil {
					return err
				}
				client := fetch.Client{Attempts: 1, HTTP: &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}}
				text, err := client.Get(t.Context(), "http://[fd00:99::1]/reassure/manifests/"+pcMAC.PXE(), 1000)
				if want := "/reassure/manifests/" + pcMAC.PXE() + " by IPv6"; err == nil && string(text) != want {
					return fmt.Errorf("got %q, want %q", text, want)
				}
				return err
			})
			if tt.options.MTU != 0 {
				pc.shows([]string{"ip", "link", "show", "dev", "eth0"}, "mtu 1400")
			}
			if tt.options.Static != nil {
				pc.shows([]string{"ip", "-6", "route"}, "default via fe80::1 dev eth0")
			}
		})
	}
	t.Run("no router", func(t *testing.T) {
		server, pc := lab(t)
		server.Up("srv0", "fd00:99::1/64")
		_, _, err := pc.bringUp(Options{IPv6: true, DHCP: 2 * time.Second})
		if err == nil || !strings.Contains(err.Error(), "no IPv6 address after 2s on eth0 (02:00:00:00:00:11)") || !strings.Contains(err.Error(), "reassure.static") {
			t.Errorf("Up = %v", err)
		}
	})
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		name    string
		server  func(*namespace)
		options Options
		want    []string
	}{
		{
			name: "wrong MAC", options: Options{BootMAC: spec.MAC{2, 9, 9, 9, 9, 9}},
			want: []string{"no network card has 02:09:09:09:09:09", "eth0 (02:00:00:00:00:11)", "eth1 (02:00:00:00:00:22)", "reassure.nic="},
		},
		{name: "wrong name", options: Options{NIC: "enp3s0", BootMAC: pcMAC}, want: []string{"no network card is enp3s0", "eth0"}},
		{name: "no carrier", options: Options{BootMAC: pcMAC, Carrier: 300 * time.Millisecond}, want: []string{"no carrier after 300ms on eth0", "check cable"}},
		{
			name: "no server", server: func(n *namespace) { n.Up("srv0") }, options: Options{DHCP: 3 * time.Second},
			want: []string{"no DHCP lease after 3s", "eth0 (02:00:00:00:00:11): 2 requests, the last: ", "eth1 (02:00:00:00:00:22) has no carrier", "reassure.static"},
		},
		{
			name: "a server that does not know us",
			server: func(n *namespace) {
				n.Up("srv0", "10.99.0.1/24")
				n.dnsmasq("--interface=srv0", "--dhcp-range=10.99.0.0,static")
			},
			options: Options{DHCP: 3 * time.Second, BootMAC: pcMAC}, want: []string{"no DHCP lease after 3s", "no answer"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, pc := lab(t)
			if tt.server != nil {
				tt.server(server)
			}
			n, _, err := pc.bringUp(tt.options)
			if err == nil {
				t.Fatalf("Up = %+v", n)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
		})
	}
}

func TestNoCard(t *testing.T) {
	n := newNamespace(t)
	_, _, err := n.bringUp(Options{})
	if err == nil || !strings.Contains(err.Error(), "there is no network card") {
		t.Errorf("Up = %v", err)
	}
	n.Do(func() error {
		if Present(Options{}) {
			return errors.New("a card is present where there is none")
		}
		return nil
	})
	_, pc := lab(t)
	pc.Do(func() error {
		if !Present(Options{}) || !Present(Options{BootMAC: pcMAC}) || Present(Options{BootMAC: spec.MAC{2, 9}}) || !Present(Options{NIC: "02:00:00:00:00:22"}) {
			return errors.New("Present does not know the cards")
		}
		return nil
	})
}
