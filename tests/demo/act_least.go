package main

import (
	"context"
	"html"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actLeastPrivilege = Act{
	Name:  "least",
	Title: "deny everything, then allow what the bank needs, one policy at a time",
	Why: "Zero trust, step by step: first nothing in or out of any pod of the namespace but DNS and the sidecars' telemetry; then\n" +
		"  the page's visitors, the page's questions to summary, summary's questions to the database. The page tells how far it gets.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		look := visitor.probe("http", "GET", "'"+page+"'", "--timeout=3s")
		watch := []string{"kubectl -n yaobank get meshpolicies", "kubectl -n yaobank logs deploy/customer -c hauberk-proxy --tail=30", "kubectl -n yaobank logs deploy/summary -c hauberk-proxy --tail=30"}
		applied(r, ctx, s, "40-deny-all.yaml", "nothing is allowed but names and telemetry")
		r.Step(ctx, Step{Type: look, Expect: "no page: not even the connection is made", Within: 20 * time.Second, Look: watch,
			See: func(ctx context.Context) (string, error) { return unreached(ctx, s, look) }})
		applied(r, ctx, s, "50-customer-page.yaml", "visitors may look at the page")
		r.Step(ctx, Step{Type: look, Expect: "a page that cannot ask summary, and names who denied it", Within: 20 * time.Second, Look: watch,
			See: func(ctx context.Context) (string, error) {
				return broken(ctx, s, look, "http://summary/", "yaobank/deny-all")
			}})
		applied(r, ctx, s, "60-customer-to-summary.yaml", "the page may ask summary for accounts")
		r.Step(ctx, Step{Type: look, Expect: "a page that says that summary cannot ask the database", Within: 20 * time.Second, Look: watch,
			See: func(ctx context.Context) (string, error) { return broken(ctx, s, look, "the database cannot be read") }})
		applied(r, ctx, s, "70-summary-to-database.yaml", "summary may ask the database")
		r.Step(ctx, Step{Type: look, Expect: "the web page works again", Within: 20 * time.Second, Look: watch,
			See: func(ctx context.Context) (string, error) { return shows(ctx, s, look) }})
		rob := customer.get(allKeys)
		r.Step(ctx, Step{Type: rob, Expect: "the compromise is denied, now at both ends", Look: watch,
			See: func(ctx context.Context) (string, error) { return denied(ctx, s, rob) }})
		inForce(ctx, s, r)
	},
}

// inForce wants the policies themselves to say that every kernel and sidecar
// has them.
func inForce(ctx context.Context, s *stage.Stage, r *Report) bool {
	const wait = "kubectl -n yaobank wait --for=condition=Programmed meshpolicies --all --timeout=20s"
	const list = "kubectl -n yaobank get meshpolicies"
	return r.Step(ctx, Step{Type: wait + "\n" + list, Expect: "each policy says that it is in force in every kernel and sidecar",
		Look: []string{"kubectl -n yaobank describe meshpolicies", "kubectl -n hauberk-system logs deploy/hauberk-control --tail=30"},
		See: func(ctx context.Context) (string, error) {
			waited, err := s.Shell(ctx, wait)
			if err != nil {
				return "", err
			}
			got, err := s.Shell(ctx, list)
			if err != nil {
				return "", err
			}
			if waited.Code != 0 {
				return got.Out, errDiffers("exit code %d: %s", waited.Code, waited.Err)
			}
			return got.Out, nil
		}})
}

// broken wants the web page with a problem on it that holds the words.
func broken(ctx context.Context, s *stage.Stage, line string, words ...string) (string, error) {
	a, err := try(ctx, s, line)
	if err != nil {
		return "", err
	}
	problem := a.short()
	if _, rest, ok := strings.Cut(a.text, "<p>"); ok {
		problem, _, _ = strings.Cut(rest, "</p>")
		problem = a.status + "  " + html.UnescapeString(problem)
	}
	if !strings.HasPrefix(a.status, "502") {
		return problem, errDiffers("exit code %d, not the page with a problem (502)", a.code)
	}
	for _, w := range words {
		if !strings.Contains(problem, w) {
			return problem, errDiffers("the page does not say %q", w)
		}
	}
	return problem, nil
}

// denied wants a 403, or no answer.
func denied(ctx context.Context, s *stage.Stage, line string) (string, error) {
	a, err := try(ctx, s, line)
	if err != nil {
		return "", err
	}
	if a.code == badStatus && strings.HasPrefix(a.status, "403") {
		return a.short(), nil
	}
	return unreached(ctx, s, line)
}
