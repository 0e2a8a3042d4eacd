package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actKernel = Act{
	Name:  "kernel",
	Title: "NetworkPolicy database-policy: the compromise ends in the kernel",
	Why: "The customer pod has an identity too, so mTLS alone does not stop it. A plain Kubernetes NetworkPolicy does: only summary\n" +
		"  may reach 2379. The kernel of the database's node drops the packets, and the rule that does it carries the policy's name.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		rob := customer.get(allKeys) + " --timeout=2s"
		r.Step(ctx, Step{Type: rob, Expect: "200: the compromise works through mTLS as well", See: func(ctx context.Context) (string, error) { return tells(ctx, s, rob, owner) }})
		applied(r, ctx, s, "20-database-policy.yaml", "the policy is made")
		r.Step(ctx, Step{Type: rob, Expect: "no connection: packets of the customer pod are dropped", Within: 20 * time.Second,
			See:  func(ctx context.Context) (string, error) { return unreached(ctx, s, rob) },
			Look: []string{"hauberk policy can yaobank/customer yaobank/database --port 2379", "hauberk node rules", "kubectl -n hauberk-system logs ds/hauberk-node --tail=30"}})
		databases, err := pods(ctx, s, "database")
		if err != nil {
			r.Skip(err.Error())
			return
		}
		rules := "hauberk node rules " + databases[0].node + " | grep database-policy"
		r.Step(ctx, Step{Type: rules, Expect: "the drop, its counter and the policy's name", Within: 5 * time.Second,
			See:  func(ctx context.Context) (string, error) { return dropCounted(ctx, s, rules) },
			Look: []string{"cluster exec-node " + databases[0].node + " -- nft list table inet hauberk"}})
		look := visitor.get(page)
		r.Step(ctx, Step{Type: look, Expect: "summary still reads, so the web page works", See: func(ctx context.Context) (string, error) { return shows(ctx, s, look) }})
	},
}

var counted = regexp.MustCompile(`packets ([0-9]+)`)

// dropCounted wants a rule that dropped packets in the name of the policy.
func dropCounted(ctx context.Context, s *stage.Stage, line string) (string, error) {
	got, err := s.Shell(ctx, line)
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(got.Out) {
		m := counted.FindStringSubmatch(l)
		if m != nil && m[1] != "0" && strings.Contains(l, "drop") {
			return strings.TrimSpace(l), nil
		}
	}
	return got.Out + got.Err, fmt.Errorf("no drop with a counter above 0 names database-policy")
}
