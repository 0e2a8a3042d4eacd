package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// stack is what a client dials in one measurement, with the proxies to account.
type stack struct {
	http, tcp, grpc netip.AddrPort // invalid when the pair does not carry it
	netns           string
	procs           []*process
	admin           []netip.AddrPort // where profiles can be taken, client side first
}

func (s *stack) stop() {
	for _, p := range s.procs {
		p.stop()
	}
}

// variant is how a pair is set up for a scenario.
type variant struct {
	rules int
	full  bool // every handshake a full one
}

// pair is a client-side and a server-side proxy, or none.
type pair struct {
	name     string
	features string
	lacks    string
	base     string // whose latency is subtracted
	// absent says why the pair can't take part, "" when it can.
	absent func(*bench) string
	// cannot says why the pair has no part in a scenario.
	cannot func(scenario string) string
	start  func(context.Context, *bench, variant) (*stack, error)
}

// bench is what all measurements share.
type bench struct {
	dir      string // certificates and configurations
	self     string // this binary
	starter  *starter
	limit    uint64 // of descriptors of a process
	backend  backendAt
	pods     *pods     // nil without root
	inPod    backendAt // the same backend in the server's namespace
	hauberk  string    // binary
	before   string    // another binary of the sidecar, "" without
	envoy    string    // binary, "" when not named
	backends []*process
}

// backendAt is where the backend listens. Its fields are exported for templates.
type backendAt struct{ HTTP, TCP, GRPC, OTLP netip.AddrPort }

// ports reserves n addresses of loopback: they were free a moment ago.
func ports(n int) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		all = append(all, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return all, nil
}

func split(s string) []string { return strings.Split(s, ",") }

func join(list ...netip.AddrPort) string {
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return strings.Join(s, ",")
}

func inPath(name string) func(*bench) string {
	return func(*bench) string {
		if findBinary(name) == "" {
			return name + " is not installed (as root, make bench installs Debian's)"
		}
		return ""
	}
}

func findBinary(name string) string {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return file
		}
	}
	return ""
}

// allPairs is every pair that the harness knows, in the order of its tables.
func allPairs() []pair {
	const mutual = "mutual TLS 1.3, both certificates verified"
	return []pair{
		{name: "direct", features: "no proxy", start: startDirect},
		{name: "floor", base: "direct", features: mutual, lacks: "HTTP, policy, metrics, tracing, pools, choice of endpoints", start: startFloor},
		{name: "hauberk", base: "direct", features: mutual + " by SPIFFE ID and pod; strict HTTP/1.1 and HTTP/2; 10 rules per request; Prometheus and OTLP metrics; W3C context, 1 % sampled and exported",
			start: startHauberk,
			cannot: func(s string) string {
				if s == "churn-full" {
					return "always resumes sessions with an endpoint that it knows"
				}
				return ""
			}},
		{name: "hauberk-before", base: "direct", features: "as hauberk, another build to compare with", absent: func(b *bench) string {
			if b.before == "" {
				return "no other build: name one with -before"
			}
			return ""
		}, start: startBefore},
		{name: "haproxy", base: "direct", features: mutual + " by name; HTTP/1.1 and HTTP/2; counters", lacks: "policy, tracing, SPIFFE ID of the peer, access log (off)",
			absent: inPath("haproxy"), start: startHAProxy},
		{name: "nginx", base: "direct", features: mutual + " by name of the server, by root of the client; HTTP/1.1 and HTTP/2",
			lacks: "policy, metrics, tracing, SPIFFE ID of the peer, access log (off)", absent: inPath("nginx"), start: startNginx},
		{name: "envoy", base: "direct", features: mutual + " by SPIFFE ID; HTTP/1.1 and HTTP/2; RBAC with 10 rules; counters; W3C context, 1 % sampled and exported",
			lacks: "choice of endpoints, access log (off)", absent: func(b *bench) string {
				if b.envoy == "" {
					return "no binary: name one with ENVOY="
				}
				return ""
			}, start: startEnvoy},
		{name: "direct-netns", features: "no proxy, network namespaces joined by veth", absent: needsPods, cannot: onlyHTTP, start: startDirectPods},
		{name: "hauberk-capture", base: "direct-netns", features: "as hauberk, with iptables REDIRECT in network namespaces", absent: needsPods, cannot: onlyHTTP, start: startCapture},
	}
}

// notDriven are peers that take configuration from a control plane only.
var notDriven = map[string]string{
	"LINKERD2_PROXY": "linkerd2-proxy takes destinations, policy and identity only from Linkerd's control plane by gRPC; the harness has none, so it is not measured",
	"ZTUNNEL":        "ztunnel needs a CA and workload addresses of its own network setup; driving it without a control plane is not built, so it is not measured",
}

func needsPods(b *bench) string {
	if b.pods == nil {
		return "needs root for network namespaces"
	}
	return ""
}

func onlyHTTP(scenario string) string {
	if strings.HasPrefix(scenario, "http-") || strings.HasPrefix(scenario, "max-") || scenario == "sweep" {
		return ""
	}
	return "plain listeners are compared instead"
}

func startDirect(_ context.Context, b *bench, _ variant) (*stack, error) {
	return &stack{http: b.backend.HTTP, tcp: b.backend.TCP, grpc: b.backend.GRPC}, nil
}

func startDirectPods(_ context.Context, b *bench, _ variant) (*stack, error) {
	if err := b.pods.capture(false, ""); err != nil {
		return nil, err
	}
	return &stack{http: b.inPod.HTTP, netns: b.pods.client}, nil
}

