package qemutests

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"reassure/image/bootfiles"
	"reassure/image/command"
	"reassure/image/spec"
)

// Load is a lab whose PCs are all switched on at once. What the PCs are made of
// here is what a boot ROM and a boot loader say on the network.
type Load struct {
	Clients int
	// Size is that of the image: a quarter kernel, the rest initramfs.
	Size spec.Size
}

// Loaded is how a load went. Nobody gave up, or there is none.
type Loaded struct {
	DHCP, TFTP, HTTP time.Duration // until the last PC had all of it
	Memory           spec.Size     // the most that the server had resident (VmHWM)
}

// loadAddress is the address of a PC, counted from 0.
func loadAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + i)}) }

func loadMAC(i int) spec.MAC { return spec.MAC{0x52, 0x54, 0, 1, 0, byte(i)} }

// mostClients fit into the segment, beside those of other makers.
const mostClients = 200

// Run makes the lab in folder dir, serves it with "reassure serve", and switches
// its PCs on. say is told what happens.
func (l Load) Run(ctx context.Context, p *Programs, dir string, say func(string)) (*Loaded, error) {
	if l.Clients < 1 || l.Clients > mostClients {
		return nil, fmt.Errorf("%d PCs: from 1 to %d fit", l.Clients, mostClients)
	}
	wad := filepath.Join(dir, "load.tar")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(wad, []byte("never fetched here"), 0o644)); err != nil {
		return nil, err
	}
	setup := RoomSetup{
		Profile: "load", Wads: map[string]string{"load.tar": wad},
		Files: map[string]string{"profiles/load.yaml": `
table: mbr
partitions: [{name: root, size: rest, filesystem: ext4, mount: /, bootable: true}]
wads: [{file: load.tar}]
steps: [{name: boot loader, boot_loader: {kind: grub}}]
`},
	}
	for i := range l.Clients {
		setup.PCs = append(setup.PCs, &PC{Name: fmt.Sprintf("pc%03d", i), IP: loadAddress(i).String(), MAC: loadMAC(i)})
	}
	room, err := NewRoom(ctx, p, filepath.Join(dir, "room"), setup, nil)
	if err != nil {
		return nil, err
	}
	defer room.Close()
	sums, err := l.image(room.TFTP)
	if err != nil {
		return nil, err
	}
	err = errors.Join(room.Write("lab.yaml", fmt.Sprintf(`interfaces: [%s]
dhcp: {mode: server, pool: 172.30.0.230-172.30.0.250}
tftp: {root: %s}
state: state
socket: %s
waves: {canaries: 0, at_once: %d}
`, bridge, room.TFTP, room.socket(), l.Clients)))
	if err != nil {
		return nil, err
	}
	server, err := room.Serve(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	if _, err := server.Expect(ctx, regexp.MustCompile(`\bready\b`)); err != nil {
		return nil, err
	}
	if _, err := room.Ask(ctx, "rollout", "--yes", "*"); err != nil {
		return nil, err
	}
	floor, err := room.Host(ctx, "172.30.0.254")
	if err != nil {
		return nil, err
	}
	defer floor.Close()
	var lines []string
	for i := range l.Clients {
		lines = append(lines, fmt.Sprintf("addr add %s/24 dev eth0", loadAddress(i)))
	}
	if err := floor.ip(ctx, lines...); err != nil {
		return nil, err
	}

	load := &loading{Load: l, floor: floor, sums: sums}
	result := &Loaded{}
	for _, phase := range []struct {
		name string
		took *time.Duration
		run  func(context.Context) error
	}{
		{"DHCP", &result.DHCP, load.dhcp}, {"TFTP", &result.TFTP, load.tftp}, {"HTTP", &result.HTTP, load.http},
	} {
		say(fmt.Sprintf("%s: %d PCs begin", phase.name, l.Clients))
		began := time.Now()
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return phase.run(ctx) })
		group.Go(func() error { return others(ctx, room, dir, phase.name, sums) })
		if err := group.Wait(); err != nil {
			return nil, fmt.Errorf("%s: %w", phase.name, err)
		}
		*phase.took = time.Since(began)
		say(fmt.Sprintf("%s: the last has it all after %.1f s", phase.name, phase.took.Seconds()))
	}
	result.Memory, err = peakOf(filepath.Join(room.Site, "lab.yaml"))
	return result, err
}

