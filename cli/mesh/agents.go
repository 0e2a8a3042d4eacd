package mesh

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Agent is a node's agent and what it says of itself.
type Agent struct {
	Node   string       `json:"node"`
	Pod    string       `json:"pod"`
	Status *AgentStatus `json:"status,omitempty"`
	Err    error        `json:"-"`
}

// AgentStatus is the agent's page /status.
type AgentStatus struct {
	Node     string   `json:"node"`
	Version  string   `json:"version"`
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady,omitempty"`
	Control  struct {
		Address        string    `json:"address"`
		Connected      bool      `json:"connected"`
		LastSync       time.Time `json:"lastSync,omitzero"`
		Identity       string    `json:"identity,omitempty"`
		IdentityExpiry time.Time `json:"identityExpiry,omitzero"`
	} `json:"control"`
	Chain struct {
		File    string `json:"file"`
		Present bool   `json:"present"`
		Problem string `json:"problem,omitempty"`
		Repairs int    `json:"repairs"`
	} `json:"chain"`
	Pods struct {
		Known       int      `json:"known"`
		Attached    int      `json:"attached"`
		Meshed      int      `json:"meshed"`
		Unprotected []string `json:"unprotected"`
	} `json:"pods"`
	Tunnel Tunnel `json:"tunnel"`
}

// Tunnel is one end of the encrypted network between nodes.
type Tunnel struct {
	Enabled   bool         `json:"enabled"`
	Backend   string       `json:"backend"`
	Interface string       `json:"interface"`
	PublicKey string       `json:"publicKey"`
	Port      int          `json:"port"`
	MTU       int          `json:"mtu"`
	Strict    bool         `json:"strict"`
	Problem   string       `json:"problem,omitempty"`
	Peers     []TunnelPeer `json:"peers"`
}

// TunnelPeer is the other end.
type TunnelPeer struct {
	Node          string    `json:"node"`
	PublicKey     string    `json:"publicKey,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	AllowedIPs    []string  `json:"allowedIPs"`
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	ReceivedBytes int64     `json:"receivedBytes"`
	SentBytes     int64     `json:"sentBytes"`
}

// staleHandshake is when a peer that is spoken to has not answered: WireGuard
// makes a new handshake every two minutes and gives up a session after three
// (whitepaper section 6.1).
const staleHandshake = 180 * time.Second

// Up reports whether the peer answered within the life of a session. A peer
// that nobody speaks to is not up and need not be.
func (p *TunnelPeer) Up(now time.Time) bool {
	return !p.LastHandshake.IsZero() && now.Sub(p.LastHandshake) < staleHandshake
}

// AgentPod is one pod of the agent's page /pods.
type AgentPod struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	UID        string   `json:"uid"`
	Addresses  []string `json:"addresses"`
	Known      bool     `json:"known"`
	Meshed     bool     `json:"meshed"`
	PolicySet  string   `json:"policySet,omitempty"`
	Programmed bool     `json:"programmed"`
	Attached   bool     `json:"attached"`
}

// Agents asks every node's agent for its status. An agent that does not answer
// has Err; error is for when there is nobody to ask.
func Agents(ctx context.Context, c *run.Clients) ([]Agent, error) {
	pods, err := Pods(ctx, c, Node)
	if err != nil {
		return nil, err
	}
	return run.Each(pods, func(p corev1.Pod) Agent {
		a := Agent{Node: p.Spec.NodeName, Pod: p.Name}
		status := &AgentStatus{}
		if a.Err = c.PodJSON(ctx, names.Namespace, p.Name, names.PortAdmin, "/status", status); a.Err == nil {
			a.Status = status
		}
		return a
	}), nil
}

// AgentOf is the agent's pod on a node.
func AgentOf(ctx context.Context, c *run.Clients, node string) (string, error) {
	pods, err := Pods(ctx, c, Node)
	if err != nil {
		return "", err
	}
	var nodes []string
	for _, p := range pods {
		if p.Spec.NodeName == node {
			return p.Name, nil
		}
		nodes = append(nodes, p.Spec.NodeName)
	}
	mend := "is the mesh installed? See `hauberk check`"
	if len(nodes) > 0 {
		mend = "nodes with an agent: " + join(nodes)
	}
	return "", run.Fail(run.ExitBadInput, mend, "no agent runs on node %q", node)
}
