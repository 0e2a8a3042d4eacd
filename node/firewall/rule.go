package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// line is one rule as nft reads it.
type line struct {
	text    string
	comment string // at most 128 bytes
}

// rule is what policy says of the packets of a flow that match all conditions.
// It is rendered twice: for packets in the flow's own direction, and back, for
// its replies, whose fields stand the other way round.
type rule struct {
	conds   []cond
	to      verdict
	next    string // the chain of a verdict that goes on
	quiet   bool   // without a counter
	drop    *Drop  // of deny: what is told
	comment string
}

// family is the IP version that a rule is for; empty for both.
func (r *rule) family() string {
	for i := range r.conds {
		if f := r.conds[i].family; f != "" {
			return f
		}
	}
	return ""
}

// verdict is where a rule leads. The zero value drops.
type verdict uint8

const (
	deny verdict = iota
	pass         // leaves the group's chains
	goOn         // to the chain next
)

// lines renders a rule; none when no packet of that direction can match it.
func (r *rule) lines(back, logs bool) []line {
	texts := make([]string, 0, len(r.conds)+1)
	for i := range r.conds {
		text, possible := r.conds[i].text(back)
		if !possible {
			return nil
		}
		texts = append(texts, text)
	}
	match := strings.Join(texts, " ")
	counter := "counter "
	if r.quiet {
		counter = ""
	}
	switch r.to {
	case pass:
		return []line{{join(match, counter+"return"), r.comment}}
	case goOn:
		next := r.next
		if back {
			next = backChain(next)
		}
		return []line{{join(match, counter+"goto "+next), r.comment}}
	}
	return dropLines(match, r.comment, r.drop, back, logs)
}

// dropLines drop what matches, and tell of it first.
func dropLines(match, comment string, d *Drop, back, logs bool) []line {
	drop := line{join(match, "counter drop"), comment}
	if !logs {
		return []line{drop}
	}
	id := d.id()
	if back {
		id += ReplySuffix
	}
	return []line{{join(match, fmt.Sprintf("%s log prefix %q group %d", logRate, LogPrefix+id, names.NFLogGroup)), ""}, drop}
}

// backChain is the name of a chain's rendering for replies.
func backChain(name string) string { return "back-" + name }

// cond is a condition on a flow, of which packets tell.
type cond struct {
	kind   condKind
	family string // ip or ip6
	server bool   // the flow's destination, not its source
	negate bool
	set    string       // name of a set
	prefix netip.Prefix // instead of a set
	proto  policy.Protocol
	ranges [][2]uint16 // of destination ports
	icmp   [2]int      // type and code, -1 for any
}

type condKind uint8

const (
	ofFamily   condKind = iota // the packet's IP version
	ofAddress                  // source or destination
	ofProtocol                 //
	ofPorts                    // destination ports of proto
	ofICMP                     // type and code
	ofAddrPort                 // destination address and port
)

// text is the condition as nft reads it; false when replies can't meet it.
func (c *cond) text(back bool) (string, bool) {
	side, port, not := "saddr", "dport", ""
	if c.server != back {
		side = "daddr"
	}
	if back {
		port = "sport"
	}
	if c.negate {
		not = "!= "
	}
	switch c.kind {
	case ofFamily:
		return "meta nfproto " + nfproto(c.family), true
	case ofAddress:
		if c.set != "" {
			return fmt.Sprintf("%s %s %s@%s", c.family, side, not, c.set), true
		}
		return fmt.Sprintf("%s %s %s%s", c.family, side, not, c.prefix), true
	case ofProtocol:
		return "meta l4proto " + protoName(c.proto), true
	case ofPorts:
		return fmt.Sprintf("%s %s %s%s", protoName(c.proto), port, not, portList(c.ranges)), true
	case ofAddrPort:
		return fmt.Sprintf("%s %s . %s %s @%s", c.family, side, protoName(c.proto), port, c.set), true
	}
	kind := c.icmp[0]
	if back {
		var ok bool
		if kind, ok = answers[c.proto][kind]; !ok {
			return "", false
		}
	}
	name := "icmp"
	if c.proto == policy.ICMPv6 {
		name = "icmpv6"
	}
	text := fmt.Sprintf("%s type %d", name, kind)
	if c.icmp[1] >= 0 {
		text += fmt.Sprintf(" %s code %d", name, c.icmp[1])
	}
	return text, true
}

// answers is the ICMP types whose answers the kernel takes for replies of a
// flow, and the answers' types.
var answers = map[policy.Protocol]map[int]int{
	policy.ICMP:   {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
	policy.ICMPv6: {128: 129, 129: 128, 139: 140, 140: 139},
}

// Asked is the ICMP type that one of type reply answers.
func Asked(p policy.Protocol, reply uint8) (uint8, bool) {
	asked, ok := answers[p][int(reply)]
	return uint8(asked), ok
}

// protoName is a protocol as nft names it.
func protoName(p policy.Protocol) string {
	switch p {
	case policy.ICMPv6:
		return "ipv6-icmp"
	case policy.TCP, policy.UDP, policy.SCTP, policy.ICMP:
		return strings.ToLower(p.String())
	}
	return fmt.Sprint(uint8(p))
}

func portList(ranges [][2]uint16) string {
	parts := make([]string, len(ranges))
	for i, r := range ranges {
		if parts[i] = fmt.Sprint(r[0]); r[1] != r[0] {
			parts[i] = fmt.Sprintf("%d-%d", r[0], r[1])
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

// packet is the first packet of a flow, as the rules see it: after destination
// and before source translation.
type packet struct {
	src, dst   netip.Addr
	proto      policy.Protocol
	port       uint16
	kind, code uint8
}

// holds reports whether a flow's first packet meets the condition.
func (c *cond) holds(t *table, p *packet) bool {
	a := p.src
	if c.server {
		a = p.dst
	}
	switch c.kind {
	case ofFamily:
		return familyOf(p.src) == c.family
	case ofAddress:
		if familyOf(a) != c.family {
			return false
		}
		if c.set != "" {
			return t.sets[c.set].contains(a) != c.negate
		}
		return c.prefix.Contains(a) != c.negate
	case ofProtocol:
		return p.proto == c.proto
	case ofPorts:
		return p.proto == c.proto && c.negate != slices.ContainsFunc(c.ranges, func(r [2]uint16) bool { return r[0] <= p.port && p.port <= r[1] })
	case ofAddrPort:
		return p.proto == c.proto && familyOf(p.dst) == c.family && t.sets[c.set].containsPort(netip.AddrPortFrom(p.dst, p.port))
	}
	return p.proto == c.proto && c.icmp[0] == int(p.kind) && (c.icmp[1] < 0 || c.icmp[1] == int(p.code))
}

// passes runs a chain of policy for a flow: what the kernel does with its
// packets in both directions.
func (t *table) passes(name string, p *packet) bool {
next:
	c := t.chains[name]
	if c == nil {
		return false
	}
	for i := range c.rules {
		r := &c.rules[i]
		holds := true
		for j := range r.conds {
			holds = holds && r.conds[j].holds(t, p)
		}
		switch {
		case !holds:
		case r.to == pass:
			return true
		case r.to == goOn:
			name = r.next
			goto next
		default:
			return false
		}
	}
	return true
}
