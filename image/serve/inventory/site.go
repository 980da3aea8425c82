package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"reassure/image/conf"
	"reassure/image/resolve"
	"reassure/image/spec"
)

// ErrByHand is that a file is written in a way that only a person can add to.
var ErrByHand = errors.New("its hosts are written in a way that cannot be added to without changing more: add them by hand")

// YAML writes entries as they stand below "hosts:".
func YAML(entries []Entry) string { return strings.Join(blocks(entries, "  ", false), "") }

// blocks writes each entry with its line ends, as a block or in one line.
func blocks(entries []Entry, indent string, flow bool) []string {
	var all []string
	for _, e := range entries {
		macs := make([]string, len(e.MACs))
		for i, m := range e.MACs {
			macs[i] = `"` + m.String() + `"`
		}
		groups := make([]string, len(e.Groups))
		for i, g := range e.Groups {
			groups[i] = scalar(g)
		}
		fields := []string{
			"name: " + scalar(e.Name), "mac: [" + strings.Join(macs, ", ") + "]",
			"ip: " + address6(e.IP.String()), "profile: " + scalar(e.Profile),
		}
		if len(groups) > 0 {
			fields = append(fields, "groups: ["+strings.Join(groups, ", ")+"]")
		}
		if flow {
			all = append(all, indent+"- {"+strings.Join(fields, ", ")+"}\n")
		} else {
			all = append(all, indent+"- "+strings.Join(fields, "\n"+indent+"  ")+"\n")
		}
	}
	return all
}

var plain = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*$`)

// scalar writes a text, between quotes when a reader of YAML might take it for
// something else.
func scalar(s string) string {
	switch strings.ToLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n":
	default:
		if plain.MatchString(s) {
			return s
		}
	}
	quoted, err := json.Marshal(s) // JSON's texts are YAML's
	if err != nil {
		return `""`
	}
	return string(quoted)
}

// address6 quotes what has colons in it.
func address6(s string) string {
	if strings.Contains(s, ":") {
		return `"` + s + `"`
	}
	return s
}

// Add returns the text of an inventory file with entries after its last host.
// All else of it stays as it is, to the byte. What comes out has been read
// again, and is what was there and the entries, nothing else. The error is
// [ErrByHand] when there is no such text.
func Add(file string, text []byte, entries []Entry) ([]byte, error) {
	var was spec.Inventory
	if err := conf.Decode(file, text, &was); err != nil {
		return nil, err
	}
	if err := Check(&was, entries); err != nil {
		return nil, err
	}
	want := was
	want.Hosts = slices.Clone(was.Hosts)
	for _, e := range entries {
		want.Hosts = append(want.Hosts, e.Host)
	}
	for _, candidate := range candidates(string(text), entries) {
		var got spec.Inventory
		if conf.Decode(file, []byte(candidate), &got) == nil && same(got, want) {
			return []byte(candidate), nil
		}
	}
	return nil, fmt.Errorf("%s: %w:\n%s", file, ErrByHand, YAML(entries))
}

// same compares what two inventories say.
func same(a, b spec.Inventory) bool {
	if len(a.Hosts) != len(b.Hosts) || !reflect.DeepEqual(a.Site, b.Site) {
		return false
	}
	for i := range a.Hosts {
		x, y := a.Hosts[i], b.Hosts[i]
		if len(x.Groups) == 0 && len(y.Groups) == 0 {
			x.Groups, y.Groups = nil, nil
		}
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

var (
	hostsKey = regexp.MustCompile(`^hosts[ \t]*:[ \t]*(#.*)?$`)
	noHosts  = regexp.MustCompile(`^(hosts[ \t]*:)[ \t]*(?:\[[ \t]*\]|\{[ \t]*\}|~|null)[ \t]*(#.*)?$`)
	item     = regexp.MustCompile(`^([ \t]*)- *(\{)?`)
)

