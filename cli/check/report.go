// Package check is `hauberk check`: it looks at a cluster and at the mesh in it
// and says what is well, what is not and how to mend it. It changes nothing;
// the one pod that it creates is a dry run.
package check

import (
	"fmt"
	"io"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// Level is how a single check ended.
type Level string

// Good, Warn and Fail: only Fail makes the whole check fail.
const (
	Good Level = "ok"
	Warn Level = "warning"
	Fail Level = "failure"
)

// Result is one thing that was looked at.
type Result struct {
	Category string `json:"category"`
	Level    Level  `json:"level"`
	// What was found, one sentence.
	What string `json:"what"`
	// Mend says what to do; empty when nothing is wrong.
	Mend string `json:"mend,omitempty"`
}

// Report is all results, grouped by category in the order of looking.
type Report struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	OK         bool     `json:"ok"`
	Checks     []Result `json:"checks"`
}

func newReport(results []Result) *Report {
	r := &Report{APIVersion: run.OutputVersion, Kind: "CheckReport", OK: true, Checks: results}
	for _, c := range results {
		r.OK = r.OK && c.Level != Fail
	}
	return r
}

// count is how many results have the level.
func (r *Report) count(l Level) int {
	n := 0
	for _, c := range r.Checks {
		if c.Level == l {
			n++
		}
	}
	return n
}

// print writes the results by category; with problemsOnly those that are well
// are left out.
func (r *Report) print(w io.Writer, o *run.Output, problemsOnly bool) {
	category := ""
	for _, c := range r.Checks {
		if problemsOnly && c.Level == Good {
			continue
		}
		if c.Category != category {
			if category != "" {
				fmt.Fprintln(w)
			}
			category = c.Category
			fmt.Fprintln(w, o.Paint(w, run.Bold, category))
		}
		mark := o.Paint(w, run.Green, "✓")
		switch c.Level {
		case Warn:
			mark = o.Paint(w, run.Yellow, "!")
		case Fail:
			mark = o.Paint(w, run.Red, "✗")
		}
		fmt.Fprintf(w, "  %s %s\n", mark, c.What)
		if c.Mend != "" {
			fmt.Fprintf(w, "    %s\n", o.Paint(w, run.Dim, "→ ")+c.Mend)
		}
	}
}
