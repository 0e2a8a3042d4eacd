package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// Act is one scene of the play.
type Act struct {
	// Name is how --only and --from call it.
	Name  string
	Title string
	// Why says in a sentence or two what is shown and what for.
	Why  string
	Play func(ctx context.Context, s *stage.Stage, r *Report)
}

// Step is one attempt of an act.
type Step struct {
	// Type is what a user would type; empty when nothing is typed.
	Type string
	// Expect is in words what has to be seen.
	Expect string
	// Within is how long it may take until it is seen; 0 means at once.
	Within time.Duration
	// See makes the attempt and returns what was seen, in few words. An error
	// says what differs from what is expected.
	See func(ctx context.Context) (string, error)
	// Look are commands that show more when it is not as expected.
	Look []string
}

// stepTime bounds a step that does not say for itself.
const stepTime = 2 * time.Minute

// Step plays one step and reports whether it was as expected.
func (r *Report) Step(ctx context.Context, step Step) bool {
	if ctx.Err() != nil {
		return false
	}
	if step.Type != "" {
		for i, line := range strings.Split(strings.TrimSpace(step.Type), "\n") {
			mark := "$"
			if i > 0 {
				mark = " "
			}
			fmt.Fprintf(r.out, "    %s %s\n", r.paint(dim, mark), r.paint(bold, line))
		}
	}
	fmt.Fprintf(r.out, "      expected  %s\n", step.Expect)
	start := time.Now()
	var seen string
	var err error
	r.waiting(ctx, "looking", func(ctx context.Context) {
		within := step.Within
		if within == 0 {
			ctx, cancel := context.WithTimeout(ctx, stepTime)
			defer cancel()
			seen, err = step.See(ctx)
			return
		}
		err = stage.Eventually(ctx, within, "as expected", func(ctx context.Context) error {
			s, err := step.See(ctx)
			if s != "" || err == nil {
				seen = s
			}
			return err
		})
	})
	took := time.Since(start)
	r.steps++
	r.actSteps++
	if seen != "" {
		fmt.Fprintf(r.out, "      seen      %s\n", indent(seen, "                "))
	}
	if err == nil {
		fmt.Fprintf(r.out, "      %s %s\n", r.paint(green, "✓"), r.paint(dim, seconds(took)))
		return true
	}
	r.actFailed++
	fmt.Fprintf(r.out, "      %s %s\n", r.paint(red, "✗"), r.paint(dim, seconds(took)))
	fmt.Fprintf(r.out, "      %s   %s\n", r.paint(red, "differs"), indent(strings.TrimSpace(err.Error()), "                "))
	for _, look := range step.Look {
		fmt.Fprintf(r.out, "      look at   %s\n", look)
	}
	return false
}

// Skip says why the rest of an act makes no sense.
func (r *Report) Skip(why string) {
	r.actFailed++
	fmt.Fprintf(r.out, "      %s %s\n", r.paint(red, "✗"), why)
}

// indent keeps the second and later lines below the first, and drops what is
// too much to read.
func indent(text, by string) string {
	const most = 14
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > most {
		lines = append(lines[:most], fmt.Sprintf("… %d more lines", len(lines)-most))
	}
	for i, l := range lines {
		lines[i] = clip(l, 200)
	}
	return strings.Join(lines, "\n"+by)
}

// clip is at most n characters of text.
func clip(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n]) + "…"
	}
	return text
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// play plays an act and notes how it went.
func (r *Report) play(ctx context.Context, s *stage.Stage, a Act) {
	r.number++
	r.actSteps, r.actFailed = 0, 0
	start := time.Now()
	fmt.Fprintf(r.out, "\n%s\n", r.paint(bold, fmt.Sprintf("Act %s: %s", a.Name, a.Title)))
	fmt.Fprintf(r.out, "  %s\n", a.Why)
	a.Play(ctx, s, r)
	o := outcome{act: a, took: time.Since(start), failed: r.actFailed > 0 || r.actSteps == 0 || ctx.Err() != nil}
	r.outcomes = append(r.outcomes, o)
}

// outcome is how an act went.
type outcome struct {
	act    Act
	took   time.Duration
	failed bool
}

// finish prints the summary and returns the exit code.
func (r *Report) finish(took time.Duration) int {
	fmt.Fprintf(r.out, "\n%s\n", r.paint(bold, "The play"))
	failed := 0
	for _, o := range r.outcomes {
		mark := r.paint(green, "✓")
		if o.failed {
			mark = r.paint(red, "✗")
			failed++
		}
		fmt.Fprintf(r.out, "  %s %-10s %-76s %s\n", mark, o.act.Name, o.act.Title, r.paint(dim, seconds(o.took)))
	}
	if failed > 0 {
		var names []string
		for _, o := range r.outcomes {
			if o.failed {
				names = append(names, o.act.Name)
			}
		}
		fmt.Fprintf(r.out, "\n%s in %s.\n", r.paint(red, fmt.Sprintf("%d of %d acts were not as expected: %s", failed, len(r.outcomes), strings.Join(names, ", "))), took.Round(time.Second))
		fmt.Fprintln(r.out, afterFailure)
		return 1
	}
	fmt.Fprintf(r.out, "\n%s, %d checks in %s.\n", r.paint(green, "Every act was as expected"), r.steps, took.Round(time.Second))
	fmt.Fprintln(r.out, afterSuccess)
	return 0
}

const afterFailure = `
Where to look (after the export line above):
  hauberk check
  hauberk status
  kubectl get pods -A -o wide
  kubectl -n hauberk-system logs deploy/hauberk-control --tail=50
  kubectl -n hauberk-system logs ds/hauberk-node --tail=50
  kubectl -n yaobank logs deploy/customer -c hauberk-proxy --tail=50
Play one act again: go run ./tests/demo --only NAME`

const afterSuccess = `
The cluster stays up, with the mesh and the bank. Try (after the export line above):
  kubectl -n yaobank port-forward service/customer 8080:80    then open http://localhost:8080/
  hauberk status
  hauberk flows -n yaobank                                    who was denied, and by what
  hauberk policy explain yaobank/customer yaobank/database --port 2379
  hauberk identity show yaobank/customer
  hauberk node rules node1
  kubectl get hauberk -A
  kubectl -n yaobank logs deploy/summary -c hauberk-proxy -f
The policies are in tests/yaobank/policies; docs/demo.md tells of each act.
End it with: make demo-down`

// errDiffers is an attempt that did not go as it should.
func errDiffers(format string, args ...any) error { return fmt.Errorf(format, args...) }

// errNone is for checks that must see something.
var errNone = errors.New("nothing was seen")
