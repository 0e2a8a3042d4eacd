package policytest_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy"
	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

func direction(t *rapid.T) policy.Direction {
	return rapid.SampledFrom([]policy.Direction{policy.Ingress, policy.Egress}).Draw(t, "direction")
}

// withIndex is the set with an index, however small it is.
func withIndex(s *policy.Set) *policy.Set {
	indexed := *s
	indexed.Index = policy.NewIndex(s)
	return &indexed
}

// The fast evaluator decides as the naive one, by the same rule, whether it
// tries rules one by one or has an index.
func TestEvaluateIsNaive(t *testing.T) {
	generators := map[string]*rapid.Generator[*policy.Set]{
		"valid": policytest.Set(), "broken": policytest.BrokenSet(), "big": policytest.BigSet(),
		"valid, indexed":  rapid.Map(policytest.Set(), withIndex),
		"broken, indexed": rapid.Map(policytest.BrokenSet(), withIndex),
		"big, indexed":    rapid.Map(policytest.BigSet(), (*policy.Set).Indexed),
	}
	for name, sets := range generators {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			s := sets.Draw(t, "set")
			for _, f := range flows(t, strings.HasPrefix(name, "big")) {
				d := direction(t)
				got, want := s.Evaluate(d, f), policytest.Evaluate(s, d, f)
				ignore := cmpopts.IgnoreFields(policy.Verdict{}, "Reason")
				if diff := cmp.Diff(want, got, ignore, cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("%s\n-naive +fast:\n%s", s.Explain(d, f), diff)
				}
				if got.Reason == "" {
					t.Fatal("the verdict has no reason")
				}
			}
		}))
	}
}

// flows is one flow, and several for a big set, which takes long to make.
func flows(t *rapid.T, big bool) []*policy.Flow {
	if big {
		return rapid.SliceOfN(policytest.BigFlow(), 1, 8).Draw(t, "flows")
	}
	return []*policy.Flow{policytest.Flow().Draw(t, "flow")}
}

// An index changes no projection, whatever of the flow is unknown, and no trace.
func TestIndexChangesNothing(t *testing.T) {
	for name, sets := range map[string]*rapid.Generator[*policy.Set]{"small": policytest.BrokenSet(), "big": policytest.BigSet()} {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			s := sets.Draw(t, "set")
			indexed := withIndex(s)
			for _, f := range flows(t, name == "big") {
				d := direction(t)
				for _, u := range []policy.Unknown{0, policy.UnknownHTTP, policy.UnknownIdentity, policy.UnknownL7} {
					if got, want := indexed.ProjectUnknown(d, f, u), s.ProjectUnknown(d, f, u); got != want {
						t.Fatalf("projection with %b unknown: indexed %s, one by one %s", u, got, want)
					}
				}
				if diff := cmp.Diff(s.Explain(d, f).String(), indexed.Explain(d, f).String()); diff != "" {
					t.Fatalf("-one by one +indexed:\n%s", diff)
				}
			}
		}))
	}
}

// Every rule that Explain calls matched is one that decides or logs, and the
// trace ends where the verdict was found.
func TestExplainAgreesWithEvaluate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.BrokenSet().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		trace, want := s.Explain(d, f), s.Evaluate(d, f)
		if diff := cmp.Diff(want, trace.Verdict); diff != "" {
			t.Fatal(diff)
		}
		var decided policy.RuleRef
		for _, tier := range trace.Tiers {
			decided = policy.RuleRef{Tier: tier.Name}
			for _, p := range tier.Policies {
				for _, r := range p.Rules {
					if r.Matched() && p.Mode == policy.Enforce && r.Action != policy.Log {
						decided = policy.RuleRef{Tier: tier.Name, Policy: p.Ref, Rule: r.Name}
					}
				}
			}
		}
		if want.Tier == "" {
			return
		}
		if got := (policy.RuleRef{Tier: want.Tier, Policy: want.Policy, Rule: want.Rule}); got != decided {
			t.Fatalf("the trace ends with %v, the verdict with %v\n%s", decided, got, trace)
		}
	})
}

