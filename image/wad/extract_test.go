package wad

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/fetch"
	"reassure/image/spec"
	"reassure/image/tree"
)

// needRoot fails a test that makes owners and devices.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes devices and files of other owners: run it as root")
	}
}

// tool finds a program, or fails the test naming its Debian package.
func tool(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install %s", name, debian)
	}
	return path
}

// sh runs shell commands in a folder.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// noLeaks fails the test if it leaves goroutines behind.
func noLeaks(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
			}
		}
	})
}

// zoo makes a tree with one of everything that tar holds.
func zoo(t testing.TB) string {
	t.Helper()
	needRoot(t)
	tool(t, "setfacl", "acl")
	tool(t, "setfattr", "attr")
	tool(t, "setcap", "libcap2-bin")
	dir := filepath.Join(t.TempDir(), "zoo")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, dir, `
umask 022
mkdir -p etc usr/bin usr/lib var/tmp home/u empty deep/a/b/c/d/e/f
printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nlab:x:4711:4712::/:/bin/sh\n' > etc/passwd
printf 'root:x:0:\nlabs:x:4712:lab\nnews:x:9:\n' > etc/group
ln -s usr/lib lib; ln -s /usr/bin bin; ln -s ../../outside dangling; ln -s "$(printf 'a%.0s' {1..180})" longlink
echo hello > usr/lib/hello; ln usr/lib/hello usr/lib/hello2; ln usr/lib/hello hello3
head -c 300000 /dev/urandom > usr/lib/big; head -c 2000000 /dev/urandom > usr/lib/bigger; ln usr/lib/bigger bigger2
head -c 262144 /dev/urandom > usr/lib/slab; : > usr/lib/nothing
cp usr/lib/hello usr/bin/su; chown 0:4712 usr/bin/su; chmod 6755 usr/bin/su
cp usr/lib/hello usr/bin/ping; setcap cap_net_raw+ep usr/bin/ping; chown 4711:4712 usr/lib/hello
cp usr/lib/hello usr/bin/owned; chown 4711:4712 usr/bin/owned; setcap cap_sys_time=i usr/bin/owned
chmod 1777 var/tmp; chmod 2775 home/u; chown 4711:4712 home/u; chmod 0 usr/lib/nothing; chmod 0500 deep/a
mknod dev-c c 5 1; mknod dev-b b 259 70000; mkfifo -m 620 fifo; chown 3:4 dev-b fifo
chown -h 7:8 dangling
setfattr -n user.comment -v $'a=b\nc' usr/lib/big; setfattr -n user.k%= -v z usr/lib; setfattr -h -n trusted.t -v x dangling
setfattr -n user.empty etc
cp usr/lib/hello home/u/shared; setfacl -m u:4711:rwx,g:9:r home/u/shared; setfacl -d -m u:4712:rx home/u; setfacl -m g:77:rwx var
truncate -s 10M holes; printf x | dd of=holes bs=1 seek=5000000 conv=notrunc status=none
truncate -s 8M onlyhole
for i in $(seq 40); do printf "$i" | dd of=many bs=1 seek=$((i*300000)) conv=notrunc status=none; done
echo n > $'name\n\377\376 latin'; mkdir -p "$(printf 'd%.0s' {1..150})/$(printf 'e%.0s' {1..150})"; echo l > "$(printf 'd%.0s' {1..150})/$(printf 'e%.0s' {1..150})/$(printf 'f%.0s' {1..150})"
for i in $(seq 300); do echo $i > deep/a/b/c/$i; done
touch -d '1969-12-31 23:00:00.5 UTC' etc/group; touch -d '2038-02-01 00:00:00.123456789 UTC' usr/lib/big; touch -h -d '2001-01-01 00:00:00.000000001 UTC' dangling
touch -d '2002-02-02 02:02:02.222222222 UTC' deep/a usr/lib deep/a/b/c fifo dev-c empty .
`)
	return dir
}

func extract(t testing.TB, archive, to string, o Options) (Stats, error) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Extract(t.Context(), f, to, o)
}

// compare fails the test for every difference of two trees.
func compare(t testing.TB, got, want string) {
	t.Helper()
	compareSince(t, got, want, time.Now())
}

// compareSince does so, but leaves times after start alone: those of
// directories that no archive described.
func compareSince(t testing.TB, got, want string, start time.Time) {
	t.Helper()
	differences, err := tree.Compare(got, want)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if made, err := time.Parse(time.RFC3339Nano, d.A); d.What == "time" && err == nil && made.After(start.Add(-time.Second)) {
			continue
		}
		t.Errorf("ours, tar's: %v", d)
	}
}

