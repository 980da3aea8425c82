// Package rescue lets people log in over SSH on a PC that runs the image: those, and
// nobody else, whose public keys it is given, as root, with the image's shell. There are
// no passwords, no forwarding and no subsystems. The PC's own key is made in memory, so
// that it is a new one in each boot: whoever logs in compares its fingerprint.
//
// The protocol is golang.org/x/crypto/ssh; RFC 4254, section 6, is what a session is.
package rescue

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// User is the only one who can log in.
const User = "root"

// Port is where people expect SSH.
const Port = 22

// Options are those of [New]; Keys must be set.
type Options struct {
	// Keys are OpenSSH public keys of those who may log in, one a line as in a .pub file.
	Keys []string
	// Shell is the shell's path; empty means /bin/sh.
	Shell string
	// LoggedIn is called with who has logged in, from several goroutines. May be nil.
	LoggedIn func(who string)
	// Log gets a line for each login and each refusal; nil means silence.
	Log *slog.Logger
}

// Server is an SSH server for a rescue.
type Server struct {
	options Options
	config  *ssh.ServerConfig
	key     ssh.PublicKey
	// shaking has room for those that have not logged in yet.
	shaking chan struct{}
}

const (
	// loginTime is how long a client may take to log in. People type passphrases then.
	loginTime = time.Minute
	// mostShaking is how many may be about to log in at once: each costs memory and
	// some arithmetic, and nobody knows who they are.
	mostShaking = 32
	// mostSessions is how many programs one client may run at once.
	mostSessions = 16
)

// variable has, for all that people start, the process that serves them.
const variable = "REASSURE_RESCUE"

// Ended is what [End] sends to the process that serves.
const Ended = syscall.SIGUSR1

// End tells the rescue that the calling process was started from that it is to end. It is
// an error where there is none.
func End() error {
	pid, err := strconv.Atoi(os.Getenv(variable))
	if err != nil || pid <= 1 {
		return fmt.Errorf("no rescue: %s is %q", variable, os.Getenv(variable))
	}
	return syscall.Kill(pid, Ended)
}

// comment is what is kept of a key beside its bytes: who it is, for people.
const comment = "comment"

// New makes the PC's key, and a server that admits the given ones. It refuses a key that
// it cannot read, and one with options, as none of them would be heeded.
func New(o Options) (*Server, error) {
	if o.Shell == "" {
		o.Shell = "/bin/sh"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	admitted := map[string]string{}
	for i, line := range o.Keys {
		key, name, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		switch {
		case err != nil:
			return nil, fmt.Errorf("key %d for the rescue: %w", i+1, err)
		case len(options) > 0 || len(rest) > 0:
			return nil, fmt.Errorf("key %d for the rescue: it has options (%q), which are not heeded here: write the key alone, as in its .pub file, into rescue_keys", i+1, options)
		}
		if name == "" {
			name = ssh.FingerprintSHA256(key)
		}
		admitted[string(key.Marshal())] = name
	}
	if len(admitted) == 0 {
		return nil, errors.New("there is no key for the rescue: nobody could log in")
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("the rescue's own key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("the rescue's own key: %w", err)
	}
	s := &Server{options: o, key: signer.PublicKey(), shaking: make(chan struct{}, mostShaking)}
	s.config = &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-ReAssure",
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			name, ok := admitted[string(key.Marshal())]
			if !ok || c.User() != User {
				return nil, fmt.Errorf("%s with the key %s may not log in", c.User(), ssh.FingerprintSHA256(key))
			}
			return &ssh.Permissions{Extensions: map[string]string{comment: name}}, nil
		},
	}
	s.config.AddHostKey(signer)
	return s, nil
}

// Fingerprint is that of the PC's key, as ssh shows it.
func (s *Server) Fingerprint() string { return ssh.FingerprintSHA256(s.key) }

// Serve lets people log in until ctx ends, and then closes every connection. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var passing interface{ Temporary() bool } // of the syscalls, as when all file descriptors are in use
			if !errors.As(err, &passing) || !passing.Temporary() {
				return fmt.Errorf("rescue: %w", err)
			}
			s.options.Log.Warn("a login that did not come about", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		select {
		case s.shaking <- struct{}{}:
			connections.Go(func() { s.connection(ctx, conn) })
		default:
			conn.Close()
		}
	}
}

// connection serves one client to its end.
func (s *Server) connection(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	from := conn.RemoteAddr().String()
	client, channels, requests, err := s.shake(conn)
	if err != nil {
		// The last reason alone: a client offers all its keys.
		var all *ssh.ServerAuthError
		if errors.As(err, &all) && len(all.Errors) > 0 {
			err = all.Errors[len(all.Errors)-1]
		}
		s.options.Log.Info("nobody has logged in", "from", from, "reason", err)
		return
	}
	defer client.Close()
	who := fmt.Sprintf("%s from %s", client.Permissions.Extensions[comment], from)
	s.options.Log.Warn("logged in: " + who)
	if s.options.LoggedIn != nil {
		s.options.LoggedIn(who)
	}
	go ssh.DiscardRequests(requests)
	s.sessions(ctx, channels)
	s.options.Log.Info("logged out: " + who)
}

// shake is the part of a connection in which it is not known who it is.
func (s *Server) shake(conn net.Conn) (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	defer func() { <-s.shaking }()
	if err := conn.SetDeadline(time.Now().Add(loginTime)); err != nil {
		return nil, nil, nil, err
	}
	client, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		client.Close()
		return nil, nil, nil, err
	}
	return client, channels, requests, nil
}

// sessions serves what a client asks for until it goes.
func (s *Server) sessions(ctx context.Context, channels <-chan ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	room := make(chan struct{}, mostSessions)
	for asked := range channels {
		if asked.ChannelType() != "session" {
			asked.Reject(ssh.UnknownChannelType, "there are sessions only: nothing is forwarded")
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			asked.Reject(ssh.ResourceShortage, "there are too many sessions")
			continue
		}
		channel, requests, err := asked.Accept()
		if err != nil {
			<-room
			continue
		}
		all.Go(func() {
			defer func() { <-room }()
			x := &session{channel: channel, shell: s.options.Shell}
			x.serve(ctx, requests)
		})
	}
}
