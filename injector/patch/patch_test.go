package patch

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	psaapi "k8s.io/pod-security-admission/api"
	psapolicy "k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

var update = flag.Bool("update", false, "write the golden files")

const bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

func config() Config {
	return Config{
		Image: "registry.example.org:5000/hauberk/proxy:v1", ControlAddress: "10.96.0.12:15012",
		TrustBundle: bundle, Version: "v1.2.3",
	}
}

var enabled = NamespaceFacts{Name: "bank", Labels: map[string]string{names.LabelInject: names.InjectEnabled}}

// pod makes a pod with one container and lets f change it.
func pod(f func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "shop", Namespace: "bank"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.org/app:1"}}},
	}
	if f != nil {
		f(p)
	}
	return p
}

func ptr[T any](v T) *T { return &v }

func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no golden inputs: %v", err)
	}
	for _, in := range inputs {
		t.Run(filepath.Base(in), func(t *testing.T) {
			src, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := InjectManifest(bytes.NewReader(src), &got, config(), ManifestOptions{}); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Errorf("output differs from %s (-want +got):\n%s", golden, d)
			}

			// The output is a fixed point of injecting, and uninjecting it and
			// injecting again leads back to it.
			var twice, out, again bytes.Buffer
			if _, err := InjectManifest(bytes.NewReader(want), &twice, config(), ManifestOptions{}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), twice.String()); d != "" {
				t.Errorf("injecting twice changes something:\n%s", d)
			}
			if _, err := UninjectManifest(bytes.NewReader(want), &out); err != nil {
				t.Fatal(err)
			}
			if s := out.String(); strings.Contains(s, "hauberk-proxy") || strings.Contains(s, "hauberk-token") || strings.Contains(s, "/probe/") || strings.Contains(s, names.AnnotationStatus) {
				t.Errorf("uninject leaves something behind:\n%s", s)
			}
			if _, err := InjectManifest(&out, &again, config(), ManifestOptions{}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), again.String()); d != "" {
				t.Errorf("uninject and inject do not lead back:\n%s", d)
			}
		})
	}
}

