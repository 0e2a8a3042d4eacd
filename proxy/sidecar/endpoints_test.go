package sidecar

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// TestEndpointsThatFailAreSetAside: of an endpoint that refuses, one that accepts
// and ends the handshake, and one that works, requests get an answer, the two are
// seldom tried again, and metrics, access log and admin say so.
func TestEndpointsThatFailAreSetAside(t *testing.T) {
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
	refuses := listen(t)
	refuses.Close()
	var handshakes atomic.Int64
	ends := tcpApp(t, func(net.Conn) { handshakes.Add(1) })
	for _, r := range p.clientRes {
		d := r.GetDestination()
		if d == nil {
			continue
		}
		for i, address := range []string{refuses.Addr().String(), ends} {
			at := netip.MustParseAddrPort(address)
			d.Endpoints = append(d.Endpoints, &hauberkv1.DestinationEndpoint{Address: at.Addr().String(), Port: uint32(at.Port()),
				PodUid: fmt.Sprintf("44444444-4444-4444-4444-44444444444%d", i), SpiffeId: serverID, Ready: true})
		}
		r.Version = "2"
	}
	p.clientFixed.Replace(p.clientRes)
	p.eventually("all three endpoints were tried", func() bool {
		r, err := p.httpClient().Post("http://server/", "text/plain", strings.NewReader("not sent to who does not answer"))
		if status, text := body(t, r, err); status != 200 {
			t.Fatalf("got %d %q", status, text)
		}
		return len(p.client.Upstreams.States()) == 3 && handshakes.Load() > 0 && strings.Contains(p.clientAccess.String(), `"attempts":`)
	})
	before := handshakes.Load()
	for range 200 {
		r, err := p.httpClient().Post("http://server/", "text/plain", strings.NewReader("x"))
		if status, text := body(t, r, err); status != 200 {
			t.Fatalf("got %d %q", status, text)
		}
	}
	// Two of three are aside, so that each may be tried once a second; 200 requests
	// take a small part of what a third of them would be.
	if more := handshakes.Load() - before; more > 40 {
		t.Errorf("an endpoint that is set aside was tried %d times in 200 requests", more)
	}
	metrics := httptest.NewRecorder()
	promhttp.HandlerFor(p.client.Registry, promhttp.HandlerOpts{}).ServeHTTP(metrics, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, want := range []string{`hauberk_upstream_endpoint_failures_total{reason="connect"}`,
		`hauberk_upstream_endpoint_failures_total{reason="handshake"}`, "hauberk_upstream_retries_total"} {
		if !strings.Contains(metrics.Body.String(), want) {
			t.Errorf("metrics do not have %s", want)
		}
	}
	aside := 0
	for _, s := range p.client.Upstreams.States() {
		if s.Failures > 0 && !s.AsideUntil.IsZero() {
			aside++
		}
	}
	if aside == 0 {
		t.Errorf("the admin shows no endpoint set aside: %+v", p.client.Upstreams.States())
	}
}
