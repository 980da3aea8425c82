package coldplug

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Uevents are the kernel's announcements of devices that come and go
// (lib/kobject_uevent.c), from the moment of Listen on.
type Uevents struct {
	file   *os.File
	buffer []byte
}

// Uevent is one announcement.
type Uevent struct {
	Action string            // add, remove, change, bind, ...
	Path   string            // below /sys: /devices/pci0000:00/...
	Values map[string]string // SUBSYSTEM, MODALIAS, DEVNAME, ...
}

// receiveBuffer is what many devices that appear at once may fill, in bytes.
const receiveBuffer = 8 << 20

// Listen begins to take uevents. It is called before the first [Loader.Settle],
// so that no device can slip through between looking and listening.
func Listen() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to uevents: %w", err)
	}
	// Group 1 is the kernel's own announcements, 2 would be udev's.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen to uevents: %w", err)
	}
	// Without the capability the usual buffer has to do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	// A non-blocking descriptor goes to the runtime's poller, so deadlines work.
	return &Uevents{file: os.NewFile(uintptr(fd), "uevents"), buffer: make([]byte, 64<<10)}, nil
}

// Close stops listening.
func (u *Uevents) Close() error { return u.file.Close() }

// Next waits for a uevent until ctx ends, or for at most that long, after which
// the error is [os.ErrDeadlineExceeded]. unix.ENOBUFS says that some were lost.
func (u *Uevents) Next(ctx context.Context, limit time.Duration) (Uevent, error) {
	if err := u.file.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return Uevent{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, err := u.file.Read(u.buffer)
		if ctx.Err() != nil {
			return Uevent{}, ctx.Err()
		}
		if err != nil {
			return Uevent{}, err
		}
		if e, err := parse(u.buffer[:n]); err == nil {
			return e, nil
		}
	}
}

// errNotUevent is what udev and others send.
var errNotUevent = errors.New("not a uevent of the kernel")

// parse reads "add@/devices/...", then KEY=VALUE, each ended by a zero byte.
func parse(message []byte) (Uevent, error) {
	fields := bytes.Split(bytes.TrimSuffix(message, []byte{0}), []byte{0})
	action, path, ok := strings.Cut(string(fields[0]), "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return Uevent{}, errNotUevent
	}
	e := Uevent{Action: action, Path: path, Values: make(map[string]string, len(fields))}
	for _, f := range fields[1:] {
		if key, value, ok := strings.Cut(string(f), "="); ok {
			e.Values[key] = value
		}
	}
	return e, nil
}
