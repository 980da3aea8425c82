package qemutests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// debianLab is a lab whose PC gets Debian.
func debianLab(t *testing.T) *labT {
	t.Helper()
	lab := newLab(t, Setup{
		Profile: "lab-debian",
		Files:   map[string]string{"profiles/lab-debian.yaml": DebianProfile, "templates/site/motd": "first\n"},
		Wads:    map[string]string{"debian.tar.zst": wad(t, "debian", "debian.tar.zst")},
	})
	lab.publish()
	return lab
}

// TestDebian is the life of a PC: a blank disk is reimaged and boots by itself;
// is told Remote again with nothing changed; and gets a change.
func TestDebian(t *testing.T) {
	t.Parallel()
	lab := debianLab(t)
	disk := &Disk{Size: 8 * spec.GiB}
	machine := Machine{Disks: []*Disk{disk}}

	// A blank disk.
	lab.decide("remote")
	pc := lab.powerOn(machine)
	plan := lab.event(spec.EventPlan, 3*time.Minute)
	lab.decide("local")
	if plan.Plan == nil || plan.Plan.Host != "exp01" || plan.Plan.Disk.Device != "/dev/vda" || len(plan.Plan.Partitions) != 2 {
		t.Errorf("the plan that was reported: %+v", plan.Plan)
	}
	pc.expect(`REIMAGE DONE`, 8*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	done := lab.event(spec.EventDone, time.Minute)
	for _, p := range done.Phases {
		t.Logf("phase %-12s %6.1f s", p.Name, p.Seconds)
	}
	pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
	t.Logf("power on to login: %.1f s", time.Since(pc.Started).Seconds())
	g := pc.login(lab, keys.HostKeys)
	checkDebian(t, lab, g, keys.HostKeys)
	g.says("cat /etc/motd", "first")
	g.powerOff(pc)
	checkDisk(t, disk, plan.Plan)

	// Told Remote with nothing changed: not one byte is written before its own
	// system runs again.
	before := sum(t, disk)
	lab.decide("remote")
	pc = lab.powerOn(machine)
	pc.expect(`already up to date`, 3*time.Minute)
	if err := pc.Pause(); err != nil {
		t.Fatal(err)
	}
	if sum(t, disk) != before {
		t.Error("the disk was written to though the PC was up to date")
	}
	if err := pc.Continue(); err != nil {
		t.Fatal(err)
	}
	lab.event(spec.EventUpToDate, time.Minute)
	if i := slices.IndexFunc(lab.Web.Requests(), func(r string) bool { return strings.Contains(r, ".tar") }); i >= 0 {
		t.Error("a wad was asked for though the PC was up to date")
	}
	pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
	pc.login(lab, keys.HostKeys).powerOff(pc)

	// A changed template.
	lab.write("templates/site/motd", "second\n")
	lab.publish()
	pc = lab.powerOn(machine)
	lab.event(spec.EventPlan, 3*time.Minute)
	lab.decide("local")
	pc.expect(`REIMAGE DONE`, 8*time.Minute)
	again := lab.event(spec.EventKeys, time.Minute)
	if slices.Equal(again.HostKeys, keys.HostKeys) {
		t.Error("the host keys are those of the system before")
	}
	pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
	g = pc.login(lab, again.HostKeys)
	g.says("cat /etc/motd", "second")
	g.powerOff(pc)
}

// TestDebianUpgrade keeps a PC that was reimaged up to date by its own system's tools.
func TestDebianUpgrade(t *testing.T) {
	t.Parallel()
	lab := debianLab(t)
	lab.decide("remote")
	pc := lab.powerOn(Machine{Disks: []*Disk{{Size: 8 * spec.GiB}}})
	lab.event(spec.EventPlan, 3*time.Minute)
	lab.decide("local")
	pc.expect(`REIMAGE DONE`, 8*time.Minute)
	again := lab.event(spec.EventKeys, time.Minute)
	pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
	g := pc.login(lab, again.HostKeys)
	release := upgradeKernel(t, g)
	before2 := g.run("cat /proc/sys/kernel/random/boot_id")
	if _, err := g.Run(t.Context(), "sync; reboot"); err != nil {
		t.Log("reboot:", err)
	}
	pc.expect(`(?m)^exp01 login: `, 4*time.Minute)
	g = pc.login(lab, again.HostKeys)
	g.says("uname -r", release)
	if g.run("cat /proc/sys/kernel/random/boot_id") == before2 {
		t.Error("the PC did not reboot")
	}
	g.matches("systemctl is-system-running --wait || true", "^running$")
	g.powerOff(pc)
}

// checkDebian looks at the running system.
func checkDebian(t *testing.T, lab *labT, g *guestT, hostKeys []string) {
	t.Helper()
	g.says("hostname", "exp01")
	g.says("systemctl is-system-running --wait || systemctl --failed --no-legend", "running")
	g.matches("ip -4 -brief address show scope global", `\b10\.0\.2\.15/24\b`)
	g.matches("ip route show default", `^default via 10\.0\.2\.2 `)
	g.matches("getent hosts exp01", `^(10\.0\.2\.15|127\.0\.1\.1)\s`)
	g.matches("cat /etc/resolv.conf", `(?m)^nameserver 10\.0\.2\.3$`)
	g.matches("findmnt -no OPTIONS /", `\bnoatime\b`)
	g.matches("swapon --show=NAME --noheadings", `^/dev/vda\d$`)
	g.says(`grep -c "$(findmnt -no UUID /)" /etc/fstab`, "1")
	g.matches("findmnt --verify --fstab", `(?s)Success, no errors|0 parse errors, 0 errors`)
	g.matches("cat /proc/cmdline", `root=UUID=[0-9a-f-]{36} .*console=ttyS0,115200`)
	g.says("date +%Z | grep -cE '^CES?T$'", "1")
	g.says("su - lab -c 'ulimit -Hu'", "321")

	// What only tar's attributes carry.
	g.says("su - lab -c 'ping -c1 -W5 10.0.2.2 >/dev/null' && getcap /usr/bin/ping", "/usr/bin/ping cap_net_raw=ep")
	g.says("stat -c '%u:%g %a' /srv/proof/setuid", "1234:4321 4755")
	g.says("stat -c '%a %F' /srv/proof/sticky /srv/proof/fifo /srv/proof/null", "1777 directory\n600 fifo\n640 character special file")
	g.says("stat -c '%t,%T' /srv/proof/null", "1,3")
	g.says("stat -c %h /srv/proof/plain && test /srv/proof/plain -ef /srv/proof/hard", "2")
	g.says("readlink /srv/proof/soft", "../proof/plain")
	g.says("getfattr --only-values -n user.reassure /srv/proof/xattr 2>/dev/null", "kept")
	g.matches("getfacl -c --numeric /srv/proof/acl", `(?m)^user:1234:rw-$`)
	g.says("TZ=UTC stat -c %y /srv/proof/old", "2001-02-03 04:05:06.123456789 +0000")
	g.says(`cat "/srv/proof/name with 'odd' \"characters\"" | wc -c`, "0")
	g.says("stat -c '%U:%G' /home/lab /home/lab/.profile", "lab:lab\nlab:lab")
	g.says("stat -c '%a %U:%G' /etc/shadow /tmp /root", "640 root:shadow\n1777 root:root\n700 root:root")

	// What may not have come along, nor be shared with any other PC.
	g.says("grep -c 0123456789abcdef0123456789abcdef /etc/machine-id || true", "0")
	g.says("ls /etc/udev/rules.d/70-persistent-net.rules /var/lib/dhcp/dhclient.eth0.leases 2>/dev/null || true", "")
	g.says(`head -c 512 /dev/zero | tr '\0' x | cmp -s - /var/lib/systemd/random-seed && echo same || true`, "")
	g.says("ls /etc/reassure/stamp.json", "/etc/reassure/stamp.json")
	onDisk := checkHostKeys(t, g, hostKeys)
	if old := wadFile(t, lab, "./etc/ssh/ssh_host_ed25519_key.pub"); slices.Contains(onDisk, keyOf(old)) {
		t.Error("the wad's host key is still there")
	}
	g.says("stat -c '%a %U' /etc/ssh/ssh_host_ed25519_key", "600 root")
	g.says("ssh -o BatchMode=yes -o StrictHostKeyChecking=yes exp01 true 2>&1 | grep -c 'Host key verification failed' || true", "0")

	var stamp struct {
		Digest spec.Digest `json:"digest"`
	}
	if err := json.Unmarshal([]byte(g.run("cat "+spec.StampFile)), &stamp); err != nil || stamp.Digest.IsZero() {
		t.Errorf("the stamp: digest %v, %v", stamp.Digest, err)
	}
}

// keyOf is a public key's type and value, without its comment.
func keyOf(line string) string {
	words := strings.Fields(line)
	return strings.Join(words[:min(2, len(words))], " ")
}

// wadFile returns the content of a file of the lab's wad.
func wadFile(t *testing.T, lab *labT, name string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "tar", "--extract", "--to-stdout", "--file", filepath.Join(lab.Site, "wads", "debian.tar.zst"), name)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s in the wad (Debian packages tar, zstd): %v: %s", name, err, errs.Bytes())
	}
	return string(out)
}

