package qemutests

import (
	"os"
	"testing"

	"reassure/image/spec"
)

// TestLoad switches 40 PCs on at once: none gives up, and every byte is right.
func TestLoad(t *testing.T) {
	p := programs(t)
	dir, err := os.MkdirTemp(shared.dir, "load")
	if err != nil {
		t.Fatal(err)
	}
	done, err := Load{Clients: 40, Size: 2 * spec.MiB}.Run(t.Context(), p, dir, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the server had %v at most", done.Memory)
}
