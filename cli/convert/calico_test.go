package convert

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
)

// What follows is Calico's policy as its reference has it, evaluated without a
// thought of speed, and sharing no code with the converter.

// expr is a selector: its text and what it means.
type expr struct {
	text string
	is   func(labels map[string]string) bool
}

var anything = expr{"all()", func(map[string]string) bool { return true }}

// drawExpr draws a selector over keys with few values.
func drawExpr(t *rapid.T, depth int, keys map[string][]string) expr {
	if depth > 0 {
		switch rapid.IntRange(0, 7).Draw(t, "shape") {
		case 0:
			a, b := drawExpr(t, depth-1, keys), drawExpr(t, depth-1, keys)
			return expr{"(" + a.text + ") && " + paren(b), func(l map[string]string) bool { return a.is(l) && b.is(l) }}
		case 1:
			a, b := drawExpr(t, depth-1, keys), drawExpr(t, depth-1, keys)
			return expr{a.text + " || (" + b.text + ")", func(l map[string]string) bool { return a.is(l) || b.is(l) }}
		case 2:
			a := drawExpr(t, depth-1, keys)
			return expr{"!" + paren(a), func(l map[string]string) bool { return !a.is(l) }}
		}
	}
	var names []string
	for k := range keys {
		names = append(names, k)
	}
	slices.Sort(names)
	key := oneOf(t, "key", names...)
	value := oneOf(t, "value", keys[key]...)
	other := oneOf(t, "value", keys[key]...)
	switch rapid.IntRange(0, 6).Draw(t, "op") {
	case 0:
		return expr{"has(" + key + ")", func(l map[string]string) bool { _, ok := l[key]; return ok }}
	case 1:
		return expr{"!has(" + key + ")", func(l map[string]string) bool { _, ok := l[key]; return !ok }}
	case 2:
		return expr{key + " != '" + value + "'", func(l map[string]string) bool { v, ok := l[key]; return !ok || v != value }}
	case 3:
		return expr{fmt.Sprintf("%s in {'%s', \"%s\"}", key, value, other), func(l map[string]string) bool { v, ok := l[key]; return ok && (v == value || v == other) }}
	case 4:
		return expr{fmt.Sprintf("%s not in {'%s','%s'}", key, value, other), func(l map[string]string) bool { v, ok := l[key]; return !ok || v != value && v != other }}
	case 5:
		if _, ok := keys["team"]; ok {
			// Of namespaces all() is what is in any.
			return expr{"all()", func(l map[string]string) bool { _, ok := l["projectcalico.org/name"]; return ok }}
		}
		return anything
	}
	return expr{key + ` == "` + value + `"`, func(l map[string]string) bool { v, ok := l[key]; return ok && v == value }}
}

func paren(e expr) string { return "(" + e.text + ")" }

var (
	podKeys       = map[string][]string{"app": {"web", "db"}, "zone": {"a", "b"}}
	peerKeys      = map[string][]string{"app": {"web", "db"}, "zone": {"a", "b"}, "list": {"good", "bad"}}
	namespaceKeys = map[string][]string{"team": {"one", "two"}, "open": {"yes"}, "projectcalico.org/name": {"red", "blue"}}
)

// thing is what selectors of rules select: a pod or a network set.
type thing struct {
	labels, namespaceLabels, accountLabels map[string]string
	namespace, account                     string
	nets                                   []string
}

type calicoSet struct {
	namespace, name string
	labels          map[string]string
	nets            []string
}

type calicoEntity struct {
	selector, notSelector, namespaceSelector, accountSelector *expr
	accounts                                                  []string
	global                                                    bool
	nets, notNets, ports, notPorts                            []string
}

type calicoRule struct {
	action, protocol string
	icmp             int
	version          int
	local, remote    calicoEntity
}

type calicoPolicy struct {
	namespace, name, tier string
	order                 *float64
	selector              expr
	namespaceSelector     *expr
	types                 []string
	ingress, egress       []calicoRule
	staged                bool
}

type calicoTier struct {
	name  string
	order float64
	pass  bool
}

