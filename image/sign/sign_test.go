package sign

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// newKey returns a key made of bytes that all have the same value.
func newKey(tb testing.TB, value byte) *PrivateKey {
	tb.Helper()
	key, err := NewKey(bytes.NewReader(bytes.Repeat([]byte{value}, 40)))
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// write writes a file for a test and returns its path.
func write(t *testing.T, dir, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// minisign runs the reference program.
func minisign(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("minisign")
	if err != nil {
		t.Fatal("minisign is missing: install the Debian package minisign")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

func TestMinisignVerifiesOurs(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t, 7)
	public := write(t, dir, "site.pub", key.Public().Text())
	for name, message := range map[string][]byte{"empty": nil, "text": []byte("a manifest\n"), "large": bytes.Repeat([]byte("wad"), 1<<20)} {
		path := write(t, dir, name, message)
		write(t, dir, name+".minisig", key.Sign(message, "host pc1 serial 17 – ünïcode"))
		out, err := minisign(t, "-V", "-H", "-Q", "-p", public, "-m", path)
		if err != nil || out != "host pc1 serial 17 – ünïcode\n" {
			t.Errorf("%s: minisign says %q, %v", name, out, err)
		}
		write(t, dir, name, append(message, 'x'))
		if out, err := minisign(t, "-V", "-p", public, "-m", path); err == nil {
			t.Errorf("%s, altered: minisign says %q", name, out)
		}
	}
}

func TestMinisignSignsWithOurKey(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t, 9)
	private := write(t, dir, "site.key", key.Text())
	path := write(t, dir, "message", []byte("a manifest\n"))
	if out, err := minisign(t, "-S", "-W", "-s", private, "-m", path, "-t", "by minisign", "-c", "whatever"); err != nil {
		t.Fatalf("minisign: %v: %s", err, out)
	}
	signature, err := os.ReadFile(path + ".minisig")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Keyring{key.Public()}).Verify([]byte("a manifest\n"), signature); err != nil || got != "by minisign" {
		t.Errorf("Verify = %q, %v", got, err)
	}
	// Its idea of the public half is ours.
	public := filepath.Join(dir, "again.pub")
	if out, err := minisign(t, "-R", "-W", "-s", private, "-p", public); err != nil {
		t.Fatalf("minisign: %v: %s", err, out)
	}
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, key.Public().Text()) {
		t.Errorf("public key %q; minisign writes %q", key.Public().Text(), text)
	}
}

func TestWeUseMinisignsKeys(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "k.key"), filepath.Join(dir, "k.pub")
	if out, err := minisign(t, "-G", "-W", "-s", private, "-p", public); err != nil {
		t.Fatalf("minisign: %v: %s", err, out)
	}
	key, err := LoadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(private)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(key.Text())); diff != "" {
		t.Errorf("we write the key otherwise (-theirs +ours):\n%s", diff)
	}
	ring, err := LoadKeyring(os.DirFS(dir))
	if err != nil || len(ring) != 1 || ring[0] != key.Public() {
		t.Fatalf("LoadKeyring = %v, %v; want %v", ring, err, key.Public())
	}
	message := write(t, dir, "message", []byte("hello"))
	write(t, dir, "message.minisig", key.Sign([]byte("hello"), "ours"))
	if out, err := minisign(t, "-V", "-p", public, "-m", message); err != nil {
		t.Errorf("minisign: %v: %s", err, out)
	}
	// The old kind.
	if out, err := minisign(t, "-S", "-l", "-W", "-s", private, "-m", message); err != nil {
		t.Fatalf("minisign: %v: %s", err, out)
	}
	legacy, err := os.ReadFile(message + ".minisig")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Verify([]byte("hello"), legacy); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "without -l") {
		t.Errorf("Verify of the old kind: %v", err)
	}
}

