package sidecar

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/proxy/admin"
	"github.com/hauberk-mesh/hauberk/proxy/capture"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
	"github.com/hauberk-mesh/hauberk/proxy/probe"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// own are the ports whose redirection would be a loop.
var own = []uint16{names.PortOutbound, names.PortInbound, names.PortAdmin, names.PortMetrics, names.PortHealth}

// Run is the sidecar of a pod, until ctx ends (SIGTERM) and it has drained.
// Redirected traffic is refused by the kernel until identity, own pod and
// policy are known, because nobody listens before.
func Run(ctx context.Context, cfg Config, out io.Writer, level *slog.LevelVar) error {
	level.Set(cfg.LogLevel)
	log := slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}))
	renewer, err := identity.NewRenewer(identity.RenewerOptions{ControlAddress: cfg.ControlAddress, TokenFile: cfg.TokenFile,
		TrustDomain: cfg.TrustDomain, InitialRoots: cfg.Roots, Log: log})
	if err != nil {
		return err
	}
	var client *discovery.Client
	core := NewCore(CoreOptions{PodUID: cfg.PodUID, Source: renewer.Source(), Log: log, AccessLog: out,
		Inbound:   func(c net.Conn) (netip.AddrPort, error) { return capture.OriginalDestination(c, own...) },
		Outbound:  func(c net.Conn) (netip.AddrPort, error) { return capture.OriginalDestination(c, own...) },
		Connected: func() bool { return client.Connected() }})
	client, err = discovery.New(discovery.Options{Address: cfg.ControlAddress, Handler: core.Directory, Log: log,
		TLS:     identity.ClientTLS(renewer.Source(), identity.Expect{ID: identity.ControlID(cfg.TrustDomain)}),
		Version: version.Version, Ready: renewer.Source().Ready(),
		Types: []hauberkv1.ResourceType{hauberkv1.ResourceType_RESOURCE_TYPE_MESH, hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET,
			hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD}})
	if err != nil {
		return err
	}
	core.Directory.Bind(client)
	log.Info("sidecar starts", "version", version.String(), "pod", cfg.Namespace+"/"+cfg.PodName, "pod_uid", cfg.PodUID,
		"control_address", cfg.ControlAddress)
	return runWith(ctx, process{core: core, log: log, level: level, source: renewer.Source(), connected: client.Connected,
		drain: cfg.Drain, probes: cfg.Probes, podIPs: cfg.PodIPs,
		listen: func(ctx context.Context) ([]bound, error) { return capturing(ctx, core) },
		tasks:  []lifecycle.Task{{Name: "identity", Run: renewer.Run}, {Name: "discovery", Run: client.Run}},
		health: fmt.Sprintf(":%d", names.PortHealth), metrics: fmt.Sprintf(":%d", names.PortMetrics),
		admin: fmt.Sprintf("127.0.0.1:%d", names.PortAdmin)})
}

// bound is a listener with what handles its connections.
type bound struct {
	net.Listener
	handle func(context.Context, net.Conn)
}

func capturing(ctx context.Context, core *Core) ([]bound, error) {
	var all []bound
	for _, l := range []struct {
		port   int
		handle func(context.Context, net.Conn)
	}{{names.PortOutbound, core.Outbound.Handle}, {names.PortInbound, core.Inbound.Handle}} {
		listeners, err := socket.Listen(ctx, l.port)
		if err != nil {
			for _, b := range all {
				b.Close()
			}
			return nil, err
		}
		for _, one := range listeners {
			all = append(all, bound{one, l.handle})
		}
	}
	return all, nil
}

// process is what a pod's sidecar and a static one have in common.
type process struct {
	core      *Core
	log       *slog.Logger
	level     *slog.LevelVar
	source    *identity.Source
	connected func() bool
	drain     time.Duration
	probes    probe.Probes
	podIPs    []netip.Addr
	listen    func(context.Context) ([]bound, error)
	tasks     []lifecycle.Task
	// Addresses; empty for none.
	health, metrics, admin string
}

