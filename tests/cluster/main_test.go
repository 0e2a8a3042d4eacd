//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

func TestNodeCount(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
		err  string
	}{
		{nil, 2, ""},
		{[]string{""}, 2, ""},
		{[]string{"3"}, 3, ""},
		{[]string{"three"}, 0, "NODES=three is not a number: try NODES=3"},
		{[]string{"1", "2"}, 0, `up takes a number of nodes and no more, not ["1" "2"]`},
	} {
		got, err := nodeCount(test.args)
		if message(err) != test.err || got != test.want {
			t.Errorf("nodeCount(%q) = %d, %q, want %d, %q", test.args, got, message(err), test.want, test.err)
		}
	}
}

func TestNodeCommand(t *testing.T) {
	for _, test := range []struct {
		args, command []string
		space, err    string
	}{
		{args: nil, err: "which node? exec-node NODE -- CMD..."},
		{args: []string{"node1"}, space: "", err: "run what in node1? exec-node node1 -- CMD"},
		{args: []string{"node1", "--"}, err: "run what in node1? exec-node node1 -- CMD"},
		{args: []string{"node1", "--", "ip", "--", "x"}, space: "node1", command: []string{"ip", "--", "x"}},
		{args: []string{"node2", "ip"}, space: "node2", command: []string{"ip"}},
	} {
		space, command, err := nodeCommand(test.args)
		if message(err) != test.err {
			t.Errorf("nodeCommand(%q): %q, want %q", test.args, message(err), test.err)
		}
		if err == nil && (space != test.space || !cmp.Equal(command, test.command)) {
			t.Errorf("nodeCommand(%q) = %q, %q", test.args, space, command)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestLifecycle takes a real cluster through all that may happen to one. It
// takes some minutes and replaces whatever cluster the machine runs, so it is
// asked for by HAUBERK_CLUSTER_TEST=1.
func TestLifecycle(t *testing.T) {
	if os.Getenv("HAUBERK_CLUSTER_TEST") == "" {
		t.Skip("left out: a real cluster through crashes and replacement (HAUBERK_CLUSTER_TEST=1, as root)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("HAUBERK_CLUSTER_TEST=1 needs root")
	}
	h := newHarness(t)
	h.must(0, "down")
	h.nothingLeft()
	before := h.machine()

	h.must(0, "up", "2")
	first := h.uid()
	begun := time.Now()
	h.must(0, "up", "2")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("up of a whole cluster took %s", took)
	}
	h.same(first, "up of a whole cluster")
	h.must(0, "status")

	t.Run("a killed component comes back and objects stay", func(t *testing.T) {
		h := h.in(t)
		for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd-node1", "kubelet-node2", "kube-proxy-node1"} {
			h.kill(name)
			h.must(1, "status")
			h.must(0, "up", "2")
			h.same(first, "after kill -9 of "+name)
		}
	})
	t.Run("everything killed at once comes back", func(t *testing.T) {
		h := h.in(t)
		for _, name := range h.components() {
			h.kill(name)
		}
		h.must(0, "up", "2")
		h.same(first, "after kill -9 of everything")
	})
	t.Run("a lost state folder is written again", func(t *testing.T) {
		h := h.in(t)
		if err := os.RemoveAll(filepath.Join(h.checkout, ".cluster")); err != nil {
			t.Fatal(err)
		}
		h.must(0, "up", "2")
		h.same(first, "after the loss of .cluster")
	})
	t.Run("a link taken away is a new cluster", func(t *testing.T) {
		h := h.in(t)
		h.run("ip", "link", "del", plan.HostLink)
		h.must(0, "up", "2")
		if h.uid() == first {
			t.Error("the cluster was not replaced")
		}
	})
	t.Run("a program killed half way leaves nothing in the way", func(t *testing.T) {
		h := h.in(t)
		for _, delay := range []time.Duration{200 * time.Millisecond, time.Second, 4 * time.Second} {
			h.must(0, "down")
			cmd := h.command("up", "2")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Where it is killed does not matter, only that it is not at the end.
			time.Sleep(delay)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			h.must(0, "down")
			h.nothingLeft()
		}
	})
	t.Run("two at once do not meet", func(t *testing.T) {
		h := h.in(t)
		one, two := h.command("up", "2"), h.command("up", "2")
		if err := errors.Join(one.Start(), two.Start()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(one.Wait(), two.Wait()); err != nil {
			t.Fatalf("%v\n%s\n%s", err, one.Stderr, two.Stderr)
		}
	})
	t.Run("another number of nodes", func(t *testing.T) {
		h := h.in(t)
		h.must(0, "up", "3")
		if out := h.kubectl("get", "nodes", "--output=name"); out != "node/node1\nnode/node2\nnode/node3" {
			t.Errorf("nodes are %q", out)
		}
	})
	t.Run("another checkout", func(t *testing.T) {
		h, other := h.in(t), newHarness(t)
		other.must(0, "up", "1")
		h.must(1, "load", h.program)
		h.must(1, "exec-node", "node1", "--", "true")
		if _, err := os.Stat(filepath.Join(h.checkout, ".cluster", "kubeconfig")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the replaced cluster's kubeconfig is still there: %v", err)
		}
		h.must(0, "up", "2")
	})
	t.Run("a component that ends at once is named", func(t *testing.T) {
		h := h.in(t)
		h.must(0, "down")
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "etcd"), []byte("#!/bin/sh\necho out of luck\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := h.command("up", "2")
		cmd.Env = append(cmd.Env, "PATH="+bin+":"+os.Getenv("PATH"))
		if err := cmd.Run(); err == nil {
			t.Fatal("up without a working etcd succeeded")
		}
		said := cmd.Stderr.(*strings.Builder).String()
		for _, want := range []string{"etcd ended right after its start", "out of luck", filepath.Join(h.checkout, ".cluster/logs/etcd.log")} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is not in:\n%s", want, said)
			}
		}
		h.must(0, "up", "2")
	})
	t.Run("a command left in a node does not outlive it", func(t *testing.T) {
		h := h.in(t)
		cmd := h.command("exec-node", "node1", "--", "sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		h.must(0, "down")
		_ = cmd.Wait() // killed by down
		h.nothingLeft()
	})
	h.must(0, "down")
	if diff := cmp.Diff(before, h.machine()); diff != "" {
		t.Errorf("the machine is not as before (-before +after):\n%s", diff)
	}
}

// harness runs the program in a checkout of its own.
type harness struct {
	t        *testing.T
	checkout string
	program  string
}

// newHarness makes a checkout which has the cluster's modules only.
func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, checkout: t.TempDir()}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"kubernetes", "coredns", "pause"} {
		if err := os.CopyFS(filepath.Join(h.checkout, "tests", "cluster", module), os.DirFS(filepath.Join(wd, module))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(h.checkout, "tests", "cluster"), modFiles(t, wd)); err != nil {
		t.Fatal(err)
	}
	h.program = filepath.Join(h.checkout, "program")
	h.run("go", "build", "-trimpath", "-ldflags=-s -w", "-o", h.program, ".")
	return h
}

