package esp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func plant(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// TestFill: what firmware could start is where it does not look, until one rename.
func TestFill(t *testing.T) {
	tree := plant(t, map[string]string{"efi/BOOT/BOOTX64.EFI": "shim", "efi/debian/grub.cfg": "search", "startup.nsh": "echo"})
	disk := plant(t, nil)
	if err := fill(disk, tree); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Stat(loaders); !os.IsNotExist(err) {
		t.Errorf("before the commit there is a folder %s: %v", loaders, err)
	}
	different, err := compare(tree, disk, waiting)
	if err != nil || len(different) > 0 {
		t.Errorf("what was copied differs: %+v, %v", different, err)
	}
	if err := disk.Rename(waiting, loaders); err != nil {
		t.Fatal(err)
	}
	if text, err := disk.ReadFile(Loader); err != nil || string(text) != "shim" {
		t.Errorf("firmware finds %q, %v", text, err)
	}
	if different, err = compare(tree, disk, loaders); err != nil || len(different) > 0 {
		t.Errorf("after the commit there are differences: %+v, %v", different, err)
	}
}

func TestFillRefuses(t *testing.T) {
	link := plant(t, map[string]string{"EFI/x": ""})
	if err := link.Symlink("x", "EFI/y"); err != nil {
		t.Fatal(err)
	}
	if err := fill(plant(t, nil), link); err == nil || !strings.Contains(err.Error(), "FAT holds nothing else") {
		t.Errorf("a link: %v", err)
	}
	twice := plant(t, map[string]string{"EFI/x": "1", "efi/x": "2"})
	if err := fill(plant(t, nil), twice); err == nil || !strings.Contains(err.Error(), "upper and lower case") {
		t.Errorf("two of a name: %v", err)
	}
}

func TestCompare(t *testing.T) {
	want := plant(t, map[string]string{"EFI/BOOT/BOOTX64.EFI": "shim", "EFI/BOOT/gone": "", "EFI/folder/x": "", "EFI/file": "", "EFI/absent/y": ""})
	have := plant(t, map[string]string{
		"EFI/BOOT/BOOTX64.EFI": "evil", "EFI/folder": "", "EFI/file/x": "", "EFI/more/z": "", "startup.nsh": "",
	})
	got, err := compare(want, have, loaders)
	if err != nil {
		t.Fatal(err)
	}
	expect := []Difference{
		{"EFI/BOOT/BOOTX64.EFI", "content", "", ""},
		{"EFI/BOOT/gone", "entry", "there", "missing"},
		{"EFI/absent", "entry", "there", "missing"},
		{"EFI/file", "kind", "a file", "a folder"},
		{"EFI/folder", "kind", "a folder", "a file"},
		{"EFI/more", "entry", "none", "a folder"},
		{"startup.nsh", "entry", "none", "a file"},
	}
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
}
