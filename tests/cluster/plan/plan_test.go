package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

func cluster(nodes int) plan.Cluster {
	return plan.Cluster{Nodes: nodes, Underlay: plan.Candidates()[0], DualStack: true}
}

func TestWorkersHaveAddressesOfTheirOwn(t *testing.T) {
	c := cluster(plan.MaxNodes)
	seen := map[string]string{}
	claim := func(what, who string) {
		t.Helper()
		if other, ok := seen[what]; ok {
			t.Errorf("%s belongs to %s and to %s", what, other, who)
		}
		seen[what] = who
	}
	m4, m6 := c.Machine()
	a4, a6 := c.API()
	claim(m4.String(), "machine")
	claim(m6.String(), "machine")
	claim(a4.String(), "api")
	claim(a6.String(), "api")
	for _, n := range c.Workers() {
		for _, a := range c.Addresses(n) {
			claim(a.String(), n.Name)
			if !c.Underlay.V4.Contains(a) && !c.Underlay.V6.Contains(a) {
				t.Errorf("%s of %s is outside the underlay", a, n.Name)
			}
		}
		for i, p := range c.PodCIDRs(n) {
			claim(p.String(), n.Name)
			if !c.PodRanges()[i].Contains(p.Addr()) || p.Masked() != p {
				t.Errorf("pod range %s of %s is not a part of %s", p, n.Name, c.PodRanges()[i])
			}
		}
	}
}

func TestSecondNode(t *testing.T) {
	got := cluster(2).Workers()[1]
	if diff := cmp.Diff([]string{"node2", "10.101.77.12", "fd6a:7562:65::c", "10.244.2.0/24", "fd00:10:244:2::/64"},
		[]string{got.Name, got.V4.String(), got.V6.String(), got.Pods4.String(), got.Pods6.String()}); diff != "" {
		t.Errorf("node 2 (-want +got):\n%s", diff)
	}
}

func TestSingleStackHasNoIPv6(t *testing.T) {
	c := cluster(1)
	c.DualStack = false
	n := c.Workers()[0]
	for what, count := range map[string]int{
		"node addresses": len(c.Addresses(n)), "pod ranges": len(c.PodCIDRs(n)),
		"cluster pod ranges": len(c.PodRanges()), "service ranges": len(c.ServiceRanges()),
		"dns addresses": len(c.DNSAddress()),
	} {
		if count != 1 {
			t.Errorf("%s: %d, want 1", what, count)
		}
	}
}

func TestValidate(t *testing.T) {
	for nodes, ok := range map[int]bool{-1: false, 0: false, 1: true, 2: true, plan.MaxNodes: true, plan.MaxNodes + 1: false} {
		if err := cluster(nodes).Validate(); (err == nil) != ok {
			t.Errorf("%d nodes: %v", nodes, err)
		}
	}
}
