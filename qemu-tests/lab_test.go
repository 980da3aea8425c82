package qemutests

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"reassure/image/spec"
)

var keep = flag.Bool("keep", false, "keep the folders of tests that pass, too")

// shared is what all tests of one run use: made by the first that needs it.
var shared struct {
	sync.Mutex
	dir      string
	programs *Programs
}

// atOnce is how many PCs run at a time: each has two processors, as has the
// smallest machine that runs these tests.
const atOnce = 2

var running = make(chan struct{}, atOnce)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// source is the root of the source tree.
const source = ".."

func programs(t testing.TB) *Programs {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.programs != nil {
		return shared.programs
	}
	var err error
	if shared.dir == "" {
		if shared.dir, err = os.MkdirTemp("", "reassure-tests"); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := filepath.Abs(source)
	if err != nil {
		t.Fatal(err)
	}
	if shared.programs, err = Build(t.Context(), tree, shared.dir, FlavourVM); err != nil {
		t.Fatal(err)
	}
	return shared.programs
}

func wad(t testing.TB, kind, name string) string {
	t.Helper()
	p := programs(t)
	shared.Lock()
	defer shared.Unlock()
	path, err := p.Wad(t.Context(), kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// labT is a lab whose every error ends its test.
type labT struct {
	*Lab
	t *testing.T
}

// keptDir makes a test's folder. It stays when the test fails.
func keptDir(t *testing.T, kind string) string {
	t.Helper()
	// Short, for control sockets' paths; and beside the wads, for hard links.
	dir, err := os.MkdirTemp(shared.dir, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() && !*keep {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			return
		}
		kept := filepath.Join(os.TempDir(), "reassure-"+strings.ReplaceAll(t.Name(), "/", "-")+"-"+filepath.Base(dir))
		if err := os.Rename(dir, kept); err != nil {
			t.Error(err)
		}
		t.Logf("kept in %s: boot*/console.log, boot*/qemu.command, site, tftp, disks, what servers said", kept)
		t.Logf("again: go test ./qemu-tests -count=1 -v -run '^%s$'", t.Name())
	})
	return dir
}

// newLab makes a lab; {{KEY}} in its files and variables becomes the line for the
// PC's authorized_keys.
func newLab(t *testing.T, s Setup) *labT {
	t.Helper()
	p := programs(t)
	dir := keptDir(t, "lab")
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	filled := func(texts map[string]string) map[string]string {
		out := map[string]string{}
		for name, text := range texts {
			out[name] = strings.ReplaceAll(text, "{{KEY}}", key.Line)
		}
		return out
	}
	s.Files, s.Vars = filled(s.Files), filled(s.Vars)
	lab, err := NewLab(t.Context(), p, dir, s, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Web.Close(); err != nil {
			t.Error(err)
		}
	})
	return &labT{lab, t}
}

func (l *labT) publish() {
	l.t.Helper()
	if err := l.Publish(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *labT) decide(decision string) {
	l.t.Helper()
	if err := l.Switch(l.t.Context(), decision); err != nil {
		l.t.Fatal(err)
	}
}

func (l *labT) write(name, content string) {
	l.t.Helper()
	if err := l.Write(name, content); err != nil {
		l.t.Fatal(err)
	}
}

// event waits for an event of this boot.
func (l *labT) event(kind spec.EventKind, within time.Duration) spec.Event {
	l.t.Helper()
	ctx, cancel := context.WithTimeoutCause(l.t.Context(), within, fmt.Errorf("not within %v", within))
	defer cancel()
	e, err := l.Web.Event(ctx, kind)
	if err != nil {
		l.t.Fatal(err)
	}
	return e
}

// powerOn switches the PC on, once there is room for one more, and off when the
// test ends.
func (l *labT) powerOn(m Machine) *vmT {
	l.t.Helper()
	running <- struct{}{}
	l.Web.Forget()
	l.Web.Requests()
	vm, err := l.PowerOn(l.t.Context(), nil, m)
	if err != nil {
		<-running
		l.t.Fatal(err)
	}
	v := &vmT{VM: vm, t: l.t}
	l.t.Cleanup(v.off)
	return v
}

// vmT is a VM whose every error ends its test.
type vmT struct {
	*VM
	t    *testing.T
	once sync.Once
}

// off pulls the plug, if it is still in.
func (v *vmT) off() {
	v.once.Do(func() {
		err := v.Kill()
		<-running
		if err != nil {
			v.t.Error(err)
		}
	})
}

// expect waits for a line of the console, unless the reimage fails before it.
func (v *vmT) expect(pattern string, within time.Duration) []string {
	v.t.Helper()
	ctx, cancel := context.WithTimeoutCause(v.t.Context(), within, fmt.Errorf("not within %v", within))
	defer cancel()
	never := []*regexp.Regexp{panicked}
	if !strings.Contains(pattern, "REIMAGE FAILED") {
		never = append(never, failed)
	}
	groups, err := v.Expect(ctx, regexp.MustCompile(pattern), never...)
	if err != nil {
		text := v.Text()
		v.t.Fatalf("%v\nits processors:\n%s\nthe console's last lines:\n%s", err, v.Processors(), text[max(0, len(text)-3000):])
	}
	return groups
}

// login logs in as root with the keys that the PC reported when it was reimaged.
func (v *vmT) login(l *labT, hostKeys []string) *guestT {
	v.t.Helper()
	ctx, cancel := context.WithTimeoutCause(v.t.Context(), 2*time.Minute, fmt.Errorf("not within 2m"))
	defer cancel()
	g, err := v.Login(ctx, "root", l.Key, hostKeys)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { g.Close() })
	return &guestT{g, v.t}
}

// waitOff waits until the PC has switched itself off.
func (v *vmT) waitOff(within time.Duration) {
	v.t.Helper()
	ctx, cancel := context.WithTimeoutCause(v.t.Context(), within, fmt.Errorf("not within %v", within))
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		v.t.Fatal(err)
	}
	v.off()
}

