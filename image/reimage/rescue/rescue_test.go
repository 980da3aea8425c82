package rescue

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(ssh.MarshalAuthorizedKey(key.PublicKey()))
}

// pc is a rescue that is under way.
type pc struct {
	t       *testing.T
	server  *Server
	address string
	key     ssh.Signer  // that may log in
	logins  chan string // who has
	end     func()
}

func serve(t *testing.T) *pc {
	t.Helper()
	p := &pc{t: t, logins: make(chan string, 10)}
	var line string
	p.key, line = newKey(t)
	var err error
	p.server, err = New(Options{Keys: []string{strings.TrimSpace(line) + " ann@desk"}, LoggedIn: func(who string) { p.logins <- who }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.server.Serve(ctx, l) }()
	p.end = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Serve has not ended 10 s after it should")
		}
		p.end = func() {}
	}
	t.Cleanup(func() { p.end() })
	return p
}

func (p *pc) dial(user string, how ...ssh.AuthMethod) (*ssh.Client, error) {
	c, err := ssh.Dial("tcp", p.address, &ssh.ClientConfig{
		User: user, Auth: how, Timeout: 10 * time.Second,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if got := ssh.FingerprintSHA256(key); got != p.server.Fingerprint() || key.Type() != ssh.KeyAlgoED25519 {
				p.t.Errorf("the host key is %s %s, and the server says %s", key.Type(), got, p.server.Fingerprint())
			}
			return nil
		},
	})
	if err == nil {
		p.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (p *pc) session() *ssh.Session {
	p.t.Helper()
	c, err := p.dial(User, ssh.PublicKeys(p.key))
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// Nobody but a listed key gets in, and only as root.
func TestWhoLogsIn(t *testing.T) {
	p := serve(t)
	other, _ := newKey(t)
	for _, test := range []struct {
		name, user string
		how        []ssh.AuthMethod
	}{
		{"another key", User, []ssh.AuthMethod{ssh.PublicKeys(other)}},
		{"a password", User, []ssh.AuthMethod{ssh.Password("")}},
		{"questions", User, []ssh.AuthMethod{ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })}},
		{"nothing", User, nil},
		{"another user", "admin", []ssh.AuthMethod{ssh.PublicKeys(p.key)}},
		{"the listed key without its private half", User, []ssh.AuthMethod{ssh.PublicKeys(forged{p.key, other})}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := p.dial(test.user, test.how...); err == nil || !strings.Contains(err.Error(), "handshake failed") {
				t.Errorf("the login ended in %v", err)
			}
		})
	}
	if _, err := p.dial(User, ssh.PublicKeys(other, p.key)); err != nil {
		t.Errorf("the listed key after another: %v", err)
	}
	if who := <-p.logins; !strings.HasPrefix(who, "ann@desk from 127.0.0.1:") || len(p.logins) > 0 {
		t.Errorf("logged in: %q, and %d more", who, len(p.logins))
	}
}

// forged is a key that signs with another's private half.
type forged struct {
	ssh.Signer
	by ssh.Signer
}

func (f forged) Sign(r io.Reader, data []byte) (*ssh.Signature, error) { return f.by.Sign(r, data) }

