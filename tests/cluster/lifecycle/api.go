package lifecycle

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
)

// probe asks the components how they are, over the underlay and with TLS.
type probe struct {
	plan   plan.Cluster
	client *http.Client
}

func newProbe(c plan.Cluster) (*probe, error) {
	ca, err := os.ReadFile(filepath.Join(plan.PKIDir(), "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(plan.PKIDir(), "ca.crt"))
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(plan.PKIDir(), "admin.crt"), filepath.Join(plan.PKIDir(), "admin.key"))
	if err != nil {
		return nil, err
	}
	return &probe{plan: c, client: &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true,
		},
	}}, nil
}

func (p *probe) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	return nil
}

// component asks whether the process works, not only whether it is there.
func (p *probe) component(ctx context.Context, proc render.Process) error {
	pid := host.PID(proc.Name)
	if pid == 0 {
		return fmt.Errorf("%s does not run", proc.Name)
	}
	v4, _ := p.plan.API()
	at := func(scheme, addr string, port int, path string) string {
		return fmt.Sprintf("%s://%s:%d%s", scheme, addr, port, path)
	}
	kind := strings.TrimSuffix(proc.Name, "-"+proc.Space)
	node := v4.String()
	for _, n := range p.plan.Workers() {
		if n.Name == proc.Space {
			node = n.V4.String()
		}
	}
	var err error
	switch kind {
	case "etcd":
		err = p.get(ctx, at("https", node, 2379, "/health"), nil)
	case "kube-apiserver":
		err = p.get(ctx, at("https", node, 6443, "/readyz"), nil)
	case "kube-controller-manager":
		err = p.get(ctx, at("https", node, 10257, "/healthz"), nil)
	case "kube-scheduler":
		err = p.get(ctx, at("https", node, 10259, "/healthz"), nil)
	case "kubelet":
		err = p.get(ctx, at("https", node, 10250, "/healthz"), nil)
	case "kube-proxy":
		err = p.get(ctx, at("http", node, 10256, "/healthz"), nil)
	case "containerd":
		var d net.Dialer
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/root%s", pid, render.ContainerdSocket)); err == nil {
			conn.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", proc.Name, err)
	}
	return nil
}

// nodesReady asks whether every node of the plan, and no other, is Ready.
func (p *probe) nodesReady(ctx context.Context) error {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
	}
	if err := p.get(ctx, p.plan.Server()+"/api/v1/nodes", &list); err != nil {
		return err
	}
	state := map[string]string{}
	for _, n := range list.Items {
		state[n.Metadata.Name] = "it has not reported yet"
		for _, c := range n.Status.Conditions {
			if c.Type != "Ready" {
				continue
			}
			state[n.Metadata.Name] = ""
			if c.Status != "True" {
				state[n.Metadata.Name] = c.Message
			}
		}
	}
	for _, n := range p.plan.Workers() {
		why, known := state[n.Name]
		if !known {
			return fmt.Errorf("node %s has not registered", n.Name)
		}
		if why != "" {
			return fmt.Errorf("node %s is not ready: %s", n.Name, why)
		}
	}
	return nil
}

// dnsAnswers asks the cluster's DNS service from the control plane's
// namespace, the way the API server reaches a webhook: through a node's
// kube-proxy to a pod.
func (p *probe) dnsAnswers(ctx context.Context) error {
	// The poll comes again; waiting for a lost datagram would only be slower.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	server := p.plan.DNSAddress()[0].String() + ":53"
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialIn(ctx, plan.ControlPlane, network, server)
	}}
	name := "kubernetes.default.svc.cluster.local."
	addrs, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return fmt.Errorf("cluster DNS at %s: %w", server, err)
	}
	want := p.plan.ServiceAddress()[0].String()
	for _, a := range addrs {
		if a == want {
			return nil
		}
	}
	return fmt.Errorf("cluster DNS at %s says %s is at %v, not at %s", server, name, addrs, want)
}

// dialIn connects from within the space's network. A socket belongs to the
// namespace of the thread which made it, whoever uses it after.
func dialIn(ctx context.Context, space, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, in whatever
		// namespace it is.
		runtime.LockOSThread()
		f, err := os.Open(plan.NetPin(space))
		if err != nil {
			done <- result{err: err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter the network of %s: %w", space, err)}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		done <- result{conn: conn, err: err}
	}()
	r := <-done
	return r.conn, r.err
}

// whole asks everything at once and returns the first thing found wrong.
func (p *probe) whole(ctx context.Context, procs []render.Process) error {
	checks := []func(context.Context) error{p.nodesReady, p.dnsAnswers}
	for _, proc := range procs {
		checks = append(checks, func(ctx context.Context) error { return p.component(ctx, proc) })
	}
	errs := make(chan error, len(checks))
	for _, check := range checks {
		go func() { errs <- check(ctx) }()
	}
	var firstErr error
	for range checks {
		if err := <-errs; err != nil && firstErr == nil {
			firstErr = err
		}
	}
	return firstErr
}
