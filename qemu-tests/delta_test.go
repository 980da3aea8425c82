package qemutests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// deltaLab is a lab whose wad has an index.
func deltaLab(t *testing.T, profile string) *labT {
	t.Helper()
	lab := newLab(t, Setup{
		Profile: "small", Files: SmallFiles(profile),
		// Or nothing happens while the software is the same.
		CommandLine: "reassure.force",
	})
	lab.pack(wad(t, "small", "small.tar.zst"))
	lab.publish()
	return lab
}

// pack makes the lab's wad of a tarball.
func (l *labT) pack(tarball string) {
	l.t.Helper()
	if err := l.reassure(l.t.Context(), "wad", "pack", tarball, "-o", filepath.Join(l.Site, "wads", "small.tar.zst")); err != nil {
		l.t.Fatal(err)
	}
}

// reimage has the PC reimaged and switch itself off; it returns the last plan and
// what came over the network of wads.
func (l *labT) reimage(disk *Disk) (plan *spec.Plan, fetched int64) {
	l.t.Helper()
	l.decide("remote")
	return l.reimaged(Machine{Disks: []*Disk{disk}})
}

// reimaged is reimage of a PC that was told to.
func (l *labT) reimaged(m Machine) (plan *spec.Plan, fetched int64) {
	l.t.Helper()
	l.Web.Served() // and forgets it
	m.NoReboot = true
	pc := l.powerOn(m)
	pc.expect(`REIMAGE DONE`, 5*time.Minute)
	pc.waitOff(time.Minute)
	for _, e := range l.Web.Events() {
		if e.Kind == spec.EventPlan {
			plan = e.Plan
		}
	}
	if plan == nil {
		l.t.Fatal("the PC reported no plan")
	}
	return plan, l.Web.Served()
}

// mode checks how the disk got its content, and why.
func mode(t *testing.T, plan *spec.Plan, want spec.Reimage, reason string) {
	t.Helper()
	if plan.Mode != want || !strings.Contains(plan.Reason, reason) {
		t.Errorf("the disk was had by %s, for %q; want %s, for %q", plan.Mode, plan.Reason, want, reason)
	}
}

// mounted has a partition of a disk mounted here while do runs.
func mounted(t *testing.T, d *Disk, p spec.Placed, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, "mount", "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d", p.Start, p.Length), d.Path(), dir)
	defer must(t, "umount", dir)
	do(dir)
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// listing is all that can be seen of a tree, but what each reimage makes anew: keys,
// stamp, times of folders that steps write into, and the boot loader's environment.
func listing(t *testing.T, d *Disk, p spec.Placed) string {
	t.Helper()
	var text string
	mounted(t, d, p, func(dir string) {
		text = must(t, "bash", "-c", `cd "$0" && find . -xdev \( -path ./etc/reassure -o -path ./lost+found -o -name 'ssh_host_*' \) -prune -o \
			\( -type d -printf '%p d %m %U:%G\n' -o -printf '%p %y %m %U:%G %n %s %l\n' \) | sort
			find . -xdev -type f ! -path './etc/reassure/*' ! -name 'ssh_host_*' -print0 | sort -z | xargs -0 sha256sum
			getfattr -R -h -d -m - . 2>/dev/null`, dir)
	})
	return text
}

// same says whether two listings are the same, and what differs first.
func same(t *testing.T, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := filepath.Join(t.TempDir(), "want"), filepath.Join(t.TempDir(), "got")
	for file, text := range map[string]string{a: want, b: got} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := exec.Command("diff", a, b).CombinedOutput() // ends with 1: they differ
	t.Errorf("the trees differ:\n%s", out[:min(len(out), 2000)])
}

