// Package cli is the `hauberk` command, which is also a kubectl plugin
// (kubectl-hauberk): it installs, checks and explains the mesh. It owns the
// tree of sub-commands; each lives in a package beside it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// Main runs the command line and returns its exit code.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return execute(ctx, &run.Env{Output: run.Output{Out: out, Err: errOut}, In: in}, args)
}

func execute(ctx context.Context, env *run.Env, args []string) int {
	errOut := env.Err
	root := newRoot(env)
	root.SetArgs(args)
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return run.ExitOK
	}
	var known *run.Error
	if errors.As(err, &known) && known.Silent {
		return known.Code
	}
	fmt.Fprintf(errOut, "%s %v\n", env.Paint(errOut, run.Red, "error:"), err)
	if mend := run.Mend(err); mend != "" {
		fmt.Fprintf(errOut, "  %s\n", mend)
	}
	return run.Code(err)
}

func newRoot(env *run.Env) *cobra.Command {
	name := "hauberk"
	if base := filepath.Base(os.Args[0]); strings.HasPrefix(base, "kubectl-") {
		name = "kubectl hauberk"
	}
	root := &cobra.Command{
		Use:           "hauberk",
		Short:         "A service mesh with one policy model from the packet to the HTTP request",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: name},
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return env.Output.Validate(strings.Fields(c.Annotations[run.FormatsAnnotation])...)
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return run.Fail(run.ExitUsage, fmt.Sprintf("see `%s --help`", c.CommandPath()), "%w", err)
	})
	env.Cluster.AddFlags(root.PersistentFlags())
	env.Output.AddFlags(root.PersistentFlags())
	root.AddCommand(newVersion(env))
	for _, add := range commands {
		root.AddCommand(add(env))
	}
	usageErrors(root)
	return root
}

// usageErrors gives wrong arguments the exit code of wrong usage.
func usageErrors(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return run.Fail(run.ExitUsage, fmt.Sprintf("see `%s --help`", c.CommandPath()), "%w", err)
			}
			return nil
		}
	} else if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs // cobra's own complaint has no exit code
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return run.Fail(run.ExitUsage, fmt.Sprintf("see `%s --help`", c.CommandPath()), "unknown command %q for %q", args[0], c.CommandPath())
			}
			return c.Help()
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}

func newVersion(env *run.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this command",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version.Version, "commit": version.Commit}
			if done, err := env.Structured(v); done {
				return err
			}
			_, err := fmt.Fprintln(env.Out, version.String())
			return err
		},
	}
}
