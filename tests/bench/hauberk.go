package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// The addresses that the application dials: a service's, never a listener's.
const (
	serviceHTTP = "10.96.0.1:80"
	serviceTCP  = "10.96.0.1:90"
	serviceGRPC = "10.96.0.1:91"
)

// sides is what differs between the plain and the captured set-up.
type sides struct {
	backend          backendAt
	inbound          []netip.AddrPort // what the client's sidecar dials: http, tcp, grpc
	clientAddr, addr string           // of the pods
	rules            int
}

const (
	http1 = hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1
	tcp   = hauberkv1.AppProtocol_APP_PROTOCOL_TCP
	h2    = hauberkv1.AppProtocol_APP_PROTOCOL_GRPC
)

// resources are what a control plane would tell both sidecars.
func (s *sides) resources() (client, server []*hauberkv1.Resource) {
	mesh := &hauberkv1.Resource{Name: "mesh", Version: "1", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{TrustDomain: "cluster.local",
		Telemetry: &hauberkv1.Telemetry{OtlpEndpoint: s.backend.OTLP.String(), SamplingRatio: 0.01}}}}
	workload := func(uid, name, id, address string) *hauberkv1.Resource {
		return &hauberkv1.Resource{Name: "uid/" + uid, Version: "1", Body: &hauberkv1.Resource_Workload{Workload: &hauberkv1.Workload{
			Uid: uid, Namespace: "bench", Name: name + "-0", ServiceAccount: name, Labels: map[string]string{"app": name}, Meshed: true,
			SpiffeId: id, WorkloadName: name, WorkloadKind: "Deployment", PolicySet: name, MtlsMode: hauberkv1.MTLSMode_MTLS_MODE_STRICT,
			Addresses: []string{address}}}}
	}
	c, srv := workload(clientUID, "client", clientID, s.clientAddr), workload(serverUID, "server", serverID, s.addr)
	srv.GetWorkload().PortProtocols = map[uint32]hauberkv1.AppProtocol{uint32(s.backend.HTTP.Port()): http1,
		uint32(s.backend.TCP.Port()): tcp, uint32(s.backend.GRPC.Port()): h2}
	destination := func(name string, p hauberkv1.AppProtocol, to netip.AddrPort) *hauberkv1.Resource {
		return &hauberkv1.Resource{Name: name, Version: "1", Body: &hauberkv1.Resource_Destination{Destination: &hauberkv1.Destination{
			Kind: "Service", Namespace: "bench", Name: "server", Port: uint32(netip.MustParseAddrPort(name).Port()), Protocol: p,
			Endpoints: []*hauberkv1.DestinationEndpoint{{Address: to.Addr().String(), Port: uint32(to.Port()), PodUid: serverUID,
				SpiffeId: serverID, Ready: true, WorkloadName: "server", Namespace: "bench", PodName: "server-0"}}}}}
	}
	client = []*hauberkv1.Resource{mesh, c, srv, policySet("client", nil), destination(serviceHTTP, http1, s.inbound[0]),
		destination(serviceTCP, tcp, s.inbound[1]), destination(serviceGRPC, h2, s.inbound[2])}
	return client, []*hauberkv1.Resource{mesh, srv, c, policySet("server", s.ingress())}
}

func policySet(id string, ingress []*hauberkv1.Tier) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: id, Version: "1", Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{Id: id,
		Ingress: ingress, DefaultAction: hauberkv1.Action_ACTION_ALLOW}}}
}

// ingress is a tier of so many rules about requests, of which the last but two
// and the last but one admit the benchmark's HTTP/1.1 and gRPC, and one for the
// port that is carried as bytes.
func (s *sides) ingress() []*hauberkv1.Tier {
	if s.rules == 0 {
		return nil
	}
	allow := hauberkv1.Action_ACTION_ALLOW
	byPath := func(name, prefix string) *hauberkv1.Rule {
		return &hauberkv1.Rule{Name: name, Action: allow,
			Peers: []*hauberkv1.Peer{{PeerSet: name, PodSelector: &hauberkv1.Selector{Requirements: []*hauberkv1.Requirement{{Key: "app",
				Operator: hauberkv1.Requirement_OPERATOR_IN, Values: []string{"client"}}}}}},
			Http: []*hauberkv1.HTTPMatch{{Methods: []string{"GET"}, Paths: []*hauberkv1.PathMatch{{Type: hauberkv1.PathMatch_TYPE_PREFIX, Value: prefix}}}}}
	}
	var rules []*hauberkv1.Rule
	for i := range s.rules - 3 {
		rules = append(rules, byPath(fmt.Sprintf("r%d", i), fmt.Sprintf("/service-%d/", i)))
	}
	echo := byPath("echo", "")
	echo.Http = []*hauberkv1.HTTPMatch{{Grpc: []*hauberkv1.GRPCMatch{{Service: "bench.Echo"}}}}
	rules = append(rules, byPath("items", "/api/"), echo, &hauberkv1.Rule{Name: "bytes", Action: allow, AnyPeer: true, Ports: []*hauberkv1.PortMatch{
		{Protocol: 6, Port: uint32(s.backend.TCP.Port())}}})
	return []*hauberkv1.Tier{{Name: "default", Order: 1e6, DefaultAction: hauberkv1.Action_ACTION_DENY,
		Policies: []*hauberkv1.Policy{{Kind: "MeshPolicy", Namespace: "bench", Name: "api", Order: 10, Rules: rules}}}}
}

