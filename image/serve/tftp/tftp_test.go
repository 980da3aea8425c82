package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pin/tftp/v3"

	"reassure/image/serve/files"
)

// fakeTree holds files in memory, and counts who opens what.
type fakeTree struct {
	files  map[string][]byte
	broken map[string]bool // the reader fails half-way

	mu     sync.Mutex
	opened map[string]int
	closed atomic.Int32
}

type reader struct {
	*bytes.Reader
	tree   *fakeTree
	broken bool
}

func (r reader) Read(p []byte) (int, error) {
	if r.broken && r.Len() < 10_000 {
		return 0, errors.New("the disk is ill")
	}
	return r.Reader.Read(p)
}

func (r reader) Close() error {
	r.tree.closed.Add(1)
	return nil
}

func (t *fakeTree) Open(name string, from netip.Addr) (*files.File, error) {
	if from != netip.MustParseAddr("127.0.0.1") && from != netip.MustParseAddr(anotherPC) {
		return nil, fmt.Errorf("asked from %v", from)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opened[name]++
	data, ok := t.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &files.File{ReadSeekCloser: reader{bytes.NewReader(data), t, t.broken[name]}, Size: int64(len(data))}, nil
}

func (t *fakeTree) count(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opened[name]
}

// noise is data that no two blocks of are alike.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// start runs a server on the loopback interface until the test ends.
func start(t testing.TB, s *Server) *net.UDPAddr {
	t.Helper()
	// Some port that is free.
	probe, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.LocalAddr().(*net.UDPAddr)
	probe.Close()
	s.Interfaces, s.Port = []string{"lo"}, addr.Port
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run goes on after its context has ended")
		}
	})
	return addr
}

func newTree() *fakeTree {
	return &fakeTree{opened: map[string]int{}, broken: map[string]bool{}, files: map[string][]byte{
		"large": noise(200_001), "empty": {}, "even": noise(512 * 7), "lines": []byte("a\nb\r\nc\n"),
	}}
}

// TestClients has clients of other people's fetch files and be refused.
func TestClients(t *testing.T) {
	tree := newTree()
	addr := start(t, &Server{Tree: tree})
	host, port := addr.IP.String(), strconv.Itoa(addr.Port)
	run := func(t *testing.T, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil && errors.Is(err, exec.ErrNotFound) {
			t.Fatalf("%v: run scripts/install-deps test", err)
		}
		return string(out)
	}
	pin := func(prepare func(*tftp.Client)) func(t *testing.T, name, to string) string {
		return func(t *testing.T, name, to string) string {
			c, err := tftp.NewClient(addr.String())
			if err != nil {
				t.Fatal(err)
			}
			prepare(c)
			from, err := c.Receive(name, "octet")
			if err != nil {
				return err.Error()
			}
			f, err := os.Create(to)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := from.WriteTo(f); err != nil {
				return err.Error()
			}
			if size, ok := from.(tftp.IncomingTransfer).Size(); ok && size != int64(len(tree.files[name])) {
				t.Errorf("tsize of %s: %d", name, size)
			}
			return ""
		}
	}
	for _, client := range []struct {
		name  string
		fetch func(t *testing.T, name, to string) string
	}{
		{"pin/tftp", pin(func(*tftp.Client) {})},
		{"pin/tftp, blksize 1428, tsize", pin(func(c *tftp.Client) { c.SetBlockSize(1428); c.RequestTSize(true) })},
		{"atftp", func(t *testing.T, name, to string) string {
			return run(t, "atftp", "--get", "--remote-file", name, "--local-file", to, host, port)
		}},
		{"atftp, options", func(t *testing.T, name, to string) string {
			return run(t, "atftp", "--option", "blksize 1428", "--option", "tsize", "--option", "windowsize 8", "--get", "--remote-file", name, "--local-file", to, host, port)
		}},
		{"tftp-hpa", func(t *testing.T, name, to string) string {
			return run(t, "tftp", "-m", "binary", host, port, "-c", "get", name, to)
		}},
		{"curl", func(t *testing.T, name, to string) string {
			return run(t, "curl", "-sS", "--tftp-blksize", "1428", "-o", to, "tftp://"+addr.String()+"/"+name)
		}},
		{"curl, no options", func(t *testing.T, name, to string) string {
			return run(t, "curl", "-sS", "--tftp-no-options", "-o", to, "tftp://"+addr.String()+"/"+name)
		}},
	} {
		t.Run(client.name, func(t *testing.T) {
			for _, name := range []string{"large", "empty", "even"} {
				to := filepath.Join(t.TempDir(), name)
				said := client.fetch(t, name, to)
				got, err := os.ReadFile(to)
				if name == "empty" && errors.Is(err, fs.ErrNotExist) && said == "" {
					err = nil // curl makes no file of nothing
				}
				if err != nil || !bytes.Equal(got, tree.files[name]) {
					t.Errorf("%s: %d bytes, want %d (%v, the client says %q)", name, len(got), len(tree.files[name]), err, said)
				}
			}
			to := filepath.Join(t.TempDir(), "none")
			said := client.fetch(t, "none", to)
			// (68) is curl's word for it.
			if !strings.Contains(strings.ToLower(said), "not found") && !strings.Contains(said, "(68)") {
				t.Errorf("of a file that is not there the client says %q", said)
			}
		})
	}
	t.Run("netascii", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "lines")
		run(t, "tftp", "-m", "ascii", host, port, "-c", "get", "lines", to)
		if got, err := os.ReadFile(to); err != nil || string(got) != "a\nb\r\nc\n" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("write", func(t *testing.T) {
		from := filepath.Join(t.TempDir(), "new")
		if err := os.WriteFile(from, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		if said := run(t, "tftp", "-m", "binary", host, port, "-c", "put", from, "large"); !strings.Contains(said, "this server is for reading") {
			t.Errorf("the client says %q", said)
		}
	})
}

// client speaks TFTP by the packet.
type client struct {
	t *testing.T
	*net.UDPConn
	to, server net.Addr // to: where the server answers from
}

func dial(t *testing.T, server *net.UDPAddr) *client {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, UDPConn: c, server: server}
}

