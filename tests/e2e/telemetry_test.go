package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
)

func TestSidecarTellsRequestsAndVerdicts(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "tell")
	s.accounts("teller")
	made := s.run(server("target"), client("client", as("teller")))
	target, at := made[0], must[place](t)(made[1].place())
	check(t, s.apply(t.Context(), s.name, strings.Replace(meshPolicy, "case", "reads", 1)+`  {podSelector: {matchLabels: {app: target}}, ingress: [{name: get, http: [{methods: [GET]}]}]}`))
	to := netip.AddrPortFrom(target.v4, httpPort)
	within(t, 10*time.Second, "the policy decides", func(ctx context.Context) error {
		get, _, err1 := at.try(ctx, attempt{protocol: "http", to: to, path: "/told?secret=1"})
		put, _, err2 := at.try(ctx, attempt{protocol: "http", to: to, method: "PUT"})
		if get != answered || put != forbidden {
			return fmt.Errorf("GET %s, PUT %s: %v", get, put, errors.Join(err1, err2))
		}
		return nil
	})
	got, err := nodePlace(target.Spec.NodeName).http(t.Context(), attempt{to: netip.AddrPortFrom(target.v4, 15020), path: "/metrics"})
	check(t, err)
	for _, want := range [][]string{
		{"hauberk_requests_total{", `code_class="2xx"`, `direction="inbound"`, `security="mutual_tls"`},
		{"hauberk_requests_total{", `code_class="4xx"`, `direction="inbound"`},
		{"hauberk_policy_verdicts_total{", `action="Allow"`, s.name + "/reads", `rule="get"`},
		{"hauberk_policy_verdicts_total{", `action="Deny"`},
		{"hauberk_request_duration_seconds_bucket{"},
		{"hauberk_certificate_expiry_timestamp_seconds "},
		{"hauberk_control_connected 1"},
	} {
		found := false
		for line := range strings.Lines(got.body) {
			all := true
			for _, part := range want {
				all = all && strings.Contains(line, part)
			}
			found = found || all
		}
		if !found {
			t.Errorf("no metric with %q in:\n%s", want, hauberkMetrics(got.body))
		}
	}
	within(t, 10*time.Second, "the access log tells both requests", func(ctx context.Context) error {
		log, err := s.accessLog(ctx, target.Pod)
		if err != nil {
			return err
		}
		var allowed, denied bool
		me := "spiffe://cluster.local/ns/" + s.name + "/sa/"
		for _, a := range log {
			if a.Direction != "inbound" || a.Source != me+"teller" || a.Destination != me+"default" {
				continue
			}
			allowed = allowed || a.Method == "GET" && a.Status == 200 && a.Verdict == "Allow" && strings.Contains(a.Policy, "reads") && strings.HasPrefix(a.Path, "/told")
			denied = denied || a.Method == "PUT" && a.Status == 403 && a.Verdict == "Deny"
		}
		if !allowed || !denied {
			return fmt.Errorf("allowed %v, denied %v among %d lines", allowed, denied, len(log))
		}
		return nil
	})
}

func hauberkMetrics(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "hauberk_requests") || strings.HasPrefix(line, "hauberk_policy") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// span is one of the Collector's.
type span struct{ service, name, kind, source, destination string }

// spans reads those of a trace from the Collector's lines of OTLP JSON.
func spans(text, trace string) ([]span, error) {
	type attribute struct {
		Key   string `json:"key"`
		Value struct {
			StringValue string `json:"stringValue"`
		} `json:"value"`
	}
	find := func(all []attribute, key string) string {
		for _, a := range all {
			if a.Key == key {
				return a.Value.StringValue
			}
		}
		return ""
	}
	var out []span
	for line := range strings.Lines(text) {
		var d struct {
			ResourceSpans []struct {
				Resource struct {
					Attributes []attribute `json:"attributes"`
				} `json:"resource"`
				ScopeSpans []struct {
					Spans []struct {
						TraceID    string      `json:"traceId"`
						Name       string      `json:"name"`
						Kind       int         `json:"kind"`
						Attributes []attribute `json:"attributes"`
					} `json:"spans"`
				} `json:"scopeSpans"`
			} `json:"resourceSpans"`
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			return nil, fmt.Errorf("the Collector's output: %v", err)
		}
		for _, r := range d.ResourceSpans {
			for _, sc := range r.ScopeSpans {
				for _, sp := range sc.Spans {
					if sp.TraceID == trace {
						out = append(out, span{find(r.Resource.Attributes, "service.name"), sp.Name, map[int]string{2: "server", 3: "client"}[sp.Kind],
							find(sp.Attributes, "hauberk.source.principal"), find(sp.Attributes, "hauberk.destination.principal")})
					}
				}
			}
		}
	}
	return out, nil
}

