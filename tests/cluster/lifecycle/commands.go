package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

// Down removes whatever cluster the machine runs and fails with a list if a
// trace of it is left. Logs stay in the checkout.
func Down(checkout Checkout, r *report.Reporter) error {
	before, ownerErr := readOwner()
	if err := r.During("take the cluster down", host.Wipe); err != nil {
		return err
	}
	for _, dir := range []string{checkout.Dir, before.Checkout} {
		if dir == "" {
			continue
		}
		if err := os.Remove(filepath.Join(dir, ".cluster", "kubeconfig")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	left, err := host.Leftovers()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("the cluster is down, but this is left of it:\n  %s", strings.Join(left, "\n  "))
	}
	if errors.Is(ownerErr, errNoCluster) {
		r.Say("there is no cluster on this machine")
	} else {
		r.Say("the cluster is down and nothing is left of it; logs are in %s", checkout.Logs())
	}
	return nil
}

// Load imports image archives, of Docker's or OCI's format, into every node.
func Load(ctx context.Context, checkout Checkout, archives []string, r *report.Reporter) error {
	o, err := readOwn(checkout)
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		return errors.New("name at least one image archive: make cluster-load ARCHIVE=image.tar")
	}
	for _, archive := range archives {
		if info, err := os.Stat(archive); err != nil {
			return err
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file: an archive is a .tar of Docker's or OCI's format", archive)
		}
	}
	errs := make(chan error, o.Plan.Nodes)
	for _, n := range o.Plan.Workers() {
		go func() {
			errs <- r.During(fmt.Sprintf("load %s into %s", strings.Join(archives, ", "), n.Name), func() error {
				for _, archive := range archives {
					if err := loadInto(ctx, n, archive); err != nil {
						return err
					}
				}
				return nil
			})
		}()
	}
	var all error
	for range o.Plan.Nodes {
		all = errors.Join(all, <-errs)
	}
	return all
}

func loadInto(ctx context.Context, n plan.Node, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := host.In(ctx, n.Name, "ctr", "--address="+render.ContainerdSocket, "--namespace=k8s.io", "images", "import", "--all-platforms", "-")
	cmd.Stdin = f // the file may be where the node sees something else
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s into %s: %w: %s", archive, n.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Status writes what runs and how it is; its error says whether all is well.
func Status(ctx context.Context, w io.Writer) error {
	o, err := readOwner()
	if err != nil {
		return err
	}
	p, err := newProbe(o.Plan)
	if err != nil {
		return err
	}
	cfg := render.New(o.Plan, o.Binaries)
	procs := append([]render.Process(nil), cfg.ControlPlane...)
	for _, n := range o.Plan.Workers() {
		procs = append(procs, cfg.Nodes[n.Name]...)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v4, _ := o.Plan.API()
	if _, err := fmt.Fprintf(w, "checkout     %s\nAPI server   https://%s:6443\npods         %v\nservices     %v\n", o.Checkout, v4, o.Plan.PodRanges(), o.Plan.ServiceRanges()); err != nil {
		return err
	}
	for _, n := range o.Plan.Workers() {
		if _, err := fmt.Fprintf(w, "%-12s %v pods %v\n", n.Name, o.Plan.Addresses(n), o.Plan.PodCIDRs(n)); err != nil {
			return err
		}
	}
	var wrong []string
	line := func(what string, err error) error {
		mark := "✓ " + what
		if err != nil {
			mark = "✗ " + what + ": " + err.Error()
			wrong = append(wrong, what)
		}
		_, writeErr := fmt.Fprintln(w, mark)
		return writeErr
	}
	for _, proc := range procs {
		if err := line(proc.Name, p.component(ctx, proc)); err != nil {
			return err
		}
	}
	if err := line("nodes ready", p.nodesReady(ctx)); err != nil {
		return err
	}
	if err := line("cluster DNS", p.dnsAnswers(ctx)); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not well: %s: 'make cluster' mends it; logs are in %s", strings.Join(wrong, ", "), Checkout{Dir: o.Checkout}.Logs())
	}
	return nil
}

// ExecNode becomes the command, within the node or the control plane.
func ExecNode(checkout Checkout, space string, command []string) error {
	o, err := readOwn(checkout)
	if err != nil {
		return err
	}
	for _, known := range o.Plan.Spaces() {
		if known == space {
			return host.ExecIn(space, command)
		}
	}
	return fmt.Errorf("no node %q: there are %s", space, strings.Join(o.Plan.Spaces(), ", "))
}
