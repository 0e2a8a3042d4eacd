package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

func TestIncomingContext(t *testing.T) {
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, c := range []struct {
		name, fields string
		valid        bool
		sampled      bool
	}{
		{"w3c", "traceparent: 00-" + id + "-" + parent + "-01\r\n", true, true},
		{"w3c unsampled", "Traceparent: 00-" + id + "-" + parent + "-00\r\n", true, false},
		{"later version", "traceparent: 01-" + id + "-" + parent + "-01-more\r\n", true, true},
		{"too long for its version", "traceparent: 00-" + id + "-" + parent + "-01-more\r\n", false, false},
		{"forbidden version", "traceparent: ff-" + id + "-" + parent + "-01\r\n", false, false},
		{"upper case", "traceparent: 00-" + strings.ToUpper(id) + "-" + parent + "-01\r\n", false, false},
		{"zero trace", "traceparent: 00-" + strings.Repeat("0", 32) + "-" + parent + "-01\r\n", false, false},
		{"two", "traceparent: 00-" + id + "-" + parent + "-01\r\ntraceparent: 00-" + id + "-" + parent + "-01\r\n", false, false},
		{"b3", "b3: " + id + "-" + parent + "-1\r\n", true, true},
		{"b3 denies", "b3: 0\r\n", false, false},
		{"b3 multiple", "X-B3-TraceId: " + id + "\r\nX-B3-SpanId: " + parent + "\r\nX-B3-Sampled: 1\r\n", true, true},
		{"none", "", false, false},
	} {
		h := &http1.Head{}
		r := http1.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\n"+c.fields+"\r\n"), http1.DefaultLimits)
		if err := r.ReadRequest(h); err != nil {
			t.Fatal(err)
		}
		got := incoming(h)
		if got.Valid() != c.valid || got.Sampled != c.sampled {
			t.Errorf("%s: valid %v sampled %v", c.name, got.Valid(), got.Sampled)
		}
		if c.valid && c.sampled && !strings.Contains(string(got.appendTraceparent(nil)), "00-"+id+"-"+parent+"-01") {
			t.Errorf("%s: written as %s", c.name, got.appendTraceparent(nil))
		}
	}
}

type noTracer struct{}

func (noTracer) Tracer() trace.Tracer { return nil }

func newObserver(access, log *bytes.Buffer) *Observer {
	m := NewMetrics(prometheus.NewRegistry(), Sources{Expiry: func() time.Time { return time.Time{} },
		Updated: func() time.Time { return time.Time{} }, Connected: func() bool { return false }})
	return NewObserver(m, noTracer{}, slog.New(slog.NewJSONHandler(log, nil)), access, flow.NewRing(100, 0))
}

// TestAccessLogIsJSON: whatever a client sends, a line stays one JSON object.
func TestAccessLogIsJSON(t *testing.T) {
	var access, log bytes.Buffer
	o := newObserver(&access, &log)
	o.Configure(Settings{AccessLog: true})
	path := "/\"\\\x00\n\r\x7f\xff\xc3\xa9\u2028" + strings.Repeat("x", 5000)
	rec := Record{Direction: Inbound, Protocol: ProtocolHTTP1, Start: time.Now(), Method: "GET", Path: path, Status: 200, Decided: true,
		Verdict: policy.Verdict{Action: policy.Allow, Tier: "default"}}
	tr := Trace{Context: Context{TraceID: newTraceID(), SpanID: newSpanID()}}
	o.Request(o.Route(RouteKey{Direction: Inbound, Protocol: ProtocolHTTP1}), &rec, &tr)
	if strings.Count(access.String(), "\n") != 1 {
		t.Errorf("not one line: %q", access.String())
	}
	var got map[string]any
	if err := json.Unmarshal(access.Bytes(), &got); err != nil {
		t.Fatalf("%v: %q", err, access.String())
	}
	if got["verdict"] != "Allow" || got["status"] != 200.0 || len(got["trace_id"].(string)) != 32 || len(got["path"].(string)) > 3000 {
		t.Errorf("got %v", got)
	}
}

func TestDenialsAreLimited(t *testing.T) {
	var access, log bytes.Buffer
	o := newObserver(&access, &log)
	rec := Record{Direction: Inbound}
	for range 1000 {
		o.Decision(nil, &policy.Verdict{Tier: "default"}, &rec, netip.MustParseAddr("10.0.0.1"))
	}
	if n := strings.Count(log.String(), "denied by policy"); n < 20 || n > 100 {
		t.Errorf("%d lines for a thousand denials", n)
	}
}

func TestIdleSeriesExpire(t *testing.T) {
	var access, log bytes.Buffer
	o := newObserver(&access, &log)
	r := o.Route(RouteKey{Direction: Inbound, Protocol: ProtocolTCP})
	r.Opened()
	o.Expire(time.Now())
	if len(o.routes) != 1 {
		t.Error("a route in use was dropped")
	}
	o.Expire(time.Now().Add(2 * idleSeries))
	if len(o.routes) != 0 {
		t.Error("an idle route was kept")
	}
}
