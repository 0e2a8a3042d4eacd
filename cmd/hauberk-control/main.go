// Command hauberk-control is the control plane: it signs identities, compiles
// policy and tells every sidecar and node agent what concerns it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/hauberk-mesh/hauberk/control/server"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
)

func main() {
	config, err := server.ParseConfig(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Println(err)
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hauberk-control:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: config.LogLevel}))
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	if err := server.Run(ctx, config, log); err != nil {
		log.Error("control plane ends", "error", err)
		os.Exit(1)
	}
}