// modFiles are the program's own go.mod and go.sum, which pause builds with.
func modFiles(t *testing.T, dir string) fs.FS {
	t.Helper()
	only := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(only, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return os.DirFS(only)
}

// in is the same harness for a sub-test.
func (h *harness) in(t *testing.T) *harness {
	return &harness{t: t, checkout: h.checkout, program: h.program}
}

func (h *harness) command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.program, args...)
	cmd.Dir = h.checkout
	cmd.Env = append(os.Environ(), "CI=1")
	cmd.Stderr = new(strings.Builder)
	return cmd
}

func (h *harness) must(code int, args ...string) {
	h.t.Helper()
	cmd := h.command(args...)
	begun := time.Now()
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		h.t.Fatalf("%s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, cmd.Stderr)
	}
	h.t.Logf("%s: %s", strings.Join(args, " "), time.Since(begun).Round(10*time.Millisecond))
}

func (h *harness) run(command ...string) string {
	h.t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (h *harness) kubectl(args ...string) string {
	h.t.Helper()
	state := filepath.Join(h.checkout, ".cluster")
	return h.run(append([]string{filepath.Join(state, "bin", "kubectl"), "--kubeconfig=" + filepath.Join(state, "kubeconfig")}, args...)...)
}

// uid tells clusters apart.
func (h *harness) uid() string {
	h.t.Helper()
	return h.kubectl("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
}

func (h *harness) same(uid, when string) {
	h.t.Helper()
	if got := h.uid(); got != uid {
		h.t.Errorf("%s: cluster %s, want %s", when, got, uid)
	}
}

func (h *harness) components() []string {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(plan.PIDDir(), "*.json"))
	if err != nil || len(files) == 0 {
		h.t.Fatalf("no components: %v", err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	return names
}

// kill -9 by the PID which the program itself has written down.
func (h *harness) kill(name string) {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(plan.PIDDir(), name+".json"))
	if err != nil {
		h.t.Fatal(err)
	}
	var p struct{ PID int }
	if err := json.Unmarshal(text, &p); err != nil {
		h.t.Fatal(err)
	}
	h.run("kill", "-9", strconv.Itoa(p.PID))
	deadline := time.Now().Add(10 * time.Second)
	for host.PID(name) != 0 {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s survives kill -9", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (h *harness) nothingLeft() {
	h.t.Helper()
	left, err := host.Leftovers()
	if err != nil {
		h.t.Fatal(err)
	}
	if len(left) > 0 {
		h.t.Errorf("left: %s", strings.Join(left, "; "))
	}
}

// machine is what must be the same after a cluster as before: links,
// addresses, routes, rules, mounts, cgroups, folders and the settings of the
// kernel which the cluster's components like to change.
func (h *harness) machine() map[string]string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	seen := map[string]string{}
	for _, command := range []string{
		"ip -o link | sed 's/ qlen.*//'", "ip -o addr | awk '{print $2,$3,$4}'", "ip route", "ip -6 route | sort", "nft list ruleset",
		"awk '{print $5,$9}' /proc/self/mountinfo | sort",
		"find /sys/fs/cgroup -name hauberk* -type d", "ls -d /etc/cni /opt/cni /var/lib/cni /var/lib/kubelet /var/lib/containerd /var/lib/hauberk* /var/log/pods /var/log/containers /run/hauberk* /run/netns 2>/dev/null || true",
		"cat /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops /proc/sys/vm/overcommit_memory /proc/sys/vm/panic_on_oom /proc/sys/kernel/keys/root_max*",
		"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv4/conf/all/rp_filter /proc/sys/net/netfilter/nf_conntrack_max 2>/dev/null || true",
	} {
		out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
		if err != nil {
			h.t.Fatalf("%s: %v\n%s", command, err, out)
		}
		seen[command] = string(out)
	}
	return seen
}
