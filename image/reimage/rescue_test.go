package reimage

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/logs"
	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
	"reassure/image/stamp"
)

// TestRescueOfPC has a PC that was told so let a person log in, until it is released. Its disk
// is not written to, and nobody can log in before, or where no manifest says so.
func TestRescueOfPC(t *testing.T) {
	v := newVictim(t)
	before := v.sum()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	authorized := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	listed := func(m *spec.Manifest) { m.RescueKeys = []string{authorized} }
	errand := func(m *spec.Manifest) { m.Errand = &spec.Errand{Kind: spec.Rescue, ID: "e1"} }
	mode := func(m *spec.Manifest) { m.Mode = spec.ReimageRescue }
	for _, test := range []struct {
		name    string
		spoil   []func(*spec.Manifest)
		release func(*spec.Manifest) // nil: there is no rescue
		says    string               // an error
	}{
		{"by the boot server", []func(*spec.Manifest){listed, errand}, func(m *spec.Manifest) { m.Errand.Released = true }, ""},
		{"by a static site", []func(*spec.Manifest){listed, mode}, func(m *spec.Manifest) { m.Mode = spec.ReimageAuto }, ""},
		{
			"with the keys of its own system", []func(*spec.Manifest){mode, func(m *spec.Manifest) { m.System.AuthorizedKeys = []string{authorized} }},
			func(m *spec.Manifest) { m.Mode = spec.ReimageAuto }, "",
		},
		{"of a PC whose disk is gone", []func(*spec.Manifest){listed, errand, func(m *spec.Manifest) { m.Disk.Serial = "S9" }}, func(m *spec.Manifest) { m.Errand.Released = true }, ""},
		{"with a key that is none", []func(*spec.Manifest){errand}, nil, "key 1 for the rescue"},
		{"not asked for", []func(*spec.Manifest){listed, func(m *spec.Manifest) { m.Disk.Serial = "S9" }}, nil, "none of the 1 disks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := *v.genuine
			m.Events = "events/exp01"
			for _, s := range test.spoil {
				s(&m)
			}
			var mu sync.Mutex
			var heard []spec.Event
			released := false
			r := v.served(func(w http.ResponseWriter, q *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if strings.HasPrefix(q.URL.Path, "/events/") {
					var e spec.Event
					if err := json.NewDecoder(q.Body).Decode(&e); err != nil {
						t.Error(err)
					}
					heard = append(heard, e)
					return
				}
				now := m
				if now.Errand != nil {
					now.Errand = new(*m.Errand)
				}
				if released {
					test.release(&now)
				}
				text := v.text(&now)
				if strings.HasSuffix(q.URL.Path, spec.SignatureSuffix) {
					text = v.key.Sign(text, "host exp01")
				}
				_, _ = w.Write(text)
			})
			r.network.Address = netip.MustParsePrefix("127.0.0.1/8")
			r.Ring = logs.NewRing(100)
			listening := make(chan string, 1)
			r.listen = func(at netip.AddrPort) (net.Listener, error) {
				if at != netip.MustParseAddrPort("127.0.0.1:22") {
					t.Errorf("it would listen at %v", at)
				}
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err == nil {
					listening <- l.Addr().String()
				}
				return l, err
			}
			type end struct {
				finish spec.Finish
				err    error
			}
			ended := make(chan end, 1)
			go func() {
				finish, _, err := r.tryOnce(t.Context())
				ended <- end{finish, err}
			}()
			if test.release == nil {
				if e := <-ended; e.err == nil || !strings.Contains(e.err.Error(), test.says) || len(listening) > 0 {
					t.Errorf("ended in %q, %v, listening %v", e.finish, e.err, len(listening) > 0)
				}
				return
			}
			var at string
			select {
			case at = <-listening:
			case e := <-ended:
				t.Fatalf("ended in %q, %v", e.finish, e.err)
			}
			shown := ""
			c, err := ssh.Dial("tcp", at, &ssh.ClientConfig{
				User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, Timeout: 10 * time.Second,
				HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
					shown = ssh.FingerprintSHA256(k)
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			mu.Lock()
			released = true
			mu.Unlock()
			e := <-ended
			if e.finish != spec.Reboot || e.err != nil {
				t.Errorf("ended in %q, %v", e.finish, e.err)
			}
			if conn, err := net.Dial("tcp", at); err == nil {
				conn.Close()
				t.Error("it still listens")
			}
			mu.Lock()
			defer mu.Unlock()
			text := ""
			for _, e := range heard {
				if e.Kind == spec.EventRescue {
					text = e.Text
				}
				if len(e.HostKeys) > 0 {
					t.Error("the key of a rescue is reported as the PC's own")
				}
			}
			if last := heard[len(heard)-1]; !strings.Contains(text, "ssh root@127.0.0.1; ") || !strings.HasSuffix(text, " "+shown) || last.Kind != spec.EventErrand {
				t.Errorf("it reported %q and ended with %s; ssh showed %s", text, last.Kind, shown)
			}
			if r.wrote || v.sum() != before {
				t.Error("the disk was written to")
			}
		})
	}
}

// An old manifest, with keys that the site has taken out since, opens nothing.
func TestReplayedRescue(t *testing.T) {
	m := manifest()
	m.Mode, m.RescueKeys = spec.ReimageRescue, []string{"ssh-ed25519 AAAA"}
	r, _ := booted(t, cmdline.Options{})
	found := &Installed{Stamp: stamp.New(m)}
	found.Stamp.Serial++
	_, _, err := r.rescue(t.Context(), m, found)
	var q *Question
	if !errors.As(err, &q) || q.Ask != spec.AskSerial {
		t.Errorf("it ended in %v", err)
	}
}
