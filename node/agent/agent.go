// Package agent is the node agent: it wires the config stream, the CNI server,
// the chain, the firewall and the tunnel together, and owns what the node knows.
// The rules themselves are node/redirect's, node/firewall's and node/tunnel's.
//
// The kernel's state outlives the agent, and the agent touches none of it before
// it has been told the whole configuration of its node. What it knows is in
// memory only; on disk is nothing but which pods CNI attached.
package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/chain"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/flows"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
)

const (
	// collectInterval is between looks for pods that were deleted while the
	// agent, or the runtime, was not there.
	collectInterval = time.Minute
	// retryMin and retryMax bound the pause after the kernel refused something.
	retryMin = time.Second
	retryMax = 30 * time.Second
	// keptFlows is how many of the last drops are kept for who asks.
	keptFlows = 4096
)

// Agent is a node agent. Its fields are set once, by New.
type Agent struct {
	Config
	log *slog.Logger

	know        *knowledge
	attachments *cniserver.Attachments
	redirector  *redirect.Redirector
	enforcer    *enforcer
	tunnel      *tunnel.Tunnel
	chain       *chain.Manager
	cni         *cniserver.Server
	firewall    *firewall.Firewall
	flows       *flows.Reader
	ring        *flow.Ring
	control     *control

	registry *prometheus.Registry
	metrics  *metrics
	health   *lifecycle.Health
	checks   checks
}

// checks is what readiness consists of.
type checks struct{ kernel, cni, chain *lifecycle.Check }

// New prepares an agent; nothing in the kernel or in the CNI configuration is
// touched yet. The caller holds the node's lock.
func New(c Config, logTo io.Writer) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	level, err := c.level()
	if err != nil {
		return nil, err
	}
	a := &Agent{Config: c, log: slog.New(slog.NewJSONHandler(logTo, &slog.HandlerOptions{Level: level})).With("node", c.NodeName)}
	a.registry = prometheus.NewRegistry()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.metrics = newMetrics(a.registry)
	a.health = lifecycle.NewHealth()
	a.checks = checks{kernel: a.health.Register("kernel"), cni: a.health.Register("cni"), chain: a.health.Register("chain")}
	a.checks.kernel.NotReady("the control plane has not told this node's whole configuration yet")
	a.know = newKnowledge()

	if a.attachments, err = cniserver.OpenAttachments(c.podsDir()); err != nil {
		return nil, err
	}
	if a.redirector, err = redirect.New(redirect.Options{Log: a.log}); err != nil {
		return nil, err
	}
	control, err := netip.ParseAddrPort(c.ControlAddress)
	if err != nil {
		return nil, fmt.Errorf("control address %q: it must be an address and a port, because the mesh needs no DNS: %w", c.ControlAddress, err)
	}
	fw, err := firewall.New(firewall.Options{Log: a.log, Control: control})
	if err != nil {
		return nil, err
	}
	a.firewall, a.ring = fw, flow.NewRing(keptFlows, 0)
	a.flows, err = flows.New(flows.Options{Log: a.log, Node: c.NodeName, Ring: a.ring, Dropped: fw.Dropped, Who: a.who, Told: a.metrics.dropped})
	if err != nil {
		return nil, err
	}
	if a.tunnel, err = tunnel.New(tunnel.Options{Log: a.log}); err != nil {
		return nil, err
	}
	a.enforcer = newEnforcer(a.log, c.NodeName, a.know, a.attachments, fw, a.tunnel)
	plugin, err := c.plugin()
	if err != nil {
		return nil, err
	}
	a.chain, err = chain.New(chain.Options{Log: a.log, ConfDir: c.ConfDir, BinDir: c.BinDir, Source: plugin, Socket: c.socket()})
	if err != nil {
		return nil, err
	}
	a.cni, err = cniserver.New(cniserver.Options{
		Log: a.log, Socket: c.socket(), Attachments: a.attachments, Redirector: a.redirector, Firewall: a.enforcer,
		Workloads: a.know, Bootstrap: c.bootstrap, Ready: a.canAdd, Added: a.metrics.added,
	})
	if err != nil {
		return nil, err
	}
	a.control = newControl(c, a.log, a.know, a.metrics)
	a.metrics.observe(a)
	return a, nil
}

