package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// Times of retrying.
const (
	settleTime = 60 * time.Second
	retryEvery = 2 * time.Second
)

// Categories, as they are printed.
const (
	kubernetes   = "kubernetes"
	permissions  = "permissions"
	installation = "installation"
	definitions  = "definitions"
	controlPlane = "control plane"
	identity     = "identity"
	injection    = "injector"
	nodes        = "nodes"
	workloads    = "workloads"
	policies     = "policies"
)

// probe looks at one category.
type probe struct {
	category string
	look     func(context.Context, *state) error
	// users says that it looks at users' objects: a mesh with faults there is
	// installed well all the same.
	users bool
}

var (
	beforeInstall = []probe{
		{kubernetes, lookKubernetes, false},
		{permissions, lookPermissions, false},
	}
	afterInstall = []probe{
		{kubernetes, lookKubernetes, false},
		{installation, lookInstallation, false},
		{definitions, lookDefinitions, false},
		{controlPlane, lookControl, false},
		{identity, lookIdentity, false},
		{injection, lookInjector, false},
		{nodes, lookNodes, false},
		{workloads, lookWorkloads, true},
		{policies, lookPolicies, true},
	}
)

// state is what the probes share, and what they found.
type state struct {
	c       *run.Clients
	now     time.Time
	results []Result
	current string
	// absent says that there is no mesh, and so nothing more to see.
	absent bool

	namespaces map[string]*corev1.Namespace
}

func (s *state) good(format string, args ...any) {
	s.results = append(s.results, Result{Category: s.current, Level: Good, What: fmt.Sprintf(format, args...)})
}

func (s *state) bad(mend, format string, args ...any) {
	s.results = append(s.results, Result{Category: s.current, Level: Fail, What: fmt.Sprintf(format, args...), Mend: mend})
}

func (s *state) warn(mend, format string, args ...any) {
	s.results = append(s.results, Result{Category: s.current, Level: Warn, What: fmt.Sprintf(format, args...), Mend: mend})
}

// look runs the probes. An error of the first one ends it: without an API server
// there is nothing else to see. Errors of others are findings.
func look(ctx context.Context, c *run.Clients, now time.Time, probes []probe) (*Report, error) {
	s := &state{c: c, now: now}
	for i, p := range probes {
		s.current = p.category
		err := p.look(ctx, s)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil && (i == 0 || run.Code(err) == run.ExitUnreachable) {
			return nil, err
		}
		if err != nil {
			mend := run.Mend(err)
			if mend == "" {
				mend = "without an answer this cannot be judged; try again"
			}
			s.bad(mend, "%v", err)
		}
		if s.absent {
			break
		}
	}
	// What one probe finds may belong to the category of a later one.
	place := func(r Result) int {
		return slices.IndexFunc(probes, func(p probe) bool { return p.category == r.Category })
	}
	slices.SortStableFunc(s.results, func(a, b Result) int { return cmp.Compare(place(a), place(b)) })
	return newReport(s.results), nil
}

// Command is `hauberk check`.
func Command(env *run.Env) *cobra.Command {
	var pre, wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "check",
		Short: "Look whether the cluster and the mesh in it are well",
		Example: `  hauberk check --pre     # before the installation
  hauberk check
  hauberk check --wait    # until all is well`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			probes := afterInstall
			if pre {
				probes = beforeInstall
			}
			return command(c.Context(), env, probes, wait, timeout)
		},
	}
	c.Flags().BoolVar(&pre, "pre", false, "look whether the mesh could be installed")
	c.Flags().BoolVar(&wait, "wait", false, "wait until all is well")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to look, and to wait with --wait")
	return c
}

func command(ctx context.Context, env *run.Env, probes []probe, wait bool, timeout time.Duration) error {
	clients, err := env.Clients()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	report, err := until(ctx, env, clients, probes, wait, func(r *Report) bool { return r.OK })
	timedOut := errors.Is(err, context.DeadlineExceeded)
	if err != nil && (!timedOut || report == nil) {
		return err
	}
	if done, err := env.Structured(report); err != nil {
		return err
	} else if !done {
		report.print(env.Out, &env.Output, false)
		fmt.Fprintf(env.Out, "\n%s\n", summary(report))
	}
	switch {
	case timedOut:
		return run.Fail(run.ExitTimeout, "--timeout gives it longer", "timed out after %s: %s", timeout, summary(report))
	case !report.OK:
		return run.Told(run.ExitFindings)
	}
	return nil
}

func summary(r *Report) string {
	failures, warnings := r.count(Fail), r.count(Warn)
	switch {
	case failures > 0:
		return fmt.Sprintf("%d of %d checks failed, %d warned", failures, len(r.Checks), warnings)
	case warnings > 0:
		return fmt.Sprintf("all %d checks passed, %d with a warning", len(r.Checks), warnings)
	}
	return fmt.Sprintf("all %d checks passed", len(r.Checks))
}

// until looks once, or with wait again and again until enough says so or ctx
// ends. The last report is returned with ctx's error.
func until(ctx context.Context, env *run.Env, clients *run.Clients, probes []probe, wait bool, enough func(*Report) bool) (*Report, error) {
	p := run.NewProgress(env.Err)
	defer p.Close()
	p.Step("looking")
	var last *Report
	var unseen error // why there was no report yet
	timedOut := func() (*Report, error) {
		if last == nil && unseen != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, run.Fail(run.ExitTimeout, run.Mend(unseen), "timed out: %w", unseen)
		}
		return last, ctx.Err()
	}
	for {
		report, err := look(ctx, clients, env.Time(), probes)
		switch {
		case err == nil:
			last = report
			if !wait || enough(report) {
				return report, nil
			}
			p.Step("waiting: %s", firstFailure(report))
		case ctx.Err() != nil:
			return timedOut()
		case !wait:
			return nil, err
		default:
			unseen = err
			p.Step("waiting: %v", err)
		}
		select {
		case <-ctx.Done():
			return timedOut()
		case <-time.After(retryEvery):
		}
	}
}

func firstFailure(r *Report) string {
	for _, c := range r.Checks {
		if c.Level == Fail {
			return c.Category + ": " + c.What
		}
	}
	return ""
}

// Verify is what install runs at its end: it waits a little until the mesh
// itself works, prints only what is wrong and fails when the mesh's own parts
// fail. What is wrong with users' pods and policies is told and is no failure
// of the installation.
func Verify(ctx context.Context, env *run.Env) error {
	clients, err := env.Clients()
	if err != nil {
		return err
	}
	return verify(ctx, env, clients, settleTime)
}

func verify(ctx context.Context, env *run.Env, clients *run.Clients, patience time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	works := func(r *Report) bool { return ownFailures(r) == 0 }
	report, err := until(waiting, env, clients, afterInstall, true, works)
	if report == nil && ctx.Err() == nil {
		report, err = look(ctx, clients, env.Time(), afterInstall) // on a slow cluster one look takes longer
	}
	if report == nil || (err != nil && ctx.Err() != nil) {
		return fmt.Errorf("check the installation: %w", err)
	}
	report.print(env.Err, &env.Output, true)
	if n := ownFailures(report); n > 0 {
		return run.Fail(run.ExitFindings, "mend what is marked ✗ above, then run `hauberk check`", "the mesh is installed and does not work: %d checks failed", n)
	}
	return nil
}

// ownFailures counts failures of the mesh's own parts.
func ownFailures(r *Report) int {
	users := make(map[string]bool)
	for _, p := range afterInstall {
		users[p.category] = p.users
	}
	n := 0
	for _, c := range r.Checks {
		if c.Level == Fail && !users[c.Category] {
			n++
		}
	}
	return n
}
