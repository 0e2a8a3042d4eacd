package telemetry

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
)

// idleSeries is after how long without use a route's series are dropped.
const idleSeries = time.Hour

// RouteKey is the labels that all request and connection metrics have. None of
// them is a path, host, pod or address: their number does not grow with use.
type RouteKey struct {
	Direction                            string // inbound, outbound
	SourceNamespace, SourceWorkload      string
	DestinationNamespace, DestinationApp string
	Service                              string // namespace/name; empty where unknown
	Protocol                             string // http/1.1, http/2, tcp
	Security                             string // mutual_tls, none
}

var routeLabels = []string{"direction", "source_namespace", "source_workload", "destination_namespace",
	"destination_workload", "destination_service", "protocol", "security"}

func (k *RouteKey) values(more ...string) []string {
	return append([]string{k.Direction, k.SourceNamespace, k.SourceWorkload, k.DestinationNamespace, k.DestinationApp,
		k.Service, k.Protocol, k.Security}, more...)
}

// Metrics is all metrics of the sidecar; docs/telemetry.md explains each.
type Metrics struct {
	requests  *prometheus.CounterVec
	grpc      *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	httpBytes *prometheus.CounterVec
	opened    *prometheus.CounterVec
	closed    *prometheus.CounterVec
	tcpBytes  *prometheus.CounterVec
	verdicts  *prometheus.CounterVec
	handshake *prometheus.HistogramVec
	failures  *prometheus.CounterVec
	rejected  *prometheus.CounterVec
	retries   prometheus.Counter
	endpoints *prometheus.CounterVec

	counters sync.Map // verdictKey → prometheus.Counter

	mu     sync.Mutex
	routes map[RouteKey]*Route // guarded by mu
}

// Sources are values that are read when metrics are.
type Sources struct {
	// Expiry is when the SVID expires, zero without one.
	Expiry func() time.Time
	// Updated is when the control plane last said anything.
	Updated func() time.Time
	// Connected reports the stream's state.
	Connected func() bool
	Version   string
}

// NewMetrics registers all metrics.
func NewMetrics(reg prometheus.Registerer, src Sources) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_requests_total",
			Help: "HTTP requests by outcome."}, append(append([]string{}, routeLabels...), "code_class", "flag")),
		grpc: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_grpc_requests_total",
			Help: "gRPC requests by their status."}, append(append([]string{}, routeLabels...), "grpc_status")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hauberk_request_duration_seconds",
			Help:    "Time from a request's first byte to its response's last.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}, routeLabels),
		httpBytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_http_body_bytes_total",
			Help: "Bytes of bodies of requests and responses."}, append(append([]string{}, routeLabels...), "of")),
		opened: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_tcp_connections_opened_total",
			Help: "Connections that were passed on as bytes."}, routeLabels),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_tcp_connections_closed_total",
			Help: "Connections that were passed on as bytes and have ended."}, append(append([]string{}, routeLabels...), "flag")),
		tcpBytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_tcp_bytes_total",
			Help: "Bytes of connections that were passed on as bytes."}, append(append([]string{}, routeLabels...), "of")),
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_policy_verdicts_total",
			Help: "Policy decisions by what decided."}, []string{"direction", "action", "tier", "policy", "rule", "mode"}),
		handshake: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hauberk_tls_handshake_duration_seconds",
			Help:    "Mutual TLS handshakes that succeeded.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}}, []string{"direction"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_tls_handshake_failures_total",
			Help: "Mutual TLS handshakes that failed."}, []string{"direction"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_connections_refused_total",
			Help: "Connections that were refused before any policy."}, []string{"direction", "reason"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "hauberk_upstream_retries_total",
			Help: "Further endpoints that were tried because nothing had been sent to the one before."}),
		endpoints: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hauberk_upstream_endpoint_failures_total",
			Help: "Connections to endpoints that could not be made; each sets its endpoint aside for a time."}, []string{"reason"}),
		routes: make(map[RouteKey]*Route),
	}
	reg.MustRegister(m.requests, m.grpc, m.duration, m.httpBytes, m.opened, m.closed, m.tcpBytes, m.verdicts, m.handshake, m.failures,
		m.rejected, m.retries)
	reg.MustRegister(m.endpoints)
	m.registerSources(reg, src)
	return m
}

