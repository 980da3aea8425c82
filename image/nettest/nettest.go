// Package nettest gives tests networks of their own, so that DHCP and TFTP servers on
// their real ports meet nobody but the test. Only tests import it; they need root.
package nettest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a thread of its own, on which Do runs.
type Namespace struct {
	T *testing.T
	// FD is what others move cards to.
	FD   netlink.NsFd
	work chan func()
}

// New makes a namespace that ends with the test. Its only card is lo, switched off.
func New(t *testing.T) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run the tests as root")
	}
	n := &Namespace{T: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var fd int
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			n.FD = netlink.NsFd(fd)
		}
		ready <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.work); _ = unix.Close(int(n.FD)) })
	return n
}

// Do runs f inside: sockets that it opens and programs that it starts stay there. An
// error ends the test.
func (n *Namespace) Do(f func() error) {
	n.T.Helper()
	done := make(chan error)
	n.work <- func() { done <- f() }
	if err := <-done; err != nil {
		n.T.Fatal(err)
	}
}

// Up switches a card inside on, with addresses such as 10.0.0.1/24.
func (n *Namespace) Up(card string, addresses ...string) {
	n.T.Helper()
	n.Do(func() error {
		link, err := netlink.LinkByName(card)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			a, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			// Without a carrier, nobody finds out whether an IPv6 address is somebody else's.
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrReplace(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	})
}

// Start runs a program inside until the test ends, and shows what it wrote if that failed.
func (n *Namespace) Start(args ...string) (*exec.Cmd, *Output) {
	n.T.Helper()
	cmd, out := exec.Command(args[0], args[1:]...), &Output{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with the namespace's thread
	n.Do(cmd.Start)
	n.T.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if n.T.Failed() {
			n.T.Logf("%v:\n%s", args, out)
		}
	})
	return cmd, out
}

// Run runs a program inside to its end, for a minute at most, and returns what it wrote.
func (n *Namespace) Run(args ...string) (string, error) {
	n.T.Helper()
	ctx, cancel := context.WithTimeout(n.T.Context(), time.Minute)
	defer cancel()
	cmd, out := exec.CommandContext(ctx, args[0], args[1:]...), &Output{}
	cmd.Stdout, cmd.Stderr = out, out
	n.Do(cmd.Start)
	err := cmd.Wait()
	return out.String(), err
}

// Output is what a program has written, for others to read meanwhile.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
