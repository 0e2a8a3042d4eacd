package injector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// cluster is what the injector knows of the cluster: labels of namespaces and
// the trust bundle.
type cluster struct {
	// Set once.
	client     kubernetes.Interface
	namespace  string
	log        *slog.Logger
	factory    informers.SharedInformerFactory
	namespaces corelisters.NamespaceLister
	synced     *lifecycle.Check
	trusted    *lifecycle.Check

	// bundle is nil until a valid one was seen; the last valid one stays.
	bundle atomic.Pointer[string]
}

func newCluster(client kubernetes.Interface, namespace string, log *slog.Logger, health *lifecycle.Health) *cluster {
	factory := informers.NewSharedInformerFactory(client, 0)
	c := &cluster{
		client: client, namespace: namespace, log: log, factory: factory,
		namespaces: factory.Core().V1().Namespaces().Lister(),
		synced:     health.Register("namespaces"),
		trusted:    health.Register("trust bundle"),
	}
	c.synced.NotReady("not listed yet")
	c.trusted.NotReady(fmt.Sprintf("configmap %s/%s not seen yet: the control plane writes it", namespace, names.TrustBundleConfigMap))
	return c
}

// Run watches until ctx is done.
func (c *cluster) Run(ctx context.Context) error {
	// Of a namespace only name and labels are kept.
	slim := func(obj any) (any, error) {
		if ns, ok := obj.(*corev1.Namespace); ok {
			return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels, ResourceVersion: ns.ResourceVersion, UID: ns.UID}}, nil
		}
		return obj, nil
	}
	namespaces := c.factory.Core().V1().Namespaces().Informer()
	if err := namespaces.SetTransform(slim); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	bundles := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithNamespace(c.namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", names.TrustBundleConfigMap).String()
		}))
	if _, err := bundles.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    c.learn,
		UpdateFunc: func(_, obj any) { c.learn(obj) },
	}); err != nil {
		return fmt.Errorf("watch trust bundle: %w", err)
	}
	c.factory.Start(ctx.Done())
	bundles.Start(ctx.Done())
	defer c.factory.Shutdown()
	defer bundles.Shutdown()
	if cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced) {
		c.synced.Ready()
	}
	<-ctx.Done()
	return nil
}

// learn takes a new trust bundle over if it is one. A broken or deleted one
// changes nothing: sidecars with the last good roots are better than none.
func (c *cluster) learn(obj any) {
	cm, ok := obj.(*corev1.ConfigMap)
	if !ok || cm.Name != names.TrustBundleConfigMap {
		return
	}
	text := cm.Data[names.TrustBundleKey]
	if err := patch.ValidateBundle(text); err != nil {
		c.log.Warn("trust bundle not taken over", "configmap", cm.Name, "error", err)
		if c.bundle.Load() == nil {
			c.trusted.NotReady(err.Error())
		}
		return
	}
	if old := c.bundle.Swap(&text); old == nil || *old != text {
		c.log.Info("trust bundle taken over", "configmap", cm.Name)
	}
	c.trusted.Ready()
}

// trustBundle is the last valid bundle, or an error before the first.
func (c *cluster) trustBundle() (string, error) {
	if b := c.bundle.Load(); b != nil {
		return *b, nil
	}
	return "", errors.New("hauberk injector: the trust bundle is not known yet")
}

// facts gives a namespace's labels. The API server sends reviews by what it
// knows itself, so a cache that does not say "enabled" may only be late: it is
// then asked directly.
func (c *cluster) facts(ctx context.Context, name string) (patch.NamespaceFacts, error) {
	ns, err := c.namespaces.Get(name)
	if err != nil || ns.Labels[names.LabelInject] != names.InjectEnabled {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if ns, err = c.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return patch.NamespaceFacts{}, err
		}
	}
	return patch.NamespaceFacts{Name: name, Labels: ns.Labels}, nil
}
