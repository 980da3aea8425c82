package qemutests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/command"
	"reassure/image/spec"
)

// Programs is what a lab is run with, made from this source tree once.
type Programs struct {
	Tree     string // root of the source tree
	Dir      string // holds all that was made
	Reassure string // the operator's program
	Image    string // folder with bzImage, initramfs, image.json and tftproot
}

// Flavours of the image: what virtual PCs need, and what every PC needs.
const (
	FlavourVM   = "vm"
	FlavourFull = "full"
)

// Build makes the operator's program and the image of a flavour, with a signing
// key of their own: whoever runs this keeps theirs out of it.
func Build(ctx context.Context, tree, dir, flavour string) (*Programs, error) {
	p := &Programs{Tree: tree, Dir: dir, Reassure: filepath.Join(dir, "reassure"), Image: filepath.Join(dir, "image")}
	mkimage := filepath.Join(dir, "mkimage")
	// What a site that wants deltas of such an image writes.
	config := filepath.Join(dir, "image.yaml")
	text, err := os.ReadFile(filepath.Join(tree, "image/build/image.yaml"))
	if err != nil {
		return nil, fmt.Errorf("building what is tested: %w", err)
	}
	text = bytes.Replace(text, []byte("\nbundles: []\n"), []byte("\nbundles: [e2fsck]\n"), 1)
	text = bytes.Replace(text, []byte(noParameters), []byte(strings.Replace(noParameters, `""`, consoles, 1)), 1)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return nil, fmt.Errorf("building what is tested: %w", err)
	}
	for _, args := range [][]string{
		{"go", "build", "-o", p.Reassure, "./cmds/reassure"},
		{"go", "build", "-o", mkimage, "./cmds/mkimage"},
		{mkimage, "build", "-flavour", flavour, "-config", config, "-out", p.Image},
	} {
		var out bytes.Buffer
		err := command.Command{Args: args, Dir: tree, Env: p.Env(), Stdout: &out, Timeout: 10 * time.Minute}.Run(ctx)
		if err != nil {
			return nil, fmt.Errorf("building what is tested: %w\n%s", err, out.Bytes())
		}
	}
	return p, nil
}

// noParameters is what image.yaml says of the unified kernel image's command line.
const noParameters = "\n  command_line: \"\"\n"

// Env is the environment of the project's programs: this one's, but that the
// site's signing key is looked for, and made, below Dir.
func (p *Programs) Env() []string {
	return append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(p.Dir, "config"))
}

