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
// user network, in which this machine is 10.0.2.2, so nothing needs root. Tests of
// the boot server need a network where somebody else answers DHCP: a [Segment], for
// which they must be root. Nothing leaves this machine either way. Guests run on
// QEMU's own processor emulation; QEMU_ACCEL=kvm asks for the machine's instead.
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
	"regexp"
	"slices"
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
	// TFTP is the folder that DHCP's next server serves, on QEMU's user network.
	TFTP string
	// Segment is what its card is plugged into, in place of the user network.
	// Address is where the PC's own system is found there.
	Segment *Segment
	Address string

	Disks []*Disk
	// Memory is 1 GiB unless given.
	Memory spec.Size
	// CPUs is 2 unless given; with Secure Boot it is 1.
	CPUs int
	// MAC is 52:54:00:12:34:56 unless given.
	MAC spec.MAC
	// Firmware is the PC's UEFI; nil is a BIOS.
	Firmware *Firmware
	// BootFile is what DHCP on the user network names: unless given, pxelinux.0 for
	// a BIOS, shimx64.efi for UEFI. It is the same for every boot loader that asks.
	BootFile string
	// NIC is the network card's model, virtio-net-pci unless given.
	NIC string
	// Loader is the model of another card, with another address, which boots in the
	// place of NIC; empty is none.
	Loader string
	// FromDisk has it boot from its first disk alone.
	FromDisk bool
	// DiskFirst has it boot from its first disk, and from the network only when
	// the disk hands the firmware on.
	DiskFirst bool
	// Clock is what its clock is set to, as "2099-01-01"; empty is the time.
	Clock string
	// NoReboot has it switch off where it would restart.
	NoReboot bool
	// Netdev is QEMU's -netdev in place of the user network, with id=net.
	Netdev string
	// Cable is what its card is plugged in by; nil is a good one.
	Cable *Cable
	// Extra are further arguments of the emulator.
	Extra []string
	// Watch gets the console as it comes, besides the log.
	Watch io.Writer
}

var errOff = errors.New("the PC is switched off")

// DefaultMAC is the address of a machine that names none.
var DefaultMAC = spec.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

// LoaderMAC is the address of a machine's other card, where it has one.
var LoaderMAC = spec.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x57}

// VM is a PC that is switched on.
type VM struct {
	*Console
	// SSH is where the PC's port 22 is found. The user network accepts
	// connections itself: only an SSH banner proves an answer.
	SSH string
	// Started is when it was switched on.
	Started time.Time

	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	socket string
	kill   context.CancelFunc
	done   chan struct{} // closed when the emulator is gone
	err    error         // how it went, after done
}

// accelerator is what executes a guest's instructions. A /dev/kvm that is there
// may still hang every guest, so it must be asked for. With a thread for each of the
// guest's processors QEMU 7.2 died of SIGSEGV once, a kernel hung once, and on two busy
// cores a reimage took 1.6 and 1.8 times as long.
func accelerator() string {
	if a := os.Getenv("QEMU_ACCEL"); a != "" && a != "tcg" {
		return a
	}
	return "tcg,thread=single"
}

var bootIndex = regexp.MustCompile(`,bootindex=\d+`)

