package conf

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"reassure/image/spec"
)

// decoder lays a YAML tree into a Go value and gathers the mistakes.
type decoder struct {
	places  *Places
	errors  Errors
	failed  []string     // paths that have an error, or that a misspelt key stands for
	open    []*yaml.Node // anchored nodes that the present one is in
	follow  int          // how many aliases led to the present node
	aliased int          // nodes seen that way
	tooMany bool
}

func (d *decoder) errorf(line int, path, format string, args ...any) {
	d.errors = append(d.errors, Error{d.places.file, line, path, fmt.Sprintf(format, args...)})
	d.failed = append(d.failed, path)
}

// validate notes what a Validate method found, but not what only follows from a
// mistake that has been told: a size that could not be read is "missing", too.
func (d *decoder) validate(ps spec.Problems) {
	for _, p := range ps {
		told := slices.ContainsFunc(d.failed, func(at string) bool {
			return p.Path == at || at == "" || (strings.HasPrefix(p.Path, at+".") || strings.HasPrefix(p.Path, at+"["))
		})
		if !told {
			d.errors = append(d.errors, d.places.At(p.Path, p.Text))
		}
	}
	slices.SortStableFunc(d.errors, func(a, b Error) int { return a.Line - b.Line })
}

// value lays the node n into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if _, ok := d.places.lines[path]; !ok {
		d.places.lines[path] = n.Line
	}
	if n.Kind == yaml.AliasNode {
		if slices.Contains(d.open, n.Alias) {
			d.errorf(n.Line, path, "*%s stands for something that holds it itself", n.Value)
			return
		}
		n = n.Alias
		d.follow++
		defer func() { d.follow-- }()
	}
	if n.Anchor != "" {
		d.open = append(d.open, n)
		defer func() { d.open = d.open[:len(d.open)-1] }()
	}
	if d.follow > 0 {
		if d.aliased++; d.aliased > maxAliased {
			if !d.tooMany {
				d.errorf(n.Line, path, "the aliases of this file stand for more than %d values: write them out", maxAliased)
				d.tooMany = true
			}
			return
		}
	}
	if tag := n.ShortTag(); n.Tag != "" && !strings.HasPrefix(n.Tag, "!!") && !strings.HasPrefix(n.Tag, "tag:yaml.org,") || tag == "!!binary" {
		d.errorf(n.Line, path, "the tag %s is not understood: remove it", tag)
		return
	}

	if v.Kind() == reflect.Pointer {
		if isNull(n) {
			d.errorf(n.Line, path, "has no value: remove the line%s", orEmpty(v.Type().Elem()))
			return
		}
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if text, ok := d.scalar(n, path); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				d.errorf(n.Line, path, "%s", refusal(v, text, err))
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	default:
		if text, ok := d.scalar(n, path); ok {
			d.basic(n, text, v, path)
		}
	}
}

// orEmpty tells how to write a mapping whose fields all have their defaults.
func orEmpty(t reflect.Type) string {
	if t.Kind() == reflect.Struct {
		return ", or write {} for one with all defaults"
	}
	return ", or write the value"
}

// refusal words what an UnmarshalText says; that of net/netip has no remedy.
func refusal(v reflect.Value, text string, err error) string {
	switch v.Interface().(type) {
	case netip.Addr:
		return fmt.Sprintf("%q is not an IP address: write one, such as 172.30.0.11", text)
	case netip.Prefix:
		return fmt.Sprintf("%q is not a network: write its address and prefix length, such as 172.30.0.0/24", text)
	}
	return err.Error()
}

// scalar returns the text of a scalar as it is written.
func (d *decoder) scalar(n *yaml.Node, path string) (string, bool) {
	switch {
	case n.Kind == yaml.MappingNode:
		d.errorf(n.Line, path, "is a mapping (key: value) where one value belongs: put quotes around text that has a colon and a space, or braces")
	case n.Kind == yaml.SequenceNode:
		d.errorf(n.Line, path, "is a list where one value belongs")
	case isNull(n):
		d.errorf(n.Line, path, "has no value: write it, or remove the line")
	default:
		return n.Value, true
	}
	return "", false
}