// checkDisk judges the disk of a PC that is off by the tools that other people use.
func checkDisk(t *testing.T, disk *Disk, plan *spec.Plan) {
	t.Helper()
	bootable(t, disk, true)
	tool := func(args ...string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s (Debian packages fdisk, e2fsprogs): %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tool("sfdisk", "--verify", disk.Path())
	if plan == nil {
		return
	}
	for _, p := range plan.Partitions {
		if p.FileSystem == spec.Ext4 {
			tool("e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", disk.Path(), p.Start))
		}
	}
}

// upgradeKernel installs a newer kernel package as an administrator does, and
// returns the release that must run after the next reboot.
func upgradeKernel(t *testing.T, g *guestT) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kernel.deb")
	out, err := exec.CommandContext(t.Context(), filepath.Join(source, "scripts", "newer-kernel"), file).CombinedOutput()
	if err != nil {
		t.Fatalf("newer-kernel: %v\n%s", err, out)
	}
	name, err := exec.CommandContext(t.Context(), "dpkg-deb", "--field", file, "Package").Output()
	if err != nil {
		t.Fatal(err)
	}
	release := strings.TrimPrefix(strings.TrimSpace(string(name)), "linux-image-")
	if running := g.run("uname -r"); running == release {
		t.Fatalf("apt knows no kernel newer than the wad's, %s: have Debian's security updates among its sources and run apt-get update", running)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.RunInput(t.Context(), "cat >/root/kernel.deb", data); err != nil {
		t.Fatal(err)
	}
	g.run("DEBIAN_FRONTEND=noninteractive dpkg -i /root/kernel.deb >/root/dpkg.log 2>&1 || { tail -n 20 /root/dpkg.log >&2; false; }")
	g.run("update-grub >/root/grub.log 2>&1 || { cat /root/grub.log >&2; false; }")
	return release
}
