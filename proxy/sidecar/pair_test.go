package sidecar

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noDeadline time.Time

const (
	clientUID = "11111111-1111-1111-1111-111111111111"
	serverUID = "22222222-2222-2222-2222-222222222222"
	clientID  = "spiffe://cluster.local/ns/bank/sa/client"
	serverID  = "spiffe://cluster.local/ns/bank/sa/server"
	service   = "10.96.0.1:80" // what the application dials
)

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// pair is two sidecars in this process with real sockets and real mutual TLS
// between them; what iptables would tell is told by functions.
type pair struct {
	t              testing.TB
	client, server *Core
	clientFixed    *Fixed
	serverFixed    *Fixed
	clientAccess   *safeBuffer
	serverAccess   *safeBuffer
	log            *safeBuffer
	dial           string // the client's outbound listener
	inbound        string // the server's inbound listener
	authority      *identitytest.Authority
	target         atomic.Pointer[netip.AddrPort] // where the client's connections were going
	clientRes      []*hauberkv1.Resource
	serverRes      []*hauberkv1.Resource
}

type setup struct {
	app         string // address of the application
	protocol    hauberkv1.AppProtocol
	serverProto hauberkv1.AppProtocol
	mtls        hauberkv1.MTLSMode
	ingress     []*hauberkv1.Tier
	egress      []*hauberkv1.Tier
	podUID      string // what the destination claims, when it is not true
	plain       bool   // the destination says that the server has no sidecar
	peerUnknown bool
	otlp        string
	limits      connections.Limits
	quiet       bool // no access log, no debug log, nothing sampled
}

func meshResource(s *setup) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: "mesh", Version: "1", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{
		TrustDomain: "cluster.local", DenyResponseHeader: true,
		Telemetry: &hauberkv1.Telemetry{AccessLog: !s.quiet, SamplingRatio: 1, OtlpEndpoint: s.otlp}}}}
}

func workloadResource(uid, name, id string, labels map[string]string, port uint32, s *setup) *hauberkv1.Resource {
	w := &hauberkv1.Workload{Uid: uid, Namespace: "bank", Name: name + "-0", ServiceAccount: name, Labels: labels,
		Meshed: true, SpiffeId: id, WorkloadName: name, WorkloadKind: "Deployment", PolicySet: name + "-policy", MtlsMode: s.mtls,
		Addresses: []string{"127.0.0.1"}}
	if s.serverProto != 0 && port != 0 {
		w.PortProtocols = map[uint32]hauberkv1.AppProtocol{port: s.serverProto}
	}
	return &hauberkv1.Resource{Name: "uid/" + uid, Version: "1", Body: &hauberkv1.Resource_Workload{Workload: w}}
}

func setResource(name string, ingress, egress []*hauberkv1.Tier) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: name, Version: "1", Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{
		Id: name, Ingress: ingress, Egress: egress, DefaultAction: hauberkv1.Action_ACTION_ALLOW}}}
}

