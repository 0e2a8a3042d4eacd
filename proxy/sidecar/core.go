// Package sidecar wires the proxy: what it knows, the two listeners, telemetry,
// probes and the admin, in the order in which they may start. It decides when
// the sidecar is ready and when it ends, and nothing about connections.
package sidecar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/attribute"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
	otlp "github.com/hauberk-mesh/hauberk/internal/telemetry"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/hangup"
	"github.com/hauberk-mesh/hauberk/proxy/inbound"
	"github.com/hauberk-mesh/hauberk/proxy/outbound"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
	"github.com/hauberk-mesh/hauberk/proxy/streams"
	"github.com/hauberk-mesh/hauberk/proxy/telemetry"
	"github.com/hauberk-mesh/hauberk/proxy/upstream"
)

// dialTimeout is for applications and for destinations outside of the mesh.
const dialTimeout = 10 * time.Second

// recheckEvery finds certificates that expired under live connections.
const recheckEvery = 10 * time.Second

// keptFlows is how many of the last denials are kept for who asks, and
// flowsPerSecond how many verdicts a second are told at most.
const (
	keptFlows      = 512
	flowsPerSecond = 200
)

// CoreOptions are what differs between a pod and a static configuration.
type CoreOptions struct {
	PodUID string
	Source *identity.Source
	Log    *slog.Logger
	// AccessLog receives a JSON line for each request when the mesh asks for it.
	AccessLog io.Writer
	// Inbound and Outbound find original destinations.
	Inbound, Outbound func(net.Conn) (netip.AddrPort, error)
	// Foreign: see inbound.Options.
	Foreign bool
	// Connected reports the stream to the control plane; nil without one.
	Connected func() bool
	// Resource describes the process beyond what its workload says.
	Resource []attribute.KeyValue
	Timeouts exchange.Timeouts
	// Limits of each listener; zero for the defaults.
	Limits connections.Limits
}

// Core is the data path without its listeners.
type Core struct {
	Directory   *directory.Directory
	Upstreams   *upstream.Set
	Connections *connections.Registry
	Observer    *telemetry.Observer
	Flows       *flow.Ring
	Registry    *prometheus.Registry
	Inbound     *inbound.Server
	Outbound    *outbound.Server

	opts     CoreOptions
	pipeline *otlp.Pipeline
	hangups  *hangup.Watcher
}

// NewCore assembles the data path.
func NewCore(o CoreOptions) *Core {
	if o.Connected == nil {
		o.Connected = func() bool { return true }
	}
	if o.Timeouts == (exchange.Timeouts{}) {
		o.Timeouts = exchange.DefaultTimeouts
	}
	if o.Limits == (connections.Limits{}) {
		o.Limits = connections.DefaultLimits()
	}
	c := &Core{opts: o, Directory: directory.New(o.PodUID, o.Log), Connections: &connections.Registry{}, Registry: prometheus.NewRegistry(),
		Flows: flow.NewRing(keptFlows, flowsPerSecond)}
	c.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := telemetry.NewMetrics(c.Registry, telemetry.Sources{Expiry: o.Source.Expiry, Updated: c.Directory.Updated,
		Connected: o.Connected, Version: version.Version})
	c.pipeline = otlp.New(otlp.Options{Gatherer: c.Registry, Scope: "github.com/hauberk-mesh/hauberk/proxy", Log: o.Log})
	c.Observer = telemetry.NewObserver(metrics, c.pipeline, o.Log, o.AccessLog, c.Flows)
	c.Connections.Watch = socket.NewWatch()
	dial := c.Connections.Watch.Dial(socket.Dialer(dialTimeout).DialContext)
	c.Upstreams = upstream.New(upstream.Options{TLS: clientTLS(o.Source), Dial: c.Connections.Watch.Dial(socket.Dialer(upstream.DialTimeout).DialContext),
		Self: o.PodUID, Zone: c.zone, Handshakes: metrics, HTTP2: streams.ConnTimeouts(o.Timeouts)})
	principal := func() string {
		if svid, ok := o.Source.Current(); ok {
			return svid.ID.String()
		}
		return ""
	}
	var err error
	if c.hangups, err = hangup.New(); err != nil {
		o.Log.Error("clients that vanish during a request are noticed late", "error", err.Error())
	}
	c.Outbound = outbound.New(outbound.Options{Directory: c.Directory, Upstreams: c.Upstreams, Observer: c.Observer,
		Connections: c.Connections, Gate: connections.NewGate(connections.Limits{Connections: o.Limits.Connections}, telemetry.Outbound, c.Observer.Refused, o.Log),
		OriginalDestination: o.Outbound, Dial: dial, Principal: principal, Timeouts: o.Timeouts, Hangups: c.hangups, Log: o.Log})
	c.Inbound = inbound.New(inbound.Options{Directory: c.Directory, Observer: c.Observer, Connections: c.Connections,
		Gate:                connections.NewGate(o.Limits, telemetry.Inbound, c.Observer.Refused, o.Log),
		TLS:                 identity.ServerTLS(o.Source, identity.WithALPN(names.ALPNHTTP2, names.ALPNHTTP1, names.ALPNTCP)),
		OriginalDestination: o.Inbound, Foreign: o.Foreign, Dial: dial, Principal: principal, Timeouts: o.Timeouts, Hangups: c.hangups, Log: o.Log})
	return c
}

