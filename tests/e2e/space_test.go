package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// image holds small servers and clients; see tests/yaobank.
const image = "hauberk.dev/yaobank:dev"

// Ports of the servers of a pod made with serves.
const (
	httpPort = 8080
	tcpPort  = 9000
	udpPort  = 9001
)

// space is a namespace of one test.
type space struct {
	*world
	t    *testing.T
	name string
}

// space makes a namespace that is deleted at the end of the test.
func (w *world) space(t *testing.T, hint string, labels map[string]string) *space {
	t.Helper()
	s := &space{world: w, t: t, name: "e2e-" + hint + "-" + rand.String(5)}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted", "e2e": hint}}}
	for k, v := range labels {
		ns.Labels[k] = v
	}
	must[*corev1.Namespace](t)(w.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}))
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		if t.Failed() {
			s.explain(ctx)
		}
		if err := w.client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("delete namespace %s: %v", s.name, err)
		}
	})
	return s
}

// in is the namespace for a subtest, which then is what fails.
func (s *space) in(t *testing.T) *space { return &space{s.world, t, s.name} }

// meshed is a namespace whose pods get a sidecar.
func (w *world) meshed(t *testing.T, hint string) *space {
	t.Helper()
	return w.space(t, hint, map[string]string{"hauberk.dev/inject": "enabled"})
}

// explain logs what is in a namespace whose test failed.
func (s *space) explain(ctx context.Context) {
	pods, err := s.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Logf("pods of %s: %v", s.name, err)
		return
	}
	for _, p := range pods.Items {
		s.t.Logf("pod %s/%s on %s: %s, ready %v", s.name, p.Name, p.Spec.NodeName, p.Status.Phase, ready(&p))
	}
	events, err := s.client.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		s.t.Logf("events of %s: %v", s.name, err)
		return
	}
	for i, e := range events.Items {
		if i == 20 {
			s.t.Logf("… %d more warnings", len(events.Items)-i)
			break
		}
		s.t.Logf("event of %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
	}
}

// change alters a pod before it is made.
type change func(*corev1.Pod)

// pod describes a pod whose container app runs the image with the arguments; it
// holds to Pod Security "restricted".
func pod(name string, args []string, changes ...change) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(3)),
			AutomountServiceAccountToken:  new(false),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(65532)), RunAsGroup: new(int64(65532)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{container("app", args...)},
		},
	}
	for _, c := range changes {
		c(p)
	}
	return p
}

func container(name string, args ...string) corev1.Container {
	return corev1.Container{
		Name: name, Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

// client describes a pod that only waits: tests reach out from it.
func client(name string, changes ...change) *corev1.Pod {
	return pod(name, []string{"sleep"}, changes...)
}

// server describes a pod that serves HTTP, TCP and UDP on the ports above.
func server(name string, changes ...change) *corev1.Pod {
	p := pod(name, []string{"probe", "serve-http", fmt.Sprintf(":%d", httpPort)})
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: httpPort}, {Name: "echo", ContainerPort: tcpPort}, {Name: "grams", ContainerPort: udpPort, Protocol: corev1.ProtocolUDP}}
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: portNumber(httpPort)}},
		PeriodSeconds: 1,
	}
	p.Spec.Containers = append(p.Spec.Containers,
		container("tcp", "probe", "serve-tcp", fmt.Sprintf(":%d", tcpPort)),
		container("udp", "probe", "serve-udp", fmt.Sprintf(":%d", udpPort)))
	for _, c := range changes {
		c(p)
	}
	return p
}

// on places a pod on a node.
func on(node string) change { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

// labelled adds a label.
func labelled(key, value string) change {
	return func(p *corev1.Pod) { p.Labels[key] = value }
}

// annotated adds an annotation.
func annotated(key, value string) change {
	return func(p *corev1.Pod) { metav1.SetMetaDataAnnotation(&p.ObjectMeta, key, value) }
}

// as gives a pod a service account, which space.accounts made.
func as(account string) change { return func(p *corev1.Pod) { p.Spec.ServiceAccountName = account } }

// accounts makes service accounts.
func (s *space) accounts(names ...string) {
	s.t.Helper()
	for _, n := range names {
		must[*corev1.ServiceAccount](s.t)(s.client.CoreV1().ServiceAccounts(s.name).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: n}}, metav1.CreateOptions{}))
	}
}

