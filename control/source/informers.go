package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Options is what a Source needs.
type Options struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// TrustDomain of the mesh.
	TrustDomain string
	// Roots of the trust domain, DER, as they are now. Nil means none.
	Roots func() [][]byte
	// Quiet is how long nothing must change before the facts are rebuilt, Max how
	// long a rebuild waits at most. Zero means 50 ms and 1 s.
	Quiet, Max time.Duration
	// Look is how often to look whether the cluster has kinds by now that are not
	// Hauberk's own. Zero means 30 s.
	Look time.Duration
	Log  *slog.Logger
	// OnFacts takes the facts, from one goroutine.
	OnFacts func(compile.Facts)
}

// Source watches the API server and hands out facts whenever they may have
// changed.
type Source struct {
	options Options
	synced  atomic.Bool
	// dirty holds at most one token: something changed since the last rebuild.
	dirty chan struct{}
	// registered are the optional kinds with handlers; of watchOptional, which
	// runs once at a time.
	registered map[string]bool
	// mu guards stores, which grows when the cluster gets an optional kind.
	mu     sync.Mutex
	stores map[string]cache.SharedIndexInformer
}

// New checks the options.
func New(o Options) (*Source, error) {
	switch {
	case o.Client == nil || o.Dynamic == nil:
		return nil, errors.New("source: a Kubernetes client is missing")
	case o.OnFacts == nil:
		return nil, errors.New("source: OnFacts is missing")
	case o.Log == nil:
		return nil, errors.New("source: Log is missing")
	}
	if o.Quiet <= 0 {
		o.Quiet = 50 * time.Millisecond
	}
	if o.Max <= 0 {
		o.Max = time.Second
	}
	if o.Look <= 0 {
		o.Look = 30 * time.Second
	}
	return &Source{options: o, dirty: make(chan struct{}, 1), registered: make(map[string]bool)}, nil
}

// Synced reports whether everything was listed and the first facts handed out.
func (s *Source) Synced() bool { return s.synced.Load() }

// Trigger rebuilds the facts soon, as if an object had changed: the roots did.
func (s *Source) Trigger() {
	select {
	case s.dirty <- struct{}{}:
	default: // a rebuild is due anyway
	}
}

// Run watches until ctx is done.
func (s *Source) Run(ctx context.Context) error {
	typed := informers.NewSharedInformerFactoryWithOptions(s.options.Client, 0, informers.WithTransform(trim))
	own := informers.NewSharedInformerFactoryWithOptions(s.options.Client, 0, informers.WithTransform(trim),
		informers.WithNamespace(names.Namespace),
		informers.WithTweakListOptions(func(l *metav1.ListOptions) {
			l.FieldSelector = fields.OneTermEqualSelector("metadata.name", names.TunnelsConfigMap).String()
		}))
	custom := dynamicinformer.NewDynamicSharedInformerFactory(s.options.Dynamic, 0)
	// Ends every informer before Run returns.
	defer func() {
		typed.Shutdown()
		own.Shutdown()
		custom.Shutdown()
	}()

	stores := map[string]cache.SharedIndexInformer{
		"namespaces":      typed.Core().V1().Namespaces().Informer(),
		"serviceaccounts": typed.Core().V1().ServiceAccounts().Informer(),
		"nodes":           typed.Core().V1().Nodes().Informer(),
		"pods":            typed.Core().V1().Pods().Informer(),
		"services":        typed.Core().V1().Services().Informer(),
		"endpointslices":  typed.Discovery().V1().EndpointSlices().Informer(),
		"networkpolicies": typed.Networking().V1().NetworkPolicies().Informer(),
		"configmaps":      own.Core().V1().ConfigMaps().Informer(),
	}
	for _, kind := range customKinds(&Objects{}) {
		if kind.optional {
			continue
		}
		informer := custom.ForResource(kind.resource).Informer()
		if err := informer.SetTransform(trim); err != nil {
			return fmt.Errorf("watch %s: %w", kind.resource.Resource, err)
		}
		stores[kind.resource.Resource] = informer
	}
	waits := make([]cache.InformerSynced, 0, len(stores))
	for name, informer := range stores {
		if err := s.watch(name, informer); err != nil {
			return err
		}
		waits = append(waits, informer.HasSynced)
	}
	typed.Start(ctx.Done())
	own.Start(ctx.Done())
	custom.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), waits...) {
		return nil // ctx is done
	}
	s.mu.Lock()
	s.stores = stores
	s.mu.Unlock()
	// Hauberk's own kinds were listed, so the API server has read its definitions
	// by now, and what it doesn't know doesn't exist.
	if !s.lookOnce(ctx, custom) {
		return nil // ctx is done
	}
	var looking sync.WaitGroup
	looking.Go(func() { s.look(ctx, custom) })
	defer looking.Wait()
	s.Trigger()
	s.rebuild(ctx)
	return nil
}