// image puts a kernel and an initramfs of that size into the TFTP root, and
// returns their digests.
func (l Load) image(root string) (map[string]spec.Digest, error) {
	sums := map[string]spec.Digest{}
	for name, size := range map[string]spec.Size{bootfiles.Kernel: l.Size / 4, bootfiles.Initramfs: l.Size - l.Size/4} {
		path := filepath.Join(root, name)
		// It is a link to what other tests boot.
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		f, err := os.Create(path)
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		_, err = io.CopyN(io.MultiWriter(f, sum), rand.Reader, int64(size))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		sums[name] = spec.Digest(sum.Sum(nil))
	}
	return sums, nil
}

// loading is a load under way.
type loading struct {
	Load
	floor *Namespace // where the PCs are
	sums  map[string]spec.Digest
}

// each does something for all PCs at once.
func (l *loading) each(ctx context.Context, do func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range l.Clients {
		group.Go(func() error {
			if err := do(ctx, i); err != nil {
				return fmt.Errorf("PC %d: %w", i, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// socket opens a UDP socket on the floor.
func (l *loading) socket(local netip.AddrPort, card string) (conn *net.UDPConn, err error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if card == "" {
			return nil
		}
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), card) }), err)
	}}
	err = l.floor.in(func() error {
		c, err := config.ListenPacket(context.Background(), "udp4", local.String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	return conn, err
}

// dhcp has every PC get its address, as a boot ROM does: asked again each second
// until it is answered.
func (l *loading) dhcp(ctx context.Context) error {
	conn, err := l.socket(netip.AddrPortFrom(netip.IPv4Unspecified(), 68), "eth0")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	answers := make([]chan *dhcpv4.DHCPv4, l.Clients)
	for i := range answers {
		answers[i] = make(chan *dhcpv4.DHCPv4, 8)
	}
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			p, err := dhcpv4.FromBytes(buffer[:n])
			if err != nil || len(p.ClientHWAddr) != 6 || int(p.ClientHWAddr[5]) >= l.Clients || p.ClientHWAddr[3] != 1 {
				continue
			}
			select {
			case answers[p.ClientHWAddr[5]] <- p:
			default:
			}
		}
	}()
	everybody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 67)
	// ask sends a packet until the answer of that kind comes.
	ask := func(ctx context.Context, i int, p *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
		for range 30 {
			if _, err := conn.WriteToUDPAddrPort(p.ToBytes(), everybody); err != nil {
				return nil, err
			}
			late := time.After(time.Second)
			for waiting := true; waiting; {
				select {
				case a := <-answers[i]:
					if a.TransactionID == p.TransactionID && a.MessageType() == kind {
						return a, nil
					}
				case <-late:
					waiting = false
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}
		return nil, fmt.Errorf("no %v within 30 s", kind)
	}
	return l.each(ctx, func(ctx context.Context, i int) error {
		mac := loadMAC(i)
		pxe := []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
			dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 0}), dhcpv4.WithBroadcast(true),
		}
		discover, err := dhcpv4.NewDiscovery(mac[:], pxe...)
		if err != nil {
			return err
		}
		offer, err := ask(ctx, i, discover, dhcpv4.MessageTypeOffer)
		if err != nil {
			return err
		}
		request, err := dhcpv4.NewRequestFromOffer(offer, pxe...)
		if err != nil {
			return err
		}
		ack, err := ask(ctx, i, request, dhcpv4.MessageTypeAck)
		if err != nil {
			return err
		}
		if got, want := ack.YourIPAddr.String(), loadAddress(i).String(); got != want || ack.BootFileName != "pxelinux.0" {
			return fmt.Errorf("it got %s and %q, want %s and pxelinux.0", got, ack.BootFileName, want)
		}
		return nil
	})
}

