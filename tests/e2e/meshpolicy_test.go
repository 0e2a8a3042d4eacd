package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
)

const meshPolicy = `
apiVersion: hauberk.dev/v1alpha1
kind: MeshPolicy
metadata: {name: case}
spec:
`

// request is one HTTP request (or TCP line, without a method) of a client.
type request struct{ from, method, path string }

func (r request) String() string { return strings.TrimSpace(r.from + " " + r.method + " " + r.path) }

// requests wants each request to be answered or refused, soon, and the answer of
// `hauberk policy can` to be the same.
func (f *field) requests(t *testing.T, want map[request]seen) {
	t.Helper()
	list := make([]request, 0, len(want))
	for r := range want {
		list = append(list, r)
	}
	look := func(ctx context.Context) error {
		return each(list, func(r request) error {
			a := attempt{protocol: "http", to: netip.AddrPortFrom(f.server.v4, httpPort), method: r.method, path: r.path}
			if r.method == "" {
				a.protocol, a.to = "tcp", netip.AddrPortFrom(f.server.v4, tcpPort)
			}
			got, said, err := f.places[r.from].try(ctx, a)
			if err != nil {
				return fmt.Errorf("%s: %w", r, err)
			}
			if got != want[r] {
				return fmt.Errorf("%s: %s %s, want %s", r, got, strings.TrimSpace(said.body), want[r])
			}
			return nil
		})
	}
	within(t, 30*time.Second, "requests are decided as the policy says", func(ctx context.Context) error {
		return errors.Join(look(ctx), look(ctx))
	})
	check(t, each(list, func(r request) error {
		args := []string{"policy", "can", f.clients[r.from].Namespace + "/" + r.from, f.home.name + "/target"}
		if r.method == "" {
			args = append(args, "--port", fmt.Sprint(tcpPort))
		} else {
			args = append(args, "--port", fmt.Sprint(httpPort), "--method", r.method, "--path", r.path)
		}
		got, err := f.hauberk(t.Context(), args...)
		if err != nil {
			return err
		}
		code := 80
		if want[r].open() {
			code = 0
		}
		if got.Code != code {
			return fmt.Errorf("%s: hauberk %s: exit code %d, want %d\n%s%s", r, strings.Join(args, " "), got.Code, code, got.Out, got.Err)
		}
		return nil
	}))
}

