package bootfiles

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

var loaders = []Loader{PXELinux, GRUB, IPXE, Unified}

// told is what a PC is told, of every kind.
func told(k Kind) HostText {
	return HostText{
		Kind: k, Host: "exp01", Reason: string(k) + ": the roll-out of 2026-11-20, canary 1 of 2", Again: 90 * time.Second,
		MAC: spec.MAC{0x52, 0x54, 0, 0xab, 0, 1}, URL: "http://172.30.0.5/reassure", Token: "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		CommandLine: "console=ttyS0,115200  quiet",
	}
}

// TestHostText compares each text with its golden file (-update writes them).
func TestHostText(t *testing.T) {
	texts := map[string]HostText{}
	for _, k := range []Kind{KindLocal, KindRemote, KindWait} {
		texts[string(k)] = told(k)
	}
	web := told(KindRemote)
	web.Tree = web.URL + "/boot"
	texts["remote-http"] = web
	other := told(KindLocal)
	other.Local = spec.LocalBoot{BIOS: spec.LocalDisk, UEFI: spec.LocalNext}
	texts["local-other"] = other
	texts["local-unknown"] = HostText{Kind: KindLocal, Reason: "this PC is not in the inventory"}
	for _, l := range loaders {
		for name, h := range texts {
			got, err := l.Text(h, nil)
			if err != nil {
				t.Errorf("%s %s: %v", l, name, err)
				continue
			}
			golden(t, string(l)+"-"+name, got)
			if l == GRUB {
				grubAccepts(t, name, got)
			}
		}
	}
	fixed, err := GRUB.Fixed("grub.cfg", spec.LocalBoot{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	grubAccepts(t, "grub.cfg", fixed)
}

// golden compares a text with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// grubAccepts has GRUB's own parser judge a script.
func grubAccepts(t *testing.T, name string, script []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(file, script, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("grub-script-check", file).CombinedOutput(); err != nil {
		t.Errorf("grub-script-check of %s: %v\n%s\n%s", name, err, out, script)
	}
}

// TestHostTextHoldsNoMore puts into every text what comes from elsewhere, and
// looks for a line or a word of the loader's language that was not there before.
func TestHostTextHoldsNoMore(t *testing.T) {
	for name, evil := range map[string]string{
		"line end":     "x\nlabel Local\n kernel /evil\n",
		"return":       "x\r\nboot /evil",
		"GRUB quote":   `x"; linux /evil; boot; echo "`,
		"GRUB single":  `x' ; linux /evil`,
		"substitution": "x ${net0/mac} $(reboot) `reboot` $prefix",
		"iPXE or":      "x || chain http://evil/ && boot",
		"backslash":    `x\n\"`,
		"comment":      "x # y",
		"escape":       "x\x1b[2J\x00\x07y",
		"template":     "x {{.Token}} y",
		"not UTF-8":    "x\xff\xfe y",
		"very long":    strings.Repeat("reason ", 1000),
	} {
		for _, l := range loaders {
			for _, k := range []Kind{KindLocal, KindRemote, KindWait} {
				tame, wild := told(k), told(k)
				tame.Host, tame.Reason = "x", "x"
				wild.Host, wild.Reason = evil, evil
				want, err := l.Text(tame, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := l.Text(wild, nil)
				if err != nil {
					t.Errorf("%s: %s: %v", l, name, err)
					continue
				}
				if n, m := strings.Count(string(got), "\n"), strings.Count(string(want), "\n"); n != m {
					t.Errorf("%s: %s: %d lines instead of %d:\n%s", l, name, n, m, got)
				}
				for i, line := range strings.Split(string(got), "\n") {
					if len(line) > 300 && !strings.Contains(line, "reassure.token=") {
						t.Errorf("%s: %s: line %d has %d bytes", l, name, i+1, len(line))
					}
					if !strings.Contains(line, "Made by") && !strings.Contains(line, "ReAssure: ") {
						continue
					}
					said := strings.TrimSuffix(strings.TrimPrefix(line, `echo "`), `"`)
					if strings.ContainsAny(said, "\"'`$;|&<>{}\\\r\x1b\x00") || !utf8.ValidString(said) || strings.Contains(strings.TrimPrefix(said, "#"), "#") {
						t.Errorf("%s: %s: line %d is more than words: %q", l, name, i+1, line)
					}
				}
				if l == GRUB {
					grubAccepts(t, name, got)
				}
			}
		}
	}
}

func TestHostTextRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*HostText)
		want   string
		only   Loader // which refuses; empty is all of them
	}{
		"space in the URL":           {func(h *HostText) { h.URL = "http://a/ init=/bin/sh" }, "the URL", ""},
		"line end in the URL":        {func(h *HostText) { h.URL = "http://a/\nkernel" }, "the URL", ""},
		"line end in the token":      {func(h *HostText) { h.Token = "a\nb" }, "the token", ""},
		"quote in the token":         {func(h *HostText) { h.Token = `a"b` }, "the token", ""},
		"setting in the tree's URL":  {func(h *HostText) { h.Tree = "http://${next-server}/" }, "the tree", ""},
		"line end in command_line":   {func(h *HostText) { h.CommandLine = "a\n  kernel /other" }, "change command_line", ""},
		"return in command_line":     {func(h *HostText) { h.CommandLine = "a\rb" }, "change command_line", ""},
		"semicolon in command_line":  {func(h *HostText) { h.CommandLine = "a;reboot" }, "change command_line", GRUB},
		"dollar in command_line":     {func(h *HostText) { h.CommandLine = "a=$b" }, "change command_line", ""},
		"or in command_line":         {func(h *HostText) { h.CommandLine = "a || shell" }, "change command_line", ""},
		"too much in command_line":   {func(h *HostText) { h.CommandLine = strings.Repeat("x", maxCommandLine) }, "shorten command_line", ""},
		"too much in words together": {func(h *HostText) { h.CommandLine = strings.Repeat("x ", 1000) }, "shorten command_line", ""},
	} {
		for _, l := range loaders {
			h := told(KindRemote)
			c.change(&h)
			_, err := l.Text(h, nil)
			refuses := c.only == "" || c.only == l
			if plain := l == PXELinux || l == Unified; plain && (strings.HasPrefix(name, "dollar") || strings.HasPrefix(name, "or ")) {
				refuses = false // both hand on the rest of the line as it is
			}
			if refuses != (err != nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %s: %v, want %v: %q", l, name, err, refuses, c.want)
			}
		}
		// What a PC is not told cannot be wrong with it.
		h := told(KindLocal)
		c.change(&h)
		if _, err := PXELinux.Text(h, nil); err != nil {
			t.Errorf("local: %s: %v", name, err)
		}
	}
}

// TestCommandLineFits counts as Linux does: 2047 bytes with pxelinux's "initrd="
// and with its "BOOT_IMAGE=", which it puts in front.
func TestCommandLineFits(t *testing.T) {
	length := func(text []byte) int {
		front := 0
		for line := range strings.Lines(string(text)) {
			if kernel, ok := strings.CutPrefix(strings.TrimSpace(line), "kernel "); ok {
				front = len("BOOT_IMAGE=" + kernel + " ")
			}
			if args, ok := strings.CutPrefix(strings.TrimSpace(line), "append "); ok {
				return front + len(args)
			}
		}
		t.Fatalf("no append line:\n%s", text)
		return 0
	}
	h := told(KindRemote)
	h.CommandLine = "x"
	text, err := PXELinux.Text(h, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.CommandLine = strings.Repeat("x", 1+maxCommandLine-length(text))
	if text, err = PXELinux.Text(h, nil); err != nil || length(text) != maxCommandLine {
		t.Errorf("%d bytes were not taken: %v", length(text), err)
	}
	h.CommandLine += "x"
	if _, err := PXELinux.Text(h, nil); err == nil {
		t.Error("one byte too many was taken")
	}
}

func TestSiteTemplate(t *testing.T) {
	site := func(name string) (string, error) {
		if name == "ipxe/host" {
			return "#!ipxe\necho our own: {{.Say}}\n", nil
		}
		return "", fs.ErrNotExist
	}
	got, err := IPXE.Text(told(KindLocal), site)
	if want := "#!ipxe\necho our own: local: the roll-out of 2026-11-20, canary 1 of 2\n"; err != nil || string(got) != want {
		t.Errorf("site's own: %q, %v; want %q", got, err, want)
	}
	ready, err := GRUB.Text(told(KindLocal), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := GRUB.Text(told(KindLocal), site); err != nil || string(got) != string(ready) {
		t.Errorf("a loader without a site's own: %q, %v; want %q", got, err, ready)
	}
	for name, text := range map[string]string{"not a template": "{{", "unknown field": "{{.Nonesuch}}"} {
		if _, err := IPXE.Text(told(KindLocal), func(name string) (string, error) {
			if name != "ipxe/host" {
				return "", fs.ErrNotExist
			}
			return text, nil
		}); err == nil || !strings.Contains(err.Error(), "ipxe/host") {
			t.Errorf("%s: %v; want one that names ipxe/host", name, err)
		}
	}
	trouble := errors.New("input/output error")
	if _, err := IPXE.Text(told(KindLocal), func(string) (string, error) { return "", trouble }); !errors.Is(err, trouble) {
		t.Errorf("a site's template that cannot be read: %v; want %v", err, trouble)
	}
}

// TestGRUBTrees: GRUB 2.06 knows no ports, and Debian's signed one mostly no HTTP.
func TestGRUBTrees(t *testing.T) {
	for tree, want := range map[string][]string{
		"":                                {""},
		"http://172.30.0.5/reassure/boot": {"(http,172.30.0.5)/reassure/boot", ""},
		"http://boot.lab:80/boot":         {"(http,boot.lab)/boot", ""},
		"http://172.30.0.5:8080/boot":     {""},
		"http://172.30.0.5":               {"(http,172.30.0.5)", ""},
		"https://172.30.0.5/boot":         {""},
	} {
		if diff := cmp.Diff(want, grubTrees(tree)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tree, diff)
		}
	}
}
