package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hauberk-mesh/hauberk/policy"
)

// reasons collects why something can't be resolved.
type reasons []string

func (r *reasons) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

func (r reasons) String() string { return strings.Join(r, "; ") }

// selectorFrom converts a label selector; nil stays nil. A requirement that
// can't be resolved is left out and told: what is left selects at least what
// the whole would.
func selectorFrom(s *metav1.LabelSelector, place string, why *reasons) *policy.Selector {
	if s == nil {
		return nil
	}
	selector := &policy.Selector{}
	keys := make([]string, 0, len(s.MatchLabels))
	for k := range s.MatchLabels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		selector.Requirements = append(selector.Requirements,
			policy.Requirement{Key: k, Operator: policy.In, Values: []string{s.MatchLabels[k]}})
	}
	for i, e := range s.MatchExpressions {
		r := policy.Requirement{Key: e.Key, Values: slices.Clone(e.Values)}
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			r.Operator = policy.In
		case metav1.LabelSelectorOpNotIn:
			r.Operator = policy.NotIn
		case metav1.LabelSelectorOpExists:
			r.Operator = policy.Exists
		case metav1.LabelSelectorOpDoesNotExist:
			r.Operator = policy.DoesNotExist
		default:
			why.add("%s.matchExpressions[%d]: operator %q: use In, NotIn, Exists or DoesNotExist", place, i, e.Operator)
			continue
		}
		needsValues := r.Operator == policy.In || r.Operator == policy.NotIn
		switch {
		case needsValues && len(r.Values) == 0:
			why.add("%s.matchExpressions[%d]: operator %s needs values", place, i, e.Operator)
			continue
		case !needsValues && len(r.Values) > 0:
			why.add("%s.matchExpressions[%d]: operator %s takes no values", place, i, e.Operator)
			continue
		case r.Key == "":
			why.add("%s.matchExpressions[%d]: key is missing", place, i)
			continue
		}
		selector.Requirements = append(selector.Requirements, r)
	}
	return selector
}

// networkFrom converts an address range with exceptions. A broken exception is
// left out and told.
func networkFrom(cidr string, except []string, place string, why *reasons) (policy.Network, bool) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || p.Addr().Is4In6() {
		why.add("%s: %q is no CIDR: write address/length, such as 10.0.0.0/8", place, cidr)
		return policy.Network{}, false
	}
	n := policy.Network{Prefix: p.Masked()}
	for i, text := range except {
		e, err := netip.ParsePrefix(text)
		if err != nil || e.Addr().Is4In6() {
			why.add("%s.except[%d]: %q is no CIDR: write address/length, such as 10.1.0.0/16", place, i, text)
			continue
		}
		e = e.Masked()
		if e.Addr().Is4() != n.Prefix.Addr().Is4() || e.Bits() < n.Prefix.Bits() || !n.Prefix.Contains(e.Addr()) {
			why.add("%s.except[%d]: %s is not inside %s", place, i, e, n.Prefix)
			continue
		}
		n.Except = append(n.Except, e)
	}
	return n, true
}

// portFrom converts a port of a rule; false when it can't be resolved.
func portFrom(protocol policy.Protocol, port *intstr.IntOrString, endPort *int32, place string, why *reasons) (policy.PortMatch, bool) {
	m := policy.PortMatch{Protocol: protocol}
	if port == nil {
		if endPort != nil {
			why.add("%s: endPort needs port", place)
			return m, false
		}
		return m, true
	}
	if port.Type == intstr.String {
		if endPort != nil {
			why.add("%s: endPort needs a port number, not the name %q", place, port.StrVal)
			return m, false
		}
		if problems := validation.IsValidPortName(port.StrVal); len(problems) > 0 {
			why.add("%s: %q is no port name: %s", place, port.StrVal, strings.Join(problems, ", "))
			return m, false
		}
		m.Name = port.StrVal
		return m, true
	}
	if port.IntVal < 1 || port.IntVal > 65535 {
		why.add("%s: port %d is not 1 to 65535", place, port.IntVal)
		return m, false
	}
	m.Port = uint16(port.IntVal)
	if endPort != nil {
		if *endPort < port.IntVal || *endPort > 65535 {
			why.add("%s: endPort %d is not %d to 65535", place, *endPort, port.IntVal)
			return m, false
		}
		m.EndPort = uint16(*endPort)
	}
	return m, true
}
