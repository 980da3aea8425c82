package cmdline

import (
	"flag"
	"io"
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
				"reassure.nic=01-02 reassure.retries=-1 reassure.force=maybe BOOTIF=06-1 reassure.debug",
			want: Options{Debug: true},
			warnings: []string{
				"there is no reassure.forse", "reassure.url needs a value: write reassure.url=URL", "not an http or https", "172.30.0.11/24",
				"1 to 4094", "absolute path", "not a MAC address", "number of tries", "neither yes nor no", "BOOTIF",
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
