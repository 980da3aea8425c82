package chroot

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/conf"
	"reassure/image/spec"
	"reassure/templates"
)

// stub is every program that a step runs. It notes that it ran, does what the real one is
// there for, and goes wrong in its turn as /spoil says.
const stub = `#!/bin/sh
b=/bin/busybox
[ $# -eq 0 ] || args=" $*"
echo "${0##*/}$args" >>/ran
if [ -e /spoil ] && read -r turn how </spoil && [ "$($b wc -l </ran)" -eq "$turn" ]; then
	case $how in
	fails) echo broken on purpose >&2; exit 3 ;;
	dies) kill -9 $$ ;;
	hangs) sleep 1000 ;;
	hangs-apart) $b setsid $b sh -c 'trap "" TERM HUP; sleep 1000'; sleep 1000 ;;
	esac
fi
case ${0##*/} in
grub*install) $b mkdir -p /boot/grub/i386-pc; echo >/boot/grub/i386-pc/boot.img; echo >/boot/grub/i386-pc/core.img ;;
grub*mkimage) for a; do case $a in --output=*) echo >"${a#*=}" ;; esac; done ;;
nxsetup) echo "NX > 599 cannot log in to 127.0.0.1" >&2; exit 1 ;;
esac
`

// systems are new systems, with all that steps run in them.
var systems = []struct {
	name     string
	files    []string // programs are stubs
	firmware spec.Firmware
	steps    func(t *testing.T) []spec.Step
	// runs are the commands, each with its step, in order.
	runs [][2]string
}{
	{
		name:  "systemd, BIOS",
		files: []string{"lib/systemd/systemd", "etc/systemd/system/", "bin/systemctl", "usr/sbin/grub-install", "usr/bin/debconf-set-selections", "usr/bin/setup"},
		steps: func(*testing.T) []spec.Step {
			return []spec.Step{
				{Name: "on", Service: &spec.Service{Name: "sshd"}},
				{Name: "off", Service: &spec.Service{Name: "cron", Disable: true}},
				{Name: "a command", Run: &spec.Run{Command: []string{"setup", "--all"}, Stdin: "yes\n"}},
				{Name: "by its path", Run: &spec.Run{Command: []string{"/usr/bin/setup"}, StdinFile: "/etc/motd"}},
				{Name: "boot loader", BootLoader: &spec.BootLoader{Kind: "grub"}},
			}
		},
		runs: [][2]string{
			{"on", "systemctl enable sshd"}, {"off", "systemctl disable cron"}, {"a command", "setup --all"}, {"by its path", "setup"},
			{"boot loader", "grub-install --target=i386-pc --no-bootsector --boot-directory=/boot /dev/sda"}, {"boot loader", "debconf-set-selections"},
		},
	},
	{
		name: "update-rc.d, UEFI", firmware: spec.UEFI,
		files: []string{"usr/sbin/update-rc.d", "usr/bin/grub-mkimage", "usr/lib/grub/x86_64-efi/ext2.mod", "usr/bin/debconf-set-selections"},
		steps: func(*testing.T) []spec.Step {
			return []spec.Step{
				{Name: "on", Service: &spec.Service{Name: "ssh"}},
				{Name: "off", Service: &spec.Service{Name: "cron", Disable: true}},
				{Name: "boot loader", BootLoader: &spec.BootLoader{Kind: "grub"}},
			}
		},
		runs: [][2]string{
			{"on", "update-rc.d ssh defaults"}, {"on", "update-rc.d ssh enable"}, {"off", "update-rc.d cron disable"},
			{"boot loader", "grub-mkimage --format=x86_64-efi --directory=/usr/lib/grub/x86_64-efi --config=/run/reassure-grub.cfg --prefix=/boot/grub --output=/boot/efi/EFI/BOOT/BOOTX64.EFI part_gpt part_msdos search search_fs_uuid normal configfile linux echo test all_video ext2"},
			{"boot loader", "debconf-set-selections"},
		},
	},
	{
		name: "the old ReAssure",
		files: []string{"sbin/openrc", "etc/conf.d/net", "etc/conf.d/hostname", "etc/init.d/net.lo", "etc/init.d/vmware", "usr/bin/vmware-config.pl",
			"usr/bin/nxsetup", "usr/sbin/grub2-install", "var/lib/nxserver/home/.ssh/known_hosts"},
		steps: gentoo,
		runs: [][2]string{
			{"VMware configuration", "vmware-config.pl"}, {"NX setup", "nxsetup --install --setup-nomachine-key"},
			{"boot loader", "grub2-install --target=i386-pc --no-bootsector --boot-directory=/boot /dev/sda"},
		},
	},
}

