package reimage

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/wad"
)

// What is sent of a system: all but what is left out, and an empty machine-id
// where there was one.
func TestWriteSystem(t *testing.T) {
	root := t.TempDir()
	script := `mkdir -p etc/ssh srv proc tmp; echo 0123 >etc/machine-id; echo k >etc/ssh/ssh_host_rsa_key; echo c >etc/ssh/sshd_config
echo x >srv/a; ln srv/a srv/b; ln -s a srv/c; head -c 3000000 /dev/urandom >srv/big; echo p >proc/1; echo t >tmp/t`
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var patterns []string
	for _, e := range wad.Exclusions() {
		patterns = append(patterns, e.Pattern)
	}
	for _, test := range []struct {
		name     string
		patterns []string
		want     string
	}{
		{"usual", patterns, ". etc etc/machine-id= etc/ssh etc/ssh/sshd_config=c proc srv srv/a=x srv/b=x srv/big srv/c=x tmp"},
		{"a person's", []string{"/srv", "/etc/ssh/*", "/proc/*"}, ". etc etc/machine-id=0123 etc/ssh proc tmp tmp/t=t"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var count, sent bytes.Buffer
			if err := writeSystem(t.Context(), &count, &sent, root, test.patterns, wad.FolderOptions{}); err != nil {
				t.Fatal(err)
			}
			if count.Len() < 5*512 || count.Len()%512 != 0 {
				t.Errorf("%d bytes were counted", count.Len())
			}
			dir := t.TempDir()
			if _, err := wad.Extract(t.Context(), &sent, dir, wad.Options{}); err != nil {
				t.Fatal(err)
			}
			list := exec.Command("sh", "-c", `find . | sort | while read -r f; do printf '%s' "$f"; [ ! -f "$f" ] || [ "$(stat -Lc %s "$f")" -gt 100 ] || printf '=%s' "$(cat "$f")"; echo; done`)
			list.Dir = dir
			out, err := list.Output()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, strings.ReplaceAll(strings.Join(strings.Fields(string(out)), " "), "./", "")); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
	full := errors.New("nobody takes it")
	if err := writeSystem(t.Context(), &bytes.Buffer{}, failing{full}, root, patterns, wad.FolderOptions{}); !errors.Is(err, full) {
		t.Errorf("error: %v; want %v", err, full)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	var sent bytes.Buffer
	if err := writeSystem(t.Context(), &bytes.Buffer{}, &sent, root, patterns, wad.FolderOptions{}); err == nil {
		t.Error("a system that is not there was sent")
	}
	if _, err := wad.Extract(t.Context(), &sent, t.TempDir(), wad.Options{}); err == nil {
		t.Error("what was sent of it looks whole")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
