package coldplug

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// index is a kernel of a few modules.
type index struct {
	alias   map[string][]string // modalias: modules
	depends map[string][]string // module: load order before it
	builtin []string
}

func (x index) Match(modalias string) []string { return x.alias[modalias] }
func (x index) Builtin(name string) bool       { return slices.Contains(x.builtin, name) }

func (x index) LoadOrder(name string) ([]string, error) {
	d, ok := x.depends[name]
	if !ok {
		return nil, fmt.Errorf("there is no module %s", name)
	}
	var files []string
	for _, m := range append(slices.Clone(d), name) {
		files = append(files, "kernel/"+m+".ko")
	}
	return files, nil
}

// pc is a /sys in which loading modules makes devices appear.
type pc struct {
	t   *testing.T
	dir string

	mu       sync.Mutex
	inserted []string // file and parameters
	reveals  map[string][2]string
	errors   map[string]error
}

func (p *pc) device(bus, name, modalias string) {
	dir := filepath.Join(p.dir, "bus", bus, "devices", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(modalias+"\n"), 0o644); err != nil {
		p.t.Error(err)
	}
}

func (p *pc) insert(file, parameters string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := strings.TrimPrefix(file, "/lib/modules/6.1/kernel/")
	p.inserted = append(p.inserted, strings.TrimSpace(name+" "+parameters))
	if d, ok := p.reveals[name]; ok {
		p.device(d[0], d[1], d[1])
	}
	return p.errors[name]
}