func TestDecision(t *testing.T) {
	label := func(v string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels = map[string]string{names.LabelInject: v} }
	}
	plain := NamespaceFacts{Name: "plain"}
	for _, tc := range []struct {
		name   string
		ns     NamespaceFacts
		pod    func(*corev1.Pod)
		inject bool
		reason Reason
	}{
		{"namespace enabled", enabled, nil, true, ReasonNamespaceEnabled},
		{"pod opts out", enabled, label(names.InjectDisabled), false, ReasonPodDisabled},
		{"pod opts in", plain, label(names.InjectEnabled), true, ReasonPodEnabled},
		{"nobody asks", plain, nil, false, ReasonNamespaceNotEnabled},
		{"namespace label is a typing error", NamespaceFacts{Name: "x", Labels: map[string]string{names.LabelInject: "true"}}, nil, false, ReasonNamespaceNotEnabled},
		{"the mesh itself", NamespaceFacts{Name: names.Namespace, Labels: enabled.Labels}, label(names.InjectEnabled), false, ReasonMeshNamespace},
		{"host network", enabled, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false, ReasonHostNetwork},
		{"static pod", enabled, func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }, false, ReasonStaticPod},
		{"windows", enabled, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, false, ReasonWindows},
		{"other revision", enabled, func(p *corev1.Pod) { p.Labels = map[string]string{names.LabelRevision: "canary"} }, false, ReasonOtherRevision},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := pod(tc.pod)
			before := in.DeepCopy()
			d, out, err := Inject(in, tc.ns, config())
			if err != nil {
				t.Fatal(err)
			}
			if d.Inject != tc.inject || d.Reason != tc.reason || d.Sentence == "" {
				t.Errorf("decision %+v, want inject %v for %s", d, tc.inject, tc.reason)
			}
			if (sidecarOf(out) != nil) != tc.inject {
				t.Errorf("sidecar present: %v", !tc.inject)
			}
			if diff := cmp.Diff(before, in); diff != "" {
				t.Errorf("the input was changed:\n%s", diff)
			}
			if text := Explain(in, tc.ns, config()); !strings.Contains(text, string(tc.reason)) || !strings.Contains(text, tc.ns.Name) {
				t.Errorf("explanation does not say the reason and the namespace:\n%s", text)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	note := func(k, v string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{k: v} }
	}
	app := func(f func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { f(&p.Spec.Containers[0]) }
	}
	sec := func(f func(*corev1.PodSecurityContext)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{}; f(p.Spec.SecurityContext) }
	}
	own := func(f func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			_, injected, err := Inject(p, enabled, config())
			if err != nil {
				panic(err)
			}
			*p = *injected
			f(&p.Spec.InitContainers[0])
		}
	}
	httpProbe := func(port intstr.IntOrString) func(*corev1.Pod) {
		return app(func(c *corev1.Container) {
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}}
		})
	}
	for _, tc := range []struct {
		name  string
		pod   func(*corev1.Pod)
		where string
	}{
		{"label", func(p *corev1.Pod) { p.Labels = map[string]string{names.LabelInject: "yes"} }, "metadata.labels[hauberk.dev/inject]"},
		{"pod user", sec(func(s *corev1.PodSecurityContext) { s.RunAsUser = ptr(int64(15015)) }), "spec.securityContext.runAsUser"},
		{"pod group", sec(func(s *corev1.PodSecurityContext) { s.RunAsGroup = ptr(int64(15015)) }), "spec.securityContext.runAsGroup"},
		{"fsGroup", sec(func(s *corev1.PodSecurityContext) { s.FSGroup = ptr(int64(15015)) }), "spec.securityContext.fsGroup"},
		{"supplemental", sec(func(s *corev1.PodSecurityContext) { s.SupplementalGroups = []int64{1, 15015} }), "spec.securityContext.supplementalGroups"},
		{"container user", app(func(c *corev1.Container) { c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(15015))} }), "spec.containers[app].securityContext.runAsUser"},
		{"container group", app(func(c *corev1.Container) { c.SecurityContext = &corev1.SecurityContext{RunAsGroup: ptr(int64(15015))} }), "spec.containers[app].securityContext.runAsGroup"},
		{"init container user", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", SecurityContext: &corev1.SecurityContext{RunAsUser: ptr(int64(15015))}}}
		}, "spec.initContainers[i].securityContext.runAsUser"},
		{"ephemeral container user", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", SecurityContext: &corev1.SecurityContext{RunAsUser: ptr(int64(15015))}}}}
		}, "spec.ephemeralContainers[e].securityContext.runAsUser"},
		{"user namespace", func(p *corev1.Pod) { p.Spec.HostUsers = ptr(false) }, "spec.hostUsers"},
		{"port", app(func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 15021}} }), "spec.containers[app].ports"},
		{"token mount", app(func(c *corev1.Container) { c.VolumeMounts = []corev1.VolumeMount{{Name: TokenVolume}} }), "spec.containers[app].volumeMounts"},
		{"token volume", func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: TokenVolume}} }, "spec.volumes[hauberk-token]"},
		{"app named as ours", app(func(c *corev1.Container) { c.Name = names.ProxyContainer }), "spec.containers[hauberk-proxy]"},
		{"foreign image", own(func(c *corev1.Container) { c.Image = "example.org/evil:v1" }), "spec.initContainers[hauberk-proxy].image"},
		{"foreign command", own(func(c *corev1.Container) { c.Command = []string{"/bin/sleep"} }), "spec.initContainers[hauberk-proxy].args"},
		{"foreign user", own(func(c *corev1.Container) { c.SecurityContext.RunAsUser = ptr(int64(0)) }), "spec.initContainers[hauberk-proxy].securityContext.runAsUser"},
		{"not a sidecar", own(func(c *corev1.Container) { c.RestartPolicy = nil }), "spec.initContainers[hauberk-proxy].restartPolicy"},
		{"foreign environment", own(func(c *corev1.Container) { c.EnvFrom = []corev1.EnvFromSource{{Prefix: "X"}} }), "spec.initContainers[hauberk-proxy].envFrom"},
		{"two control planes", own(func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "HAUBERK_CONTROL_ADDRESS", Value: "192.0.2.1:1"})
		}), "spec.initContainers[hauberk-proxy].env[HAUBERK_CONTROL_ADDRESS]"},
		{"foreign hook", own(func(c *corev1.Container) {
			c.Lifecycle.PostStart = &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}
		}), "spec.initContainers[hauberk-proxy].lifecycle"},
		{"foreign stop", own(func(c *corev1.Container) { c.Lifecycle.PreStop.Exec.Command = []string{"sh"} }), "spec.initContainers[hauberk-proxy].lifecycle"},
		{"probe by command", own(func(c *corev1.Container) {
			c.LivenessProbe.ProbeHandler = corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}
		}), "spec.initContainers[hauberk-proxy].livenessProbe"},
		{"foreign program", own(func(c *corev1.Container) {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "evil", MountPath: "/usr/local/bin"})
		}), "spec.initContainers[hauberk-proxy].volumeMounts[evil]"},
		{"foreign token", own(func(c *corev1.Container) { c.VolumeMounts[0].Name = "evil" }), "spec.initContainers[hauberk-proxy].volumeMounts[evil]"},
		{"unknown port name", httpProbe(intstr.FromString("nope")), "spec.containers[app].livenessProbe.httpGet.port"},
		{"probe of the sidecar", httpProbe(intstr.FromInt32(15021)), "spec.containers[app].livenessProbe.httpGet.port"},
		{"port zero", httpProbe(intstr.FromInt32(0)), "spec.containers[app].livenessProbe.httpGet.port"},
		{"inbound ports", note(names.AnnotationExcludeInboundPorts, "80,http"), "metadata.annotations[hauberk.dev/exclude-inbound-ports]"},
		{"outbound ports", note(names.AnnotationExcludeOutboundPorts, "70000"), "metadata.annotations[hauberk.dev/exclude-outbound-ports]"},
		{"in and out", func(p *corev1.Pod) {
			p.Annotations = map[string]string{names.AnnotationIncludeInboundPorts: "80", names.AnnotationExcludeInboundPorts: "80"}
		}, "metadata.annotations[hauberk.dev/exclude-inbound-ports]"},
		{"cidr", note(names.AnnotationExcludeOutboundCIDRs, "10.0.0.1/8"), "metadata.annotations[hauberk.dev/exclude-outbound-cidrs]"},
		{"no cidr", note(names.AnnotationExcludeOutboundCIDRs, "10.0.0.1"), "metadata.annotations[hauberk.dev/exclude-outbound-cidrs]"},
		{"log level", note(names.AnnotationLogLevel, "loud"), "metadata.annotations[hauberk.dev/log-level]"},
		{"drain", note(names.AnnotationDrainSeconds, "-1"), "metadata.annotations[hauberk.dev/drain-seconds]"},
		{"cpu", note(names.AnnotationProxyCPU, "lots"), "metadata.annotations[hauberk.dev/proxy-cpu]"},
		{"memory", note(names.AnnotationProxyMemory, "64Mi/32Mi"), "metadata.annotations[hauberk.dev/proxy-memory]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Inject(pod(tc.pod), enabled, config())
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %v, want a refusal", err)
			}
			if r.Where != tc.where || r.What == "" || r.Mend == "" {
				t.Errorf("refused at %q (%v), want %q with what and mend", r.Where, err, tc.where)
			}
			if text := Explain(pod(tc.pod), enabled, config()); !strings.HasPrefix(text, "refused: ") {
				t.Errorf("explanation %q does not say that the pod is refused", text)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, tc := range []struct {
		name string
		pod  func(*corev1.Pod)
		want string
	}{
		{"shared processes", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr(true) }, "shareProcessNamespace"},
		{"host processes", func(p *corev1.Pod) { p.Spec.HostPID = true }, "hostPID"},
		{"host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "host's network"},
		{"unknown annotation", func(p *corev1.Pod) { p.Annotations = map[string]string{"hauberk.dev/exclude-inbound-port": "1"} }, "not known"},
		{"drain longer than grace", func(p *corev1.Pod) {
			p.Spec.TerminationGracePeriodSeconds = ptr(int64(5))
			p.Annotations = map[string]string{names.AnnotationDrainSeconds: "60"}
		}, "terminationGracePeriodSeconds"},
		{"hook", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}}
		}, "lifecycle.postStart"},
		{"probe of a host", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "192.0.2.1", Port: intstr.FromInt32(80)}}}
		}, "192.0.2.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, out, err := Inject(pod(tc.pod), enabled, config())
			if err != nil {
				t.Fatal(err)
			}
			if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], tc.want) {
				t.Errorf("warnings %q, want one with %q", d.Warnings, tc.want)
			}
			for _, c := range out.Spec.Containers {
				if c.ReadinessProbe != nil && c.ReadinessProbe.TCPSocket == nil {
					t.Errorf("a probe that names a host was rewritten")
				}
			}
		})
	}
}

