// Package tree writes and compares trees of files with everything that tar
// holds: numeric owners, modes with setuid, setgid and sticky bits, times to the
// nanosecond, hard links, symbolic links, devices, FIFOs, sparse files and
// extended attributes, in which ACLs, file capabilities and labels lie.
//
// A [Writer] makes a tree below one folder and never writes outside it,
// whatever the names it is given and whatever symbolic links it finds or makes:
// parents are resolved by openat2(2) as if the folder were the root of the
// system, which is what they will be when the system runs.
//
// [Check] compares a tree in which users had every right with what is expected
// of it, and [Repair] makes it that, to the same end as if it had been made anew.
//
// [Compare] says in what two trees differ, simply and by itself, so that it can
// judge the others.
package tree

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// Kind is what an entry of a tree is.
type Kind uint8

// Kinds of entries.
const (
	Regular Kind = iota + 1
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

func (k Kind) String() string {
	switch k {
	case Regular:
		return "file"
	case Directory:
		return "directory"
	case Symlink:
		return "symbolic link"
	case CharDevice:
		return "character device"
	case BlockDevice:
		return "block device"
	case FIFO:
		return "FIFO"
	case Socket:
		return "socket"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Entry is one member of a tree, without its content.
type Entry struct {
	// Path is relative to the tree, as [Clean] gives it.
	Path string
	Kind Kind
	// Mode is the permission bits with setuid, setgid and sticky, as chmod takes them.
	Mode     uint32
	UID, GID uint32
	// ModTime is the time of the last change; the zero value means that of writing.
	ModTime time.Time
	// Target is what a symbolic link points to, any bytes.
	Target string
	// Major and Minor are a device's numbers.
	Major, Minor uint32
	// Xattrs are extended attributes by their full name ("security.capability"),
	// in the kernel's binary form.
	Xattrs map[string][]byte
}

// Clean turns the name of an archive's entry into the path of an [Entry]:
// relative, without "." or doubled slashes, "." for the tree itself. A leading
// slash is dropped, as GNU tar does; a name with a ".." in it is refused.
func Clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("the name %q holds a zero byte", name)
	}
	for rest := name; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == ".." {
			return "", fmt.Errorf("the name %q leads out of the tree: pack it again without \"..\"", name)
		}
	}
	return path.Clean("./" + strings.TrimLeft(name, "/")), nil
}

// split parts a clean path other than "." into its folder and its last name.
func split(clean string) (folder, name string) {
	folder, name = path.Split(clean)
	if folder == "" {
		return ".", name
	}
	return strings.TrimSuffix(folder, "/"), name
}
