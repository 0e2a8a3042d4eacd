package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// The chains, each of which exists for IPv4 and for IPv6.
const (
	ChainOutput     = "HAUBERK_OUTPUT"
	ChainPrerouting = "HAUBERK_PREROUTING"
	ChainGuard      = "HAUBERK_GUARD"
)

// multiportMax is how many ports one multiport match takes (XT_MULTI_PORTS).
const multiportMax = 15

// Rules is what a pod's annotations change about its redirection. The zero
// Rules redirect everything.
type Rules struct {
	ExcludeInboundPorts  []uint16       `json:"excludeInboundPorts,omitempty"`
	ExcludeOutboundPorts []uint16       `json:"excludeOutboundPorts,omitempty"`
	ExcludeOutboundCIDRs []netip.Prefix `json:"excludeOutboundCIDRs,omitempty"`
	// IncludeInboundPorts limits inbound redirection to these ports; empty means
	// all.
	IncludeInboundPorts []uint16 `json:"includeInboundPorts,omitempty"`
}

func (r Rules) validate() error {
	for _, p := range r.ExcludeOutboundCIDRs {
		if !p.IsValid() {
			return fmt.Errorf("an address range to exclude is not valid")
		}
	}
	for _, ports := range [][]uint16{r.ExcludeInboundPorts, r.ExcludeOutboundPorts, r.IncludeInboundPorts} {
		if slices.Contains(ports, 0) {
			return fmt.Errorf("port 0 can't be excluded or included")
		}
	}
	return nil
}

// jump leads from a built-in chain to one of ours.
type jump struct{ table, from, to string }

// jumps in the order in which they are put in place.
var jumps = []jump{
	{"raw", "PREROUTING", ChainGuard},
	{"nat", "PREROUTING", ChainPrerouting},
	{"nat", "OUTPUT", ChainOutput},
}

func (j jump) spec() []string { return []string{"-p", "tcp", "-j", j.to} }

// String is the rule as iptables -S prints it.
func (j jump) String() string { return "-A " + j.from + " " + strings.Join(j.spec(), " ") }

// chains is each chain's rules as iptables -S prints them, which
// iptables-restore reads as well.
func (r Rules) chains(ipv6 bool) map[string][]string {
	tcp := func(chain string, ports []uint16, target string) []string {
		var lines []string
		for chunk := range slices.Chunk(sorted(ports), multiportMax) {
			lines = append(lines, fmt.Sprintf("-A %s -p tcp -m multiport --dports %s -j %s", chain, join(chunk), target))
		}
		return lines
	}
	toInbound := "REDIRECT --to-ports " + strconv.Itoa(names.PortInbound)
	toOutbound := "REDIRECT --to-ports " + strconv.Itoa(names.PortOutbound)

	out := []string{
		// The sidecar dials the pod's own address over loopback, too.
		"-A " + ChainOutput + " -o lo -j RETURN",
		fmt.Sprintf("-A %s -m owner --uid-owner %d -j RETURN", ChainOutput, names.ProxyUID),
	}
	for _, p := range r.prefixes(ipv6) {
		if p.Bits() == 0 {
			// iptables knows "any" by the absence of an address.
			out = append(out, "-A "+ChainOutput+" -j RETURN")
			continue
		}
		out = append(out, fmt.Sprintf("-A %s -d %s -j RETURN", ChainOutput, p))
	}
	out = append(out, tcp(ChainOutput, r.ExcludeOutboundPorts, "RETURN")...)
	out = append(out, "-A "+ChainOutput+" -p tcp -j "+toOutbound)

	in := []string{"-A " + ChainPrerouting + " -i lo -j RETURN"}
	in = append(in, tcp(ChainPrerouting, append([]uint16{names.PortMetrics, names.PortHealth}, r.ExcludeInboundPorts...), "RETURN")...)
	if len(r.IncludeInboundPorts) > 0 {
		in = append(in, tcp(ChainPrerouting, r.IncludeInboundPorts, toInbound)...)
	} else {
		in = append(in, "-A "+ChainPrerouting+" -p tcp -j "+toInbound)
	}

	guard := []string{fmt.Sprintf(
		"-A %s ! -i lo -p tcp -m multiport --dports %s -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
		ChainGuard, join([]uint16{names.PortAdmin, names.PortOutbound, names.PortInbound}))}
	return map[string][]string{ChainOutput: out, ChainPrerouting: in, ChainGuard: guard}
}

// restoreText is the input of iptables-restore --noflush: naming a chain
// empties it, and each table is one transaction.
func (r Rules) restoreText(ipv6 bool) string {
	chains := r.chains(ipv6)
	var b strings.Builder
	for _, table := range []struct {
		name   string
		chains []string
	}{{"raw", []string{ChainGuard}}, {"nat", []string{ChainPrerouting, ChainOutput}}} {
		fmt.Fprintf(&b, "*%s\n", table.name)
		for _, chain := range table.chains {
			fmt.Fprintf(&b, ":%s - [0:0]\n", chain)
		}
		for _, chain := range table.chains {
			for _, line := range chains[chain] {
				b.WriteString(line + "\n")
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// prefixes is the excluded ranges of one family, in a canonical order and form.
func (r Rules) prefixes(ipv6 bool) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range r.ExcludeOutboundCIDRs {
		addr, bits := p.Addr(), p.Bits()
		if addr.Is4In6() && bits >= 96 {
			addr, bits = addr.Unmap(), bits-96
		}
		if addr.Is4() != ipv6 {
			ps = append(ps, netip.PrefixFrom(addr, bits).Masked())
		}
	}
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(ps)
}

func sorted(ports []uint16) []uint16 {
	s := slices.Clone(ports)
	slices.Sort(s)
	return slices.Compact(s)
}

func join(ports []uint16) string {
	var s []string
	for _, p := range ports {
		s = append(s, strconv.Itoa(int(p)))
	}
	return strings.Join(s, ",")
}
