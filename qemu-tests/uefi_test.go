package qemutests

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// bothProfile is the small profile for PCs of both kinds: on those with UEFI a GPT with
// an EFI system partition, on those with a BIOS an MBR without.
var bothProfile = strings.NewReplacer(
	"table: mbr", "table: auto",
	"  - {name: root,", `  - {name: efi, size: 64MiB, filesystem: vfat, type: esp, label: EFI, mount: /boot/efi, firmware: uefi}
  - {name: data, size: 64MiB, filesystem: vfat, label: DATA, mount: /data}
  - {name: root,`,
	"  - name: boot loader", `  - name: a file on FAT
    write: {path: /data/hello, content: "from the reimage\n"}
  - name: boot loader`,
).Replace(SmallProfile)

// uefiLab is a lab of that profile, changed by change.
func uefiLab(t *testing.T, change *strings.Replacer) *labT {
	t.Helper()
	files := SmallFiles(change.Replace(bothProfile))
	files["templates/site/fstab"] += "UUID=" + spec.Token(spec.TokenUUID, "efi") + " /boot/efi vfat noauto 0 0\n"
	lab := newLab(t, Setup{Profile: "small", Files: files, CommandLine: "reassure.force"})
	lab.pack(wad(t, "small", "small.tar.zst"))
	lab.publish()
	lab.grub("")
	return lab
}

// grub tells GRUB, which shim starts over the network, to have every PC reimaged, with
// more kernel parameters.
func (l *labT) grub(parameters string) {
	l.t.Helper()
	text := fmt.Sprintf("linux /bzImage %s reassure.url=%s BOOTIF=%s %s %s\ninitrd /initramfs.cpio.zst\nboot\n",
		consoles, l.Web.URL(), l.MAC.PXE(), l.CommandLine, parameters)
	folder := filepath.Join(l.TFTP, "grub")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "grub.cfg"), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// warned says whether the PC has reported a line.
func (l *labT) warned(of string) bool {
	for _, e := range l.Web.Events() {
		for _, line := range e.Log {
			if strings.Contains(line, of) {
				return true
			}
		}
	}
	return false
}

// onFAT lists what is on a disk's partition, or says that it holds no FAT.
func onFAT(d *Disk, plan *spec.Plan, name string) string {
	for _, p := range plan.Partitions {
		if p.Name != name {
			continue
		}
		if out, err := exec.Command("mdir", "-/", "-b", "-i", fmt.Sprintf("%s@@%d", d.Path(), p.Start)).Output(); err == nil {
			return string(out)
		}
		return "no FAT"
	}
	return "no partition"
}

// startsFromESP checks whether a disk has what UEFI looks for.
func startsFromESP(t *testing.T, d *Disk, plan *spec.Plan, want bool) {
	t.Helper()
	got := onFAT(d, plan, "efi")
	if has := strings.Contains(got, "EFI/BOOT/BOOTX64.EFI"); has != want {
		t.Errorf("a boot loader is on the ESP: %v, want %v. There is\n%s", has, want, got)
	}
}

