package fetch

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// authority is a site's own.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	PEM  []byte
}

func newAuthority(t *testing.T, from, until time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// server answers "hello" with a certificate for an address.
func (a *authority) server(address string, from, until time.Time) *httptest.Server {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: until, IPAddresses: []net.IP{net.ParseIP(address)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s
}

// TestTrust is who is believed to be the site's server, by clocks that stand anywhere.
func TestTrust(t *testing.T) {
	day := func(y int) time.Time { return time.Date(y, 6, 1, 0, 0, 0, 0, time.UTC) }
	ours, theirs := newAuthority(t, day(2020), day(2050)), newAuthority(t, day(2020), day(2050))
	good := ours.server("127.0.0.1", day(2025), day(2030))
	strange := theirs.server("127.0.0.1", day(2025), day(2030))
	elsewhere := ours.server("127.0.0.2", day(2025), day(2030))
	for _, c := range []struct {
		name   string
		server *httptest.Server
		pem    []byte
		clock  time.Time
		says   string // an error; empty: it is believed
	}{
		{"ours", good, ours.PEM, day(2026), ""},
		{"one of two authorities", good, append(bytes.Clone(theirs.PEM), ours.PEM...), day(2026), ""},
		{"another authority's", strange, ours.PEM, day(2026), "unknown authority"},
		{"another authority's, by a clock at 1970", strange, ours.PEM, time.Unix(0, 0), "unknown authority"},
		{"another address's", elsewhere, ours.PEM, day(2026), "127.0.0.2"},
		{"another address's, by a clock at 1970", elsewhere, ours.PEM, time.Unix(0, 0), "127.0.0.2"},
		{"expired", good, ours.PEM, day(2040), "expired"},
		{"not valid yet", good, ours.PEM, day(2021), "not yet valid"},
		{"a clock at 1970", good, ours.PEM, time.Unix(0, 0), ""},
		{"a clock at 2099", good, ours.PEM, day(2099), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := trust(c.pem, func() time.Time { return c.clock })
			if err != nil {
				t.Fatal(err)
			}
			client := Client{TLS: config}
			text, err := client.Get(t.Context(), c.server.URL, 1024)
			if c.says == "" {
				if err != nil || string(text) != "hello" {
					t.Errorf("%q, %v", text, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q, %v; want an error with %q", text, err, c.says)
			}
		})
	}
}

func TestTrustRefuses(t *testing.T) {
	a := newAuthority(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	s := a.server("127.0.0.1", a.cert.NotBefore, a.cert.NotAfter)
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.TLS.Certificates[0].Certificate[0]})
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"nothing":              {nil, "no certificate in it"},
		"no PEM":               {a.cert.Raw, "no certificate in it"},
		"a server's":           {leaf, "no authority's"},
		"with a key beside it": {append(bytes.Clone(a.PEM), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})...), "PRIVATE KEY"},
		"damaged":              {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw[:100]}), "certificate 1"},
	} {
		if _, err := Trust(c.text); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want an error with %q", name, err, c.says)
		}
	}
}
