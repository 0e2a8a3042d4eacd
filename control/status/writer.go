package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	cnp "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	// interval between rounds of writing: acknowledgements of a change come in
	// within it, so that an object is written once or twice and not once a pod.
	interval = time.Second
	// writes a second, and how many may come at once.
	writeRate  = 20
	writeBurst = 50

	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// resources by kind that have a status of ours.
var resources = map[string]schema.GroupVersionResource{
	"MeshPolicy":           v1alpha1.GroupVersion.WithResource("meshpolicies"),
	"ClusterMeshPolicy":    v1alpha1.GroupVersion.WithResource("clustermeshpolicies"),
	"PeerAuthentication":   v1alpha1.GroupVersion.WithResource("peerauthentications"),
	"Tier":                 v1alpha1.GroupVersion.WithResource("tiers"),
	"NetworkSet":           v1alpha1.GroupVersion.WithResource("networksets"),
	"ClusterNetworkSet":    v1alpha1.GroupVersion.WithResource("clusternetworksets"),
	"ClusterNetworkPolicy": schema.GroupVersion(cnp.GroupVersion).WithResource("clusternetworkpolicies"),
}

// counted are the kinds whose status has the number of their subjects.
var counted = map[string]bool{"MeshPolicy": true, "ClusterMeshPolicy": true, "PeerAuthentication": true}

// Options of a Writer.
type Options struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Identity of this replica in the election.
	Identity string
	Log      *slog.Logger
	// Acks is what clients of all replicas acknowledged.
	Acks func() distribute.Acks
	// Metrics, nil for none.
	Metrics *Metrics
}

// Metrics of a Writer.
type Metrics struct {
	writes *prometheus.CounterVec
	leader prometheus.Gauge
}

// NewMetrics makes the metrics; they count whether registered or not.
func NewMetrics() *Metrics {
	return &Metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_status_writes_total", Help: "Writes of status, by outcome."}, []string{"outcome"}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hauberk_status_leader", Help: "1 when this replica writes status."}),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) error {
	return errors.Join(r.Register(m.writes), r.Register(m.leader))
}

// Writer writes status while it leads.
type Writer struct {
	options   Options
	compiled  atomic.Pointer[compile.Resources]
	dirty     chan struct{} // holds at most one token
	limiter   *rate.Limiter
	lastRound map[types.UID]desired // what was last written or found, by object; the leading goroutine's own
}

// New checks the options.
func New(o Options) (*Writer, error) {
	switch {
	case o.Client == nil || o.Dynamic == nil:
		return nil, errors.New("status: a Kubernetes client is missing")
	case o.Identity == "":
		return nil, errors.New("status: the replica's identity is missing")
	case o.Log == nil:
		return nil, errors.New("status: logger is missing")
	case o.Acks == nil:
		return nil, errors.New("status: Acks is missing")
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	return &Writer{options: o, dirty: make(chan struct{}, 1), limiter: rate.NewLimiter(writeRate, writeBurst)}, nil
}

// Compiled takes newly compiled resources. It does not block.
func (w *Writer) Compiled(r *compile.Resources) {
	w.compiled.Store(r)
	w.Acknowledged()
}

// Acknowledged says that acknowledgements may have changed. It does not block.
func (w *Writer) Acknowledged() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// Run takes part in the election until ctx is done, and writes while it leads.
func (w *Writer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: names.Namespace, Name: names.Control},
				Client:     w.options.Client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: w.options.Identity},
			},
			LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
			ReleaseOnCancel: true,
			Name:            names.Control,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: w.lead,
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		elector.Run(ctx) // returns when the lead is lost
	}
	return nil
}

