package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsfake "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiversion "k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/install/crds"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// today is the clock of these tests.
var today = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fake is a cluster with a mesh in it: objects in memory, admin pages on real
// sockets.
type fake struct {
	t     *testing.T
	kube  *kubefake.Clientset
	dyn   *dynamicfake.FakeDynamicClient
	ext   *apiextensionsfake.Clientset
	pages map[string]map[string]string // by pod and port, then path
	root  string
	chain string
}

func labels(component string) map[string]string {
	return map[string]string{"app.kubernetes.io/name": "hauberk", "app.kubernetes.io/component": component, "app.kubernetes.io/version": "v1.2.3"}
}

func object(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, UID: types.UID("uid-" + name)}
}

// sidecarPod is a pod in the mesh, ready.
func sidecarPod(namespace, name, account string, labels map[string]string, ip string, port int32) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	p := plainPod(namespace, name, account, labels, ip, port)
	p.Annotations = map[string]string{names.AnnotationStatus: `{"version":"v1.2.3"}`}
	p.Spec.InitContainers = []corev1.Container{{Name: names.ProxyContainer, Image: "hauberk.dev/hauberk-proxy:v1.2.3", RestartPolicy: &always}}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: names.ProxyContainer, Ready: true}}
	return p
}

func plainPod(namespace, name, account string, labels map[string]string, ip string, port int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: object(namespace, name, labels),
		Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, pages: map[string]map[string]string{}}
	f.certificates()
	two := int32(2)
	control, injector, node := labels("control"), labels("injector"), labels("node")
	deployment := func(name string, l map[string]string, args ...string) *appsv1.Deployment {
		return &appsv1.Deployment{ObjectMeta: object(names.Namespace, name, l), Spec: appsv1.DeploymentSpec{Replicas: &two,
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: args}}}}},
			Status: appsv1.DeploymentStatus{ReadyReplicas: 2, UpdatedReplicas: 2}}
	}
	leader := "hauberk-control-a"
	yaobank := map[string]string{names.LabelInject: names.InjectEnabled, corev1.LabelMetadataName: "yaobank"}
	objects := []runtime.Object{
		&corev1.Node{ObjectMeta: object("", "node1", nil), Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.11"}}}},
		&corev1.Namespace{ObjectMeta: object("", names.Namespace, nil)},
		&corev1.Namespace{ObjectMeta: object("", "default", nil)},
		&corev1.Namespace{ObjectMeta: object("", "yaobank", yaobank)},
		deployment(names.Control, control),
		deployment(names.Injector, injector, "--proxy-image=hauberk.dev/hauberk-proxy:v1.2.3", "--trust-domain=cluster.local"),
		&appsv1.DaemonSet{ObjectMeta: object(names.Namespace, names.Node, node), Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, NumberReady: 2}},
		&corev1.Pod{ObjectMeta: object(names.Namespace, "hauberk-control-a", control), Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		&corev1.Pod{ObjectMeta: object(names.Namespace, "hauberk-control-b", control), Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		&corev1.Pod{ObjectMeta: object(names.Namespace, "hauberk-node-1", node), Spec: corev1.PodSpec{NodeName: "node1", HostNetwork: true}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "192.0.2.11"}},
		&corev1.Pod{ObjectMeta: object(names.Namespace, "hauberk-node-2", node), Spec: corev1.PodSpec{NodeName: "node2", HostNetwork: true}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "192.0.2.12"}},
		&corev1.Service{ObjectMeta: object(names.Namespace, names.Control, control), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.15", Ports: []corev1.ServicePort{{Name: "grpc", Port: 15012}}}},
		&corev1.ConfigMap{ObjectMeta: object(names.Namespace, names.TrustBundleConfigMap, nil), Data: map[string]string{names.TrustBundleKey: f.root}},
		&coordinationv1.Lease{ObjectMeta: object(names.Namespace, names.Control, nil), Spec: coordinationv1.LeaseSpec{HolderIdentity: &leader}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: object("", names.Injector, nil), Webhooks: []admissionv1.MutatingWebhook{
			{Name: "namespace.inject.hauberk.dev", ClientConfig: admissionv1.WebhookClientConfig{CABundle: []byte(f.root)}}}},
		sidecarPod("yaobank", "customer-1", "customer", map[string]string{"app": "customer"}, "10.244.1.5", 8080),
		sidecarPod("yaobank", "database-1", "database", map[string]string{"app": "database"}, "10.244.1.6", 2379),
		plainPod("default", "visitor", "default", nil, "10.244.1.7", 8080),
		&corev1.Service{ObjectMeta: object("yaobank", "database", nil), Spec: corev1.ServiceSpec{ClusterIP: "10.96.1.1", Selector: map[string]string{"app": "database"},
			Ports: []corev1.ServicePort{{Name: "api", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intOrString("http")}}}},
	}
	for _, name := range []string{"hauberk-injection", "hauberk-injection-kept"} {
		objects = append(objects, &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: object("", name, nil)},
			&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: object("", name, nil), Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}})
	}
	f.kube = kubefake.NewClientset(objects...)
	f.kube.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &apiversion.Info{Major: "1", Minor: "36", GitVersion: "v1.36.3"}
	f.kube.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod).DeepCopy()
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers = []corev1.Container{{Name: names.ProxyContainer, RestartPolicy: &always}}
		return true, p, nil
	})
	f.kube.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		r.Status.Allowed = r.Spec.ResourceAttributes.Resource != "secrets"
		return true, r, nil
	})
	f.custom()
	f.admin()
	return f
}

