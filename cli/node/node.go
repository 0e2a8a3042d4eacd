// Package node is `hauberk node`: what the agents of the nodes have brought
// into their kernels.
package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Command is `hauberk node`.
func Command(env *run.Env) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{Use: "node", Short: "Look at nodes: their agents, tunnels and kernel rules"}
	c.PersistentFlags().DurationVar(&timeout, "timeout", time.Minute, "how long to look")
	add := func(use, short string, args cobra.PositionalArgs, f func(context.Context, *run.Clients, *run.Env, []string) error) {
		c.AddCommand(&cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, args []string) error {
			clients, err := env.Clients()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return f(ctx, clients, env, args)
		}})
	}
	add("status", "List the node agents and how they are", cobra.NoArgs, status)
	add("tunnels", "List the ends of the encrypted network between nodes", cobra.NoArgs, tunnels)
	add("pods NODE", "List what the agent of a node knows of its pods", cobra.ExactArgs(1), pods)
	add("rules NODE", "Print the nftables rules that are in the kernel of a node", cobra.ExactArgs(1), rules)
	return c
}

// agents are those of all nodes, by node; with none it is an error.
func agents(ctx context.Context, c *run.Clients) ([]mesh.Agent, error) {
	list, err := mesh.Agents(ctx, c)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, run.Fail(run.ExitBadInput, "is the mesh installed? See `hauberk check`", "no node agent runs in namespace %s", names.Namespace)
	}
	slices.SortFunc(list, func(a, b mesh.Agent) int { return strings.Compare(a.Node, b.Node) })
	return list, nil
}

// unanswered ends a command whose table has gaps.
func unanswered(env *run.Env, list []mesh.Agent) error {
	failed := 0
	for _, a := range list {
		if a.Err != nil {
			failed++
			fmt.Fprintf(env.Err, "%s node %s: %v\n", env.Paint(env.Err, run.Red, "✗"), a.Node, a.Err)
		}
	}
	if failed > 0 {
		return run.Fail(run.ExitRuntime, fmt.Sprintf("see `kubectl -n %s get pods -o wide`", names.Namespace), "%d of %d node agents do not answer", failed, len(list))
	}
	return nil
}

// nodeRow is one node of `node status`.
type nodeRow struct {
	Node     string            `json:"node"`
	Pod      string            `json:"pod"`
	Status   *mesh.AgentStatus `json:"status,omitempty"`
	Error    string            `json:"error,omitempty"`
	PeersUp  int               `json:"peersUp"`
	Problems []string          `json:"problems,omitempty"`
}

func status(ctx context.Context, c *run.Clients, env *run.Env, _ []string) error {
	list, err := agents(ctx, c)
	if err != nil {
		return err
	}
	now := env.Time()
	var rows []nodeRow
	var table [][]string
	for _, a := range list {
		row := nodeRow{Node: a.Node, Pod: a.Pod, Status: a.Status}
		if a.Err != nil {
			row.Error = a.Err.Error()
			rows = append(rows, row)
			table = append(table, []string{a.Node, "no answer", "-", "-", "-", "-", "-", "-"})
			continue
		}
		s := a.Status
		for i := range s.Tunnel.Peers {
			if s.Tunnel.Peers[i].Up(now) {
				row.PeersUp++
			}
		}
		row.Problems = append(row.Problems, s.NotReady...)
		for _, p := range []string{s.Chain.Problem, s.Tunnel.Problem} {
			if p != "" {
				row.Problems = append(row.Problems, p)
			}
		}
		rows = append(rows, row)
		tunnel := "off"
		if s.Tunnel.Enabled {
			tunnel = fmt.Sprintf("%s, %d/%d peers up", s.Tunnel.Backend, row.PeersUp, len(s.Tunnel.Peers))
		}
		problems := strings.Join(row.Problems, "; ")
		if problems == "" {
			problems = "-"
		}
		table = append(table, []string{a.Node, yes(s.Ready), yes(s.Control.Connected), ago(now, s.Control.LastSync), yes(s.Chain.Present),
			fmt.Sprintf("%d (%d meshed)", s.Pods.Attached, s.Pods.Meshed), tunnel, problems})
	}
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "NodeList", "items": rows}); done {
		return err
	}
	if err := env.Table([]string{"NODE", "READY", "CONNECTED", "SYNCED", "CNI", "PODS", "TUNNEL", "PROBLEMS"}, table); err != nil {
		return err
	}
	return unanswered(env, list)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return run.Duration(now.Sub(t)) + " ago"
}

