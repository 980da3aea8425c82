// Package bootfiles makes the files in the TFTP root that tell a PC at power-on
// what to boot, in pxelinux's language. Their names and text are near those of
// the sites that ReAssure comes from:
//
//	pxelinux.cfg/default           Local: the PC's own disk; for every PC without a file of its own
//	pxelinux.cfg/remote.boot       Remote: kernel and initramfs of the reimager
//	pxelinux.cfg/01-MAC            one PC's boot decision: a link to remote.boot, or none
//
// The first two begin with a line that says which program wrote them, so that
// no program takes away what a person or a better informed program wrote.
package bootfiles

import (
	"bytes"
	"fmt"
	"strings"
	"text/template"

	"reassure/templates"
)

// Where the files are, below the TFTP root.
const (
	Folder  = "pxelinux.cfg"
	Default = "default"
	Remote  = "remote.boot"
)

// Kernel and Initramfs are the image's names in the TFTP root.
const (
	Kernel    = "bzImage"
	Initramfs = "initramfs.cpio.zst"
)

// Writer is a program that writes these files.
type Writer string

// The programs that do. What [Publish] writes knows the site; what [MkImage]
// writes is for a first try.
const (
	MkImage Writer = "mkimage"
	Publish Writer = "reassure publish"
)

// maxCommandLine is the longest kernel command line on x86, less one for the
// zero byte (COMMAND_LINE_SIZE, arch/x86/include/asm/setup.h).
const maxCommandLine = 2047

// bootIF is what "ipappend 2" makes pxelinux add to the command line.
const bootIF = " BOOTIF=01-00-00-00-00-00-00"

// RemoteOptions are what a PC that is reimaged is told. The zero value leaves
// the reimager to find the published tree by itself.
type RemoteOptions struct {
	// URL is the base of the published tree; empty means http://NEXT-SERVER/reassure.
	URL string
	// CommandLine is further kernel parameters, such as "console=ttyS0,115200".
	CommandLine string
}

// PXELinuxLocal returns the text of pxelinux.cfg/default.
func PXELinuxLocal(by Writer) []byte {
	text, err := render(Default, by, RemoteOptions{})
	if err != nil {
		panic(err) // it depends on nothing but the embedded text
	}
	return text
}

// PXELinuxRemote returns the text of pxelinux.cfg/remote.boot.
func PXELinuxRemote(by Writer, o RemoteOptions) ([]byte, error) {
	if strings.ContainsAny(o.URL, " \t\r\n\"") {
		return nil, fmt.Errorf("%s: the URL %q cannot hold spaces or quotes", Remote, o.URL)
	}
	if strings.ContainsAny(o.CommandLine, "\r\n") {
		return nil, fmt.Errorf("%s: the command line cannot hold a line end", Remote)
	}
	text, err := render(Remote, by, o)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if args, ok := strings.CutPrefix(strings.TrimSpace(line), "append "); ok && len(args)+len(bootIF) > maxCommandLine {
			return nil, fmt.Errorf("%s: the kernel's command line has %d bytes, and Linux takes %d: shorten command_line in site.yaml",
				Remote, len(args)+len(bootIF), maxCommandLine)
		}
	}
	return text, nil
}

func render(name string, by Writer, o RemoteOptions) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(templates.FS, "pxelinux/"+name)
	if err != nil {
		return nil, fmt.Errorf("pxelinux template: %w", err)
	}
	var text bytes.Buffer
	data := struct {
		Writer Writer
		RemoteOptions
	}{by, o}
	if err := t.Execute(&text, data); err != nil {
		return nil, fmt.Errorf("pxelinux template: %w", err)
	}
	return text.Bytes(), nil
}

// WrittenBy returns the program that wrote a file with this text, or "" if it
// was a person.
func WrittenBy(text []byte) Writer {
	line, _, _ := strings.Cut(string(text), "\n")
	rest, ok := strings.CutPrefix(line, "# Written by ")
	by, _, ends := strings.Cut(rest, ";")
	if w := Writer(by); ok && ends && (w == MkImage || w == Publish) {
		return w
	}
	return ""
}

// MayReplace says whether a program may put a file of its own in the place of
// text: publish replaces what either program wrote, mkimage only its own.
func (w Writer) MayReplace(text []byte) bool {
	by := WrittenBy(text)
	return by == w || w == Publish && by == MkImage
}
