// Package sign makes and verifies signatures in minisign's format
// (https://jedisct1.github.io/minisign/), so that a site can use that program
// too: Ed25519 over the BLAKE2b-512 hash of the message, with a trusted comment
// that is signed as well.
//
// A private key that this package reads has no password: it is protected by its
// file's mode. Signatures of the old kind, over the message itself, are refused.
package sign

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode"

	"golang.org/x/crypto/blake2b"
)

// What is wrong with a signature; the errors of this package wrap them.
var (
	// ErrUnknownKey: the signature may be good, but none of the trusted keys made it.
	ErrUnknownKey = errors.New("signed with a key that is not trusted here")
	// ErrBadSignature: the message is not what was signed.
	ErrBadSignature = errors.New("signature does not match")
	// ErrMalformed: it is no signature or key at all.
	ErrMalformed = errors.New("not in minisign's form")
)

// Algorithms, as the first two bytes of keys and signatures name them.
const (
	algorithmKey       = "Ed" // of keys, and of signatures of the old kind
	algorithmPrehashed = "ED"
)

// Beginnings of lines.
const (
	untrusted = "untrusted comment: "
	trusted   = "trusted comment: "
)

// KeyID tells keys apart; it is not secret and proves nothing.
type KeyID [8]byte

// String writes the ID as minisign does: one little-endian number in
// hexadecimal, without leading zeros.
func (id KeyID) String() string { return fmt.Sprintf("%X", binary.LittleEndian.Uint64(id[:])) }

// PublicKey verifies what one private key signed.
type PublicKey struct {
	ID  KeyID
	Key [ed25519.PublicKeySize]byte
}

// publicKeySize is that of algorithm, ID and key.
const publicKeySize = 2 + 8 + ed25519.PublicKeySize

// ParsePublicKey reads a public key file: a comment line and a line of base64.
func ParsePublicKey(text []byte) (PublicKey, error) {
	var key PublicKey
	lines, err := split(text, untrusted, "")
	if err != nil {
		return key, fmt.Errorf("public key: %w", err)
	}
	raw, err := decode(lines[1], publicKeySize)
	if err != nil {
		return key, fmt.Errorf("public key: %w", err)
	}
	if string(raw[:2]) != algorithmKey {
		return key, fmt.Errorf("public key: %w: its algorithm is %q, not %q", ErrMalformed, raw[:2], algorithmKey)
	}
	copy(key.ID[:], raw[2:])
	copy(key.Key[:], raw[10:])
	return key, nil
}

// Text returns the public key file.
func (k PublicKey) Text() []byte {
	raw := append([]byte(algorithmKey), k.ID[:]...)
	raw = append(raw, k.Key[:]...)
	return fmt.Appendf(nil, "%sminisign public key %s\n%s\n", untrusted, k.ID, base64.StdEncoding.EncodeToString(raw))
}

// PrivateKey signs.
type PrivateKey struct {
	id  KeyID
	key ed25519.PrivateKey
}

// NewKey makes a key of what a source of secret random bytes gives, crypto/rand.Reader but in tests.
func NewKey(rand io.Reader) (*PrivateKey, error) {
	var raw [8 + ed25519.SeedSize]byte
	if _, err := io.ReadFull(rand, raw[:]); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return &PrivateKey{id: KeyID(raw[:8]), key: ed25519.NewKeyFromSeed(raw[8:])}, nil
}

// Public returns the key that verifies what this one signs.
func (k *PrivateKey) Public() PublicKey {
	return PublicKey{ID: k.id, Key: [ed25519.PublicKeySize]byte(k.key[ed25519.SeedSize:])}
}

// The parts of a private key file's line: three algorithms (of the key, of the
// encryption, of the checksum); salt and two limits, for the encryption; then
// the ID, the key and the checksum, which minisign leaves zero without encryption.
const (
	privateHeadSize = 2 + 2 + 2 + 32 + 8 + 8
	privateKeySize  = privateHeadSize + 8 + ed25519.PrivateKeySize + 32

	noEncryption     = "\x00\x00"
	checksumBLAKE2b  = "B2"
	privateKeyRemedy = "make one without with minisign -G -W, or take the password off a copy with minisign -C -W"
)

// ParsePrivateKey reads a private key file without a password.
func ParsePrivateKey(text []byte) (*PrivateKey, error) {
	lines, err := split(text, untrusted, "")
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	raw, err := decode(lines[1], privateKeySize)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	if string(raw[:2]) != algorithmKey || string(raw[4:6]) != checksumBLAKE2b {
		return nil, fmt.Errorf("private key: %w: its algorithms are %q and %q, not %q and %q", ErrMalformed, raw[:2], raw[4:6], algorithmKey, checksumBLAKE2b)
	}
	if string(raw[2:4]) != noEncryption {
		return nil, fmt.Errorf("private key has a password, which nobody can type where it is used: %s", privateKeyRemedy)
	}
	id, rest := KeyID(raw[privateHeadSize:]), raw[privateHeadSize+8:]
	key := ed25519.NewKeyFromSeed(rest[:ed25519.SeedSize])
	if !bytes.Equal(key, rest[:ed25519.PrivateKeySize]) {
		return nil, fmt.Errorf("private key: %w: its halves do not belong together: it is damaged, so restore it from a copy", ErrMalformed)
	}
	return &PrivateKey{id: id, key: key}, nil
}

