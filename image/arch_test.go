package image

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The floors of the house, from the ground up. A package may import those on
// floors below its own and, on the shared floor, those to its left.
var (
	ground = []string{"image/spec", "templates"}
	shared = []string{
		"image/command", "image/conf", "image/sign", "image/fetch", "image/kmod", "image/initramfs", "image/coverage", "image/tree", "image/wad",
		"image/stamp", "image/render", "image/resolve", "image/bootfiles", "image/report", "image/logs",
	}
	wings = []string{"image/build", "image/reimage", "image/serve"}
)

// forTests is imported by tests alone, of any wing.
const forTests = "image/nettest"

// importers lists who may import a third-party module; all others may not.
var importers = map[string][]string{
	"github.com/u-root/mkuimage":          {"image/build"},
	"github.com/u-root/u-root":            {"image/build", "image/reimage"},
	"github.com/CycloneDX/cyclonedx-go":   {"image/build"},
	"github.com/cavaliergopher/cpio":      {"image/initramfs", "image/build", "cmds/mkimage"},
	"github.com/diskfs/go-diskfs":         {"image/reimage/disk"},
	"github.com/insomniacslk/dhcp":        {"image/reimage/netup", "image/serve"},
	"github.com/vishvananda/netlink":      {"image/reimage", "image/serve", forTests},
	"github.com/klauspost/compress":       {"image/wad", "image/kmod", "image/initramfs", "image/build"},
	"github.com/ulikunitz/xz":             {"image/wad", "image/kmod", "image/initramfs", "image/build"},
	"github.com/spf13/cobra":              {"cmds/reassure"},
	"go.etcd.io/bbolt":                    {"image/serve/store"},
	"github.com/aymanbagabas/go-udiff":    {"image/serve/lab"},
	"github.com/pin/tftp/v3":              {"image/serve/tftp"},
	"github.com/prometheus/client_golang": {"image/serve/web"},
	"go.yaml.in/yaml/v3":                  {"image/conf"},
	"github.com/google/renameio/v2":       {"image/build", "image/serve", "image/resolve", "image/sign", "cmds/mkimage", "cmds/reassure"},
	"golang.org/x/crypto":                 {"image/sign", "image/reimage", "image/serve"},
	"golang.org/x/sync":                   {"image", "cmds"},
	"golang.org/x/sys":                    {"image", "cmds/reassure"},
	"github.com/google/uuid":              {"image/reimage"},
	"github.com/creack/pty":               {"image/reimage/rescue"},
	"honnef.co/go/tools":                  {},
	"github.com/google/go-cmp":            {},
	"github.com/u-root/gobusybox/src":     {"image/build"},
	"github.com/u-root/uio":               {"image/build"},
}

type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Module     *struct{ Path string }
}

// TestImports holds the shape of the house: imports go down only, a wing
// imports no other wing, and each library has few doors.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Module", "reassure/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	module := map[string]string{} // import path -> module
	var ours []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Module != nil {
			module[p.ImportPath] = p.Module.Path
			if p.Module.Path == "reassure" {
				ours = append(ours, p)
			}
		}
	}
	if len(ours) < 5 {
		t.Fatalf("go list found %d packages of ours", len(ours))
	}
	for _, p := range ours {
		from := strings.TrimPrefix(p.ImportPath, "reassure/")
		for _, i := range p.Imports {
			switch module[i] {
			case "":
				if i == "os/exec" && from != "image/command" && from != forTests && !strings.HasPrefix(from, "qemu-tests") {
					t.Errorf("%s imports os/exec: external programs are run by image/command", from)
				}
			case "reassure":
				to := strings.TrimPrefix(i, "reassure/")
				if why := forbidden(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			default:
				doors, known := importers[module[i]]
				if !known {
					t.Errorf("%s imports %s: the library %s is not in the list of this test", from, i, module[i])
				} else if !strings.HasPrefix(from, "qemu-tests") && !slices.ContainsFunc(doors, func(d string) bool { return within(from, d) }) {
					t.Errorf("%s imports %s: only %s may", from, i, strings.Join(doors, ", "))
				}
			}
		}
	}
}

