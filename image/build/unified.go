package build

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"debug/pe"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"reassure/image/command"
	"reassure/image/spec"
)

// UnifiedFile is the image as one file that UEFI loads by itself, below the TFTP root.
const UnifiedFile = "reassure.efi"

// maxCommandLine is the longest kernel command line on x86, less one for the zero
// byte (COMMAND_LINE_SIZE, arch/x86/include/asm/setup.h).
const maxCommandLine = 2047

// UnifiedInfo says what is in [UnifiedFile] besides the kernel and the initramfs.
type UnifiedInfo struct {
	Stub        string `json:"stub"`
	CommandLine string `json:"command_line"`
	// SignedBy is the certificate that belongs to the key that has signed it; empty
	// means that nobody has.
	SignedBy string `json:"signed_by,omitempty"`
}

// SecureBoot is a site's own key for Secure Boot. The zero value is none.
type SecureBoot struct {
	Key, Cert string // PEM files: an RSA key without a passphrase, and its certificate
	subject   string
}

// check finds out before anything is built whether the key will do.
func (s *SecureBoot) check(ctx context.Context, o Options) error {
	switch {
	case s.Key == "" && s.Cert == "":
		return nil
	case s.Key == "" || s.Cert == "":
		return errors.New("SECUREBOOT_KEY and SECUREBOOT_CERT belong together: give both, or neither for an image that nobody has signed")
	}
	key, err := readKey(s.Key)
	if err != nil {
		return fmt.Errorf("SECUREBOOT_KEY: %s: %w", s.Key, err)
	}
	cert, err := readCert(s.Cert)
	if err != nil {
		return fmt.Errorf("SECUREBOOT_CERT: %s: %w", s.Cert, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return fmt.Errorf("SECUREBOOT_CERT: the certificate %s (%s) is not that of the key %s", s.Cert, cert.Subject, s.Key)
	}
	s.subject = cert.Subject.String()
	if _, err := unifiedStub(o); err != nil {
		return err
	}
	err = command.Command{Args: []string{"sbsign", "--version"}, Log: o.Log}.Run(ctx)
	if errors.Is(err, command.ErrNotFound) {
		return errors.New("SECUREBOOT_KEY: there is no sbsign to sign with: install the Debian package sbsigntool")
	}
	return err
}

func readKey(file string) (*rsa.PrivateKey, error) {
	block, err := readPEM(file, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("it has a passphrase, which nobody could type here: write one without by openssl pkey -in FILE -out FILE")
	}
	var key crypto.PrivateKey
	if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	own, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is no RSA key, and firmware knows no others")
	}
	return own, nil
}

func readCert(file string) (*x509.Certificate, error) {
	block, err := readPEM(file, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(block.Bytes)
}

// readPEM returns the first block of a file that is of a kind.
func readPEM(file, kind string) (*pem.Block, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, kind) {
			return block, nil
		}
	}
	return nil, fmt.Errorf("there is no PEM block %s in it", kind)
}

