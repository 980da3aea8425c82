// Package grubcfg finds out what GRUB would boot, by running the script
// grub.cfg as far as that takes: variables, conditions, functions, menus and
// submenus, search, and the commands linux and initrd. It knows what our own
// boot loader step and Debian's update-grub write; whatever cannot matter
// (videos, modules, time-outs) does nothing and succeeds. Loops are refused.
package grubcfg

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// World is what a script can ask about the disk. Partitions are numbered from 1.
type World struct {
	// EFI says that the firmware is UEFI, as GRUB's grub_platform does.
	EFI bool
	// Self is the partition that grub.cfg was read from, GRUB's root at the start.
	Self int
	// Folder is the one that grub.cfg is in on that partition, GRUB's prefix;
	// empty means /boot/grub.
	Folder string
	// Find returns the partition with a file system of that UUID or label,
	// and 0 for none; kind is "fs-uuid" or "label".
	Find func(kind, value string) int
	// Exists says whether a file or folder exists. nil means nothing exists.
	Exists func(partition int, path string) bool
	// Environment is what load_env loads: saved_entry and the like.
	Environment map[string]string
}

// Entry is what is to be booted.
type Entry struct {
	Title       string
	Partition   int // that Kernel is on
	Kernel      string
	CommandLine string // with BOOT_IMAGE, as GRUB sets it
	Initrds     []File // in order; may be empty
}

// File is a file on a partition.
type File struct {
	Partition int
	Path      string
}

// ErrNoEntry says that the script has no menu entry that boots Linux.
var ErrNoEntry = errors.New("grub.cfg has no entry that boots Linux")

// Default returns the entry that GRUB would boot when nobody touches the keyboard.
func Default(script string, w World) (*Entry, error) {
	p := &parser{text: script}
	statements, _, err := p.list()
	if err != nil {
		return nil, fmt.Errorf("grub.cfg: %w", err)
	}
	platform := "pc"
	if w.EFI {
		platform = "efi"
	}
	if w.Folder == "" {
		w.Folder = "/boot/grub"
	}
	r := &run{world: w, functions: map[string][]statement{}, variables: map[string]string{
		"root": device(w.Self), "prefix": "(" + device(w.Self) + ")" + w.Folder, "grub_platform": platform, "grub_cpu": "x86_64", "default": "0",
	}}
	if err := r.do(statements); err != nil {
		return nil, fmt.Errorf("grub.cfg: %w", err)
	}
	if len(r.menu) == 0 {
		// A script may boot without a menu.
		return r.result("")
	}
	return r.choose(r.variables["default"])
}

// item is a menu entry or submenu that was met.
type item struct {
	title, id string
	submenu   bool
	arguments []string
	body      []statement
}

// run is a script under way.
type run struct {
	world     World
	variables map[string]string
	functions map[string][]statement
	menu      []item
	failed    bool // the last command's status
	steps     int
	depth     int

	kernel      File
	commandLine string
	initrds     []File
}

// Limits that only scripts which call themselves, or double their variables,
// reach: commands that are run, and bytes in one.
const (
	mostSteps = 20_000
	longest   = 64 << 10
)

func device(partition int) string { return "hd0," + strconv.Itoa(partition) }

