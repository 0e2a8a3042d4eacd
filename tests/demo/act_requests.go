package main

import (
	"context"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actRequests = Act{
	Name:  "requests",
	Title: "MeshPolicy database-reads: summary may read, and only read",
	Why: "A NetworkPolicy ends at the port: whoever is in the summary pod can still write balances. The same door gets a rule for\n" +
		"  the request: the service account summary may GET below /v2/keys. The sidecar decides, by the identity in the certificate.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		write := func(value string) string {
			return summary.probe("http", "PUT", "'"+oneKey+"?value="+value+"'")
		}
		honest := write("2389.45")
		r.Step(ctx, Step{Type: honest, Expect: "200: nothing keeps summary from writing", See: func(ctx context.Context) (string, error) { return tells(ctx, s, honest, `"set"`) }})
		applied(r, ctx, s, "30-database-reads.yaml", "the policy is made")
		theft := write("1000000")
		if !r.Step(ctx, Step{Type: theft, Expect: "403 from the database's sidecar, which names the policy and the rule", Within: 10 * time.Second,
			See: func(ctx context.Context) (string, error) {
				return refused(ctx, s, theft, "MeshPolicy yaobank/database-reads", "summary-does-nothing-else")
			},
			Look: []string{"kubectl -n yaobank get meshpolicies", "hauberk policy can yaobank/summary yaobank/database --port 2379 --method PUT --path /v2/keys/accounts/519940/balance", "kubectl -n yaobank logs deploy/database -c hauberk-proxy --tail=30"}}) {
			// What was written must not be what the later acts read.
			if _, err := s.Shell(ctx, honest); err != nil {
				r.Skip(err.Error())
			}
		}
		read := summary.get(oneKey)
		r.Step(ctx, Step{Type: read, Expect: "200: reading is allowed, and the balance is what it was", See: func(ctx context.Context) (string, error) { return tells(ctx, s, read, "2389.45") }})
		look := visitor.get(page)
		r.Step(ctx, Step{Type: look, Expect: "the web page works", See: func(ctx context.Context) (string, error) { return shows(ctx, s, look) }})
	},
}
