package setup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// Verify looks whether all works, and reports to the output of env. It is what
// `hauberk check` does.
type Verify func(ctx context.Context, env *run.Env) error

type installOptions struct {
	settings
	wait    bool
	timeout time.Duration
}

func (o *installOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.registry, "registry", "hauberk.dev", "registry and path of the images")
	f.StringArrayVar(&o.values.Values, "set", nil, "set a value of the chart, such as trustDomain=example.org")
	f.StringSliceVarP(&o.values.ValueFiles, "values", "f", nil, "files with values of the chart")
}

// Install is the command `hauberk install`; again it upgrades. verify runs when
// everything is rolled out.
func Install(verify Verify) func(*run.Env) *cobra.Command {
	return func(env *run.Env) *cobra.Command {
		return installCommand(env, verify, "install", "Install the mesh, or bring it to this command's version and settings")
	}
}

// Upgrade is the command `hauberk upgrade`.
func Upgrade(verify Verify) func(*run.Env) *cobra.Command {
	return func(env *run.Env) *cobra.Command {
		return installCommand(env, verify, "upgrade", "Bring an installed mesh to this command's version and settings")
	}
}

func installCommand(env *run.Env, verify Verify, use, short string) *cobra.Command {
	o := &installOptions{}
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Example: `  hauberk install
  hauberk install --set mesh.telemetry.otlpEndpoint=otel-collector.observability:4317
  hauberk install --registry registry.example.org/hauberk`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return doInstall(c.Context(), env, o, verify, use == "upgrade")
		},
	}
	o.addFlags(c)
	c.Flags().BoolVar(&o.wait, "wait", true, "wait until everything works")
	c.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait")
	return c
}

func doInstall(ctx context.Context, env *run.Env, o *installOptions, verify Verify, mustExist bool) error {
	vals, err := o.merged()
	if err != nil {
		return err
	}
	clients, err := env.Clients()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	p := run.NewProgress(env.Err)
	defer p.Close()

	p.Step("asking the cluster for its version")
	if _, err := clients.Kube.Discovery().ServerVersion(); err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	cfg, err := helm(&env.Cluster)
	if err != nil {
		return err
	}
	if mustExist {
		last, err := installed(cfg)
		if err != nil {
			return err
		}
		if last == nil {
			return run.Fail(run.ExitBadInput, "use `hauberk install`", "there is no mesh to upgrade in this cluster")
		}
	}
	p.Step("applying the custom resource definitions")
	if err := applyCRDs(ctx, clients); err != nil {
		return err
	}
	p.Step("preparing namespace %s", names.Namespace)
	if err := ensureNamespace(ctx, clients); err != nil {
		return err
	}
	p.Step("applying the chart")
	upgraded, err := apply(ctx, cfg, vals)
	if err != nil {
		return run.Fail(run.ExitRuntime, "run the command again: what was made is taken over", "apply the chart: %w", err)
	}
	verb := "installed"
	if upgraded {
		verb = "upgraded"
	}
	if !o.wait {
		p.Close()
		fmt.Fprintf(env.Out, "hauberk %s: %s; not waited for, see `hauberk check --wait`\n", version.Version, verb)
		return nil
	}
	if err := waitForRollout(ctx, clients, p); err != nil {
		return err
	}
	p.Close()
	if err := verify(ctx, env); err != nil {
		return err
	}
	fmt.Fprintf(env.Out, "hauberk %s: %s in %s\n\nNext: kubectl label namespace NAME %s=%s, then restart its pods.\n",
		version.Version, verb, time.Since(p.Started()).Round(time.Second), names.LabelInject, names.InjectEnabled)
	return nil
}

// Uninstall is the command `hauberk uninstall`.
func Uninstall(env *run.Env) *cobra.Command {
	var timeout time.Duration
	var keepCRDs bool
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the mesh: its workloads, definitions, CNI entries and kernel rules",
		Long: `Remove the mesh. Pods start without it at once afterwards; pods that have a sidecar keep it until they are
restarted. Policies and settings of the mesh are custom resources and go with their definitions, unless --keep-crds.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return doUninstall(ctx, env, keepCRDs)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	c.Flags().BoolVar(&keepCRDs, "keep-crds", false, "keep the custom resource definitions and all their objects")
	return c
}

func doUninstall(ctx context.Context, env *run.Env, keepCRDs bool) error {
	clients, err := env.Clients()
	if err != nil {
		return err
	}
	p := run.NewProgress(env.Err)
	defer p.Close()
	p.Step("looking for what is installed")
	if _, err := clients.Kube.Discovery().ServerVersion(); err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	cfg, err := helm(&env.Cluster)
	if err != nil {
		return err
	}
	last, err := installed(cfg)
	if err != nil {
		return err
	}
	// Admission first: from here on pods start without the mesh.
	p.Step("removing admission")
	if err := removeAdmission(ctx, clients); err != nil {
		return err
	}
	if err := cleanNodes(ctx, clients, p); err != nil {
		return err
	}
	if last != nil {
		p.Step("removing the chart")
		if err := removeRelease(ctx, cfg); err != nil {
			return err
		}
	}
	if !keepCRDs {
		p.Step("removing the custom resource definitions")
		if err := removeCRDs(ctx, clients); err != nil {
			return err
		}
	}
	p.Step("removing namespace %s", names.Namespace)
	gone, err := removeNamespace(ctx, clients)
	if err != nil {
		return err
	}
	p.Close()
	if last == nil && !gone {
		fmt.Fprintln(env.Out, "hauberk: nothing is installed in this cluster")
		return nil
	}
	fmt.Fprintf(env.Out, "hauberk: uninstalled in %s\n", time.Since(p.Started()).Round(time.Second))
	left, err := meshedPods(ctx, clients)
	if err != nil && !apierrors.IsForbidden(err) {
		return err
	}
	if left > 0 {
		fmt.Fprintf(env.Out, "%d running pods still have a sidecar: restart their workloads\n", left)
	}
	return nil
}

// Manifest is the command `hauberk manifest`.
func Manifest(env *run.Env) *cobra.Command {
	c := &cobra.Command{Use: "manifest", Short: "Print what install would apply"}
	o := &installOptions{}
	render := &cobra.Command{
		Use:   "render",
		Short: "Print the objects of the chart, without a cluster",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			vals, err := o.merged()
			if err != nil {
				return err
			}
			text, err := manifest(c.Context(), vals)
			if err != nil {
				return run.Fail(run.ExitBadInput, "look at the values that you set", "render the chart: %w", err)
			}
			if err := printCRDs(env.Out); err != nil {
				return err
			}
			_, err = fmt.Fprint(env.Out, text)
			return err
		},
	}
	o.addFlags(render)
	c.AddCommand(render)
	return c
}

// errTimeout says what was waited for.
func errTimeout(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return run.Fail(run.ExitTimeout, "see what is wrong with `hauberk check`; --timeout gives it longer", "timed out: %s", what)
	}
	return fmt.Errorf("interrupted: %s", what)
}
