package qemutests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/spec"
)

// helloDisk fills a disk with a boot record that says so on the serial port.
func helloDisk(f *os.File) error {
	record := make([]byte, 512)
	code := []byte{0xba, 0xf8, 0x03} // mov dx, 0x3f8
	for _, c := range []byte("THE DISK\n") {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	copy(record, append(code, 0xf4, 0xeb, 0xfd)) // hlt, for ever
	copy(record[510:], []byte{0x55, 0xaa})
	_, err := f.WriteAt(record, 0)
	return err
}

// TestTold has pxelinux read what the boot server tells a PC of each kind, from a
// TFTP root without an image.
func TestTold(t *testing.T) {
	t.Parallel()
	p := programs(t)
	const again = 15 * time.Second
	for _, test := range []struct {
		name string
		text bootfiles.HostText
		says []string
	}{
		{"local", bootfiles.HostText{Kind: bootfiles.KindLocal, Reason: "up to date"}, []string{`Booting from local disk`, `THE DISK`}},
		{
			"local by the first disk's boot record",
			bootfiles.HostText{Kind: bootfiles.KindLocal, Local: spec.LocalBoot{BIOS: spec.LocalDisk}}, []string{`THE DISK`},
		},
		{
			"local by the BIOS's next boot device",
			bootfiles.HostText{Kind: bootfiles.KindLocal, Local: spec.LocalBoot{BIOS: "-1"}}, []string{`Booting from local disk`, `THE DISK`},
		},
		{
			"remote", bootfiles.HostText{Kind: bootfiles.KindRemote, MAC: DefaultMAC, URL: "http://" + Server + "/lab", Token: "token"},
			[]string{`Loading /bzImage\.\.\. failed`, `Booting from local disk`, `THE DISK`},
		},
		{"wait", bootfiles.HostText{Kind: bootfiles.KindWait, Reason: "its disk is spoiled", Again: again}, []string{`boot: `}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text, err := bootfiles.PXELinux.Text(test.text, nil)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			tree := filepath.Join(dir, "tftp")
			if err := linkTree(filepath.Join(p.Image, "tftproot"), tree); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(tree, bootfiles.Kernel)); err != nil {
				t.Fatal(err)
			}
			// pxelinux itself is to be heard, too.
			name := filepath.Join(tree, bootfiles.Folder, DefaultMAC.PXE())
			if err := os.WriteFile(name, append([]byte("serial 0\n"), text...), 0o644); err != nil {
				t.Fatal(err)
			}
			disk := &Disk{Size: spec.MiB, Fill: helloDisk}
			if err := disk.Make(filepath.Join(dir, "disk")); err != nil {
				t.Fatal(err)
			}
			running <- struct{}{}
			vm, err := Machine{Dir: dir, TFTP: tree, Disks: []*Disk{disk}, NoReboot: true, Memory: 128 * spec.MiB}.Start(t.Context())
			if err != nil {
				<-running
				t.Fatal(err)
			}
			pc := &vmT{VM: vm, t: t}
			t.Cleanup(pc.off)
			for _, s := range test.says {
				pc.expect(s, 2*time.Minute)
			}
			if test.text.Kind != bootfiles.KindWait {
				return
			}
			shown := time.Now()
			pc.waitOff(2 * time.Minute) // where it would restart
			if took := time.Since(shown); took < again-time.Second {
				t.Errorf("it asks again after %v, want %v", took, again)
			}
		})
	}
}