// custom makes our own kinds and their definitions.
func (f *fake) custom() {
	lists := map[schema.GroupVersionResource]string{}
	for resource, kind := range map[string]string{"meshpolicies": "MeshPolicy", "clustermeshpolicies": "ClusterMeshPolicy", "tiers": "Tier",
		"peerauthentications": "PeerAuthentication", "meshconfigs": "MeshConfig",
		"networksets": "NetworkSet", "clusternetworksets": "ClusterNetworkSet"} {
		lists[v1alpha1.GroupVersion.WithResource(resource)] = kind + "List"
	}
	lists[schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"}] = "ClusterNetworkPolicyList"
	f.dyn = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	f.create("meshpolicies", `
apiVersion: hauberk.dev/v1alpha1
kind: MeshPolicy
metadata: {name: database-reads, namespace: yaobank, uid: p1}
spec:
  podSelector: {matchLabels: {app: database}}
  ingress:
  - name: customer-reads
    from: [{serviceAccounts: [{name: customer}]}]
    ports: [{port: 2379}]
    http: [{methods: [GET], paths: [{prefix: /v2/keys}]}]
status:
  conditions: [{type: Accepted, status: "True"}]
`)
	var definitions []runtime.Object
	files, order, err := crds.Files()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, name := range order {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal(files[name], crd); err != nil {
			f.t.Fatal(err)
		}
		crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
		definitions = append(definitions, crd)
	}
	f.ext = apiextensionsfake.NewClientset(definitions...)
}

func (f *fake) create(resource, text string) {
	f.t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.dyn.Resource(v1alpha1.GroupVersion.WithResource(resource)).Namespace(u.GetNamespace()).Create(f.t.Context(), u, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

// certificates makes a root and the chain of customer-1.
func (f *fake) certificates() {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	rootTemplate := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Hauberk root"}, NotBefore: today.Add(-time.Hour), NotAfter: today.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, rootTemplate, rootTemplate, rootKey.Public(), rootKey)
	if err != nil {
		f.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	leafTemplate := &x509.Certificate{SerialNumber: big.NewInt(0xabc), NotBefore: today.Add(-time.Hour), NotAfter: today.Add(23 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/yaobank/sa/customer"}}, DNSNames: []string{"uid-customer-1" + names.PodSANSuffix},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	leaf, err := x509.CreateCertificate(rand.Reader, leafTemplate, rootTemplate, key.Public(), rootKey)
	if err != nil {
		f.t.Fatal(err)
	}
	text := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	f.root, f.chain = text(root), text(leaf)
}

func (f *fake) page(pod, path string, v any) {
	text, ok := v.(string)
	if !ok {
		data, err := json.Marshal(v)
		if err != nil {
			f.t.Fatal(err)
		}
		text = string(data)
	}
	if f.pages[pod] == nil {
		f.pages[pod] = map[string]string{}
	}
	f.pages[pod][path] = text
}

type m = map[string]any

func (f *fake) agent(pod, node, peer string) m {
	return m{
		"node": node, "version": "v1.2.3", "ready": true,
		"control": m{"address": "10.96.0.15:15012", "connected": true, "lastSync": today.Add(-3 * time.Second), "identityExpiry": today.Add(20 * time.Hour)},
		"chain":   m{"file": "10-test.conflist", "present": true},
		"pods":    m{"known": 2, "attached": 2, "meshed": 1, "unprotected": []string{}},
		"tunnel": m{"enabled": true, "backend": "kernel", "interface": "hauberk-wg", "publicKey": "key-" + node, "port": 51871, "mtu": 1420, "peers": []m{{
			"node": peer, "publicKey": "key-" + peer, "endpoint": "192.0.2.1:51871", "allowedIPs": []string{"10.244.1.0/24", "fd00:1::/64"},
			"lastHandshake": today.Add(-90 * time.Second), "receivedBytes": 2048, "sentBytes": 5 << 20}}},
	}
}

func (f *fake) admin() {
	f.page("hauberk-control-a", "/debug/clients", []m{{"kind": "node", "name": "node1"}, {"kind": "sidecar", "name": "uid-customer-1", "version": "v1.2.3"}})
	f.page("hauberk-control-b", "/debug/clients", []m{{"kind": "node", "name": "node2"}, {"kind": "sidecar", "name": "uid-database-1"}})
	f.page("hauberk-node-1", "/status", f.agent("hauberk-node-1", "node1", "node2"))
	f.page("hauberk-node-2", "/status", f.agent("hauberk-node-2", "node2", "node1"))
	f.page("hauberk-node-1", "/rules", "table inet hauberk {\n}\n")
	f.page("hauberk-node-1", "/pods", []m{{"namespace": "yaobank", "name": "customer-1", "addresses": []string{"10.244.1.5"}, "known": true, "meshed": true, "programmed": true, "attached": true}})
	for pod, account := range map[string]string{"customer-1": "customer", "database-1": "database"} {
		f.page(pod, "/status", m{"version": "v1.2.3", "identity": "spiffe://cluster.local/ns/yaobank/sa/" + account, "certificateExpiry": today.Add(12 * time.Hour),
			"connected": true, "lastUpdate": today.Add(-time.Minute), "connections": 3, "logLevel": "info", "mtlsMode": "MTLS_MODE_STRICT"})
		f.page(pod, "/log-level", "info\n")
	}
	f.page("customer-1", "/identity", f.chain)
	f.page("customer-1", "/policy", m{"id": "set1"})
	f.page("customer-1", "/destinations", m{"destinations": m{}})
	f.page("customer-1", "/connections", []m{{"direction": "inbound", "peer": "10.244.1.9:555", "target": "10.244.1.5:8080", "protocol": "http/1.1", "since": today.Add(-time.Minute)}})
	f.page("customer-1", "/pools", []m{{"Address": "10.244.1.6:2379", "SPIFFEID": "spiffe://cluster.local/ns/yaobank/sa/database", "Live": 1, "Idle": 1, "LatencyMicros": 1500}})
	f.page("customer-1", "/metrics", "# HELP x y\nhauberk_requests_total{code_class=\"2xx\",note=\"a b\"} 7\nhauberk_zero 0\nhauberk_duration_bucket{le=\"1\"} 4\ngo_goroutines 9\n")
}

// dial leads to the pages of a pod over a real socket.
func (f *fake) dial(ctx context.Context, _, pod string, _ int) (net.Conn, error) {
	pages, ok := f.pages[pod]
	if !ok {
		return nil, errors.New("connection refused")
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := pages[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.Method == http.MethodPut {
			body := new(bytes.Buffer)
			if _, err := body.ReadFrom(r.Body); err != nil {
				f.t.Error(err)
			}
			text = body.String() + "\n"
		}
		_, _ = w.Write([]byte(text))
	}))
	f.t.Cleanup(s.Close)
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
}

// run executes the command line against the fake.
func (f *fake) run(in string, args ...string) (code int, out, errOut string) {
	f.t.Helper()
	var o, e bytes.Buffer
	env := &run.Env{Output: run.Output{Out: &o, Err: &e}, In: strings.NewReader(in), Now: func() time.Time { return today }}
	env.Connect = func() (*run.Clients, error) {
		return &run.Clients{Kube: f.kube, Dynamic: f.dyn, Extensions: f.ext, DialPod: f.dial}, nil
	}
	code = execute(f.t.Context(), env, args)
	return code, o.String(), e.String()
}

// golden compares with a file of testdata; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; UPDATE_GOLDEN=1 writes it anew):\n%s", path, diff)
	}
}