func (r *run) do(list []statement) error {
	if r.depth++; r.depth > deepest {
		return errors.New("functions call each other without end")
	}
	defer func() { r.depth-- }()
	for _, s := range list {
		if r.steps++; r.steps > mostSteps {
			return errors.New("it does not come to an end")
		}
		if err := r.one(s); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) one(s statement) error {
	switch {
	case s.function != "":
		r.functions[s.function] = s.body
		return nil
	case s.branches != nil:
		for _, b := range s.branches {
			r.failed = false
			if err := r.do(b.condition); err != nil {
				return err
			}
			if !r.failed {
				return r.do(b.body)
			}
		}
		r.failed = false
		return nil
	}
	var words []string
	size := 0
	for _, w := range s.words {
		for _, expanded := range r.expand(w) {
			size += len(expanded)
			words = append(words, expanded)
		}
		if size > longest {
			return fmt.Errorf("a command grows beyond %d bytes", longest)
		}
	}
	if len(words) == 0 {
		return nil
	}
	return r.command(words, s.block)
}

// expand returns what a word stands for: one word, or none where unquoted
// variables were empty, or several where they hold spaces.
func (r *run) expand(w word) []string {
	out, current, some := []string(nil), "", false
	for _, p := range w {
		if len(current) > longest {
			break // which the caller refuses
		}
		text := p.text
		if p.variable {
			text = r.value(p.text)
		}
		if !p.variable || p.quoted {
			current += text
			some = some || text != "" || p.quoted
			continue
		}
		for i, field := range strings.Split(text, " ") {
			if i > 0 && some {
				out = append(out, current)
				current, some = "", false
			}
			current += field
			some = some || field != ""
		}
	}
	if some {
		out = append(out, current)
	}
	return out
}

func (r *run) value(name string) string {
	if name == "?" {
		if r.failed {
			return "1"
		}
		return "0"
	}
	if v, ok := r.variables[name]; ok {
		return v
	}
	// A new GRUB has all features that a script may ask for.
	if strings.HasPrefix(name, "feature_") {
		return "y"
	}
	return ""
}

func (r *run) command(words []string, block []statement) error {
	name, arguments := words[0], words[1:]
	if key, value, ok := strings.Cut(name, "="); ok && isName(key) {
		r.variables[key] = value
		r.failed = false
		return nil
	}
	if body, ok := r.functions[name]; ok {
		return r.do(body)
	}
	r.failed = false
	switch name {
	case "set":
		for _, a := range arguments {
			if key, value, ok := strings.Cut(a, "="); ok {
				r.variables[key] = value
			}
		}
	case "unset":
		for _, a := range arguments {
			delete(r.variables, a)
		}
	case "[", "test":
		if name == "[" && len(arguments) > 0 && arguments[len(arguments)-1] == "]" {
			arguments = arguments[:len(arguments)-1]
		}
		r.failed = !r.test(arguments)
	case "false", "keystatus", "fwsetup", "loadfont", "background_image", "cmostest":
		r.failed = true
	case "load_env":
		maps.Copy(r.variables, r.world.Environment)
		// An entry for one boot only would be booted for ever: GRUB, not we,
		// takes it out of its file.
		delete(r.variables, "next_entry")
	case "search", "search.fs_uuid", "search.fs_label", "search.file":
		r.search(name, arguments)
	case "menuentry", "submenu":
		r.addItem(name, arguments, block)
	case "linux", "linux16", "linuxefi":
		if len(arguments) > 0 {
			r.kernel = r.file(arguments[0])
			r.commandLine = "BOOT_IMAGE=" + quoteArguments(arguments)
			r.initrds = nil
		}
	case "initrd", "initrd16", "initrdefi":
		r.initrds = nil
		for _, a := range arguments {
			r.initrds = append(r.initrds, r.file(a))
		}
	}
	return nil
}

func isName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" && (s[0] < '0' || s[0] > '9')
}

