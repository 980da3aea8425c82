package resolve

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"reassure/templates"
)

// TestReadyTemplates renders every ready template of a host's file, for a lab
// that has everything and for one that has only what it must.
func TestReadyTemplates(t *testing.T) {
	want := map[string][2]string{
		"hosts": {
			"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n172.30.0.11\texp01.lab.example exp01\n172.30.0.12\texp02.lab.example exp02\n",
			"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n172.30.0.11\texp01\n172.30.0.12\texp02\n",
		},
		"resolv.conf":     {"search lab.example\nnameserver 172.30.0.5\nnameserver 9.9.9.9\n", ""},
		"fstab":           {fstab, fstab},
		"debian/hostname": {"exp01\n", "exp01\n"},
		"debian/lan.link": {"@\n[Match]\nMACAddress=00:09:3d:12:20:ed\nType=ether\n\n[Link]\nName=lan0\n", "="},
		"debian/lan.network": {
			"[Match]\nMACAddress=00:09:3d:12:20:ed\nType=ether\n\n[Network]\nAddress=172.30.0.11/24\nGateway=172.30.0.1\nDNS=172.30.0.5\nDNS=9.9.9.9\nDomains=lab.example\nNTP=ntp.lab.example\n",
			"[Match]\nMACAddress=00:09:3d:12:20:ed\nType=ether\n\n[Network]\nAddress=172.30.0.11/24\n",
		},
		"debian/interfaces": {
			"@\nauto lo\niface lo inet loopback\n\nauto lan0\niface lan0 inet static\n\taddress 172.30.0.11/24\n\tgateway 172.30.0.1\n\tdns-nameservers 172.30.0.5 9.9.9.9\n\tdns-search lab.example\n",
			"@\nauto lo\niface lo inet loopback\n\nauto lan0\niface lan0 inet static\n\taddress 172.30.0.11/24\n",
		},
		"gentoo/conf.d-net": {
			"@\nconfig_lan0=\"172.30.0.11 netmask 255.255.255.0 broadcast 172.30.0.255\"\nroutes_lan0=\"default via 172.30.0.1\"\ndns_servers_lan0=\"172.30.0.5 9.9.9.9\"\ndns_domain_lan0=\"lab.example\"\n",
			"@\nconfig_lan0=\"172.30.0.11 netmask 255.255.255.0 broadcast 172.30.0.255\"\n",
		},
		"gentoo/conf.d-hostname": {"hostname=\"exp01\"\n", "hostname=\"exp01\"\n"},
		"gentoo/net.rules":       {"@\nSUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"?*\", ATTR{address}==\"00:09:3d:12:20:ed\", ATTR{type}==\"1\", NAME=\"lan0\"\n", "="},
		"gentoo/vmware_answers.txt": {
			"yes\nyes\nBridged\n902\n/var/lib/vmware/Virtual Machines\n\n",
			"yes\nyes\nBridged\n902\n/var/lib/vmware/Virtual Machines\n\n",
		},
	}
	least := siteYAML
	for _, line := range []string{"  gateway: 172.30.0.1\n", "  dns: [172.30.0.5, 9.9.9.9]\n", "  ntp: [ntp.lab.example]\n", "  domain: lab.example\n"} {
		least = strings.Replace(least, line, "", 1)
	}
	for i, yaml := range []string{siteYAML, least} {
		s, err := Load(site(t, map[string]string{"site.yaml": yaml, "profiles/gentoo-reassure.yaml": withTemplates(t, want)}))
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Resolve(t.Context(), "exp01", &Wads{Dir: filepath.Join(s.Dir, WadsFolder)})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range m.Files {
			w := want[f.Template][i]
			if w == "=" {
				w = want[f.Template][0]
			}
			got := f.Content
			if strings.HasPrefix(w, "@\n") { // comments first
				for strings.HasPrefix(got, "#") {
					_, got, _ = strings.Cut(got, "\n")
				}
				w = w[2:]
			}
			if got != w {
				t.Errorf("%s:\n%s\nwant\n%s", f.Template, got, w)
			}
		}
	}
}

const fstab = "# file system\tmount point\ttype\toptions\tdump\tpass\n" +
	"UUID=@reassure:uuid:root@\t/\text4\tdefaults\t0\t1\n" +
	"UUID=@reassure:uuid:var@\t/var\txfs\tnoatime,nodev\t0\t0\n" +
	"UUID=@reassure:uuid:lib@\t/var/lib\text4\tdefaults\t0\t2\n" +
	"UUID=@reassure:uuid:swap@\tnone\tswap\tsw\t0\t0\n"

// withTemplates is a profile that has all ready templates of files, and a layout
// in an order that fstab cannot have.
func withTemplates(t *testing.T, known map[string][2]string) string {
	t.Helper()
	p := `table: gpt
partitions:
  - {name: swap, size: 1GiB, filesystem: swap}
  - {name: lib, size: 1GiB, filesystem: ext4, mount: /var/lib}
  - {name: var, size: 1GiB, filesystem: xfs, mount: /var, options: [noatime, nodev]}
  - {name: root, size: rest, filesystem: ext4, mount: /}
wads: [{file: wad.tar}]
templates:
`
	err := fs.WalkDir(templates.FS, ".", func(path string, e fs.DirEntry, err error) error {
		folder, _, _ := strings.Cut(path, "/")
		// Those that are not a host's files are tested where they are written.
		others := []string{"dhcp", "grub", "init", "ipxe", "profiles", "pxelinux", "systemd", "uki"}
		if err != nil || e.IsDir() || slices.Contains(others, folder) {
			return err
		}
		if _, ok := known[path]; !ok {
			t.Errorf("what %s must become is not said here", path)
		}
		p += "  - {path: /t/" + path + ", source: " + path + "}\n"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestShellReads has the shell read what Gentoo's scripts source.
func TestShellReads(t *testing.T) {
	s, err := Load(site(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.Template("gentoo/conf.d-net")
	if err != nil {
		t.Fatal(err)
	}
	// The lab's data is enough but for what is the host's own.
	text = strings.NewReplacer(`{{$card := var "card" "lan0"}}`, `{{$card := "lan0"}}`, "{{.IP}}", "172.30.0.11").Replace(text)
	rendered, err := s.Lab().Text("net", text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", rendered+`echo "$config_lan0/$routes_lan0/$dns_servers_lan0"`).CombinedOutput()
	if want := "172.30.0.11 netmask 255.255.255.0 broadcast 172.30.0.255/default via 172.30.0.1/172.30.0.5 9.9.9.9\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}