// tftp has every PC load pxelinux, its own text, and the image.
func (l *loading) tftp(ctx context.Context) error {
	return l.each(ctx, func(ctx context.Context, i int) error {
		if _, err := l.load(ctx, i, "pxelinux.0"); err != nil {
			return err
		}
		text, err := l.load(ctx, i, "pxelinux.cfg/"+loadMAC(i).PXE())
		if err != nil {
			return err
		}
		if !strings.Contains(text.head, "reassure.token=") {
			return fmt.Errorf("it is not told Remote:\n%s", text.head)
		}
		for _, name := range []string{bootfiles.Kernel, bootfiles.Initramfs} {
			got, err := l.load(ctx, i, name)
			if err != nil {
				return err
			}
			if got.sum() != l.sums[name] {
				return fmt.Errorf("%s has %v, want %v", name, got.sum(), l.sums[name])
			}
		}
		return nil
	})
}

// received is what came of a file.
type received struct {
	hash hash.Hash
	head string // its first 4 KiB
}

func (r *received) take(data []byte) {
	r.hash.Write(data)
	if n := 4096 - len(r.head); n > 0 {
		r.head += string(data[:min(n, len(data))])
	}
}

func (r *received) sum() spec.Digest { return spec.Digest(r.hash.Sum(nil)) }

// blockSize is what an Ethernet frame holds, as pxelinux and iPXE ask for it.
const blockSize = 1428

// load fetches a file by TFTP (RFC 1350, 2348), a block at a time. Like a boot ROM
// it asks again after a second, then after two and so on, six times in all.
func (l *loading) load(ctx context.Context, i int, name string) (*received, error) {
	conn, err := l.socket(netip.AddrPortFrom(loadAddress(i), 0), "")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := &received{hash: sha256.New()}
	to := netip.AddrPortFrom(netip.MustParseAddr(SegmentServer), 69)
	send := append([]byte{0, 1}, name+"\x00octet\x00blksize\x00"+strconv.Itoa(blockSize)+"\x00tsize\x000\x00"...)
	buffer := make([]byte, 4+blockSize+1)
	next := uint16(0) // the block that is awaited; 0 is the answer to the options
	for began := false; ; {
		n, from := 0, netip.AddrPort{}
		for try := 0; ; try++ {
			if try == 6 {
				return nil, fmt.Errorf("%s: given up at block %d", name, next)
			}
			if _, err := conn.WriteToUDPAddrPort(send, to); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second << try)); err != nil {
				return nil, err
			}
			n, from, err = conn.ReadFromUDPAddrPort(buffer)
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		if n < 4 {
			return nil, fmt.Errorf("%s: a packet of %d bytes", name, n)
		}
		op, block := binary.BigEndian.Uint16(buffer), binary.BigEndian.Uint16(buffer[2:])
		switch {
		case op == 5 && (!began || from == to):
			return nil, fmt.Errorf("%s: the server says %q", name, buffer[4:n])
		case op == 6 && !began:
			began, to, next = true, from, 1
			send = []byte{0, 4, 0, 0}
		case op == 3 && began && from == to && block == next:
			r.take(buffer[4:n])
			send = []byte{0, 4, buffer[2], buffer[3]}
			next++
			if n-4 < blockSize {
				_, err := conn.WriteToUDPAddrPort(send, to)
				return r, err
			}
		case began && from != to, op == 6 && began, op == 3 && began:
			// One that was sent again, and had arrived: ours is on its way. A request
			// that was sent again may be answered twice, from two ports.
		default:
			return nil, fmt.Errorf("%s: packet %d, block %d, where block %d was due", name, op, block, next)
		}
	}
}

