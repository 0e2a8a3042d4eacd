package manifest

import (
	"fmt"
	"net/netip"
	"strconv"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
)

// maxExcept is how many exceptions a network of ours may have.
const maxExcept = 100

// Prefix reads a CIDR, or an address for itself alone; host bits are cut off.
func Prefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, addrErr := netip.ParseAddr(text)
		if addrErr != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no address and no CIDR", text)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 address written as IPv6: write it as IPv4", text)
	}
	return p.Masked(), nil
}

// Everywhere is all addresses.
func Everywhere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

// Less is the addresses of nets that are not in except; none when nothing
// remains.
func Less(nets, except []netip.Prefix) ([]v1alpha1.Network, error) {
	var out []v1alpha1.Network
networks:
	for _, p := range nets {
		n := v1alpha1.Network{CIDR: p.String()}
		for _, e := range except {
			switch {
			case !e.Overlaps(p):
			case e.Bits() <= p.Bits():
				continue networks
			default:
				n.Except = append(n.Except, e.String())
			}
		}
		if len(n.Except) > maxExcept {
			return nil, fmt.Errorf("%s would have %d exceptions, and a network has at most %d: split it", p, len(n.Except), maxExcept)
		}
		out = append(out, n)
	}
	return out, nil
}

// Common is the addresses that are in both lists.
func Common(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range a {
		for _, y := range b {
			switch {
			case !x.Overlaps(y):
			case x.Bits() >= y.Bits():
				out = append(out, x)
			default:
				out = append(out, y)
			}
		}
	}
	return out
}

// Ports is an inclusive range.
type Ports struct{ First, Last uint16 }

// ParsePorts reads "80" or, with a separator, "80:90". Port 0 does not exist on
// the wire, so a range may begin with it.
func ParsePorts(text, separator string) (Ports, error) {
	first, last, isRange := text, text, false
	if separator != "" {
		for i := range text {
			if text[i:i+1] == separator {
				first, last, isRange = text[:i], text[i+1:], true
				break
			}
		}
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || b < a || b == 0 || a == 0 && !isRange {
		return Ports{}, fmt.Errorf("%q is no port from 1 to 65535 and no range of them", text)
	}
	return Ports{max(1, uint16(a)), uint16(b)}, nil
}

// AllPorts is every port.
func AllPorts() []Ports { return []Ports{{1, 65535}} }

// LessPorts is the ports of list that are not in except.
func LessPorts(list, except []Ports) []Ports {
	for _, e := range except {
		var rest []Ports
		for _, p := range list {
			if e.Last < p.First || e.First > p.Last {
				rest = append(rest, p)
				continue
			}
			if p.First < e.First {
				rest = append(rest, Ports{p.First, e.First - 1})
			}
			if p.Last > e.Last {
				rest = append(rest, Ports{e.Last + 1, p.Last})
			}
		}
		list = rest
	}
	return list
}

// CommonPorts is the ports that are in both lists.
func CommonPorts(a, b []Ports) []Ports {
	var out []Ports
	for _, x := range a {
		for _, y := range b {
			if p := (Ports{max(x.First, y.First), min(x.Last, y.Last)}); p.First <= p.Last {
				out = append(out, p)
			}
		}
	}
	return out
}

// RulePorts is the ranges as ports of a rule; all ports are none in particular.
func RulePorts(protocol string, list []Ports) []v1alpha1.RulePort {
	var out []v1alpha1.RulePort
	for _, p := range list {
		port := v1alpha1.RulePort{Protocol: protocol}
		if p != AllPorts()[0] {
			first := intstr.FromInt32(int32(p.First))
			port.Port = &first
			if p.Last != p.First {
				last := int32(p.Last)
				port.EndPort = &last
			}
		}
		out = append(out, port)
	}
	return out
}
