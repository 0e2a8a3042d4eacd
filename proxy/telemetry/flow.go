package telemetry

import (
	"net/netip"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// maxText bounds what a client may write into a flow record.
const maxText = 1024

// flowOf is a verdict as a flow record.
func flowOf(set *policy.Set, v *policy.Verdict, rec *Record, source netip.Addr) flow.Record {
	out := flow.Record{Time: time.Now().UTC(), Node: rec.Node, Direction: v.Direction.String(), Verdict: verdictOf(v), Layer: flow.Sidecar,
		Source: rec.Source.endpoint(source), Destination: rec.Destination.endpoint(rec.Asked.Addr().Unmap()),
		Protocol: policy.TCP.String(), Port: rec.Asked.Port(), Decision: flow.DecisionOf(set, v)}
	if rec.Method != "" {
		out.Request = &flow.Request{Method: clip(rec.Method), Path: clip(rec.Path), Host: clip(rec.Host)}
	}
	if v.Audit != nil {
		out.Audit = &flow.Audit{Verdict: verdictOf(v.Audit), Decision: flow.DecisionOf(set, v.Audit)}
	}
	return out
}

// Turned records a connection that was refused before any policy was asked,
// though policy is the reason.
func (o *Observer) Turned(direction policy.Direction, rec *Record, source netip.Addr, reason string) {
	o.flows.Offer(func() flow.Record {
		return flowOf(nil, &policy.Verdict{Direction: direction, Reason: reason}, rec, source)
	})
}

func verdictOf(v *policy.Verdict) string {
	if v.Action == policy.Allow {
		return flow.Allow
	}
	return flow.Deny
}

func (p *Party) endpoint(a netip.Addr) flow.Endpoint {
	return flow.Endpoint{Namespace: p.Namespace, Pod: p.Pod, Workload: p.Workload, Principal: p.Principal, Address: a}
}

// clip copies: the texts of a request lie in its connection's buffer, and a
// record outlives the request.
func clip(s string) string { return strings.Clone(s[:min(len(s), maxText)]) }
