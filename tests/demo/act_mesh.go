package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// collector is where the sidecars send their spans.
const collector = "mesh.telemetry.otlpEndpoint=otel-collector.observability:4317"

var actMesh = Act{
	Name:  "mesh",
	Title: "the mesh is worn: identity and mTLS, and the application's own port",
	Why: "One command installs the mesh, one label and a restart give every pod of the bank a sidecar. No port changes: the\n" +
		"  sidecars speak mTLS on 2379 itself, so that everything that knows ports still tells the truth.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		if !r.Step(ctx, Step{
			Type:   "hauberk install --set " + collector,
			Expect: "it ends when everything works",
			See: func(ctx context.Context) (string, error) {
				if err := s.Install(ctx, "--set", collector); err != nil {
					return "", err
				}
				got, err := s.Kubectl(ctx, "-n", "hauberk-system", "get", "deployments,daemonsets", "-o",
					`jsonpath={range .items[*]}{.metadata.name} {.status.readyReplicas}{.status.numberReady}, {end}`)
				return strings.TrimSuffix(strings.TrimSpace(got), ","), err
			},
			Look: []string{"hauberk check", "kubectl -n hauberk-system get pods -o wide", "kubectl -n hauberk-system get events --sort-by=.lastTimestamp"},
		}) {
			r.Skip("without the mesh there is nothing to see in this act")
			return
		}
		const restart = "kubectl label namespace yaobank hauberk.dev/inject=enabled --overwrite\nkubectl -n yaobank rollout restart deployment"
		meshed := r.Step(ctx, Step{
			Type:   restart + "\nkubectl -n yaobank get pods",
			Expect: "all pods with two containers, 2/2",
			See: func(ctx context.Context) (string, error) {
				got, err := s.Shell(ctx, "set -e\n"+restart)
				if err != nil || got.Code != 0 {
					return got.Out, fmt.Errorf("restart: exit code %d: %s: %w", got.Code, got.Err, err)
				}
				var seen string
				err = stage.Eventually(ctx, 90*time.Second, "all pods 2/2", func(ctx context.Context) error {
					seen, err = twoContainers(ctx, s)
					return err
				})
				return seen, err
			},
			Look: []string{"kubectl -n yaobank describe pods", "kubectl -n yaobank get events --sort-by=.lastTimestamp", "kubectl -n hauberk-system logs ds/hauberk-node --tail=50"},
		})
		if !meshed {
			r.Skip("without sidecars there is nothing more to see in this act")
			return
		}
		look := visitor.get(page)
		r.Step(ctx, Step{Type: look, Expect: "the web page works as before", Within: 20 * time.Second,
			See:  func(ctx context.Context) (string, error) { return shows(ctx, s, look) },
			Look: []string{"kubectl -n yaobank logs deploy/customer -c hauberk-proxy --tail=30"}})
		wire(ctx, s, r, "TLS records on port 2379 and nothing of what is said", encrypted)
	},
}

// encrypted judges what was said on the wire.
func encrypted(said []byte) (string, error) {
	for _, clear := range []string{"/v2/keys", "HTTP/1.1", owner, neighbor} {
		if bytes.Contains(said, []byte(clear)) {
			return "", errDiffers("“%s” goes over the wire in clear", clear)
		}
	}
	// RFC 8446 section 5.1: type, version 0x0301 or 0x0303, length; a ClientHello
	// is handshake type 1.
	hello := 0
	for i := range said[:max(0, len(said)-6)] {
		if said[i] == 22 && said[i+1] == 3 && said[i+2] == 1 && said[i+5] == 1 {
			hello++
		}
	}
	data := bytes.Count(said, []byte{23, 3, 3})
	if data == 0 {
		return "", errDiffers("no TLS record in %d bytes", len(said))
	}
	return fmt.Sprintf("%d bytes: %d ClientHello, %d encrypted records, nothing in clear", len(said), hello, data), nil
}

// twoContainers wants every pod of the bank to be ready with its sidecar.
func twoContainers(ctx context.Context, s *stage.Stage) (string, error) {
	out, err := s.Kubectl(ctx, "-n", bank, "get", "pods", "-l", "app in (customer, summary, database)", "--no-headers")
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "2/2" || f[2] != "Running" {
			return out, errDiffers("not all pods are 2/2 and Running")
		}
	}
	if len(lines) != 4 {
		return out, errDiffers("%d pods, not 4", len(lines))
	}
	return out, nil
}
