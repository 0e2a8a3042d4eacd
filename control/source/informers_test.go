package source

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/hauberk-mesh/hauberk/control/compile"
)

// A cluster without the network policy API gets its facts, and those of its
// ClusterNetworkPolicies soon after it has got the API; one that has it lacks
// none from the first facts on.
func TestOptionalKindIsWatchedOnceTheClusterHasIt(t *testing.T) {
	for name, installed := range map[string]bool{"from the start": true, "later": false} {
		t.Run(name, func(t *testing.T) {
			var has atomic.Bool
			has.Store(installed)
			client := fake.NewClientset()
			client.Resources = []*metav1.APIResourceList{{
				GroupVersion: clusterNetworkPolicies.GroupVersion().String(),
				APIResources: []metav1.APIResource{{Name: clusterNetworkPolicies.Resource, Kind: "ClusterNetworkPolicy"}},
			}}
			client.PrependReactor("get", "resource", func(clienttesting.Action) (bool, runtime.Object, error) {
				if has.Load() {
					return false, nil, nil
				}
				return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "")
			})
			lists := map[schema.GroupVersionResource]string{}
			for _, kind := range customKinds(&Objects{}) {
				lists[kind.resource] = kind.kind + "List"
			}
			object := &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": clusterNetworkPolicies.GroupVersion().String(), "kind": "ClusterNetworkPolicy",
				"metadata": map[string]any{"name": "admin"},
				"spec":     map[string]any{"tier": "Admin", "priority": int64(1), "subject": map[string]any{"namespaces": map[string]any{}}},
			}}
			facts := make(chan compile.Facts, 10)
			s, err := New(Options{
				Client: client, Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, object),
				Look: 10 * time.Millisecond, Quiet: time.Millisecond, Log: slog.New(slog.DiscardHandler),
				OnFacts: func(f compile.Facts) { facts <- f },
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			want := 0
			if installed {
				want = 1
			}
			if got := len((<-facts).Policies); got != want {
				t.Errorf("the first facts have %d policies, want %d", got, want)
			}
			has.Store(true)
			for found := installed; !found; {
				select {
				case f := <-facts:
					found = len(f.Policies) == 1
				case <-ctx.Done():
					t.Fatal("the policy never came")
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
