package status

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
	"github.com/hauberk-mesh/hauberk/policy"
)

func pods() *compile.Resources {
	return &compile.Resources{Workloads: map[string]*hauberkv1.Workload{
		"a": {Uid: "a", Node: "node1", Meshed: true, PolicySet: "s1"},
		"b": {Uid: "b", Node: "node2", PolicySet: "s1"},
		"c": {Uid: "c", PolicySet: "s1"}, // not scheduled yet
	}}
}

func TestConditions(t *testing.T) {
	ref := policy.Ref{Kind: "MeshPolicy", Namespace: "bank", Name: "p", UID: "u", Generation: 4}
	tests := []struct {
		name   string
		report compile.PolicyReport
		acks   distribute.Acks
		want   string
	}{
		{"all acknowledged", compile.PolicyReport{Ref: ref, Subjects: []string{"a", "b", "c"}},
			distribute.Acks{Kernel: map[string]string{"a": "s1", "b": "s1"}, Sidecar: map[string]string{"a": "s1"}},
			"Accepted=True ResolvedRefs=True Programmed=True: kernel: 2 of 2 pods; sidecars: 1 of 1"},
		{"an older set does not count", compile.PolicyReport{Ref: ref, Subjects: []string{"a", "b"}},
			distribute.Acks{Kernel: map[string]string{"a": "s0", "b": "s1"}, Sidecar: map[string]string{"a": "s0"}},
			"Accepted=True ResolvedRefs=True Programmed=False: kernel: 1 of 2 pods; sidecars: 0 of 1"},
		{"invalid", compile.PolicyReport{Ref: ref, Invalid: []string{"x"}, Unresolved: []string{"y"}}, distribute.Acks{},
			"Accepted=False ResolvedRefs=False Programmed=True: it selects no pods: check its selectors and the pods' labels"},
		{"tier", compile.PolicyReport{Ref: policy.Ref{Kind: "Tier", Name: "t", Generation: 4}, Invalid: []string{"x"}}, distribute.Acks{},
			"Accepted=False: x: the policies of the tier are invalid too"},
		{"network set", compile.PolicyReport{Ref: policy.Ref{Kind: "NetworkSet", Namespace: "bank", Name: "n", Generation: 4}}, distribute.Acks{},
			"Accepted=True: understood and in force"},
		{"of the network policy API", compile.PolicyReport{Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "n", Generation: 4}, Subjects: []string{"b"}},
			distribute.Acks{Kernel: map[string]string{"b": "s1"}}, "Accepted=True ResolvedRefs=True Programmed=True: kernel: 1 of 1 pods; sidecars: 0 of 0"},
		{"L7 without a sidecar", compile.PolicyReport{Ref: ref, L7: true, Subjects: []string{"b"}}, distribute.Acks{Kernel: map[string]string{"b": "s1"}},
			"Accepted=True ResolvedRefs=True Programmed=True: kernel: 1 of 1 pods; sidecars: 0 of 0; 1 selected pods have no sidecar: rules that only a sidecar can decide never allow there"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := conditionsOf(&tt.report, pods(), tt.acks)
			var got []string
			for _, c := range d.conditions {
				if c.ObservedGeneration != 4 {
					t.Errorf("%s is of generation %d, want 4", c.Type, c.ObservedGeneration)
				}
				got = append(got, fmt.Sprintf("%s=%s", c.Type, c.Status))
			}
			text := strings.Join(got, " ") + ": " + d.conditions[len(d.conditions)-1].Message
			if diff := cmp.Diff(tt.want, text); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWriterWritesOnceAndEmitsOneEvent(t *testing.T) {
	gvr := v1alpha1.GroupVersion.WithResource("meshpolicies")
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "hauberk.dev/v1alpha1", "kind": "MeshPolicy",
		"metadata": map[string]any{"name": "p", "namespace": "bank", "uid": "u", "generation": int64(1)},
	}}
	custom := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{gvr: "MeshPolicyList"}, object)
	client := fake.NewClientset()
	w, err := New(Options{Client: client, Dynamic: custom, Identity: "me", Log: slog.New(slog.DiscardHandler), Acks: func() distribute.Acks { return distribute.Acks{} }})
	if err != nil {
		t.Fatal(err)
	}
	resources := pods()
	resources.Policies = []compile.PolicyReport{{
		Ref:     policy.Ref{Kind: "MeshPolicy", Namespace: "bank", Name: "p", UID: "u", Generation: 1},
		Invalid: []string{"tier missing"}, Subjects: []string{"a"},
	}, {Ref: policy.Ref{Kind: "MeshPolicy", Namespace: "bank", Name: "deleted", UID: "gone"}}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	w.Compiled(resources)
	updates := func() int {
		n := 0
		for _, a := range custom.Actions() {
			if a.GetVerb() == "update" {
				n++
			}
		}
		return n
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s did not happen; actions: %v", what, custom.Actions())
			}
		}
	}
	wait("the first write", func() bool { return updates() == 1 })
	got, err := custom.Resource(gvr).Namespace("bank").Get(ctx, "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := unstructured.NestedInt64(got.Object, "status", "subjects"); n != 1 {
		t.Errorf("status: %v", got.Object["status"])
	}
	// A round without changes, proved over by one with a change, writes nothing.
	w.Acknowledged()
	second := *resources
	second.Policies = []compile.PolicyReport{resources.Policies[0]}
	second.Policies[0].Subjects = []string{"a", "b"}
	w.Compiled(&second)
	wait("the second write", func() bool { return updates() >= 2 })
	if n := updates(); n != 2 {
		t.Errorf("%d writes, want 2", n)
	}
	wait("the event", func() bool {
		events, err := client.CoreV1().Events("bank").List(ctx, metav1.ListOptions{})
		return err == nil && len(events.Items) == 1 && events.Items[0].Count <= 1
	})
}
