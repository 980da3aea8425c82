package initramfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// archive is a cpio archive of files with their names as content, padded.
func archive(t *testing.T, pad int, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, n := range names {
		if err := w.WriteHeader(&cpio.Header{Name: n, Mode: cpio.FileMode(0o100644), Size: int64(len(n))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, pad)...)
}

func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(data, nil)
}

func TestWalk(t *testing.T) {
	early, one, two := archive(t, 512, "microcode"), archive(t, 0, "a", "b"), archive(t, 256, "usr/c")
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  []string
	}{
		{"nothing", nil, nil},
		{"two frames", [][]byte{packed(t, one), packed(t, two)}, []string{"a", "b", "usr/c"}},
		{"one frame of two archives", [][]byte{packed(t, append(bytes.Clone(two), one...))}, []string{"usr/c", "a", "b"}},
		{"microcode first", [][]byte{early, packed(t, one)}, []string{"microcode", "a", "b"}},
		{"microcode alone", [][]byte{early}, []string{"microcode"}},
	} {
		file := filepath.Join(t.TempDir(), "initramfs")
		if err := os.WriteFile(file, bytes.Join(c.parts, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		var got []string
		err := Walk(file, func(h *cpio.Header, r io.Reader) error {
			text, err := io.ReadAll(r)
			if string(text) != h.Name {
				t.Errorf("%s: %s has the content %q", c.name, h.Name, text)
			}
			got = append(got, h.Name)
			return err
		})
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
		if len(c.want) == 0 {
			continue
		}
		last := c.want[len(c.want)-1]
		if text, err := File(file, "/"+last); string(text) != last || err != nil {
			t.Errorf("%s: File: %q, %v", c.name, text, err)
		}
		if _, err := File(file, "/nosuch"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file that is not there: %v", c.name, err)
		}
	}
}

func TestDamaged(t *testing.T) {
	whole := packed(t, archive(t, 0, "a"))
	for name, data := range map[string][]byte{
		"cut":      whole[:len(whole)-5],
		"no zstd":  []byte("something else"),
		"no cpio":  packed(t, []byte("something else that is long enough for a header, which has one hundred and ten bytes of its own, in hexadecimal digits")),
		"cut cpio": archive(t, 0, "a")[:60],
	} {
		file := filepath.Join(t.TempDir(), "initramfs")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Walk(file, func(*cpio.Header, io.Reader) error { return nil }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
