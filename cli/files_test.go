package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

func nowToday() time.Time { return today }

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {hauberk.dev/inject: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers: [{name: web, image: web, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: store, namespace: shop}
  spec:
    template:
      metadata: {labels: {app: store}}
      spec:
        containers: [{name: store, image: store, ports: [{containerPort: 6379}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: shop, labels: {app: web, hauberk.dev/inject: disabled}}
spec: {containers: [{name: app, image: app}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: store-of-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: store}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 6379}]}]
---
apiVersion: hauberk.dev/v1alpha1
kind: MeshPolicy
metadata: {name: web-page, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{name: page, http: [{methods: [GET]}]}]
`

// TestPolicyFromFiles answers without any cluster: from what manifests say.
func TestPolicyFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, file, shop)
	tests := []struct {
		name, args string
		code       int
	}{
		{"allowed by NetworkPolicy", "shop/web shop/sts/store", run.ExitOK},
		{"the selected port only", "shop/web shop/sts/store --port 6380", run.ExitDenied},
		{"another workload", "shop/store shop/deploy/web --port 6379", run.ExitDenied},
		{"request", "world shop/web --method GET", run.ExitOK},
		{"other request", "world shop/web --method POST", run.ExitDenied},
		{"no sidecar cannot ask for requests", "world shop/outside --port 8080 --method GET", run.ExitDenied},
		{"no such workload", "shop/web shop/cellar --port 1", run.ExitBadInput},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			code, out, errOut := f.run("", append([]string{"policy", "can", "-f", file}, strings.Fields(test.args)...)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, test.code, out, errOut)
			}
		})
	}
	t.Run("with the cluster's", func(t *testing.T) {
		f := newFake(t)
		code, out, errOut := f.run(shop, "policy", "can", "yaobank/customer", "shop/web", "--method", "GET", "-f", "-", "--live")
		if code != run.ExitOK {
			t.Errorf("exit code %d, want 0\n%s%s", code, out, errOut)
		}
	})
	t.Run("broken", func(t *testing.T) {
		code, _, errOut := newFake(t).run("a: [", "policy", "list", "-f", "-")
		if code != run.ExitBadInput || !strings.Contains(errOut, "document 1") {
			t.Errorf("exit code %d, %q", code, errOut)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if code, _, _ := newFake(t).run("", "policy", "list", "-f", file+"x"); code != run.ExitBadInput {
			t.Errorf("exit code %d, want %d", code, run.ExitBadInput)
		}
	})
}

// TestInjectFiles puts the sidecar in by the live settings, and takes it out.
func TestInjectFiles(t *testing.T) {
	f := newFake(t)
	code, injected, errOut := f.run(shop, "inject", "-f", "-")
	if code != run.ExitOK {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	if n := strings.Count(injected, "image: hauberk.dev/hauberk-proxy:v1.2.3"); n != 2 {
		t.Errorf("%d sidecars, want 2:\n%s", n, injected)
	}
	for _, want := range []string{"10.96.0.15:15012", "BEGIN CERTIFICATE"} {
		if !strings.Contains(injected, want) {
			t.Errorf("%q is missing in\n%s", want, injected)
		}
	}
	golden(t, "inject-report.golden", errOut)
	code, bare, errOut := f.run(injected, "uninject", "-f", "-")
	if code != run.ExitOK || strings.Contains(bare, "hauberk-proxy") {
		t.Errorf("exit code %d, sidecar left: %s%s", code, errOut, bare)
	}

	code, out, errOut := f.run(shop, "inject", "explain", "-f", "-")
	if code != run.ExitOK {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	golden(t, "inject-explain-file.golden", out)

	if code, _, _ := f.run("", "inject"); code != run.ExitUsage {
		t.Errorf("without -f: exit code %d, want %d", code, run.ExitUsage)
	}
	bad := strings.Replace(shop, "serviceAccountName: web", "securityContext: {runAsUser: 15015}", 1)
	if code, out, _ := f.run(bad, "inject", "-f", "-"); code != run.ExitBadInput || out != "" {
		t.Errorf("a reserved user: exit code %d, wrote %q; want %d and nothing", code, out, run.ExitBadInput)
	}
}

// TestInjectWithoutCluster needs the three flags and then no cluster.
func TestInjectWithoutCluster(t *testing.T) {
	f := newFake(t)
	bundle := filepath.Join(t.TempDir(), "ca.crt")
	writeFile(t, bundle, f.root)
	bare(t, f)
	if code, _, errOut := f.run(shop, "inject", "-f", "-"); code != run.ExitBadInput || !strings.Contains(errOut, "--proxy-image") {
		t.Errorf("exit code %d, %q; want %d and a mend", code, errOut, run.ExitBadInput)
	}
	code, out, errOut := f.run(shop, "inject", "-f", "-", "--proxy-image", "proxy:1", "--control-address", "10.0.0.1:15012", "--trust-bundle-file", bundle)
	if code != run.ExitOK || !strings.Contains(out, "image: proxy:1") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

// The documentation shows what the commands print.
func TestDocumentedOutput(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	short := strings.NewReplacer("testdata/policy/", "", " --fail-on closes", "")
	for _, name := range []string{"policy/tests.yaml", "policy-test.golden", "policy-diff-offline.golden", "simulate.golden"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), strings.TrimSpace(short.Replace(string(text)))+"\n```") {
			t.Errorf("docs/policy.md does not show %s as it is", name)
		}
	}
	findings, err := os.ReadFile("testdata/analyze-files.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(page), "\n") {
		if strings.HasSuffix(line, "]") && (strings.HasPrefix(line, "! ") || strings.HasPrefix(line, "✗ ")) && !strings.Contains(string(findings), line+"\n") {
			t.Errorf("docs/policy.md shows a finding that is not found: %s", line)
		}
	}
}
