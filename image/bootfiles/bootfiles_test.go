package bootfiles

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPXELinux(t *testing.T) {
	remote := func(o RemoteOptions) string {
		text, err := PXELinuxRemote(Publish, o)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, c := range map[string]struct{ got, want string }{
		"local": {string(PXELinuxLocal(MkImage)), `# Written by mkimage; PCs without a file of their own (01-MAC) boot their own disk.
default Local
prompt 1
timeout 2

label Local
  localboot 0
`},
		"remote": {remote(RemoteOptions{URL: "http://172.30.0.5/reassure", CommandLine: "console=ttyS0,115200 quiet"}),
			`# Written by reassure publish; a PC is reimaged while its file (01-MAC) is a link to this one.
default Remote
prompt 1
timeout 3

label Remote
  kernel /bzImage
  append initrd=/initramfs.cpio.zst reassure.url=http://172.30.0.5/reassure console=ttyS0,115200 quiet
  ipappend 2
`},
		"bare": {strings.Split(remote(RemoteOptions{}), "\n")[7], "  append initrd=/initramfs.cpio.zst"},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestPXELinuxRemoteRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		o    RemoteOptions
		want string
	}{
		"line end":     {RemoteOptions{CommandLine: "a\n  kernel /other"}, "line end"},
		"space in URL": {RemoteOptions{URL: "http://a/ init=/bin/sh"}, "spaces"},
		"too long":     {RemoteOptions{CommandLine: strings.Repeat("x", 2000)}, "shorten command_line"},
	} {
		if _, err := PXELinuxRemote(Publish, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// The longest that fits: Linux keeps 2047 bytes.
	room := maxCommandLine - len(bootIF) - len("initrd=/initramfs.cpio.zst ")
	if _, err := PXELinuxRemote(Publish, RemoteOptions{CommandLine: strings.Repeat("x", room)}); err != nil {
		t.Error(err)
	}
	if _, err := PXELinuxRemote(Publish, RemoteOptions{CommandLine: strings.Repeat("x", room+1)}); err == nil {
		t.Error("one byte too many was taken")
	}
}

func TestMayReplace(t *testing.T) {
	person := []byte("default Local\n")
	like := []byte("# Written by mkimage and then changed\n")
	for _, c := range []struct {
		name string
		w    Writer
		text []byte
		want bool
	}{
		{"own", MkImage, PXELinuxLocal(MkImage), true},
		{"publish's", MkImage, PXELinuxLocal(Publish), false},
		{"mkimage's", Publish, PXELinuxLocal(MkImage), true},
		{"own", Publish, PXELinuxLocal(Publish), true},
		{"a person's", MkImage, person, false},
		{"a person's", Publish, person, false},
		{"alike", Publish, like, false},
		{"empty", Publish, nil, false},
	} {
		if got := c.w.MayReplace(c.text); got != c.want {
			t.Errorf("%s may replace %s: %v", c.w, c.name, got)
		}
	}
}
