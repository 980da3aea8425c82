package serve

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"reassure/image/bootfiles"
	"reassure/image/coverage"
	"reassure/image/resolve"
	"reassure/image/serve/api"
	"reassure/image/serve/dhcp"
	"reassure/image/serve/files"
	"reassure/image/serve/hosts"
	"reassure/image/serve/lab"
	"reassure/image/serve/publish"
	"reassure/image/serve/store"
	"reassure/image/serve/tftp"
	"reassure/image/serve/web"
	"reassure/image/spec"
)

// Options are what [Run] needs besides the configuration.
type Options struct {
	Config *Config
	Signer publish.Signer
	// Reload gets a value when the site is to be read again (SIGHUP).
	Reload  <-chan os.Signal
	Version string
	Log     *slog.Logger
}

// Run serves the lab until ctx ends, which is no error. Every socket is open
// before the first request is answered: what is wrong shows at the start.
func Run(ctx context.Context, o Options) error {
	c := o.Config
	login, err := sshKey(c.SSHKey)
	if err != nil {
		return err
	}
	// Records and tokens are nobody else's to read.
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	keep, err := store.Open(filepath.Join(c.State, "lab.db"))
	if err != nil {
		return err
	}
	defer keep.Close()
	var page *web.Server // nil until everything else is there
	l, err := lab.Open(ctx, lab.Options{
		Site: c.Site, State: c.State, Drivers: filepath.Join(c.TFTP.Root, coverage.File), Initramfs: filepath.Join(c.TFTP.Root, bootfiles.Initramfs), Store: keep, Signer: o.Signer, SSH: login, Interfaces: c.Interfaces,
		Policy: hosts.Policy{Most: c.Attempts.Most, Pause: time.Duration(c.Attempts.Pause), Lease: time.Duration(c.Attempts.Lease)},
		Waves:  lab.Waves{Canaries: *c.Waves.Canaries, AtOnce: c.Waves.AtOnce, StopAt: float64(*c.Waves.StopAt)},
		Accept: func(i spec.Inventory) error {
			settings := c.addresses(i.Site)
			return settings.Validate().Err()
		},
		Ended: func(r api.Result) {
			if page != nil {
				page.AttemptEnded(r)
			}
		},
		Read: func(err error) {
			if page != nil {
				page.Reloaded(err)
			}
		},
		Neighbour: neighbour, Logger: o.Log.With("part", "lab"),
	})
	if err != nil {
		return err
	}
	tree, err := newTree(o, l)
	if err != nil {
		return err
	}
	if page, err = newPage(o, l, tree); err != nil {
		return err
	}
	parts, err := open(o, l, keep, tree, page)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for name, run := range parts {
		group.Go(func() error {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-o.Reload:
				if _, err := l.Reload(ctx, "SIGHUP"); err != nil && ctx.Err() == nil {
					o.Log.Error("the site's files have mistakes; what was read before stays in force", "error", err)
				}
			}
		}
	})
	o.Log.Info("ready", "url", l.Inventory().Site.URL, "socket", c.Socket)
	return group.Wait()
}

// newTree is what PCs boot from.
func newTree(o Options, l *lab.Lab) (*files.Tree, error) {
	c := o.Config
	root, err := os.OpenRoot(c.TFTP.Root)
	if err != nil {
		return nil, fmt.Errorf("tftp.root: %w: name the folder that make image made (out/tftproot)", err)
	}
	return &files.Tree{Root: root, Asker: l, Log: o.Log.With("part", "boot"), Settings: func() files.Settings {
		site := l.Inventory().Site
		return files.Settings{
			URL: site.URL, Plain: site.Plain(), CommandLine: site.CommandLine, Template: l.Template, LocalBoot: l.LocalBoot,
			PXELinuxHTTP: c.DHCP.Files.BIOS == "lpxelinux.0",
		}
	}}, nil
}

// newPage is all that goes by HTTP.
func newPage(o Options, l *lab.Lab, tree *files.Tree) (*web.Server, error) {
	wads := filepath.Join(o.Config.State, resolve.WadsFolder)
	if err := os.MkdirAll(wads, 0o755); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	root, err := os.OpenRoot(wads)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	token, err := adminToken(filepath.Join(o.Config.State, "token"))
	if err != nil {
		return nil, err
	}
	return web.New(l, web.Options{
		Base: l.Base(), Title: l.Inventory().Site.Domain, Version: o.Version, Boot: tree.Handler(), Wads: files.Wads(root),
		Tokens: web.KnownTokens(map[string]string{"token": token}), Healthy: l.Healthy, Log: o.Log.With("part", "http"),
	}), nil
}

// open opens every socket, and returns what serves each part.
func open(o Options, l *lab.Lab, keep *store.Store, tree *files.Tree, page *web.Server) (map[string]func(context.Context) error, error) {
	c := o.Config
	parts := map[string]func(context.Context) error{"lab": l.Run}

	addresses := &dhcp.Server{
		Interfaces: c.Interfaces, Backend: backend{l}, Leases: leases{keep}, Log: o.Log.With("part", "dhcp"),
		Settings: func() dhcp.Settings { return c.addresses(l.Inventory().Site) },
	}
	if err := addresses.Listen(); err != nil {
		return nil, err
	}
	parts["dhcp"] = addresses.Run

	if !c.TFTP.Off {
		boot := &tftp.Server{Tree: tree, Interfaces: c.Interfaces, Log: o.Log.With("part", "tftp")}
		if err := boot.Listen(); err != nil {
			return nil, err
		}
		parts["tftp"] = boot.Run
	}

	if err := c.openHTTP(parts, l.Inventory().Site, page); err != nil {
		return nil, err
	}
	socket, err := openSocket(c.Socket)
	if err != nil {
		return nil, err
	}
	parts["socket"] = func(ctx context.Context) error { return page.Serve(ctx, socket, page.SocketHandler()) }
	return parts, nil
}

