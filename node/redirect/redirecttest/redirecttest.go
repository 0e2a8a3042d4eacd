// Package redirecttest makes network namespaces for tests that need a real
// kernel. It owns their making and removal; it never touches the network of the
// machine itself.
package redirecttest

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Namespace is a named network namespace that ends with the test.
type Namespace struct{ Name, Path string }

// NeedRoot skips the test for anybody else.
func NeedRoot(t testing.TB, what string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("not root: left out %s in real network namespaces", what)
	}
}

// New makes a namespace with loopback up.
func New(t testing.TB, role string) Namespace {
	t.Helper()
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		t.Fatal(err)
	}
	n := Namespace{Name: "hbkt-" + role + "-" + hex.EncodeToString(random[:])}
	n.Path = "/var/run/netns/" + n.Name
	IP(t, "netns", "add", n.Name)
	t.Cleanup(func() { IP(t, "netns", "del", n.Name) })
	n.IP(t, "link", "set", "lo", "up")
	return n
}

// IP runs ip(8) inside the namespace.
func (n Namespace) IP(t testing.TB, args ...string) string {
	t.Helper()
	return IP(t, append([]string{"-n", n.Name}, args...)...)
}

// Command is a command that runs inside the namespace.
func (n Namespace) Command(t testing.TB, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=" + n.Path, "--"}, args...)...)
}

// IP runs ip(8).
func IP(t testing.TB, args ...string) string {
	t.Helper()
	output, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

// Connect joins two namespaces by a veth pair called eth0 in pod and host in
// the other, with addresses of both families: the pod's are .2 and ::2.
func Connect(t testing.TB, host, pod Namespace) {
	t.Helper()
	host.IP(t, "link", "add", "host", "type", "veth", "peer", "name", "eth0", "netns", pod.Name)
	for _, end := range []struct {
		ns   Namespace
		link string
		last string
	}{{host, "host", "1"}, {pod, "eth0", "2"}} {
		end.ns.IP(t, "addr", "add", "192.0.2."+end.last+"/24", "dev", end.link)
		end.ns.IP(t, "addr", "add", "2001:db8::"+end.last+"/64", "dev", end.link, "nodad")
		end.ns.IP(t, "link", "set", end.link, "up")
	}
	pod.IP(t, "route", "add", "default", "via", "192.0.2.1")
	pod.IP(t, "-6", "route", "add", "default", "via", "2001:db8::1")
}
