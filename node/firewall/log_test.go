package firewall

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/policy/policytest"
)

var prefixed = regexp.MustCompile(`^(.*)limit rate 50/second burst 100 packets log prefix "hauberk:([0-9a-f]{12})(<?)" group 15151$`)

// TestEveryDropIsTold: before each drop stands a rule of the same match that
// only tells, and the id that it tells has a meaning. Nothing else is told.
func TestEveryDropIsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := policytest.Set().Draw(t, "set")
		set.ID = "set"
		pods := []Pod{
			{UID: "a", ContainerID: "a", HostInterface: "veth0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, PolicySet: set,
				Meshed: rapid.Bool().Draw(t, "meshed")},
			{UID: "b", ContainerID: "b", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
		}
		r := renderer{logs: true}
		table := r.render(pods, &State{})
		drops := 0
		for name, c := range table.chains {
			lines := c.lines(true)
			for i, r := range lines {
				match, isDrop := strings.CutSuffix(r.text, "counter drop")
				if !isDrop {
					if strings.HasSuffix(r.text, "drop") {
						t.Fatalf("chain %s: a drop that is not counted: %s", name, r.text)
					}
					continue
				}
				drops++
				if i == 0 {
					t.Fatalf("chain %s: nothing before %q", name, r.text)
				}
				m := prefixed.FindStringSubmatch(lines[i-1].text)
				if m == nil || m[1] != match {
					t.Fatalf("chain %s: before %q stands %q", name, r.text, lines[i-1].text)
				}
				if (m[3] != "") != c.back {
					t.Fatalf("chain %s: %q tells the wrong direction", name, lines[i-1].text)
				}
				if d, ok := table.drops[m[2]]; !ok || d.Reason == "" {
					t.Fatalf("chain %s: id %s of %q means %+v", name, m[2], r.text, d)
				}
			}
		}
		r = renderer{}
		table = r.render(pods, &State{})
		left := 0
		for _, c := range table.chains {
			for _, r := range c.lines(table.logs) {
				if strings.Contains(r.text, "log") && strings.Contains(r.text, "group") {
					t.Fatalf("a silent table tells: %s", r.text)
				}
				if strings.HasSuffix(r.text, "counter drop") {
					left++
				}
			}
		}
		if left != drops || drops < 4 {
			t.Fatalf("%d drops, %d when silent", drops, left)
		}
	})
}