func TestVerify(t *testing.T) {
	site, other := newKey(t, 1), newKey(t, 2)
	impostor := newKey(t, 3)
	impostor.id = site.id
	message := []byte("a manifest\n")
	good := string(site.Sign(message, "serial 17"))
	lines := strings.SplitAfter(good, "\n")
	edit := func(line int, edit func([]byte)) string {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines[line]))
		if err != nil {
			t.Fatal(err)
		}
		edit(raw)
		edited := append([]string(nil), lines...)
		edited[line] = base64.StdEncoding.EncodeToString(raw) + "\n"
		return strings.Join(edited, "")
	}
	ring := Keyring{newKey(t, 4).Public(), site.Public()}
	for name, c := range map[string]struct {
		ring      Keyring
		message   string
		signature string
		want      error
		says      string
	}{
		"good":                         {ring, "", good, nil, ""},
		"good, for DOS":                {ring, "", strings.ReplaceAll(good, "\n", "\r\n"), nil, ""},
		"good, without its last end":   {ring, "", strings.TrimSuffix(good, "\n"), nil, ""},
		"good, other untrusted words":  {ring, "", strings.Replace(good, "signature from", "greetings from", 1), nil, ""},
		"good, two keys of one ID":     {Keyring{impostor.Public(), site.Public()}, "", good, nil, ""},
		"altered message":              {ring, "a manifesto\n", good, ErrBadSignature, "altered or cut short"},
		"empty message":                {ring, "\x00", good, ErrBadSignature, site.id.String()},
		"altered trusted comment":      {ring, "", strings.Replace(good, "serial 17", "serial 99", 1), ErrBadSignature, "comment"},
		"altered signature":            {ring, "", edit(1, func(raw []byte) { raw[20] ^= 1 }), ErrBadSignature, "publish again"},
		"altered comment's signature":  {ring, "", edit(3, func(raw []byte) { raw[20] ^= 1 }), ErrBadSignature, "comment"},
		"altered ID":                   {ring, "", edit(1, func(raw []byte) { raw[3] ^= 1 }), ErrUnknownKey, site.id.String()},
		"other key":                    {ring, "", string(other.Sign(message, "serial 17")), ErrUnknownKey, other.id.String()},
		"other key of the same ID":     {ring, "", string(impostor.Sign(message, "serial 17")), ErrBadSignature, "publish"},
		"no keys":                      {nil, "", good, ErrUnknownKey, "site.pub"},
		"old kind":                     {ring, "", edit(1, func(raw []byte) { raw[1] = 'd' }), ErrMalformed, "old kind"},
		"other kind":                   {ring, "", edit(1, func(raw []byte) { raw[0] = 'X' }), ErrMalformed, "XD"},
		"empty":                        {ring, "", "", ErrMalformed, "lines"},
		"a web page":                   {ring, "", "<html>\n<body>404 Not Found</body>\n</html>\n\n", ErrMalformed, "another kind"},
		"cut short":                    {ring, "", good[:len(good)-20], ErrMalformed, "base64"},
		"comment's signature is short": {ring, "", lines[0] + lines[1] + lines[2] + "AAAA\n", ErrMalformed, "3 bytes"},
		"lines after it":               {ring, "", good + "more\n", ErrMalformed, "5 lines"},
		"not base64":                   {ring, "", strings.Replace(good, lines[1], "!!\n", 1), ErrMalformed, "base64"},
		"no trusted comment":           {ring, "", strings.Replace(good, "\ntrusted comment: ", "\nuntrusted comment: ", 1), ErrMalformed, "line 3"},
		"very long":                    {ring, "", good + strings.Repeat("\n", maxText), ErrMalformed, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			m := message
			switch c.message {
			case "":
			case "\x00":
				m = nil
			default:
				m = []byte(c.message)
			}
			comment, err := c.ring.Verify(m, []byte(c.signature))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Verify = %v; want %v", err, c.want)
			}
			if err == nil && comment != "serial 17" || err != nil && comment != "" {
				t.Errorf("comment %q with %v", comment, err)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

func TestSignKeepsTheCommentOnItsLine(t *testing.T) {
	key := newKey(t, 1)
	signature := key.Sign(nil, " one\ntrusted comment: two\r\x00 ")
	comment, err := Keyring{key.Public()}.Verify(nil, signature)
	if err != nil || comment != "one trusted comment: two" {
		t.Errorf("Verify = %q, %v", comment, err)
	}
}

func TestNewKey(t *testing.T) {
	a, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.Public().ID == b.Public().ID || a.Public().Key == b.Public().Key {
		t.Error("two keys are alike")
	}
	if _, err := NewKey(strings.NewReader("too short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("NewKey of too few bytes: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	key := newKey(t, 5)
	damage := func(text []byte, at int) []byte {
		lines := strings.Split(string(text), "\n")
		raw, err := base64.StdEncoding.DecodeString(lines[1])
		if err != nil {
			t.Fatal(err)
		}
		raw[at] ^= 0x20
		return []byte(lines[0] + "\n" + base64.StdEncoding.EncodeToString(raw) + "\n")
	}
	public, private := key.Public().Text(), key.Text()
	for name, text := range map[string][]byte{
		"empty": nil, "a private key": private, "algorithm": damage(public, 0), "cut": public[:60], "twice": append(bytes.Clone(public), public...),
		"bare key": bytes.SplitAfter(public, []byte("\n"))[1],
	} {
		if got, err := ParsePublicKey(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("public key, %s: %v, %v", name, got, err)
		}
	}
	for name, text := range map[string][]byte{
		"empty": nil, "a public key": public, "algorithm": damage(private, 0), "checksum": damage(private, 4), "cut": private[:100],
		"seed": damage(private, privateHeadSize+8), "public half": damage(private, privateHeadSize+8+32),
	} {
		if _, err := ParsePrivateKey(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("private key, %s: %v", name, err)
		}
	}
	// The field that names the encryption. (minisign itself takes 8 s and 1 GiB to set a password.)
	if _, err := ParsePrivateKey(damage(private, 2)); err == nil || !strings.Contains(err.Error(), "minisign -C -W") {
		t.Errorf("private key with a password: %v", err)
	}
}

func TestLoadKeyring(t *testing.T) {
	a, b := newKey(t, 1).Public(), newKey(t, 2).Public()
	folder := fstest.MapFS{
		"a.pub": {Data: a.Text()}, "b.pub": {Data: b.Text()}, "README": {Data: []byte("no key")}, "sub/c.pub": {Data: []byte("not looked at")},
	}
	ring, err := LoadKeyring(folder)
	if diff := cmp.Diff(Keyring{a, b}, ring); err != nil || diff != "" {
		t.Errorf("LoadKeyring: %v (-want +got):\n%s", err, diff)
	}
	folder["z.pub"] = &fstest.MapFile{Data: []byte("damaged")}
	if _, err := LoadKeyring(folder); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "z.pub") {
		t.Errorf("LoadKeyring with a damaged key: %v", err)
	}
	if ring, err := LoadKeyring(fstest.MapFS{}); err != nil || len(ring) != 0 {
		t.Errorf("LoadKeyring of nothing: %v, %v", ring, err)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(newKey(f, 1).Public().Text())
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParsePublicKey(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if again, err := ParsePublicKey(key.Text()); err != nil || again != key {
			t.Errorf("%v comes back as %v, %v", key, again, err)
		}
	})
}

func FuzzParsePrivateKey(f *testing.F) {
	f.Add(newKey(f, 1).Text())
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParsePrivateKey(text)
		if err != nil {
			return
		}
		if again, err := ParsePrivateKey(key.Text()); err != nil || again.Public() != key.Public() {
			t.Errorf("%v comes back as %v, %v", key.Public(), again, err)
		}
	})
}

// Whatever is done to a good signature, nothing but what was signed is believed.
func FuzzVerify(f *testing.F) {
	key, message := newKey(f, 1), []byte("a manifest\n")
	ring := Keyring{key.Public()}
	f.Add(key.Sign(message, "serial 17"))
	f.Fuzz(func(t *testing.T, signature []byte) {
		comment, err := ring.Verify(message, signature)
		switch {
		case err == nil && comment != "serial 17":
			t.Errorf("comment %q was never signed", comment)
		case err != nil && comment != "":
			t.Errorf("comment %q is returned with %v", comment, err)
		case err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownKey) && !errors.Is(err, ErrBadSignature):
			t.Errorf("error of no kind: %v", err)
		}
		if _, err := ring.Verify([]byte("another"), signature); err == nil {
			t.Error("another message is believed")
		}
	})
}