// zone is the own pod's.
func (c *Core) zone() string {
	if self := c.Directory.Self(); self != nil {
		return self.Workload.Proto.GetZone()
	}
	return ""
}

// clientTLS makes configurations that accept one identity and one pod.
func clientTLS(src *identity.Source) func(id, podUID string, alpn ...string) (*tls.Config, error) {
	return func(id, podUID string, alpn ...string) (*tls.Config, error) {
		parsed, err := spiffeid.FromString(id)
		if err != nil {
			return nil, fmt.Errorf("identity %q: %w", id, err)
		}
		if podUID == "" {
			return nil, fmt.Errorf("identity %s without a pod", id)
		}
		config := identity.ClientTLS(src, identity.Expect{ID: parsed, PodUID: podUID}, alpn...)
		config.DynamicRecordSizingDisabled = true
		return config, nil
	}
}

// Run keeps the core current until ctx ends, then flushes telemetry.
func (c *Core) Run(ctx context.Context) error {
	// Followers of flows must not hold up the end.
	defer context.AfterFunc(ctx, c.Flows.Close)()
	err := lifecycle.Run(ctx,
		lifecycle.Task{Name: "directory", Run: c.Directory.Run},
		lifecycle.Task{Name: "upstreams", Run: c.Upstreams.Run},
		lifecycle.Task{Name: "hangups", Run: c.hangups.Run},
		lifecycle.Task{Name: "changes", Run: c.follow},
		lifecycle.Task{Name: "watch", Run: c.Connections.Watch.Run},
	)
	if flush := c.pipeline.Shutdown(context.WithoutCancel(ctx)); flush != nil {
		c.opts.Log.Debug("telemetry not flushed", "error", flush.Error())
	}
	return err
}

// follow applies what the control plane changes to what is alive.
func (c *Core) follow(ctx context.Context) error {
	changes := c.Directory.Changes()
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	c.Configure(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			c.Configure(ctx)
		case now := <-ticker.C:
			c.Observer.Expire(now)
		}
		if c.Directory.Self() != nil {
			c.Connections.Recheck(c.opts.Log)
		}
	}
}

// Configure applies what the mesh says of roots and telemetry. Run does so at
// each change; it is called once more before the first connection.
func (c *Core) Configure(ctx context.Context) {
	mesh := c.Directory.Mesh().Proto
	if roots := mesh.GetRoots(); len(roots) > 0 {
		c.setRoots(roots)
	}
	t := mesh.GetTelemetry()
	c.Observer.Configure(telemetry.Settings{Ratio: t.GetSamplingRatio(), AccessLog: t.GetAccessLog()})
	if c.Directory.Self() == nil {
		return // without a name there is nobody to tell of
	}
	if err := c.pipeline.Configure(ctx, otlp.Target{Endpoint: t.GetOtlpEndpoint(), Resource: c.resource()}); err != nil {
		c.opts.Log.Warn("telemetry is not exported", "error", err.Error())
	}
}

// setRoots trusts what the mesh trusts. Connections that rest on a root that
// went are ended: the pools here, the others by Recheck.
func (c *Core) setRoots(ders [][]byte) {
	roots, err := identity.ParseRootsDER(ders)
	if err != nil {
		c.opts.Log.Error("roots of the mesh can't be read; the ones before stay", "error", err.Error())
		return
	}
	before := c.opts.Source.Roots()
	unknown := func(r *x509.Certificate) bool { return !slices.ContainsFunc(before, r.Equal) }
	if len(before) == len(roots) && !slices.ContainsFunc(roots, unknown) {
		return
	}
	if err := c.opts.Source.SetRoots(roots); err != nil {
		c.opts.Log.Error("roots of the mesh are refused; the ones before stay", "error", err.Error())
		return
	}
	c.opts.Log.Info("trust bundle changed", "roots", len(roots))
	c.Upstreams.Flush()
}

// resource describes the process by its workload, in OpenTelemetry's names.
func (c *Core) resource() attribute.Set {
	w := c.Directory.Self().Workload
	attrs := []attribute.KeyValue{
		attribute.String("service.name", w.Display()),
		attribute.String("service.namespace", w.Namespace),
		attribute.String("service.instance.id", w.UID),
		attribute.String("k8s.namespace.name", w.Namespace),
		attribute.String("k8s.pod.name", w.Name),
		attribute.String("k8s.pod.uid", w.UID),
		attribute.String("k8s.node.name", w.Node),
		attribute.String("k8s.container.name", names.ProxyContainer),
		attribute.String("telemetry.distro.name", "hauberk"),
		attribute.String("telemetry.distro.version", version.Version),
	}
	switch kind := w.Proto.GetWorkloadKind(); kind {
	case "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet":
		attrs = append(attrs, attribute.String("k8s."+strings.ToLower(kind)+".name", w.Display()))
	}
	return attribute.NewSet(append(attrs, c.opts.Resource...)...)
}
