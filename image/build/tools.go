package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/u-root/gobusybox/src/pkg/golang"
	ucpio "github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/uio/llog"

	"reassure/image/command"
)

// toolModules are the modules that the tools are made of and by.
var toolModules = []string{"github.com/u-root/u-root", "github.com/u-root/mkuimage", "github.com/u-root/gobusybox/src"}

// toolTags leave the shell's line editor out, which is larger than the shell.
var toolTags = []string{"goshsmall"}

// moduleVersions asks go for the versions that go.mod pins.
func moduleVersions(ctx context.Context, source string, log *slog.Logger, modules ...string) (map[string]string, error) {
	out, err := command.Command{Args: append([]string{"go", "list", "-m", "-f", "{{.Path}} {{.Version}}"}, modules...), Dir: source, Log: log}.Output(ctx)
	if err != nil {
		return nil, fmt.Errorf("the versions of Go modules: %w", err)
	}
	versions := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		versions[name] = version
	}
	return versions, nil
}

// baseArchive is what an initramfs needs before anything of it runs: folders,
// and the devices that the kernel opens first. There is no resolv.conf: names
// are looked up where DHCP says, or nowhere.
func baseArchive() (*ucpio.Archive, error) {
	records := []ucpio.Record{
		ucpio.CharDev("dev/console", 0o600, 5, 1), ucpio.CharDev("dev/null", 0o666, 1, 3),
		ucpio.CharDev("dev/tty", 0o666, 5, 0), ucpio.CharDev("dev/urandom", 0o666, 1, 9),
	}
	for _, d := range []string{"bin", "dev", "etc", "lib", "lib/firmware", "mnt", "mnt/gentoo", "proc", "root", "run", "sys", "tmp", "usr", "usr/lib", "var", "var/log", "var/lock"} {
		records = append(records, ucpio.Directory(d, 0o755))
	}
	return ucpio.ArchiveFromRecords(records)
}

// tools is the segment with u-root's commands as one Go busybox, made by
// mkuimage. It builds everything anew each time (24 s), so it is kept by the
// versions of all that goes into it.
func tools(source string, names []string, versions map[string]string) *segment {
	identity := fmt.Sprintf("tools 1 %s %q tags %q", runtime.Version(), names, toolTags)
	for _, m := range toolModules {
		identity += " " + m + "@" + versions[m]
	}
	return &segment{name: "tools", identity: identity, write: func(ctx context.Context, w io.Writer) error {
		work, err := os.MkdirTemp("", "reassure-tools")
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		base, err := baseArchive()
		if err != nil {
			return err
		}
		var packages []string
		for _, n := range names {
			packages = append(packages, "github.com/u-root/u-root/cmds/core/"+n)
		}
		archive := filepath.Join(work, "tools.cpio")
		scratch := filepath.Join(work, "scratch")
		if err := os.Mkdir(scratch, 0o755); err != nil {
			return err
		}
		var said bytes.Buffer
		env := golang.Default(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH("amd64"), golang.WithWorkingDir(source), golang.WithBuildTag(toolTags...))
		err = uimage.Create(&llog.Logger{Sink: llog.SinkFor(llog.WritePrintf(&said))},
			uimage.WithReplaceEnv(env), uimage.WithBaseArchive(base), uimage.WithBusyboxCommands(packages...),
			uimage.WithInit("init"), uimage.WithShell("gosh"),
			uimage.WithTempDir(scratch), uimage.WithCPIOOutput(archive), uimage.WithSkipLDD())
		if err != nil {
			return fmt.Errorf("build u-root's commands: %w\n%s", err, said.String())
		}
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		return normalise(w, f)
	}}
}
