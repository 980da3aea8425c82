package local

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"reassure/image/reimage/efivars"
	"reassure/image/reimage/grubcfg"
	"reassure/image/spec"
)

func run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: apt-get install e2fsprogs fdisk util-linux", args[0])
	}
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// disk makes a folder with "nodes" for a disk's partitions, each an ext4 file
// system on a loop device, holding these files.
func disk(t *testing.T, partitions ...map[string]string) spec.Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: run the tests as root")
	}
	dir := t.TempDir()
	d := spec.Disk{Device: filepath.Join(dir, "vd")}
	for i, files := range partitions {
		tree := filepath.Join(dir, "tree", string(rune('a'+i)))
		for name, text := range files {
			full := filepath.Join(tree, name)
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		image := filepath.Join(dir, "image"+string(rune('a'+i)))
		run(t, "", "truncate", "-s", "16M", image)
		run(t, "", "mkfs.ext4", "-q", "-d", tree, image)
		loop := run(t, "", "losetup", "--find", "--show", image)
		t.Cleanup(func() { run(t, "", "losetup", "--detach", loop) })
		if err := os.Symlink(loop, partitionDevice(d.Device, i+1)); err != nil {
			t.Fatal(err)
		}
		d.Contents = append(d.Contents, spec.Content{Partition: i + 1, Kind: spec.Ext4, UUID: run(t, "", "blkid", "--output", "value", "--match-tag", "UUID", loop)})
	}
	return d
}

