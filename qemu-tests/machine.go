// Package qemutests boots virtual PCs, as a lab boots its real ones: a network
// card's boot ROM asks DHCP and TFTP for pxelinux, pxelinux loads our image, and
// our image reimages the disk and restarts into it.
//
// A test is an ordinary Go test:
//
//	lab := NewLab(t, Setup{Profile: "small", ...})
//	disk := &Disk{Size: 2 * spec.GiB}
//	lab.Switch("remote")
//	pc := lab.PowerOn(disk)
//	pc.Expect(`REIMAGE DONE`)
//
// What it needs of this machine: QEMU, and no more. The network is QEMU's own
// user network, in which this machine is 10.0.2.2, so nothing needs root and
// nothing leaves this machine. Guests run on QEMU's own processor emulation;
// QEMU_ACCEL=kvm asks for the machine's instead.
//
// When a test fails, its folder stays: consoles, the emulator's command line, the
// published tree and the disks.
package qemutests

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
)

// The user network as a PC sees it.
const (
	Network = "10.0.2.0/24"
	Server  = "10.0.2.2"  // this machine
	Address = "10.0.2.15" // the PC, by DHCP
	DNS     = "10.0.2.3"
)

// Machine is a PC as a test wants it. The zero value of every field but Dir and
// TFTP is usable.
type Machine struct {
	// Dir is where the console's log and the control socket go.
	Dir string
	// TFTP is the folder that DHCP's next server serves.
	TFTP  string
	Disks []*Disk
	// Memory is 1 GiB unless given.
	Memory spec.Size
	// CPUs is 2 unless given.
	CPUs int
	// MAC is 52:54:00:12:34:56 unless given.
	MAC spec.MAC
	// NIC is the network card's model, virtio-net-pci unless given.
	NIC string
	// FromDisk has it boot from its first disk alone.
	FromDisk bool
	// DiskFirst has it boot from its first disk, and from the network only when
	// the disk hands the firmware on.
	DiskFirst bool
	// NoReboot has it switch off where it would restart.
	NoReboot bool
	// Watch gets the console as it comes, besides the log.
	Watch io.Writer
}

var errOff = errors.New("the PC is switched off")

// DefaultMAC is the address of a machine that names none.
var DefaultMAC = spec.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

// VM is a PC that is switched on.
type VM struct {
	*Console
	// SSH is where this machine finds the PC's port 22. The user network
	// accepts connections itself: only an SSH banner proves an answer.
	SSH string
	// Started is when it was switched on.
	Started time.Time

	socket string
	kill   context.CancelFunc
	done   chan struct{} // closed when the emulator is gone
	err    error         // how it went, after done
}

// accelerator is what executes a guest's instructions. A /dev/kvm that is there
// may still hang every guest, so it must be asked for.
func accelerator() string {
	if a := os.Getenv("QEMU_ACCEL"); a != "" && a != "tcg" {
		return a
	}
	return "tcg,thread=multi"
}

// Arguments returns the emulator's command line but for the port that is
// forwarded to the PC's port 22.
func (m Machine) Arguments(sshPort int) ([]string, error) {
	if m.Memory == 0 {
		m.Memory = spec.GiB
	}
	if m.CPUs == 0 {
		m.CPUs = 2
	}
	if m.MAC == (spec.MAC{}) {
		m.MAC = DefaultMAC
	}
	if m.NIC == "" {
		m.NIC = "virtio-net-pci"
	}
	args := []string{
		"qemu-system-x86_64", "-no-user-config", "-nodefaults",
		"-machine", "pc", "-accel", accelerator(),
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.FormatUint(uint64(m.Memory/spec.MiB), 10),
		"-vga", "std", "-display", "none", "-device", "virtio-rng-pci,addr=1d",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:" + filepath.Join(m.Dir, "qmp") + ",server=on,wait=off",
		"-netdev", fmt.Sprintf("user,id=net,tftp=%s,bootfile=pxelinux.0,hostfwd=tcp:127.0.0.1:%d-%s:22", m.TFTP, sshPort, Address),
		// The slot is fixed: udev names the card by it, ens3.
		"-device", fmt.Sprintf("%s,netdev=net,mac=%s,bootindex=0,addr=3", m.NIC, m.MAC),
	}
	last := &args[len(args)-1]
	switch {
	case m.FromDisk:
		*last = strings.Replace(*last, ",bootindex=0", "", 1)
	case m.DiskFirst:
		*last = strings.Replace(*last, ",bootindex=0", ",bootindex=99", 1)
	}
	if m.NoReboot {
		args = append(args, "-no-reboot")
	}
	for i, d := range m.Disks {
		disk, err := d.arguments(i)
		if err != nil {
			return nil, err
		}
		args = append(args, disk...)
	}
	return args, nil
}

