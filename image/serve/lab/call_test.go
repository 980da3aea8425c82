package lab

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// TestWake receives what Wake sends, on the loopback interface.
func TestWake(t *testing.T) {
	l, err := net.ListenPacket("udp4", "0.0.0.0:9")
	if err != nil {
		t.Fatalf("%v: run the tests as root", err)
	}
	defer l.Close()
	mac := spec.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	if err := Wake("lo", mac); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 200)
	n, _, err := l.ReadFrom(packet)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, bytes.Repeat(mac[:], 16)...)
	if !bytes.Equal(packet[:n], want) {
		t.Errorf("%x was sent, want %x", packet[:n], want)
	}
	if err := Wake("nosuchcard", mac); err == nil {
		t.Error("a card that is not there sent something")
	}
}

// sshd is a PC's: it takes one key, and notes what it is told to run. What does it;
// nil goes down instead.
func sshd(t *testing.T, address string, own ssh.Signer, admin ssh.PublicKey, does func(command string, ch ssh.Channel) (status uint32)) <-chan string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ran := make(chan string, 10)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(k.Marshal(), admin.Marshal()) {
			return nil, net.ErrClosed
		}
		return nil, nil
	}}
	config.AddHostKey(own)
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				conn, channels, requests, err := ssh.NewServerConn(raw, config)
				if err != nil {
					return
				}
				go ssh.DiscardRequests(requests)
				for c := range channels {
					ch, in, err := c.Accept()
					if err != nil {
						return
					}
					for r := range in {
						if r.Type != "exec" {
							continue
						}
						var line struct{ Text string }
						if ssh.Unmarshal(r.Payload, &line) == nil {
							ran <- conn.User() + ": " + line.Text
						}
						_ = r.Reply(true, nil)
						if does != nil {
							status := struct{ Status uint32 }{does(line.Text, ch)}
							_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(status))
						}
						ch.Close() // without a status it goes as when the PC goes down
					}
				}
			}()
		}
	}()
	return ran
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	admin, own := newKey(t), newKey(t)
	w.lab.SSH = admin
	ran := sshd(t, "127.0.0.1:22022", own, admin.PublicKey(), nil)
	if w.lab.sshPort != "22" {
		t.Errorf("PCs are restarted over port %q", w.lab.sshPort)
	}
	w.lab.sshPort = "22022"
	loop := spec.Host{Name: "exp01", IP: netip.MustParseAddr("127.0.0.1")}
	reported := string(ssh.MarshalAuthorizedKey(own.PublicKey()))
	if err := w.lab.restart(t.Context(), loop, []string{reported}); err != nil {
		t.Fatal(err)
	}
	if got := <-ran; got != "root: sync; reboot" {
		t.Errorf("the PC ran %q", got)
	}
	// Another's key: somebody has taken the PC's address.
	other := string(ssh.MarshalAuthorizedKey(newKey(t).PublicKey()))
	if err := w.lab.restart(t.Context(), loop, []string{other}); err == nil || !strings.Contains(err.Error(), "has not reported") {
		t.Errorf("a PC with another host key: %v", err)
	}
	if err := w.lab.restart(t.Context(), loop, nil); err == nil || !strings.Contains(err.Error(), "has reported no SSH host key") {
		t.Errorf("a PC without a host key: %v", err)
	}
	select {
	case got := <-ran:
		t.Errorf("it ran %q, too", got)
	default:
	}
}

// called are the hosts that were told to start and are awaited.
func (w *world) called() string {
	var names []string
	for _, k := range w.lab.order {
		if w.lab.record(k).Awaited(w.now, w.lab.Policy) {
			names = append(names, k)
		}
	}
	return strings.Join(names, " ")
}

// TestCalledInTurn: only PCs whose turn has come are called, each once a lease.
func TestCalledInTurn(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}, Now: true, Canaries: new(1), AtOnce: 1})
	w.lab.call(t.Context())
	w.lab.call(t.Context())
	w.open() // nobody is called once more because the server was restarted
	w.lab.call(t.Context())
	if got := w.called(); got != "exp01" {
		t.Fatalf("called: %s", got)
	}
	if r := w.lab.Rollouts()[0]; len(r.Running) != 1 || r.Running[0] != "exp01" {
		t.Errorf("standing: %+v", r)
	}
	w.pc(2).ask(hosts.Local, "waits until the first 1 PC is well")
	w.pc(1).reimage()
	w.lab.call(t.Context())
	if got := w.called(); got != "exp02" {
		t.Errorf("called: %s", got)
	}
	// It does not come: its place goes to the next.
	w.now = w.now.Add(11 * time.Minute)
	w.pc(3).ask(hosts.Remote, "")
}

// TestDeafOnesGiveWay: PCs that do not come hold no place for ever, and are not
// told to start for ever.
func TestDeafOnesGiveWay(t *testing.T) {
	w := newWorld(t)
	w.rollout(api.RolloutRequest{Targets: []string{"*"}, Now: true, Canaries: new(1), AtOnce: 1})
	var order []string
	for range 10 {
		w.lab.call(t.Context())
		if got := w.called(); got != "" {
			order = append(order, got)
		}
		w.now = w.now.Add(11 * time.Minute)
	}
	if got := strings.Join(order, " "); got != "exp01 exp02 desk exp01 exp02 desk" {
		t.Errorf("called, one after another: %s", got)
	}
	if h := w.host("exp01"); !strings.Contains(h.Reason, "told to start 2 times") {
		t.Errorf("reason: %s", h.Reason)
	}
	// One that comes after all is reimaged.
	w.pc(2).reimage()
}
