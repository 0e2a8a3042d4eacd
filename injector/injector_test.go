package injector

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/hauberk-mesh/hauberk/injector/certs"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

func bufioReader(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

// lockedBuffer is a log that one goroutine reads while others write.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func ptr[T any](v T) *T { return &v }

// plain is a pod as a user writes it.
func plain(name string, f func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.org/app:1"}}},
	}
	if f != nil {
		f(p)
	}
	return p
}

// placeholderBundle has the form of a trust bundle.
const placeholderBundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

// injected is one as the injector makes it.
func injected(t *testing.T, name string, f func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	ns := patch.NamespaceFacts{Name: "bank", Labels: map[string]string{names.LabelInject: names.InjectEnabled}}
	_, p, err := patch.Inject(plain(name, nil), ns, patch.Config{Image: testProxyImage, ControlAddress: "10.0.0.1:15012", TrustBundle: placeholderBundle})
	if err != nil {
		t.Fatal(err)
	}
	if f != nil {
		f(p)
	}
	return p
}

// TestRealAPIServer holds the chart's policies, webhook and rights, and the
// injector's own work on certificates, against a real API server.
func TestRealAPIServer(t *testing.T) {
	admin := startAPIServer(t)
	client := kubernetes.NewForConfigOrDie(admin)
	for name, label := range map[string]string{names.Namespace: "enabled", "bank": "enabled", "plain": "", "off": "disabled", "canary": "enabled"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if label != "" {
			ns.Labels = map[string]string{names.LabelInject: label}
		}
		if name == "canary" {
			ns.Labels[names.LabelRevision] = name
		}
		if _, err := client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		if _, err := client.CoreV1().ServiceAccounts(name).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	installChart(t, admin)
	// A policy takes a moment to be in force.
	eventually(t, time.Minute, "policy in force", func() error {
		_, err := client.CoreV1().Pods("bank").Create(t.Context(), plain("early", nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
			return nil
		}
		return fmt.Errorf("got %v, want a refusal", err)
	})

	t.Run("root's Secret", func(t *testing.T) { testRootSecret(t, admin) })
	t.Run("policy", func(t *testing.T) { testPolicy(t, client) })
	t.Run("kept", func(t *testing.T) { testKept(t, client) })
	t.Run("webhook", func(t *testing.T) {
		first, second := startInjector(t, admin), startInjector(t, admin)
		testWebhook(t, client, first, second)
	})
}

// testPolicy runs without an injector: all that stands is the policy.
func testPolicy(t *testing.T, client kubernetes.Interface) {
	label := func(v string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels = map[string]string{names.LabelInject: v} }
	}
	sidecar := func(f func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { f(&p.Spec.InitContainers[0]) }
	}
	const missing, foreign, reserved = "has no sidecar", "is not Hauberk's sidecar", "are the sidecar's"
	const revision = "and the only one is default"
	revisioned := func(rev string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			if p.Labels == nil {
				p.Labels = map[string]string{}
			}
			p.Labels[names.LabelRevision] = rev
		}
	}
	for i, tc := range []struct {
		name, namespace string
		pod             *corev1.Pod
		refused         string // part of the message; empty for an accepted pod
	}{
		{"meshed and plain", "bank", plain("", nil), missing},
		{"meshed and injected", "bank", injected(t, "", nil), ""},
		{"opted out", "bank", plain("", label("disabled")), ""},
		{"opted in elsewhere", "plain", plain("", label("enabled")), missing},
		{"opted in and injected", "plain", injected(t, "", label("enabled")), ""},
		{"opted in where it is off", "off", plain("", label("enabled")), missing},
		{"typing error in a meshed namespace", "bank", plain("", label("enable")), missing},
		{"not meshed", "plain", plain("", nil), ""},
		{"off", "off", plain("", nil), ""},
		{"mesh itself", names.Namespace, plain("", nil), ""},
		{"host network", "bank", plain("", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), ""},
		{"not restarted", "bank", injected(t, "", sidecar(func(c *corev1.Container) {
			c.RestartPolicy, c.StartupProbe, c.ReadinessProbe, c.LivenessProbe, c.Lifecycle = nil, nil, nil, nil, nil
		})), foreign},
		{"other image", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.Image = "example.org/evil:v1" })), foreign},
		{"image that only begins alike", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.Image = "registry.example.org:5000/hauberk/proxy-evil:v1" })), foreign},
		{"other version", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.Image = "registry.example.org:5000/hauberk/proxy:v2" })), ""},
		{"by digest", "bank", injected(t, "", sidecar(func(c *corev1.Container) {
			c.Image = "registry.example.org:5000/hauberk/proxy@sha256:" + strings.Repeat("0", 64)
		})), ""},
		{"other user", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.SecurityContext.RunAsUser = ptr(int64(1)) })), foreign},
		{"other command", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.Command = []string{"/x"} })), foreign},
		{"other arguments", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.Args = []string{"sidecar", "--allow-all"} })), foreign},
		{"no security context", "bank", injected(t, "", sidecar(func(c *corev1.Container) { c.SecurityContext = nil })), foreign},
		{"as an ordinary container", "bank", plain("", func(p *corev1.Pod) { p.Spec.Containers[0].Name = names.ProxyContainer }), missing},
		{"reserved user", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(15015))}
		}), reserved},
		{"reserved group", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsGroup: ptr(int64(15015))}
		}), reserved},
		{"reserved user of an init container", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: "i", Image: "i", SecurityContext: &corev1.SecurityContext{RunAsUser: ptr(int64(15015))}})
		}), reserved},
		{"reserved user of the pod", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(15015))}
		}), reserved},
		{"reserved fsGroup", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(15015))}
		}), reserved},
		{"reserved supplemental group", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroups: []int64{7, 15015}}
		}), reserved},
		{"token mounted by the application", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: patch.TokenVolume, MountPath: "/t"}}
		}), reserved},
		{"own sidecar under another revision", "bank", injected(t, "", revisioned("canary")), revision},
		{"another revision without a sidecar", "bank", plain("", revisioned("canary")), revision},
		{"own sidecar in a namespace of another revision", "canary", injected(t, "", nil), revision},
		{"back to this revision", "canary", injected(t, "", revisioned("default")), ""},
		{"this revision by name", "bank", injected(t, "", revisioned("default")), ""},
		{"empty revision", "bank", injected(t, "", revisioned("")), ""},
		{"another revision outside of the mesh", "plain", plain("", revisioned("canary")), ""},
		{"another revision, opted out", "canary", plain("", label("disabled")), ""},
		{"other user and groups", "bank", injected(t, "", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000)), FSGroup: ptr(int64(1000)), SupplementalGroups: []int64{7}}
		}), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.pod.Name = "p" + strconv.Itoa(i)
			_, err := client.CoreV1().Pods(tc.namespace).Create(t.Context(), tc.pod, metav1.CreateOptions{})
			if tc.refused == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.refused) || !strings.Contains(err.Error(), "hauberk-injection") {
				t.Fatalf("got %v, want a refusal by the policy that says %q", err, tc.refused)
			}
		})
	}
}

