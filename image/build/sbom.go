package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/cavaliergopher/cpio"

	"reassure/image/command"
	"reassure/image/initramfs"
)

// BillFile is the image's bill of materials below Options.Out: CycloneDX 1.6, as JSON.
const BillFile = "sbom.cdx.json"

// bill lists what an image and its TFTP root really hold: every file with its
// SHA-256, read back from the results, and the packages and Go modules that they
// come from. It has no time and no serial number, so that the same image has the
// same bill.
func bill(out string, i *Image) ([]byte, error) {
	files := map[string]cdx.Component{}
	add := func(place, name string, content []byte) {
		c := cdx.Component{
			BOMRef: place + "/" + name, Type: cdx.ComponentTypeFile, Name: "/" + name,
			Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum256(content))}},
			Properties: &[]cdx.Property{{Name: "reassure:place", Value: place}},
		}
		if made, err := buildinfo.Read(bytes.NewReader(content)); err == nil {
			c.Type, c.Version = cdx.ComponentTypeApplication, made.GoVersion
			*c.Properties = append(*c.Properties, cdx.Property{Name: "reassure:go", Value: made.Path})
		}
		files[c.BOMRef] = c
	}
	err := initramfs.Walk(filepath.Join(out, InitramfsFile), func(h *cpio.Header, content io.Reader) error {
		if !h.Mode.IsRegular() {
			return nil
		}
		data, err := io.ReadAll(content)
		if err == nil {
			add("initramfs", strings.TrimPrefix(h.Name, "/"), data)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	root := filepath.Join(out, TFTPRoot)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		// The initramfs was taken apart above; what is in folders are texts for boot loaders,
		// which the site writes anew.
		if err != nil || !d.Type().IsRegular() || name == InitramfsFile || strings.Contains(name, "/") {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			add("tftproot", name, data)
		}
		return err
	})
	if err != nil {
		return nil, err
	}

	packages := []cdx.Component{{
		BOMRef: "go", Type: cdx.ComponentTypeLibrary, Name: "stdlib", Version: strings.TrimPrefix(i.Go, "go"),
		PackageURL: "pkg:golang/stdlib@" + strings.TrimPrefix(i.Go, "go"),
	}}
	for _, name := range slices.Sorted(maps.Keys(i.Packages)) {
		purl := "pkg:golang/" + name + "@" + url.PathEscape(i.Packages[name])
		packages = append(packages, cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: name, Version: i.Packages[name], PackageURL: purl})
	}
	kernel := cdx.Component{BOMRef: "kernel", Type: cdx.ComponentTypeOS, Name: "linux", Version: i.Kernel.Release}
	if k := i.Kernel; k.Package != "" {
		kernel.Version, kernel.PackageURL = k.Version, debianURL(k.Package, k.Version)
	}
	packages = append(packages, kernel)
	for _, name := range slices.Sorted(maps.Keys(i.Debian)) {
		purl := debianURL(name, i.Debian[name])
		packages = append(packages, cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: name, Version: i.Debian[name], PackageURL: purl})
	}
	for _, ref := range slices.Sorted(maps.Keys(files)) {
		packages = append(packages, files[ref])
	}
	b := cdx.NewBOM()
	b.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: "image", Type: cdx.ComponentTypeFirmware, Name: "reassure-" + i.Flavour, Version: i.Version,
	}}
	b.Components = &packages
	var text bytes.Buffer
	if err := cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(b, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("bill of materials: %w", err)
	}
	return text.Bytes(), nil
}

func sum256(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:]
}

// debianURL names a Debian package as package-url/purl-spec has it.
func debianURL(name, version string) string {
	return fmt.Sprintf("pkg:deb/debian/%s@%s?arch=amd64", name, url.QueryEscape(version))
}

// owners returns the Debian packages, with their versions, that files of this
// machine belong to. A file that no package owns is not told; without dpkg there
// are none.
func owners(ctx context.Context, o Options, files []string) (map[string]string, error) {
	found := map[string]string{}
	for _, file := range files {
		out, err := command.Command{Args: []string{"dpkg-query", "-S", file}, Log: o.Log}.Output(ctx)
		if err != nil {
			o.Log.Debug("no Debian package owns a file of the image", "file", file, "error", err)
			continue
		}
		name, _, _ := strings.Cut(string(out), ":")
		if _, known := found[name]; known || strings.ContainsAny(name, " ,\n") {
			continue // a diversion, or several owners
		}
		version, err := command.Command{Args: []string{"dpkg-query", "-W", "-f", "${Version}", name}, Log: o.Log}.Output(ctx)
		if err != nil {
			return nil, fmt.Errorf("bill of materials: %w", err)
		}
		found[name] = string(version)
	}
	return found, ctx.Err()
}

// foreign are the files of this machine that come into an image or its TFTP root
// as they are.
func foreign(o Options, bundled []entry) []string {
	var files []string
	for _, e := range bundled {
		files = append(files, "/"+e.name)
	}
	folders := o.Syslinux
	if len(folders) == 0 {
		folders = syslinuxFolders
	}
	for _, name := range loaders {
		for _, f := range folders {
			if file := filepath.Join(f, name); exists(file) {
				files = append(files, file)
				break
			}
		}
	}
	if stub := o.Config.Unified.Stub; stub != "" && exists(stub) {
		files = append(files, stub)
	}
	for _, l := range efiLoaders {
		if exists(l.file) {
			files = append(files, l.file)
		}
	}
	return files
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
