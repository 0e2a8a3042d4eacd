package istio

import (
	"slices"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

// Group is the API group of Istio's objects that say who may talk to whom.
const Group = "security.istio.io"

// dryRun is the annotation of policies that decide nothing.
const dryRun = "istio.io/dry-run"

// Options say what manifests do not.
type Options struct {
	// RootNamespace is the namespace of policies for the whole mesh.
	RootNamespace string
	// TrustDomain is the mesh's, Aliases are others that stand for it.
	TrustDomain string
	Aliases     []string
	// HostsAnyPort reads each host as with any port.
	HostsAnyPort bool
}

type converter struct {
	report      *manifest.Report
	root        string
	domains     []string
	anyHostPort bool
}

// Convert converts the objects of Istio's group.
func Convert(objects []*manifest.Object, opts Options, report *manifest.Report) []manifest.Converted {
	c := &converter{report: report, root: opts.RootNamespace, anyHostPort: opts.HostsAnyPort}
	for _, d := range append([]string{opts.TrustDomain}, opts.Aliases...) {
		if !slices.Contains(c.domains, d) {
			c.domains = append(c.domains, d)
		}
	}
	var policies []*policy
	var peers []*manifest.Object
	for _, o := range objects {
		switch at := (manifest.At{Object: o, Report: report}); o.Kind {
		case "AuthorizationPolicy":
			if p := c.policy(o); p != nil {
				policies = append(policies, p)
			}
		case "PeerAuthentication":
			peers = append(peers, o)
		case "RequestAuthentication":
			at.Error("%s", noTokens)
		default:
			at.Error("kind %s can't be converted", o.Kind)
		}
	}
	out := c.peerAuthentications(peers)
	if report.Err() != nil {
		return nil
	}
	return append(out, c.objects(policies)...)
}

// policy is an AuthorizationPolicy, read.
type policy struct {
	from   *manifest.Object
	action string
	mode   v1alpha1.PolicyMode
	labels map[string]string
	// mesh says that it is for all namespaces.
	mesh    bool
	clauses []clause
}

func (c *converter) policy(o *manifest.Object) *policy {
	var object authorizationObject
	at := manifest.At{Object: o, Report: c.report}
	if !o.Decode(&object, c.report) {
		return nil
	}
	before := len(c.report.Errors)
	spec := &object.Spec
	p := &policy{from: o, action: spec.Action, mesh: o.Meta.Namespace == c.root}
	if spec.Selector != nil {
		p.labels = spec.Selector.MatchLabels
	}
	if o.Meta.Annotations[dryRun] == "true" {
		p.mode = "Audit"
	}
	if spec.TargetRef != nil || len(spec.TargetRefs) > 0 {
		at.In("spec.targetRefs").Error("there are no waypoints or gateways to attach a policy to: select the pods by spec.selector")
	}
	switch p.action {
	case "":
		p.action = "ALLOW"
	case "ALLOW", "DENY", "AUDIT":
	case "CUSTOM":
		at.In("spec.action").Error("CUSTOM asks an external authorizer, which the mesh has not: say its rules in a policy, or keep asking it in the application")
	default:
		at.In("spec.action").Error("%q is none of ALLOW, DENY, AUDIT, CUSTOM", p.action)
	}
	if spec.Provider != nil && p.action != "CUSTOM" {
		at.In("spec.provider").Error("it belongs to action CUSTOM")
	}
	for i := range spec.Rules {
		p.clauses = append(p.clauses, c.rule(at.In("spec.rules[%d]", i), p, &spec.Rules[i])...)
	}
	if len(c.report.Errors) > before {
		return nil
	}
	if len(p.clauses) == 0 && p.action != "ALLOW" {
		at.In("spec.rules").Note("left out: without rules it matches nothing")
	}
	return p
}

// rule is the OR of clauses that a rule is: each source with each operation.
func (c *converter) rule(at manifest.At, p *policy, r *rule) []clause {
	namespace := p.from.Meta.Namespace
	sources := []clause{{}}
	if len(r.From) > 0 {
		sources = nil
	}
	for i := range r.From {
		var one clause
		at := at.In("from[%d].source", i)
		if s := r.From[i].Source; s == nil || isZero(s) {
			at.Error("it is empty: leave out from to mean anyone")
		} else {
			c.source(at, namespace, s, &one)
		}
		sources = append(sources, one)
	}
	operations := []clause{{}}
	if len(r.To) > 0 {
		operations = nil
	}
	for i := range r.To {
		var one clause
		at := at.In("to[%d].operation", i)
		if o := r.To[i].Operation; o == nil || isZero(o) {
			at.Error("it is empty: leave out to to mean anything")
		} else {
			c.operation(at, o, &one)
		}
		operations = append(operations, one)
	}
	var when clause
	for i := range r.When {
		c.when(at.In("when[%d]", i), namespace, &r.When[i], &when)
	}
	var out []clause
	request := false
	for _, o := range operations {
		for _, s := range sources {
			sum, ok := both(s.yes, o.yes)
			if ok {
				sum, ok = both(sum, when.yes)
			}
			if !ok {
				at.Error("its conditions together can't be said: split the rule")
				continue
			}
			request = request || sum.request
			one := clause{yes: sum, not: slices.Concat(s.not, o.not, when.not)}
			if one.yes.never() {
				at.Note("a part of it is left out: nothing can match it")
				continue
			}
			out = append(out, one)
		}
	}
	if request && p.action == "ALLOW" {
		// A rule that speaks of requests anywhere allows requests only.
		for i := range out {
			out[i].yes.request = true
		}
	}
	return out
}