func newPC(t *testing.T) (*pc, Options, *bytes.Buffer) {
	p := &pc{t: t, dir: t.TempDir(), reveals: map[string][2]string{}, errors: map[string]error{}}
	var log bytes.Buffer
	return p, Options{
		Folder: "/lib/modules/6.1", Sys: os.DirFS(p.dir), Insert: p.insert, Workers: 1,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, &log
}

func TestSettle(t *testing.T) {
	p, o, log := newPC(t)
	o.Index = index{
		alias: map[string][]string{
			"pci:usb": {"xhci-pci"}, "usb:disk": {"usb-storage"}, "pci:nic": {"e1000e"}, "pci:gpu": {"nouveau", "snd-hda"},
			"pci:odd": {"broken"}, "acpi:ps2": {"i8042"}, "cpu:intel": {"crc32c-intel"}, "pci:tpm": {"tpm"}, "usb:lost": {"missing"},
		},
		depends: map[string][]string{
			"xhci-pci": {"usbcore", "xhci-hcd"}, "usb-storage": {"usbcore", "scsi_mod"}, "e1000e": {"ptp"}, "snd-hda": nil, "nouveau": nil,
			"broken": {"ptp"}, "tpm": nil, "crc32c": nil, "crc32c-intel": nil, "absent": nil,
		},
		builtin: []string{"i8042"},
	}
	o.Parameters = map[string]string{"e1000e": "InterruptThrottleRate=0", "xhci_pci": "quirks=1"}
	o.Blacklist = []string{"nouveau", "snd_hda"}
	p.device("pci", "0000:00:01.0", "pci:usb")
	p.device("pci", "0000:00:02.0", "pci:nic")
	p.device("pci", "0000:00:03.0", "pci:gpu")
	p.device("pci", "0000:00:04.0", "pci:odd")
	p.device("pci", "0000:00:05.0", "pci:tpm")
	p.device("pci", "0000:00:06.0", "pci:nobody")
	p.device("acpi", "ps2", "acpi:ps2")
	if err := os.MkdirAll(filepath.Join(p.dir, "devices/system/cpu"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "devices/system/cpu/modalias"), []byte("cpu:intel\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.reveals["xhci-pci.ko"] = [2]string{"usb", "usb:disk"}
	p.reveals["usb-storage.ko"] = [2]string{"usb", "usb:lost"}
	p.errors["broken.ko"] = unix.ENOEXEC
	p.errors["tpm.ko"] = unix.ENODEV

	l := New(o)
	l.Load(context.Background(), "crc32c")
	for range 2 { // the second time there is nothing to do
		if err := l.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	got := slices.Clone(p.inserted)
	if got[0] != "crc32c.ko" {
		t.Errorf("the preload list came after %q", got[0])
	}
	for _, order := range [][2]string{{"usbcore.ko", "xhci-pci.ko quirks=1"}, {"xhci-hcd.ko", "xhci-pci.ko quirks=1"}, {"scsi_mod.ko", "usb-storage.ko"}, {"ptp.ko", "e1000e.ko InterruptThrottleRate=0"}} {
		if a, b := slices.Index(got, order[0]), slices.Index(got, order[1]); a < 0 || b < a {
			t.Errorf("%v in %q", order, got)
		}
	}
	slices.Sort(got)
	want := []string{
		"broken.ko", "crc32c-intel.ko", "crc32c.ko", "e1000e.ko InterruptThrottleRate=0", "ptp.ko", "scsi_mod.ko", "tpm.ko", "usb-storage.ko", "usbcore.ko",
		"xhci-hcd.ko", "xhci-pci.ko quirks=1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if failed := l.Failed(); len(failed) != 3 || !errors.Is(failed["broken"], unix.ENOEXEC) || failed["missing"] == nil || failed["tpm"] == nil {
		t.Errorf("failed = %v", failed)
	}
	if n := len(l.Loaded()); n != len(want)-2 {
		t.Errorf("%d loaded: %v", n, l.Loaded())
	}
	for _, part := range []string{"module=broken", "exec format error", "module=missing", "blacklist"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log lacks %q:\n%s", part, log)
		}
	}
	if strings.Contains(log.String(), "tpm") {
		t.Errorf("a driver without its device is worth no line:\n%s", log)
	}
}

func TestEachFileIsLoadedOnceAndWaitedFor(t *testing.T) {
	p, o, _ := newPC(t)
	const users = 20
	x := index{alias: map[string][]string{}, depends: map[string][]string{}}
	for i := range users {
		name := fmt.Sprintf("user%d", i)
		x.alias[name] = []string{name}
		x.depends[name] = []string{"base"}
		p.device("pci", name, name)
	}
	o.Index, o.Workers = x, 8
	base := make(chan struct{})
	o.Insert = func(file, _ string) error {
		if strings.HasSuffix(file, "/base.ko") {
			runtime.Gosched()
			close(base) // a second time panics
			return nil
		}
		select {
		case <-base:
			return nil
		default:
			return errors.New("before what it needs")
		}
	}
	l := New(o)
	if err := l.Settle(context.Background()); err != nil {
		t.Fatal(err)
	}
	if failed := l.Failed(); len(failed) > 0 || len(l.Loaded()) != users+1 {
		t.Errorf("loaded %d, failed %v", len(l.Loaded()), failed)
	}
}

// TestRun wants what is there loaded, what never comes not waited for beyond
// the limit, and what comes later served all the same.
func TestRun(t *testing.T) {
	p, o, _ := newPC(t)
	inserted := make(chan string, 10)
	o.Index = index{alias: map[string][]string{"pci:a": {"a"}, "pci:b": {"b"}}, depends: map[string][]string{"pre": nil, "a": nil, "b": nil}}
	o.Preload = []string{"pre"}
	o.Insert = func(file, _ string) error { inserted <- filepath.Base(file); return nil }
	p.device("pci", "a", "pci:a")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := Run(ctx, o, 50*time.Millisecond, func() bool { return false }); err != nil {
		t.Fatal(err)
	}
	if one, two := <-inserted, <-inserted; one != "pre.ko" || two != "a.ko" {
		t.Errorf("loaded %s, %s", one, two)
	}
	p.device("pci", "b", "pci:b")
	select {
	case got := <-inserted:
		if got != "b.ko" {
			t.Errorf("loaded %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("a device that came later was not served")
	}
	cancel()
	if _, err := Run(ctx, o, time.Second, func() bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("Run after ^C = %v", err)
	}
}

func TestParse(t *testing.T) {
	e, err := parse([]byte("add@/devices/virtio0\x00ACTION=add\x00MODALIAS=virtio:d1\x00EMPTY=\x00odd\x00"))
	want := Uevent{Action: "add", Path: "/devices/virtio0", Values: map[string]string{"ACTION": "add", "MODALIAS": "virtio:d1", "EMPTY": ""}}
	if diff := cmp.Diff(want, e); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, in := range []string{"", "libudev\x00\xfe\xed", "add@relative", "@/x"} {
		if _, err := parse([]byte(in)); err == nil {
			t.Errorf("%q is taken for a uevent", in)
		}
	}
}

// inNamespace runs f in a network namespace of its own.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run the tests as root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is never given back, and ends with its goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// TestWait waits for a network interface that appears a moment later, which
// the kernel announces.
func TestWait(t *testing.T) {
	inNamespace(t, func() {
		_, o, _ := newPC(t)
		o.Index = index{}
		l := New(o)
		events, err := Listen()
		if err != nil {
			t.Error(err)
			return
		}
		defer events.Close()
		there := func() bool { _, err := netlink.LinkByName("late0"); return err == nil }

		short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := l.Wait(short, events, there); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait for nothing = %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		handle, err := netlink.NewHandle() // of this namespace, whichever thread uses it
		if err != nil {
			t.Error(err)
			return
		}
		defer handle.Close()
		time.AfterFunc(50*time.Millisecond, func() {
			if err := handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late0"}, PeerName: "late1"}); err != nil {
				t.Error(err)
			}
		})
		if err := l.Wait(ctx, events, there); err != nil {
			t.Errorf("Wait = %v", err)
		}
		// The announcement itself: nothing else has read it if looking again
		// after a second were what found the interface.
		if err := handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late2"}, PeerName: "late3"}); err != nil {
			t.Error(err)
		}
		for {
			e, err := events.Next(ctx, 5*time.Second)
			if err != nil {
				t.Errorf("no uevent for late2: %v", err)
				return
			}
			if e.Action == "add" && e.Values["INTERFACE"] == "late2" && e.Values["SUBSYSTEM"] == "net" {
				return
			}
		}
	})
}
