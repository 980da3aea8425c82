package cmdline

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"reassure/image/spec"
)

func ptr[T any](v T) *T { return &v }

func TestParse(t *testing.T) {
	sameAddress := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	for _, tt := range []struct {
		name, in string
		want     Options
		warnings []string // a part of each, in order
	}{
		{name: "empty"},
		{name: "nothing of ours", in: "BOOT_IMAGE=/bzImage console=tty0 console=ttyS0,115200 quiet -- single\n"},
		{
			name: "as pxelinux writes it",
			in:   "BOOT_IMAGE=bzImage initrd=initramfs.cpio.zst reassure.url=http://172.30.0.5/reassure BOOTIF=01-00-09-3d-12-20-ed",
			want: Options{URL: "http://172.30.0.5/reassure", BootMAC: spec.MAC{0, 9, 0x3d, 0x12, 0x20, 0xed}},
		},
		{
			name: "switches",
			in:   "reassure.dry-run reassure.force=1 reassure.debug=yes reassure.shell reassure.shell=0",
			want: Options{DryRun: true, Force: true, Debug: true},
		},
		{
			name: "network by hand",
			in:   "reassure.static=172.30.0.11/24,172.30.0.1,172.30.0.5,9.9.9.9 reassure.vlan=12 reassure.nic=00-09-3D-12-20-ED",
			want: Options{
				Static: &Static{
					Address: netip.MustParsePrefix("172.30.0.11/24"), Gateway: netip.MustParseAddr("172.30.0.1"),
					DNS: []netip.Addr{netip.MustParseAddr("172.30.0.5"), netip.MustParseAddr("9.9.9.9")},
				},
				VLAN: 12, NIC: "00:09:3d:12:20:ed",
			},
		},
		{
			name: "no gateway",
			in:   "reassure.static=172.30.0.11/24,,172.30.0.5 reassure.nic=eth1",
			want: Options{
				Static: &Static{Address: netip.MustParsePrefix("172.30.0.11/24"), DNS: []netip.Addr{netip.MustParseAddr("172.30.0.5")}},
				NIC:    "eth1",
			},
		},
		{name: "IPv6 and MTU", in: "reassure.ipv6 reassure.mtu=9000", want: Options{IPv6: true, MTU: 9000}},
		{
			name: "an IPv6 address by hand", in: "reassure.static=fd00::11/64,fe80::1,fd00::5 reassure.url=http://[fd00::5]/reassure",
			want: Options{
				URL: "http://[fd00::5]/reassure",
				Static: &Static{
					Address: netip.MustParsePrefix("fd00::11/64"), Gateway: netip.MustParseAddr("fe80::1"), DNS: []netip.Addr{netip.MustParseAddr("fd00::5")},
				},
			},
		},
		{name: "token", in: "reassure.token=aB3-._~+/== quiet", want: Options{Token: "aB3-._~+/=="}},
		{
			name: "no token", in: "reassure.token reassure.token= reassure.token=a,b reassure.token=\"a b\" reassure.token=a=b reassure.token==",
			warnings: []string{"needs a value", "letters, digits", "letters, digits", "letters, digits", "letters, digits", "letters, digits"},
		},
		{name: "last wins", in: "reassure.root=/a reassure.root=/mnt/new/ reassure.retries=0", want: Options{Root: "/mnt/new", Retries: ptr(0)}},
		{
			name: "quotes as the kernel's",
			in:   `"reassure.manifest=http://a/b c" reassure.url="http://a/x y" foo="reassure.force" "reassure.debug"`,
			want: Options{Manifest: "http://a/b c", URL: "http://a/x y", Debug: true},
		},
		{
			name: "modules",
			in:   `e1000e.InterruptThrottleRate=0 snd-hda.a=1 snd_hda.b="x y" usbcore.quirks modprobe.blacklist=nouveau,snd-hda`,
			want: Options{
				ModuleParameters: map[string]string{"e1000e": "InterruptThrottleRate=0", "snd_hda": `a=1 b="x y"`, "usbcore": "quirks"},
				Blacklist:        []string{"nouveau", "snd_hda"},
			},
		},
		{
			name: "mistakes do not stop",
			in: "reassure.forse reassure.url reassure.url=ftp://a reassure.static=10.0.0.1 reassure.vlan=5000 reassure.root=mnt " +
				"reassure.mtu=68 reassure.mtu=x reassure.nic=01-02 reassure.retries=-1 reassure.force=maybe BOOTIF=06-1 reassure.debug",
			want: Options{Debug: true},
			warnings: []string{
				"there is no reassure.forse", "reassure.url needs a value: write reassure.url=URL", "not an http or https", "172.30.0.11/24",
				"1 to 4094", "absolute path", "576 to 65535", "576 to 65535", "not a MAC address", "number of tries", "neither yes nor no", "BOOTIF",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, warnings := Parse(tt.in)
			if diff := cmp.Diff(tt.want, got, sameAddress); diff != "" {
				t.Errorf("Parse (-want +got):\n%s", diff)
			}
			if len(warnings) != len(tt.warnings) {
				t.Fatalf("warnings = %v; want %d", warnings, len(tt.warnings))
			}
			for i, w := range warnings {
				if !strings.Contains(w.Error(), tt.warnings[i]) {
					t.Errorf("warning %d = %v; want %q", i, w, tt.warnings[i])
				}
			}
		})
	}
}