// testKept changes pods that run.
func testKept(t *testing.T, client kubernetes.Interface) {
	pods := client.CoreV1().Pods("bank")
	if _, err := pods.Create(t.Context(), injected(t, "kept", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const debug = `{"spec":{"ephemeralContainers":[{"name":"debug","image":"example.org/debug:1","securityContext":{"runAsUser":%d}}]}}`
	for _, tc := range []struct {
		name, body string
		sub        []string
		refused    string
	}{
		{"label", `{"metadata":{"labels":{"a":"b"}}}`, nil, ""},
		{"image of the application", `{"spec":{"containers":[{"name":"app","image":"example.org/app:2"}]}}`, nil, ""},
		{"version of the sidecar", `{"spec":{"initContainers":[{"name":"hauberk-proxy","image":"registry.example.org:5000/hauberk/proxy:v2"}]}}`, nil, ""},
		{"image of the sidecar", `{"spec":{"initContainers":[{"name":"hauberk-proxy","image":"example.org/evil:v1"}]}}`, nil, "may only be one of"},
		{"debug container", fmt.Sprintf(debug, 1000), []string{"ephemeralcontainers"}, ""},
		{"debug container as the sidecar's user", fmt.Sprintf(debug, 15015), []string{"ephemeralcontainers"}, "debug with another user"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := pods.Patch(t.Context(), "kept", types.StrategicMergePatchType, []byte(tc.body), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, tc.sub...)
			if tc.refused == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tc.refused != "" && (err == nil || !strings.Contains(err.Error(), tc.refused)) {
				t.Errorf("got %v, want a refusal that says %q", err, tc.refused)
			}
		})
	}
}

// testWebhook runs two replicas.
func testWebhook(t *testing.T, client kubernetes.Interface, replicas ...*injectorProcess) {
	ctx := t.Context()
	eventually(t, 30*time.Second, "not ready without a trust bundle, and for that reason only", func() error {
		err := replicas[0].ready(ctx)
		if err == nil || !strings.Contains(err.Error(), "trust bundle") || strings.Contains(err.Error(), "certificates") || strings.Contains(err.Error(), "namespaces") {
			return fmt.Errorf("readiness says: %v", err)
		}
		return nil
	})
	bundle := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: names.TrustBundleConfigMap}, Data: map[string]string{names.TrustBundleKey: placeholderBundle}}
	if _, err := client.CoreV1().ConfigMaps(names.Namespace).Create(ctx, bundle, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		eventually(t, 30*time.Second, "ready", func() error { return r.ready(ctx) })
	}
	route(t, client, replicas...)

	created := 0
	create := func(namespace string, p *corev1.Pod) (*corev1.Pod, error) {
		created++
		p.Name = "w" + strconv.Itoa(created)
		return client.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
	}
	works := func() error {
		p, err := create("bank", plain("", nil))
		if err != nil {
			return err
		}
		if len(p.Spec.InitContainers) == 0 || p.Spec.InitContainers[0].Name != names.ProxyContainer || p.Annotations[names.AnnotationStatus] == "" {
			return errors.New("created without a sidecar")
		}
		return nil
	}
	eventually(t, 30*time.Second, "a pod is injected", works)

	if p, err := create("plain", plain("", func(p *corev1.Pod) { p.Labels = map[string]string{names.LabelInject: "enabled"} })); err != nil || len(p.Spec.InitContainers) != 1 {
		t.Errorf("pod that opts in: %v", err)
	}
	for _, namespace := range []string{"plain", "off", names.Namespace} {
		if p, err := create(namespace, plain("", nil)); err != nil || len(p.Spec.InitContainers) != 0 {
			t.Errorf("pod of namespace %s: %v", namespace, err)
		}
	}
	// The API server's defaults do not make a second call see a change.
	p, err := client.CoreV1().Pods("bank").Get(ctx, "w1", metav1.GetOptions{})
	if err == nil {
		again := p.DeepCopy()
		again.ResourceVersion, again.UID = "", ""
		if second, err := create("bank", again); err != nil {
			t.Errorf("pod that is injected already: %v", err)
		} else if d := cmp.Diff(p.Spec, second.Spec); d != "" {
			t.Errorf("injecting an injected pod changes it:\n%s", d)
		}
	}
	_, err = create("bank", plain("", func(p *corev1.Pod) { p.Annotations = map[string]string{names.AnnotationLogLevel: "loud"} }))
	if err == nil || !strings.Contains(err.Error(), `"loud" is not debug`) || !strings.Contains(err.Error(), names.AnnotationLogLevel) {
		t.Errorf("pod with a bad annotation: %v", err)
	}

	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	bundles := func() [][]byte {
		stored, err := hooks.Get(ctx, names.Injector, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out [][]byte
		for _, w := range stored.Webhooks {
			out = append(out, w.ClientConfig.CABundle)
		}
		return out
	}
	if b := bundles(); len(b) != 2 || !equalBundles(b) {
		t.Errorf("caBundles differ or are empty: %q", b)
	}

	// What somebody breaks is mended.
	if _, err := hooks.Patch(ctx, names.Injector, types.JSONPatchType, []byte(`[{"op":"remove","path":"/webhooks/1/clientConfig/caBundle"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "caBundle mended", func() error {
		if b := bundles(); !equalBundles(b) {
			return fmt.Errorf("caBundles %q", b)
		}
		return nil
	})
	before := bundles()[0]
	secrets := client.CoreV1().Secrets(names.Namespace)
	if _, err := secrets.Patch(ctx, certs.Secret, types.MergePatchType, []byte(`{"data":{"tls.key":"Z2FyYmFnZQ=="}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "Secret made anew and published", func() error {
		if b := bundles(); !equalBundles(b) || bytes.Equal(b[0], before) {
			return errors.New("caBundle is still the old one")
		}
		return nil
	})
	for _, r := range replicas {
		eventually(t, 30*time.Second, "ready again", func() error { return r.ready(ctx) })
	}
	eventually(t, 30*time.Second, "a pod is injected with the new certificate", works)

	// A Secret that is gone is reported and the old certificate served on; an
	// empty one, as the chart makes it, is filled.
	if err := secrets.Delete(ctx, certs.Secret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the missing Secret is named", func() error {
		if err := replicas[0].ready(ctx); err == nil || !strings.Contains(err.Error(), "hauberk-system/hauberk-injector-webhook is missing: install the chart again") {
			return fmt.Errorf("readiness says: %v", err)
		}
		return nil
	})
	if err := works(); err != nil {
		t.Errorf("without the Secret: %v", err)
	}
	if _, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: certs.Secret}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		eventually(t, 30*time.Second, "ready with the new Secret", func() error { return r.ready(ctx) })
	}
	eventually(t, 30*time.Second, "a pod is injected with the new Secret", works)

	// A trust bundle that is none does not replace a good one.
	if _, err := client.CoreV1().ConfigMaps(names.Namespace).Patch(ctx, names.TrustBundleConfigMap, types.MergePatchType, []byte(`{"data":{"ca.crt":"garbage"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the broken bundle is noticed", func() error {
		if !strings.Contains(replicas[0].logs.String(), "trust bundle not taken over") {
			return errors.New("no word of it in the log")
		}
		return nil
	})
	if err := works(); err != nil {
		t.Errorf("with a broken bundle: %v", err)
	}

	metrics, err := fetch(ctx, "http://"+replicas[0].config.MetricsAddress+"/metrics")
	if err != nil || !strings.Contains(metrics, `hauberk_injector_reviews_total{result="refused"} 1`) || strings.Contains(metrics, "expiry_timestamp_seconds 0\n") {
		t.Errorf("metrics (%v):\n%s", err, metrics)
	}
	if _, err := fetch(ctx, "http://"+replicas[0].config.AdminAddress+"/debug/pprof/cmdline"); err != nil {
		t.Errorf("pprof: %v", err)
	}

	// The injector goes away: nothing unmeshed gets in, and who is not in the
	// mesh does not notice.
	for _, r := range replicas {
		r.stop()
	}
	if _, err := create("bank", plain("", nil)); err == nil || !strings.Contains(err.Error(), "has no sidecar") {
		t.Errorf("pod of a meshed namespace without injector: %v", err)
	}
	for _, namespace := range []string{"plain", names.Namespace} {
		if _, err := create(namespace, plain("", nil)); err != nil {
			t.Errorf("pod of namespace %s without injector: %v", namespace, err)
		}
	}
}

// route does what the controllers of endpoints would do. All replicas must
// hold the same certificate, but only the first has the port that the slice
// can name.
func route(t *testing.T, client kubernetes.Interface, replicas ...*injectorProcess) {
	t.Helper()
	_, port, _ := strings.Cut(replicas[0].config.WebhookAddress, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "hauberk-injector-test", Labels: map[string]string{discoveryv1.LabelServiceName: names.Injector}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{outsideAddress(t)}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}}},
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("webhook"), Port: ptr(int32(n)), Protocol: ptr(corev1.ProtocolTCP)}},
	}
	if _, err := client.DiscoveryV1().EndpointSlices(names.Namespace).Create(context.WithoutCancel(t.Context()), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// testRootSecret: the control plane fills the Secret that the chart made and can
// make none, and another apply of the chart leaves the root alone.
func testRootSecret(t *testing.T, admin *rest.Config) {
	rc := rest.CopyConfig(admin)
	rc.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:hauberk-system:hauberk-control",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:hauberk-system", "system:authenticated"}}
	control := kubernetes.NewForConfigOrDie(rc).CoreV1().Secrets(names.Namespace)
	var secret *corev1.Secret
	eventually(t, 30*time.Second, "rights of the control plane", func() (err error) {
		secret, err = control.Get(t.Context(), names.CASecret, metav1.GetOptions{})
		return err
	})
	if len(secret.Data) != 0 || secret.Annotations["helm.sh/resource-policy"] != "keep" {
		t.Errorf("made with data %v and annotations %v", secret.Data, secret.Annotations)
	}
	secret.Data = map[string][]byte{"tls.crt": []byte("root"), "tls.key": []byte("key")}
	if _, err := control.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("the control plane can't fill it: %v", err)
	}
	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	if _, err := control.Create(t.Context(), other, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the control plane makes a Secret: %v", err)
	}
	if _, err := control.Get(t.Context(), "hauberk-injector-webhook", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the control plane reads the injector's Secret: %v", err)
	}
	// As an upgrade applies it, also to one that an older control plane made.
	all := kubernetes.NewForConfigOrDie(admin).CoreV1().Secrets(names.Namespace)
	for _, kind := range []corev1.SecretType{corev1.SecretTypeOpaque, corev1.SecretTypeTLS} {
		if kind == corev1.SecretTypeTLS {
			if err := all.Delete(t.Context(), names.CASecret, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			old := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: names.CASecret}, Type: kind, Data: secret.Data}
			if _, err := all.Create(t.Context(), old, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		again := applycorev1.Secret(names.CASecret, names.Namespace).WithAnnotations(secret.Annotations).WithLabels(secret.Labels)
		got, err := all.Apply(t.Context(), again, metav1.ApplyOptions{FieldManager: "helm", Force: true})
		if err != nil || string(got.Data["tls.key"]) != "key" || got.Type != kind {
			t.Errorf("%s after an upgrade: %v of type %s, %v", kind, got.Data, got.Type, err)
		}
	}
}