// TestReinvocation: another webhook puts an init container before ours and
// adds a container with a probe; the second call mends both.
func TestReinvocation(t *testing.T) {
	_, p, err := Inject(pod(nil), enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	p.Spec.InitContainers = append([]corev1.Container{{Name: "early"}}, p.Spec.InitContainers...)
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
		Name:          "late",
		LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(81)}}},
	})
	d, out, err := Inject(p, enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	if d.Inject || d.Reason != ReasonAlreadyInjected {
		t.Errorf("decision %+v", d)
	}
	if got := out.Spec.InitContainers[0].Name; got != names.ProxyContainer {
		t.Errorf("first init container is %s", got)
	}
	want := map[string]Probe{"late/liveness": {HTTP: &HTTPProbe{Path: "/", Port: 81, Scheme: "HTTP"}, TimeoutSeconds: 1}}
	if d := cmp.Diff(want, probesOf(sidecarOf(out))); d != "" {
		t.Errorf("probes (-want +got):\n%s", d)
	}
	if got := out.Spec.Containers[1].LivenessProbe.HTTPGet; got.Path != "/probe/late/liveness" || got.Host != "" {
		t.Errorf("probe is %+v", got)
	}
	_, third, err := Inject(out, enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(out, third); d != "" {
		t.Errorf("a third call changes something:\n%s", d)
	}
}

// TestBroughtSidecarObeysUs: a pod that brings the sidecar with it cannot choose
// whose policy and roots it takes.
func TestBroughtSidecarObeysUs(t *testing.T) {
	_, want, err := Inject(pod(nil), enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *corev1.Container){
		"another control plane": func(c *corev1.Container) {
			for i := range c.Env {
				if c.Env[i].Name == "HAUBERK_CONTROL_ADDRESS" || c.Env[i].Name == "HAUBERK_TRUST_BUNDLE" {
					c.Env[i].Value = "192.0.2.1:1"
				}
			}
		},
		"none": func(c *corev1.Container) { c.Env = nil },
		"token elsewhere": func(c *corev1.Container) {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "api", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
		},
	} {
		p := want.DeepCopy()
		change(sidecarOf(p))
		_, got, err := Inject(p, enabled, config())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for key, value := range trustEnv(config().withDefaults()) {
			if !slices.ContainsFunc(sidecarOf(got).Env, func(e corev1.EnvVar) bool { return e.Name == key && e.Value == value }) {
				t.Errorf("%s: %s is not ours in %v", name, key, sidecarOf(got).Env)
			}
		}
	}
}

// TestPodSecurity: what was restricted stays restricted.
func TestPodSecurity(t *testing.T) {
	evaluator, err := psapolicy.NewEvaluator(psapolicy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(p *corev1.Pod) string {
		level := psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}
		var problems []string
		for _, r := range evaluator.EvaluatePod(level, &p.ObjectMeta, &p.Spec) {
			if !r.Allowed {
				problems = append(problems, r.ForbiddenReason+": "+r.ForbiddenDetail)
			}
		}
		return strings.Join(problems, "\n")
	}
	strict := &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	for _, tc := range []struct {
		name string
		pod  func(*corev1.Pod)
	}{
		{"security on the pod", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(1000)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
			p.Spec.Containers[0].SecurityContext = strict
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}}
		}},
		{"security on the container", func(p *corev1.Pod) {
			sc := strict.DeepCopy()
			sc.RunAsNonRoot, sc.SeccompProfile = ptr(true), &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
			p.Spec.Containers[0].SecurityContext = sc
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := pod(tc.pod)
			if s := allowed(in); s != "" {
				t.Fatalf("the test's own pod is not restricted: %s", s)
			}
			_, out, err := Inject(in, enabled, config())
			if err != nil {
				t.Fatal(err)
			}
			if sidecarOf(out) == nil {
				t.Fatal("not injected")
			}
			if s := allowed(out); s != "" {
				t.Errorf("the injected pod is no longer restricted: %s", s)
			}
		})
	}
	// The evaluator does see violations in what we add.
	_, out, err := Inject(pod(nil), enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	out.Spec.Containers = nil
	if s := allowed(out); s != "" {
		t.Errorf("the sidecar alone is not restricted: %s", s)
	}
	sidecarOf(out).SecurityContext.RunAsNonRoot = nil
	if allowed(out) == "" {
		t.Error("the evaluator passes a sidecar that may be root: it checks nothing")
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	raw := []byte(`{"metadata":{"name":"x","new":1},"spec":{"new":{"a":[1]},"containers":[{"name":"app","image":"i","new":true,
		"livenessProbe":{"new":"p","tcpSocket":{"port":80}}}],"volumes":[{"name":"v","new":{}}]},"status":{"new":9007199254740993}}`)
	_, p, err := InjectJSON(raw, enabled, config())
	if err != nil {
		t.Fatal(err)
	}
	patched, err := applyJSON(raw, p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"metadata":{"annotations":`, `"new":{"a":[1]}`, `"new":true`, `"new":"p"`, `"new":{}`, "9007199254740993", `"new":1`} {
		if !bytes.Contains(patched, []byte(want)) {
			t.Errorf("%s is lost in %s", want, patched)
		}
	}
	back, err := UninjectJSON(patched)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := applyJSON(patched, back)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if json.Unmarshal(raw, &a) != nil || json.Unmarshal(restored, &b) != nil {
		t.Fatal("not JSON")
	}
	if d := cmp.Diff(a, b); d != "" {
		t.Errorf("uninject does not restore the pod (-want +got):\n%s", d)
	}
}

func TestManifestRefusesAll(t *testing.T) {
	const in = "apiVersion: v1\nkind: Pod\nmetadata: {name: good}\nspec: {containers: [{name: a}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {securityContext: {runAsUser: 15015}}\n"
	var out bytes.Buffer
	report, err := InjectManifest(strings.NewReader(in), &out, config(), ManifestOptions{Namespace: "bank"})
	if err == nil || !strings.Contains(err.Error(), "Pod bank/bad: ") || out.Len() != 0 {
		t.Errorf("error %v, output %q", err, out.String())
	}
	if len(report.Items) != 2 || !report.Items[0].Changed || report.Items[1].Changed || report.Items[1].Err == nil {
		t.Errorf("report %+v", report)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := config().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*Config){
		"no image": func(c *Config) { c.Image = "" }, "space": func(c *Config) { c.Image = "a b" },
		"pull policy": func(c *Config) { c.ImagePullPolicy = "Sometimes" },
		"name":        func(c *Config) { c.ControlAddress = "hauberk-control:15012" }, "port": func(c *Config) { c.ControlAddress = "10.0.0.1:0" },
		"domain": func(c *Config) { c.TrustDomain = "Not A Domain" }, "no bundle": func(c *Config) { c.TrustBundle = "" },
		"key": func(c *Config) { c.TrustBundle = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" },
		"log": func(c *Config) { c.LogLevel = "x" }, "drain": func(c *Config) { c.DrainSeconds = -1 }, "rev": func(c *Config) { c.Revision = "a b" },
	} {
		c := config()
		f(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for image, want := range map[string]string{
		"a": "a", "a:1": "a", "h:5000/a": "h:5000/a", "h:5000/a:1": "h:5000/a", "h/a@sha256:0": "h/a", "h:1/a:t@sha256:0": "h:1/a",
	} {
		if got := imageRepository(image); got != want {
			t.Errorf("repository of %s is %s, want %s", image, got, want)
		}
	}
}

// FuzzInjectJSON: whatever arrives, the patch applies and is a fixed point.
func FuzzInjectJSON(f *testing.F) {
	for _, file := range []string{"testdata/kinds.in.yaml", "testdata/deployment.in.yaml"} {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(src), "---\n") {
			raw, err := yaml.YAMLToJSON([]byte(doc))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Add([]byte(`{"metadata":null,"spec":{"initContainers":null,"containers":[{"name":"","livenessProbe":{"httpGet":{"port":1},"grpc":{"port":2}}}]}}`))
	f.Add([]byte(`{"spec":{}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, p, err := InjectJSON(raw, enabled, config())
		if err != nil || p == nil {
			return
		}
		patched, err := applyJSON(raw, p)
		if err != nil {
			t.Skip("a patch that does not apply is refused by the API server: ", err)
		}
		d, again, err := InjectJSON(patched, enabled, config())
		if err == nil && (again != nil || d.Inject) {
			t.Fatalf("not a fixed point: %s\nthen %s", patched, again)
		}
	})
}
