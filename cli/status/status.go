// Package status is `hauberk status`: the mesh on one screen. It counts and
// judges nothing; `hauberk check` does.
package status

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/check"
	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// askedSidecars is how many sidecars are asked for their certificates: enough
// for a picture, few enough for a large cluster.
const askedSidecars = 200

// Status is the screen as data.
type Status struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Installed  bool        `json:"installed"`
	Versions   Versions    `json:"versions"`
	Control    Control     `json:"control"`
	Identity   Identity    `json:"identity"`
	Nodes      []Node      `json:"nodes"`
	Namespaces []Namespace `json:"namespaces"`
	Policies   Policies    `json:"policies"`
	Problems   []string    `json:"problems,omitempty"`
}

// Versions of the parts; sidecars are counted by the version that made them.
type Versions struct {
	CLI      string         `json:"cli"`
	Control  string         `json:"control,omitempty"`
	Injector string         `json:"injector,omitempty"`
	Node     string         `json:"node,omitempty"`
	Sidecars map[string]int `json:"sidecars"`
}

// Control is the control plane.
type Control struct {
	Ready    int32          `json:"ready"`
	Replicas int32          `json:"replicas"`
	Leader   string         `json:"leader,omitempty"`
	Clients  map[string]int `json:"clients"`
	// Connected is how many of the Asked agents and sidecars say that they are.
	Connected int `json:"connected"`
	Asked     int `json:"asked"`
	// OldestSync is when the node agent that is furthest behind was in sync last.
	OldestSync time.Time `json:"oldestSync,omitzero"`
}

// Identity is what ends when.
type Identity struct {
	TrustDomain  string    `json:"trustDomain"`
	RootsExpire  time.Time `json:"rootsExpire,omitzero"`
	FirstExpiry  time.Time `json:"firstExpiry,omitzero"`
	FirstToEnd   string    `json:"firstToEnd,omitempty"`
	AskedSidecar int       `json:"askedSidecars"`
}

// Node is a node's agent and tunnel.
type Node struct {
	Name      string `json:"name"`
	Ready     bool   `json:"ready"`
	Connected bool   `json:"connected"`
	Backend   string `json:"backend,omitempty"`
	PeersUp   int    `json:"peersUp"`
	Peers     int    `json:"peers"`
	Error     string `json:"error,omitempty"`
}

// Namespace is one with pods in the mesh, or with its label.
type Namespace struct {
	Name     string `json:"name"`
	Enabled  bool   `json:"enabled"`
	Meshed   int    `json:"meshed"`
	Unmeshed int    `json:"unmeshed"`
}

// Policies are counts.
type Policies struct {
	Accepted        int    `json:"accepted"`
	NotAccepted     int    `json:"notAccepted"`
	NetworkPolicies int    `json:"networkPolicies"`
	DefaultAction   string `json:"defaultAction"`
}

// Command is `hauberk status`.
func Command(env *run.Env) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "The mesh on one screen",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			clients, err := env.Clients()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			p := run.NewProgress(env.Err)
			p.Step("asking")
			s, err := Read(ctx, clients, env.Time())
			p.Close()
			if err != nil {
				return err
			}
			if done, err := env.Structured(s); done {
				return err
			}
			return s.print(env, env.Time())
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to look")
	return c
}

// Read looks at the whole mesh.
func Read(ctx context.Context, c *run.Clients, now time.Time) (*Status, error) {
	s := &Status{
		APIVersion: run.OutputVersion, Kind: "Status",
		Versions: Versions{CLI: version.Version, Sidecars: map[string]int{}},
		Control:  Control{Clients: map[string]int{}},
		Identity: Identity{TrustDomain: names.TrustDomain},
		Nodes:    []Node{}, Namespaces: []Namespace{},
	}
	if err := s.control(ctx, c); err != nil {
		return nil, err
	}
	if err := s.nodes(ctx, c, now); err != nil {
		return nil, err
	}
	if err := s.workloads(ctx, c); err != nil {
		return nil, err
	}
	if err := s.roots(ctx, c); err != nil {
		return nil, err
	}
	return s, s.policies(ctx, c)
}

func (s *Status) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func versionOf(labels map[string]string) string { return labels["app.kubernetes.io/version"] }

func (s *Status) control(ctx context.Context, c *run.Clients) error {
	deployments := c.Kube.AppsV1().Deployments(names.Namespace)
	d, err := deployments.Get(ctx, names.Control, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.problem("the mesh is not installed: run `hauberk install`")
		return nil
	case err != nil:
		return fmt.Errorf("read the control plane: %w", err)
	}
	s.Installed = true
	s.Versions.Control, s.Control.Ready = versionOf(d.Labels), d.Status.ReadyReplicas
	s.Control.Replicas = 1
	if d.Spec.Replicas != nil {
		s.Control.Replicas = *d.Spec.Replicas
	}
	if d, err := deployments.Get(ctx, names.Injector, metav1.GetOptions{}); err == nil {
		s.Versions.Injector = versionOf(d.Labels)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the injector: %w", err)
	}
	if d, err := c.Kube.AppsV1().DaemonSets(names.Namespace).Get(ctx, names.Node, metav1.GetOptions{}); err == nil {
		s.Versions.Node = versionOf(d.Labels)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the node agents: %w", err)
	}
	leases, err := c.Kube.CoordinationV1().Leases(names.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.problem("the leader is not known: %v", err)
	} else {
		for _, l := range leases.Items {
			if strings.HasPrefix(l.Name, names.Control) && l.Spec.HolderIdentity != nil {
				s.Control.Leader = *l.Spec.HolderIdentity
			}
		}
	}
	replicas, err := mesh.Replicas(ctx, c)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		if r.Err != nil {
			s.problem("replica %s does not answer: %v", r.Pod, r.Err)
		}
		for _, client := range r.Clients {
			s.Control.Clients[client.Kind]++
		}
	}
	return nil
}

