package main

import (
	"context"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actStrict = Act{
	Name:  "strict",
	Title: "STRICT: who has no identity gets no answer",
	Why: "So far pods accept plain connections too, so that a namespace can move into the mesh without an outage. Now that all of\n" +
		"  the bank is in, only mTLS is accepted; the web page's own port stays open to visitors from outside.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		ask := visitor.get(keysFromOutside)
		r.Step(ctx, Step{Type: ask, Expect: "200: a pod outside of the mesh still reads the database", See: func(ctx context.Context) (string, error) {
			return tells(ctx, s, ask, owner)
		}})
		applied(r, ctx, s, "10-strict-mtls.yaml", "STRICT for the namespace, except the web page's port")
		r.Step(ctx, Step{Type: ask, Expect: "no answer: the connection is closed", Within: 10 * time.Second,
			See:  func(ctx context.Context) (string, error) { return unreached(ctx, s, ask) },
			Look: []string{"kubectl -n yaobank get peerauthentications", "hauberk proxy config deploy/database -n yaobank", "kubectl -n yaobank logs deploy/database -c hauberk-proxy --tail=30"}})
		look := visitor.get(page)
		r.Step(ctx, Step{Type: look, Expect: "the bank goes on", See: func(ctx context.Context) (string, error) { return shows(ctx, s, look) }})
	},
}
