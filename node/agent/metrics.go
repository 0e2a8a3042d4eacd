package agent

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/identity"
)

// metrics is the agent's own; each is named and described here.
type metrics struct {
	registry prometheus.Registerer

	adds        *prometheus.HistogramVec
	applies     *prometheus.HistogramVec
	renewals    *prometheus.CounterVec
	drops       *prometheus.CounterVec
	unprotected atomic.Int64

	mu     sync.Mutex
	series map[[4]string]prometheus.Counter // of drops; guarded by mu
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		registry: r,
		adds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hauberk_node_cni_add_duration_seconds", Help: "Time of a CNI ADD in the node agent, by result: ok or error.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 10),
		}, []string{"result"}),
		applies: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hauberk_node_program_duration_seconds", Help: "Time to bring what is known into the kernel, by result: ok or error.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 10),
		}, []string{"result"}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_identity_renewals_total", Help: "Attempts to get an SVID, by result: ok or error.",
		}, []string{"result"}),
	}
	m.drops = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hauberk_kernel_denied_packets_total",
		Help: "Packets that the kernel denied and told of, by what decided: of each rule at most 50 a second are told.",
	}, []string{"direction", "tier", "policy", "rule"})
	m.series = map[[4]string]prometheus.Counter{}
	r.MustRegister(m.adds, m.applies, m.renewals, m.drops)
	for _, result := range []string{"ok", "error"} {
		m.adds.WithLabelValues(result)
		m.applies.WithLabelValues(result)
		m.renewals.WithLabelValues(result)
	}
	return m
}

// observe registers what is read from the agent when it is asked for.
func (m *metrics) observe(a *Agent) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("hauberk_node_attached_pods", "Pods that CNI attached.", func() float64 { return float64(len(a.attachments.List())) })
	gauge("hauberk_node_unprotected_pods", "Running pods with a sidecar whose traffic is not redirected to it.", func() float64 { return float64(m.unprotected.Load()) })
	gauge("hauberk_node_chain_present", "1 when hauberk-cni is in the active CNI configuration.", func() float64 { return truth(a.chain.State().Present) })
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "hauberk_node_chain_repairs_total", Help: "Times that another program's change of the CNI configuration was repaired.",
	}, func() float64 { return float64(a.chain.State().Repairs) }))
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "hauberk_kernel_flows_lost_total", Help: "Denied packets that the kernel told of and that could not be taken in time.",
	}, func() float64 { return float64(a.flows.Lost()) }))
	gauge("hauberk_kernel_flows_heard", "1 while denied packets of the kernel are heard of.", func() float64 { return truth(a.flowsProblem() == "") })
	gauge("hauberk_config_connected", "1 while the config stream to the control plane lives.", func() float64 { return truth(a.control.status().Connected) })
	gauge("hauberk_identity_expiry_timestamp_seconds", "When the SVID in use ends, Unix time; 0 before the first.", func() float64 {
		expiry := a.control.status().IdentityExpiry
		if expiry.IsZero() {
			return 0
		}
		return float64(expiry.Unix())
	})
}

func (m *metrics) added(took time.Duration, err error) {
	m.adds.WithLabelValues(result(err)).Observe(took.Seconds())
}

func (m *metrics) applied(took time.Duration, err error) {
	m.applies.WithLabelValues(result(err)).Observe(took.Seconds())
}

// maxDropSeries bounds the series of drops: policies come and go, and their
// series stay. What is beyond counts as policy "other".
const maxDropSeries = 1000

// dropped counts a drop of the kernel. Where a tier's default decided, the
// policies are left out: there may be many, and they change together.
func (m *metrics) dropped(r *flow.Record) {
	key := [4]string{r.Direction, r.Tier, r.Policy, r.Rule}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.series[key]
	if !ok {
		if len(m.series) >= maxDropSeries {
			key = [4]string{r.Direction, "", "other", ""}
		}
		c = m.drops.WithLabelValues(key[:]...)
		m.series[key] = c
	}
	c.Inc()
}

func (m *metrics) renewed(r identity.Renewal) { m.renewals.WithLabelValues(result(r.Err)).Inc() }

// setUnprotected reports whether the number changed.
func (m *metrics) setUnprotected(n int) bool { return m.unprotected.Swap(int64(n)) != int64(n) }

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
