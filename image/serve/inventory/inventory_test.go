package inventory

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/conf"
	"reassure/image/resolve"
	"reassure/image/serve/dhcp"
	"reassure/image/spec"
)

var update = flag.Bool("update", false, "write the golden files")

var network = netip.MustParsePrefix("172.30.0.0/24")

const lab = `site:
  url: http://172.30.0.5/reassure
  server: 172.30.0.5
  network: 172.30.0.0/24
`

// brief writes entries so that a table of tests can hold them.
func brief(entries []Entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%d: %s %v %v %s %v\n", e.Line, e.Name, e.MACs, e.IP, e.Profile, e.Groups)
	}
	return b.String()
}

func TestFiles(t *testing.T) {
	for _, c := range []struct {
		file string
		o    Options
		want string
	}{
		{"reassure-2009.conf", Options{Profile: "gentoo-reassure"}, `9: exp01 [00:09:3d:12:20:ed] 172.30.0.11 gentoo-reassure []
14: exp02 [00:09:3d:12:20:ee] 172.30.0.12 gentoo-reassure []
`},
		{"campus.conf", Options{Network: network, Wanted: func(n string) bool { return n != "printer" }}, `31: pc-a [00:09:3d:12:20:01] 172.30.0.21  [amd]
33: pcb [00:09:3d:12:20:02] 172.30.0.22  [amd old]
43: pc-c [00:09:3d:12:20:03 00:09:3d:12:20:13] 172.30.0.23  []
`},
	} {
		data, err := os.ReadFile(filepath.Join("testdata", c.file))
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"as it is": string(data), "from Windows": "\uFEFF" + strings.ReplaceAll(string(data), "\n", "\r\n")} {
			entries, err := Parse(c.file, []byte(text), c.o)
			if err != nil {
				t.Errorf("%s %s: %v", c.file, name, err)
			}
			if d := cmp.Diff(c.want, brief(entries)); d != "" {
				t.Errorf("%s %s: %s", c.file, name, d)
			}
		}
	}
}

