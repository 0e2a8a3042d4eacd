package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

type certificate = x509.Certificate

func lookNodes(ctx context.Context, s *state) error {
	ds, err := s.c.Kube.AppsV1().DaemonSets(names.Namespace).Get(ctx, names.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s.bad(notInstalled, "DaemonSet %s/%s is missing", names.Namespace, names.Node)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read DaemonSet %s: %w", names.Node, err)
	}
	if want := ds.Status.DesiredNumberScheduled; want == 0 || ds.Status.NumberReady < want {
		why, err := s.whyNotReady(ctx, mesh.Node)
		if err != nil {
			return err
		}
		s.bad(fmt.Sprintf("see `kubectl -n %s describe pods -l app.kubernetes.io/component=%s`", names.Namespace, mesh.Node),
			"%d of %d node agents are ready%s", ds.Status.NumberReady, want, why)
	} else {
		s.good("%s ready", plural(int(want), "node agent is", "node agents are"))
	}
	agents, err := mesh.Agents(ctx, s.c)
	if err != nil {
		return err
	}
	whole := len(agents) > 0
	for i := range agents {
		whole = s.agent(&agents[i], agents) && whole
	}
	if whole {
		s.good("every agent is connected, in the CNI chain and has programmed its kernel")
		s.good("%s", tunnels(agents))
	}
	return nil
}

// agent judges one node; the sentences are of what is wrong only.
func (s *state) agent(a *mesh.Agent, all []mesh.Agent) bool {
	logs := fmt.Sprintf("see `kubectl -n %s logs %s`", names.Namespace, a.Pod)
	if a.Err != nil {
		s.bad(logs, "node %s: its agent does not answer: %v", a.Node, a.Err)
		return false
	}
	before := len(s.results)
	st := a.Status
	if !st.Control.Connected {
		s.bad("the last configuration stays in force; does "+st.Control.Address+" answer from that node? "+logs, "node %s: its agent is not connected to the control plane", a.Node)
	}
	if left := st.Control.IdentityExpiry.Sub(s.now); !st.Control.IdentityExpiry.IsZero() && left <= 0 {
		s.bad(logs, "node %s: the certificate of its agent ended at %s", a.Node, stamp(st.Control.IdentityExpiry))
	}
	switch {
	case st.Chain.Problem != "":
		s.bad(logs, "node %s: CNI configuration: %s", a.Node, st.Chain.Problem)
	case !st.Chain.Present:
		s.bad("pods that start there are not captured; "+logs, "node %s: %s is not in the CNI configuration %s", a.Node, names.CNIType, st.Chain.File)
	}
	if !st.Ready {
		s.bad(logs, "node %s: not in force yet: %s", a.Node, strings.Join(st.NotReady, "; "))
	}
	s.tunnel(a, all, logs)
	whole := len(s.results) == before
	if len(st.Pods.Unprotected) > 0 {
		// Of users' pods, which only their owners may restart: after a new installation
		// the agent is well, and they are not.
		defer func(was string) { s.current = was }(s.current)
		s.current = workloads
		s.bad("restart them", "node %s: pods whose traffic does not go through their sidecar: %s", a.Node, run.Some(st.Pods.Unprotected))
	}
	return whole
}

func (s *state) tunnel(a *mesh.Agent, all []mesh.Agent, logs string) {
	t := &a.Status.Tunnel
	if !t.Enabled {
		return
	}
	if t.Problem != "" {
		s.bad(logs, "node %s: tunnel: %s", a.Node, t.Problem)
	}
	peers := make(map[string]*mesh.TunnelPeer, len(t.Peers))
	for i := range t.Peers {
		peers[t.Peers[i].Node] = &t.Peers[i]
	}
	for i := range all {
		other := &all[i]
		if other.Node == a.Node || other.Status == nil || !other.Status.Tunnel.Enabled {
			continue
		}
		p := peers[other.Node]
		switch {
		case p == nil:
			s.bad(logs, "node %s: it has no tunnel to node %s", a.Node, other.Node)
		case p.PublicKey == "":
			s.bad(fmt.Sprintf("see `kubectl -n %s logs %s`", names.Namespace, other.Pod), "node %s: node %s has not told its key", a.Node, other.Node)
		case p.PublicKey != other.Status.Tunnel.PublicKey && other.Status.Tunnel.PublicKey != "":
			s.bad(logs, "node %s: it knows another key of node %s than that node has", a.Node, other.Node)
		case p.SentBytes > 0 && p.LastHandshake.IsZero():
			s.bad(fmt.Sprintf("let UDP %d through between the nodes (%s)", names.PortTunnel, p.Endpoint), "node %s: node %s does not answer in the tunnel", a.Node, other.Node)
		}
	}
}

// tunnels sums up tunnels that are whole.
func tunnels(agents []mesh.Agent) string {
	on, peers, spoken := 0, 0, 0
	for i := range agents {
		t := &agents[i].Status.Tunnel
		if !t.Enabled {
			continue
		}
		on++
		peers += len(t.Peers)
		for _, p := range t.Peers {
			if !p.LastHandshake.IsZero() {
				spoken++
			}
		}
	}
	switch {
	case on == 0:
		return "encryption between nodes is switched off"
	case peers == 0:
		return "there is one node, and so no tunnel"
	}
	return fmt.Sprintf("%s whole, %d of them used so far", plural(peers, "tunnel end is", "tunnel ends are"), spoken)
}