// variable is one of a ready profile's, with what it is where nobody sets it.
var variable = regexp.MustCompile(`\{\{var "[^"]*" "([^"]*)"\}\}|\{\{.*?\}\}`)

// gentoo are the steps of the ready profile, as an unchanged one is resolved.
func gentoo(t *testing.T) []spec.Step {
	t.Helper()
	const name = "profiles/gentoo-reassure.yaml"
	text, err := templates.FS.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// What comes before the steps is judged as it is.
	head, tail, _ := bytes.Cut(text, []byte("\nsteps:\n"))
	var p spec.Profile
	if err := conf.Decode(name, slices.Concat(head, []byte("\nsteps:\n"), variable.ReplaceAll(tail, []byte("$1"))), &p); err != nil {
		t.Fatal(err)
	}
	var last []spec.Step
	p.Steps = slices.DeleteFunc(p.Steps, func(s spec.Step) bool {
		if s.BootLoader != nil {
			last = append(last, s)
		}
		return s.BootLoader != nil
	})
	for i := range p.Steps {
		if s := &p.Steps[i]; s.KnownHosts != nil {
			s.KnownHosts.Names = []string{"exp01"}
		} else if s.Run != nil {
			s.Run.StdinTemplate = ""
		}
	}
	return append(p.Steps, last...)
}

