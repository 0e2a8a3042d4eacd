package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/directory"
)

func endpoints(t *testing.T) (*Set, *directory.Destination) {
	t.Helper()
	s := New(Options{Self: "self", TLS: func(string, string, ...string) (*tls.Config, error) { return &tls.Config{}, nil }})
	d := &directory.Destination{Kind: "Service"}
	for i, e := range []directory.Endpoint{
		{PodUID: "a", SPIFFEID: "spiffe://x/a", Ready: true},
		{PodUID: "b", SPIFFEID: "spiffe://x/b", Ready: true},
		{PodUID: "c", SPIFFEID: "spiffe://x/c", Ready: true, Terminating: true},
		{PodUID: "d", SPIFFEID: "spiffe://x/d"},
	} {
		e.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
		d.Endpoints = append(d.Endpoints, e)
	}
	return s, d
}

// picks is how often each pod is chosen in many tries.
func picks(t *testing.T, s *Set, d *directory.Destination, tried ...Choice) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for range 400 {
		c, err := s.Pick(d, tried)
		if err != nil {
			t.Fatal(err)
		}
		got[c.Endpoint.PodUID]++
	}
	return got
}

func choose(t *testing.T, s *Set, d *directory.Destination, uid string) Choice {
	t.Helper()
	for range 1000 {
		if c, err := s.Pick(d, nil); err == nil && c.Endpoint.PodUID == uid {
			return c
		}
	}
	t.Fatalf("%s is never chosen", uid)
	return Choice{}
}

func TestPick(t *testing.T) {
	s, d := endpoints(t)
	if got := picks(t, s, d); got["a"] < 100 || got["b"] < 100 || len(got) != 2 {
		t.Errorf("of equals: %v", got)
	}
	a, b := choose(t, s, d, "a"), choose(t, s, d, "b")
	if got := picks(t, s, d, a); got["b"] != 400 {
		t.Errorf("a was tried: %v", got)
	}
	if got := picks(t, s, d, a, b); got["c"] != 400 {
		t.Errorf("only what terminates is left: %v", got)
	}
	a.e.live.Add(10)
	if got := picks(t, s, d); got["b"] != 400 {
		t.Errorf("a is loaded: %v", got)
	}
	a.e.live.Add(-10)
	b.e.failed(time.Now())
	if got := picks(t, s, d); got["a"] != 400 {
		t.Errorf("b failed: %v", got)
	}
	a.e.failed(time.Now())
	if got := picks(t, s, d); got["c"] != 400 {
		t.Errorf("a and b failed: %v", got)
	}
	a.e.worked()
	if got := picks(t, s, d); got["a"] != 400 {
		t.Errorf("a works again: %v", got)
	}
}

func TestPickNothing(t *testing.T) {
	s, d := endpoints(t)
	d.Endpoints = d.Endpoints[3:]
	if _, err := s.Pick(d, nil); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("a service's endpoint that is not ready: %v", err)
	}
	d.Kind = "Pod"
	if c, err := s.Pick(d, nil); err != nil || c.Endpoint.PodUID != "d" {
		t.Errorf("a pod that is not ready, dialled by its address: %v %v", c, err)
	}
}

func TestOneself(t *testing.T) {
	s, d := endpoints(t)
	d.Endpoints = []directory.Endpoint{{Addr: d.Endpoints[0].Addr, PodUID: "self", SPIFFEID: "spiffe://x/self", Ready: true}}
	if c, err := s.Pick(d, nil); err != nil || c.Meshed {
		t.Errorf("the own pod is reached without a sidecar in between: meshed %v, %v", c.Meshed, err)
	}
}

// TestFlushReachesConnectionsInUse: what was made under a trust that has changed
// is not pooled again when its request ends.
func TestFlushReachesConnectionsInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dials := 0
	s := New(Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}})
	defer s.Drain()
	d := &directory.Destination{Kind: "Service", Endpoints: []directory.Endpoint{
		{PodUID: "a", Ready: true, Addr: netip.MustParseAddrPort(l.Addr().String())}}}
	c := choose(t, s, d, "a")
	for i, want := range []int{1, 1, 2} {
		conn, err := s.HTTP(t.Context(), c, false)
		if err != nil || dials != want {
			t.Fatalf("request %d: %d connections, %v", i, dials, err)
		}
		if i == 1 {
			s.Flush()
		}
		s.Release(c, conn, true, 0)
	}
}
