package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// print is the screen. Times are told relative to now.
func (s *Status) print(env *run.Env, now time.Time) error {
	w := tabwriter.NewWriter(env.Out, 0, 8, 3, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }

	line("Versions", "command %s, control %s, injector %s, nodes %s", s.Versions.CLI, orNone(s.Versions.Control), orNone(s.Versions.Injector), orNone(s.Versions.Node))
	line("", "sidecars: %s", counts(s.Versions.Sidecars))
	leader := ""
	if s.Control.Leader != "" {
		leader = ", leader " + s.Control.Leader
	}
	line("Control plane", "%d of %d replicas ready%s", s.Control.Ready, s.Control.Replicas, leader)
	line("", "clients connected: %s", counts(s.Control.Clients))
	if s.Control.Asked > 0 {
		sync := ""
		if !s.Control.OldestSync.IsZero() {
			sync = ", every node in sync " + age(now, s.Control.OldestSync) + " ago"
		}
		line("", "%d of %d agents and sidecars say that they are connected%s", s.Control.Connected, s.Control.Asked, sync)
	}
	line("Identity", "trust domain %s, trust root until %s", s.Identity.TrustDomain, until(now, s.Identity.RootsExpire))
	if s.Identity.FirstToEnd != "" {
		line("", "first certificate to end: %s, %s", s.Identity.FirstToEnd, until(now, s.Identity.FirstExpiry))
	}
	if len(s.Nodes) == 0 {
		line("Nodes", "none has an agent")
	}
	for i, n := range s.Nodes {
		line(first(i, "Nodes"), "%s: %s", n.Name, n.describe())
	}
	if len(s.Namespaces) == 0 {
		line("Namespaces", "none in the mesh yet: kubectl label namespace NAME hauberk.dev/inject=enabled")
	}
	for i, n := range s.Namespaces {
		hint := ""
		switch {
		case n.Enabled && n.Unmeshed > 0:
			hint = " (restart what should be in the mesh; see `hauberk check`)"
		case !n.Enabled:
			hint = " (the namespace has no label hauberk.dev/inject: enabled)"
		}
		line(first(i, "Namespaces"), "%s: %d pods in the mesh, %d not%s", n.Name, n.Meshed, n.Unmeshed, hint)
	}
	line("Policies", "%d accepted, %d not; NetworkPolicies: %d; when none decides: %s", s.Policies.Accepted, s.Policies.NotAccepted, s.Policies.NetworkPolicies, s.Policies.DefaultAction)
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(env.Out)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(env.Out, "%s %s\n", env.Warn(), p)
	}
	return nil
}

func (n *Node) describe() string {
	if n.Error != "" {
		return "its agent does not answer"
	}
	text := "in force"
	if !n.Ready {
		text = "not in force yet"
	}
	if !n.Connected {
		text += ", not connected to the control plane"
	}
	switch {
	case n.Backend == "":
		return text + ", no tunnel"
	case n.Peers == 0:
		return text + ", tunnel " + n.Backend + " without peers"
	}
	return fmt.Sprintf("%s, tunnel %s, %d of %d peers up", text, n.Backend, n.PeersUp, n.Peers)
}

// first names the first line of a group.
func first(i int, name string) string {
	if i == 0 {
		return name
	}
	return ""
}

func orNone(v string) string {
	if v == "" {
		return "(none)"
	}
	return v
}

func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d × %s", m[k], k))
	}
	return strings.Join(parts, ", ")
}

func age(now, t time.Time) string { return run.Duration(now.Sub(t)) }

func until(now, t time.Time) string {
	if t.IsZero() {
		return "(unknown)"
	}
	text := t.UTC().Format("2006-01-02 15:04 MST")
	if !t.After(now) {
		return text + " (ended)"
	}
	return text + " (in " + run.Duration(t.Sub(now)) + ")"
}
