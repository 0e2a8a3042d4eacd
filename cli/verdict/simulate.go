package verdict

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// Simulation is the result of `policy simulate`.
type Simulation struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Records is how many there are, Flows how many different ones of them.
	Records int             `json:"records"`
	Flows   int             `json:"flows"`
	Changes []SimulatedFlow `json:"changes"`
	// Unknown is why records could not be asked.
	Unknown []string `json:"unknown,omitempty"`
}

// SimulatedFlow is a recorded flow of which the verdict would be another.
type SimulatedFlow struct {
	Change string `json:"change"` // opens or closes
	From   string `json:"from"`
	To     string `json:"to"`
	Flow   string `json:"flow"`
	Times  int    `json:"times"`
	Was    string `json:"was"`
	Will   string `json:"will"`
}

func simulateCommand(env *run.Env) *cobra.Command {
	var from origin
	var failOn string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "simulate FLOWS...",
		Short: "Say which recorded flows would be decided differently",
		Long: `Say which recorded flows would be decided differently: by the cluster as it is now, or with -f by manifests, alone or, with
--live, added to the cluster. FLOWS is what ` + "`hauberk flows -o json`" + ` printed (- reads the standard input).

Exit code 0 says that all were asked; with --fail-on 79 says that some open or close.`,
		Example: `  hauberk flows -A --verdict all -f -o json > flows.jsonl
  hauberk policy simulate flows.jsonl -f new.yaml --live --fail-on closes`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			if !slices.Contains([]string{"none", opens, closes, "any"}, failOn) {
				return run.Fail(run.ExitUsage, "use none, opens, closes or any", "unknown --fail-on %q", failOn)
			}
			records, err := readRecords(env, args)
			if err != nil {
				return err
			}
			w, err := load(ctx, env, from)
			if err != nil {
				return err
			}
			w.warnings(env)
			s := w.simulate(records)
			if done, err := env.Structured(s); err != nil {
				return err
			} else if !done {
				s.print(env)
			}
			if slices.ContainsFunc(s.Changes, func(c SimulatedFlow) bool { return failOn == "any" || failOn == c.Change }) {
				return run.Told(run.ExitFindings)
			}
			return nil
		},
	}
	from.addFlags(c)
	c.Flags().StringVar(&failOn, "fail-on", "none", "exit with 79 when flows change: none, opens, closes or any")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}

func (w *world) simulate(records []flow.Record) *Simulation {
	questions, unknown := w.questions(records)
	s := &Simulation{APIVersion: run.OutputVersion, Kind: "PolicySimulation", Records: len(records), Flows: len(questions), Changes: []SimulatedFlow{}, Unknown: unknown}
	for _, q := range questions {
		a := w.decide(&q.question)
		if a.Allowed == (q.record.Verdict == flow.Allow) {
			continue
		}
		change := SimulatedFlow{Change: closes, From: q.from.name(), To: q.to.name(), Flow: q.text(), Times: q.times,
			Was: recordedReason(&q.record), Will: a.reason()}
		if a.Allowed {
			change.Change = opens
		}
		s.Changes = append(s.Changes, change)
	}
	slices.SortStableFunc(s.Changes, func(a, b SimulatedFlow) int { return strings.Compare(b.Change, a.Change) })
	return s
}

// name is the workload of a pod, or what String says.
func (e *end) name() string {
	if e.pod != nil && !e.endpoint.Host {
		return workloadName(e.pod)
	}
	return e.String()
}

// text is the flow between its ends.
func (q *recorded) text() string {
	text := q.protocol.String()
	if q.port != 0 {
		text += fmt.Sprintf(" %d", q.port)
	} else if q.record.ICMPType != nil {
		text += fmt.Sprintf(" type %d", q.icmpType)
	}
	if q.http != nil {
		text += fmt.Sprintf(" %s %s", q.http.Method, q.http.Path)
	}
	return text
}

func recordedReason(r *flow.Record) string {
	word := "denied: "
	if r.Verdict == flow.Allow {
		word = "allowed: "
	}
	switch {
	case r.Policy != "":
		return word + r.Policy + ", rule " + r.Rule
	case r.Tier != "":
		return fmt.Sprintf("%sthe default of tier %s (%s)", word, r.Tier, strings.Join(r.Selecting, ", "))
	}
	return word + r.Reason
}

func (s *Simulation) print(env *run.Env) {
	for _, c := range s.Changes {
		word := env.Paint(env.Out, run.Red, "Closes")
		if c.Change == opens {
			word = env.Paint(env.Out, run.Green, "Opens")
		}
		fmt.Fprintf(env.Out, "%s: %s → %s, %s (seen %d times)\n    was %s\n    will be %s\n", word, c.From, c.To, c.Flow, c.Times, c.Was, c.Will)
	}
	if len(s.Changes) == 0 {
		fmt.Fprintln(env.Out, "No recorded flow would be decided differently.")
	}
	fmt.Fprintf(env.Out, "%d records of %d flows.\n", s.Records, s.Flows)
	for _, u := range s.Unknown {
		fmt.Fprintf(env.Out, "%s not asked: %s\n", env.Warn(), u)
	}
}
