package verdict

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// write prints the report in the format that is asked for.
func (r *TestReport) write(env *run.Env) error {
	if env.Format == "junit" {
		return r.junit(env.Out)
	}
	if done, err := env.Structured(r); done {
		return err
	}
	rows := make([][]string, 0, len(r.Results))
	for _, t := range r.Results {
		mark, got := env.Good(), t.Got
		if !t.Passed {
			mark = env.Bad()
		}
		by := t.By
		if t.Got == "" {
			got, by = "-", t.Problem
		}
		rows = append(rows, []string{mark, t.Name, t.From + " → " + t.To, t.Flow, t.Expect, got, by})
	}
	if err := env.Table([]string{" ", "TEST", "FLOW", "PORT", "WANT", "GOT", "BY"}, rows); err != nil {
		return err
	}
	for _, t := range r.Results {
		if t.Passed {
			continue
		}
		fmt.Fprintf(env.Out, "\n%s %s: %s\n", env.Bad(), t.Name, t.Problem)
		if t.Answer != nil {
			t.Answer.print(env)
		}
	}
	_, err := fmt.Fprintf(env.Out, "\n%d passed, %d failed\n", r.Passed, r.Failed)
	return err
}

// The elements of JUnit's reports that readers agree on.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Failure *junitProblem `xml:"failure"`
		Error   *junitProblem `xml:"error"`
		Output  string        `xml:"system-out,omitempty"`
	}
	junitProblem struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

func (r *TestReport) junit(w io.Writer) error {
	all := junitSuites{Tests: len(r.Results)}
	for _, t := range r.Results {
		if n := len(all.Suites); n == 0 || all.Suites[n-1].Name != t.File {
			all.Suites = append(all.Suites, junitSuite{Name: t.File})
		}
		suite := &all.Suites[len(all.Suites)-1]
		c := junitCase{Name: fmt.Sprintf("%s: %s → %s %s", t.Name, t.From, t.To, t.Flow), Class: t.File, Output: t.By}
		var text strings.Builder
		if t.Answer != nil {
			t.Answer.print(&run.Env{Output: run.Output{Out: &text, Color: "never"}})
		}
		switch problem := (&junitProblem{t.Problem, text.String()}); {
		case t.Passed:
		case t.Got == "":
			c.Error = problem
			suite.Errors++
		default:
			c.Failure = problem
			suite.Failures++
		}
		suite.Tests++
		suite.Cases = append(suite.Cases, c)
	}
	for _, s := range all.Suites {
		all.Failures, all.Errors = all.Failures+s.Failures, all.Errors+s.Errors
	}
	data, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, data)
	return err
}
