// Package tftp serves files by TFTP (RFC 1350, with the options of RFC 2347):
//
//	blksize     RFC 2348; never more than fits one packet of the interface
//	tsize       RFC 2349; for mode octet
//	timeout     RFC 2349
//	windowsize  RFC 7440; at most 32 blocks
//
// It reads only: a request to write is refused. Each transfer has a socket of its
// own that is connected to its client, so that the kernel sorts out everybody
// else's packets, and a client whose machine says that nobody is there is let go
// of at once. One that says nothing is let go of after half a minute.
//
// A request that comes again before its transfer had an answer is the client's
// second try, and is left to that transfer: a second one would send everything
// twice, and ask what the PC is to boot once more.
//
// The library pin/tftp knows neither windowsize nor timeout nor repeated requests.
// It judges this package in the tests.
package tftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"reassure/image/serve/card"
	"reassure/image/serve/files"
)

// Tree is what is served; [files.Tree] is one.
type Tree interface {
	Open(name string, from netip.Addr) (*files.File, error)
}

// Server answers on network interfaces. Set its fields, then call Listen and Run.
type Server struct {
	Tree Tree
	// Interfaces are the only ones that are answered on.
	Interfaces []string
	// Port is 69 unless given.
	Port int
	// Most is how many transfers may run at a time; 0 means 1000. One has about
	// 40 kB of memory, and 90 kB with a large window; more are refused.
	Most int
	// MostEach is how many of them one address may have; 0 means half of Most. A PC has
	// one or two at a time, but the virtual PCs of a machine may share its address.
	MostEach int
	// Timeout is how long a block may at first stay without an answer before it is
	// sent again; 0 means a second. It doubles from try to try. A client's option
	// timeout wins.
	Timeout time.Duration
	Log     *slog.Logger // nil discards

	sockets []*socket

	mu      sync.Mutex
	running map[key]*entry
	count   int                // of transfers, with those that are being replaced
	each    map[netip.Addr]int // the same by client
}

// key is what a client means by one request, however often it sends it.
type key struct {
	client netip.AddrPort
	name   string
}

// entry is a transfer under way.
type entry struct {
	cancel   context.CancelFunc
	answered atomic.Bool // by the client
	repeated bool        // the request came again; under Server.mu
}

// socket takes requests on one interface.
type socket struct {
	*net.UDPConn
	card string
	mtu  int
}

// Listen opens all sockets, on the calling thread and so in its network namespace.
func (s *Server) Listen() error {
	if s.Port == 0 {
		s.Port = 69
	}
	if s.Most == 0 {
		s.Most = 1000
	}
	if s.MostEach == 0 {
		s.MostEach = max(s.Most/2, 1)
	}
	if s.Timeout == 0 {
		s.Timeout = time.Second
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.running, s.each = map[key]*entry{}, map[netip.Addr]int{}
	for _, name := range s.Interfaces {
		c, err := open(name, s.Port)
		if err != nil {
			s.close()
			return err
		}
		s.sockets = append(s.sockets, c)
	}
	return nil
}

func (s *Server) close() {
	for _, c := range s.sockets {
		_ = c.Close()
	}
}

// tellAddress has a socket say which of our addresses a client has written to.
func tellAddress(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

func open(name string, port int) (*socket, error) {
	conn, err := card.Listen("TFTP", name, port, "write tftp: {off: true}", tellAddress)
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TFTP on the interface %s: %w", name, err), conn.Close())
	}
	return &socket{conn, name, link.MTU}, nil
}

// Run answers until ctx ends, which is no error. Transfers end with it.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	for _, c := range s.sockets {
		group.Go(func() error {
			var transfers sync.WaitGroup
			defer transfers.Wait()
			err := s.listen(ctx, c, &transfers)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("TFTP on the interface %s: %w", c.card, err)
		})
	}
	group.Go(func() error { <-ctx.Done(); return nil })
	return group.Wait()
}

// maxRequest is more than any client sends, names being short.
const maxRequest = 2048

