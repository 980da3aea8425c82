// Package card opens UDP sockets that belong to one network card: what comes in
// by another never reaches them, and nothing leaves by another (SO_BINDTODEVICE,
// socket(7)).
package card

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control binds a socket to a card; it is for [net.ListenConfig] and [net.Dialer].
// What more is set on the socket, set does; nil is nothing.
func Control(name string, set func(fd int) error) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			err = unix.BindToDevice(int(fd), name)
			if err == nil && set != nil {
				err = set(int(fd))
			}
		}); e != nil {
			return e
		}
		return err
	}
}

// Listen listens on a port of one card, on the calling thread and so in its
// network namespace. protocol is for errors, and off how to do without it. It
// shares the port with nobody, so that a second server on this machine is found
// at once.
func Listen(protocol, name string, port int, off string, set func(fd int) error) (*net.UDPConn, error) {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, fmt.Errorf("%s on the interface %q: %w: name one that `ip link` shows", protocol, name, err)
	}
	bind := net.ListenConfig{Control: Control(name, set)}
	conn, err := bind.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%s on the interface %s: %w: another %s server runs on this machine; stop it, or %s", protocol, name, err, protocol, off)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%s on the interface %s: %w: run as root, or with CAP_NET_BIND_SERVICE and CAP_NET_RAW", protocol, name, err)
	case err != nil:
		return nil, fmt.Errorf("%s on the interface %s: %w", protocol, name, err)
	}
	udp := conn.(*net.UDPConn)
	// A lab that is switched on at once asks at once. The kernel gives less if it
	// has to.
	_ = udp.SetReadBuffer(1 << 20)
	return udp, nil
}
