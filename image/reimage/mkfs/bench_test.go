package mkfs

import (
	"os"
	"os/exec"
	"testing"
)

// counted counts what is written.
type counted struct {
	*os.File
	bytes int64
}

func (c *counted) WriteAt(p []byte, offset int64) (int, error) {
	n, err := c.File.WriteAt(p, offset)
	c.bytes += int64(n)
	return n, err
}

// BenchmarkExt4 makes 2 TiB on a sparse file, flushed to the disk below, in turn
// with mke2fs.
func BenchmarkExt4(b *testing.B) {
	const size = 2 << 40
	b.Run("ours", func(b *testing.B) {
		var written int64
		for b.Loop() {
			f := &counted{File: sparse(b, size)}
			if err := Ext4(f, size, Options{UUID: testUUID}); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			written += f.bytes
			remove(b, f.File)
		}
		b.ReportMetric(float64(written)/float64(b.N)/1e6, "MB-written/op")
	})
	b.Run("mke2fs", func(b *testing.B) {
		for b.Loop() {
			f := sparse(b, size)
			if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^resize_inode", f.Name()).CombinedOutput(); err != nil {
				b.Fatalf("mke2fs (package e2fsprogs): %v: %s", err, out)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			remove(b, f)
		}
	})
}
