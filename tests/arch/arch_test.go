// Package arch holds the house's rules as tests: who may import what, that
// every package says what it owns, and that mains stay small. The rules and
// their reasons are in ARCHITECTURE.md.
package arch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hauberk-mesh/hauberk"

type pkg struct {
	ImportPath  string
	Dir         string
	Name        string
	Doc         string
	Standard    bool
	GoFiles     []string
	Imports     []string
	Deps        []string
	TestImports []string
}

// packages lists the module's packages as built for production.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Doc,Standard,GoFiles,Imports,Deps,TestImports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("go list found %d packages: the rules below would prove nothing", len(pkgs))
	}
	return pkgs
}

// room is the part of an import path that names a room: its first folder, and
// for internal, api and cmd the second too.
func room(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return strings.SplitN(rest, "/", 2)[0]
}

// allowed says which rooms a room's production code may import directly.
var allowed = map[string][]string{
	"policy":     {"policy"},
	"api":        {"api"},
	"internal":   {"internal", "policy", "api"},
	"control":    {"control", "internal", "policy", "api"},
	"injector":   {"injector", "internal", "policy", "api"},
	"node":       {"node", "internal", "policy", "api"},
	"proxy":      {"proxy", "internal", "policy", "api"},
	"cni-plugin": {"cni-plugin", "internal", "api"},
	"install":    {"install", "internal", "api"},
	"cli":        {"cli", "install", "internal", "policy", "api", "control", "injector"},
	"cmd":        {"cli", "control", "injector", "node", "proxy", "cni-plugin", "internal"},
	"tests":      {"tests", "install", "internal", "policy", "api", "control", "cli", "node", "proxy", "injector"},
}

// cliOffline is what the command line may take from other components, for
// answers that need no cluster.
var cliOffline = []string{module + "/control/compile", module + "/control/source", module + "/injector/patch"}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		may, known := allowed[from]
		if !known {
			t.Errorf("%s: room %q is not in the list of rooms: add it to ARCHITECTURE.md and to this test", p.ImportPath, from)
			continue
		}
		for _, imp := range p.Imports {
			to := room(imp)
			if to == "" {
				continue
			}
			if !slices.Contains(may, to) {
				t.Errorf("%s imports %s: %s may import only %v", p.ImportPath, imp, from, may)
			}
			if from == "cli" && (to == "control" || to == "injector") && !slices.Contains(cliOffline, imp) {
				t.Errorf("%s imports %s: of other components the command line may import only %v", p.ImportPath, imp, cliOffline)
			}
		}
	}
}

// TestSmallBinariesStaySmall holds the sidecar, the node agent and the CNI
// plugin free of Kubernetes clients and of our own CRD types, however deep.
func TestSmallBinariesStaySmall(t *testing.T) {
	forbidden := []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "sigs.k8s.io/gateway-api", "helm.sh/", module + "/api/v1alpha1"}
	checked := 0
	for _, p := range packages(t) {
		switch room(p.ImportPath) {
		case "proxy", "node", "cni-plugin":
		default:
			if !slices.Contains([]string{module + "/cmd/hauberk-proxy", module + "/cmd/hauberk-node", module + "/cmd/hauberk-cni"}, p.ImportPath) {
				continue
			}
		}
		checked++
		for _, dep := range p.Deps {
			for _, bad := range forbidden {
				if strings.HasPrefix(dep, bad) {
					t.Errorf("%s depends on %s", p.ImportPath, dep)
				}
			}
		}
	}
	if checked == 0 {
		t.Fatal("no package of the proxy, the node agent or the CNI plugin was found")
	}
}

// TestPolicyIsPure holds the policy model to the standard library.
func TestPolicyIsPure(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"/policy" {
			continue
		}
		for _, imp := range p.Imports {
			if strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("policy imports %s: it is standard library only", imp)
			}
		}
		for _, impure := range []string{"net", "os", "time", "net/http", "math/rand", "math/rand/v2"} {
			if slices.Contains(p.Imports, impure) {
				t.Errorf("policy imports %s: it decides by its arguments alone", impure)
			}
		}
		return
	}
	t.Fatal("package policy was not found")
}

// TestPackagesSayWhatTheyOwn wants a package comment of a full sentence.
func TestPackagesSayWhatTheyOwn(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 || strings.Contains(p.ImportPath, "/api/gen/") {
			continue
		}
		if len(strings.Fields(p.Doc)) < 6 {
			t.Errorf("%s has no package comment that says what it owns (got %q)", p.ImportPath, p.Doc)
		}
	}
}

// TestNamesTellOneThing refuses rooms for odds and ends.
func TestNamesTellOneThing(t *testing.T) {
	for _, p := range packages(t) {
		for _, word := range []string{"util", "utils", "common", "helper", "helpers", "misc", "shared"} {
			if p.Name == word {
				t.Errorf("%s: a package named %s owns nothing in particular", p.ImportPath, word)
			}
		}
	}
}

// TestMainsAreSmall keeps logic out of cmd: a main wires and reports.
func TestMainsAreSmall(t *testing.T) {
	const limit = 45
	mains, err := filepath.Glob(filepath.Join("..", "..", "cmd", "*", "main.go"))
	if err != nil || len(mains) == 0 {
		t.Fatalf("no mains found: %v", err)
	}
	for _, path := range mains {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for s := bufio.NewScanner(file); s.Scan(); {
			lines++
		}
		file.Close()
		if lines > limit {
			t.Errorf("%s has %d lines, more than %d: move what it does into its component", path, lines, limit)
		}
	}
}

// TestNoGlobalsThatHide refuses init functions and process exits outside of
// main: what a program does is wired in one readable place.
func TestNoGlobalsThatHide(t *testing.T) {
	for _, p := range packages(t) {
		if strings.Contains(p.ImportPath, "/api/gen/") {
			continue
		}
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s has an init function", path)
				}
			}
			if p.Name == "main" {
				continue
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := sel.X.(*ast.Ident)
				if ok && (x.Name == "os" && sel.Sel.Name == "Exit" || x.Name == "log" && strings.HasPrefix(sel.Sel.Name, "Fatal")) {
					t.Errorf("%s calls %s.%s: only main ends the process", path, x.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestProductSpeaksOfItself keeps the traces of any one machine out of the
// project.
func TestProductSpeaksOfItself(t *testing.T) {
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	bad := []string{"/wo" + "rk/main", "/tm" + "p/brief", "proxy.gol" + "ang.org"}
	for _, name := range strings.Fields(string(out)) {
		data, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			continue // deleted in the working tree
		}
		for _, b := range bad {
			if bytes.Contains(data, []byte(b)) {
				t.Errorf("%s mentions %q", name, b)
			}
		}
	}
}
