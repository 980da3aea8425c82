package steps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"reassure/image/spec"
)

// KeyTypes are the types of host keys that a system gets when its profile names
// none: those that ssh-keygen -A makes.
var KeyTypes = []string{"rsa", "ecdsa", "ed25519"}

// sshKeys puts this PC's own keys in place.
func (r *runner) sshKeys(s *spec.SSHKeys) error {
	types := s.Host
	if len(types) == 0 {
		types = KeyTypes
	}
	for _, t := range types {
		pair, ok := r.job.HostKeys[t]
		if !ok {
			return fmt.Errorf("no host key of type %s was made", t)
		}
		if err := r.keyPair(HostKey(t), pair); err != nil {
			return err
		}
	}
	if s.User == "" {
		return nil
	}
	pair, ok := r.job.UserKeys[s.User]
	if !ok {
		return fmt.Errorf("no user key of type %s was made", s.User)
	}
	file := UserKey(s)
	if err := r.sshFolder(filepath.Dir(file)); err != nil {
		return err
	}
	if err := r.keyPair(file, pair); err != nil {
		return err
	}
	for _, p := range s.PublicCopies {
		if err := r.write(p, r.publicLine(pair), 0o644, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// HostKey is the file of a private host key.
func HostKey(kind string) string { return fmt.Sprintf("/etc/ssh/ssh_host_%s_key", kind) }

// UserKey is the file of root's private key.
func UserKey(s *spec.SSHKeys) string {
	if s.UserPath != "" {
		return s.UserPath
	}
	return "/root/.ssh/id_" + s.User
}

func (r *runner) keyPair(file string, pair KeyPair) error {
	if err := r.write(file, pair.Private, 0o600, 0, 0); err != nil {
		return err
	}
	return r.write(file+".pub", r.publicLine(pair), 0o644, 0, 0)
}

func (r *runner) publicLine(pair KeyPair) string { return pair.Public + " root@" + r.job.Host + "\n" }

// knownHosts rewrites a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
func (r *runner) knownHosts(s *spec.KnownHosts) error {
	file := s.Path
	if file == "" {
		file = "/root/.ssh/known_hosts"
	}
	text := ""
	if s.Keep {
		var err error
		if text, err = r.read(file); err != nil {
			return err
		}
		text = wholeLines(text)
	}
	if s.OwnKeys {
		if len(s.Names) == 0 {
			return fmt.Errorf("names is empty: there is nothing to know this PC's keys by")
		}
		lines := 0
		for _, t := range KeyTypes {
			public, err := r.read(fmt.Sprintf("/etc/ssh/ssh_host_%s_key.pub", t))
			if err != nil {
				return err
			}
			fields := strings.Fields(public)
			if len(fields) < 2 {
				continue
			}
			line := strings.Join(s.Names, ",") + " " + fields[0] + " " + fields[1] + "\n"
			if !slices.Contains(strings.SplitAfter(text, "\n"), line) {
				text += line
			}
			lines++
		}
		if lines == 0 {
			return fmt.Errorf("this PC has no host keys: put an ssh_keys step before this one")
		}
	}
	// The file is its user's, NX's say, who must be able to add to it.
	uid, gid, err := r.owner(file)
	if err != nil {
		return err
	}
	if folder := filepath.Dir(file); filepath.Base(folder) == ".ssh" && !r.has(folder) {
		if err := errors.Join(r.sshFolder(folder), os.Chown(r.at(folder), uid, gid)); err != nil {
			return err
		}
	}
	return r.write(file, text, 0o644, uid, gid)
}