// blocks is the room that a file takes, in units of 512 bytes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// Archives made by others, against what GNU tar makes of them.
func TestAsTar(t *testing.T) {
	source := zoo(t)
	tool(t, "bsdtar", "libarchive-tools")
	for _, test := range []struct{ name, pack string }{
		{"gnu", "tar --format=gnu --numeric-owner -cf $A ."},
		{"gnu sparse", "tar --format=gnu -S --numeric-owner -cf $A ."},
		{"ustar", "tar --format=ustar --numeric-owner --exclude='ddd*' --exclude=longlink --exclude=etc/group -cf $A ."},
		{"v7", "tar --format=v7 --numeric-owner --exclude='ddd*' --exclude='dev*' --exclude=fifo --exclude=longlink --exclude=etc/group -cf $A ."},
		{"pax", "tar --format=pax --acls --xattrs --xattrs-include='*' --numeric-owner -cf $A ."},
		{"pax, ACLs as text", "tar --format=pax --acls --xattrs --xattrs-include='*' --xattrs-exclude='system.*' -cf $A ."},
		{"pax sparse 0.0", "tar --format=pax -S --sparse-version=0.0 --acls --xattrs --xattrs-include='*' -cf $A ."},
		{"pax sparse 0.1", "tar --format=pax -S --sparse-version=0.1 --acls --xattrs --xattrs-include='*' -cf $A ."},
		{"pax sparse 1.0", "tar --format=pax -S --sparse-version=1.0 --acls --xattrs --xattrs-include='*' -cf $A ."},
		{"bsdtar pax", "LC_ALL=C.UTF-8 bsdtar --format=pax --acls --xattrs -cf $A ."},
		{"bsdtar gnutar", "bsdtar --format=gnutar --numeric-owner -cf $A ."},
		{"bsdtar ustar", "bsdtar --format=ustar --numeric-owner --exclude='ddd*' --exclude=longlink --exclude=etc/group -cf $A . || test -s $A"},
		{"bsdtar v7", "bsdtar --format=v7 --numeric-owner --exclude='ddd*' --exclude='dev*' --exclude=fifo --exclude=longlink --exclude=etc/group -cf $A . || test -s $A"},
		{"bsdtar restricted pax", "bsdtar --format=paxr --no-acls --no-xattrs --no-fflags -cf $A ."},
		{"cpio ustar", "find . ! -path './ddd*' ! -name longlink ! -path ./etc/group -print0 | cpio --quiet -0 -o -H ustar > $A"},
		{"cpio tar", "find . ! -path './ddd*' ! -name longlink ! -path ./etc/group ! -name 'dev-*' ! -name fifo -print0 | cpio --quiet -0 -o -H tar > $A"},
		{"busybox", "GLOBIGNORE='ddd*:longlink:etc'; busybox tar -cf $A *"},
		{"old gnu", "tar --format=oldgnu --numeric-owner -cf $A ."},
		{"old gnu sparse", "tar --format=oldgnu -S --numeric-owner -cf $A ."},
		{"pax, all its own records", "tar --format=pax --acls --xattrs --xattrs-include='*' --sort=name --pax-option='comment=one,VENDOR.thing=two' -cf $A ."},
		{"pax, a global header", "tar --format=pax --numeric-owner --pax-option='globexthdr.name=g,comment=all' -cf $A ."},
		{"gnu incremental", "tar --listed-incremental=$A.snar --numeric-owner -cf $A ."},
		{"gnu label", "tar -V label --numeric-owner -cf $A ."},
		{"absolute names", "tar -P --numeric-owner --transform='s,^\\.,/,' -cf $A ."},
		{"gzip", "tar --numeric-owner -czf $A ."},
		{"bzip2", "tar --numeric-owner -cjf $A ."},
		{"xz", "tar --numeric-owner -cJf $A ."},
		{"zstd", "tar --numeric-owner --zstd -cf $A ."},
		{"two zstd frames and a skippable one", `tar --numeric-owner -cf $A.t . && { head -c 100000 $A.t | zstd -qc; printf '\x50\x2a\x4d\x18\x03\x00\x00\x00abc'; tail -c +100001 $A.t | zstd -qc; } > $A`},
		{"two gzip members", "tar --numeric-owner -cf $A.t . && { head -c 100000 $A.t | gzip -c; tail -c +100001 $A.t | gzip -c; } > $A"},
		{"two xz streams", "tar --numeric-owner -cf $A.t . && { head -c 100000 $A.t | xz -c; tail -c +100001 $A.t | xz -c; } > $A"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			tmp := t.TempDir()
			archive, theirs, ours := tmp+"/wad", tmp+"/theirs", tmp+"/ours"
			sh(t, source, "A="+archive+"; mkdir "+theirs+" "+ours+"; "+test.pack)
			sh(t, theirs, "tar --delay-directory-restore -xpf "+archive+" --acls --xattrs --xattrs-include='*' --numeric-owner --same-owner")
			stats, err := extract(t, archive, ours, Options{Workers: 3})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, ours, theirs)
			if strings.HasSuffix(test.pack, "-cf $A .") && !strings.Contains(test.pack, "--zstd") {
				sameIndex(t, archive, ours) // once for each archive, however it is compressed
			}
			if stats.Entries < 300 || stats.Files == 0 || stats.Bytes < 30<<20 {
				t.Errorf("stats: %+v", stats)
			}
			if strings.Contains(test.name, "sparse") {
				for _, name := range []string{"holes", "onlyhole", "many"} {
					if got, want := blocks(t, ours+"/"+name), blocks(t, theirs+"/"+name); got > want {
						t.Errorf("%s takes %d blocks, tar's %d", name, got, want)
					}
				}
				if stats.Sparse != 3 {
					t.Errorf("%d sparse files; want 3", stats.Sparse)
				}
			}
		})
	}
}

