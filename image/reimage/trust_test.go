package reimage

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"reassure/image/fetch"
	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
)

// TestOwnAuthority has an image with the site's own authority be led elsewhere: it tells
// its token to nobody but the site's server.
func TestOwnAuthority(t *testing.T) {
	text, err := manifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var heard []string // with a token
	serve := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.Header.Get("Authorization"), "secret") {
			heard = append(heard, q.URL.Path)
		}
		_, _ = w.Write(text)
	})
	plain, theirs := httptest.NewServer(serve), httptest.NewUnstartedServer(serve)
	theirs.TLS = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	theirs.StartTLS()
	ours := httptest.NewTLSServer(serve)
	for _, s := range []*httptest.Server{plain, theirs, ours} {
		t.Cleanup(s.Close)
	}
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ours.Certificate().Raw})
	trust, err := fetch.Trust(authority)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		base string
		says string
	}{
		{"by plain HTTP", plain.URL, "takes no manifest from"},
		{"by another's HTTPS", theirs.URL, "certificate"},
		{"by its own HTTPS", ours.URL, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			heard = nil
			r, _ := booted(t, cmdline.Options{URL: c.base, Token: "secret", Retries: new(0)})
			r.Trust = trust
			r.reportByToken()
			m, err := r.fetchManifest(t.Context())
			r.event(spec.Event{Kind: spec.EventStart})
			r.flush(t.Context())
			if c.says == "" {
				if err != nil || m.Host != "exp01" || len(heard) == 0 {
					t.Errorf("%v, %v; it heard %v", m, err, heard)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || len(heard) > 0 {
				t.Errorf("error is %v, and somebody heard %v", err, heard)
			}
			var refusal *Refusal
			if c.base == plain.URL && !errors.As(err, &refusal) {
				t.Errorf("error is %v; want a refusal", err)
			}
		})
	}
	if got := baseURL(cmdline.Options{}, netip.MustParseAddr("172.30.0.5"), true); got != "https://172.30.0.5/reassure" {
		t.Errorf("the base is %s", got)
	}
}

// selfSigned is a certificate of nobody's for this machine.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
