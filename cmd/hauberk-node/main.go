// Command hauberk-node is the node agent: redirection, kernel policy and tunnels
// of one node. It owns nothing but the start of package node/agent.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/node/agent"
)

func main() {
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	err := agent.Main(ctx, agent.Process{Args: os.Args[1:], Getenv: os.Getenv, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, "hauberk-node:", err)
		os.Exit(1)
	}
}
