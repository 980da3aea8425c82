package reimage

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"reassure/image/logs"
	"reassure/image/reimage/cmdline"
	"reassure/image/reimage/disk"
	"reassure/image/reimage/netup"
	"reassure/image/sign"
	"reassure/image/spec"
	"reassure/image/stamp"
	"reassure/image/wad"
)

// victim is a PC as far as a disk, an address and a server make one: what it runs is
// all that a real one does from the manifest on.
type victim struct {
	t       *testing.T
	disk    string // the file behind the disk
	system  disk.System
	key     *sign.PrivateKey
	wad     []byte
	size    int // of its index
	genuine *spec.Manifest
}

const (
	manifestName = "/manifests/01-00-09-3d-12-20-ed.json"
	wadName      = "/wads/a.tar.zst"
)

func newVictim(t *testing.T) *victim {
	if os.Getuid() != 0 {
		t.Fatal("this test needs a loop device: run it as root")
	}
	dir := t.TempDir()
	v := &victim{t: t, disk: filepath.Join(dir, "disk"), system: disk.System{Sys: filepath.Join(dir, "sys"), Proc: filepath.Join(dir, "proc")}}
	const size = 128 << 20
	if err := os.WriteFile(v.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(v.disk, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", v.disk).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { shell(t, dir, "losetup --detach "+loop) })
	// A loop device is no disk of a PC: it goes by another name.
	name := fmt.Sprintf("rtv%d", os.Getpid())
	if err := os.Symlink(loop, "/dev/"+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove("/dev/" + name) })
	for file, text := range map[string]string{"size": fmt.Sprint(size / 512), "device/serial": "VICTIM", "queue/logical_block_size": "512"} {
		path := filepath.Join(v.system.Sys, "block", name, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	private, _, _, err := sign.EnsureSiteKey(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	if v.key, err = sign.LoadPrivateKey(private); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	shell(t, dir, "mkdir -p tree/etc; echo one >tree/etc/one; head -c 300000 /dev/urandom >tree/two; ln -s one tree/etc/link; ln tree/two tree/three")
	file := filepath.Join(dir, "a.tar.zst")
	x, err := wad.PackFolder(t.Context(), tree, file, wad.FolderOptions{}, wad.PackOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	if v.wad, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	bound := x.Bound()
	v.size = int(bound.Size)

	// Every field is set: those that are not could not be tampered with.
	m := manifest()
	m.MACs = append(m.MACs, spec.MAC{0, 9, 0x3d, 0x12, 0x20, 0xef})
	m.Table, m.Order, m.Mode, m.Finish = spec.GPT, "o1", spec.ReimageAuto, spec.PowerOff
	m.Disk = spec.DiskRule{Serial: "VICTIM", MinSize: spec.MiB, MaxSize: spec.GiB, Pick: "only", Overwrite: "foreign"}
	m.Partitions = []spec.Partition{
		{Name: "bios", Size: spec.Extent{Bytes: spec.MiB}, FileSystem: spec.None, Type: spec.TypeBIOSBoot},
		{Name: "esp", Size: spec.Extent{Percent: 50}, FileSystem: spec.VFAT, Type: spec.TypeESP, Mount: "/boot/efi", Label: "ESP"},
		{Name: "root", Size: spec.Extent{Rest: true}, FileSystem: spec.Ext4, Label: "root", Mount: "/", Options: []string{"noatime"}, Bootable: true},
	}
	m.Wads = []spec.Wad{{Name: "a.tar.zst", URLs: []string{wadName[1:]}, Size: spec.Size(len(v.wad)), SHA256: sha256.Sum256(v.wad), Mount: "/", Overlay: true, Index: &bound}}
	m.Files = []spec.File{{Path: "/etc/motd", Template: "motd", Content: "welcome\n", Mode: 0o644, UID: 1, GID: 2, Volatile: true}}
	m.System = spec.System{RootPasswordHash: "*", AuthorizedKeys: []string{"ssh-ed25519 AAAA"}, Timezone: "UTC", Locale: "C.UTF-8", Keymap: "us"}
	m.OnFailure = spec.OnFailure{Retries: new(1), Pause: spec.Duration(time.Second), Then: spec.Hold}
	m.Keep, m.Runtime = []string{"/etc/keep"}, []string{"/var/log"}
	m.Finished = spec.Sum([]byte("finished"))
	m.Accepted, m.Supersedes = []spec.DiskID{{Serial: "VICTIM"}}, 5
	m.Digest = stamp.Digest(m)
	v.genuine = m
	return v
}

// sum is the digest of all that is on the disk.
func (v *victim) sum() spec.Digest {
	v.t.Helper()
	f, err := os.Open(v.disk)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		v.t.Fatal(err)
	}
	return spec.Digest(h.Sum(nil))
}

func (v *victim) text(m *spec.Manifest) []byte {
	v.t.Helper()
	text, err := m.Marshal()
	if err != nil {
		v.t.Fatal(err)
	}
	return text
}

// powerOn has the PC try once to be reimaged, with what its server sends.
func (v *victim) powerOn(text, signature, wad []byte, keys ...sign.PublicKey) (*Reimager, error) {
	files := map[string][]byte{manifestName: text, manifestName + spec.SignatureSuffix: signature, wadName: wad}
	r := v.served(func(w http.ResponseWriter, q *http.Request) {
		body, ok := files[q.URL.Path]
		if !ok {
			http.NotFound(w, q)
			return
		}
		http.ServeContent(w, q, "x.bin", time.Time{}, bytes.NewReader(body))
	}, keys...)
	_, _, err := r.tryOnce(v.t.Context())
	return r, err
}

// served is the PC with a server, until the test ends.
func (v *victim) served(how http.HandlerFunc, keys ...sign.PublicKey) *Reimager {
	server := httptest.NewServer(how)
	v.t.Cleanup(server.Close)
	if len(keys) == 0 {
		keys = []sign.PublicKey{v.key.Public()}
	}
	return &Reimager{
		Options: cmdline.Options{Retries: new(0), Root: filepath.Join(v.t.TempDir(), "root")}, Keys: keys,
		Log: slog.New(slog.DiscardHandler), Screen: logs.NewScreen(nil), Ring: logs.NewRing(10),
		system: v.system, network: &netup.Network{MAC: v.genuine.MACs[0]}, base: server.URL, disks: diskNames(), attempt: 1,
	}
}

// leaves calls each for every value in a JSON document that holds no others, with a
// document that is the same to the byte but for that one.
func leaves(t *testing.T, text []byte, each func(path string, altered []byte)) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	next := func() (token json.Token, start, end int) {
		from := int(d.InputOffset())
		token, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		gap := len(text[from:]) - len(bytes.TrimLeft(text[from:], " \n\t,:"))
		return token, from + gap, int(d.InputOffset())
	}
	var walk func(path string)
	walk = func(path string) {
		token, start, end := next()
		put := func(name, value string) { each(name, slices.Concat(text[:start], []byte(value), text[end:])) }
		switch v := token.(type) {
		case json.Delim:
			for i := 0; d.More(); i++ {
				if v == '[' {
					walk(fmt.Sprintf("%s[%d]", path, i))
					continue
				}
				key, _, _ := next()
				walk(fmt.Sprintf("%s.%s", path, key))
			}
			next()
		case string:
			put(path, string(text[start:end-1])+`x"`)
			if n := len(v); n > 0 && v[n-1] != '1' {
				put(path+" (as long)", string(text[start:end-2])+`1"`)
			}
		case json.Number:
			put(path, v.String()+"0")
		case bool:
			put(path, fmt.Sprint(!v))
		}
	}
	walk("")
}

// TestTampered has somebody on the way change every field of the manifest, one by one,
// and every byte of the wad's index. Not one sector of the disk changes.
func TestTampered(t *testing.T) {
	v := newVictim(t)
	text := v.text(v.genuine)
	signature := v.key.Sign(text, "host exp01")
	before := v.sum()

	var mu sync.Mutex
	var tried []string
	// Most of the time of a try is pauses.
	g := new(errgroup.Group)
	g.SetLimit(256)
	try := func(name string, text, signature, wad []byte, says string, keys ...sign.PublicKey) {
		g.Go(func() error {
			r, err := v.powerOn(text, signature, wad, keys...)
			mu.Lock()
			defer mu.Unlock()
			tried = append(tried, name)
			if err == nil || !strings.Contains(err.Error(), says) || r.wrote {
				t.Errorf("%s: %v, wrote %v; want an error with %q, and nothing written", name, err, r.wrote, says)
			}
			return nil
		})
	}
	leaves(t, text, func(path string, altered []byte) { try("manifest"+path, altered, signature, v.wad, "signature") })

	// The document as a whole.
	try("cut", text[:len(text)-1], signature, v.wad, "signature")
	try("a space more", append(slices.Clone(text), ' '), signature, v.wad, "signature")
	try("a field more", bytes.Replace(text, []byte(`"schema"`), []byte(`"x": 1, "schema"`), 1), signature, v.wad, "signature")
	try("empty", nil, signature, v.wad, "")
	// The signature.
	other, err := sign.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	try("no signature", text, nil, v.wad, "signature")
	try("another's key", text, other.Sign(text, "host exp01"), v.wad, "not trusted here")
	try("another's signature", text, v.key.Sign([]byte("x"), "host exp01"), v.wad, "signature")
	// Its first line is for people, and not signed.
	for i := bytes.IndexByte(signature, '\n') + 1; i < len(signature)-1; i += 5 {
		flipped := slices.Clone(signature)
		flipped[i] ^= 1
		try(fmt.Sprintf("signature, byte %d", i), text, flipped, v.wad, "")
	}
	// What is signed, but for somebody else, or not as it has to be.
	for name, c := range map[string]struct {
		spoil func(*spec.Manifest)
		says  string
	}{
		"another host":  {func(m *spec.Manifest) { m.Host, m.MACs = "exp02", []spec.MAC{{2}} }, "is for exp02"},
		"another disk":  {func(m *spec.Manifest) { m.Accepted[0].Serial = "S9" }, "not the disk that is known"},
		"no such disk":  {func(m *spec.Manifest) { m.Disk.Serial = "S9" }, "none of the 1 disks"},
		"another index": {func(m *spec.Manifest) { m.Wads[0].Index.SHA256[0] ^= 1 }, "wad a.tar.zst"},
		"longer index":  {func(m *spec.Manifest) { m.Wads[0].Index.Size++ }, "wad a.tar.zst"},
		"a longer wad":  {func(m *spec.Manifest) { m.Wads[0].Size++ }, "wad a.tar.zst"},
	} {
		var m spec.Manifest
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		c.spoil(&m)
		signed := v.text(&m)
		try(name, signed, v.key.Sign(signed, "host"), v.wad, c.says)
	}
	// The index: its magic number, sizes, digests, names, all of it.
	for i := range v.size {
		altered := slices.Clone(v.wad)
		altered[i] ^= 0x10
		try(fmt.Sprintf("index, byte %d", i), text, signature, altered, "wad a.tar.zst")
	}
	try("index of another wad", text, signature, append([]byte("x"), v.wad...), "wad a.tar.zst")
	try("no wad", text, signature, nil, "wad a.tar.zst")
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if v.sum() != before {
		t.Errorf("the disk was written to by one of %d tries", len(tried))
	}
	for _, field := range []string{".host", ".serial", ".digest", ".disk.serial", ".partitions[2].size", ".wads[0].sha256", ".wads[0].index.sha256", ".wads[0].overlay", ".files[0].content", ".steps[0].run.command[0]", ".accepted[0].serial", ".supersedes"} {
		if !slices.Contains(tried, "manifest"+field) {
			t.Errorf("%s was not tampered with", field)
		}
	}
	t.Logf("%d tries", len(tried))

	// What nobody has touched is written: all of the above would have been, too. Keys
	// rotate with overlap: the image may trust the old one and the new.
	r, err := v.powerOn(text, signature, v.wad, other.Public(), v.key.Public())
	if !r.wrote || v.sum() == before {
		t.Errorf("what is genuine was not written: %v", err)
	}
	var q *Question
	if errors.As(err, &q) {
		t.Errorf("it asks: %v", err)
	}
}
