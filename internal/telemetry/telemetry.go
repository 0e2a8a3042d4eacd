// Package telemetry is the OpenTelemetry set-up that all processes share: spans
// and metrics leave by OTLP over gRPC to one collector, whose address may change
// while the process runs, and metrics are what the process's Prometheus
// registry has, so that /metrics and OTLP never disagree.
//
// It owns exporters and their life. It does not own names of metrics or spans,
// or decisions about sampling; those are the components'.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	prombridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Times of the exporters.
const (
	defaultMetricInterval = 15 * time.Second
	batchDelay            = time.Second
	shutdownTimeout       = 3 * time.Second
)

// Options of a Pipeline.
type Options struct {
	// Gatherer is the process's Prometheus registry.
	Gatherer prometheus.Gatherer
	// Scope is the instrumentation scope of spans, such as the import path.
	Scope string
	Log   *slog.Logger
	// MetricInterval is how often metrics leave by OTLP; zero means 15 s.
	MetricInterval time.Duration
}

// Pipeline exports spans and metrics. It is safe for concurrent use.
type Pipeline struct {
	opts   Options
	tracer atomic.Pointer[trace.Tracer] // nil while nothing is exported

	mu     sync.Mutex
	target Target   // guarded by mu
	active *exports // guarded by mu; nil while nothing is exported
}

// Target is where telemetry goes and of whom it tells.
type Target struct {
	// Endpoint is host:port of an OTLP/gRPC collector; empty for none.
	Endpoint string
	// Resource describes the process: service.name and others. Its order
	// does not matter.
	Resource attribute.Set
}

type exports struct {
	traces  *sdktrace.TracerProvider
	metrics *metric.MeterProvider
}

// New makes a pipeline that exports nothing until Configure.
func New(opts Options) *Pipeline { return &Pipeline{opts: opts} }

// Tracer is the tracer for sampled spans, nil while nothing is exported.
func (p *Pipeline) Tracer() trace.Tracer {
	if t := p.tracer.Load(); t != nil {
		return *t
	}
	return nil
}

// Endpoint is where telemetry goes now.
func (p *Pipeline) Endpoint() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target.Endpoint
}

// Configure changes the target. Nothing happens when it is as before. What is
// buffered for the old one is still sent there, in the background.
func (p *Pipeline) Configure(ctx context.Context, t Target) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.Endpoint == p.target.Endpoint && t.Resource.Equals(&p.target.Resource) {
		return nil
	}
	var next *exports
	if t.Endpoint != "" {
		var err error
		if next, err = p.open(ctx, t); err != nil {
			return fmt.Errorf("telemetry to %s: %w", t.Endpoint, err)
		}
		tracer := next.traces.Tracer(p.opts.Scope)
		p.tracer.Store(&tracer)
	} else {
		p.tracer.Store(nil)
	}
	old := p.active
	p.active, p.target = next, t
	if old != nil {
		go func() {
			if err := old.shutdown(context.WithoutCancel(ctx)); err != nil {
				p.opts.Log.Debug("telemetry not flushed", "error", err.Error())
			}
		}()
	}
	return nil
}

// Shutdown sends what is buffered, for at most three seconds.
func (p *Pipeline) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	old := p.active
	p.active, p.target = nil, Target{}
	p.tracer.Store(nil)
	p.mu.Unlock()
	if old == nil {
		return nil
	}
	return old.shutdown(ctx)
}

func (p *Pipeline) open(ctx context.Context, t Target) (*exports, error) {
	// The collector is inside the cluster's own trust boundary; node-to-node
	// encryption covers it. Exporters connect in the background and retry.
	spans, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(t.Endpoint), otlptracegrpc.WithInsecure())
	if err != nil {
		return nil, err
	}
	values, err := otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithEndpoint(t.Endpoint), otlpmetricgrpc.WithInsecure())
	if err != nil {
		return nil, err
	}
	res := resource.NewSchemaless(t.Resource.ToSlice()...)
	interval := p.opts.MetricInterval
	if interval == 0 {
		interval = defaultMetricInterval
	}
	reader := metric.NewPeriodicReader(values, metric.WithInterval(interval),
		metric.WithProducer(prombridge.NewMetricProducer(prombridge.WithGatherer(p.opts.Gatherer))))
	return &exports{
		// Who is sampled was decided before a span is started.
		traces: sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans, sdktrace.WithBatchTimeout(batchDelay)),
			sdktrace.WithResource(res), sdktrace.WithSampler(sdktrace.AlwaysSample())),
		metrics: metric.NewMeterProvider(metric.WithReader(reader), metric.WithResource(res)),
	}, nil
}

func (e *exports) shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	return errors.Join(e.traces.Shutdown(ctx), e.metrics.Shutdown(ctx))
}