func runWith(ctx context.Context, p process) error {
	// The parts outlive ctx by the time that draining takes.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	health := lifecycle.NewHealth()
	hasIdentity, hasConfig, listening := health.Register("identity"), health.Register("configuration"), health.Register("listeners")
	hasIdentity.NotReady("waiting for a certificate from the control plane")
	hasConfig.NotReady("waiting for the own workload and policy from the control plane")
	listening.NotReady("waiting for identity and configuration")

	tasks := append(p.tasks,
		lifecycle.Task{Name: "core", Run: p.core.Run},
		lifecycle.Task{Name: "drain", Run: func(done context.Context) error {
			select {
			case <-done.Done():
				return nil
			case <-ctx.Done():
			}
			p.waitDrained(done)
			cancel()
			<-done.Done()
			return nil
		}},
		lifecycle.Task{Name: "listeners", Run: func(live context.Context) error {
			if !wait(ctx, live, p.source.Ready()) {
				<-live.Done()
				return nil
			}
			hasIdentity.Ready()
			if !wait(ctx, live, p.core.Directory.Ready()) {
				<-live.Done()
				return nil
			}
			hasConfig.Ready()
			p.core.Configure(live)
			listeners, err := p.listen(live)
			if err != nil {
				return err
			}
			listening.Ready()
			p.log.Info("sidecar is ready")
			return p.serve(ctx, live, listeners)
		}})
	tasks = append(tasks, p.faces(health)...)
	err := lifecycle.Run(live, tasks...)
	p.log.Info("sidecar ends")
	return err
}

// wait waits for c; false when the process ends first.
func wait(ctx, live context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
	case <-live.Done():
	}
	return false
}

// serve accepts until accept ends and returns when live has ended too.
func (p *process) serve(accept, live context.Context, listeners []bound) error {
	tasks := make([]lifecycle.Task, len(listeners))
	for i, l := range listeners {
		tasks[i] = lifecycle.Task{Name: l.Addr().String(), Run: func(live context.Context) error {
			err := connections.Serve(accept, live, l, p.log, l.handle)
			if err == nil {
				<-live.Done()
			}
			return err
		}}
	}
	return lifecycle.Run(live, tasks...)
}

// waitDrained ends what is idle and waits for the rest, for as long as it may
// take.
func (p *process) waitDrained(done context.Context) {
	p.core.Connections.Stop()
	p.core.Upstreams.Drain()
	p.log.Info("draining", "connections", p.core.Connections.Len())
	limit := time.NewTimer(p.drain)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.core.Connections.Len() > 0 {
		select {
		case <-done.Done():
			return
		case <-limit.C:
			p.log.Warn("connections are cut: the time to drain is over", "connections", p.core.Connections.Len())
			return
		case <-tick.C:
		}
	}
}

// startDraining tells clients and upstreams that their connections end, and
// waits for nothing.
func (p *process) startDraining() {
	if !p.core.Connections.Draining() {
		p.log.Info("drain requested")
	}
	p.core.Connections.Drain()
	p.core.Upstreams.Drain()
}

// maxFaceConnections bounds the connections to health, metrics and admin
// together.
const maxFaceConnections = 256

// faces are health, metrics and admin.
func (p *process) faces(health *lifecycle.Health) []lifecycle.Task {
	var tasks []lifecycle.Task
	// Whoever reaches a face may open connections to it; the kubelet must get in.
	gate := connections.NewGate(connections.Limits{Connections: maxFaceConnections}, "faces", p.core.Observer.Refused, p.log)
	add := func(name, address string, h http.Handler) {
		if address == "" {
			return
		}
		tasks = append(tasks, lifecycle.Task{Name: name, Run: func(ctx context.Context) error {
			l, err := socket.ListenOn(ctx, "tcp", address)
			if err != nil {
				return fmt.Errorf("listen on %s: %w", address, err)
			}
			return lifecycle.ServeListener(ctx, gate.Listener(l), h)
		}})
	}
	mux := http.NewServeMux()
	health.Handle(mux)
	pod := netip.MustParseAddr("127.0.0.1")
	if len(p.podIPs) > 0 {
		pod = p.podIPs[0]
	}
	mux.Handle("/probe/", probe.New(p.probes, pod, socket.Dialer(dialTimeout).DialContext))
	add("health", p.health, mux)

	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{p.core.Registry}, promhttp.HandlerOpts{}))
	add("metrics", p.metrics, metrics)

	add("admin", p.admin, admin.Handler(admin.Options{Directory: p.core.Directory, Upstreams: p.core.Upstreams,
		Connections: p.core.Connections, Source: p.source, Connected: p.connected, NotReady: health.NotReady, Level: p.level,
		Flows: p.core.Flows, Started: time.Now(), Drain: p.startDraining}))
	return tasks
}
