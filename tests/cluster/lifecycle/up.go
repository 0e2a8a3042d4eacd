package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/build"
	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/pki"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

// Times to wait, generous: the machine may be small and busy.
const (
	componentWait = 2 * time.Minute
	wholeWait     = 4 * time.Minute
	mendWait      = time.Minute
)

// upRun is one run of Up.
type upRun struct {
	checkout Checkout
	report   *report.Reporter
	plan     plan.Cluster
	cache    build.Cache
	config   render.Config
}

// Up brings a cluster of so many nodes up for the checkout: it leaves a whole
// one alone, mends one whose processes have died and replaces any other.
func Up(ctx context.Context, checkout Checkout, nodes int, r *report.Reporter) error {
	if err := (plan.Cluster{Nodes: nodes}).Validate(); err != nil {
		return err
	}
	v2, err := host.CgroupV2()
	if err != nil {
		return err
	}
	if err := host.InstallPackages(ctx, r); err != nil {
		return err
	}
	cache, err := build.Ensure(ctx, checkout.Source(), r)
	if err != nil {
		return err
	}
	u := &upRun{checkout: checkout, report: r, cache: cache}
	before, err := readOwner()
	if err == nil && u.same(before, nodes, v2) {
		u.plan = before.Plan
		u.config = render.New(u.plan, cache.Kubernetes)
		if err := u.keep(ctx, before); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return err
		} else {
			r.Say("the cluster that is there cannot be mended (%v): starting afresh", err)
		}
	} else if err == nil {
		r.Say("replacing the cluster of %s with %d nodes", before.Checkout, before.Plan.Nodes)
		if before.Checkout != checkout.Dir {
			// What its users would find no longer leads anywhere.
			_ = os.Remove(filepath.Join(before.Checkout, ".cluster", "kubeconfig"))
		}
	}
	if err := r.During("clear away what is left of any cluster", host.Wipe); err != nil {
		return err
	}
	if u.plan, err = newPlan(nodes, v2); err != nil {
		return err
	}
	u.config = render.New(u.plan, cache.Kubernetes)
	if err := u.fresh(ctx); err != nil {
		return err
	}
	r.Say("the cluster is up: %d nodes, Kubernetes %s, kubeconfig %s", nodes, plan.KubernetesVersion, checkout.Kubeconfig())
	return nil
}

// same says whether the cluster there is the one asked for.
func (u *upRun) same(o owner, nodes int, v2 bool) bool {
	return o.Complete && o.Checkout == u.checkout.Dir && o.Plan.Nodes == nodes && o.Plan.CgroupV2 == v2 &&
		o.BootID == host.BootID() && o.Binaries == u.cache.Kubernetes &&
		o.Fingerprint == render.New(o.Plan, u.cache.Kubernetes).Fingerprint()
}

func newPlan(nodes int, v2 bool) (plan.Cluster, error) {
	if err := host.Probe(); err != nil {
		return plan.Cluster{}, err
	}
	underlay, err := host.FreeUnderlay(plan.Candidates())
	if err != nil {
		return plan.Cluster{}, err
	}
	return plan.Cluster{
		Nodes:       nodes,
		Underlay:    underlay,
		DualStack:   host.HasIPv6(),
		CgroupV2:    v2,
		Snapshotter: host.Snapshotter(filepath.Dir(plan.Root)),
	}, nil
}

// all are the plan's processes in the order of their start.
func (u *upRun) all() []render.Process {
	procs := append([]render.Process(nil), u.config.ControlPlane...)
	for _, n := range u.plan.Workers() {
		procs = append(procs, u.config.Nodes[n.Name]...)
	}
	return procs
}

// keep sees to it that the cluster which is there works, starting again what
// has died.
func (u *upRun) keep(ctx context.Context, o owner) error {
	if !host.SpacesWhole(u.plan) || !host.NetworkWhole(u.plan) {
		return errors.New("its namespaces or links are gone")
	}
	p, err := newProbe(u.plan)
	if err != nil {
		return err
	}
	if err := u.publish(); err != nil {
		return err
	}
	quick, cancel := context.WithTimeout(ctx, 5*time.Second)
	wrong := p.whole(quick, u.all())
	cancel()
	if wrong == nil {
		u.report.Say("the cluster is up already: %d nodes, kubeconfig %s", u.plan.Nodes, u.checkout.Kubeconfig())
		return nil
	}
	u.report.Say("mending the cluster: %v", wrong)
	for _, proc := range u.all() {
		if err := u.mend(ctx, p, proc); err != nil {
			return err
		}
	}
	if err := u.awaitWhole(ctx, p, mendWait); err != nil {
		return err
	}
	u.report.Say("the cluster is up again: %d nodes, kubeconfig %s", u.plan.Nodes, u.checkout.Kubeconfig())
	return nil
}

