package sidecar

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// TestFlowsOfRequests: denials at either side become records with both ends and
// the rule; allowed requests do while somebody follows them.
func TestFlowsOfRequests(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1,
		ingress: tier(rule("no-secret", deny, get(nil, "/secret")), rule("all", allow)),
		egress:  tier(rule("get", allow, get([]string{"GET"}, "/")))})
	c := p.httpClient()
	send := func(method, path string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://server"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Do(req)
		if status, _ := body(t, r, err); status != want {
			t.Errorf("%s %s: status %d, want %d", method, path, status, want)
		}
	}
	send("GET", "/", 200)
	send("GET", "/secret", 403)
	send("PUT", "/", 403)
	_, all := p.server.Flows.Subscribe(flow.Filter{})
	defer all.Close()
	send("GET", "/", 200)

	local := netip.MustParseAddr("127.0.0.1")
	client := flow.Endpoint{Namespace: "bank", Pod: "client-0", Workload: "client", Principal: clientID, Address: local}
	server := flow.Endpoint{Namespace: "bank", Pod: "server-0", Workload: "server", Principal: serverID, Address: local}
	record := func(direction, verdict, method, path string, port uint16, d flow.Decision) flow.Record {
		return flow.Record{Direction: direction, Verdict: verdict, Layer: flow.Sidecar, Source: client, Destination: server, Protocol: "TCP",
			Port: port, Request: &flow.Request{Method: method, Path: path, Host: "server"}, Decision: d}
	}
	same := func(where string, want, got []flow.Record) {
		t.Helper()
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(flow.Record{}, "Time"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", where, d)
		}
	}
	at, in := netip.MustParseAddrPort(app).Port(), netip.MustParseAddrPort(p.inbound).Port()
	same("the server", []flow.Record{record("Ingress", flow.Deny, "GET", "/secret", at,
		flow.Decision{Tier: "default", Policy: "MeshPolicy bank/api", Rule: "no-secret", Reason: policy.ReasonRule})}, p.server.Flows.Recent(flow.Filter{}))
	same("the client", []flow.Record{record("Egress", flow.Deny, "PUT", "/", in,
		flow.Decision{Tier: "default", Selecting: []string{"MeshPolicy bank/api"}, Reason: policy.ReasonTierDefault})}, p.client.Flows.Recent(flow.Filter{}))
	same("what is allowed", []flow.Record{record("Ingress", flow.Allow, "GET", "/", at,
		flow.Decision{Tier: "default", Policy: "MeshPolicy bank/api", Rule: "all", Reason: policy.ReasonRule})}, []flow.Record{<-all.Records()})
}

// TestFlowsOfConnections: what is refused before any request is told as well.
func TestFlowsOfConnections(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	for _, tc := range []struct {
		name   string
		s      setup
		reason string
	}{
		{"plaintext to a STRICT port", setup{mtls: hauberkv1.MTLSMode_MTLS_MODE_STRICT, plain: true},
			"the connection is plaintext, and PeerAuthentication of the port is STRICT"},
		{"TCP", setup{ingress: tier(rule("none", deny))}, policy.ReasonRule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.s.app, tc.s.protocol, tc.s.serverProto = app, hauberkv1.AppProtocol_APP_PROTOCOL_TCP, hauberkv1.AppProtocol_APP_PROTOCOL_TCP
			p := newPair(t, tc.s)
			_, denials := p.server.Flows.Subscribe(flow.Filter{Verdict: flow.Deny})
			defer denials.Close()
			conn := p.conn()
			_, _ = conn.Write([]byte("hello"))
			got := <-denials.Records()
			if got.Reason != tc.reason || got.Request != nil || got.Destination.Pod != "server-0" {
				t.Errorf("got %+v", got)
			}
		})
	}
}
