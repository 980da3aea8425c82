package qemutests

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"reassure/image/spec"
)

// gptLayout is the small profile on a GPT that a BIOS boots, with /boot and a
// FAT file system of their own, going on by kexec.
var gptLayout = strings.NewReplacer(
	"table: mbr", "table: gpt",
	"  - {name: root, size: rest, filesystem: ext4, label: root, mount: /, bootable: true}\n",
	`  - {name: bios, size: 1MiB, filesystem: none, type: bios-boot}
  - {name: boot, size: 256MiB, filesystem: ext4, label: boot, mount: /boot}
  - {name: data, size: 64MiB, filesystem: vfat, label: DATA, mount: /data}
  - {name: root, size: rest, filesystem: ext4, label: root, mount: /}
`,
	"on_failure:", `finish: kexec
on_failure:`,
	"  - name: boot loader", `  - name: a file on FAT
    write: {path: /data/hello, content: "from the reimage\n"}
  - name: boot loader`,
).Replace(SmallProfile)

// TestLayout reimages an NVMe disk with a GPT for a PC with a BIOS. The new
// system is started at once, without the firmware, and by the firmware later.
func TestLayout(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, gptLayout)
	lab.publish()
	lab.decide("remote")
	disk := &Disk{Size: 2 * spec.GiB, Fill: previous, Bus: "nvme"}
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}})
	plan := lab.event(spec.EventPlan, 3*time.Minute)
	pc.expect(`REIMAGE DONE`, 3*time.Minute)
	keys := lab.event(spec.EventKeys, time.Minute)
	lab.Web.Requests() // and forgets them
	pc.expect(`(?m)^exp01 login: `, 2*time.Minute)
	for _, r := range lab.Web.Requests() {
		if strings.Contains(r, "manifests/") {
			t.Errorf("the PC went by the firmware: it asked for %s", r)
		}
	}
	g := pc.login(lab, keys.HostKeys)
	g.says("hostname", "exp01")
	g.powerOff(pc)

	if plan.Plan.Disk.Device != "/dev/nvme0n1" || plan.Plan.Partitions[3].Device != "/dev/nvme0n1p4" {
		t.Errorf("the plan names %s and %s", plan.Plan.Disk.Device, plan.Plan.Partitions[3].Device)
	}
	data := plan.Plan.Partitions[2]
	fat := fmt.Sprintf("%s@@%d", disk.Path(), data.Start)
	if out, err := exec.Command("mtype", "-i", fat, "::hello").CombinedOutput(); err != nil || string(out) != "from the reimage\n" {
		t.Errorf("the file on FAT (mtools): %q, %v", out, err)
	}
	if out, err := exec.Command("sgdisk", "-v", disk.Path()).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk -v: %s%v", out, err)
	}

	pc = lab.powerOn(Machine{Disks: []*Disk{disk}, FromDisk: true})
	pc.expect(`(?m)^exp01 login: `, 2*time.Minute)
	pc.off()
}
