// Package authz asks the policy model about connections and requests with the
// facts that a sidecar has, and words the refusals.
//
// It owns how facts become a policy.Flow. It does not own the meaning of
// policies (policy) or where facts come from (proxy/directory).
package authz

import (
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
)

// named is how many policies a refusal by a tier's default names.
const named = 3

// Flow makes a TCP flow without a request.
func Flow(source, destination policy.Endpoint, port uint16, mtls bool) policy.Flow {
	return policy.Flow{Source: source, Destination: destination, Protocol: policy.TCP, Port: port, MTLS: mtls}
}

// Doubt is what is not known about a flow and that could only turn an Allow
// into a Deny. The zero Doubt is none.
type Doubt struct {
	// Unread: the connection may carry requests that this sidecar can't read.
	Unread bool
	// Peer: the peer is or may be a pod about which the control plane has not
	// told.
	Peer bool
}

// The reasons of what is denied in doubt.
const (
	ReasonUnread = "rules about requests apply here, and the connection may carry requests that the sidecar can't read"
	ReasonPeer   = "rules that deny pods by selectors apply here, and the control plane has not told about the peer's pod"
)

// Decide is the verdict of set in which doubt never allows: policy.Evaluate
// takes what it is not told for absent, and a Deny does not match what is
// absent.
func Decide(set *policy.Set, d policy.Direction, f *policy.Flow, doubt Doubt) policy.Verdict {
	v := set.Evaluate(d, f)
	switch {
	case !v.Allowed():
	case doubt.Unread && f.HTTP == nil && set.ProjectConnection(d, f) != policy.AllAllowed:
		return policy.Verdict{Action: policy.Deny, Direction: d, Reason: ReasonUnread, Logs: v.Logs}
	case doubt.Peer && selects(set, d):
		return policy.Verdict{Action: policy.Deny, Direction: d, Reason: ReasonPeer, Logs: v.Logs}
	}
	return v
}

// selects reports whether a rule that does not allow selects peers by what
// only the control plane knows of them.
func selects(set *policy.Set, d policy.Direction) bool {
	for _, t := range set.Tiers(d) {
		for i := range t.Policies {
			p := &t.Policies[i]
			if p.Mode != policy.Enforce {
				continue
			}
			for j := range p.Rules {
				if r := &p.Rules[j]; r.Action != policy.Allow && r.Action != policy.Log && slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.SelectsWorkloads() }) {
					return true
				}
			}
		}
	}
	return false
}

// PolicyOf is the policy's part of a workload, nil for none.
func PolicyOf(w *directory.Workload) *policy.Workload {
	if w == nil {
		return nil
	}
	return w.Workload
}

// Refusal is the one line that users read when the verdict v of set denies.
func Refusal(set *policy.Set, v *policy.Verdict) string {
	var b strings.Builder
	b.WriteString("hauberk: denied by ")
	switch {
	case v.Policy != (policy.Ref{}):
		b.WriteString(v.Policy.String())
		b.WriteString(" rule ")
		b.WriteString(v.Rule)
		b.WriteString(" (tier ")
		b.WriteString(v.Tier)
		b.WriteString(")")
	case v.Tier != "":
		b.WriteString("tier ")
		b.WriteString(v.Tier)
		b.WriteString(": no rule of ")
		b.WriteString(selecting(set, v))
		b.WriteString(" matched")
	default:
		b.WriteString("default: ")
		b.WriteString(v.Reason)
	}
	b.WriteString(", ")
	b.WriteString(strings.ToLower(v.Direction.String()))
	return b.String()
}

// Name is what decided, in few words, for logs, spans and metrics.
func Name(v *policy.Verdict) string {
	switch {
	case v.Policy != (policy.Ref{}):
		return v.Policy.String()
	case v.Tier != "":
		return "tier " + v.Tier
	}
	return ""
}

// selecting names the enforcing policies of the tier that decided by default.
func selecting(set *policy.Set, v *policy.Verdict) string {
	var refs []string
	more := false
	if set != nil {
		for _, t := range set.Tiers(v.Direction) {
			if t.Name != v.Tier {
				continue
			}
			for i := range t.Policies {
				if t.Policies[i].Mode != policy.Enforce {
					continue
				}
				if len(refs) == named {
					more = true
					break
				}
				refs = append(refs, t.Policies[i].Ref.String())
			}
		}
	}
	switch {
	case len(refs) == 0:
		return "the policies that select the endpoint"
	case more:
		return strings.Join(refs, ", ") + " and others"
	}
	return strings.Join(refs, ", ")
}
