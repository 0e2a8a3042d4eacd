package calico

import (
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/convert/selector"
)

// Limits of our kinds.
const (
	maxPorts = 100
	maxPeers = 100
	maxPaths = 25
	maxRules = 1000
	maxRegex = 512
)

// run is rules of one direction that follow each other and are for the same of
// the policy's pods: all, when local is nil.
type run struct {
	direction v1alpha1.PolicyType
	local     *selector.Expr
	ingress   []v1alpha1.IngressRule
	egress    []v1alpha1.EgressRule
}

// rules converts both directions; the first run of each direction comes before
// the others.
func (c *converter) rules(at manifest.At, own string, types []v1alpha1.PolicyType, spec *policySpec) []run {
	var first, more []run
	for _, d := range []struct {
		direction v1alpha1.PolicyType
		field     string
		rules     []rule
	}{{"Ingress", "spec.ingress", spec.Ingress}, {"Egress", "spec.egress", spec.Egress}} {
		if !slices.Contains(types, d.direction) {
			continue
		}
		var runs []run
		total := 0
		for i := range d.rules {
			next := c.rule(at.In("%s[%d]", d.field, i), own, d.direction, &d.rules[i])
			total += len(next.ingress) + len(next.egress)
			if last := len(runs) - 1; last >= 0 && alike(runs[last].local, next.local) {
				runs[last].ingress = append(runs[last].ingress, next.ingress...)
				runs[last].egress = append(runs[last].egress, next.egress...)
				continue
			}
			runs = append(runs, next)
		}
		if total > maxRules {
			at.In("%s", d.field).Error("it becomes %d rules, and a policy has at most %d: split it", total, maxRules)
		}
		if len(runs) > 0 && runs[0].local == nil {
			first, runs = append(first, runs[0]), runs[1:]
		}
		more = append(more, runs...)
	}
	return append(first, more...)
}

func alike(a, b *selector.Expr) bool {
	return a == nil && b == nil || a != nil && b != nil && a.String() == b.String()
}

// rule converts one rule: to several when a list is longer than ours may be.
func (c *converter) rule(at manifest.At, own string, direction v1alpha1.PolicyType, r *rule) run {
	local, remote := &r.Destination, &r.Source
	localAt, remoteAt := at.In("destination"), at.In("source")
	if direction == "Egress" {
		local, remote, localAt, remoteAt = remote, local, remoteAt, localAt
	}
	out := run{direction: direction, local: c.local(localAt, local, own)}
	common := v1alpha1.RuleCommon{Action: v1alpha1.RuleAction(r.Action)}
	if !slices.Contains([]string{"Allow", "Deny", "Pass", "Log"}, r.Action) {
		at.In("action").Error("%q is none of Allow, Deny, Pass, Log", r.Action)
	}
	if r.Metadata != nil && len(r.Metadata.Annotations) > 0 {
		at.In("metadata.annotations").Note("left out: rules of ours have none")
	}
	ports, some := rulePorts(at, r)
	common.HTTP = rulesHTTP(at.In("http"), r, ports)
	peers := c.peers(remoteAt, remote, own, r.IPVersion)
	if peers.peers != nil && peers.peers[0].Services != nil && len(ports) > 0 {
		at.Error("a Service says its protocol and ports itself: remove protocol from the rule")
	}
	if !some || !peers.any && len(peers.peers) == 0 {
		at.Note("left out: it can match nothing")
		return out
	}
	for _, ports := range chunks(ports, maxPorts) {
		for _, peers := range chunks(peers.peers, maxPeers) {
			common.Ports = ports
			if direction == "Egress" {
				out.egress = append(out.egress, v1alpha1.EgressRule{RuleCommon: common, To: peers})
			} else {
				out.ingress = append(out.ingress, v1alpha1.IngressRule{RuleCommon: common, From: peers})
			}
		}
	}
	return out
}

// chunks cuts a list to pieces; an absent list is one piece.
func chunks[T any](list []T, n int) [][]T {
	if len(list) == 0 {
		return [][]T{nil}
	}
	return slices.Collect(slices.Chunk(list, n))
}

// local is for which of the policy's pods the rule is; nil for all. Of the
// policy's own end only selectors can be said; its ports are the rule's.
func (c *converter) local(at manifest.At, e *entity, own string) *selector.Expr {
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"nets", len(e.Nets) > 0}, {"notNets", len(e.NotNets) > 0}, {"services", e.Services != nil}, {"domains", len(e.Domains) > 0},
	} {
		if f.set {
			at.In("%s", f.field).Error("it is about the policy's own pods: select them by labels")
		}
	}
	if e.ServiceAccounts != nil {
		at.In("serviceAccounts").Error("it is about the policy's own pods, which are selected by labels: give them one")
		return nil
	}
	x := e.selects(at, own)
	for _, s := range c.selectedBy(at, x) {
		at.Error("it selects %s too, whose addresses could be those of the policy's pods: narrow the selector", s.from)
	}
	if e.NotSelector != "" {
		if not, ok := parse(at.In("notSelector"), e.NotSelector); ok {
			for _, s := range c.selectedBy(at, not) {
				at.In("notSelector").Error("it selects %s too, whose addresses could be those of the policy's pods: narrow the selector", s.from)
			}
			x = selector.Both(x, selector.Negate(not))
		}
	}
	return x
}

var protocols = map[string]string{
	"tcp": "TCP", "udp": "UDP", "sctp": "SCTP", "icmp": "ICMP", "icmpv6": "ICMPv6",
	"6": "TCP", "17": "UDP", "132": "SCTP", "1": "ICMP", "58": "ICMPv6",
}

