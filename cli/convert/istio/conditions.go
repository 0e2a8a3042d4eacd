package istio

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

// conditions is an AND of what our rules can say. A nil list is no condition, an
// empty one is never met.
type conditions struct {
	principals []string // SPIFFE IDs, one trailing '*' allowed
	networks   []v1alpha1.Network
	ports      []manifest.Ports
	// request says that it is about requests, whatever they are.
	request bool
	methods []string
	paths   []v1alpha1.PathMatch
	hosts   []string
	headers []v1alpha1.HeaderMatch
}

// never reports whether nothing can meet the conditions.
func (c *conditions) never() bool {
	return empty(c.principals) || empty(c.networks) || empty(c.ports) || empty(c.methods) || empty(c.paths) || empty(c.hosts)
}

func empty[T any](list []T) bool { return list != nil && len(list) == 0 }

// layer4 is the conditions without what is about requests.
func (c *conditions) layer4() conditions {
	return conditions{principals: c.principals, networks: c.networks, ports: c.ports}
}

// both is the AND of two. It is false when it can't be said.
func both(a, b conditions) (conditions, bool) {
	out := conditions{request: a.request || b.request, headers: slices.Concat(a.headers, b.headers)}
	out.principals = common(a.principals, b.principals, func(x, y string) (string, bool) { return narrower(x, y, "*") })
	out.ports = a.ports
	if b.ports != nil {
		out.ports = append([]manifest.Ports{}, b.ports...)
		if a.ports != nil {
			out.ports = append([]manifest.Ports{}, manifest.CommonPorts(a.ports, b.ports)...)
		}
	}
	out.methods = common(a.methods, b.methods, equal)
	out.hosts = common(a.hosts, b.hosts, narrowerHost)
	ok := true
	out.networks = commonNetworks(a.networks, b.networks, &ok)
	out.paths = common(a.paths, b.paths, func(x, y v1alpha1.PathMatch) (v1alpha1.PathMatch, bool) { return narrowerPath(x, y, &ok) })
	return out, ok
}

func common[T any](a, b []T, meet func(T, T) (T, bool)) []T {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	out := []T{}
	for _, x := range a {
		for _, y := range b {
			if z, ok := meet(x, y); ok {
				out = append(out, z)
			}
		}
	}
	return out
}

func equal(x, y string) (string, bool) { return x, x == y }

// narrower is what two patterns with a trailing wildcard have in common.
func narrower(x, y, wildcard string) (string, bool) {
	px, anyX := strings.CutSuffix(x, wildcard)
	py, anyY := strings.CutSuffix(y, wildcard)
	switch {
	case anyX && strings.HasPrefix(py, px):
		return y, true
	case anyY && strings.HasPrefix(px, py):
		return x, true
	}
	return x, x == y
}

// narrowerHost is of hosts with a leading "*.".
func narrowerHost(x, y string) (string, bool) {
	sx, anyX := strings.CutPrefix(x, "*")
	sy, anyY := strings.CutPrefix(y, "*")
	switch {
	case anyX && strings.HasSuffix(sy, sx) && (anyY || len(sy) > len(sx)):
		return y, true
	case anyY && strings.HasSuffix(sx, sy) && (anyX || len(sx) > len(sy)):
		return x, true
	}
	return x, strings.EqualFold(x, y)
}

// narrowerPath compares what is compared by text; two expressions have
// something in common that nothing here can say.
func narrowerPath(x, y v1alpha1.PathMatch, ok *bool) (v1alpha1.PathMatch, bool) {
	if x == y {
		return x, true
	}
	for _, pair := range [][2]v1alpha1.PathMatch{{x, y}, {y, x}} {
		exact, other := pair[0].Exact, pair[1]
		if exact == "" {
			continue
		}
		switch {
		case other.Exact != "":
			return x, false
		case other.Prefix == "/":
			return pair[0], true
		case other.Regex != "":
			re, err := regexp.Compile(`\A(?:` + other.Regex + `)\z`)
			return pair[0], err == nil && re.MatchString(exact)
		}
	}
	for _, pair := range [][2]v1alpha1.PathMatch{{x, y}, {y, x}} {
		if pair[0].Prefix == "/" {
			return pair[1], true
		}
		a, anyA := pathPrefix(pair[0])
		b, anyB := pathPrefix(pair[1])
		if anyA && anyB {
			if strings.HasPrefix(b, a) {
				return pair[1], true
			}
			if !strings.HasPrefix(a, b) {
				return x, false
			}
		}
	}
	*ok = false
	return x, false
}