// listen takes requests until the socket fails.
func (s *Server) listen(ctx context.Context, c *socket, transfers *sync.WaitGroup) error {
	buffer, control := make([]byte, maxRequest), make([]byte, 256)
	for {
		n, nControl, _, from, err := c.ReadMsgUDPAddrPort(buffer, control)
		if err != nil {
			return err
		}
		req, err := parse(buffer[:n])
		if errors.Is(err, errNoRequest) {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		to := local(control[:nControl])
		if err != nil {
			s.refuse(ctx, c, to, from, err)
			continue
		}
		own, cancel := context.WithCancel(ctx)
		e := &entry{cancel: cancel}
		if taken, err := s.begin(key{from, req.name}, e); !taken {
			cancel()
			if err != nil {
				s.Log.Warn("TFTP: too many transfers", "most", s.Most, "most_each", s.MostEach, "address", from.Addr())
				s.refuse(ctx, c, to, from, err)
			}
			continue
		}
		transfers.Go(func() {
			defer cancel()
			for again := true; again; {
				aborted := s.serve(own, c, to, from, req, e)
				again = s.end(key{from, req.name}, e, aborted && own.Err() == nil)
			}
		})
	}
}

// begin notes a transfer, unless the same one is under way already.
func (s *Server) begin(k key, e *entry) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.running[k]; old != nil {
		if !old.answered.Load() {
			old.repeated = true
			return false, nil
		}
		old.cancel() // the client has started anew
	}
	if s.count >= s.Most || s.each[k.client.Addr()] >= s.MostEach {
		return false, errBusy
	}
	s.running[k] = e
	s.count++
	s.each[k.client.Addr()]++
	return true, nil
}

// end forgets a transfer, unless the client has ended it and its request has come
// again: that was no second try then. The client has learned the size, and asks
// from the same port for the file.
func (s *Server) end(k key, e *entry, aborted bool) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[k] == e {
		if aborted && e.repeated {
			e.repeated = false
			e.answered.Store(false)
			return true
		}
		delete(s.running, k)
	}
	s.count--
	if s.each[k.client.Addr()]--; s.each[k.client.Addr()] == 0 {
		delete(s.each, k.client.Addr())
	}
	return false
}

// refuse tells a client why not. Nothing is waited for.
func (s *Server) refuse(ctx context.Context, c *socket, from netip.Addr, to netip.AddrPort, why error) {
	if conn, err := s.dial(ctx, c, from, to); err == nil {
		_, _ = conn.Write(errorPacket(why))
		_ = conn.Close()
	}
}

// local is the address of ours that a packet came to, as its control messages
// say; the zero address leaves it to the kernel.
func local(control []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		// struct in_pktinfo: interface, our address, the address in the header;
		// the last two differ for a broadcast (ip(7)).
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			return netip.AddrFrom4([4]byte(m.Data[4:8]))
		}
	}
	return netip.Addr{}
}

// dial makes a transfer's own socket.
func (s *Server) dial(ctx context.Context, c *socket, from netip.Addr, to netip.AddrPort) (*net.UDPConn, error) {
	dialer := net.Dialer{Control: card.Control(c.card, tellAddress)}
	if from.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := dialer.DialContext(ctx, "udp4", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// serve answers one request, and says whether the client has ended the transfer.
func (s *Server) serve(ctx context.Context, c *socket, from netip.Addr, to netip.AddrPort, req request, e *entry) (aborted bool) {
	log := s.Log.With("name", req.name, "address", to.Addr())
	conn, err := s.dial(ctx, c, from, to)
	if err != nil {
		log.Error("TFTP: cannot answer", "error", err)
		return false
	}
	defer conn.Close()
	f, err := s.Tree.Open(req.name, to.Addr())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			log.Debug("TFTP: not there")
		} else {
			log.Error("TFTP: cannot serve a file", "error", err)
		}
		_, _ = conn.Write(errorPacket(errNone))
		return false
	}
	defer f.Close()
	// Whatever it waits for ends.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	t := newTransfer(conn, f, req, s.Timeout, c.mtu-packetOverhead)
	t.answered = &e.answered
	sent, err := t.run(ctx)
	switch {
	case err == nil:
		log.Debug("TFTP: sent", "bytes", sent)
	case errors.Is(err, errAborted):
		// A boot ROM that only wants to know the size ends here, too.
		log.Debug("TFTP: the client has enough", "sent", sent, "error", err)
		return true
	case ctx.Err() == nil:
		log.Warn("TFTP: given up", "sent", sent, "of", f.Size, "error", err)
	}
	return false
}