func TestKeys(t *testing.T) {
	_, line := newKey(t)
	for _, test := range []struct{ name, key, want string }{
		{"none", "", "no key"},
		{"no key", "ssh-ed25519 AAAA ann", "key 1"},
		{"options", `from="10.0.0.1" ` + line, "options"},
		{"an authority", "cert-authority " + line, "options"},
		{"two", line + line, "options"},
	} {
		var keys []string
		if test.key != "" {
			keys = []string{test.key}
		}
		if _, err := New(Options{Keys: keys}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestExec(t *testing.T) {
	p := serve(t)
	for _, test := range []struct {
		name, command, in, out, err string
		status                      int
	}{
		{"well", "echo $USER $HOME; echo why >&2", "", "root /root\n", "why\n", 0},
		{"a status", "exit 3", "", "", "", 3},
		{"killed", "kill -9 $$", "", "", "", 255},
		{"input", "cat; exit 4", "some text", "some text", "", 4},
		{"no terminal", "test -t 0 || test -t 1 || test -t 2 || echo none", "", "none\n", "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := p.session()
			var out, errs bytes.Buffer
			s.Stdout, s.Stderr, s.Stdin = &out, &errs, strings.NewReader(test.in)
			status := 0
			var exit *ssh.ExitError
			if err := s.Run(test.command); errors.As(err, &exit) {
				status = exit.ExitStatus()
			} else if err != nil {
				t.Fatal(err)
			}
			if status != test.status || out.String() != test.out || errs.String() != test.err {
				t.Errorf("status %d, %q, %q; want %d, %q, %q", status, out.String(), errs.String(), test.status, test.out, test.err)
			}
		})
	}
	// A program that reads nothing ends at once, though its input stays open.
	s := p.session()
	if _, err := s.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if out, err := s.Output("echo at once"); err != nil || string(out) != "at once\n" || time.Since(start) > 1500*time.Millisecond {
		t.Errorf("%q, %v after %v", out, err, time.Since(start))
	}
}

// Whoever goes takes what they have started along.
func TestGone(t *testing.T) {
	for _, test := range []struct {
		name  string
		tty   bool
		leave func(p *pc, s *ssh.Session)
	}{
		{"a client that hangs up", false, func(_ *pc, s *ssh.Session) { s.Close() }},
		{"a client at a terminal", true, func(_ *pc, s *ssh.Session) { s.Close() }},
		{"the end of the rescue", true, func(p *pc, _ *ssh.Session) { p.end() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, file := serve(t), filepath.Join(t.TempDir(), "pid")
			s := p.session()
			if test.tty {
				if err := s.RequestPty("dumb", 24, 80, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Start("echo $$ >" + file + "; exec sleep 1000"); err != nil {
				t.Fatal(err)
			}
			pid := ""
			within(t, "started", func() bool {
				text, _ := os.ReadFile(file)
				pid = strings.TrimSpace(string(text))
				return strings.HasSuffix(string(text), "\n")
			})
			test.leave(p, s)
			within(t, "gone", func() bool {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				return err != nil || strings.Contains(string(stat), ") Z ")
			})
		})
	}
}

func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not %s within 10 s", what)
		}
	}
}

// A shell at a terminal of its own: it has the client's size and kind, follows its
// window, and Ctrl-C ends what runs in it.
func TestTerminal(t *testing.T) {
	p := serve(t)
	s := p.session()
	if err := s.RequestPty("vt220", 30, 100, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	shown := &screen{t: t, r: out, all: make(chan []byte, 100)}
	go shown.read()
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(in, line); err != nil {
			t.Fatal(err)
		}
	}
	say("echo $TERM-$(stty size)-$(tty | cut -c1-9)\n")
	shown.expect("vt220-30 100-/dev/pts/")
	if err := s.WindowChange(41, 99); err != nil {
		t.Fatal(err)
	}
	say("echo $(stty size)-later\n")
	shown.expect("41 99-later")
	say("echo under''way; sleep 1000; echo not''yet\n")
	shown.expect("underway")
	time.Sleep(300 * time.Millisecond) // sleep has to be there
	say("\x03")
	say("echo still''here\n")
	shown.expect("stillhere")
	if strings.Contains(shown.text, "notyet") {
		t.Errorf("what came after the interrupt ran:\n%s", shown.text)
	}
	say("exit 7\n")
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("the shell ended in %v", err)
	}
}

type screen struct {
	t    *testing.T
	r    io.Reader
	all  chan []byte
	text string
}

func (s *screen) read() {
	for {
		p := make([]byte, 1000)
		n, err := s.r.Read(p)
		s.all <- p[:n]
		if err != nil {
			close(s.all)
			return
		}
	}
}

func (s *screen) expect(want string) {
	s.t.Helper()
	for limit := time.After(10 * time.Second); !strings.Contains(s.text, want); {
		select {
		case p, open := <-s.all:
			if s.text += string(p); !open {
				s.t.Fatalf("the terminal ended before %q:\n%s", want, s.text)
			}
		case <-limit:
			s.t.Fatalf("no %q within 10 s:\n%s", want, s.text)
		}
	}
}

// Only sessions are served: nothing is forwarded, and there are no subsystems.
func TestNothingElse(t *testing.T) {
	p := serve(t)
	c, err := p.dial(User, ssh.PublicKeys(p.key))
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := c.Dial("tcp", p.address); err == nil {
		conn.Close()
		t.Error("a connection was forwarded")
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("a port was forwarded")
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestSubsystem("sftp"); err == nil {
		t.Error("there is a subsystem")
	}
}

// Those that connect and do not log in are so many at most, and leave nothing behind.
func TestSilent(t *testing.T) {
	p := serve(t)
	var all []net.Conn
	for range mostShaking + 10 {
		conn, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all = append(all, conn)
	}
	within(t, "full", func() bool { return len(p.server.shaking) == mostShaking })
	if _, err := p.dial(User, ssh.PublicKeys(p.key)); err == nil {
		t.Error("there is no limit of those that have not logged in")
	}
	for _, conn := range all {
		conn.Close()
	}
	within(t, "free again", func() bool { return len(p.server.shaking) == 0 })
	if _, err := p.dial(User, ssh.PublicKeys(p.key)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// The program that people have for the end of a rescue reaches the process that serves.
func TestEnd(t *testing.T) {
	if err := End(); err == nil {
		t.Error("there is no rescue, and it was ended")
	}
	p := serve(t)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, Ended)
	defer signal.Stop(ended)
	out, err := p.session().Output("echo $" + variable)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(variable, strings.TrimSpace(string(out)))
	if err := End(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("no signal within 10 s")
	}
}