// mend starts the process again if it does not work.
func (u *upRun) mend(ctx context.Context, p *probe, proc render.Process) error {
	quick, cancel := context.WithTimeout(ctx, 5*time.Second)
	err := p.component(quick, proc)
	cancel()
	if err == nil {
		return nil
	}
	if host.PID(proc.Name) != 0 {
		// It may be waiting for what was mended just before it.
		if u.await(ctx, proc.Name+" answers", 15*time.Second, func(ctx context.Context) error { return p.component(ctx, proc) }) == nil {
			return nil
		}
		if err := host.Kill(proc.Name); err != nil {
			return err
		}
	}
	u.report.Step("start %s again", proc.Name)
	return u.start(ctx, p, proc)
}

// fresh builds the cluster on a machine that has none.
func (u *upRun) fresh(ctx context.Context) error {
	if err := os.RemoveAll(u.checkout.Logs()); err != nil {
		return err
	}
	if err := os.MkdirAll(u.checkout.Logs(), 0o755); err != nil {
		return err
	}
	o := owner{Checkout: u.checkout.Dir, Plan: u.plan, Fingerprint: u.config.Fingerprint(),
		BootID: host.BootID(), Binaries: u.cache.Kubernetes}
	if err := writeOwner(o); err != nil {
		return err
	}
	if err := u.report.During("lay the ground: keys, cgroups, namespaces, network", u.ground); err != nil {
		return err
	}
	if err := u.publish(); err != nil {
		return err
	}
	p, err := newProbe(u.plan)
	if err != nil {
		return err
	}
	nodes := make(chan error, u.plan.Nodes)
	for _, n := range u.plan.Workers() {
		go func() { nodes <- u.startRuntime(ctx, p, n) }()
	}
	wrong := u.startAPI(ctx, p)
	for range u.plan.Nodes {
		wrong = errors.Join(wrong, <-nodes)
	}
	if wrong != nil {
		return wrong
	}
	err = u.report.During("start controllers and nodes, DNS answers", func() error { return u.startRest(ctx, p) })
	if err != nil {
		return err
	}
	o.Complete = true
	return writeOwner(o)
}

// ground makes what the processes stand on.
func (u *upRun) ground() error {
	if err := pki.Write(u.plan, time.Now()); err != nil {
		return fmt.Errorf("make keys and certificates: %w", err)
	}
	for _, f := range u.config.Files {
		if err := writeWhole(f.Path, []byte(f.Content), 0o644); err != nil {
			return err
		}
	}
	if err := host.MakeCgroups(u.plan.Spaces()); err != nil {
		return err
	}
	if err := host.MakeSpaces(u.plan); err != nil {
		return err
	}
	for _, n := range u.plan.Workers() {
		if err := u.layPlugins(n); err != nil {
			return err
		}
	}
	return host.MakeNetwork(u.plan)
}