// TestDeltaOnPC has a PC be reimaged after a change of its wad, and after users have done to it what
// users do. What comes out is what a full install makes, and only what differs is fetched.
func TestDeltaOnPC(t *testing.T) {
	t.Parallel()
	lab := deltaLab(t, SmallProfile+"keep: [/etc/ssh/ssh_host_ed25519_key]\n")
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous}
	hostKey := func(p spec.Placed) (text string) {
		mounted(t, disk, p, func(dir string) {
			data, err := os.ReadFile(filepath.Join(dir, "etc/ssh/ssh_host_ed25519_key"))
			if err != nil {
				t.Fatal(err)
			}
			text = string(data)
		})
		return text
	}
	plan, full := lab.reimage(disk)
	mode(t, plan, spec.ReimageFull, "no system of ours")
	first := plan.Partitions[0]
	golden, key := listing(t, disk, first), hostKey(first)

	// Users have root.
	mounted(t, disk, first, func(dir string) {
		must(t, "bash", "-e", "-c", `cd "$0"
			echo changed >>etc/hostname
			chmod 4777 bin/busybox; chown 1000 etc; touch -d 2001-01-01 bin/busybox
			find usr lib bin sbin -xdev -type f 2>/dev/null | head -40 | while read -r f; do printf x | dd of="$f" bs=1 seek=3 conv=notrunc status=none; done
			mkdir -p srv/deep/er; for i in $(seq 300); do echo $i >"srv/deep/er/file $i"; done
			ln bin/busybox srv/another
			mkfifo srv/pipe; mknod srv/disk b 8 0
			ln -s /etc srv/link
			echo x >"srv/a name with
a line end"
			echo fixed >srv/fixed; chattr +i srv/fixed; chattr +a etc
			mv tmp tmp.moved; ln -s / tmp
			setfattr -n user.mine -v 1 bin/busybox
		`, dir)
	})
	plan, fetched := lab.reimage(disk)
	mode(t, plan, spec.ReimageDelta, "")
	if plan.Partitions[0].UUID != first.UUID || plan.Partitions[0].PartUUID != first.PartUUID {
		t.Error("the file system's and the partition's UUIDs changed in a delta")
	}
	same(t, golden, listing(t, disk, first))
	if hostKey(first) != key {
		t.Error("the PC's own key was not kept")
	}
	if fetched > full {
		t.Errorf("a repair fetched %d bytes, a full install %d", fetched, full)
	}

	// Another version of the wad.
	tree := t.TempDir()
	must(t, "tar", "--zstd", "-xpf", wad(t, "small", "small.tar.zst"), "-C", tree)
	if err := os.WriteFile(filepath.Join(tree, "etc/version"), bytes.Repeat([]byte("two\n"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	lab.pack(tree)
	lab.publish()
	plan, fetched = lab.reimage(disk)
	mode(t, plan, spec.ReimageDelta, "")
	if fetched > full/10 {
		t.Errorf("one new file had %d bytes fetched, of %d in all", fetched, full)
	}
	mounted(t, disk, first, func(dir string) {
		if text, err := os.ReadFile(filepath.Join(dir, "etc/version")); err != nil || len(text) != 4000 {
			t.Errorf("the new file: %d bytes, %v", len(text), err)
		}
	})

	// And it runs.
	lab.decide("local")
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}, FromDisk: true})
	pc.expect(`(?m)^exp01 login: `, 2*time.Minute)
	pc.off()

	// A file system that is damaged is not mounted, but made anew.
	must(t, "debugfs", "-w", "-R", "set_inode_field /etc/hostname links_count 7", fmt.Sprintf("%s?offset=%d", disk.Path(), first.Start))
	plan, _ = lab.reimage(disk)
	mode(t, plan, spec.ReimageFull, "is damaged: e2fsck: ")
	if plan.Partitions[0].UUID == first.UUID {
		t.Error("a full install kept the file system's UUID")
	}
}