// Wad makes one of the wads of scripts/make-wad, or takes the one that it made
// before, and returns its path.
func (p *Programs) Wad(ctx context.Context, kind, name string) (string, error) {
	path := filepath.Join(p.Dir, "wads", kind, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	err := command.Command{Args: []string{"scripts/make-wad", kind, path}, Dir: p.Tree, Timeout: 20 * time.Minute}.Run(ctx)
	if err != nil {
		return "", fmt.Errorf("wad %s: %w", kind, err)
	}
	return path, nil
}

// Setup is a lab of one PC, as a test wants it.
type Setup struct {
	Host string // empty means exp01
	// Profile names the profile: a key of Files ("profiles/NAME.yaml"), or a
	// ready one.
	Profile string
	// Files are files of the site, by their path below it; they replace those
	// that "reassure init" made.
	Files map[string]string
	// Wads are the site's wads, by their name below its wads folder: paths here.
	Wads map[string]string
	// Vars are the host's variables.
	Vars map[string]string
	MAC  spec.MAC // zero means DefaultMAC
	// Others are further addresses of the PC.
	Others []spec.MAC
	// CommandLine is added to the reimager's kernel command line.
	CommandLine string
}

// Lab is a site with one PC: its folder, what is published of it, and the servers.
type Lab struct {
	Setup
	Dir  string // the lab's own folder
	Site string // what a person edits
	WWW  string // what Web serves
	TFTP string
	Web  *Web
	Key  ssh.Signer // root's on the PC, once it is reimaged

	programs *Programs
	starts   atomic.Int32
}

// consoles has everything shown on the screen and on the serial port.
const consoles = "console=tty0 console=ttyS0,115200"

// NewLab makes a site in folder dir, with an inventory of one PC, and serves what
// will be published of it. authorized is a line for the PC's authorized_keys
// whose private half is key.
func NewLab(ctx context.Context, p *Programs, dir string, s Setup, key ssh.Signer) (*Lab, error) {
	if s.Host == "" {
		s.Host = "exp01"
	}
	if s.MAC == (spec.MAC{}) {
		s.MAC = DefaultMAC
	}
	l := &Lab{
		Setup: s, Dir: dir, Key: key, programs: p,
		Site: filepath.Join(dir, "site"), WWW: filepath.Join(dir, "www"), TFTP: filepath.Join(dir, "tftp"),
	}
	if err := os.MkdirAll(l.WWW, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := linkTree(filepath.Join(p.Image, "tftproot"), l.TFTP); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := l.reassure(ctx, "init", l.Site); err != nil {
		return nil, err
	}
	var err error
	if l.Web, err = ServeWeb(l.WWW); err != nil {
		return nil, err
	}
	for name, content := range s.Files {
		if err := l.Write(name, content); err != nil {
			return nil, err
		}
	}
	for name, from := range s.Wads {
		to := filepath.Join(l.Site, "wads", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		if err := os.Link(from, to); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
	}
	return l, l.Write("site.yaml", l.inventory())
}

// inventory is the lab's site.yaml.
func (l *Lab) inventory() string {
	var y strings.Builder
	fmt.Fprintf(&y, "site:\n  url: %s\n  server: %s\n  network: %s\n  gateway: %s\n  dns: [%s]\n  domain: lab.example\n", l.Web.URL(), Server, Network, Server, DNS)
	fmt.Fprintf(&y, "  events: %s\n  command_line: %q\n", l.Web.EventsURL(), strings.TrimSpace(consoles+" "+l.CommandLine))
	macs := fmt.Sprintf("%q", l.MAC)
	for _, m := range l.Others {
		macs += fmt.Sprintf(", %q", m)
	}
	fmt.Fprintf(&y, "hosts:\n  - name: %s\n    mac: [%s]\n    ip: %s\n    profile: %s\n", l.Host, macs, Address, l.Profile)
	if len(l.Vars) > 0 {
		y.WriteString("    vars:\n")
		for k, v := range l.Vars {
			fmt.Fprintf(&y, "      %s: %q\n", k, v)
		}
	}
	return y.String()
}

// Write writes a file of the site.
func (l *Lab) Write(name, content string) error {
	path := filepath.Join(l.Site, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

func (l *Lab) reassure(ctx context.Context, args ...string) error {
	args = append([]string{l.programs.Reassure}, args...)
	return command.Command{Args: args, Dir: l.Dir, Env: l.programs.Env(), Timeout: 5 * time.Minute}.Run(ctx)
}

// Publish publishes the site.
func (l *Lab) Publish(ctx context.Context) error {
	return l.reassure(ctx, "publish", "--site", l.Site, "--out", l.WWW, "--tftp", l.TFTP)
}

// Switch sets the PC's boot decision: "local" or "remote".
func (l *Lab) Switch(ctx context.Context, decision string) error {
	return l.reassure(ctx, "switch", l.Host, decision, "--site", l.Site, "--tftp", l.TFTP)
}

// PowerOn switches the PC on, in the lab's TFTP folder unless m names another. Disks that have no file yet get one.
func (l *Lab) PowerOn(ctx context.Context, watch io.Writer, m Machine) (*VM, error) {
	n := int(l.starts.Add(1))
	m.Dir = filepath.Join(l.Dir, "boot"+strconv.Itoa(n))
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for i, d := range m.Disks {
		if d.Path() == "" {
			if err := d.Make(filepath.Join(l.Dir, fmt.Sprintf("disk%d.%d", n, i))); err != nil {
				return nil, err
			}
		}
	}
	m.MAC, m.Watch = l.MAC, watch
	if m.TFTP == "" {
		m.TFTP = l.TFTP
	}
	return m.Start(ctx)
}

// linkTree makes folder to look like from: regular files are copied, for what is
// published is written into them; the big ones are hard links.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, below)
		info, err := entry.Info()
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case entry.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			return errors.Join(err, os.Symlink(link, target))
		case info.Size() > 1<<20:
			return os.Link(path, target)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o644)
	})
}
