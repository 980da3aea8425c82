package qemutests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/command"
	"reassure/image/spec"
)

// TestImageSize holds the image for virtual machines to what it may have.
func TestImageSize(t *testing.T) {
	t.Parallel()
	p := programs(t)
	var size spec.Size
	for _, name := range []string{bootfiles.Kernel, bootfiles.Initramfs} {
		info, err := os.Stat(filepath.Join(p.Image, name))
		if err != nil {
			t.Fatal(err)
		}
		size += spec.Size(info.Size())
	}
	// The tests' image holds e2fsck, which the flavour by itself does not.
	const most = 15*spec.MiB + 768*spec.KiB
	if t.Logf("kernel and initramfs: %v", size); size > most {
		t.Errorf("kernel and initramfs have %v; want at most %v: see which segment has grown in image.json", size, most)
	}
}

// TestSmallMemory has a PC of 512 MiB boot the image for every PC, firmware and
// microcode included where this machine has them, lay a Debian down, and boot it; then
// a second time, by delta.
func TestSmallMemory(t *testing.T) {
	lab := newLab(t, Setup{
		Profile: "lab-debian",
		Files:   map[string]string{"profiles/lab-debian.yaml": DebianProfile, "templates/site/motd": "first\n"},
		Wads:    map[string]string{"debian.tar.zst": wad(t, "debian", "debian.tar.zst")},
	})
	full := filepath.Join(lab.Dir, "full")
	mkimage := command.Command{
		Args: []string{filepath.Join(lab.programs.Dir, "mkimage"), "build", "-flavour", "full", "-out", full},
		Dir:  lab.programs.Tree, Env: lab.programs.Env(), Timeout: 20 * time.Minute,
	}
	if err := mkimage.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bootfiles.Kernel, bootfiles.Initramfs} {
		if err := os.Rename(filepath.Join(full, name), filepath.Join(lab.TFTP, name)); err != nil {
			t.Fatal(err)
		}
	}
	lab.publish()
	disk := &Disk{Size: 8 * spec.GiB}
	for _, motd := range []string{"first\n", "second\n"} {
		lab.write("templates/site/motd", motd)
		lab.publish()
		lab.decide("remote")
		pc := lab.powerOn(Machine{Disks: []*Disk{disk}, Memory: 512 * spec.MiB, NoReboot: true})
		pc.expect(`full image`, 3*time.Minute)
		line := pc.expect(`REIMAGE DONE.*\n`, 10*time.Minute)[0]
		pc.waitOff(time.Minute)
		if text := pc.Text(); strings.Contains(text, "Out of memory") || strings.Contains(text, "oom-kill") {
			t.Errorf("the kernel had to kill somebody:\n%s", text)
		}
		t.Logf("%s", strings.TrimSpace(line))
		keys := lab.event(spec.EventKeys, time.Minute)
		lab.decide("local")
		pc = lab.powerOn(Machine{Disks: []*Disk{disk}, Memory: 512 * spec.MiB, FromDisk: true})
		pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
		g := pc.login(lab, keys.HostKeys)
		g.says("cat /etc/motd", strings.TrimSpace(motd))
		g.powerOff(pc)
	}
}

// TestVLANOnPC has a PC boot from one card and use another, on a VLAN, with an MTU of
// its own. What it sends there is seen on the wire: nobody answers.
func TestVLANOnPC(t *testing.T) {
	t.Parallel()
	second := spec.MAC{0x52, 0x54, 0, 0, 0, 2}
	lab := newLab(t, Setup{
		Profile: "small", Files: SmallFiles(SmallProfile), Wads: map[string]string{"small.tar.zst": wad(t, "small", "small.tar.zst")},
		CommandLine: fmt.Sprintf("reassure.nic=%v reassure.vlan=12 reassure.mtu=1400 reassure.static=10.0.2.15/24", second),
	})
	lab.publish()
	lab.decide("remote")
	wire := filepath.Join(lab.Dir, "wire.pcap")
	pc := lab.powerOn(Machine{Extra: []string{
		"-netdev", "user,id=second,restrict=on", "-device", fmt.Sprintf("virtio-net-pci,netdev=second,mac=%v,romfile=,addr=4", second),
		"-object", "filter-dump,id=dump,netdev=second,file=" + wire,
	}})
	pc.expect(`network is up.*eth\d+\.12.*10\.0\.2\.15/24`, 3*time.Minute)
	// It looks for its server by ARP (RFC 826), in frames with the tag (IEEE 802.1Q).
	want := append(append(bytes.Repeat([]byte{0xff}, 6), second[:]...), 0x81, 0, 0, 12, 0x08, 0x06)
	var seen []byte
	for begin := time.Now(); !bytes.Contains(seen, want); time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("no frame with the tag is on the wire: %x", seen)
		}
		var err error
		if seen, err = os.ReadFile(wire); err != nil {
			t.Fatal(err)
		}
	}
}
