package build

import (
	_ "embed"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"reassure/image/conf"
	"reassure/image/spec"
)

// DefaultConfig is the configuration of the image that is built when nothing
// else is asked for.
//
//go:embed image.yaml
var DefaultConfig []byte

// Config says what an image holds. A person writes it, in YAML.
type Config struct {
	// Flavours are named selections of modules: groups of patterns.
	Flavours  map[string]map[string][]string `yaml:"flavours"`
	LeftOut   []LeftOut                      `yaml:"left_out"`
	Preload   []string                       `yaml:"preload"`
	Firmware  Firmware                       `yaml:"firmware"`
	Microcode Microcode                      `yaml:"microcode"`
	Tools     []string                       `yaml:"tools"`
	Bundles   []string                       `yaml:"bundles"`
	// FlavourBundles are further bundles, by flavour.
	FlavourBundles map[string][]string `yaml:"flavour_bundles"`
	CommandLine    string              `yaml:"command_line"`
	Unified        Unified             `yaml:"unified"`
	// CA is a PEM file with the certificates of the site's own authorities: PCs fetch
	// their manifests by HTTPS from servers that it vouches for, and from no others.
	CA string `yaml:"ca"`
	// DebugShell lets reassure.shell on the kernel command line open a shell before
	// there is a manifest; without it a profile has to say debug_shell.
	DebugShell bool `yaml:"debug_shell"`
	// Files maps absolute paths in the image to files on the build host.
	Files map[string]string `yaml:"files"`
}

// LeftOut says why modules are in no image.
type LeftOut struct {
	Pattern string `yaml:"pattern" json:"pattern"`
	Why     string `yaml:"why" json:"why"`
}

// Firmware names files that drivers load.
type Firmware struct {
	Folder string   `yaml:"folder"`
	Files  []string `yaml:"files"` // shell patterns below Folder
}

// Microcode says where that of processors is, and which flavours get it.
type Microcode struct {
	Folder   string   `yaml:"folder"`
	Files    []string `yaml:"files"` // shell patterns below intel-ucode/ and amd-ucode/ in Folder
	Flavours []string `yaml:"flavours"`
}

// Unified is how the image is made one file for UEFI.
type Unified struct {
	Stub        string `yaml:"stub"`         // the program that starts the kernel; empty means no such file
	CommandLine string `yaml:"command_line"` // further kernel parameters
}

// ParseConfig reads a configuration; name is for messages.
func ParseConfig(name string, text []byte) (*Config, error) {
	c := new(Config)
	if err := conf.Decode(name, text, c); err != nil {
		return nil, err
	}
	return c, nil
}

var toolPattern = regexp.MustCompile(`^[a-z0-9_-]+$`)

// Validate returns every problem of the configuration.
func (c *Config) Validate() spec.Problems {
	var ps spec.Problems
	problem := func(at, format string, args ...any) {
		ps = append(ps, spec.Problem{Path: at, Text: fmt.Sprintf(format, args...)})
	}
	if len(c.Flavours) == 0 {
		problem("flavours", "there is none: name at least one, with groups of module patterns")
	}
	for flavour, groups := range c.Flavours {
		for group, patterns := range groups {
			for i, p := range patterns {
				if p == "" || path.IsAbs(p) || strings.HasSuffix(p, ".ko") {
					problem(fmt.Sprintf("flavours.%s.%s[%d]", flavour, group, i), "%q: write a path below kernel/, without .ko", p)
				}
			}
		}
	}
	for i, l := range c.LeftOut {
		if l.Pattern == "" || l.Why == "" {
			problem(fmt.Sprintf("left_out[%d]", i), "needs a pattern and why")
		}
	}
	if !slices.Contains(c.Tools, "init") {
		problem("tools", "must have init: it starts everything else")
	}
	for i, t := range c.Tools {
		if !toolPattern.MatchString(t) {
			problem(fmt.Sprintf("tools[%d]", i), "%q is not the name of a u-root command", t)
		}
	}
	known := func(at string, names []string) {
		for i, b := range names {
			if _, ok := bundles[b]; !ok {
				problem(fmt.Sprintf("%s[%d]", at, i), "there is no bundle %q: write one of %s", b, strings.Join(slices.Sorted(maps.Keys(bundles)), ", "))
			}
		}
	}
	known("bundles", c.Bundles)
	for _, f := range slices.Sorted(maps.Keys(c.FlavourBundles)) {
		if c.Flavours[f] == nil {
			problem("flavour_bundles."+f, "there is no flavour %q: write one of %s", f, strings.Join(slices.Sorted(maps.Keys(c.Flavours)), ", "))
		}
		known("flavour_bundles."+f, c.FlavourBundles[f])
	}
	for i, f := range c.Firmware.Files {
		if _, err := path.Match(f, ""); err != nil || path.IsAbs(f) || strings.Contains(f, "..") {
			problem(fmt.Sprintf("firmware.files[%d]", i), "%q is not a shell pattern below the firmware folder", f)
		}
	}
	for i, f := range c.Microcode.Files {
		ours := slices.ContainsFunc(microcodeVendors[:], func(v microcodeVendor) bool { return strings.HasPrefix(f, v.folder) })
		if _, err := path.Match(f, ""); err != nil || !ours || strings.Contains(f, "..") {
			problem(fmt.Sprintf("microcode.files[%d]", i), "%q is not a shell pattern below intel-ucode/ or amd-ucode/", f)
		}
	}
	for i, f := range c.Microcode.Flavours {
		if c.Flavours[f] == nil {
			problem(fmt.Sprintf("microcode.flavours[%d]", i), "there is no flavour %q: write one of %s", f, strings.Join(slices.Sorted(maps.Keys(c.Flavours)), ", "))
		}
	}
	for at, line := range map[string]string{"command_line": c.CommandLine, "unified.command_line": c.Unified.CommandLine} {
		if strings.ContainsAny(line, "\r\n") {
			problem(at, "cannot hold a line end")
		}
	}
	if n := len(c.unifiedCommandLine()); n > maxCommandLine {
		problem("unified.command_line", "the kernel's command line has %d bytes, and Linux takes %d", n, maxCommandLine)
	}
	for inside, outside := range c.Files {
		if !path.IsAbs(inside) || path.Clean(inside) != inside || outside == "" {
			problem("files", "%q: %q: write an absolute path in the image, and a file on this machine", inside, outside)
		}
	}
	return ps
}

// globs compiles patterns in which ** is anything and * anything but a slash.
func globs(patterns []string) (*regexp.Regexp, error) {
	var alternatives []string
	for _, p := range patterns {
		q := regexp.QuoteMeta(p)
		q = strings.ReplaceAll(q, `\*\*`, ".\x00")
		q = strings.ReplaceAll(q, `\*`, "[^/]*")
		alternatives = append(alternatives, strings.ReplaceAll(q, ".\x00", ".*"))
	}
	return regexp.Compile("^(" + strings.Join(alternatives, "|") + ")$")
}
