// Command bench measures what a pair of sidecars costs beside its peers:
// latency, CPU per request, memory, in interleaved rounds on this machine. It
// owns the load generators, the set-up of each pair, the accounting and the
// report. It does not own the proxy: that is measured as the binary that users
// run.
//
// Everything runs on loopback or in network namespaces of its own, for a
// bounded time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options of a run.
type options struct {
	scenarios, pairs []string
	rounds           int
	duration         time.Duration
	quick            bool
	proxy            string
	out, docs, svg   string
	profile          string
	render, before   string
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "backend":
			return backendMain(ctx, args[1:])
		case "floor":
			return floorMain(ctx, args[1:])
		}
	}
	var o options
	var scenarios, pairs string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&scenarios, "scenarios", "", "comma-separated; empty for all")
	f.StringVar(&pairs, "pairs", "", "comma-separated; empty for all; direct takes part in any case")
	f.IntVar(&o.rounds, "rounds", 0, "rounds, each with all pairs in random order (5; 2 when quick)")
	f.DurationVar(&o.duration, "duration", 0, "measured time of each run (5s; 1s when quick)")
	f.BoolVar(&o.quick, "quick", false, "few scenarios, in about two minutes")
	f.StringVar(&o.proxy, "hauberk", "bin/hauberk-proxy", "the sidecar's binary")
	f.StringVar(&o.before, "before", "", "another binary of the sidecar to compare with")
	f.StringVar(&o.out, "out", "dist/bench", "folder of raw results")
	f.StringVar(&o.docs, "docs", "", "page whose generated section is replaced; empty for none")
	f.StringVar(&o.svg, "svg", "", "folder of plots; empty for none")
	f.StringVar(&o.profile, "profile", "", "instead of measuring, write CPU profiles of both sidecars under load into this folder")
	f.StringVar(&o.render, "render", "", "instead of measuring, report these raw results (comma-separated) as one")
	if err := f.Parse(args); err != nil {
		return err
	}
	if scenarios != "" {
		o.scenarios = split(scenarios)
	}
	if pairs != "" {
		o.pairs = split(pairs)
	}
	if o.render != "" {
		r, err := readResults(split(o.render)...)
		if err != nil {
			return err
		}
		return publish(r, &o)
	}
	if o.quick {
		o.rounds, o.duration = max(o.rounds, 2), max(o.duration, time.Second)
	}
	if o.rounds == 0 {
		o.rounds = 5
	}
	if o.duration == 0 {
		o.duration = 5 * time.Second
	}
	debug.SetGCPercent(800) // the generator's own collections are not to be seen
	return measure(ctx, &o)
}

// chosen are the scenarios and pairs that the options name.
func (o *options) chosen() ([]scenario, []pair, error) {
	var s []scenario
	for _, one := range allScenarios() {
		if len(o.scenarios) > 0 && slices.Contains(o.scenarios, one.name) || len(o.scenarios) == 0 && (one.quick || !o.quick) {
			s = append(s, one)
		}
	}
	var p []pair
	for _, one := range allPairs() {
		named := slices.Contains(o.pairs, one.name)
		if len(o.pairs) > 0 && !named && one.name != "direct" || len(o.pairs) == 0 && o.quick && strings.HasSuffix(one.base+one.name, "-netns") {
			continue
		}
		if o.quick && one.base == "direct-netns" && !named {
			continue
		}
		p = append(p, one)
	}
	for _, name := range o.pairs {
		if !slices.ContainsFunc(p, func(p pair) bool { return p.name == name }) {
			return nil, nil, fmt.Errorf("no pair %q", name)
		}
	}
	for _, name := range o.scenarios {
		if !slices.ContainsFunc(s, func(s scenario) bool { return s.name == name }) {
			return nil, nil, fmt.Errorf("no scenario %q", name)
		}
	}
	return s, p, nil
}

func backendMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("backend", flag.ContinueOnError)
	listen := f.String("listen", "", "addresses of http, tcp, grpc and the collector")
	if err := f.Parse(args); err != nil {
		return err
	}
	a := split(*listen)
	if len(a) != 4 {
		return errors.New("backend: four addresses are needed")
	}
	return runBackend(ctx, backendAddresses{a[0], a[1], a[2], a[3]})
}

func floorMain(ctx context.Context, args []string) error {
	var o floorOptions
	f := flag.NewFlagSet("floor", flag.ContinueOnError)
	f.StringVar(&o.Listen, "listen", "", "addresses")
	f.StringVar(&o.Target, "target", "", "addresses")
	f.BoolVar(&o.Accept, "accept", false, "TLS on the listeners, not on the targets")
	f.StringVar(&o.Cert, "cert", "", "file")
	f.StringVar(&o.Key, "key", "", "file")
	f.StringVar(&o.CA, "ca", "", "file")
	f.StringVar(&o.Name, "name", "", "the server's name")
	f.BoolVar(&o.WithoutSessionResumption, "full", false, "full handshakes only")
	if err := f.Parse(args); err != nil {
		return err
	}
	return runFloor(ctx, o)
}