// layPlugins gives the node CNI plugins of its own and the pod network's
// configuration.
func (u *upRun) layPlugins(n plan.Node) error {
	plugins, err := os.ReadDir(host.PluginDir)
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		if !plugin.Type().IsRegular() {
			continue
		}
		if err := copyFile(filepath.Join(host.PluginDir, plugin.Name()), filepath.Join(plan.NodeDir(n.Name), "cni-bin", plugin.Name())); err != nil {
			return fmt.Errorf("lay out CNI plugins of %s: %w", n.Name, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := copyFile(self, filepath.Join(plan.NodeDir(n.Name), "cni-bin", host.NoDADPlugin)); err != nil {
		return fmt.Errorf("lay out the primary CNI plugin of %s: %w", n.Name, err)
	}
	return writeWhole(filepath.Join(plan.NodeDir(n.Name), "cni-conf", render.ConflistName), []byte(render.Conflist(u.plan, n)), 0o644)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// publish puts into the checkout what its users need.
func (u *upRun) publish() error {
	admin, err := os.ReadFile(render.KubeconfigPath(plan.ControlPlane, "admin"))
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(u.checkout.Kubeconfig()); err != nil || string(have) != string(admin) {
		if err := writeWhole(u.checkout.Kubeconfig(), admin, 0o600); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(u.checkout.Logs(), 0o755); err != nil {
		return err
	}
	link := filepath.Join(u.checkout.State(), "bin", "kubectl")
	target := filepath.Join(u.cache.Kubernetes, "kubectl")
	if have, err := os.Readlink(link); err == nil && have == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, link)
}

// startRuntime starts the node's containerd and loads the cluster's images.
func (u *upRun) startRuntime(ctx context.Context, p *probe, n plan.Node) error {
	if err := u.start(ctx, p, u.config.Nodes[n.Name][0]); err != nil {
		return err
	}
	return u.report.During("load images into "+n.Name, func() error {
		for _, archive := range u.cache.Archives {
			if err := loadInto(ctx, n, archive); err != nil {
				return err
			}
		}
		return nil
	})
}

// startAPI starts etcd and the API server and makes the Node objects.
func (u *upRun) startAPI(ctx context.Context, p *probe) error {
	for _, proc := range u.config.ControlPlane[:apiProcesses] {
		if err := u.report.During("start "+proc.Name, func() error { return u.start(ctx, p, proc) }); err != nil {
			return err
		}
	}
	// The API server is ready a moment before it knows its own roles.
	return u.await(ctx, "node objects are accepted", componentWait, func(ctx context.Context) error { return u.apply(ctx, u.config.NodeList) })
}

// apiProcesses are the first of the control plane, which all others need.
const apiProcesses = 2

// startRest starts everything which needs the API server only, all at once,
// makes the first objects and waits until the whole works.
func (u *upRun) startRest(ctx context.Context, p *probe) error {
	procs := append([]render.Process(nil), u.config.ControlPlane[apiProcesses:]...)
	for _, n := range u.plan.Workers() {
		procs = append(procs, u.config.Nodes[n.Name][1:]...)
	}
	for _, proc := range procs {
		if err := host.Start(proc, u.checkout.Log(proc.Name)); err != nil {
			return err
		}
	}
	if err := u.await(ctx, "the first objects are accepted", componentWait, func(ctx context.Context) error { return u.apply(ctx, u.config.Manifests) }); err != nil {
		return err
	}
	return u.awaitWhole(ctx, p, wholeWait)
}

// awaitWhole waits until everything works, unless a process ends meanwhile.
func (u *upRun) awaitWhole(ctx context.Context, p *probe, limit time.Duration) error {
	return u.await(ctx, "the whole cluster works", limit, func(ctx context.Context) error {
		err := p.whole(ctx, u.all())
		for _, proc := range u.all() {
			if host.PID(proc.Name) == 0 {
				return fatal{u.blame(proc.Name, errors.New("it has ended"))}
			}
		}
		return err
	})
}

func (u *upRun) apply(ctx context.Context, objects string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(u.cache.Kubernetes, "kubectl"), "--kubeconfig="+u.checkout.Kubeconfig(), "apply", "--server-side", "--force-conflicts", "--filename=-")
	cmd.Stdin = strings.NewReader(objects)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// start starts the process and waits until it answers.
func (u *upRun) start(ctx context.Context, p *probe, proc render.Process) error {
	if err := host.Start(proc, u.checkout.Log(proc.Name)); err != nil {
		return err
	}
	err := u.await(ctx, proc.Name+" answers", componentWait, func(ctx context.Context) error {
		err := p.component(ctx, proc)
		if host.PID(proc.Name) == 0 {
			return fatal{fmt.Errorf("%s ended right after its start", proc.Name)}
		}
		return err
	})
	if err != nil {
		return u.blame(proc.Name, err)
	}
	return nil
}

// fatal is an error which waiting will not mend.
type fatal struct{ error }

// await polls until check is content, and says at the end what was wrong.
func (u *upRun) await(ctx context.Context, what string, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begun := time.Now()
	for {
		attempt, cancelAttempt := context.WithTimeout(ctx, 20*time.Second)
		err := check(attempt)
		cancelAttempt()
		if err == nil {
			return nil
		}
		var f fatal
		if errors.As(err, &f) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s until %s: %w\nlogs: %s", time.Since(begun).Round(time.Second), what, err, u.checkout.Logs())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// blame adds the component's last words to the error.
func (u *upRun) blame(component string, err error) error {
	path := u.checkout.Log(component)
	text, readErr := os.ReadFile(path)
	if readErr != nil {
		return fmt.Errorf("%s: %w (no log at %s)", component, err, path)
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return fmt.Errorf("%s: %w\nlast lines of %s:\n  %s", component, err, path, strings.Join(lines[max(0, len(lines)-12):], "\n  "))
}
