package wad

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// acl is a POSIX ACL.
type acl []ace

// ace is one entry of an ACL, as acl(5) has it.
type ace struct {
	tag  uint16
	perm uint16
	id   uint32
	// name stands for id where the archive has only that.
	name string
}

// Tags and version as in linux/posix_acl.h and linux/posix_acl_xattr.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclXattrVersion = 2
	aclUndefinedID  = 0xffffffff
)

// parseACL reads the text of an ACL: entries tag:qualifier:permissions, apart
// by commas or line ends; star and bsdtar add the number as a fourth field.
func parseACL(text string) (acl, error) {
	var list acl
	for entry := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		entry, _, _ = strings.Cut(entry, "#")
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		fields := strings.Split(entry, ":")
		if len(fields) == 2 && (fields[0] == "other" || fields[0] == "mask") {
			fields = []string{fields[0], "", fields[1]} // Solaris' and old star's form
		}
		if len(fields) < 3 || len(fields) > 4 {
			return nil, fmt.Errorf("%q is not an ACL entry", entry)
		}
		e := ace{id: aclUndefinedID}
		named := fields[1] != "" || len(fields) == 4
		switch fields[0] {
		case "user", "u":
			e.tag = aclUserObj
			if named {
				e.tag = aclUser
			}
		case "group", "g":
			e.tag = aclGroupObj
			if named {
				e.tag = aclGroup
			}
		case "mask", "m":
			e.tag, named = aclMask, false
		case "other", "o":
			e.tag, named = aclOther, false
		default:
			return nil, fmt.Errorf("%q is not an ACL entry", entry)
		}
		for _, r := range fields[2] {
			switch r {
			case 'r':
				e.perm |= 4
			case 'w':
				e.perm |= 2
			case 'x':
				e.perm |= 1
			case '-':
			default:
				return nil, fmt.Errorf("%q is not an ACL entry", entry)
			}
		}
		if named {
			number, err := strconv.ParseUint(fields[len(fields)-1], 10, 32)
			if len(fields) == 3 {
				number, err = strconv.ParseUint(fields[1], 10, 32)
			}
			if err != nil {
				e.name = fields[1]
			}
			e.id = uint32(number)
		}
		list = append(list, e)
	}
	return list, nil
}

// minimal says that the ACL holds no more than the mode does.
func (a acl) minimal() bool {
	return !slices.ContainsFunc(a, func(e ace) bool { return e.tag&(aclUser|aclGroup|aclMask) != 0 })
}

// unresolved says that a name must be looked up first.
func (a acl) unresolved() bool {
	return slices.ContainsFunc(a, func(e ace) bool { return e.name != "" })
}

// binary is the ACL as the kernel's attribute holds it: sorted by tag and number.
func (a acl) binary() []byte {
	slices.SortFunc(a, func(x, y ace) int { return cmp.Or(cmp.Compare(x.tag, y.tag), cmp.Compare(x.id, y.id)) })
	out := binary.LittleEndian.AppendUint32(nil, aclXattrVersion)
	for _, e := range a {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out
}

// parseBinaryACL reads what the kernel's attribute holds.
func parseBinaryACL(value []byte) (acl, error) {
	if len(value) < 4 || (len(value)-4)%8 != 0 || binary.LittleEndian.Uint32(value) != aclXattrVersion {
		return nil, errors.New("it is not an ACL as Linux keeps it")
	}
	var list acl
	for e := range slices.Chunk(value[4:], 8) {
		one := ace{tag: binary.LittleEndian.Uint16(e), perm: binary.LittleEndian.Uint16(e[2:]), id: binary.LittleEndian.Uint32(e[4:])}
		switch one.tag {
		case aclUser, aclGroup:
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			one.id = aclUndefinedID
		default:
			return nil, fmt.Errorf("it has an entry of kind %#x, which Linux does not know", one.tag)
		}
		list = append(list, one)
	}
	return list, nil
}

// String is the ACL as pax records have it, with numbers for names.
func (a acl) String() string {
	var entries []string
	for _, e := range a {
		kind := map[uint16]string{aclUserObj: "user", aclUser: "user", aclGroupObj: "group", aclGroup: "group", aclMask: "mask", aclOther: "other"}[e.tag]
		id := ""
		if e.tag == aclUser || e.tag == aclGroup {
			id = strconv.FormatUint(uint64(e.id), 10)
		}
		perm := []byte("---")
		for i, letter := range []byte("rwx") {
			if e.perm&(4>>i) != 0 {
				perm[i] = letter
			}
		}
		entries = append(entries, kind+":"+id+":"+string(perm))
	}
	return strings.Join(entries, ",")
}

// mode is the permission bits that a file with this ACL shows.
func (a acl) mode() uint32 {
	var mode uint32
	var mask *uint16
	for _, e := range a {
		switch e.tag {
		case aclUserObj:
			mode |= uint32(e.perm&7) << 6
		case aclGroupObj:
			mode |= uint32(e.perm&7) << 3
		case aclOther:
			mode |= uint32(e.perm & 7)
		case aclMask:
			mask = &e.perm
		}
	}
	if mask != nil {
		mode = mode&^0o070 | uint32(*mask&7)<<3
	}
	return mode
}

// resolve puts numbers in place of names, by the tree's own passwd and group.
func (a acl) resolve(users, groups map[string]uint32) error {
	for i, e := range a {
		if e.name == "" {
			continue
		}
		table, kind := users, "user"
		if e.tag == aclGroup {
			table, kind = groups, "group"
		}
		id, ok := table[e.name]
		if !ok {
			return fmt.Errorf("the ACL names the %s %q, whom the tree's own etc/passwd and etc/group do not know", kind, e.name)
		}
		a[i].id, a[i].name = id, ""
	}
	return nil
}

// accounts reads the names and numbers of a passwd or group file; one that is
// not there has none.
func accounts(root *os.Root, path string) (map[string]uint32, error) {
	table := map[string]uint32{}
	file, err := root.Open(path)
	if os.IsNotExist(err) {
		return table, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up the names in ACLs: %w", err)
	}
	defer file.Close()
	if table, err = parseAccounts(file); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return table, nil
}

// parseAccounts reads names and numbers from the lines of a passwd or group file.
func parseAccounts(r io.Reader) (map[string]uint32, error) {
	table := map[string]uint32{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if fields := strings.SplitN(lines.Text(), ":", 4); len(fields) == 4 {
			if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
				table[fields[0]] = uint32(id)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("look up the names in ACLs: %w", err)
	}
	return table, nil
}
