package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// kernelDrop is the word of node1's agent on a drop at the database: it knows
// the pods of its own node only.
func kernelDrop(second int, source netip.Addr) flow.Record {
	return flow.Record{Time: today.Add(time.Duration(second) * time.Second), Node: "node1", Direction: "Ingress", Verdict: flow.Deny, Layer: flow.Kernel,
		Source: flow.Endpoint{Address: source}, Destination: flow.Endpoint{Namespace: "yaobank", Pod: "database-1", Workload: "database", Address: addr("10.244.1.6")},
		Protocol: "TCP", Port: 2379, Decision: flow.Decision{Tier: "default", Selecting: []string{"NetworkPolicy yaobank/database-policy"},
			Reason: "no rule of the policies that select the endpoint matched"}}
}

func lines(t *testing.T, records ...flow.Record) string {
	t.Helper()
	var b strings.Builder
	for i := range records {
		if err := json.NewEncoder(&b).Encode(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// someFlows are verdicts of two agents and two sidecars.
func someFlows(t *testing.T, f *fake) {
	echo, zero := uint8(8), uint8(0)
	ping := kernelDrop(3, addr("198.51.100.7"))
	ping.Protocol, ping.Port, ping.ICMPType, ping.ICMPCode, ping.Lost = "ICMP", 0, &echo, &zero, 12
	f.page("hauberk-node-1", "/flows", lines(t, kernelDrop(1, addr("10.244.1.5")), ping, kernelDrop(5, addr("10.244.1.7"))))
	spoofed := flow.Record{Time: today.Add(6 * time.Second), Node: "node2", Direction: "Egress", Verdict: flow.Deny, Layer: flow.Kernel,
		Source: flow.Endpoint{Address: addr("2001:db8::1")}, Destination: flow.Endpoint{Address: addr("fd00::9")}, Protocol: "UDP", Port: 53,
		Decision: flow.Decision{Reason: "the source is not the pod's own address"}}
	f.page("hauberk-node-2", "/flows", lines(t, spoofed))
	request := flow.Record{Time: today.Add(2 * time.Second), Node: "node1", Direction: "Ingress", Verdict: flow.Deny, Layer: flow.Sidecar,
		Source: flow.Endpoint{Namespace: "yaobank", Pod: "customer-1", Workload: "customer", Principal: "spiffe://cluster.local/ns/yaobank/sa/customer",
			Address: addr("10.244.1.5")},
		Destination: flow.Endpoint{Namespace: "yaobank", Pod: "database-1", Workload: "database", Address: addr("10.244.1.6")},
		Protocol:    "TCP", Port: 2379, Request: &flow.Request{Method: "PUT", Path: "/v2/keys\x1b[2J", Host: "database"},
		Decision: flow.Decision{Tier: "application", Policy: "MeshPolicy yaobank/database-reads", Rule: "no-writes", Reason: "the rule matched"}}
	audited := request
	audited.Time, audited.Verdict, audited.Request = today.Add(7*time.Second), flow.Allow, &flow.Request{Method: "GET", Path: "/v2/keys/a", Host: "database"}
	audited.Audit = &flow.Audit{Verdict: flow.Deny, Decision: flow.Decision{Tier: "security", Policy: "ClusterMeshPolicy trial", Rule: "reads"}}
	f.page("database-1", "/flows", lines(t, request, audited))
	f.page("customer-1", "/flows", "")
}

// TestFlowsFollow follows sources that speak over real sockets, one of which
// can't hear its kernel.
func TestFlowsFollow(t *testing.T) {
	f := newFake(t)
	rings := map[string]*flow.Ring{}
	servers := map[string]*httptest.Server{}
	for _, pod := range []string{"hauberk-node-1", "hauberk-node-2", "customer-1", "database-1"} {
		rings[pod] = flow.NewRing(10, 0)
		problem := ""
		if pod == "hauberk-node-2" {
			problem = "the kernel can't log"
		}
		servers[pod] = httptest.NewServer(flow.Handler(rings[pod], func() string { return problem }))
		defer servers[pod].Close()
		defer rings[pod].Close()
	}
	rings["hauberk-node-1"].Add(kernelDrop(1, addr("10.244.1.5")))
	r, w := io.Pipe()
	var errOut bytes.Buffer
	env := &run.Env{Output: run.Output{Out: w, Err: &errOut}, Now: func() time.Time { return today }}
	env.Connect = func() (*run.Clients, error) {
		return &run.Clients{Kube: f.kube, Dynamic: f.dyn, Extensions: f.ext, DialPod: func(ctx context.Context, _, pod string, _ int) (net.Conn, error) {
			s, ok := servers[pod]
			if !ok {
				return nil, fmt.Errorf("no pod %s", pod)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
		}}, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, env, []string{"flows", "-f", "-n", "yaobank", "--verdict", "all", "-o", "json"})
		w.Close()
	}()
	got := json.NewDecoder(r)
	next := func() (rec flow.Record) {
		t.Helper()
		if err := got.Decode(&rec); err != nil {
			t.Fatalf("%v; standard error: %s", err, errOut.String())
		}
		return rec
	}
	if rec := next(); rec.Source.Workload != "customer-1" || rec.Destination.Workload != "database" {
		t.Errorf("what is kept: from %v to %v", rec.Source, rec.Destination)
	}
	// Allowed requests are told from the moment that somebody asks for them.
	for !rings["database-1"].Wants(flow.Allow) {
		if ctx.Err() != nil {
			t.Fatal("the sidecar is not asked for allowed requests")
		}
		time.Sleep(time.Millisecond)
	}
	rings["database-1"].Add(flow.Record{Time: today.Add(time.Minute), Verdict: flow.Allow, Layer: flow.Sidecar, Port: 2,
		Destination: flow.Endpoint{Namespace: "yaobank", Pod: "database-1"}})
	if rec := next(); rec.Port != 2 {
		t.Errorf("then %+v", rec)
	}
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
	if n := strings.Count(errOut.String(), "node node2 tells nothing: the kernel can't log"); n != 1 {
		t.Errorf("the deaf node is named %d times: %s", n, errOut.String())
	}
}

// TestFlowsOfAnOlderMesh: what does not tell flows is named.
func TestFlowsOfAnOlderMesh(t *testing.T) {
	f := newFake(t)
	code, _, errOut := f.run("", "flows", "-A")
	if code != run.ExitRuntime || !strings.Contains(errOut, "of a version of the mesh that tells no flows") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}
