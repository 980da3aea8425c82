package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

const good = `site:
  url: http://172.30.0.5/reassure
  server: 172.30.0.5
  network: 172.30.0.0/24
  dns: [172.30.0.5]
  vars:
    # none yet
hosts:
  - name: exp01
    mac: ["00:09:3D:12:20:ED"]
    ip: 172.30.0.11
    profile: &p gentoo-reassure
    vars: {room: 0815, quiet: no}
    disk:
      min_size: 10GiB
      rotational: true
  - name: exp02
    mac: [00-09-3d-12-20-ee]
    ip: 172.30.0.12
    profile: *p
`

func TestDecode(t *testing.T) {
	var got spec.Inventory
	if err := Decode("site.yaml", []byte(good), &got); err != nil {
		t.Fatal(err)
	}
	yes := true
	want := spec.Inventory{
		Site: spec.Site{
			URL:     "http://172.30.0.5/reassure",
			Server:  netip.MustParseAddr("172.30.0.5"),
			Network: netip.MustParsePrefix("172.30.0.0/24"),
			DNS:     []netip.Addr{netip.MustParseAddr("172.30.0.5")},
		},
		Hosts: []spec.Host{
			{
				Name: "exp01", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}}, IP: netip.MustParseAddr("172.30.0.11"),
				Profile: "gentoo-reassure", Vars: map[string]string{"room": "0815", "quiet": "no"},
				Disk: &spec.DiskRule{MinSize: 10 * spec.GiB, Rotational: &yes},
			},
			{Name: "exp02", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xee}}, IP: netip.MustParseAddr("172.30.0.12"), Profile: "gentoo-reassure"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeProfile(t *testing.T) {
	const text = `table: gpt
partitions:
- {name: root, size: rest, filesystem: ext4, mount: /}
- {name: swap, size: 25%, filesystem: swap}
wads:
- file: a.tar
templates:
- {path: /etc/hosts, source: hosts, mode: 0640, uid: 5, volatile: true}
steps:
- name: known hosts
  known_hosts: {}
- name: boot
  timeout: 90s
  boot_loader: {kind: grub, serial: 0}
on_failure: {retries: 0, then: hold}
`
	var p spec.Profile
	if err := Decode("p.yaml", []byte(text), &p); err != nil {
		t.Fatal(err)
	}
	if p.Templates[0].Mode != 0o640 || p.Templates[0].UID != 5 || !p.Templates[0].Volatile {
		t.Errorf("template = %+v", p.Templates[0])
	}
	if p.Partitions[1].Size.Percent != 25 || !p.Partitions[0].Size.Rest {
		t.Errorf("partitions = %+v", p.Partitions)
	}
	if p.Steps[0].KnownHosts == nil || *p.Steps[1].BootLoader.Serial != 0 || time.Duration(p.Steps[1].Timeout) != 90*time.Second {
		t.Errorf("steps = %+v", p.Steps)
	}
	if *p.OnFailure.Retries != 0 {
		t.Errorf("on_failure = %+v", p.OnFailure)
	}
}

