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
	Flavours    map[string]map[string][]string `yaml:"flavours"`
	LeftOut     []LeftOut                      `yaml:"left_out"`
	Preload     []string                       `yaml:"preload"`
	Firmware    Firmware                       `yaml:"firmware"`
	Tools       []string                       `yaml:"tools"`
	Bundles     []string                       `yaml:"bundles"`
	CommandLine string                         `yaml:"command_line"`
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
	for i, b := range c.Bundles {
		if _, ok := bundles[b]; !ok {
			problem(fmt.Sprintf("bundles[%d]", i), "there is no bundle %q: write one of %s", b, strings.Join(slices.Sorted(maps.Keys(bundles)), ", "))
		}
	}
	for i, f := range c.Firmware.Files {
		if _, err := path.Match(f, ""); err != nil || path.IsAbs(f) || strings.Contains(f, "..") {
			problem(fmt.Sprintf("firmware.files[%d]", i), "%q is not a shell pattern below the firmware folder", f)
		}
	}
	if strings.ContainsAny(c.CommandLine, "\r\n") {
		problem("command_line", "cannot hold a line end")
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
