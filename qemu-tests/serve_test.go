package qemutests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// servedT is a room with a boot server.
type servedT struct {
	*roomT
	server *Daemon
}

// serve starts the boot server, and waits until it answers.
func (r *servedT) serve() {
	r.t.Helper()
	d, err := r.Serve(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { closing(r.t, d.Kill) })
	r.server = d
	r.ready(d, `\bready\b`)
}

// crash kills the boot server as nothing can be prepared for, and starts it again.
func (r *servedT) crash() {
	r.t.Helper()
	if err := r.server.Kill(); err != nil {
		r.t.Fatal(err)
	}
	r.serve()
}

// ask has the operator's program speak to the server, which must do it.
func (r *servedT) ask(args ...string) string {
	r.t.Helper()
	out, err := r.Ask(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// status returns what the server says of a PC.
func (r *servedT) status(pc *PC) api.Host {
	r.t.Helper()
	out := r.ask("status", "--json")
	var all []api.Host
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		r.t.Fatalf("status --json: %v\n%s", err, out)
	}
	for _, h := range all {
		if h.Name == pc.Name {
			return h
		}
	}
	r.t.Fatalf("status --json has no %s:\n%s", pc.Name, out)
	return api.Host{}
}

// await waits until the server says of a PC what is asked for.
func (r *servedT) await(pc *PC, what string, within time.Duration, is func(api.Host) bool) api.Host {
	r.t.Helper()
	var last api.Host
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if last = r.status(pc); is(last) {
			return last
		}
	}
	text, err := json.MarshalIndent(last, "", "  ")
	r.t.Fatalf("%s is not %s within %v; the server says %s %v", pc.Name, what, within, text, err)
	return last
}

// state checks what the server says of a PC, and what it would tell it.
func (r *servedT) state(pc *PC, state api.State, decision string) {
	r.t.Helper()
	if h := r.status(pc); h.State != state || h.Decision != decision {
		r.t.Fatalf("%s is %s and told %s (%s), want %s and %s", pc.Name, h.State, h.Decision, h.Reason, state, decision)
	}
}

// says checks that a text has all of these parts.
func says(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s does not say %q:\n%s", what, p, text)
		}
	}
}

// keys are a PC's host keys, as the server hands them to everybody's ssh.
func (r *servedT) keys(pc *PC) []string {
	r.t.Helper()
	var keys []string
	for line := range strings.Lines(r.ask("known-hosts")) {
		names, key, _ := strings.Cut(strings.TrimSpace(line), " ")
		for n := range strings.SplitSeq(names, ",") {
			if n == pc.Name {
				keys = append(keys, key)
			}
		}
	}
	if len(keys) == 0 {
		r.t.Fatalf("known-hosts has no key of %s", pc.Name)
	}
	return keys
}

// runs checks that a PC has started its own system, and that it is the one that
// was laid down for it.
func (r *servedT) runs(pc *PC, vm *vmT, motd string) {
	r.t.Helper()
	vm.expect(`(?m)^`+pc.Name+` login: `, 2*time.Minute)
	ctx, cancel := context.WithTimeoutCause(r.t.Context(), time.Minute, fmt.Errorf("not within a minute"))
	defer cancel()
	g, err := vm.Login(ctx, "root", r.Key, r.keys(pc))
	if err != nil {
		r.t.Fatal(err)
	}
	defer g.Close()
	(&guestT{g, r.t}).says("hostname; cat /etc/motd", pc.Name+"\n"+pc.Name+": "+motd)
}

// serving is a room of n PCs with systems of their own, and its boot server. Two
// of them may run at once: such a test runs alone.
func serving(t *testing.T, mode string, n int) (*servedT, []*PC) {
	t.Helper()
	var pcs []*PC
	for i := range n {
		name := fmt.Sprintf("exp%02d", i+1)
		pcs = append(pcs, &PC{
			Name: name, IP: fmt.Sprintf("172.30.0.%d", i+11), MAC: spec.MAC{0x52, 0x54, 0, 0, 0, byte(i + 1)},
			Disk: &Disk{Size: 2 * spec.GiB, Fill: OwnSystem("the old system of " + name)}, Vars: map[string]string{"motd": "first"},
		})
	}
	r := &servedT{roomT: newRoom(t, small(t, pcs...))}
	if err := r.Config(mode); err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r, pcs
}

