package verdict

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

// matches reports whether the rule alone matches the flow; known is false when
// the flow is decided before any policy.
func matches(r policy.Rule, f *policy.Flow) (matched, known bool) {
	s := &policy.Set{DefaultAction: policy.Allow, Ingress: []policy.Tier{{Name: "t", DefaultAction: policy.Pass,
		Policies: []policy.Policy{{Ref: policy.Ref{Kind: "MeshPolicy", Name: "p"}, Rules: []policy.Rule{r}}}}}}
	trace := s.Explain(policy.Ingress, f)
	if len(trace.Tiers) == 0 {
		return false, false
	}
	return trace.Tiers[0].Policies[0].Rules[0].Matched(), true
}

// What covers says of two rules holds for every flow.
func TestCoversHolds(t *testing.T) {
	said := 0
	rapid.Check(t, func(t *rapid.T) {
		var all []policy.Rule
		for range 3 {
			s := policytest.Set().Draw(t, "set")
			for _, tier := range append(s.Ingress, s.Egress...) {
				for _, p := range tier.Policies {
					all = append(all, p.Rules...)
				}
			}
		}
		flows := rapid.SliceOfN(policytest.Flow(), 20, 20).Draw(t, "flows")
		for i := range all {
			for j := range all {
				if i == j || !covers(&all[i], &all[j]) {
					continue
				}
				said++
				for _, f := range flows {
					narrow, known := matches(all[j], f)
					wide, asked := matches(all[i], f)
					if known && asked && narrow && !wide {
						t.Fatalf("%+v does not match %+v, which %+v does", all[i], f, all[j])
					}
				}
			}
		}
	})
	if said < 50 {
		t.Errorf("covers held but %d times: the test would prove little", said)
	}
}

func TestCovers(t *testing.T) {
	prefix := func(path string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{Paths: []policy.PathMatch{{Type: policy.PathPrefix, Value: path}}}}}
	}
	exact := func(path string) policy.Rule {
		return policy.Rule{AnyPeer: true, HTTP: []policy.HTTPMatch{{Methods: []string{"GET"}, Paths: []policy.PathMatch{{Value: path}}}}}
	}
	ports := func(first, last uint16) policy.Rule {
		return policy.Rule{AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: first, EndPort: last}}}
	}
	pods := func(value string) policy.Rule {
		return policy.Rule{Peers: []policy.Peer{{PodSelector: &policy.Selector{Requirements: []policy.Requirement{{Key: "app", Operator: policy.In, Values: []string{value}}}}}}}
	}
	every := policy.Rule{Peers: []policy.Peer{policy.EveryWorkload()}}
	tests := []struct {
		name string
		e, r policy.Rule
		want bool
	}{
		{"everyone", policy.Rule{AnyPeer: true}, pods("a"), true},
		{"not everyone", pods("a"), policy.Rule{AnyPeer: true}, false},
		{"other pods", pods("a"), pods("b"), false},
		{"every pod", every, pods("a"), true},
		{"every pod is not everyone", every, policy.Rule{AnyPeer: true}, false},
		{"path below", prefix("/a"), exact("/a/b"), true},
		{"path itself", prefix("/a/"), exact("/a"), true},
		{"path beside", prefix("/a"), exact("/ab"), false},
		{"wider path", prefix("/a/b"), prefix("/a"), false},
		{"all paths", prefix("/"), prefix("/a"), true},
		{"not requests", prefix("/"), policy.Rule{AnyPeer: true}, false},
		{"ports within", ports(80, 90), ports(85, 90), true},
		{"one port within", ports(80, 90), ports(80, 0), true},
		{"ports beyond", ports(80, 90), ports(85, 91), false},
		{"nobody", policy.Rule{}, pods("a"), false},
	}
	for _, tt := range tests {
		if got := covers(&tt.e, &tt.r); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