// lookOnce looks for optional kinds until it knows, so that the first facts
// lack none: a missing Admin policy could open what it closes.
func (s *Source) lookOnce(ctx context.Context, custom dynamicinformer.DynamicSharedInformerFactory) bool {
	for {
		err := s.watchOptional(ctx, custom)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			s.options.Log.Warn("whether the cluster has the network policy API is not known, it is asked again", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}

// look keeps looking for optional kinds until ctx is done.
func (s *Source) look(ctx context.Context, custom dynamicinformer.DynamicSharedInformerFactory) {
	tick := time.NewTicker(s.options.Look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.watchOptional(ctx, custom); err != nil && ctx.Err() == nil {
			s.options.Log.Warn("whether the cluster has the network policy API is not known, it is asked again", "error", err)
		}
	}
}

// watchOptional starts to watch the optional kinds that the cluster has and
// that are not watched yet, and waits until their objects are listed. A kind
// that is watched stays so: when its definition goes, its objects go first.
func (s *Source) watchOptional(ctx context.Context, custom dynamicinformer.DynamicSharedInformerFactory) error {
	for _, kind := range customKinds(&Objects{}) {
		name := kind.resource.Resource
		s.mu.Lock()
		_, watched := s.stores[name]
		s.mu.Unlock()
		if !kind.optional || watched {
			continue
		}
		list, err := s.options.Client.Discovery().ServerResourcesForGroupVersion(kind.resource.GroupVersion().String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("discover %s: %w", name, err)
		}
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
			continue
		}
		informer := custom.ForResource(kind.resource).Informer()
		if !s.registered[name] {
			if err := informer.SetTransform(trim); err != nil {
				return fmt.Errorf("watch %s: %w", name, err)
			}
			if err := s.watch(name, informer); err != nil {
				return err
			}
			s.registered[name] = true
		}
		custom.Start(ctx.Done())
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			return ctx.Err()
		}
		s.mu.Lock()
		s.stores[name] = informer
		s.mu.Unlock()
		s.options.Log.Info("the cluster has an optional kind: it is watched", "resource", name, "version", kind.resource.Version)
		s.Trigger()
	}
	return nil
}

func (s *Source) watch(name string, informer cache.SharedIndexInformer) error {
	err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil {
			s.options.Log.Warn("watch interrupted, it is retried", "resource", name, "error", err)
		}
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.Trigger() },
		DeleteFunc: func(any) { s.Trigger() },
		UpdateFunc: func(before, after any) {
			if changed(before, after) {
				s.Trigger()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	return nil
}

// changed is false for what can't change the facts: nothing at all, or the
// status of one of our own objects.
func changed(before, after any) bool {
	x, errX := meta.Accessor(before)
	y, errY := meta.Accessor(after)
	if errX != nil || errY != nil {
		return true
	}
	if x.GetUID() != y.GetUID() {
		return true
	}
	if _, ours := after.(*unstructured.Unstructured); ours {
		return x.GetGeneration() != y.GetGeneration()
	}
	return x.GetResourceVersion() != y.GetResourceVersion()
}

// rebuild hands out facts after each burst of changes, until ctx is done.
func (s *Source) rebuild(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
		}
		if s.synced.Load() && !s.settle(ctx) {
			return
		}
		objects := s.snapshot()
		facts := FactsFrom(objects)
		for _, p := range facts.Problems {
			s.options.Log.Warn("object can't be read", "reason", p)
		}
		s.options.OnFacts(facts)
		s.synced.Store(true)
	}
}

