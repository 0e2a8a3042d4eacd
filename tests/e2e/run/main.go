// Command run sets the stage for the end-to-end tests and runs them: a cluster,
// the images, the mesh, the demo as the first test, and then the tests of
// tests/e2e. It leaves the cluster up, except with CI=true, when it takes the
// cluster away and looks that nothing is left.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const leftOut = `left out: the end-to-end tests. They bring up a Kubernetes of their own on this
machine, with network namespaces, containerd and kernel rules, and need root
for it. Run them with: sudo make test-e2e`

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(out, leftOut)
		return 0
	}
	s, err := stage.New(errOut)
	if err != nil {
		fmt.Fprintf(errOut, "e2e: %v\n", err)
		return 1
	}
	err = play(ctx, s, args, out, errOut)
	if os.Getenv("CI") == "true" {
		// The cluster goes away even when the tests were interrupted.
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, takeDown(down, s, out, errOut))
	}
	if err != nil {
		fmt.Fprintf(errOut, "e2e: %v\n", err)
		return 1
	}
	return 0
}

// play is the whole evening: the stage, the demo, the tests.
func play(ctx context.Context, s *stage.Stage, args []string, out, errOut io.Writer) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"a Kubernetes of 2 nodes", func(ctx context.Context) error { return s.ClusterUp(ctx, "2") }},
		{"images", s.Images},
		// The demo takes the bank back to before the mesh, installs it, and checks each
		// act.
		{"the demo", func(ctx context.Context) error {
			return command(ctx, s, nil, out, errOut, "go", "run", "./tests/demo", "--prepared")
		}},
		{"the mesh as this checkout has it", func(ctx context.Context) error { return s.Install(ctx) }},
		{"the tests", func(ctx context.Context) error {
			test := append([]string{"test", "-count=1", "-v", "-timeout", "30m", "-parallel", "5", "./tests/e2e/..."}, args...)
			return command(ctx, s, []string{"HAUBERK_E2E=1"}, out, errOut, "go", test...)
		}},
	} {
		start := time.Now()
		fmt.Fprintf(out, "e2e: %s\n", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(out, "e2e: %s: done in %s\n", step.name, time.Since(start).Round(100*time.Millisecond))
	}
	return nil
}

// command runs a command in the checkout's folder and shows what it says.
func command(ctx context.Context, s *stage.Stage, env []string, out, errOut io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Root, out, errOut
	cmd.Env = append(os.Environ(), env...)
	// The children are told as the shell's would be, and given time to clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	return cmd.Run()
}

// takeDown ends the cluster and wants nothing of it to be left.
func takeDown(ctx context.Context, s *stage.Stage, out, errOut io.Writer) error {
	fmt.Fprintln(out, "e2e: taking the cluster away")
	if err := command(ctx, s, nil, out, errOut, "make", "--no-print-directory", "cluster-down"); err != nil {
		return fmt.Errorf("take the cluster away: %w", err)
	}
	left, err := leftovers(ctx)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("the cluster left behind: %s", strings.Join(left, "; "))
	}
	return nil
}

// leftovers looks for the cluster's processes, mounts, links and folders.
func leftovers(ctx context.Context) ([]string, error) {
	const root = "/var/lib/hauberk-cluster"
	var left []string
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("look for mounts: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, root) {
			left = append(left, "mount "+strings.Fields(line)[1])
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, c := range commands {
		text, err := os.ReadFile(c)
		if err == nil && strings.Contains(string(text), root) {
			left = append(left, "process "+filepath.Base(filepath.Dir(c))+" "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	if _, err := os.Stat(root); err == nil {
		left = append(left, "folder "+root)
	}
	links, err := exec.CommandContext(ctx, "ip", "-o", "link").Output()
	if err != nil {
		return nil, fmt.Errorf("look for links: %w", err)
	}
	for line := range strings.Lines(string(links)) {
		if strings.Contains(line, "hauberk") {
			left = append(left, "link "+strings.TrimSpace(line))
		}
	}
	return left, nil
}
