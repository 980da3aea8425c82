package qemutests

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// TestGentooReassure reimages a PC as the old system did, from a wad.tar and a
// template.tar, and looks in the running system for everything that the old
// chroot.sh did.
func TestGentooReassure(t *testing.T) {
	t.Parallel()
	tarball := wad(t, "openrc", "wad.tar")
	lab := newLab(t, Setup{
		Profile: "gentoo-reassure",
		Vars:    map[string]string{"authorized_keys": "{{KEY}}", "nproc": "333"},
		Wads:    map[string]string{"wad.tar": tarball, "template.tar": filepath.Join(filepath.Dir(tarball), "template.tar")},
	})
	lab.publish()
	disk := &Disk{Size: 8 * spec.GiB}
	lab.decide("remote")
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}})
	plan := lab.event(spec.EventPlan, 3*time.Minute)
	lab.decide("local")
	pc.expect(`REIMAGE DONE`, 8*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	done := lab.event(spec.EventDone, time.Minute)
	for _, p := range done.Phases {
		t.Logf("phase %-12s %6.1f s", p.Name, p.Seconds)
	}
	pc.expect(`(?m)^exp01 login: `, 8*time.Minute)
	g := pc.login(lab, keys.HostKeys)

	// It repartitions the PC, creates new file systems, and expands the tar balls.
	g.says("stat -f -c %T /", "ext2/ext3")
	g.says("mountpoint -q /boot && mountpoint -q / && echo both", "both")
	g.matches("cat /proc/swaps", `(?m)^/dev/vda\d+ `)
	g.says("ls /boot/vmlinuz-$(uname -r) >/dev/null && echo there", "there")

	// template.tar overwrites /etc/conf.d/net and /etc/conf.d/hostname, to be
	// modified later.
	g.says("hostname", "exp01")
	g.says(`. /etc/conf.d/hostname; echo "$hostname"`, "exp01")
	g.matches("ip -4 -brief address show scope global", `\b10\.0\.2\.15/24\b`)
	g.matches("ip route show default", `^default via 10\.0\.2\.2 `)
	g.matches("cat /etc/resolv.conf", `(?m)^nameserver 10\.0\.2\.3$`)
	g.says("grep -El 'IPADDR|NETMASK|GATEWAY|DNSSERVER|HOSTNAME|192[.]0[.]2[.]|wad-builder' /etc/conf.d/net /etc/conf.d/hostname || true", "")
	g.matches("getent hosts exp01", `^(10\.0\.2\.15|127\.0\.[01]\.1)\s`)

	// vmware_answers.txt is read by vmware-config.pl; not_configured is removed.
	g.matches("cat /etc/vmware/config", `(?m)^authd\.port = "\d+"$`)
	g.says("test -s /etc/vmware/locations && echo there", "there")
	g.says("test -e /etc/vmware/not_configured || echo gone", "gone")
	// A symlink is created so that vmware-server will run when the system boots.
	g.says("readlink -f /etc/runlevels/default/vmware", "/etc/init.d/vmware")
	g.matches("rc-service vmware status", `started`)
	g.says("test -e /run/vmware/started && echo running", "running")

	// SSH keys are generated.
	own := checkHostKeys(t, g, keys.HostKeys)
	g.says("stat -c %a /root/.ssh", "700")
	g.says("stat -c %a /root/.ssh/id_* | sort -u", "600\n644")
	g.says("for f in /root/.ssh/id_*; do case $f in *.pub) ;; *) ssh-keygen -y -f $f | cut -d' ' -f1-2 | cmp - <(cut -d' ' -f1-2 $f.pub) && echo pair ;; esac; done", "pair")

	// NX is set up to use the NoMachine keys, though nxsetup fails every time.
	g.says("test -s /etc/nxserver/users.id_dsa && test -s /var/lib/nxserver/home/.ssh/authorized_keys2 && echo there", "there")
	tolerated := slices.ContainsFunc(lab.Web.Events(), func(e spec.Event) bool {
		return e.Kind == spec.EventStep && strings.Contains(fmt.Sprint(e.Phase, e.Text, e.Log), "NX")
	})
	if !tolerated {
		t.Error("no event says by name that the NX step failed")
	}

	// known_hosts, which NX has just filled with another system's key, is set back
	// to hold this PC's own, and nothing else.
	g.says("test -s /root/.ssh/known_hosts && echo there", "there")
	for line := range strings.Lines(g.run("cat /root/.ssh/known_hosts")) {
		words := strings.Fields(line)
		if len(words) < 3 || !slices.Contains(own, words[1]+" "+words[2]) {
			t.Errorf("known_hosts holds what is not a key of this PC: %s", line)
		}
	}
	g.says("ssh -o BatchMode=yes -o StrictHostKeyChecking=yes localhost true 2>&1 | grep -c 'Host key verification failed' || true", "0")

	// User processes are set to a hard limit.
	g.says("su - lab -c 'ulimit -Hu'", "333")
	g.says("cat /etc/security/limits.d/* /etc/security/limits.conf | grep -c '^[^#].*hard.*nproc'", "1")

	// What a wad carries of the machine that it comes from.
	g.says("grep -c 0123456789abcdef0123456789abcdef /etc/machine-id || true", "0")
	g.says("grep -rl 02:00:00:00:00:77 /etc/udev/rules.d || true", "")
	g.says("stat -c '%u:%g %a' /srv/proof/setuid", "1234:4321 4755")
	g.says("TZ=UTC stat -c %y /srv/proof/old", "2001-02-03 04:05:06.123456789 +0000")

	// GRUB is installed on the MBR, and boots the PC again without us.
	lab.Web.Requests()
	if _, err := g.Run(t.Context(), "sync; reboot"); err != nil {
		t.Log("reboot:", err)
	}
	pc.expect(`(?m)^exp01 login: `, 8*time.Minute)
	g = pc.login(lab, keys.HostKeys)
	g.says("hostname", "exp01")
	if asked := lab.Web.Requests(); len(asked) > 0 {
		t.Errorf("booting from its own disk, the PC asked the server for %q", asked)
	}
	g.powerOff(pc)
	checkDisk(t, disk, plan.Plan)
}

// checkHostKeys compares a running PC's host keys with those that it reported,
// and returns them as "type value".
func checkHostKeys(t *testing.T, g *guestT, reported []string) []string {
	t.Helper()
	var onDisk, told []string
	for line := range strings.Lines(g.run("cat /etc/ssh/ssh_host_*_key.pub")) {
		onDisk = append(onDisk, keyOf(line))
	}
	for _, line := range reported {
		told = append(told, keyOf(line))
	}
	slices.Sort(onDisk)
	slices.Sort(told)
	if !slices.Equal(onDisk, told) {
		t.Errorf("host keys on the disk:\n%q\nreported:\n%q", onDisk, told)
	}
	return onDisk
}