// Run is the agent until ctx ends. Everything in the kernel and in the CNI
// configuration stays afterwards.
func (a *Agent) Run(ctx context.Context) error {
	// Before anything is served: pods that went while no agent was there.
	if err := a.cni.Collect(ctx); err != nil {
		return fmt.Errorf("forget pods that are gone: %w", err)
	}
	if err := a.cni.Repair(ctx); err != nil {
		// A pod that can't be mended must not keep the node from all others.
		a.log.Error("redirection of a pod can't be repaired", "error", err)
	}
	health, metrics := http.NewServeMux(), http.NewServeMux()
	a.health.Handle(health)
	metrics.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "health", Run: func(ctx context.Context) error { return lifecycle.Serve(ctx, a.Health, health) }},
		lifecycle.Task{Name: "metrics", Run: func(ctx context.Context) error { return lifecycle.Serve(ctx, a.Metrics, metrics) }},
		lifecycle.Task{Name: "admin", Run: func(ctx context.Context) error { return lifecycle.Serve(ctx, a.Admin, a.adminHandler()) }},
		lifecycle.Task{Name: "control", Run: a.control.run},
		lifecycle.Task{Name: "enforce", Run: a.enforce},
		lifecycle.Task{Name: "firewall", Run: a.firewall.Run},
		lifecycle.Task{Name: "report", Run: a.report},
		lifecycle.Task{Name: "tunnel", Run: a.tunnel.Run},
		lifecycle.Task{Name: "cni", Run: a.cni.Run},
		lifecycle.Task{Name: "chain", Run: a.keepChain},
		lifecycle.Task{Name: "collect", Run: a.collect},
		lifecycle.Task{Name: "flows", Run: a.tellFlows},
	)
}

// canAdd says why ordinary pods can't be added now.
func (a *Agent) canAdd() error {
	if !a.enforcer.ready() {
		return fmt.Errorf("the control plane has not told this node's whole configuration yet")
	}
	return nil
}

// enforce brings each change of what is known into the kernel.
func (a *Agent) enforce(ctx context.Context) error {
	pause := retryMin
	for {
		s, changed := a.know.snapshot()
		if s.complete {
			start := time.Now()
			_, err := a.enforcer.sync(ctx)
			if ctx.Err() != nil {
				return nil
			}
			a.metrics.applied(time.Since(start), err)
			if err != nil {
				a.log.Error("the kernel does not have what is known", "error", err, "retry_in", pause)
				a.checks.kernel.NotReady(err.Error())
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return nil
				}
				pause = min(2*pause, retryMax)
				continue
			}
			pause = retryMin
			a.checks.kernel.Ready()
			a.control.rootsAre(s.mesh.roots)
			a.sendReport()
			a.warnUnprotected(s)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// report tells the control plane the tunnel's key once it is known.
func (a *Agent) report(ctx context.Context) error {
	select {
	case <-a.tunnel.Known():
		a.sendReport()
	case <-ctx.Done():
		return nil
	}
	<-ctx.Done()
	return nil
}

func (a *Agent) sendReport() {
	r := &hauberkv1.NodeReport{Programmed: a.enforcer.programmed()}
	if key := a.tunnel.PublicKey(); key != (wgtypes.Key{}) {
		r.WireguardPublicKey, r.WireguardPort, r.WireguardBackend = key[:], names.PortTunnel, a.tunnel.Backend()
	}
	a.control.report(r)
}

// keepChain puts our entry into the CNI configuration, once the socket answers:
// from then on pods need the agent.
func (a *Agent) keepChain(ctx context.Context) error {
	select {
	case <-a.cni.Serving():
		a.checks.cni.Ready()
	case <-ctx.Done():
		return nil
	}
	return a.chain.Run(ctx, func(err error) {
		if err != nil {
			a.checks.chain.NotReady(err.Error())
			return
		}
		a.checks.chain.Ready()
	})
}

func (a *Agent) collect(ctx context.Context) error {
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := a.cni.Collect(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("pods that are gone are not forgotten yet", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// unprotected is the running pods with a sidecar that CNI did not bring: they
// started before the chain had our entry, and nothing leads their traffic to the
// sidecar. Their host-side policy is in place, by address.
func (a *Agent) unprotected(s known) []string {
	attached := map[string]bool{}
	for _, at := range a.attachments.List() {
		attached[at.UID] = true
	}
	list := []string{}
	for _, uid := range sortedKeys(s.workloads) {
		w := s.workloads[uid]
		if w.GetMeshed() && !w.GetHostNetwork() && !w.GetTerminating() && len(w.addresses) > 0 && !attached[uid] {
			list = append(list, w.GetNamespace()+"/"+w.GetName())
		}
	}
	return list
}

func (a *Agent) warnUnprotected(s known) {
	list := a.unprotected(s)
	if a.metrics.setUnprotected(len(list)) && len(list) > 0 {
		a.log.Error("pods with a sidecar started without redirection; delete them to have them made again", "pods", list)
	}
}