func TestMeshPolicyDecidesRequestsByIdentity(t *testing.T) {
	w := together(t)
	f := newField(t, w, "mp", true)
	get, put := func(from string) request { return request{from, "GET", "/v2/keys/a"} }, func(from string) request { return request{from, "PUT", "/v2/keys/a"} }
	line := func(from string) request { return request{from: from} }
	for _, test := range []struct {
		name, spec string
		want       map[request]seen
	}{
		{"service account", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{serviceAccounts: [{name: friend}]}]}]}`,
			map[request]seen{get("friend"): answered, line("friend"): answered, get("stranger"): dropped, get("outsider"): dropped, line("outsider"): dropped}},
		{"service account of another namespace", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{serviceAccounts: [{name: outsider, namespace: ` + f.away.name + `}]}]}]}`,
			map[request]seen{get("outsider"): answered, line("outsider"): answered, get("friend"): dropped}},
		{"principals, which only the sidecar can tell", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{principals: ["spiffe://cluster.local/ns/` + f.home.name + `/sa/friend"]}]}]}`,
			map[request]seen{get("friend"): answered, line("friend"): answered, get("stranger"): forbidden, line("stranger"): reset}},
		{"method and path", `{podSelector: {matchLabels: {app: target}}, ingress: [{http: [{methods: [GET], paths: [{prefix: /v2/keys}]}], ports: [{port: 8080}]}]}`,
			map[request]seen{get("friend"): answered, put("friend"): forbidden, get("outsider"): answered, {"friend", "GET", "/v2/keysmith"}: forbidden, {"friend", "GET", "/v2/keys"}: answered,
				{"friend", "GET", "/v2/keys/../../secret"}: forbidden, {"friend", "GET", "/v2/./keys//a"}: answered}},
		{"exact path", `{podSelector: {matchLabels: {app: target}}, ingress: [{http: [{paths: [{exact: /v2/keys/a}]}]}]}`,
			map[request]seen{get("friend"): answered, put("friend"): answered, {"friend", "GET", "/v2/keys/a/b"}: forbidden, line("friend"): reset}},
		{"deny of a path, allow of the rest", `{podSelector: {matchLabels: {app: target}}, ingress: [{action: Deny, http: [{methods: [PUT]}]}, {}]}`,
			map[request]seen{get("stranger"): answered, put("stranger"): forbidden}},
		{"egress by path", `{podSelector: {matchLabels: {app: friend}}, types: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: target}}}], http: [{methods: [GET]}]}]}`,
			map[request]seen{get("friend"): answered, put("friend"): forbidden, put("stranger"): answered}},
		{"audit decides nothing", `{podSelector: {matchLabels: {app: target}}, mode: Audit, ingress: [{action: Deny}]}`,
			map[request]seen{get("friend"): answered, put("outsider"): answered, line("stranger"): answered}},
		{"mTLS required", `{podSelector: {matchLabels: {app: target}}, ingress: [{requires: {mtls: true}}]}`,
			map[request]seen{get("friend"): answered, line("outsider"): answered}},
	} {
		t.Run(test.name, func(t *testing.T) {
			manifest := meshPolicy + "  " + test.spec
			check(t, f.apply(t.Context(), f.home.name, manifest))
			f.requests(t, test.want)
			f.programmed(t, manifest)
			check(t, f.remove(t.Context(), f.home.name, manifest))
		})
	}
}

// programmed wants a policy to be in force everywhere, and to say so.
func (f *field) programmed(t *testing.T, manifest string) {
	t.Helper()
	within(t, 30*time.Second, "the policy says that it is in force", func(ctx context.Context) error {
		var p v1alpha1.MeshPolicy
		if err := f.read(ctx, f.home.name, manifest, &p); err != nil {
			return err
		}
		for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionProgrammed} {
			c := meta.FindStatusCondition(p.Status.Conditions, kind)
			if c == nil || c.Status != "True" || c.ObservedGeneration != p.Generation {
				return fmt.Errorf("condition %s is %+v", kind, c)
			}
			if kind == v1alpha1.ConditionProgrammed && !strings.Contains(c.Message, "kernel: 1 of 1 pods; sidecars: 1 of 1") {
				return fmt.Errorf("Programmed says %q", c.Message)
			}
		}
		if p.Status.Subjects != 1 {
			return fmt.Errorf("%d subjects, want 1", p.Status.Subjects)
		}
		return nil
	})
}

func TestMeshPolicyOrderAndRefusalNameWhatDecided(t *testing.T) {
	w := together(t)
	f := newField(t, w, "mp-order", true)
	allow := strings.Replace(meshPolicy, "case", "later-allow", 1) + `  {order: 20, podSelector: {matchLabels: {app: target}}, ingress: [{}]}`
	deny := strings.Replace(meshPolicy, "case", "first-deny", 1) + `  {order: 10, podSelector: {matchLabels: {app: target}}, ingress: [{name: no-put, action: Deny, http: [{methods: [PUT]}]}]}`
	check(t, f.apply(t.Context(), f.home.name, allow+"\n---"+deny))
	f.requests(t, map[request]seen{{"friend", "GET", "/"}: answered, {"friend", "PUT", "/"}: forbidden})

	_, said, err := f.places["friend"].try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(f.server.v4, httpPort), method: "PUT"})
	check(t, err)
	for _, want := range []string{"MeshPolicy " + f.home.name + "/first-deny", "no-put", "tier default"} {
		if !strings.Contains(said.body, want) {
			t.Errorf("the 403 lacks %q: %s", want, said.body)
		}
	}
	can := must[answerOf](t)(canAnswer(t.Context(), w, f.clients["friend"].Namespace+"/friend", f.home.name+"/target", "--port", "8080", "--method", "PUT", "--path", "/"))
	for _, want := range []string{"first-deny", "no-put", "default"} {
		if !strings.Contains(can.text, want) {
			t.Errorf("hauberk policy can lacks %q: %s", want, can.text)
		}
	}
	// The other way round the Allow is first and decides.
	check(t, f.apply(t.Context(), f.home.name, strings.Replace(allow, "order: 20", "order: 5", 1)))
	f.requests(t, map[request]seen{{"friend", "GET", "/"}: answered, {"friend", "PUT", "/"}: answered})
}

type answerOf struct {
	code int
	text string
}

func canAnswer(ctx context.Context, w *world, args ...string) (answerOf, error) {
	got, err := w.hauberk(ctx, append([]string{"policy", "can"}, args...)...)
	return answerOf{got.Code, got.Out + got.Err}, err
}

func TestInvalidPoliciesAreRefusedWithTheMend(t *testing.T) {
	w := together(t)
	s := w.space(t, "mp-bad", nil)
	for _, test := range []struct{ name, manifest, mend string }{
		{"egress rules without the type", meshPolicy + `  {podSelector: {}, types: [Ingress], egress: [{}]}`, "add Egress to spec.types"},
		{"two kinds of path", meshPolicy + `  {podSelector: {}, ingress: [{http: [{paths: [{exact: /a, prefix: /b}]}]}]}`, "exactly one of exact, prefix, template and regex"},
		{"ports of ICMP", meshPolicy + `  {podSelector: {}, ingress: [{ports: [{protocol: ICMP, port: 8}]}]}`, "use icmp.type and icmp.code"},
		{"endPort alone", meshPolicy + `  {podSelector: {}, ingress: [{ports: [{endPort: 8}]}]}`, "endPort needs port"},
		{"http on UDP", meshPolicy + `  {podSelector: {}, ingress: [{http: [{methods: [GET]}], ports: [{protocol: UDP, port: 80}]}]}`, "http and grpc need TCP"},
		{"an action that does not exist", meshPolicy + `  {podSelector: {}, ingress: [{action: Permit}]}`, `supported values: "Allow", "Deny", "Pass", "Log"`},
		{"no podSelector", meshPolicy + `  {ingress: [{}]}`, "podSelector"},
		{"an empty list of peers", meshPolicy + `  {podSelector: {}, ingress: [{from: []}]}`, "spec.ingress[0].from"},
		{"a field that does not exist", meshPolicy + `  {podSelector: {}, ingress: [{form: []}]}`, "form"},
		{"not a CIDR", meshPolicy + `  {podSelector: {}, ingress: [{from: [{networks: [{cidr: 10.0.0.0/33}]}]}]}`, "cidr"},
		{"a second MeshConfig", "apiVersion: hauberk.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: other}\nspec: {}", "its name is default"},
		{"a built-in tier", "apiVersion: hauberk.dev/v1alpha1\nkind: Tier\nmetadata: {name: default}\nspec: {order: 1}", "choose another name"},
		{"ports without pods", "apiVersion: hauberk.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: case}\nspec: {mtls: {mode: STRICT}, portLevelMtls: {\"80\": {mode: STRICT}}}", "portLevelMtls needs podSelector"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := s.apply(t.Context(), s.name, test.manifest)
			if err == nil {
				t.Fatal("it was taken")
			}
			if !strings.Contains(err.Error(), test.mend) {
				t.Errorf("the mend %q is not in: %v", test.mend, err)
			}
		})
	}
}

func TestUnknownTierIsNotAcceptedAndNeverAllows(t *testing.T) {
	w := together(t)
	f := newField(t, w, "mp-tier", true)
	manifest := meshPolicy + `  {tier: no-such-tier, podSelector: {matchLabels: {app: target}}, ingress: [{}]}`
	check(t, f.apply(t.Context(), f.home.name, manifest))
	within(t, 10*time.Second, "the policy says that it is not accepted", func(ctx context.Context) error {
		var p v1alpha1.MeshPolicy
		if err := f.read(ctx, f.home.name, manifest, &p); err != nil {
			return err
		}
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted)
		if c == nil || c.Status != "False" || !strings.Contains(c.Message, "no-such-tier") {
			return fmt.Errorf("condition Accepted is %+v", c)
		}
		return nil
	})
	f.requests(t, map[request]seen{{"friend", "GET", "/"}: dropped, {from: "outsider"}: dropped})
}
