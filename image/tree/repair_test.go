package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// plant makes a small system with some of everything.
const plant = `
umask 022
mkdir -p etc/ssh bin usr/lib var/log/apt home dev a b
echo root:secret > etc/shadow; chmod 640 etc/shadow; chown 0:42 etc/shadow
echo host > etc/hostname; ln -s ../usr/lib etc/lib; echo key > etc/ssh/key
cp etc/hostname bin/su; chmod 4755 bin/su
echo lib > usr/lib/one; ln usr/lib/one usr/lib/two; ln usr/lib/one bin/three
head -c 200000 /dev/urandom > usr/lib/big; head -c 3000 /dev/urandom > usr/lib/small
truncate -s 300000 usr/lib/holes; echo x >> usr/lib/holes
mknod dev/null c 1 3; mkfifo -m 600 dev/pipe; : > var/log/syslog; : > a/empty
echo between > a-b; echo c > b/c; echo same > a/1; ln a/1 a/2; echo same > a/3; ln a/3 a/4
find . -exec touch -h -d '2001-02-03 04:05:06.789' {} +
`

// disk makes a golden tree below base by a script, and one that was laid down from it.
func disk(t *testing.T, base, script string) (*golden, string) {
	t.Helper()
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"golden", "disk"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, dir+"/golden", script)
	g := goldenOf(t, dir+"/golden")
	g.lay(t, dir+"/disk")
	return g, dir + "/disk"
}

// keepTimes runs a script and then gives what it changed the times from before.
func keepTimes(script string) string {
	return script + "\nfind . -exec touch -h -d '2001-02-03 04:05:06.789' {} +"
}

