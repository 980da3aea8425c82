package dhcp

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/resolve"
)

const (
	lab = `site:
  url: http://172.30.0.5/reassure
  server: 172.30.0.5
  network: 172.30.0.0/24
`
	more = `  gateway: 172.30.0.1
  dns: [172.30.0.5, 9.9.9.9]
  ntp: [172.30.0.5]
  domain: lab.example
`
	pcs = `hosts:
  - {name: exp01, mac: ["00:09:3D:12:20:ED", "00:09:3D:12:20:EF"], ip: 172.30.0.11, profile: debian}
  - {name: exp02, mac: ["00:09:3D:12:20:EE"], ip: 172.30.0.12, profile: debian}
`
)

func load(t *testing.T, text string) *resolve.Site {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "site.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := resolve.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDaemonsAccept has the daemons judge what is written for them.
func TestDaemonsAccept(t *testing.T) {
	for _, c := range []struct {
		kind, pkg string
		check     []string // FILE is the configuration
		spoil     [2]string
	}{
		{"dhcpd", "isc-dhcp-server", []string{"/usr/sbin/dhcpd", "-t", "-cf", "FILE"}, [2]string{"allow booting;", "allow booting"}},
		{"kea", "kea-dhcp4-server", []string{"/usr/sbin/kea-dhcp4", "-t", "FILE"}, [2]string{"172.30.0.12", "172.31.0.12x"}},
		{"dnsmasq", "dnsmasq-base", []string{"/usr/sbin/dnsmasq", "--test", "-C", "FILE"}, [2]string{"dhcp-boot=", "dhcp-bot="}},
	} {
		for name, text := range map[string]string{"whole": lab + more + pcs, "least": lab + pcs, "no hosts": lab} {
			for card, efi := range map[string]string{"": "", "lo": "ipxe/snponly.efi"} {
				t.Run(c.kind+" "+name+" "+card, func(t *testing.T) {
					got, err := Config(load(t, text), c.kind, ConfigOptions{Card: card, EFI: efi})
					if err != nil {
						t.Fatal(err)
					}
					judge := func(text string) error {
						file := filepath.Join(t.TempDir(), "conf")
						if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
							t.Fatal(err)
						}
						args := strings.Fields(strings.ReplaceAll(strings.Join(c.check, " "), "FILE", file))
						out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
						if errors.Is(err, os.ErrNotExist) {
							t.Fatalf("%v: install the Debian package %s", err, c.pkg)
						} else if err != nil {
							return errors.New(err.Error() + "\n" + string(out))
						}
						return nil
					}
					if err := judge(got); err != nil {
						t.Errorf("%s refuses it: %v\n%s", c.kind, err, got)
					}
					if strings.Contains(got, c.spoil[0]) && judge(strings.Replace(got, c.spoil[0], c.spoil[1], 1)) == nil {
						t.Errorf("%s takes anything", c.kind)
					}
					if strings.Contains(text, "exp02") {
						for _, want := range []string{"00:09:3d:12:20:ed", "00:09:3d:12:20:ef", "00:09:3d:12:20:ee", "172.30.0.12", "exp02", "172.30.0.5", "pxelinux.0", cmp.Or(efi, "shimx64.efi"), "ipxe/boot.ipxe"} {
							if !strings.Contains(got, want) {
								t.Errorf("%s is not in it:\n%s", want, got)
							}
						}
					}
				})
			}
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	v6 := strings.NewReplacer("172.30.0.0/24", "fd00::/64", "172.30.0.5\n", "fd00::5\n").Replace(lab)
	for name, c := range map[string]struct{ site, kind, card, efi, want string }{
		"unknown server": {lab, "udhcpd", "", "", "dhcpd, kea, dnsmasq"},
		"card":           {lab, "kea", `eth0", "x`, "", "not the name of a network card"},
		"IPv6":           {v6, "kea", "", "", "must be IPv4"},
		"loader":         {lab, "dhcpd", "", `x"; y`, "not the name of a file in the TFTP root"},
		"absolute path":  {lab, "dhcpd", "", "/srv/tftp/x.efi", "not the name of a file in the TFTP root"},
	} {
		if _, err := Config(load(t, c.site), c.kind, ConfigOptions{c.card, c.efi}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestSiteTemplateWins(t *testing.T) {
	s := load(t, lab+pcs)
	path := filepath.Join(s.Dir, "templates/dhcp/dnsmasq")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("{{range .Cards}}{{.ID}} {{end}}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := Config(s, "dnsmasq", ConfigOptions{}); err != nil || got != "exp01 exp01_2 exp02 " {
		t.Errorf("%q, %v", got, err)
	}
}
