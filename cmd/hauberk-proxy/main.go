// Command hauberk-proxy runs the sidecar; it owns the process's arguments,
// environment, signals and exit code, and nothing that proxy/sidecar does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/proxy/sidecar"
)

func main() {
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	if err := sidecar.Main(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "hauberk-proxy:", err)
		os.Exit(1)
	}
}
