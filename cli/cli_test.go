package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttesting "k8s.io/client-go/testing"

	"github.com/hauberk-mesh/hauberk/cli/check"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

func intOrString(s string) intstr.IntOrString { return intstr.Parse(s) }

// TestCommands holds what each command prints and its exit code.
func TestCommands(t *testing.T) {
	tests := []struct {
		name string
		args string
		code int
		// change the healthy cluster.
		change func(*testing.T, *fake)
	}{
		{name: "check", args: "check"},
		{name: "check-json", args: "check -o json"},
		{name: "check-pre", args: "check --pre", code: run.ExitFindings},
		{name: "check-ill", args: "check", code: run.ExitFindings, change: illness},
		{name: "check-bare", args: "check", code: run.ExitFindings, change: bare},
		{name: "status", args: "status"},
		{name: "status-json", args: "status -o json"},
		{name: "status-bare", args: "status", change: bare},
		{name: "node-status", args: "node status"},
		{name: "node-tunnels", args: "node tunnels"},
		{name: "node-tunnels-json", args: "node tunnels -o json"},
		{name: "node-pods", args: "node pods node1"},
		{name: "node-rules", args: "node rules node1"},
		{name: "node-unknown", args: "node rules node9", code: run.ExitBadInput},
		{name: "node-silent", args: "node status", code: run.ExitRuntime, change: func(_ *testing.T, f *fake) { delete(f.pages, "hauberk-node-2") }},
		{name: "proxy-status", args: "proxy status -A"},
		{name: "proxy-config", args: "proxy config yaobank/customer-1"},
		{name: "proxy-stats", args: "proxy stats yaobank/customer"},
		{name: "proxy-log", args: "proxy log yaobank/customer-1 DEBUG"},
		{name: "proxy-log-bad", args: "proxy log yaobank/customer-1 loud", code: run.ExitUsage},
		{name: "proxy-none", args: "proxy stats default/visitor", code: run.ExitBadInput},
		{name: "identity", args: "identity show yaobank/customer-1"},
		{name: "identity-other", args: "identity show yaobank/database-1", code: run.ExitFindings, change: func(_ *testing.T, f *fake) { f.page("database-1", "/identity", f.chain) }},
		{name: "explain-meshed", args: "inject explain yaobank/customer-1"},
		{name: "explain-plain", args: "inject explain pod/visitor"},
		{name: "explain-json", args: "inject explain default/visitor -o json"},
		{name: "flows", args: "flows -n yaobank", change: someFlows},
		{name: "flows-all", args: "flows -A --verdict all --tail 3 -o wide", change: someFlows},
		{name: "flows-pod", args: "flows -A --pod visitor", change: someFlows},
		{name: "flows-policy", args: "flows -n yaobank --policy database-policy -o json", change: someFlows},
		{name: "flows-none", args: "flows", change: someFlows},
		{name: "flows-silent", args: "flows -A --layer kernel", code: run.ExitRuntime, change: func(t *testing.T, f *fake) { someFlows(t, f); delete(f.pages, "hauberk-node-2") }},
		{name: "flows-bad", args: "flows --verdict perhaps", code: run.ExitUsage},
		{name: "can-get", args: "policy can yaobank/customer yaobank/service/database --method GET --path /v2//keys/./a"},
		{name: "can-put", args: "policy can yaobank/customer yaobank/service/database --port api --method PUT --path /v2/keys/a", code: run.ExitDenied},
		{name: "can-tcp", args: "policy can yaobank/customer yaobank/database", code: run.ExitDenied},
		{name: "can-visitor", args: "policy can pod/visitor yaobank/database", code: run.ExitDenied},
		{name: "can-world", args: "policy can world 10.244.1.7 --port 80"},
		{name: "can-own-node", args: "policy can node/node1 yaobank/database"},
		{name: "can-icmp", args: "policy can world yaobank/database --protocol icmp", code: run.ExitDenied},
		{name: "can-json", args: "policy can yaobank/customer yaobank/database --method GET --path /v2/keys -o json"},
		{name: "can-unmeshed", args: "policy can yaobank/customer yaobank/database --method GET --path /v2/keys", code: run.ExitDenied, change: unmesh},
		{name: "can-strict", args: "policy can pod/visitor yaobank/customer --method GET", code: run.ExitDenied, change: strict},
		{name: "can-no-mtls", args: "policy can yaobank/database yaobank/customer --no-mtls", code: run.ExitDenied, change: strict},
		{name: "can-invalid", args: "policy can yaobank/customer yaobank/database --method GET --path /v2/keys", code: run.ExitDenied, change: invalidPolicy},
		{name: "policy-explain", args: "policy explain yaobank/customer yaobank/database --method DELETE", code: run.ExitDenied},
		{name: "policy-list", args: "policy list", change: invalidPolicy},
		{name: "policy-test", args: "policy test testdata/policy/tests.yaml"},
		{name: "policy-test-json", args: "policy test testdata/policy/tests.yaml -o json"},
		{name: "policy-test-failing", args: "policy test testdata/policy/failing.yaml", code: run.ExitFindings},
		{name: "policy-test-junit", args: "policy test testdata/policy/tests.yaml testdata/policy/failing.yaml -o junit", code: run.ExitFindings},
		{name: "policy-test-cluster", args: "policy test testdata/policy/cluster.yaml"},
		{name: "policy-test-none", args: "policy test testdata/policy/database.yaml", code: run.ExitBadInput},
		{name: "policy-diff", args: "policy diff testdata/policy/customers-only.yaml"},
		{name: "policy-diff-offline", args: "policy diff testdata/policy/database.yaml --against testdata/policy/bank.yaml --fail-on closes", code: run.ExitFindings},
		{name: "policy-diff-json", args: "policy diff testdata/policy/database.yaml --against testdata/policy/bank.yaml -o json --fail-on opens"},
		{name: "policy-diff-prune", args: "policy diff -f testdata/policy/grown.yaml --against testdata/policy/bank.yaml,testdata/policy/database.yaml --prune"},
		{name: "policy-diff-same", args: "policy diff testdata/policy/database.yaml --against testdata/policy/bank.yaml,testdata/policy/database.yaml --fail-on any"},
		{name: "policy-diff-nothing", args: "policy diff", code: run.ExitUsage},
		{name: "policy-diff-bad", args: "policy diff x.yaml --fail-on moves", code: run.ExitUsage},
		{name: "analyze", args: "analyze", change: invalidPolicy, code: run.ExitFindings},
		{name: "analyze-files", args: "analyze testdata/policy/bank.yaml testdata/policy/faulty.yaml", code: run.ExitFindings},
		{name: "analyze-json", args: "policy analyze testdata/policy/bank.yaml testdata/policy/faulty.yaml -o json --fail-on none"},
		{name: "analyze-sarif", args: "analyze testdata/policy/bank.yaml testdata/policy/faulty.yaml -o sarif --fail-on error", code: run.ExitFindings},
		{name: "analyze-good", args: "analyze testdata/policy/bank.yaml testdata/policy/database.yaml --fail-on error"},
		{name: "analyze-bad", args: "analyze --fail-on sometimes", code: run.ExitUsage},
		{name: "junit-elsewhere", args: "status -o junit", code: run.ExitUsage},
		{name: "simulate", args: "policy simulate testdata/policy/flows.jsonl -f testdata/policy/bank.yaml,testdata/policy/database.yaml --fail-on closes", code: run.ExitFindings},
		{name: "simulate-live", args: "policy simulate testdata/policy/flows.jsonl -f testdata/policy/bank.yaml --live -o json"},
		{name: "simulate-bad", args: "policy simulate testdata/policy/bank.yaml", code: run.ExitBadInput},
		{name: "suggest", args: "policy suggest testdata/policy/flows.jsonl -f testdata/policy/bank.yaml"},
		{name: "suggest-ports", args: "policy suggest testdata/policy/flows.jsonl -f testdata/policy/bank.yaml --requests=false -o json"},
		{name: "suggest-nothing", args: "policy suggest testdata/policy/flows.jsonl", code: run.ExitBadInput},
		{name: "can-directory", args: "policy can bank/legacy bank/database --port 2379 -f testdata/policy", code: run.ExitDenied},
		{name: "can-bare", args: "policy can world pod/visitor", change: bare},
		{name: "check-half", args: "check", code: run.ExitFindings, change: func(t *testing.T, f *fake) {
			must(t, f.kube.AppsV1().DaemonSets(names.Namespace).Delete(t.Context(), names.Node, metav1.DeleteOptions{}))
			must(t, f.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), names.Injector, metav1.DeleteOptions{}))
		}},
		{name: "can-nobody", args: "policy can yaobank/nobody yaobank/database", code: run.ExitBadInput},
		{name: "can-no-port", args: "policy can yaobank/customer world", code: run.ExitUsage},
		{name: "can-bad-form", args: "policy can a/b/c/d world", code: run.ExitUsage},
		{name: "can-bad-path", args: "policy can yaobank/customer yaobank/database --path /a%2fb", code: run.ExitBadInput},
		{name: "can-bad-protocol", args: "policy can world world --protocol carrier-pigeon", code: run.ExitUsage},
		{name: "unknown-command", args: "polish", code: run.ExitUsage},
		{name: "unknown-flag", args: "check --hard", code: run.ExitUsage},
		{name: "bad-format", args: "status -o xml", code: run.ExitUsage},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			if test.change != nil {
				test.change(t, f)
			}
			code, out, errOut := f.run("", strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if (strings.Contains(test.args, "-o json") || strings.Contains(test.args, "-o sarif")) && !json.Valid([]byte(out)) {
				t.Errorf("not JSON: %s", out)
			}
			if strings.Contains(out+errOut, "\x1b") {
				t.Error("colours or progress in a pipe")
			}
			text := fmt.Sprintf("$ hauberk %s\n%s", test.args, out)
			if errOut != "" {
				text += "--- standard error\n" + errOut
			}
			golden(t, test.name+".golden", text)
		})
	}
}

