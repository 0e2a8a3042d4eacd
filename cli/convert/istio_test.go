package convert

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
)

// What follows is Istio's authorization as its reference has it, evaluated
// without a thought of speed, and sharing no code with the converter.

// istioList is a field with its not field.
type istioList struct{ is, not []string }

type istioSource struct{ principals, namespaces, accounts, blocks istioList }

type istioOperation struct{ hosts, ports, methods, paths istioList }

type istioWhen struct {
	key string
	istioList
}

type istioRule struct {
	from []istioSource
	to   []istioOperation
	when []istioWhen
}

type istioPolicy struct {
	namespace, name, action string
	labels                  map[string]string
	dryRun                  bool
	rules                   []istioRule
}

var istioAliases = []string{"cluster.local", "old.example"}

func drawList(t *rapid.T, label string, oneIn int, from ...string) istioList {
	var l istioList
	if chance(t, label, oneIn) {
		l.is = rapid.SliceOfN(rapid.SampledFrom(from), 1, 2).Draw(t, label)
	}
	if chance(t, "not "+label, 2*oneIn) {
		l.not = rapid.SliceOfN(rapid.SampledFrom(from), 1, 2).Draw(t, "not "+label)
	}
	return l
}

var (
	istioPrincipals = []string{"*", "cluster.local/ns/red/sa/worker", "old.example/ns/blue/sa/boss", "cluster.local/ns/red/*", "*/ns/blue/sa/worker", "strange.example/ns/red/sa/worker"}
	istioBlocks     = []string{"10.244.0.0/24", "10.244.1.1", "203.0.113.0/24", "203.0.113.128/25", "2001:db8::/32"}
	istioPaths      = []string{"/admin*", "/admin", "/api/*", "*.html", "/api/{*}/b", "/api/{**}", "*", "/*"}
)

func drawIstio(t *rapid.T) []istioPolicy {
	var out []istioPolicy
	for i := range rapid.IntRange(1, 4).Draw(t, "policies") {
		p := istioPolicy{
			namespace: oneOf(t, "namespace", "red", "red", "blue", "istio-system"), name: fmt.Sprintf("p%d", i),
			action: oneOf(t, "action", "ALLOW", "DENY", "AUDIT", "ALLOW", "DENY", ""), dryRun: chance(t, "dry run", 10),
		}
		if chance(t, "selector", 2) {
			p.labels = map[string]string{"app": oneOf(t, "app", "web", "db")}
		}
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			var r istioRule
			for range rapid.IntRange(0, 2).Draw(t, "from") {
				s := istioSource{
					principals: drawList(t, "principals", 3, istioPrincipals...),
					namespaces: drawList(t, "namespaces", 4, "red", "blue", "re*", "*"),
					accounts:   drawList(t, "accounts", 6, "worker", "blue/boss"),
					blocks:     drawList(t, "blocks", 4, istioBlocks...),
				}
				if len(s.fields()) > 0 {
					r.from = append(r.from, s)
				}
			}
			for range rapid.IntRange(0, 2).Draw(t, "to") {
				o := istioOperation{
					ports:   drawList(t, "ports", 3, "80", "8443"),
					methods: drawList(t, "methods", 3, "GET", "POST", "*"),
					paths:   drawList(t, "paths", 3, istioPaths...),
					hosts:   drawList(t, "hosts", 5, "a.example", "*.example", "*"),
				}
				if len(o.fields()) > 0 {
					r.to = append(r.to, o)
				}
			}
			for range rapid.IntRange(0, 1).Draw(t, "when") {
				w := istioWhen{key: oneOf(t, "key", "request.headers[x-team]", "source.ip", "source.namespace", "source.principal", "destination.port")}
				w.istioList = drawList(t, "values", 1, map[string][]string{
					"request.headers[x-team]": {"a", "b", "*"}, "source.ip": istioBlocks, "source.namespace": {"red", "blue"},
					"source.principal": istioPrincipals, "destination.port": {"80", "8443"},
				}[w.key]...)
				r.when = append(r.when, w)
			}
			p.rules = append(p.rules, r)
		}
		out = append(out, p)
	}
	return out
}

func (f fields) both(name, notName string, l istioList) {
	f.set(name, l.is)
	f.set(notName, l.not)
}

func (s *istioSource) fields() fields {
	f := fields{}
	f.both("principals", "notPrincipals", s.principals)
	f.both("namespaces", "notNamespaces", s.namespaces)
	f.both("serviceAccounts", "notServiceAccounts", s.accounts)
	f.both("ipBlocks", "notIpBlocks", s.blocks)
	return f
}