// two starts both proxies of a pair; what was started is stopped on error.
func (b *bench) two(ctx context.Context, s *stack, name string, client, server []string) (*stack, error) {
	for _, p := range []struct {
		side string
		args []string
	}{{"server", server}, {"client", client}} {
		started, err := b.starter.start(ctx, name+"/"+p.side, p.args...)
		if err != nil {
			s.stop()
			return nil, err
		}
		s.procs = append(s.procs, started)
	}
	return s, nil
}

func startFloor(ctx context.Context, b *bench, v variant) (*stack, error) {
	p, err := ports(6)
	if err != nil {
		return nil, err
	}
	args := func(name, peer, listen, target string, more ...string) []string {
		return append([]string{b.self, "floor", "-listen", listen, "-target", target, "-cert", b.file(name + ".crt"), "-key", b.file(name + ".key"),
			"-ca", b.file("ca.pem"), "-name", peer}, more...)
	}
	var full []string
	if v.full {
		full = []string{"-full"}
	}
	s := &stack{http: p[0], tcp: p[1], grpc: p[2]}
	return b.two(ctx, s, "floor",
		args("client", serverName, join(p[:3]...), join(p[3:]...), full...),
		args("server", clientName, join(p[3:]...), join(b.backend.HTTP, b.backend.TCP, b.backend.GRPC), "-accept"))
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, name) }

// peerConfig is what the templates of other proxies' files see.
type peerConfig struct {
	Dir                    string
	Client, Between        []netip.AddrPort // http, tcp, grpc
	Backend                backendAt
	ClientName, ServerName string
	ClientID, ServerID     string
	Full                   bool
	Pid                    string
	Rules                  []int
	MaxConns, Descriptors  uint64
	OTLP                   netip.AddrPort
	ClientSide             bool
	Stream                 string // nginx's module, "" without
}

func (b *bench) peerConfig(v variant) (*peerConfig, *stack, error) {
	p, err := ports(6)
	if err != nil {
		return nil, nil, err
	}
	c := &peerConfig{Dir: b.dir, Client: p[:3], Between: p[3:], Backend: b.backend, ClientName: clientName, ServerName: serverName,
		ClientID: clientID, ServerID: serverID, Full: v.full, OTLP: b.backend.OTLP, Stream: streamModule(),
		MaxConns: b.limit/2 - 200, Descriptors: b.limit - 100}
	for i := range v.rules {
		c.Rules = append(c.Rules, i)
	}
	return c, &stack{http: p[0], tcp: p[1], grpc: p[2]}, nil
}

func streamModule() string {
	const file = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

func (b *bench) render(name, text string, c *peerConfig) (string, error) {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return "", err
	}
	var w strings.Builder
	if err := t.Execute(&w, c); err != nil {
		return "", err
	}
	file := b.file(name)
	return file, os.WriteFile(file, []byte(w.String()), 0o600)
}

func (b *bench) templated(ctx context.Context, name, client, server string, v variant, args func(file string) []string) (*stack, error) {
	c, s, err := b.peerConfig(v)
	if err != nil {
		return nil, err
	}
	c.ClientSide, c.Pid = true, b.file(name+"-client.pid")
	// Envoy tells YAML by the file's name; the others do not care.
	clientFile, err := b.render(name+"-client.yaml", client, c)
	if err != nil {
		return nil, err
	}
	c.ClientSide, c.Pid = false, b.file(name+"-server.pid")
	serverFile, err := b.render(name+"-server.yaml", server, c)
	if err != nil {
		return nil, err
	}
	return b.two(ctx, s, name, args(clientFile), args(serverFile))
}

func startHAProxy(ctx context.Context, b *bench, v variant) (*stack, error) {
	return b.templated(ctx, "haproxy", haproxyClient, haproxyServer, v, func(f string) []string {
		return []string{findBinary("haproxy"), "-db", "-f", f}
	})
}

func startNginx(ctx context.Context, b *bench, v variant) (*stack, error) {
	s, err := b.templated(ctx, "nginx", nginxClient, nginxServer, v, func(f string) []string {
		return []string{findBinary("nginx"), "-p", b.dir, "-c", f, "-e", "stderr"}
	})
	if err == nil && streamModule() == "" {
		s.tcp = netip.AddrPort{}
	}
	return s, err
}

func startEnvoy(ctx context.Context, b *bench, v variant) (*stack, error) {
	return b.templated(ctx, "envoy", envoyConfig, envoyConfig, v, func(f string) []string {
		return []string{b.envoy, "-c", f, "--concurrency", "2", "--disable-hot-restart", "--log-level", "error"}
	})
}

// ready waits until a request passes the whole stack.
func (s *stack) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := s.probe(ctx)
		if err == nil {
			return nil
		}
		for _, p := range s.procs {
			if dead := p.alive(); dead != nil {
				return dead
			}
		}
		select {
		case <-ctx.Done():
			var logs strings.Builder
			for _, p := range s.procs {
				fmt.Fprintf(&logs, "%s:\n%s\n", p.name, p.out)
			}
			return fmt.Errorf("not ready: %w\n%s", err, logs.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *stack) probe(ctx context.Context) error {
	c, err := dial(ctx, s.netns, s.http.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	return exchangeOne(c)
}

// exchangeOne sends one request and reads its answer.
func exchangeOne(c net.Conn) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	for n := 0; n < len(buf); {
		m, err := c.Read(buf[n:])
		n += m
		whole, bad := responseComplete(buf[:n])
		if bad != nil || whole {
			return bad
		}
		if err != nil {
			return err
		}
	}
	return errors.New("the answer is too long")
}
