package render

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

func host() *Host {
	inv := spec.Inventory{
		Site: spec.Site{
			URL: "http://172.30.0.5/reassure", Server: netip.MustParseAddr("172.30.0.5"),
			Network: netip.MustParsePrefix("172.30.0.77/20"), DNS: []netip.Addr{netip.MustParseAddr("172.30.0.5"), netip.MustParseAddr("9.9.9.9")},
			Domain: "lab.example",
		},
		Hosts: []spec.Host{
			{Name: "exp01", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xed}}, IP: netip.MustParseAddr("172.30.0.11"), Profile: "debian"},
			{Name: "exp02", MACs: []spec.MAC{{0, 9, 0x3d, 0x12, 0x20, 0xee}}, IP: netip.MustParseAddr("172.30.0.12"), Profile: "debian"},
		},
	}
	peers := NewPeers(inv.Hosts)
	return &Host{
		Peer: peers[0], Site: NewSite(inv.Site), Hosts: peers,
		Vars:       MergeVars(map[string]string{"a": "profile", "b": "profile", "c": "profile"}, map[string]string{"b": "site", "c": "site"}, map[string]string{"c": "host"}),
		Partitions: []spec.Partition{{Name: "root", FileSystem: spec.Ext4, Mount: "/"}, {Name: "raw", FileSystem: spec.None}},
	}
}

func TestHost(t *testing.T) {
	for in, want := range map[string]string{
		`{{.Name}} {{upper .Name}} {{.MAC}} {{.IP}} {{.Profile}}`:                  "exp01 EXP01 00:09:3d:12:20:ed 172.30.0.11 debian",
		`{{netmask .Site.Network}} {{prefix .Site.Network}}`:                       "255.255.240.0 20",
		`{{network .Site.Network}} {{broadcast .Site.Network}} {{.Site.Network}}`:  "172.30.0.0 172.30.15.255 172.30.0.0/20",
		`{{cidr .IP .Site.Network}} {{fqdn .Name .Site.Domain}} {{fqdn .Name ""}}`: "172.30.0.11/20 exp01.lab.example exp01",
		`{{join .Site.DNS " "}}`:                                                                              "172.30.0.5 9.9.9.9",
		`[{{.Site.Gateway}}]{{with .Site.Gateway}}x{{end}}`:                                                   "[]",
		`{{.Vars.a}} {{.Vars.b}} {{.Vars.c}} {{var "c" "x"}} {{var "d" "x"}}`:                                 "profile site host host x",
		`UUID={{uuid "root"}} {{partuuid "raw"}} {{device "root"}} {{disk}}`:                                  "UUID=@reassure:uuid:root@ @reassure:partuuid:raw@ @reassure:device:root@ @reassure:disk@",
		`{{range .Hosts}}{{.IP}} {{.Name}};{{end}}`:                                                           "172.30.0.11 exp01;172.30.0.12 exp02;",
		`{{range .Partitions}}{{.Name}}={{.Mount}} {{end}}`:                                                   "root=/ raw= ",
		`{{replace .MAC ":" "-"}} {{lower "AB"}} {{trim " x "}} {{json .Name}} {{index (split "a,b" ",") 1}}`: `00-09-3d-12-20-ed ab x "exp01" b`,
	} {
		got, err := host().Text("t", in)
		if err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"\n\n{{.Vars.room}}", `f:3: there is no variable room: set it in vars of the host, the site or the profile`},
		{"{{.Nmae}}", "f:1: there is no .Nmae here: there are .Groups, .Hosts, .IP, .MAC, .MACs, .Mounts, .Name"},
		{"\n{{.Site.Gatewy}}", "f:2: there is no .Gatewy here:"},
		{"{{nmae}}", "f:1: there is no function nmae; a field begins with a dot"},
		{"a\n{{uuid \"boot\"}}", `f:2: {{uuid "boot"}}: the profile has no partition "boot": it has root, raw`},
		{`{{uuid "raw"}}`, `has no file system, and so no UUID: use partuuid`},
		{"{{if .Name}}", "f:1: unexpected EOF"},
		{"{{.Name", "f:1: unclosed action"},
		{`{{netmask "x"}}`, `f:1: {{netmask "x"}}: "x" is not a network`},
	} {
		_, err := host().Text("f", c.in)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.in, err, c.want)
		}
	}
}

func TestStrings(t *testing.T) {
	steps := []spec.Step{
		{Name: "edit", Edit: &spec.Edit{Path: "/etc/conf.d/net", Replace: []spec.Replacement{{Match: `\bIPADDR\b`, With: "{{.IP}}"}}}},
		{Name: "run", Run: &spec.Run{Command: []string{"/bin/echo", "{{.Name}}", "$1"}}},
	}
	if failed := host().Strings("steps", &steps); len(failed) > 0 {
		t.Fatal(failed)
	}
	want := []spec.Step{
		{Name: "edit", Edit: &spec.Edit{Path: "/etc/conf.d/net", Replace: []spec.Replacement{{Match: `\bIPADDR\b`, With: "172.30.0.11"}}}},
		{Name: "run", Run: &spec.Run{Command: []string{"/bin/echo", "exp01", "$1"}}},
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Error(diff)
	}
	steps[0].Edit.Append, steps[1].Run.Command[1] = "{{.X}}", "{{.Vars.y}}"
	var got []string
	for _, e := range host().Strings("steps", &steps) {
		got = append(got, e.Error())
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "steps[0].edit.append:1: there is no .X") ||
		!strings.HasPrefix(got[1], "steps[1].run.command[1]:1: there is no variable y") {
		t.Errorf("%q", got)
	}
}

func TestLab(t *testing.T) {
	h := host()
	lab := Lab{Site: h.Site, Hosts: h.Hosts}
	got, err := lab.Text("t", `{{range .Hosts}}{{.MAC}}={{.IP}} {{end}}{{netmask "fd00::/64"}}`)
	if want := "00:09:3d:12:20:ed=172.30.0.11 00:09:3d:12:20:ee=172.30.0.12 ffff:ffff:ffff:ffff::"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	// What only a host has is no function here.
	if _, err := lab.Text("t", `{{uuid "root"}}`); err == nil {
		t.Error("a token in a text of the lab")
	}
}
