package qemutests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// roomT is a room whose every error ends its test.
type roomT struct {
	*Room
	t *testing.T
}

// newRoom makes a room; {{KEY}} in its files becomes the line for the PCs'
// authorized_keys.
func newRoom(t *testing.T, s RoomSetup) *roomT {
	t.Helper()
	p := programs(t)
	dir := keptDir(t, "room")
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for name, text := range s.Files {
		files[name] = strings.ReplaceAll(text, "{{KEY}}", key.Line)
	}
	s.Files = files
	room, err := NewRoom(t.Context(), p, dir, s, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, room.Segment.Close) })
	return &roomT{room, t}
}

func closing(t *testing.T, f func() error) {
	t.Helper()
	if err := f(); err != nil {
		t.Error(err)
	}
}

// reassure runs the operator's program, which must succeed.
func (r *roomT) reassure(args ...string) string {
	r.t.Helper()
	out, err := r.Reassure(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// powerOn switches a PC on, once there is room for one more, and off when the
// test ends.
func (r *roomT) powerOn(pc *PC) *vmT {
	r.t.Helper()
	running <- struct{}{}
	vm, err := r.PowerOn(r.t.Context(), pc, nil)
	if err != nil {
		<-running
		r.t.Fatal(err)
	}
	v := &vmT{VM: vm, t: r.t}
	r.t.Cleanup(v.off)
	return v
}

// start starts a daemon in a machine's namespace and waits until it says ready.
// It must live until the test kills it or ends.
func (r *roomT) start(n *Namespace, ready string, args ...string) *Daemon {
	r.t.Helper()
	d, err := n.Start(r.t.Context(), r.Dir, nil, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { closing(r.t, d.Kill) })
	r.ready(d, ready)
	return d
}

// ready waits until a daemon says so.
func (r *roomT) ready(d *Daemon, says string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeoutCause(r.t.Context(), time.Minute, fmt.Errorf("not within a minute"))
	defer cancel()
	if _, err := d.Expect(ctx, regexp.MustCompile(says)); err != nil {
		r.t.Fatalf("%v; it says:\n%s", err, d.Text())
	}
}

// dnsmasq are the arguments of dnsmasq that stays what it was started as. With
// another user or group, the kernel would forget that it is to die with us.
func dnsmasq(args ...string) []string {
	return append([]string{"dnsmasq", "--keep-in-foreground", "--user=root", "--group=root", "--log-facility=-"}, args...)
}

// host plugs in a further machine.
func (r *roomT) host(address string) *Namespace {
	r.t.Helper()
	n, err := r.Host(r.t.Context(), address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { closing(r.t, n.Close) })
	return n
}

// small is a class of PCs with little on them, each told apart from the others by
// its name, its address and its variable motd.
func small(t *testing.T, pcs ...*PC) RoomSetup {
	t.Helper()
	files := SmallRoomFiles()
	return RoomSetup{PCs: pcs, Profile: "small", Files: files, Wads: map[string]string{"small.tar.zst": wad(t, "small", "small.tar.zst")}}
}

// TestSegment has the network hold what its name says: those who are on it reach
// each other, and nobody else.
func TestSegment(t *testing.T) {
	t.Parallel()
	s, err := NewSegment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, s.Close) })
	other, err := s.Host(t.Context(), "172.30.0.2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, other.Close) })
	l, err := s.Listen(t.Context(), SegmentServer+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := other.Dial(t.Context(), "tcp", SegmentServer+":80")
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.LocalAddr().(*net.TCPAddr).IP.String(); got != "172.30.0.2" {
		t.Errorf("dialled from %s", got)
	}
	conn.Close()
	// Nothing that leads further: no card but these, and no route but theirs.
	for n, want := range map[*Namespace][]string{s.Namespace: {"br0", "lo", "veth1"}, other: {"eth0", "lo"}} {
		var got []string
		err := n.in(func() error {
			cards, err := net.Interfaces()
			for _, c := range cards {
				got = append(got, c.Name)
			}
			return err
		})
		slices.Sort(got)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("cards: %v %s", err, diff)
		}
		if conn, err := n.Dial(t.Context(), "udp", "192.0.2.1:9"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("an address elsewhere: %v, want none", err)
			if err == nil {
				conn.Close()
			}
		}
	}
}