// Arguments returns the emulator's command line; netdev says what the card's
// cable leads to.
func (m Machine) Arguments(netdev string) ([]string, error) {
	if m.Memory == 0 {
		m.Memory = spec.GiB
	}
	if m.CPUs == 0 {
		m.CPUs = m.Firmware.processors()
	}
	if m.MAC == (spec.MAC{}) {
		m.MAC = DefaultMAC
	}
	if m.NIC == "" {
		m.NIC = "virtio-net-pci"
	}
	args := []string{
		"qemu-system-x86_64", "-no-user-config", "-nodefaults", "-accel", accelerator(),
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.FormatUint(uint64(m.Memory/spec.MiB), 10),
		"-vga", "std", "-display", "none", "-device", "virtio-rng-pci,addr=1d",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:" + filepath.Join(m.Dir, "qmp") + ",server=on,wait=off",
		"-netdev", netdev + ",id=net",
	}
	args = append(args, m.Firmware.arguments()...)
	if m.Loader != "" {
		args = append(args, m.card(m.NIC, "net", m.MAC)...)
		args = append(args, "-netdev", m.user()+",id=loader", "-device", fmt.Sprintf("%s,netdev=loader,mac=%s,bootindex=0", m.Firmware.card(m.Loader), LoaderMAC))
	} else {
		// The slot is fixed: udev names the card by it, ens3.
		args = append(args, "-device", fmt.Sprintf("%s,netdev=net,mac=%s,bootindex=0,addr=3", m.Firmware.card(m.NIC), m.MAC))
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
	args = append(args, m.Extra...)
	if m.Clock != "" {
		args = append(args, "-rtc", "base="+m.Clock)
	}
	if m.Firmware != nil && m.Firmware.OwnOrder {
		for i := range args {
			args[i] = bootIndex.ReplaceAllString(args[i], "")
		}
	}
	if m.Netdev != "" {
		args[slices.Index(args, "-netdev")+1] = m.Netdev
	}
	return args, nil
}

// card are the arguments for a card that does not boot.
func (m Machine) card(model, netdev string, mac spec.MAC) []string {
	if model == "usb-net" {
		return []string{"-device", "qemu-xhci,id=cards", "-device", fmt.Sprintf("usb-net,bus=cards.0,netdev=%s,mac=%s", netdev, mac)}
	}
	return []string{"-device", fmt.Sprintf("%s,netdev=%s,mac=%s,romfile=", model, netdev, mac)}
}

// user is the user network of a card that boots.
func (m Machine) user() string {
	file := m.BootFile
	switch {
	case file != "":
	case m.Firmware != nil:
		file = "shimx64.efi"
	default:
		file = "pxelinux.0"
	}
	return fmt.Sprintf("user,tftp=%s,bootfile=%s", m.TFTP, file)
}

// Start switches the PC on. It boots from the network first, then from its first
// disk. It is off when ctx ends, when its owner says so, or when it has said so itself.
func (m Machine) Start(ctx context.Context) (*VM, error) {
	vm := &VM{socket: filepath.Join(m.Dir, "qmp"), done: make(chan struct{})}
	if m.Firmware != nil {
		if err := m.Firmware.make(m.Dir); err != nil {
			return nil, err
		}
	}
	netdev, unplug, err := m.plug(ctx, vm)
	if err != nil {
		return nil, err
	}
	if m.Cable != nil {
		near, extra, remove, err := m.Cable.lay(m.Dir, netdev)
		if err != nil {
			return nil, errors.Join(err, unplug())
		}
		off := unplug
		netdev, unplug = near, func() error { return errors.Join(remove(), off()) }
		m.Extra = append(slices.Clone(m.Extra), extra...)
	}
	run, err := m.command(netdev)
	if err != nil {
		return nil, errors.Join(err, unplug())
	}
	log, err := os.OpenFile(filepath.Join(m.Dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console: %w", err), unplug())
	}
	var out io.Writer = log
	if m.Watch != nil {
		out = io.MultiWriter(log, m.Watch)
	}
	ctx, vm.kill = context.WithCancel(ctx)
	vm.Console = &Console{Log: out}
	vm.Started = time.Now()
	run.Stdout = vm.Console
	go func() {
		defer close(vm.done)
		defer log.Close()
		vm.err = run.Run(ctx)
		if errors.Is(vm.err, context.Canceled) {
			vm.err = nil // we pulled the plug
		}
		vm.err = errors.Join(vm.err, unplug())
		vm.Console.end(errors.Join(errOff, vm.err))
	}()
	return vm, nil
}

// plug lays the card's cable. It returns the emulator's name for it and what
// takes it away, and tells vm how the PC is reached.
func (m Machine) plug(ctx context.Context, vm *VM) (netdev string, unplug func() error, err error) {
	if m.Segment != nil {
		tap, err := m.Segment.tap(ctx)
		if err != nil {
			return "", nil, fmt.Errorf("virtual PC: %w", err)
		}
		vm.SSH, vm.dial = net.JoinHostPort(m.Address, "22"), m.Segment.Dial
		return "tap,ifname=" + tap + ",script=no,downscript=no", func() error { return m.Segment.remove(tap) }, nil
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	vm.SSH, vm.dial = net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), new(net.Dialer).DialContext
	return fmt.Sprintf("%s,hostfwd=tcp:127.0.0.1:%d-%s:22", m.user(), port, Address), func() error { return nil }, nil
}

// command is the emulator's, and writes it into the PC's folder.
func (m Machine) command(netdev string) (command.Command, error) {
	args, err := m.Arguments(netdev)
	if err != nil {
		return command.Command{}, err
	}
	run := command.Command{Args: args}
	if m.Segment != nil {
		run.Args, run.SysProcAttr = m.Segment.Args(args...), dieWithUs()
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "qemu.command"), []byte(command.Quote(run.Args)+"\n"), 0o644); err != nil {
		return run, fmt.Errorf("virtual PC: %w", err)
	}
	return run, nil
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

// IsOn says whether the PC is on.
func (vm *VM) IsOn() bool {
	select {
	case <-vm.done:
		return false
	default:
		return true
	}
}

// Reset presses the reset button: the PC starts over with what is on its disks.
func (vm *VM) Reset() error { return vm.control("system_reset") }

// Pause stops the PC's processors, so that its disks can be looked at between
// two instructions.
func (vm *VM) Pause() error { return vm.control("stop") }

// Continue lets a paused PC go on.
func (vm *VM) Continue() error { return vm.control("cont") }

// Link takes the card's carrier away, as a switch does that is switched off, or gives it back.
func (vm *VM) Link(up bool) error {
	_, err := vm.ask("set_link", map[string]any{"name": "net", "up": up})
	return err
}

// Vanish has a disk be gone: whatever the PC asks of it fails from now on.
func (vm *VM) Vanish(disk int) error {
	text, err := vm.monitor(fmt.Sprintf("drive_del disk%d", disk))
	if err == nil && text != "" {
		err = fmt.Errorf("virtual PC: drive_del: %s", text)
	}
	return err
}

// Processors says what each processor does, twice: where it is, and whether it waits
// for an interrupt (HLT=1). It tells a kernel that hangs from a slow one.
func (vm *VM) Processors() string {
	var b strings.Builder
	for range 2 {
		text, err := vm.monitor("info registers -a")
		if err != nil {
			return err.Error()
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "CPU#") || strings.HasPrefix(line, "RIP=") || strings.HasPrefix(line, "EIP=") {
				b.WriteString(strings.TrimSpace(line) + "\n")
			}
		}
	}
	return b.String()
}

// monitor asks the emulator's monitor for people.
func (vm *VM) monitor(line string) (text string, err error) {
	answer, err := vm.ask("human-monitor-command", map[string]any{"command-line": line})
	if err == nil {
		err = json.Unmarshal(answer, &text)
	}
	return text, err
}

// control has the emulator do one thing.
func (vm *VM) control(name string) error {
	_, err := vm.ask(name, nil)
	return err
}

// ask has the emulator answer a command, by QMP (qemu/docs/interop/qmp-spec).
func (vm *VM) ask(name string, arguments map[string]any) (json.RawMessage, error) {
	conn, err := net.DialTimeout("unix", vm.socket, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("virtual PC: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, fmt.Errorf("virtual PC: %w", err)
	}
	in := bufio.NewScanner(conn)
	type command struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}
	var result json.RawMessage
	for _, c := range []command{{Execute: "qmp_capabilities"}, {name, arguments}} {
		execute := c.Execute
		if err := json.NewEncoder(conn).Encode(c); err != nil {
			return nil, fmt.Errorf("virtual PC: %s: %w", execute, err)
		}
		for answered := false; !answered; {
			if !in.Scan() {
				return nil, fmt.Errorf("virtual PC: %s: no answer: %w", execute, errors.Join(in.Err(), io.ErrUnexpectedEOF))
			}
			var answer struct {
				Return json.RawMessage `json:"return"`
				Error  *struct {
					Desc string `json:"desc"`
				} `json:"error"`
			}
			if err := json.Unmarshal(in.Bytes(), &answer); err != nil {
				return nil, fmt.Errorf("virtual PC: %s: %w", execute, err)
			}
			if answer.Error != nil {
				return nil, fmt.Errorf("virtual PC: %s: %s", execute, answer.Error.Desc)
			}
			answered = answer.Return != nil // else the greeting, or an event
			result = answer.Return
		}
	}
	return result, nil
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
