package convert

import (
	"fmt"
	"strconv"
	"strings"

	"pgregory.net/rapid"
)

func drawEntity(t *rapid.T, w *calicoWorld, namespaced bool) calicoEntity {
	var e calicoEntity
	draw := func(label string, keys map[string][]string, oneIn int) *expr {
		if !chance(t, label, oneIn) {
			return nil
		}
		x := drawExpr(t, 2, keys)
		return &x
	}
	e.selector = draw("selector", peerKeys, 2)
	e.notSelector = draw("notSelector", podKeys, 5)
	if e.notSelector != nil && e.notSelector.text == "all()" {
		e.notSelector = nil
	}
	e.namespaceSelector = draw("namespaceSelector", namespaceKeys, 4)
	if e.namespaceSelector == nil && e.notSelector == nil && chance(t, "global", 10) {
		e.global = true
	}
	if !e.global && e.namespaceSelector == nil && namespaced {
		e.accounts = some(t, "accounts", 2, "worker", "boss")
	}
	if !e.global && chance(t, "accountSelector", 6) {
		x := drawExpr(t, 1, map[string][]string{"rank": {"low", "high"}})
		e.accountSelector = &x
	}
	nets := []string{"10.244.0.0/24", "10.244.0.2/32", "203.0.113.0/24", "203.0.113.128/25", "0.0.0.0/0", "2001:db8::/32"}
	if chance(t, "hasNets", 3) {
		e.nets = some(t, "nets", 3, nets...)
	}
	if chance(t, "hasNotNets", 3) {
		e.notNets = some(t, "notNets", 2, nets...)
	}
	return e
}

func drawRules(t *rapid.T, w *calicoWorld, namespaced bool) []calicoRule {
	var out []calicoRule
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		r := calicoRule{action: oneOf(t, "action", "Allow", "Allow", "Deny", "Pass", "Log"), icmp: -1}
		r.protocol = oneOf(t, "protocol", "", "TCP", "TCP", "UDP", "ICMP", "17")
		if chance(t, "anyone", 3) {
			r.remote = calicoEntity{}
		} else {
			r.remote = drawEntity(t, w, namespaced)
		}
		if chance(t, "local", 5) {
			x := drawExpr(t, 1, podKeys)
			r.local.selector = &x
		}
		if chance(t, "version", 8) {
			r.version = oneOf(t, "ipVersion", 4, 6)
		}
		switch r.protocol {
		case "TCP", "UDP", "17":
			r.remote.ports, r.remote.notPorts = nil, nil
			r.local.ports = some(t, "ports", 2, "80", "53", "80:8080", "0:79")
			r.local.notPorts = some(t, "notPorts", 2, "80", "8000:9000")
		case "ICMP":
			if chance(t, "icmpType", 2) {
				r.icmp = oneOf(t, "type", 0, 8)
			}
		}
		out = append(out, r)
	}
	return out
}

func drawCalico(t *rapid.T) *calicoWorld {
	w := &calicoWorld{kubernetes: chance(t, "kubernetes", 3)}
	for i := range rapid.IntRange(0, 2).Draw(t, "sets") {
		w.sets = append(w.sets, calicoSet{
			namespace: oneOf(t, "namespace", "", "red", "blue"), name: fmt.Sprintf("set%d", i),
			labels: map[string]string{"list": oneOf(t, "label", "good", "bad")},
			nets:   []string{oneOf(t, "net", "203.0.113.0/25", "198.51.100.9/32", "10.244.1.0/24")},
		})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "tiers") {
		w.tiers = append(w.tiers, calicoTier{fmt.Sprintf("tier%d", i), oneOf(t, "order", 5, 5.5, 2000, 2000000), chance(t, "pass", 3)})
	}
	tiers := []string{"", "default"}
	for _, tier := range w.tiers {
		tiers = append(tiers, tier.name)
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "policies") {
		p := calicoPolicy{namespace: oneOf(t, "namespace", "", "red", "blue"), tier: oneOf(t, "tier", tiers...), staged: chance(t, "staged", 8)}
		p.name = fmt.Sprintf("%s%d", oneOf(t, "name", "a", "m", "z"), i)
		if chance(t, "ordered", 2) {
			o := oneOf(t, "order", 1, 10, 10, 10.5, 1000, 1000.25, 3000)
			p.order = &o
		}
		p.selector = anything
		if chance(t, "selects", 2) {
			p.selector = drawExpr(t, 2, podKeys)
		}
		if p.namespace == "" && chance(t, "namespaceSelector", 3) {
			x := drawExpr(t, 1, namespaceKeys)
			p.namespaceSelector = &x
		}
		p.ingress, p.egress = drawRules(t, w, p.namespace != ""), drawRules(t, w, p.namespace != "")
		if chance(t, "types", 2) {
			p.types = oneOf(t, "types", []string{"Ingress", "Egress"}, []string{"Egress", "Ingress"})
		}
		w.policies = append(w.policies, p)
	}
	return w
}

