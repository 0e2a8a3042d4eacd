// Command hauberk installs, checks and explains the mesh.
package main

import (
	"context"
	"os"

	"github.com/hauberk-mesh/hauberk/cli"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
)

func main() {
	ctx, stop := lifecycle.SignalContext(context.Background())
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
