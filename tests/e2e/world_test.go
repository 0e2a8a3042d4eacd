package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli"
	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// stageSet is the environment variable that says that the cluster runs and the
// mesh is installed. The runner sets it.
const stageSet = "HAUBERK_E2E"

// system is where the mesh's own workloads live.
const system = "hauberk-system"

// world is the cluster with the mesh, as the tests reach it.
type world struct {
	*stage.Stage
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	mapper  meta.ResettableRESTMapper
}

var open = sync.OnceValues(func() (*world, error) {
	s, err := stage.New(os.Stderr)
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 200, 400
	w := &world{Stage: s, config: config}
	if w.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if w.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	w.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(w.client.Discovery()))
	return w, nil
})

// alone is the world for a test that disturbs all of it.
func alone(t *testing.T) *world {
	t.Helper()
	if os.Getenv(stageSet) == "" {
		t.Skip("left out: it needs a cluster with the mesh; `make test-e2e` as root brings both up and runs it")
	}
	w, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// together is the world for a test that others may run beside.
func together(t *testing.T) *world {
	t.Helper()
	w := alone(t)
	t.Parallel()
	return w
}

// hauberk runs the hauberk command in this process, and returns what it said
// and its exit code.
func (w *world) hauberk(ctx context.Context, args ...string) (stage.Result, error) {
	var out, errOut bytes.Buffer
	code := cli.Main(ctx, append([]string{"--kubeconfig", w.Kubeconfig()}, args...), strings.NewReader(""), &out, &errOut)
	return stage.Result{Out: out.String(), Err: errOut.String(), Code: code}, ctx.Err()
}

// objects reads manifests.
func objects(manifests string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for document := range strings.SplitSeq(manifests, "\n---") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			return nil, fmt.Errorf("manifest: %w:\n%s", err, document)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
	return out, nil
}

func (w *world) resource(o *unstructured.Unstructured, namespace string) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := w.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		w.mapper.Reset()
		mapping, err = w.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("resource of %s: %w", kind, err)
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return w.dynamic.Resource(mapping.Resource), nil
	}
	if o.GetNamespace() != "" {
		namespace = o.GetNamespace()
	}
	return w.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}

// apply applies manifests; what names no namespace goes into the one given.
func (w *world) apply(ctx context.Context, namespace, manifests string) error {
	all, err := objects(manifests)
	if err != nil {
		return err
	}
	for _, o := range all {
		r, err := w.resource(o, namespace)
		if err != nil {
			return err
		}
		if _, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "hauberk-e2e", Force: true}); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// remove deletes what the manifests name, and waits until it is gone.
func (w *world) remove(ctx context.Context, namespace, manifests string) error {
	all, err := objects(manifests)
	if err != nil {
		return err
	}
	for _, o := range all {
		r, err := w.resource(o, namespace)
		if err != nil {
			return err
		}
		if err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("delete %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// read reads an object that the manifest names into a typed one.
func (w *world) read(ctx context.Context, namespace, manifest string, into any) error {
	all, err := objects(manifest)
	if err != nil {
		return err
	}
	if len(all) != 1 {
		return fmt.Errorf("the manifest has %d objects and not 1", len(all))
	}
	r, err := w.resource(all[0], namespace)
	if err != nil {
		return err
	}
	got, err := r.Get(ctx, all[0].GetName(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, into)
}

// within asks until the answer is nil or the time is over.
func within(t *testing.T, limit time.Duration, what string, ask func(ctx context.Context) error) {
	t.Helper()
	if err := stage.Eventually(t.Context(), limit, what, ask); err != nil {
		t.Fatal(err)
	}
}

// must stops the test at an error.
func must[T any](t *testing.T) func(value T, err error) T {
	t.Helper()
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// afterwards is the context of what a test cleans up.
func afterwards(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
}

// each runs a function for each value at once and joins the errors.
func each[T any](values []T, do func(T) error) error {
	failures := make([]error, len(values))
	var group sync.WaitGroup
	for i, v := range values {
		group.Go(func() { failures[i] = do(v) })
	}
	group.Wait()
	return errors.Join(failures...)
}

// eventually is stage.Eventually.
func eventually(ctx context.Context, limit time.Duration, what string, ask func(ctx context.Context) error) error {
	return stage.Eventually(ctx, limit, what, ask)
}
