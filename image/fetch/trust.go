package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// DialTLS opens a connection and finds out who answers, as [http.Transport.DialTLSContext]
// does.
type DialTLS func(ctx context.Context, network, address string) (net.Conn, error)

// Trust returns what opens connections for HTTPS to servers that the authorities in a PEM
// file vouch for, and to no others.
//
// The clock of a PC may stand anywhere, at 1970 after its battery has died. Where it
// says that no authority is valid yet, or any more, it is the clock that is wrong: the
// server's certificate is then judged as of the moment from which it is valid.
func Trust(authorities []byte) (DialTLS, error) { return trust(authorities, time.Now) }

func trust(authorities []byte, clock func() time.Time) (DialTLS, error) {
	found, err := ParseAuthorities(authorities)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range found {
		roots.AddCert(c)
	}
	plausible := func(now time.Time) bool {
		return slices.ContainsFunc(found, func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) })
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		secured := tls.Client(conn, &tls.Config{
			MinVersion: tls.VersionTLS12, ServerName: host, NextProtos: []string{"http/1.1"},
			// VerifyConnection does all that is skipped here, with another clock. For an
			// address, the state that it gets has no name: it has to be host.
			InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) == 0 {
					return &TrustError{errors.New("it shows none")}
				}
				leaf, between := s.PeerCertificates[0], x509.NewCertPool()
				for _, c := range s.PeerCertificates[1:] {
					between.AddCert(c)
				}
				now := clock()
				if !plausible(now) {
					now = leaf.NotBefore
				}
				if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
					return &TrustError{err}
				}
				return nil
			},
		})
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secured, nil
	}, nil
}

// TrustError is a server that shows no certificate of the site's authority. It rules the
// address out.
type TrustError struct{ Err error }

func (e *TrustError) Error() string {
	return fmt.Sprintf("the server's certificate: %v: have the site's own authority sign one for the name or address in site.url", e.Err)
}

func (e *TrustError) Unwrap() error { return e.Err }

// ParseAuthorities reads the certificates of a PEM file, each of which must be one of
// an authority.
func ParseAuthorities(text []byte) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s: name a file with certificates alone", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(found)+1, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is no authority's: name the one that signs the server's", c.Subject.CommonName)
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, errors.New("there is no certificate in it: name a PEM file of the authority (BEGIN CERTIFICATE)")
	}
	return found, nil
}