// system makes one of systems below a folder. Spoil is which of its commands goes wrong,
// counted from 1, and how.
func system(t *testing.T, files []string, spoil string) string {
	t.Helper()
	root := newRoot(t)
	contents := map[string]string{"etc/conf.d/net": "config_eth0=IPADDR\n", "etc/conf.d/hostname": "hostname=\"HOSTNAME\"\n"}
	for _, f := range append(files, "boot/vmlinuz-6.1.0", "etc/motd", "root/.ssh/known_hosts") {
		file := filepath.Join(root, f)
		if strings.HasSuffix(f, "/") {
			file = filepath.Join(file, "x")
		}
		content, ok := contents[f]
		if !ok {
			content = stub
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if spoil != "" {
		if err := os.WriteFile(filepath.Join(root, "spoil"), []byte(spoil+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// finish has the helper run steps in one of the systems, and returns the commands that ran.
func finish(t *testing.T, root string, firmware spec.Firmware, list []spec.Step) (summary Summary, ran []string, err error) {
	t.Helper()
	program, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	summary, err = Run(t.Context(), Options{
		Root: root, Helper: program, Keys: StartKeys(t.Context(), list),
		Job: Job{Host: "exp01", Steps: list, Disk: "/dev/sda", Firmware: firmware, ESP: "/boot/efi"},
	})
	text, readErr := os.ReadFile(filepath.Join(root, "ran"))
	if readErr != nil {
		t.Fatalf("nothing ran: %v; %v", readErr, err)
	}
	return summary, strings.Split(strings.TrimSpace(string(text)), "\n"), err
}

// TestEveryCommandMayFail has each command of every step fail, die and hang, one at a time.
// The error names the command and its step, nothing after it runs, and there is nothing to
// commit; but what may fail does, by name, and all else is done.
func TestEveryCommandMayFail(t *testing.T) {
	why := map[string]string{"fails": "exit status 3", "dies": "signal: killed", "hangs": "no end after", "hangs-apart": "no end after"}
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var want []string
			for _, r := range s.runs {
				want = append(want, r[1])
			}
			summary, ran, err := finish(t, system(t, s.files, ""), s.firmware, s.steps(t))
			if diff := cmp.Diff(want, ran); err != nil || diff != "" {
				t.Fatalf("%v; commands (-want +got):\n%s", err, diff)
			}
			if (summary.BootImage == "") != (s.firmware == spec.UEFI) {
				t.Fatalf("when all is well, %q is to be committed", summary.BootImage)
			}
			for i, r := range s.runs {
				for how, reason := range why {
					if how == "hangs-apart" && i > 0 {
						continue // it takes long, and is the same for all
					}
					t.Run(fmt.Sprintf("%d %s %s", i+1, strings.Fields(r[1])[0], how), func(t *testing.T) {
						t.Parallel()
						goesWrong(t, s.firmware, s.files, s.steps(t), s.runs, i, how, reason)
					})
				}
			}
		})
	}
}

func goesWrong(t *testing.T, firmware spec.Firmware, files []string, list []spec.Step, runs [][2]string, turn int, how, reason string) {
	t.Helper()
	step, program := runs[turn][0], strings.Fields(runs[turn][1])[0]
	allowed := false
	for i := range list {
		if list[i].Name == step {
			allowed = list[i].AllowFailure
			if strings.HasPrefix(how, "hangs") {
				list[i].Timeout = spec.Duration(2 * time.Second)
			}
		}
	}
	summary, ran, err := finish(t, system(t, files, fmt.Sprint(turn+1, " ", how)), firmware, list)
	at := slices.IndexFunc(summary.Results, func(r Result) bool { return r.Step == step })
	if at < 0 {
		t.Fatalf("there is no result of %q: %+v, %v", step, summary.Results, err)
	}
	result := summary.Results[at]
	for _, part := range []string{program, reason} {
		if !strings.Contains(result.Err, part) {
			t.Errorf("the result of %q says %q, not %q", step, result.Err, part)
		}
	}
	if result.Allowed != allowed {
		t.Errorf("that %q failed is allowed: %v", step, result.Allowed)
	}
	if allowed {
		if err != nil || len(ran) != len(runs) || summary.BootImage == "" {
			t.Errorf("though it may fail: %v; ran %q", err, ran)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), strconv.Quote(step)) || !strings.Contains(err.Error(), program) {
		t.Errorf("the error is %v; want one that names %q and %s", err, step, program)
	}
	if len(ran) != turn+1 || at != len(summary.Results)-1 {
		t.Errorf("after it, more was done: %q, %+v", ran, summary.Results)
	}
	if summary.BootImage != "" {
		t.Errorf("%s is to be committed", summary.BootImage)
	}
}

// TestAllCommandsAreTried finds programs in the source that steps run, and none of these
// tables has.
func TestAllCommandsAreTried(t *testing.T) {
	tried := map[string]bool{}
	for _, s := range systems {
		for _, r := range s.runs {
			tried[strings.Fields(r[1])[0]] = true
		}
	}
	files, err := filepath.Glob("../steps/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			which, prefix := 4, ""
			switch name.Sel.Name {
			case "exec":
			case "grubTool":
				which, prefix = 0, "grub-"
			default:
				return true
			}
			if len(call.Args) <= which {
				return true
			}
			if text, ok := call.Args[which].(*ast.BasicLit); ok {
				program, _ := strconv.Unquote(text.Value)
				found++
				if !tried[prefix+program] {
					t.Errorf("%s runs %s%s, and no system here does", file, prefix, program)
				}
			}
			return true
		})
	}
	if found < 7 {
		t.Errorf("%d programs were found in the source: this test looks for them in the wrong way", found)
	}
}

// TestHelperIsStopped has a step stop the helper itself.
func TestHelperIsStopped(t *testing.T) {
	root := newRoot(t)
	program, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	step := shell("stops it", "kill -STOP $PPID; sleep 1000")
	step.Timeout = spec.Duration(time.Second)
	_, err = Run(ctx, Options{Root: root, Helper: program, Job: Job{Host: "exp01", Steps: []spec.Step{step}}, Slack: time.Second})
	if err == nil || !strings.Contains(err.Error(), "the chroot helper") || !strings.Contains(err.Error(), "no end after") || ctx.Err() != nil {
		t.Errorf("error is %v", err)
	}
	if mounts, _ := mountsBelow(root); len(mounts) > 0 {
		t.Errorf("still mounted: %q", mounts)
	}
}
