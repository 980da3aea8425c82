package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"a": "a", "./a": "a", "a/": "a", "/a": "a", "//a//b/./c/": "a/b/c",
		".": ".", "./": ".", "/": ".", "": ".",
		"..a": "..a", "a/...": "a/...", "a/..b/c": "a/..b/c", "\xff\n": "\xff\n",
	} {
		if got, err := Clean(in); err != nil || got != want {
			t.Errorf("Clean(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"..", "../a", "a/..", "a/../b", "/..", "./../a", "a/b/..", "a\x00b"} {
		if got, err := Clean(in); err == nil {
			t.Errorf("Clean(%q) = %q; want an error", in, got)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"a/../b", "/../..", "./.../..", "....//", "a//..//b", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Clean(s)
		if err != nil {
			return
		}
		if !filepath.IsLocal(got) || filepath.Clean(got) != got || strings.IndexByte(got, 0) >= 0 {
			t.Errorf("Clean(%q) = %q", s, got)
		}
		if again, err := Clean(got); err != nil || again != got {
			t.Errorf("Clean(%q) = %q, but of that %q, %v", s, got, again, err)
		}
	})
}

// Every kind of change is found, by its name and alone.
func TestCompare(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test makes devices and files of other owners: run it as root")
	}
	for _, program := range []struct{ name, debian string }{{"setfattr", "attr"}, {"setfacl", "acl"}} {
		if _, err := exec.LookPath(program.name); err != nil {
			t.Fatalf("%s is missing: apt-get install %s", program.name, program.debian)
		}
	}
	sh := func(dir, script string) {
		t.Helper()
		cmd := exec.Command("bash", "-euc", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	const make = `mkdir -p d/e; echo x > d/f; ln d/f d/g; cp d/f d/h; ln -s f d/l; mknod n c 1 3; mkfifo p
setfattr -n user.a -v 1 d/f; find . -exec touch -h -d '2001-02-03 04:05:06.789' {} +`
	for _, test := range []struct{ change, want string }{
		{"true", ""},
		{"touch -d '2001-02-03 04:05:06.789000001' d/f", "d/f time, d/g time"},
		{"touch -h -d 2002-01-01 d/l", "d/l time"},
		{"chmod 4644 d/h", "d/h mode"},
		{"chown 5 p", "p owner"},
		{"chown -h :5 d/l", "d/l owner"},
		{"touch -r d/h s; printf 'y\\n' > d/h; touch -r s d/h; touch -r d s; rm s; touch -r d .", "d/h content"},
		{"touch -r d/h s; echo yes > d/h; touch -r s d/h; rm s; touch -r d .", "d/h size, d/h content"},
		{"rm p; touch -r d .", "p entry"},
		{"echo > new; touch -r d .", "new entry"},
		{"rm p; mkdir p; touch -r d p .", "p kind"},
		{"rm n; mknod n c 1 5; touch -r d n .", "n device"},
		{"rm n; mknod n b 1 3; touch -r d n .", "n kind"},
		{"ln -sfn g d/l; touch -h -r p d/l d", "d/l target"},
		{"rm d/g; cp -a d/f d/g; touch -r p d", "d/g links"},
		{"rm d/h; ln d/f d/h; touch -r p d; setfattr -x user.a d/f", "d/f user.a, d/g user.a, d/h links"},
		{"setfattr -n user.a -v 2 d/f", "d/f user.a, d/g user.a"},
		{"setfacl -m u:5:r d/h", "d/h system.posix_acl_access"},
		{"setfacl -d -m u:5:r d/e", "d/e system.posix_acl_default"},
		{"setfattr -h -n trusted.x -v 1 d/l", "d/l trusted.x"},
	} {
		t.Run(test.change, func(t *testing.T) {
			a, b := t.TempDir(), t.TempDir()
			sh(a, make)
			sh(b, make+"\n"+test.change)
			differences, err := Compare(a, b)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range differences {
				got = append(got, d.Path+" "+d.What)
			}
			if diff := cmp.Diff(test.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Compare(t.TempDir(), "/nonexistent"); err == nil {
		t.Error("a tree that is not there compares")
	}
}
