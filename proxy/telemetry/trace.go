package telemetry

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/authz"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// Settings is what the mesh says of telemetry.
type Settings struct {
	// Ratio of traces that begin here and are sampled, 0 to 1.
	Ratio     float64
	AccessLog bool
}

// TracerSource gives the tracer of the moment, nil while nothing is exported.
type TracerSource interface{ Tracer() trace.Tracer }

// Trace is the span of one request or connection. Only a sampled one touches
// the SDK; the others cost the parsing of one field.
type Trace struct {
	Context
	span trace.Span
}

type settings struct{ atomic.Pointer[Settings] }

func (s *settings) get() Settings {
	if p := s.Load(); p != nil {
		return *p
	}
	return Settings{}
}

// start continues the context that came, or begins one.
func (o *Observer) start(ctx context.Context, parent Context, kind trace.SpanKind, name string) Trace {
	tracer := o.tracers.Tracer()
	if !parent.Valid() {
		ratio := o.settings.get().Ratio
		sampled := tracer != nil && ratio > 0 && (ratio >= 1 || rand.Float64() < ratio)
		if !sampled {
			return Trace{Context: Context{TraceID: newTraceID(), SpanID: newSpanID()}}
		}
		_, span := tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithNewRoot())
		return traceOf(span)
	}
	if !parent.Sampled || tracer == nil {
		return Trace{Context: parent}
	}
	remote := trace.NewSpanContext(trace.SpanContextConfig{TraceID: parent.TraceID, SpanID: parent.SpanID,
		TraceFlags: trace.FlagsSampled, Remote: true})
	_, span := tracer.Start(trace.ContextWithRemoteSpanContext(ctx, remote), name, trace.WithSpanKind(kind))
	return traceOf(span)
}

func traceOf(span trace.Span) Trace {
	sc := span.SpanContext()
	return Trace{Context: Context{TraceID: sc.TraceID(), SpanID: sc.SpanID(), Sampled: true}, span: span}
}

// StartRequest begins the span of a request: a server's for inbound, a
// client's for outbound.
func (o *Observer) StartRequest(ctx context.Context, direction string, h *http1.Head) Trace {
	parent := incoming(h)
	name := ""
	if parent.Sampled || !parent.Valid() {
		name = knownMethod(string(h.Method))
	}
	return o.start(ctx, parent, kindOf(direction), name)
}

func kindOf(direction string) trace.SpanKind {
	if direction == Outbound {
		return trace.SpanKindClient
	}
	return trace.SpanKindServer
}

// StartStream is StartRequest for HTTP/2. A gRPC request's span is named by its
// service and method, of which a server has few (RPC conventions).
func (o *Observer) StartStream(ctx context.Context, direction, method, path string, grpc bool, p *Propagated) Trace {
	name := knownMethod(method)
	if grpc {
		name = strings.TrimPrefix(path, "/")
	}
	return o.start(ctx, p.context(), kindOf(direction), name)
}

// Append appends the traceparent field's value; nothing without one.
func (t *Trace) Append(dst []byte) []byte {
	if !t.Valid() {
		return dst
	}
	return t.appendTraceparent(dst)
}

// knownMethod bounds the names of spans: unknown methods are "HTTP", as the
// semantic conventions have it.
func knownMethod(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return m
	}
	return "HTTP"
}

// WriteTo appends the traceparent field.
func (t *Trace) WriteTo(w *http1.Writer) {
	if !t.Valid() {
		return
	}
	w.WriteString("traceparent: ")
	w.Write(t.appendTraceparent(w.Scratch()))
	w.WriteString("\r\n")
}

// id is the trace id in hexadecimal, empty without one.
func (t *Trace) id() string {
	if !t.Valid() {
		return ""
	}
	return hex.EncodeToString(t.TraceID[:])
}

func (t *Trace) end(rec *Record) {
	if t.span == nil {
		return
	}
	attrs := make([]attribute.KeyValue, 0, 20)
	str := func(k, v string) {
		if v != "" {
			// The exporter keeps values; a record's point into its connection's buffers.
			attrs = append(attrs, attribute.String(k, strings.Clone(v)))
		}
	}
	if rec.Method != "" {
		str("http.request.method", knownMethod(rec.Method))
		if knownMethod(rec.Method) != rec.Method {
			str("http.request.method_original", rec.Method)
		}
		str("url.path", rec.Path)
		str("url.scheme", "http")
		str("server.address", rec.Host)
		str("network.protocol.name", "http")
		str("network.protocol.version", strings.TrimPrefix(rec.Protocol, "http/"))
		attrs = append(attrs, attribute.Int64("http.request.body.size", rec.Received), attribute.Int64("http.response.body.size", rec.Sent))
	}
	if rec.Status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", rec.Status))
	}
	if rec.GRPC {
		attrs = append(attrs, rpc(rec)...)
	}
	str("network.peer.address", rec.PeerAddress)
	str("hauberk.source.principal", rec.Source.Principal)
	str("hauberk.destination.principal", rec.Destination.Principal)
	str("hauberk.destination.service", rec.Service)
	str("hauberk.flag", rec.Flag)
	if rec.Decided {
		str("hauberk.policy", authz.Name(&rec.Verdict))
		str("hauberk.rule", rec.Verdict.Rule)
		str("hauberk.verdict", rec.Verdict.Action.String())
		if rec.Verdict.Action == policy.Deny {
			str("hauberk.reason", rec.Verdict.Reason)
		}
	}
	t.span.SetAttributes(attrs...)
	// A server's span fails by 5xx, a client's by 4xx too (HTTP conventions).
	if rec.Status >= 500 || rec.Direction == Outbound && rec.Status >= 400 || rec.Status == 0 && rec.Flag != "" {
		if rec.Status != 0 {
			t.span.SetAttributes(attribute.String("error.type", statusText(rec.Status)))
		} else {
			t.span.SetAttributes(attribute.String("error.type", rec.Flag))
		}
		t.span.SetStatus(codes.Error, rec.Flag)
	}
	if failed := rec.GRPC && grpcFailed(rec); failed {
		t.span.SetAttributes(attribute.String("error.type", statusText(rec.GRPCStatus)))
		t.span.SetStatus(codes.Error, rec.Flag)
	}
	t.span.End()
	t.span = nil
}

// rpc are the attributes of the RPC conventions.
func rpc(rec *Record) []attribute.KeyValue {
	attrs := []attribute.KeyValue{attribute.String("rpc.system", "grpc")}
	if service, method, ok := strings.Cut(strings.TrimPrefix(rec.Path, "/"), "/"); ok {
		attrs = append(attrs, attribute.String("rpc.service", strings.Clone(service)), attribute.String("rpc.method", strings.Clone(method)))
	}
	if rec.GRPCStatus >= 0 {
		attrs = append(attrs, attribute.Int("rpc.grpc.status_code", rec.GRPCStatus))
	}
	return attrs
}

// grpcFailed says which statuses make a span fail: all but OK for a client, and
// for a server those that are its own fault.
func grpcFailed(rec *Record) bool {
	if rec.Direction == Outbound {
		return rec.GRPCStatus > 0
	}
	switch rec.GRPCStatus {
	case 2, 4, 12, 13, 14, 15: // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
		return true
	}
	return false
}