// candidates are the texts that may be meant, the most pleasing first.
func candidates(text string, entries []Entry) []string {
	end := "\n"
	if i := strings.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		end = "\r\n"
	}
	whole := slices.Collect(strings.Lines(text)) // with their ends
	lines := make([]string, len(whole))
	for i, l := range whole {
		lines[i] = strings.TrimRight(l, "\r\n")
	}
	write := func(before []string, added []string, after []string) string {
		top := strings.Join(before, "")
		if top != "" && !strings.HasSuffix(top, "\n") {
			top += end
		}
		return top + strings.ReplaceAll(strings.Join(added, ""), "\n", end) + strings.Join(after, "")
	}
	start := slices.IndexFunc(lines, hostsKey.MatchString)
	if start < 0 {
		if i := slices.IndexFunc(lines, noHosts.MatchString); i >= 0 {
			m := noHosts.FindStringSubmatch(lines[i])
			opened := slices.Concat(whole[:i], []string{strings.TrimRight(m[1]+" "+m[2], " ") + end})
			return []string{write(opened, blocks(entries, "  ", false), whole[i+1:])}
		}
		return []string{write(whole, append([]string{"\nhosts:\n"}, blocks(entries, "  ", false)...), nil)}
	}

	// The block ends at the next line that begins at the left and is no item.
	indent, flow := "  ", false
	first, last, stop := -1, start, len(lines)
	for i := start + 1; i < len(lines); i++ {
		l := lines[i]
		if strings.TrimSpace(l) == "" || strings.HasPrefix(strings.TrimSpace(l), "#") {
			continue
		}
		if l[0] != ' ' && l[0] != '-' || strings.HasPrefix(l, "---") {
			stop = i
			break
		}
		last = i
		if m := item.FindStringSubmatch(l); m != nil && (first < 0 || len(m[1]) <= len(indent)) {
			first, indent, flow = i, m[1], m[2] != ""
		}
	}
	added := blocks(entries, indent, flow)
	// Comments under the last host, or in place of a first one, belong there.
	after := last + 1
	for after < stop && strings.HasPrefix(lines[after], " ") && strings.HasPrefix(strings.TrimSpace(lines[after]), "#") {
		after++
	}
	// A host's last variable may be a long text with empty lines in it.
	blockEnd := stop
	for blockEnd > after && strings.TrimSpace(lines[blockEnd-1]) == "" {
		blockEnd--
	}
	var all []string
	for _, at := range []int{after, last + 1, blockEnd, stop} {
		all = append(all, write(whole[:at], added, whole[at:]))
	}
	return all
}

// AddTo writes entries into the inventory of the site in the folder dir, whole
// or not at all, having read the site as it would be. A file that is a link
// stays one.
func AddTo(dir string, entries []Entry) error {
	if _, err := resolve.Load(dir); err != nil {
		return err
	}
	file := filepath.Join(dir, resolve.InventoryFile)
	before, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	after, err := Add(file, before, entries)
	if err != nil {
		return err
	}
	if err := try(dir, file, after); err != nil {
		return err
	}
	// An editor may have saved it meanwhile.
	if now, err := os.ReadFile(file); err != nil {
		return fmt.Errorf("site: %w", err)
	} else if !bytes.Equal(now, before) {
		return fmt.Errorf("%s was changed by somebody else at the same time, and nothing was written: try again", file)
	}
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	if err := renameio.WriteFile(target, after, 0o644, renameio.WithExistingPermissions()); err != nil {
		return fmt.Errorf("%s: %w: nothing was changed", file, err)
	}
	return nil
}

// try reads a copy of the site that has text as its inventory.
func try(dir, file string, text []byte) error {
	whole, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	copied, err := os.MkdirTemp("", "reassure-site-")
	if err != nil {
		return fmt.Errorf("a copy of the site: %w", err)
	}
	defer os.RemoveAll(copied) // nolint:errcheck // it is in the folder for such things
	if err := os.WriteFile(filepath.Join(copied, resolve.InventoryFile), text, 0o600); err != nil {
		return fmt.Errorf("a copy of the site: %w", err)
	}
	for _, folder := range []string{resolve.ProfilesFolder, resolve.TemplatesFolder, resolve.WadsFolder} {
		if err := os.Symlink(filepath.Join(whole, folder), filepath.Join(copied, folder)); err != nil {
			return fmt.Errorf("a copy of the site: %w", err)
		}
	}
	_, err = resolve.Load(copied)
	var wrong conf.Errors
	if !errors.As(err, &wrong) {
		return err
	}
	for i := range wrong {
		wrong[i].Text = strings.ReplaceAll(wrong[i].Text, copied, dir)
		if wrong[i].File = strings.Replace(wrong[i].File, copied, dir, 1); filepath.Base(wrong[i].File) == resolve.InventoryFile {
			wrong[i].File = file
		}
	}
	return fmt.Errorf("%s would have mistakes, so nothing was written:\n%w", file, wrong)
}