// config writes a sidecar's file.
func (b *bench) config(name, uid, listeners, metrics, admin string, resources []*hauberkv1.Resource) (string, error) {
	var w strings.Builder
	fmt.Fprintf(&w, "podUID: %s\nlogLevel: warn\nmetrics: '%s'\nadmin: '%s'\nlisteners: %s\n", uid, metrics, admin, listeners)
	fmt.Fprintf(&w, "identity: {certificateFile: %[1]s-svid.crt, keyFile: %[1]s-svid.key, bundleFile: %[2]s}\nresources:\n", b.file(name), b.file("ca.pem"))
	for _, r := range resources {
		j, err := protojson.Marshal(r)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&w, "- %s\n", j)
	}
	file := b.file("hauberk-" + name + ".yaml")
	return file, os.WriteFile(file, []byte(w.String()), 0o644) //nolint:gosec // the sidecar in its namespace is another user
}

func startHauberk(ctx context.Context, b *bench, v variant) (*stack, error) {
	return b.startHauberk(ctx, b.hauberk, v)
}

func startBefore(ctx context.Context, b *bench, v variant) (*stack, error) {
	return b.startHauberk(ctx, b.before, v)
}

func (b *bench) startHauberk(ctx context.Context, binary string, v variant) (*stack, error) {
	p, err := ports(10)
	if err != nil {
		return nil, err
	}
	client, server := p[:3], p[3:6]
	s := &sides{backend: b.backend, inbound: server, clientAddr: "127.0.0.1", addr: "127.0.0.1", rules: v.rules}
	listeners := func(key string, addresses []netip.AddrPort, to ...string) string {
		var list []string
		for i, a := range addresses {
			list = append(list, fmt.Sprintf("{address: '%s', destination: '%s'}", a, to[i]))
		}
		return fmt.Sprintf("{%s: [%s]}", key, strings.Join(list, ", "))
	}
	cr, sr := s.resources()
	cf, err := b.config("client", clientUID, listeners("outbound", client, serviceHTTP, serviceTCP, serviceGRPC), p[6].String(), p[7].String(), cr)
	if err != nil {
		return nil, err
	}
	sf, err := b.config("server", serverUID, listeners("inbound", server, b.backend.HTTP.String(), b.backend.TCP.String(), b.backend.GRPC.String()),
		p[8].String(), p[9].String(), sr)
	if err != nil {
		return nil, err
	}
	return b.two(ctx, &stack{http: client[0], tcp: client[1], grpc: client[2], admin: []netip.AddrPort{p[7], p[9]}}, "hauberk",
		[]string{binary, "--config", cf}, []string{binary, "--config", sf})
}

func startCapture(ctx context.Context, b *bench, v variant) (*stack, error) {
	if err := b.pods.capture(true, fmt.Sprint(b.inPod.OTLP.Port())); err != nil {
		return nil, err
	}
	s := &sides{backend: b.inPod, inbound: []netip.AddrPort{b.inPod.HTTP, b.inPod.TCP, b.inPod.GRPC}, clientAddr: clientIP, addr: serverIP, rules: v.rules}
	cr, sr := s.resources()
	cf, err := b.config("client", clientUID, "{capture: true}", ":15020", "127.0.0.1:15000", cr)
	if err != nil {
		return nil, err
	}
	sf, err := b.config("server", serverUID, "{capture: true}", ":15020", "127.0.0.1:15000", sr)
	if err != nil {
		return nil, err
	}
	args := func(ns, file string) []string {
		return []string{"ip", "netns", "exec", ns, "setpriv", "--reuid", sidecarUID, "--regid", sidecarUID, "--clear-groups", "--no-new-privs",
			b.hauberk, "--config", file}
	}
	return b.two(ctx, &stack{http: netip.MustParseAddrPort(serviceHTTP), netns: b.pods.client}, "hauberk-capture",
		args(b.pods.client, cf), args(b.pods.server, sf))
}
