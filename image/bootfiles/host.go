package bootfiles

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"text/template"
	"time"

	"reassure/image/spec"
	"reassure/templates"
)

// Loader is a program that loads kernels, and reads a text that says which.
type Loader string

// Loaders; each has its templates in the folder of that name.
const (
	PXELinux Loader = "pxelinux"
	GRUB     Loader = "grub"
	IPXE     Loader = "ipxe"
	// Unified is none: the image was loaded by the firmware, and asks itself.
	Unified Loader = spec.ToldFolder
)

// Kind is what a PC is told.
type Kind string

// Kinds.
const (
	KindLocal  Kind = "local"
	KindRemote Kind = "remote"
	KindWait   Kind = "wait" // it shows why, and asks again
)

// HostText is what one PC is told.
type HostText struct {
	Kind Kind
	Host string // for people; empty is an unknown PC
	// Reason is shown on the screen. Whatever a loader could take for more than
	// words is left out of it.
	Reason string
	Again  time.Duration // with KindWait
	// Local is how the PC goes on to its own disk.
	Local spec.LocalBoot

	// The rest goes with KindRemote.
	MAC   spec.MAC // of the card that booted
	URL   string   // base of the published tree
	Token string   // secret, of this boot
	// CommandLine is further kernel parameters.
	CommandLine string
	// Tree is where the loader finds the TFTP root: empty for where it came
	// from itself, or "http://172.30.0.5/reassure/boot".
	Tree string
}

// maxSay is how much of a reason fits a screen.
const maxSay = 200

// words keeps of a text what no loader takes for anything but words.
func words(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" .,:()%/@_+-=", r):
			b.WriteRune(r)
		case r == '…':
			b.WriteString("...")
		default:
			b.WriteByte(' ')
		}
		if b.Len() >= maxSay {
			break
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// Text returns what a loader reads for one PC. site returns a site's own template
// of a name, or fs.ErrNotExist for the ready one; nil has none.
func (l Loader) Text(h HostText, site func(name string) (string, error)) ([]byte, error) {
	h.Local = h.Local.Or(spec.LocalBoot{})
	tree := h.Tree
	switch {
	case tree != "":
		tree = strings.TrimSuffix(tree, "/")
	case l == IPXE:
		tree = ".." // of the text, which is in ipxe/
	}
	data := struct {
		HostText
		Say, Kernel, Initramfs, KernelName, InitramfsName, CommandLine string
		// Trees are where GRUB tries, one after the other.
		Trees   []string
		Seconds int
	}{
		HostText: h, Say: words(h.Reason), Kernel: tree + "/" + Kernel, Initramfs: tree + "/" + Initramfs,
		KernelName: Kernel, InitramfsName: Initramfs,
		Seconds: max(1, int(h.Again.Seconds())),
	}
	if l == GRUB {
		data.Trees = grubTrees(tree)
	}
	data.Host = words(h.Host)
	if data.Host == "" {
		data.Host = "any PC"
	}
	if h.Kind == KindRemote {
		for name, s := range map[string]string{"the URL": h.URL, "the token": h.Token, "the tree's URL": h.Tree} {
			if strings.ContainsAny(s, " \t\r\n\"'\\;${}") {
				return nil, fmt.Errorf("%s text of %s: %s holds a character that a boot loader takes for more", l, h.Host, name)
			}
		}
		if i := strings.IndexAny(h.CommandLine, l.special()); i >= 0 {
			return nil, fmt.Errorf("%s text of %s: the command line holds %q, which the boot loader takes for more: change command_line in site.yaml", l, h.Host, h.CommandLine[i])
		}
		data.CommandLine = strings.Join(strings.Fields(fmt.Sprintf("reassure.url=%s reassure.token=%s BOOTIF=%s %s", h.URL, h.Token, h.MAC.PXE(), h.CommandLine)), " ")
		// pxelinux puts all of this in front, GRUB and iPXE a part of it.
		if n := len("BOOT_IMAGE= initrd= ") + len(data.Kernel) + len(data.Initramfs) + len(data.CommandLine); n > maxCommandLine {
			return nil, fmt.Errorf("%s text of %s: the kernel's command line has %d bytes, and Linux takes %d: shorten command_line in site.yaml", l, h.Host, n, maxCommandLine)
		}
	}
	return l.render("host", site, data)
}

// special are the characters that end a command line, or that the loader does not
// hand on to the kernel as they are.
func (l Loader) special() string {
	switch l {
	case GRUB: // https://www.gnu.org/software/grub/manual/grub/grub.html#Quoting
		return "\r\n" + "\\'\"$;|&<>{}#"
	case IPXE: // ${setting}, and || and && between commands
		return "\r\n" + "$|&"
	default:
		return "\r\n"
	}
}

// Fixed returns the text that a loader reads first and that leads on to the PC's
// own, or to the disk of one that has none: grub.cfg, boot.ipxe.
func (l Loader) Fixed(name string, local spec.LocalBoot, site func(name string) (string, error)) ([]byte, error) {
	return l.render(name, site, fixed{Writer: Serve, Local: local.Or(spec.LocalBoot{})})
}

// local is the part of a loader's texts that leads on to the PC's own disk.
const local = "local"

func (l Loader) render(name string, site func(name string) (string, error), data any) ([]byte, error) {
	t := template.New(name).Option("missingkey=error")
	for _, n := range []string{local, name} {
		full := string(l) + "/" + n
		text, err := source(full, site)
		if err != nil {
			return nil, err
		}
		if _, err := t.New(n).Parse(text); err != nil {
			return nil, fmt.Errorf("boot text %s: %w", full, err)
		}
	}
	var out bytes.Buffer
	if err := t.ExecuteTemplate(&out, name, data); err != nil {
		return nil, fmt.Errorf("boot text %s/%s: %w", l, name, err)
	}
	return out.Bytes(), nil
}

// source returns the site's own template of a name, or the ready one.
func source(name string, site func(name string) (string, error)) (string, error) {
	if site != nil {
		text, err := site(name)
		if err == nil {
			return text, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("boot text: the site's template %s: %w", name, err)
		}
	}
	ready, err := templates.FS.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("boot text: %w", err)
	}
	return string(ready), nil
}

// grubTrees are the ways to a tree for GRUB: by HTTP, as "(http,172.30.0.5)/reassure/boot",
// and as it came itself. Debian's signed GRUB 2.06 has no HTTP but where the firmware
// has loaded it so, and none before 2.12 knows ports.
func grubTrees(tree string) []string {
	own := ""
	rest, ok := strings.CutPrefix(tree, "http://")
	if !ok {
		return []string{own}
	}
	server, path, _ := strings.Cut(rest, "/")
	if host, port, ok := strings.Cut(server, ":"); ok {
		if port != "80" {
			return []string{own}
		}
		server = host
	}
	return []string{strings.TrimSuffix("(http,"+server+")/"+path, "/"), own}
}