// illness breaks one thing in every category.
func illness(t *testing.T, f *fake) {
	ctx := t.Context()
	api := f.kube.AdmissionregistrationV1()
	d, err := f.kube.AppsV1().Deployments(names.Namespace).Get(ctx, names.Control, metav1.GetOptions{})
	must(t, err)
	d.Status.ReadyReplicas = 1
	_, err = f.kube.AppsV1().Deployments(names.Namespace).Update(ctx, d, metav1.UpdateOptions{})
	must(t, err)
	p, err := f.kube.CoreV1().Pods(names.Namespace).Get(ctx, "hauberk-control-b", metav1.GetOptions{})
	must(t, err)
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "control", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}
	_, err = f.kube.CoreV1().Pods(names.Namespace).Update(ctx, p, metav1.UpdateOptions{})
	must(t, err)
	delete(f.pages, "hauberk-control-b")
	f.page("hauberk-control-a", "/debug/clients", []m{{"kind": "sidecar", "name": "uid-customer-1", "last_nack": "unknown field"}})
	must(t, f.ext.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, "tiers.hauberk.dev", metav1.DeleteOptions{}))
	cm, err := f.kube.CoreV1().ConfigMaps(names.Namespace).Get(ctx, names.TrustBundleConfigMap, metav1.GetOptions{})
	must(t, err)
	cm.Data[names.TrustBundleKey] = f.chain // no CA
	_, err = f.kube.CoreV1().ConfigMaps(names.Namespace).Update(ctx, cm, metav1.UpdateOptions{})
	must(t, err)
	hook, err := api.MutatingWebhookConfigurations().Get(ctx, names.Injector, metav1.GetOptions{})
	must(t, err)
	hook.Webhooks[0].ClientConfig.CABundle = nil
	_, err = api.MutatingWebhookConfigurations().Update(ctx, hook, metav1.UpdateOptions{})
	must(t, err)
	must(t, api.ValidatingAdmissionPolicyBindings().Delete(ctx, "hauberk-injection", metav1.DeleteOptions{}))
	f.kube.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "x", errors.New("ValidatingAdmissionPolicy 'hauberk-injection' denied request"))
	})
	agent := f.agent("hauberk-node-1", "node1", "node3")
	agent["control"].(m)["connected"] = false
	agent["ready"], agent["notReady"] = false, []string{"kernel: not programmed"}
	agent["chain"] = m{"file": "10-test.conflist", "present": false}
	agent["pods"].(m)["unprotected"] = []string{"yaobank/customer-1"}
	f.page("hauberk-node-1", "/status", agent)
	other := f.agent("hauberk-node-2", "node2", "node1")
	peer := other["tunnel"].(m)["peers"].([]m)[0]
	delete(peer, "lastHandshake")
	f.page("hauberk-node-2", "/status", other)
	_, err = f.kube.CoreV1().Pods("yaobank").Update(ctx, plainPod("yaobank", "database-1", "database", nil, "10.244.1.6", 2379), metav1.UpdateOptions{})
	must(t, err)
	sick := sidecarPod("yaobank", "customer-1", "customer", nil, "10.244.1.5", 8080)
	sick.Status.InitContainerStatuses[0].Ready = false
	_, err = f.kube.CoreV1().Pods("yaobank").Update(ctx, sick, metav1.UpdateOptions{})
	must(t, err)
	invalidPolicy(t, f)
}

