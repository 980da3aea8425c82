package templates

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnit has systemd judge the boot server's unit: that it understands every
// line, and how much the service could do (0 is nothing, 10 is everything).
func TestUnit(t *testing.T) {
	text, err := FS.ReadFile("systemd/reassure.service")
	if err != nil {
		t.Fatal(err)
	}
	// systemd looks for the program, which need not be installed here.
	unit := strings.Replace(string(text), "/usr/local/bin/reassure ", "/bin/true ", 1)
	for _, c := range []struct {
		name, old, new string
		good           bool
	}{
		{"as it is", "", "", true},
		{"misspelt", "ProtectHome=", "ProtectHoem=", false},
		{"no such system call group", "@system-service", "@sytem-service", false},
		{"any capability", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_RAW\n", "", false},
		{"any system call", "SystemCallFilter=@system-service\n", "", false},
	} {
		if !strings.Contains(unit, c.old) {
			t.Fatalf("%s: %q is not in the unit", c.name, c.old)
		}
		file := filepath.Join(t.TempDir(), "reassure.service")
		if err := os.WriteFile(file, []byte(strings.Replace(unit, c.old, c.new, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		said := ""
		for _, args := range [][]string{
			{"verify", "--man=no", file},
			{"security", "--offline=true", "--no-pager", "--threshold=18", file},
		} {
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			if errors.Is(err, exec.ErrNotFound) {
				t.Fatalf("%v: install the Debian package systemd", err)
			}
			if err != nil {
				said += err.Error() + "\n" + out.String()
			}
			said += errs.String() // of what it does not understand it only warns
		}
		if (said == "") != c.good {
			t.Errorf("%s: systemd says %q", c.name, said)
		}
	}
}