// What is found, as a person would read it, and that it is then repaired.
func TestLeftovers(t *testing.T) {
	base := ext4(t)
	for _, test := range []struct {
		name, damage string
		want         string // what is wrong
		bytes        int64  // that the repair had delivered
	}{
		{"nothing", "true", "", 0},
		{"a file changed within, its size and times kept", keepTimes(`printf X | dd of=usr/lib/small bs=1 seek=7 conv=notrunc`),
			"usr/lib/small: content", 3000},
		{"a piece of a large file", keepTimes(`printf X | dd of=usr/lib/big bs=1 seek=70000 conv=notrunc`),
			"usr/lib/big: content", pieceSize},
		{"a large file that grew huge", keepTimes(`truncate -s 1T usr/lib/big`), "usr/lib/big: size", 0},
		{"a large file cut short", keepTimes(`truncate -s 100000 usr/lib/big`), "usr/lib/big: size, usr/lib/big: content", 200000 - 3*pieceSize},
		{"a hole with something in it", keepTimes(`echo y | dd of=usr/lib/holes bs=1 seek=100000 conv=notrunc`), "usr/lib/holes: content", pieceSize},
		{"a file gone", keepTimes(`rm etc/hostname`), "etc/hostname: entry", 5},
		{"a folder gone", keepTimes(`rm -r etc/ssh`), "etc/ssh: entry, etc/ssh/key: entry", 4},
		{"an empty file that is not", keepTimes(`echo > a/empty`), "a/empty: size", 0},
		{"surplus names", keepTimes(`mkdir -p new/deep/er; echo > new/deep/x; echo > a/b; echo > a0; echo > zz`),
			"a/b: entry, a0: entry, new: entry, zz: entry", 0},
		{"a symbolic link where a folder was", keepTimes(`mv etc /tmp/reassure-test-etc-$$; rm -r /tmp/reassure-test-etc-$$; ln -s /etc etc`),
			"etc: kind, etc/hostname: entry, etc/lib: entry, etc/shadow: entry, etc/ssh: entry, etc/ssh/key: entry", 5 + 12 + 4},
		{"a folder where a file was", keepTimes(`rm etc/shadow; mkdir -p etc/shadow/x; echo > etc/shadow/x/y`), "etc/shadow: kind", 12},
		{"a FIFO and devices in the way", keepTimes(`rm etc/hostname usr/lib/small; mkfifo etc/hostname; mknod usr/lib/small c 1 5; mknod home/zero b 7 0; mkfifo home/pipe`),
			"etc/hostname: kind, home/pipe: entry, home/zero: entry, usr/lib/small: kind", 5 + 3000},
		{"another device", keepTimes(`rm dev/null; mknod -m 644 dev/null c 1 5`), "dev/null: device", 0},
		{"another target", keepTimes(`ln -sfn ../usr/liz etc/lib`), "etc/lib: target", 0},
		{"another name for a secret", keepTimes(`ln etc/shadow home/shadow`), "etc/shadow: links, home/shadow: entry", 0},
		{"a setuid copy", keepTimes(`cp bin/su home/su; chmod 4755 home/su`), "home/su: entry", 0},
		{"two files made one", keepTimes(`ln -f etc/hostname b/c`), "b/c: size, b/c: links, etc/hostname: links", 2},
		{"a name of a file made a file", keepTimes(`cp -p bin/three x; mv x bin/three`), "bin/three: links, usr/lib/one: links, usr/lib/two: links", 0},
		{"the first name of a file gone", keepTimes(`rm bin/three`), "bin/three: entry, usr/lib/one: links, usr/lib/two: links", 0},
		{"names swapped between two files of the same content", keepTimes(`mv a/2 a/5; mv a/3 a/2; mv a/5 a/3`), "a/2: links, a/4: links", 0},
		{"all names of a file another", keepTimes(`echo xyz > usr/lib/two`), "bin/three: content, usr/lib/one: content, usr/lib/two: content", 4},
		{"metadata", `chmod 777 etc/shadow; chown 5 bin; touch a/empty; setfattr -n user.x -v 1 usr; setfattr -h -n trusted.x -v 1 etc/lib; chown -h 7:7 etc/lib dev/pipe; chmod 4711 dev/null`,
			"a/empty: time, bin: owner, dev/null: mode, dev/pipe: owner, etc/lib: owner, etc/lib: trusted.x, etc/shadow: mode, usr: user.x", 0},
		{"ACLs, also for what is made", keepTimes(`setfacl -m u:5:rw etc/shadow; setfacl -d -m u:5:rwx etc a usr/lib; rm -r etc/ssh a/empty usr/lib/small etc/lib`),
			"", 4 + 3000},
		{"capabilities", keepTimes(`setcap cap_setuid+ep usr/lib/small`), "usr/lib/small: security.capability", 0},
		{"immutable, append-only and other flags", keepTimes(`mkdir -p home/x/y; echo > home/x/y/z; echo x >> a/empty; touch -d '2001-02-03 04:05:06.789' a/empty; ln a/empty home/e`) + `
			chattr +i etc/shadow home/x/y/z bin; chattr +a home/x/y home usr/lib/big; chattr +i home/x a/empty; chattr +dA b/c; chattr +S .`,
			"", 0},
		{"names of any bytes", keepTimes(`for d in a home; do echo > $d/$'new\nline'; echo > $d/$'\377\376'; mkdir -p "$d/$(printf 'n%.0s' {1..255})"; echo > "$d/ "; echo > "$d/-rf"; echo > "$d/*"; done`),
			"", 0},
		{"everything gone", `find . -mindepth 1 -delete`, "", 12 + 5 + 4 + 5 + 4 + 200000 + 3000 + 300002 + 8 + 2 + 2*5},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, root := disk(t, base, plant)
			sh(t, root, test.damage)
			faults := g.check(t, root, CheckOptions{})
			var got []string
			for _, f := range faults {
				for _, d := range f.Differences {
					got = append(got, d.Path+": "+d.What)
				}
			}
			if test.want != "" || test.damage == "true" {
				if diff := cmp.Diff(test.want, strings.Join(got, ", ")); diff != "" {
					t.Errorf("found (-want +got):\n%s", diff)
				}
			} else if len(got) == 0 {
				t.Error("nothing was found")
			}
			stats := g.repair(t, root, CheckOptions{})
			g.same(t, root)
			if stats.Bytes != test.bytes {
				t.Errorf("%d bytes were fetched, want %d", stats.Bytes, test.bytes)
			}
		})
	}
}

