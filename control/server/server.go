package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/ca"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/control/status"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// Rate of requests to the API server: enough for a start of the whole mesh, when
// every sidecar's token is reviewed.
const (
	clientQPS   = 200
	clientBurst = 400
)

// metrics of the process that belong to no part.
type metrics struct {
	signed  *prometheus.CounterVec
	compile prometheus.Histogram
}

// Run runs the control plane until ctx is done.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	klog.SetSlogLogger(log.With("component", "client-go"))
	restConfig, err := clientConfig(c.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("client of the API server: %w", err)
	}
	custom, err := dynamic.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("client of the API server: %w", err)
	}
	trustDomain, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return fmt.Errorf("trust domain: %w", err)
	}
	registry := prometheus.NewRegistry()
	m, err := newMetrics(registry)
	if err != nil {
		return err
	}
	health := lifecycle.NewHealth()
	checks := struct{ ca, source, grpc *lifecycle.Check }{health.Register("ca"), health.Register("source"), health.Register("grpc")}
	mux := http.NewServeMux()
	health.Handle(mux)

	authority := &authorityTask{
		ready: make(chan struct{}),
		options: ca.Options{
			Client: client, TrustDomain: trustDomain, TTL: c.CertificateTTL, PodUID: c.PodUID, Log: log.With("component", "ca"),
		},
		check: checks.ca, log: log,
	}
	streamMetrics := distribute.NewMetrics()
	if err := streamMetrics.Register(registry); err != nil {
		return err
	}
	statusMetrics := status.NewMetrics()
	if err := statusMetrics.Register(registry); err != nil {
		return err
	}
	keys := newTunnelKeys(client, log.With("component", "tunnels"))
	var latest atomic.Pointer[compile.Resources]
	var acks *ackCollector
	discovery, err := distribute.NewServer(distribute.Options{
		TrustDomain: trustDomain, Log: log.With("component", "distribute"), Metrics: streamMetrics,
		OnReport: keys.report,
		OnAck:    func() { acks.changed() },
	})
	if err != nil {
		return err
	}
	acks = newAckCollector(discovery, authority, &latest, c.PodUID, log.With("component", "acks"))
	writer, err := status.New(status.Options{
		Client: client, Dynamic: custom, Identity: replicaName(c), Log: log.With("component", "status"),
		Acks: acks.collect, Metrics: statusMetrics,
	})
	if err != nil {
		return err
	}
	acks.onChange = writer.Acknowledged
	facts, err := source.New(source.Options{
		Client: client, Dynamic: custom, TrustDomain: c.TrustDomain, Roots: authority.roots, Log: log.With("component", "source"),
		OnFacts: func(f compile.Facts) {
			start := time.Now()
			resources := compile.Compile(f)
			latest.Store(resources)
			discovery.Publish(resources)
			m.compile.Observe(time.Since(start).Seconds())
			writer.Compiled(resources)
			checks.source.Ready()
			log.Debug("compiled", "pods", len(resources.Workloads), "policies", len(resources.Policies),
				"policy_sets", len(resources.PolicySets), "peer_sets", len(resources.PeerSets), "took", time.Since(start).String())
		},
	})
	if err != nil {
		return err
	}
	log.Info("control plane starts", "version", version.String(), "trust_domain", c.TrustDomain, "replica", replicaName(c))
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "health", Run: func(ctx context.Context) error { return lifecycle.Serve(ctx, c.HealthAddress, mux) }},
		lifecycle.Task{Name: "metrics", Run: func(ctx context.Context) error {
			mux := http.NewServeMux()
			mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
			return lifecycle.Serve(ctx, c.MetricsAddress, mux)
		}},
		lifecycle.Task{Name: "admin", Run: func(ctx context.Context) error {
			return lifecycle.Serve(ctx, c.AdminAddress, adminPages(discovery, &latest))
		}},
		lifecycle.Task{Name: "ca", Run: authority.run},
		lifecycle.Task{Name: "source", Run: func(ctx context.Context) error {
			// The roots belong to the first facts.
			if !authority.wait(ctx) {
				return nil
			}
			return facts.Run(ctx)
		}},
		lifecycle.Task{Name: "tunnels", Run: keys.run},
		lifecycle.Task{Name: "acks", Run: acks.run},
		lifecycle.Task{Name: "status", Run: writer.Run},
		lifecycle.Task{Name: "grpc", Run: func(ctx context.Context) error {
			if !authority.wait(ctx) {
				return nil
			}
			signer, err := ca.NewServer(ca.ServerOptions{
				Authority: authority.get(), Reviewer: ca.APIReviewer{Client: client}, Log: log.With("component", "ca"),
				OnSign: func(o ca.Outcome) { m.signed.WithLabelValues(string(o)).Inc() },
			})
			if err != nil {
				return err
			}
			return serveGRPC(ctx, c.GRPCAddress, authority.get().SelfSource(), log, checks.grpc, func(s registrar) {
				hauberkv1.RegisterCertificateAuthorityServer(s, signer)
				hauberkv1.RegisterDiscoveryServer(s, discovery)
				registerReplica(s, trustDomain, discovery)
			})
		}},
	)
}

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_ca_requests_total", Help: "Requests for a certificate, by outcome."}, []string{"outcome"}),
		compile: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hauberk_compile_seconds", Help: "Time to compile facts and publish them.",
			Buckets: []float64{.001, .005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
	}
	for _, collector := range []prometheus.Collector{m.signed, m.compile, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration of the API server's client: %w: run in a pod, or give -kubeconfig", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	config.UserAgent = "hauberk-control/" + version.String()
	return config, nil
}

// replicaName tells this replica from others.
func replicaName(c Config) string {
	if c.PodName != "" {
		return c.PodName
	}
	if host, err := os.Hostname(); err == nil {
		return fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	return fmt.Sprintf("hauberk-control-%d", os.Getpid())
}
