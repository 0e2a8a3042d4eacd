package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// service makes a dual-stack Service for the ports of server pods.
func (s *space) service(name string, selector map[string]string) *corev1.Service {
	s.t.Helper()
	policy := corev1.IPFamilyPolicyPreferDualStack
	return must[*corev1.Service](s.t)(s.client.CoreV1().Services(s.name).Create(s.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Selector: selector, IPFamilyPolicy: &policy, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: portNumber(httpPort)},
			{Name: "echo", Port: tcpPort, TargetPort: portNumber(tcpPort)},
			{Name: "grams", Port: udpPort, TargetPort: portNumber(udpPort), Protocol: corev1.ProtocolUDP},
		}},
	}, metav1.CreateOptions{}))
}

// access is a line of a sidecar's access log.
type access struct {
	Log         string `json:"log"`
	Direction   string `json:"direction"`
	Protocol    string `json:"protocol"`
	Method      string `json:"method"`
	Path        string `json:"path"`
	Status      int    `json:"status"`
	Source      string `json:"source_principal"`
	Destination string `json:"destination_principal"`
	Verdict     string `json:"verdict"`
	Policy      string `json:"policy"`
	TraceID     string `json:"trace_id"`
}

// accessLog reads a sidecar's.
func (w *world) accessLog(ctx context.Context, p *corev1.Pod) ([]access, error) {
	text, err := w.logs(ctx, p, "hauberk-proxy")
	if err != nil {
		return nil, err
	}
	var out []access
	for line := range strings.Lines(text) {
		var a access
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, fmt.Errorf("a line of the sidecar of %s is not JSON: %w: %s", p.Name, err, line)
		}
		if a.Log == "access" {
			out = append(out, a)
		}
	}
	return out, nil
}

// from counts the requests that a service account made.
func from(log []access, account, path string) int {
	n := 0
	for _, a := range log {
		if a.Direction == "inbound" && strings.HasSuffix(a.Source, "/sa/"+account) && strings.HasPrefix(a.Path, path) {
			n++
		}
	}
	return n
}

func TestSidecarIsThereBeforeTheApplicationAndAfterIt(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "life")
	s.accounts("job", "late")
	target := s.run(server("target"))[0]
	s.service("target", map[string]string{"app": "target"})
	url := "http://target." + s.name + ".svc.cluster.local/"

	t.Run("an init container and a Job's container dial at once, and the Job completes", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		p := pod("job", []string{"probe", "http", "GET", url + "job"}, as("job"))
		p.Spec.InitContainers = []corev1.Container{container("first", "probe", "http", "GET", url+"init")}
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"}, Spec: batchv1.JobSpec{
			BackoffLimit: new(int32(0)), Completions: new(int32(3)), Parallelism: new(int32(3)),
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec},
		}}
		within(t, 10*time.Second, "the Job is made", func(ctx context.Context) error {
			_, err := s.client.BatchV1().Jobs(s.name).Create(ctx, job, metav1.CreateOptions{})
			return err
		})
		within(t, 90*time.Second, "the Job completes", func(ctx context.Context) error {
			got, err := s.client.BatchV1().Jobs(s.name).Get(ctx, "once", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got.Status.Failed > 0 {
				t.Fatalf("%d of its pods failed: the sidecar was not ready for the application's first word", got.Status.Failed)
			}
			if got.Status.Succeeded != 3 {
				return fmt.Errorf("%d of 3 pods have succeeded", got.Status.Succeeded)
			}
			return nil
		})
		within(t, 10*time.Second, "the server's sidecar saw each by its identity", func(ctx context.Context) error {
			log, err := s.accessLog(ctx, target.Pod)
			if err != nil {
				return err
			}
			if i, j := from(log, "job", "/init"), from(log, "job", "/job"); i != 3 || j != 3 {
				return fmt.Errorf("%d requests of init containers and %d of Jobs, want 3 and 3", i, j)
			}
			return nil
		})
	})

	t.Run("the application reaches others until its own end", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		const requests = 15
		p := client("late", as("late"))
		p.Spec.TerminationGracePeriodSeconds = new(int64(30))
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{
			Command: []string{"/usr/bin/yaobank", "probe", "http", "GET", url + "late", fmt.Sprintf("--count=%d", requests), "--interval=200ms"},
		}}}
		late := s.run(p)[0]
		check(t, s.client.CoreV1().Pods(s.name).Delete(t.Context(), late.Name, metav1.DeleteOptions{}))
		within(t, 60*time.Second, "the pod is gone", func(ctx context.Context) error {
			_, err := s.client.CoreV1().Pods(s.name).Get(ctx, late.Name, metav1.GetOptions{})
			if err == nil {
				return fmt.Errorf("it is there")
			}
			return nil
		})
		within(t, 10*time.Second, "each request of the terminating pod arrived", func(ctx context.Context) error {
			log, err := s.accessLog(ctx, target.Pod)
			if err != nil {
				return err
			}
			if n := from(log, "late", "/late"); n != requests {
				return fmt.Errorf("%d requests, want %d", n, requests)
			}
			return nil
		})
		events := must[*corev1.EventList](t)(s.client.CoreV1().Events(s.name).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=late,reason=FailedPreStopHook"}))
		for _, e := range events.Items {
			t.Errorf("%s: %s", e.Reason, e.Message)
		}
	})
}

func TestRollingRestartUnderLoadFailsNoRequest(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "rolling")
	p := server("web")
	p.Spec.TerminationGracePeriodSeconds = new(int64(20))
	// The servers of the image stop at once, as few should: they are given the time
	// that it takes until nobody sends them anything new.
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}}
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec},
	}}
	must[*appsv1.Deployment](t)(s.client.AppsV1().Deployments(s.name).Create(t.Context(), deployment, metav1.CreateOptions{}))
	s.service("web", map[string]string{"app": "web"})
	loads := s.run(client("fresh"), client("reused"))
	rolled := func(ctx context.Context) error {
		d, err := s.client.AppsV1().Deployments(s.name).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if st := d.Status; st.ObservedGeneration < d.Generation || st.UpdatedReplicas != 2 || st.ReadyReplicas != 2 || st.Replicas != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	}
	within(t, 90*time.Second, "two servers are ready", rolled)

	url := "http://web." + s.name + ".svc.cluster.local/"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	results := make(chan error, len(loads))
	for _, l := range loads {
		go func() {
			args := []string{"http", "GET", url, "--count=1200", "--interval=20ms", "--timeout=10s"}
			if l.Name == "reused" {
				args = append(args, "--reuse")
			}
			got, err := w.probe(ctx, l, args...)
			if err == nil && (got.Code != 0 || !strings.Contains(got.Out, "summary ok=1200 failed=0")) {
				err = fmt.Errorf("load %s: exit code %d: %s %s", l.Name, got.Code, failures(got), got.Err)
			}
			results <- err
		}()
	}
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"again":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	must[*appsv1.Deployment](t)(s.client.AppsV1().Deployments(s.name).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}))
	within(t, 90*time.Second, "the servers are replaced", rolled)
	if len(results) > 0 {
		t.Error("the load ended before the servers were replaced: it shows nothing")
	}
	for range loads {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// failures are the lines of a load's output that are not of answers, and the last.
func failures(r stage.Result) string {
	var out []string
	for line := range strings.Lines(r.Out) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "HTTP/") && !strings.Contains(line, " 200 ") || strings.HasPrefix(line, "closed") || strings.HasPrefix(line, "refused") ||
			strings.HasPrefix(line, "timeout") || strings.HasPrefix(line, "failed") || strings.HasPrefix(line, "hauberk:") || strings.HasPrefix(line, "summary") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}