// bare takes the mesh out of the cluster.
func bare(t *testing.T, f *fake) {
	ctx := t.Context()
	for _, name := range []string{names.Control, names.Injector} {
		must(t, f.kube.AppsV1().Deployments(names.Namespace).Delete(ctx, name, metav1.DeleteOptions{}))
	}
	must(t, f.kube.AppsV1().DaemonSets(names.Namespace).Delete(ctx, names.Node, metav1.DeleteOptions{}))
	must(t, f.kube.CoreV1().ConfigMaps(names.Namespace).Delete(ctx, names.TrustBundleConfigMap, metav1.DeleteOptions{}))
	must(t, f.kube.CoreV1().Services(names.Namespace).Delete(ctx, names.Control, metav1.DeleteOptions{}))
	must(t, f.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(ctx, names.Injector, metav1.DeleteOptions{}))
	for _, pod := range []string{"hauberk-control-a", "hauberk-control-b", "hauberk-node-1", "hauberk-node-2"} {
		must(t, f.kube.CoreV1().Pods(names.Namespace).Delete(ctx, pod, metav1.DeleteOptions{}))
	}
	for _, pod := range []string{"customer-1", "database-1"} {
		must(t, f.kube.CoreV1().Pods("yaobank").Delete(ctx, pod, metav1.DeleteOptions{}))
	}
	must(t, f.kube.CoreV1().Namespaces().Delete(ctx, "yaobank", metav1.DeleteOptions{}))
	must(t, f.dyn.Resource(schema.GroupVersionResource{Group: "hauberk.dev", Version: "v1alpha1", Resource: "meshpolicies"}).Namespace("yaobank").Delete(ctx, "database-reads", metav1.DeleteOptions{}))
}

