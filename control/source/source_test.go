package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/hauberk-mesh/hauberk/control/compile"
)

func customClient(objects ...runtime.Object) dynamic.Interface {
	lists := make(map[schema.GroupVersionResource]string)
	for _, kind := range customKinds(&Objects{}) {
		lists[kind.resource] = kind.kind + "List"
	}
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: name, UID: "u", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "SECRET", Value: "x"}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
}

func TestRunHandsOutFacts(t *testing.T) {
	client := fake.NewClientset(pod("database"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bank"}})
	custom := customClient()
	var latest atomic.Pointer[compile.Facts]
	var rebuilds atomic.Int32
	s, err := New(Options{
		Client: client, Dynamic: custom, TrustDomain: "cluster.local", Roots: func() [][]byte { return [][]byte{{1}} },
		Quiet: 20 * time.Millisecond, Max: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		OnFacts: func(f compile.Facts) { latest.Store(&f); rebuilds.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	wait := func(what string, check func(*compile.Facts) error) {
		t.Helper()
		err := errors.New("no facts")
		for deadline := time.Now().Add(10 * time.Second); err != nil; time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
			if f := latest.Load(); f != nil {
				err = check(f)
			}
		}
	}
	wait("the first facts", func(f *compile.Facts) error {
		if len(f.Pods) != 1 || len(f.Namespaces) != 1 || len(f.Mesh.Roots) != 1 {
			return fmt.Errorf("%d pods, %d namespaces, %d roots", len(f.Pods), len(f.Namespaces), len(f.Mesh.Roots))
		}
		return nil
	})
	wait("sync", func(*compile.Facts) error {
		if !s.Synced() {
			return errors.New("not synced")
		}
		return nil
	})
	// A burst makes few rebuilds, and the last of it is seen.
	before := rebuilds.Load()
	const burst = 40
	for i := range burst {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns%d", i)}}
		if _, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	policy := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "hauberk.dev/v1alpha1", "kind": "MeshPolicy",
		"metadata": map[string]any{"name": "p", "namespace": "bank"},
		"spec":     map[string]any{"podSelector": map[string]any{}, "unheardOf": int64(1)},
	}}
	if _, err := custom.Resource(meshPolicies).Namespace("bank").Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait("the burst", func(f *compile.Facts) error {
		if len(f.Namespaces) != burst+1 || len(f.Policies) != 1 {
			return fmt.Errorf("%d namespaces, %d policies", len(f.Namespaces), len(f.Policies))
		}
		if !strings.Contains(f.Policies[0].Invalid, `unknown field "unheardOf"`) {
			return fmt.Errorf("policy is %q", f.Policies[0].Invalid)
		}
		return nil
	})
	if n := rebuilds.Load() - before; n > burst/2 {
		t.Errorf("%d rebuilds for %d changes", n, burst+1)
	}
}

func TestTrimKeepsTheFacts(t *testing.T) {
	whole := &Objects{Pods: []*corev1.Pod{pod("database")}}
	trimmed, err := trim(pod("database"))
	if err != nil {
		t.Fatal(err)
	}
	p := trimmed.(*corev1.Pod)
	if len(p.ManagedFields) != 0 || len(p.Spec.Containers[0].Env) != 0 {
		t.Error("managed fields or environment are kept")
	}
	if diff := cmp.Diff(FactsFrom(whole), FactsFrom(&Objects{Pods: []*corev1.Pod{p}}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("trimming changes the facts (-whole +trimmed):\n%s", diff)
	}
}

func TestLoadSeesWhatFilesSay(t *testing.T) {
	facts, err := Load(t.Context(), fake.NewClientset(pod("database")), customClient())
	if err != nil {
		t.Fatal(err)
	}
	if len(facts.Pods) != 1 || facts.Pods[0].Name != "database" {
		t.Errorf("pods: %+v", facts.Pods)
	}
	o := &Objects{}
	for _, tt := range []struct{ name, text, want string }{
		{"a typo in a known kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodName: x}", "nodName"},
		{"no name", "apiVersion: v1\nkind: Pod\nmetadata: {}", "metadata.name"},
		{"no YAML", "a: [", "document 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := o.Add(strings.NewReader(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	ignored, err := o.Add(strings.NewReader("apiVersion: v1\nkind: List\nmetadata: {name: l}\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: bank}}"))
	if err != nil || len(ignored) != 1 || len(o.Namespaces) != 1 {
		t.Errorf("list: ignored %v, namespaces %d, error %v", ignored, len(o.Namespaces), err)
	}
}