func (m *Metrics) registerSources(reg prometheus.Registerer, src Sources) {
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hauberk_build_info", Help: "1, by version."}, []string{"version"})
	build.WithLabelValues(src.Version).Set(1)
	reg.MustRegister(build,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hauberk_certificate_expiry_timestamp_seconds",
			Help: "When the workload's certificate expires, Unix time; 0 without one."}, func() float64 { return unix(src.Expiry()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hauberk_config_last_update_timestamp_seconds",
			Help: "When the control plane last sent anything, Unix time; 0 for never."}, func() float64 { return unix(src.Updated()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hauberk_control_connected",
			Help: "1 while the stream to the control plane is up and in sync."}, func() float64 {
			if src.Connected() {
				return 1
			}
			return 0
		}))
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// Route is one key's series, found once a connection or route and then used
// without a lookup.
type Route struct {
	Key  RouteKey
	m    *Metrics
	used atomic.Int64

	once      sync.Once // the children below
	duration  prometheus.Observer
	in, out   prometheus.Counter
	tcpIn     prometheus.Counter
	tcpOut    prometheus.Counter
	tcpOpened prometheus.Counter
	requests  [6]atomic.Pointer[prometheus.Counter]  // by code class, for the empty flag
	grpc      [17]atomic.Pointer[prometheus.Counter] // by status
}

// Route binds a key. Callers keep it for a connection, not for ever.
func (m *Metrics) Route(k RouteKey) *Route {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.routes[k]
	if !ok {
		r = &Route{Key: k, m: m}
		m.routes[k] = r
	}
	r.used.Store(time.Now().Unix())
	return r
}

func (r *Route) bind() {
	r.once.Do(func() {
		v := r.Key.values()
		if r.Key.Protocol == ProtocolTCP {
			r.tcpOpened = r.m.opened.WithLabelValues(v...)
			r.tcpIn = r.m.tcpBytes.WithLabelValues(r.Key.values("received")...)
			r.tcpOut = r.m.tcpBytes.WithLabelValues(r.Key.values("sent")...)
			return
		}
		r.duration = r.m.duration.WithLabelValues(v...)
		r.in = r.m.httpBytes.WithLabelValues(r.Key.values("request")...)
		r.out = r.m.httpBytes.WithLabelValues(r.Key.values("response")...)
	})
}

var classes = [6]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

func (r *Route) request(rec *Record) {
	r.bind()
	r.used.Store(rec.Start.Unix())
	class := min(max(rec.Status/100, 0), 5)
	if rec.Flag == "" {
		c := r.requests[class].Load()
		if c == nil {
			bound := r.m.requests.WithLabelValues(r.Key.values(classes[class], "")...)
			c = &bound
			r.requests[class].Store(c)
		}
		(*c).Inc()
	} else {
		r.m.requests.WithLabelValues(r.Key.values(classes[class], rec.Flag)...).Inc()
	}
	if rec.GRPC {
		r.grpcStatus(rec.GRPCStatus)
	}
	r.duration.Observe(rec.Duration.Seconds())
	if rec.Received > 0 {
		r.in.Add(float64(rec.Received))
	}
	if rec.Sent > 0 {
		r.out.Add(float64(rec.Sent))
	}
}

// grpcStatus counts a gRPC request. What is not one of the seventeen statuses
// is "none": a peer must not make series.
func (r *Route) grpcStatus(status int) {
	if status < 0 || status >= len(r.grpc) {
		r.m.grpc.WithLabelValues(r.Key.values("none")...).Inc()
		return
	}
	c := r.grpc[status].Load()
	if c == nil {
		bound := r.m.grpc.WithLabelValues(r.Key.values(strconv.Itoa(status))...)
		c = &bound
		r.grpc[status].Store(c)
	}
	(*c).Inc()
}

// Opened counts a connection that is passed on as bytes.
func (r *Route) Opened() {
	r.bind()
	r.tcpOpened.Inc()
}

// Received and Sent count bytes as they pass.
func (r *Route) Received() Bytes { r.bind(); return Bytes{r.tcpIn} }

// Sent is Received for the other direction.
func (r *Route) Sent() Bytes { r.bind(); return Bytes{r.tcpOut} }

// Bytes adds to one counter.
type Bytes struct{ c prometheus.Counter }

// Add counts n bytes.
func (b Bytes) Add(n int64) { b.c.Add(float64(n)) }

func (r *Route) connection(rec *Record) {
	r.m.closed.WithLabelValues(r.Key.values(rec.Flag)...).Inc()
	r.used.Store(time.Now().Unix())
}

// Expire drops the series of routes that were not used for an hour.
func (m *Metrics) Expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, r := range m.routes {
		if now.Unix()-r.used.Load() < int64(idleSeries.Seconds()) {
			continue
		}
		delete(m.routes, k)
		labels := prometheus.Labels{}
		for i, v := range k.values() {
			labels[routeLabels[i]] = v
		}
		for _, vec := range []interface {
			DeletePartialMatch(prometheus.Labels) int
		}{m.requests, m.grpc, m.duration, m.httpBytes, m.opened, m.closed, m.tcpBytes} {
			vec.DeletePartialMatch(labels)
		}
	}
}

type verdictKey struct {
	direction policy.Direction
	action    policy.Action
	tier      string
	ref       policy.Ref
	rule      string
	audit     bool
}

// Verdict counts a decision, and beside it what policies in Audit mode would
// have decided.
func (m *Metrics) Verdict(v *policy.Verdict) {
	m.verdict(v, false)
	if v.Audit != nil {
		m.verdict(v.Audit, true)
	}
}

func (m *Metrics) verdict(v *policy.Verdict, audit bool) {
	k := verdictKey{direction: v.Direction, action: v.Action, tier: v.Tier, ref: v.Policy, rule: v.Rule, audit: audit}
	c, ok := m.counters.Load(k)
	if !ok {
		mode := "enforce"
		if audit {
			mode = "audit"
		}
		c, _ = m.counters.LoadOrStore(k, m.verdicts.WithLabelValues(v.Direction.String(), v.Action.String(), v.Tier, authz.Name(v), v.Rule, mode))
	}
	c.(prometheus.Counter).Inc()
}

// Handshake counts a handshake.
func (m *Metrics) Handshake(direction string, took time.Duration, err error) {
	if err != nil {
		m.failures.WithLabelValues(direction).Inc()
		return
	}
	m.handshake.WithLabelValues(direction).Observe(took.Seconds())
}

// Refused counts a connection that got no further. Reasons are few constants.
func (m *Metrics) Refused(direction, reason string) {
	m.rejected.WithLabelValues(direction, reason).Inc()
}

// Retried counts another endpoint that was tried.
func (m *Metrics) Retried() { m.retries.Inc() }

// EndpointFailed counts an endpoint that could not be used.
func (m *Metrics) EndpointFailed(reason string) { m.endpoints.WithLabelValues(reason).Inc() }

func statusText(status int) string { return strconv.Itoa(status) }