// fields is an object without what is not set.
type fields map[string]any

func (f fields) set(name string, value any) {
	switch v := value.(type) {
	case nil:
		return
	case *expr:
		if v == nil {
			return
		}
		value = v.text
	case []string:
		if len(v) == 0 {
			return
		}
	case fields:
		if len(v) == 0 {
			return
		}
	case string:
		if v == "" {
			return
		}
	}
	f[name] = value
}

// portsOf writes numbers as numbers and ranges as text.
func portsOf(list []string) any {
	var out []any
	for _, p := range list {
		if n, err := strconv.Atoi(p); err == nil {
			out = append(out, n)
		} else {
			out = append(out, p)
		}
	}
	if out == nil {
		return nil
	}
	return out
}

func (e *calicoEntity) fields() fields {
	f := fields{}
	f.set("selector", e.selector)
	f.set("notSelector", e.notSelector)
	f.set("namespaceSelector", e.namespaceSelector)
	if e.global {
		f.set("namespaceSelector", "global()")
	}
	accounts := fields{}
	accounts.set("names", e.accounts)
	accounts.set("selector", e.accountSelector)
	f.set("serviceAccounts", accounts)
	f.set("nets", e.nets)
	f.set("notNets", e.notNets)
	f.set("ports", portsOf(e.ports))
	f.set("notPorts", portsOf(e.notPorts))
	return f
}

func rulesOf(rules []calicoRule, egress bool) any {
	var out []any
	for i := range rules {
		r := rules[i]
		f := fields{"action": r.action}
		if n, err := strconv.Atoi(r.protocol); err == nil {
			f["protocol"] = n
		} else {
			f.set("protocol", r.protocol)
		}
		if r.icmp >= 0 {
			f["icmp"] = fields{"type": r.icmp}
		}
		if r.version > 0 {
			f["ipVersion"] = r.version
		}
		source, destination := r.remote, r.local
		if egress {
			source, destination = r.local, r.remote
			destination.ports, destination.notPorts = r.local.ports, r.local.notPorts
			source.ports, source.notPorts = nil, nil
		}
		f.set("source", source.fields())
		f.set("destination", destination.fields())
		out = append(out, f)
	}
	if out == nil {
		return nil
	}
	return out
}

func (w *calicoWorld) yaml() string {
	var docs []string
	add := func(kind, namespace, name string, labels map[string]string, spec fields) {
		m := fields{"name": name}
		m.set("namespace", namespace)
		if labels != nil {
			m["labels"] = labels
		}
		docs = append(docs, asJSON(fields{"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": m, "spec": spec}))
	}
	for ns, labels := range namespaceLabels {
		docs = append(docs, asJSON(fields{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": ns, "labels": labels}}))
	}
	for _, s := range w.sets {
		kind := "NetworkSet"
		if s.namespace == "" {
			kind = "GlobalNetworkSet"
		}
		add(kind, s.namespace, s.name, s.labels, fields{"nets": s.nets})
	}
	for _, t := range w.tiers {
		f := fields{"order": t.order}
		if t.pass {
			f["defaultAction"] = "Pass"
		}
		add("Tier", "", t.name, nil, f)
	}
	for _, p := range w.policies {
		kind := "NetworkPolicy"
		if p.namespace == "" {
			kind = "GlobalNetworkPolicy"
		}
		f := fields{"selector": p.selector.text}
		if p.staged {
			kind = "Staged" + kind
			f["stagedAction"] = "Set"
		}
		f.set("tier", p.tier)
		if p.order != nil {
			f["order"] = *p.order
		}
		f.set("namespaceSelector", p.namespaceSelector)
		f.set("types", p.types)
		f.set("ingress", rulesOf(p.ingress, false))
		f.set("egress", rulesOf(p.egress, true))
		add(kind, p.namespace, p.name, nil, f)
	}
	return strings.Join(docs, "\n---\n")
}
