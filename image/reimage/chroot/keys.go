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
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"reassure/image/reimage/mount"
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
// They are held in memory only. When ctx has ended no other search begins; one that
// has begun ends by itself (crypto/rsa takes no context), and its key is dropped.
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
			pair, err := steps.KeyPair{}, ctx.Err()
			if err == nil {
				pair, err = newKeyPair(kind)
			}
			if err == nil && ctx.Err() != nil {
				pair, err = steps.KeyPair{}, ctx.Err()
			}
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

// keepKeys puts those keys into the job that are in the new system and to be kept:
// a PC that is known by its keys is so after a delta.
func (o *Options) keepKeys(root string) error {
	if len(o.Job.Own) == 0 {
		return nil
	}
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	for _, s := range o.Job.Steps {
		if s.SSHKeys == nil {
			continue
		}
		for _, kind := range steps.KeyTypes {
			o.keepKey(tree, steps.HostKey(kind), kind, &o.Job.HostKeys)
		}
		o.keepKey(tree, steps.UserKey(s.SSHKeys), s.SSHKeys.User, &o.Job.UserKeys)
	}
	return nil
}

// maxKey is more than any private key has, in bytes.
const maxKey = 64 << 10

func (o *Options) keepKey(tree *os.Root, file, kind string, pairs *map[string]steps.KeyPair) {
	if _, wanted := (*pairs)[kind]; !wanted || !slices.Contains(o.Job.Own, file) {
		return
	}
	text, err := mount.ReadFile(tree, file, maxKey)
	var public ssh.PublicKey
	if err == nil {
		public, err = publicOf(text)
	}
	if err != nil {
		if o.Log != nil {
			o.Log.Warn("a key that should be kept is of no use: there is a new one", "file", file, "reason", err)
		}
		return
	}
	kept := maps.Clone(*pairs)
	kept[kind] = steps.KeyPair{Private: string(text), Public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))}
	*pairs = kept
}

func publicOf(private []byte) (ssh.PublicKey, error) {
	key, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return nil, err
	}
	return key.PublicKey(), nil
}
