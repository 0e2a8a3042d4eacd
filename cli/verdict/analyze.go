package verdict

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Severities, the worst first.
var severities = []string{"error", "warning", "info"}

const (
	severe  = "error"
	warning = "warning"
	hint    = "info"
)

// Finding is something about a policy that its author did not mean.
type Finding struct {
	// Code is stable, for whoever reads the output with a program.
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Object   string `json:"object"`
	// Where is the place in the object, such as a rule; empty for all of it.
	Where string `json:"where,omitempty"`
	What  string `json:"what"`
	Mend  string `json:"mend"`
}

// Analysis is the result of `analyze`.
type Analysis struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Policies   int       `json:"policies"`
	Findings   []Finding `json:"findings"`
}

// The codes of findings, with what they are about.
var codes = []struct{ code, about string }{
	{"invalid", "a policy is not accepted: it only denies"},
	{"unresolved", "a policy names what does not exist"},
	{"selects-nothing", "a policy selects no pod"},
	{"peer-matches-nothing", "a peer of a rule is nobody"},
	{"unknown-namespace", "a peer names a namespace that does not exist"},
	{"l7-without-sidecar", "a rule about requests or identities is for pods without a sidecar"},
	{"named-port-missing", "a named port is none of any container"},
	{"shadowed-rule", "a rule is never reached"},
	{"tier-never-reached", "a tier before decides everything"},
	{"same-order", "names decide which of two policies comes first"},
	{"denies-dns", "pods may not ask the cluster's DNS"},
	{"denies-kubelet", "the kubelet's probes are dropped"},
}

// Analyze is `hauberk analyze`; `hauberk policy analyze` is the same.
func Analyze(env *run.Env) *cobra.Command {
	var from origin
	var failOn string
	var timeout time.Duration
	var about strings.Builder
	for _, c := range codes {
		fmt.Fprintf(&about, "\n  %-22s %s", c.code, c.about)
	}
	c := &cobra.Command{
		Use:   "analyze [FILE...]",
		Short: "Find what is wrong with policies: of the cluster, or of manifests",
		Long: `Find what is wrong with policies: of the cluster, or of the manifests in FILEs and directories. With --live FILEs are added to
what the cluster has.

Findings have stable codes:` + about.String() + `

Exit code 79 says that there are findings of the severity of --fail-on, or worse.`,
		Example: `  hauberk analyze
  hauberk analyze policies/ workloads.yaml --fail-on error
  hauberk analyze new.yaml --live -o sarif`,
		Annotations: map[string]string{run.FormatsAnnotation: "sarif"},
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			if failOn != "none" && !slices.Contains(severities, failOn) {
				return run.Fail(run.ExitUsage, "use error, warning, info or none", "unknown --fail-on %q", failOn)
			}
			from.files = append(from.files, args...)
			w, err := load(ctx, env, from)
			if err != nil {
				return err
			}
			w.warnings(env)
			a := w.analyze()
			if err := a.write(env); err != nil {
				return err
			}
			if a.worse(failOn) {
				return run.Told(run.ExitFindings)
			}
			return nil
		},
	}
	from.addFlags(c)
	c.Flags().StringVar(&failOn, "fail-on", warning, "exit with 79 for findings of this severity, or worse: error, warning, info or none")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}

// worse reports whether a finding is of the severity or worse.
func (a *Analysis) worse(than string) bool {
	return slices.ContainsFunc(a.Findings, func(f Finding) bool {
		return than != "none" && slices.Index(severities, f.Severity) <= slices.Index(severities, than)
	})
}

// analyst collects findings.
type analyst struct {
	*world
	findings []Finding
	subjects map[policy.Ref][]string
}

func (w *world) analyze() *Analysis {
	a := &analyst{world: w, subjects: map[policy.Ref][]string{}}
	reports := map[policy.Ref]*compile.PolicyReport{}
	for i := range w.resources.Policies {
		r := &w.resources.Policies[i]
		reports[r.Ref], a.subjects[r.Ref] = r, r.Subjects
	}
	for i := range w.facts.Policies {
		p := &w.facts.Policies[i]
		report := reports[p.Ref]
		if report == nil {
			continue
		}
		a.resolved(p, report)
		if len(report.Subjects) == 0 {
			a.find("selects-nothing", warning, p.Ref, "", "it selects no running pod",
				"compare its podSelector and namespaceSelector with the labels of the pods, or delete it")
			continue
		}
		a.sidecars(p, report)
		for _, side := range []struct {
			direction policy.Direction
			rules     []compile.Rule
		}{{policy.Ingress, p.Ingress}, {policy.Egress, p.Egress}} {
			for j := range side.rules {
				a.peers(p, &side.rules[j])
				a.namedPorts(p, report, side.direction, &side.rules[j])
			}
		}
	}
	a.reached()
	a.orders()
	a.dns()
	a.kubelet()
	slices.SortStableFunc(a.findings, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(severities, x.Severity), slices.Index(severities, y.Severity)),
			strings.Compare(x.Object, y.Object), strings.Compare(x.Where, y.Where), strings.Compare(x.Code, y.Code), strings.Compare(x.What, y.What))
	})
	return &Analysis{APIVersion: run.OutputVersion, Kind: "PolicyAnalysis", Policies: len(w.facts.Policies), Findings: append([]Finding{}, slices.Compact(a.findings)...)}
}

