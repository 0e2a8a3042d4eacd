package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestProbesAreOfTheApplicationUnderStrictMTLS(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "probes")
	check(t, s.apply(t.Context(), s.name, "apiVersion: hauberk.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: all}\nspec: {mtls: {mode: STRICT}}"))
	get := func(path string, port int) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: portNumber(port)}}
	}
	dial := func(port int) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: portNumber(port)}}
	}
	for _, test := range []struct {
		name    string
		handler corev1.ProbeHandler
		ready   bool
	}{
		{"http", get("/", httpPort), true},
		{"tcp", dial(tcpPort), true},
		{"http-nobody", get("/", 7777), false},
		{"http-closed", get("/", tcpPort), false}, // not an HTTP server
		{"tcp-nobody", dial(7777), false},
		{"grpc-nobody", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 7777}}, false},
		{"grpc", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 2379}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			p := server(test.name)
			if test.name == "grpc" {
				p = grpcServer(test.name)
			}
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: test.handler, PeriodSeconds: 1, FailureThreshold: 1}
			must[*corev1.Pod](t)(s.create(t.Context(), p))
			if test.ready {
				if _, err := s.ready(t.Context(), test.name); err != nil {
					t.Error(err)
				}
				return
			}
			within(t, 60*time.Second, "the kubelet tells that the probe fails", func(ctx context.Context) error {
				events, err := s.client.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "reason=Unhealthy,involvedObject.name=" + test.name})
				if err != nil {
					return err
				}
				for _, e := range events.Items {
					if e.InvolvedObject.FieldPath == "spec.containers{app}" {
						return nil
					}
				}
				return errors.New("no such event")
			})
			got := must[*corev1.Pod](t)(s.client.CoreV1().Pods(s.name).Get(t.Context(), test.name, metav1.GetOptions{}))
			if ready(got) {
				t.Errorf("the pod is ready although its probe fails: %s", waiting(got))
			}
		})
	}
}

// grpcServer describes a pod whose port 2379 answers gRPC health checks.
func grpcServer(name string) *corev1.Pod {
	p := pod(name, nil)
	p.Spec.Containers[0].Image = "hauberk.dev/yaobank:dev"
	p.Spec.Containers[0].Args = []string{"probe", "serve-grpc", fmt.Sprintf(":%d", 2379)}
	return p
}