func TestFlagsWinOverTheCommandLine(t *testing.T) {
	o, _ := Parse("reassure.url=http://a reassure.force")
	flags := flag.NewFlagSet("reimage", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	o.Register(flags)
	if err := flags.Parse([]string{"--dry-run", "--force=no", "--url", "http://b", "rest"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Options{URL: "http://b", DryRun: true}, o); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if err := flags.Parse([]string{"--vlan", "no"}); err == nil {
		t.Error("a wrong flag was accepted")
	}
}

// TestTheTokenIsNotShown prints the options, and the warnings of a token that is
// wrong, in the ways in which programs do.
func TestTheTokenIsNotShown(t *testing.T) {
	const token = "s3cr3t"
	o, _ := Parse("reassure.token=" + token)
	if string(o.Token) != token {
		t.Fatal("it is not read at all")
	}
	_, warnings := Parse("reassure.token=" + token + ",")
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "options", o, "pointer", &o, "token", o.Token)
	}
	for name, shown := range map[string]string{
		"%v": fmt.Sprint(o), "%+v": fmt.Sprintf("%+v", o), "%#v": fmt.Sprintf("%#v", o), "%s": fmt.Sprintf("%s", o.Token), "%q": fmt.Sprintf("%q", o.Token),
		"%x": fmt.Sprintf("%x", o.Token), "pointer": fmt.Sprintf("%+v", &o), "JSON": string(text), "log": log.String(), "warnings": fmt.Sprint(warnings),
	} {
		if strings.Contains(shown, token) || strings.Contains(shown, fmt.Sprintf("%x", token)) {
			t.Errorf("%s shows the token: %s", name, shown)
		}
	}
}

func TestMountRoot(t *testing.T) {
	if got := (&Options{}).MountRoot(); got != spec.MountRoot {
		t.Errorf("MountRoot = %q; want %q", got, spec.MountRoot)
	}
	if got := (&Options{Root: "/x"}).MountRoot(); got != "/x" {
		t.Errorf("MountRoot = %q; want /x", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`reassure.url=http://a/b "reassure.static=1.2.3.4/8,," BOOTIF=01-00-09-3d-12-20-ed a="b c" "`)
	f.Add("=\" \"= \"\"\" x=\"")
	f.Fuzz(func(t *testing.T, text string) {
		o, _ := Parse(text)
		if o.VLAN < 0 || o.VLAN > 4094 || o.MountRoot()[0] != '/' || (o.Retries != nil && *o.Retries < 0) {
			t.Errorf("Parse(%q) = %+v", text, o)
		}
		// What has no quote splits at spaces only.
		if !strings.Contains(text, `"`) {
			if got, want := len(split(text)), len(strings.FieldsFunc(text, isSpace)); got != want {
				t.Errorf("split(%q) has %d words; want %d", text, got, want)
			}
		}
	})
}
