package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Step is one thing that the chroot helper does inside the new root. Exactly
// one of the fields after AllowFailure is set: it is the step's kind.
//
// In a profile, every string of a step is itself a template, and Template
// fields name template files. Resolving renders them: a manifest's step has
// Content where the profile's had Template.
type Step struct {
	// Name is for people and logs, and unique in its profile.
	Name string `yaml:"name" json:"name"`
	// Timeout ends the step; 0 means 10 minutes.
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty"`
	// AllowFailure lets the reimage go on when this step fails. The failure is
	// still reported, by the step's name.
	AllowFailure bool `yaml:"allow_failure" json:"allow_failure,omitempty"`

	Run        *Run        `yaml:"run" json:"run,omitempty"`
	Write      *Write      `yaml:"write" json:"write,omitempty"`
	Edit       *Edit       `yaml:"edit" json:"edit,omitempty"`
	Remove     *Remove     `yaml:"remove" json:"remove,omitempty"`
	Symlink    *Symlink    `yaml:"symlink" json:"symlink,omitempty"`
	SSHKeys    *SSHKeys    `yaml:"ssh_keys" json:"ssh_keys,omitempty"`
	KnownHosts *KnownHosts `yaml:"known_hosts" json:"known_hosts,omitempty"`
	BootLoader *BootLoader `yaml:"boot_loader" json:"boot_loader,omitempty"`
	Limits     *Limits     `yaml:"limits" json:"limits,omitempty"`
	Service    *Service    `yaml:"service" json:"service,omitempty"`
}

// Run runs a command of the new system, as root, with / as its folder.
type Run struct {
	// Command is the program and its arguments; no shell is involved.
	Command []string `yaml:"command" json:"command"`
	// Env adds NAME=value pairs to a small, fixed environment.
	Env []string `yaml:"env" json:"env,omitempty"`
	// At most one of these is the command's standard input; none is /dev/null.
	StdinFile     string `yaml:"stdin_file" json:"stdin_file,omitempty"`         // absolute path in the new system
	StdinTemplate string `yaml:"stdin_template" json:"stdin_template,omitempty"` // only in profiles
	Stdin         string `yaml:"stdin" json:"stdin,omitempty"`
}

// Write makes a file, and the folders above it.
type Write struct {
	Path     string `yaml:"path" json:"path"`
	Template string `yaml:"template" json:"template,omitempty"` // only in profiles
	Content  string `yaml:"content" json:"content"`
	Mode     Mode   `yaml:"mode" json:"mode"` // 0 means 0644
	UID      int    `yaml:"uid" json:"uid"`
	GID      int    `yaml:"gid" json:"gid"`
}

// Edit changes lines of a file that is there, keeping its owner and mode.
type Edit struct {
	Path string `yaml:"path" json:"path"`
	// Replace is applied in order to the whole text.
	Replace []Replacement `yaml:"replace" json:"replace,omitempty"`
	// Append adds this text at the end unless the file already holds it.
	Append string `yaml:"append" json:"append,omitempty"`
}

// Replacement is one regular expression (RE2 syntax, ^ and $ match at lines)
// and what takes the place of its matches ($1 is the first group).
type Replacement struct {
	Match string `yaml:"match" json:"match"`
	With  string `yaml:"with" json:"with"`
	// Optional lets the expression match nothing; otherwise that is an error.
	Optional bool `yaml:"optional" json:"optional,omitempty"`
}

// Remove removes whatever matches the shell patterns, folders with all they hold.
type Remove struct {
	Paths []string `yaml:"paths" json:"paths"`
}

// Symlink makes a symbolic link, in place of a file or link that is there.
type Symlink struct {
	Path   string `yaml:"path" json:"path"`
	Target string `yaml:"target" json:"target"`
}

// SSHKeys makes the PC's own keys, on the PC.
type SSHKeys struct {
	// Host lists the types of host keys; empty means rsa, ecdsa and ed25519.
	Host []string `yaml:"host" json:"host,omitempty"`
	// User is the type of root's own key pair, "rsa", "ecdsa" or "ed25519";
	// empty makes none.
	User string `yaml:"user" json:"user,omitempty"`
	// UserPath is the private half's path; empty means /root/.ssh/id_TYPE. The
	// public half has ".pub" after it.
	UserPath string `yaml:"user_path" json:"user_path,omitempty"`
	// PublicCopies are further paths that get root's public key (id.pub).
	PublicCopies []string `yaml:"public_copies" json:"public_copies,omitempty"`
}

