package verdict

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
)

// mostRequests bounds the requests that are tried on one port of one pair.
const mostRequests = 2048

// span is ports of one protocol that no rule tells apart.
type span struct {
	protocol           policy.Protocol
	first, last        int
	icmpType, icmpCode uint8
	// label says the messages, of kinds kinds in all.
	label string
	kinds int
}

// rules are all rules that may decide between two ends, in both worlds.
type rules []*policy.Rule

// spans cuts the ports of the protocols where the rules, or what is known of
// the destination, may tell them apart.
func (r rules) spans(to *member, icmp policy.Protocol) []span {
	var list []span
	for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		cuts := []int{1}
		cut := func(first, last uint16) { cuts = append(cuts, int(first), int(last)+1) }
		for _, rule := range r {
			for _, m := range rule.Ports {
				if m.Protocol == protocol && m.Port != 0 {
					cut(m.Port, max(m.Port, m.EndPort))
				}
			}
		}
		for _, e := range []*end{to.before, to.after} {
			if e.pod == nil {
				continue
			}
			for _, p := range e.pod.Ports {
				if p.Protocol == protocol {
					cut(p.Port, p.Port)
				}
			}
			if protocol == policy.TCP {
				for _, port := range slices.Concat(e.pod.Capture.ExcludeInboundPorts, e.pod.Capture.IncludeInboundPorts) {
					cut(port, port)
				}
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		for i, first := range cuts {
			last := 65535
			if i+1 < len(cuts) {
				last = cuts[i+1] - 1
			}
			if first >= 1 && first <= last {
				list = append(list, span{protocol: protocol, first: first, last: last})
			}
		}
	}
	return append(list, r.messages(icmp)...)
}

// messages are the ICMP messages that rules name, and another.
func (r rules) messages(protocol policy.Protocol) []span {
	seen := map[[2]int]bool{}
	list := []span{{protocol: protocol, icmpType: 254, icmpCode: 254, label: "other messages"}}
	add := func(icmpType, code uint8, label string) {
		if key := [2]int{int(icmpType), int(code)}; !seen[key] {
			seen[key] = true
			list = append(list, span{protocol: protocol, icmpType: icmpType, icmpCode: code, label: label})
		}
	}
	for _, rule := range r {
		for _, m := range rule.Ports {
			if m.Protocol != protocol || m.ICMPType == nil {
				continue
			}
			if m.ICMPCode != nil {
				add(*m.ICMPType, *m.ICMPCode, fmt.Sprintf("type %d code %d", *m.ICMPType, *m.ICMPCode))
			}
			add(*m.ICMPType, 254, fmt.Sprintf("type %d", *m.ICMPType))
		}
	}
	for i := range list {
		list[i].kinds = len(list)
	}
	return list
}

// sample is a request that stands for all that the rules do not tell from it.
type sample struct {
	http *policy.HTTPRequest
	// method and rest say it; both are empty for a flow that is not HTTP.
	method, rest string
}

const (
	otherMethods = "other methods"
	otherPaths   = "other paths"
)

// value is one of an attribute's values with what it is called.
type value struct{ text, label string }

func addValue(list *[]value, text, label string) {
	if !slices.ContainsFunc(*list, func(v value) bool { return v.text == text }) {
		*list = append(*list, value{text, label})
	}
}

// samples are a flow that is not HTTP and a request of each kind that the rules
// tell apart; bounded says that kinds are left out.
func (r rules) samples() (list []sample, bounded []string) {
	methods := []value{{"\x00other", otherMethods}}
	paths, hosts, queries := []value{{"/\x00other", otherPaths}}, []value{{"\x00other", ""}}, []value{{"", ""}}
	headers := map[string][]value{}
	for _, rule := range r {
		if !plain(rule) {
			bounded = append(bounded, "rules with conditions besides peers, ports, requests and mTLS are asked as if no token came")
		}
		for i := range rule.HTTP {
			m := &rule.HTTP[i]
			for _, method := range m.Methods {
				addValue(&methods, method, method)
			}
			for j := range m.Paths {
				why := addPath(&paths, &m.Paths[j])
				bounded = append(bounded, why...)
			}
			for _, h := range m.Hosts {
				if name, wild := strings.CutPrefix(h, "*."); wild {
					addValue(&hosts, "other."+name, "host "+h)
				} else {
					addValue(&hosts, h, "host "+h)
				}
			}
			for _, h := range m.Headers {
				list := headers[h.Name]
				for _, v := range h.Values {
					addValue(&list, v, h.Name+": "+v)
				}
				addValue(&list, "\x00other", "another "+h.Name)
				headers[h.Name] = list
			}
			if len(m.Query) > 0 {
				var all []string
				for _, q := range m.Query {
					v := "other"
					if len(q.Values) > 0 {
						v = q.Values[0]
					}
					all = append(all, q.Name+"="+v)
					if len(q.Values) > 1 {
						bounded = append(bounded, "query parameters are tried with the first of their values")
					}
				}
				text := strings.Join(all, "&")
				addValue(&queries, text, "?"+text)
			}
			for _, g := range m.GRPC {
				service, method := g.Service, g.Method
				if service == "" {
					service = "other.Service"
				}
				if method == "" {
					method = "Other"
				}
				addValue(&paths, "/"+service+"/"+method, "gRPC "+g.String())
				headers["content-type"] = []value{{"application/grpc", ""}, {"\x00other", "not gRPC"}}
			}
		}
	}
	list = []sample{{}}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range headers {
			if !yield(name) {
				return
			}
		}
	})
	product := len(methods) * len(paths) * len(hosts) * len(queries)
	for _, name := range names {
		product *= len(headers[name]) + 1
	}
	if product > mostRequests {
		bounded = append(bounded, fmt.Sprintf("of %d kinds of requests that the rules of one pair tell apart, %d are tried", product, mostRequests))
	}
	var sent []map[string]value
	combine(names, headers, map[string]value{}, &sent)
	for _, h := range sent {
		for _, q := range queries {
			for _, host := range hosts {
				for _, path := range paths {
					for _, method := range methods {
						if len(list) > mostRequests {
							return list, bounded
						}
						list = append(list, request(method, path, host, q, names, h))
					}
				}
			}
		}
	}
	return list, bounded
}

