package distribute

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
	"github.com/hauberk-mesh/hauberk/policy"
)

var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

const (
	mesh         = hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	workloadType = hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	setType      = hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
	peerType     = hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET
	destType     = hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION
	tunnelType   = hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER
)

// facts is a small cluster: two pods of a bank, one on each of two nodes.
func facts() compile.Facts {
	pod := func(uid, node, addr string) compile.Pod {
		return compile.Pod{
			UID: uid, Namespace: "bank", Name: uid, ServiceAccount: uid, Node: node, Meshed: true,
			Labels: map[string]string{"app": uid}, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		}
	}
	key := make([]byte, 32)
	return compile.Facts{
		Mesh:       compile.Mesh{TrustDomain: "cluster.local", DefaultAction: policy.Allow},
		Namespaces: []compile.Namespace{{Name: "bank"}},
		Nodes: []compile.Node{
			{Name: "node1", Internal: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
			{Name: "node2", Internal: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		},
		Pods:    []compile.Pod{pod("database", "node1", "10.0.1.1"), pod("summary", "node2", "10.0.2.1")},
		Tunnels: []compile.Tunnel{{Node: "node1", PublicKey: key, Port: 1}, {Node: "node2", PublicKey: key, Port: 2}},
		Policies: []compile.Policy{{
			Ref:     policy.Ref{Kind: "NetworkPolicy", Namespace: "bank", Name: "database-policy", UID: "u1"},
			Subject: compile.Subject{Namespace: "bank", PodSelector: selector("database")}, GovernsIngress: true,
			Ingress: []compile.Rule{{Rule: policy.Rule{Name: "ingress[0]", Action: policy.Allow, Peers: []policy.Peer{{Namespaces: []string{"bank"}, PodSelector: selector("summary")}}}}},
		}},
	}
}

func selector(app string) *policy.Selector {
	return &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{app}}}}
}

// harness is a server on a real socket with real TLS.
type harness struct {
	server    *Server
	authority *identitytest.Authority
	address   string
}

func start(t *testing.T, change func(*Options)) *harness {
	t.Helper()
	options := Options{TrustDomain: trustDomain, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&options)
	}
	server, err := NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	authority := identitytest.NewAuthority(t, "cluster.local")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(identity.ServerTLS(authority.Control(t), identity.WithOptionalClient()))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	hauberkv1.RegisterDiscoveryServer(g, server)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Serve(listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return &harness{server: server, authority: authority, address: listener.Addr().String()}
}

func (h *harness) tls(source *identity.Source) *tls.Config {
	return identity.ClientTLS(source, identity.Expect{ID: identity.ControlID(trustDomain)})
}

// holder is a client's handler: what it holds, by type and name.
type holder struct {
	mu       sync.Mutex
	held     map[string]*hauberkv1.Resource
	removed  map[string]int
	complete map[hauberkv1.ResourceType]bool
	received int
	reject   func(discovery.Update) error
}

func newHolder() *holder {
	return &holder{held: map[string]*hauberkv1.Resource{}, removed: map[string]int{}, complete: map[hauberkv1.ResourceType]bool{}}
}

func key(t hauberkv1.ResourceType, name string) string {
	return strings.TrimPrefix(t.String(), "RESOURCE_TYPE_") + " " + name
}

func (h *holder) Apply(u discovery.Update) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reject != nil {
		if err := h.reject(u); err != nil {
			return err
		}
	}
	for _, r := range u.Resources {
		h.held[key(u.Type, r.GetName())] = r
		h.received++
	}
	for _, name := range u.Removed {
		delete(h.held, key(u.Type, name))
		h.removed[key(u.Type, name)]++
	}
	if u.Complete {
		h.complete[u.Type] = true
	}
	return nil
}

func (h *holder) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.held))
}

func (h *holder) get(name string) *hauberkv1.Resource {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[name]
}