// unified makes the image one file, signed where the site has a key for that. nil
// is none: what it takes is not there.
func unified(ctx context.Context, o Options, release string, kernel, initramfs []byte) ([]byte, *UnifiedInfo, error) {
	stub, err := unifiedStub(o)
	if stub == nil || err != nil {
		return nil, nil, err
	}
	// The first bytes of a kernel with CONFIG_EFI_STUB (arch/x86/boot/header.S).
	if !bytes.HasPrefix(kernel, []byte("MZ")) {
		return nil, nil, leftOut(o, "UEFI cannot start this kernel, which was made without CONFIG_EFI_STUB")
	}
	info := &UnifiedInfo{Stub: o.Config.Unified.Stub, SignedBy: o.SecureBoot.subject, CommandLine: o.Config.unifiedCommandLine()}
	about := fmt.Sprintf("ID=reassure\nNAME=ReAssure\nVERSION_ID=%q\nPRETTY_NAME=%q\n", o.Version, "ReAssure "+o.Version+", "+o.Flavour+" image")
	file, err := compose(stub, []peSection{
		{".osrel", []byte(about)}, {".cmdline", []byte(info.CommandLine)}, {".uname", []byte(release)}, {".linux", kernel}, {".initrd", initramfs},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: the stub %s: %w", UnifiedFile, o.Config.Unified.Stub, err)
	}
	file, err = o.SecureBoot.sign(ctx, o, file)
	return file, info, err
}

// removeUnified takes away what an earlier build left: it holds another kernel.
func removeUnified(o Options) error {
	for _, folder := range []string{o.Out, filepath.Join(o.Out, TFTPRoot)} {
		if err := os.Remove(filepath.Join(folder, UnifiedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unifiedStub reads the program that starts the kernel. nil is none.
func unifiedStub(o Options) ([]byte, error) {
	file := o.Config.Unified.Stub
	if file == "" {
		return nil, leftOut(o, "the configuration of the image names no stub for it (unified)")
	}
	stub, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, leftOut(o, "there is no "+file+": install the Debian package systemd-boot-efi to have it")
	}
	if err != nil {
		return nil, fmt.Errorf("stub of %s: %w", UnifiedFile, err)
	}
	return stub, nil
}

// leftOut says why there is no unified image, which is an error only for those who
// want it signed.
func leftOut(o Options, why string) error {
	if o.SecureBoot.Key != "" {
		return fmt.Errorf("SECUREBOOT_KEY: %s cannot be made: %s", UnifiedFile, why)
	}
	o.Log.Info("the TFTP root has no " + UnifiedFile + ": " + why)
	return nil
}

// sign has sbsign sign a file.
func (s SecureBoot) sign(ctx context.Context, o Options, file []byte) ([]byte, error) {
	if s.Key == "" {
		return file, nil
	}
	work, err := os.MkdirTemp("", "reassure-sign")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	from, to := filepath.Join(work, "unsigned"), filepath.Join(work, "signed")
	if err := os.WriteFile(from, file, 0o600); err != nil {
		return nil, err
	}
	err = command.Command{Args: []string{"sbsign", "--key", s.Key, "--cert", s.Cert, "--output", to, from}, Log: o.Log}.Run(ctx)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", UnifiedFile, err)
	}
	return os.ReadFile(to)
}

// unifiedCommandLine is what the kernel gets when no boot loader gives it anything.
func (c *Config) unifiedCommandLine() string {
	return strings.Join(strings.Fields(c.CommandLine+" "+spec.AskParameter+" "+c.Unified.CommandLine), " ")
}

// peSection is a section of a PE file.
type peSection struct {
	name string // up to 8 bytes
	data []byte
}

// Places in a PE file (PE Format, Microsoft): from the COFF header, and from the
// optional header of 64 bits, which follows it.
const (
	peOffset       = 0x3c // in the file: where "PE\0\0" is; the COFF header is behind it
	coffSize       = 20
	coffSections   = 2 // how many
	coffSymbols    = 8 // where, and how many
	optInitialised = 8 // bytes of initialised data
	optImage       = 56
	optChecksum    = 64
	optCertificate = 112 + 4*8 // data directory 4
	headerSize     = 40        // of a section
	readableData   = 0x40000040
	page           = 4096
)

// compose puts sections behind those of a PE file, as systemd's stub looks for them
// (systemd-stub(7)). Symbols and signatures of the file itself go.
func compose(stub []byte, add []peSection) ([]byte, error) {
	f, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		return nil, fmt.Errorf("it is no PE file: %w", err)
	}
	opt, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 || opt.Subsystem != pe.IMAGE_SUBSYSTEM_EFI_APPLICATION {
		return nil, errors.New("it is no UEFI program for x86-64")
	}
	if opt.FileAlignment == 0 || opt.SectionAlignment == 0 || opt.NumberOfRvaAndSizes < 5 {
		return nil, errors.New("its headers are damaged")
	}
	coff := uint64(binary.LittleEndian.Uint32(stub[peOffset:])) + 4
	optional := coff + coffSize
	table := optional + uint64(f.SizeOfOptionalHeader)
	free := table + uint64(len(f.Sections))*headerSize
	end, address, room := free, uint64(0), uint64(opt.SizeOfHeaders)
	for _, s := range f.Sections {
		if slices.ContainsFunc(add, func(a peSection) bool { return a.name == s.Name }) {
			return nil, fmt.Errorf("it has a section %s already", s.Name)
		}
		end = max(end, uint64(s.Offset)+uint64(s.Size))
		address = max(address, uint64(s.VirtualAddress)+uint64(max(s.VirtualSize, s.Size)))
		if s.Size > 0 {
			room = min(room, uint64(s.Offset))
		}
	}
	if end > uint64(len(stub)) || free+uint64(len(add))*headerSize > room {
		return nil, errors.New("it is cut off, or has no room for more sections")
	}

	out := pad(slices.Clone(stub[:end]), uint64(opt.FileAlignment))
	headers := make([]byte, 0, len(add)*headerSize)
	initialised := uint64(opt.SizeOfInitializedData)
	for _, a := range add {
		address = aligned(address, max(page, uint64(opt.SectionAlignment)))
		start := len(out)
		out = pad(append(out, a.data...), uint64(opt.FileAlignment))
		initialised += uint64(len(out) - start)
		headers = append(headers, (a.name + "\x00\x00\x00\x00\x00\x00\x00\x00")[:8]...)
		for _, v := range []uint64{uint64(len(a.data)), address, uint64(len(out) - start), uint64(start), 0, 0, 0, readableData} {
			headers = binary.LittleEndian.AppendUint32(headers, uint32(v))
		}
		address += uint64(len(a.data))
	}
	if address > 1<<31 {
		return nil, errors.New("the image is too large for a PE file")
	}
	copy(out[free:], headers)
	set := func(at uint64, v uint32) { binary.LittleEndian.PutUint32(out[at:], v) }
	binary.LittleEndian.PutUint16(out[coff+coffSections:], uint16(len(f.Sections)+len(add)))
	set(coff+coffSymbols, 0)
	set(coff+coffSymbols+4, 0)
	set(optional+optInitialised, uint32(initialised))
	set(optional+optImage, uint32(aligned(address, uint64(opt.SectionAlignment))))
	set(optional+optChecksum, 0) // UEFI does not look at it
	set(optional+optCertificate, 0)
	set(optional+optCertificate+4, 0)
	return out, nil
}

func aligned(n, to uint64) uint64 { return (n + to - 1) / to * to }

// pad adds zeros up to a multiple of to.
func pad(b []byte, to uint64) []byte {
	return append(b, make([]byte, aligned(uint64(len(b)), to)-uint64(len(b)))...)
}
