package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// Report is where the play is told.
type Report struct {
	out      io.Writer
	terminal bool
	colour   bool

	number, steps       int
	actSteps, actFailed int
	outcomes            []outcome
}

func newReport(out io.Writer) *Report {
	f, ok := out.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd()))
	// https://no-color.org: any value but the empty one.
	return &Report{out: out, terminal: terminal, colour: terminal && os.Getenv("NO_COLOR") == ""}
}

// SGR codes (ECMA-48).
const (
	bold  = 1
	dim   = 2
	red   = 31
	green = 32
)

func (r *Report) paint(code int, text string) string {
	if !r.colour {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, text)
}

// waiting shows on a terminal that something goes on, and for how long.
func (r *Report) waiting(ctx context.Context, what string, do func(ctx context.Context)) {
	if !r.terminal {
		do(ctx)
		return
	}
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		start := time.Now()
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				fmt.Fprint(r.out, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprintf(r.out, "\r\x1b[K      %s %s", r.paint(dim, what+"…"), r.paint(dim, seconds(time.Since(start))))
			}
		}
	}()
	do(ctx)
	close(done)
	<-ended
}

// long is a step of the preparation. What it runs tells of itself.
func (r *Report) long(ctx context.Context, what string, do func(ctx context.Context) error) error {
	fmt.Fprintf(r.out, "%s %s\n", r.paint(dim, "→"), what)
	start := time.Now()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintf(r.out, "%s %s %s\n", r.paint(green, "✓"), what, r.paint(dim, seconds(time.Since(start))))
	return nil
}

// environment tells how to type along.
func (r *Report) environment() {
	fmt.Fprintf(r.out, "\nTo type along, in another terminal in this folder:\n  %s\n", r.paint(bold, stage.Environment))
}
