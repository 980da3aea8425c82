package qemutests

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Guest is a login on a PC's own system.
type Guest struct{ client *ssh.Client }

// Signer is the private half of a key pair to log in with.
type Signer = ssh.Signer

// Key is a key pair to log in with.
type Key struct {
	ssh.Signer
	Line string // for authorized_keys
	File []byte // as ssh keeps a private key
}

// NewKey makes a key pair.
func NewKey() (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key pair: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("key pair: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "tests")
	if err != nil {
		return nil, fmt.Errorf("key pair: %w", err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " tests"
	return &Key{Signer: signer, Line: line, File: pem.EncodeToMemory(block)}, nil
}

// Login logs in as soon as the PC answers, and only to a PC that has one of
// hostKeys (lines of ssh_host_*_key.pub).
func (vm *VM) Login(ctx context.Context, user string, signer ssh.Signer, hostKeys []string) (*Guest, error) {
	known := map[string]bool{}
	var algorithms []string
	for _, line := range hostKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("host key %q: %w", line, err)
		}
		known[string(key.Marshal())] = true
		algorithms = append(algorithms, key.Type())
		if key.Type() == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		}
	}
	stranger := false
	config := &ssh.ClientConfig{
		User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if !known[string(key.Marshal())] {
				stranger = true
				return fmt.Errorf("the PC's host key %s is none of the %d that it reported", ssh.FingerprintSHA256(key), len(known))
			}
			return nil
		},
		HostKeyAlgorithms: algorithms,
	}
	for {
		client, err := vm.connect(ctx, config)
		if err == nil {
			return &Guest{client}, nil
		}
		if stranger || strings.Contains(err.Error(), "unable to authenticate") {
			return nil, fmt.Errorf("login as %s: %w", user, err)
		}
		select {
		case <-time.After(500 * time.Millisecond): // the PC is not up yet
		case <-vm.done:
			return nil, fmt.Errorf("login as %s: the PC was switched off; before that: %w", user, err)
		case <-ctx.Done():
			return nil, fmt.Errorf("login as %s: %w; last: %w", user, context.Cause(ctx), err)
		}
	}
}

func (vm *VM) connect(ctx context.Context, config *ssh.ClientConfig) (*ssh.Client, error) {
	conn, err := vm.dial(ctx, "tcp", vm.SSH)
	if err != nil {
		return nil, err
	}
	// Nothing answers before sshd runs, though the connection is made.
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c, channels, requests, err := ssh.NewClientConn(conn, vm.SSH, config)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return ssh.NewClient(c, channels, requests), nil
}

// Run runs a command line in the user's shell and returns what it wrote to
// standard output, without the last line's end.
func (g *Guest) Run(ctx context.Context, line string) (string, error) {
	return g.RunInput(ctx, line, nil)
}

// RunInput is Run with an input.
func (g *Guest) RunInput(ctx context.Context, line string, input []byte) (string, error) {
	session, err := g.client.NewSession()
	if err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	defer session.Close()
	var out, errs bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = bytes.NewReader(input), &out, &errs
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	err = session.Run(line)
	text := strings.TrimSuffix(out.String(), "\n")
	if ctx.Err() != nil {
		return text, fmt.Errorf("%s: %w", line, context.Cause(ctx))
	}
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(errs.String()))
	}
	return text, nil
}

// Close logs out.
func (g *Guest) Close() error { return g.client.Close() }
