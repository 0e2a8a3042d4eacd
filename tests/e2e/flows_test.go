package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// flows is what `hauberk flows` tells of the space.
func (s *space) flows(ctx context.Context, args ...string) ([]flow.Record, error) {
	got, err := s.hauberk(ctx, append([]string{"flows", "-n", s.name, "-o", "json"}, args...)...)
	if err != nil {
		return nil, err
	}
	if got.Code != 0 {
		return nil, fmt.Errorf("exit code %d: %s", got.Code, got.Err)
	}
	var list struct{ Items []flow.Record }
	if err := json.Unmarshal([]byte(got.Out), &list); err != nil {
		return nil, fmt.Errorf("%w:\n%s", err, got.Out)
	}
	return list.Items, nil
}

// Whoever denies, one command tells it in the same words, with both ends named.
func TestFlowsTellsWhatKernelAndSidecarDenied(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "flows")
	s.accounts("caller")
	made := s.run(server("read", on("node1")), server("closed", on("node1")), client("caller", as("caller"), on("node2")))
	read, closed, caller := made[0], made[1], made[2]
	at := must[place](t)(caller.place())
	check(t, s.apply(t.Context(), s.name, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-http}
spec:
  podSelector: {matchLabels: {app: closed}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 8080}]}]
---
`+strings.Replace(meshPolicy, "case", "reads", 1)+`  {podSelector: {matchLabels: {app: read}}, ingress: [{name: get, http: [{methods: [GET]}]}]}`))
	within(t, 20*time.Second, "both policies decide", func(ctx context.Context) error {
		put, _, err1 := at.try(ctx, attempt{protocol: "http", to: cell{protocol: "http"}.to(read), method: "PUT", path: "/kept"})
		udp, _, err2 := at.try(ctx, attempt{protocol: "udp", to: cell{protocol: "udp"}.to(closed)})
		if err := errors.Join(err1, err2); err != nil || put != forbidden || udp != dropped {
			return fmt.Errorf("PUT %s, UDP %s: %v", put, udp, err)
		}
		return nil
	})
	within(t, 20*time.Second, "hauberk flows tells of both", func(ctx context.Context) error {
		records, err := s.flows(ctx)
		if err != nil {
			return err
		}
		var kernel, sidecar bool
		for i := range records {
			r := &records[i]
			if r.Source.Pod != caller.Name || r.Source.Namespace != s.name || r.Verdict != flow.Deny {
				continue
			}
			switch {
			case r.Layer == flow.Kernel && r.Destination.Pod == closed.Name && r.Protocol == "UDP" && r.Port == udpPort:
				kernel = strings.Contains(strings.Join(r.Selecting, " ")+r.Policy, "only-http")
			case r.Layer == flow.Sidecar && r.Destination.Pod == read.Name && r.Request != nil && r.Request.Method == "PUT" && r.Request.Path == "/kept":
				sidecar = strings.Contains(strings.Join(r.Selecting, " ")+r.Policy, "reads") && strings.HasSuffix(r.Source.Principal, "/sa/caller")
			}
		}
		if !kernel || !sidecar {
			text, _ := json.MarshalIndent(records, "", " ")
			return fmt.Errorf("the kernel's %v, the sidecar's %v among %s", kernel, sidecar, text)
		}
		return nil
	})
	for layer, pod := range map[string]string{flow.Kernel: closed.Name, flow.Sidecar: read.Name} {
		records := must[[]flow.Record](t)(s.flows(t.Context(), "--layer", layer, "--pod", pod))
		if len(records) == 0 {
			t.Errorf("--layer %s --pod %s: no record", layer, pod)
		}
		for _, r := range records {
			if r.Layer != layer || r.Destination.Pod != pod {
				t.Errorf("--layer %s --pod %s: a record of %s about %s", layer, pod, r.Layer, r.Destination.Pod)
			}
		}
	}
}
