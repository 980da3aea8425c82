package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

const (
	card = "52-54-00-ab-00-01"
	pc   = "172.30.0.11"
)

// asker gives one answer, and remembers who asked.
type asker struct {
	answer hosts.Answer
	asked  []string
}

func (a *asker) Ask(mac spec.MAC, from netip.Addr) hosts.Answer {
	a.asked = append(a.asked, fmt.Sprintf("%v at %v", mac, from))
	return a.answer
}

// tree is a TFTP root with a secret file beside it.
type tree struct {
	Tree
	*asker
	root     string // the folder
	settings Settings
}

func newTree(t testing.TB) *tree {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"secret":                               "secret",
		"root/bzImage":                         "the kernel",
		"root/pxelinux.0":                      "pxelinux",
		"root/EFI/BOOT/bootx64.efi":            "loader",
		"root/pxelinux.cfg/remote.boot":        "left behind",
		"root/pxelinux.cfg/01-" + card:         "left behind",
		"root/pxelinux.cfg/default":            "left behind",
		"root/ipxe/boot.ipxe":                  "left behind",
		"root/grub/grub.cfg":                   "left behind",
		"root/grub/grub.cfg-01-" + card:        "left behind",
		"root/grub/x86_64-efi/net.mod":         "module",
		"root/ipxe/01-" + card + ".ipxe":       "left behind",
		"root/uki/01-" + card:                  "left behind",
		"root/boot/grub/grub.cfg":              "left behind",
		"root/pxelinux.cfg/AC1E000B":           "left behind",
		"root/grub/grub.cfg-52:54:00:ab:00:01": "no PC's",
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	tr := &tree{
		asker: &asker{answer: hosts.Answer{Host: "exp01", Decision: hosts.Remote, Reason: "roll-out 7", Token: "THETOKEN"}},
		root:  filepath.Join(dir, "root"), settings: Settings{URL: "http://172.30.0.5/reassure", CommandLine: "quiet"},
	}
	tr.Tree = Tree{Root: root, Asker: tr.asker, Log: slog.New(slog.DiscardHandler), Settings: func() Settings { return tr.settings }}
	return tr
}

func (tr *tree) read(t testing.TB, name string) (string, error) {
	t.Helper()
	f, err := tr.Open(name, netip.MustParseAddr(pc))
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil || int64(len(text)) != f.Size {
		t.Errorf("%q: %d bytes, said to be %d: %v", name, len(text), f.Size, err)
	}
	return string(text), nil
}

