package build

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"

	"reassure/image/initramfs"
)

// TestBill compares the bill of materials with what is in the image.
func TestBill(t *testing.T) {
	o := options(t)
	image, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.Out, BillFile))
	if err != nil {
		t.Fatal(err)
	}
	var b cdx.BOM
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if b.BOMFormat != cdx.BOMFormat || b.SpecVersion != cdx.SpecVersion1_6 || b.Metadata.Component.Version != image.Version {
		t.Errorf("it is %s %v of version %q", b.BOMFormat, b.SpecVersion, b.Metadata.Component.Version)
	}
	listed, packages, programs := map[string]string{}, map[string]string{}, 0
	for _, c := range *b.Components {
		if c.Hashes != nil {
			listed[c.BOMRef] = (*c.Hashes)[0].Value
		} else {
			packages[c.Name] = c.Version
		}
		if c.Type == cdx.ComponentTypeApplication {
			programs++
		}
	}
	want := map[string]string{}
	err = initramfs.Walk(filepath.Join(o.Out, InitramfsFile), func(h *cpio.Header, r io.Reader) error {
		data, err := io.ReadAll(r)
		if h.Mode.IsRegular() {
			want["initramfs/"+h.Name] = hex.EncodeToString(sum256(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bzImage", "pxelinux.0", "ldlinux.c32", "lpxelinux.0", "reboot.c32", "libcom32.c32", "chain.c32", "libutil.c32", DriversFile} {
		data, err := os.ReadFile(filepath.Join(o.Out, TFTPRoot, name))
		if err != nil {
			t.Fatal(err)
		}
		want["tftproot/"+name] = hex.EncodeToString(sum256(data))
	}
	for _, l := range efiLoaders { // where this machine has them
		if data, err := os.ReadFile(filepath.Join(o.Out, TFTPRoot, l.name)); err == nil {
			want["tftproot/"+l.name] = hex.EncodeToString(sum256(data))
		}
	}
	if d := cmp.Diff(want, listed); d != "" {
		t.Errorf("files (-in the image +in the bill):\n%s", d)
	}
	if programs != 2 {
		t.Errorf("it knows %d programs, not reimage and chroothelper", programs)
	}
	for name, version := range image.Packages {
		if packages[name] != version {
			t.Errorf("%s %s is in it, the bill has %q", name, version, packages[name])
		}
	}
	if packages["stdlib"] == "" || packages["linux"] == "" {
		t.Errorf("Go or the kernel is missing: %v", packages)
	}
}

// TestOwners asks dpkg about a file that a package of this machine has, and one that none has.
func TestOwners(t *testing.T) {
	o := options(t)
	found, err := owners(t.Context(), o, []string{"/usr/bin/dpkg", filepath.Join(o.Out, "nobody's")})
	if err != nil || len(found) != 1 || found["dpkg"] == "" {
		t.Errorf("found %v, %v", found, err)
	}
}
