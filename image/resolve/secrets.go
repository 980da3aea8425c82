package resolve

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"reassure/image/conf"
)

// Whatever is published can be fetched by anybody on the network. These are the
// things that may not be in it. Wads are not looked into: the keys that they
// carry never survive into a PC.
var (
	privateKey = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----` + // PEM, OpenSSH, OpenPGP
		`|\bRWRTY0Iy[A-Za-z0-9+/]{20}` + // minisign: base64 of its algorithms' names, EdScB2
		`|untrusted comment: \S+ (?:encrypted )?secret key` +
		`|PuTTY-User-Key-File-\d` +
		`|AGE-SECRET-KEY-1[0-9A-Z]{20}` +
		`|(?im)^\s*PrivateKey\s*=\s*[A-Za-z0-9+/]{42,43}=`) // WireGuard
	passwordHash = regexp.MustCompile(`\$(?:1|2[abxy]?|5|6|7|y|gy|argon2\w*|sha1)\$[./A-Za-z0-9$=,+-]{8,}|\{S?(?:SHA|MD5)[0-9]*\}[A-Za-z0-9+/=]{16,}`)
	secretName   = regexp.MustCompile(`(?i)(?:password|passwd|passphrase|secret|token|api[_-]?key)$`)
	// secretLine is a setting whose name ends like a secret's, with its value.
	secretLine = regexp.MustCompile(`(?im)^[ \t]*((?:[\w.-]*[_.-])?(?:password|passphrase|secret|token|api[_-]?key))[ \t]*[:=][ \t]*["']?([^\s"'#]+)`)
	// harmless values say something about a secret, or where it is.
	harmless = regexp.MustCompile(`(?i)^(?:[*!x]|yes|no|true|false|on|off|none|null|required|optional|sufficient|[/$<@%].*|file:.*)$`)
)

// secretVars refuses variables that are secrets by name and not hashes: they
// are there to be rendered into something that is served.
func (s *Site) secretVars() conf.Errors {
	var wrong conf.Errors
	judge := func(places *conf.Places, path string, vars map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(vars)) {
			value := vars[name]
			switch {
			case privateKey.MatchString(value):
				wrong = append(wrong, places.At(path+"."+name, "is a private key, and what is published can be fetched by anybody: let the PC make its own (ssh_keys)"))
			case secretName.MatchString(name) && value != "" && !passwordHash.MatchString(value) && !harmless.MatchString(value):
				wrong = append(wrong, places.At(path+"."+name, "is a secret in clear, and what is published can be fetched by anybody: write a hash, or leave it to the wad"))
			}
		}
	}
	if s.places != nil {
		judge(s.places, "site.vars", s.Inventory.Site.Vars)
		for i, h := range s.Inventory.Hosts {
			judge(s.places, fmt.Sprintf("hosts[%d].vars", i), h.Vars)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.profiles)) {
		judge(s.profiles[name].places, "vars", s.profiles[name].Vars)
	}
	return wrong
}

// secrets notes what the manifest may not hold.
func (r *resolving) secrets() {
	public := r.profile.Secrets == "public"
	if hash := r.m.System.RootPasswordHash; len(hash) > 1 && !public {
		r.at("system.root_password_hash", "anybody on the network could fetch this hash and try passwords on it: if that is acceptable, write secrets: public into the profile")
	}
	judge := func(file string, line func(offset int) int, path, text string) {
		if at := privateKey.FindStringIndex(text); at != nil {
			r.wrong = append(r.wrong, conf.Error{File: file, Line: line(at[0]), Path: path,
				Text: "there is a private key in it, and what is published can be fetched by anybody: let the PC make its own (ssh_keys)"})
		}
		if at := passwordHash.FindStringIndex(text); at != nil && !public {
			r.wrong = append(r.wrong, conf.Error{File: file, Line: line(at[0]), Path: path,
				Text: "there is a password hash in it, which anybody on the network could fetch: if that is acceptable, write secrets: public into the profile"})
		}
		for _, m := range secretLine.FindAllStringSubmatchIndex(text, -1) {
			value := text[m[4]:m[5]]
			if !harmless.MatchString(value) && !passwordHash.MatchString(value) {
				r.wrong = append(r.wrong, conf.Error{File: file, Line: line(m[2]), Path: path,
					Text: fmt.Sprintf("%s has a secret in clear, and what is published can be fetched by anybody: write a hash, or leave it to the wad", text[m[2]:m[3]])})
			}
		}
	}
	for _, f := range r.m.Files {
		// Lines of the rendered text are near enough to those of its template.
		judge(TemplatesFolder+"/"+f.Template, func(offset int) int { return strings.Count(f.Content[:offset], "\n") + 1 }, f.Path, f.Content)
	}
	for _, step := range r.m.Steps {
		place := r.stepPlace(step.Name, "")
		for _, text := range texts(step) {
			judge(place.File, func(int) int { return place.Line }, place.Path, text)
		}
	}
	for i, key := range r.m.System.AuthorizedKeys {
		if privateKey.MatchString(key) {
			r.at(fmt.Sprintf("system.authorized_keys[%d]", i), "is a private key: write the content of the .pub file")
		}
	}
}

// texts returns all strings of a value, at any depth.
func texts(v any) []string {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var plain any
	if json.Unmarshal(raw, &plain) != nil {
		return nil
	}
	var found []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			found = append(found, v)
		case []any:
			for _, item := range v {
				walk(item)
			}
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				walk(v[key])
			}
		}
	}
	walk(plain)
	return found
}