func (d *decoder) basic(n *yaml.Node, text string, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true", "false":
			v.SetBool(text == "true")
		default:
			d.errorf(n.Line, path, "%q: write true or false", text)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			d.errorf(n.Line, path, "%q is not a whole number, or too large a one", text)
			return
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		i, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			d.errorf(n.Line, path, "%q is not a whole number from 0, or too large a one", text)
			return
		}
		v.SetUint(i)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil {
			d.errorf(n.Line, path, "%q is not a number", text)
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("conf: %s: cannot read into a %v", path, v.Type()))
	}
}

// pair is one key of a mapping with its value.
type pair struct {
	key   string
	line  int
	path  string
	value *yaml.Node
}

// pairs returns the keys of a mapping, in order, without those that are refused.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	switch {
	case isNull(n):
		return nil
	case n.Kind == yaml.SequenceNode:
		d.errorf(n.Line, path, "is a list where a mapping belongs: write key: value, without a dash")
		return nil
	case n.Kind != yaml.MappingNode:
		d.errorf(n.Line, path, "%q is one value where a mapping belongs: write key: value", n.Value)
		return nil
	}
	var ps []pair
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode:
			d.errorf(k.Line, path, "a key must be one word")
			continue
		case k.ShortTag() == "!!merge":
			d.errorf(k.Line, path, "merge keys (<<) are not understood: write the keys out")
			continue
		}
		at := k.Value
		if path != "" {
			at = path + "." + k.Value
		}
		if line, ok := seen[k.Value]; ok {
			d.errorf(k.Line, at, "the key is there already, on line %d: keep one", line)
			continue
		}
		seen[k.Value] = k.Line
		ps = append(ps, pair{key: k.Value, line: k.Line, path: at, value: n.Content[i+1]})
	}
	return ps
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v)
	for _, p := range d.pairs(n, path) {
		field, ok := fields[p.key]
		if !ok {
			d.unknown(p, path, fields)
			continue
		}
		d.places.lines[p.path] = p.line
		d.value(p.value, field, p.path)
	}
}

func (d *decoder) unknown(p pair, path string, fields map[string]reflect.Value) {
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	near := nearest(p.key, names)
	if near == "" {
		d.errorf(p.line, p.path, "there is no such key here: the keys are %s", strings.Join(names, ", "))
		return
	}
	d.errorf(p.line, p.path, "there is no such key here: did you mean %s?", near)
	// That this one is missing is clear.
	if path != "" {
		near = path + "." + near
	}
	d.failed = append(d.failed, near)
}

// fieldsOf returns a struct's fields by their names in YAML.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-":
		case options == "inline":
			for inner, field := range fieldsOf(v.Field(i)) {
				fields[inner] = field
			}
		case name == "":
			fields[strings.ToLower(f.Name)] = v.Field(i)
		default:
			fields[name] = v.Field(i)
		}
	}
	return fields
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	pairs := d.pairs(n, path)
	if v.IsNil() && len(pairs) > 0 {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, p := range pairs {
		d.places.lines[p.path] = p.line
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(p.value, item, p.path)
		v.SetMapIndex(reflect.ValueOf(p.key).Convert(v.Type().Key()), item)
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case isNull(n):
		return
	case n.Kind == yaml.MappingNode:
		d.errorf(n.Line, path, "is a mapping where a list belongs: begin each item with a dash")
		return
	case n.Kind != yaml.SequenceNode:
		d.errorf(n.Line, path, "is one value where a list belongs: write [%s]", n.Value)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.value(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(list)
}

// nearest returns the name that key is most likely a misspelling of, or "".
func nearest(key string, names []string) string {
	best, least := "", len(key)/3+1
	for _, name := range names {
		n := distance(strings.ToLower(key), name)
		if len(key) > 2 && (strings.HasPrefix(name, key) || strings.HasPrefix(key, name)) {
			n = min(n, 1)
		}
		if n <= least && (best == "" || n < least) {
			best, least = name, n
		}
	}
	return best
}

// distance is how many letters must be added, taken away, changed or swapped
// with their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
