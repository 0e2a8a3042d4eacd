package verdict

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/policy"
)

// print is the answer for people.
func (a *Answer) print(env *run.Env) {
	word := env.Paint(env.Out, run.Red, "Denied")
	if a.Allowed {
		word = env.Paint(env.Out, run.Green, "Allowed")
	}
	what := a.Protocol
	if a.Port != 0 {
		what += " " + strconv.Itoa(int(a.Port))
	}
	if a.Request != "" {
		what += ", " + a.Request
	}
	if a.MTLS {
		what += ", mTLS"
	}
	fmt.Fprintf(env.Out, "%s: %s → %s, %s\n", word, a.From, a.To, what)
	a.Egress.print(env)
	a.Ingress.print(env)
	for _, n := range a.Notes {
		fmt.Fprintf(env.Out, "  %s %s\n", env.Warn(), n)
	}
	for _, t := range a.Trace {
		fmt.Fprintf(env.Out, "\n%s", t)
	}
}

func (s *Side) print(env *run.Env) {
	mark := env.Bad()
	if s.allowed() {
		mark = env.Good()
	}
	var parts []string
	if s.Tier != "" {
		parts = append(parts, "tier "+s.Tier)
	}
	if s.Policy != "" {
		parts = append(parts, s.Policy)
	}
	if s.Rule != "" {
		parts = append(parts, "rule "+s.Rule)
	}
	where := strings.Join(parts, ", ")
	if where != "" {
		where += ": "
	}
	reason := s.Reason
	if len(s.Selecting) > 0 {
		reason += " (" + strings.Join(s.Selecting, ", ") + ")"
	}
	layer := ""
	if s.Layer != "" {
		layer = " [" + s.Layer + "]"
	}
	fmt.Fprintf(env.Out, "  %s %-7s %s%s%s\n", mark, s.Direction, where, reason, layer)
	for _, l := range s.Logs {
		fmt.Fprintf(env.Out, "            logged by %s\n", l)
	}
	if s.Audit != "" {
		fmt.Fprintf(env.Out, "            if policies in Audit mode were enforced: %s\n", s.Audit)
	}
}

// listed is one row of `policy list`.
type listed struct {
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace,omitempty"`
	Name      string   `json:"name"`
	Tier      string   `json:"tier"`
	Order     *float64 `json:"order,omitempty"`
	Mode      string   `json:"mode"`
	L7        bool     `json:"l7"`
	Subjects  int      `json:"subjects"`
	// Unmeshed is how many of the subjects have no sidecar.
	Unmeshed int      `json:"unmeshed"`
	Problems []string `json:"problems,omitempty"`
}

func (w *world) list(env *run.Env) error {
	rows := []listed{}
	for _, r := range w.resources.Policies {
		row := listed{Kind: r.Ref.Kind, Namespace: r.Ref.Namespace, Name: r.Ref.Name, Tier: "default", Mode: policy.Enforce.String(), L7: r.L7,
			Subjects: len(r.Subjects), Problems: append(append([]string(nil), r.Invalid...), r.Unresolved...)}
		for _, f := range w.facts.Policies {
			if f.Ref.Kind != r.Ref.Kind || f.Ref.Namespace != r.Ref.Namespace || f.Ref.Name != r.Ref.Name {
				continue
			}
			if f.Tier != "" {
				row.Tier = f.Tier
			}
			row.Mode = f.Mode.String()
			if f.Order < maxOrder {
				order := f.Order
				row.Order = &order
			}
		}
		for _, uid := range r.Subjects {
			if p := w.pods[uid]; p != nil && !p.Meshed {
				row.Unmeshed++
			}
		}
		rows = append(rows, row)
	}
	answer := map[string]any{"apiVersion": run.OutputVersion, "kind": "PolicyList", "items": rows}
	if done, err := env.Structured(answer); done {
		return err
	}
	var table [][]string
	for _, r := range rows {
		order, subjects, layer := "last", strconv.Itoa(r.Subjects), kernel
		if r.Order != nil {
			order = strconv.FormatFloat(*r.Order, 'f', -1, 64)
		}
		if r.L7 {
			layer = kernel + "+" + sidecar
			if r.Unmeshed > 0 {
				subjects += fmt.Sprintf(" (%d without sidecar)", r.Unmeshed)
			}
		}
		problems := strings.Join(r.Problems, "; ")
		if problems == "" {
			problems = "-"
		}
		table = append(table, []string{strings.TrimPrefix(r.Namespace+"/"+r.Name, "/"), r.Kind, r.Tier, order, r.Mode, layer, subjects, problems})
	}
	return env.Table([]string{"NAME", "KIND", "TIER", "ORDER", "MODE", "LAYER", "PODS", "PROBLEMS"}, table)
}

// maxOrder is above every order that can be written; absent is infinity.
const maxOrder = 1e300
