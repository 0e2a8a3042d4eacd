//go:build linux

// Command cluster runs a real Kubernetes of several nodes on one Linux
// machine, from nothing but Go modules and Debian packages, and takes it away
// again without a trace. It owns the command line; package lifecycle does the
// work.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/lifecycle"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

const usage = `usage: cluster COMMAND, from within a checkout of Hauberk

  up [NODES]               start the cluster, of 2 nodes unless told; again: mend it
  down                     remove it and every trace of it
  load ARCHIVE...          import image archives into every node
  status                   what runs, and how it is
  exec-node NODE -- CMD... run a command in a node's network and mounts
                           (NODE is node1, node2, … or control-plane)
`

func main() {
	if filepath.Base(os.Args[0]) == host.NoDADPlugin {
		if err := host.RunNoDADPlugin(); err != nil {
			// A plugin's error goes to its output, in the form CNI prescribes.
			fmt.Printf("{\"cniVersion\": \"1.0.0\", \"code\": 100, \"msg\": %q}\n", err.Error())
			os.Exit(1)
		}
	}
	host.KeepDescriptors()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("what to do?\n" + usage)
	}
	command, args := args[0], args[1:]
	switch command {
	case host.StartCommand:
		return host.RunStart(args)
	case host.SpaceCommand:
		return host.RunSpace(args)
	case host.ProbeCommand:
		return host.RunProbe()
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	}
	r := report.New(os.Stderr, report.Watched(os.Stderr))
	if command == "status" {
		if err := host.CheckRoot(); err != nil {
			return err
		}
		return lifecycle.Status(ctx, os.Stdout)
	}
	checkout, err := here()
	if err != nil {
		return err
	}
	switch command {
	case "up":
		nodes, err := nodeCount(args)
		if err != nil {
			return err
		}
		return lifecycle.Locked(r, func() error { return lifecycle.Up(ctx, checkout, nodes, r) })
	case "down":
		return lifecycle.Locked(r, func() error { return lifecycle.Down(checkout, r) })
	case "load":
		if err := host.CheckRoot(); err != nil {
			return err
		}
		return lifecycle.Load(ctx, checkout, args, r)
	case "exec-node":
		space, cmd, err := nodeCommand(args)
		if err != nil {
			return err
		}
		if err := host.CheckRoot(); err != nil {
			return err
		}
		return lifecycle.ExecNode(checkout, space, cmd)
	}
	return fmt.Errorf("unknown command %q\n%s", command, usage)
}

// here is the checkout which the working directory, or else the program
// itself, lies in.
func here() (lifecycle.Checkout, error) {
	wd, err := os.Getwd()
	if err != nil {
		return lifecycle.Checkout{}, err
	}
	checkout, err := lifecycle.FindCheckout(wd)
	if err == nil {
		return checkout, nil
	}
	self, selfErr := os.Executable()
	if selfErr != nil {
		return lifecycle.Checkout{}, err
	}
	if checkout, selfErr = lifecycle.FindCheckout(filepath.Dir(self)); selfErr == nil {
		return checkout, nil
	}
	return lifecycle.Checkout{}, err
}

func nodeCount(args []string) (int, error) {
	switch {
	case len(args) == 0 || (len(args) == 1 && args[0] == ""):
		return 2, nil
	case len(args) > 1:
		return 0, fmt.Errorf("up takes a number of nodes and no more, not %q", args)
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return 0, fmt.Errorf("NODES=%s is not a number: try NODES=3", args[0])
	}
	return n, nil
}

func nodeCommand(args []string) (space string, command []string, err error) {
	if len(args) == 0 {
		return "", nil, errors.New("which node? exec-node NODE -- CMD...")
	}
	space, command = args[0], args[1:]
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return "", nil, fmt.Errorf("run what in %s? exec-node %s -- CMD", space, space)
	}
	return space, command, nil
}
