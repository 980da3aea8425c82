package qemutests

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// TestFirmware switches PCs on that have nothing but firmware: it tries the network,
// and its variables are the same PC's at the next power-on.
func TestFirmware(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{UEFI, SecureBoot} {
		t.Run(string(kind), func(t *testing.T) {
			f := &Firmware{Kind: kind}
			_, from := f.files()
			before, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 2 {
				running <- struct{}{}
				vm, err := Machine{Dir: t.TempDir(), TFTP: t.TempDir(), Firmware: f}.Start(t.Context())
				if err != nil {
					<-running
					t.Fatal(err)
				}
				v := &vmT{VM: vm, t: t}
				t.Cleanup(v.off)
				v.expect(`BdsDxe: failed to load Boot\d+ "UEFI PXEv4 \(MAC:525400123456\)"`, 2*time.Minute)
				v.off()
				after, err := os.ReadFile(f.Variables())
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Equal(before, after) {
					t.Fatalf("power-on %d wrote no variable", n+1)
				}
				before = after
				f.OwnOrder = true // by what the first power-on wrote
			}
		})
	}
}
