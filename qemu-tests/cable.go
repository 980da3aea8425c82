package qemutests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Cable leads from a PC's card to its network, frame by frame, and loses, delays and
// adds what a test wants: neither this machine's kernel (netem) nor the emulator can be
// relied on for that. The zero value is a good cable.
type Cable struct {
	mu      sync.Mutex
	trouble Trouble
	seen    map[uint16]bool // the PC's ports of TCP connections so far
	dead    map[uint16]bool // those of which nothing gets through any more
}

// Trouble is what is wrong with a cable. The zero value is nothing.
type Trouble struct {
	// Loss is the share of frames that are lost, each way.
	Loss float64
	// Delay is how long a frame takes, each way.
	Delay time.Duration
	// Cut says that nothing gets through, though the card has its carrier.
	Cut bool
	// NoDHCP says that no DHCP server hears the PC.
	NoDHCP bool
	// Other is the network of a second DHCP server, which answers before the first. It
	// gives its 80th address and knows nothing of booting.
	Other netip.Prefix
}

// Set makes that wrong from now on, and nothing else but connections that are dead.
func (c *Cable) Set(t Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trouble = t
}

// HalfOpen has nothing get through any more of TCP connections that there are now, as
// where a firewall between has forgotten them: neither end hears of it.
func (c *Cable) HalfOpen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead, c.seen = c.seen, nil
}

// maxFrame is more than a frame of Ethernet has, in bytes.
const maxFrame = 16 << 10

// mostUnderWay are as many frames as are under way each way; more are lost.
const mostUnderWay = 10_000

// lay lays the cable between a card and a network of the emulator's, whose sockets are in
// folder dir. It returns the emulator's name for the card's end, further arguments, and
// what takes the cable away.
func (c *Cable) lay(dir, network string) (netdev string, extra []string, remove func() error, err error) {
	ends, err := listen(filepath.Join(dir, "near"), filepath.Join(dir, "far"))
	if err != nil {
		return "", nil, nil, fmt.Errorf("cable: %w", err)
	}
	near, far := ends[0], ends[1]
	socket := func(name string) string {
		return fmt.Sprintf("dgram,local.type=unix,local.path=%s.qemu,remote.type=unix,remote.path=%s", filepath.Join(dir, name), filepath.Join(dir, name))
	}
	out, in := make(chan late, mostUnderWay), make(chan late, mostUnderWay)
	toCard := &net.UnixAddr{Name: filepath.Join(dir, "near.qemu"), Net: "unixgram"}
	toNetwork := &net.UnixAddr{Name: filepath.Join(dir, "far.qemu"), Net: "unixgram"}
	go c.carry(near, out, in, true)
	go c.carry(far, in, nil, false)
	done := make(chan struct{})
	go deliver(out, done, far, toNetwork)
	go deliver(in, done, near, toCard)
	// The emulator joins two networks by a hub.
	extra = []string{
		"-netdev", network + ",id=network", "-netdev", "hubport,id=port1,hubid=1,netdev=network",
		"-netdev", socket("far") + ",id=cable", "-netdev", "hubport,id=port2,hubid=1,netdev=cable",
	}
	return socket("near"), extra, func() error {
		close(done)
		return errors.Join(near.Close(), far.Close())
	}, nil
}

