package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// Files of a site's own authority, and of the certificate that it has signed.
const (
	AuthorityFile  = "ca.pem"
	authorityKey   = "ca.key"
	certificate    = "server.pem"
	certificateKey = "server.key"
)

const (
	authorityTime   = 20 * 365 * 24 * time.Hour // as long as images and PCs are in use
	certificateTime = 3 * 365 * 24 * time.Hour
)

// Certify signs a certificate for a server, by its names and addresses, with the
// authority in the folder dir, which is made if there is none; created says so. Both
// files are written to the folder out.
func Certify(dir, out string, names []string, now time.Time) (created bool, err error) {
	ca, key, created, err := authority(dir, now)
	if err != nil {
		return false, fmt.Errorf("the site's authority: %w", err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return created, err
	}
	until := now.Add(certificateTime)
	if until.After(ca.NotAfter) {
		until = ca.NotAfter
	}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return created, write(c, ca, own, key, filepath.Join(out, certificate), filepath.Join(out, certificateKey))
}

// authority reads a site's authority, or makes it.
func authority(dir string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, bool, error) {
	certFile, keyFile := filepath.Join(dir, AuthorityFile), filepath.Join(dir, authorityKey)
	text, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(certFile); err == nil {
			return nil, nil, false, fmt.Errorf("%s is there, and its key %s is not: put it back, or move the certificate away to have another authority made, which images trust only if they are built after that", certFile, keyFile)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, false, err
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, false, err
		}
		c := &x509.Certificate{
			Subject: pkix.Name{CommonName: "ReAssure site authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityTime),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if err := write(c, c, key, key, certFile, keyFile); err != nil {
			return nil, nil, false, err
		}
		c, key, _, err = authority(dir, now)
		return c, key, true, err
	} else if err != nil {
		return nil, nil, false, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, nil, false, fmt.Errorf("%s holds no key", keyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, nil, false, fmt.Errorf("%s was not made by this program: %w", keyFile, errors.Join(err, errors.New("it holds another kind of key")))
	}
	if text, err = os.ReadFile(certFile); err != nil {
		return nil, nil, false, err
	}
	if block, _ = pem.Decode(text); block == nil {
		return nil, nil, false, fmt.Errorf("%s holds no certificate", certFile)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, false, fmt.Errorf("%s: %w", certFile, err)
	}
	if !key.PublicKey.Equal(c.PublicKey) {
		return nil, nil, false, fmt.Errorf("%s and %s do not belong together", certFile, keyFile)
	}
	return c, key, false, nil
}

// write signs a certificate by an authority, and writes it and its own key, the key first.
func write(c, by *x509.Certificate, own, signer *ecdsa.PrivateKey, certFile, keyFile string) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	c.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, c, by, own.Public(), signer)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return err
	}
	return renameio.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644, renameio.WithStaticPermissions(0o644))
}