// The tree itself, not only what tar makes of it, when the archive holds all.
func TestRoundTrip(t *testing.T) {
	source, tmp := zoo(t), t.TempDir()
	sh(t, source, "tar --format=pax -S --acls --xattrs --xattrs-include='*' --zstd -cf "+tmp+"/wad .")
	ours := tmp + "/ours"
	if err := os.Mkdir(ours, 0o700); err != nil {
		t.Fatal(err)
	}
	// The least memory, the most writers, and a umask that leaves nothing.
	old := unix.Umask(0o777)
	_, err := extract(t, tmp+"/wad", ours, Options{MemoryLimit: 1, Workers: 9})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, ours, source)
}

// member is an entry of an archive made for a test.
type member struct {
	tar.Header
	body string
}

func file(name, body string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), Uid: os.Getuid(), Gid: os.Getgid()}, body}
}

func folder(name string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, Uid: os.Getuid(), Gid: os.Getgid()}, ""}
}

func symlink(name, target string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Uid: os.Getuid(), Gid: os.Getgid()}, ""}
}

func hardLink(name, target string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Uid: os.Getuid(), Gid: os.Getgid()}, ""}
}

// pack makes an archive; unlike tar it takes any names.
func pack(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// listing is a tree as text: names with contents, targets or a slash.
func listing(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir():
			all[rel] = "/"
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			all[rel] = "-> " + target
			return err
		default:
			data, err := os.ReadFile(path)
			all[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// asTar is what GNU tar makes of an archive, and what it says.
func asTar(t *testing.T, archive []byte) (map[string]string, string) {
	t.Helper()
	cmd := exec.Command("tar", "-xpf", "-", "--numeric-owner")
	cmd.Dir, cmd.Stdin = t.TempDir(), bytes.NewReader(archive)
	said, _ := cmd.CombinedOutput() // what counts is what it made
	return listing(t, cmd.Dir), string(said)
}

// Each attack and each odd archive: what is refused, naming the entry, and
// what is made of the rest. Nothing may ever appear or change outside.
func TestNames(t *testing.T) {
	type files = map[string]string
	for _, test := range []struct {
		name    string
		before  []member // there already, below the root
		overlay bool
		wad     []member
		want    files
		refused string // name of the entry
		tar     string // why GNU tar does otherwise; where it is empty, it must do the same
	}{
		{name: "dot dot", wad: []member{file("../evil", "x")}, refused: "../evil"},
		{name: "dot dot inside", wad: []member{file("a/../../evil", "x")}, refused: "a/../../evil"},
		{name: "dot dot that stays inside", wad: []member{file("a/../b", "x")}, refused: "a/../b"},
		{name: "only dot dot", wad: []member{folder("..")}, refused: "../"},
		{name: "absolute", wad: []member{file("/etc/evil", "x")}, want: files{"etc": "/", "etc/evil": "x"}},
		{name: "absolute twice", wad: []member{file("//etc//evil", "x")}, want: files{"etc": "/", "etc/evil": "x"}},
		{name: "dots", wad: []member{file("./a/./b", "x")}, want: files{"a": "/", "a/b": "x"}},
		{name: "a file that is the root", wad: []member{file("./.", "x")}, refused: "./."},
		{name: "through a link to outside", wad: []member{symlink("a", "../outside"), file("a/evil", "x")}, refused: "a/evil"},
		{name: "through an absolute link to outside", wad: []member{symlink("a", "OUTSIDE"), file("a/evil", "x")}, refused: "a/evil"},
		{name: "through a chain of links", wad: []member{symlink("a", "b"), symlink("b", ".."), file("a/evil", "x")}, want: files{"a": "-> b", "b": "-> ..", "evil": "x"}, tar: "it makes links that lead out at the very end"},
		{name: "through links in circles", wad: []member{symlink("a", "b"), symlink("b", "a"), file("a/evil", "x")}, refused: "a/evil"},
		{name: "over a link to a file outside", wad: []member{symlink("a", "OUTSIDE/secret"), file("a", "x")}, want: files{"a": "x"}, tar: "it makes links that lead out at the very end, over the later file"},
		{name: "over a link that was there", overlay: true, before: []member{symlink("a", "OUTSIDE/secret")}, wad: []member{file("a", "x")}, want: files{"a": "x"}},
		{name: "directory over a link to outside", wad: []member{symlink("a", "OUTSIDE"), folder("a"), file("a/f", "x")}, want: files{"a": "/", "a/f": "x"}},
		{name: "overlay: directory over a link to outside", overlay: true, before: []member{symlink("a", "OUTSIDE")}, wad: []member{folder("a"), file("a/f", "x")}, want: files{"a": "/", "a/f": "x"}},
		{name: "hard link to outside", wad: []member{hardLink("a", "../outside/secret")}, refused: "a"},
		{name: "hard link to an absolute name", wad: []member{hardLink("a", "OUTSIDE/secret")}, refused: "a"},
		{name: "hard link through a link to outside", wad: []member{symlink("l", "OUTSIDE"), hardLink("a", "l/secret")}, refused: "a"},
		{name: "hard link to a link to outside", wad: []member{symlink("l", "OUTSIDE/secret"), hardLink("a", "l")}, want: files{"l": "-> OUTSIDE/secret", "a": "-> OUTSIDE/secret"}},
		{name: "writing over a hard link to a link", wad: []member{symlink("l", "OUTSIDE/secret"), hardLink("a", "l"), file("a", "x")}, want: files{"l": "-> OUTSIDE/secret", "a": "x"}, tar: "it makes links that lead out at the very end, over the later file"},
		{name: "hard link to nothing", wad: []member{hardLink("a", "b")}, refused: "a"},
		{name: "hard link to a directory", wad: []member{folder("d"), hardLink("a", "d")}, refused: "a"},
		{name: "hard link to itself", wad: []member{file("a", "x"), hardLink("a", "a")}, want: files{"a": "x"}},
		{name: "twice", wad: []member{file("a", "first"), file("a", "second")}, want: files{"a": "second"}},
		{name: "twice by another name", wad: []member{folder("d"), symlink("l", "d"), file("d/a", "first"), file("l/a", "second")}, want: files{"d": "/", "l": "-> d", "d/a": "second"}},
		{name: "file after link, then link again", wad: []member{symlink("a", "x"), file("a", "f"), symlink("a", "y")}, want: files{"a": "-> y"}},
		{name: "a link of an old file stays with it", wad: []member{file("a", "first"), hardLink("b", "a"), file("a", "second")}, want: files{"a": "second", "b": "first"}},
		{name: "file over an empty directory", wad: []member{folder("a"), file("a", "f")}, want: files{"a": "f"}},
		{name: "file over a full directory", wad: []member{file("a/b", "x"), file("a", "f")}, refused: "a"},
		{name: "directory over a file", wad: []member{file("a", "f"), folder("a"), file("a/b", "x")}, want: files{"a": "/", "a/b": "x"}},
		{name: "below a file", wad: []member{file("a", "f"), file("a/b", "x")}, refused: "a/b"},
		{name: "below a file, deeper", wad: []member{file("a", "f"), file("a/b/c/d", "x")}, refused: "a/b/c/d"},
		{name: "name too long", wad: []member{file(strings.Repeat("n", 300), "x")}, refused: strings.Repeat("n", 300)},
		{name: "no overlay over a file", before: []member{file("a", "old")}, wad: []member{file("a", "new")}, refused: "a"},
		{name: "no overlay over a link", before: []member{symlink("a", "old")}, wad: []member{symlink("a", "new")}, refused: "a"},
		{name: "no overlay, directories shared", before: []member{folder("lost+found"), folder("boot")}, wad: []member{folder("boot"), file("boot/k", "x")}, want: files{"lost+found": "/", "boot": "/", "boot/k": "x"}},
		{name: "overlay", overlay: true, before: []member{file("etc/a", "old"), file("etc/b", "old")}, wad: []member{file("etc/a", "new")}, want: files{"etc": "/", "etc/a": "new", "etc/b": "old"}},
		{name: "overlay on a merged /usr", overlay: true, before: []member{file("usr/lib/old", "x"), symlink("lib", "usr/lib")},
			wad:  []member{folder("lib"), file("lib/modules/m", "y"), folder("lib/modules")},
			want: files{"usr": "/", "usr/lib": "/", "usr/lib/old": "x", "lib": "-> usr/lib", "usr/lib/modules": "/", "usr/lib/modules/m": "y"}},
		{name: "overlay through a link that is absolute inside", overlay: true, before: []member{folder("run"), symlink("var/run", "/run")},
			wad: []member{file("var/run/f", "y")}, want: files{"run": "/", "var": "/", "var/run": "-> /run", "run/f": "y"}},
		{name: "overlay: file over a full directory", overlay: true, before: []member{file("a/b", "x")}, wad: []member{file("a", "y")}, refused: "a"},
		{name: "device with impossible numbers", wad: []member{{Header: tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 5000, Devminor: 1}}}, refused: "d"},
		{name: "unknown kind", wad: []member{{Header: tar.Header{Name: "odd", Typeflag: 'Z'}}}, refused: "odd"},
		{name: "another volume", wad: []member{{Header: tar.Header{Name: "odd", Typeflag: 'M'}}}, refused: "odd"},
		{name: "bad ACL", wad: []member{{Header: tar.Header{Name: "a", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.acl.access": "nonsense"}}}}, refused: "a/"},
		{name: "ACL of a stranger", wad: []member{{Header: tar.Header{Name: "a", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rwx,user:nobodyknows:r--,group::---,mask::r--,other::---"}}}}, refused: "a/"},
		{name: "impossible attribute", wad: []member{{Header: tar.Header{Name: "a", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.nonsense": "x"}}}}, refused: "a/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			tmp := t.TempDir()
			root, outside := tmp+"/root", tmp+"/outside"
			sh(t, tmp, "mkdir root outside; echo untouched > outside/secret")
			expand := func(ms []member) []member {
				ms = append([]member(nil), ms...)
				for i := range ms {
					ms[i].Linkname = strings.ReplaceAll(ms[i].Linkname, "OUTSIDE", outside)
				}
				return ms
			}
			if _, err := Extract(t.Context(), bytes.NewReader(pack(t, expand(test.before)...)), root, Options{}); err != nil {
				t.Fatal(err)
			}
			_, err := Extract(t.Context(), bytes.NewReader(pack(t, expand(test.wad)...)), root, Options{Overlay: test.overlay})
			if test.refused != "" {
				var e *EntryError
				if !errors.As(err, &e) || strings.TrimSuffix(e.Entry, "/") != strings.TrimSuffix(test.refused, "/") {
					t.Errorf("error: %v; want one that names %q", err, test.refused)
				}
			} else if err != nil {
				t.Error(err)
			} else {
				for k, v := range test.want {
					test.want[k] = strings.ReplaceAll(v, "OUTSIDE", outside)
				}
				if diff := cmp.Diff(test.want, listing(t, root)); diff != "" {
					t.Errorf("tree (-want +got):\n%s", diff)
				}
				if len(test.before) == 0 {
					theirs, said := asTar(t, pack(t, expand(test.wad)...))
					if diff := cmp.Diff(test.want, theirs); (diff != "") != (test.tar != "") {
						t.Errorf("GNU tar differs: %q; it makes (-ours +tar's):\n%s%s", test.tar, diff, said)
					}
				}
			}
			if diff := cmp.Diff(files{"secret": "untouched\n"}, listing(t, outside)); diff != "" {
				t.Errorf("outside (-want +got):\n%s", diff)
			}
			above := listing(t, tmp)
			for name := range above {
				if name != "root" && name != "outside" && !strings.Contains(name, "/") {
					t.Errorf("%s appeared beside the root", name)
				}
			}
		})
	}
}

// Every kind of damage, for every compression, is an error; the whole is not.
func TestDamage(t *testing.T) {
	source, tmp := t.TempDir(), t.TempDir()
	sh(t, source, `for i in $(seq 60); do seq $i 2000 > f$i; done; head -c 400000 /dev/urandom > r; cp f1 z
ln z hard; cd `+tmp+`; tar -C `+source+` -cf tar .; gzip -k tar; bzip2 -k tar; xz -k tar; zstd -q tar`)
	for _, kind := range []string{"tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"} {
		whole, err := os.ReadFile(filepath.Join(tmp, kind))
		if err != nil {
			t.Fatal(err)
		}
		flip := func(at int) []byte {
			b := bytes.Clone(whole)
			b[at] ^= 4
			return b
		}
		type damage struct {
			name string
			data []byte
			ok   bool
		}
		all := []damage{
			{"none", whole, true},
			{"one byte more", append(bytes.Clone(whole), 'x'), false},
			{"text after it", append(bytes.Clone(whole), "</html>"...), false},
			{"itself after it", append(bytes.Clone(whole), whole...), false},
			{"empty", nil, false},
			{"one byte", whole[:1], false},
			{"first bit", flip(1), false},
		}
		end := len(whole)
		if kind == "tar" {
			// What comes after the end marker is padding.
			for end > 0 && whole[end-1] == 0 {
				end--
			}
			end = (end + 511) / 512 * 512
			all = append(all, damage{"zeros after it", append(bytes.Clone(whole), make([]byte, 20000)...), true})
			all = append(all, damage{"half an end marker", whole[:end+512], false}, damage{"an end marker alone", whole[:end+1024], true})
			all = append(all, damage{"bit in the padding", flip(end + 2000), false})
		} else {
			all = append(all, damage{"bit in the middle", flip(len(whole) / 2), false}, damage{"last byte missing", whole[:end-1], false})
			if kind != "tar.bz2" { // padding bits end a bzip2 file
				all = append(all, damage{"last bit", flip(end - 1), false})
			}
		}
		for _, part := range []int{2, 3, 5, 7, 11} {
			all = append(all, damage{fmt.Sprintf("cut to 1/%d", part), whole[:end/part], false})
		}
		for block := 512; block < end; block += max(512, end/40/512*512) {
			all = append(all, damage{fmt.Sprintf("cut at %d", block), whole[:block], false})
		}
		for _, d := range all {
			t.Run(kind+"/"+d.name, func(t *testing.T) {
				noLeaks(t)
				_, err := Extract(t.Context(), bytes.NewReader(d.data), t.TempDir(), Options{})
				if (err == nil) != d.ok {
					t.Errorf("error: %v; want success: %v", err, d.ok)
				}
			})
		}
	}
}

// The whole way: a server, a verified stream, a tree. A wad whose digest is
// wrong is refused though every byte of it could be extracted.
func TestFetched(t *testing.T) {
	noLeaks(t)
	cmd := exec.Command("zstd", "-c")
	cmd.Stdin = bytes.NewReader(pack(t, file("a", "x"), file("big", strings.Repeat("y", 3<<20))))
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed))
	}))
	t.Cleanup(server.Close)
	for _, test := range []struct {
		name   string
		digest spec.Digest
		ok     bool
	}{{"right", spec.Sum(packed), true}, {"wrong", spec.Sum(nil), false}} {
		t.Run(test.name, func(t *testing.T) {
			stream, err := (&fetch.Client{}).Open(t.Context(), fetch.Source{
				Name: "wad.tar.zst", URLs: []string{server.URL}, Size: spec.Size(len(packed)), SHA256: test.digest,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			_, err = Extract(t.Context(), stream, t.TempDir(), Options{})
			var wrong *fetch.DigestError
			if (err == nil) != test.ok || !test.ok && !errors.As(err, &wrong) {
				t.Errorf("error: %v; want success: %v", err, test.ok)
			}
		})
	}
}

// What would need more memory than small PCs have is refused before it is taken.
func TestWindows(t *testing.T) {
	data := pack(t, file("a", strings.Repeat("y", 1000)))
	for _, test := range []struct{ pack, remedy string }{
		{"xz -9", ""},
		{"xz -T2 -9", ""},
		{"xz --lzma2=preset=6,dict=256MiB", "xz -9"},
		{"zstd --ultra -22 --long=27", ""},
		{"zstd --long=28 --no-check", "--long"},
	} {
		t.Run(test.pack, func(t *testing.T) {
			noLeaks(t)
			cmd := exec.Command("bash", "-c", test.pack)
			cmd.Stdin = bytes.NewReader(data)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			_, err = Extract(t.Context(), bytes.NewReader(packed), t.TempDir(), Options{})
			if (err == nil) != (test.remedy == "") || err != nil && !strings.Contains(err.Error(), test.remedy) {
				t.Errorf("error: %v; want %q", err, test.remedy)
			}
		})
	}
}

// The reader below has the last word: what it withholds is an error though tar
// had all that it wanted.
func TestWireHasTheLastWord(t *testing.T) {
	verdict := errors.New("the digest is wrong")
	data := pack(t, file("a", "x"), file("b", strings.Repeat("y", 1<<20)))
	dir := t.TempDir()
	for _, kind := range []string{"cat", "gzip", "bzip2", "xz", "zstd"} {
		t.Run(kind, func(t *testing.T) {
			noLeaks(t)
			cmd := exec.Command(kind)
			cmd.Stdin = bytes.NewReader(data)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			for _, cut := range []int{0, 1, len(packed) / 3, len(packed) / 2} {
				wire := io.MultiReader(bytes.NewReader(packed[:len(packed)-cut]), iotest.ErrReader(verdict))
				if _, err := Extract(t.Context(), wire, t.TempDir(), Options{}); !errors.Is(err, verdict) {
					t.Errorf("%d bytes short: error %v; want %v", cut, err, verdict)
				}
			}
		})
	}
	if _, err := Extract(t.Context(), iotest.OneByteReader(bytes.NewReader(data)), dir, Options{}); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
}

// Go's own corpus, each archive with the end marker that most of them lack:
// nothing panics, nothing escapes, and what GNU tar takes without a word comes
// out the same.
func TestGoCorpus(t *testing.T) {
	needRoot(t)
	goroot, err := exec.Command(tool(t, "go", "golang"), "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	corpus, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(goroot)), "src/archive/tar/testdata/*.tar*"))
	if err != nil || len(corpus) < 30 {
		t.Fatalf("Go's sources are incomplete: %d archives, %v", len(corpus), err)
	}
	// What GNU tar takes, and we do not or otherwise, with the reason.
	known := map[string]string{
		"gnu-sparse-many-zeros.tar.bz2": "archive/tar bounds the memory for a map of holes",
		"pax-bad-mtime-file.tar":        "a time that is no number",
		"pax-nul-path.tar":              "a name with a zero byte",
		"invalid-go17.tar":              "GNU tar ignores the first part of such a name",
	}
	same := 0
	for _, path := range corpus {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			tmp, start := t.TempDir(), time.Now()
			sh(t, tmp, "mkdir ours theirs; case "+path+" in *.base64) base64 -d "+path+";; *) cat "+path+";; esac > wad; head -c 1024 /dev/zero >> wad")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			f, err := os.Open(tmp + "/wad")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = Extract(ctx, f, tmp+"/ours", Options{})
			entries, listErr := os.ReadDir(tmp)
			if listErr != nil || len(entries) != 3 {
				t.Errorf("beside the root: %v, %v", entries, listErr)
			}
			if reason, odd := known[name]; odd {
				t.Logf("%v: %s", err, reason)
				return
			}
			cmd := exec.Command("tar", "-xpf", "../wad", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
			cmd.Dir = tmp + "/theirs"
			said, theirs := cmd.CombinedOutput()
			t.Logf("ours: %v; tar: %v %s", err, theirs, said)
			silent := theirs == nil && len(said) == 0
			switch {
			case silent && err != nil:
				t.Errorf("GNU tar takes it, we do not: %v", err)
			case silent && strings.Contains(name, "sparse-big"):
				t.Log("60 GB of holes, which nobody wants to read")
			case silent:
				compareSince(t, tmp+"/ours", tmp+"/theirs", start)
				same++
			}
		})
	}
	if same < 15 {
		t.Errorf("only %d archives could be compared", same)
	}
}

func TestCancel(t *testing.T) {
	noLeaks(t)
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		w.Write(pack(t, file("a", "x"), file("big", strings.Repeat("y", 3<<20)))[:1<<20])
		cancel()
	}()
	_, err := Extract(ctx, r, t.TempDir(), Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v; want %v", err, context.Canceled)
	}
	r.Close()
}

// A full disk is told with the entry and a remedy, and ends quickly.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	noLeaks(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	_, err := Extract(t.Context(), bytes.NewReader(pack(t, file("a", "x"), file("big", strings.Repeat("y", 3<<20)), hardLink("c", "big"))), dir, Options{})
	var e *EntryError
	if !errors.Is(err, unix.ENOSPC) || !errors.As(err, &e) || e.Entry == "c" || !strings.Contains(err.Error(), "larger") {
		t.Errorf("error: %v", err)
	}
}

func TestProgress(t *testing.T) {
	var last Stats
	calls := 0
	_, err := Extract(t.Context(), bytes.NewReader(pack(t, file("a", "x"), folder("d"), symlink("s", "a"), hardLink("h", "a"), file("b", "yz"))), t.TempDir(),
		Options{Progress: func(s Stats) { last = s; calls++ }})
	if err != nil {
		t.Fatal(err)
	}
	want := Stats{Entries: 5, Bytes: 3, Files: 2, Directories: 1, Symlinks: 1, HardLinks: 1}
	if diff := cmp.Diff(want, last); diff != "" || calls == 0 {
		t.Errorf("last of %d (-want +got):\n%s", calls, diff)
	}
}

// BenchmarkExtract compares with zstd -dc | tar -x, in pairs on the same
// device: the one below TMPDIR. REASSURE_TREE names the tree to pack, by
// default some 250 MB of this machine. The ratio is that of the medians.
func BenchmarkExtract(b *testing.B) {
	needRoot(b)
	tool(b, "zstd", "zstd")
	tmp := b.TempDir()
	pack := "tar --numeric-owner -C / -cf - usr/bin usr/sbin usr/share/perl usr/share/zoneinfo usr/lib/python3"
	if dir := os.Getenv("REASSURE_TREE"); dir != "" {
		pack = "tar --numeric-owner -C '" + dir + "' -cf - ."
	}
	sh(b, tmp, pack+" | zstd -q -10 -T0 -o wad")
	var ours, theirs []float64
	for b.Loop() {
		for _, turn := range []struct {
			times *[]float64
			run   func()
		}{
			{&theirs, func() { sh(b, tmp, "zstd -dc wad | tar -xp --numeric-owner -C root") }},
			{&ours, func() {
				if _, err := extract(b, tmp+"/wad", tmp+"/root", Options{}); err != nil {
					b.Fatal(err)
				}
			}},
		} {
			sh(b, tmp, "rm -rf root; mkdir root; sync -f .")
			start := time.Now()
			turn.run()
			sh(b, tmp, "sync -f root")
			*turn.times = append(*turn.times, time.Since(start).Seconds())
		}
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	mine, tars := ours[len(ours)/2], theirs[len(theirs)/2]
	b.ReportMetric(mine, "ours-s")
	b.ReportMetric(tars, "tar-s")
	b.ReportMetric(mine/tars, "vs_tar")
}

// FuzzExtract looks for names and links that lead outside, and for panics.
func FuzzExtract(f *testing.F) {
	f.Add("a/b", "../..", "a/b/c", byte(tar.TypeSymlink))
	f.Add("l", "/", "l/etc/passwd", byte(tar.TypeSymlink))
	f.Add("x", "/../..", "x/y", byte(tar.TypeLink))
	f.Add("./..//a", "..", "..", byte(tar.TypeReg))
	f.Fuzz(func(t *testing.T, first, target, second string, kind byte) {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, h := range []tar.Header{
			{Name: first, Linkname: target, Typeflag: kind, Uid: os.Getuid(), Gid: os.Getgid()},
			{Name: second, Typeflag: tar.TypeReg, Size: 1, Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid()},
		} {
			if w.WriteHeader(&h) != nil {
				return
			}
			if h.Size > 0 {
				w.Write([]byte("x"))
			}
		}
		w.Close()
		tmp := t.TempDir()
		if err := os.MkdirAll(tmp+"/1/2/root", 0o755); err != nil {
			t.Fatal(err)
		}
		Extract(t.Context(), &out, tmp+"/1/2/root", Options{})
		for _, dir := range []string{tmp, tmp + "/1", tmp + "/1/2"} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Fatalf("%q, %q, %q, %c: %s holds %v", first, target, second, kind, dir, entries)
			}
		}
	})
}
