package qemutests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
)

// login logs in on a PC that runs.
func (r *servedT) login(pc *PC, vm *vmT) *guestT {
	r.t.Helper()
	ctx, cancel := context.WithTimeoutCause(r.t.Context(), time.Minute, fmt.Errorf("not within a minute"))
	defer cancel()
	g, err := vm.Login(ctx, "root", r.Key, r.keys(pc))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { g.Close() })
	return &guestT{g, r.t}
}

// TestCaptured makes a golden PC, has its disk captured while it is off, and lays
// what was captured down on another.
func TestCaptured(t *testing.T) {
	room, pcs := serving(t, "server", 2)
	golden, other := pcs[0], pcs[1]
	room.ask("rollout", golden.Name)
	vm := room.powerOn(golden)
	vm.expect(`REIMAGE DONE`, 3*time.Minute)
	room.runs(golden, vm, "first")

	// What a person changes on it, and what is its own.
	const proof = `cd / && find usr srv -xdev ! -type d -print0 | sort -z | xargs -0 ls -lnd --full-time | md5sum; find usr srv -xdev -type f -print0 | sort -z | xargs -0 md5sum | md5sum`
	g := room.login(golden, vm)
	g.says(`mkdir -p /srv/golden && echo gold >/srv/golden/file && chmod 4751 /srv/golden/file && chown 7:8 /srv/golden/file && chmod 4751 /srv/golden/file && ln /srv/golden/file /srv/golden/hard &&
		echo 00000000000000000000000000000bad >/etc/machine-id && echo gone >/tmp/gone && echo gone >/var/log/gone.log && echo made`, "made")
	want := g.run(proof)
	g.run("mkdir /srv/left && echo left >/srv/left/behind")

	said := room.ask("capture", "--now", "--wait", golden.Name, "--exclude", "/srv/left")
	says(t, "capture", said, golden.Name+": is told to start", golden.Name+": capture done", "/wads/"+golden.Name+"-")
	found, err := filepath.Glob(filepath.Join(room.Site, "wads", golden.Name+"-*.tar.zst"))
	if err != nil || len(found) != 1 {
		t.Fatalf("captured wads: %v, %v", found, err)
	}
	// It goes on into its own system, with nothing changed.
	room.runs(golden, vm, "first")
	room.state(golden, api.Current, "local")
	vm.off()

	// The other gets it.
	profile, err := os.ReadFile(filepath.Join(room.Site, "profiles", "small.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(profile), "small.tar.zst", filepath.Base(found[0]))
	if text == string(profile) {
		t.Fatalf("the profile names no small.tar.zst:\n%s", profile)
	}
	if err := room.Write("profiles/small.yaml", text); err != nil {
		t.Fatal(err)
	}
	says(t, "reload", room.ask("reload"), other.Name+": changed")
	room.ask("rollout", other.Name)
	vm = room.powerOn(other)
	vm.expect(`REIMAGE DONE`, 4*time.Minute)
	room.runs(other, vm, "first")
	g = room.login(other, vm)
	g.says(`cat /srv/golden/hard; stat -c '%a %u:%g %h' /srv/golden/file; wc -c </etc/machine-id; ls -d /srv/left /tmp/gone /var/log/gone.log 2>/dev/null; echo end`, "gold\n4751 7:8 2\n0\nend")
	if got := g.run(proof); got != want {
		t.Errorf("the trees differ: %s, captured from %s", got, want)
	}
	if k := room.keys(other); strings.Join(k, "") == strings.Join(room.keys(golden), "") {
		t.Error("both PCs have the same keys")
	}
}