// KnownHosts rewrites a known_hosts file.
type KnownHosts struct {
	// Path of the file; empty means /root/.ssh/known_hosts.
	Path string `yaml:"path" json:"path,omitempty"`
	// Keep leaves the lines that are there; otherwise they go.
	Keep bool `yaml:"keep" json:"keep,omitempty"`
	// OwnKeys adds this PC's host keys under Names.
	OwnKeys bool `yaml:"own_keys" json:"own_keys,omitempty"`
	// Names are the names and addresses of this PC; resolving fills in the
	// host's name, its address and localhost when the list is empty.
	Names []string `yaml:"names" json:"names,omitempty"`
}

// BootLoader makes the new system bootable. It runs after every other step,
// wherever the profile has it; what the helper does is put the files in place,
// and the reimager itself commits them.
type BootLoader struct {
	// Kind is grub, the only one.
	Kind string `yaml:"kind" json:"kind"`
	// CommandLine is the kernel's, after root=.
	CommandLine string `yaml:"command_line" json:"command_line,omitempty"`
	// Menu is how long GRUB shows its menu; 0 boots at once.
	Menu Duration `yaml:"menu" json:"menu,omitempty"`
	// Serial is the number of a serial port that GRUB uses besides the screen; nil is none.
	Serial *int `yaml:"serial" json:"serial,omitempty"`
}

// Limits sets hard limits on what users' processes take, for pam_limits.
type Limits struct {
	// Path of the file; empty means /etc/security/limits.d/90-reassure.conf.
	Path string `yaml:"path" json:"path,omitempty"`
	// Rules are lines of limits.conf(5).
	Rules []LimitRule `yaml:"rules" json:"rules"`
}

// LimitRule is one line of limits.conf(5).
type LimitRule struct {
	Domain string `yaml:"domain" json:"domain"` // user, @group, * or root
	Type   string `yaml:"type" json:"type"`     // hard, soft or -
	Item   string `yaml:"item" json:"item"`     // nproc, nofile, ...
	Value  string `yaml:"value" json:"value"`
}

// Service has a service started, or not, when the new system boots. It works
// for systemd and for OpenRC.
type Service struct {
	Name string `yaml:"name" json:"name"`
	// Runlevel is OpenRC's; empty means default.
	Runlevel string `yaml:"runlevel" json:"runlevel,omitempty"`
	// Disable turns the service off instead.
	Disable bool `yaml:"disable" json:"disable,omitempty"`
}

// Kind returns the step's kind as its key in YAML, or "" unless there is exactly one.
func (s *Step) Kind() string {
	kind, n := "", 0
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"run", s.Run != nil}, {"write", s.Write != nil}, {"edit", s.Edit != nil}, {"remove", s.Remove != nil},
		{"symlink", s.Symlink != nil}, {"ssh_keys", s.SSHKeys != nil}, {"known_hosts", s.KnownHosts != nil},
		{"boot_loader", s.BootLoader != nil}, {"limits", s.Limits != nil}, {"service", s.Service != nil},
	} {
		if k.set {
			kind = k.name
			n++
		}
	}
	if n != 1 {
		return ""
	}
	return kind
}