// TestOneTraceSpansAllServices disturbs the mesh: it names a Collector in the
// MeshConfig, and puts it back.
func TestOneTraceSpansAllServices(t *testing.T) {
	w := alone(t)
	collector := string(must[[]byte](t)(os.ReadFile(filepath.Join(w.Root, "tests", "collector", "manifests", "collector.yaml"))))
	check(t, w.apply(t.Context(), "observability", collector))
	const meshConfig = "apiVersion: hauberk.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n"
	var before v1alpha1.MeshConfig
	check(t, w.read(t.Context(), "", meshConfig, &before))
	if before.Spec.Telemetry.OTLPEndpoint == "" {
		t.Cleanup(func() {
			ctx, cancel := afterwards(t)
			defer cancel()
			check(t, w.apply(ctx, "", meshConfig+`  {telemetry: {otlpEndpoint: ""}}`))
		})
		check(t, w.apply(t.Context(), "", meshConfig+`  {telemetry: {otlpEndpoint: "otel-collector.observability:4317"}}`))
	}
	s := w.meshed(t, "trace")
	bank := string(must[[]byte](t)(os.ReadFile(filepath.Join(w.Root, "tests", "yaobank", "manifests", "yaobank.yaml"))))
	_, bank, ok := strings.Cut(bank, "\n---\n") // without its namespace
	if !ok {
		t.Fatal("the manifest of the bank is not as it was")
	}
	check(t, s.apply(t.Context(), s.name, strings.ReplaceAll(bank, "namespace: yaobank", "namespace: "+s.name)))
	asker := s.run(client("asker"))[0]
	at := must[place](t)(asker.place())
	customer := must[*corev1.Service](t)(s.client.CoreV1().Services(s.name).Get(t.Context(), "customer", metav1.GetOptions{}))
	to := netip.AddrPortFrom(netip.MustParseAddr(customer.Spec.ClusterIP), 80)
	trace := fmt.Sprintf("%016x%016x", time.Now().UnixNano(), 0xe2e)
	within(t, 90*time.Second, "the web page is shown", func(ctx context.Context) error {
		got, err := at.http(ctx, attempt{to: to, header: http.Header{"Traceparent": {"00-" + trace + "-00000000000e2e01-01"}}})
		if err == nil && got.status != http.StatusOK {
			err = fmt.Errorf("%d %s", got.status, got.body)
		}
		return err
	})
	principal := func(account string) string { return "spiffe://cluster.local/ns/" + s.name + "/sa/" + account }
	want := []span{
		{"customer", "", "server", principal("default"), principal("customer")},
		{"customer", "", "client", principal("customer"), principal("summary")},
		{"summary", "", "server", principal("customer"), principal("summary")},
		{"summary", "", "client", principal("summary"), principal("database")},
		{"database", "", "server", principal("summary"), principal("database")},
	}
	within(t, 60*time.Second, "the Collector has the spans of all three services", func(ctx context.Context) error {
		pods, err := w.client.CoreV1().Pods("observability").List(ctx, metav1.ListOptions{LabelSelector: "app=otel-collector"})
		if err != nil || len(pods.Items) == 0 {
			return fmt.Errorf("the Collector's pod: %v", err)
		}
		said, err := w.exec(ctx, &running{Pod: &pods.Items[0]}, "otel-collector", "/usr/bin/otel-collector", "cat", "traces")
		if err != nil {
			return err
		}
		all, err := spans(said.Out, trace)
		if err != nil {
			return err
		}
		var missing []error
		for _, x := range want {
			found := false
			for _, got := range all {
				got.name = ""
				found = found || got == x
			}
			if !found {
				missing = append(missing, fmt.Errorf("no span %+v among %+v", x, all))
			}
		}
		return errors.Join(missing...)
	})
}
