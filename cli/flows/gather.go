package flows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	// refresh is between looks for pods that came and went, while following.
	refresh = 10 * time.Second
	// gather is for how long records of several sources are put in order before
	// they are printed.
	gather = 300 * time.Millisecond
)

// source is a process that tells of verdicts.
type source struct {
	layer, namespace, pod, node string
}

// String names it for people.
func (s source) String() string {
	if s.layer == flow.Kernel {
		return "node " + s.node
	}
	return "sidecar of " + s.namespace + "/" + s.pod
}

// gatherer asks sources and prints what they say.
type gatherer struct {
	env     *run.Env
	clients *run.Clients
	filter  flow.Filter

	mu    sync.Mutex
	names map[netip.Addr]named // guarded by mu
	told  map[string]bool      // problems that were said; guarded by mu
}

// named is a pod by an address that it has.
type named struct {
	flow.Endpoint
	since time.Time
}

// sources are the agents of all nodes, and the sidecars of the chosen
// namespaces.
func (g *gatherer) sources(ctx context.Context) ([]source, error) {
	var out []source
	if g.filter.Layer != flow.Sidecar && g.filter.Verdict != flow.Allow {
		agents, err := mesh.Pods(ctx, g.clients, mesh.Node)
		if err != nil {
			return nil, err
		}
		for _, p := range agents {
			if p.Status.Phase == corev1.PodRunning {
				out = append(out, source{flow.Kernel, p.Namespace, p.Name, p.Spec.NodeName})
			}
		}
		if len(out) == 0 && g.filter.Layer == flow.Kernel {
			return nil, run.Fail(run.ExitBadInput, "is the mesh installed? See `hauberk check`", "no node agent runs in namespace %s", names.Namespace)
		}
	}
	if g.filter.Layer == flow.Kernel {
		return out, nil
	}
	namespaces := g.filter.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	for _, ns := range namespaces {
		list, err := g.clients.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			if st := mesh.SidecarStatus(p); mesh.Live(p) && mesh.Sidecar(p) != nil && st != nil && (st.State.Running != nil || st.Ready) {
				out = append(out, source{flow.Sidecar, p.Namespace, p.Name, p.Spec.NodeName})
			}
		}
	}
	return out, nil
}

// pods are all pods by address, as far as the user may see them: an agent knows
// the pods of its own node only.
func (g *gatherer) pods(ctx context.Context) (map[netip.Addr]named, error) {
	out := map[netip.Addr]named{}
	for _, ns := range append([]string{""}, g.filter.Namespaces...) {
		list, err := g.clients.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if ns == "" && apierrors.IsForbidden(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			if p.Spec.HostNetwork || !mesh.Live(p) {
				continue
			}
			n := named{flow.Endpoint{Namespace: p.Namespace, Pod: p.Name, Workload: workload(p)}, p.CreationTimestamp.Time}
			for _, text := range append([]string{p.Status.PodIP}, addresses(p)...) {
				if a, err := netip.ParseAddr(text); err == nil {
					out[a.Unmap()] = n
				}
			}
		}
		if ns == "" {
			break // that was all of them
		}
	}
	return out, nil
}

func addresses(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// workload is what the pod belongs to, as telemetry names it. A Deployment is
// found through its ReplicaSet's name, which ends in the pod template's hash.
func workload(p *corev1.Pod) string {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return p.Name
	}
	if hash := p.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" {
		return strings.TrimSuffix(owner.Name, "-"+hash)
	}
	return owner.Name
}

// complete names ends that the source knows by address only, unless the pod is
// younger than the verdict: then the address was another's.
func (g *gatherer) complete(r *flow.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range []*flow.Endpoint{&r.Source, &r.Destination} {
		if e.Pod != "" || e.Node != "" {
			continue
		}
		n, ok := g.names[e.Address]
		if !ok || n.since.After(r.Time) || e.Namespace != "" && e.Namespace != n.Namespace {
			continue
		}
		e.Namespace, e.Pod, e.Workload = n.Namespace, n.Pod, n.Workload
	}
}

// read calls each for what a source says, until it ends.
func (g *gatherer) read(ctx context.Context, s source, follow bool, each func(flow.Record) error) error {
	// Who is at an address is known here only: filters of names are applied here.
	f := g.filter
	f.Namespaces, f.Pod, f.Workload = nil, "", ""
	q := f.Query()
	client := g.clients.PodHTTP(s.namespace, s.pod, names.PortAdmin)
	defer client.CloseIdleConnections()
	if follow {
		q.Set("follow", "1")
		client.Timeout = 0 // it ends with ctx
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost:"+strconv.Itoa(names.PortAdmin)+"/flows?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		var inner interface{ Unwrap() error }
		if errors.As(err, &inner) && inner.Unwrap() != nil {
			err = inner.Unwrap()
		}
		return err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotFound:
		return errors.New("it is of a version of the mesh that tells no flows")
	case res.StatusCode != http.StatusOK:
		text, err := io.ReadAll(io.LimitReader(res.Body, 1024))
		if err != nil {
			return err
		}
		return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(text)))
	}
	if p := res.Header.Get(flow.ProblemHeader); p != "" && g.first(s.String()+p) {
		g.warn("%s tells nothing: %s", s, p)
	}
	return flow.Read(ctx, res.Body, each)
}

// first reports whether something is said for the first time.
func (g *gatherer) first(what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.told == nil {
		g.told = map[string]bool{}
	}
	before := g.told[what]
	g.told[what] = true
	return !before
}
