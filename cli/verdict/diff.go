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
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/policy"
)

// DiffReport is the result of `policy diff`.
type DiffReport struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Changes    []FlowChange `json:"changes"`
	// Compared is how many pairs of workloads, nodes and address ranges there are,
	// Asked how many of them the change can touch.
	Compared int `json:"compared"`
	Asked    int `json:"asked"`
	// Bounded is what is left out; nothing when the answer is exact.
	Bounded []string `json:"bounded,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// FlowChange is flows that open or close alike.
type FlowChange struct {
	Change string   `json:"change"` // opens or closes
	From   []string `json:"from"`
	To     []string `json:"to"`
	Flows  []string `json:"flows"`
	Was    string   `json:"was"`
	Will   string   `json:"will"`
}

const (
	opens  = "opens"
	closes = "closes"
)

type diffOptions struct {
	against []string
	prune   bool
	failOn  string
	timeout time.Duration
}

func diffCommand(env *run.Env) *cobra.Command {
	o := &diffOptions{}
	var files []string
	c := &cobra.Command{
		Use:   "diff [-f] FILE...",
		Short: "Say which flows open and close when manifests are applied",
		Long: `Say which flows open and close when manifests are applied to the cluster, or to what --against says, between all workloads,
nodes and ranges of addresses that policies tell apart, for every port and every kind of request that they tell apart.

Objects of FILE replace those of the same name and are added else. Nothing is applied and no packet is sent.

