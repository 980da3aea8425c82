package bootfiles

import (
	"strings"
	"testing"

	"reassure/image/spec"
)

// TestFiles compares each text with its golden file (-update writes them).
func TestFiles(t *testing.T) {
	for name, o := range map[string]RemoteOptions{
		"files":      {URL: "http://172.30.0.5/reassure", CommandLine: "console=ttyS0,115200 quiet"},
		"files-bare": {},
		"files-own":  {Own: []spec.LocalBoot{{}, {BIOS: "4"}, {BIOS: "4", UEFI: spec.LocalNext}, {UEFI: spec.LocalNext}}},
	} {
		files, err := Files(Publish, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			golden(t, name+"-"+strings.ReplaceAll(f.Name, "/", "-"), f.Text)
			if strings.HasPrefix(f.Name, "grub/") {
				grubAccepts(t, f.Name, f.Text)
			}
			if by := WrittenBy(f.Text); by != Publish {
				t.Errorf("%s was written by %q", f.Name, by)
			}
		}
	}
}

func TestFilesRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		o    RemoteOptions
		want string
	}{
		"line end":                {RemoteOptions{CommandLine: "a\n  kernel /other"}, "change command_line"},
		"what GRUB would expand":  {RemoteOptions{CommandLine: "a=$b"}, "grub takes for more"},
		"what iPXE would run":     {RemoteOptions{CommandLine: "a=b&reboot"}, "takes for more"},
		"space in URL":            {RemoteOptions{URL: "http://a/ init=/bin/sh"}, "spaces"},
		"what GRUB takes for end": {RemoteOptions{URL: "http://a/;reboot"}, "takes for more"},
		"too long":                {RemoteOptions{CommandLine: strings.Repeat("x", 2000)}, "shorten command_line"},
	} {
		if _, err := Files(Publish, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// What is taken fits: Linux keeps 2047 bytes.
	fits := RemoteOptions{URL: "http://172.30.0.5/reassure", CommandLine: "x"}
	for ; ; fits.CommandLine += "x" {
		more := fits
		more.CommandLine += "x"
		if _, err := Files(Publish, more); err != nil {
			break
		}
	}
	files, err := Files(Publish, fits)
	if err != nil {
		t.Fatal(err)
	}
	// As the kernel gets it.
	passed := strings.NewReplacer("$net_default_mac", "52:54:00:12:34:56", "${netX/mac:hexhyp}", "52-54-00-12-34-56", "; then", "", " || goto local", "",
		"  append ", "BOOT_IMAGE=/bzImage BOOTIF=01-52-54-00-12-34-56 ", "if linux ", "BOOT_IMAGE=(tftp,172.130.100.105)", "kernel ../", "")
	for _, f := range files {
		for line := range strings.Lines(string(f.Text)) {
			if line := passed.Replace(strings.TrimSuffix(line, "\n")); strings.Contains(line, "reassure.url=") && len(line) > maxCommandLine {
				t.Errorf("%s: the kernel gets %d bytes", f.Name, len(line))
			}
		}
	}
	if len(fits.CommandLine) < 1800 {
		t.Errorf("no more than %d bytes are taken", len(fits.CommandLine))
	}
}

func TestMayReplace(t *testing.T) {
	text := func(by Writer, name string) []byte {
		files, err := Files(by, RemoteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if f.Name == name {
				return f.Text
			}
		}
		t.Fatalf("there is no %s", name)
		return nil
	}
	local := func(by Writer) []byte { return text(by, "pxelinux.cfg/default") }
	person := []byte("default Local\n")
	like := []byte("# Written by mkimage and then changed\n")
	for _, c := range []struct {
		name string
		w    Writer
		text []byte
		want bool
	}{
		{"own", MkImage, local(MkImage), true},
		{"publish's", MkImage, local(Publish), false},
		{"mkimage's", Publish, local(MkImage), true},
		{"own", Publish, local(Publish), true},
		{"mkimage's script of iPXE", Publish, text(MkImage, "ipxe/boot.ipxe"), true},
		{"a person's script of iPXE", Publish, []byte("#!ipxe\nshell\n"), false},
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