func (h *harness) client(t *testing.T, source *identity.Source, handler discovery.Handler) (*discovery.Client, func()) {
	t.Helper()
	c, err := discovery.New(discovery.Options{
		Address: h.address, TLS: h.tls(source), Handler: handler, Log: slog.New(slog.DiscardHandler), Version: "test",
		Types:      []hauberkv1.ResourceType{mesh, workloadType, setType, peerType, tunnelType},
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return c, stop
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func holds(t *testing.T, h *holder, want ...string) {
	t.Helper()
	eventually(t, "what the client holds", func() error {
		if diff := cmp.Diff(want, h.names()); diff != "" {
			return fmt.Errorf("differs (-want +got):\n%s", diff)
		}
		return nil
	})
}

func TestWhoSeesWhat(t *testing.T) {
	h := start(t, nil)
	compiled := compile.Compile(facts())
	h.server.Publish(compiled)
	databaseSet := compiled.Workloads["database"].GetPolicySet()
	summarySet := compiled.Workloads["summary"].GetPolicySet()
	peerSet := compiled.PolicySets[databaseSet].PeerSets[0]

	t.Run("a sidecar gets its own pod", func(t *testing.T) {
		held := newHolder()
		c, _ := h.client(t, h.authority.Workload(t, "bank", "summary", "summary"), held)
		holds(t, held, "MESH mesh", "POLICY_SET "+summarySet, "WORKLOAD uid/summary")
		c.Subscribe(workloadType, "uid/database", "ip/10.0.1.1", "ip/10.9.9.9")
		c.Subscribe(destType, "10.0.1.1:2379", "10.9.9.9:1")
		// What is no sidecar's to ask for by name does not exist for it.
		c.Subscribe(setType, databaseSet)
		c.Subscribe(peerType, peerSet)
		c.Subscribe(tunnelType, "node1")
		holds(t, held, "DESTINATION 10.0.1.1:2379", "MESH mesh", "POLICY_SET "+summarySet,
			"WORKLOAD ip/10.0.1.1", "WORKLOAD uid/database", "WORKLOAD uid/summary")
		eventually(t, "names that do not exist are told", func() error {
			held.mu.Lock()
			defer held.mu.Unlock()
			for _, name := range []string{"WORKLOAD ip/10.9.9.9", "DESTINATION 10.9.9.9:1", "POLICY_SET " + databaseSet, "PEER_SET " + peerSet, "TUNNEL_PEER node1"} {
				if held.removed[name] == 0 {
					return fmt.Errorf("%s is not answered", name)
				}
			}
			return nil
		})
		other := held.get("WORKLOAD uid/database").GetWorkload()
		if other.GetPolicySet() != "" || other.GetUid() != "database" || other.GetSpiffeId() == "" {
			t.Errorf("another pod as a sidecar sees it: %v", other)
		}
		if own := held.get("WORKLOAD uid/summary").GetWorkload(); own.GetPolicySet() != summarySet {
			t.Errorf("its own pod has policy set %q, want %q", own.GetPolicySet(), summarySet)
		}
	})
	t.Run("a node agent gets its node", func(t *testing.T) {
		held := newHolder()
		h.client(t, h.authority.NodeAgent(t, "node1", "agent"), held)
		holds(t, held, "MESH mesh", "PEER_SET "+peerSet, "POLICY_SET "+databaseSet, "TUNNEL_PEER node2", "WORKLOAD uid/database")
		if own := held.get("WORKLOAD uid/database").GetWorkload(); own.GetPolicySet() != databaseSet {
			t.Errorf("a pod of the node has policy set %q, want %q", own.GetPolicySet(), databaseSet)
		}
	})
}

func TestRefusedIdentities(t *testing.T) {
	h := start(t, nil)
	open := func(t *testing.T, config *tls.Config) error {
		conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(t.Context())
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	workload := h.authority.Workload(t, "bank", "summary", "summary")
	if err := open(t, h.tls(workload)); status.Code(err) != codes.Unavailable {
		t.Errorf("before the first snapshot: %v, want Unavailable", err)
	}
	h.server.Publish(compile.Compile(facts()))
	anonymous := h.tls(workload).Clone()
	anonymous.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	anonymous.ClientSessionCache = nil
	nodeID := h.authority.ID(t, "hauberk-system", "hauberk-node")
	tests := []struct {
		name   string
		config *tls.Config
		want   codes.Code
	}{
		{"no certificate", anonymous, codes.Unauthenticated},
		{"a pod that is not known", h.tls(h.authority.Workload(t, "bank", "summary", "stranger")), codes.Unavailable},
		{"a pod of another service account", h.tls(h.authority.Workload(t, "bank", "database", "summary")), codes.PermissionDenied},
		{"a pod of another namespace", h.tls(h.authority.Workload(t, "other", "summary", "summary")), codes.PermissionDenied},
		{"no pod in the certificate", h.tls(h.authority.Workload(t, "bank", "summary", "")), codes.PermissionDenied},
		{"a node agent's name without a node", h.tls(h.authority.Source(t, identity.Peer{ID: nodeID, PodUID: "summary"})), codes.PermissionDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := open(t, tt.config); status.Code(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestChangesAndResync(t *testing.T) {
	h := start(t, nil)
	f := facts()
	h.server.Publish(compile.Compile(f))
	held := newHolder()
	source := h.authority.NodeAgent(t, "node1", "agent")
	c, _ := h.client(t, source, held)
	c.Subscribe(destType, "10.0.3.1:80")
	eventually(t, "first state", func() error {
		if held.get("WORKLOAD uid/database") == nil {
			return errors.New("no workload")
		}
		return nil
	})
	// A pod comes: the destination that was unknown exists, the node gets a workload.
	f.Pods = append(slices.Clone(f.Pods), compile.Pod{
		UID: "new", Namespace: "bank", Name: "new", ServiceAccount: "new", Node: "node1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.3.1")},
	})
	h.server.Publish(compile.Compile(f))
	eventually(t, "the pod that came", func() error {
		if held.get("WORKLOAD uid/new") == nil || held.get("DESTINATION 10.0.3.1:80") == nil {
			return fmt.Errorf("holds %v", held.names())
		}
		return nil
	})
	held.mu.Lock()
	before := held.received
	held.mu.Unlock()
	// Nothing changed: nothing is sent. A change afterwards proves that it would
	// have come.
	h.server.Publish(compile.Compile(f))
	f.Pods = f.Pods[:2]
	h.server.Publish(compile.Compile(f))
	eventually(t, "the pod that went", func() error {
		if held.get("WORKLOAD uid/new") != nil || held.get("DESTINATION 10.0.3.1:80") != nil {
			return fmt.Errorf("holds %v", held.names())
		}
		return nil
	})
	held.mu.Lock()
	after := held.received
	held.mu.Unlock()
	if sent := after - before; sent != 0 {
		t.Errorf("%d resources were sent again although none changed", sent)
	}
}

func TestRejectedResourceDoesNotHoldUpOthers(t *testing.T) {
	h := start(t, nil)
	f := facts()
	for i := range 5 {
		f.Pods = append(f.Pods, compile.Pod{UID: fmt.Sprintf("p%d", i), Namespace: "bank", Name: fmt.Sprintf("p%d", i), Node: "node1"})
	}
	h.server.Publish(compile.Compile(f))
	held := newHolder()
	held.reject = func(u discovery.Update) error {
		for _, r := range u.Resources {
			if r.GetName() == "uid/p3" && r.GetWorkload().GetLabels()["mended"] == "" {
				return errors.New("p3 is not to my taste")
			}
		}
		return nil
	}
	c, _ := h.client(t, h.authority.NodeAgent(t, "node1", "agent"), held)
	eventually(t, "the good resources and completeness", func() error {
		held.mu.Lock()
		defer held.mu.Unlock()
		if !held.complete[workloadType] {
			return errors.New("not complete")
		}
		for _, name := range []string{"uid/database", "uid/p0", "uid/p1", "uid/p2", "uid/p4"} {
			if held.held["WORKLOAD "+name] == nil {
				return fmt.Errorf("%s is missing", name)
			}
		}
		return nil
	})
	if held.get("WORKLOAD uid/p3") != nil {
		t.Error("the rejected resource is held")
	}
	var found bool
	for _, client := range h.server.Clients() {
		found = found || client.NACKs > 0 && strings.Contains(client.LastNACK, "not to my taste")
	}
	if !found {
		t.Errorf("no client is shown with its rejection: %+v", h.server.Clients())
	}
	f.Pods[5].Labels = map[string]string{"mended": "yes"}
	h.server.Publish(compile.Compile(f))
	eventually(t, "the mended resource", func() error {
		if held.get("WORKLOAD uid/p3") == nil {
			return errors.New("missing")
		}
		return nil
	})
	if !c.Connected() {
		t.Error("the stream did not last")
	}
}

func TestSlowClientIsCutOffAndOthersAreServed(t *testing.T) {
	h := start(t, func(o *Options) { o.Patience = 100 * time.Millisecond })
	f := facts()
	h.server.Publish(compile.Compile(f))
	conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(credentials.NewTLS(h.tls(h.authority.NodeAgent(t, "node2", "slow")))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&hauberkv1.DiscoveryRequest{Type: mesh, Subscribe: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	held := newHolder()
	h.client(t, h.authority.NodeAgent(t, "node1", "agent"), held)
	for i := range 50 {
		f.Mesh.OTLPEndpoint = fmt.Sprintf("collector-%d:4317", i)
		h.server.Publish(compile.Compile(f))
	}
	eventually(t, "the newest state at the quick client", func() error {
		if got := held.get("MESH mesh").GetMesh().GetTelemetry().GetOtlpEndpoint(); got != "collector-49:4317" {
			return fmt.Errorf("has %q", got)
		}
		return nil
	})
	// The slow one reads, without ever acknowledging: it got one response.
	responses := 0
	for {
		if _, err = stream.Recv(); err != nil {
			break
		}
		responses++
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("slow client ends with %v, want ResourceExhausted", err)
	}
	if responses != 1 {
		t.Errorf("slow client got %d responses, want 1: one is outstanding at most", responses)
	}
}

func TestAcksAndReports(t *testing.T) {
	type reported struct {
		node   string
		report *hauberkv1.NodeReport
	}
	reports := make(chan reported, 10)
	h := start(t, func(o *Options) {
		o.OnReport = func(node string, r *hauberkv1.NodeReport) { reports <- reported{node, r} }
	})
	compiled := compile.Compile(facts())
	h.server.Publish(compiled)
	h.client(t, h.authority.Workload(t, "bank", "summary", "summary"), newHolder())
	agent, stop := h.client(t, h.authority.NodeAgent(t, "node1", "agent"), newHolder())
	// It speaks for its own pod, and tries to for another node's.
	set := compiled.Workloads["database"].GetPolicySet()
	agent.Report(&hauberkv1.NodeReport{WireguardPublicKey: make([]byte, 32), WireguardPort: 51871, Programmed: map[string]string{"database": set, "summary": "x"}})
	want := Acks{Kernel: map[string]string{"database": set}, Sidecar: map[string]string{"summary": compiled.Workloads["summary"].GetPolicySet()}}
	eventually(t, "acknowledgements", func() error {
		if diff := cmp.Diff(want, h.server.Acks()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if got := <-reports; got.node != "node1" || len(got.report.GetWireguardPublicKey()) != 32 {
		t.Errorf("report: got %+v", got)
	}
	stop()
	eventually(t, "acknowledgements of a client that went", func() error {
		if kernel := h.server.Acks().Kernel; len(kernel) != 0 {
			return fmt.Errorf("still %v", kernel)
		}
		return nil
	})
}

func TestBadRequestsEndTheStreamOnly(t *testing.T) {
	h := start(t, nil)
	h.server.Publish(compile.Compile(facts()))
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = fmt.Sprintf("10.0.0.1:%d", i)
	}
	tests := []struct {
		name    string
		request *hauberkv1.DiscoveryRequest
		want    codes.Code
	}{
		{"no type", &hauberkv1.DiscoveryRequest{Subscribe: []string{"*"}}, codes.InvalidArgument},
		{"a long name", &hauberkv1.DiscoveryRequest{Type: destType, Subscribe: []string{strings.Repeat("x", 200)}}, codes.InvalidArgument},
		{"too many names", &hauberkv1.DiscoveryRequest{Type: destType, Subscribe: many}, codes.ResourceExhausted},
		{"a sidecar that reports on a node", &hauberkv1.DiscoveryRequest{NodeReport: &hauberkv1.NodeReport{}}, codes.PermissionDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(credentials.NewTLS(h.tls(h.authority.Workload(t, "bank", "summary", "summary")))))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(tt.request); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// A client that comes back says what it has, and is sent nothing of it: it
// still counts as acknowledged.
func TestAcksOfAClientThatCameBack(t *testing.T) {
	h := start(t, nil)
	compiled := compile.Compile(facts())
	h.server.Publish(compiled)
	set := compiled.Workloads["summary"].GetPolicySet()
	conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(credentials.NewTLS(h.tls(h.authority.Workload(t, "bank", "summary", "summary")))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	version := h.server.snapshot.Load().policySets[set].version
	request := &hauberkv1.DiscoveryRequest{Type: setType, Subscribe: []string{"*"}, InitialVersions: map[string]string{set: version, "gone": "x"}}
	if err := stream.Send(request); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !response.GetComplete() || len(response.GetResources()) != 0 || !slices.Equal(response.GetRemoved(), []string{"gone"}) {
		t.Errorf("response: %v, want a complete one that removes only what is gone", response)
	}
	if err := stream.Send(&hauberkv1.DiscoveryRequest{Type: setType, ResponseNonce: response.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "acknowledgement", func() error {
		if got := h.server.Acks().Sidecar["summary"]; got != set {
			return fmt.Errorf("got %q, want %q", got, set)
		}
		return nil
	})
}

// A client that says over and over that it has something new makes the server
// remember only so much.
func TestInitialVersionsAreBounded(t *testing.T) {
	c := newClient(audience{podUID: "summary"}, time.Now())
	for round := range 4 {
		has := make(map[string]string, maxNames)
		for i := range maxNames {
			has[fmt.Sprintf("%d/%d", round, i)] = "v"
		}
		_, err := c.receive(&hauberkv1.DiscoveryRequest{Type: workloadType, Subscribe: []string{"*"}, InitialVersions: has})
		if want := map[bool]codes.Code{true: codes.OK, false: codes.ResourceExhausted}[round < 2]; status.Code(err) != want {
			t.Errorf("round %d: got %v, want %s", round, err, want)
		}
	}
	if n := len(c.types[workloadType].acked); n > 2*maxNames {
		t.Errorf("%d versions are remembered", n)
	}
}

// What clients choose to ask for does not fill the server's memory.
func TestNamesAskedForAreBounded(t *testing.T) {
	s := newSnapshot(compile.Compile(facts()), nil)
	for _, pod := range []string{"10.0.1.1", "10.0.2.1"} {
		for port := 1; port < 1<<16; port++ {
			if s.lookup(destType, fmt.Sprintf("%s:%d", pod, port)) == nil {
				t.Fatalf("%s:%d is not found", pod, port)
			}
		}
	}
	kept := 0
	s.named.Range(func(any, any) bool { kept++; return true })
	if kept > maxNamed {
		t.Errorf("%d names are kept", kept)
	}
}
