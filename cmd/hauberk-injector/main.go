// Command hauberk-injector adds the sidecar to pods as they are created.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/hauberk-mesh/hauberk/injector"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

func main() {
	cfg, err := injector.ParseConfig(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hauberk-injector:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	log.Info("injector starts", "version", version.String())
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	if err := injector.Run(ctx, cfg, log); err != nil {
		log.Error("injector ends", "error", err)
		os.Exit(1)
	}
}
