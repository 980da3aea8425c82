// Package files is the tree that PCs boot from, as TFTP and HTTP serve it: the
// TFTP root that "make image" made, and texts that are made when a PC asks for them:
//
//	pxelinux.cfg/01-MAC         what the PC is told, for pxelinux
//	pxelinux.cfg/default        Local, for every PC without a text of its own
//	grub/grub.cfg-01-MAC        what it is told, for GRUB; also without grub/
//	grub/grub.cfg               leads there
//	ipxe/01-MAC.ipxe            what it is told, for iPXE
//	ipxe/boot.ipxe              leads there
//	uki/01-MAC                  what it is told, for an image that no loader has loaded
//
// A text that is made wins over a file of that name: a link that was left in
// pxelinux.cfg must not reimage a PC. There is nothing else in pxelinux.cfg: neither
// remote.boot nor the names by UUID and IP address that pxelinux tries, too.
//
// Asking for a PC's text has consequences (see [Asker]). Names are taken as boot
// ROMs write them: with a slash before them, with backslashes, in upper case
// where they are a MAC address. Nothing outside the root is served, whatever links
// and dots say (os.Root), and nothing that is not a regular file.
package files

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// Asker decides what a PC is told, and remembers that it was. It is asked once
// for every text that goes out.
type Asker interface {
	Ask(mac spec.MAC, from netip.Addr) hosts.Answer
}

// Settings are what the texts are made with.
type Settings struct {
	// URL is the base of what the boot server serves to the reimager, and Plain to boot
	// loaders, which is not to be HTTPS; an empty Plain is URL.
	URL, Plain string
	// CommandLine is further kernel parameters of the reimager.
	CommandLine string
	// PXELinuxHTTP says that PCs with a BIOS run lpxelinux, which loads kernel and
	// initramfs by HTTP.
	PXELinuxHTTP bool
	// LocalBoot returns how a host goes on to its own disk; the host of no name is
	// any PC. nil has the defaults.
	LocalBoot func(host string) spec.LocalBoot
	// Template returns a site's own template; nil has none.
	Template func(name string) (string, error)
}

func (s Settings) local(host string) spec.LocalBoot {
	if s.LocalBoot == nil {
		return spec.LocalBoot{}
	}
	return s.LocalBoot(host)
}

// Tree serves one TFTP root. Its fields must be set.
type Tree struct {
	Root     *os.Root
	Asker    Asker
	Settings func() Settings // they change when the site is read again
	Log      *slog.Logger
}

// File is an open file. Close it.
type File struct {
	io.ReadSeekCloser
	Size int64
	Time time.Time // zero for a text that was made
}

