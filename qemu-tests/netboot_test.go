package qemutests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

// TestSecureBoot has a PC with Secure Boot on, and with Microsoft's keys only, boot
// from static files: shim, GRUB, Debian's kernel, our reimager. What nobody signed it
// does not boot: it goes on to its disk, as it does when it is told Local.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	l := smallLab(t, SmallProfile)
	l.publish()
	firmware := &Firmware{Kind: SecureBoot}

	// No disk: the reimager reports, and refuses.
	l.decide("remote")
	pc := l.powerOn(Machine{Firmware: firmware, NoReboot: true})
	pc.expect(`Secure boot enabled`, 6*time.Minute)
	facts := l.event(spec.EventStart, 3*time.Minute).Facts
	if facts == nil || facts.Firmware != spec.UEFI {
		t.Errorf("the PC reports %+v, want UEFI", facts)
	}
	pc.expect(`REIMAGE FAILED`, 3*time.Minute)
	pc.off()

	own := func() *Disk { return &Disk{Size: 50 * spec.MiB, Fill: EFISystem("THE DISK")} }
	l.decide("local")
	pc = l.powerOn(Machine{Firmware: firmware, NoReboot: true, Disks: []*Disk{own()}})
	pc.expect(`Fetching Netboot Image grubx64\.efi(?s:.*)THE DISK`, 6*time.Minute)
	pc.waitOff(2 * time.Minute)

	// A byte of the kernel.
	kernel := filepath.Join(l.TFTP, bootfiles.Kernel)
	image, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	image[len(image)/2] ^= 1
	if err := os.Remove(kernel); err != nil { // it is a link to the image's own
		t.Fatal(err)
	}
	if err := os.WriteFile(kernel, image, 0o644); err != nil {
		t.Fatal(err)
	}
	l.decide("remote")
	pc = l.powerOn(Machine{Firmware: firmware, NoReboot: true, Disks: []*Disk{own()}})
	pc.expect(`bad shim signature(?s:.*)THE DISK`, 6*time.Minute)
	pc.waitOff(2 * time.Minute)
	if n := len(l.Web.Requests()); n > 0 {
		t.Errorf("the unsigned image started: %d requests", n)
	}
}

// TestUEFIServed has the boot server serve PCs with UEFI and without Secure Boot: one
// by shim and GRUB, one by iPXE. Each is told Local, then Remote.
func TestUEFIServed(t *testing.T) {
	for _, loader := range []string{"shimx64.efi", "snponly.efi"} {
		t.Run(loader, func(t *testing.T) {
			disk := &Disk{Size: 50 * spec.MiB, Fill: EFISystem("THE DISK")}
			pc := &PC{Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1}, Disk: disk, Firmware: &Firmware{}, Vars: map[string]string{"motd": "first"}}
			room := &servedT{roomT: newRoom(t, small(t, pc))}
			if err := room.Config("server"); err != nil {
				t.Fatal(err)
			}
			config, err := os.ReadFile(filepath.Join(room.Site, "lab.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if err := room.Write("lab.yaml", strings.Replace(string(config), "{mode: server,", "{mode: server, files: {efi: "+loader+"},", 1)); err != nil {
				t.Fatal(err)
			}
			room.serve()
			vm := room.powerOn(pc)
			vm.expect(`ReAssure: local: (?s:.*)THE DISK`, 6*time.Minute)
			vm.off()
			room.state(pc, api.New, "local")

			room.ask("rollout", pc.Name)
			vm = room.powerOn(pc)
			vm.expect(`ReAssure: remote: `, 6*time.Minute)
			// Its first report has what the PC is.
			const reported = "<dt>Firmware</dt><dd>UEFI</dd>"
			page := ""
			for end := time.Now().Add(6 * time.Minute); !strings.Contains(page, reported); time.Sleep(time.Second) {
				if page, err = room.Get(t.Context(), "/reassure/hosts/"+pc.Name); err != nil {
					t.Fatal(err)
				}
				if time.Now().After(end) {
					t.Fatalf("%s has reported nothing:\n%s", pc.Name, page)
				}
			}
			vm.off()
		})
	}
}

// TestIPXEFromFiles has a card whose boot ROM is an iPXE read what publish and switch
// have written for it.
func TestIPXEFromFiles(t *testing.T) {
	t.Parallel()
	l := smallLab(t, SmallProfile)
	l.publish()
	l.decide("remote")
	pc := l.powerOn(Machine{BootFile: "ipxe/boot.ipxe", NoReboot: true})
	pc.expect(`REIMAGE FAILED`, 6*time.Minute) // there is no disk
	l.event(spec.EventStart, time.Minute)
	pc.off()
	l.decide("local")
	pc = l.powerOn(Machine{BootFile: "ipxe/boot.ipxe", NoReboot: true, Disks: []*Disk{{Size: spec.MiB, Fill: helloDisk}}})
	pc.expect(`THE DISK`, 6*time.Minute)
	if n := len(l.Web.Requests()); n > 0 {
		t.Errorf("it was reimaged: %d requests", n)
	}
}
