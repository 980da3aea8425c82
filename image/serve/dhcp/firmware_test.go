package dhcp

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reassure/image/spec"
)

// fetched gathers what PCs ask for by TFTP and HTTP, at the boot server's address.
type fetched struct {
	mu    sync.Mutex
	names []string
}

func (f *fetched) add(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names = append(f.names, name)
}

func (f *fetched) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.names, name)
}

func (n *namespace) files() *fetched {
	n.T.Helper()
	f := &fetched{}
	n.Do(func() error {
		tftp, err := net.ListenPacket("udp4", "10.99.0.1:69")
		if err != nil {
			return err
		}
		n.T.Cleanup(func() { _ = tftp.Close() })
		go func() {
			b := make([]byte, 1500)
			for {
				size, from, err := tftp.ReadFrom(b)
				if err != nil {
					return
				}
				if name, _, ok := bytes.Cut(b[2:size], []byte{0}); ok && b[1] == 1 {
					f.add("tftp " + string(name))
					_, _ = tftp.WriteTo([]byte("\x00\x05\x00\x01not here\x00"), from)
				}
			}
		}()
		web, err := net.Listen("tcp4", "10.99.0.1:80")
		if err != nil {
			return err
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.add("http " + r.URL.Path)
			http.NotFound(w, r)
		})}
		go func() { _ = server.Serve(web) }()
		n.T.Cleanup(func() { _ = server.Close() })
		return nil
	})
	return f
}

// efi is Debian's firmware (package ovmf); efiHTTP is the same, and PXE is off in
// its setup.
var (
	efi = []string{
		"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,format=raw,snapshot=on,file=/usr/share/OVMF/OVMF_VARS_4M.fd",
	}
	efiHTTP = append(slices.Clone(efi),
		"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
)

// TestFirmwareBoots switches PCs on, and waits for what their firmware asks the
// boot server for.
func TestFirmwareBoots(t *testing.T) {
	if _, err := os.Stat("/usr/share/OVMF/OVMF_CODE_4M.fd"); err != nil {
		t.Fatal("the firmware is missing: apt-get install ovmf")
	}
	for _, c := range []struct {
		name  string
		mode  Mode
		nic   string
		args  []string
		files Files
		want  string
	}{
		{"iPXE, server", ModeServer, "virtio-net-pci", nil, Files{}, "http /reassure/boot/ipxe/01-52-54-00-12-34-56.ipxe"},
		{"iPXE, proxy", ModeProxy, "e1000", nil, Files{}, "http /reassure/boot/ipxe/01-52-54-00-12-34-56.ipxe"},
		{"UEFI, server", ModeServer, "virtio-net-pci,romfile=", efi, Files{EFI: "snponly.efi"}, "tftp snponly.efi"},
		{"UEFI, proxy", ModeProxy, "virtio-net-pci,romfile=", efi, Files{}, "tftp shimx64.efi"},
		{"UEFI by HTTP, server", ModeServer, "virtio-net-pci,romfile=", efiHTTP, Files{}, "http /reassure/boot/shimx64.efi"},
		{"UEFI by HTTP, proxy", ModeProxy, "virtio-net-pci,romfile=", efiHTTP, Files{}, "http /reassure/boot/shimx64.efi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := newNamespace(t)
			server.bridge("br0", "10.99.0.1/24")
			if c.mode.proxies() {
				foreign := newNamespace(t)
				server.cable("br0", foreign, "eth0", spec.MAC{2, 0, 0, 0, 2, 2}, "10.99.0.2/24")
				dir := t.TempDir()
				foreign.Start("dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--log-dhcp", "--log-facility=-", "--user=root", "--no-ping",
					"--dhcp-leasefile="+filepath.Join(dir, "leases"), "--pid-file="+filepath.Join(dir, "pid"), "--dhcp-range=10.99.0.50,10.99.0.99,1h")
			}
			settings := labSettings(c.mode)
			settings.Files = c.files
			files := server.files()
			backend := labHosts()
			server.serve(backend, settings, "br0")
			args := []string{
				"qemu-system-x86_64", "-no-user-config", "-nodefaults", "-machine", "pc,usb=off", "-accel", "tcg", "-m", "256", "-display", "none", "-vga", "none",
				"-serial", "stdio", "-device", "virtio-rng-pci", "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no,vnet_hdr=off",
				"-device", c.nic + ",netdev=n,bootindex=0,mac=" + knownMAC.String(),
			}
			if r := os.Getenv("RECORD"); r != "" {
				args = append(args, "-object", "filter-dump,id=d,netdev=n,file="+filepath.Join(r, strings.NewReplacer(" ", "-", ",", "").Replace(c.name)+".pcap"))
			}
			begin := time.Now()
			server.Start(append(args, c.args...)...)
			until(t, "the tap", 20*time.Second, func() bool {
				_, err := server.Run("ip", "link", "show", "tap0")
				return err == nil
			})
			server.Do(func() error { return server.join("br0", "tap0") })
			until(t, c.want, 150*time.Second, func() bool { return files.has(c.want) })
			t.Logf("%v: %v", time.Since(begin), files.names)
		})
	}
}
