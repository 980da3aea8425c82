package qemutests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/command"
)

// Namespace is a machine's network as Linux has it, without a machine: what runs
// in it sees the cards that were put there and no others. It has no name in the
// file system, so that it is gone with this program and what runs in it, however
// they end.
type Namespace struct{ file *os.File }

// NewNamespace makes a namespace with a loopback interface, which is up.
func NewNamespace(ctx context.Context) (*Namespace, error) {
	var n *Namespace
	err := onThread(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: run the test as root", err)
		}
		if err != nil {
			return err
		}
		file, err := os.Open(threadNet)
		n = &Namespace{file}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return n, n.ip(ctx, "link set lo up")
}

// threadNet is the namespace that the calling thread is in.
const threadNet = "/proc/thread-self/ns/net"

// onThread runs f on a thread whose namespace f may change. The thread must live
// on: programs that it has started die with it (PR_SET_PDEATHSIG(2const)).
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	own, err := os.Open(threadNet)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	defer func() {
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			// Left locked, it ends with the goroutine, and nobody else gets it.
			err = errors.Join(err, fmt.Errorf("back to the program's own namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// in runs f inside; sockets that it makes stay inside.
func (n *Namespace) in(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		return f()
	})
}

// Close lets go of the namespace, which ends with the last program that runs in it.
func (n *Namespace) Close() error { return n.file.Close() }

// Args are the arguments that run a program inside.
func (n *Namespace) Args(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.file.Fd()), "--"}, args...)
}

// Dial connects from inside to a numerical address.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.in(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside at a numerical TCP address.
func (n *Namespace) Listen(ctx context.Context, address string) (l net.Listener, err error) {
	err = n.in(func() error {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}

// ip has ip(8) run lines inside.
func (n *Namespace) ip(ctx context.Context, lines ...string) error {
	return command.Command{Args: n.Args("ip", "-batch", "-"), Stdin: strings.NewReader(strings.Join(lines, "\n") + "\n")}.Run(ctx)
}

// Daemon is a server program under way.
type Daemon struct {
	*Console // what it says, on both its outputs

	kill context.CancelFunc
	done chan struct{}
	err  error
}

// errKilled is why a daemon's console ends that was told to.
var errKilled = errors.New("killed")

// Start starts a program inside. What it says goes to a file of folder dir, too.
func (n *Namespace) Start(ctx context.Context, dir string, env []string, args ...string) (*Daemon, error) {
	log, err := os.OpenFile(filepath.Join(dir, filepath.Base(args[0])+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	d := &Daemon{Console: &Console{Log: log}, kill: cancel, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		defer log.Close()
		c := command.Command{Args: n.Args(args...), Dir: dir, Env: env, Stdout: d.Console, Stderr: d.Console, SysProcAttr: dieWithUs()}
		d.err = c.Run(ctx)
		why := d.err
		switch {
		case errors.Is(d.err, context.Canceled):
			d.err, why = nil, errKilled
		case d.err == nil:
			d.err = fmt.Errorf("%s ended by itself", args[0])
			why = d.err
		}
		d.Console.end(why)
	}()
	return d, nil
}

// Kill ends the daemon as "kill -9" does, and waits for it. That it had ended
// before is an error.
func (d *Daemon) Kill() error {
	d.kill()
	<-d.done
	return d.err
}

// dieWithUs has a program end when this one does, even by a signal or a test's
// time limit: nothing may stay behind on a network.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// Segment is a piece of Ethernet: a bridge in a namespace, which PCs are plugged
// into. The namespace itself is the boot server's. No cable leads out of it.
type Segment struct {
	*Namespace
	cards  atomic.Int32
	router chan struct{} // closed to end it
}

// A segment's addresses; those of PCs are their tests' own.
const (
	SegmentNetwork = "172.30.0.0/24"
	SegmentServer  = "172.30.0.5" // the boot server, on the bridge itself
	bridge         = "br0"
)

// NewSegment makes a segment with nobody on it but the boot server.
func NewSegment(ctx context.Context) (*Segment, error) {
	n, err := NewNamespace(ctx)
	if err != nil {
		return nil, err
	}
	// Without spanning tree a bridge still makes a new port wait, unless told.
	err = n.ip(ctx,
		"link add "+bridge+" type bridge stp_state 0 forward_delay 0",
		"addr add "+SegmentServer+"/24 dev "+bridge,
		"link set "+bridge+" up")
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	s := &Segment{Namespace: n, router: make(chan struct{})}
	return s, s.advertise()
}

// Close takes the segment away, once nothing runs on it any more.
func (s *Segment) Close() error {
	close(s.router)
	return s.Namespace.Close()
}

// advertise has an IPv6 router on the segment that says it is one for nobody
// (RFC 4861, section 4.2: a lifetime of 0). Where none says anything, iPXE begins
// to load only after 13 seconds of asking for one.
func (s *Segment) advertise() error {
	var socket int
	to := &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 0x02, 15: 0x01}} // all nodes
	err := s.in(func() error {
		card, err := net.InterfaceByName(bridge)
		if err != nil {
			return err
		}
		to.ZoneId = uint32(card.Index)
		socket, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		// Nodes drop what may have come through a router.
		return unix.SetsockoptInt(socket, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
	})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // then PCs only boot later
	}
	if err != nil {
		return fmt.Errorf("IPv6 router: %w", err)
	}
	go func() {
		defer unix.Close(socket)
		every := time.NewTicker(500 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-s.router:
				return
			case <-every.C:
				// It fails until the bridge's own address is known to be nobody else's.
				_ = unix.Sendto(socket, []byte{0: 134, 15: 0}, 0, to)
			}
		}
	}()
	return nil
}

// Host plugs in a further machine: a namespace whose card eth0 has that address.
func (s *Segment) Host(ctx context.Context, address string) (*Namespace, error) {
	n, err := NewNamespace(ctx)
	if err != nil {
		return nil, err
	}
	port := fmt.Sprintf("veth%d", s.cards.Add(1))
	err = errors.Join(
		s.ip(ctx,
			fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/%d/fd/%d", port, os.Getpid(), n.file.Fd()),
			"link set "+port+" master "+bridge+" up"),
		n.ip(ctx, "addr add "+address+"/24 dev eth0", "link set eth0 up"))
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// tap makes a socket for a PC's cable and returns its name.
func (s *Segment) tap(ctx context.Context) (string, error) {
	name := fmt.Sprintf("tap%d", s.cards.Add(1))
	return name, s.ip(ctx, "tuntap add "+name+" mode tap", "link set "+name+" master "+bridge+" up")
}

// remove takes a socket away.
func (s *Segment) remove(tap string) error {
	// The test, and its context, may have ended.
	return s.ip(context.Background(), "link del "+tap)
}