// A resolved set decides alike, and has nothing in it that cannot be resolved.
func TestResolveKeepsMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.BrokenSet().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		resolved := s.Resolve()
		got, want := resolved.Evaluate(d, f), s.Evaluate(d, f)
		ignore := cmpopts.IgnoreFields(policy.Verdict{}, "Reason", "Audit")
		if diff := cmp.Diff(want, got, ignore); diff != "" {
			t.Fatalf("-set +resolved:\n%s", diff)
		}
		if got.Audit != nil {
			t.Fatal("a policy in Audit mode was left")
		}
		for _, u := range []policy.Unknown{policy.UnknownHTTP, policy.UnknownIdentity, policy.UnknownL7} {
			if got, want := resolved.ProjectUnknown(d, f, u), s.ProjectUnknown(d, f, u); got != want {
				t.Fatalf("projection with %b unknown: resolved %s, set %s", u, got, want)
			}
		}
		for _, tiers := range [][]policy.Tier{resolved.Ingress, resolved.Egress} {
			for i := range tiers {
				for j := range tiers[i].Policies {
					for k := range tiers[i].Policies[j].Rules {
						for l := range tiers[i].Policies[j].Rules[k].Peers {
							p := &tiers[i].Policies[j].Rules[k].Peers[l]
							p.PeerSet = p.SelectorDigest() // widened selectors have others
						}
					}
				}
			}
		}
		if err := resolved.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

// completions are all ways of completing a flow, from alphabets that hold all
// that the generators put into rules and one value unlike any; of attributes
// that no rule of the set looks at one value does. Nil when they are too many.
func completions(s *policy.Set, d policy.Direction, f *policy.Flow) []*policy.Flow {
	principals := []string{"", "unlike",
		"spiffe://cluster.local/ns/red/sa/front", "spiffe://cluster.local/ns/red/sa/back",
		"spiffe://other.example/ns/red/sa/front", "spiffe://cluster.local/x", "spiffe://cluster.local/ns/red/sa/frontier"}
	one := map[string][][]string{}
	methods, paths, hosts, queries := []string{"unlike"}, []string{"*"}, []string{"unlike"}, []string{""}
	for _, tier := range s.Tiers(d) {
		for _, p := range tier.Policies {
			for _, r := range p.Rules {
				for _, m := range r.HTTP {
					if len(m.Methods) > 0 {
						methods = []string{"GET", "PUT", "unlike"}
					}
					if len(m.Paths)+len(m.GRPC) > 0 {
						paths = []string{"*", "/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/ab/c", "/a/c", "/c",
							"/c/b", "/c/c", "/a/a", "/b/a", "/b/b", "/b/c", "/c/a", "/a/c/"}
					}
					if len(m.Hosts) > 0 {
						hosts = []string{"x.example", "y.x.example", "z.x.example", "unlike"}
					}
					for _, h := range m.Headers {
						one[h.Name] = [][]string{nil, {"3"}, {"1"}, {"2"}, {"1", "2"}}
					}
					if len(m.Query) > 0 {
						queries = []string{""}
						for _, k := range []string{"", "k=3", "k=1", "k=2", "k=1&k=2", "k=+1", "k=", "k=&k=1", "k=&k=2", "k=&k=1&k=2",
							"k=+1&k=1", "k=+1&k=2", "k=+1&k=1&k=2", "k=+1&k=", "k=+1&k=&k=1", "k=+1&k=&k=2", "k=+1&k=&k=1&k=2"} {
							for _, j := range []string{"", "j=3", "j=1", "j=2", "j=1&j=2", "j=+1", "j="} {
								queries = append(queries, k+"&"+j)
							}
						}
						queries = append(queries, "%")
					}
					if len(m.GRPC) > 0 {
						one["content-type"] = [][]string{nil, {"application/grpc"}}
					}
				}
			}
		}
	}
	var requests []*policy.HTTPRequest
	headers := []map[string][]string{{}}
	for name, values := range one {
		var longer []map[string][]string
		for _, sent := range headers {
			for _, v := range values {
				with := maps.Clone(sent)
				with[name] = v
				longer = append(longer, with)
			}
		}
		headers = longer
	}
	if len(methods)*len(paths)*len(hosts)*len(queries)*len(headers) > 10_000 {
		return nil // too many to try
	}
	for _, method := range methods {
		for _, path := range paths {
			for _, host := range hosts {
				for _, query := range queries {
					for _, sent := range headers {
						requests = append(requests, &policy.HTTPRequest{Method: method, Path: path, Host: host, Query: query,
							Header: func(name string) []string { return sent[name] }})
					}
				}
			}
		}
	}
	if f.Protocol != policy.TCP {
		principals, requests = principals[:1], nil
	}
	var out []*policy.Flow
	for _, principal := range principals {
		for _, r := range append([]*policy.HTTPRequest{nil}, requests...) {
			c := *f
			c.HTTP, c.MTLS = r, principal != ""
			if d == policy.Ingress {
				c.Source.Principal = principal
			} else {
				c.Destination.Principal = principal
			}
			out = append(out, &c)
		}
	}
	return out
}

