package qemutests

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/build"
	"reassure/image/command"
	"reassure/image/serve/api"
	"reassure/image/spec"
)

// TestUnifiedServed has the boot server serve PCs with UEFI that load the image as one
// file, by PXE and by HTTP. One that it does not know what to do with goes on to its
// disk, whatever that holds; one that is due is reimaged, and goes on into its new
// system at the next power-on.
func TestUnifiedServed(t *testing.T) {
	for _, by := range []string{"PXE", "HTTP"} {
		t.Run(by, func(t *testing.T) {
			firmware := func() *Firmware { return &Firmware{HTTPBoot: by == "HTTP"} }
			other := &PC{
				Name: "exp02", IP: "172.30.0.12", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 2}, Vars: map[string]string{"motd": "first"},
				Disk: &Disk{Size: 50 * spec.MiB, Fill: EFISystem("THE DISK")}, Firmware: firmware(),
			}
			pc := &PC{
				Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1}, Vars: map[string]string{"motd": "first"},
				Disk: &Disk{Size: 1 * spec.GiB}, Firmware: firmware(),
			}
			setup := small(t, pc, other)
			setup.Files["profiles/small.yaml"] = strings.NewReplacer("table: mbr", "table: auto",
				"  - {name: root,", `  - {name: efi, size: 64MiB, filesystem: vfat, type: esp, mount: /boot/efi, firmware: uefi}
  - {name: root,`).Replace(setup.Files["profiles/small.yaml"])
			room := &servedT{roomT: newRoom(t, setup)}
			if err := room.Config("server"); err != nil {
				t.Fatal(err)
			}
			config, err := os.ReadFile(filepath.Join(room.Site, "lab.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if err := room.Write("lab.yaml", strings.Replace(string(config), "{mode: server,", "{mode: server, files: {efi: reassure.efi},", 1)); err != nil {
				t.Fatal(err)
			}
			room.serve()
			vm := room.powerOn(other)
			vm.expect(`Start `+by, 2*time.Minute)
			vm.expect(`ReAssure: local: (?s:.*)told Local`, 5*time.Minute)
			vm.expect(`the firmware goes on to its next boot entry`, time.Minute)
			vm.expect(`THE DISK`, 2*time.Minute)
			vm.off()
			room.state(other, api.New, "local")

			room.ask("rollout", pc.Name)
			vm = room.powerOn(pc)
			vm.expect(`ReAssure: remote: `, 5*time.Minute)
			vm.expect(`REIMAGE DONE`, 5*time.Minute)
			room.await(pc, "current", time.Minute, func(h api.Host) bool { return h.State == api.Current })
			vm.off()
			vm = room.powerOn(pc)
			vm.expect(`told Local`, 5*time.Minute)
			room.runs(pc, vm, "first")
		})
	}
}

// TestUnifiedSecureBoot signs the image with the only key that a PC's firmware takes. The
// PC is reimaged by it, with Secure Boot on, from files alone; told Local it asks for no
// manifest; and one that nobody signed does not start.
func TestUnifiedSecureBoot(t *testing.T) {
	t.Parallel()
	lab := uefiLab(t, strings.NewReplacer())
	// The web server has to show the TFTP root, too.
	boot := filepath.Join(lab.WWW, "boot")
	if err := os.Rename(lab.TFTP, boot); err != nil {
		t.Fatal(err)
	}
	lab.TFTP = boot
	unsigned := filepath.Join(t.TempDir(), "unsigned")
	if err := linkTree(lab.TFTP, unsigned); err != nil {
		t.Fatal(err)
	}
	signed := signedImage(t, lab)
	if err := os.Rename(signed, filepath.Join(lab.TFTP, build.UnifiedFile)); err != nil {
		t.Fatal(err)
	}
	firmware := &Firmware{Kind: OwnKey}
	disk := &Disk{Size: 1 * spec.GiB, Fill: previous, Bus: "nvme"}
	on := Machine{Disks: []*Disk{disk}, Firmware: firmware, BootFile: build.UnifiedFile, NoReboot: true}

	untouched := &Disk{Size: disk.Size, Fill: previous}
	if err := untouched.Make(filepath.Join(t.TempDir(), "disk")); err != nil {
		t.Fatal(err)
	}
	lab.decide("local")
	pc := lab.powerOn(on)
	pc.expect(`(?i)secure boot enabled`, 4*time.Minute)
	pc.expect(`the server has no boot decision for this PC(?s:.*)told Local`, 2*time.Minute)
	pc.off()
	for _, r := range lab.Web.Requests() {
		if strings.Contains(r, "manifests/") {
			t.Errorf("told Local, the PC asked for %s", r)
		}
	}
	if sum(t, disk) != sum(t, untouched) {
		t.Error("told Local, the PC wrote to its disk")
	}

	lab.decide("remote")
	pc = lab.powerOn(on)
	pc.expect(`(?i)secure boot enabled`, 4*time.Minute)
	pc.expect(`REIMAGE DONE`, 6*time.Minute)
	plan := lab.event(spec.EventPlan, time.Minute).Plan
	pc.off()
	startsFromESP(t, disk, plan, true)

	on.TFTP = unsigned
	pc = lab.powerOn(on)
	pc.expect(`failed to load Boot\d+ "UEFI PXEv4[^\n]*(Access Denied|Security Violation)`, 4*time.Minute)
	pc.off()
}

// signedImage builds the lab's image as an operator does who has a key, and returns the
// unified kernel image. It leads to the lab's web server, and shows what the kernel says.
func signedImage(t *testing.T, lab *labT) string {
	t.Helper()
	dir := t.TempDir()
	key, cert, err := Identity(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	p := programs(t)
	config, err := os.ReadFile(filepath.Join(p.Dir, "image.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(consoles), []byte("loglevel=7 reassure.url="+lab.Web.URL()+" "+consoles), 1)
	file, out := filepath.Join(dir, "image.yaml"), filepath.Join(dir, "out")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{filepath.Join(p.Dir, "mkimage"), "build", "-flavour", "vm", "-config", file, "-out", out, "-secureboot-key", key, "-secureboot-cert", cert}
	if err := (command.Command{Args: args, Dir: p.Tree, Env: p.Env(), Timeout: 10 * time.Minute}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(out, build.UnifiedFile)
}

// TestUEFIFromFiles has PCs with UEFI live on static files alone, with another DHCP and
// TFTP server than ours and any web server: once by iPXE, once by the image as one file,
// which finds its server by DHCP's next-server. Told Local, each goes on to its disk.
func TestUEFIFromFiles(t *testing.T) {
	for _, loader := range []string{"snponly.efi", build.UnifiedFile} {
		t.Run(loader, func(t *testing.T) {
			pc := &PC{
				Name: "exp01", IP: "172.30.0.11", MAC: spec.MAC{0x52, 0x54, 0, 0, 0, 1}, Vars: map[string]string{"motd": "first"},
				Disk: &Disk{Size: 50 * spec.MiB, Fill: EFISystem("THE DISK")}, Firmware: &Firmware{},
			}
			room := newRoom(t, small(t, pc))
			www := filepath.Join(room.Dir, "www")
			room.reassure("publish", "--out", filepath.Join(www, "reassure"), "--tftp", room.TFTP)
			if err := os.Symlink(room.TFTP, filepath.Join(www, "reassure", "boot")); err != nil {
				t.Fatal(err)
			}
			asked := make(chan string, 100)
			l, err := room.Listen(t.Context(), SegmentServer+":80")
			if err != nil {
				t.Fatal(err)
			}
			files := http.FileServer(http.Dir(www))
			web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				select {
				case asked <- q.URL.Path:
				default: // nobody looks any more
				}
				files.ServeHTTP(w, q)
			})}
			go web.Serve(l)
			t.Cleanup(func() { closing(t, web.Close) })
			conf := filepath.Join(room.Dir, "dnsmasq.conf")
			text := room.reassure("dhcp-config", "dnsmasq", "--interface", bridge, "--efi", loader) + "enable-tftp\ntftp-root=" + room.TFTP + "\n"
			if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			room.start(room.Segment.Namespace, `DHCP, static leases only`, dnsmasq("--conf-file="+conf, "--dhcp-leasefile="+filepath.Join(room.Dir, "leases"))...)

			vm := room.powerOn(pc)
			vm.expect(`THE DISK`, 6*time.Minute)
			vm.off()
			for len(asked) > 0 {
				if path := <-asked; strings.Contains(path, "manifests/") {
					t.Errorf("told Local, the PC asked for %s", path)
				}
			}
			room.reassure("switch", pc.Name, "remote", "--tftp", room.TFTP)
			vm = room.powerOn(pc)
			vm.expect(`network is up.*next_server=172\.30\.0\.5`, 6*time.Minute)
			for limit := time.After(2 * time.Minute); ; {
				select {
				case path := <-asked:
					if path == "/reassure/manifests/"+pc.MAC.PXE()+".json" {
						return
					}
				case <-limit:
					t.Fatalf("nobody asked for the PC's manifest; the console says:\n%s", vm.Text())
				}
			}
		})
	}
}