// asked notes whether a client is connected.
func (s *Status) asked(connected bool) {
	s.Control.Asked++
	if connected {
		s.Control.Connected++
	}
}

// ends notes when a certificate does.
func (s *Status) ends(t time.Time, of string) {
	if !t.IsZero() && (s.Identity.FirstExpiry.IsZero() || t.Before(s.Identity.FirstExpiry)) {
		s.Identity.FirstExpiry, s.Identity.FirstToEnd = t, of
	}
}

func (s *Status) nodes(ctx context.Context, c *run.Clients, now time.Time) error {
	agents, err := mesh.Agents(ctx, c)
	if err != nil {
		return err
	}
	for _, a := range agents {
		n := Node{Name: a.Node}
		if a.Err != nil {
			n.Error = a.Err.Error()
			s.problem("node %s: its agent does not answer", a.Node)
		} else {
			n.Ready, n.Connected = a.Status.Ready, a.Status.Control.Connected
			if t := a.Status.Tunnel; t.Enabled {
				n.Backend, n.Peers = t.Backend, len(t.Peers)
				for i := range t.Peers {
					if t.Peers[i].Up(now) {
						n.PeersUp++
					}
				}
			}
			s.asked(n.Connected)
			if t := a.Status.Control.LastSync; !t.IsZero() && (s.Control.OldestSync.IsZero() || t.Before(s.Control.OldestSync)) {
				s.Control.OldestSync = t
			}
			s.ends(a.Status.Control.IdentityExpiry, "node "+a.Node)
		}
		s.Nodes = append(s.Nodes, n)
	}
	slices.SortFunc(s.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (s *Status) workloads(ctx context.Context, c *run.Clients) error {
	namespaces, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	byName := make(map[string]*Namespace)
	for _, ns := range namespaces.Items {
		byName[ns.Name] = &Namespace{Name: ns.Name, Enabled: ns.Labels[names.LabelInject] == names.InjectEnabled}
	}
	var sidecars []corev1.Pod
	for _, p := range pods.Items {
		ns := byName[p.Namespace]
		if ns == nil || !mesh.Live(&p) {
			continue
		}
		if mesh.Sidecar(&p) == nil {
			ns.Unmeshed++
			continue
		}
		ns.Meshed++
		s.Versions.Sidecars[mesh.InjectedVersion(&p)]++
		if p.Status.Phase == corev1.PodRunning && len(sidecars) < askedSidecars {
			sidecars = append(sidecars, p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if ns := byName[name]; ns.Enabled || ns.Meshed > 0 {
			s.Namespaces = append(s.Namespaces, *ns)
		}
	}
	for _, p := range mesh.Proxies(ctx, c, sidecars) {
		if p.Err != nil {
			s.problem("the sidecar of %s/%s does not answer", p.Namespace, p.Pod)
			continue
		}
		s.Identity.AskedSidecar++
		s.asked(p.Status.Connected)
		s.ends(p.Status.Expiry, p.Namespace+"/"+p.Pod)
	}
	return nil
}

func (s *Status) roots(ctx context.Context, c *run.Clients) error {
	settings, err := mesh.ReadSettings(ctx, c)
	if err != nil {
		return err
	}
	s.Identity.TrustDomain = settings.Inject.TrustDomain
	certs, err := mesh.Certificates(settings.Inject.TrustBundle)
	if err != nil {
		s.problem("the trust bundle can't be read: %v", err)
	}
	for _, cert := range certs {
		if s.Identity.RootsExpire.IsZero() || cert.NotAfter.Before(s.Identity.RootsExpire) {
			s.Identity.RootsExpire = cert.NotAfter
		}
	}
	return nil
}

func (s *Status) policies(ctx context.Context, c *run.Clients) error {
	s.Policies.DefaultAction = "Allow"
	for _, resource := range []string{"meshpolicies", "clustermeshpolicies"} {
		list, err := c.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(resource)).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", resource, err)
		}
		for i := range list.Items {
			if status, _ := check.Condition(&list.Items[i], "Accepted"); status == metav1.ConditionTrue {
				s.Policies.Accepted++
			} else {
				s.Policies.NotAccepted++
			}
		}
	}
	list, err := c.Kube.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list network policies: %w", err)
	}
	s.Policies.NetworkPolicies = len(list.Items)
	config, err := c.Dynamic.Resource(v1alpha1.GroupVersion.WithResource("meshconfigs")).Get(ctx, "default", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read MeshConfig default: %w", err)
	}
	if err == nil {
		if spec, ok := config.Object["spec"].(map[string]any); ok {
			if action, ok := spec["defaultAction"].(string); ok && action != "" {
				s.Policies.DefaultAction = action
			}
		}
	}
	return nil
}