func (c *client) request(op byte, fields ...string) {
	c.t.Helper()
	if _, err := c.WriteTo(append([]byte{0, op}, strings.Join(fields, "\x00")+"\x00"...), c.server); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) send(op byte, number int) {
	c.t.Helper()
	if _, err := c.WriteTo(binary.BigEndian.AppendUint16([]byte{0, op}, uint16(number)), c.to); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next packet in words: "DATA 1 (512)", "OACK blksize=1428",
// "ERROR 1: file not found", "silence".
func (c *client) next(within time.Duration) string {
	c.t.Helper()
	p := make([]byte, 70_000)
	_ = c.SetReadDeadline(time.Now().Add(within))
	n, from, err := c.ReadFrom(p)
	if err != nil {
		return "silence"
	}
	c.to = from
	p = p[:n]
	switch number := binary.BigEndian.Uint16(p[2:]); p[1] {
	case opData:
		return fmt.Sprintf("DATA %d (%d)", number, n-4)
	case opOACK:
		words := strings.Split(strings.TrimSuffix(string(p[2:]), "\x00"), "\x00")
		var pairs []string
		for i := 0; i+1 < len(words); i += 2 {
			pairs = append(pairs, words[i]+"="+words[i+1])
		}
		return "OACK " + strings.Join(pairs, " ")
	case opError:
		return fmt.Sprintf("ERROR %d: %s", number, text(p[4:]))
	}
	return fmt.Sprintf("%x", p)
}

func (c *client) expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if got := c.next(5 * time.Second); got != w {
			c.t.Fatalf("%s, want %s", got, w)
		}
	}
}

// quiet checks that nothing comes for a while that is longer than it would take.
func (c *client) quiet() {
	c.t.Helper()
	if got := c.next(150 * time.Millisecond); got != "silence" {
		c.t.Fatalf("%s, want silence", got)
	}
}