func unmesh(t *testing.T, f *fake) {
	_, err := f.kube.CoreV1().Pods("yaobank").Update(t.Context(), plainPod("yaobank", "database-1", "database", map[string]string{"app": "database"}, "10.244.1.6", 2379), metav1.UpdateOptions{})
	must(t, err)
}

func strict(_ *testing.T, f *fake) {
	f.create("peerauthentications", `
apiVersion: hauberk.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: all, namespace: yaobank, uid: pa1}
spec: {mtls: {mode: STRICT}}
`)
}

func invalidPolicy(_ *testing.T, f *fake) {
	f.create("meshpolicies", `
apiVersion: hauberk.dev/v1alpha1
kind: MeshPolicy
metadata: {name: bad, namespace: yaobank, uid: p2, generation: 2}
spec:
  order: 1
  podSelector: {matchLabels: {app: database}}
  ingress:
  - {action: Deny, from: [{networks: [{cidr: everywhere}]}]}
status:
  conditions: [{type: Accepted, status: "False", message: "ingress[0]: everywhere is no CIDR", observedGeneration: 2}]
`)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerify(t *testing.T) {
	tests := []struct {
		name   string
		change func(*testing.T, *fake)
		code   int
		told   string
		silent bool
	}{
		{name: "well", silent: true},
		{name: "users' faults do not fail an installation", change: invalidPolicy, told: "MeshPolicy yaobank/bad is not accepted"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			if test.change != nil {
				test.change(t, f)
			}
			var out, errOut bytes.Buffer
			env := &run.Env{Output: run.Output{Out: &out, Err: &errOut}}
			env.Now = nowToday
			env.Connect = func() (*run.Clients, error) {
				return &run.Clients{Kube: f.kube, Dynamic: f.dyn, Extensions: f.ext, DialPod: f.dial}, nil
			}
			if err := check.Verify(t.Context(), env); run.Code(err) != test.code {
				t.Fatalf("error %v, want code %d", err, test.code)
			}
			if test.silent && out.Len()+errOut.Len() > 0 {
				t.Errorf("told %q %q, want nothing", out.String(), errOut.String())
			}
			if !strings.Contains(errOut.String(), test.told) {
				t.Errorf("told %q, want %q", errOut.String(), test.told)
			}
		})
	}
}