func enumerate(s *policy.Set, d policy.Direction, flows []*policy.Flow) policy.Projection {
	allowed, denied := false, false
	for _, f := range flows {
		if s.Evaluate(d, f).Action == policy.Allow {
			allowed = true
		} else {
			denied = true
		}
		if allowed && denied {
			return policy.Mixed
		}
	}
	if allowed {
		return policy.AllAllowed
	}
	return policy.AllDenied
}

// Project never claims what is not so, is exact when no unknown part stands
// before another, and ProjectExact is what enumeration finds.
func TestProjectionIsEnumeration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.Set().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		all := completions(s, d, f)
		if all == nil {
			return
		}
		want := enumerate(s, d, all)
		got := s.Project(d, f)
		if got != policy.Mixed && got != want {
			t.Fatalf("project says %s, enumeration %s\n%s", got, want, s.Explain(d, f))
		}
		exact, ok := s.ProjectExact(d, f)
		if ok && exact != want || !ok && exact != policy.Mixed {
			t.Fatalf("project exact says %s (%v), enumeration %s\n%s", exact, ok, want, s.Explain(d, f))
		}
		if maybes(s, d, f) <= 1 && !intricate(s, d) && got != want {
			t.Fatalf("project says %s, enumeration %s, and at most one rule is unknown\n%s", got, want, s.Explain(d, f))
		}
	})
}

// intricate reports whether a match may be one that no request satisfies, such
// as a gRPC method and another path, or that the requests tried do not reach:
// the projection does not look into it.
func intricate(s *policy.Set, d policy.Direction) bool {
	for _, tier := range s.Tiers(d) {
		for _, p := range tier.Policies {
			for _, r := range p.Rules {
				for _, m := range r.HTTP {
					if len(m.GRPC)+len(m.Query) > 0 || slices.ContainsFunc(m.Paths, func(p policy.PathMatch) bool {
						return p.Type != policy.PathExact && p.Type != policy.PathPrefix
					}) {
						return true
					}
				}
			}
		}
	}
	return false
}

// maybes counts the enforcing rules that the packet does not decide.
func maybes(s *policy.Set, d policy.Direction, f *policy.Flow) int {
	n := 0
	for _, tier := range s.Tiers(d) {
		for i := range tier.Policies {
			p := &tier.Policies[i]
			for j := range p.Rules {
				if p.Mode == policy.Enforce && p.Rules[j].Action != policy.Log && p.Rules[j].L4(p, d, f) == policy.Maybe {
					n++
				}
			}
		}
	}
	return n
}

// Without L7 conditions the projection is the evaluation.
func TestProjectionOfL4IsEvaluate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.SetL4().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		want := policy.AllDenied
		if s.Evaluate(d, f).Action == policy.Allow {
			want = policy.AllAllowed
		}
		if got := s.Project(d, f); got != want {
			t.Fatalf("got %s, want %s\n%s", got, want, s.Explain(d, f))
		}
	})
}

// When a connection's identity is known its projection bounds each request.
func TestProjectConnectionBoundsRequests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.Set().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		p, v := s.ProjectConnection(d, f), s.Evaluate(d, f)
		if p == policy.AllAllowed && v.Action != policy.Allow || p == policy.AllDenied && v.Action == policy.Allow {
			t.Fatalf("the connection is %s but the request: %s", p, v)
		}
		if l4 := s.Project(d, f); l4 != policy.Mixed && l4 != p {
			t.Fatalf("packets say %s, the connection %s", l4, p)
		}
	})
}

// A rule's outcome for packets bounds what it does with every completion.
func TestRuleL4(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f, d := policytest.BrokenSet().Draw(t, "set"), policytest.Flow().Draw(t, "flow"), direction(t)
		for _, tier := range s.Tiers(d) {
			for i := range tier.Policies {
				p := &tier.Policies[i]
				for j := range p.Rules {
					alone := policy.Policy{Ref: p.Ref, Invalid: p.Invalid, Rules: []policy.Rule{p.Rules[j]}}
					alone.Rules[0].Action = policy.Deny
					if p.Rules[j].Action != policy.Deny {
						continue
					}
					one := &policy.Set{DefaultAction: policy.Allow}
					only := []policy.Tier{{Name: "one", DefaultAction: policy.Pass, Policies: []policy.Policy{alone}}}
					one.Ingress, one.Egress = only, only
					trace := one.Explain(d, f)
					if len(trace.Tiers) == 0 {
						return // decided before any policy
					}
					matched := trace.Tiers[0].Policies[0].Rules[0].Matched()
					switch got := p.Rules[j].L4(p, d, f); {
					case got == policy.No && matched, got == policy.Yes && !matched:
						t.Fatalf("packets say %s, the rule matched: %v", got, matched)
					}
				}
			}
		}
	})
}

func TestGeneratedSetsAreValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		if err := policytest.Set().Draw(t, "set").Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