// Text returns the private key file, without a password.
func (k *PrivateKey) Text() []byte {
	raw := make([]byte, 0, privateKeySize)
	raw = append(raw, algorithmKey+noEncryption+checksumBLAKE2b...)
	raw = raw[:privateHeadSize]
	raw = append(raw, k.id[:]...)
	raw = append(raw, k.key...)
	raw = raw[:privateKeySize]
	// The words are those that minisign 0.11 writes and looks for, encrypted or not.
	return fmt.Appendf(nil, "%sminisign encrypted secret key\n%s\n", untrusted, base64.StdEncoding.EncodeToString(raw))
}

// signatureSize is that of algorithm, key ID and signature.
const signatureSize = 2 + 8 + ed25519.SignatureSize

// Sign returns the text of a .minisig file for a message. The trusted comment is
// one line: control characters become spaces.
func (k *PrivateKey) Sign(message []byte, trustedComment string) []byte {
	comment := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, trustedComment))
	hash := blake2b.Sum512(message)
	signature := ed25519.Sign(k.key, hash[:])
	global := ed25519.Sign(k.key, append(signature[:len(signature):len(signature)], comment...))

	raw := append([]byte(algorithmPrehashed), k.id[:]...)
	raw = append(raw, signature...)
	return fmt.Appendf(nil, "%ssignature from ReAssure key %s\n%s\n%s%s\n%s\n", untrusted, k.id,
		base64.StdEncoding.EncodeToString(raw), trusted, comment, base64.StdEncoding.EncodeToString(global))
}

// Keyring is the public keys that are trusted, any of which may sign. Signatures
// of an empty one are never good.
type Keyring []PublicKey

// LoadKeyring reads all *.pub files of a folder. None at all is an empty ring;
// one that cannot be read is an error.
func LoadKeyring(fsys fs.FS) (Keyring, error) {
	names, err := fs.Glob(fsys, "*.pub")
	if err != nil {
		return nil, fmt.Errorf("trusted keys: %w", err)
	}
	var ring Keyring
	for _, name := range names {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("trusted keys: %w", err)
		}
		key, err := ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("trusted key %s: %w: replace the file, or take it away", name, err)
		}
		ring = append(ring, key)
	}
	return ring, nil
}

// Verify judges the text of a .minisig file. It returns the trusted comment if
// the message is what the owner of one of the keys signed. Otherwise the error
// is an [ErrUnknownKey], an [ErrBadSignature] or an [ErrMalformed].
func (ring Keyring) Verify(message, signature []byte) (comment string, err error) {
	lines, err := split(signature, untrusted, "", trusted, "")
	if err != nil {
		return "", fmt.Errorf("signature: %w", err)
	}
	raw, err := decode(lines[1], signatureSize)
	if err != nil {
		return "", fmt.Errorf("signature: %w", err)
	}
	global, err := decode(lines[3], ed25519.SignatureSize)
	if err != nil {
		return "", fmt.Errorf("signature: the comment's: %w", err)
	}
	switch string(raw[:2]) {
	case algorithmPrehashed:
	case algorithmKey:
		return "", fmt.Errorf("signature: %w: it is of minisign's old kind: sign again with minisign 0.10 or newer, without -l", ErrMalformed)
	default:
		return "", fmt.Errorf("signature: %w: its algorithm is %q, not %q", ErrMalformed, raw[:2], algorithmPrehashed)
	}
	id, proof := KeyID(raw[2:]), raw[10:]
	hash := blake2b.Sum512(message)
	known := false
	for _, key := range ring {
		if key.ID != id {
			continue
		}
		known = true
		if !ed25519.Verify(key.Key[:], hash[:], proof) {
			continue
		}
		if !ed25519.Verify(key.Key[:], append(proof[:len(proof):len(proof)], lines[2]...), global) {
			return "", fmt.Errorf("%w: its trusted comment was altered: publish again", ErrBadSignature)
		}
		return lines[2], nil
	}
	if known {
		return "", fmt.Errorf("%w: the content is not what was signed with key %s: it was altered or cut short, or the signature belongs to another version: publish again", ErrBadSignature, id)
	}
	if len(ring) == 0 {
		return "", fmt.Errorf("%w: key %s, and there are no trusted keys at all: build the image with the site's public key (site.pub)", ErrUnknownKey, id)
	}
	trustedIDs := make([]string, len(ring))
	for i, key := range ring {
		trustedIDs[i] = key.ID.String()
	}
	return "", fmt.Errorf("%w: key %s, where %s is trusted: publish with the site's own key, or build the image with the public half of this one",
		ErrUnknownKey, id, strings.Join(trustedIDs, ", "))
}

// maxText is the most bytes that a key or signature file may have; minisign's
// comments end at 8192.
const maxText = 32 << 10

// split returns a file's lines without what they begin with. Nothing but empty
// lines may follow; a carriage return at a line's end is taken off.
func split(text []byte, beginnings ...string) ([]string, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrMalformed, len(text))
	}
	lines := strings.Split(strings.TrimRight(string(text), "\r\n"), "\n")
	if len(lines) != len(beginnings) {
		return nil, fmt.Errorf("%w: it has %d lines, not %d (is it another kind of file?)", ErrMalformed, len(lines), len(beginnings))
	}
	for i, beginning := range beginnings {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(lines[i], "\r"), beginning)
		if !ok {
			return nil, fmt.Errorf("%w: line %d does not begin with %q", ErrMalformed, i+1, beginning)
		}
		lines[i] = rest
	}
	return lines, nil
}

// decode reads a line of base64 that has exactly size bytes.
func decode(line string, size int) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(line)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(raw) != size {
		return nil, fmt.Errorf("%w: it holds %d bytes, not %d", ErrMalformed, len(raw), size)
	}
	return raw, nil
}
