package build

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// identity makes an RSA key and a certificate for it, as PEM files.
func identity(t *testing.T, name string) SecureBoot {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return SecureBoot{Key: pemFile(t, "PRIVATE KEY", private), Cert: pemFile(t, "CERTIFICATE", cert)}
}

func pemFile(t *testing.T, kind string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// unifiedOptions are those of a small build that makes [UnifiedFile], too.
func unifiedOptions(t *testing.T) Options {
	t.Helper()
	o := options(t)
	o.Config.Unified = Unified{Stub: "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", CommandLine: "reassure.url=http://172.30.0.5/reassure"}
	withEFIStub(t, o.Kernel)
	return o
}

// withEFIStub has a kernel begin as those do that UEFI can start.
func withEFIStub(t *testing.T, kernel string) {
	t.Helper()
	data, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	copy(data, "MZ")
	if err := os.WriteFile(kernel, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestBuildUnified makes the image one file, looks into it with other people's tools,
// signs it, and lets it go when it cannot be made any more.
func TestBuildUnified(t *testing.T) {
	o := unifiedOptions(t)
	image, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(o.Out, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	unsigned := read("tftproot/" + UnifiedFile)
	if !bytes.Equal(unsigned, read(UnifiedFile)) || image.Files[0].Name != UnifiedFile || image.Files[0].SHA256 != spec.Sum(unsigned) {
		t.Errorf("image.json lists %v", image.Files)
	}
	const line = "loglevel=4 reassure.ask reassure.url=http://172.30.0.5/reassure"
	if image.Unified == nil || image.Unified.CommandLine != line || image.Unified.SignedBy != "" || image.Debian["systemd-boot-efi"] == "" {
		t.Errorf("image.json says %+v, packages %v", image.Unified, image.Debian)
	}
	if !bytes.Contains(read(BillFile), []byte(`"tftproot/`+UnifiedFile+`"`)) {
		t.Error("it is not in the bill of materials")
	}

	f, err := pe.NewFile(bytes.NewReader(unsigned))
	if err != nil {
		t.Fatal(err)
	}
	end := uint32(0)
	for _, s := range f.Sections {
		if s.VirtualAddress < end || s.Offset%512 != 0 || s.Size%512 != 0 {
			t.Errorf("section %s lies at %#x, and the one before ends at %#x; in the file it has %#x bytes at %#x", s.Name, s.VirtualAddress, end, s.Size, s.Offset)
		}
		end = s.VirtualAddress + s.VirtualSize
	}
	if size := f.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size < end || size > end+4096 {
		t.Errorf("the image has %#x bytes, and its sections end at %#x", size, end)
	}
	for name, want := range map[string][]byte{".linux": read(KernelFile), ".initrd": read(InitramfsFile), ".cmdline": []byte(line), ".uname": []byte(release)} {
		out := filepath.Join(t.TempDir(), "section")
		if said, err := exec.Command("objcopy", "--dump-section", name+"="+out, filepath.Join(o.Out, UnifiedFile), out+".all").CombinedOutput(); err != nil {
			t.Fatalf("objcopy: %v: %s", err, said)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		// objcopy rounds up to what lies in the file.
		if !bytes.HasPrefix(got, want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
			t.Errorf("%s has %d bytes that are not the %d that it is made of", name, len(got), len(want))
		}
	}

	o.SecureBoot = identity(t, "A Lab")
	if image, err = Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if image.Unified.SignedBy != "CN=A Lab" {
		t.Errorf("it is signed by %q", image.Unified.SignedBy)
	}
	verify := func(file, cert string) error {
		return exec.Command("sbverify", "--cert", cert, file).Run()
	}
	if err := verify(filepath.Join(o.Out, UnifiedFile), o.SecureBoot.Cert); err != nil {
		t.Errorf("sbverify: %v", err)
	}
	if err := verify(filepath.Join(o.Out, UnifiedFile), identity(t, "Another").Cert); err == nil {
		t.Error("sbverify takes it for somebody else's")
	}

	o.SecureBoot, o.Config.Unified.Stub = SecureBoot{}, "/nonesuch"
	if image, err = Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{UnifiedFile, "tftproot/" + UnifiedFile} {
		if _, err := os.Stat(filepath.Join(o.Out, name)); err == nil || image.Unified != nil {
			t.Errorf("there is still a %s of the kernel before", name)
		}
	}
}

// TestSecureBootRefused gives keys that cannot sign: the reason is known before
// anything is built.
func TestSecureBootRefused(t *testing.T) {
	good, other := identity(t, "A Lab"), identity(t, "Another")
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curveDER, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		s    SecureBoot
		stub string // besides the good one
		want string
	}{
		"no certificate":    {SecureBoot{Key: good.Key}, "", "belong together"},
		"no key":            {SecureBoot{Cert: good.Cert}, "", "belong together"},
		"key is gone":       {SecureBoot{Key: "/nonesuch", Cert: good.Cert}, "", "SECUREBOOT_KEY: /nonesuch"},
		"cert is gone":      {SecureBoot{Key: good.Key, Cert: "/nonesuch"}, "", "SECUREBOOT_CERT: /nonesuch"},
		"the other's cert":  {SecureBoot{Key: good.Key, Cert: other.Cert}, "", "is not that of the key"},
		"swapped":           {SecureBoot{Key: good.Cert, Cert: good.Key}, "", "no PEM block PRIVATE KEY"},
		"passphrase":        {SecureBoot{Key: pemFile(t, "ENCRYPTED PRIVATE KEY", []byte{1}), Cert: good.Cert}, "", "passphrase"},
		"elliptic curve":    {SecureBoot{Key: pemFile(t, "PRIVATE KEY", curveDER), Cert: good.Cert}, "", "no RSA key"},
		"damaged":           {SecureBoot{Key: pemFile(t, "PRIVATE KEY", []byte{1}), Cert: good.Cert}, "", "SECUREBOOT_KEY"},
		"nothing to sign":   {good, "/nonesuch", "systemd-boot-efi"},
		"stub is no stub":   {good, "/bin/sh", "no PE file"},
		"stub has a kernel": {good, "another image", "has a section .osrel already"},
	} {
		t.Run(name, func(t *testing.T) {
			o := unifiedOptions(t)
			o.SecureBoot = c.s
			switch c.stub {
			case "":
			case "another image":
				first := unifiedOptions(t)
				if _, err := Build(t.Context(), first); err != nil {
					t.Fatal(err)
				}
				o.Config.Unified.Stub = filepath.Join(first.Out, UnifiedFile)
			default:
				o.Config.Unified.Stub = c.stub
			}
			if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if _, err := os.Stat(filepath.Join(o.Out, KernelFile)); err == nil {
				t.Error("there is an image")
			}
		})
	}
	// A kernel that UEFI cannot start is a reason, too.
	o := unifiedOptions(t)
	o.Kernel, o.SecureBoot = bzImage(t, release), good
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "CONFIG_EFI_STUB") {
		t.Errorf("a kernel without EFI stub: error %v", err)
	}
	for cut := 1; cut < 1024; cut += 13 { // within the headers
		stub, err := os.ReadFile(unifiedOptions(t).Config.Unified.Stub)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := compose(stub[:cut], []peSection{{".linux", []byte("x")}}); err == nil {
			t.Errorf("a stub of %d bytes was taken", cut)
		}
	}
}