// settle waits until nothing changes for Quiet, at most Max; false when ctx is
// done.
func (s *Source) settle(ctx context.Context) bool {
	latest := time.NewTimer(s.options.Max)
	defer latest.Stop()
	quiet := time.NewTimer(s.options.Quiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-latest.C:
			return true
		case <-quiet.C:
			return true
		case <-s.dirty:
			quiet.Reset(s.options.Quiet)
		}
	}
}

func (s *Source) snapshot() *Objects {
	s.mu.Lock()
	stores := maps.Clone(s.stores)
	s.mu.Unlock()
	o := &Objects{
		TrustDomain:     s.options.TrustDomain,
		Namespaces:      listed[*corev1.Namespace](stores["namespaces"]),
		ServiceAccounts: listed[*corev1.ServiceAccount](stores["serviceaccounts"]),
		Nodes:           listed[*corev1.Node](stores["nodes"]),
		Pods:            listed[*corev1.Pod](stores["pods"]),
		Services:        listed[*corev1.Service](stores["services"]),
		EndpointSlices:  listed[*discoveryv1.EndpointSlice](stores["endpointslices"]),
		NetworkPolicies: listed[*networkingv1.NetworkPolicy](stores["networkpolicies"]),
	}
	if s.options.Roots != nil {
		o.Roots = s.options.Roots()
	}
	for _, cm := range listed[*corev1.ConfigMap](stores["configmaps"]) {
		if cm.Name == names.TunnelsConfigMap {
			o.Tunnels = cm
		}
	}
	for _, kind := range customKinds(o) {
		if informer, ok := stores[kind.resource.Resource]; ok {
			*kind.into = listed[*unstructured.Unstructured](informer)
		}
	}
	return o
}

func listed[T any](informer cache.SharedIndexInformer) []T {
	items := informer.GetStore().List()
	list := make([]T, 0, len(items))
	for _, item := range items {
		if object, ok := item.(T); ok {
			list = append(list, object)
		}
	}
	return list
}

// trim drops what facts never need, so that the cache holds little.
func trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	switch o := object.(type) {
	case *corev1.Pod:
		return trimPod(o), nil
	case *corev1.ServiceAccount:
		o.Secrets, o.ImagePullSecrets, o.Annotations = nil, nil, nil
	case *corev1.Node:
		o.Annotations = nil
		o.Status = corev1.NodeStatus{Addresses: o.Status.Addresses}
	case *corev1.Namespace:
		o.Annotations = nil
	case *unstructured.Unstructured:
		unstructured.RemoveNestedField(o.Object, "status")
		o.SetAnnotations(nil)
	}
	return object, nil
}

func trimPod(p *corev1.Pod) *corev1.Pod {
	annotations := make(map[string]string)
	for _, name := range []string{
		names.AnnotationStatus, names.AnnotationExcludeInboundPorts, names.AnnotationExcludeOutboundPorts,
		names.AnnotationExcludeOutboundCIDRs, names.AnnotationIncludeInboundPorts,
	} {
		if v, ok := p.Annotations[name]; ok {
			annotations[name] = v
		}
	}
	p.Annotations = annotations
	spec := corev1.PodSpec{
		NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork,
	}
	trimContainers := func(containers []corev1.Container) []corev1.Container {
		var kept []corev1.Container
		for _, c := range containers {
			kept = append(kept, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
		return kept
	}
	spec.Containers = trimContainers(p.Spec.Containers)
	spec.InitContainers = trimContainers(p.Spec.InitContainers)
	p.Spec = spec
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	return p
}
