package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Layers that enforce.
const (
	kernel  = "kernel"
	sidecar = "sidecar"
)

// Side is the decision of one end.
type Side struct {
	Direction string `json:"direction"`
	Action    string `json:"action"`
	Tier      string `json:"tier,omitempty"`
	// Policy and Rule decided; empty when a default did.
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	// Selecting are the policies of the tier whose default decided.
	Selecting []string `json:"selecting,omitempty"`
	// Layer enforces it: kernel or sidecar; empty where nothing is policed.
	Layer  string `json:"layer,omitempty"`
	Reason string `json:"reason"`
	// Audit is what would be decided if policies in Audit mode were enforced.
	Audit string   `json:"audit,omitempty"`
	Logs  []string `json:"logs,omitempty"`
}

func (s *Side) allowed() bool { return s.Action == policy.Allow.String() }

// Answer is the whole answer.
type Answer struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Allowed    bool     `json:"allowed"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Protocol   string   `json:"protocol"`
	Port       uint16   `json:"port,omitempty"`
	MTLS       bool     `json:"mtls"`
	Request    string   `json:"request,omitempty"`
	Egress     Side     `json:"egress"`
	Ingress    Side     `json:"ingress"`
	Notes      []string `json:"notes,omitempty"`
	Trace      []string `json:"trace,omitempty"`

	// differ are other pods of the same names for which the answer is another.
	differ []string
}

// question is a flow between resolved ends.
type question struct {
	from, to *end
	protocol policy.Protocol
	port     uint16
	icmpType uint8
	icmpCode uint8
	noMTLS   bool
	http     *policy.HTTPRequest
	// trace keeps what was looked at.
	trace bool
}

// decide asks the model at both ends, and then what each end's enforcement can
// see of the flow.
func (w *world) decide(q *question) *Answer {
	a := &Answer{From: q.from.String(), To: q.to.String(), Protocol: q.protocol.String(), Port: q.port}
	flow := policy.Flow{
		Source: q.from.endpoint, Destination: q.to.endpoint, Protocol: q.protocol, Port: q.port, ICMPType: q.icmpType,
		ICMPCode: q.icmpCode, HTTP: q.http,
	}
	fromSees := w.seen(q.from, policy.Egress, &flow)
	toSees := w.seen(q.to, policy.Ingress, &flow)
	flow.MTLS = fromSees && toSees && !q.noMTLS
	a.MTLS = flow.MTLS
	if !flow.MTLS {
		flow.Source.Principal, flow.Destination.Principal = "", ""
	}
	a.Egress = w.side(q.from, policy.Egress, &flow, fromSees, a)
	a.Ingress = w.side(q.to, policy.Ingress, &flow, toSees, a)
	if q.trace {
		w.trace(q, &flow, a)
	}
	w.strict(q, &flow, toSees, a)
	a.Allowed = a.Egress.allowed() && a.Ingress.allowed()
	for _, n := range w.notes(q, fromSees, toSees) {
		a.note("%s", n)
	}
	return a
}

// seen reports whether the pod's sidecar sees the flow.
func (w *world) seen(e *end, d policy.Direction, f *policy.Flow) bool {
	if e.pod == nil || !e.pod.Meshed || e.pod.HostNetwork || f.Protocol != policy.TCP {
		return false
	}
	c := &e.pod.Capture
	if d == policy.Ingress {
		return c.Redirected(f.Port)
	}
	return !slices.Contains(c.ExcludeOutboundPorts, f.Port) &&
		!slices.ContainsFunc(c.ExcludeOutboundCIDRs, func(p netip.Prefix) bool { return p.Contains(f.Destination.Addr) })
}

// side decides one end as it is enforced: what no sidecar sees passes only if
// every completion of it is allowed.
func (w *world) side(e *end, d policy.Direction, f *policy.Flow, sees bool, a *Answer) Side {
	out := Side{Direction: d.String()}
	if e.pod == nil || e.endpoint.Host {
		out.Action, out.Reason = policy.Allow.String(), policy.ReasonNoPod
		return out
	}
	set := w.resources.SetOf(e.pod.UID)
	verdict := set.Evaluate(d, f)
	out.Action, out.Tier, out.Rule, out.Reason = verdict.Action.String(), verdict.Tier, verdict.Rule, verdict.Reason
	if verdict.Policy.Name != "" {
		out.Policy = verdict.Policy.String()
	}
	if verdict.Reason == policy.ReasonTierDefault {
		out.Selecting = selecting(set, &verdict)
	}
	if verdict.Audit != nil {
		out.Audit = verdict.Audit.String()
	}
	for _, l := range verdict.Logs {
		out.Logs = append(out.Logs, fmt.Sprintf("%s, rule %s", l.Policy, l.Rule))
	}
	if verdict.Reason == policy.ReasonSelf || verdict.Reason == policy.ReasonOwnNode {
		return out // no layer polices it
	}
	projection := policy.AllDenied
	if set != nil {
		projection = set.Project(d, f)
	}
	out.Layer = kernel
	switch {
	case projection != policy.Mixed:
	case sees:
		out.Layer = sidecar
	case verdict.Allowed():
		out.Action = policy.Deny.String()
		out.Reason = "it depends on the request or on the identity, which only a sidecar sees, and none sees this: the kernel then drops it"
		if e.pod.Meshed {
			a.note("%s of %s is excluded from capture: its rules with http or requires.mtls can never allow there", portName(f), e)
		} else {
			a.note("its rules with http, principals or requires.mtls can never allow at %s: put it into the mesh", e)
		}
	}
	if f.HTTP == nil && sees && !verdict.Allowed() && set != nil && set.ProjectConnection(d, f) == policy.Mixed {
		a.note("this is for a connection that is not HTTP; %s depends on the request: ask with --method and --path", strings.ToLower(d.String()))
	}
	return out
}

// trace is how each end came to its verdict.
func (w *world) trace(q *question, f *policy.Flow, a *Answer) {
	for _, end := range []struct {
		*end
		direction policy.Direction
	}{{q.from, policy.Egress}, {q.to, policy.Ingress}} {
		if end.pod == nil || end.endpoint.Host {
			continue
		}
		trace := policy.Trace{Verdict: policy.Verdict{Direction: end.direction, Reason: policy.ReasonNoSet}}
		if set := w.resources.SetOf(end.pod.UID); set != nil {
			trace = set.Explain(end.direction, f)
		}
		a.Trace = append(a.Trace, trace.String())
	}
}

func portName(f *policy.Flow) string { return fmt.Sprintf("%s %d", f.Protocol, f.Port) }

// strict applies PeerAuthentication: the sidecar refuses plain connections
// before it asks for policy.
func (w *world) strict(q *question, f *policy.Flow, toSees bool, a *Answer) {
	if !toSees || f.MTLS || a.Ingress.Layer == kernel && !a.Ingress.allowed() {
		return
	}
	wl := w.resources.Workloads[q.to.pod.UID]
	mode := wl.GetMtlsMode()
	if m, ok := wl.GetPortMtlsModes()[uint32(f.Port)]; ok {
		mode = m
	}
	if mode != hauberkv1.MTLSMode_MTLS_MODE_STRICT {
		return
	}
	a.Ingress = Side{
		Direction: policy.Ingress.String(), Action: policy.Deny.String(), Layer: sidecar, Policy: w.strictPolicies(q.to.pod),
		Reason: fmt.Sprintf("port %d takes mTLS only (STRICT), and this connection would be plain", f.Port),
	}
}

// strictPolicies names the PeerAuthentications of a pod that are strict.
func (w *world) strictPolicies(p *compile.Pod) string {
	text := ""
	for _, r := range w.resources.PeerAuthentications {
		if !slices.Contains(r.Subjects, p.UID) {
			continue
		}
		i := slices.IndexFunc(w.facts.PeerAuthentications, func(f compile.PeerAuthentication) bool {
			return f.Ref.Namespace == r.Ref.Namespace && f.Ref.Name == r.Ref.Name
		})
		if i < 0 {
			continue
		}
		f := &w.facts.PeerAuthentications[i]
		strictPort := false
		for _, s := range f.PortStrict {
			strictPort = strictPort || s
		}
		if f.Strict || f.Invalid != "" || strictPort {
			if text != "" {
				text += ", "
			}
			text += r.Ref.String()
		}
	}
	return text
}

// selecting is the enforcing policies of the tier whose default decided.
func selecting(s *policy.Set, v *policy.Verdict) []string {
	var refs []string
	for _, t := range s.Tiers(v.Direction) {
		if t.Name != v.Tier {
			continue
		}
		for i := range t.Policies {
			if t.Policies[i].Mode == policy.Enforce {
				refs = append(refs, t.Policies[i].Ref.String())
			}
		}
	}
	return refs
}

func (a *Answer) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(a.Notes, text) {
		a.Notes = append(a.Notes, text)
	}
}

// notes is what the reader may not expect of the ends.
func (w *world) notes(q *question, fromSees, toSees bool) []string {
	var notes []string
	for _, e := range []*end{q.from, q.to} {
		switch {
		case e.asked == "world":
			notes = append(notes, fmt.Sprintf("world is asked with the address %s; rules with networks may see others differently", e.endpoint.Addr))
		}
		if e.pod == nil {
			continue
		}
		switch {
		case e.pod.HostNetwork:
			notes = append(notes, fmt.Sprintf("%s is on the network of its node: it is outside of the mesh and no subject of pod policy; peers see it as node %s", e, e.pod.Node))
		case len(e.pod.Addresses) == 0:
			notes = append(notes, fmt.Sprintf("%s has no address yet: rules with networks cannot match it", e))
		}
		if e.pod.Terminating {
			notes = append(notes, fmt.Sprintf("%s is being deleted", e))
		}
		if !e.pod.Meshed && !e.pod.HostNetwork {
			notes = append(notes, fmt.Sprintf("%s has no sidecar: its connections are plain and it proves no identity", e))
		}
	}
	if q.protocol == policy.TCP {
		if q.from.pod != nil && q.from.pod.Meshed && !fromSees {
			notes = append(notes, fmt.Sprintf("%s is excluded from capture at %s: its connection there is plain", portOf(q), q.from))
		}
		if q.to.pod != nil && q.to.pod.Meshed && !toSees {
			notes = append(notes, fmt.Sprintf("%s is excluded from capture at %s: connections there are plain", portOf(q), q.to))
		}
	}
	return notes
}

func portOf(q *question) string { return fmt.Sprintf("%s %d", q.protocol, q.port) }