func TestChoose(t *testing.T) {
	const config = "if [ -s $prefix/grubenv ]; then load_env; fi\nset default=$saved_entry\nmenuentry a { linux /wrong\n}\nmenuentry b { linux /vmlinuz quiet\ninitrd /initrd\n}\n"
	files := func(extra map[string]string) map[string]string {
		extra["vmlinuz"], extra["initrd"] = "kernel", "initrd"
		return extra
	}
	want := &grubcfg.Entry{Title: "b", Kernel: "/vmlinuz", CommandLine: "BOOT_IMAGE=/vmlinuz quiet", Initrds: []grubcfg.File{{Path: "/initrd"}}}
	on := func(n int) *grubcfg.Entry {
		e := *want
		e.Partition, e.Initrds = n, []grubcfg.File{{Partition: n, Path: "/initrd"}}
		return &e
	}
	for _, tt := range []struct {
		name       string
		partitions []map[string]string
		want       *grubcfg.Entry
		wantErr    string
	}{
		{
			name:       "one partition for all",
			partitions: []map[string]string{{"data": ""}, files(map[string]string{"boot/grub/grub.cfg": config, "boot/grub/grubenv": "saved_entry=b\n"})},
			want:       on(2),
		},
		{
			name: "a boot partition hides what is below it",
			partitions: []map[string]string{
				{"boot/grub/grub.cfg": "menuentry old { linux /old\n}"}, files(map[string]string{"grub/grub.cfg": config, "grub/grubenv": "saved_entry=b\n"}),
			},
			want: on(2),
		},
		{name: "no grub.cfg", partitions: []map[string]string{{"data": ""}}, wantErr: "has a grub.cfg"},
		{name: "a broken one", partitions: []map[string]string{{"boot/grub/grub.cfg": "menuentry {"}}, wantErr: "line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Choose(disk(t, tt.partitions...), spec.BIOS)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("Choose = %+v, %v; want %q", got, err, tt.wantErr)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestOpenJoinsInitrds(t *testing.T) {
	o := Options{Disk: disk(t, map[string]string{"ucode": "one"}, map[string]string{"boot/initrd": "two"})}
	f, err := o.open("initrd", grubcfg.File{Partition: 1, Path: "/ucode"}, grubcfg.File{Partition: 2, Path: "/boot/initrd"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 16)
	n, _ := f.ReadAt(got, 0)
	if string(got[:n]) != "onetwo" {
		t.Errorf("file = %q", got[:n])
	}
	if _, err := o.open("kernel", grubcfg.File{Partition: 1, Path: "/none"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "kernel: /none of partition 1") {
		t.Errorf("open = %v", err)
	}
	if _, err := o.open("kernel", grubcfg.File{Partition: 7, Path: "/k"}); err == nil {
		t.Error("a file of no partition was opened")
	}
}

// TestBootSaysWhatToDo tries a disk whose kernel is none: the running kernel
// refuses to load it, and nothing ends.
func TestBootSaysWhatToDo(t *testing.T) {
	d := disk(t, map[string]string{"boot/grub/grub.cfg": "menuentry x { linux /boot/k\n}", "boot/k": "not a kernel"})
	err := Boot(context.Background(), Options{
		Host: "exp01", Firmware: spec.UEFI, Disk: d, Log: slog.New(slog.DiscardHandler),
		Before: func(next string) { t.Errorf("it would have gone on to %s", next) },
	})
	if err == nil || !strings.Contains(err.Error(), "reassure switch exp01 local") || !strings.Contains(err.Error(), "load /boot/k for kexec") {
		t.Errorf("Boot = %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Boot(cancelled, Options{Disk: d, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, context.Canceled) {
		t.Errorf("Boot after ^C = %v", err)
	}
}

// TestNext sets the entry for a disk whose table sfdisk wrote.
func TestNext(t *testing.T) {
	dir := t.TempDir()
	d := spec.Disk{Device: filepath.Join(dir, "disk"), LogicalSector: 512}
	run(t, "", "truncate", "-s", "64M", d.Device)
	const esp, other = "CF28E0AB-1F2C-4A7C-9AD2-6A2B7A5A5F01", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	run(t, "label: gpt\nsize=8M, type=U, uuid="+esp+"\ntype=L, uuid="+other+"\n", "sfdisk", d.Device)
	f, err := os.Open(d.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ids, err := partUUIDs(f, 512)
	if diff := cmp.Diff([]string{strings.ToLower(esp), strings.ToLower(other)}, ids); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}

	vars := efivars.Vars{Dir: filepath.Join(dir, "vars")}
	if err := os.Mkdir(vars.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		full := filepath.Join(vars.Dir, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c")
		if err := os.WriteFile(full, append([]byte{7, 0, 0, 0}, data...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("BootOrder", []byte{0, 0, 2, 0, 1, 0})
	write("Boot0000", entry("UEFI PXEv4", 1, nil))
	write("Boot0002", entry("switched off", 0, []byte{0xab, 0xe0, 0x28, 0xcf, 0x2c, 0x1f, 0x7c, 0x4a, 0x9a, 0xd2, 0x6a, 0x2b, 0x7a, 0x5a, 0x5f, 0x01}))
	if _, err := next(d, vars); err == nil || !strings.Contains(err.Error(), "no boot entry") {
		t.Errorf("next without an entry = %v", err)
	}
	write("Boot0001", entry("debian", 1, []byte{0xab, 0xe0, 0x28, 0xcf, 0x2c, 0x1f, 0x7c, 0x4a, 0x9a, 0xd2, 0x6a, 0x2b, 0x7a, 0x5a, 0x5f, 0x01}))
	e, err := next(d, vars)
	if err != nil || e.Number != 1 || e.Description != "debian" {
		t.Errorf("next = %+v, %v", e, err)
	}
	got, err := os.ReadFile(filepath.Join(vars.Dir, "BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	if diff := cmp.Diff([]byte{7, 0, 0, 0, 1, 0}, got); diff != "" || err != nil {
		t.Errorf("BootNext: %v (-want +got):\n%s", err, diff)
	}
	if _, err := next(spec.Disk{Device: "/dev/zero"}, vars); err == nil {
		t.Error("a disk without a GPT has an entry")
	}
}

// entry is a load option for a GPT partition, or for none.
func entry(description string, active uint32, guid []byte) []byte {
	var path []byte
	if guid != nil {
		path = append([]byte{4, 1, 42, 0, 1, 0, 0, 0}, make([]byte, 16)...)
		path = append(append(path, guid...), 2, 2)
	}
	path = append(path, 0x7f, 0xff, 4, 0)
	b := binary.LittleEndian.AppendUint32(nil, active)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	for _, u := range append(utf16.Encode([]rune(description)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, path...)
}

func TestPartitionDevice(t *testing.T) {
	for disk, want := range map[string]string{"/dev/sda": "/dev/sda3", "/dev/nvme0n1": "/dev/nvme0n1p3", "/dev/mmcblk0": "/dev/mmcblk0p3"} {
		if got := partitionDevice(disk, 3); got != want {
			t.Errorf("partitionDevice(%s) = %s; want %s", disk, got, want)
		}
	}
}

func TestWhyNoKexec(t *testing.T) {
	if got := whyNoKexec(unix.EKEYREJECTED); !strings.Contains(got, "Secure Boot") {
		t.Errorf("whyNoKexec = %q", got)
	}
}