func TestOptions(t *testing.T) {
	addr := start(t, &Server{Tree: newTree()})
	for name, c := range map[string]struct {
		ask  []string
		want string
	}{
		"none":            {nil, "DATA 1 (512)"},
		"all":             {[]string{"blksize", "1428", "tsize", "0", "timeout", "3", "windowsize", "4"}, "OACK blksize=1428 tsize=200001 timeout=3 windowsize=4"},
		"upper case":      {[]string{"BLKSIZE", "1024"}, "OACK blksize=1024"},
		"unknown":         {[]string{"multicast", "", "blksize", "600"}, "OACK blksize=600"},
		"only unknown":    {[]string{"rollover", "0"}, "DATA 1 (512)"},
		"small blocks":    {[]string{"blksize", "8"}, "OACK blksize=8"},
		"too small":       {[]string{"blksize", "7"}, "DATA 1 (512)"},
		"too large":       {[]string{"blksize", "65465"}, "DATA 1 (512)"},
		"a packet's size": {[]string{"blksize", "65464"}, "OACK blksize=65464"}, // of the loopback interface
		"no number":       {[]string{"blksize", "large", "tsize", "-"}, "DATA 1 (512)"},
		"large window":    {[]string{"windowsize", "65535"}, "OACK windowsize=32"},
		"no window":       {[]string{"windowsize", "0"}, "DATA 1 (512)"},
		"no timeout":      {[]string{"timeout", "0"}, "DATA 1 (512)"},
		"long timeout":    {[]string{"timeout", "256"}, "DATA 1 (512)"},
		"twice":           {[]string{"blksize", "600", "blksize", "700"}, "OACK blksize=600"},
		"half an option":  {[]string{"blksize"}, "DATA 1 (512)"},
		"padding":         {[]string{"", "", ""}, "DATA 1 (512)"},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, addr)
			client.request(opRead, append([]string{"large", "octet"}, c.ask...)...)
			client.expect(c.want)
		})
	}
}

// TestMTU: a block never needs two packets where one would do.
func TestMTU(t *testing.T) {
	tr := newTransfer(nil, &files.File{}, request{options: []option{{"blksize", 65464}}}, time.Second, 1500-packetOverhead)
	if want := "\x00\x06blksize\x001468\x00"; string(tr.options) != want {
		t.Errorf("%q, want %q", tr.options, want)
	}
}

func TestRefusals(t *testing.T) {
	tree := newTree()
	tree.broken["large"] = true
	addr := start(t, &Server{Tree: tree})
	for name, c := range map[string]struct {
		op     byte
		fields []string
		want   string
	}{
		"write":   {opWrite, []string{"large", "octet"}, "ERROR 2: this server is for reading"},
		"none":    {opRead, []string{"none", "octet"}, "ERROR 1: file not found"},
		"mail":    {opRead, []string{"large", "mail"}, "ERROR 4: ask in mode octet"},
		"no mode": {opRead, nil, "ERROR 4: the request is not one of TFTP"},
		"data":    {opData, []string{"large", "octet"}, "silence"},
		"error":   {opError, []string{"large", "octet"}, "silence"},
		"strange": {9, []string{"large", "octet"}, "silence"},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, addr)
			client.request(c.op, c.fields...)
			wait := 5 * time.Second
			if c.want == "silence" {
				wait = 150 * time.Millisecond
			}
			if got := client.next(wait); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	t.Run("a file that cannot be read to its end", func(t *testing.T) {
		client := dial(t, addr)
		client.request(opRead, "large", "octet", "blksize", "65464")
		client.expect("OACK blksize=65464")
		client.send(opAck, 0)
		client.expect("DATA 1 (65464)")
		client.send(opAck, 1)
		client.expect("DATA 2 (65464)")
		client.send(opAck, 2)
		client.expect("DATA 3 (65464)")
		client.send(opAck, 3)
		client.expect("ERROR 0: the file cannot be read")
	})
}