// quoteArguments joins arguments as GRUB does for the kernel.
func quoteArguments(arguments []string) string {
	quoted := make([]string, len(arguments))
	for i, a := range arguments {
		if strings.ContainsAny(a, " \t") {
			a = `"` + a + `"`
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

// file resolves a path as GRUB takes it: "(hd0,gpt2)/boot/vmlinuz", or below root.
func (r *run) file(path string) File {
	where := r.variables["root"]
	if rest, ok := strings.CutPrefix(path, "("); ok {
		if d, below, ok := strings.Cut(rest, ")"); ok {
			where, path = d, below
		}
	}
	return File{Partition: r.partition(where), Path: path}
}

// partition is the number at the end of GRUB's name of a device: hd0,gpt2. The
// disk is the one that grub.cfg is on, whatever number GRUB gives it.
func (r *run) partition(device string) int {
	_, after, ok := strings.Cut(device, ",")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimLeft(after, "abcdefghijklmnopqrstuvwxyz"))
	if err != nil {
		return 0
	}
	return n
}

// search sets a variable (root) to the partition that has something.
func (r *run) search(name string, arguments []string) {
	kind := map[string]string{"search.fs_uuid": "fs-uuid", "search.fs_label": "label", "search.file": "file"}[name]
	variable, value := "root", ""
	var positional []string
	for i := 0; i < len(arguments); i++ {
		a := arguments[i]
		key, set, hasSet := strings.Cut(a, "=")
		switch {
		case a == "--fs-uuid", a == "-u":
			kind = "fs-uuid"
		case a == "--label", a == "-l":
			kind = "label"
		case a == "--file", a == "-f":
			kind = "file"
		case key == "--set" || a == "-s":
			if hasSet {
				variable = set
			}
		case strings.HasPrefix(a, "--hint"):
			// --hint takes a word of its own; --hint-bios=hd0,msdos1 does not.
			if !hasSet {
				i++
			}
		case strings.HasPrefix(a, "-"):
		default:
			positional = append(positional, a)
		}
	}
	if len(positional) > 0 {
		value = positional[0]
	}
	if strings.HasPrefix(name, "search.") && len(positional) > 1 {
		variable = positional[1]
	}
	found := 0
	switch {
	case value == "":
	case kind == "file":
		if r.exists(File{Partition: r.world.Self, Path: value}) {
			found = r.world.Self
		}
	case kind != "" && r.world.Find != nil:
		found = r.world.Find(kind, value)
	}
	if found == 0 {
		r.failed = true
		return
	}
	r.variables[variable] = device(found)
}

func (r *run) exists(f File) bool {
	return r.world.Exists != nil && r.world.Exists(f.Partition, f.Path)
}

// test is the command of that name, also spelled "[".
func (r *run) test(a []string) bool {
	for i, w := range a {
		if w == "-o" && i > 0 {
			return r.test(a[:i]) || r.test(a[i+1:])
		}
	}
	for i, w := range a {
		if w == "-a" && i > 0 {
			return r.test(a[:i]) && r.test(a[i+1:])
		}
	}
	if len(a) > 0 && a[0] == "!" {
		return !r.test(a[1:])
	}
	switch len(a) {
	case 1:
		return a[0] != ""
	case 2:
		switch a[0] {
		case "-n":
			return a[1] != ""
		case "-z":
			return a[1] == ""
		case "-e", "-f", "-d", "-s":
			return r.exists(r.file(a[1]))
		}
	case 3:
		x, errX := strconv.Atoi(a[0])
		y, errY := strconv.Atoi(a[2])
		numbers := errX == nil && errY == nil
		switch a[1] {
		case "=", "==":
			return a[0] == a[2]
		case "!=":
			return a[0] != a[2]
		case "<":
			return a[0] < a[2]
		case ">":
			return a[0] > a[2]
		case "-eq":
			return numbers && x == y
		case "-ne":
			return numbers && x != y
		case "-lt":
			return numbers && x < y
		case "-le":
			return numbers && x <= y
		case "-gt":
			return numbers && x > y
		case "-ge":
			return numbers && x >= y
		}
	}
	return false
}

func (r *run) addItem(name string, arguments []string, block []statement) {
	m := item{submenu: name == "submenu", body: block}
	for i := 0; i < len(arguments); i++ {
		key, value, hasValue := strings.Cut(arguments[i], "=")
		switch key {
		case "--class", "--users", "--hotkey", "--id":
			if !hasValue && i+1 < len(arguments) {
				i++
				value = arguments[i]
			}
			if key == "--id" {
				m.id = value
			}
		case "--unrestricted":
		default:
			m.arguments = append(m.arguments, arguments[i])
		}
	}
	if len(m.arguments) > 0 {
		m.title = m.arguments[0]
	}
	r.menu = append(r.menu, m)
}

// choose runs the entry that a default names: a number from 0, a title or an
// id; a ">" leads into a submenu. What names nothing is the first.
func (r *run) choose(wanted string) (*Entry, error) {
	if r.depth++; r.depth > deepest {
		return nil, errors.New("grub.cfg: submenus have no end")
	}
	defer func() { r.depth-- }()
	chosen, rest := pick(r.menu, wanted)
	r.menu = nil
	// GRUB hands the title on as "chosen", and arguments by number.
	r.variables["chosen"] = chosen.title
	for i, a := range chosen.arguments {
		r.variables[strconv.Itoa(i)] = a
	}
	if err := r.do(chosen.body); err != nil {
		return nil, fmt.Errorf("grub.cfg: entry %q: %w", chosen.title, err)
	}
	if chosen.submenu && len(r.menu) > 0 {
		return r.choose(rest)
	}
	return r.result(chosen.title)
}

func pick(menu []item, wanted string) (chosen item, rest string) {
	// A title may have a ">" in itself.
	for _, m := range menu {
		if wanted != "" && (m.title == wanted || m.id == wanted) {
			return m, ""
		}
	}
	first, rest, _ := strings.Cut(wanted, ">")
	for _, m := range menu {
		if first != "" && (m.title == first || m.id == first) {
			return m, rest
		}
	}
	if n, err := strconv.Atoi(first); err == nil && n >= 0 && n < len(menu) {
		return menu[n], rest
	}
	return menu[0], ""
}

func (r *run) result(title string) (*Entry, error) {
	if r.kernel.Path == "" {
		if title == "" {
			return nil, ErrNoEntry
		}
		return nil, fmt.Errorf("%w: its default, %q, does something else", ErrNoEntry, title)
	}
	return &Entry{Title: title, Partition: r.kernel.Partition, Kernel: r.kernel.Path, CommandLine: r.commandLine, Initrds: r.initrds}, nil
}

// ParseEnvironment reads grubenv: KEY=VALUE lines below a comment, filled with
// "#" to its size.
func ParseEnvironment(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			env[key] = strings.ReplaceAll(value, `\\`, `\`)
		}
	}
	return env
}
