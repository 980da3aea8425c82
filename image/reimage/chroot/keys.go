package chroot

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"reassure/image/reimage/steps"
	"reassure/image/spec"
)

// rsaBits is what ssh-keygen makes by default.
const rsaBits = 3072

// Keys are private keys in the making.
type Keys struct {
	done chan struct{}
	mu   sync.Mutex
	host map[string]steps.KeyPair
	user map[string]steps.KeyPair
	err  error
}

// StartKeys begins to make the keys that steps ask for, and returns at once:
// an RSA key takes seconds on a slow PC, and the download has as much to do.
// They are held in memory only.
func StartKeys(ctx context.Context, list []spec.Step) *Keys {
	k := &Keys{done: make(chan struct{}), host: map[string]steps.KeyPair{}, user: map[string]steps.KeyPair{}}
	wanted := map[string]map[string]steps.KeyPair{} // "host rsa" -> where it goes
	for _, s := range list {
		if s.SSHKeys == nil {
			continue
		}
		types := s.SSHKeys.Host
		if len(types) == 0 {
			types = steps.KeyTypes
		}
		for _, t := range types {
			wanted["host "+t] = k.host
		}
		if s.SSHKeys.User != "" {
			wanted["user "+s.SSHKeys.User] = k.user
		}
	}
	var all sync.WaitGroup
	for name, into := range wanted {
		_, kind, _ := strings.Cut(name, " ")
		all.Go(func() {
			pair, err := newKeyPair(kind)
			k.mu.Lock()
			defer k.mu.Unlock()
			if into[kind] = pair; err != nil {
				k.err = err
			}
		})
	}
	go func() {
		all.Wait()
		close(k.done)
	}()
	return k
}

// wait returns the keys when they are made. No keys at all are none.
func (k *Keys) wait(ctx context.Context) (host, user map[string]steps.KeyPair, err error) {
	if k == nil {
		return nil, nil, nil
	}
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-k.done:
		return k.host, k.user, k.err
	}
}

func newKeyPair(kind string) (steps.KeyPair, error) {
	var private crypto.Signer
	var err error
	switch kind {
	case "rsa":
		private, err = rsa.GenerateKey(rand.Reader, rsaBits)
	case "ecdsa":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("there are no SSH keys of type %q", kind)
	}
	if err != nil {
		return steps.KeyPair{}, err
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return steps.KeyPair{}, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return steps.KeyPair{}, err
	}
	return steps.KeyPair{
		Private: string(pem.EncodeToMemory(block)),
		Public:  strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))),
	}, nil
}