// TestCutInDelta pulls the plug in the middle of a repair: the disk then boots nothing, even
// where it comes first, and is laid down anew.
func TestCutInDelta(t *testing.T) {
	t.Parallel()
	lab := deltaLab(t, SmallProfile)
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous}
	plan, _ := lab.reimage(disk)
	mounted(t, disk, plan.Partitions[0], func(dir string) {
		must(t, "bash", "-e", "-c", `cd "$0" && rm -rf boot usr/bin && echo mine >etc/mine`, dir)
	})
	lab.Web.Break(Fault{Suffix: ".tar.zst", Rate: 200_000})
	lab.decide("remote")
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}})
	pc.expect(`-> repair`, 4*time.Minute)
	deadline := time.Now().Add(4 * time.Minute)
	for !repairing(lab.Web.Events()) {
		if time.Now().After(deadline) {
			t.Fatal("nothing of the repair was reported")
		}
		time.Sleep(time.Second)
	}
	pc.off()
	bootable(t, disk, false)

	lab.Web.Break()
	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, DiskFirst: true, NoReboot: true})
	pc.expect(`REIMAGE DONE`, 5*time.Minute)
	again := lab.event(spec.EventPlan, time.Minute)
	pc.waitOff(time.Minute)
	if again.Plan.Mode != spec.ReimageFull {
		t.Errorf("after a power cut in a delta there is a %s reimage", again.Plan.Mode)
	}
	bootable(t, disk, true)
	mounted(t, disk, again.Plan.Partitions[0], func(dir string) {
		if _, err := os.Stat(filepath.Join(dir, "etc/mine")); err == nil {
			t.Error("something of the old system is left")
		}
	})
}

// repairing says whether a repair has made progress.
func repairing(events []spec.Event) bool {
	for _, e := range events {
		if e.Kind == spec.EventProgress && e.Phase == "repair" {
			return true
		}
	}
	return false
}

// preserving is a GPT with a partition for data between the others.
var preserving = strings.NewReplacer(
	"table: mbr", "table: gpt",
	"  - {name: root, size: rest, filesystem: ext4, label: root, mount: /, bootable: true}\n",
	`  - {name: bios, size: 1MiB, filesystem: none, type: bios-boot}
  - {name: data, size: 100MiB, filesystem: ext4, label: data, mount: /data, preserve: true}
  - {name: root, size: rest, filesystem: ext4, label: root, mount: /}
`).Replace(SmallProfile)

// TestPreservedOnPC has a partition stay through a delta, and through a full install with another layout.
func TestPreservedOnPC(t *testing.T) {
	t.Parallel()
	lab := deltaLab(t, preserving)
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous}
	plan, _ := lab.reimage(disk)
	data := plan.Partitions[1]
	if data.Kept {
		t.Error("what was not there was kept")
	}
	mounted(t, disk, data, func(dir string) {
		must(t, "bash", "-e", "-c", `cd "$0"; seq 100000 >results; chattr +i results; ln -s /etc/shadow trap; dd if=/dev/urandom of=noise bs=1M count=20 status=none`, dir)
	})
	sum := func() string {
		f, err := os.Open(disk.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		content := make([]byte, data.Length)
		if _, err := f.ReadAt(content, int64(data.Start)); err != nil {
			t.Fatal(err)
		}
		return spec.Sum(content).String()
	}
	before := sum()
	plan, _ = lab.reimage(disk)
	mode(t, plan, spec.ReimageDelta, "")
	if sum() != before || !plan.Partitions[1].Kept {
		t.Errorf("a delta has changed what is preserved: %+v", plan.Partitions[1])
	}
	profile, err := os.ReadFile(filepath.Join(lab.Site, "profiles/small.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	lab.write("profiles/small.yaml", strings.Replace(string(profile), "size: rest", "size: 600MiB", 1))
	lab.publish()
	plan, _ = lab.reimage(disk)
	mode(t, plan, spec.ReimageFull, "size differs")
	if now := plan.Partitions[1]; sum() != before || now.UUID != data.UUID || now.PartUUID != data.PartUUID {
		t.Errorf("a full install has changed what is preserved: %+v, it was %+v", now, data)
	}
	mounted(t, disk, plan.Partitions[2], func(dir string) {
		if info, err := os.Stat(filepath.Join(dir, "data")); err != nil || !info.IsDir() {
			t.Errorf("the mount point of what is preserved: %v, %v", info, err)
		}
	})
	bootable(t, disk, true)
}
