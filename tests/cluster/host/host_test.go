package host

import (
	"bufio"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

func TestParseHierarchies(t *testing.T) {
	for name, test := range map[string]struct {
		mounts string
		want   []hierarchy
	}{
		"version 2": {
			mounts: "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
			want:   []hierarchy{{dir: "/sys/fs/cgroup", v2: true}},
		},
		"hybrid": {
			mounts: "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
			want: []hierarchy{
				{dir: "/sys/fs/cgroup/cpuset"},
				{dir: "/sys/fs/cgroup/unified", v2: true},
			},
		},
		"mounted twice, and elsewhere": {
			mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\ncgroup2 /mnt/cgroup cgroup2 rw 0 0\n",
			want:   []hierarchy{{dir: "/sys/fs/cgroup", v2: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseHierarchies(bufio.NewScanner(strings.NewReader(test.mounts)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("hierarchies (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMountPointsAreTheClustersOwn(t *testing.T) {
	got := parseMountPoints(`30 1 254:0 / / rw - ext4 /dev/vda rw
31 30 0:40 / /var/lib/hauberk-cluster/ns rw - tmpfs hauberk-cluster rw
32 31 0:4 net:[1] /var/lib/hauberk-cluster/ns/node1.net rw - nsfs nsfs rw
33 30 0:41 / /var/lib/hauberk-cluster-of-another rw - tmpfs x rw
34 30 0:42 / /var/lib/hauberk rw - tmpfs x rw
`)
	if diff := cmp.Diff([]string{"/var/lib/hauberk-cluster/ns", "/var/lib/hauberk-cluster/ns/node1.net"}, got); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func TestFirstFreeUnderlay(t *testing.T) {
	candidates := plan.Candidates()
	prefixes := func(texts ...string) (ps []netip.Prefix) {
		for _, text := range texts {
			ps = append(ps, netip.MustParsePrefix(text))
		}
		return ps
	}
	for name, test := range map[string]struct {
		taken []netip.Prefix
		want  int // index into candidates, or -1
	}{
		"nothing":                {nil, 0},
		"a default route":        {prefixes("0.0.0.0/0", "::/0", "192.168.0.0/24"), 0},
		"an address within":      {prefixes("10.101.77.9/32"), 1},
		"an IPv6 network around": {prefixes("fd6a:7562:65::/48"), 1},
		"a VPN over all":         {prefixes("10.0.0.0/8"), -1},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := firstFree(candidates, test.taken)
			if ok != (test.want >= 0) {
				t.Fatalf("firstFree = %v, %v", got, ok)
			}
			if ok && got != candidates[test.want] {
				t.Errorf("firstFree = %v, want %v", got, candidates[test.want])
			}
		})
	}
}

func TestNetworkTouchesTheMachineOnceOnly(t *testing.T) {
	c := plan.Cluster{Nodes: 3, Underlay: plan.Candidates()[0]}
	for _, dual := range []bool{false, true} {
		c.DualStack = dual
		steps := networkSteps(c)
		if len(steps) != 5 {
			t.Fatalf("%d steps, want one for the machine, the control plane and each node", len(steps))
		}
		for i, s := range steps {
			if (s.space == "") != (i == 0) {
				t.Errorf("step %d is in %q", i, s.space)
			}
			for _, line := range append(s.ip, s.sysctls...) {
				if !dual && (strings.Contains(line, "::") || strings.Contains(line, "ipv6")) {
					t.Errorf("IPv6 without IPv6: %s", line)
				}
			}
		}
		if len(steps[0].sysctls) > 0 {
			t.Errorf("the machine's settings are changed: %v", steps[0].sysctls)
		}
		for _, line := range steps[0].ip {
			if !strings.Contains(line, plan.HostLink) {
				t.Errorf("the machine's network is changed beyond the one link: %s", line)
			}
		}
	}
}

func TestProcessStartTellsProcessesApart(t *testing.T) {
	start, state := processStart(os.Getpid())
	if _, err := strconv.ParseUint(start, 10, 64); err != nil || state == "" {
		t.Errorf("processStart of this process = %q, %q", start, state)
	}
	if parent(os.Getpid()) != os.Getppid() {
		t.Errorf("parent = %d, want %d", parent(os.Getpid()), os.Getppid())
	}
	// A name with spaces and parentheses must not confuse.
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(t.TempDir(), "a) b (c")
	if err := os.Symlink(sleep, odd); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(odd, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if start, _ := processStart(cmd.Process.Pid); start == "" || start == "0" {
		t.Errorf("start of %q = %q", odd, start)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if start, _ := processStart(cmd.Process.Pid); start != "" {
		t.Errorf("a process that is gone started at %q", start)
	}
}

func TestLockIsOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	r := report.New(new(strings.Builder), false)
	var held, most int
	done := make(chan error)
	guard := make(chan struct{}, 1)
	for range 8 {
		go func() {
			for range 20 {
				l, err := AcquireLock(path, r)
				if err != nil {
					done <- err
					return
				}
				guard <- struct{}{}
				held++
				most = max(most, held)
				<-guard
				time.Sleep(time.Millisecond)
				guard <- struct{}{}
				held--
				<-guard
				l.Release()
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if most != 1 {
		t.Errorf("%d held the lock at once", most)
	}
	if exists(path) {
		t.Error("the lock's file is left")
	}
}

func TestSwitchOffDAD(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out as non-root: duplicate address detection in a network namespace")
	}
	if !HasIPv6() {
		t.Skip("left out: the kernel has no IPv6")
	}
	cmd := exec.Command("unshare", "--net", "sh", "-c", "echo ready; read wait; cat /proc/sys/net/ipv6/conf/default/accept_dad")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/accept_dad")
	if err != nil {
		t.Fatal(err)
	}
	if err := switchOffDAD("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net"); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if got != "0\n" {
		t.Errorf("accept_dad in the namespace is %q", got)
	}
	_ = cmd.Wait() // its output was read
	if after, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/accept_dad"); err != nil || string(after) != string(before) {
		t.Errorf("accept_dad of the machine went from %q to %q: %v", before, after, err)
	}
}