// TestUEFI reimages a PC with UEFI that has its disk first. From then on it has the network
// first, and its own disk when nobody answers there; it is reimaged by delta; and when the
// power is cut in one, its disk starts nothing, not even on firmware that has nothing else first.
// The GRUB is one that nobody signed.
func TestUEFI(t *testing.T) {
	t.Parallel()
	lab := uefiLab(t, strings.NewReplacer("  - name: boot loader", `  - name: without what is signed
    remove: {paths: [/usr/lib/shim]}
  - name: boot loader`))
	firmware := &Firmware{OwnOrder: true}
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous, Bus: "nvme"}
	plan, _ := lab.reimaged(Machine{Disks: []*Disk{disk}, Firmware: firmware})
	mode(t, plan, spec.ReimageFull, "no system of ours")
	startsFromESP(t, disk, plan, true)
	keys := lab.event(spec.EventKeys, time.Minute)

	pc := lab.powerOn(Machine{Disks: []*Disk{disk}, Firmware: firmware, TFTP: t.TempDir()})
	pc.expect(`>>Start PXE over IPv4`, 3*time.Minute)
	pc.expect(`starting Boot\d+ "ReAssure"`, time.Minute)
	pc.expect(`(?m)^exp01 login: `, 3*time.Minute)
	g := pc.login(lab, keys.HostKeys)
	g.says("hostname; test -d /sys/firmware/efi && cat /etc/fstab | grep -c efi", "exp01\n1")
	g.powerOff(pc)

	plan, fetched := lab.reimaged(Machine{Disks: []*Disk{disk}, Firmware: firmware})
	mode(t, plan, spec.ReimageDelta, "")
	startsFromESP(t, disk, plan, true)
	if got := onFAT(disk, plan, "data"); !strings.Contains(got, "hello") {
		t.Errorf("on the FAT that is no ESP: %s", got)
	}
	t.Logf("a delta fetched %d bytes", fetched)

	root := plan.Partitions[len(plan.Partitions)-1]
	mounted(t, disk, root, func(dir string) {
		must(t, "bash", "-e", "-c", `cd "$0" && rm -rf usr/bin && echo mine >etc/mine && rm -rf boot/efi && ln -s /etc boot/efi`, dir)
	})
	lab.Web.Break(Fault{Suffix: ".tar.zst", Rate: 200_000})
	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, Firmware: firmware})
	pc.expect(`-> repair`, 4*time.Minute)
	pc.off()
	startsFromESP(t, disk, plan, false)

	// Another PC's firmware, which knows of nothing and lets nobody at its variables.
	lab.Web.Break()
	lab.grub("efi=noruntime")
	plan, _ = lab.reimaged(Machine{Disks: []*Disk{disk}, Firmware: &Firmware{}, DiskFirst: true})
	mode(t, plan, spec.ReimageFull, "never finished")
	startsFromESP(t, disk, plan, true)
	if !lab.warned("the network may not be first in the boot order") {
		t.Error("nobody was warned of the boot order, which could not be set")
	}
	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, Firmware: &Firmware{}, FromDisk: true})
	pc.expect(`(?m)^exp01 login: `, 3*time.Minute)
	pc.off()
}

// TestSecureBootInstalled reimages a PC with Secure Boot on, which goes on into its system by
// kexec, and starts it by shim later.
func TestSecureBootInstalled(t *testing.T) {
	t.Parallel()
	lab := uefiLab(t, strings.NewReplacer("on_failure:", "finish: kexec\non_failure:"))
	firmware := &Firmware{Kind: SecureBoot, OwnOrder: true}
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous}
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}, Firmware: firmware})
	pc.expect(`REIMAGE DONE`, 5*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	lab.Web.Requests() // and forgets them
	pc.expect(`(?m)^exp01 login: `, 3*time.Minute)
	for _, r := range lab.Web.Requests() {
		if strings.Contains(r, "manifests/") {
			t.Errorf("the PC went by the firmware: it asked for %s", r)
		}
	}
	secure := func(g *guestT) {
		g.t.Helper()
		g.matches("dmesg", `(?i)secure boot enabled`)
		g.matches("cat /sys/kernel/security/lockdown 2>/dev/null || mount -t securityfs none /sys/kernel/security && cat /sys/kernel/security/lockdown", `\[integrity\]|\[confidentiality\]`)
	}
	g := pc.login(lab, keys.HostKeys)
	secure(g)
	g.powerOff(pc)

	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, Firmware: firmware, TFTP: t.TempDir()})
	pc.expect(`starting Boot\d+ "ReAssure"`, 3*time.Minute)
	pc.expect(`(?m)^exp01 login: `, 3*time.Minute)
	g = pc.login(lab, keys.HostKeys)
	secure(g)
	g.powerOff(pc)
}

