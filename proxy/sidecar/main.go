package sidecar

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"github.com/hauberk-mesh/hauberk/internal/version"
)

const usage = `usage: hauberk-proxy [sidecar]          run as a pod's sidecar, configured by HAUBERK_* variables
       hauberk-proxy --config FILE      run without a control plane
       hauberk-proxy drain              ask this pod's sidecar to drain: its container's preStop hook
       hauberk-proxy version            print the version
`

// Main is the command hauberk-proxy.
func Main(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("hauberk-proxy", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	file := flags.String("config", "", "static configuration file")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	level := &slog.LevelVar{}
	switch command := flags.Arg(0); {
	case flags.NArg() > 1:
		return fmt.Errorf("unexpected argument %q\n%s", flags.Arg(1), usage)
	case command == "version":
		_, err := fmt.Fprintln(stdout, version.String())
		return err
	case command == "drain":
		return askToDrain(ctx, stdout)
	case command != "" && command != "sidecar":
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	case *file != "":
		s, err := ReadStatic(*file)
		if err != nil {
			return err
		}
		return RunStatic(ctx, s, stdout, level)
	}
	cfg, err := ConfigFromEnvironment(getenv)
	if err != nil {
		return err
	}
	return Run(ctx, cfg, stdout, level)
}
