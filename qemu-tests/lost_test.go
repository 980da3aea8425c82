package qemutests

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/command"
	"reassure/image/spec"
)

// nobody is an address of the user network that no one has: what is sent there is
// lost, as it is when a server has just died.
const nobody = "10.0.2.77"

// TestServerLost takes the server away from a PC that is told Remote, at each stage
// before the first write. Every time the PC's own system boots, with nobody's help,
// and the log says how long that took.
func TestServerLost(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, SmallProfile)
	lab.publish()
	lab.decide("remote")
	disk := &Disk{Size: 2 * spec.GiB}
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}, NoReboot: true})
	pc.expect(`REIMAGE DONE`, 4*time.Minute)
	pc.waitOff(time.Minute)
	// Another software from here on: only the lost server keeps the PC from it.
	lab.write("templates/site/hostname", "exp01\n# changed\n")
	lab.publish()

	// In each tree what remote.boot says is changed, and files are taken away.
	tree := func(t *testing.T, from, to, without string) string {
		t.Helper()
		dir := filepath.Join(lab.Dir, filepath.Base(t.Name()))
		if err := linkTree(lab.TFTP, dir); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, bootfiles.Folder, bootfiles.Remote)
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if from != "" && bytes.Count(text, []byte(from)) != 1 {
			t.Fatalf("%q is not in remote.boot once:\n%s", from, text)
		}
		if err := os.WriteFile(name, bytes.Replace(text, []byte(from), []byte(to), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		if without != "" {
			if err := os.Remove(filepath.Join(dir, without)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	// The PC's own kernel names its root by UUID; the reimager's has none.
	// Generous: other tests' PCs share the processors.
	const within = 5 * time.Minute
	const own = `Command line: .*root=UUID=`
	for _, test := range []struct {
		name     string
		netdev   string
		from, to string // in remote.boot
		without  string // of the TFTP folder
		says     string // on the console, before the PC's own system
	}{
		{name: "local", from: "default Remote", to: "default Local"},
		{name: "no-dhcp", netdev: "hubport,id=net,hubid=0"},
		{name: "no-tftp", netdev: "user,id=net,bootfile=tftp://" + nobody + "/pxelinux.0"},
		{name: "no-kernel", without: bootfiles.Kernel},
		{name: "no-initramfs", without: bootfiles.Initramfs},
		{
			name: "no-manifest", from: lab.Web.URL(), to: "http://" + nobody + "/lab",
			says: `REIMAGE FAILED(?s:.*)did not give this PC its manifest within 1m0s(?s:.*)Nothing was written to the disk(?s:.*)going on into the PC's own system`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			lab := &labT{lab.Lab, t}
			copied := &Disk{Size: disk.Size, path: filepath.Join(lab.Dir, test.name+".disk")}
			if err := (command.Command{Args: []string{"cp", "--sparse=always", disk.Path(), copied.path}}).Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			pc := lab.powerOn(Machine{Disks: []*Disk{copied}, TFTP: tree(t, test.from, test.to, test.without), Netdev: test.netdev})
			if test.says != "" {
				pc.expect(test.says, within)
			}
			pc.expect(own, within)
			took := time.Since(pc.Started)
			pc.expect(`(?m)^exp01 login: `, 2*time.Minute)
			t.Logf("lost: %-12s own kernel after %5.1f s, login after %5.1f s", test.name, took.Seconds(), time.Since(pc.Started).Seconds())
		})
	}
}
