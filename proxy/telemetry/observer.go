// Package telemetry tells what the sidecar does: metrics whose series are bound
// before a request needs them, spans for those requests that are sampled, an
// access log of one JSON line each, and denials in the process's log.
//
// It owns names and formats. It does not own exporters (internal/telemetry) or
// what is worth telling (proxy/inbound, proxy/outbound).
package telemetry

import (
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
)

// Directions and protocols as all telemetry writes them.
const (
	Inbound  = "inbound"
	Outbound = "outbound"

	ProtocolHTTP1 = "http/1.1"
	ProtocolHTTP2 = "http/2"
	ProtocolTCP   = "tcp"

	SecurityMTLS = "mutual_tls"
	SecurityNone = "none"
)

// Party is one end as telemetry names it.
type Party struct {
	Principal           string
	Namespace, Workload string
	Pod                 string // for flow records only; empty where it is not known
}

// Record is one request, or one connection that was passed on as bytes.
type Record struct {
	Direction, Protocol string
	Start               time.Time
	Duration            time.Duration
	Method, Path, Host  string
	Status              int
	GRPC                bool // the request is gRPC
	GRPCStatus          int  // negative without one
	Received, Sent      int64
	Flag                string
	Error               string
	Attempts            int // connections to endpoints that were asked for
	Source, Destination Party
	Service             string
	PeerAddress         string         // the other end of the wire
	TargetAddress       string         // where it was going
	Node                string         // the sidecar's
	Asked               netip.AddrPort // the destination that policy was asked about: after any Service
	Decided             bool           // Verdict is set
	Verdict             policy.Verdict
}

// Observer is where all of it goes. It is safe for concurrent use.
type Observer struct {
	*Metrics
	tracers  TracerSource
	log      *slog.Logger
	settings settings
	access   accessLog
	denials  limiter
	flows    *flow.Ring
}

// NewObserver writes the access log to w and verdicts to flows.
func NewObserver(m *Metrics, tracers TracerSource, log *slog.Logger, w io.Writer, flows *flow.Ring) *Observer {
	return &Observer{Metrics: m, tracers: tracers, log: log, access: accessLog{w: w}, flows: flows}
}

// Configure changes the settings.
func (o *Observer) Configure(s Settings) { o.settings.Store(&s) }

// Request tells a finished request.
func (o *Observer) Request(r *Route, rec *Record, t *Trace) {
	rec.Duration = time.Since(rec.Start)
	r.request(rec)
	t.end(rec)
	if o.settings.get().AccessLog {
		o.access.write(rec, t)
	}
}

// Connection tells the end of a connection that was passed on as bytes.
func (o *Observer) Connection(r *Route, rec *Record, t *Trace) {
	rec.Duration = time.Since(rec.Start)
	r.connection(rec)
	t.end(rec)
	if o.settings.get().AccessLog {
		o.access.write(rec, t)
	}
}

// Log is the process's log.
func (o *Observer) Log() *slog.Logger { return o.log }

// Decision counts the verdict of set and, when it denies, logs it: at most some
// a second, the rest counted. Denials become flow records, and so does what is
// allowed while somebody asks for that.
func (o *Observer) Decision(set *policy.Set, v *policy.Verdict, rec *Record, source netip.Addr) {
	o.Verdict(v)
	if v.Action != policy.Allow || v.Audit != nil || o.flows.Wants(flow.Allow) {
		o.flows.Offer(func() flow.Record { return flowOf(set, v, rec, source) })
	}
	for _, l := range v.Logs {
		o.told("matched a Log rule", v, rec, source, l.Policy.String(), l.Rule)
	}
	if v.Audit != nil {
		o.told("audited policy would decide otherwise: "+v.Audit.Action.String(), v, rec, source, authz.Name(v.Audit), v.Audit.Rule)
	}
	if v.Action != policy.Allow {
		o.told("denied by policy", v, rec, source, authz.Name(v), v.Rule)
	}
}

// told writes one line about a decision.
func (o *Observer) told(message string, v *policy.Verdict, rec *Record, source netip.Addr, by, rule string) {
	suppressed, ok := o.denials.allow(time.Now())
	if !ok {
		return
	}
	o.log.Info(message, "direction", rec.Direction, "verdict", v.Action.String(), "tier", v.Tier, "policy", by, "rule", rule,
		"reason", v.Reason, "source_principal", rec.Source.Principal, "source_workload", name(rec.Source),
		"source_address", source.String(), "destination_workload", name(rec.Destination), "target_address", rec.TargetAddress,
		"method", rec.Method, "path", rec.Path, "suppressed", suppressed)
}

func name(p Party) string {
	if p.Namespace == "" {
		return p.Workload
	}
	return p.Namespace + "/" + p.Workload
}

// limiter lets ten a second through, with a burst of twenty.
type limiter struct {
	mu         sync.Mutex
	tokens     float64
	last       time.Time
	suppressed int64
}

func (l *limiter) allow(now time.Time) (suppressed int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.tokens = 20
	} else {
		l.tokens = min(20, l.tokens+10*now.Sub(l.last).Seconds())
	}
	l.last = now
	if l.tokens < 1 {
		l.suppressed++
		return 0, false
	}
	l.tokens--
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
