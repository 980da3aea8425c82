package steps

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reassure/image/spec"
)

const uefiJobUUID = "11111111-2222-3333-4444-555555555555"

func uefiJob() Job {
	return Job{
		Disk: "/dev/sda", Firmware: spec.UEFI, Table: spec.GPT, ESP: "/boot/efi",
		RootUUID: uefiJobUUID, RootPartUUID: "p", BootUUID: uefiJobUUID, BootFS: spec.Ext4, BootPath: "/boot",
	}
}

// below lists the files below a folder.
func below(t *testing.T, folder string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(folder, p)
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// TestSignedLoader: shim is where firmware looks, GRUB and its grub.cfg where shim and GRUB
// do, and nothing is left of another installation's, least of all what makes boot entries.
func TestSignedLoader(t *testing.T) {
	r := &runner{job: uefiJob(), output: new(tail), tree: plant(t, map[string]string{
		"boot/vmlinuz-6": "kernel", "etc/default/grub": "",
		"usr/lib/shim/shimx64.efi.signed": "shim", "usr/lib/shim/mmx64.efi.signed": "manager",
		"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "GRUB\x00/EFI/debian\x00\x00",
		"usr/lib/grub/x86_64-efi/ext2.mod":                  "module", "usr/lib/grub/x86_64-efi/monolithic/x.efi": "big",
		"boot/efi/efi/Boot/bootx64.efi": "old", "boot/efi/efi/Boot/fbx64.efi": "makes entries", "boot/efi/efi/hp/firmware.bin": "theirs",
	})}
	if err := r.bootLoader(t.Context(), &spec.BootLoader{Kind: "grub"}); err != nil {
		t.Fatal(err)
	}
	want := []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/BOOT/mmx64.efi", "EFI/debian/grub.cfg", "EFI/hp/firmware.bin"}
	if diff := cmp.Diff(want, below(t, r.at("/boot/efi"))); diff != "" {
		t.Errorf("for the ESP (-want +got):\n%s", diff)
	}
	if got := r.mustRead(t, "/boot/efi/EFI/BOOT/BOOTX64.EFI"); got != "shim" {
		t.Errorf("firmware starts %q", got)
	}
	early := r.mustRead(t, "/boot/efi/EFI/debian/grub.cfg")
	if want := "search --no-floppy --fs-uuid --set=root " + uefiJobUUID + "\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"; early != want {
		t.Errorf("GRUB is told\n%s, want\n%s", early, want)
	}
	if diff := cmp.Diff([]string{"grub.cfg", "x86_64-efi/ext2.mod"}, below(t, r.at("/boot/grub"))); diff != "" {
		t.Errorf("for GRUB (-want +got):\n%s", diff)
	}
	if got := r.mustRead(t, "/boot/grub/grub.cfg"); !strings.Contains(got, "insmod part_gpt\n") || !strings.Contains(got, "insmod all_video\n") {
		t.Errorf("grub.cfg:\n%s", got)
	}
}

func TestNoLoader(t *testing.T) {
	for _, c := range []struct {
		name, want string
		files      map[string]string
		esp        string
	}{
		{"nowhere to put it", "type esp", nil, ""},
		{"nothing to put there", "shim-signed", nil, "/boot/efi"},
		{"a shim alone", "grub-efi-amd64-bin", map[string]string{"usr/lib/shim/shimx64.efi.signed": "shim"}, "/boot/efi"},
		{
			"a GRUB of who knows whom", "grub.cfg",
			map[string]string{"usr/lib/shim/shimx64.efi.signed": "shim", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "GRUB"}, "/boot/efi",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"boot/vmlinuz-6": "kernel"}
			for name, text := range c.files {
				files[name] = text
			}
			r := &runner{job: uefiJob(), output: new(tail), tree: plant(t, files)}
			r.job.ESP = c.esp
			if err := r.bootLoader(t.Context(), &spec.BootLoader{Kind: "grub"}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one of %s", err, c.want)
			}
		})
	}
}
