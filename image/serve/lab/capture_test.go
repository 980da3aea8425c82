package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"reassure/image/serve/api"
	"reassure/image/serve/hosts"
	"reassure/image/spec"
	"reassure/image/wad"
)

// system is a PC's, as a tarball.
func system(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	text := strings.Repeat("a file of the golden PC\n", 10000)
	for _, h := range []tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "./etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, text)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (w *world) capture(who string, exclude ...string) string {
	w.t.Helper()
	out, err := w.lab.Errand(w.t.Context(), api.ErrandRequest{Kind: spec.Capture, Targets: api.Targets{Targets: []string{who}}, Exclude: exclude}, "kim")
	if err != nil {
		w.t.Fatal(err)
	}
	return out[0].Text
}

// below lists the wads, and whatever else is beside them.
func below(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestCapture takes a capture from the order to the wad. The PC need not have had
// anything from us.
func TestCapture(t *testing.T) {
	w := newWorld(t)
	wads := filepath.Join(w.dir, "site", "wads")
	p := w.pc(1)
	p.ask(hosts.Local, "")
	if said := w.capture("exp01", "/srv/*"); said != "will capture at its next boot" {
		t.Errorf("it is said that it %s", said)
	}
	p.ask(hosts.Remote, "to be captured by kim")
	if m := p.manifest(); m.Errand == nil || m.Errand.Kind != spec.Capture || strings.Join(m.Errand.Exclude, " ") != "/srv/*" {
		t.Errorf("its errand is %+v", m.Errand)
	}
	send := func(token, host string, body io.Reader) (api.Captured, error) {
		return w.lab.Capture(t.Context(), token, p.ip, host, body)
	}
	whole := system(t)
	for _, test := range []struct {
		name, token, host string
		body              io.Reader
		want              error
		says              string
	}{
		{"without token", "", "exp01", bytes.NewReader(whole), api.ErrForbidden, ""},
		{"with another token", "x", "exp01", bytes.NewReader(whole), api.ErrForbidden, ""},
		{"as another PC", p.token, "exp02", bytes.NewReader(whole), api.ErrForbidden, ""},
		{"as nobody", p.token, "../exp01", bytes.NewReader(whole), api.ErrNotFound, ""},
		{"cut short", p.token, "exp01", bytes.NewReader(whole[:100000]), io.ErrUnexpectedEOF, ""},
		{"broken off", p.token, "exp01", io.MultiReader(bytes.NewReader(whole[:100000]), iotest.ErrReader(errors.New("connection reset"))), nil, "connection reset"},
		{"no tarball", p.token, "exp01", strings.NewReader(strings.Repeat("hello", 1000)), nil, "no wad"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := send(test.token, test.host, test.body)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error: %v; want %v, %q", err, test.want, test.says)
			}
			if got := below(t, wads); len(got) != 1 {
				t.Errorf("among the wads: %v", got)
			}
		})
	}

	// A transfer that hangs is ended when the PC begins anew.
	hanging, end := io.Pipe()
	defer end.Close()
	first := make(chan error, 1)
	go func() {
		_, err := send(p.token, "exp01", hanging)
		first <- err
	}()
	end.Write(whole[:1000])
	done, err := send(p.token, "exp01", bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	end.CloseWithError(errors.New("connection reset"))
	if err := <-first; err == nil {
		t.Error("the one before it was taken, too")
	}
	if want := filepath.Join(wads, "exp01-"+w.now.Format("20060102-150405")+".tar.zst"); done.File != want {
		t.Errorf("it is %s, want %s", done.File, want)
	}
	f, err := os.Open(done.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := t.TempDir()
	if _, err := wad.Extract(t.Context(), f, root, wad.Options{}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(root + "/etc/motd"); err != nil || len(text) != 240000 {
		t.Errorf("%d bytes, %v", len(text), err)
	}

	p.report(spec.Event{Kind: spec.EventErrand, Text: "the boot server has it"})
	h := w.host("exp01")
	if h.Errand != nil || len(h.History) != 1 || h.History[0].Errand != spec.Capture || h.History[0].Result != api.Done {
		t.Errorf("afterwards: errand %+v, history %+v", h.Errand, h.History)
	}
	text, err := w.lab.Log("exp01", "")
	if err != nil || !strings.Contains(text, "captured: "+done.File) || !strings.Contains(text, "capture failed: ") {
		t.Errorf("its log: %v\n%s", err, text)
	}
	p.ask(hosts.Local, "")
	if _, err := send(p.token, "exp01", bytes.NewReader(whole)); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("once more: %v", err)
	}
	// A reimage's token is for no capture.
	w.rollout(api.RolloutRequest{Targets: []string{"exp01"}})
	p.ask(hosts.Remote, "")
	p.manifest()
	if _, err := send(p.token, "exp01", bytes.NewReader(whole)); !errors.Is(err, api.ErrForbidden) || !strings.Contains(err.Error(), "nobody asked") {
		t.Errorf("by a reimage: %v", err)
	}
	_, err = w.lab.Errand(t.Context(), api.ErrandRequest{Kind: spec.Capture, Targets: api.Targets{Targets: []string{"exp02"}}, Exclude: []string{"srv"}}, "kim")
	if !errors.Is(err, api.ErrInvalid) {
		t.Errorf("a bad pattern: %v", err)
	}
}

// Where the server may not write to the site, as its unit has it, a wad goes
// below its own folder; on a disk that is nearly full, nowhere.
func TestCaptureElsewhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	w := newWorld(t)
	wads := filepath.Join(w.dir, "site", "wads")
	p := w.pc(1)
	w.capture("exp01")
	p.ask(hosts.Remote, "")
	p.manifest()
	mount := func(size string, flags uintptr) {
		if err := unix.Mount("tmpfs", wads, "tmpfs", flags, size); err != nil {
			t.Fatal(err)
		}
	}
	mount("size=1m", unix.MS_RDONLY)
	done, err := w.lab.Capture(t.Context(), p.token, p.ip, "exp01", bytes.NewReader(system(t)))
	if err := errors.Join(err, unix.Unmount(wads, 0)); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(w.dir, "state", CapturesFolder); filepath.Dir(done.File) != want || len(below(t, want)) != 1 {
		t.Errorf("it is %s; %v", done.File, below(t, want))
	}
	mount(fmt.Sprintf("size=%d", 100*spec.MiB), 0)
	defer unix.Unmount(wads, 0)
	w.now = w.now.Add(time.Second)
	if _, err := w.lab.Capture(t.Context(), p.token, p.ip, "exp01", bytes.NewReader(system(t))); err == nil || !strings.Contains(err.Error(), "make room there") {
		t.Errorf("error: %v", err)
	}
	if got := below(t, wads); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
}