// http has every PC load the image by HTTP.
func (l *loading) http(ctx context.Context) error {
	return l.each(ctx, func(ctx context.Context, i int) error {
		transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(loadAddress(i), 0))}
			err = l.floor.in(func() error {
				conn, err = d.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		}}
		defer transport.CloseIdleConnections()
		for _, name := range []string{bootfiles.Kernel, bootfiles.Initramfs} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, roomURL+"/boot/"+name, nil)
			if err != nil {
				return err
			}
			resp, err := (&http.Client{Transport: transport}).Do(req)
			if err != nil {
				return err
			}
			sum := sha256.New()
			_, err = io.Copy(sum, resp.Body)
			resp.Body.Close()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if got := spec.Digest(sum.Sum(nil)); resp.StatusCode != http.StatusOK || got != l.sums[name] {
				return fmt.Errorf("%s: %s, %v, want %v", name, resp.Status, got, l.sums[name])
			}
		}
		return nil
	})
}

// otherAddress is where clients of other makers are, while the load is on.
const otherAddress = "172.30.0.253"

// others has other people's programs do the same at the same time: udhcpc and
// dhclient, atftp, tftp-hpa and curl.
func others(ctx context.Context, room *Room, dir, phase string, sums map[string]spec.Digest) error {
	n, err := room.Host(ctx, otherAddress)
	if err != nil {
		return err
	}
	defer n.Close()
	at := filepath.Join(dir, "others-"+phase)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	url := roomURL + "/boot/" + bootfiles.Initramfs
	block := strconv.Itoa(blockSize)
	programs := map[string][][]string{
		"DHCP": {
			{"busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "30", "-T", "1", "-s", "/bin/true"},
			{"dhclient", "-1", "-d", "--no-pid", "-lf", filepath.Join(at, "leases"), "-sf", "/bin/true", "-cf", "/dev/null", "eth0"},
		},
		"TFTP": {
			{"atftp", "--option", "blksize " + block, "--get", "-r", bootfiles.Initramfs, "-l", filepath.Join(at, "atftp"), SegmentServer},
			{"tftp", "-m", "binary", SegmentServer, "-c", "get", bootfiles.Initramfs, filepath.Join(at, "hpa")},
			{"curl", "--silent", "--show-error", "--fail", "--tftp-blksize", block, "-o", filepath.Join(at, "curl"), "tftp://" + SegmentServer + "/" + bootfiles.Initramfs},
		},
		"HTTP": {{"curl", "--silent", "--show-error", "--fail", "-o", filepath.Join(at, "curl"), url}},
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, args := range programs[phase] {
		group.Go(func() error {
			// dhclient stays, as the DHCP client of a running system; that it got an
			// address shows in its leases.
			if args[0] == "dhclient" {
				return leased(ctx, n, args, filepath.Join(at, "leases"))
			}
			if err := (command.Command{Args: n.Args(args...), Dir: at, Timeout: 20 * time.Minute}).Run(ctx); err != nil {
				return err
			}
			if phase == "DHCP" {
				return nil
			}
			file := args[len(args)-1]
			for i, a := range args {
				if a == "-o" || a == "-l" {
					file = args[i+1]
				}
			}
			text, err := os.ReadFile(file)
			if err == nil && spec.Sum(text) != sums[bootfiles.Initramfs] {
				err = fmt.Errorf("%s: another file came", args[0])
			}
			return err
		})
	}
	return group.Wait()
}

// leased waits until dhclient has a lease, and ends it.
func leased(ctx context.Context, n *Namespace, args []string, file string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	defer stop()
	go func() { ended <- command.Command{Args: n.Args(args...)}.Run(running) }()
	for {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "fixed-address 172.30.0.2") {
			stop()
			<-ended
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("dhclient ended without a lease: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("dhclient has no lease: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// peakOf is the most memory that the process had resident whose command line
// names a file.
func peakOf(file string) (spec.Size, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil || !strings.HasSuffix(string(text), "\x00"+file+"\x00") {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(status)) {
			if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 10, 64)
				return spec.Size(n) * spec.KiB, err
			}
		}
	}
	return 0, fmt.Errorf("no process serves %s", file)
}
