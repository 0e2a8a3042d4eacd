package telemetry

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// TestVerdictsBecomeFlows: denials and audits always, allowed requests only
// while somebody asks.
func TestVerdictsBecomeFlows(t *testing.T) {
	var access, log bytes.Buffer
	o := newObserver(&access, &log)
	ref := policy.Ref{Kind: "MeshPolicy", Namespace: "bank", Name: "get"}
	set := &policy.Set{Ingress: []policy.Tier{{Name: "app", Policies: []policy.Policy{{Ref: ref}}}}}
	source := netip.MustParseAddr("10.0.0.1")
	rec := Record{Direction: Inbound, Protocol: ProtocolHTTP1, Method: "PUT", Path: "/v2/" + strings.Repeat("x", 5000), Host: "db", Node: "n1",
		Source:      Party{Principal: "spiffe://x/ns/bank/sa/customer", Namespace: "bank", Workload: "customer", Pod: "customer-1"},
		Destination: Party{Namespace: "bank", Workload: "database", Pod: "database-0"}, Asked: netip.MustParseAddrPort("[::ffff:10.0.0.2]:2379")}
	base := flow.Record{Node: "n1", Direction: "Ingress", Layer: flow.Sidecar, Protocol: "TCP", Port: 2379,
		Source:      flow.Endpoint{Namespace: "bank", Pod: "customer-1", Workload: "customer", Principal: "spiffe://x/ns/bank/sa/customer", Address: source},
		Destination: flow.Endpoint{Namespace: "bank", Pod: "database-0", Workload: "database", Address: netip.MustParseAddr("10.0.0.2")},
		Request:     &flow.Request{Method: "PUT", Path: rec.Path[:maxText], Host: "db"}}
	denied := flow.Decision{Tier: "app", Selecting: []string{ref.String()}, Reason: policy.ReasonTierDefault}
	would := policy.Verdict{Tier: "app", Reason: policy.ReasonTierDefault}
	allow := policy.Verdict{Action: policy.Allow, Tier: "app", Policy: ref, Rule: "r", Reason: policy.ReasonRule}
	audited := allow
	audited.Audit = &would

	_, denials := o.flows.Subscribe(flow.Filter{Verdict: flow.Deny})
	defer denials.Close()
	o.Decision(set, &allow, &rec, source)
	o.Decision(set, &would, &rec, source)
	o.Decision(set, &audited, &rec, source)
	o.Turned(policy.Ingress, &rec, source, "plaintext")
	_, all := o.flows.Subscribe(flow.Filter{})
	defer all.Close()
	o.Decision(set, &allow, &rec, source)

	with := func(change func(*flow.Record)) flow.Record { r := base; change(&r); return r }
	allowed := flow.Decision{Tier: "app", Policy: ref.String(), Rule: "r", Reason: policy.ReasonRule}
	want := []flow.Record{
		with(func(r *flow.Record) { r.Verdict, r.Decision = flow.Deny, denied }),
		with(func(r *flow.Record) {
			r.Verdict, r.Decision, r.Audit = flow.Allow, allowed, &flow.Audit{Verdict: flow.Deny, Decision: denied}
		}),
		with(func(r *flow.Record) { r.Verdict, r.Decision = flow.Deny, flow.Decision{Reason: "plaintext"} }),
	}
	var got []flow.Record
	for range want {
		got = append(got, <-denials.Records())
	}
	got, want = append(got, <-all.Records()), append(want, with(func(r *flow.Record) { r.Verdict, r.Decision = flow.Allow, allowed }))
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(flow.Record{}, "Time"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if len(denials.Records()) != 0 {
		t.Error("an allowed request was told to a reader of denials")
	}
}

// TestNobodyPaysForFlows: an allowed request that nobody asks for costs nothing
// more than before.
func TestNobodyPaysForFlows(t *testing.T) {
	var access, log bytes.Buffer
	o := newObserver(&access, &log)
	allow := policy.Verdict{Action: policy.Allow, Tier: "app", Policy: policy.Ref{Kind: "MeshPolicy", Name: "a"}, Rule: "r"}
	rec := Record{Direction: Inbound, Protocol: ProtocolHTTP1}
	set := &policy.Set{}
	o.Decision(set, &allow, &rec, netip.Addr{})
	if n := testing.AllocsPerRun(100, func() { o.Decision(set, &allow, &rec, netip.Addr{}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
