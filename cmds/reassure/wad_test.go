package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWads is what a person does with wads: packs, looks, compares.
func TestWads(t *testing.T) {
	dir := t.TempDir()
	tree, one, two := filepath.Join(dir, "tree"), filepath.Join(dir, "one.tar.zst"), filepath.Join(dir, "two.tar.zst")
	shell := func(script string) {
		t.Helper()
		if out, err := exec.Command("bash", "-euc", "cd "+dir+"; "+script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	shell(`mkdir -p tree/etc tree/usr/lib tree/var/log; echo hello >tree/etc/motd; ln -s ../usr/lib/os tree/etc/os-release; echo NAME=x >tree/usr/lib/os
chmod 4755 tree/usr/lib/os; ln tree/etc/motd tree/etc/motd2; echo log >tree/var/log/a; printf 'x' >tree/etc/$'bell\a'; find tree -exec touch -h -d @1000000000 {} +`)
	if got := must(t, "wad", "pack", tree, "-o", one, "--exclude", "/var/log/*"); !strings.Contains(got, "one.tar.zst: ") || !strings.Contains(got, "11 entries") {
		t.Errorf("pack: %s", got)
	}
	if got, want := must(t, "wad", "ls", one), ".\netc\n\"etc/bell\\a\"\netc/motd\netc/motd2\netc/os-release\nusr\nusr/lib\nusr/lib/os\nvar\nvar/log\n"; got != want {
		t.Errorf("ls: %s; want %s", got, want)
	}
	long := must(t, "wad", "ls", "-l", one, "etc/motd2", "/usr/lib/", "etc/os-release")
	for _, want := range []string{"etc/motd2 = etc/motd\n", "-rwsr-xr-x ", " 2001-09-09T01:46:40Z ", "etc/os-release -> ../usr/lib/os\n", "drwxr-xr-x "} {
		if !strings.Contains(long, want) {
			t.Errorf("ls -l has no %q:\n%s", want, long)
		}
	}
	if got := must(t, "wad", "cat", one, "etc/os-release", "etc/motd"); got != "NAME=x\nhello\n" {
		t.Errorf("cat: %q", got)
	}
	if got := must(t, "wad", "verify", one); !strings.Contains(got, "all are as the index says") {
		t.Errorf("verify: %s", got)
	}
	if got := must(t, "wad", "info", one); !strings.Contains(got, "entries") || !strings.Contains(got, "bytes an entry") {
		t.Errorf("info: %s", got)
	}
	// A tarball, through standard input and by name, with and without an index.
	shell("tar -C tree -cf plain.tar . && tar --zstd -tf one.tar.zst >/dev/null")
	plain, err := os.ReadFile(filepath.Join(dir, "plain.tar"))
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	a := &app{stdin: bytes.NewReader(plain), stdout: &out, stderr: &errs}
	if err := a.run(t.Context(), []string{"wad", "pack", "-", "-o", two}); err != nil {
		t.Fatal(err)
	}
	three := filepath.Join(dir, "three.tar.zst")
	must(t, "wad", "pack", filepath.Join(dir, "plain.tar"), "-o", three, "--level", "3")
	shell("zstd -dc two.tar.zst | cmp - plain.tar; zstd -dc three.tar.zst | cmp - plain.tar")
	if got := must(t, "wad", "cat", filepath.Join(dir, "plain.tar"), "etc/motd2"); got != "hello\n" {
		t.Errorf("cat of a tarball: %q", got)
	}
	if got := must(t, "wad", "verify", filepath.Join(dir, "plain.tar")); !strings.Contains(got, "it has no index") {
		t.Errorf("verify of a tarball: %s", got)
	}
	shell("echo more >>tree/etc/motd; rm tree/usr/lib/os; touch -d @1000000000 tree/etc/motd tree/usr/lib")
	must(t, "wad", "pack", tree, "-o", two)
	got := must(t, "wad", "diff", one, two)
	for _, want := range []string{"~ etc/motd: size, content\n", "- usr/lib/os\n", "+ var/log/a\n", "1 added, 1 removed, 2 changed\n", "to fetch: "} {
		if !strings.Contains(got, want) {
			t.Errorf("diff has no %q:\n%s", want, got)
		}
	}
	if got := must(t, "wad", "diff", "--totals", one, one); !strings.HasPrefix(got, "0 added, 0 removed, 0 changed\n") {
		t.Errorf("diff of a wad and itself: %s", got)
	}
}

// Each mistake is told with what to do, and leaves nothing.
func TestWadMistakes(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out", "a.tar.zst")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no archive\n"), 100), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"wad", "pack", dir}, 2, "-o"},
		{[]string{"wad", "pack", dir, "-o", out, "--level", "23"}, 2, "level 23"},
		{[]string{"wad", "pack", dir, "-o", out, "--exclude", "etc"}, 2, "absolute path"},
		{[]string{"wad", "pack", text, "-o", out, "--one-file-system"}, 2, "tarball"},
		{[]string{"wad", "pack", text, "-o", out}, 1, "no wad"},
		{[]string{"wad", "pack", dir + "/none", "-o", out}, 1, "no such file"},
		{[]string{"wad", "diff", text, text}, 1, "reassure wad pack"},
		{[]string{"wad", "ls", text}, 1, "no wad"},
		{[]string{"wad", "verify", text}, 1, "no wad"},
		{[]string{"wad", "cat", text}, 2, "requires at least 2"},
	} {
		_, errs, code := reassure(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%q: exit code %d, %s; want %d and %q", c.args, code, errs, c.code, c.want)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