func newPair(t testing.TB, s setup) *pair {
	t.Helper()
	p := &pair{t: t, authority: identitytest.NewAuthority(t, ""), clientAccess: &safeBuffer{}, serverAccess: &safeBuffer{}, log: &safeBuffer{}}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.quiet {
		log = slog.New(slog.DiscardHandler)
	}
	app, to := netip.MustParseAddrPort(s.app), netip.MustParseAddrPort(service)
	p.target.Store(&to)
	appPort := uint32(app.Port())

	p.server = NewCore(CoreOptions{PodUID: serverUID, Source: p.authority.Workload(t, "bank", "server", serverUID), Log: log.With("side", "server"),
		AccessLog: p.serverAccess, Foreign: true, Limits: s.limits,
		Inbound:  func(net.Conn) (netip.AddrPort, error) { return app, nil },
		Outbound: func(net.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, io.EOF }})
	p.client = NewCore(CoreOptions{PodUID: clientUID, Source: p.authority.Workload(t, "bank", "client", clientUID), Log: log.With("side", "client"),
		AccessLog: p.clientAccess, Foreign: true,
		Inbound:  func(net.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, io.EOF },
		Outbound: func(net.Conn) (netip.AddrPort, error) { return *p.target.Load(), nil }})

	in, out := listen(t), listen(t)
	p.inbound, p.dial = in.Addr().String(), out.Addr().String()
	inAddr := netip.MustParseAddrPort(p.inbound)

	client := workloadResource(clientUID, "client", clientID, map[string]string{"app": "client"}, 0, &s)
	server := workloadResource(serverUID, "server", serverID, map[string]string{"app": "server"}, appPort, &s)
	endpoint := &hauberkv1.DestinationEndpoint{Address: inAddr.Addr().String(), Port: uint32(inAddr.Port()), PodUid: serverUID,
		SpiffeId: serverID, Ready: true, WorkloadName: "server", Namespace: "bank", PodName: "server-0"}
	if s.podUID != "" {
		endpoint.PodUid = s.podUID
	}
	if s.plain {
		endpoint.SpiffeId = ""
	}
	destination := &hauberkv1.Resource{Name: service, Version: "1", Body: &hauberkv1.Resource_Destination{Destination: &hauberkv1.Destination{
		Kind: "Service", Namespace: "bank", Name: "server", Port: 80, Protocol: s.protocol, Endpoints: []*hauberkv1.DestinationEndpoint{endpoint}}}}
	p.clientRes = []*hauberkv1.Resource{meshResource(&s), client, setResource("client-policy", nil, s.egress), destination, server}
	p.serverRes = []*hauberkv1.Resource{meshResource(&s), server, setResource("server-policy", s.ingress, nil)}
	if !s.peerUnknown {
		p.serverRes = append(p.serverRes, client)
	}
	p.clientFixed, p.serverFixed = NewFixed(p.client.Directory, p.clientRes), NewFixed(p.server.Directory, p.serverRes)
	p.client.Directory.Bind(p.clientFixed)
	p.server.Directory.Bind(p.serverFixed)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	run := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	run(p.clientFixed.Run)
	run(p.serverFixed.Run)
	run(p.client.Run)
	run(p.server.Run)
	<-p.client.Directory.Ready()
	<-p.server.Directory.Ready()
	p.client.Configure(ctx)
	p.server.Configure(ctx)
	run(func(ctx context.Context) error { return connections.Serve(ctx, ctx, in, log, p.server.Inbound.Handle) })
	run(func(ctx context.Context) error {
		return connections.Serve(ctx, ctx, out, log, p.client.Outbound.Handle)
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if t.Failed() {
			t.Log("log:\n" + p.log.String())
		}
	})
	return p
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// httpClient dials the client's sidecar whatever the URL says.
func (p *pair) httpClient() *http.Client {
	tr := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", p.dial)
	}, ExpectContinueTimeout: 3 * time.Second}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (p *pair) conn() net.Conn {
	p.t.Helper()
	c, err := net.Dial("tcp", p.dial)
	if errors.Is(err, syscall.ECONNRESET) {
		// A denied connection can be reset before connect(2) returns: what the caller
		// gets is as dead as it would be a moment later.
		near, far := net.Pipe()
		far.Close()
		return near
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func (p *pair) eventually(what string, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	p.t.Fatalf("%s: not within 10 s", what)
}

// httpApp is a real HTTP application.
func httpApp(t testing.TB, h http.Handler) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// tcpApp runs handle for each connection.
func tcpApp(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func rule(name string, action hauberkv1.Action, http ...*hauberkv1.HTTPMatch) *hauberkv1.Rule {
	return &hauberkv1.Rule{Name: name, Action: action, Http: http,
		Peers: []*hauberkv1.Peer{{PeerSet: "x", PodSelector: &hauberkv1.Selector{Requirements: []*hauberkv1.Requirement{{Key: "app",
			Operator: hauberkv1.Requirement_OPERATOR_IN, Values: []string{"client", "server"}}}}}}}
}

func tier(rules ...*hauberkv1.Rule) []*hauberkv1.Tier {
	return []*hauberkv1.Tier{{Name: "default", Order: 1e6, DefaultAction: hauberkv1.Action_ACTION_DENY, Policies: []*hauberkv1.Policy{
		{Kind: "MeshPolicy", Namespace: "bank", Name: "api", Order: 10, Rules: rules}}}}
}

func get(methods []string, prefix string) *hauberkv1.HTTPMatch {
	return &hauberkv1.HTTPMatch{Methods: methods, Paths: []*hauberkv1.PathMatch{{Type: hauberkv1.PathMatch_TYPE_PREFIX, Value: prefix}}}
}

func body(t testing.TB, r *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}