type calicoWorld struct {
	sets     []calicoSet
	tiers    []calicoTier
	policies []calicoPolicy
	// kubernetes says that there is a NetworkPolicy too: red web pods take from red db
	// pods only.
	kubernetes bool
}

const kubernetesPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: k, namespace: red}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}
`

// things is all that selectors of rules can select.
func (w *calicoWorld) things() []thing {
	var out []thing
	for _, p := range pods {
		out = append(out, thing{p.labels, withName(p.namespace), accountLabels[p.account], p.namespace, p.account, []string{p.ip + "/32"}})
	}
	for _, s := range w.sets {
		t := thing{labels: s.labels, nets: s.nets, namespace: s.namespace}
		if s.namespace != "" {
			t.namespaceLabels = withName(s.namespace)
		}
		out = append(out, t)
	}
	return out
}

func withName(namespace string) map[string]string {
	l := map[string]string{"projectcalico.org/name": namespace}
	for k, v := range namespaceLabels[namespace] {
		l[k] = v
	}
	return l
}

func (w *calicoWorld) entity(e *calicoEntity, namespace, ip string) bool {
	if len(e.nets) > 0 && !contains(e.nets, ip) || contains(e.notNets, ip) {
		return false
	}
	selects := e.selector != nil || e.namespaceSelector != nil || e.global || len(e.accounts) > 0 || e.accountSelector != nil ||
		namespace != "" && e.notSelector != nil
	if selects {
		found := false
		for _, t := range w.things() {
			ok := contains(t.nets, ip) &&
				(e.selector == nil || e.selector.is(t.labels)) &&
				(e.accountSelector == nil || e.accountSelector.is(t.accountLabels)) &&
				(len(e.accounts) == 0 || slices.Contains(e.accounts, t.account))
			switch {
			case e.global:
				ok = ok && t.namespace == ""
			case e.namespaceSelector != nil:
				ok = ok && e.namespaceSelector.is(t.namespaceLabels)
			case namespace != "":
				ok = ok && t.namespace == namespace
			}
			found = found || ok
		}
		if !found {
			return false
		}
	}
	if e.notSelector != nil {
		for _, t := range w.things() {
			if contains(t.nets, ip) && e.notSelector.is(t.labels) {
				return false
			}
		}
	}
	return true
}

func (r *calicoRule) matches(w *calicoWorld, namespace, local, remote string, f flow) bool {
	switch r.protocol {
	case "TCP":
		if f.protocol != policy.TCP {
			return false
		}
	case "UDP", "17":
		if f.protocol != policy.UDP {
			return false
		}
	case "ICMP":
		if f.protocol != policy.ICMP || r.icmp >= 0 && r.icmp != int(f.icmpType) {
			return false
		}
	}
	if r.version == 4 && strings.Contains(f.from+f.to, ":") || r.version == 6 && !strings.Contains(f.from+f.to, ":") {
		return false
	}
	if len(r.local.ports) > 0 && !inPorts(r.local.ports, f.port) || inPorts(r.local.notPorts, f.port) {
		return false
	}
	return w.entity(&r.remote, namespace, remote) && w.entity(&r.local, namespace, local)
}

func inPorts(list []string, port uint16) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		first, last, ok := strings.Cut(s, ":")
		if !ok {
			last = first
		}
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(last)
		return a <= int(port) && int(port) <= b
	})
}

// end decides one end of a flow.
func (w *calicoWorld) end(direction string, f flow) bool {
	local, remote := f.to, f.from
	if direction == "Egress" {
		local, remote = f.from, f.to
	}
	p := podAt(local)
	if p == nil {
		return true
	}
	type step struct {
		tier   calicoTier
		policy []calicoPolicy
	}
	steps := []step{{tier: calicoTier{name: "default", order: 1000000}}}
	for _, t := range w.tiers {
		steps = append(steps, step{tier: t})
	}
	for i := range steps {
		for _, q := range w.policies {
			tier := q.tier
			if tier == "" {
				tier = "default"
			}
			if tier != steps[i].tier.name || q.staged || !q.governs(direction) || !q.selects(p) {
				continue
			}
			steps[i].policy = append(steps[i].policy, q)
		}
		if w.kubernetes && steps[i].tier.name == "default" && direction == "Ingress" && p.namespace == "red" && p.labels["app"] == "web" {
			order, db := 1000.0, expr{"", func(l map[string]string) bool { return l["app"] == "db" }}
			steps[i].policy = append(steps[i].policy, calicoPolicy{namespace: "red", name: "~kubernetes", order: &order,
				ingress: []calicoRule{{action: "Allow", icmp: -1, remote: calicoEntity{selector: &db}}}})
		}
		slices.SortStableFunc(steps[i].policy, func(a, b calicoPolicy) int {
			return cmp.Or(cmp.Compare(number(a.order), number(b.order)), strings.Compare(a.name, b.name))
		})
	}
	slices.SortFunc(steps, func(a, b step) int {
		return cmp.Or(cmp.Compare(a.tier.order, b.tier.order), strings.Compare(a.tier.name, b.tier.name))
	})
tiers:
	for _, s := range steps {
		for _, q := range s.policy {
			rules := q.ingress
			if direction == "Egress" {
				rules = q.egress
			}
			for i := range rules {
				if !rules[i].matches(w, q.namespace, local, remote, f) {
					continue
				}
				switch rules[i].action {
				case "Allow":
					return true
				case "Deny":
					return false
				case "Pass":
					continue tiers
				}
			}
		}
		if len(s.policy) > 0 && !s.tier.pass {
			return false
		}
	}
	return true
}

func number(o *float64) float64 {
	if o == nil {
		return math.Inf(1)
	}
	return *o
}

func (p *calicoPolicy) governs(direction string) bool {
	switch {
	case p.types != nil:
		return slices.Contains(p.types, direction)
	case len(p.egress) == 0:
		return direction == "Ingress"
	case len(p.ingress) == 0:
		return direction == "Egress"
	}
	return true
}

func (p *calicoPolicy) selects(w *pod) bool {
	return (p.namespace == "" || p.namespace == w.namespace) && p.selector.is(w.labels) &&
		(p.namespaceSelector == nil || p.namespaceSelector.is(withName(w.namespace)))
}

// refusals are what random policies may say that ours can't.
var calicoRefusals = []string{"it can select no pod", "of which pods can't be taken out", "it selects nothing", "whose addresses could be", "service accounts are named one by one"}

func expected(errors, refusals []string) bool {
	return !slices.ContainsFunc(errors, func(e string) bool {
		return !slices.ContainsFunc(refusals, func(r string) bool { return strings.Contains(e, r) })
	})
}

func TestCalicoMeansTheSame(t *testing.T) {
	converted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := drawCalico(t)
		in := w.yaml()
		out, errors := convertText(in, Defaults())
		if len(errors) > 0 {
			if !expected(errors, calicoRefusals) {
				t.Fatalf("%s\n%s", strings.Join(errors, "\n"), in)
			}
			refused++
			return
		}
		converted++
		manifests := []string{out}
		if w.kubernetes {
			manifests = append(manifests, kubernetesPolicy)
		}
		r := compiled(t, manifests...)
		everybody := everybody()
		for _, from := range everybody {
			for _, to := range everybody {
				if from == to || podAt(from) == nil && podAt(to) == nil || strings.Contains(from, ":") != strings.Contains(to, ":") && podAt(from) != nil && podAt(to) != nil {
					continue
				}
				for _, f := range []flow{
					{protocol: policy.TCP, port: 80}, {protocol: policy.TCP, port: 8443}, {protocol: policy.UDP, port: 53},
					{protocol: policy.ICMP, icmpType: 8}, {protocol: policy.ICMP, icmpType: 3},
				} {
					f.from, f.to = from, to
					want := w.end("Egress", f) && w.end("Ingress", f)
					if got, why := allowed(r, f); got != want {
						t.Fatalf("%s: Calico allows %t, ours %t:\n%s\n--- read\n%s\n--- written\n%s", f, want, got, why, in, out)
					}
				}
			}
		}
	})
	if converted < refused {
		t.Errorf("of %d policies %d were refused: the test proves little", converted+refused, refused)
	}
}
