// Package proxy is `hauberk proxy`: what sidecars say of themselves on their
// loopback.
package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Command is `hauberk proxy`.
func Command(env *run.Env) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{Use: "proxy", Short: "Look into sidecars: their state, configuration, connections and log level"}
	c.PersistentFlags().DurationVar(&timeout, "timeout", time.Minute, "how long to look")
	with := func(f func(context.Context, *run.Clients, []string) error) func(*cobra.Command, []string) error {
		return func(c *cobra.Command, args []string) error {
			clients, err := env.Clients()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return f(ctx, clients, args)
		}
	}
	var all bool
	var labels string
	status := &cobra.Command{
		Use:   "status [POD]",
		Short: "List sidecars and how they are",
		Args:  cobra.MaximumNArgs(1),
		RunE: with(func(ctx context.Context, c *run.Clients, args []string) error {
			pods, err := choose(ctx, c, env, args, all, labels)
			if err != nil {
				return err
			}
			return printStatus(ctx, c, env, pods)
		}),
	}
	status.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	status.Flags().StringVarP(&labels, "selector", "l", "", "labels of the pods")

	var page string
	config := &cobra.Command{
		Use:   "config POD",
		Short: "Print the configuration in force in a sidecar: its policy and the destinations that it knows",
		Args:  cobra.ExactArgs(1),
		RunE: with(func(ctx context.Context, c *run.Clients, args []string) error {
			return printConfig(ctx, c, env, args[0], page)
		}),
	}
	config.Flags().StringVar(&page, "page", "all", "all, policy, destinations or status")

	stats := &cobra.Command{
		Use:   "stats POD",
		Short: "Print the connections, the pools and the counters of a sidecar",
		Args:  cobra.ExactArgs(1),
		RunE: with(func(ctx context.Context, c *run.Clients, args []string) error {
			return printStats(ctx, c, env, args[0])
		}),
	}
	log := &cobra.Command{
		Use:   "log POD [LEVEL]",
		Short: "Print or set the log level of a sidecar, until it restarts",
		Args:  cobra.RangeArgs(1, 2),
		RunE: with(func(ctx context.Context, c *run.Clients, args []string) error {
			return logLevel(ctx, c, env, args)
		}),
	}
	c.AddCommand(status, config, stats, log)
	return c
}

func choose(ctx context.Context, c *run.Clients, env *run.Env, args []string, all bool, labels string) ([]corev1.Pod, error) {
	if len(args) == 1 {
		p, err := mesh.FindSidecar(ctx, c, args[0], env.CurrentNamespace())
		if err != nil {
			return nil, err
		}
		return []corev1.Pod{*p}, nil
	}
	namespace := env.CurrentNamespace()
	if all {
		namespace = ""
	}
	list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !mesh.Live(&p) || mesh.Sidecar(&p) == nil })
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return pods, nil
}

// proxyRow is one sidecar of `proxy status`.
type proxyRow struct {
	Namespace string            `json:"namespace"`
	Pod       string            `json:"pod"`
	Ready     bool              `json:"ready"`
	Status    *mesh.ProxyStatus `json:"status,omitempty"`
	Error     string            `json:"error,omitempty"`
}

func printStatus(ctx context.Context, c *run.Clients, env *run.Env, pods []corev1.Pod) error {
	now := env.Time()
	rows := []proxyRow{}
	var table [][]string
	failed := 0
	for i, p := range mesh.Proxies(ctx, c, pods) {
		st := mesh.SidecarStatus(&pods[i])
		row := proxyRow{Namespace: p.Namespace, Pod: p.Pod, Ready: st != nil && st.Ready, Status: p.Status}
		ready := "no"
		if row.Ready {
			ready = "yes"
		}
		name := p.Namespace + "/" + p.Pod
		if p.Err != nil {
			failed++
			row.Error = p.Err.Error()
			table = append(table, []string{name, ready, "no answer", "-", "-", "-", "-", "-"})
		} else {
			s := p.Status
			connected := "no"
			if s.Connected {
				connected = "yes"
			}
			if len(s.NotReady) > 0 {
				ready = "no: " + strings.Join(s.NotReady, "; ")
			}
			if s.Draining {
				ready = "draining"
			}
			table = append(table, []string{name, ready, connected, ago(now, s.Updated), ends(now, s.Expiry), strconv.Itoa(s.Connections),
				strings.TrimPrefix(s.MTLSMode, "MTLS_MODE_"), s.Version})
		}
		rows = append(rows, row)
	}
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "ProxyList", "items": rows}); done {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintf(env.Err, "no pod with a sidecar here; -A looks at all namespaces\n")
		return nil
	}
	if err := env.Table([]string{"POD", "READY", "CONNECTED", "TOLD", "CERTIFICATE", "CONNECTIONS", "MTLS", "VERSION"}, table); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Error != "" {
			fmt.Fprintf(env.Err, "%s %s/%s: %s\n", env.Paint(env.Err, run.Red, "✗"), r.Namespace, r.Pod, r.Error)
		}
	}
	if failed > 0 {
		return run.Fail(run.ExitRuntime, "see `hauberk check`", "%d of %d sidecars do not answer", failed, len(rows))
	}
	return nil
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return run.Duration(now.Sub(t)) + " ago"
}

func ends(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "none"
	case !t.After(now):
		return "ended"
	}
	return "for " + run.Duration(t.Sub(now))
}

// printConfig prints pages of the sidecar as they are: their shape is its own.
func printConfig(ctx context.Context, c *run.Clients, env *run.Env, ref, page string) error {
	pages := []string{"status", "policy", "destinations"}
	if page != "all" {
		if !slices.Contains(pages, page) {
			return run.Fail(run.ExitUsage, "use all, policy, destinations or status", "unknown --page %q", page)
		}
		pages = []string{page}
	}
	p, err := mesh.FindSidecar(ctx, c, ref, env.CurrentNamespace())
	if err != nil {
		return err
	}
	out := make(map[string]json.RawMessage, len(pages))
	for _, name := range pages {
		data, err := c.PodDo(ctx, http.MethodGet, p.Namespace, p.Name, names.PortAdmin, "/"+name, nil)
		if err != nil {
			return err
		}
		if !json.Valid(data) {
			return fmt.Errorf("pod %s/%s, /%s: the answer is of another version of the mesh", p.Namespace, p.Name, name)
		}
		out[name] = data
	}
	var v any = out
	if page != "all" {
		v = out[page]
	}
	if env.Format == "yaml" {
		_, err := env.Structured(v)
		return err
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.Out, "%s\n", data)
	return err
}

func logLevel(ctx context.Context, c *run.Clients, env *run.Env, args []string) error {
	method, body := http.MethodGet, []byte(nil)
	if len(args) == 2 {
		level := strings.ToLower(args[1])
		if !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
			return run.Fail(run.ExitUsage, "use debug, info, warn or error", "unknown log level %q", args[1])
		}
		method, body = http.MethodPut, []byte(level)
	}
	p, err := mesh.FindSidecar(ctx, c, args[0], env.CurrentNamespace())
	if err != nil {
		return err
	}
	text, err := c.PodDo(ctx, method, p.Namespace, p.Name, names.PortAdmin, "/log-level", body)
	if err != nil {
		return err
	}
	level := string(bytes.TrimSpace(text))
	if done, err := env.Structured(map[string]string{"pod": p.Namespace + "/" + p.Name, "logLevel": level}); done {
		return err
	}
	fmt.Fprintln(env.Out, level)
	return nil
}
