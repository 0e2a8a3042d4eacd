// Command demo plays the bank yaobank on a real Kubernetes: how it is robbed
// without a mesh, and what Hauberk does about it, act by act. Each act is
// checked. It ends 0 only if every act was as expected, and leaves the cluster
// up. `make demo` runs it.
//
// It owns the play and its words. Getting the cluster, the images and the mesh
// is tests/stage's.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are the command line.
type options struct {
	from, only string
	reset      bool
	nodes      string
	prepared   bool
}

func parseOptions(args []string, errOut io.Writer) (options, error) {
	var o options
	set := flag.NewFlagSet("demo", flag.ContinueOnError)
	set.SetOutput(errOut)
	set.StringVar(&o.from, "from", "", "start at this act; the acts before it must have been played")
	set.StringVar(&o.only, "only", "", "play only these acts, separated by commas")
	set.BoolVar(&o.reset, "reset", false, "only put the bank back to how it was before the first act")
	set.StringVar(&o.nodes, "nodes", "2", "nodes of the cluster, at least 2")
	set.BoolVar(&o.prepared, "prepared", false, "the cluster is up and has the images: do not look")
	set.Usage = func() {
		fmt.Fprintln(errOut, "usage: go run ./tests/demo [flags]")
		set.PrintDefaults()
		fmt.Fprintln(errOut, "acts:")
		for _, a := range acts {
			fmt.Fprintf(errOut, "  %-12s %s\n", a.Name, a.Title)
		}
	}
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	return o, nil
}

// chosen are the acts to play.
func (o options) chosen() ([]Act, error) {
	place := func(name string) (int, error) {
		i := slices.IndexFunc(acts, func(a Act) bool { return a.Name == name })
		if i < 0 {
			return 0, fmt.Errorf("there is no act %q; see --help", name)
		}
		return i, nil
	}
	if o.only != "" {
		var out []Act
		for name := range strings.SplitSeq(o.only, ",") {
			i, err := place(strings.TrimSpace(name))
			if err != nil {
				return nil, err
			}
			out = append(out, acts[i])
		}
		return out, nil
	}
	if o.from != "" {
		i, err := place(o.from)
		if err != nil {
			return nil, err
		}
		return acts[i:], nil
	}
	return acts, nil
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o, err := parseOptions(args, errOut)
	if err == flag.ErrHelp {
		return 0
	}
	if err != nil {
		fmt.Fprintf(errOut, "demo: %v\n", err)
		return 64
	}
	play, err := o.chosen()
	if err != nil {
		fmt.Fprintf(errOut, "demo: %v\n", err)
		return 64
	}
	s, err := stage.New(errOut)
	if err != nil {
		fmt.Fprintf(errOut, "demo: %v\n", err)
		return 1
	}
	r := newReport(out)
	start := time.Now()
	if err := prepare(ctx, s, r, o); err != nil {
		fmt.Fprintf(errOut, "demo: %v\n", err)
		return 1
	}
	if o.reset {
		return 0
	}
	r.environment()
	for _, a := range play {
		if ctx.Err() != nil {
			break
		}
		r.play(ctx, s, a)
	}
	if ctx.Err() != nil {
		fmt.Fprintln(errOut, "demo: interrupted")
		return 130
	}
	return r.finish(time.Since(start))
}

// prepare brings up the cluster and the images, and the bank without a mesh
// unless a later act is wanted, which goes on with what is there.
func prepare(ctx context.Context, s *stage.Stage, r *Report, o options) error {
	if !o.prepared {
		if err := r.long(ctx, "a Kubernetes of "+o.nodes+" nodes", func(ctx context.Context) error { return s.ClusterUp(ctx, o.nodes) }); err != nil {
			return err
		}
		if err := r.long(ctx, "images of the mesh and of the bank", s.Images); err != nil {
			return err
		}
	}
	if o.only != "" || o.from != "" && o.from != acts[0].Name {
		return nil
	}
	return r.long(ctx, "the bank, a visitor and a trace collector, without the mesh", func(ctx context.Context) error { return reset(ctx, s) })
}
