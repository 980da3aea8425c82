package qemutests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"reassure/image/command"
	"reassure/image/serve/api"
)

// person is somebody at the boot server who has OpenSSH and a key.
type person struct {
	*roomT
	pc    *PC
	key   string // file
	known string // file
}

func (r *roomT) person(pc *PC, key *Key) *person {
	r.t.Helper()
	dir := r.t.TempDir()
	p := &person{r, pc, filepath.Join(dir, "key"), filepath.Join(dir, "known")}
	if err := os.WriteFile(p.key, key.File, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// ssh is a command that logs in.
func (p *person) ssh(args ...string) command.Command {
	fixed := []string{"ssh", "-F", "none", "-i", p.key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + p.known,
		"-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"}
	return command.Command{Args: p.Args(append(fixed, args...)...), Timeout: time.Minute}
}

// says checks what a command prints, and with which status it ends.
func (p *person) says(want string, status int, args ...string) {
	p.t.Helper()
	got, err := p.ssh(args...).Output(p.t.Context())
	var ended interface{ ExitCode() int }
	code := 0
	if errors.As(err, &ended) {
		code = ended.ExitCode()
	} else if err != nil {
		p.t.Fatal(err)
	}
	if strings.TrimSpace(string(got)) != want || code != status {
		p.t.Errorf("ssh %s: %q, status %d, %v; want %q and %d", strings.Join(args, " "), got, code, err, want, status)
	}
}

// refused checks that a login fails, and how.
func (p *person) refused(how string, args ...string) {
	p.t.Helper()
	if got, err := p.ssh(args...).Output(p.t.Context()); err == nil || !strings.Contains(err.Error(), how) {
		p.t.Errorf("ssh %s: %q, %v; want %q", strings.Join(args, " "), got, err, how)
	}
}

// fingerprint is that of the PC's key as ssh has seen it.
func (p *person) fingerprint() string {
	p.t.Helper()
	out, err := command.Command{Args: []string{"ssh-keygen", "-lf", p.known}}.Output(p.t.Context())
	words := strings.Fields(string(out))
	if err != nil || len(words) < 2 {
		p.t.Fatalf("%q, %v", out, err)
	}
	return words[1]
}

// atTerminal has the image's shell at a terminal, and ends what runs there by Ctrl-C.
func (p *person) atTerminal() {
	p.t.Helper()
	input, typed, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	defer typed.Close()
	screen := new(Console)
	c := p.ssh("-tt", "root@"+p.pc.IP)
	c.Stdin, c.Stdout = input, screen
	ended := make(chan error, 1)
	go func() {
		defer input.Close()
		ended <- c.Run(p.t.Context())
		screen.end(errors.New("ssh has ended"))
	}()
	see := func(text string) {
		p.t.Helper()
		ctx, cancel := context.WithTimeoutCause(p.t.Context(), 20*time.Second, fmt.Errorf("not within 20 s"))
		defer cancel()
		if _, err := screen.Expect(ctx, regexp.MustCompile(text)); err != nil {
			p.t.Fatalf("%v; the terminal shows:\n%s", err, screen.Text())
		}
	}
	typing := func(text string) {
		p.t.Helper()
		if _, err := io.WriteString(typed, text); err != nil {
			p.t.Fatal(err)
		}
	}
	see(`\$ `)
	typing("echo $((6*7)) $TERM; echo under''way; cat\n")
	see(`42 \S+\s+underway`)
	typing("a line\n")
	see(`a line\s+a line`)
	typing("\x03")
	see(`\$ `)
	typing("echo still''here\n")
	see(`stillhere`)
	typing("exit\n")
	if err := <-ended; err != nil {
		p.t.Errorf("the shell at the terminal: %v", err)
	}
}

// TestRescueOnPC has a PC whose disk is a stranger's wait for people who log in, twice: it is
// ended by who is logged in, and by the boot server. Nothing is written to the disk, nobody
// gets in but by a listed key, and at no other time does anything listen.
func TestRescueOnPC(t *testing.T) {
	room, pc, untouched := withStranger(t, "RESCUED")
	const shown = `RESCUE: ssh root@172\.30\.0\.11; this boot's host key is ED25519 (SHA256:\S+)`

	says(t, "rescue", room.ask("rescue", pc.Name), "exp01: will wait for people who log in")
	vm := room.powerOn(pc)
	first := vm.expect(shown, 4*time.Minute)[1]
	room.await(pc, "in rescue", time.Minute, func(h api.Host) bool { return strings.Contains(h.Reason, first) })
	says(t, "status", room.ask("status"), first)
	says(t, "why", room.ask("why", pc.Name), "in rescue: ssh root@172.30.0.11", first)
	ann := room.person(pc, room.Key)
	ann.says("0::root:/root", 3, "root@"+pc.IP, "echo $?::$USER:$HOME; test -e /dev/vda && exit 3")
	if got := ann.fingerprint(); got != first {
		t.Errorf("ssh shows %s, the PC %s", got, first)
	}
	ann.says("512 1", 0, "root@"+pc.IP, "dd if=/dev/vda bs=512 count=1 2>/dev/null | cat >/tmp/mbr; ls /tmp/mbr >/dev/null && echo 512 1")
	ann.atTerminal()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	stranger := room.person(pc, key)
	stranger.refused("Permission denied (publickey)", "root@"+pc.IP, "true")
	ann.refused("Permission denied (publickey)", "-o", "PubkeyAuthentication=no", "root@"+pc.IP, "true")
	ann.refused("Permission denied (publickey)", "admin@"+pc.IP, "true")
	untouched("in the first rescue")
	ann.ssh("root@"+pc.IP, "reboot").Run(t.Context()) // its connection may end before its status comes
	vm.expect("RESCUE OVER", time.Minute)
	vm.expect("the old system", time.Minute)
	room.state(pc, api.New, "local")
	says(t, "log", room.ask("log", pc.Name), "logged in: tests from 172.30.0.5:", "done: ended by who was logged in")
	untouched("by the reboot")

	room.ask("rescue", pc.Name)
	press(t, vm)
	second := vm.expect(shown, 4*time.Minute)[1]
	if second == first {
		t.Error("two boots have the same host key")
	}
	ann.refused("Host key verification failed", "root@"+pc.IP, "true")
	room.await(pc, "in rescue", time.Minute, func(h api.Host) bool { return strings.Contains(h.Reason, second) })
	says(t, "release", room.ask("release", pc.Name), "exp01: its rescue ends")
	vm.expect("RESCUE OVER", time.Minute)
	vm.expect("the old system", time.Minute)
	room.state(pc, api.New, "local")

	// What else the image does has nobody listen.
	says(t, "accept-disk", room.ask("accept-disk", pc.Name, "--yes"), "RESCUED", "exp01: accepted")
	room.ask("rollout", pc.Name)
	press(t, vm)
	vm.expect(`-> approval`, 4*time.Minute)
	ann.refused("Connection refused", "root@"+pc.IP, "true")
	untouched("at last")
}
