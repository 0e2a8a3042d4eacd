package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actTrace = Act{
	Name:  "trace",
	Title: "one trace spans all three services",
	Why: "The services only hand on the W3C headers; the sidecars make the spans and send them by OTLP to an OpenTelemetry Collector.\n" +
		"  Each span says who asked whom, by SPIFFE ID, and which policy let it through.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		var random [24]byte
		if _, err := rand.Read(random[:]); err != nil {
			r.Skip("no random numbers: " + err.Error())
			return
		}
		id := hex.EncodeToString(random[:16])
		ask := visitor.probe("http", "GET", page, "-H", fmt.Sprintf("traceparent=00-%s-%s-01", id, hex.EncodeToString(random[16:])))
		r.Step(ctx, Step{Type: ask, Expect: "the web page, asked for with a sampled trace", See: func(ctx context.Context) (string, error) { return shows(ctx, s, ask) }})
		read := "kubectl -n observability exec deploy/otel-collector -- otel-collector cat traces | grep " + id
		r.Step(ctx, Step{Type: read, Expect: "client and server spans of customer → summary → database, with SPIFFE IDs", Within: 30 * time.Second,
			See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, read)
				if err != nil {
					return "", err
				}
				spans, err := spansOf(got.Out, id)
				if err != nil {
					return "", err
				}
				return oneTrace(spans)
			},
			Look: []string{"kubectl -n observability logs deploy/otel-collector --tail=20", "kubectl get meshconfig default -o yaml", "kubectl -n yaobank logs deploy/customer -c hauberk-proxy --tail=30"}})
	},
}

// span is what the act needs to know of one.
type span struct {
	service, kind, name string
	id, parent          string
	source, destination string
	policy              string
}

// spansOf reads the spans of a trace from the Collector's file: one OTLP JSON
// document a line.
func spansOf(lines, trace string) ([]span, error) {
	type value struct {
		StringValue string `json:"stringValue"`
	}
	type attribute struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	find := func(from []attribute, key string) string {
		i := slices.IndexFunc(from, func(a attribute) bool { return a.Key == key })
		if i < 0 {
			return ""
		}
		return from[i].Value.StringValue
	}
	var out []span
	for line := range strings.Lines(lines) {
		var document struct {
			ResourceSpans []struct {
				Resource struct {
					Attributes []attribute `json:"attributes"`
				} `json:"resource"`
				ScopeSpans []struct {
					Spans []struct {
						TraceID      string      `json:"traceId"`
						SpanID       string      `json:"spanId"`
						ParentSpanID string      `json:"parentSpanId"`
						Name         string      `json:"name"`
						Kind         int         `json:"kind"`
						Attributes   []attribute `json:"attributes"`
					} `json:"spans"`
				} `json:"scopeSpans"`
			} `json:"resourceSpans"`
		}
		if err := json.Unmarshal([]byte(line), &document); err != nil {
			return nil, fmt.Errorf("the Collector's file: %w", err)
		}
		for _, resource := range document.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, sp := range scope.Spans {
					if sp.TraceID != trace {
						continue
					}
					// OTLP's SpanKind: 2 is a server's, 3 a client's.
					out = append(out, span{
						service: find(resource.Resource.Attributes, "service.name"), kind: map[int]string{2: "server", 3: "client"}[sp.Kind],
						name: sp.Name, id: sp.SpanID, parent: sp.ParentSpanID,
						source: find(sp.Attributes, "hauberk.source.principal"), destination: find(sp.Attributes, "hauberk.destination.principal"),
						policy: find(sp.Attributes, "hauberk.policy"),
					})
				}
			}
		}
	}
	return out, nil
}

// oneTrace wants the five spans of a look at the web page, each the child of the
// one before it.
func oneTrace(spans []span) (string, error) {
	principal := func(account string) string { return "spiffe://cluster.local/ns/" + bank + "/sa/" + account }
	want := []span{
		{service: "customer", kind: "server", destination: principal("customer")},
		{service: "customer", kind: "client", source: principal("customer"), destination: principal("summary")},
		{service: "summary", kind: "server", source: principal("customer"), destination: principal("summary")},
		{service: "summary", kind: "client", source: principal("summary"), destination: principal("database")},
		{service: "database", kind: "server", source: principal("summary"), destination: principal("database")},
	}
	var seen strings.Builder
	for _, sp := range spans {
		fmt.Fprintf(&seen, "%-9s%s  %-24s %s → %s  %s\n", sp.service, sp.kind, sp.name, short(sp.source), short(sp.destination), sp.policy)
	}
	parent := ""
	for i, w := range want {
		at := slices.IndexFunc(spans, func(sp span) bool { return sp.service == w.service && sp.kind == w.kind })
		if at < 0 {
			return seen.String(), errDiffers("no %s span of %s in the trace", w.kind, w.service)
		}
		got := spans[at]
		if w.source != "" && got.source != w.source || got.destination != w.destination {
			return seen.String(), errDiffers("the %s span of %s goes from %q to %q", w.kind, w.service, got.source, got.destination)
		}
		if i > 0 && got.parent != parent {
			return seen.String(), errDiffers("the %s span of %s is not the child of the span before it", w.kind, w.service)
		}
		parent = got.id
	}
	return seen.String(), nil
}

// short is a SPIFFE ID without what all of them share.
func short(id string) string {
	if id == "" {
		return "(plain)"
	}
	return strings.TrimPrefix(id, "spiffe://cluster.local")
}
