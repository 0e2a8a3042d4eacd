// Package flow is the record of one verdict on one flow, in one shape for the
// kernel and the sidecars, and what carries records out of a process: a bounded
// ring, filters and a stream of JSON lines over HTTP.
//
// It owns the shape and the promise that telling never holds up traffic. It does
// not own how a verdict comes about (policy), how the kernel's drops are heard
// of (node/flows) or what a sidecar decides (proxy/telemetry).
package flow

import (
	"net/netip"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/policy"
)

// Layers that decide.
const (
	Kernel  = "kernel"
	Sidecar = "sidecar"
)

// Verdicts, as policy.Action says them.
const (
	Allow = "Allow"
	Deny  = "Deny"
)

// Record is one verdict. Its JSON form is kept between versions: fields are
// added, never renamed.
type Record struct {
	Time time.Time `json:"time"`
	// Node is the node on which it was decided.
	Node string `json:"node,omitempty"`
	// Direction is Ingress or Egress, seen from the pod whose policy decided.
	Direction string `json:"direction,omitempty"`
	Verdict   string `json:"verdict"`
	Layer     string `json:"layer"`

	Source      Endpoint `json:"source"`
	Destination Endpoint `json:"destination"`
	// Protocol is TCP, UDP, SCTP, ICMP, ICMPv6, or "protocol N".
	Protocol string `json:"protocol,omitempty"`
	// Port is the destination's; absent where the protocol has none, and for a
	// fragment that does not carry it.
	Port     uint16   `json:"port,omitempty"`
	ICMPType *uint8   `json:"icmpType,omitempty"`
	ICMPCode *uint8   `json:"icmpCode,omitempty"`
	Request  *Request `json:"request,omitempty"`

	Decision
	// Audit is what policies in Audit mode would have decided, where that differs.
	Audit *Audit `json:"audit,omitempty"`

	// Lost is how many records of this stream were left out before this one: the
	// reader, or the source's own limit, could not keep up.
	Lost uint64 `json:"lost,omitempty"`
}

// Endpoint is one end of a flow, as far as it is known.
type Endpoint struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Workload is the Deployment, StatefulSet, DaemonSet or Job that the pod
	// belongs to, or the pod itself.
	Workload string `json:"workload,omitempty"`
	// Node is set when the address is a node's.
	Node string `json:"node,omitempty"`
	// Principal is the SPIFFE ID that the end proved; empty when it proved none.
	Principal string     `json:"principal,omitempty"`
	Address   netip.Addr `json:"address,omitzero"`
}

// Request is the HTTP request, when the verdict is about one.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Host   string `json:"host,omitempty"`
}

// Decision is what decided.
type Decision struct {
	Tier string `json:"tier,omitempty"`
	// Policy and Rule are those that matched; empty when none did and a default
	// decided.
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	// Selecting is the policies of the tier that select the endpoint, none of
	// whose rules matched, when the tier's default decided.
	Selecting []string `json:"selecting,omitempty"`
	// Reason is one sentence.
	Reason string `json:"reason,omitempty"`
}

// Audit is a verdict that was not enforced.
type Audit struct {
	Verdict string `json:"verdict"`
	Decision
}

// maxSelecting bounds how many policies a record names for a tier's silence.
const maxSelecting = 8

// DecisionOf names what decided v; set is the policy that was asked.
func DecisionOf(set *policy.Set, v *policy.Verdict) Decision {
	d := Decision{Tier: v.Tier, Rule: v.Rule, Reason: v.Reason}
	if v.Policy != (policy.Ref{}) {
		d.Policy = v.Policy.String()
		return d
	}
	if v.Tier == "" || set == nil {
		return d
	}
	tiers := set.Tiers(v.Direction)
	for i := range tiers {
		if tiers[i].Name == v.Tier {
			d.Selecting = Selecting(&tiers[i])
		}
	}
	return d
}

// Selecting names the enforcing policies of a tier: the first few of them.
func Selecting(t *policy.Tier) []string {
	var refs []string
	for i := range t.Policies {
		if t.Policies[i].Mode == policy.Audit {
			continue
		}
		if len(refs) == maxSelecting {
			return append(refs, "and others")
		}
		refs = append(refs, t.Policies[i].Ref.String())
	}
	return refs
}

// Says ends a line for humans: by what it was decided, or why.
func (d *Decision) Says() string {
	switch {
	case d.Policy != "":
		s := "by " + d.Policy
		if d.Rule != "" {
			s += " rule " + d.Rule
		}
		return s + " (tier " + d.Tier + ")"
	case d.Tier != "" && len(d.Selecting) > 0:
		return "by " + strings.Join(d.Selecting, ", ") + " (tier " + d.Tier + ": no rule matched)"
	case d.Tier != "":
		return "by tier " + d.Tier + ": " + d.Reason
	}
	return "because " + d.Reason
}

// String is the end as a line for humans names it: its workload where that is
// known, else its pod, node, identity or address.
func (e *Endpoint) String() string {
	name := e.Workload
	if name == "" {
		name = e.Pod
	}
	switch {
	case name != "" && e.Namespace != "":
		return e.Namespace + "/" + name
	case e.Node != "":
		return "node " + e.Node
	case e.Principal != "":
		return e.Principal
	case e.Address.IsValid():
		return e.Address.String()
	}
	return "unknown"
}