// tunnelRow is one end of one tunnel.
type tunnelRow struct {
	Node    string `json:"node"`
	Backend string `json:"backend"`
	MTU     int    `json:"mtu"`
	Port    int    `json:"port"`
	Up      bool   `json:"up"`
	// Peer is the other node.
	Peer          string    `json:"peer,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	PublicKey     string    `json:"publicKey,omitempty"`
	AllowedIPs    []string  `json:"allowedIPs"`
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	ReceivedBytes int64     `json:"receivedBytes"`
	SentBytes     int64     `json:"sentBytes"`
	Problem       string    `json:"problem,omitempty"`
}

func tunnels(ctx context.Context, c *run.Clients, env *run.Env, _ []string) error {
	list, err := agents(ctx, c)
	if err != nil {
		return err
	}
	now := env.Time()
	rows := []tunnelRow{}
	var table [][]string
	for _, a := range list {
		if a.Status == nil {
			continue
		}
		t := a.Status.Tunnel
		if !t.Enabled || len(t.Peers) == 0 {
			backend := t.Backend
			if !t.Enabled {
				backend = "off"
			}
			rows = append(rows, tunnelRow{Node: a.Node, Backend: backend, MTU: t.MTU, Port: t.Port, AllowedIPs: []string{}, Problem: t.Problem})
			table = append(table, []string{a.Node, "-", "-", "-", "-", "-", "-", backend, strconv.Itoa(t.MTU)})
			continue
		}
		for i := range t.Peers {
			p := &t.Peers[i]
			ips := p.AllowedIPs
			if ips == nil {
				ips = []string{}
			}
			rows = append(rows, tunnelRow{Node: a.Node, Backend: t.Backend, MTU: t.MTU, Port: t.Port, Up: p.Up(now), Peer: p.Node, Endpoint: p.Endpoint,
				PublicKey: p.PublicKey, AllowedIPs: ips, LastHandshake: p.LastHandshake, ReceivedBytes: p.ReceivedBytes, SentBytes: p.SentBytes, Problem: t.Problem})
			endpoint := p.Endpoint
			if p.PublicKey == "" {
				endpoint = "(no key yet)"
			}
			table = append(table, []string{a.Node, p.Node, endpoint, addresses(env, p.AllowedIPs), ago(now, p.LastHandshake),
				size(p.ReceivedBytes), size(p.SentBytes), t.Backend, strconv.Itoa(t.MTU)})
		}
	}
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "TunnelList", "items": rows}); done {
		return err
	}
	if err := env.Table([]string{"NODE", "PEER", "ENDPOINT", "POD ADDRESSES", "HANDSHAKE", "RX", "TX", "BACKEND", "MTU"}, table); err != nil {
		return err
	}
	for _, a := range list {
		if a.Status != nil && a.Status.Tunnel.Problem != "" {
			fmt.Fprintf(env.Out, "%s node %s: %s\n", env.Bad(), a.Node, a.Status.Tunnel.Problem)
		}
	}
	return unanswered(env, list)
}

// addresses are all of them with -o wide, else the first and a count.
func addresses(env *run.Env, list []string) string {
	switch {
	case len(list) == 0:
		return "none"
	case len(list) == 1 || env.Format == "wide":
		return strings.Join(list, ",")
	}
	return fmt.Sprintf("%s and %d more", list[0], len(list)-1)
}

// size is bytes for people, in units of 1024.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/1024, 0
	for value >= 1024 && i < len(units)-1 {
		value /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}

func pods(ctx context.Context, c *run.Clients, env *run.Env, args []string) error {
	pod, err := mesh.AgentOf(ctx, c, args[0])
	if err != nil {
		return err
	}
	var list []mesh.AgentPod
	if err := c.PodJSON(ctx, names.Namespace, pod, names.PortAdmin, "/pods", &list); err != nil {
		return err
	}
	if list == nil {
		list = []mesh.AgentPod{}
	}
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "NodePodList", "items": list}); done {
		return err
	}
	var table [][]string
	for _, p := range list {
		table = append(table, []string{p.Namespace + "/" + p.Name, strings.Join(p.Addresses, ","), yes(p.Attached), yes(p.Known), yes(p.Meshed), yes(p.Programmed)})
	}
	return env.Table([]string{"POD", "ADDRESSES", "ATTACHED", "KNOWN", "MESHED", "PROGRAMMED"}, table)
}

func rules(ctx context.Context, c *run.Clients, env *run.Env, args []string) error {
	pod, err := mesh.AgentOf(ctx, c, args[0])
	if err != nil {
		return err
	}
	text, err := c.PodDo(ctx, http.MethodGet, names.Namespace, pod, names.PortAdmin, "/rules", nil)
	if err != nil {
		return err
	}
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "NodeRules", "node": args[0], "rules": string(text)}); done {
		return err
	}
	_, err = env.Out.Write(text)
	return err
}
