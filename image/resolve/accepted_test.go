package resolve

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
	"reassure/image/stamp"
)

func TestAccepted(t *testing.T) {
	before := mustResolve(t, site(t, nil))
	after := mustResolve(t, site(t, map[string]string{spec.AcceptedFile: `
disks:
  - {host: EXP01, serial: S1, model: Lab Disk}
  - {host: exp01, model: Old Disk, size: 8GiB}
stamps:
  - {host: exp02, serial: 1999999999}
`}))
	want := []spec.DiskID{{Serial: "S1", Model: "Lab Disk"}, {Model: "Old Disk", Size: 8 * spec.GiB}}
	if diff := cmp.Diff(want, after["exp01"].Accepted); diff != "" {
		t.Error(diff)
	}
	if m := after["exp02"]; len(m.Accepted) != 0 || m.Supersedes != 1999999999 {
		t.Errorf("exp02: %v, %d", m.Accepted, m.Supersedes)
	}
	for name, m := range after {
		if stamp.Digest(m) != before[name].Digest {
			t.Errorf("%s would be reimaged because of it", name)
		}
	}
}

func TestAcceptedMistakes(t *testing.T) {
	_, err := Load(site(t, map[string]string{spec.AcceptedFile: `disks:
  - {host: exp09, serial: S1}
  - {host: exp01, model: Lab Disk}
`}))
	if err == nil || !strings.Contains(err.Error(), "accepted.yaml:3: disks[1]: names no disk") {
		t.Errorf("error is %v", err)
	}
	_, err = Load(site(t, map[string]string{spec.AcceptedFile: "disks:\n  - {host: exp09, serial: S1}\nstamps:\n  - {host: exp08, serial: 1}\n"}))
	for _, want := range []string{`accepted.yaml:2: disks[0].host: there is no host "exp09"`, `accepted.yaml:4: stamps[0].host: there is no host "exp08"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v; want %q", err, want)
		}
	}
}