// openHTTP opens what is served by HTTP. Where the site's URL is HTTPS, nothing but boot
// files and wads, which everybody may have and which are checked, goes by plain HTTP.
func (c *Config) openHTTP(parts map[string]func(context.Context) error, site spec.Site, page *web.Server) error {
	open := func(address, key string, wrap func(net.Listener) net.Listener, h http.Handler) error {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("HTTP: %w: another web server may run there; name another address under http.%s, and in the site's file", err, key)
		}
		parts["http "+address] = func(ctx context.Context) error { return page.Serve(ctx, wrap(listener), h) }
		return nil
	}
	plain := func(l net.Listener) net.Listener { return l }
	secure := strings.HasPrefix(site.URL, "https://")
	listen := c.HTTP.Listen
	if len(listen) == 0 {
		listen = []string{defaultListen(site, site.URL)}
	}
	if !secure {
		if c.HTTP.Certificate != "" {
			return errors.New("http.certificate: site.url is not https, so that nobody would ask for it: write https:// there, or leave the certificate out")
		}
		for _, address := range listen {
			if err := open(address, "listen", plain, page.Handler()); err != nil {
				return err
			}
		}
		return nil
	}
	if c.HTTP.Certificate == "" {
		return errors.New("site.url is https: name the server's certificate and its key under http.certificate and http.key in lab.yaml")
	}
	pair, err := openPair(c.HTTP.Certificate, c.HTTP.Key)
	if err != nil {
		return err
	}
	if u, err := url.Parse(site.URL); err != nil {
		return err
	} else if err := pair.is(u.Hostname()); err != nil {
		return err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: pair.get}
	for _, address := range listen {
		if err := open(address, "listen", func(l net.Listener) net.Listener { return tls.NewListener(l, config) }, page.Handler()); err != nil {
			return err
		}
	}
	boot := c.HTTP.BootListen
	if len(boot) == 0 {
		boot = []string{defaultListen(site, site.Plain())}
	}
	for _, address := range boot {
		if err := open(address, "boot_listen", plain, page.BootHandler()); err != nil {
			return err
		}
	}
	return nil
}

// addresses are the settings of DHCP for a site.
func (c *Config) addresses(site spec.Site) dhcp.Settings {
	return dhcp.Settings{
		Mode: c.DHCP.Mode, Site: site, HTTP: site.Plain(), Pool: c.DHCP.Pool, Lease: time.Duration(c.DHCP.Lease),
		Files: c.DHCP.Files, AnswerUnknown: c.DHCP.AnswerUnknown,
	}
}

// defaultListen is where a URL of the site says that we are.
func defaultListen(site spec.Site, address string) string {
	port := "80"
	if u, err := url.Parse(address); err == nil && u.Port() != "" {
		port = u.Port()
	} else if err == nil && u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(site.Server.String(), port)
}

// openSocket makes the local socket, for its owner and group. One that a server
// left behind that was killed is replaced.
func openSocket(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another boot server answers there: stop it, or name another socket", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	return l, nil
}

// adminToken reads the token that changes need which come by the network, and
// makes it at the first start.
func adminToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(rand.Text() + "\n")
		err = renameio.WriteFile(path, text, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < 16 {
		return "", fmt.Errorf("%s holds no token: remove it to have one made", path)
	}
	return token, nil
}

// sshKey reads a private key without a passphrase; no file is no key.
func sshKey(file string) (ssh.Signer, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ssh_key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("ssh_key: %s: %w: name a private key without a passphrase", file, err)
	}
	return key, nil
}

// backend is the lab as DHCP sees it.
type backend struct{ *lab.Lab }

func (b backend) Host(mac spec.MAC) (dhcp.Host, bool) {
	h, ok := b.Card(mac)
	if !ok {
		return dhcp.Host{}, false
	}
	return dhcp.Host{Name: h.Name, IP: h.IP}, true
}

func (b backend) Reserved(ip netip.Addr) bool {
	for _, h := range b.Inventory().Hosts {
		if h.IP == ip {
			return true
		}
	}
	return false
}

func (b backend) Seen(s dhcp.Sighting) {
	seen := lab.Sighting{MAC: s.MAC, What: s.Client.String()}
	// What a card asks for before it has it may be anybody's.
	if s.Given || s.Message == "REQUEST" && s.IP.IsValid() {
		seen.Address = s.IP
	}
	b.Lab.Seen(seen)
}

// leases keeps DHCP's leases in the store.
type leases struct{ *store.Store }

const leasesBucket = "leases"

func (l leases) Leases() ([]dhcp.Lease, error) {
	var all []dhcp.Lease
	err := l.Load(leasesBucket, func(_ string, value []byte) error {
		var lease dhcp.Lease
		err := json.Unmarshal(value, &lease)
		all = append(all, lease)
		return err
	})
	return all, err
}

func (l leases) SaveLease(lease dhcp.Lease) error {
	text, err := json.Marshal(lease)
	if err != nil {
		return err
	}
	return l.Save(store.Entry{Bucket: leasesBucket, Key: lease.MAC.String(), Value: text})
}

func (l leases) DropLease(mac spec.MAC) error {
	return l.Save(store.Entry{Bucket: leasesBucket, Key: mac.String()})
}
