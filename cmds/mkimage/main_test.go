package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCoverage asks as a person does; what the answers are is the coverage
// package's to test.
func TestCoverage(t *testing.T) {
	image := t.TempDir()
	drivers := `{"version": "0.1", "flavour": "full", "kernel": "6.1", "firmware": [], "drivers": [{"file": "drivers/net/ethernet/intel/e1000e/e1000e", "aliases": ["pci:v00008086d000015B7sv*sd*bc*sc*i*"]}]}`
	if err := os.WriteFile(filepath.Join(image, "drivers.json"), []byte(drivers), 0o644); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "pc.txt")
	if err := os.WriteFile(list, []byte("00:1f.6 Ethernet controller [0200]: Intel Corporation I219-LM [8086:15b7] (rev 31)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string // in the output
		wantErr     string
		bad         bool
	}{
		{"a file", "", []string{"--ids", list, image}, "covered        8086:15b7  e1000e", "", false},
		{"standard input", "8086:15b7\n8086:125c\n", []string{"--ids", "-", image}, "NOT COVERED: 1.", "something is not covered", true},
		{"json", "8086:125c\n", []string{"--json", "--ids", "-", image}, `"state": "no driver"`, "something is not covered", true},
		{"of what", "", []string{image}, "", "--ids FILE or --host", false},
		{"of both", "", []string{"--host", "--ids", list, image}, "", "--ids FILE or --host", false},
		{"no list", "", []string{"--ids", "/nonesuch", image}, "", "/nonesuch", false},
		{"nothing in the list", "\n", []string{"--ids", "-", image}, "", "lspci -nn", false},
		{"no image", "", []string{"--ids", list, t.TempDir()}, "", "make image", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			err := run(t.Context(), append([]string{"coverage"}, c.args...), strings.NewReader(c.stdin), &out, &errs)
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("it says\n%s\nwant %q in it", out.String(), c.want)
			}
			if (err != nil) != (c.wantErr != "") || err != nil && !strings.Contains(err.Error(), c.wantErr) || errors.Is(err, errNotCovered) != c.bad {
				t.Errorf("error %v; want one with %q", err, c.wantErr)
			}
		})
	}
}

// TestCoverageHere asks about the machine that runs the test, as --host does.
func TestCoverageHere(t *testing.T) {
	image := t.TempDir()
	if err := os.WriteFile(filepath.Join(image, "drivers.json"), []byte(`{"drivers": [{"file": "a", "aliases": ["pci:v*"]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	devices, err := filepath.Glob("/sys/bus/[pu]*/devices/*/modalias")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	err = run(t.Context(), []string{"coverage", "--host", image}, strings.NewReader(""), &out, &errs)
	if len(devices) == 0 {
		if err == nil || !strings.Contains(err.Error(), "--ids") {
			t.Errorf("on a machine without buses: %v", err)
		}
		return
	}
	if err != nil && !errors.Is(err, errNotCovered) {
		t.Error(err)
	}
	if n := strings.Count(out.String(), "\n  "); n == 0 {
		t.Errorf("this machine has devices, and it says\n%s", out.String())
	}
}