// pathPrefix is the text of an expression that is a prefix, quoted.
func pathPrefix(m v1alpha1.PathMatch) (string, bool) {
	text, ok := strings.CutSuffix(m.Regex, ".*")
	return text, ok && !strings.ContainsAny(text, "*+[(")
}

func commonNetworks(a, b []v1alpha1.Network, ok *bool) []v1alpha1.Network {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	out := []v1alpha1.Network{}
	for _, x := range a {
		for _, y := range b {
			nets := manifest.Common([]netip.Prefix{netip.MustParsePrefix(x.CIDR)}, []netip.Prefix{netip.MustParsePrefix(y.CIDR)})
			var except []netip.Prefix
			for _, e := range slices.Concat(x.Except, y.Except) {
				except = append(except, netip.MustParsePrefix(e))
			}
			cut, err := manifest.Less(nets, except)
			*ok = *ok && err == nil
			out = append(out, cut...)
		}
	}
	return out
}

// Limits of our kinds.
const (
	maxPorts      = 100
	maxPeers      = 100
	maxPrincipals = 100
	maxNetworks   = 1000
	maxPaths      = 25
	maxMethods    = 20
	maxHosts      = 100
	maxHTTP       = 50
	maxRules      = 1000
	maxRegex      = 512
	maxPath       = 1024
)

// anyRequest is an entry that every HTTP request matches and nothing else.
func anyRequest() []v1alpha1.HTTPMatch {
	return []v1alpha1.HTTPMatch{{Paths: []v1alpha1.PathMatch{{Regex: ".*"}}}}
}

// rules writes the conditions as rules, of TCP only: Istio sees nothing else.
func (c *conditions) rules(action v1alpha1.RuleAction) []v1alpha1.IngressRule {
	if c.never() {
		return nil
	}
	ports := c.ports
	if ports == nil {
		ports = manifest.AllPorts()
	}
	var out []v1alpha1.IngressRule
	for _, ports := range chunks(manifest.RulePorts("TCP", ports), maxPorts) {
		for _, peers := range chunks(c.peers(), maxPeers) {
			for _, http := range chunks(c.http(), maxHTTP) {
				out = append(out, v1alpha1.IngressRule{RuleCommon: v1alpha1.RuleCommon{Action: action, Ports: ports, HTTP: http}, From: peers})
			}
		}
	}
	return out
}

func (c *conditions) peers() []v1alpha1.Peer {
	if c.principals == nil && c.networks == nil {
		return nil
	}
	var out []v1alpha1.Peer
	for _, principals := range chunks(c.principals, maxPrincipals) {
		for _, networks := range chunks(c.networks, maxNetworks) {
			out = append(out, v1alpha1.Peer{Principals: principals, Networks: networks})
		}
	}
	return out
}

func (c *conditions) http() []v1alpha1.HTTPMatch {
	if !c.request {
		return nil
	}
	if len(c.methods)+len(c.paths)+len(c.hosts)+len(c.headers) == 0 {
		return anyRequest()
	}
	var out []v1alpha1.HTTPMatch
	for _, methods := range chunks(c.methods, maxMethods) {
		for _, hosts := range chunks(c.hosts, maxHosts) {
			for _, paths := range chunks(c.paths, maxPaths) {
				out = append(out, v1alpha1.HTTPMatch{Methods: methods, Hosts: hosts, Paths: paths, Headers: c.headers})
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

// merge joins rules that follow each other and differ in their peers only.
func merge(rules []v1alpha1.IngressRule) []v1alpha1.IngressRule {
	var out []v1alpha1.IngressRule
	for _, r := range rules {
		if last := len(out) - 1; last >= 0 && r.From != nil && out[last].From != nil && len(out[last].From)+len(r.From) <= maxPeers &&
			sameCommon(&out[last].RuleCommon, &r.RuleCommon) {
			out[last].From = slices.Concat(out[last].From, r.From)
			continue
		}
		out = append(out, r)
	}
	return out
}
