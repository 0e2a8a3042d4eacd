package convert

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/policy"
)

// pod is a pod of the tests' world.
type pod struct {
	namespace, name, account, ip string
	labels                       map[string]string
	meshed                       bool
}

// The world is small, so that random policies select something.
var (
	namespaceLabels = map[string]map[string]string{
		"red": {"team": "one"}, "blue": {"team": "two", "open": "yes"}, "istio-system": {},
	}
	accountLabels = map[string]map[string]string{"worker": {"rank": "low"}, "boss": {"rank": "high"}}
	pods          = []pod{
		{"red", "r1", "worker", "10.244.0.1", map[string]string{"app": "web", "zone": "a"}, true},
		{"red", "r2", "boss", "10.244.0.2", map[string]string{"app": "db"}, true},
		{"red", "r3", "worker", "10.244.0.3", map[string]string{"zone": "b"}, false},
		{"blue", "b1", "worker", "10.244.1.1", map[string]string{"app": "web", "zone": "b"}, true},
		{"blue", "b2", "boss", "10.244.1.2", map[string]string{"app": "db", "zone": "a"}, false},
		{"istio-system", "gate", "boss", "10.244.2.1", map[string]string{"app": "web"}, true},
	}
	hosts   = []string{"192.0.2.11"}
	outside = []string{"203.0.113.7", "203.0.113.130", "198.51.100.9", "2001:db8::9"}
)

func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// cluster is the world as manifests.
func cluster() string {
	var docs []string
	add := func(format string, args ...any) { docs = append(docs, fmt.Sprintf(format, args...)) }
	for ns, labels := range namespaceLabels {
		add(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q,"labels":%s}}`, ns, asJSON(labels))
		for a, labels := range accountLabels {
			add(`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":%q,"namespace":%q,"labels":%s}}`, a, ns, asJSON(labels))
		}
	}
	for i, h := range hosts {
		add(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n%d"},"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, i, h)
	}
	for _, p := range pods {
		status, init := "{}", "[]"
		if p.meshed {
			status, init = `{"hauberk.dev/status":"injected"}`, `[{"name":"hauberk-proxy","restartPolicy":"Always"}]`
		}
		add(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":%q,"uid":%q,"labels":%s,"annotations":%s},
			"spec":{"nodeName":"other","serviceAccountName":%q,"initContainers":%s,"containers":[{"name":"c","ports":[{"name":"http","containerPort":80},{"name":"dns","containerPort":53,"protocol":"UDP"}]}]},
			"status":{"phase":"Running","podIPs":[{"ip":%q}]}}`, p.name, p.namespace, p.name, asJSON(p.labels), status, p.account, init, p.ip)
	}
	return strings.Join(docs, "\n---\n")
}

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

// compiled is the world under converted policies and others. Nothing of them may
// be refused.
func compiled(t failer, manifests ...string) *compile.Resources {
	t.Helper()
	o := &source.Objects{TrustDomain: "cluster.local"}
	all := append([]string{cluster()}, manifests...)
	if ignored, err := o.Add(strings.NewReader(strings.Join(all, "\n---\n"))); err != nil || len(ignored) > 0 {
		t.Fatalf("ours can't be read: %v %v\n%s", err, ignored, strings.Join(manifests, "\n---\n"))
	}
	facts := source.FactsFrom(o)
	r := compile.Compile(facts)
	for _, p := range facts.Problems {
		t.Errorf("%s", p)
	}
	for _, report := range slices.Concat(r.Policies, r.Others) {
		if len(report.Invalid)+len(report.Unresolved) > 0 {
			t.Errorf("%s: invalid %q, unresolved %q", report.Ref, report.Invalid, report.Unresolved)
		}
	}
	return r
}

// flow is a flow with all that either side looks at.
type flow struct {
	from, to string // addresses
	protocol policy.Protocol
	port     uint16
	icmpType uint8
	mtls     bool
	request  *request
}

type request struct {
	method, path, host string
	headers            map[string]string
}

func (f flow) String() string {
	s := fmt.Sprintf("%s -> %s %s %d", f.from, f.to, f.protocol, f.port)
	if f.protocol == policy.ICMP {
		s = fmt.Sprintf("%s -> %s ICMP %d", f.from, f.to, f.icmpType)
	}
	if f.mtls {
		s += " mTLS"
	}
	if f.request != nil {
		s += fmt.Sprintf(" %+v", *f.request)
	}
	return s
}

func podAt(ip string) *pod {
	i := slices.IndexFunc(pods, func(p pod) bool { return p.ip == ip })
	if i < 0 {
		return nil
	}
	return &pods[i]
}

// allowed is what Hauberk decides.
func allowed(r *compile.Resources, f flow) (bool, string) {
	p := &policy.Flow{
		Source: r.Endpoint(netip.MustParseAddr(f.from)), Destination: r.Endpoint(netip.MustParseAddr(f.to)),
		Protocol: f.protocol, Port: f.port, ICMPType: f.icmpType, MTLS: f.mtls,
	}
	if !f.mtls {
		p.Source.Principal, p.Destination.Principal = "", ""
	}
	if q := f.request; q != nil {
		p.HTTP = &policy.HTTPRequest{Method: q.method, Path: q.path, Host: q.host, Header: func(name string) []string {
			if v, ok := q.headers[name]; ok {
				return []string{v}
			}
			return nil
		}}
	}
	set := func(e *policy.Endpoint) *policy.Set {
		if e.Workload == nil {
			return nil
		}
		return r.SetOf(e.Workload.UID)
	}
	egress, ingress := policy.Decide(set(&p.Source), set(&p.Destination), p)
	return egress.Allowed() && ingress.Allowed(), egress.String() + "\n" + ingress.String()
}

// addresses of everybody.
func everybody() []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.ip)
	}
	return slices.Concat(out, hosts, outside)
}

// convertText converts one file; notes are of no interest here.
func convertText(text string, opts Options) (string, []string) {
	out, report := Convert([]manifest.Input{{Name: "in.yaml", Data: []byte(text)}}, opts)
	return string(out), report.Errors
}

// some draws a list of zero to n.
func some[T any](t *rapid.T, label string, n int, from ...T) []T {
	return rapid.SliceOfN(rapid.SampledFrom(from), 0, n).Draw(t, label)
}

func oneOf[T any](t *rapid.T, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(t, label)
}

func chance(t *rapid.T, label string, oneIn int) bool {
	return rapid.IntRange(1, oneIn).Draw(t, label) == oneIn
}

func contains(nets []string, ip string) bool {
	return slices.ContainsFunc(nets, func(n string) bool {
		p, err := netip.ParsePrefix(n)
		return err == nil && p.Contains(netip.MustParseAddr(ip))
	})
}

func TestWorld(t *testing.T) {
	r := compiled(t)
	for _, p := range pods {
		if got, why := allowed(r, flow{from: "203.0.113.7", to: p.ip, protocol: policy.TCP, port: 80}); !got {
			t.Errorf("%s: %s", p.name, why)
		}
	}
}