func listen(names ...string) (all []*net.UnixConn, err error) {
	for _, name := range names {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// late is a frame that is delivered some time.
type late struct {
	frame []byte
	at    time.Time
}

// carry takes frames from one end until that is closed. What somebody else on the network
// answers goes into answers.
func (c *Cable) carry(from *net.UnixConn, to, answers chan late, outward bool) {
	buffer := make([]byte, maxFrame)
	for {
		n, _, err := from.ReadFromUnix(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the other end is not there yet, or not any more
		}
		frame := append([]byte(nil), buffer[:n]...)
		passes, delay, answer := c.judge(frame, outward)
		if passes {
			send(to, late{frame, time.Now().Add(delay)})
		}
		if answer != nil && answers != nil {
			send(answers, late{answer, time.Now()})
		}
	}
}

func send(to chan late, l late) {
	select {
	case to <- l:
	default:
	}
}

// deliver delivers frames in the order in which they come, each at its time.
func deliver(frames chan late, done chan struct{}, from *net.UnixConn, to *net.UnixAddr) {
	for {
		select {
		case l := <-frames:
			time.Sleep(time.Until(l.at))
			_, _ = from.WriteToUnix(l.frame, to) // a network may lose it
		case <-done:
			return
		}
	}
}

// judge says what becomes of a frame, and what a second DHCP server answers to it.
func (c *Cable) judge(frame []byte, outward bool) (passes bool, delay time.Duration, answer []byte) {
	f := parseFrame(frame)
	c.mu.Lock()
	defer c.mu.Unlock()
	port := f.to
	if outward {
		port = f.from
	}
	if f.tcp && c.dead[port] {
		return false, 0, nil
	}
	if f.tcp {
		if c.seen == nil {
			c.seen = map[uint16]bool{}
		}
		c.seen[port] = true
	}
	if f.dhcp != nil && outward && c.trouble.Other.IsValid() {
		var mine bool
		if answer, mine = otherServer(c.trouble.Other, f.dhcp); mine {
			return false, 0, answer
		}
	}
	switch t := c.trouble; {
	case t.Cut, t.NoDHCP && f.dhcp != nil, t.Loss > 0 && rand.Float64() < t.Loss:
		return false, 0, answer
	}
	return true, c.trouble.Delay, answer
}

// frame is what matters of a frame of Ethernet with IPv4 in it.
type frame struct {
	tcp      bool
	from, to uint16
	dhcp     *dhcpv4.DHCPv4
}

func parseFrame(b []byte) (f frame) {
	const ethernet = 14
	if len(b) < ethernet+20 || binary.BigEndian.Uint16(b[12:]) != 0x0800 {
		return f
	}
	ip := b[ethernet:]
	head := int(ip[0]&15) * 4
	if len(ip) < head+8 {
		return f
	}
	f.tcp = ip[9] == 6
	f.from, f.to = binary.BigEndian.Uint16(ip[head:]), binary.BigEndian.Uint16(ip[head+2:])
	if ip[9] == 17 && (f.to == dhcpv4.ServerPort || f.to == dhcpv4.ClientPort) {
		f.dhcp, _ = dhcpv4.FromBytes(ip[head+8:]) // else it is none
	}
	return f
}

// otherServer is what a second DHCP server on the network answers to a PC; mine says that
// the first takes no part in it.
func otherServer(network netip.Prefix, p *dhcpv4.DHCPv4) (answer []byte, mine bool) {
	kinds := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck}
	kind, ok := kinds[p.MessageType()]
	base := network.Masked().Addr().As4()
	server, address := net.IP{base[0], base[1], base[2], 66}, net.IP{base[0], base[1], base[2], 80}
	if !ok || kind == dhcpv4.MessageTypeAck && !p.ServerIdentifier().Equal(server) {
		return nil, false
	}
	reply, err := dhcpv4.NewReplyFromRequest(p, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(address),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)), dhcpv4.WithNetmask(net.CIDRMask(network.Bits(), 32)),
		dhcpv4.WithRouter(server), dhcpv4.WithLeaseTime(3600))
	if err != nil {
		return nil, false
	}
	text := reply.ToBytes()
	// RFC 894, 791 and 768; a UDP checksum of 0 is none.
	b := append([]byte(nil), p.ClientHWAddr...)
	b = append(b, 0x52, 0x55, 0, 0, 0, 66, 8, 0)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, server[0], server[1], server[2], server[3], 255, 255, 255, 255}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+8+len(text)))
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := []byte{0, dhcpv4.ServerPort, 0, dhcpv4.ClientPort, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(text)))
	b = append(append(append(b, ip...), udp...), text...)
	return b, kind == dhcpv4.MessageTypeAck
}