// rulePorts is the protocol with ports; false when no port remains.
func rulePorts(at manifest.At, r *rule) ([]v1alpha1.RulePort, bool) {
	if r.NotProtocol != nil {
		at.In("notProtocol").Error("there is no word for every protocol but one: write a rule for each protocol that is meant")
	}
	if r.NotICMP != nil {
		at.In("notICMP").Error("there is no word for every ICMP type but one: write a rule for each that is meant")
	}
	for _, f := range []struct {
		field string
		list  []intstr.IntOrString
	}{{"source.ports", r.Source.Ports}, {"source.notPorts", r.Source.NotPorts}} {
		if len(f.list) > 0 {
			at.In("%s", f.field).Error("the source's port is the client's choice and proves nothing: remove it")
		}
	}
	d := &r.Destination
	if r.Protocol == nil {
		if len(d.Ports)+len(d.NotPorts) > 0 {
			at.In("destination.ports").Error("ports need a protocol")
		}
		if r.ICMP != nil {
			at.In("icmp").Error("icmp needs protocol ICMP or ICMPv6")
		}
		return nil, true
	}
	protocol, ok := protocols[strings.ToLower(r.Protocol.String())]
	if !ok {
		at.In("protocol").Error("%q is none of TCP, UDP, SCTP, ICMP, ICMPv6", r.Protocol.String())
		return nil, true
	}
	port := v1alpha1.RulePort{Protocol: protocol}
	if protocol == "ICMP" || protocol == "ICMPv6" {
		if len(d.Ports)+len(d.NotPorts) > 0 {
			at.In("destination.ports").Error("ICMP has no ports")
		}
		if r.ICMP != nil && r.ICMP.Type == nil {
			at.In("icmp").Error("type is missing")
		} else if r.ICMP != nil {
			port.ICMP = &v1alpha1.ICMPMatch{Type: *r.ICMP.Type, Code: r.ICMP.Code}
		}
		return []v1alpha1.RulePort{port}, true
	}
	if r.ICMP != nil {
		at.In("icmp").Error("icmp needs protocol ICMP or ICMPv6")
	}
	if len(d.Ports)+len(d.NotPorts) == 0 {
		return []v1alpha1.RulePort{port}, true
	}
	return numbered(at, d, protocol)
}

// numbered is ports less notPorts.
func numbered(at manifest.At, d *entity, protocol string) ([]v1alpha1.RulePort, bool) {
	list, names := portList(at.In("destination.ports"), d.Ports)
	not, notNames := portList(at.In("destination.notPorts"), d.NotPorts)
	if len(notNames) > 0 {
		at.In("destination.notPorts").Error("every port but a named one can't be said: write the numbers instead of %s", quoteNames(notNames))
	}
	if len(names) > 0 && len(not) > 0 {
		at.In("destination.notPorts").Error("it can't be taken from the named ports %s: write numbers", quoteNames(names))
	}
	if len(d.Ports) == 0 {
		list = manifest.AllPorts()
	}
	var out []v1alpha1.RulePort
	for _, name := range names {
		n := intstr.FromString(name)
		out = append(out, v1alpha1.RulePort{Protocol: protocol, Port: &n})
	}
	return append(out, manifest.RulePorts(protocol, manifest.LessPorts(list, not))...), len(names) > 0 || len(manifest.LessPorts(list, not)) > 0
}

func portList(at manifest.At, list []intstr.IntOrString) (out []manifest.Ports, names []string) {
	for i, p := range list {
		text := p.String()
		if p.Type == intstr.String && strings.ContainsFunc(text, func(c rune) bool { return 'a' <= c && c <= 'z' }) {
			if problems := validation.IsValidPortName(text); len(problems) > 0 {
				at.In("[%d]", i).Error("%q is no port name: %s", text, strings.Join(problems, ", "))
			}
			names = append(names, text)
			continue
		}
		ports, err := manifest.ParsePorts(text, ":")
		if err != nil {
			at.In("[%d]", i).Error("%s", err)
			continue
		}
		out = append(out, ports)
	}
	return out, names
}

var method = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)

// rulesHTTP converts the application layer part. A prefix of Calico ends
// anywhere, not at a segment's border.
func rulesHTTP(at manifest.At, r *rule, ports []v1alpha1.RulePort) []v1alpha1.HTTPMatch {
	if r.HTTP == nil {
		return nil
	}
	for _, p := range ports {
		if p.Protocol != "TCP" {
			at.Error("requests are TCP, not %s", p.Protocol)
		}
	}
	if len(r.HTTP.Methods)+len(r.HTTP.Paths) == 0 {
		at.Error("it is empty: remove it")
	}
	for i, m := range r.HTTP.Methods {
		if !method.MatchString(m) {
			at.In("methods[%d]", i).Error("%q is no method", m)
		}
	}
	var paths []v1alpha1.PathMatch
	for i, p := range r.HTTP.Paths {
		at := at.In("paths[%d]", i)
		text := p.Exact + p.Prefix
		m := v1alpha1.PathMatch{Exact: p.Exact}
		if p.Prefix == "/" {
			m.Prefix = "/"
		} else if p.Prefix != "" {
			m.Regex = regexp.QuoteMeta(p.Prefix) + ".*"
		}
		switch {
		case (p.Exact == "") == (p.Prefix == ""):
			at.Error("set exactly one of exact and prefix")
		case text[0] != '/':
			at.Error("%q: a path begins with '/'", text)
		case len(m.Regex) > maxRegex || len(m.Exact) > 2*maxRegex:
			at.Error("%q is too long", text)
		}
		paths = append(paths, m)
	}
	var out []v1alpha1.HTTPMatch
	for _, chunk := range chunks(paths, maxPaths) {
		out = append(out, v1alpha1.HTTPMatch{Methods: r.HTTP.Methods, Paths: chunk})
	}
	return out
}
