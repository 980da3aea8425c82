package qemutests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

// A test ground that sees what is not there, or not what is, is worse than none:
// these are its own tests.

func TestConsole(t *testing.T) {
	t.Parallel()
	login, broken := regexp.MustCompile(`(?m)^(\S+) login: `), regexp.MustCompile(`FAILED: .*`)
	tests := []struct {
		name   string
		writes []string
		want   []string // groups of the match of login
		err    string
	}{
		{"a prompt without a line end", []string{"Debian\r\n\r\nexp01 login: "}, []string{"exp01 login: ", "exp01"}, ""},
		{"in pieces", []string{"exp", "01 lo", "gin: "}, []string{"exp01 login: ", "exp01"}, ""},
		{"failure first", []string{"FAILED: no disk\nexp01 login: "}, nil, "FAILED: no disk"},
		{"failure after", []string{"exp01 login: \nFAILED: no disk"}, []string{"exp01 login: ", "exp01"}, ""},
		{"switched off", []string{"Linux\n"}, nil, "pulled"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := new(Console)
			go func() {
				for _, w := range test.writes {
					io.WriteString(c, w)
				}
				c.end(errors.New("pulled"))
			}()
			got, err := c.Expect(t.Context(), login, broken)
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Fatalf("error %v, want %q", err, test.err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("much at once", func(t *testing.T) {
		c := new(Console)
		wait := make(chan error)
		go func() {
			_, err := c.Expect(t.Context(), login)
			wait <- err
		}()
		for waiting := false; !waiting; {
			c.mu.Lock()
			waiting = c.changed != nil
			c.mu.Unlock()
		}
		io.WriteString(c, "exp01 login: \n"+strings.Repeat("much more\n", reach))
		c.end(errors.New("pulled"))
		if err := <-wait; err != nil {
			t.Error(err)
		}
	})
	t.Run("goes past what it found", func(t *testing.T) {
		c := new(Console)
		io.WriteString(c, "one login: \ntwo login: \n")
		for _, want := range []string{"one", "two"} {
			if got, err := c.Expect(t.Context(), login); err != nil || got[1] != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := c.Expect(ctx, login); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want a deadline", err)
		}
	})
}

func TestDisk(t *testing.T) {
	t.Parallel()
	make := func(name string, fill func(*os.File) error) *Disk {
		d := &Disk{Size: 64 * spec.MiB, Fill: fill}
		if err := d.Make(filepath.Join(t.TempDir(), name)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	at := func(offset int64, text string) func(*os.File) error {
		return func(f *os.File) error { _, err := f.WriteAt([]byte(text), offset); return err }
	}
	blank := make("blank", nil)
	if sum(t, blank) != sum(t, make("zeros", at(1<<20, strings.Repeat("\x00", 1<<20)))) {
		t.Error("zeros that are stored count")
	}
	seen := map[spec.Digest]string{sum(t, blank): "blank"}
	for name, d := range map[string]*Disk{
		"first byte": make("a", at(0, "x")), "last byte": make("b", at(64<<20-1, "x")), "elsewhere": make("c", at(5<<20, "x")),
	} {
		s := sum(t, d)
		if other, ok := seen[s]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[s] = name
	}
	bootable(t, blank, false)
	bootable(t, make("signature only", at(440, "abcd")), false)
	bootable(t, make("a reimage under way", at(0, "\xfa1\xc0ReAssure: this disk is not whole yet; it will be reimaged")), false)
	bootable(t, make("code", at(439, "x")), true)
}

func TestWeb(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := ServeWeb(root)
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + w.listener.Addr().String()
	get := func(path, byteRange string) string {
		req, err := http.NewRequestWithContext(t.Context(), "GET", base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if byteRange != "" {
			req.Header.Set("Range", byteRange)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s %v", resp.StatusCode, body, err)
	}
	tests := []struct {
		name, path, byteRange string
		fault                 Fault
		want                  string
	}{
		{"whole", "/file", "", Fault{}, "200 0123456789 <nil>"},
		{"part", "/file", "bytes=4-", Fault{}, "206 456789 <nil>"},
		{"not there", "/other", "", Fault{}, "404 404 page not found\n <nil>"},
		{"outside", "/../../../etc/passwd", "", Fault{}, "404 404 page not found\n <nil>"},
		{"status", "/file", "", Fault{Suffix: "file", Status: 503}, "503 Service Unavailable\n <nil>"},
		{"another file's", "/file", "", Fault{Suffix: "wad", Status: 503}, "200 0123456789 <nil>"},
		{"cut", "/file", "", Fault{Suffix: "file", CutAt: 5}, "200 01234 unexpected EOF"},
		{"cut in a part", "/file", "bytes=4-", Fault{Suffix: "file", CutAt: 5}, "206 4 unexpected EOF"},
		{"flipped", "/file", "bytes=4-", Fault{Suffix: "file", FlipAt: 6}, "206 4\xca6789 <nil>"},
		{"slow", "/file", "", Fault{Suffix: "file", Rate: 1000}, "200 0123456789 <nil>"},
		{"a page", "/file", "", Fault{Suffix: "file", Page: true}, "200 <!DOCTYPE html>\n<html><body><h1>It works!</h1></body></html>\n <nil>"},
		{"said to be shorter", "/file", "bytes=4-", Fault{Suffix: "file", Length: -2}, "206 4567 <nil>"},
		{"said to be longer", "/file", "", Fault{Suffix: "file", Length: 2}, "200 0123456789 unexpected EOF"},
	}
	for _, test := range tests {
		w.Break(test.fault)
		if got := get(test.path, test.byteRange); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	w.Break(Fault{Suffix: "file", Status: 500, Times: 1})
	if got := get("/file", "") + get("/file", ""); got != "500 Internal Server Error\n <nil>200 0123456789 <nil>" {
		t.Errorf("a fault for one request: %q", got)
	}
	w.Break()
	if err := w.Restart(0); err != nil {
		t.Fatal(err)
	}
	if got := get("/file", ""); got != "200 0123456789 <nil>" {
		t.Errorf("after a restart: %q", got)
	}
	post := func(body string) int {
		resp, err := http.Post(base+eventsPath, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got := post(`{"kind":"done","host":"exp01","mac":"52:54:00:12:34:56","time":"2026-01-01T00:00:00Z","uptime":1}`); got != 204 {
		t.Errorf("an event: %d", got)
	}
	if e, err := w.Event(t.Context(), spec.EventDone); err != nil || e.Host != "exp01" {
		t.Errorf("event %+v, %v", e, err)
	}
	if got := post(`{"kind":"done","surprise":1}`); got != 400 {
		t.Errorf("what is no event: %d", got)
	}
	if err := w.Close(); err == nil {
		t.Error("what is no event was forgotten")
	}
}