// Whoever holds another name of a file does not get what the repair writes.
func TestOtherNameElsewhere(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	// The name is in a kept folder, so that it stays.
	sh(t, root, keepTimes(`mkdir home/keep; ln etc/shadow home/keep/shadow; ln usr/lib/big home/keep/big; ln usr/lib/one home/keep/one
		printf X | dd of=usr/lib/big bs=1 seek=70000 conv=notrunc; echo evil > etc/shadow; cp home/keep/shadow home/keep/was`))
	o := CheckOptions{Keep: []string{"home/keep"}}
	if got := g.repair(t, root, o).Bytes; got != 12+pieceSize {
		t.Errorf("%d bytes were fetched", got)
	}
	sh(t, root, `cmp home/keep/shadow home/keep/was; [ "$(stat -c %h etc/shadow home/keep/shadow usr/lib/big usr/lib/one)" = $'1\n1\n1\n3' ]; rm -r home/keep; touch -d '2001-02-03 04:05:06.789' home`)
	g.same(t, root)
}

// What is to be kept stays as it is, wherever it is, and nothing else does.
func TestKeep(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	sh(t, root, `echo mine > etc/ssh/key; mkdir -p opt/x/data/deep opt/x/other opt/y; echo 1 > opt/x/data/deep/f; echo > opt/x/g
		echo new > var/log/new; rm -r home; ln -s / srv; echo > b/gone`)
	o := CheckOptions{
		Keep:    []string{"etc/ssh/key", "opt/x/data", "home", "srv/etc", "b/not/there"},
		Runtime: []string{"var/log"},
	}
	// The link srv is no folder that something in it could be kept.
	want := `.: time: 2001-02-03T04:05:06.789Z -> TIME (runtime)
b: time: 2001-02-03T04:05:06.789Z -> TIME
b/gone: entry: missing -> file
home: entry: directory -> missing
opt/x/g: entry: missing -> file
opt/x/other: entry: missing -> directory
opt/y: entry: missing -> directory
srv: entry: missing -> symbolic link
var/log: time: 2001-02-03T04:05:06.789Z -> TIME (runtime)
var/log/new: entry: missing -> file (runtime)`
	got := summary(g.check(t, root, o))
	for _, l := range strings.Split(got, "\n") {
		if _, at, ok := strings.Cut(l, "Z -> "); ok {
			at, _, _ = strings.Cut(at, " ")
			got = strings.ReplaceAll(got, at, "TIME")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	g.repair(t, root, o)
	sh(t, root, `[ "$(cat etc/ssh/key opt/x/data/deep/f)" = $'mine\n1' ]; [ "$(ls opt)" = x ]; [ "$(ls opt/x)" = data ]; ls -d home; ! ls -d srv`)
}

// A file system that is kept as a whole is not looked at.
func TestKeepAll(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	sh(t, root, "rm -r etc; echo > new")
	if faults := g.check(t, root, CheckOptions{Keep: []string{"."}}); len(faults) > 0 {
		t.Errorf("found:\n%s", summary(faults))
	}
}

// A file of which one name is to be kept is another file from there on.
func TestKeepOneName(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	o := CheckOptions{Keep: []string{"bin"}}
	sh(t, root, keepTimes(`echo mine > bin/three`)) // and so of usr/lib/one and two
	if got := g.repair(t, root, o).Bytes; got != 4 {
		t.Errorf("%d bytes were fetched", got)
	}
	sh(t, root, `[ "$(cat bin/three usr/lib/one usr/lib/two)" = $'mine\nlib\nlib' ]; [ "$(stat -c %h bin/three usr/lib/two)" = $'1\n2' ]
		rm usr/lib/one bin/three`)
	g.repair(t, root, o)
	sh(t, root, `[ "$(stat -c %h usr/lib/one usr/lib/two)" = $'2\n2' ]; ! ls bin/three; rm -r bin`)
	g.repair(t, root, o)
	sh(t, root, `[ "$(stat -c %h bin/three usr/lib/one usr/lib/two)" = $'1\n2\n2' ]; [ "$(cat bin/three)" = lib ]`)
}

// A folder of very many names, and one nested deeper than a path or the number
// of open files allows, are removed, and found without entering them.
func TestHugeAndDeep(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	fill := func(n int) {
		t.Helper()
		fd, err := unix.Open(root+"/home", unix.O_RDONLY, 0)
		for i := 0; i < n && err == nil; i++ {
			err = unix.Mknodat(fd, fmt.Sprint(i), unix.S_IFREG|0o644, 0)
		}
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			t.Fatal(err)
		}
	}
	fill(100_000)
	if err := os.Rename(root+"/home", root+"/many"); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(root, unix.O_RDONLY, 0)
	for i := range 5000 {
		if err != nil {
			t.Fatal(err)
		}
		name := []string{"0", "1", strings.Repeat("d", 255)}[i%3]
		err = errors.Join(unix.Mkdirat(fd, name, 0o755), unix.Mknodat(fd, "file", unix.S_IFREG, 0))
		next, e := unix.Openat(fd, name, unix.O_RDONLY, 0)
		err = errors.Join(err, e, unix.Close(fd))
		fd = next
	}
	unix.Close(fd)
	if n := len(g.check(t, root, CheckOptions{})); n != 5 {
		t.Errorf("%d names are wrong", n)
	}
	g.repair(t, root, CheckOptions{})
	g.same(t, root)

	// In a folder that belongs there each name is a fault.
	fill(2000)
	_, err = collectFaults(Check(t.Context(), root, g.all(), CheckOptions{Limit: 1000}))
	if !errors.Is(err, ErrTooMuch) {
		t.Errorf("2000 faults with a limit of 1000: %v", err)
	}
}

// File systems of the tree itself are entered, others never; each has its lost+found.
func TestMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mount := func(at string) {
		t.Helper()
		image := filepath.Join(dir, strings.ReplaceAll(at, "/", "-")+".img")
		sh(t, dir, fmt.Sprintf(`truncate -s 16M '%s'; mkfs.ext4 -q '%[1]s'; mkdir -p '%s'; mount -o loop '%[1]s' '%[2]s'`, image, at))
		t.Cleanup(func() { unix.Unmount(filepath.Join(dir, at), unix.MNT_DETACH) })
	}
	sh(t, dir, "mkdir golden; cd golden; "+plant+"mkdir boot var/spare; echo kernel > boot/vmlinuz; touch -d 2001-01-01 boot var .")
	g := goldenOf(t, dir+"/golden")
	mount("disk")
	mount("disk/boot")
	root := dir + "/disk"
	g.lay(t, root)
	o := CheckOptions{Mounts: []string{"boot"}}
	if faults := g.check(t, root, o); len(faults) > 0 {
		t.Fatalf("fresh file systems are wrong:\n%s", summary(faults))
	}
	sh(t, root, `echo > boot/lost+found/#12; chmod 777 lost+found; chown 5 boot/lost+found; setfattr -n user.x -v 1 lost+found; mkdir a/lost+found; echo > boot/new; echo changed > boot/vmlinuz`)
	got := g.check(t, root, o)
	var names []string
	for _, f := range got {
		names = append(names, f.Path)
	}
	if diff := cmp.Diff("a a/lost+found boot boot/lost+found boot/lost+found/#12 boot/new boot/vmlinuz lost+found", strings.Join(names, " ")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	g.repair(t, root, o)
	sh(t, root, `[ "$(stat -c '%a %u' lost+found boot/lost+found)" = $'700 0\n700 0' ]; rmdir lost+found boot/lost+found; touch -d 2001-01-01 boot .`)
	// Compare looks into no mounts: each is compared by itself.
	for _, sub := range []string{"", "/boot"} {
		differences, err := Compare(dir+"/golden"+sub, root+sub)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range differences {
			if !strings.HasPrefix(d.Path, "boot/") {
				t.Errorf("%v", d)
			}
		}
	}

	mount("disk/var/spare")
	for _, what := range []string{"another file system", "a folder bound", "a file bound"} {
		switch what {
		case "a folder bound":
			sh(t, root, "umount var/spare; mkdir surplus; mount --bind etc surplus")
		case "a file bound":
			sh(t, root, "umount surplus; rmdir surplus; mount --bind etc/shadow etc/hostname")
			t.Cleanup(func() { unix.Unmount(root+"/etc/hostname", unix.MNT_DETACH) })
		}
		if _, err := collectFaults(Check(t.Context(), root, g.all(), o)); !errors.Is(err, ErrMounted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Nor is anything removed through one that appears after the check.
	sh(t, root, "umount etc/hostname; mkdir -p surplus/x")
	faults := g.check(t, root, o)
	sh(t, root, "mount --bind etc surplus/x")
	t.Cleanup(func() { unix.Unmount(root+"/surplus/x", unix.MNT_DETACH) })
	if _, err := Repair(t.Context(), root, g.all(), faults, g.content); !errors.Is(err, ErrMounted) {
		t.Errorf("a mount in what is to be removed: %v", err)
	}
	sh(t, root, "cat etc/shadow")
}

// What is delivered is not believed.
func TestDeliver(t *testing.T) {
	base := ext4(t)
	for _, test := range []struct {
		name    string
		content func(g *golden, needs []Need, deliver Deliver) error
		want    string
	}{
		{"another content", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(0, -1, strings.NewReader("HOST\n")) }, "is not its content"},
		{"too much", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(0, -1, strings.NewReader("host\nx")) }, "more than its 5 bytes"},
		{"too little", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(0, -1, strings.NewReader("host")) }, "4 of its 5 bytes"},
		{"nothing", func(*golden, []Need, Deliver) error { return nil }, "not all of its content was delivered"},
		{"half", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(0, -1, strings.NewReader("host\n")) }, "not all of its content was delivered"},
		{"twice", func(_ *golden, _ []Need, deliver Deliver) error {
			return errors.Join(deliver(0, -1, strings.NewReader("host\n")), deliver(0, -1, strings.NewReader("host\n")))
		}, "delivered twice"},
		{"a piece of what has none", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(0, 0, strings.NewReader("host\n")) }, "not needed"},
		{"another piece", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(1, 0, strings.NewReader("")) }, "not needed"},
		{"the whole of what has pieces", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(1, -1, strings.NewReader("")) }, "not needed"},
		{"what nobody asked for", func(_ *golden, _ []Need, deliver Deliver) error { return deliver(2, -1, strings.NewReader("")) }, "no need"},
		{"its own failure", func(*golden, []Need, Deliver) error { return io.ErrClosedPipe }, "closed pipe"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, root := disk(t, base, plant)
			sh(t, root, `rm etc/hostname; printf X | dd of=usr/lib/big bs=1 seek=70000 conv=notrunc`)
			faults := g.check(t, root, CheckOptions{})
			_, err := Repair(t.Context(), root, g.all(), faults, func(_ context.Context, needs []Need, deliver Deliver) error {
				if len(needs) != 2 || needs[0].Want.Path != "etc/hostname" || needs[0].Pieces != nil || !cmp.Equal(needs[1].Pieces, []int{2}) {
					t.Errorf("needs are %+v", needs)
				}
				return test.content(g, needs, deliver)
			})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// A list that is no walk is an error, and so is a tree that cannot be read.
func TestCheckErrors(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	broken := &golden{entries: []*Expected{
		{Entry: Entry{Path: ".", Kind: Directory}},
		{Entry: Entry{Path: "a/empty", Kind: Regular}},
	}}
	if _, err := collectFaults(Check(t.Context(), root, broken.all(), CheckOptions{})); !errors.Is(err, ErrOrder) {
		t.Errorf("a file before its folder: %v", err)
	}
	broken.entries[1], broken.entries[0] = &Expected{Entry: Entry{Path: "a", Kind: Directory}}, &Expected{Entry: Entry{Path: "b", Kind: Directory}}
	if _, err := collectFaults(Check(t.Context(), root, broken.all(), CheckOptions{})); !errors.Is(err, ErrOrder) {
		t.Errorf("b before a: %v", err)
	}
	if _, err := collectFaults(Check(t.Context(), root+"/none", g.all(), CheckOptions{})); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no tree: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := collectFaults(Check(ctx, root, g.all(), CheckOptions{})); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	sh(t, root, "rm -r etc")
	for range Check(t.Context(), root, g.all(), CheckOptions{}) {
		break // ends all goroutines
	}
}

// A check changes nothing, not even times of access, but for those of symbolic
// links, which cannot be read without.
func TestCheckChangesNothing(t *testing.T) {
	g, root := disk(t, ext4(t), plant)
	sh(t, root, "find . -exec touch -h -a -d 1999-01-01 {} +; echo > etc/hostname")
	look := func() string {
		var all strings.Builder
		for _, e := range g.entries {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, e.Path), &st); err != nil {
				t.Fatal(err)
			}
			if e.Kind == Symlink {
				st.Atim = unix.Timespec{}
			}
			fmt.Fprintln(&all, e.Path, st.Atim, st.Mtim, st.Ctim)
		}
		return all.String()
	}
	before := look()
	if len(g.check(t, root, CheckOptions{})) == 0 {
		t.Error("nothing was found")
	}
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("changed by looking (-before +after):\n%s", diff)
	}
}