// made is a file of the text.
func made(text []byte) *File {
	return &File{ReadSeekCloser: nopCloser{bytes.NewReader(text)}, Size: int64(len(text))}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

// Open opens a file for the PC at an address. The error is fs.ErrNotExist for
// whatever there is not, or may not be had.
func (t *Tree) Open(name string, from netip.Addr) (*File, error) {
	clean, err := tidy(name)
	if err != nil {
		return nil, err
	}
	if text, mine, err := t.make(clean, from); mine {
		if err != nil {
			return nil, err
		}
		return made(text), nil
	}
	return t.file(clean)
}

// maxName is longer than any name that a boot ROM asks for.
const maxName = 512

// tidy writes a name as fs.ValidPath has it.
func tidy(name string) (string, error) {
	clean := strings.ReplaceAll(name, `\`, "/")
	if len(name) > maxName || strings.ContainsRune(clean, 0) {
		return "", fmt.Errorf("%.40q...: %w", name, fs.ErrNotExist)
	}
	for _, part := range strings.Split(clean, "/") {
		if part == ".." {
			return "", fmt.Errorf("%q leads out of the tree: %w", name, fs.ErrNotExist)
		}
	}
	clean = strings.TrimPrefix(path.Clean("/"+clean), "/")
	if clean == "" || !fs.ValidPath(clean) {
		return "", fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return clean, nil
}

func (t *Tree) file(name string) (*File, error) {
	// Not to hang in a FIFO that lies there.
	info, err := t.Root.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	f, err := t.Root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return &File{ReadSeekCloser: f, Size: info.Size(), Time: info.ModTime()}, nil
}

// own returns the loader and the card of a name that is one PC's.
func own(name string) (bootfiles.Loader, spec.MAC, bool) {
	loader := bootfiles.Loader("")
	folder, base := path.Split(strings.ToLower(name))
	card := ""
	switch {
	case folder == bootfiles.Folder+"/":
		loader, card = bootfiles.PXELinux, base
	case folder == "" || folder == "grub/" || folder == "boot/grub/":
		if c, ok := strings.CutPrefix(base, "grub.cfg-"); ok {
			loader, card = bootfiles.GRUB, c
		}
	case folder == "ipxe/":
		if c, ok := strings.CutSuffix(base, ".ipxe"); ok {
			loader, card = bootfiles.IPXE, c
		}
	case folder == spec.ToldFolder+"/":
		loader, card = bootfiles.Unified, base
	}
	mac, err := spec.ParsePXE(card)
	return loader, mac, err == nil && loader != ""
}

// make makes the text of a name that is not to be had from the root; mine says
// that it is such a name.
func (t *Tree) make(name string, from netip.Addr) (text []byte, mine bool, err error) {
	s := t.Settings()
	if loader, mac, ok := own(name); ok {
		text, err := t.host(loader, mac, from, s)
		return text, true, err
	}
	switch lower := strings.ToLower(name); {
	case lower == bootfiles.Folder+"/"+bootfiles.Default:
		text, err = t.text(bootfiles.PXELinux, bootfiles.HostText{Kind: bootfiles.KindLocal, Reason: "this PC has no text of its own"}, s)
	case strings.HasPrefix(lower, bootfiles.Folder+"/"):
		err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case lower == "grub/grub.cfg" || lower == "grub.cfg" || lower == "boot/grub/grub.cfg":
		text, err = bootfiles.GRUB.Fixed("grub.cfg", s.local(""), s.Template)
	case lower == "ipxe/boot.ipxe":
		text, err = bootfiles.IPXE.Fixed("boot.ipxe", s.local(""), s.Template)
	default:
		return nil, false, nil
	}
	return text, true, err
}

// host asks what a PC is told, and writes it for its loader.
func (t *Tree) host(loader bootfiles.Loader, mac spec.MAC, from netip.Addr, s Settings) ([]byte, error) {
	local := bootfiles.HostText{Kind: bootfiles.KindLocal}
	// What cannot be written must not be asked for: it would be an attempt.
	probe := bootfiles.HostText{
		Kind: bootfiles.KindRemote, MAC: mac, URL: s.URL, CommandLine: s.CommandLine, Host: "a-host-name", Token: strings.Repeat("x", 26),
	}
	if loader != bootfiles.PXELinux || s.PXELinuxHTTP {
		probe.Tree = strings.TrimSuffix(cmp.Or(s.Plain, s.URL), "/") + "/boot"
	}
	if _, err := loader.Text(probe, s.Template); err != nil {
		t.Log.Error("a PC is told Local, for what it should be told cannot be written", "mac", mac, "error", err)
		local.Reason = "the boot server cannot write what this PC is to boot"
		local.Local = s.local("")
		return loader.Text(local, nil)
	}
	a := t.Asker.Ask(mac, from)
	t.Log.Info("asked", "host", a.Host, "mac", mac, "address", from, "loader", string(loader), "decision", string(a.Decision), "reason", a.Reason)
	h := probe
	h.Host, h.Reason, h.Again, h.Token = a.Host, string(a.Decision)+": "+a.Reason, a.Again, a.Token
	switch a.Decision {
	case hosts.Remote:
	case hosts.Wait:
		h.Kind = bootfiles.KindWait
	default:
		h.Kind = bootfiles.KindLocal
	}
	return t.text(loader, h, s)
}

// text writes what a PC is told by the site's own template, or, if that has a
// mistake, by the ready one: a PC that finds no text stays at a prompt.
func (t *Tree) text(loader bootfiles.Loader, h bootfiles.HostText, s Settings) ([]byte, error) {
	h.Local = s.local(h.Host)
	text, err := loader.Text(h, s.Template)
	if err == nil || s.Template == nil {
		return text, err
	}
	t.Log.Error("a PC is told by the ready template, for the site's own has a mistake", "host", h.Host, "error", err)
	return loader.Text(h, nil)
}

// Handler serves the tree by HTTP. Its paths are below whatever it is mounted at.
func (t *Tree) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := tidy(r.URL.Path)
		if err != nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuse(w, r)
			return
		}
		if _, _, ok := own(name); ok && r.Method == http.MethodHead {
			// Nobody is asked for a text that does not go out.
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			return
		}
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			refuse(w, r)
			return
		}
		f, err := t.Open(name, from.Addr().Unmap().WithZone(""))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Log.Error("cannot serve a boot file", "name", name, "error", err)
			}
			refuse(w, r)
			return
		}
		defer f.Close()
		if f.Time.IsZero() {
			// Whole and anew, whatever a client says that it has.
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Content-Length", strconv.FormatInt(f.Size, 10))
			w.Header().Set("Cache-Control", "no-store")
			if r.Method == http.MethodGet {
				_, _ = io.Copy(w, f) // it fails when the client has gone
			}
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", `"`+strconv.FormatInt(f.Size, 36)+"-"+strconv.FormatInt(f.Time.UnixNano(), 36)+`"`)
		http.ServeContent(w, r, "", f.Time, content(f))
	})
}

// content is the file itself where there is one: net/http has the kernel send it.
func content(f *File) io.ReadSeeker {
	if file, ok := f.ReadSeekCloser.(*os.File); ok {
		return file
	}
	return f
}

func refuse(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this is for reading", http.StatusMethodNotAllowed)
		return
	}
	http.Error(w, "there is no such file", http.StatusNotFound)
}

// Wads serves the wads in a folder, as DIGEST12/FILE. What is served under a
// name never changes, for the name holds its digest.
func Wads(root *os.Root) http.Handler {
	t := &Tree{Root: root}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := tidy(r.URL.Path)
		digest, _, deep := strings.Cut(name, "/")
		// "pxelinux.cfg" is of that length, too.
		if err != nil || !deep || len(digest) != 12 || strings.Trim(digest, "0123456789abcdef") != "" || r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuse(w, r)
			return
		}
		f, err := t.file(name)
		if err != nil {
			refuse(w, r)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "public, max-age=86400, immutable")
		w.Header().Set("ETag", `"`+digest+"-"+strconv.FormatInt(f.Size, 36)+"-"+strconv.FormatInt(f.Time.UnixNano(), 36)+`"`)
		http.ServeContent(w, r, "", f.Time, content(f))
	})
}