var (
	keyTypes       = []string{"rsa", "ecdsa", "ed25519"}
	servicePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9@._:-]*$`) // so neither . nor ..
)

// validateSteps judges steps. Where their strings are still templates, a step
// that has one is only judged by what no rendering changes.
func validateSteps(steps []Step, templates bool) Problems {
	var ps Problems
	names, loaders := map[string]int{}, 0
	for i := range steps {
		at := fmt.Sprintf("steps[%d]", i)
		if steps[i].Name == "" {
			ps.addf(at+".name", "is missing: logs and reports need it")
		} else {
			unique(&ps, at+".name", names, steps[i].Name, i)
		}
		if steps[i].BootLoader != nil {
			loaders++
			if steps[i].AllowFailure {
				ps.addf(at+".allow_failure", "a boot loader that failed leaves no bootable system: leave this out")
			}
		}
		if !templates || !steps[i].hasTemplate() || steps[i].Kind() == "" {
			ps.under(at, steps[i].validate())
		}
	}
	if loaders > 1 {
		ps.addf("steps", "there are %d boot_loader steps; one is the most", loaders)
	}
	return ps
}

// hasTemplate says whether rendering would change a string of the step.
func (s *Step) hasTemplate() bool {
	text, err := json.Marshal(s)
	return err == nil && bytes.Contains(text, []byte("{{"))
}

func (s *Step) validate() Problems {
	var ps Problems
	switch s.Kind() {
	case "":
		ps.addf("", "needs exactly one kind: run, write, edit, remove, symlink, ssh_keys, known_hosts, boot_loader, limits or service")
	case "run":
		if len(s.Run.Command) == 0 || s.Run.Command[0] == "" {
			ps.addf("run.command", "is missing")
		}
		sources := 0
		for _, set := range []bool{s.Run.StdinFile != "", s.Run.StdinTemplate != "", s.Run.Stdin != ""} {
			if set {
				sources++
			}
		}
		if sources > 1 {
			ps.addf("run", "has more than one of stdin, stdin_file and stdin_template")
		}
		ps.under("run.stdin_file", absolute(s.Run.StdinFile, true))
		for i, e := range s.Run.Env {
			if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
				ps.addf(fmt.Sprintf("run.env[%d]", i), "%q: write NAME=value", e)
			}
		}
	case "write":
		ps.under("write.path", absolute(s.Write.Path, false))
		if s.Write.Template != "" && s.Write.Content != "" {
			ps.addf("write", "has both content and template")
		}
	case "edit":
		ps.under("edit.path", absolute(s.Edit.Path, false))
		for i, r := range s.Edit.Replace {
			if _, err := regexp.Compile("(?m)" + r.Match); err != nil || r.Match == "" {
				ps.addf(fmt.Sprintf("edit.replace[%d].match", i), "%q is not a regular expression (RE2): %v", r.Match, err)
			}
		}
		if len(s.Edit.Replace) == 0 && s.Edit.Append == "" {
			ps.addf("edit", "changes nothing: give replace or append")
		}
	case "remove":
		if len(s.Remove.Paths) == 0 {
			ps.addf("remove.paths", "is empty")
		}
		for i, p := range s.Remove.Paths {
			at := fmt.Sprintf("remove.paths[%d]", i)
			ps.under(at, absolute(p, false))
			if path.Clean(p) == "/" {
				ps.addf(at, "would remove the whole system")
			}
			if _, err := path.Match(p, ""); err != nil {
				ps.addf(at, "%q is not a shell pattern", p)
			}
		}
	case "symlink":
		ps.under("symlink.path", absolute(s.Symlink.Path, false))
		if s.Symlink.Target == "" {
			ps.addf("symlink.target", "is missing")
		}
	case "ssh_keys":
		for i, t := range s.SSHKeys.Host {
			oneOf(&ps, fmt.Sprintf("ssh_keys.host[%d]", i), t, keyTypes...)
		}
		oneOf(&ps, "ssh_keys.user", s.SSHKeys.User, append([]string{""}, keyTypes...)...)
		ps.under("ssh_keys.user_path", absolute(s.SSHKeys.UserPath, true))
		for i, p := range s.SSHKeys.PublicCopies {
			ps.under(fmt.Sprintf("ssh_keys.public_copies[%d]", i), absolute(p, false))
		}
		if s.SSHKeys.User == "" && (s.SSHKeys.UserPath != "" || len(s.SSHKeys.PublicCopies) > 0) {
			ps.addf("ssh_keys.user", "is missing: user_path and public_copies are about root's own key")
		}
	case "known_hosts":
		ps.under("known_hosts.path", absolute(s.KnownHosts.Path, true))
	case "boot_loader":
		oneOf(&ps, "boot_loader.kind", s.BootLoader.Kind, "grub")
		// It stands in grub.cfg, and in /etc/default/grub, which is shell.
		if i := strings.IndexAny(s.BootLoader.CommandLine, "\"'`$\\;&|<>#\r\n"); i >= 0 {
			ps.addf("boot_loader.command_line", "cannot hold %q, which GRUB or a shell would take for something else", s.BootLoader.CommandLine[i])
		}
		if n := s.BootLoader.Serial; n != nil && (*n < 0 || *n > 3) {
			ps.addf("boot_loader.serial", "%d: write 0 to 3", *n)
		}
	case "limits":
		ps.under("limits.path", absolute(s.Limits.Path, true))
		if len(s.Limits.Rules) == 0 {
			ps.addf("limits.rules", "is empty")
		}
		for i, r := range s.Limits.Rules {
			at := fmt.Sprintf("limits.rules[%d]", i)
			oneOf(&ps, at+".type", r.Type, "hard", "soft", "-")
			for _, f := range []struct{ key, value string }{{"domain", r.Domain}, {"item", r.Item}, {"value", r.Value}} {
				if f.value == "" || strings.ContainsAny(f.value, " \t\r\n#") {
					ps.addf(at+"."+f.key, "%q: write one word", f.value)
				}
			}
		}
	case "service":
		if !servicePattern.MatchString(s.Service.Name) {
			ps.addf("service.name", "%q is not the name of a service", s.Service.Name)
		}
		if s.Service.Runlevel != "" && !servicePattern.MatchString(s.Service.Runlevel) {
			ps.addf("service.runlevel", "%q is not the name of a runlevel", s.Service.Runlevel)
		}
	}
	return ps
}