// lead writes until ctx is done.
func (w *Writer) lead(ctx context.Context) {
	w.options.Log.Info("this replica writes status")
	w.options.Metrics.leader.Set(1)
	defer w.options.Metrics.leader.Set(0)
	w.lastRound = make(map[types.UID]desired)
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: w.options.Client.CoreV1().Events("")})
	recorder := broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: names.Control})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.dirty:
		}
		if r := w.compiled.Load(); r != nil {
			w.round(ctx, r, recorder)
		}
		select { // no two rounds within the interval
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round writes what has changed since the last one.
func (w *Writer) round(ctx context.Context, compiled *compile.Resources, recorder record.EventRecorder) {
	acks := w.options.Acks()
	seen := make(map[types.UID]bool)
	for _, reports := range [][]compile.PolicyReport{compiled.Policies, compiled.PeerAuthentications, compiled.Others} {
		for i := range reports {
			report := &reports[i]
			resource, ours := resources[report.Ref.Kind]
			uid := types.UID(report.Ref.UID)
			if !ours || uid == "" {
				continue
			}
			seen[uid] = true
			want := conditionsOf(report, compiled, acks)
			if last, ok := w.lastRound[uid]; ok && want.equal(last) {
				continue
			}
			if err := w.limiter.Wait(ctx); err != nil {
				return // ctx is done
			}
			changed, err := w.write(ctx, resource, report, want, recorder)
			switch {
			case ctx.Err() != nil:
				return
			case apierrors.IsNotFound(err):
				continue // deleted meanwhile
			case err != nil:
				w.options.Metrics.writes.WithLabelValues("failed").Inc()
				w.options.Log.Warn("status is not written, it is tried again", "object", report.Ref.String(), "error", err)
				w.Acknowledged()
				continue
			case changed:
				w.options.Metrics.writes.WithLabelValues("written").Inc()
			}
			w.lastRound[uid] = want
		}
	}
	for uid := range w.lastRound {
		if !seen[uid] {
			delete(w.lastRound, uid)
		}
	}
}

func (d desired) equal(other desired) bool {
	return d.subjects == other.subjects && slices.Equal(d.conditions, other.conditions)
}

// write brings the object's status in line, unless it is so already.
func (w *Writer) write(ctx context.Context, resource schema.GroupVersionResource, report *compile.PolicyReport, want desired, recorder record.EventRecorder) (bool, error) {
	var client dynamic.ResourceInterface = w.options.Dynamic.Resource(resource)
	if report.Ref.Namespace != "" {
		client = w.options.Dynamic.Resource(resource).Namespace(report.Ref.Namespace)
	}
	object, err := client.Get(ctx, report.Ref.Name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	if string(object.GetUID()) != report.Ref.UID || object.GetGeneration() != report.Ref.Generation {
		return false, nil // another object, or a newer one that is compiled next
	}
	var status v1alpha1.PolicyStatus
	if raw, ok, _ := unstructured.NestedMap(object.Object, "status"); ok {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &status); err != nil {
			status = v1alpha1.PolicyStatus{} // of nobody that we know: written anew
		}
	}
	accepted := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionAccepted)
	changed := false
	if counted[report.Ref.Kind] {
		changed = status.Subjects != want.subjects
		status.Subjects = want.subjects
	}
	for _, c := range want.conditions {
		changed = meta.SetStatusCondition(&status.Conditions, c) || changed
	}
	if !changed {
		return false, nil
	}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		return false, err
	}
	object.Object["status"] = raw
	if _, err := client.UpdateStatus(ctx, object, metav1.UpdateOptions{FieldManager: names.Control}); err != nil {
		return false, err
	}
	if now := want.conditions[0]; now.Status == metav1.ConditionFalse && (accepted == nil || accepted.Status != now.Status || accepted.Message != now.Message) {
		recorder.Event(reference(object), corev1.EventTypeWarning, now.Reason, now.Message)
	}
	return true, nil
}

func reference(object *unstructured.Unstructured) *corev1.ObjectReference {
	gvk := object.GroupVersionKind()
	return &corev1.ObjectReference{
		APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: object.GetNamespace(), Name: object.GetName(),
		UID: object.GetUID(), ResourceVersion: object.GetResourceVersion(),
	}
}
