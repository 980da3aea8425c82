package wads

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"reassure/image/command"
	"reassure/image/wad"
)

// CaptureOptions are those of [Capture]; only From is needed.
type CaptureOptions struct {
	// From is the PC, as ssh takes it: user@host, a host, or a name of ssh's own
	// configuration.
	From string
	// Exclude are patterns of what is left out, as [wad.Exclusion] has them; nil
	// means those of [wad.Exclusions].
	Exclude []string
	// IncludeMounts are mount points whose file systems go into the wad besides
	// the root's.
	IncludeMounts []string
	// Sudo has the far side read its files through sudo, for a user who is not root.
	Sudo bool
	// SSH is the program and its first arguments; nil means "ssh".
	SSH []string
	// Stderr gets what ssh and the far side say, as they say it; nil drops it.
	Stderr io.Writer
	Log    *slog.Logger
	// Now is the time; nil means time.Now.
	Now func() time.Time
}

// Captured says what the far side is.
type Captured struct {
	// Mounts are the file systems on disks that were left out.
	Mounts []string
	// Kernel says that there is one in /boot.
	Kernel bool
}

// Capture streams the system of a running PC over SSH and packs it. The far side
// needs GNU tar, and nothing is written there.
func Capture(ctx context.Context, o CaptureOptions, pack Pack) (*Captured, error) {
	o.Log = quiet(o.Log)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.From == "" || strings.HasPrefix(o.From, "-") {
		return nil, fmt.Errorf("%q is no PC: write root@host, as for ssh", o.From)
	}
	script, err := o.script()
	if err != nil {
		return nil, err
	}
	args := append(slices.Clone(o.SSH), "ssh")[:max(1, len(o.SSH))]
	// A PC that is gone is noticed after a minute; -T: no terminal there, which
	// would change line ends.
	args = append(args, "-T", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "--", o.From)
	if o.Sudo {
		args = append(args, "sudo", "-n")
	}
	// The script comes by standard input, so that no login shell has to
	// understand our quotes.
	args = append(args, "sh")
	c := command.Command{Args: args, Stdin: strings.NewReader(script), Stderr: o.Stderr, Terminal: true, Grace: time.Second, Log: o.Log}
	var found Captured
	err = stream(ctx, c, func(r io.Reader) (io.Reader, error) {
		b := bufio.NewReaderSize(r, 64<<10)
		systemd, err := found.hello(b)
		if err != nil || !systemd {
			return b, err
		}
		return io.MultiReader(bytes.NewReader(wad.EmptyMachineID(o.Now())), b), nil
	}, pack)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", o.From, explain(err))
	}
	return &found, nil
}

// greeting begins what the far side sends, so that what a login script prints
// is not taken for an archive.
const greeting = "reassure-capture 1"

// script is what the far side's shell runs. It says hello, what it left out, and
// then nothing but the archive.
func (o *CaptureOptions) script() (string, error) {
	exclude := o.Exclude
	if exclude == nil {
		for _, e := range wad.Exclusions() {
			exclude = append(exclude, e.Pattern)
		}
	}
	var patterns strings.Builder
	for _, p := range exclude {
		if err := wad.CheckPattern(p); err != nil {
			return "", err
		}
		fmt.Fprintf(&patterns, "set -- \"$@\" %s\n", command.Quote([]string{"--exclude=." + p}))
	}
	mounts := []string{"/"}
	for _, m := range o.IncludeMounts {
		if err := wad.CheckPattern(m); err != nil || strings.ContainsAny(m, `*?[\`) {
			return "", fmt.Errorf("mount point %q: write an absolute path of the captured system", m)
		}
		mounts = append(mounts, m)
	}
	var included strings.Builder
	for _, m := range mounts {
		fmt.Fprintf(&included, "%s) continue ;;\n", command.Quote([]string{m}))
	}
	s := farSide
	for _, r := range [][2]string{{"@GREETING@", greeting}, {"@PATTERNS@", patterns.String()}, {"@INCLUDED@", included.String()}} {
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return s, nil
}

// farSide runs on the PC that is captured, in whatever sh that has. What is
// mounted is left out by name rather than by tar --one-file-system, which does
// not see that a bind mount is one and would store an included mount point twice.
// Sockets are left out without a word: whoever listens makes them.
// In /proc/self/mounts space, tab, line end and backslash are octal (proc(5)).
const farSide = `set -u
export LC_ALL=C
case $(tar --version 2>/dev/null) in
*"GNU tar"*) ;;
*) echo "the far side has no GNU tar: install it there" >&2; exit 90 ;;
esac
tar --help | grep -q -e --sort= || { echo "the far side's tar is older than 1.28: update it there" >&2; exit 90; }
if [ "$(id -u)" != 0 ]; then
	echo "the far side's user may not read all files: log in as root, or use --sudo" >&2; exit 90
fi
if [ -e /etc/machine-id ]; then id=yes; else id=no; fi
kernel=no
for k in /boot/vmlinuz* /boot/kernel-* /boot/bzImage*; do [ ! -e "$k" ] || kernel=yes; done
echo "@GREETING@ machine-id=$id kernel=$kernel"
set --
@PATTERNS@
while read -r device point kind rest; do
	point=$(printf '%b.' "$(printf '%s\n' "$point" | sed 's/\\\([0-7]\)/\\0\1/g')")
	point=${point%.}
	case $point in
	@INCLUDED@
	esac
	case $device in
	/dev/*) echo "without $kind $(printf '%s' "$point" | tr '\n' ' ')" ;;
	esac
	set -- "$@" "--exclude=.$(printf '%s\n' "$point" | sed 's/[][*?\\]/\\&/g')/*"
done </proc/self/mounts
echo "archive"
status=0
tar --create --file=- --directory=/ --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner --sort=name \
	--acls --xattrs --xattrs-include='*' --sparse --warning=no-file-ignored --anchored --wildcards --no-wildcards-match-slash "$@" . </dev/null || status=$?
if [ $status = 1 ]; then
	echo "some files changed while they were read: they are in the wad as they were then, or half so" >&2
	status=0
fi
exit $status
`

// hello reads what is before the archive.
func (c *Captured) hello(r *bufio.Reader) (systemd bool, err error) {
	first := ""
	for n := 0; ; n++ {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return false, fmt.Errorf("the far side ended before the archive: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return false, err
		}
		line = strings.TrimSuffix(line, "\n")
		if n > 1000 || len(line) > 64<<10 {
			return false, errors.New("the far side's login scripts print too much before the archive: make them silent where there is no terminal")
		}
		switch {
		case first == "" && strings.HasPrefix(line, greeting+" "):
			first = line + " "
			c.Kernel = strings.Contains(first, " kernel=yes ")
		case first != "" && line == "archive":
			return strings.Contains(first, " machine-id=yes "), nil
		case first != "" && strings.HasPrefix(line, "without "):
			kind, point, _ := strings.Cut(strings.TrimPrefix(line, "without "), " ")
			c.Mounts = append(c.Mounts, fmt.Sprintf("%s (%s)", strings.TrimSpace(point), kind))
		}
	}
}

// explain adds the remedy to what ssh's exit status says (ssh(1), EXIT STATUS).
func explain(err error) error {
	var failed *command.Error
	var exit interface{ ExitCode() int }
	if errors.As(err, &failed) && errors.As(failed.Err, &exit) && exit.ExitCode() == 255 {
		return fmt.Errorf("the connection failed or was cut: %w: see that ssh logs in there by itself, then try again", err)
	}
	return err
}
