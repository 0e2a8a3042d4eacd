package verdict

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// mostPaths is how many paths of one peer and port a suggestion names; with
// more of them it names methods only.
const mostPaths = 20

// volatile labels are of single pods or of one roll-out.
var volatile = []string{"pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name",
	"apps.kubernetes.io/pod-index", "batch.kubernetes.io/controller-uid", "controller-uid", "batch.kubernetes.io/job-completion-index"}

func suggestCommand(env *run.Env) *cobra.Command {
	var from origin
	var requests bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "suggest FLOWS...",
		Short: "Print the narrowest policies that allow recorded flows",
		Long: `Print the narrowest policies that allow recorded flows: for each workload that was reached, a MeshPolicy that admits those
who reached it, at the ports and with the requests that were seen. FLOWS is what ` + "`hauberk flows -o json`" + ` printed; flows that were
denied count for nothing. What was not recorded is not allowed, so record for as long as it takes to see everything, read what is
printed, and try it with ` + "`mode: Audit`" + ` first.`,
		Example: `  hauberk flows -A --verdict all -f -o json > flows.jsonl
  hauberk policy suggest flows.jsonl > suggested.yaml
  hauberk policy diff suggested.yaml`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return suggest(ctx, env, from, args, requests)
		},
	}
	from.addFlags(c)
	c.Flags().BoolVar(&requests, "requests", true, "name methods and paths where requests were recorded")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}

