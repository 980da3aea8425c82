package grubcfg

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const rootUUID = "5f6e1e9a-6d0c-4a51-9c0e-2f3a9b7c1d11"

// debian is what update-grub wrote for a system on the second GPT partition.
func debian(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("testdata/debian-12.cfg")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// simple is of the form that a boot loader step writes.
const simple = `set timeout=1
set default=0
serial --unit=0 --speed=115200
terminal_output serial console
menuentry "Gentoo" {
	search --no-floppy --fs-uuid --set=root AAAA-1111
	linux /vmlinuz root=PARTUUID=1a2b3c4d-03 ro console=ttyS0,115200n8
	initrd /initrd.img
}
`

func find(kind, value string) int {
	switch kind + " " + strings.ToLower(value) {
	case "fs-uuid " + rootUUID:
		return 2
	case "fs-uuid aaaa-1111":
		return 1
	case "label boot":
		return 3
	}
	return 0
}

func TestDefault(t *testing.T) {
	d := debian(t)
	entry := func(version, title, options string) *Entry {
		return &Entry{
			Title: title, Partition: 2, Kernel: "/boot/vmlinuz-" + version,
			CommandLine: "BOOT_IMAGE=/boot/vmlinuz-" + version + " root=UUID=" + rootUUID + " ro " + options,
			Initrds:     []File{{2, "/boot/initrd.img-" + version}},
		}
	}
	for _, tt := range []struct {
		name, script string
		world        World
		want         *Entry
	}{
		{name: "Debian", script: d, want: entry("6.1.0-44-amd64", "Debian GNU/Linux", "console=ttyS0 quiet")},
		{
			name: "Debian with a separate boot partition", script: strings.ReplaceAll(strings.ReplaceAll(d, "\t/boot/", "\t/"), "2  "+rootUUID, "2  AAAA-1111"),
			want: &Entry{
				Title: "Debian GNU/Linux", Partition: 1, Kernel: "/vmlinuz-6.1.0-44-amd64",
				CommandLine: "BOOT_IMAGE=/vmlinuz-6.1.0-44-amd64 root=UUID=" + rootUUID + " ro console=ttyS0 quiet",
				Initrds:     []File{{1, "/initrd.img-6.1.0-44-amd64"}},
			},
		},
		{
			name: "an entry of a submenu, by number", script: strings.Replace(d, `default="0"`, `default="1>2"`, 1),
			want: entry("6.1.0-43-amd64", "Debian GNU/Linux, with Linux 6.1.0-43-amd64", "console=ttyS0 quiet"),
		},
		{
			name:   "an entry of a submenu, by ids",
			script: strings.Replace(d, `default="0"`, `default="gnulinux-advanced-`+rootUUID+`>gnulinux-6.1.0-43-amd64-recovery-`+rootUUID+`"`, 1),
			want:   entry("6.1.0-43-amd64", "Debian GNU/Linux, with Linux 6.1.0-43-amd64 (recovery mode)", "single console=ttyS0"),
		},
		{
			name: "the saved entry", script: strings.Replace(d, `default="0"`, `default="${saved_entry}"`, 1),
			world: World{
				Exists:      func(p int, path string) bool { return p == 2 && path == "/boot/grub/grubenv" },
				Environment: ParseEnvironment("# GRUB Environment Block\nsaved_entry=1>0\nnext_entry=1>3\n######"),
			},
			want: entry("6.1.0-44-amd64", "Debian GNU/Linux, with Linux 6.1.0-44-amd64", "console=ttyS0 quiet"),
		},
		{name: "no such default", script: strings.Replace(d, `default="0"`, `default="gone"`, 1), want: entry("6.1.0-44-amd64", "Debian GNU/Linux", "console=ttyS0 quiet")},
		{
			name: "ours", script: simple,
			want: &Entry{
				Title: "Gentoo", Partition: 1, Kernel: "/vmlinuz",
				CommandLine: "BOOT_IMAGE=/vmlinuz root=PARTUUID=1a2b3c4d-03 ro console=ttyS0,115200n8", Initrds: []File{{1, "/initrd.img"}},
			},
		},
		{
			name: "no menu, microcode, quotes, a device in the path",
			script: `linux (hd0,msdos3)/vmlinuz "opt=a b" c\ d 'e' "" $nothing "$nothing"x
initrd /ucode.img ($root)/initrd.img`,
			want: &Entry{
				Partition: 3, Kernel: "/vmlinuz", CommandLine: `BOOT_IMAGE=(hd0,msdos3)/vmlinuz "opt=a b" "c d" e  x`,
				Initrds: []File{{2, "/ucode.img"}, {2, "/initrd.img"}},
			},
		},
		{
			name: "variables with several words, functions with arguments of their own, label",
			script: `o="ro quiet" # comment
function go { search --label boot --set root
linux /k$1 ${o} x=$o }
if [ -f /none -o "$grub_platform" = pc ]; then go; elif true; then linux /wrong; else linux /wrong2; fi`,
			want: &Entry{Partition: 3, Kernel: "/k", CommandLine: "BOOT_IMAGE=/k ro quiet x=ro quiet"},
		},
		{
			name:   "search that fails leaves root alone",
			script: "if search --fs-uuid --set=root 1234; then linux /wrong; else linux /right; fi",
			want:   &Entry{Partition: 2, Kernel: "/right", CommandLine: "BOOT_IMAGE=/right"},
		},
		{
			name: "UEFI", script: "if [ $grub_platform = efi -a ! -z \"$root\" ]; then linuxefi /e; initrdefi /i; fi", world: World{EFI: true},
			want: &Entry{Partition: 2, Kernel: "/e", CommandLine: "BOOT_IMAGE=/e", Initrds: []File{{2, "/i"}}},
		},
		{
			name:   "search for a file",
			script: "search --file /here --set=x\nlinux ($x)/k",
			world:  World{Exists: func(_ int, path string) bool { return path == "/here" }},
			want:   &Entry{Partition: 2, Kernel: "/k", CommandLine: "BOOT_IMAGE=(hd0,2)/k"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.world.Self, tt.world.Find = 2, find
			got, err := Default(tt.script, tt.world)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDefaultFails(t *testing.T) {
	for _, tt := range []struct {
		name, script, want string
	}{
		{name: "empty", want: "no entry"},
		{name: "firmware setup is the default", script: "menuentry 'UEFI Firmware Settings' { fwsetup }", want: "UEFI Firmware Settings"},
		{name: "an open block", script: "menuentry x {\nlinux /k", want: "line 2: } is missing"},
		{name: "an open quote", script: "\n\nset x='a", want: "line 3"},
		{name: "an open double quote", script: `set x="a`, want: "not closed"},
		{name: "an open if", script: "if true; then linux /k", want: "fi is missing"},
		{name: "a loop", script: "for x in 1 2; do linux /k; done", want: "loops are not understood"},
		{name: "a stray fi", script: "fi", want: "out of place"},
		{name: "a function without a block", script: "function x y", want: "needs a name and a block"},
		{name: "a function that calls itself", script: "function x { x\n}\nx", want: "without end"},
		{name: "a function that calls itself twice", script: "function x { true; x; x; }\nx", want: "without end"},
		{name: "deep blocks", script: strings.Repeat("if true; then ", 1000), want: "nested"},
		{name: "a variable that doubles", script: "a=xxxxxxxx\n" + strings.Repeat("a=$a$a\n", 60), want: "grows beyond"},
		{name: "submenus in circles", script: "function m { submenu a { m\n}\n}\nm", want: "without end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Default(tt.script, World{Self: 1})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Default = %+v, %v; want %q", got, err, tt.want)
			}
		})
	}
	if _, err := Default("set x=1", World{}); !errors.Is(err, ErrNoEntry) {
		t.Errorf("Default = %v; want ErrNoEntry", err)
	}
}

func FuzzDefault(f *testing.F) {
	f.Add(debian(f))
	f.Add(simple)
	f.Add("function f { submenu a { f\n}\n}\nf; set default=1>2; [ a = b -o ! -f $x ]; \"$a\\\"\"")
	f.Fuzz(func(t *testing.T, script string) {
		e, err := Default(script, World{Self: 2, Find: find})
		if (e == nil) == (err == nil) || (e != nil && e.Kernel == "") {
			t.Errorf("Default(%q) = %+v, %v", script, e, err)
		}
	})
}
