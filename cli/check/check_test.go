package check

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apiextensionsfake "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubefake "k8s.io/client-go/kubernetes/fake"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
)

func environment() (*run.Env, *bytes.Buffer) {
	var out bytes.Buffer
	return &run.Env{Output: run.Output{Out: &out, Err: &out}}, &out
}

// TestWait retries until all is well, or until the time is over.
func TestWait(t *testing.T) {
	for _, test := range []struct {
		name   string
		wellAt int
		wait   bool
		looks  int
		code   int
	}{
		{"well at once", 1, true, 1, run.ExitOK},
		{"well later", 4, true, 4, run.ExitOK},
		{"without waiting", 4, false, 1, run.ExitFindings},
		{"never well", 1000, true, 5, run.ExitTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				env, out := environment()
				env.Connect = func() (*run.Clients, error) { return &run.Clients{}, nil }
				looks := 0
				probes := []probe{{"sky", func(_ context.Context, s *state) error {
					if looks++; looks < test.wellAt {
						s.bad("wait", "it rains")
					} else {
						s.good("it shines")
					}
					return nil
				}, false}}
				err := command(t.Context(), env, probes, test.wait, 9*time.Second)
				if run.Code(err) != test.code || looks != test.looks {
					t.Errorf("error %v after %d looks, want code %d after %d", err, looks, test.code, test.looks)
				}
				if want := map[bool]string{true: "it shines", false: "it rains"}[test.code == run.ExitOK]; !strings.Contains(out.String(), want) {
					t.Errorf("told %q, want %q", out, want)
				}
			})
		})
	}
}

// TestVerifyFails wants an installation without a control plane to fail, and
// only what is wrong to be told.
func TestVerifyFails(t *testing.T) {
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range judged {
		lists[v1alpha1.GroupVersion.WithResource(k.resource)] = k.kind + "List"
	}
	clients := &run.Clients{Kube: kubefake.NewClientset(), Extensions: apiextensionsfake.NewClientset(),
		Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)}
	env, out := environment()
	err := verify(t.Context(), env, clients, 100*time.Millisecond)
	if run.Code(err) != run.ExitFindings {
		t.Fatalf("error %v, want code %d", err, run.ExitFindings)
	}
	if want := "the mesh is not installed"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not told:\n%s", want, out)
	}
	if strings.Contains(out.String(), "✓") {
		t.Errorf("told what is well:\n%s", out)
	}
}

func TestPodsBesideTheirSidecarsAreUsers(t *testing.T) {
	s := &state{current: nodes}
	a := &mesh.Agent{Node: "one", Status: &mesh.AgentStatus{Ready: true}}
	a.Status.Control.Connected, a.Status.Chain.Present = true, true
	a.Status.Pods.Unprotected = []string{"shop/web"}
	if !s.agent(a, []mesh.Agent{*a}) {
		t.Error("the agent is well")
	}
	if s.current != nodes {
		t.Errorf("the category after it is %q", s.current)
	}
	report := newReport(s.results)
	if report.OK || len(report.Checks) != 1 || report.Checks[0].Category != workloads {
		t.Errorf("findings: %+v", report.Checks)
	}
	if n := ownFailures(report); n != 0 {
		t.Errorf("%d failures of the mesh's own", n)
	}
}
