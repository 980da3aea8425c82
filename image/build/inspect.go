package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"

	"reassure/image/initramfs"
	"reassure/image/spec"
)

// Summary says what a build made, and what to do next.
func Summary(w io.Writer, out string, i *Image, took time.Duration) {
	fmt.Fprintf(w, "\n%s image, kernel %s, %d modules, built in %.1f s\n", i.Flavour, i.Kernel.Release, len(i.Modules), took.Seconds())
	total, apart := int64(0), int64(0)
	for _, f := range i.Files {
		fmt.Fprintf(w, "  %-40s %10s\n", filepath.Join(out, f.Name), spec.Size(f.Size))
		if f.Name != UnifiedFile { // which holds the others
			total += f.Size
		}
	}
	for _, s := range i.Segments {
		fmt.Fprintf(w, "    %-38s %10s  (%s unpacked)\n", s.Name, spec.Size(s.Packed), spec.Size(s.Unpacked))
		if s.Name == "firmware" || s.Name == "microcode" {
			apart += s.Packed
		}
	}
	fmt.Fprintf(w, "  %-40s %10s\n", "together, without firmware", spec.Size(total-apart))
	if n := len(i.LeftOut); n > 0 {
		fmt.Fprintf(w, "%d network and storage drivers are not in it: %s says which and why.\n", n, filepath.Join(out, InfoFile))
	}
	if len(i.MissingFirmware) > 0 {
		fmt.Fprintf(w, "This machine has no firmware for %s: cards that need it may not work.\n", strings.Join(i.MissingFirmware, ", "))
	}
	if len(i.Microcode) > 0 && i.Segments[0].Packed > 4*int64(spec.MiB) {
		fmt.Fprintf(w, "Microcode makes it larger by %s: name only what your PCs need in the configuration (microcode).\n", spec.Size(i.Segments[0].Packed))
	}
	fmt.Fprintf(w, "\nNext: serve %s by TFTP, describe the lab (reassure init lab), and publish it (reassure publish).\n", filepath.Join(out, TFTPRoot))
}

// ReadImage reads what a build said of its results.
func ReadImage(out string) (*Image, error) {
	text, err := os.ReadFile(filepath.Join(out, InfoFile))
	if err != nil {
		return nil, fmt.Errorf("%s is no folder of an image (make image makes one): %w", out, err)
	}
	i := new(Image)
	if err := json.Unmarshal(text, i); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(out, InfoFile), err)
	}
	return i, nil
}

// Inspect writes what an image is, and whether its files are those that were built.
func Inspect(w io.Writer, out string) error {
	i, err := ReadImage(out)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "ReAssure %s, flavour %s\n", i.Version, i.Flavour)
	if i.Insecure {
		fmt.Fprintln(w, "INSECURE: trusts unsigned manifests")
	}
	fmt.Fprintf(w, "kernel    %s", i.Kernel.Release)
	if i.Kernel.Package != "" {
		fmt.Fprintf(w, " (%s %s, sha256 %.12s)", i.Kernel.Package, i.Kernel.Version, i.Kernel.SHA256)
	}
	fmt.Fprintf(w, "\nkeys      %s\ntools     %s\n", strings.Join(i.Keys, " "), strings.Join(i.Tools, " "))
	fmt.Fprintf(w, "modules   %d:", len(i.Modules))
	for _, g := range slices.Sorted(maps.Keys(i.Groups)) {
		fmt.Fprintf(w, " %s %d,", g, len(i.Groups[g]))
	}
	fmt.Fprintf(w, " and what they need\n")
	for _, s := range i.Segments {
		fmt.Fprintf(w, "segment   %-10s %10s  (%s unpacked)\n", s.Name, spec.Size(s.Packed), spec.Size(s.Unpacked))
	}
	if u := i.Unified; u != nil {
		by := u.SignedBy
		if by == "" {
			by = "nobody"
		}
		fmt.Fprintf(w, "%s is signed by %s, and starts the kernel with: %s\n", UnifiedFile, by, u.CommandLine)
	}
	var changed []error
	for _, f := range i.Files {
		data, err := os.ReadFile(filepath.Join(out, f.Name))
		verdict := "as built"
		if err != nil {
			verdict = "MISSING"
			changed = append(changed, err)
		} else if spec.Sum(data) != f.SHA256 {
			verdict = "CHANGED since"
			changed = append(changed, fmt.Errorf("%s is not what was built: build the image again", filepath.Join(out, f.Name)))
		}
		fmt.Fprintf(w, "file      %-20s %10s  %s  %s\n", f.Name, spec.Size(f.Size), f.SHA256.Short(), verdict)
	}
	return errors.Join(changed...)
}

// List writes a line for each file of an image's initramfs.
func List(w io.Writer, out string) error {
	return initramfs.Walk(filepath.Join(out, InitramfsFile), func(h *cpio.Header, _ io.Reader) error {
		line := fmt.Sprintf("%v %9d /%s", h.FileInfo().Mode(), h.Size, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		_, err := fmt.Fprintln(w, line)
		return err
	})
}

// Cat writes a file of an image's initramfs.
func Cat(w io.Writer, out, name string) error {
	found := false
	err := initramfs.Walk(filepath.Join(out, InitramfsFile), func(h *cpio.Header, content io.Reader) error {
		if h.Name != strings.TrimPrefix(name, "/") || !h.Mode.IsRegular() {
			return nil
		}
		found = true
		_, err := io.Copy(w, content)
		return err
	})
	if err == nil && !found {
		return fmt.Errorf("there is no file /%s in the image (mkimage ls lists them)", strings.TrimPrefix(name, "/"))
	}
	return err
}

// Diff writes what differs between two images, file by file.
func Diff(w io.Writer, a, b string) error {
	var sides [2]map[string]string
	for i, out := range []string{a, b} {
		sides[i] = map[string]string{}
		kernel, err := os.ReadFile(filepath.Join(out, KernelFile))
		if err != nil {
			return err
		}
		sides[i]["the kernel"] = spec.Sum(kernel).Short()
		err = initramfs.Walk(filepath.Join(out, InitramfsFile), func(h *cpio.Header, content io.Reader) error {
			data, err := io.ReadAll(content)
			sides[i]["/"+h.Name] = fmt.Sprintf("%v %d bytes %s %s", h.FileInfo().Mode(), h.Size, spec.Sum(data).Short(), h.Linkname)
			return err
		})
		if err != nil {
			return err
		}
	}
	names := maps.Clone(sides[0])
	maps.Copy(names, sides[1])
	same := true
	for _, n := range slices.Sorted(maps.Keys(names)) {
		before, after := sides[0][n], sides[1][n]
		if before == after {
			continue
		}
		same = false
		switch {
		case before == "":
			fmt.Fprintf(w, "+ %s  %s\n", n, after)
		case after == "":
			fmt.Fprintf(w, "- %s  %s\n", n, before)
		default:
			fmt.Fprintf(w, "! %s  %s -> %s\n", n, before, after)
		}
	}
	if same {
		fmt.Fprintln(w, "the images hold the same")
	}
	return nil
}
