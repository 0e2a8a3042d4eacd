package sidecar

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	collectmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collecttraces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"
)

// collector is the receiving end of OTLP.
type collector struct {
	collecttraces.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans []span
}

type span struct {
	service, name, trace, parent, id string
	kind                             int32
	attributes                       map[string]string
}

type metricsCollector struct {
	collectmetrics.UnimplementedMetricsServiceServer

	mu    sync.Mutex
	names map[string]bool
}

func attributes(list []*v1.KeyValue) map[string]string {
	m := make(map[string]string)
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *v1.AnyValue_StringValue:
			m[kv.GetKey()] = v.StringValue
		case *v1.AnyValue_IntValue:
			m[kv.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return m
}

func (c *collector) Export(_ context.Context, r *collecttraces.ExportTraceServiceRequest) (*collecttraces.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		service := attributes(rs.GetResource().GetAttributes())["service.name"]
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, span{service: service, name: s.GetName(), trace: fmt.Sprintf("%x", s.GetTraceId()),
					parent: fmt.Sprintf("%x", s.GetParentSpanId()), id: fmt.Sprintf("%x", s.GetSpanId()), kind: int32(s.GetKind()),
					attributes: attributes(s.GetAttributes())})
			}
		}
	}
	return &collecttraces.ExportTraceServiceResponse{}, nil
}

func (c *metricsCollector) Export(_ context.Context, r *collectmetrics.ExportMetricsServiceRequest) (*collectmetrics.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rm := range r.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				c.names[m.GetName()] = true
			}
		}
	}
	return &collectmetrics.ExportMetricsServiceResponse{}, nil
}

func (c *collector) of(service string) (span, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.service == service {
			return s, true
		}
	}
	return span{}, false
}

func TestSpansAndMetricsByOTLP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	traces, metrics := &collector{}, &metricsCollector{names: make(map[string]bool)}
	server := grpc.NewServer()
	collecttraces.RegisterTraceServiceServer(server, traces)
	collectmetrics.RegisterMetricsServiceServer(server, metrics)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-done }()

	t.Run("pair", func(t *testing.T) {
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
		p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, otlp: l.Addr().String(),
			ingress: tier(rule("read", allow, get([]string{"GET"}, "/")))})
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://server/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
		r.Header.Set("Traceparent", "00-"+trace+"-"+parent+"-01")
		resp, err := p.httpClient().Do(r)
		if status, _ := body(t, resp, err); status != 200 {
			t.Fatal(status)
		}
		p.eventually("spans", func() bool {
			_, a := traces.of("client")
			_, b := traces.of("server")
			return a && b
		})
		client, _ := traces.of("client")
		server, _ := traces.of("server")
		if client.trace != trace || server.trace != trace || client.parent != parent || server.parent != client.id {
			t.Errorf("not one trace: %+v then %+v", client, server)
		}
		if client.kind != 3 || server.kind != 2 || server.name != "GET" {
			t.Errorf("kinds %d and %d, name %q", client.kind, server.kind, server.name)
		}
		for k, want := range map[string]string{"hauberk.source.principal": clientID, "hauberk.destination.principal": serverID,
			"hauberk.policy": "MeshPolicy bank/api", "hauberk.rule": "read", "hauberk.verdict": "Allow", "url.path": "/x",
			"http.request.method": "GET", "http.response.status_code": "200"} {
			if server.attributes[k] != want {
				t.Errorf("attribute %s is %q, want %q", k, server.attributes[k], want)
			}
		}
	})
	// Ending the pair sent what metrics there were.
	metrics.mu.Lock()
	defer metrics.mu.Unlock()
	for _, want := range []string{"hauberk_requests_total", "hauberk_request_duration_seconds", "hauberk_policy_verdicts_total", "hauberk_tls_handshake_duration_seconds"} {
		if !metrics.names[want] && !metrics.names[strings.TrimSuffix(want, "_total")] {
			t.Errorf("metric %s did not arrive: %v", want, metrics.names)
		}
	}
}