// TestDhcpdReads has dhcpd itself say that the files are what it reads.
func TestDhcpdReads(t *testing.T) {
	for _, name := range []string{"reassure-2009.conf", "campus.conf"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		// printer.lab.example is nobody's: dhcpd would ask the network for it.
		text := strings.Replace(string(data), "fixed-address printer.lab.example", "fixed-address 10.0.0.99", 1)
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "/usr/sbin/dhcpd", "-t", "-cf", file).CombinedOutput()
		if errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%v: install the Debian package isc-dhcp-server", err)
		} else if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestTables(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"commas": {"name,mac,ip\nexp01,00:09:3D:12:20:ED,172.30.0.11\n", "2: exp01 [00:09:3d:12:20:ed] 172.30.0.11 debian []\n"},
		"semicolons, all columns, any order, a spreadsheet's leftovers": {
			"\uFEFFIP;Groups;Name;MAC;Profile;;\r\n172.30.0.11;lab1 amd;exp01;0009.3d12.20ed;gentoo;;\r\n;;;;;;\r\n",
			"2: exp01 [00:09:3d:12:20:ed] 172.30.0.11 gentoo [lab1 amd]\n"},
		"comments, quotes, cards": {
			"# the lab\n\nname, mac, ip, groups\n# old\n\"exp01\", \"00-09-3d-12-20-ed, 00093D1220EE\", 172.30.0.11, \"a,b\"\n",
			"5: exp01 [00:09:3d:12:20:ed 00:09:3d:12:20:ee] 172.30.0.11 debian [a b]\n"},
		"tabs": {"name\tmac\tip\nexp01\t00:09:3d:12:20:ed\t172.30.0.11", "2: exp01 [00:09:3d:12:20:ed] 172.30.0.11 debian []\n"},
		"two lines, one host": {
			"name,mac,ip,groups\nexp01,00:09:3d:12:20:ed,172.30.0.11,a\nexp02,00:09:3d:12:20:ee,172.30.0.12\n",
			"2: exp01 [00:09:3d:12:20:ed] 172.30.0.11 debian [a]\n3: exp02 [00:09:3d:12:20:ee] 172.30.0.12 debian []\n"},
	} {
		entries, err := Parse("lab.CSV", []byte(c.text), Options{Profile: "debian"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, brief(entries)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestMistakes(t *testing.T) {
	good := "host a { hardware ethernet 0:0:0:0:0:1; fixed-address 172.30.0.1; }\n"
	for _, c := range []struct {
		name, file, text string
		want             []string
	}{
		{"include", "d.conf", good + "include \"/etc/dhcp/more.conf\";\n", []string{`d.conf:2: include "/etc/dhcp/more.conf" is not followed`}},
		{"no hosts", "d.conf", "option x 1;\n", []string{"d.conf: has no hosts in it"}},
		{"empty", "d.conf", "", []string{"d.conf: has no hosts in it"}},
		{"open block", "d.conf", "group {\n" + good, []string{`d.conf:1: the { after "group" is never closed`}},
		{"closed twice", "d.conf", good + "}\n", []string{"d.conf:2: this } closes nothing"}},
		{"open text", "d.conf", "option x \"abc\n;\n", []string{`d.conf:1: a text begins with "`}},
		{"semicolon", "d.conf", "host a {\n hardware ethernet 0:0:0:0:0:1\n fixed-address 172.30.0.1;\n}\n", []string{"d.conf:2: host a: hardware: is a semicolon missing after it?"}},
		{"last semicolon", "d.conf", "host a {\n hardware ethernet 0:0:0:0:0:1;\n fixed-address 172.30.0.1\n}\n", []string{"d.conf:3: fixed-address: end it with a semicolon"}},
		{"end", "d.conf", good + "option x 1", []string{"d.conf:2: option: end it with a semicolon"}},
		{"all at once", "d.conf", "host a { hardware ethernet zz; fixed-address 172.30.0.1; }\nhost b { hardware ethernet 0:0:0:0:0:1;\n fixed-address b.lab; }\nhost c { hardware token-ring 0:0:0:0:0:1; fixed-address 172.30.0.3; }\nhost d { }\n", []string{
			`d.conf:1: host a: "zz" is not a MAC address`, `d.conf:3: host b: fixed-address: "b.lab" is not an IP address`, "d.conf:4: host c: hardware token-ring 0:0:0:0:0:1: PCs boot over Ethernet only",
			"d.conf:5: host d: has no hardware ethernet", "d.conf:5: host d: has no fixed-address"}},
		{"addresses", "d.conf", "host a { hardware ethernet 0:0:0:0:0:1; fixed-address 172.30.0.1,172.30.0.2; }\n", []string{"host a: fixed-address: has 2 addresses, 172.30.0.1, 172.30.0.2: leave one"}},
		{"commas", "d.conf", "host a { hardware ethernet 0:0:0:0:0:1; fixed-address 172.30.0.1 172.30.0.2; }\n", []string{"with commas between them"}},
		{"no label", "d.conf", "host { hardware ethernet 0:0:0:0:0:1; fixed-address 172.30.0.1; }\n", []string{"d.conf:1: host: write one name"}},

		{"column", "t.csv", "name,mak,ip\n", []string{`t.csv:1: the first line names the columns, and "mak" is none of name, mac, ip, profile, groups`}},
		{"no header", "t.csv", "exp01,00:09:3d:12:20:ed,172.30.0.11\n", []string{`t.csv:1: the first line names the columns, and "exp01"`}},
		{"column missing", "t.csv", "name,ip\nx,y\n", []string{"t.csv:1: there is no column mac"}},
		{"column twice", "t.csv", "name,mac,ip,ip\n", []string{"t.csv:1: the column ip is there twice"}},
		{"cells", "t.csv", "name,mac,ip\n,00:09:3d:12:20:ed,172.30.0.11\nexp01,,172.30.0.300\n", []string{"t.csv:2: has no name", "t.csv:3: exp01 has no MAC address", `t.csv:3: exp01: ip: "172.30.0.300"`}},
		{"too many", "t.csv", "name,mac,ip\nexp01,00:09:3d:12:20:ed,172.30.0.11,debian\n", []string{"t.csv:2: has 4 fields, and the first line has 3"}},
		{"quote", "t.csv", "name,mac,ip\nexp\"01,00:09:3d:12:20:ed,172.30.0.11\n", []string{"t.csv:2: is not a line of a table"}},
		{"only a header", "t.csv", "name,mac,ip\n", []string{"t.csv: has no hosts in it"}},
		{"huge", "t.csv", strings.Repeat("x", maxBytes+1), []string{"t.csv: has 8388609 bytes"}},
	} {
		_, err := Parse(c.file, []byte(c.text), Options{})
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		got := strings.Split(err.Error(), "\n")
		if len(got) != len(c.want) {
			t.Errorf("%s: %d mistakes, want %d:\n%v", c.name, len(got), len(c.want), err)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.want[i]) {
				t.Errorf("%s: %q has no %q", c.name, got[i], c.want[i])
			}
		}
	}
}

func entry(name, mac, ip string) Entry {
	m, err := address(mac)
	if err != nil {
		panic(err)
	}
	return Entry{Host: spec.Host{Name: name, MACs: []spec.MAC{m}, IP: netip.MustParseAddr(ip), Profile: "debian"}, File: "in.csv", Line: 7}
}

func TestCheck(t *testing.T) {
	var inv spec.Inventory
	if err := conf.Decode("site.yaml", []byte(lab+"hosts:\n  - {name: exp01, mac: [\"00:00:00:00:00:01\"], ip: 172.30.0.11, profile: debian}\n"), &inv); err != nil {
		t.Fatal(err)
	}
	noProfile := entry("exp09", "00:00:00:00:00:09", "172.30.0.19")
	noProfile.Profile = ""
	for name, c := range map[string]struct {
		entries []Entry
		want    []string
	}{
		"good":          {[]Entry{entry("exp02", "00:00:00:00:00:02", "172.30.0.12")}, nil},
		"name":          {[]Entry{entry("EXP01", "00:00:00:00:00:02", "172.30.0.12")}, []string{`in.csv:7: EXP01.name: "exp01" is taken already, by the host exp01`}},
		"card":          {[]Entry{entry("exp02", "00:00:00:00:00:01", "172.30.0.12")}, []string{`in.csv:7: exp02.mac[0]: "00:00:00:00:00:01" is taken already, by the host exp01`}},
		"address":       {[]Entry{entry("exp02", "00:00:00:00:00:02", "172.30.0.11")}, []string{`in.csv:7: exp02.ip: "172.30.0.11" is taken already`}},
		"network":       {[]Entry{entry("exp02", "00:00:00:00:00:02", "10.0.0.11")}, []string{"in.csv:7: exp02.ip: 10.0.0.11 is not in the network"}},
		"no name":       {[]Entry{entry("exp_02", "00:00:00:00:00:02", "172.30.0.12")}, []string{`in.csv:7: exp_02.name: "exp_02": use letters`}},
		"no profile":    {[]Entry{noProfile}, []string{"in.csv:7: exp09.profile: is missing"}},
		"one by other":  {[]Entry{entry("b", "00:00:00:00:00:02", "172.30.0.12"), entry("b", "00:00:00:00:00:03", "172.30.0.13")}, []string{`in.csv:7: b.name: "b" is taken already, by the host b in line 7`}},
		"not its cards": {[]Entry{entry("b", "01:00:00:00:00:02", "172.30.0.12")}, []string{"is not the address of one card"}},
	} {
		err := Check(&inv, c.entries)
		var got []string
		if err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.want[i]) {
				t.Errorf("%s: %q has no %q", name, got[i], c.want[i])
			}
		}
	}
}

