package steps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"reassure/image/spec"
)

// leftovers are what belongs to the machine that a wad was made on.
var leftovers = []string{
	"/var/lib/dbus/machine-id",
	// Random seeds: two PCs with the same one are two PCs with the same keys.
	"/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/lib/urandom/random-seed",
	"/var/lib/misc/random-seed", "/var/lib/random-seed", "/var/lib/seedrng/*", "/loader/random-seed", "/boot/loader/random-seed",
	// Names of its network cards, but not those that our own templates give.
	"/etc/udev/rules.d/*persistent-net*.rules", "/etc/udev/rules.d/*persistent-cd*.rules",
	// DHCP leases.
	"/var/lib/dhcp/*.lease*", "/var/lib/dhclient/*.lease*", "/var/lib/dhcpcd/*.lease*", "/var/db/dhcpcd/*.lease*",
	"/var/lib/dhcpcd/duid", "/var/lib/NetworkManager/*.lease", "/var/lib/NetworkManager/secret_key", "/run/systemd/netif/leases/*",
	// SSH host keys.
	"/etc/ssh/ssh_host_*key", "/etc/ssh/ssh_host_*key.pub", "/etc/dropbear/*_host_key",
}

// scrub takes away what must never survive from a wad into a PC.
func (t tree) scrub(own []string) error {
	if err := t.removeBut(own, leftovers...); err != nil {
		return err
	}
	if slices.Contains(own, machineID) {
		return nil
	}
	// systemd makes a new machine-id on first boot where the file is empty;
	// without one it cannot where / is read-only. Elsewhere dbus makes it.
	if info, err := os.Lstat(t.at(machineID)); err == nil && info.Mode().IsRegular() {
		return os.Truncate(t.at(machineID), 0)
	}
	return nil
}

const machineID = "/etc/machine-id"

