// Package flows is `hauberk flows`: the verdicts of all kernels and sidecars in
// one stream, by time, each with what decided. It owns the gathering, the names
// of far ends and the lines; the record is internal/flow's.
package flows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

const example = `  # what was denied in namespace yaobank, and by what
  hauberk flows -n yaobank

  # follow denials of the whole cluster
  hauberk flows -A -f

  # what one policy denied in the last ten minutes, for other programs
  hauberk flows -A --policy yaobank/database-policy --since 10m -o json

  # every request to a workload, allowed ones too
  hauberk flows -f --workload database --verdict all`

// options are the flags.
type options struct {
	follow, all           bool
	pod, workload         string
	verdict, layer, since string
	policy                string
	port                  uint16
	tail                  int
}

// Command is `hauberk flows`.
func Command(env *run.Env) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:     "flows",
		Short:   "Show the verdicts of kernels and sidecars in one stream, each with the rule that decided",
		Example: example,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := o.filter(env)
			if err != nil {
				return err
			}
			clients, err := env.Clients()
			if err != nil {
				return err
			}
			g := &gatherer{env: env, clients: clients, filter: f}
			if o.follow {
				if err := g.follow(c.Context()); !errors.Is(err, context.Canceled) {
					return err
				}
				return nil // the user has seen enough
			}
			ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
			defer cancel()
			return g.once(ctx, o.tail)
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	fl.BoolVarP(&o.all, "all-namespaces", "A", false, "of all namespaces")
	fl.StringVar(&o.pod, "pod", "", "flows of this pod, or of pods whose names begin so")
	fl.StringVar(&o.workload, "workload", "", "flows of this Deployment, StatefulSet, DaemonSet or Job")
	fl.StringVar(&o.verdict, "verdict", "deny", "deny, allow or all; allowed requests are told by sidecars while they are followed")
	fl.StringVar(&o.layer, "layer", "all", "kernel, sidecar or all")
	fl.StringVar(&o.policy, "policy", "", "what this policy decided: NAME, NAMESPACE/NAME or KIND NAMESPACE/NAME")
	fl.Uint16Var(&o.port, "port", 0, "destination port")
	fl.StringVar(&o.since, "since", "", "not older than this: a duration such as 10m, or a time (RFC 3339)")
	fl.IntVar(&o.tail, "tail", 0, "without --follow, only the last so many; 0 is all that is kept")
	return c
}

func (o *options) filter(env *run.Env) (flow.Filter, error) {
	f := flow.Filter{Pod: o.pod, Workload: o.workload, Policy: o.policy, Port: o.port}
	if !o.all {
		f.Namespaces = []string{env.CurrentNamespace()}
	}
	if o.tail < 0 {
		return f, run.Fail(run.ExitUsage, "0 is all that is kept", "--tail %d is negative", o.tail)
	}
	var err error
	if f.Verdict, err = flow.ParseVerdict(o.verdict); err == nil {
		if f.Layer, err = flow.ParseLayer(o.layer); err == nil {
			f.Since, err = flow.ParseSince(o.since, env.Time())
		}
	}
	if err == nil && f.Verdict == flow.Allow && f.Layer == flow.Kernel {
		err = errors.New("kernels tell of what they deny only")
	}
	if err != nil {
		return f, run.Fail(run.ExitUsage, "see `hauberk flows --help`", "%w", err)
	}
	return f, nil
}

// once prints what is kept everywhere, by time.
func (g *gatherer) once(ctx context.Context, tail int) error {
	sources, err := g.sources(ctx)
	if err != nil {
		return err
	}
	g.names, err = g.pods(ctx)
	if err != nil {
		return err
	}
	type answer struct {
		records []flow.Record
		err     error
	}
	var records []flow.Record
	failed := 0
	for i, a := range run.Each(sources, func(s source) answer {
		var a answer
		a.err = g.read(ctx, s, false, func(r flow.Record) error { a.records = append(a.records, r); return nil })
		return a
	}) {
		if a.err != nil {
			failed++
			g.warn("%s: %v", sources[i], a.err)
		}
		for _, r := range a.records {
			if g.complete(&r); g.filter.Match(&r) {
				records = append(records, r)
			}
		}
	}
	sortByTime(records)
	if tail > 0 && len(records) > tail {
		records = records[len(records)-tail:]
	}
	if err := g.list(records); err != nil {
		return err
	}
	if len(records) == 0 && failed == 0 && g.env.Format == "table" {
		g.note("no such verdict is kept; -f waits for the next, -A looks at all namespaces")
	}
	if failed > 0 {
		return run.Fail(run.ExitRuntime, "see `hauberk check`", "%d of %d sources of flows do not answer", failed, len(sources))
	}
	return nil
}

func sortByTime(records []flow.Record) {
	slices.SortStableFunc(records, func(a, b flow.Record) int { return a.Time.Compare(b.Time) })
}

func (g *gatherer) warn(format string, args ...any) {
	fmt.Fprintf(g.env.Err, "%s %s\n", g.env.Paint(g.env.Err, run.Yellow, "!"), fmt.Sprintf(format, args...))
}

func (g *gatherer) note(text string) { fmt.Fprintln(g.env.Err, text) }
