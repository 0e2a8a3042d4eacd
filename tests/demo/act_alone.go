package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actAlone = Act{
	Name:  "alone",
	Title: "the control plane is killed, and everything goes on",
	Why: "Sidecars and kernels hold what they were told: traffic, policy and identities go on without the control plane, the\n" +
		"  denials as well. When it comes back, new pods start again.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		const control = "app.kubernetes.io/component=control"
		const kill = "kubectl -n hauberk-system scale deployment/hauberk-control --replicas=0\n" +
			"kubectl -n hauberk-system delete pods -l " + control + " --force --grace-period=0"
		r.Step(ctx, Step{Type: kill, Expect: "no pod of the control plane is left", Look: []string{"kubectl -n hauberk-system get pods"},
			See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, "set -e\n"+kill)
				if err != nil || got.Code != 0 {
					return got.Out, fmt.Errorf("exit code %d: %s: %w", got.Code, got.Err, err)
				}
				err = stage.Eventually(ctx, 30*time.Second, "no pod of the control plane", func(ctx context.Context) error {
					left, err := s.Kubectl(ctx, "-n", "hauberk-system", "get", "pods", "-l", control, "-o", "name")
					if err == nil && strings.TrimSpace(left) != "" {
						err = fmt.Errorf("there is %s", strings.TrimSpace(left))
					}
					return err
				})
				return "all are gone", err
			}})
		many := visitor.probe("http", "GET", page, "--count=30", "--interval=50ms")
		r.Step(ctx, Step{Type: many, Expect: "30 of 30 pages", See: func(ctx context.Context) (string, error) {
			got, err := s.Shell(ctx, many)
			if err != nil {
				return "", err
			}
			if said := lastLine(got.Out); got.Code != 0 || said != "summary ok=30 failed=0" {
				return said, errDiffers("exit code %d", got.Code)
			}
			return lastLine(got.Out), nil
		}, Look: []string{"kubectl -n yaobank logs deploy/customer -c hauberk-proxy --tail=30"}})
		outside := visitor.get(keysFromOutside) + " --timeout=2s"
		r.Step(ctx, Step{Type: outside, Expect: "the kernel drops who is outside", See: func(ctx context.Context) (string, error) { return unreached(ctx, s, outside) }})
		rob := customer.get(allKeys)
		r.Step(ctx, Step{Type: rob, Expect: "the compromise stays denied", See: func(ctx context.Context) (string, error) { return denied(ctx, s, rob) }})
		theft := summary.probe("http", "PUT", "'"+oneKey+"?value=1000000'")
		r.Step(ctx, Step{Type: theft, Expect: "403, with the policy's name", See: func(ctx context.Context) (string, error) {
			return refused(ctx, s, theft, "MeshPolicy yaobank/database-reads")
		}})
		const back = "kubectl -n hauberk-system scale deployment/hauberk-control --replicas=2\n" +
			"kubectl -n hauberk-system rollout status deployment/hauberk-control --timeout=90s"
		r.Step(ctx, Step{Type: back, Expect: "it is back", Look: []string{"kubectl -n hauberk-system get pods", "kubectl -n hauberk-system logs deploy/hauberk-control"},
			See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, "set -e\n"+back)
				if err != nil || got.Code != 0 {
					return got.Out, fmt.Errorf("exit code %d: %s: %w", got.Code, got.Err, err)
				}
				return lastLine(got.Out), nil
			}})
		const fresh = "kubectl -n yaobank rollout restart deployment/customer\nkubectl -n yaobank rollout status deployment/customer --timeout=90s"
		look := visitor.get(page)
		r.Step(ctx, Step{Type: fresh + "\n" + look, Expect: "a new pod gets an identity and its policy, and shows the page",
			Look: []string{"kubectl -n yaobank describe pods -l app=customer"},
			See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, "set -e\n"+fresh)
				if err != nil || got.Code != 0 {
					return got.Out, fmt.Errorf("exit code %d: %s: %w", got.Code, got.Err, err)
				}
				var seen string
				err = stage.Eventually(ctx, 20*time.Second, "the page", func(ctx context.Context) error {
					seen, err = shows(ctx, s, look)
					return err
				})
				return seen, err
			}})
		inForce(ctx, s, r)
	},
}