func (a *analyst) find(code, severity string, ref policy.Ref, where, what, mend string) {
	a.findings = append(a.findings, Finding{code, severity, ref.String(), where, what, mend})
}

// resolved says what the control plane says in conditions.
func (a *analyst) resolved(p *compile.Policy, report *compile.PolicyReport) {
	for _, reason := range report.Invalid {
		a.find("invalid", severe, p.Ref, "", reason, "mend it: until then its Allow and Pass rules match nothing, and its Deny rules all that they could mean")
	}
	for _, reason := range report.Unresolved {
		if !slices.Contains(report.Invalid, reason) {
			a.find("unresolved", warning, p.Ref, "", reason, "create it, or mend the name")
		}
	}
}

// sidecars finds rules that only a sidecar can decide, for pods without one.
func (a *analyst) sidecars(p *compile.Policy, report *compile.PolicyReport) {
	var without []string
	for _, uid := range report.Subjects {
		if pod := a.pods[uid]; pod != nil && !pod.Meshed && !pod.HostNetwork {
			without = append(without, workloadName(pod))
		}
	}
	if len(without) == 0 {
		return
	}
	slices.Sort(without)
	without = slices.Compact(without)
	for _, r := range slices.Concat(p.Ingress, p.Egress) {
		if r.L7() || slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return len(p.Principals) > 0 }) {
			does := "never allows"
			if r.Action == policy.Deny {
				does = "denies whatever it may mean"
			}
			a.find("l7-without-sidecar", severe, p.Ref, r.Name, fmt.Sprintf("it is about requests or identities, and %s has no sidecar to see them: there the rule %s", run.Some(without), does),
				"put the pods into the mesh (label "+names.LabelInject+": "+names.InjectEnabled+" and a restart), or select only those that are in it")
		}
	}
}

// peers finds peers that are nobody.
func (a *analyst) peers(p *compile.Policy, r *compile.Rule) {
	for i := range r.Peers {
		peer := &r.Peers[i]
		if !peer.SelectsWorkloads() {
			continue
		}
		var missing []string
		for _, name := range namesOf(peer) {
			if !slices.ContainsFunc(a.facts.Namespaces, func(n compile.Namespace) bool { return n.Name == name }) {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			a.find("unknown-namespace", warning, p.Ref, r.Name, fmt.Sprintf("peer %d names namespace %s, which does not exist", i+1, strings.Join(missing, " and ")), "create it, or mend the name")
			continue
		}
		if !a.anyPod(func(uid string) bool {
			w, _ := a.resources.Workload(uid)
			return peer.Selects(w, false)
		}) {
			a.find("peer-matches-nothing", warning, p.Ref, r.Name, fmt.Sprintf("peer %d matches no running pod", i+1), "compare its selectors with the labels of the pods and namespaces; if the pods are still to come, all is well")
		}
	}
}

// namesOf is the namespaces that the peer names, by list or by the label that
// every namespace has.
func namesOf(p *policy.Peer) []string {
	list := slices.Clone(p.Namespaces)
	if p.NamespaceSelector != nil {
		for _, r := range p.NamespaceSelector.Requirements {
			if r.Key == "kubernetes.io/metadata.name" && r.Operator == policy.In {
				list = append(list, r.Values...)
			}
		}
	}
	return list
}

func (a *analyst) anyPod(is func(uid string) bool) bool {
	for uid, p := range a.pods {
		if !p.HostNetwork && is(uid) {
			return true
		}
	}
	return false
}

// namedPorts finds names of ports that no destination has.
func (a *analyst) namedPorts(p *compile.Policy, report *compile.PolicyReport, d policy.Direction, r *compile.Rule) {
	destination := func(uid string) bool { return slices.Contains(report.Subjects, uid) }
	if d == policy.Egress {
		destination = func(uid string) bool {
			w, _ := a.resources.Workload(uid)
			return r.AnyPeer || slices.ContainsFunc(r.Peers, func(peer policy.Peer) bool { return !peer.SelectsWorkloads() || peer.Selects(w, true) })
		}
	}
	for _, m := range r.Ports {
		if m.Name == "" || a.anyPod(func(uid string) bool { return destination(uid) && namedPort(a.pods[uid], m.Name, m.Protocol) != 0 }) {
			continue
		}
		of := "that it selects"
		if d == policy.Egress {
			of = "to which the rule is"
		}
		a.find("named-port-missing", warning, p.Ref, r.Name, fmt.Sprintf("no pod %s has a %s port named %q, so that port matches nothing", of, m.Protocol, m.Name),
			"name the port in the pods' containers, or give its number")
	}
}
