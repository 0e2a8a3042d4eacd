// Command otel-collector is the OpenTelemetry Collector that Hauberk's
// end-to-end tests and demo export to: the upstream otelcol service with an
// OTLP receiver and the file and debug exporters, nothing of the pipeline
// written here. What this package adds is a way to read back what arrived,
// over HTTP or by `otel-collector cat`, because the image has no shell.
//
// It is a module of its own so that the product's build list stays free of the
// Collector's. It is a test tool and no part of an installation.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const usage = `usage:
  otel-collector run [-config FILE] [-data DIR] [-http ADDR]
  otel-collector cat [-data DIR] traces|metrics
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var bad usageError
	switch {
	case errors.As(err, &bad):
		fmt.Fprintf(os.Stderr, "otel-collector: %v\n%s", err, usage)
		os.Exit(64)
	case err != nil:
		fmt.Fprintf(os.Stderr, "otel-collector: %v\n", err)
		os.Exit(1)
	}
}

type usageError string

func (e usageError) Error() string { return string(e) }

func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError("a sub-command is needed")
	}
	flags := flag.NewFlagSet("otel-collector "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	data := flags.String("data", "/data", "folder that the file exporters of the configuration write to")
	switch args[0] {
	case "run":
		config := flags.String("config", "/etc/otel-collector/config.yaml", "the Collector's configuration file")
		addr := flags.String("http", ":8080", "address of the read-back server: /traces, /metrics, /healthz")
		if err := flags.Parse(args[1:]); err != nil {
			return usageError(err.Error())
		}
		return run(ctx, *config, *data, *addr)
	case "cat":
		if err := flags.Parse(args[1:]); err != nil {
			return usageError(err.Error())
		}
		if flags.NArg() != 1 {
			return usageError("cat wants one of: traces, metrics")
		}
		return cat(stdout, *data, flags.Arg(0))
	default:
		return usageError(fmt.Sprintf("unknown sub-command %q", args[0]))
	}
}

// run serves until ctx ends or one of the two servers fails; either failure
// ends the other, so that Kubernetes restarts a whole pod and not half of one.
func run(ctx context.Context, config, data, addr string) error {
	collector, err := newCollector(config)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := collector.Run(ctx); err != nil {
			return fmt.Errorf("run collector with %s: %w", config, err)
		}
		if ctx.Err() == nil {
			return errors.New("the collector ended by itself")
		}
		return nil
	})
	group.Go(func() error {
		return serve(ctx, addr, readback{dir: data, running: running(collector)}, 5*time.Second)
	})
	return group.Wait()
}
