package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actExplain = Act{
	Name:  "explain",
	Title: "hauberk policy can: every verdict explains itself",
	Why: "The same policies, asked instead of tried: may this pod send that request? The answer names the tier, the policy and the\n" +
		"  rule that decide, and the exit code is 0 for allowed and 80 for denied.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		for _, q := range []struct {
			ask, expect string
			code        int
			words       []string
		}{
			{"yaobank-visitor/visitor yaobank/customer --port 8080 --method GET --path /", "allowed by customer-page", 0, []string{"yaobank/customer-page"}},
			{"yaobank/customer yaobank/summary --port 8080 --method GET --path /accounts/519940", "allowed at both ends", 0, []string{"yaobank/customer-asks-summary", "yaobank/summary-answers-customer"}},
			{"yaobank/summary yaobank/database --port 2379 --method GET --path /v2/keys/accounts", "allowed by database-reads, rule summary-reads", 0, []string{"yaobank/database-reads", "summary-reads"}},
			{"yaobank/summary yaobank/database --port 2379 --method PUT --path /v2/keys/accounts", "denied by database-reads, rule summary-does-nothing-else", 80, []string{"yaobank/database-reads", "summary-does-nothing-else"}},
			{"yaobank/customer yaobank/database --port 2379", "denied: no policy of the tier default allows it", 80, []string{"default"}},
		} {
			line := "hauberk policy can " + q.ask
			r.Step(ctx, Step{Type: line, Expect: fmt.Sprintf("%s; exit code %d", q.expect, q.code), See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, line)
				if err != nil {
					return "", err
				}
				if got.Code != q.code {
					return got.Out, errDiffers("exit code %d, not %d: %s", got.Code, q.code, got.Err)
				}
				for _, w := range q.words {
					if !strings.Contains(got.Out, w) {
						return got.Out, errDiffers("the answer does not name %q", w)
					}
				}
				return got.Out, nil
			}})
		}
	},
}