// TestServe has the boot server do everything for two PCs, from their first
// power-on, and be killed again and again meanwhile.
func TestServe(t *testing.T) {
	room, pcs := serving(t, "server", 2)
	a, b := pcs[0], pcs[1]

	// Nothing was rolled out: nothing happens to anybody.
	vmA, vmB := room.powerOn(a), room.powerOn(b)
	vmA.expect("the old system of exp01", time.Minute)
	vmB.expect("the old system of exp02", time.Minute)
	for _, pc := range []*PC{a, b} {
		room.state(pc, api.New, "local")
		if room.status(pc).LastSeen.IsZero() {
			t.Errorf("the server has not seen %s", pc.Name)
		}
	}

	room.ask("rollout", a.Name, b.Name)
	room.crash()
	room.state(a, api.Armed, "remote")
	room.state(b, api.Armed, "remote")
	press(t, vmA, vmB)
	room.await(a, "being extracted", 2*time.Minute, func(h api.Host) bool { return h.Progress != nil && h.Progress.Phase == "extract" })
	room.crash()
	vmA.expect(`REIMAGE DONE`, 3*time.Minute)
	room.crash()
	// They restart, ask again, and are told Local.
	room.runs(a, vmA, "first")
	room.runs(b, vmB, "first")
	room.state(a, api.Current, "local")
	room.state(b, api.Current, "local")

	// A change arms nobody; it is told and explained.
	a.Vars["motd"] = "second"
	if err := room.WriteInventory(); err != nil {
		t.Fatal(err)
	}
	reload := room.ask("reload")
	says(t, "reload", reload, a.Name+": changed", "site/motd")
	if strings.Contains(reload, b.Name+": changed") {
		t.Errorf("reload speaks of %s:\n%s", b.Name, reload)
	}
	says(t, "why "+a.Name, room.ask("why", a.Name), "site/motd")
	if why := room.ask("why", b.Name); strings.Contains(why, "site/motd") {
		t.Errorf("why %s speaks of a change:\n%s", b.Name, why)
	}
	room.state(a, api.Changed, "local")
	press(t, vmA)
	room.runs(a, vmA, "first")

	// Rolled out, it concerns one PC. Its wad is damaged on the server's disk:
	// each attempt fails, and after the last the PC waits for a person.
	mend := spoil(t, filepath.Join(room.Site, "state"))
	room.ask("rollout", a.Name, b.Name)
	room.state(b, api.Current, "local")
	room.state(a, api.Armed, "remote")
	press(t, vmA, vmB)
	vmA.expect(`REIMAGE FAILED: (?s:.{0,500}?)small\.tar\.zst`, 3*time.Minute)
	vmA.waitOff(time.Minute)
	room.runs(b, vmB, "first")
	vmB.off()
	room.await(a, "waiting for its second attempt", time.Minute, func(h api.Host) bool { return h.State == api.Retrying && h.Decision == "remote" })
	vmA = room.powerOn(a)
	vmA.expect(`REIMAGE FAILED: `, 3*time.Minute)
	vmA.waitOff(time.Minute)
	parked := room.await(a, "parked", time.Minute, func(h api.Host) bool { return h.State == api.Parked })
	room.crash()
	room.state(a, api.Parked, "wait") // its disk is not whole
	says(t, "the reason", parked.Reason, "small.tar.zst")
	for _, path := range []string{"/reassure/", "/reassure/hosts/" + a.Name} {
		page, err := room.Get(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		says(t, path, html.UnescapeString(page), "parked", "small.tar.zst")
	}

	mend()
	room.ask("release", a.Name)
	room.state(a, api.Armed, "remote")
	vmA = room.powerOn(a)
	vmA.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(a, vmA, "second")
	room.state(a, api.Current, "local")
	room.state(b, api.Current, "local")

	// Now means now: the server logs in, restarts the PC, and it is reimaged though
	// nothing has changed.
	room.ask("reimage", "--yes", "--now", a.Name)
	vmA.expect(`to be reimaged: asked for by order`, 2*time.Minute)
	vmA.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(a, vmA, "second")
	if h := room.status(a); h.State != api.Current || h.Order != "" {
		t.Errorf("after its order was done: %+v", h)
	}
}

// TestServeProxy has another server give the addresses, as in most labs. It knows
// nothing of booting.
func TestServeProxy(t *testing.T) {
	room, pcs := serving(t, "proxy", 2)
	a, b := pcs[0], pcs[1]
	site := room.start(room.host("172.30.0.2"), `IP range`, dnsmasq("--conf-file=/dev/null", "--port=0",
		"--dhcp-range=172.30.0.11,172.30.0.12", "--no-ping", "--dhcp-leasefile="+filepath.Join(room.Dir, "leases"),
		"--dhcp-host="+a.MAC.String()+","+a.IP, "--dhcp-host="+b.MAC.String()+","+b.IP)...)
	vmA, vmB := room.powerOn(a), room.powerOn(b)
	vmA.expect("the old system of exp01", time.Minute)
	vmB.expect("the old system of exp02", time.Minute)

	room.ask("rollout", a.Name, b.Name)
	press(t, vmA, vmB)
	vmA.expect(`REIMAGE DONE`, 3*time.Minute)
	vmB.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(a, vmA, "first")
	room.runs(b, vmB, "first")
	room.state(a, api.Current, "local")
	room.state(b, api.Current, "local")
	says(t, "the site's own DHCP server", site.Text(), "DHCPACK(eth0) "+a.IP, "DHCPACK(eth0) "+b.IP)
}

// press presses PCs' reset buttons.
func press(t *testing.T, vms ...*vmT) {
	t.Helper()
	for _, vm := range vms {
		if err := vm.Reset(); err != nil {
			t.Fatal(err)
		}
	}
}

// spoil changes a byte in each wad that is kept below a folder, and returns what
// puts them back. A wad may be a hard link to the site's own, which stays whole.
func spoil(t *testing.T, dir string) (mend func()) {
	t.Helper()
	moved := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".tar.zst") {
			return err
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		bad := bytes.Clone(whole)
		bad[10_000_000] ^= 0xff
		moved[path] = filepath.Join(t.TempDir(), "whole")
		if err := copyFile(path, moved[path]); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.WriteFile(path, bad, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(moved) == 0 {
		t.Fatalf("there is no wad below %s", dir)
	}
	return func() {
		t.Helper()
		for path, whole := range moved {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := copyFile(whole, path); err != nil {
				t.Fatal(err)
			}
		}
	}
}
