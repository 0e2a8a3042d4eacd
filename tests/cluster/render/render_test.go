package render_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
)

func cluster() plan.Cluster {
	return plan.Cluster{Nodes: 2, Underlay: plan.Candidates()[0], DualStack: true, Snapshotter: "overlayfs"}
}

func TestFingerprintFollowsThePlan(t *testing.T) {
	first := render.New(cluster(), "/bin").Fingerprint()
	if again := render.New(cluster(), "/bin").Fingerprint(); again != first {
		t.Errorf("one plan has the fingerprints %s and %s", first, again)
	}
	for name, change := range map[string]func(*plan.Cluster){
		"nodes":       func(c *plan.Cluster) { c.Nodes = 3 },
		"underlay":    func(c *plan.Cluster) { c.Underlay = plan.Candidates()[1] },
		"families":    func(c *plan.Cluster) { c.DualStack = false },
		"snapshotter": func(c *plan.Cluster) { c.Snapshotter = "native" },
	} {
		c := cluster()
		change(&c)
		if render.New(c, "/bin").Fingerprint() == first {
			t.Errorf("a change of %s is not seen", name)
		}
	}
	if render.New(cluster(), "/other").Fingerprint() == first {
		t.Error("a change of binaries is not seen")
	}
}

func TestConflistOfTheSecondNode(t *testing.T) {
	c := cluster()
	got := render.Conflist(c, c.Workers()[1])
	want := `{
	  "cniVersion": "1.0.0",
	  "name": "hauberk-test",
	  "plugins": [
	    {"type": "ptp-nodad", "ipMasq": false, "mtu": 1500, "ipam": {
	      "type": "host-local", "dataDir": "/var/lib/cni/networks",
	      "ranges": [[{"subnet": "10.244.2.0/24"}], [{"subnet": "fd00:10:244:2::/64"}]],
	      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
	    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
	  ]
	}`
	if diff := cmp.Diff(decode(t, want), decode(t, got)); diff != "" {
		t.Errorf("conflist (-want +got):\n%s", diff)
	}
}

func TestNodeObjectsHaveTheRangesOfTheirNetworks(t *testing.T) {
	c := cluster()
	items := decode(t, render.New(c, "/bin").NodeList)["items"].([]any)
	for i, n := range c.Workers() {
		spec := items[i].(map[string]any)["spec"].(map[string]any)
		want := map[string]any{"podCIDR": n.Pods4.String(), "podCIDRs": []any{n.Pods4.String(), n.Pods6.String()}}
		if diff := cmp.Diff(want, spec); diff != "" {
			t.Errorf("%s (-want +got):\n%s", n.Name, diff)
		}
	}
}

func TestConfigurationIsWellFormed(t *testing.T) {
	for _, dual := range []bool{true, false} {
		c := cluster()
		c.DualStack = dual
		cfg := render.New(c, "/bin")
		names := map[string]bool{}
		procs := append([]render.Process(nil), cfg.ControlPlane...)
		for _, n := range c.Workers() {
			procs = append(procs, cfg.Nodes[n.Name]...)
		}
		if len(procs) != 4+3*c.Nodes {
			t.Errorf("%d processes", len(procs))
		}
		text := cfg.NodeList + cfg.Manifests
		for _, p := range procs {
			if names[p.Name] {
				t.Errorf("two processes are called %s", p.Name)
			}
			names[p.Name] = true
			flags := map[string]bool{}
			for _, arg := range p.Args[1:] {
				flag, value, ok := strings.Cut(arg, "=")
				if !ok || value == "" || !strings.HasPrefix(flag, "--") || flags[flag] {
					t.Errorf("%s: odd or repeated flag %q", p.Name, arg)
				}
				flags[flag] = true
				text += arg + "\n"
			}
		}
		for _, f := range cfg.Files {
			if strings.HasSuffix(f.Path, ".json") || strings.HasSuffix(f.Path, ".conflist") {
				decode(t, f.Content)
			}
			text += f.Content
		}
		decode(t, cfg.NodeList)
		decode(t, cfg.Manifests)
		if !dual && strings.Contains(text, "fd00:") {
			t.Error("IPv6 in a cluster without it")
		}
	}
}

func TestKubeconfigCarriesItsCertificates(t *testing.T) {
	got := decode(t, render.Kubeconfig("https://10.0.0.1:6443", "admin", []byte("ca"), []byte("cert"), []byte("key")))
	want := decode(t, `{"apiVersion": "v1", "kind": "Config", "current-context": "hauberk",
	 "clusters": [{"name": "hauberk", "cluster": {"server": "https://10.0.0.1:6443", "certificate-authority-data": "Y2E="}}],
	 "users": [{"name": "admin", "user": {"client-certificate-data": "Y2VydA==", "client-key-data": "a2V5"}}],
	 "contexts": [{"name": "hauberk", "context": {"cluster": "hauberk", "user": "admin"}}]}`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kubeconfig (-want +got):\n%s", diff)
	}
}

func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return v
}
