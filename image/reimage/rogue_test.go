package reimage

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"reassure/image/reimage/cmdline"
	"reassure/image/sign"
	"reassure/image/spec"
)

// TestRogueServer is somebody on the lab's network who answers DHCP and is asked for
// the manifest: whatever is not the site's own, for this very PC, is refused, once and
// for all, before anybody looks at the disks.
func TestRogueServer(t *testing.T) {
	key := func() *sign.PrivateKey {
		k, err := sign.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	site, stranger := key(), key()
	text := func(change func(*spec.Manifest)) []byte {
		m := manifest()
		if change != nil {
			change(m)
		}
		out, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	genuine := text(nil)
	other := text(func(m *spec.Manifest) { m.Host, m.MACs = "exp02", []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xee}} })
	altered := text(func(m *spec.Manifest) { m.Disk.Overwrite = "foreign" })
	const path = "/lab/manifests/01-00-09-3d-12-20-ed.json"
	for _, tt := range []struct {
		name     string
		manifest []byte
		by       []byte // the signature
		refused  string // empty means taken
	}{
		{name: "genuine", manifest: genuine, by: site.Sign(genuine, "")},
		{name: "signed by a stranger", manifest: genuine, by: stranger.Sign(genuine, ""), refused: "manifest at "},
		{name: "altered", manifest: altered, by: site.Sign(genuine, ""), refused: "manifest at "},
		{name: "no signature in it", manifest: genuine, by: []byte("untrusted comment: trust me\n"), refused: "manifest at "},
		{name: "another PC's", manifest: other, by: site.Sign(other, ""), refused: "is for exp02, not for this PC's card"},
		{name: "no manifest", manifest: []byte("{}"), by: site.Sign([]byte("{}"), ""), refused: path},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, map[string][]byte{path: tt.manifest, path + spec.SignatureSuffix: tt.by})
			r, _ := booted(t, cmdline.Options{URL: s.URL + "/lab"})
			r.Info.Insecure, r.Keys = false, sign.Keyring{site.Public()}
			err := r.getManifest(t.Context())
			var refusal *Refusal
			switch {
			case tt.refused == "" && (err != nil || r.manifest == nil):
				t.Errorf("the site's own is refused: %v", err)
			case tt.refused != "" && (!errors.As(err, &refusal) || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("error %v; want a refusal with %q", err, tt.refused)
			case tt.refused != "" && (r.manifest != nil || !r.lastTry(spec.OnFailure{}, err)):
				t.Errorf("it is tried again, or the manifest is kept")
			}
		})
	}
}
