package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWadCapture makes a wad of what a stand-in for ssh sends, indexed and plain,
// and says what was left out.
func TestWadCapture(t *testing.T) {
	dir := t.TempDir()
	ssh := "#!/bin/sh\ncat >" + dir + "/script\nprintf 'reassure-capture 1 machine-id=yes kernel=no\\nwithout ext4 /home\\narchive\\n'\n" +
		"tar -C " + dir + "/pc -c .\nprintf 'tar: ./x: file changed\\033[31m\\n' >&2\nexit $SSH_STATUS\n"
	for name, text := range map[string]string{"bin/ssh": ssh, "pc/etc/motd": "golden", "pc/srv/x": "x"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+"/bin:"+os.Getenv("PATH"))
	t.Setenv("SSH_STATUS", "0")
	for _, name := range []string{"pc.tar.zst", "pc.tar"} {
		out, errs, code := reassure(t, "wad", "capture", "root@golden", "-o", dir+"/"+name, "--exclude", "/opt/*", "--keep", "/tmp/*")
		if code != 0 || !strings.HasPrefix(out, dir+"/"+name+": ") {
			t.Errorf("%s: exit code %d, %q", name, code, out)
		}
		for _, want := range []string{"left out: /home (ext4): --include-mount", "will not boot", "file changed[31m\n"} {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: %q has no %q", name, errs, want)
			}
		}
		list, err := exec.Command("tar", "-tf", dir+"/"+name).CombinedOutput()
		if want := "./etc/machine-id\n./\n./"; err != nil || !strings.HasPrefix(string(list), want) {
			t.Errorf("%s: %v; tar lists %q, want %q first", name, err, list, want)
		}
	}
	script, err := os.ReadFile(dir + "/script")
	if err != nil || !strings.Contains(string(script), "--exclude=./opt/*'") || strings.Contains(string(script), "--exclude=./tmp/*'") || !strings.Contains(string(script), "--exclude=./proc/*'") {
		t.Errorf("the far side is told (%v):\n%s", err, script)
	}
	t.Setenv("SSH_STATUS", "255")
	if _, errs, code := reassure(t, "wad", "capture", "root@golden", "-o", dir+"/cut.tar.zst"); code != 1 || !strings.Contains(errs, "cut") {
		t.Errorf("a cut connection: exit code %d, %q", code, errs)
	}
	if left, err := filepath.Glob(dir + "/*cut*"); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if out := must(t, "wad", "capture", "--show-excludes"); !strings.Contains(out, "/etc/ssh/ssh_host_*key ") || !strings.Contains(out, "WHY IT STAYS") {
		t.Errorf("--show-excludes: %s", out)
	}
}
