// Package stage sets the stage that the demo and the end-to-end tests play on:
// the local cluster, the images, the mesh, and the commands that they type. It
// owns getting there and looking; what is played is theirs.
package stage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Stage is a checkout with its cluster.
type Stage struct {
	// Root is the checkout's folder.
	Root string
	// Log is where long steps tell of themselves.
	Log io.Writer
}

// New is the stage of the checkout that the working directory is in.
func New(log io.Writer) (*Stage, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("working directory: %w", err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "install", "charts", "hauberk", "Chart.yaml")); err == nil {
			return &Stage{Root: d, Log: log}, nil
		}
		if d == filepath.Dir(d) {
			return nil, fmt.Errorf("%s is not in a checkout of Hauberk", dir)
		}
	}
}

// Kubeconfig is the path of the cluster's.
func (s *Stage) Kubeconfig() string { return filepath.Join(s.Root, ".cluster", "kubeconfig") }

// Result is what a command said.
type Result struct {
	Out, Err string
	Code     int
}

// Run runs a command in the checkout's folder. An error means that it could
// not be run; how it ended is in the Result.
func (s *Stage) Run(ctx context.Context, stdin string, name string, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.Root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig())
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	r := Result{Out: out.String(), Err: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, r.Err)
	}
	return r, nil
}

// must runs a command that has to succeed, and tells what it said if not.
func (s *Stage) must(ctx context.Context, stdin, name string, args ...string) (string, error) {
	r, err := s.Run(ctx, stdin, name, args...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("%s %s: exit code %d\n%s%s", filepath.Base(name), strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return r.Out, nil
}

// stream runs a long command that tells of itself on Log.
func (s *Stage) stream(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Root, s.Log, s.Log
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig())
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return nil
}

func (s *Stage) cluster() string { return filepath.Join(s.Root, ".cluster", "bin", "cluster") }

// KubectlPath is the cluster's own kubectl.
func (s *Stage) KubectlPath() string { return filepath.Join(s.Root, ".cluster", "bin", "kubectl") }

// HauberkPath is the command as this checkout builds it.
func (s *Stage) HauberkPath() string { return filepath.Join(s.Root, "bin", "hauberk") }

// Kubectl runs kubectl and wants success.
func (s *Stage) Kubectl(ctx context.Context, args ...string) (string, error) {
	return s.must(ctx, "", s.KubectlPath(), args...)
}

// Apply applies manifests.
func (s *Stage) Apply(ctx context.Context, manifests string) error {
	_, err := s.must(ctx, manifests, s.KubectlPath(), "apply", "-f", "-")
	return err
}

// Hauberk runs the hauberk command, however it ends.
func (s *Stage) Hauberk(ctx context.Context, args ...string) (Result, error) {
	return s.Run(ctx, "", s.HauberkPath(), args...)
}

// Exec runs a command in a pod's container, however it ends. Target is as
// kubectl's: pod/name or deployment/name.
func (s *Stage) Exec(ctx context.Context, namespace, target, container string, command ...string) (Result, error) {
	args := []string{"exec", "-n", namespace, target}
	if container != "" {
		args = append(args, "-c", container)
	}
	return s.Run(ctx, "", s.KubectlPath(), append(append(args, "--"), command...)...)
}

// OnNode runs a command in a node's network and mount namespaces.
func (s *Stage) OnNode(ctx context.Context, node string, command ...string) (Result, error) {
	return s.Run(ctx, "", s.cluster(), append([]string{"exec-node", node, "--"}, command...)...)
}

// NodeCommand is a command on a node that the caller runs itself.
func (s *Stage) NodeCommand(ctx context.Context, node string, command ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.cluster(), append([]string{"exec-node", node, "--"}, command...)...)
	cmd.Dir = s.Root
	return cmd
}

// ClusterUp builds the cluster's program and brings the cluster up.
func (s *Stage) ClusterUp(ctx context.Context, nodes string) error {
	if err := s.stream(ctx, "make", "--no-print-directory", "cluster", "NODES="+nodes); err != nil {
		return err
	}
	return nil
}

