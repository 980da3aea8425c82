package reimage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reassure/image/fetch"
	"reassure/image/reimage/delta"
	"reassure/image/spec"
	"reassure/image/tree"
	"reassure/image/wad"
)

// wadSite serves indexed wads, and counts what is fetched.
type wadSite struct {
	t       *testing.T
	dir     string
	server  *httptest.Server
	fetched atomic.Int64
}

func newWadSite(t *testing.T) *wadSite {
	if os.Getuid() != 0 {
		t.Fatal("this test mounts, and makes files of other owners: run it as root")
	}
	s := &wadSite{t: t, dir: t.TempDir()}
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(&counter{w, &s.fetched}, r, filepath.Join(s.dir, filepath.Base(r.URL.Path)))
	}))
	t.Cleanup(s.server.Close)
	return s
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// pack makes a wad of a folder.
func (s *wadSite) pack(name, folder string) {
	s.t.Helper()
	out, err := exec.Command("tar", "-C", folder, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--format=pax", "-cf", "-", ".").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := wad.Pack(s.t.Context(), bytes.NewReader(out), filepath.Join(s.dir, name), wad.PackOptions{Level: 1}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *wadSite) open(name, mount string, overlay bool) delta.Source {
	s.t.Helper()
	x, err := wad.OpenIndex(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	source := fetch.Source{Name: name, URLs: []string{s.server.URL + "/" + name}, Size: spec.Size(x.FileSize())}
	r, err := wad.OpenRemote(s.t.Context(), &fetch.Client{}, source, x.Bound())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { r.Close() })
	return delta.Source{Remote: r, Mount: mount, Overlay: overlay}
}

// install does what a full install does, below root.
func (s *wadSite) install(root string, wads []delta.Source, files []spec.File) {
	s.t.Helper()
	if err := os.MkdirAll(root, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, w := range wads {
		if err := os.MkdirAll(filepath.Join(root, w.Mount), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if _, err := w.Remote.Extract(s.t.Context(), filepath.Join(root, w.Mount), wad.Options{Overlay: w.Overlay}); err != nil {
			s.t.Fatal(err)
		}
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	for _, f := range files {
		if err := layFile(r, f); err != nil {
			s.t.Fatal(err)
		}
	}
}

func shell(t *testing.T, dir, script string) {
	t.Helper()
	c := exec.Command("bash", "-euo", "pipefail", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func faults(t *testing.T, d *delta.Tree, root string) []string {
	t.Helper()
	var all []string
	for f, err := range d.Check(t.Context(), root, delta.CheckOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s: %v", f.Path, f.Differences))
	}
	return all
}

// unlike are the differences of two trees, but for the times of what is made when
// it is laid down, and of the folders that this changes.
func unlike(t *testing.T, a, b string, changed ...string) []string {
	t.Helper()
	found, err := tree.Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range found {
		if d.What != "time" || !slices.Contains(changed, d.Path) {
			all = append(all, d.String())
		}
	}
	return all
}

const baseTree = `
umask 022
mkdir -p base/etc/conf.d base/usr/lib/deep/er base/usr/bin base/var/log base/opt/app base/boot base/srv
cd base
ln -s usr/lib lib; ln -s /usr/bin bin; ln -s loop2 loop1; ln -s loop1 loop2; ln -s ../var/./log var/l
echo hosts > etc/hosts; echo a > etc/conf.d/net; ln -s /run/resolv.conf etc/resolv.conf
for i in 1 2 3; do head -c 200000 /dev/urandom > usr/lib/file$i; done
head -c 5000000 /dev/urandom > usr/lib/large; truncate -s 3M usr/lib/holes; printf x | dd of=usr/lib/holes bs=1 seek=2000000 conv=notrunc status=none
echo one > usr/lib/deep/one; ln usr/lib/deep/one usr/lib/deep/two; ln usr/lib/deep/one usr/bin/three
echo pair > opt/pair1; ln opt/pair1 opt/pair2
chown 12:34 opt/app; chmod 4755 usr/lib/file1; setfattr -n user.a -v b usr/lib; setfattr -n user.x -v y etc
mknod srv/null c 1 3; mkfifo srv/fifo; echo old > srv/replaced; mkdir srv/emptied
touch -d '2001-02-03 04:05:06.789' etc usr/lib/deep opt . srv
`

const overlayTree = `
umask 022
mkdir -p overlay/lib/deep overlay/etc/conf.d overlay/bin overlay/opt overlay/new/folder overlay/srv/replaced
cd overlay
echo overlaid > lib/deep/two; echo more > lib/deep/four; echo b > etc/conf.d/net; echo tool > bin/tool
echo same > opt/pair1; ln opt/pair1 opt/pair3; echo n > new/folder/n; echo file > srv/emptied; echo in > srv/replaced/in
setfattr -n user.c -v d etc; touch -d '2011-02-03 04:05:06.5' etc opt lib/deep; chmod 700 etc/conf.d
`

const secondTree = `
mkdir -p second/sub; echo second > second/sub/file; touch -d '2005-05-05' second/sub second
`

var deltaFiles = []spec.File{
	{Path: "/etc/hosts", Content: "127.0.0.1 localhost\n", Mode: 0o644},
	{Path: "/etc/resolv.conf", Content: "nameserver 10.0.0.1\n", Mode: 0o640, UID: 1, GID: 2},
	{Path: "/lib/deep/one", Content: "by template\n", Mode: 0o600},
	{Path: "/brand/new/folder/file", Content: "", Mode: 0o644},
	{Path: "/var/l/x", Content: "through a link", Mode: 0o4755},
}

// laid are the paths whose times depend on when deltaFiles and overlayTree were laid.
var laid = []string{
	"etc/hosts", "etc/resolv.conf", "usr/lib/deep/one", "brand/new/folder/file", "var/log/x",
	"etc", "usr/lib/deep", "brand", "brand/new", "brand/new/folder", "var/log", ".", "usr/bin", "usr/lib", "new", "new/folder", "srv", "opt", "opt/app", "opt/app/data",
}

// TestDelta holds a delta to what a full install makes: a fresh install is what is
// expected, and a damaged one becomes it.
func TestDelta(t *testing.T) {
	s := newWadSite(t)
	shell(t, s.dir, "("+baseTree+")\n("+overlayTree+")\n("+secondTree+")")
	s.pack("base.tar.zst", filepath.Join(s.dir, "base"))
	s.pack("overlay.tar.zst", filepath.Join(s.dir, "overlay"))
	s.pack("second.tar.zst", filepath.Join(s.dir, "second"))
	wads := []delta.Source{s.open("base.tar.zst", "/", false), s.open("second.tar.zst", "/opt/app/data", false), s.open("overlay.tar.zst", "/", true)}
	d, err := delta.New(delta.Options{Wads: wads, Files: deltaFiles})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join(t.TempDir(), "golden")
	s.install(golden, wads, deltaFiles)
	if all := faults(t, d, golden); len(all) > 0 {
		t.Errorf("a fresh install is not what is expected:\n%s", strings.Join(all, "\n"))
	}
	for _, damage := range []string{
		"true",
		"rm -rf usr/lib/deep etc; mkdir -m 777 usr/lib/deep; ln -s / etc",
		"echo x >> usr/lib/file1; printf y | dd of=usr/lib/large bs=1 seek=3000000 conv=notrunc status=none",
		"ln -f usr/lib/file2 opt/pair2; rm usr/bin/three; ln usr/lib/deep/two usr/bin/three",
		"chmod -R 777 usr opt; chown -R 5:5 etc; touch -d 1999-01-01 usr/lib/file3",
		"rm lib; cp -a usr/lib lib; rm -r new; rm brand/new/folder/file; mkdir -p brand/new/folder/file/sub; rm -r srv; echo no > srv",
		"mkdir -p tmp/a/b/c; echo trojan > usr/bin/tool2; cp -a etc/hosts etc/hosts~; setfattr -n user.evil -v 1 usr/bin; setfacl -d -m u:7:rwx etc",
		"rm usr/lib/holes; cp usr/lib/file3 usr/lib/holes; truncate -s 100M usr/lib/file2; mv opt/app opt/app2; ln -s app2 opt/app",
	} {
		root := filepath.Join(t.TempDir(), "disk")
		s.install(root, wads, deltaFiles)
		shell(t, root, damage)
		stats, err := d.Mend(t.Context(), root, delta.CheckOptions{})
		if err != nil {
			t.Errorf("%s: %v", damage, err)
			continue
		}
		if all := unlike(t, golden, root, laid...); len(all) > 0 {
			t.Errorf("%s: afterwards differ (full, mended):\n%s", damage, strings.Join(all, "\n"))
		}
		if all := faults(t, d, root); len(all) > 0 || (damage == "true") != (stats.Faults == 0) {
			t.Errorf("%s: found %d, and afterwards still:\n%s", damage, stats.Faults, strings.Join(all, "\n"))
		}
	}
}

// TestDeltaFetchesLittle changes one file of many, and fetches no more than it.
func TestDeltaFetchesLittle(t *testing.T) {
	s := newWadSite(t)
	shell(t, s.dir, "("+baseTree+")")
	s.pack("base.tar.zst", filepath.Join(s.dir, "base"))
	wads := []delta.Source{s.open("base.tar.zst", "/", false)}
	d, err := delta.New(delta.Options{Wads: wads})
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "disk")
	s.install(root, wads, nil)
	for _, c := range []struct {
		damage      string
		least, most int64
	}{
		{"true", 0, 0},
		{"chmod 600 usr/lib/file1; rm srv/fifo; echo extra > x", 0, 0},
		{"echo x > usr/lib/file2", 200_000, 220_000},
		{"printf y | dd of=usr/lib/large bs=1 seek=3000000 conv=notrunc status=none", 100_000, 2_200_000},
	} {
		shell(t, root, c.damage)
		before := s.fetched.Load()
		if _, err := d.Mend(t.Context(), root, delta.CheckOptions{}); err != nil {
			t.Fatal(err)
		}
		if n := s.fetched.Load() - before; n < c.least || n > c.most {
			t.Errorf("%s: fetched %d bytes, want %d to %d", c.damage, n, c.least, c.most)
		}
		if all := unlike(t, filepath.Join(s.dir, "base"), root); len(all) > 0 {
			t.Errorf("%s: %v", c.damage, all)
		}
	}
}

// TestDeltaSeveralFileSystems has /boot and /srv on file systems of their own, and
// something hidden below a mount point.
func TestDeltaSeveralFileSystems(t *testing.T) {
	s := newWadSite(t)
	shell(t, s.dir, "("+baseTree+"\necho k > boot/kernel)")
	s.pack("base.tar.zst", filepath.Join(s.dir, "base"))
	wads := []delta.Source{s.open("base.tar.zst", "/", false)}
	d, err := delta.New(delta.Options{Wads: wads, Mounts: []string{"/", "/srv", "/boot"}})
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "disk")
	for _, m := range []string{"boot", "srv"} {
		if err := os.MkdirAll(filepath.Join(root, m), 0o755); err != nil {
			t.Fatal(err)
		}
		shell(t, root, "mount -t tmpfs none "+m)
		t.Cleanup(func() { shell(t, root, "umount "+m) })
	}
	s.install(root, wads, nil)
	if all := faults(t, d, root); len(all) > 0 {
		t.Errorf("a fresh install: %v", all)
	}
	shell(t, root, "mkdir ../under; mount --bind . ../under; echo hidden > ../under/boot/hidden; chmod 700 ../under/boot; umount ../under; echo x > boot/kernel; rm srv/fifo; echo y > boot/more")
	want := []string{"boot: [boot: mode: 0755, 0700]", "boot/hidden:", "boot: [.: time", "boot/kernel:", "boot/more:", "srv: [.: time", "srv/fifo:"}
	found := faults(t, d, root)
	for i, w := range want {
		if len(found) != len(want) || !strings.HasPrefix(found[i], w) {
			t.Fatalf("found %q, want these: %q", found, want)
		}
	}
	if _, err := d.Mend(t.Context(), root, delta.CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	if all := faults(t, d, root); len(all) > 0 {
		t.Errorf("mended: %v", all)
	}
}

// TestDeltaRandom takes a few dozen random trees, overlays and damages.
func TestDeltaRandom(t *testing.T) {
	s := newWadSite(t)
	names := []string{"a", "b", "c", "d d", "e\nf", "\xff"}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 4))
		grow := func(folder string, n int) {
			for range n {
				at := folder
				for range r.IntN(4) {
					at = filepath.Join(at, names[r.IntN(len(names))])
				}
				_ = os.MkdirAll(at, 0o755) // where something else is, the next line fails as well
				file := filepath.Join(at, names[r.IntN(len(names))])
				switch r.IntN(6) {
				case 0:
					_ = os.Symlink(names[r.IntN(3)], file)
				case 1:
					_ = os.Link(filepath.Join(folder, names[r.IntN(3)]), file)
				default:
					_ = os.WriteFile(file, bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(20000)), os.FileMode(r.IntN(8)*0o100+0o44))
				}
			}
		}
		dir := filepath.Join(s.dir, fmt.Sprint(seed))
		base := filepath.Join(dir, "base")
		if err := os.MkdirAll(base, 0o755); err != nil {
			t.Fatal(err)
		}
		grow(base, 60)
		name := fmt.Sprintf("base%d.tar.zst", seed)
		s.pack(name, base)
		wads := []delta.Source{s.open(name, "/", false)}
		d, err := delta.New(delta.Options{Wads: wads})
		if err != nil {
			t.Fatal(err)
		}
		root := filepath.Join(dir, "disk")
		s.install(root, wads, nil)
		grow(root, 30)
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if r.IntN(3) == 0 {
				if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
		grow(root, 30)
		if _, err := d.Mend(t.Context(), root, delta.CheckOptions{}); err != nil {
			t.Errorf("seed %d: %v", seed, err)
			continue
		}
		if all := unlike(t, base, root); len(all) > 0 {
			t.Errorf("seed %d: %s", seed, strings.Join(all, "\n"))
		}
	}
}

// TestFinishedIndex has steps change a tree: with their index it is what is expected,
// and what nobody but a step can make again is told from what can be mended.
func TestFinishedIndex(t *testing.T) {
	s := newWadSite(t)
	shell(t, s.dir, "("+baseTree+")\n("+overlayTree+")")
	s.pack("base.tar.zst", filepath.Join(s.dir, "base"))
	s.pack("overlay.tar.zst", filepath.Join(s.dir, "overlay"))
	wads := []delta.Source{s.open("base.tar.zst", "/", false), s.open("overlay.tar.zst", "/", true)}
	o := delta.Options{Wads: wads, Files: deltaFiles}
	before, err := delta.New(o)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "disk")
	s.install(root, wads, deltaFiles)
	r, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := delta.Prepare(r); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // what was laid is older than the clock of inodes is coarse
	since := time.Now()
	shell(t, root, `
echo step >> etc/hosts; rm opt/pair3 usr/lib/file1; chmod 700 usr/lib/file2; mkdir -p boot/grub/i386-pc "var/lib/$(printf 'a\377\n')/b"
echo core > boot/grub/i386-pc/core.img; ln -s grub boot/g; mkfifo var/lib/f; setfattr -n user.q -v r usr/lib/file3
rm -r srv; echo "was a folder" > srv; rm new/folder/n; mkdir new/folder/n; echo x > new/folder/n/x; printf y | dd of=usr/lib/large bs=1 seek=77 conv=notrunc status=none
echo log > var/log/boot; echo key > etc/key; touch -d '2020-02-02 02:02:02.123456789' etc/key; chown 3:4 etc/key`)
	check := delta.CheckOptions{Keep: []string{"/etc/key"}, Runtime: []string{"/var/log"}}
	var text []byte
	for range 2 {
		changes, err := before.Finished(t.Context(), root, since, check)
		if err != nil {
			t.Fatal(err)
		}
		x := delta.Index{Software: spec.Sum([]byte("software")), BootImage: "/boot/b", CoreImage: "/boot/c", Changes: changes}
		again, err := x.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if text != nil && !bytes.Equal(text, again) {
			t.Errorf("the same tree has two indexes:\n%s\n%s", text, again)
		}
		text = again
		// What the reimager leaves is in no index.
		shell(t, root, "echo s > etc/reassure/stamp.json; echo f > etc/reassure/finished")
	}
	x, err := delta.ParseIndex(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if x.Software != spec.Sum([]byte("software")) || x.BootImage != "/boot/b" || x.CoreImage != "/boot/c" {
		t.Errorf("read: %+v", x)
	}
	o.Finished = x.Changes
	final, err := delta.New(o)
	if err != nil {
		t.Fatal(err)
	}
	check.Keep = append(delta.Own(), check.Keep...)
	check.Final = true
	left := func() []string {
		var all []string
		for f, err := range final.Check(t.Context(), root, check) {
			if err != nil {
				t.Fatal(err)
			}
			if !f.Runtime {
				all = append(all, fmt.Sprintf("%s: %v", f.Path, f.Differences))
			}
		}
		return all
	}
	if all := left(); len(all) > 0 {
		t.Fatalf("with its index, the finished tree is not what is expected:\n%s\n%s", strings.Join(all, "\n"), text)
	}
	shell(t, root, "cp -a . ../golden")
	for _, c := range []struct {
		damage string
		steps  bool
	}{
		{"true", false},
		{"echo x >> usr/lib/file2; rm usr/lib/file3; touch opt/pair3; chmod 777 boot/grub/i386-pc/core.img var/lib/f; rm boot/g; mkdir more", false},
		{"touch usr/lib/file1; rm -r new/folder/n; echo y > etc/conf.d/net", true}, // n/x is a step's
		{"echo evil > boot/grub/i386-pc/core.img", true},
		{"rm usr/lib/large", true}, // a step patched it
		{"echo evil > etc/resolv.conf", true},
		{"chmod 600 etc/resolv.conf", true},
	} {
		shell(t, root, "rm -rf .[!.]* *; cp -a ../golden/. .; "+c.damage)
		_, err := final.Mend(t.Context(), root, check)
		if (err != nil) != c.steps || err != nil && !errors.Is(err, delta.ErrSteps) {
			t.Errorf("%s: %v", c.damage, err)
		}
		if err == nil {
			if all := left(); len(all) > 0 {
				t.Errorf("%s: afterwards:\n%s", c.damage, strings.Join(all, "\n"))
			}
			shell(t, root, "rm -f ../golden/var/log/boot; touch -r var/log ../golden/var/log") // runtime, which a delta resets
			if all := unlike(t, filepath.Join(root, "../golden"), root, ".", "usr/lib"); len(all) > 0 {
				t.Errorf("%s: afterwards differ: %s", c.damage, strings.Join(all, "\n"))
			}
			continue
		}
		// Then it is what it was before any step.
		check.Final = false
		if _, err := before.Mend(t.Context(), root, delta.CheckOptions{}); err != nil {
			t.Errorf("%s: %v", c.damage, err)
		}
		check.Final = true
		if all := faults(t, before, root); len(all) > 0 {
			t.Errorf("%s: without the steps:\n%s", c.damage, strings.Join(all, "\n"))
		}
	}
}

// TestFinishedIndexDamaged reads no index that is not as it is written.
func TestFinishedIndexDamaged(t *testing.T) {
	for _, text := range []string{
		"", "{}", `{"schema":2}`, `{"schema":1,"x":2}`, `{"schema":1}` + "\n" + `{"path":"\"a\""}`, `{"schema":1}` + "\n" + `{"path":"a","gone":true}`,
		`{"schema":1}` + "\n" + `{"path":"\"../a\"","gone":true}`, `{"schema":1}` + "\n" + `{"path":"\"b\"","gone":true}` + "\n" + `{"path":"\"a\"","gone":true}`,
		`{"schema":1}` + "\n" + `{"path":"\"a\"","kind":9}`, `{"schema":1}` + "\n" + `{"path":"\"a\"","kind":3,"target":"x"}`, `{"schema":1}` + "\n" + `{"path":`,
	} {
		if x, err := delta.ParseIndex([]byte(text)); err == nil {
			t.Errorf("%q is taken for %+v", text, x)
		}
	}
}