// TestMistakes has the mistakes that people make, each with the place that it is told at.
func TestMistakes(t *testing.T) {
	profile := func(lines string) string {
		return "wads: [{file: a.tar}]\ntable: mbr\npartitions: [{name: root, size: rest, filesystem: ext4, mount: /}]\n" + lines
	}
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the good file", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, c := range []struct {
		name, text string
		want       []string // the start of each message after the file's name
	}{
		{"empty", "", []string{": is empty"}},
		{"only comments", "# nothing\n\n", []string{": is empty"}},
		{"only a marker", "---\n", []string{": is empty"}},
		{"a list", "- a\n", []string{":1: is a list where a mapping belongs"}},
		{"a word", "hello\n", []string{`:1: "hello" is one value where a mapping belongs`}},
		{"HTML", "<html>\n<body>\n", []string{`:1: "<html> <body>" is one value`}},
		{"two documents", good + "---\nsite: {}\n", []string{":21: a second document begins here"}},
		{"not UTF-8", edit("# none yet", "# z\xfcrich"), []string{":7: is not UTF-8 text"}},
		{"NUL", edit("# none yet", "# \x00"), []string{":7: is not YAML: control characters"}},
		{"tab", edit("  server:", "\tserver:"), []string{":3: begins with a tab"}},
		{"tab under a key", "site:\n\turl: x\n", []string{":2: begins with a tab"}},
		{"key further left", edit("    ip: 172.30.0.11", "   ip: 172.30.0.11"), []string{":9: is not YAML: did not find expected '-' indicator: line up"}},
		{"key further right", edit("    ip: 172.30.0.11", "     ip: 172.30.0.11"), []string{":9: is not YAML: did not find expected key: line this"}},
		{"colon in a value", edit("exp01", "exp: 01"), []string{":9: is not YAML: mapping values are not allowed"}},
		{"first line", "site: a: b\n", []string{":1: is not YAML: mapping values"}},
		{"open quote", edit(`"00:09:3D:12:20:ED"`, `"00:09:3D:12:20:ED`), []string{":10: is not YAML: found unexpected end of stream: close the quote"}},
		{"open bracket", edit("[172.30.0.5]", "[172.30.0.5"), []string{":5: is not YAML: did not find expected ',' or ']': close the bracket"}},
		{"no colon", "site\n" + good, []string{":2: is not YAML: mapping values"}},
		{"unknown anchor", edit("*p", "*q"), []string{":20: is not YAML: unknown anchor 'q' referenced: define it"}},
		{"anchor in itself", "site: &a\n  url: http://a/\n  server: 1.2.3.4\n  network: 1.2.3.0/24\n  vars: *a\n", []string{":5: site.vars: *a stands for something that holds it itself"}},
		{"merge key", edit("disk:", "<<: {}\n    disk:"), []string{":14: hosts[0]: merge keys"}},
		{"own tag", edit("exp01", "!host exp01"), []string{":9: hosts[0].name: the tag !host is not understood"}},
		{"binary", edit("exp01", "!!binary exp01"), []string{":9: hosts[0].name: the tag !!binary is not understood"}},
		{"list as a key", edit("    disk:", "    ? [a]\n    : b\n    disk:"), []string{":14: hosts[0]: a key must be one word"}},

		{"misspelt", edit("profile: *p", "profil: *p"), []string{":20: hosts[1].profil: there is no such key here: did you mean profile?"}},
		{"swapped letters", edit("name: exp01", "nmae: exp01"), []string{":9: hosts[0].nmae: there is no such key here: did you mean name?"}},
		{"plural", edit("mac: [00-", "macs: [00-"), []string{":18: hosts[1].macs: there is no such key here: did you mean mac?"}},
		{"upper case", edit("site:", "Site:"), []string{":1: Site: there is no such key here: did you mean site?"}},
		{"nothing alike", edit("# none yet", "# none yet\n  colour: red"), []string{":8: site.colour: there is no such key here: the keys are boot_url, command_line, dns, domain, events"}},
		{"twice", edit("ip: 172.30.0.12", "ip: 172.30.0.12\n    name: exp03"), []string{":20: hosts[1].name: the key is there already, on line 17"}},
		{"twice in vars", edit("{room: 0815", "{room: 1, room: 0815"), []string{":13: hosts[0].vars.room: the key is there already, on line 13"}},

		{"MAC", edit("00-09-3d-12-20-ee", "00-09-3d-12-20"), []string{`:18: hosts[1].mac[0]: "00-09-3d-12-20" is not a MAC address`}},
		{"MAC not in a list", edit("[00-09-3d-12-20-ee]", "00-09-3d-12-20-ee"), []string{":18: hosts[1].mac: is one value where a list belongs: write [00-09-3d-12-20-ee]"}},
		{"IP", edit("172.30.0.12", "172.30.0.256"), []string{`:19: hosts[1].ip: "172.30.0.256" is not an IP address: write one, such as`}},
		{"no prefix", edit("172.30.0.0/24", "172.30.0.0"), []string{`:4: site.network: "172.30.0.0" is not a network: write its address and prefix`}},
		{"size", edit("10GiB", "10G"), []string{`:15: hosts[0].disk.min_size: "10G" is not a size`}},
		{"yes", edit("rotational: true", "rotational: yes"), []string{`:16: hosts[0].disk.rotational: "yes": write true or false`}},
		{"null pointer", edit("rotational: true", "rotational:"), []string{":16: hosts[0].disk.rotational: has no value: remove the line"}},
		{"null scalar", edit("profile: *p", "profile:"), []string{":20: hosts[1].profile: has no value: write it"}},
		{"list for a value", edit("name: exp02", "name: [exp02]"), []string{":17: hosts[1].name: is a list where one value belongs"}},
		{"braces of a template", edit("exp02", "{{name}}"), []string{":17: hosts[1].name: is a mapping (key: value) where one value belongs: put quotes around"}},
		{"mapping for a list", "hosts:\n  exp01:\n    ip: 1.2.3.4\n", []string{
			":1: site.url: is missing", ":1: site.network: is missing", ":1: site.server: is missing",
			":2: hosts: is a mapping where a list belongs: begin each item with a dash",
		}},

		{"outside the network", edit("ip: 172.30.0.12", "ip: 172.31.0.12"), []string{":19: hosts[1].ip: 172.31.0.12 is not in the network"}},
		{"same name", edit("exp02", "EXP01"), []string{`:17: hosts[1].name: "exp01" is taken already, by item 1`}},
		{"field missing", edit("    ip: 172.30.0.12\n", ""), []string{":17: hosts[1].ip: is missing"}},
		{"several", edit("172.30.0.12\n    profile: *p", "172.30.0.1x\n    profil: *p\n    x: y"), []string{
			":19: hosts[1].ip:", ":20: hosts[1].profil:", ":21: hosts[1].x:",
		}},

		{"profile: whole number", profile("templates: [{path: /a, source: a, uid: root}]\n"), []string{`:4: templates[0].uid: "root" is not a whole number`}},
		{"profile: mode", profile("templates:\n- path: /a\n  source: a\n  mode: rw\n"), []string{`:7: templates[0].mode: "rw" is not a file mode`}},
		{"profile: retries", profile("on_failure:\n  retries: many\n"), []string{`:5: on_failure.retries: "many" is not a whole number`}},
		{"profile: duration", profile("on_failure:\n  pause: 10\n"), []string{`:5: on_failure.pause: "10" is not a duration`}},
		{"profile: unknown kind of step", profile("steps:\n- name: x\n  symlnk: {path: /a, target: b}\n"), []string{
			":5: steps[0]: needs exactly one kind", ":6: steps[0].symlnk: there is no such key here: did you mean symlink?",
		}},
		{"profile: no kind", profile("steps:\n- name: x\n  known_hosts:\n"), []string{
			":5: steps[0]: needs exactly one kind", ":6: steps[0].known_hosts: has no value: remove the line, or write {}",
		}},
		{"profile: rule of another field", profile("steps:\n- name: x\n  run: {command: []}\n"), []string{":6: steps[0].run.command: is missing"}},
		{"profile: share", strings.Replace(profile(""), "rest", "120%", 1), []string{`:3: partitions[0].size: "120%" is not a share`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var into any = new(spec.Inventory)
			if strings.HasPrefix(c.name, "profile: ") {
				into = new(spec.Profile)
			}
			err := Decode("f.yaml", []byte(c.text), into)
			var all Errors
			if !errors.As(err, &all) {
				t.Fatalf("%T: %v", err, err)
			}
			var got []string
			for i, e := range all {
				text, _ := strings.CutPrefix(e.Error(), "f.yaml")
				if i < len(c.want) && strings.HasPrefix(text, c.want[i]) {
					text = c.want[i]
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAliasBomb(t *testing.T) {
	var text strings.Builder
	text.WriteString("site:\n  dns: []\nhosts:\n- groups: &a0 [a, a, a, a, a, a, a, a, a, a]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&text, "- groups: &a%d [%s*a%d]\n", i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	start := time.Now()
	err := Decode("bomb.yaml", []byte(text.String()), new(struct {
		Site  map[string][]string
		Hosts []map[string][][][][][][][][][][][][]string
	}))
	if err == nil || !strings.Contains(err.Error(), "stand for more than 100000 values") {
		t.Errorf("%.300v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestTooLarge(t *testing.T) {
	err := Decode("wad.tar", make([]byte, maxBytes+1), new(spec.Profile))
	if err == nil || !strings.Contains(err.Error(), "is it the right file") {
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	var inv spec.Inventory
	places, err := Parse("site.yaml", []byte(good), &inv)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"hosts[1].profile":    "site.yaml:20: hosts[1].profile: x",
		"hosts[0].disk.pick":  "site.yaml:14: hosts[0].disk.pick: x",
		"hosts[7].name":       "site.yaml:8: hosts[7].name: x",
		"site.vars.something": "site.yaml:6: site.vars.something: x",
		"elsewhere":           "site.yaml:1: elsewhere: x",
	} {
		if got := places.At(path, "x").Error(); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestInlineAndOtherTypes(t *testing.T) {
	type Inner struct {
		Count uint8
		Share float64 `yaml:"share"`
	}
	var v struct {
		Inner `yaml:",inline"`
		Skip  string `yaml:"-"`
		Many  map[string][]int
	}
	if err := Decode("x", []byte("count: 7\nshare: 0.5\nmany: {a: [1, -2]}\n"), &v); err != nil {
		t.Fatal(err)
	}
	if v.Count != 7 || v.Share != 0.5 || len(v.Many["a"]) != 2 || v.Many["a"][1] != -2 {
		t.Errorf("%+v", v)
	}
	err := Decode("x", []byte("count: 256\nshare: half\nskip: a\n"), &v)
	for _, want := range []string{`x:1: count: "256"`, `x:2: share: "half"`, "x:3: skip: there is no such key"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		Decode("x", data, new(spec.Inventory))
		Decode("x", data, new(spec.Profile))
	})
}