// Start switches the PC on. It boots from the network first, then from its first
// disk. It is off when ctx ends, when its owner says so, or when it has said so itself.
func (m Machine) Start(ctx context.Context) (*VM, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	args, err := m.Arguments(port)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(m.Dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	line := command.Quote(args) + "\n"
	if err := os.WriteFile(filepath.Join(m.Dir, "qemu.command"), []byte(line), 0o644); err != nil {
		log.Close()
		return nil, fmt.Errorf("virtual PC: %w", err)
	}
	var out io.Writer = log
	if m.Watch != nil {
		out = io.MultiWriter(log, m.Watch)
	}
	ctx, cancel := context.WithCancel(ctx)
	vm := &VM{
		Console: &Console{Log: out},
		SSH:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Started: time.Now(),
		socket:  filepath.Join(m.Dir, "qmp"),
		kill:    cancel,
		done:    make(chan struct{}),
	}
	go func() {
		defer close(vm.done)
		defer log.Close()
		vm.err = command.Command{Args: args, Stdout: vm.Console}.Run(ctx)
		if errors.Is(vm.err, context.Canceled) {
			vm.err = nil // we pulled the plug
		}
		vm.Console.end(errors.Join(errOff, vm.err))
	}()
	return vm, nil
}

// Kill pulls the plug and waits until the PC is off.
func (vm *VM) Kill() error {
	vm.kill()
	<-vm.done
	return vm.err
}

// Wait waits until the PC switches itself off.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.done:
		return vm.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the PC to switch itself off: %w", context.Cause(ctx))
	}
}

// Reset presses the reset button: the PC starts over with what is on its disks.
func (vm *VM) Reset() error { return vm.control("system_reset") }

// Pause stops the PC's processors, so that its disks can be looked at between
// two instructions.
func (vm *VM) Pause() error { return vm.control("stop") }

// Continue lets a paused PC go on.
func (vm *VM) Continue() error { return vm.control("cont") }

// control has the emulator do one thing, by QMP (qemu/docs/interop/qmp-spec).
func (vm *VM) control(name string) error {
	conn, err := net.DialTimeout("unix", vm.socket, 5*time.Second)
	if err != nil {
		return fmt.Errorf("virtual PC: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return fmt.Errorf("virtual PC: %w", err)
	}
	in := bufio.NewScanner(conn)
	for _, execute := range []string{"qmp_capabilities", name} {
		if err := json.NewEncoder(conn).Encode(map[string]string{"execute": execute}); err != nil {
			return fmt.Errorf("virtual PC: %s: %w", execute, err)
		}
		for answered := false; !answered; {
			if !in.Scan() {
				return fmt.Errorf("virtual PC: %s: no answer: %w", execute, errors.Join(in.Err(), io.ErrUnexpectedEOF))
			}
			var answer struct {
				Return json.RawMessage `json:"return"`
				Error  *struct {
					Desc string `json:"desc"`
				} `json:"error"`
			}
			if err := json.Unmarshal(in.Bytes(), &answer); err != nil {
				return fmt.Errorf("virtual PC: %s: %w", execute, err)
			}
			if answer.Error != nil {
				return fmt.Errorf("virtual PC: %s: %s", execute, answer.Error.Desc)
			}
			answered = answer.Return != nil // else the greeting, or an event
		}
	}
	return nil
}

// freePort finds a port that nobody listens on. Somebody else may take it before
// the emulator does; then the emulator says so and ends.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("no free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
