package wad

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Exclusion is something that does not go from a PC into a wad.
type Exclusion struct {
	// Pattern is an absolute path in which * and ? stand for anything but a
	// slash, and [abc] for one of these; all below what it matches stays, too. One
	// that ends in /* leaves the folder itself in the wad.
	Pattern string
	Why     string
}

// Exclusions are what a wad captured from a PC leaves out unless a person says
// otherwise: what the kernel shows there, what goes with a reboot, what is that
// one PC's own, and what every PC fetches or writes anew.
func Exclusions() []Exclusion {
	const (
		kernel    = "the kernel shows it"
		passing   = "it does not outlive a boot"
		identity  = "two PCs with the same would be taken for one"
		secret    = "whoever has it can pose as that PC"
		seed      = "two PCs with the same random seed have the same keys"
		cards     = "it names that PC's network cards"
		lease     = "it is that PC's address"
		swap      = "swap space: large, and worth nothing"
		typed     = "what a person typed on that PC"
		log       = "that PC's log"
		cache     = "what can be fetched again"
		ours      = "it says what was installed on that PC"
		partition = "its file system makes it"
	)
	return []Exclusion{
		{"/proc/*", kernel}, {"/sys/*", kernel}, {"/dev/*", kernel},
		{"/run/*", passing}, {"/tmp/*", passing}, {"/var/tmp/*", passing}, {"/var/run/*", passing}, {"/var/lock/*", passing},
		{"/lost+found", partition}, {"/*/lost+found", partition},
		{"/swapfile", swap}, {"/swap.img", swap}, {"/swap/*", swap}, {"/var/swap", swap}, {"/.swapfile", swap},
		{"/etc/machine-id", identity + ": an empty one takes its place"}, {"/var/lib/dbus/machine-id", identity},
		{"/etc/hostid", identity}, {"/etc/iscsi/initiatorname.iscsi", identity}, {"/etc/nvme/hostid", identity}, {"/etc/nvme/hostnqn", identity},
		{"/etc/ssh/ssh_host_*key", secret}, {"/etc/ssh/ssh_host_*key.pub", secret}, {"/etc/dropbear/*_host_key", secret},
		{"/var/lib/systemd/credential.secret", secret}, {"/var/lib/NetworkManager/secret_key", secret},
		{"/var/lib/systemd/random-seed", seed}, {"/var/lib/urandom/random-seed", seed}, {"/var/lib/misc/random-seed", seed},
		{"/var/lib/random-seed", seed}, {"/var/lib/seedrng/*", seed}, {"/loader/random-seed", seed}, {"/boot/loader/random-seed", seed},
		{"/boot/efi/loader/random-seed", seed}, {"/efi/loader/random-seed", seed},
		{"/etc/udev/rules.d/*persistent-net*.rules", cards}, {"/etc/udev/rules.d/*persistent-cd*.rules", "it names that PC's drives"},
		{"/var/lib/dhcp/*.lease*", lease}, {"/var/lib/dhclient/*.lease*", lease}, {"/var/lib/dhcpcd/*.lease*", lease}, {"/var/db/dhcpcd/*.lease*", lease},
		{"/var/lib/dhcpcd/duid", lease}, {"/var/lib/NetworkManager/*.lease", lease}, {"/var/lib/NetworkManager/timestamps", lease},
		{"/var/log/*.log", log}, {"/var/log/*.log.*", log}, {"/var/log/*.gz", log}, {"/var/log/*.[0-9]", log}, {"/var/log/*.old", log},
		{"/var/log/syslog", log}, {"/var/log/messages", log}, {"/var/log/debug", log}, {"/var/log/dmesg", log}, {"/var/log/dmesg.*", log},
		{"/var/log/wtmp*", log}, {"/var/log/btmp*", log}, {"/var/log/lastlog", log}, {"/var/log/faillog", log},
		{"/var/log/journal/*", log}, {"/var/log/*/*.log", log}, {"/var/log/*/*.log.*", log}, {"/var/log/*/*.gz", log},
		{"/var/lib/systemd/coredump/*", log}, {"/var/crash/*", log},
		{"/var/cache/apt/archives/*.deb", cache}, {"/var/cache/apt/archives/partial/*", cache}, {"/var/cache/apt/*.bin", cache}, {"/var/lib/apt/lists/*", cache},
		{"/var/cache/dnf/*", cache}, {"/var/cache/yum/*", cache}, {"/var/cache/pacman/pkg/*", cache}, {"/var/cache/zypp/*", cache},
		{"/var/cache/distfiles/*", cache}, {"/var/cache/binpkgs/*", cache}, {"/usr/portage/distfiles/*", cache},
		{"/root/.bash_history", typed}, {"/root/.lesshst", typed}, {"/root/.viminfo", typed},
		{"/etc/reassure/stamp.json", ours}, {"/etc/reassure/finished", ours},
	}
}

// Excluded says whether one of the patterns leaves out an absolute path. It does
// not look at what is above that: whoever walks a tree goes into nothing that is
// left out.
func Excluded(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

// CheckPattern judges the pattern of an [Exclusion].
func CheckPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil {
		return errPattern(pattern, "a [ has no ]")
	}
	switch {
	case !strings.HasPrefix(pattern, "/"):
		return errPattern(pattern, "write an absolute path of the captured system")
	case pattern == "/" || pattern == "/*" || path.Clean(pattern) != pattern:
		return errPattern(pattern, "write it without a slash at its end, \".\" or \"..\", and not the whole system")
	case strings.ContainsAny(pattern, "\n\x00"):
		return errPattern(pattern, "it holds a line end")
	}
	return nil
}

func errPattern(pattern, why string) error { return fmt.Errorf("exclusion %q: %s", pattern, why) }

// EmptyMachineID is an entry of an archive, to come before all others: where / is
// read-only when systemd starts, as with Debian's initrd, it boots without a
// machine-id only if there is an empty file to mount one over (machine-id(5)).
func EmptyMachineID(now time.Time) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	h := &tar.Header{Name: "./etc/machine-id", Typeflag: tar.TypeReg, Mode: 0o444, ModTime: now.Truncate(time.Second), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(h); err != nil {
		panic(err) // the name fits, and memory takes everything
	}
	return out.Bytes()
}

// Compress returns a writer whose zstd-compressed data goes to w, as fast as all
// cores can: for a network, not for keeping. Close ends it.
func Compress(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
}
