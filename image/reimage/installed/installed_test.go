package installed

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/spec"
)

func TestFilesystems(t *testing.T) {
	d := spec.Disk{Device: "/dev/nvme0n1", Contents: []spec.Content{
		{Partition: 0, Kind: "mbr"},
		{Partition: 1, Kind: "ext3", UUID: "1111aaaa-0000-0000-0000-000000000001", Label: "boot"},
		{Partition: 2, Kind: "swap", UUID: "2222"},
		{Partition: 3, Kind: spec.Ext4, UUID: "3333"},
		{Partition: 5, Kind: spec.XFS, Label: "my data"},
		{Partition: 6, Kind: spec.VFAT, UUID: "AAAA-BBBB"},
		{Partition: 7, Kind: "luks", UUID: "7777"},
	}}
	all := func(more ...FileSystem) []FileSystem {
		return append([]FileSystem{{"/dev/nvme0n1p3", spec.Ext4, "/"}}, more...)
	}
	for _, test := range []struct {
		name, fstab string
		want        []FileSystem
		missing     []string
	}{
		{name: "nothing", want: all()},
		{name: "root and swap", fstab: "UUID=3333 / ext4 defaults 0 1\nUUID=2222 none swap sw 0 0\n", want: all()},
		{name: "by UUID, in any case", fstab: "UUID=1111AAAA-0000-0000-0000-000000000001\t/boot\text3\tnoatime\t1 2", want: all(FileSystem{"/dev/nvme0n1p1", spec.Ext4, "/boot"})},
		{name: "by label with a space", fstab: `LABEL=my\040data /srv/my\040data/ xfs`, want: all(FileSystem{"/dev/nvme0n1p5", spec.XFS, "/srv/my data"})},
		{name: "by udev's links", fstab: "/dev/disk/by-uuid/AAAA-BBBB /boot/efi vfat umask=0077\n/dev/disk/by-label/boot /boot ext4", want: all(FileSystem{"/dev/nvme0n1p1", spec.Ext4, "/boot"}, FileSystem{"/dev/nvme0n1p6", spec.VFAT, "/boot/efi"})},
		{name: "by the name that the disk had elsewhere", fstab: "/dev/sda1 /boot ext3\n/dev/nvme1n1p5 /data xfs", want: all(FileSystem{"/dev/nvme0n1p1", spec.Ext4, "/boot"}, FileSystem{"/dev/nvme0n1p5", spec.XFS, "/data"})},
		{name: "by an MBR's PARTUUID", fstab: "PARTUUID=1a2b3c4d-05 /data xfs", want: all(FileSystem{"/dev/nvme0n1p5", spec.XFS, "/data"})},
		{name: "quotes, comments and rubbish", fstab: "# a comment\n\nUUID=\"AAAA-BBBB\" /efi vfat # the firmware's\nrubbish\n", want: all(FileSystem{"/dev/nvme0n1p6", spec.VFAT, "/efi"})},
		{name: "another disk's, a server's, one that is encrypted", fstab: "UUID=9999 /data ext4\nnas:/home /home nfs\nUUID=7777 /secret auto\n/dev/mapper/vg-lv1 /lv ext4",
			want: all(), missing: []string{"/data (UUID=9999)", "/home (nas:/home)", "/secret (UUID=7777)", "/lv (/dev/mapper/vg-lv1)"}},
		{name: "the kernel's own, and what is not mounted", fstab: "proc /proc proc\ntmpfs /tmp tmpfs size=1g\nnone /dev/shm tmpfs\nLABEL=boot /boot ext4 noauto,ro\n/dev/sr0 /cdrom iso9660 ro,noauto", want: all()},
		{name: "twice in one place", fstab: "LABEL=boot /boot ext4\nUUID=AAAA-BBBB /boot vfat", want: all(FileSystem{"/dev/nvme0n1p1", spec.Ext4, "/boot"}), missing: []string{"/boot (UUID=AAAA-BBBB)"}},
		{name: "no absolute place", fstab: "LABEL=boot ../boot ext4", want: all()},
		{name: "an empty label", fstab: "LABEL= /x ext4", want: all(), missing: []string{"/x (LABEL=)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, missing := filesystems(test.fstab, d, d.Contents[3])
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("file systems (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.missing, missing); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

// What is in an ext4's journal only would be missing.
func TestClean(t *testing.T) {
	path := t.TempDir() + "/fs"
	block := make([]byte, 4096)
	for _, needsRecovery := range []bool{false, true} {
		block[1024+0x60] = 0x42 // other features
		if needsRecovery {
			block[1024+0x60] |= 4
		}
		if err := os.WriteFile(path, block, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := clean(FileSystem{Device: path, Kind: spec.Ext4}); (err != nil) != needsRecovery {
			t.Errorf("needs recovery %v: %v", needsRecovery, err)
		}
	}
	if err := clean(FileSystem{Device: path, Kind: spec.VFAT}); err != nil {
		t.Error(err)
	}
}

// A mount point that is a link leads where it does in the system, and never out of it.
func TestMountPoints(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	root, outside := t.TempDir(), t.TempDir()
	for link, target := range map[string]string{"boot": "/real", "escape": outside, "up": "../../../real", "file": "/etc"} {
		if err := os.Symlink(target, root+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(root+"/real", 0o755), os.WriteFile(root+"/etc", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for point, want := range map[string]string{"/boot": "/real", "/up": "/real", "/real": "/real", "/escape": "", "/file": "", "/none": ""} {
		s := &System{Root: root}
		err := s.mount(FileSystem{"tmpfs", "tmpfs", point})
		if want == "" {
			if err == nil {
				t.Errorf("%s: mounted at %v", point, s.mounted)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", point, err)
			continue
		}
		if strings.Join(s.mounted, " ") != root+want {
			t.Errorf("%s: mounted at %v, want %s", point, s.mounted, root+want)
		}
		if err := os.WriteFile(root+"/real/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: writing to it: %v", point, err)
		}
		if err := unix.Unmount(root+want, 0); err != nil {
			t.Fatal(err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), " "+root) || strings.Contains(string(mounts), " "+outside) {
		t.Errorf("left mounted: %v\n%s", err, mounts)
	}
}