// TestUnreachable is the exit code of a cluster that does not answer.
func TestUnreachable(t *testing.T) {
	config := t.TempDir() + "/config"
	writeFile(t, config, `
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: a}}]
current-context: a
`)
	for _, test := range []struct {
		args string
		code int
	}{
		{"check", run.ExitUnreachable},
		{"check --wait --timeout 300ms", run.ExitTimeout},
		{"status", run.ExitUnreachable},
		{"node status", run.ExitUnreachable},
		{"flows", run.ExitUnreachable},
		{"policy can a/b c/d --port 1", run.ExitUnreachable},
		{"inject -f -", run.ExitUnreachable},
	} {
		t.Run(test.args, func(t *testing.T) {
			var out, errOut bytes.Buffer
			args := append(strings.Fields(test.args), "--kubeconfig", config)
			if code := Main(t.Context(), args, strings.NewReader(""), &out, &errOut); code != test.code {
				t.Errorf("exit code %d, want %d: %s", code, test.code, errOut.String())
			}
			if !strings.HasPrefix(errOut.String(), "error: ") || strings.Count(errOut.String(), "\n") != 2 {
				t.Errorf("want one line and its mend, got %q", errOut.String())
			}
		})
	}
}

// TestCodes is the table of exit codes.
func TestCodes(t *testing.T) {
	tests := []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{run.Fail(run.ExitUsage, "", "x"), 64},
		{fmt.Errorf("wrapped: %w", run.Fail(run.ExitBadInput, "", "x")), 65},
		{run.Told(run.ExitFindings), 79},
		{run.Told(run.ExitDenied), 80},
		{context.DeadlineExceeded, 124},
		{apierrors.NewBadRequest("x"), 65},
	}
	for _, test := range tests {
		if got := run.Code(test.err); got != test.code {
			t.Errorf("code of %v is %d, want %d", test.err, got, test.code)
		}
	}
}
