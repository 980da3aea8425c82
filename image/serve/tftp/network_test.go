package tftp

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"reassure/image/nettest"
	"reassure/image/serve/files"
)

// nothing is a tree without files: whoever asks is told so.
type nothing struct{}

func (nothing) Open(string, netip.Addr) (*files.File, error) { return nil, fs.ErrNotExist }

// cardVariable has the test program be a server on that card, until its standard
// input ends.
const cardVariable = "TFTP_TEST_CARD"

func TestMain(m *testing.M) {
	if card := os.Getenv(cardVariable); card != "" {
		if err := serveUntilEnd(card); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveUntilEnd(card string) error {
	s := &Server{Tree: nothing{}, Interfaces: []string{card}}
	if err := s.Listen(); err != nil {
		return err
	}
	fmt.Println("ready")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return s.Run(ctx)
}

// serve starts a server in a namespace, in a process of its own: its transfers
// open sockets on any thread.
func serve(t *testing.T, n *nettest.Namespace, card string) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), cardVariable+"="+card)
	c.Stderr = t.Output()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.Do(c.Start)
	t.Cleanup(func() {
		in.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
}

// TestInterfaces has a server with two cards, of which one is the lab's, and two
// addresses there.
func TestInterfaces(t *testing.T) {
	server, pc, office := nettest.New(t), nettest.New(t), nettest.New(t)
	for _, c := range []struct {
		to        *nettest.Namespace
		card      string
		addresses []string
		peer      string
	}{
		{pc, "lab0", []string{"172.30.0.5/24", "172.30.0.6/24"}, "172.30.0.11/24"},
		{office, "office0", []string{"172.31.0.5/24"}, "172.31.0.11/24"},
	} {
		server.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: c.card}, PeerName: "eth0", PeerNamespace: c.to.FD})
		})
		server.Up(c.card, c.addresses...)
		c.to.Up("eth0", c.peer)
	}
	// Linux takes what is for the lab's address by any card.
	office.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(172, 31, 0, 5)})
	})

	serve(t, server, "lab0")
	for _, c := range []struct {
		name    string
		from    *nettest.Namespace
		to      string
		answers bool
	}{
		{"the lab", pc, "172.30.0.5", true},
		{"the lab, the second address", pc, "172.30.0.6", true},
		{"the other card", office, "172.31.0.5", false},
		{"the lab's address by the other card", office, "172.30.0.5", false},
	} {
		var conn *net.UDPConn
		c.from.Do(func() (err error) { conn, err = net.ListenUDP("udp4", nil); return err })
		defer conn.Close()
		if _, err := conn.WriteToUDP([]byte("\x00\x01f\x00octet\x00"), &net.UDPAddr{IP: net.ParseIP(c.to), Port: 69}); err != nil {
			t.Fatal(err)
		}
		wait := 5 * time.Second
		if !c.answers {
			wait = 300 * time.Millisecond
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		p := make([]byte, 600)
		n, from, err := conn.ReadFromUDP(p)
		switch {
		case !c.answers:
			if err == nil {
				t.Errorf("%s: %d bytes from %v; want silence", c.name, n, from)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case from.IP.String() != c.to || binary.BigEndian.Uint16(p) != opError:
			// Clients drop what comes from an address that they have not asked.
			t.Errorf("%s: packet %d from %v, want one from %s", c.name, p[1], from, c.to)
		}
	}
}