func TestLossAndRepetition(t *testing.T) {
	tree := newTree()
	addr := start(t, &Server{Tree: tree, Timeout: time.Second})

	t.Run("a repeated answer sends nothing twice", func(t *testing.T) {
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
		c.send(opAck, 1)
		c.send(opAck, 1)
		c.expect("DATA 2 (512)")
		c.quiet()
		c.send(opAck, 9) // of no block that was sent
		c.quiet()
	})
	t.Run("a lost answer is waited for, and the block sent again", func(t *testing.T) {
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)", "DATA 1 (512)", "DATA 1 (512)")
		for b := 1; b <= 7; b++ {
			c.send(opAck, b)
			want := fmt.Sprintf("DATA %d (512)", b+1)
			if b == 7 {
				want = "DATA 8 (0)" // the file fills its last block
			}
			c.expect(want)
		}
		c.send(opAck, 8)
		c.quiet()
	})
	t.Run("a repeated request opens the file once", func(t *testing.T) {
		before := tree.count("lines")
		c := dial(t, addr)
		c.request(opRead, "lines", "octet")
		c.request(opRead, "lines", "octet")
		c.request(opRead, "lines", "octet")
		c.expect("DATA 1 (7)")
		c.quiet()
		c.send(opAck, 1)
		c.quiet()
		if got := tree.count("lines") - before; got != 1 {
			t.Errorf("opened %d times", got)
		}
	})
	t.Run("a client that asks for the size and then for all, from one port", func(t *testing.T) {
		c := dial(t, addr)
		for range 20 {
			c.request(opRead, "lines", "octet", "tsize", "0")
			c.expect("OACK tsize=7")
			c.send(opError, 0)
		}
		c.request(opRead, "lines", "octet", "tsize", "0")
		c.expect("OACK tsize=7")
		c.send(opAck, 0)
		c.expect("DATA 1 (7)")
		c.send(opAck, 1)
		c.quiet()
	})
	t.Run("a client that has restarted", func(t *testing.T) {
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
		c.send(opAck, 1)
		c.expect("DATA 2 (512)")
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
		c.send(opAck, 1)
		c.expect("DATA 2 (512)")
	})
	t.Run("two files at a time to one port", func(t *testing.T) {
		c := dial(t, addr)
		c.request(opRead, "lines", "octet")
		c.expect("DATA 1 (7)")
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
	})
	t.Run("others do not disturb", func(t *testing.T) {
		c, other := dial(t, addr), dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
		other.to = c.to
		other.send(opAck, 1)
		other.send(opError, 0)
		c.quiet()
		c.send(opAck, 1)
		c.expect("DATA 2 (512)")
	})
	t.Run("window", func(t *testing.T) {
		c := dial(t, addr)
		c.request(opRead, "even", "octet", "windowsize", "3")
		c.expect("OACK windowsize=3")
		c.send(opAck, 0)
		c.expect("DATA 1 (512)", "DATA 2 (512)", "DATA 3 (512)")
		c.quiet()
		c.send(opAck, 2) // 3 was lost
		c.expect("DATA 3 (512)", "DATA 4 (512)", "DATA 5 (512)")
		c.send(opAck, 2) // 3 was lost again
		c.send(opAck, 2)
		c.expect("DATA 3 (512)", "DATA 4 (512)", "DATA 5 (512)")
		c.send(opAck, 5)
		c.expect("DATA 6 (512)", "DATA 7 (512)", "DATA 8 (0)")
		c.send(opAck, 8)
		c.quiet()
	})
	t.Run("no program is there any more", func(t *testing.T) {
		closed := tree.closed.Load()
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
		c.Close()
		freed(t, tree, closed+1, 2*time.Second)
	})
}

// freed waits until so many files have been closed.
func freed(t *testing.T, tree *fakeTree, want int32, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); tree.closed.Load() < want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files were closed within %v, want %d", tree.closed.Load(), within, want)
		}
	}
}

// TestGone: clients that say nothing any more are let go of, and give their places back.
func TestGone(t *testing.T) {
	tree := newTree()
	addr := start(t, &Server{Tree: tree, Most: 2, MostEach: 2, Timeout: 5 * time.Millisecond})
	first, second, third := dial(t, addr), dial(t, addr), dial(t, addr)
	first.request(opRead, "large", "octet", "timeout", "1")
	first.expect("OACK timeout=1")
	second.request(opRead, "even", "octet", "timeout", "1")
	second.expect("OACK timeout=1")
	third.request(opRead, "even", "octet")
	third.expect("ERROR 0: too many transfers: try again")
	second.send(opError, 0)
	freed(t, tree, 1, 5*time.Second)
	third.request(opRead, "even", "octet")
	third.expect("DATA 1 (512)")
	// It says nothing more: 5 tries later its place is free.
	freed(t, tree, 2, 5*time.Second)
}

// anotherPC is an address besides the one that all clients have unless they say otherwise.
const anotherPC = "127.0.0.2"