// combine makes each combination of headers, absent ones included; first none
// of them.
func combine(names []string, values map[string][]value, chosen map[string]value, out *[]map[string]value) {
	if len(names) == 0 {
		all := make(map[string]value, len(chosen))
		for k, v := range chosen {
			all[k] = v
		}
		*out = append(*out, all)
		return
	}
	if len(*out) > mostRequests {
		return
	}
	combine(names[1:], values, chosen, out)
	for _, v := range values[names[0]] {
		chosen[names[0]] = v
		combine(names[1:], values, chosen, out)
	}
	delete(chosen, names[0])
}

func request(method, path, host, query value, names []string, sent map[string]value) sample {
	values := map[string][]string{}
	rest := []string{path.label, host.label, query.label}
	for _, name := range names {
		if v, ok := sent[name]; ok {
			values[name] = []string{v.text}
			rest = append(rest, v.label)
		}
	}
	return sample{
		http: &policy.HTTPRequest{Method: method.text, Path: path.text, Host: host.text, Query: query.text,
			Header: func(name string) []string { return values[name] }},
		method: method.label,
		rest:   strings.Join(slices.DeleteFunc(rest, func(s string) bool { return s == "" }), " "),
	}
}

// addPath adds paths that the match tells from others.
func addPath(paths *[]value, m *policy.PathMatch) (bounded []string) {
	switch m.Type {
	case policy.PathExact:
		addValue(paths, m.Value, m.Value)
	case policy.PathPrefix:
		stem := strings.TrimRight(m.Value, "/")
		if stem != "" {
			addValue(paths, stem, stem)
		}
		addValue(paths, stem+"/\x00other", "below "+stem+"/")
	case policy.PathTemplate:
		segments := strings.Split(m.Value, "/")
		for i, s := range segments {
			if strings.HasPrefix(s, "{") {
				segments[i] = "other"
			}
		}
		addValue(paths, strings.Join(segments, "/"), "like "+m.Value)
	default:
		re, err := syntax.Parse(m.Value, syntax.Perl)
		if err != nil {
			return nil
		}
		addValue(paths, shortest(re.Simplify()), "matching "+m.Value)
		return []string{"paths of an expression are tried with one example"}
	}
	return nil
}

// shortest is a text that the expression matches, if it looks at nothing
// around.
func shortest(re *syntax.Regexp) string {
	switch re.Op {
	case syntax.OpLiteral:
		return string(re.Rune)
	case syntax.OpCharClass:
		if len(re.Rune) > 0 {
			// A letter or digit where there is one.
			for i := 0; i+1 < len(re.Rune); i += 2 {
				for _, c := range "ax0" {
					if re.Rune[i] <= c && c <= re.Rune[i+1] {
						return string(c)
					}
				}
			}
			return string(re.Rune[0])
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return "x"
	case syntax.OpCapture, syntax.OpPlus:
		return shortest(re.Sub[0])
	case syntax.OpAlternate:
		return shortest(re.Sub[0])
	case syntax.OpConcat:
		text := ""
		for _, sub := range re.Sub {
			text += shortest(sub)
		}
		return text
	}
	return "" // empty, anchors, and what may be absent
}