type guestT struct {
	*Guest
	t *testing.T
}

// run runs a command line, which must succeed.
func (g *guestT) run(line string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeoutCause(g.t.Context(), 10*time.Minute, fmt.Errorf("no end after 10m"))
	defer cancel()
	out, err := g.Run(ctx, line)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// says checks that a command line succeeds and writes want. The test goes on if not.
func (g *guestT) says(line, want string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeoutCause(g.t.Context(), 2*time.Minute, fmt.Errorf("no end after 2m"))
	defer cancel()
	got, err := g.Run(ctx, line)
	if err != nil {
		g.t.Error(err)
	} else if got != want {
		g.t.Errorf("%s: %q, want %q", line, got, want)
	}
}

// matches is says with a regular expression.
func (g *guestT) matches(line, pattern string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeoutCause(g.t.Context(), 2*time.Minute, fmt.Errorf("no end after 2m"))
	defer cancel()
	got, err := g.Run(ctx, line)
	if err != nil {
		g.t.Error(err)
	} else if !regexp.MustCompile(pattern).MatchString(got) {
		g.t.Errorf("%s: %q, want a match of %q", line, got, pattern)
	}
}

// powerOff has the system switch the PC off, and waits for it.
func (g *guestT) powerOff(v *vmT) {
	g.t.Helper()
	// The connection may end before the command has.
	if _, err := g.Run(g.t.Context(), "sync; poweroff"); err != nil {
		g.t.Log("poweroff:", err)
	}
	v.waitOff(2 * time.Minute)
}

// sum returns a disk's digest.
func sum(t *testing.T, d *Disk) spec.Digest {
	t.Helper()
	s, err := d.Sum()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bootable checks whether a disk has boot code.
func bootable(t *testing.T, d *Disk, want bool) {
	t.Helper()
	got, err := d.Bootable()
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("the disk has boot code: %v, want %v", got, want)
	}
}
