package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"reassure/image/command"
	"reassure/image/spec"
)

// environment is what commands get, whatever the initramfs has.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LOGNAME=root",
	"SHELL=/bin/sh", "LANG=C", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive",
}

// exec runs a command, whose output is kept for the step's result. The path of
// the program is looked up in the environment above, not in the helper's.
func (r *runner) exec(ctx context.Context, stdin *os.File, text string, extra []string, args ...string) error {
	program, err := r.find(args[0])
	if err != nil {
		return err
	}
	c := command.Command{Args: append([]string{program}, args[1:]...), Dir: r.at("/"), Env: append(environment[:len(environment):len(environment)], extra...), Stdout: r.output, Stderr: r.output}
	switch {
	case stdin != nil:
		c.Stdin = stdin
	case text != "":
		c.Stdin = strings.NewReader(text)
	}
	return c.Run(ctx)
}

// find looks a program up in the new system's PATH.
func (t tree) find(program string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for folder := range strings.SplitSeq(strings.TrimPrefix(environment[0], "PATH="), ":") {
		if info, err := os.Stat(t.at(filepath.Join(folder, program))); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Join(folder, program), nil
		}
	}
	return "", fmt.Errorf("%s is not in the new system: its wad lacks the package that has it", program)
}

func (r *runner) run(ctx context.Context, s *spec.Run) error {
	if s.StdinFile == "" {
		return r.exec(ctx, nil, s.Stdin, s.Env, s.Command...)
	}
	f, err := os.Open(r.at(s.StdinFile))
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	defer f.Close()
	return r.exec(ctx, f, "", s.Env, s.Command...)
}

// service has a service started at boot, or not: by systemctl where systemd is
// the system's init, by links in runlevels where OpenRC is, else by update-rc.d.
func (r *runner) service(ctx context.Context, s *spec.Service) error {
	switch {
	case r.systemd() && !r.openrc():
		verb := "enable"
		if s.Disable {
			verb = "disable"
		}
		return r.exec(ctx, nil, "", nil, "systemctl", verb, s.Name)
	case r.openrc():
		runlevel := s.Runlevel
		if runlevel == "" {
			runlevel = "default"
		}
		if s.Disable {
			return r.remove(filepath.Join("/etc/runlevels", runlevel, s.Name))
		}
		script := filepath.Join("/etc/init.d", s.Name)
		if !r.has(script) {
			return fmt.Errorf("there is no %s in the new system", script)
		}
		return r.symlink(filepath.Join("/etc/runlevels", runlevel, s.Name), script)
	case r.has("/usr/sbin/update-rc.d"):
		if s.Disable {
			return r.exec(ctx, nil, "", nil, "update-rc.d", s.Name, "disable")
		}
		// defaults makes the links where there are none; enable turns round those
		// that were disabled.
		if err := r.exec(ctx, nil, "", nil, "update-rc.d", s.Name, "defaults"); err != nil {
			return err
		}
		return r.exec(ctx, nil, "", nil, "update-rc.d", s.Name, "enable")
	}
	return errors.New("the new system has neither systemd nor OpenRC nor update-rc.d")
}