// forbidden says why one package of ours may not import another, or "".
func forbidden(from, to string) string {
	if to == forTests {
		return "it is for tests alone"
	}
	if slices.Contains(ground, to) {
		if from == to || (slices.Contains(ground, from) && from != to) {
			return "the ground imports nothing of ours"
		}
		return ""
	}
	if slices.Contains(ground, from) {
		return "the ground imports nothing of ours"
	}
	if path.Dir(from) == "cmds" || strings.HasPrefix(from, "qemu-tests") {
		return ""
	}
	fromShared, toShared := slices.Index(shared, from), slices.Index(shared, to)
	if fromShared >= 0 {
		if toShared < 0 {
			return "the shared floor does not import a wing"
		}
		if toShared > fromShared {
			return "on the shared floor imports go to the left only: " + strings.Join(shared, " ")
		}
		return ""
	}
	fromWing, toWing := wing(from), wing(to)
	switch {
	case fromWing == "":
		return "it is on no floor: add it to the list of this test"
	case toWing != "" && toWing != fromWing:
		return "a wing imports no other wing"
	case toWing == "" && toShared < 0:
		return to + " is on no floor: add it to the list of this test"
	}
	return ""
}

func wing(p string) string {
	for _, w := range wings {
		if within(p, w) {
			return w
		}
	}
	return ""
}

func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

// TestInitramfsIsLean holds what the programs of the initramfs may never carry:
// YAML, templates (their use of reflection keeps all code alive), a command
// line framework, and the other wings.
func TestInitramfsIsLean(t *testing.T) {
	for _, program := range []string{"reassure/cmds/reimage", "reassure/cmds/chroothelper"} {
		out, err := exec.Command("go", "list", "-deps", program).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", program, err)
		}
		deps := strings.Fields(string(out))
		for _, never := range []string{"go.yaml.in/yaml/v3", "gopkg.in/yaml.v3", "text/template", "html/template", "github.com/spf13/cobra", "reassure/templates"} {
			if slices.Contains(deps, never) {
				t.Errorf("%s carries %s", program, never)
			}
		}
		for _, d := range deps {
			for _, w := range []string{"reassure/image/build", "reassure/image/serve"} {
				if within(d, w) {
					t.Errorf("%s carries %s", program, d)
				}
			}
		}
	}
}

// TestSecurityNamesTests holds the README's threat model to what there is: each
// test that it names exists.
func TestSecurityNamesTests(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n## Security\n")
	section, _, _ = strings.Cut(section, "\n## ")
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(section, -1)
	if len(named) == 0 {
		t.Fatal("the README's section Security names no test")
	}
	for _, m := range named {
		if !there[m[1]] {
			t.Errorf("the README's section Security names %s, which is no test", m[1])
		}
	}
}

// endedOtherwise are the files on a PC that run programs without a time limit of their own.
var endedOtherwise = []string{
	"reimage/steps/run.go",      // its context has the step's
	"reimage/rescue/session.go", // a person waits for it, or hangs up
}

// TestCommandsEnd finds programs that a PC runs without a time limit: one that hangs would
// have it hang for ever, with nobody told.
func TestCommandsEnd(t *testing.T) {
	found := 0
	err := filepath.WalkDir("reimage", func(file string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			literal, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if kind, ok := literal.Type.(*ast.SelectorExpr); !ok || kind.Sel.Name != "Command" {
				return true
			}
			found++
			limited := slices.ContainsFunc(literal.Elts, func(e ast.Expr) bool {
				pair, ok := e.(*ast.KeyValueExpr)
				if !ok {
					return false
				}
				key, ok := pair.Key.(*ast.Ident)
				return ok && key.Name == "Timeout"
			})
			if !limited && !slices.Contains(endedOtherwise, file) {
				t.Errorf("%s runs a program without a time limit: give it a Timeout", file)
			}
			return true
		})
		return nil
	})
	if err != nil || found < 4 {
		t.Errorf("%d places that run programs were found: %v", found, err)
	}
}