func suggest(ctx context.Context, env *run.Env, from origin, files []string, requests bool) error {
	records, err := readRecords(env, files)
	if err != nil {
		return err
	}
	objects, _, err := loadObjects(ctx, env, from)
	if err != nil {
		return err
	}
	w := newWorld(source.FactsFrom(objects))
	w.warnings(env)
	records = slices.DeleteFunc(records, func(r flow.Record) bool { return r.Verdict != flow.Allow })
	questions, unknown := w.questions(records)
	suggested, bare := w.suggest(questions, requests)
	for _, u := range append(unknown, bare...) {
		fmt.Fprintf(env.Err, "%s left out: %s\n", env.Warn(), u)
	}
	if len(suggested) == 0 {
		return run.Fail(run.ExitBadInput, "record with `hauberk flows --verdict all -f -o json`: allowed requests are told only while somebody follows them",
			"no record is of an allowed flow to a pod")
	}
	if env.Format == "json" {
		if _, err := env.Structured(map[string]any{"apiVersion": "v1", "kind": "List", "items": suggested}); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	for i, object := range suggested {
		data, err := yaml.Marshal(object)
		if err != nil {
			return err
		}
		if i > 0 {
			text.WriteString("---\n")
		}
		text.Write(data)
	}
	if env.Format != "json" {
		if _, err := env.Out.Write(text.Bytes()); err != nil {
			return err
		}
	}
	// What is printed is held to the records.
	if _, err := objects.Add(&text); err != nil {
		return fmt.Errorf("read what was suggested: %w", err)
	}
	after := newWorld(source.FactsFrom(objects))
	for _, r := range after.simulate(records).Changes {
		if r.Change == closes {
			fmt.Fprintf(env.Err, "%s with the policies that are there it would still be %s: %s → %s, %s\n", env.Warn(), r.Will, r.From, r.To, r.Flow)
		}
	}
	return nil
}

type object = map[string]any

// use is what one peer does at one port.
type use struct {
	peer     string // of peers
	port     string
	protocol string
	number   uint16
	plain    bool // without a request that was seen
	requests map[string][]string
}

// suggest makes one policy for each workload that is reached; bare is which
// pods have no labels by which a policy could tell them from others.
func (w *world) suggest(questions []*recorded, requests bool) (out []object, bare []string) {
	type destination struct {
		pod   *compile.Pod
		uses  map[string]*use
		peers map[string]object
	}
	byName := map[string]*destination{}
	for _, q := range questions {
		if q.to.pod == nil || q.to.pod.HostNetwork || q.from.pod == q.to.pod && q.from.pod != nil {
			continue
		}
		key := workloadName(q.to.pod)
		if name, ok := unlabelled(q.to.pod, q.from.pod); ok {
			if text := name + " has no labels to be selected by"; !slices.Contains(bare, text) {
				bare = append(bare, text)
			}
			continue
		}
		d := byName[key]
		if d == nil {
			d = &destination{q.to.pod, map[string]*use{}, map[string]object{}}
			byName[key] = d
		}
		peer, data := w.suggestPeer(q.to.pod, q.from)
		d.peers[peer] = data
		port := fmt.Sprint(q.protocol, " ", q.port)
		u := d.uses[peer+"\x00"+port]
		if u == nil {
			u = &use{peer: peer, port: port, protocol: q.protocol.String(), number: q.port, requests: map[string][]string{}}
			d.uses[peer+"\x00"+port] = u
		}
		if q.http == nil || !requests || !q.to.pod.Meshed {
			u.plain = true
			continue
		}
		path := generalPath(q.http.Path)
		if !slices.Contains(u.requests[path], q.http.Method) {
			u.requests[path] = append(u.requests[path], q.http.Method)
		}
	}
	for _, name := range slices.Sorted(keysOf(byName)) {
		d := byName[name]
		// Peers that do the same stand in one rule.
		rules := map[string][]string{}
		specs := map[string]object{}
		for _, key := range slices.Sorted(keysOf(d.uses)) {
			u := d.uses[key]
			spec := u.rule()
			text := fmt.Sprint(u.port, "\x00", spec)
			rules[text], specs[text] = append(rules[text], u.peer), spec
		}
		var ingress []object
		for _, text := range slices.Sorted(keysOf(rules)) {
			rule := specs[text]
			var from []object
			for _, peer := range rules[text] {
				from = append(from, d.peers[peer])
			}
			rule["from"] = from
			rule["name"] = fmt.Sprintf("seen-%d", len(ingress))
			ingress = append(ingress, rule)
		}
		out = append(out, object{
			"apiVersion": "hauberk.dev/v1alpha1", "kind": "MeshPolicy",
			"metadata": object{"name": "suggested-" + name[strings.IndexByte(name, '/')+1:], "namespace": d.pod.Namespace},
			"spec":     object{"podSelector": object{"matchLabels": stableLabels(d.pod)}, "ingress": ingress},
		})
	}
	return out, bare
}

// unlabelled finds a pod that an empty selector would stand for: that means
// every pod of the namespace.
func unlabelled(pods ...*compile.Pod) (string, bool) {
	for _, p := range pods {
		if p != nil && !p.HostNetwork && len(stableLabels(p)) == 0 {
			return workloadName(p), true
		}
	}
	return "", false
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// suggestPeer names a source as narrowly as a policy can that outlives its pods:
// by its own service account, else by its labels, else by its address.
func (w *world) suggestPeer(to *compile.Pod, e *end) (key string, peer object) {
	p := e.pod
	switch {
	case e.endpoint.Host:
		return "host", object{"entities": []string{"host"}}
	case p == nil:
		prefix := netip.PrefixFrom(e.endpoint.Addr, e.endpoint.Addr.BitLen()).String()
		return prefix, object{"networks": []object{{"cidr": prefix}}}
	case p.ServiceAccount != "" && p.ServiceAccount != "default" && p.Meshed && to.Meshed &&
		slices.ContainsFunc(w.facts.ServiceAccounts, func(a compile.ServiceAccount) bool {
			return a.Namespace == p.Namespace && a.Name == p.ServiceAccount
		}):
		return "account " + p.Namespace + "/" + p.ServiceAccount,
			object{"serviceAccounts": []object{{"name": p.ServiceAccount, "namespace": p.Namespace}}}
	}
	peer = object{"podSelector": object{"matchLabels": stableLabels(p)}}
	if p.Namespace != to.Namespace {
		peer["namespaceSelector"] = object{"matchLabels": object{corev1.LabelMetadataName: p.Namespace}}
	}
	return fmt.Sprint("pods ", p.Namespace, stableLabels(p)), peer
}

func stableLabels(p *compile.Pod) map[string]string {
	labels := map[string]string{}
	for k, v := range p.Labels {
		if !slices.Contains(volatile, k) {
			labels[k] = v
		}
	}
	return labels
}

// rule is what the use needs, without its peers.
func (u *use) rule() object {
	port := object{}
	if u.number != 0 {
		port["port"] = u.number
	}
	if u.protocol != "TCP" {
		port["protocol"] = u.protocol
	}
	rule := object{"ports": []object{port}}
	if u.plain {
		return rule
	}
	// Paths with the same methods stand in one entry.
	byMethods := map[string][]string{}
	all := map[string]bool{}
	for path, methods := range u.requests {
		slices.Sort(methods)
		byMethods[strings.Join(methods, ",")] = append(byMethods[strings.Join(methods, ",")], path)
		for _, m := range methods {
			all[m] = true
		}
	}
	var http []object
	if len(u.requests) > mostPaths {
		http = append(http, object{"methods": slices.Sorted(keysOf(all))})
	} else {
		for _, methods := range slices.Sorted(keysOf(byMethods)) {
			var paths []object
			for _, path := range slices.Sorted(slices.Values(byMethods[methods])) {
				kind := "exact"
				if strings.Contains(path, "{") {
					kind = "template"
				}
				paths = append(paths, object{kind: path})
			}
			http = append(http, object{"methods": strings.Split(methods, ","), "paths": paths})
		}
	}
	rule["http"] = http
	return rule
}

// generalPath writes {id} for segments that are numbers or long identifiers.
func generalPath(path string) string {
	if strings.ContainsAny(path, "{}") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if isID(s) {
			segments[i] = "{id}"
		}
	}
	return strings.Join(segments, "/")
}

// isID: a number, or at least 16 hexadecimal digits and dashes.
func isID(s string) bool {
	hex := strings.Trim(s, "0123456789abcdefABCDEF-") == ""
	return s != "" && (strings.Trim(s, "0123456789") == "" || hex && len(s) >= 16)
}
