package wad

import (
	"archive/tar"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"strings"

	"reassure/image/tree"
)

// Keys of pax records that are more than archive/tar itself understands.
const (
	paxXattr           = "SCHILY.xattr."
	paxACLAccess       = "SCHILY.acl.access"
	paxACLDefault      = "SCHILY.acl.default"
	paxLibarchiveXattr = "LIBARCHIVE.xattr."
	paxSELinux         = "RHT.security.selinux"
	paxSparse          = "GNU.sparse."

	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
	xattrSELinux    = "security.selinux"
)

// lateACL is an ACL with names in it, which can be looked up only when the tree is whole.
type lateACL struct {
	entry, path, attr string
	acl               acl
}

// maxFile is what ext4 can hold in one file, in bytes (16 TiB with blocks of
// 4 KiB). A few bytes of a sparse file's map could ask for any size.
const maxFile = 1 << 44

// entry turns a tar header into an entry of the tree, without its kind.
func entry(h *tar.Header) (*tree.Entry, []lateACL, error) {
	path, err := tree.Clean(h.Name)
	if err != nil {
		return nil, nil, err
	}
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return nil, nil, fmt.Errorf("no owner on Linux has the numbers %d:%d", h.Uid, h.Gid)
	}
	if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
		return nil, nil, fmt.Errorf("no device on Linux has the numbers %d, %d", h.Devmajor, h.Devminor)
	}
	if h.Size > maxFile {
		return nil, nil, fmt.Errorf("no file of %d bytes fits on a disk: at most %d TiB are accepted", h.Size, maxFile>>40)
	}
	e := &tree.Entry{
		Path: path, Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
		ModTime: h.ModTime, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
	}
	late, err := attributes(e, h)
	return e, late, err
}

// attributes fills in e.Xattrs; what is returned must be done at the end.
func attributes(e *tree.Entry, h *tar.Header) ([]lateACL, error) {
	if len(h.PAXRecords) == 0 {
		return nil, nil
	}
	set := func(name string, value []byte) {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[name] = value
	}
	for key, value := range h.PAXRecords {
		// The same attribute in several forms: bsdtar's own is the weakest.
		if encoded, ok := strings.CutPrefix(key, paxLibarchiveXattr); ok {
			name, err := url.PathUnescape(encoded)
			if err != nil {
				return nil, fmt.Errorf("attribute %q: %w", key, err)
			}
			if _, ok := h.PAXRecords[paxXattr+encoded]; ok {
				continue
			}
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return nil, fmt.Errorf("attribute %q: %w", key, err)
			}
			set(name, raw)
		}
	}
	if label, ok := h.PAXRecords[paxSELinux]; ok {
		set(xattrSELinux, []byte(label+"\x00"))
	}
	for key, value := range h.PAXRecords {
		if encoded, ok := strings.CutPrefix(key, paxXattr); ok {
			// What pax records cannot hold in a key, as GNU tar writes it.
			name := strings.NewReplacer("%3D", "=", "%25", "%").Replace(encoded)
			set(name, []byte(value))
		}
	}
	var late []lateACL
	for key, attr := range map[string]string{paxACLAccess: xattrACLAccess, paxACLDefault: xattrACLDefault} {
		text := h.PAXRecords[key]
		if _, exact := e.Xattrs[attr]; exact || text == "" {
			continue
		}
		list, err := parseACL(text)
		if err != nil {
			return nil, err
		}
		switch {
		case list.unresolved():
			late = append(late, lateACL{h.Name, e.Path, attr, list})
		case attr == xattrACLDefault, !list.minimal(), h.Typeflag == tar.TypeDir:
			// A minimal one matters only to a directory that was there before.
			set(attr, list.binary())
		}
	}
	return late, nil
}

// isSparse says whether the archive knows of holes in the file.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, paxSparse) {
			return true
		}
	}
	return false
}

// globals are the records of pax global headers, which hold for all that follows.
type globals map[string]string

// take notes a global header. Records that describe one entry cannot be meant
// for all.
func (g globals) take(h *tar.Header) error {
	for key, value := range h.PAXRecords {
		switch {
		case key == "path", key == "linkpath", key == "size", strings.HasPrefix(key, paxSparse):
			return fmt.Errorf("a global header sets %s for every entry: pack the wad again without", key)
		case value == "":
			delete(g, key)
		default:
			g[key] = value
		}
	}
	return nil
}

// apply gives a header what it has not got itself.
func (g globals) apply(h *tar.Header) error {
	if len(g) == 0 {
		return nil
	}
	records := maps.Clone(h.PAXRecords)
	if records == nil {
		records = map[string]string{}
	}
	for key, value := range g {
		if _, own := records[key]; own {
			continue
		}
		switch key {
		case "uid", "gid", "mtime":
			return errors.New("a global header sets owners or times: pack the wad again without")
		}
		records[key] = value
	}
	h.PAXRecords = records
	return nil
}
