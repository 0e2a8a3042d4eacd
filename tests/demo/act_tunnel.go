package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actTunnel = Act{
	Name:  "tunnel",
	Title: "between nodes no pod's packet goes in clear",
	Why: "The node agents keep a WireGuard mesh. Everything between pods of different nodes goes through it, UDP and pods without a\n" +
		"  sidecar included: on the wire between the nodes there is UDP on port 51871 and no address of a pod.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		from, err := across(ctx, s)
		if err != nil {
			r.Skip(err.Error())
			return
		}
		const tunnels = "hauberk node tunnels"
		r.Step(ctx, Step{Type: tunnels, Expect: "each node has a tunnel to the other, with a handshake", Within: 20 * time.Second, See: func(ctx context.Context) (string, error) {
			got, err := s.Shell(ctx, tunnels)
			if err != nil {
				return "", err
			}
			if got.Code != 0 || !strings.Contains(got.Out, "node1") || !strings.Contains(got.Out, "node2") {
				return got.Out, errDiffers("exit code %d: %s", got.Code, got.Err)
			}
			if strings.Contains(got.Out, "never") {
				return got.Out, errDiffers("a tunnel has had no handshake yet")
			}
			return got.Out, nil
		}})
		const filter = "ip or ip6"
		read := fmt.Sprintf("kubectl -n %s exec %s -- yaobank probe http GET '%s' --count=5", bank, from.name, oneKey)
		names := fmt.Sprintf("kubectl -n %s exec deploy/visitor -- yaobank probe dns database.yaobank.svc.cluster.local", visitors)
		plain := fmt.Sprintf("kubectl -n %s exec deploy/visitor -- yaobank probe http GET %s", visitors, page)
		r.Step(ctx, Step{
			Type: stage.CaptureCommand(from.node, "eth0", filter) + "    # and meanwhile, summary being on another node than the database:\n" +
				read + "\n" + names + "\n" + plain,
			Expect: "UDP 51871 between the nodes, and no packet between addresses of pods",
			See: func(ctx context.Context) (string, error) {
				seen, err := s.Capture(ctx, from.node, "eth0", filter, func(ctx context.Context) error {
					if said, err := tells(ctx, s, read, "2389.45", "summary ok=5 failed=0"); err != nil {
						return fmt.Errorf("reading across nodes: %s: %w", said, err)
					}
					if got, err := s.Shell(ctx, names); err != nil || got.Code != 0 {
						return fmt.Errorf("DNS: exit code %d: %s: %w", got.Code, got.Err, err)
					}
					_, err := shows(ctx, s, plain)
					return err
				})
				if err != nil {
					return "", err
				}
				return sealed(seen)
			},
			Look: []string{"cluster exec-node " + from.node + " -- wg", "cluster exec-node " + from.node + " -- ip rule", "cluster exec-node " + from.node + " -- nft list table inet hauberk-tunnel"},
		})
	},
}

// tunnelPort is WireGuard's.
const tunnelPort = 51871

// across is a pod of summary on another node than the database.
func across(ctx context.Context, s *stage.Stage) (pod, error) {
	databases, err := pods(ctx, s, "database")
	if err != nil {
		return pod{}, err
	}
	summaries, err := pods(ctx, s, "summary")
	if err != nil {
		return pod{}, err
	}
	for _, p := range summaries {
		if p.node != databases[0].node {
			return p, nil
		}
	}
	return pod{}, fmt.Errorf("all pods of summary are on %s with the database: restart them", databases[0].node)
}

// sealed judges what went over the wire between the nodes.
func sealed(seen []stage.Packet) (string, error) {
	tunnel, bytesIn := 0, 0
	for i := range seen {
		p := &seen[i]
		if p.Between(clusterRanges) {
			return "", errDiffers("a packet of protocol %d from %s to %s outside of the tunnel", p.Protocol, p.Source, p.Destination)
		}
		for _, clear := range []string{"/v2/keys", owner, "Welcome, "} {
			if bytes.Contains(p.Payload, []byte(clear)) {
				return "", errDiffers("“%s” in clear from %s to %s", clear, p.Source, p.Destination)
			}
		}
		if p.Protocol == stage.UDP && p.Destination.Port() == tunnelPort {
			tunnel++
			bytesIn += len(p.Payload)
		}
	}
	if tunnel == 0 {
		return "", errDiffers("%d packets, none of them WireGuard's", len(seen))
	}
	return fmt.Sprintf("%d packets of WireGuard (%d bytes); 0 of %d packets between addresses of pods", tunnel, bytesIn, len(seen)), nil
}