func (o *istioOperation) fields() fields {
	f := fields{}
	f.both("hosts", "notHosts", o.hosts)
	f.both("ports", "notPorts", o.ports)
	f.both("methods", "notMethods", o.methods)
	f.both("paths", "notPaths", o.paths)
	return f
}

func (p *istioPolicy) json() string {
	m := fields{"name": p.name, "namespace": p.namespace}
	if p.dryRun {
		m["annotations"] = fields{"istio.io/dry-run": "true"}
	}
	spec := fields{}
	spec.set("action", p.action)
	if p.labels != nil {
		spec["selector"] = fields{"matchLabels": p.labels}
	}
	rules := []any{}
	for i := range p.rules {
		r, f := &p.rules[i], fields{}
		var from, to, when []any
		for j := range r.from {
			from = append(from, fields{"source": r.from[j].fields()})
		}
		for j := range r.to {
			to = append(to, fields{"operation": r.to[j].fields()})
		}
		for _, w := range r.when {
			one := fields{"key": w.key}
			one.both("values", "notValues", w.istioList)
			when = append(when, one)
		}
		for name, list := range map[string][]any{"from": from, "to": to, "when": when} {
			if list != nil {
				f[name] = list
			}
		}
		rules = append(rules, f)
	}
	spec["rules"] = rules
	return asJSON(fields{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": m, "spec": spec})
}

// text is Istio's way to compare: exact, prefix, suffix, presence.
func text(pattern, value string) bool {
	switch {
	case pattern == "*":
		return value != ""
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(value, pattern[:len(pattern)-1])
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(value, pattern[1:])
	}
	return pattern == value
}

// holds is "one of is, and none of not".
func (l istioList) holds(match func(string) bool) bool {
	return (len(l.is) == 0 || slices.ContainsFunc(l.is, match)) && !slices.ContainsFunc(l.not, match)
}

// principalOf is who the source proved to be, without the scheme.
func principalOf(f flow) string {
	if p := podAt(f.from); f.mtls && p != nil {
		return "cluster.local/ns/" + p.namespace + "/sa/" + p.account
	}
	return ""
}

func matchPrincipal(f flow) func(string) bool {
	return func(pattern string) bool {
		patterns := []string{pattern}
		if domain, rest, ok := strings.Cut(pattern, "/"); ok && slices.Contains(istioAliases, domain) {
			patterns = nil
			for _, d := range istioAliases {
				patterns = append(patterns, d+"/"+rest)
			}
		}
		who := principalOf(f)
		return who != "" && slices.ContainsFunc(patterns, func(p string) bool { return text(p, who) })
	}
}

func matchNamespace(f flow) func(string) bool {
	return func(pattern string) bool {
		p := podAt(f.from)
		return principalOf(f) != "" && text(pattern, p.namespace)
	}
}

func matchAccount(f flow, namespace string) func(string) bool {
	return func(pattern string) bool {
		if !strings.Contains(pattern, "/") {
			pattern = namespace + "/" + pattern
		}
		p := podAt(f.from)
		return principalOf(f) != "" && pattern == p.namespace+"/"+p.account
	}
}

func matchBlock(f flow) func(string) bool {
	return func(block string) bool { return block == f.from || contains([]string{block}, f.from) }
}

func matchPath(path string) func(string) bool {
	return func(pattern string) bool {
		if strings.Contains(pattern, "{") {
			re := strings.NewReplacer("{**}", "[^?#]*", "{*}", "[^/]+").Replace(pattern)
			return regexp.MustCompile("^" + re + "$").MatchString(path)
		}
		return text(pattern, path)
	}
}

// matches is of a rule. skip is what an action does about what it can't know of a
// connection that is no request: leave the condition out, or the rule.
func (r *istioRule) matches(namespace string, f flow, skip bool) bool {
	requests := func(l istioList) bool { return len(l.is)+len(l.not) > 0 }
	if f.request == nil && !skip {
		for _, o := range r.to {
			if requests(o.hosts) || requests(o.methods) || requests(o.paths) {
				return false
			}
		}
		for _, w := range r.when {
			if strings.HasPrefix(w.key, "request.") {
				return false
			}
		}
	}
	port := func(text string) bool { n, _ := strconv.Atoi(text); return n == int(f.port) }
	from := len(r.from) == 0 || slices.ContainsFunc(r.from, func(s istioSource) bool {
		return s.principals.holds(matchPrincipal(f)) && s.namespaces.holds(matchNamespace(f)) &&
			s.accounts.holds(matchAccount(f, namespace)) && s.blocks.holds(matchBlock(f))
	})
	to := len(r.to) == 0 || slices.ContainsFunc(r.to, func(o istioOperation) bool {
		if !o.ports.holds(port) {
			return false
		}
		q := f.request
		return q == nil || o.methods.holds(func(m string) bool { return text(m, q.method) }) && o.paths.holds(matchPath(q.path)) &&
			o.hosts.holds(func(h string) bool { return text(h, q.host) })
	})
	return from && to && !slices.ContainsFunc(r.when, func(w istioWhen) bool {
		match := map[string]func(string) bool{
			"source.ip": matchBlock(f), "source.namespace": matchNamespace(f), "source.principal": matchPrincipal(f), "destination.port": port,
			"request.headers[x-team]": func(v string) bool {
				if f.request == nil {
					return false
				}
				got, ok := f.request.headers["x-team"]
				return ok && text(v, got)
			},
		}[w.key]
		return (f.request != nil || !strings.HasPrefix(w.key, "request.")) && !w.holds(match)
	})
}

func istioAllows(policies []istioPolicy, f flow) bool {
	to := podAt(f.to)
	if to == nil || f.protocol != policy.TCP {
		return true
	}
	allowing, allow := false, false
	for i := range policies {
		p := &policies[i]
		if p.dryRun || p.namespace != to.namespace && p.namespace != "istio-system" {
			continue
		}
		selects := true
		for k, v := range p.labels {
			selects = selects && to.labels[k] == v
		}
		if !selects {
			continue
		}
		matches := func(skip bool) bool {
			return slices.ContainsFunc(p.rules, func(r istioRule) bool { return r.matches(p.namespace, f, skip) })
		}
		switch p.action {
		case "DENY":
			if matches(true) {
				return false
			}
		case "", "ALLOW":
			allowing = true
			allow = allow || matches(false)
		}
	}
	return !allowing || allow
}

var istioRefusals = []string{"which can't be said together", "can't be said: split the rule", "except from each other can't be said"}

func drawRequest(t *rapid.T) *request {
	if chance(t, "no request", 3) {
		return nil
	}
	q := &request{method: oneOf(t, "method", "GET", "POST", "PUT"), host: oneOf(t, "host", "a.example", "b.a.example", "other")}
	q.path = oneOf(t, "path", "/", "/admin", "/administrator", "/admin/x", "/api/", "/api", "/api/a/b", "/api/a/b/c", "/index.html")
	if v := oneOf(t, "header", "", "a", "c"); v != "" {
		q.headers = map[string]string{"x-team": v}
	}
	return q
}

func TestIstioMeansTheSame(t *testing.T) {
	opts := Defaults()
	opts.Istio.Aliases = istioAliases[1:]
	opts.Istio.HostsAnyPort = true
	converted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		policies := drawIstio(t)
		kubernetes := chance(t, "kubernetes", 3)
		var docs []string
		for i := range policies {
			docs = append(docs, policies[i].json())
		}
		in := strings.Join(docs, "\n---\n")
		out, errors := convertText(in, opts)
		if len(errors) > 0 {
			if !expected(errors, istioRefusals) {
				t.Fatalf("%s\n%s", strings.Join(errors, "\n"), in)
			}
			refused++
			return
		}
		converted++
		manifests := []string{out}
		if kubernetes {
			manifests = append(manifests, kubernetesPolicy)
		}
		r := compiled(t, manifests...)
		var requests []*request
		for range 8 {
			requests = append(requests, drawRequest(t))
		}
		for _, from := range everybody() {
			for _, to := range pods {
				if from == to.ip {
					continue
				}
				flows := []flow{{protocol: policy.UDP, port: 53}, {protocol: policy.ICMP, icmpType: 8}}
				for _, q := range requests {
					for _, port := range []uint16{80, 8443} {
						flows = append(flows, flow{protocol: policy.TCP, port: port, request: q})
						if p := podAt(from); p != nil && p.meshed && to.meshed {
							flows = append(flows, flow{protocol: policy.TCP, port: port, request: q, mtls: true})
						}
					}
				}
				for _, f := range flows {
					f.from, f.to = from, to.ip
					want := istioAllows(policies, f)
					if kubernetes && to.namespace == "red" && to.labels["app"] == "web" {
						p := podAt(from)
						want = want && p != nil && p.namespace == "red" && p.labels["app"] == "db"
					}
					if got, why := allowed(r, f); got != want {
						t.Fatalf("%s: Istio allows %t, ours %t:\n%s\n--- read\n%s\n--- written\n%s", f, want, got, why, in, out)
					}
				}
			}
		}
	})
	if converted < refused {
		t.Errorf("of %d policies %d were refused: the test proves little", converted+refused, refused)
	}
}