// TestDebianUEFI reimages a PC with Secure Boot on by the profile that PCs with a BIOS have
// in TestDebian.
func TestDebianUEFI(t *testing.T) {
	t.Parallel()
	lab := debianLab(t)
	lab.grub("")
	pc := Machine{Disks: []*Disk{{Size: 8 * spec.GiB, Bus: "nvme"}}, Firmware: &Firmware{Kind: SecureBoot, OwnOrder: true}}
	vm := lab.powerOn(pc)
	vm.expect(`REIMAGE DONE`, 8*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	vm.off()
	pc.TFTP = t.TempDir()
	vm = lab.powerOn(pc)
	vm.expect(`starting Boot\d+ "ReAssure"`, 3*time.Minute)
	vm.expect(`(?m)^exp01 login: `, 6*time.Minute)
	g := vm.login(lab, keys.HostKeys)
	g.matches("dmesg", `(?i)secure boot enabled`)
	g.says("findmnt -n -o FSTYPE /boot/efi && ls /boot/efi/EFI/BOOT", "vfat\nBOOTX64.EFI\ngrubx64.efi\nmmx64.efi")
	g.says("systemctl is-system-running", "running")
	g.powerOff(vm)
}

// TestUEFIVerified has a boot server look after a PC with UEFI: what is on its EFI system
// partition is compared, too, and made again while no step has to run.
func TestUEFIVerified(t *testing.T) {
	pc := &PC{
		Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1},
		Disk: &Disk{Size: 1 * spec.GiB, Fill: previous}, Vars: map[string]string{"motd": "first"}, Firmware: &Firmware{OwnOrder: true},
	}
	setup := small(t, pc)
	setup.Files["profiles/small.yaml"] = strings.NewReplacer("table: mbr", "table: auto",
		"  - {name: root,", `  - {name: efi, size: 64MiB, filesystem: vfat, type: esp, mount: /boot/efi, firmware: uefi}
  - {name: root,`).Replace(setup.Files["profiles/small.yaml"])
	room := &servedT{roomT: newRoom(t, setup)}
	for name, file := range setup.Wads {
		if _, err := room.Reassure(t.Context(), "wad", "pack", file, "-o", filepath.Join(room.Site, "wads", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := room.Config("server"); err != nil {
		t.Fatal(err)
	}
	room.serve()
	room.ask("rollout", pc.Name)
	vm := room.powerOn(pc)
	vm.expect(`REIMAGE DONE`, 5*time.Minute)
	room.await(pc, "current", time.Minute, func(h api.Host) bool { return h.State == api.Current })
	vm.off()

	// The firmware is told to start the disk next.
	room.ask("verify", pc.Name)
	vm = room.powerOn(pc)
	vm.expect(`VERIFIED: the disk holds what it should`, 5*time.Minute)
	room.runs(pc, vm, "first")
	vm.off()

	out, err := exec.Command("sfdisk", "--json", pc.Disk.Path()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		PartitionTable struct{ Partitions []struct{ Start int64 } }
	}
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatal(err)
	}
	esp := fmt.Sprintf("%s@@%d", pc.Disk.Path(), table.PartitionTable.Partitions[0].Start*512)
	evil := filepath.Join(t.TempDir(), "evil.efi")
	if err := os.WriteFile(evil, []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "mcopy", "-o", "-i", esp, evil, "::EFI/BOOT/grubx64.efi")
	must(t, "mcopy", "-i", esp, evil, "::EFI/BOOT/fbx64.efi")
	room.ask("verify", pc.Name)
	vm = room.powerOn(pc)
	vm.expect(`VERIFIED: the disk differs in 2 names`, 5*time.Minute)
	room.await(pc, "verified", time.Minute, func(h api.Host) bool { return h.Decision == "local" })
	vm.off()
	if said, err := room.Ask(t.Context(), "verify", pc.Name, "--last"); err == nil {
		t.Errorf("verify --last says that all is well: %s", said)
	} else {
		says(t, "verify --last", said+fmt.Sprint(err), "/boot/efi/EFI/BOOT/grubx64.efi: content", "/boot/efi/EFI/BOOT/fbx64.efi: entry")
	}

	room.ask("reimage", "--yes", pc.Name)
	vm = room.powerOn(pc)
	vm.expect(`no step has to run`, 5*time.Minute)
	vm.expect(`REIMAGE DONE`, time.Minute)
	room.await(pc, "current", time.Minute, func(h api.Host) bool { return h.State == api.Current })
	vm.off()
	if got := must(t, "mdir", "-/", "-b", "-i", esp); strings.Contains(got, "fbx64") || !strings.Contains(got, "EFI/BOOT/BOOTX64.EFI") {
		t.Errorf("on the ESP there is\n%s", got)
	}
}
