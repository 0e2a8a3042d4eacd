package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

const guarded = `
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {selector: app == 'web', ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: kept, namespace: shop}
`

// Results go to the output or the file, notes and errors to standard error, and
// an error leaves nothing behind.
func TestConvert(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "policies.yaml"), guarded)
	writeFile(t, filepath.Join(dir, "README.md"), "no manifest")
	bad := filepath.Join(dir, "sub", "bad.yml")
	if err := os.Mkdir(filepath.Dir(bad), 0o700); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "sub", "out")
	f := newFake(t)

	code, out, errOut := f.run("", "convert", "-f", dir)
	if code != run.ExitOK || !strings.Contains(out, "kind: MeshPolicy") || !strings.Contains(errOut, "NetworkPolicy shop/kept: left out: it holds as it is") {
		t.Errorf("folder: %d\n%s\n%s", code, out, errOut)
	}
	if code, stdin, _ := f.run(guarded, "convert", "-f", "-"); code != run.ExitOK || strings.ReplaceAll(stdin, "standard input", filepath.Join(dir, "policies.yaml")) != out {
		t.Errorf("standard input: %d\n%s", code, stdin)
	}
	if code, out, errOut := f.run("", "convert", "-f", dir, "--check"); code != run.ExitOK || out+errOut != "" {
		t.Errorf("check: %d %q %q", code, out, errOut)
	}
	if code, text, _ := f.run("", "convert", "-f", dir, "-o", target); code != run.ExitOK || text != "" {
		t.Errorf("to a file: %d %q", code, text)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != out {
		t.Errorf("the file: %v\n%s", err, data)
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}

	writeFile(t, bad, "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: x}\nspec: {preDNAT: true, colour: red}\n")
	code, out, errOut = f.run("", "convert", "-f", dir, "-o", target)
	if code != run.ExitRuntime || out != "" || !strings.Contains(errOut, bad+": GlobalNetworkPolicy x: spec.preDNAT: ") ||
		!strings.Contains(errOut, bad+": GlobalNetworkPolicy x: spec.colour: ") || !strings.Contains(errOut, "nothing was written: 2 errors") {
		t.Errorf("errors: %d %q\n%s", code, out, errOut)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a file was written in spite of errors")
	}
	for _, test := range []struct {
		args string
		code int
	}{{"convert", run.ExitUsage}, {"convert -f " + dir + "/none", run.ExitBadInput}, {"convert extra -f -", run.ExitUsage}} {
		if code, _, errOut := f.run("", strings.Fields(test.args)...); code != test.code {
			t.Errorf("%s: exit code %d, want %d\n%s", test.args, code, test.code, errOut)
		}
	}
}