// Own returns those files of an installed system that make a PC the one that it is,
// keys and machine-id, and are at or below one of keep. What wads hold of that kind
// is taken away; what a delta has kept is the PC's own. It is to be asked before the
// delta, and follows no link.
func Own(root *os.Root, keep []string, list []spec.Step) ([]string, error) {
	patterns := append(slices.Clone(leftovers), machineID)
	for _, s := range list {
		if s.SSHKeys != nil && s.SSHKeys.User != "" {
			patterns = append(patterns, UserKey(s.SSHKeys), UserKey(s.SSHKeys)+".pub")
		}
	}
	var own []string
	for _, pattern := range patterns {
		found, err := fs.Glob(root.FS(), strings.TrimPrefix(pattern, "/"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		for _, file := range found {
			kept := slices.ContainsFunc(keep, func(k string) bool { return "/"+file == k || strings.HasPrefix("/"+file, k+"/") })
			if kept && plain(root, file) {
				own = append(own, "/"+file)
			}
		}
	}
	slices.Sort(own)
	return slices.Compact(own), nil
}

// plain says whether a file is a regular one, in folders that are no links.
func plain(root *os.Root, file string) bool {
	for i := range len(file) {
		if file[i] != '/' {
			continue
		}
		if info, err := root.Lstat(file[:i]); err != nil || !info.IsDir() {
			return false
		}
	}
	info, err := root.Lstat(file)
	return err == nil && info.Mode().IsRegular()
}

// settings tells the new system what every system must be told.
func (r *runner) settings() error {
	s := r.job.System
	var failed []error
	do := func(what string, wanted bool, set func() error) {
		if !wanted {
			return
		}
		if err := set(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	do("root's password", s.RootPasswordHash != "", func() error { return r.password("root", s.RootPasswordHash, time.Now()) })
	do("root's authorized keys", len(s.AuthorizedKeys) > 0, func() error {
		if err := r.sshFolder("/root/.ssh"); err != nil {
			return err
		}
		return r.write("/root/.ssh/authorized_keys", strings.Join(s.AuthorizedKeys, "\n")+"\n", 0o600, 0, 0)
	})
	do("time zone", s.Timezone != "", func() error { return r.timezone(s.Timezone) })
	do("locale", s.Locale != "", func() error { return r.locale(s.Locale) })
	do("keymap", s.Keymap != "", func() error { return r.keymap(s.Keymap) })
	return errors.Join(failed...)
}

// password puts a hash into /etc/shadow (shadow(5)), as changed today; but a PC
// whose clock is behind must not make it look expired (day 0 is just that).
func (t tree) password(user, hash string, now time.Time) error {
	today := now.Unix() / 86400
	return t.rewrite("/etc/shadow", func(text string) (string, error) {
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			fields := strings.Split(line, ":")
			if fields[0] == user && len(fields) >= 3 {
				fields[1] = hash
				if changed, err := strconv.ParseInt(fields[2], 10, 64); err != nil || changed < today {
					fields[2] = strconv.FormatInt(max(today, 1), 10)
				}
				lines[i] = strings.Join(fields, ":")
				return strings.Join(lines, "\n"), nil
			}
		}
		return "", fmt.Errorf("it has no line for %s", user)
	})
}

func (t tree) systemd() bool {
	return t.has("/usr/lib/systemd/systemd", "/lib/systemd/systemd") && t.has("/etc/systemd/system")
}
func (t tree) openrc() bool { return t.has("/sbin/openrc", "/usr/sbin/openrc") }
func (t tree) debian() bool { return t.has("/etc/debian_version") }

// timezone follows tzdata: /etc/localtime is a link into its folder, and Debian
// and Gentoo keep the name in /etc/timezone as well.
func (t tree) timezone(zone string) error {
	file := filepath.Join("/usr/share/zoneinfo", zone)
	if info, err := os.Stat(t.at(file)); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a time zone of this system: its wad lacks tzdata, or there is no such zone", file)
	}
	if err := t.symlink("/etc/localtime", file); err != nil {
		return err
	}
	if t.has("/etc/timezone") || t.debian() || t.openrc() {
		return t.write("/etc/timezone", zone+"\n", 0o644, 0, 0)
	}
	return nil
}

func (t tree) locale(name string) error {
	line := "LANG=" + name + "\n"
	if t.debian() {
		return t.write("/etc/default/locale", line, 0o644, 0, 0)
	}
	if t.openrc() {
		// env-update makes profile.env of env.d when packages change; shells read
		// only the former.
		if t.has("/etc/profile.env") {
			if err := t.setVariable("/etc/profile.env", "export LANG", name); err != nil {
				return err
			}
		}
		return t.write("/etc/env.d/02locale", line, 0o644, 0, 0)
	}
	return t.write("/etc/locale.conf", line, 0o644, 0, 0)
}

func (t tree) keymap(name string) error {
	var err error
	if t.debian() {
		layout, variant, _ := strings.Cut(name, "-")
		err = t.write("/etc/default/keyboard", fmt.Sprintf("XKBMODEL=\"pc105\"\nXKBLAYOUT=%q\nXKBVARIANT=%q\nXKBOPTIONS=\"\"\nBACKSPACE=\"guess\"\n", layout, variantOf(variant)), 0o644, 0, 0)
	}
	if t.systemd() {
		err = errors.Join(err, t.write("/etc/vconsole.conf", "KEYMAP="+name+"\n", 0o644, 0, 0))
	}
	if t.openrc() {
		err = errors.Join(err, t.setVariable("/etc/conf.d/keymaps", "keymap", name))
	}
	return err
}

// variantOf leaves out the end of console keymap names ("de-latin1") that is no
// XKB variant.
func variantOf(s string) string {
	if strings.HasPrefix(s, "latin") {
		return ""
	}
	return s
}

// setVariable sets NAME="value" in a file of shell assignments: in place of the
// line that sets it now, commented out or not, else at the end. A file that is
// not there is made.
func (t tree) setVariable(p, name, value string) error {
	line := fmt.Sprintf("%s=%q", name, value)
	set := func(text string) (string, error) {
		re := regexp.MustCompile(`(?m)^[ \t]*#?[ \t]*` + regexp.QuoteMeta(name) + `=.*$`)
		done := false
		text = re.ReplaceAllStringFunc(text, func(string) string {
			if done {
				return "#" // a second setting would win
			}
			done = true
			return line
		})
		if !done {
			if text != "" && !strings.HasSuffix(text, "\n") {
				text += "\n"
			}
			text += line + "\n"
		}
		return text, nil
	}
	if !t.has(p) {
		text, _ := set("") // never fails
		return t.write(p, text, 0o644, 0, 0)
	}
	return t.rewrite(p, set)
}