// TestAdd reads each file of testdata/add, and compares what comes of it.
func TestAdd(t *testing.T) {
	files, err := filepath.Glob("testdata/add/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatal(files, err)
	}
	two := entry("exp99", "00:00:00:00:00:99", "172.30.0.99")
	two.MACs = append(two.MACs, spec.MAC{0, 0, 0, 0, 0, 0xaa})
	two.Groups = []string{"lab2", "7"}
	added := []Entry{entry("null", "00:00:00:00:00:98", "172.30.0.98"), two}
	for _, file := range files {
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		after, err := Add("site.yaml", before, added)
		if err != nil {
			after = []byte(err.Error())
		}
		golden := strings.TrimSuffix(file, ".yaml") + ".golden"
		if *update {
			if err := os.WriteFile(golden, after, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(after)); d != "" {
			t.Errorf("%s: %s", file, d)
		}
		if strings.Contains(file, "crlf") && strings.Count(string(after), "\n") != strings.Count(string(after), "\r\n") {
			t.Errorf("%s: its line ends are mixed", file)
		}
	}
}

func TestAddTo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "real.yaml")
	if err := os.WriteFile(file, []byte(lab), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.yaml", filepath.Join(dir, "site.yaml")); err != nil {
		t.Fatal(err)
	}
	bad := entry("exp02", "00:00:00:00:00:02", "172.30.0.12")
	bad.Profile = "nowhere"
	err := AddTo(dir, []Entry{bad})
	if err == nil || !strings.Contains(err.Error(), "nothing was written") || !strings.Contains(err.Error(), filepath.Join(dir, "site.yaml")+`:10: hosts[0].profile: there is no profile "nowhere"`) {
		t.Errorf("a profile that is not there: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != lab {
		t.Errorf("after a mistake the file is %q, %v", text, err)
	}
	if err := AddTo(dir, []Entry{entry("exp02", "00:00:00:00:00:02", "172.30.0.12")}); err != nil {
		t.Fatal(err)
	}
	site, err := resolve.Load(dir)
	if err != nil || len(site.Inventory.Hosts) != 1 {
		t.Errorf("%v, %v", site, err)
	}
	if link, err := os.Readlink(filepath.Join(dir, "site.yaml")); err != nil || link != "real.yaml" {
		t.Errorf("the link is %q, %v", link, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if rest, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(rest) != 2 {
		t.Errorf("the folder has %v, %v", rest, err)
	}
	if err := os.WriteFile(file, []byte("site:\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := AddTo(dir, nil); err == nil || !strings.Contains(err.Error(), "site.url") {
		t.Errorf("a site with mistakes: %v", err)
	}
}

// TestRoundTrip imports what dhcp-config writes for dhcpd.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	text := lab + `hosts:
  - {name: exp01, mac: ["00:09:3D:12:20:ED", "00:09:3D:12:20:EF"], ip: 172.30.0.11, profile: debian}
  - {name: exp02, mac: ["00:09:3D:12:20:EE"], ip: 172.30.0.12, profile: debian}
`
	if err := os.WriteFile(filepath.Join(dir, "site.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	site, err := resolve.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	config, err := dhcp.Config(site, "dhcpd", dhcp.ConfigOptions{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := Parse("dhcpd.conf", []byte(config), Options{Profile: "debian"})
	if err != nil {
		t.Fatal(err)
	}
	var got []spec.Host
	for _, e := range entries {
		got = append(got, e.Host)
	}
	if d := cmp.Diff(site.Inventory.Hosts, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// FuzzImport holds that nothing crashes, and that what is read, found good and
// written as YAML is read again as the same.
func FuzzImport(f *testing.F) {
	for _, name := range []string{"reassure-2009.conf", "campus.conf"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(false, string(data))
	}
	f.Add(true, "name;mac;ip;profile;groups\nexp01;00:09:3d:12:20:ed;172.30.0.11;debian;a b\n")
	f.Fuzz(func(t *testing.T, csv bool, text string) {
		file := "dhcpd.conf"
		if csv {
			file = "lab.csv"
		}
		entries, err := Parse(file, []byte(text), Options{Profile: "debian", Network: network, Wanted: func(n string) bool { return n != "printer" }})
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, file+":") {
					t.Errorf("the mistake %q has no place", line)
				}
			}
			return
		}
		var inv spec.Inventory
		if err := conf.Decode("site.yaml", []byte(lab), &inv); err != nil {
			t.Fatal(err)
		}
		if Check(&inv, entries) != nil {
			return
		}
		if _, err := Add("site.yaml", []byte(lab), entries); err != nil {
			t.Errorf("%+v cannot be added: %v", entries, err)
		}
	})
}
