// Command yaobank is the demo's application in one binary: the three services
// of the bank, and a toolbox to try connections with from inside its pods.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/tests/yaobank/bank"
	"github.com/hauberk-mesh/hauberk/tests/yaobank/probe"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stdout).ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// exitCode prints an error and finds its code: the probe's own, or 1.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return probe.OK
	}
	fmt.Fprintf(stderr, "yaobank: %v\n", err)
	var failure *probe.Failure
	if errors.As(err, &failure) {
		return failure.Code
	}
	return probe.OtherFailed
}

func command(stdout io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "yaobank",
		Short:         "The yaobank demo: customer, summary, database, and a toolbox to probe them",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &probe.Failure{Code: probe.Usage, Err: err} })
	root.AddCommand(customerCommand(), summaryCommand(), databaseCommand(), sleepCommand(), probeCommand())
	return root
}

func customerCommand() *cobra.Command {
	var listen, summary string
	cmd := &cobra.Command{Use: "customer", Short: "Serve the customer's web page", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&listen, "listen", ":8080", "address to listen on")
	cmd.Flags().StringVar(&summary, "summary", "http://summary", "URL of the summary service")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := newLog(cmd.OutOrStdout())
		handler, err := bank.Customer(summary, log)
		if err != nil {
			return err
		}
		return serve(cmd, listen, handler, log)
	}
	return cmd
}

func summaryCommand() *cobra.Command {
	var listen, database string
	cmd := &cobra.Command{Use: "summary", Short: "Serve account summaries as JSON", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&listen, "listen", ":8080", "address to listen on")
	cmd.Flags().StringVar(&database, "database", "http://database:2379", "URL of the database")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := newLog(cmd.OutOrStdout())
		handler, err := bank.Summary(database, log)
		if err != nil {
			return err
		}
		return serve(cmd, listen, handler, log)
	}
	return cmd
}

func databaseCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{Use: "database", Short: "Serve the key store that holds the accounts", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&listen, "listen", ":2379", "address to listen on")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		handler, err := bank.Database()
		if err != nil {
			return err
		}
		return serve(cmd, listen, handler, newLog(cmd.OutOrStdout()))
	}
	return cmd
}

func sleepCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "sleep [DURATION]",
		Short: "Do nothing until the time is up or a signal asks to stop",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				<-cmd.Context().Done()
				return nil
			}
			duration, err := time.ParseDuration(args[0])
			if err != nil {
				return &probe.Failure{Code: probe.Usage, Err: err}
			}
			select {
			case <-cmd.Context().Done():
			case <-time.After(duration):
			}
			return nil
		},
	}
}

func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }

func serve(cmd *cobra.Command, listen string, handler http.Handler, log *slog.Logger) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(cmd.Context(), "tcp", listen)
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Name(), err)
	}
	return bank.Serve(cmd.Context(), listener, cmd.Name(), handler, log)
}