// TestEscapes tries to get at what is outside the root, or no file.
func TestEscapes(t *testing.T) {
	tr := newTree(t)
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(tr.root, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("../secret", "out")
	link(filepath.Join(filepath.Dir(tr.root), "secret"), "out-absolute")
	link("..", "up")
	link("loop", "loop")
	link("loop-b", "loop-a")
	link("loop-a", "loop-b")
	link("/dev/zero", "device")
	link("nowhere", "dangling")
	link("bzImage", "vmlinuz")
	if err := syscall.Mkfifo(filepath.Join(tr.root, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for attack, name := range map[string]string{
		"dotdot": "../secret", "dotdot inside": "EFI/../../secret", "dotdot that stays inside": "EFI/../bzImage",
		"dotdot at the end": "EFI/..", "dotdot after a slash": "/../secret",
		"absolute": filepath.Join(filepath.Dir(tr.root), "secret"), "absolute to a system file": "/etc/passwd", "two slashes": "//etc/passwd",
		"backslash dotdot": `..\secret`, "backslash in the middle": `EFI\..\..\secret`, "mixed slashes": `EFI/..\../secret`,
		"drive": `C:\secret`, "UNC": `\\server\secret`,
		"symlink out": "out", "absolute symlink out": "out-absolute", "symlink to the folder above": "up/secret",
		"symlink loop": "loop", "symlink loop of two": "loop-a", "symlink to a device": "device", "dangling symlink": "dangling",
		"FIFO": "fifo", "folder": "EFI", "folder with a slash": "EFI/", "file as a folder": "bzImage/x", "root": "/", "dot": ".", "empty": "",
		"NUL": "bzImage\x00", "NUL and more": "bzImage\x00.txt", "not UTF-8": "bzImage\xff", "very long": strings.Repeat("a", 100_000),
		"very deep": strings.Repeat("a/", 200) + "x", "percent": "%2e%2e/secret", "folder of texts": "pxelinux.cfg",
		"text that was left behind": "pxelinux.cfg/remote.boot", "in upper case": "PXELINUX.CFG/REMOTE.BOOT",
		"by IP address": "pxelinux.cfg/AC1E000B", "by UUID": "pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d",
		"deeper": "pxelinux.cfg/x/01-" + card, "not a MAC": "pxelinux.cfg/01-52-54-00-ab-00", "not Ethernet": "pxelinux.cfg/20-" + card,
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if text, err := tr.read(t, name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %.60q gives %q, %v; want %v", attack, name, text, err, fs.ErrNotExist)
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: %q hangs", attack, name)
		}
	}
	if len(tr.asked) > 0 {
		t.Errorf("somebody was asked: %q", tr.asked)
	}
	// A link that stays inside is what the image is made with.
	if text, err := tr.read(t, "vmlinuz"); text != "the kernel" || err != nil {
		t.Errorf("symlink inside: %q, %v", text, err)
	}
}

// TestNames writes names as boot ROMs do.
func TestNames(t *testing.T) {
	const remote, fixed = "reassure.token=THETOKEN", "Written by reassure serve; every PC may have"
	for _, c := range []struct{ name, want string }{
		{"bzImage", "the kernel"},
		{"/bzImage", "the kernel"},
		{"//bzImage", "the kernel"},
		{"./bzImage", "the kernel"},
		{`EFI\BOOT\bootx64.efi`, "loader"},
		{`\EFI\BOOT\bootx64.efi`, "loader"},
		{"/EFI//BOOT/./bootx64.efi", "loader"},
		{"grub/x86_64-efi/net.mod", "module"},
		{"grub/grub.cfg-52:54:00:ab:00:01", "no PC's"},
		{"pxelinux.cfg/01-" + card, remote},
		{"/pxelinux.cfg/01-" + strings.ToUpper(card), remote},
		{`pxelinux.cfg\01-` + card, remote},
		{"grub/grub.cfg-01-" + card, remote},
		{"grub.cfg-01-" + card, remote},
		{"/boot/grub/grub.cfg-01-" + strings.ToUpper(card), remote},
		{"/grub/grub.cfg-01-" + strings.ReplaceAll(card, "-", ":"), remote}, // $net_default_mac
		{"ipxe/01-" + card + ".ipxe", remote},
		{"IPXE/01-" + strings.ToUpper(card) + ".IPXE", remote},
		{"uki/01-" + card, remote},
		{"pxelinux.cfg/default", "localboot 0"},
		{"grub/grub.cfg", fixed},
		{"/grub.cfg", fixed},
		{"boot/grub/grub.cfg", fixed},
		{"ipxe/boot.ipxe", fixed},
	} {
		tr := newTree(t)
		text, err := tr.read(t, c.name)
		if err != nil || !strings.Contains(text, c.want) || strings.Contains(text, "left behind") {
			t.Errorf("%q: %v\n%s\nwant %q", c.name, err, text, c.want)
		}
		want := []string(nil)
		if c.want == remote {
			want = []string{"52:54:00:ab:00:01 at " + pc}
		}
		if diff := cmp.Diff(want, tr.asked); diff != "" {
			t.Errorf("%q: asked (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestTold has a PC be told each decision, and what it is told when that cannot
// be written.
func TestTold(t *testing.T) {
	broken := func(name string) (string, error) { return "", errors.New("input/output error") }
	brokenFor := func(kind string) func(string) (string, error) {
		return func(name string) (string, error) {
			return "ours\n{{if eq .Kind \"" + kind + "\"}}{{template \"nonesuch\"}}{{end}}", nil
		}
	}
	for name, c := range map[string]struct {
		answer   hosts.Answer
		settings Settings
		want     []string
		asked    int
	}{
		"local": {hosts.Answer{Decision: hosts.Local, Reason: "up to date"}, Settings{}, []string{"local: up to date", "localboot 0"}, 1},
		"local, its own way": {
			hosts.Answer{Host: "exp01", Decision: hosts.Local}, Settings{LocalBoot: func(host string) spec.LocalBoot {
				return map[string]spec.LocalBoot{"exp01": {BIOS: "-1"}}[host]
			}}, []string{"localboot -1\n"}, 1,
		},
		"remote": {hosts.Answer{Decision: hosts.Remote, Token: "T"}, Settings{URL: "http://a/b"}, []string{"kernel /bzImage\n", "reassure.url=http://a/b reassure.token=T BOOTIF=01-" + card}, 1},
		"remote by HTTP": {
			hosts.Answer{Decision: hosts.Remote, Token: "T"}, Settings{URL: "http://a/b/", PXELinuxHTTP: true},
			[]string{"kernel http://a/b/boot/bzImage\n", "initrd=http://a/b/boot/initramfs.cpio.zst "}, 1,
		},
		"wait":             {hosts.Answer{Decision: hosts.Wait, Reason: "its disk is spoiled", Again: 20 * time.Second}, Settings{}, []string{"its disk is spoiled", "asks again in 20 seconds", "timeout 200\n", "reboot.c32"}, 1},
		"too long":         {hosts.Answer{Decision: hosts.Remote, Token: "T"}, Settings{CommandLine: strings.Repeat("x ", 1100)}, []string{"cannot write", "localboot 0"}, 0},
		"template trouble": {hosts.Answer{Decision: hosts.Remote, Token: "T"}, Settings{Template: broken}, []string{"cannot write", "localboot 0"}, 0},
		"template wrong for remote": {
			hosts.Answer{Decision: hosts.Remote, Token: "T"}, Settings{Template: brokenFor("remote")}, []string{"cannot write", "localboot 0"}, 0,
		},
		"template wrong for wait": {
			hosts.Answer{Decision: hosts.Wait, Again: 20 * time.Second}, Settings{Template: brokenFor("wait")}, []string{"asks again in 20 seconds"}, 1,
		},
		"site's own": {hosts.Answer{Decision: hosts.Local}, Settings{Template: brokenFor("remotest")}, []string{"ours\n"}, 1},
	} {
		tr := newTree(t)
		tr.answer, tr.settings = c.answer, c.settings
		text, err := tr.read(t, "pxelinux.cfg/01-"+card)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: has no %q:\n%s", name, w, text)
			}
		}
		if len(tr.asked) != c.asked {
			t.Errorf("%s: asked %d times, want %d", name, len(tr.asked), c.asked)
		}
	}
	tr := newTree(t)
	tr.settings.Template = broken
	if text, err := tr.read(t, "pxelinux.cfg/default"); err != nil || !strings.Contains(text, "localboot 0") {
		t.Errorf("default with a broken template: %q, %v", text, err)
	}
}

// get asks a handler as a client at the PC's address does.
func get(h http.Handler, method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "http://172.30.0.5/", nil)
	r.URL.Path = path
	r.RemoteAddr = pc + ":40000"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestHTTP(t *testing.T) {
	text := "pxelinux.cfg/01-" + card
	for name, c := range map[string]struct {
		method, path string
		header       []string
		status       int
		body         string // a part of it
		want         map[string]string
		asked        int
	}{
		"file":             {"GET", "/bzImage", nil, 200, "the kernel", map[string]string{"Content-Length": "10", "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}, 0},
		"head of a file":   {"HEAD", "/bzImage", nil, 200, "", map[string]string{"Content-Length": "10"}, 0},
		"range":            {"GET", "/bzImage", []string{"Range", "bytes=4-5"}, 206, "ke", map[string]string{"Content-Range": "bytes 4-5/10"}, 0},
		"range of the end": {"GET", "/bzImage", []string{"Range", "bytes=-3"}, 206, "nel", nil, 0},
		"range beyond":     {"GET", "/bzImage", []string{"Range", "bytes=10-"}, 416, "", map[string]string{"Content-Range": "bytes */10"}, 0},
		"text":             {"GET", "/" + text, nil, 200, "THETOKEN", map[string]string{"Cache-Control": "no-store", "Etag": "", "Last-Modified": ""}, 1},
		"text from a range": {
			"GET", "/" + text, []string{"Range", "bytes=5-"}, 200, "# Made by", map[string]string{"Cache-Control": "no-store"}, 1,
		},
		"text that is known":  {"GET", "/" + text, []string{"If-None-Match", "*"}, 200, "THETOKEN", nil, 1},
		"text upper case":     {"GET", "/" + strings.ToUpper(text), nil, 200, "THETOKEN", nil, 1},
		"head of a text":      {"HEAD", "/" + text, nil, 200, "", map[string]string{"Cache-Control": "no-store"}, 0},
		"post of a text":      {"POST", "/" + text, nil, 405, "reading", map[string]string{"Allow": "GET, HEAD"}, 0},
		"fixed text":          {"GET", "/ipxe/boot.ipxe", nil, 200, "#!ipxe", map[string]string{"Cache-Control": "no-store"}, 0},
		"not there":           {"GET", "/nonesuch", nil, 404, "", nil, 0},
		"dotdot":              {"GET", "/../secret", nil, 404, "", nil, 0},
		"put":                 {"PUT", "/bzImage", nil, 405, "", nil, 0},
		"not there, not read": {"DELETE", "/nonesuch", nil, 405, "", nil, 0},
		"folder":              {"GET", "/EFI/", nil, 404, "", nil, 0},
	} {
		tr := newTree(t)
		got := get(tr.Handler(), c.method, c.path, c.header...)
		body, err := io.ReadAll(got.Body)
		if got.StatusCode != c.status || err != nil || !strings.Contains(string(body), c.body) || c.method == "HEAD" && len(body) > 0 {
			t.Errorf("%s: %s %q %v; want %d %q", name, got.Status, body, err, c.status, c.body)
		}
		for field, want := range c.want {
			if v := got.Header.Get(field); v != want {
				t.Errorf("%s: %s: %q, want %q", name, field, v, want)
			}
		}
		if len(tr.asked) != c.asked {
			t.Errorf("%s: asked %d times, want %d", name, len(tr.asked), c.asked)
		}
	}
}

// TestHTTPAgain asks for what the client has, before and after it changes.
func TestHTTPAgain(t *testing.T) {
	tr := newTree(t)
	tag := get(tr.Handler(), "GET", "/bzImage").Header.Get("ETag")
	if got := get(tr.Handler(), "GET", "/bzImage", "If-None-Match", tag); tag == "" || got.StatusCode != 304 {
		t.Errorf("unchanged, %s: %s, want 304", tag, got.Status)
	}
	file := filepath.Join(tr.root, "bzImage")
	// As long as before, and put there within the same second.
	if err := errors.Join(os.WriteFile(file, []byte("the xernel"), 0o644), os.Chtimes(file, time.Now(), time.Now().Add(time.Millisecond))); err != nil {
		t.Fatal(err)
	}
	if got := get(tr.Handler(), "GET", "/bzImage", "If-None-Match", tag); got.StatusCode != 200 {
		t.Errorf("changed: %s, want 200", got.Status)
	}
}

func TestWads(t *testing.T) {
	tr := newTree(t)
	const digest = "0123456789ab"
	file := filepath.Join(tr.root, digest, "pc.tar")
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("the wad"), 0o644), os.Symlink("../../secret", filepath.Join(tr.root, digest, "out"))); err != nil {
		t.Fatal(err)
	}
	h := Wads(tr.Root)
	for name, c := range map[string]struct {
		method, path string
		status       int
		body         string
	}{
		"wad":                {"GET", "/" + digest + "/pc.tar", 200, "the wad"},
		"head":               {"HEAD", "/" + digest + "/pc.tar", 200, ""},
		"post":               {"POST", "/" + digest + "/pc.tar", 405, "this is for reading\n"},
		"without a digest":   {"GET", "/bzImage", 404, ""},
		"of another folder":  {"GET", "/EFI/BOOT/bootx64.efi", 404, ""},
		"a text's name":      {"GET", "/pxelinux.cfg/01-" + card, 404, ""},
		"list":               {"GET", "/" + digest + "/", 404, ""},
		"symlink out":        {"GET", "/" + digest + "/out", 404, ""},
		"dotdot":             {"GET", "/" + digest + "/../../secret", 404, ""},
		"name that has none": {"GET", "/" + digest + "/other.tar", 404, ""},
	} {
		got := get(h, c.method, c.path)
		body, err := io.ReadAll(got.Body)
		if got.StatusCode != c.status || err != nil || c.body != "" && string(body) != c.body {
			t.Errorf("%s: %s %q %v; want %d %q", name, got.Status, body, err, c.status, c.body)
		}
		if kept := strings.Contains(got.Header.Get("Cache-Control"), "immutable"); kept != (c.status == 200) {
			t.Errorf("%s: Cache-Control: %q", name, got.Header.Get("Cache-Control"))
		}
	}
	tag := get(h, "GET", "/"+digest+"/pc.tar").Header.Get("ETag")
	if got := get(h, "GET", "/"+digest+"/pc.tar", "If-None-Match", tag); got.StatusCode != 304 {
		t.Errorf("known wad: %s, want 304", got.Status)
	}
	if got := get(h, "GET", "/"+digest+"/pc.tar", "Range", "bytes=4-", "If-Range", tag); got.StatusCode != 206 {
		t.Errorf("the rest of a wad: %s, want 206", got.Status)
	}
	if len(tr.asked) > 0 {
		t.Errorf("somebody was asked: %q", tr.asked)
	}
}

// FuzzNames looks for a name that gets at the file outside, or panics, or has
// somebody asked without a text that goes out.
func FuzzNames(f *testing.F) {
	tr := newTree(f)
	if err := os.Symlink("../secret", filepath.Join(tr.root, "out")); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		tr.asked = nil
		text, err := tr.read(t, name)
		switch {
		case text == "secret" || text == "left behind":
			t.Errorf("%q gives what nobody may have: %q", name, text)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			t.Errorf("%q: %v", name, err)
		case (len(tr.asked) == 1) != strings.Contains(text, "THETOKEN") || len(tr.asked) > 1:
			t.Errorf("%q: asked %q for %q", name, tr.asked, text)
		}
		// What is served by HTTP has the same names.
		tr.asked = nil
		got := get(tr.Handler(), "GET", name)
		if body, _ := io.ReadAll(got.Body); (got.StatusCode == 200) != (err == nil) || err == nil && string(body) != text {
			t.Errorf("%q: %q, %v by TFTP, and %s %q by HTTP", name, text, err, got.Status, body)
		}
	})
}
