// Package injector is the process hauberk-injector: it wires the admission
// server, its certificates and what it knows of the cluster. It owns flags,
// readiness and the endpoints for health, metrics and profiles; what is done
// to pods is injector/patch's.
package injector

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/hauberk-mesh/hauberk/injector/certs"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/injector/webhook"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Run runs the injector until ctx is done.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	client, err := connect(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	return run(ctx, client, cfg, log)
}

func connect(kubeconfig string) (kubernetes.Interface, error) {
	var rc *rest.Config
	var err error
	if kubeconfig == "" {
		rc, err = rest.InClusterConfig()
	} else {
		rc, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	rc.UserAgent = names.Injector
	return kubernetes.NewForConfig(rc)
}

func run(ctx context.Context, client kubernetes.Interface, cfg Config, log *slog.Logger) error {
	health := lifecycle.NewHealth()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	certified := health.Register("certificates")
	certified.NotReady("not made yet")
	manager := certs.New(client, certs.Config{
		Namespace: cfg.Namespace, Service: names.Injector, WebhookConfiguration: names.Injector,
	}, log, func(err error) {
		if err != nil {
			certified.NotReady(err.Error())
			return
		}
		certified.Ready()
	})
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hauberk_injector_certificate_expiry_timestamp_seconds", Help: "When the serving certificate ends, 0 without one.",
	}, func() float64 {
		if t := manager.Expiry(); !t.IsZero() {
			return float64(t.Unix())
		}
		return 0
	}))

	known := newCluster(client, cfg.Namespace, log, health)
	handler := &webhook.Handler{
		Config: func() (patch.Config, error) {
			sidecar := cfg.Sidecar
			var err error
			sidecar.TrustBundle, err = known.trustBundle()
			return sidecar, err
		},
		Namespace: known.facts,
		Metrics:   webhook.NewMetrics(registry),
		Log:       log,
	}

	healthMux, metricsMux, adminMux := http.NewServeMux(), http.NewServeMux(), http.NewServeMux()
	health.Handle(healthMux)
	metricsMux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	lifecycle.HandlePprof(adminMux)
	serve := func(address string, h http.Handler) func(context.Context) error {
		return func(ctx context.Context) error { return lifecycle.Serve(ctx, address, h) }
	}
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "certificates", Run: manager.Run},
		lifecycle.Task{Name: "cluster", Run: known.Run},
		lifecycle.Task{Name: "webhook", Run: func(ctx context.Context) error {
			var lc net.ListenConfig
			l, err := lc.Listen(ctx, "tcp", cfg.WebhookAddress)
			if err != nil {
				return fmt.Errorf("listen on %s: %w", cfg.WebhookAddress, err)
			}
			return webhook.Serve(ctx, l, handler, manager.GetCertificate)
		}},
		lifecycle.Task{Name: "health", Run: serve(cfg.HealthAddress, healthMux)},
		lifecycle.Task{Name: "metrics", Run: serve(cfg.MetricsAddress, metricsMux)},
		lifecycle.Task{Name: "admin", Run: serve(cfg.AdminAddress, adminMux)},
	)
}