// TestGreedyClient: who begins transfers and never answers takes no places but its own.
func TestGreedyClient(t *testing.T) {
	tree := newTree()
	addr := start(t, &Server{Tree: tree, Most: 10, Timeout: time.Minute})
	for range 5 { // half of them
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("DATA 1 (512)")
	}
	for range 20 {
		c := dial(t, addr)
		c.request(opRead, "even", "octet")
		c.expect("ERROR 0: too many transfers: try again")
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(anotherPC)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := &client{t: t, UDPConn: conn, server: addr}
	other.request(opRead, "even", "octet")
	other.expect("DATA 1 (512)")
}

// TestWrap: after block 65535 comes block 0.
func TestWrap(t *testing.T) {
	c := dial(t, nil)
	conn, err := net.DialUDP("udp4", nil, c.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file := &files.File{ReadSeekCloser: reader{bytes.NewReader(noise(10*512 + 5)), nil, false}}
	tr := newTransfer(conn, file, request{options: []option{{"windowsize", 4}}}, time.Second, 1468)
	tr.options, tr.answered = nil, new(atomic.Bool)
	tr.acked, tr.filled = 65530, 65530
	done := make(chan error, 1)
	go func() {
		_, err := tr.run(t.Context())
		done <- err
	}()
	c.expect("DATA 65531 (512)", "DATA 65532 (512)", "DATA 65533 (512)", "DATA 65534 (512)")
	c.send(opAck, 65534)
	c.expect("DATA 65535 (512)", "DATA 0 (512)", "DATA 1 (512)", "DATA 2 (512)")
	c.send(opAck, 0) // 1 was lost
	c.expect("DATA 1 (512)", "DATA 2 (512)", "DATA 3 (512)", "DATA 4 (512)")
	c.send(opAck, 4)
	c.expect("DATA 5 (5)")
	c.send(opAck, 5)
	if err := <-done; err != nil || tr.sent != 10*512+5 {
		t.Errorf("%d bytes, %v", tr.sent, err)
	}
}

// TestMemory holds what the package says of one transfer.
func TestMemory(t *testing.T) {
	tree := newTree()
	addr := start(t, &Server{Tree: tree})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const many = 100
	for range many {
		c := dial(t, addr)
		c.request(opRead, "large", "octet", "blksize", "1428", "windowsize", "32")
		c.expect("OACK blksize=1428 windowsize=32")
		c.send(opAck, 0)
		c.expect("DATA 1 (1428)")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / many
	t.Logf("%d bytes a transfer", each)
	if each > 90_000 {
		t.Errorf("a transfer has %d bytes", each)
	}
}

func TestListenRefuses(t *testing.T) {
	addr := start(t, &Server{Tree: newTree()})
	for name, c := range map[string]struct {
		card string
		want string
	}{
		"no such interface": {"nonesuch0", "ip link"},
		"taken":             {"lo", "another TFTP server runs on this machine"},
	} {
		s := &Server{Tree: newTree(), Interfaces: []string{c.card}, Port: addr.Port}
		if err := s.Listen(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want request
		err  error
	}{
		"PXE ROM":          {"\x00\x01pxelinux.0\x00octet\x00tsize\x000\x00", request{name: "pxelinux.0", options: []option{{"tsize", 0}}}, nil},
		"case":             {"\x00\x01a\x00OcTeT\x00BlkSize\x00512\x00", request{name: "a", options: []option{{"blksize", 512}}}, nil},
		"without its zero": {"\x00\x01a\x00octet", request{name: "a"}, nil},
		"netascii":         {"\x00\x01a\x00netascii\x00", request{name: "a", netascii: true}, nil},
		"no name":          {"\x00\x01\x00octet\x00", request{}, errRequest},
		"one byte":         {"\x00", request{}, errNoRequest},
		"empty":            {"", request{}, errNoRequest},
		"write":            {"\x00\x02a\x00octet\x00", request{}, errWrite},
	} {
		got, err := parse([]byte(c.in))
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", name, err, c.err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(request{}, option{})); diff != "" && err == nil {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// FuzzRequest: no packet makes the server fall over, or gets an option that it
// cannot hold.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x00\x01pxelinux.0\x00octet\x00tsize\x000\x00blksize\x001456\x00"))
	f.Add([]byte("\x00\x01a\x00octet\x00windowsize\x0099999999999999999999\x00timeout\x00-1\x00"))
	f.Add([]byte("\x00\x01\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x02../../etc/shadow\x00netascii\x00"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		req, err := parse(packet)
		if err != nil {
			return
		}
		if req.name == "" || strings.ContainsRune(req.name, 0) || len(req.options) > maxOptions {
			t.Fatalf("%+v", req)
		}
		file := &files.File{ReadSeekCloser: reader{bytes.NewReader([]byte("x")), nil, false}, Size: 1}
		tr := newTransfer(nil, file, req, time.Second, 1468)
		if tr.block < 8 || tr.block > 1468 || tr.window < 1 || tr.window > maxWindow || tr.pause < time.Second || tr.pause > 255*time.Second {
			t.Fatalf("block %d, window %d, pause %v", tr.block, tr.window, tr.pause)
		}
		if err := tr.fill(); err != nil || tr.last != 1 {
			t.Fatalf("last block %d, %v", tr.last, err)
		}
		if _, err := io.ReadAll(tr.file); err != nil {
			t.Fatal(err)
		}
	})
}