Exit code 0 says that the comparison was made; with --fail-on 79 says that flows open or close.`,
		Example: `  hauberk policy diff new.yaml
  hauberk policy diff policies/ --against main/policies/ --against workloads.yaml --prune
  hauberk policy diff new.yaml --fail-on opens`,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
			defer cancel()
			files = append(files, args...)
			switch {
			case len(files) == 0 && !o.prune:
				return run.Fail(run.ExitUsage, "see `hauberk policy diff --help`", "name the manifests that are to be applied")
			case !slices.Contains([]string{"none", opens, closes, "any"}, o.failOn):
				return run.Fail(run.ExitUsage, "use none, opens, closes or any", "unknown --fail-on %q", o.failOn)
			}
			return diff(ctx, env, o, files)
		},
	}
	f := c.Flags()
	f.StringSliceVarP(&files, "filename", "f", nil, "manifests that are to be applied, as FILE")
	f.StringSliceVar(&o.against, "against", nil, "compare with these manifests, or all of a directory, instead of the cluster")
	f.BoolVar(&o.prune, "prune", false, "policies, tiers and network sets that FILE does not have are deleted")
	f.StringVar(&o.failOn, "fail-on", "none", "exit with 79 when flows change: none, opens, closes or any")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to read the cluster")
	return c
}

func diff(ctx context.Context, env *run.Env, o *diffOptions, files []string) error {
	objects, _, err := loadObjects(ctx, env, origin{files: o.against})
	if err != nil {
		return err
	}
	before := newWorld(source.FactsFrom(objects))
	before.warnings(env)
	if o.prune {
		prunePolicies(objects)
	}
	if err := addFiles(env, objects, files); err != nil {
		return err
	}
	after := newWorld(source.FactsFrom(objects))
	report := compare(before, after)
	report.note(after)
	if done, err := env.Structured(report); err != nil {
		return err
	} else if !done {
		report.print(env)
	}
	for _, c := range report.Changes {
		if o.failOn == "any" || o.failOn == c.Change {
			return run.Told(run.ExitFindings)
		}
	}
	return nil
}

func prunePolicies(o *source.Objects) {
	o.NetworkPolicies, o.MeshPolicies, o.ClusterMeshPolicies, o.ClusterNetworkPolicies = nil, nil, nil, nil
	o.Tiers, o.PeerAuthentications, o.NetworkSets, o.ClusterNetworkSets = nil, nil, nil, nil
}

// differ compares two worlds.
type differ struct {
	before, after *world
	bounded       map[string]bool
}

// flowKey is flows of one pair that change alike.
type flowKey struct{ change, was, will string }

// compare asks both worlds about every pair that a change can touch.
func compare(before, after *world) *DiffReport {
	report := &DiffReport{APIVersion: run.OutputVersion, Kind: "PolicyDiff", Changes: []FlowChange{}}
	d := &differ{before: before, after: after, bounded: map[string]bool{}}
	all, alone := classes(before, after)
	report.Notes = alone
	type groupKey struct {
		flowKey
		to, flows string
	}
	groups := map[groupKey]*FlowChange{}
	var order []groupKey
	for _, to := range all {
		for _, from := range all {
			if !from.pod() && !to.pod() {
				continue
			}
			report.Compared++
			if !from.egress && !to.ingress && !from.changed && !to.changed {
				continue
			}
			report.Asked++
			source, destination := pick(from, to)
			changes := d.flows(source, destination).text()
			for _, key := range sortedKeys(changes) {
				g := groupKey{key, to.name, strings.Join(changes[key], "; ")}
				if groups[g] == nil {
					groups[g] = &FlowChange{Change: key.change, To: []string{to.name}, Flows: changes[key], Was: key.was, Will: key.will}
					order = append(order, g)
				}
				groups[g].From = append(groups[g].From, from.name)
			}
		}
	}
	// Destinations that change alike for the same sources.
	byRest := map[string]int{}
	for _, g := range order {
		c := groups[g]
		rest := strings.Join([]string{c.Change, c.Was, c.Will, g.flows, strings.Join(c.From, "\x00")}, "\x01")
		if i, ok := byRest[rest]; ok {
			report.Changes[i].To = append(report.Changes[i].To, c.To...)
			continue
		}
		byRest[rest] = len(report.Changes)
		report.Changes = append(report.Changes, *c)
	}
	slices.SortStableFunc(report.Changes, func(a, b FlowChange) int { return strings.Compare(b.Change, a.Change) }) // opens first
	for why := range d.bounded {
		report.Bounded = append(report.Bounded, why)
	}
	for _, pattern := range strangers(before, after) {
		report.Bounded = append(report.Bounded, fmt.Sprintf("nobody here proves principal %s: flows of those who do are not asked", pattern))
	}
	slices.Sort(report.Bounded)
	return report
}

// strangers are the patterns of principals that no pod proves.
func strangers(before, after *world) []string {
	seen := map[string]bool{}
	for _, w := range []*world{before, after} {
		for _, s := range w.resources.PolicySets {
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				eachRule(s.Set, d, func(_ *policy.Policy, r *policy.Rule) {
					for i := range r.Peers {
						for _, pattern := range r.Peers[i].Principals {
							seen[pattern] = seen[pattern] || w.proves(pattern)
						}
					}
				})
			}
		}
	}
	var list []string
	for pattern, proved := range seen {
		if !proved {
			list = append(list, pattern)
		}
	}
	return list
}

// proves reports whether a pod's identity matches the pattern.
func (w *world) proves(pattern string) bool {
	stem, wild := strings.CutSuffix(pattern, "*")
	for _, wl := range w.resources.Workloads {
		if id := wl.GetSpiffeId(); id == pattern || wild && id != "" && strings.HasPrefix(id, stem) {
			return true
		}
	}
	return false
}

// note says what is wrong with the policies that are compared.
func (r *DiffReport) note(after *world) {
	for _, p := range after.resources.Policies {
		for _, problem := range slices.Concat(p.Invalid, p.Unresolved) {
			if note := fmt.Sprintf("%s will not be accepted: %s", p.Ref, problem); !slices.Contains(r.Notes, note) {
				r.Notes = append(r.Notes, note)
			}
		}
	}
}

// print is the report for people.
func (r *DiffReport) print(env *run.Env) {
	words := []struct{ change, text string }{
		{opens, env.Paint(env.Out, run.Green, "Opens")},
		{closes, env.Paint(env.Out, run.Red, "Closes")},
	}
	for _, w := range words {
		for _, c := range r.Changes {
			if c.Change != w.change {
				continue
			}
			fmt.Fprintf(env.Out, "%s: %s → %s\n", w.text, strings.Join(c.From, ", "), strings.Join(c.To, ", "))
			for _, f := range c.Flows {
				fmt.Fprintf(env.Out, "  %s\n", f)
			}
			fmt.Fprintf(env.Out, "    was %s\n    will be %s\n", c.Was, c.Will)
		}
	}
	if len(r.Changes) == 0 {
		fmt.Fprintln(env.Out, "No flow opens or closes.")
	}
	fmt.Fprintf(env.Out, "%d pairs of workloads, nodes and address ranges, of which the change can touch %d.\n", r.Compared, r.Asked)
	for _, n := range r.Notes {
		fmt.Fprintf(env.Out, "%s %s\n", env.Warn(), n)
	}
	for _, b := range r.Bounded {
		fmt.Fprintf(env.Out, "%s not exact: %s\n", env.Warn(), b)
	}
}

func sortedKeys(m map[flowKey][]string) []flowKey {
	keys := make([]flowKey, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b flowKey) int {
		return cmp.Or(strings.Compare(b.change, a.change), strings.Compare(a.was, b.was), strings.Compare(a.will, b.will))
	})
	return keys
}

// flows are those that change between two ends, and how.
func (d *differ) flows(source, destination *member) *flowSet {
	involved := d.rules(source, destination)
	icmp := policy.ICMP
	if a := destination.before.endpoint.Addr; a.Is6() {
		icmp = policy.ICMPv6
	}
	var samples []sample // made when the first port needs them
	found := newFlowSet()
	for _, s := range involved.spans(destination, icmp) {
		if s.protocol != policy.TCP || !d.mixed(source, destination, s) {
			d.ask(found, source, destination, s, []sample{{}}, false)
			continue
		}
		if samples == nil {
			var bounded []string
			samples, bounded = involved.samples()
			for _, why := range bounded {
				d.bounded[why] = true
			}
		}
		d.ask(found, source, destination, s, samples, true)
	}
	return found
}

// pick is one member of each class: two pods of one class if there are, and of
// nodes another than the pod's own, which is always let in.
func pick(from, to *class) (source, destination *member) {
	source, destination = &from.members[0], &to.members[len(to.members)-1]
	for _, pair := range [][2]**member{{&source, &destination}, {&destination, &source}} {
		node, pod := (*pair[0]).before, (*pair[1]).before
		if !node.endpoint.Host || node.pod != nil || pod.pod == nil {
			continue
		}
		members := from.members
		if pair[0] == &destination {
			members = to.members
		}
		for i := range members {
			if members[i].before.endpoint.HostOf != pod.pod.Node {
				*pair[0] = &members[i]
				break
			}
		}
	}
	return source, destination
}

// rules are those of both ends in both worlds.
func (d *differ) rules(source, destination *member) rules {
	var list rules
	add := func(w *world, e *end, direction policy.Direction) {
		if e.pod != nil && !e.endpoint.Host {
			eachRule(w.resources.SetOf(e.pod.UID), direction, func(_ *policy.Policy, r *policy.Rule) { list = append(list, r) })
		}
	}
	add(d.before, source.before, policy.Egress)
	add(d.after, source.after, policy.Egress)
	add(d.before, destination.before, policy.Ingress)
	add(d.after, destination.after, policy.Ingress)
	return list
}

func (d *differ) question(w *world, from, to *end, s span, http *policy.HTTPRequest) *Answer {
	source, destination := *from, *to
	q := &question{from: &source, to: &destination, protocol: s.protocol, port: uint16(s.first), icmpType: s.icmpType, icmpCode: s.icmpCode, http: http}
	sameFamily(q)
	return w.decide(q)
}

// mixed reports whether requests on the port may be decided differently.
func (d *differ) mixed(source, destination *member, s span) bool {
	of := func(w *world, from, to *end) bool {
		f := policy.Flow{Source: from.endpoint, Destination: to.endpoint, Protocol: s.protocol, Port: uint16(s.first)}
		fromSees, toSees := w.seen(from, policy.Egress, &f), w.seen(to, policy.Ingress, &f)
		if f.MTLS = fromSees && toSees; !f.MTLS {
			f.Source.Principal, f.Destination.Principal = "", ""
		}
		mixed := func(e *end, direction policy.Direction) bool {
			set := w.resources.SetOf(e.pod.UID)
			return set != nil && set.ProjectConnection(direction, &f) == policy.Mixed
		}
		return fromSees && mixed(from, policy.Egress) || toSees && mixed(to, policy.Ingress)
	}
	return of(d.before, source.before, destination.before) || of(d.after, source.after, destination.after)
}

// ask compares one span of ports with each sample. requests says that the
// samples are all kinds of requests, and not one for all of them.
func (d *differ) ask(found *flowSet, source, destination *member, s span, samples []sample, requests bool) {
	changed := map[flowKey][]sample{}
	for _, request := range samples {
		was := d.question(d.before, source.before, destination.before, s, request.http)
		will := d.question(d.after, source.after, destination.after, s, request.http)
		if was.Allowed == will.Allowed {
			continue
		}
		key := flowKey{opens, was.reason(), will.reason()}
		if was.Allowed {
			key.change = closes
		}
		changed[key] = append(changed[key], request)
	}
	for key, list := range changed {
		text := ""
		if requests {
			text = requestsText(list, samples)
		}
		found.add(key, s, text)
	}
}

// reason is the verdict with what decided it.
func (a *Answer) reason() string {
	word := "denied: "
	if a.Allowed {
		word = "allowed: "
	}
	return word + by(a.deciding())
}
