package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actJob = Act{
	Name:  "job",
	Title: "a Job in the mesh completes",
	Why: "The sidecar is a native one: it is ready before the application starts, outlives it, and does not keep the pod from\n" +
		"  completing.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		const apply = "kubectl apply -f tests/demo/manifests/job.yaml"
		const wait = "kubectl -n yaobank wait --for=condition=complete job/nightly --timeout=60s"
		r.Step(ctx, Step{
			Type:   apply + "\n" + wait,
			Expect: "complete, with a sidecar in its pod",
			See: func(ctx context.Context) (string, error) {
				// Of an earlier play: a Job's pod template does not change.
				if _, err := s.Kubectl(ctx, "-n", bank, "delete", "job", "nightly", "--ignore-not-found"); err != nil {
					return "", err
				}
				got, err := s.Shell(ctx, apply+" && "+wait)
				if err != nil {
					return "", err
				}
				if got.Code != 0 {
					return got.Out, fmt.Errorf("exit code %d: %s", got.Code, got.Err)
				}
				inits, err := s.Kubectl(ctx, "-n", bank, "get", "pods", "-l", "app=nightly", "-o",
					`jsonpath={range .items[*]}{.status.phase} with {.spec.initContainers[*].name}{end}`)
				if err != nil {
					return "", err
				}
				if !strings.Contains(inits, "hauberk-proxy") {
					return inits, errDiffers("its pod has no sidecar")
				}
				return lastLine(got.Out) + "; pod " + inits, nil
			},
			Within: 0,
			Look:   []string{"kubectl -n yaobank describe job nightly", "kubectl -n yaobank describe pods -l app=nightly", "kubectl -n yaobank logs -l app=nightly --all-containers"},
		})
	},
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