// Images builds the images and the hauberk command, and loads into the cluster
// what it does not have yet.
func (s *Stage) Images(ctx context.Context) error {
	if err := s.stream(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", s.HauberkPath(), "./cmd/hauberk"); err != nil {
		return err
	}
	if err := s.stream(ctx, "go", "run", "./install/images"); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(s.Root, "dist", "images", "*.tar"))
	if err != nil || len(archives) == 0 {
		return fmt.Errorf("no image archives in dist/images: %w", err)
	}
	// A new cluster has a new kubeconfig: the stamps are of one cluster only.
	identity, err := os.ReadFile(s.Kubeconfig())
	if err != nil {
		return fmt.Errorf("kubeconfig of the cluster: %w", err)
	}
	var load []string
	stamps := map[string]string{}
	for _, a := range archives {
		if filepath.Base(a) == "hauberk-images.tar" {
			continue // all the others in one
		}
		sum, err := digest(a, identity)
		if err != nil {
			return err
		}
		stamp := filepath.Join(s.Root, ".cluster", "loaded-"+filepath.Base(a))
		if had, err := os.ReadFile(stamp); err == nil && string(had) == sum {
			continue
		}
		load, stamps[stamp] = append(load, a), sum
	}
	if len(load) == 0 {
		return nil
	}
	if err := s.stream(ctx, s.cluster(), append([]string{"load"}, load...)...); err != nil {
		return err
	}
	for stamp, sum := range stamps {
		if err := os.WriteFile(stamp, []byte(sum), 0o644); err != nil {
			return fmt.Errorf("note what is loaded: %w", err)
		}
	}
	return nil
}

func digest(path string, salt []byte) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	h.Write(salt)
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Install installs the mesh, or upgrades it, and restarts those of its workloads
// whose image changed under the same name.
func (s *Stage) Install(ctx context.Context, args ...string) error {
	if _, err := s.must(ctx, "", s.HauberkPath(), append([]string{"install"}, args...)...); err != nil {
		return err
	}
	return s.restartChanged(ctx)
}

// restartChanged restarts what runs an older image than the one that was loaded
// last. A new cluster starts with the images as they are.
func (s *Stage) restartChanged(ctx context.Context) error {
	var restarted []string
	for name, workload := range map[string]string{
		"hauberk-control": "deployment/hauberk-control", "hauberk-injector": "deployment/hauberk-injector", "hauberk-node": "daemonset/hauberk-node",
	} {
		loaded, err := os.ReadFile(filepath.Join(s.Root, ".cluster", "loaded-"+name+".tar"))
		if err != nil {
			continue // an image that was not loaded by Images cannot be older
		}
		identity, err := os.ReadFile(s.Kubeconfig())
		if err != nil {
			return fmt.Errorf("kubeconfig of the cluster: %w", err)
		}
		running := filepath.Join(s.Root, ".cluster", "running-"+name)
		sum := sha256.Sum256(identity)
		cluster, had, _ := strings.Cut(string(mayRead(running)), " ")
		now := hex.EncodeToString(sum[:])
		if cluster == now && had == string(loaded) {
			continue
		}
		if cluster == now {
			if _, err := s.Kubectl(ctx, "-n", "hauberk-system", "rollout", "restart", workload); err != nil {
				return err
			}
			restarted = append(restarted, workload)
		}
		if err := os.WriteFile(running, []byte(now+" "+string(loaded)), 0o644); err != nil {
			return fmt.Errorf("note what runs: %w", err)
		}
	}
	for _, workload := range restarted {
		if _, err := s.Kubectl(ctx, "-n", "hauberk-system", "rollout", "status", workload, "--timeout=120s"); err != nil {
			return err
		}
	}
	return nil
}

// mayRead is a file's content, empty if it cannot be read.
func mayRead(path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return content
}

// Eventually asks until the answer is yes or the time is over, and then says
// what the last answer was.
func Eventually(ctx context.Context, within time.Duration, what string, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for {
		if err := ask(ctx); err == nil {
			return nil
		} else if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, within, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