// running is a pod that runs.
type running struct {
	*corev1.Pod
	v4, v6 netip.Addr
}

// create makes a pod, once its namespace's default service account is there.
func (s *space) create(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	var made *corev1.Pod
	var final error
	err := stage.Eventually(ctx, 10*time.Second, "create pod "+p.Name, func(ctx context.Context) error {
		made, final = s.client.CoreV1().Pods(s.name).Create(ctx, p, metav1.CreateOptions{})
		if apierrors.IsForbidden(final) && strings.Contains(final.Error(), "serviceaccount") {
			return final
		}
		return nil
	})
	return made, errors.Join(err, final)
}

// run makes pods and waits until they are ready.
func (s *space) run(pods ...*corev1.Pod) []*running {
	s.t.Helper()
	out := make([]*running, len(pods))
	index := make([]int, len(pods))
	for i := range index {
		index[i] = i
	}
	check(s.t, each(index, func(i int) error {
		if _, err := s.create(s.t.Context(), pods[i]); err != nil {
			return err
		}
		var err error
		out[i], err = s.ready(s.t.Context(), pods[i].Name)
		return err
	}))
	return out
}

// ready waits until a pod is ready.
func (s *space) ready(ctx context.Context, name string) (*running, error) {
	var r *running
	err := stage.Eventually(ctx, 90*time.Second, "pod "+s.name+"/"+name+" is ready", func(ctx context.Context) error {
		p, err := s.client.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !ready(p) {
			return fmt.Errorf("%s: %s", p.Status.Phase, waiting(p))
		}
		r, err = found(p)
		return err
	})
	return r, err
}

func found(p *corev1.Pod) (*running, error) {
	r := &running{Pod: p}
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, fmt.Errorf("address of pod %s: %w", p.Name, err)
		}
		if a.Is4() {
			r.v4 = a
		} else {
			r.v6 = a
		}
	}
	return r, nil
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waiting says what the containers of a pod wait for.
func waiting(p *corev1.Pod) string {
	var out []string
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			out = append(out, c.Name+" waits: "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		case c.State.Terminated != nil:
			out = append(out, fmt.Sprintf("%s ended: %s %d %s", c.Name, c.State.Terminated.Reason, c.State.Terminated.ExitCode, c.State.Terminated.Message))
		case !c.Ready:
			out = append(out, c.Name+" is not ready")
		}
	}
	return strings.Join(out, "; ")
}

// sidecar is the sidecar's container, nil without one.
func sidecar(p *corev1.Pod) *corev1.Container {
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == "hauberk-proxy" {
			return &p.Spec.InitContainers[i]
		}
	}
	return nil
}

// exec runs a command in a container, however it ends.
func (w *world) exec(ctx context.Context, p *running, container string, command ...string) (stage.Result, error) {
	request := w.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(w.config, "GET", request.URL().String())
	if err != nil {
		return stage.Result{}, err
	}
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	r := stage.Result{Out: out.String(), Err: errOut.String()}
	var ended exec.CodeExitError
	if errors.As(err, &ended) {
		r.Code = ended.Code
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("exec in %s/%s: %w: %s", p.Namespace, p.Name, err, r.Err)
	}
	return r, nil
}

// probe runs the image's probe in the pod's application.
func (w *world) probe(ctx context.Context, p *running, args ...string) (stage.Result, error) {
	return w.exec(ctx, p, p.Spec.Containers[0].Name, append([]string{"/usr/bin/yaobank", "probe"}, args...)...)
}

// logs are a container's.
func (w *world) logs(ctx context.Context, p *corev1.Pod, container string) (string, error) {
	text, err := w.client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	return string(text), err
}
