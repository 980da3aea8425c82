package qemutests

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ends are what the emulator has at a cable's ends.
type ends struct {
	t         *testing.T
	dir       string
	near, far *net.UnixConn
}

func lay(t *testing.T, c *Cable) *ends {
	t.Helper()
	dir := t.TempDir()
	_, _, remove, err := c.lay(dir, "user")
	if err != nil {
		t.Fatal(err)
	}
	both, err := listen(filepath.Join(dir, "near.qemu"), filepath.Join(dir, "far.qemu"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, func() error { return errors.Join(remove(), both[0].Close(), both[1].Close()) }) })
	return &ends{t, dir, both[0], both[1]}
}

func (e *ends) send(from *net.UnixConn, name string, frame []byte) {
	e.t.Helper()
	if _, err := from.WriteToUnix(frame, &net.UnixAddr{Name: filepath.Join(e.dir, name), Net: "unixgram"}); err != nil {
		e.t.Fatal(err)
	}
}

// get returns the next frame that arrives, or nil.
func (e *ends) get(at *net.UnixConn, within time.Duration) []byte {
	e.t.Helper()
	buffer := make([]byte, maxFrame)
	if err := at.SetReadDeadline(time.Now().Add(within)); err != nil {
		e.t.Fatal(err)
	}
	n, err := at.Read(buffer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return buffer[:n]
}

// ipv4 is a frame with IPv4 of a protocol in it.
func ipv4(protocol byte, from, to uint16, content []byte) []byte {
	b := make([]byte, 14+20+8)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	b[14], b[14+9] = 0x45, protocol
	binary.BigEndian.PutUint16(b[34:], from)
	binary.BigEndian.PutUint16(b[36:], to)
	return append(b, content...)
}

func TestCable(t *testing.T) {
	t.Parallel()
	const soon, never = 5 * time.Second, 200 * time.Millisecond
	discover, err := dhcpv4.NewDiscovery(DefaultMAC[:])
	if err != nil {
		t.Fatal(err)
	}
	asks := ipv4(17, dhcpv4.ClientPort, dhcpv4.ServerPort, discover.ToBytes())
	old, fresh, arp := ipv4(6, 1000, 80, nil), ipv4(6, 1001, 80, nil), append(make([]byte, 12), 8, 6, 1)
	for _, test := range []struct {
		name    string
		trouble Trouble
		frame   []byte
		passes  bool
	}{
		{"good", Trouble{}, old, true},
		{"good, DHCP", Trouble{}, asks, true},
		{"all lost", Trouble{Loss: 1}, old, false},
		{"cut", Trouble{Cut: true}, arp, false},
		{"no DHCP", Trouble{NoDHCP: true}, asks, false},
		{"no DHCP, something else", Trouble{NoDHCP: true}, old, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &Cable{}
			e := lay(t, c)
			c.Set(test.trouble)
			e.send(e.near, "near", test.frame)
			within := soon
			if !test.passes {
				within = never
			}
			if got := e.get(e.far, within); (string(got) == string(test.frame)) != test.passes {
				t.Errorf("%d bytes arrive; want the frame: %v", len(got), test.passes)
			}
		})
	}
	t.Run("late", func(t *testing.T) {
		c := &Cable{}
		e := lay(t, c)
		c.Set(Trouble{Delay: 500 * time.Millisecond})
		begin := time.Now()
		e.send(e.far, "far", old)
		e.send(e.far, "far", fresh)
		if first, next := e.get(e.near, soon), e.get(e.near, soon); string(first) != string(old) || string(next) != string(fresh) || time.Since(begin) < 500*time.Millisecond {
			t.Errorf("after %v: %d and %d bytes", time.Since(begin), len(first), len(next))
		}
	})
	t.Run("half-open", func(t *testing.T) {
		c := &Cable{}
		e := lay(t, c)
		e.send(e.near, "near", old)
		if e.get(e.far, soon) == nil {
			t.Fatal("nothing arrives")
		}
		c.HalfOpen()
		e.send(e.far, "far", ipv4(6, 80, 1000, nil))
		e.send(e.near, "near", old)
		e.send(e.near, "near", fresh)
		if got := e.get(e.far, soon); string(got) != string(fresh) {
			t.Errorf("what arrives first is %x, want a frame of the new connection", got)
		}
		if got := e.get(e.near, never); got != nil {
			t.Errorf("of a dead connection %x arrives", got)
		}
	})
	t.Run("another DHCP server", func(t *testing.T) {
		c := &Cable{}
		e := lay(t, c)
		c.Set(Trouble{Other: netip.MustParsePrefix("192.0.2.0/24")})
		e.send(e.near, "near", asks)
		offer := parseFrame(e.get(e.near, soon)).dhcp
		if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "192.0.2.80" {
			t.Fatalf("it offers %v", offer)
		}
		if e.get(e.far, soon) == nil {
			t.Error("the first server does not hear the PC any more")
		}
		request, err := dhcpv4.NewRequestFromOffer(offer)
		if err != nil {
			t.Fatal(err)
		}
		e.send(e.near, "near", ipv4(17, dhcpv4.ClientPort, dhcpv4.ServerPort, request.ToBytes()))
		if ack := parseFrame(e.get(e.near, soon)).dhcp; ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
			t.Errorf("it answers %v", ack)
		}
		if e.get(e.far, never) != nil {
			t.Error("the first server is asked for the second's address")
		}
	})
}
