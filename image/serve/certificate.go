package serve

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// pair is a certificate with its key, which are read again when they change: whatever
// renews them need not know of this server.
type pair struct {
	certificate, key string

	mu   sync.Mutex
	read [2]fs.FileInfo
	now  *tls.Certificate
}

func openPair(certificate, key string) (*pair, error) {
	p := &pair{certificate: certificate, key: key}
	if err := p.load(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pair) load() error {
	var infos [2]fs.FileInfo
	for i, file := range []string{p.certificate, p.key} {
		info, err := os.Stat(file)
		if err != nil {
			return fmt.Errorf("http.certificate: %w", err)
		}
		infos[i] = info
	}
	if mode := infos[1].Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("http.key: everybody may read or write %s (mode %04o): chmod 0600 it", p.key, mode)
	}
	if p.now != nil && same(infos[0], p.read[0]) && same(infos[1], p.read[1]) {
		return nil
	}
	c, err := tls.LoadX509KeyPair(p.certificate, p.key)
	if err != nil {
		return fmt.Errorf("http.certificate: %s with %s: %w", p.certificate, p.key, err)
	}
	p.now, p.read = &c, infos
	return nil
}

func same(a, b fs.FileInfo) bool { return a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() }

// is says, by an error, that the certificate is not for a name or an address.
func (p *pair) is(name string) error {
	leaf, err := x509.ParseCertificate(p.now.Certificate[0])
	if err == nil {
		err = leaf.VerifyHostname(name)
	}
	if err != nil {
		return fmt.Errorf("http.certificate: %s: %w: PCs would refuse it; have one made for the name or address in site.url", p.certificate, err)
	}
	return nil
}

// get returns the newest pair that could be read.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One that is half renewed is read with the next connection.
	if err := p.load(); err != nil && p.now == nil {
		return nil, err
	}
	return p.now, nil
}
