package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"reassure/image/serve/card"
	"reassure/image/spec"
)

// Server answers DHCP on network interfaces. Set its fields, then call Run, or
// Listen and Run.
type Server struct {
	// Interfaces are the only ones that anything is received from or sent to.
	Interfaces []string
	// Settings returns what holds for the next packet. What it returns at first says
	// which ports are opened: a change between modes needs a restart.
	Settings func() Settings
	Backend  Backend
	// Leases keeps the pool's leases over a restart; nil forgets them.
	Leases LeaseStore
	Log    *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now

	mu      sync.Mutex
	pool    *leases
	flood   bucket
	sockets []*socket
}

// socket is one port on one interface.
type socket struct {
	card string
	port int
	*net.UDPConn
}

// Listen opens all sockets, on the calling thread and so in its network namespace.
func (s *Server) Listen() (err error) {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	settings := s.Settings()
	if settings.Mode == ModeOff || settings.Mode == "" {
		return nil
	}
	if err := settings.Validate().Err(); err != nil {
		return fmt.Errorf("DHCP: %w", err)
	}
	if len(s.Interfaces) == 0 {
		return errors.New("DHCP: no network interface is named: list the lab's under interfaces, or set dhcp.mode to off")
	}
	if s.pool, err = loadLeases(s.Leases); err != nil {
		return err
	}
	ports := []int{ServerPort}
	if settings.Mode.proxies() {
		ports = append(ports, BootPort)
	}
	for _, name := range s.Interfaces {
		for _, port := range ports {
			c, err := card.Listen("DHCP", name, port, "set dhcp.mode to off", nil)
			if err != nil {
				s.close()
				return err
			}
			s.sockets = append(s.sockets, &socket{name, port, c})
		}
	}
	return nil
}

func (s *Server) close() {
	for _, c := range s.sockets {
		_ = c.Close()
	}
}

// Run answers until ctx ends, which is no error. In mode off it only waits.
func (s *Server) Run(ctx context.Context) error {
	if s.sockets == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	defer s.close()
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	for _, c := range s.sockets {
		s.Log.Info("DHCP answers", "interface", c.card, "port", c.port, "mode", string(s.Settings().Mode))
		group.Go(func() error { return s.receive(ctx, c) })
	}
	if len(s.sockets) == 0 {
		<-ctx.Done()
	}
	return group.Wait()
}

func (s *Server) receive(ctx context.Context, c *socket) error {
	// More than an Ethernet frame holds; what is longer is cut, and then unreadable.
	buffer := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("DHCP on the interface %s: %w", c.card, err)
		}
		if err != nil {
			// The interface went down; it may come up again.
			s.Log.Warn("DHCP does not receive", "interface", c.card, "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		s.handle(c, buffer[:n], from)
	}
}

// handle answers one packet.
func (s *Server) handle(c *socket, data []byte, from netip.AddrPort) {
	now := s.Now()
	if missed, ok := s.admit(now); !ok {
		return
	} else if missed > 0 {
		s.Log.Warn("more DHCP packets came than are looked at", "missed", missed, "interface", c.card)
	}
	packet, err := dhcpv4.FromBytes(data)
	if err != nil {
		s.Log.Debug("not a DHCP packet", "interface", c.card, "from", from, "error", err)
		return
	}
	settings := s.Settings()
	reply, err := s.decide(Request{Packet: packet, Port: c.port, Now: now}, &settings)
	if err != nil {
		// A lease that a power cut could undo is none.
		s.Log.Error("a lease could not be kept, so none is given: look at the disk of the state folder", "mac", cardOf(packet), "error", err)
		return
	}
	if reply.Packet != nil {
		to := reply.To(c.port, from)
		if err := c.send(reply.Packet, to, settings.Site.Server); err != nil {
			s.Log.Warn("a DHCP answer could not be sent", "interface", c.card, "to", to, "mac", cardOf(packet), "error", err)
		}
	}
	if !fromCard(packet) {
		return
	}
	kind := packet.MessageType()
	level := slog.LevelDebug
	switch {
	case kind == dhcpv4.MessageTypeDecline:
		level = slog.LevelWarn
	case reply.Packet != nil:
		level = slog.LevelInfo
	}
	s.Log.Log(context.Background(), level, "DHCP", "interface", c.card, "mac", cardOf(packet), "asks", kind.String(), "answer", reply.Reason)
	s.Backend.Seen(Sighting{
		MAC: cardOf(packet), At: now, Interface: c.card, Message: kind.String(), IP: reply.Address, Given: reply.Given,
		Client: reply.Client, HostName: printable([]byte(packet.HostName())), Answer: reply.Reason,
	})
}

// decide answers a packet and does what the answer brings with it.
func (s *Server) decide(r Request, settings *Settings) (Reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mac := cardOf(r.Packet)
	r.Host, r.Known = s.Backend.Host(mac)
	reply := Answer(r, settings, view{s.pool, settings, s.Backend})
	if ip := reply.Decline; ip.IsValid() {
		s.pool.rest[ip] = r.Now.Add(restTime)
	}
	if reply.Hold.IsValid() {
		s.pool.hold(reply.Hold, mac, r.Now)
	}
	if reply.Drop {
		s.pool.drop(mac)
		if err := s.forget(mac); err != nil {
			return reply, err
		}
	}
	if reply.Grant != nil {
		for _, ended := range s.pool.trim(settings.Pool, r.Now) {
			if err := s.forget(ended); err != nil {
				return reply, err
			}
		}
		if s.Leases != nil {
			if err := s.Leases.SaveLease(*reply.Grant); err != nil {
				return reply, err
			}
		}
		if before, other := s.pool.grant(*reply.Grant); other && before != mac {
			// The new lease is the later one: should this fail, it wins at the next start.
			if err := s.forget(before); err != nil {
				return reply, err
			}
		}
	}
	return reply, nil
}

func (s *Server) forget(mac spec.MAC) error {
	if s.Leases == nil {
		return nil
	}
	return s.Leases.DropLease(mac)
}

// send writes a packet from our own address, as clients compare the sender
// with the server identifier, and an interface may have several.
func (c *socket) send(p *dhcpv4.DHCPv4, to netip.AddrPort, server netip.Addr) error {
	from := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: server.As4()})
	_, _, err := c.WriteMsgUDPAddrPort(p.ToBytes(), from, to)
	if err != nil {
		// site.server may be another name of this machine: one behind a NAT, say.
		_, err = c.WriteToUDPAddrPort(p.ToBytes(), to)
	}
	return err
}

// A whole lab that is switched on at once stays below this.
const (
	floodRate  = 1000 // packets a second
	floodBurst = 2000
)

// bucket is a token bucket, so that a flood makes neither the processor nor the log
// busy. Its zero value is full.
type bucket struct {
	used    float64
	last    time.Time
	missed  int
	warning time.Time
}

// admit says whether a packet is looked at, and now and then how many were not.
func (s *Server) admit(now time.Time) (missed int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.flood
	b.used = max(0, b.used-floodRate*max(0, now.Sub(b.last).Seconds()))
	b.last = now
	if b.used >= floodBurst {
		b.missed++
		return 0, false
	}
	b.used++
	if b.missed > 0 && now.Sub(b.warning) > 10*time.Second {
		missed, b.missed, b.warning = b.missed, 0, now
	}
	return missed, true
}
