package qemutests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"reassure/image/command"
	"reassure/image/spec"
)

// PC is one of a room's.
type PC struct {
	Name, IP string
	MAC      spec.MAC
	Disk     *Disk     // nil means none
	Firmware *Firmware // nil is a BIOS
	Vars     map[string]string
}

// RoomSetup is a room as a test wants it.
type RoomSetup struct {
	PCs []*PC
	// Profile, Files and Wads are as in [Setup].
	Profile string
	Files   map[string]string
	Wads    map[string]string
}

// Room is a site with several PCs on a segment of their own.
type Room struct {
	RoomSetup
	*Segment
	Dir  string // the room's own folder
	Site string // what a person edits
	TFTP string
	Key  *Key // root's on the PCs, once they are reimaged

	programs *Programs
	starts   atomic.Int32
}

// NewRoom makes a site in folder dir, whose PCs are on a segment that is made,
// too. Nothing serves them yet.
func NewRoom(ctx context.Context, p *Programs, dir string, s RoomSetup, key *Key) (*Room, error) {
	r := &Room{
		RoomSetup: s, Dir: dir, Key: key, programs: p,
		Site: filepath.Join(dir, "site"), TFTP: filepath.Join(dir, "tftp"),
	}
	if err := linkTree(filepath.Join(p.Image, "tftproot"), r.TFTP); err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	if _, err := r.Reassure(ctx, "init", r.Site); err != nil {
		return nil, err
	}
	for name, content := range s.Files {
		if err := r.Write(name, content); err != nil {
			return nil, err
		}
	}
	for name, from := range s.Wads {
		// A copy: tests spoil it.
		if err := copyFile(from, filepath.Join(r.Site, "wads", name)); err != nil {
			return nil, fmt.Errorf("room: %w", err)
		}
	}
	if err := r.WriteInventory(); err != nil {
		return nil, err
	}
	var err error
	r.Segment, err = NewSegment(ctx)
	return r, err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Write writes a file of the site.
func (r *Room) Write(name, content string) error {
	path := filepath.Join(r.Site, filepath.FromSlash(name))
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644))
	if err != nil {
		return fmt.Errorf("room: %w", err)
	}
	return nil
}

// roomURL is the path of everything by HTTP.
const roomURL = "http://" + SegmentServer + "/reassure"

// WriteInventory writes site.yaml, as the PCs are now.
func (r *Room) WriteInventory() error {
	var y strings.Builder
	fmt.Fprintf(&y, "site:\n  url: %s\n  server: %s\n  network: %s\n  domain: lab.example\n", roomURL, SegmentServer, SegmentNetwork)
	fmt.Fprintf(&y, "  command_line: %q\nhosts:\n", consoles)
	for _, pc := range r.PCs {
		fmt.Fprintf(&y, "  - name: %s\n    mac: [%q]\n    ip: %s\n    profile: %s\n", pc.Name, pc.MAC, pc.IP, r.Profile)
		if len(pc.Vars) > 0 {
			y.WriteString("    vars:\n")
		}
		for _, k := range slices.Sorted(maps.Keys(pc.Vars)) {
			fmt.Fprintf(&y, "      %s: %q\n", k, pc.Vars[k])
		}
	}
	return r.Write("site.yaml", y.String())
}

// Reassure runs the operator's program in the site's folder and returns what it
// wrote to standard output.
func (r *Room) Reassure(ctx context.Context, args ...string) (string, error) {
	dir := r.Site
	if args[0] == "init" {
		dir = r.Dir
	}
	args = append([]string{r.programs.Reassure}, args...)
	out, err := command.Command{Args: args, Dir: dir, Env: r.programs.Env(), Timeout: 5 * time.Minute}.Output(ctx)
	return string(out), err
}

// PowerOn switches a PC on. A disk that has no file yet gets one.
func (r *Room) PowerOn(ctx context.Context, pc *PC, watch io.Writer) (*VM, error) {
	m := Machine{
		Dir:     filepath.Join(r.Dir, fmt.Sprintf("boot%d.%s", r.starts.Add(1), pc.Name)),
		Segment: r.Segment, Address: pc.IP, MAC: pc.MAC, Firmware: pc.Firmware, Watch: watch,
	}
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("room: %w", err)
	}
	if pc.Disk != nil {
		if pc.Disk.Path() == "" {
			if err := pc.Disk.Make(filepath.Join(r.Dir, pc.Name+".disk")); err != nil {
				return nil, err
			}
		}
		m.Disks = []*Disk{pc.Disk}
	}
	return m.Start(ctx)
}

// Config writes lab.yaml for a boot server whose DHCP is in that mode. A pause
// after a failure is as short as a test wants it.
func (r *Room) Config(mode string) error {
	pool := ""
	if mode == "server" {
		pool = ", pool: 172.30.0.100-172.30.0.199"
	}
	login := filepath.Join(r.Dir, "key")
	if err := os.WriteFile(login, r.Key.File, 0o600); err != nil {
		return fmt.Errorf("room: %w", err)
	}
	return r.Write("lab.yaml", fmt.Sprintf(`interfaces: [%s]
dhcp: {mode: %s%s}
tftp: {root: %s}
http: {listen: ["%s:80"]}
state: state
socket: %s
ssh_key: %s
attempts: {most: 2, pause: 1s, lease: 10m}
`, bridge, mode, pool, r.TFTP, SegmentServer, r.socket(), login))
}

func (r *Room) socket() string { return filepath.Join(r.Dir, "sock") }

// Serve starts the boot server. It listens once it has said "ready".
func (r *Room) Serve(ctx context.Context) (*Daemon, error) {
	return r.Start(ctx, r.Dir, r.programs.Env(), r.programs.Reassure, "serve", "--config", filepath.Join(r.Site, "lab.yaml"))
}

// Ask has the operator's program speak to the boot server, and returns what it
// wrote to standard output.
func (r *Room) Ask(ctx context.Context, args ...string) (string, error) {
	return r.Reassure(ctx, append([]string{"--server", r.socket()}, args...)...)
}

// Get returns what the boot server has at a path, to whoever is on the segment.
func (r *Room) Get(ctx context.Context, path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: r.Dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+SegmentServer+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return string(body), err
}

// OwnSystem fills a disk with the least that can be called a system: it says own
// on the serial port, and nothing more.
func OwnSystem(own string) func(*os.File) error {
	return func(f *os.File) error {
		sector := make([]byte, 512)
		// The BIOS loads it at 7C00 and goes on there.
		code := []byte{
			0x31, 0xc0, // xor ax, ax
			0x8e, 0xd8, // mov ds, ax
			0xbe, 0x15, 0x7c, // mov si, text
			0xac,       // next: lodsb
			0x84, 0xc0, // test al, al
			0x74, 0x06, // jz stop
			0xba, 0xf8, 0x03, // mov dx, 3f8h
			0xee,       // out dx, al
			0xeb, 0xf5, // jmp next
			0xf4,       // stop: hlt
			0xeb, 0xfd, // jmp stop
		}
		n := copy(sector, code)
		copy(sector[n:440], own+"\r\n")
		copy(sector[510:], []byte{0x55, 0xaa})
		_, err := f.WriteAt(sector, 0)
		return err
	}
}
