package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
)

const usage = `hauberk-node is the Hauberk node agent.

  hauberk-node [run] [flags]   be the agent (the default)
  hauberk-node device          be the userspace WireGuard device, where the kernel has none
  hauberk-node cleanup [--stay] take everything of Hauberk off this node; the agent must not run
  hauberk-node status          print what the running agent says of the node, as JSON
  hauberk-node pods            print the node's pods, as JSON
  hauberk-node tunnels         print the tunnels to other nodes, as JSON
  hauberk-node rules           print the kernel's rules, as nft does
  hauberk-node version         print the version
`

// lockTime is how long cleanup waits for a running agent to end.
const lockTime = 60 * time.Second

// Process is what a command has of its process.
type Process struct {
	Args           []string // without the program's name
	Getenv         func(string) string
	Stdout, Stderr io.Writer
}

// Main runs the command that the arguments name. The error is for the user.
func Main(ctx context.Context, p Process) error {
	command, args := "run", p.Args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	set := flag.NewFlagSet("hauberk-node "+command, flag.ContinueOnError)
	set.SetOutput(p.Stderr)
	set.Usage = func() { fmt.Fprint(p.Stderr, usage); set.PrintDefaults() }
	var err error
	switch command {
	case "run":
		err = p.run(ctx, set, args)
	case "cleanup":
		err = p.cleanup(ctx, set, args)
	case "device":
		err = p.device(ctx, set, args)
	case "status", "pods", "tunnels", "rules":
		err = p.ask(ctx, set, args, "/"+command)
	case "version":
		_, err = fmt.Fprintln(p.Stdout, version.String())
	case "help":
		_, err = fmt.Fprint(p.Stdout, usage)
	default:
		return fmt.Errorf("there is no command %q; see hauberk-node help", command)
	}
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

func parse(set *flag.FlagSet, args []string) error {
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see hauberk-node help", set.Arg(0))
	}
	return nil
}

func (p Process) run(ctx context.Context, set *flag.FlagSet, args []string) error {
	var c Config
	c.Flags(set, p.Getenv, true)
	if err := parse(set, args); err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	unlock, err := lock(ctx, p.logger(slog.LevelInfo), c.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	a, err := New(c, p.Stderr)
	if err != nil {
		return err
	}
	a.log.Info("node agent starts", "version", version.String())
	return a.Run(ctx)
}

func (p Process) cleanup(ctx context.Context, set *flag.FlagSet, args []string) error {
	var c Config
	c.Flags(set, p.Getenv, false)
	stay := set.Bool("stay", false, "after a successful cleanup be ready on the health port until ended, as a DaemonSet needs it")
	health := set.String("health", fmt.Sprintf(":%d", names.PortHealth), "address of the health server with --stay")
	if err := parse(set, args); err != nil {
		return err
	}
	log := p.logger(slog.LevelInfo)
	waiting, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	unlock, err := lock(waiting, log, c.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := Cleanup(ctx, c, log); err != nil {
		return fmt.Errorf("clean up the node: %w", err)
	}
	if !*stay {
		return nil
	}
	h := lifecycle.NewHealth()
	h.Register("cleanup").Ready()
	mux := http.NewServeMux()
	h.Handle(mux)
	return lifecycle.Serve(ctx, *health, mux)
}

func (p Process) device(ctx context.Context, set *flag.FlagSet, args []string) error {
	if err := parse(set, args); err != nil {
		return err
	}
	return tunnel.RunDevice(ctx, tunnel.Interface, p.logger(slog.LevelInfo))
}

// ask prints what the running agent answers on its loopback admin.
func (p Process) ask(ctx context.Context, set *flag.FlagSet, args []string, path string) error {
	admin := set.String("admin", fmt.Sprintf("127.0.0.1:%d", names.PortAdmin), "address of the running agent's admin server")
	if err := parse(set, args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+*admin+path, nil)
	if err != nil {
		return fmt.Errorf("ask the node agent: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy of the environment
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("ask the node agent: %w; is it running on this node?", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the node agent answered %s with %s", path, response.Status)
	}
	if _, err := io.Copy(p.Stdout, response.Body); err != nil {
		return fmt.Errorf("read the node agent's answer: %w", err)
	}
	return nil
}

func (p Process) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(p.Stderr, &slog.HandlerOptions{Level: level}))
}