// TestDHCPConfig has the daemons that sites run serve what is written for them to
// real PCs, beside a boot server that gives no addresses: their boot ROMs get
// theirs and pxelinux, pxelinux gets the boot server's word, and the reimager its
// address again, with which it fetches its manifest.
func TestDHCPConfig(t *testing.T) {
	room, pcs := serving(t, "off", 4)
	own := pcs[3]
	// One for each daemon: the plug is pulled in the middle of its reimage.
	room.ask("rollout", "--canaries=0", pcs[0].Name, pcs[1].Name, pcs[2].Name)
	daemons := []struct {
		kind, ready, gave string   // IP and MAC are the PC's
		run               []string // @CONF is the configuration, @DIR a folder of its own
	}{
		{
			"dhcpd", `Server starting service`, `DHCPACK on IP to MAC`,
			[]string{"dhcpd", "-4", "-f", "-d", "-cf", "@CONF", "-lf", "@DIR/leases", "-pf", "@DIR/pid", "eth0"},
		},
		{
			// Its leases are in /var/lib/kea, as is built in: in one of its own.
			"kea", `DHCP4_STARTED`, `DHCP4_LEASE_ALLOC.*MAC.*IP`,
			[]string{"unshare", "--mount", "sh", "-c", "mount -t tmpfs none /var/lib && mkdir /var/lib/kea && exec env KEA_PIDFILE_DIR=@DIR KEA_LOCKFILE_DIR=@DIR kea-dhcp4 -c @CONF"},
		},
		{
			"dnsmasq", `DHCP, static leases only`, `DHCPACK\(eth0\) IP MAC`,
			dnsmasq("--conf-file=@CONF", "--dhcp-leasefile=@DIR/leases"),
		},
	}
	for i, d := range daemons {
		t.Run(d.kind, func(t *testing.T) {
			pc := pcs[i]
			ip := regexp.QuoteMeta(pc.IP)
			room := &servedT{&roomT{room.Room, t}, room.server}
			dir := filepath.Join(room.Dir, d.kind)
			conf := filepath.Join(dir, "conf")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(conf, []byte(room.reassure("dhcp-config", d.kind, "--interface", "eth0")), 0o644); err != nil {
				t.Fatal(err)
			}
			// dhcpd begins with what it gave before.
			if err := os.WriteFile(filepath.Join(dir, "leases"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			var args []string
			for _, a := range d.run {
				args = append(args, strings.NewReplacer("@CONF", conf, "@DIR", dir).Replace(a))
			}
			// It is another machine than the boot server.
			daemon := room.start(room.host("172.30.0.2"), d.ready, args...)
			ownVM, vm := room.powerOn(own), room.powerOn(pc)
			ownVM.expect("the old system of "+own.Name, time.Minute)
			ownVM.off()
			vm.expect(`network is up.*address=`+ip+`/24.*dhcp_server=172\.30\.0\.2.*next_server=172\.30\.0\.5`, 2*time.Minute)
			vm.expect(`to be reimaged: `, time.Minute)
			vm.off()
			// Once for the boot ROM, once for the reimager.
			gave := strings.NewReplacer("IP", ip, "MAC", pc.MAC.String()).Replace(d.gave)
			if n := len(regexp.MustCompile(gave).FindAllString(daemon.Text(), -1)); n < 2 {
				t.Errorf("the daemon gave the address %d times, want 2; it says:\n%s", n, daemon.Text())
			}
		})
	}
	for _, asked := range []string{`host=` + own.Name + ` .*loader=pxelinux decision=local`, `host=exp0[123] .*loader=pxelinux decision=remote`} {
		if n := len(regexp.MustCompile(asked).FindAllString(room.server.Text(), -1)); n != len(daemons) {
			t.Errorf("the boot server was asked %d times, want %d times %s; it says:\n%s", n, len(daemons), asked, room.server.Text())
		}
	}
}
