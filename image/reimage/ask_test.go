package reimage

import (
	"errors"
	"strings"
	"testing"
	"time"

	"reassure/image/reimage/cmdline"
	"reassure/image/spec"
)

// TestAsk has an image that no boot loader has loaded ask for its boot decision.
func TestAsk(t *testing.T) {
	const path = "/lab/boot/uki/01-00-09-3d-12-20-ed"
	for _, c := range []struct {
		name   string
		text   string // empty means that there is none
		remote bool
		refuse string
		logs   string
	}{
		{name: "nothing for this PC", logs: "no boot decision for this PC"},
		{name: "local", text: "# Made by somebody\nsay ReAssure: local: up to date\nlocal\n", logs: "ReAssure: local: up to date"},
		{name: "remote", text: "say its turn\nremote reassure.url=http://127.0.0.1:1/else reassure.token=" + secret + " reassure.retries=0 console=ttyS0\n", remote: true, logs: "its turn"},
		{name: "neither", text: "yes\n", refuse: path},
		{name: "both", text: "local\nremote\n", refuse: "must be one of"},
		{name: "an image", text: "MZ\x00\x00", refuse: path},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string][]byte{}
			if c.text != "" {
				files[path] = []byte(c.text)
			}
			s := newSite(t, files)
			r, ring := booted(t, cmdline.Options{URL: s.URL + "/lab", Ask: true})
			remote, err := r.ask(t.Context())
			logged := strings.Join(ring.Take(), "\n")
			if strings.Contains(logged, secret) {
				t.Errorf("the token is logged:\n%s", logged)
			}
			var refusal *Refusal
			switch {
			case c.refuse != "":
				if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.refuse) {
					t.Errorf("error %v; want a refusal with %q", err, c.refuse)
				}
				return
			case err != nil || remote != c.remote || r.told != c.remote || !strings.Contains(logged, c.logs):
				t.Errorf("remote %v, %v; want %v. It says\n%s", remote, err, c.remote, logged)
			}
			o := r.Options
			if c.remote && (r.base != "http://127.0.0.1:1/else" || string(o.Token) != secret || o.Retries == nil || !o.Ask || r.reports == nil) {
				t.Errorf("after Remote: base %s, %+v", r.base, o)
			}
		})
	}
}

// TestAskAgain has the server tell a PC to wait, and then to be reimaged.
func TestAskAgain(t *testing.T) {
	files := map[string][]byte{"/lab/boot/uki/01-00-09-3d-12-20-ed": []byte("wait 1\n")}
	s := newSite(t, files)
	r, _ := booted(t, cmdline.Options{URL: s.URL + "/lab", Ask: true})
	begin := time.Now()
	time.AfterFunc(300*time.Millisecond, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		files["/lab/boot/uki/01-00-09-3d-12-20-ed"] = []byte("remote\n")
	})
	remote, err := r.ask(t.Context())
	if took := time.Since(begin); !remote || err != nil || len(s.asked) != 2 || took < time.Second {
		t.Errorf("remote %v, %v after %v and %v", remote, err, took, s.asked)
	}
}

// TestAskNobody has no server, or none that answers.
func TestAskNobody(t *testing.T) {
	r, _ := booted(t, cmdline.Options{Ask: true})
	var refusal *Refusal
	if _, err := r.ask(t.Context()); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "reassure.url=") {
		t.Errorf("without a server: %v", err)
	}
	r, _ = booted(t, cmdline.Options{Ask: true, URL: "http://127.0.0.1:1/lab"})
	r.limit = time.Now().Add(300 * time.Millisecond)
	if remote, err := r.ask(t.Context()); remote || err == nil || errors.As(err, &refusal) || !r.lastTry(spec.OnFailure{}, err) {
		t.Errorf("a server that is gone: remote %v, %v", remote, err)
	}
}
