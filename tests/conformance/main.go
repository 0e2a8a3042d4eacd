// Command conformance runs the conformance suites of Kubernetes' network
// policies on the local cluster: cyclonus for NetworkPolicy, and the suite of
// sigs.k8s.io/network-policy-api for ClusterNetworkPolicy. It owns getting the
// suites built, their images into the cluster, and the logs; each suite is a
// module of its own in a folder of its name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// suites in the order that they run.
var suites = []string{"cyclonus", "clusternetworkpolicy"}

type run struct {
	stage *stage.Stage
	logs  string // folder for logs and reports
	out   io.Writer
}

func main() {
	suite := flag.String("suite", "", "which suite: "+strings.Join(suites, " or ")+"; empty is both, one after the other")
	asIs := flag.Bool("as-is", false, "use the cluster and the mesh as they are, rather than bringing them up to date first")
	logs := flag.String("logs", "", "folder for logs and reports (dist/conformance)")
	nodes := flag.String("nodes", "2", "nodes of the cluster, unless it is used as it is")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: conformance [flags] [-- flags of the suite]")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := conform(ctx, *suite, *asIs, *logs, *nodes, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func conform(ctx context.Context, suite string, asIs bool, logs, nodes string, args []string) error {
	chosen := suites
	if suite != "" {
		if !slices.Contains(suites, suite) {
			return fmt.Errorf("no suite %q: take one of %s", suite, strings.Join(suites, ", "))
		}
		chosen = []string{suite}
	}
	if len(args) > 0 && len(chosen) > 1 {
		return errors.New("flags for a suite need one suite: name it by -suite")
	}
	s, err := stage.New(os.Stderr)
	if err != nil {
		return err
	}
	if logs == "" {
		logs = filepath.Join(s.Root, "dist", "conformance")
	}
	if logs, err = filepath.Abs(logs); err != nil {
		return err
	}
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	r := &run{stage: s, logs: logs, out: os.Stdout}
	if !asIs {
		if err := r.mesh(ctx, nodes); err != nil {
			return err
		}
	}
	archive, err := r.buildImages(ctx)
	if err != nil {
		return err
	}
	if err := r.loadImages(ctx, archive); err != nil {
		return err
	}
	var failed []error
	for _, name := range chosen {
		start := time.Now()
		if err := r.suite(ctx, name, args); err != nil {
			failed = append(failed, fmt.Errorf("suite %s after %v: %w", name, time.Since(start).Round(time.Second), err))
			continue
		}
		fmt.Fprintf(r.out, "suite %s passes; %v; log in %s\n", name, time.Since(start).Round(time.Second), r.logOf(name))
	}
	return errors.Join(failed...)
}

// mesh brings up the cluster with this checkout's mesh.
func (r *run) mesh(ctx context.Context, nodes string) error {
	if err := r.stage.ClusterUp(ctx, nodes); err != nil {
		return err
	}
	if err := r.stage.Images(ctx); err != nil {
		return err
	}
	return r.stage.Install(ctx)
}

func (r *run) folder(name string) string {
	return filepath.Join(r.stage.Root, "tests", "conformance", name)
}

func (r *run) logOf(suite string) string { return filepath.Join(r.logs, suite+".log") }

// suite builds a suite and runs it; what it says goes to its log too.
func (r *run) suite(ctx context.Context, name string, args []string) error {
	cache, err := cacheFolder()
	if err != nil {
		return err
	}
	binary := filepath.Join(cache, name+".suite")
	report := filepath.Join(r.logs, name)
	switch name {
	case "cyclonus":
		err = build(ctx, r.folder(name), ".", binary, "build", "-ldflags", "-s -w")
		args = append([]string{"-report", report + ".jsonl"}, args...)
	case "clusternetworkpolicy":
		if err := r.definition(ctx); err != nil {
			return err
		}
		err = build(ctx, r.folder(name), ".", binary, "test", "-c", "-ldflags", "-s -w")
		args = append([]string{"-test.v", "-test.timeout", "1h", "-report-output", report + ".yaml"}, args...)
	}
	if err != nil {
		return err
	}
	log, err := os.Create(r.logOf(name))
	if err != nil {
		return err
	}
	both := *r
	both.out = io.MultiWriter(r.out, log)
	return errors.Join(both.command(ctx, r.folder(name), binary, args...), log.Close())
}

// definition installs the custom resource definition that the suite's own module
// carries: the experimental channel, which the standard one is a part of.
func (r *run) definition(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api")
	cmd.Dir = r.folder("clusternetworkpolicy")
	dir, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find the module sigs.k8s.io/network-policy-api: %w", err)
	}
	crd := filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "experimental", "policy.networking.k8s.io_clusternetworkpolicies.yaml")
	if _, err := r.stage.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", crd); err != nil {
		return err
	}
	_, err = r.stage.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd/clusternetworkpolicies.policy.networking.k8s.io")
	return err
}

// command runs a command that tells of itself.
func (r *run) command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, r.out, r.out
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.stage.Kubeconfig())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return nil
}
