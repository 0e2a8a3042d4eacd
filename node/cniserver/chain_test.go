package cniserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/redirect/redirecttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buildPlugin builds the real plugin once for all tests.
var buildPlugin = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "hauberk-cni")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir+"/plugin", "../../cmd/hauberk-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the plugin: %w: %s", err, output)
	}
	return os.ReadFile(dir + "/plugin")
})

// primaryPlugins is where Debian's containernetworking-plugins has them.
const primaryPlugins = "/usr/lib/cni"

// firewall records what it is asked, and fails when told to.
type firewall struct {
	mu     sync.Mutex
	pods   map[string]cniserver.Pod
	fail   error
	onAdd  func(cniserver.Pod)
	remove []string
}

func (f *firewall) AddPod(_ context.Context, p cniserver.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onAdd != nil {
		f.onAdd(p)
	}
	if f.fail != nil {
		return f.fail
	}
	f.pods[p.ContainerID] = p
	return nil
}

func (f *firewall) RemovePod(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove = append(f.remove, id)
	delete(f.pods, id)
	return nil
}

func (f *firewall) pod(id string) (cniserver.Pod, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.pods[id]
	return p, ok
}

func (f *firewall) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// workloads is what the control plane told; Wait sees later additions.
type workloads struct {
	mu   sync.Mutex
	byID map[string]*hauberkv1.Workload
	more chan struct{}
}

func (w *workloads) Known(uid string) (*hauberkv1.Workload, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found, ok := w.byID[uid]
	return found, ok
}

func (w *workloads) Wait(ctx context.Context, uid string) (*hauberkv1.Workload, error) {
	for {
		w.mu.Lock()
		more := w.more
		found, ok := w.byID[uid]
		w.mu.Unlock()
		if ok {
			return found, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *workloads) tell(load *hauberkv1.Workload) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byID[load.GetUid()] = load
	close(w.more)
	w.more = make(chan struct{})
}

// node is a host's network namespace with an agent's socket and the plugins.
type node struct {
	host       redirecttest.Namespace
	dir        string
	socket     string
	cni        *libcni.CNIConfig
	fw         *firewall
	known      *workloads
	attached   *cniserver.Attachments
	redirector *redirect.Redirector
	stop       func()
	server     *cniserver.Server
	readyErr   error
}

func newNode(t *testing.T) *node {
	t.Helper()
	redirecttest.NeedRoot(t, "chained CNI plugins")
	if _, err := os.Stat(primaryPlugins + "/ptp"); err != nil {
		t.Skipf("left out chained CNI plugins: %v; apt install containernetworking-plugins", err)
	}
	n := &node{
		host: redirecttest.New(t, "host"), dir: t.TempDir(),
		fw:    &firewall{pods: map[string]cniserver.Pod{}},
		known: &workloads{byID: map[string]*hauberkv1.Workload{}, more: make(chan struct{})},
	}
	n.socket = n.dir + "/run/cni.sock"
	plugin, err := buildPlugin()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.dir+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.dir+"/bin/hauberk-cni", plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.dir + "/bin", primaryPlugins}, n.dir+"/cache", nil)
	if n.redirector, err = redirect.New(redirect.Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	return n
}

// start begins an agent, as after a restart.
func (n *node) start(t *testing.T) {
	t.Helper()
	var err error
	if n.attached, err = cniserver.OpenAttachments(n.dir + "/run/pods"); err != nil {
		t.Fatal(err)
	}
	n.server, err = cniserver.New(cniserver.Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Socket: n.socket, Attachments: n.attached,
		Redirector: n.redirector, Firewall: n.fw, Workloads: n.known,
		Bootstrap: func(ns string) bool { return ns == "kube-system" },
		Ready:     func() error { return n.readyErr },
		Wait:      2 * time.Second,
		HostInterface: func(netns, name string) (string, error) {
			var host string
			err := redirect.Enter(n.host.Path, func() error {
				var err error
				host, err = redirect.HostInterface(netns, name)
				return err
			})
			return host, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.server.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	t.Cleanup(n.stop)
	select {
	case <-n.server.Serving():
	case <-time.After(5 * time.Second):
		t.Fatal("the server does not serve")
	}
}

// conflist4 is ptp without IPv6, whose duplicate address detection takes
// seconds.
func (n *node) conflist4(t *testing.T) *libcni.NetworkConfigList {
	t.Helper()
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "pods", "plugins": [
		{"type": "ptp", "ipam": {"type": "host-local", "dataDir": %q, "subnet": "10.79.0.0/24"}},
		{"type": "hauberk-cni", "socket": %q}]}`, n.dir+"/ipam", n.socket)
	list, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// conflist chains our plugin after a primary one, with both address families.
func (n *node) conflist(t *testing.T, version, primary string) *libcni.NetworkConfigList {
	t.Helper()
	text := fmt.Sprintf(`{"cniVersion": %[1]q, "name": "pods", "plugins": [
		{"type": %[2]q, %[3]s "ipam": {"type": "host-local", "dataDir": %[5]q, "ranges": [[{"subnet": "10.%[4]d.0.0/24"}], [{"subnet": "fd%[4]d::/64"}]],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
		{"type": "hauberk-cni", "socket": %[6]q}]}`,
		version, primary, map[string]string{"ptp": "", "bridge": `"bridge": "hbkt0", "isGateway": true,`}[primary],
		map[string]int{"ptp": 77, "bridge": 78}[primary], n.dir+"/ipam-"+primary, n.socket)
	list, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func runtimeConf(id string, ns redirecttest.Namespace, args ...[2]string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path, IfName: "eth0", Args: append([][2]string{{"IgnoreUnknown", "1"}}, args...)}
}

func podArgs(namespace, name, uid string) [][2]string {
	return [][2]string{{"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", uid}, {"K8S_POD_INFRA_CONTAINER_ID", "x"}}
}

// onHost runs do on a thread in the node's network namespace, so that the
// plugins that libcni starts are there.
func (n *node) onHost(t *testing.T, do func() error) error {
	t.Helper()
	return redirect.Enter(n.host.Path, do)
}

func (n *node) add(t *testing.T, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (*current.Result, error) {
	t.Helper()
	var result *current.Result
	err := n.onHost(t, func() error {
		r, err := n.cni.AddNetworkList(t.Context(), list, rt)
		if err != nil {
			return err
		}
		result, err = current.NewResultFromResult(r)
		return err
	})
	return result, err
}

// reach polls until the pod itself answers that nobody listens. A new bridge's
// IPv6 address is tentative for a while (RFC 4862 section 5.4).
func (n *node) reach(t *testing.T, a netip.Addr) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := n.onHost(t, func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 80).String(), 500*time.Millisecond)
			if err == nil {
				c.Close()
			}
			return err
		})
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("dial %s: %v, want refused", a, err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *node) del(t *testing.T, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	t.Helper()
	return n.onHost(t, func() error { return n.cni.DelNetworkList(t.Context(), list, rt) })
}

func meshed(uid string) *hauberkv1.Workload {
	return &hauberkv1.Workload{Uid: uid, Namespace: "bank", Name: "customer", Meshed: true,
		Capture: &hauberkv1.Capture{ExcludeOutboundPorts: []uint32{5432}, ExcludeOutboundCidrs: []string{"203.0.113.0/24"}}}
}

func TestChainedAdd(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct{ primary, version string }{
		{"ptp", "1.0.0"}, {"bridge", "1.0.0"}, {"ptp", "0.3.1"}, {"ptp", "0.4.0"},
	} {
		t.Run(c.primary+" "+c.version, func(t *testing.T) {
			pod := redirecttest.New(t, "pod")
			id, uid := "c-"+pod.Name, "uid-"+pod.Name
			list := n.conflist(t, c.version, c.primary)
			rt := runtimeConf(id, pod, podArgs("bank", "customer", uid)...)
			n.known.tell(meshed(uid))

			rulesFirst := false
			n.fw.mu.Lock()
			n.fw.onAdd = func(p cniserver.Pod) {
				rulesFirst = p.Redirect != nil && n.redirector.Check(t.Context(), pod.Path, *p.Redirect) == nil
			}
			n.fw.mu.Unlock()
			result, err := n.add(t, list, rt)
			if err != nil {
				t.Fatal(err)
			}
			if !rulesFirst {
				t.Error("the firewall was asked before the redirection was in place")
			}
			got, ok := n.fw.pod(id)
			if !ok {
				t.Fatal("the firewall was not asked")
			}
			var addresses []netip.Addr
			for _, ip := range result.IPs {
				a, _ := netip.AddrFromSlice(ip.Address.IP)
				addresses = append(addresses, a.Unmap())
			}
			want := cniserver.Attachment{
				ContainerID: id, Netns: pod.Path, Interface: "eth0", HostInterface: got.HostInterface,
				Namespace: "bank", Name: "customer", UID: uid, Addresses: addresses,
				Redirect: &redirect.Rules{ExcludeOutboundPorts: []uint16{5432}, ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
			}
			compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			comparePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if diff := cmp.Diff(want, got.Attachment, compare, comparePrefix); diff != "" {
				t.Errorf("attachment (-want +got):\n%s", diff)
			}
			if len(addresses) != 2 {
				t.Errorf("addresses %v, want one of each family", addresses)
			}
			if !strings.Contains(n.host.IP(t, "-d", "link", "show", got.HostInterface), "veth") {
				t.Errorf("%s is not the pod's veth", got.HostInterface)
			}
			for _, a := range addresses {
				n.reach(t, a)
			}
			if c.version != "0.3.1" {
				if err := n.onHost(t, func() error { return n.cni.CheckNetworkList(t.Context(), list, rt) }); err != nil {
					t.Errorf("check: %v", err)
				}
				if err := n.redirector.Remove(t.Context(), pod.Path); err != nil {
					t.Fatal(err)
				}
				if err := n.onHost(t, func() error { return n.cni.CheckNetworkList(t.Context(), list, rt) }); err == nil {
					t.Error("check passes without redirection")
				}
			}
			for range 2 {
				if err := n.del(t, list, rt); err != nil {
					t.Fatalf("delete: %v", err)
				}
			}
			if _, ok := n.fw.pod(id); ok {
				t.Error("the firewall still has the pod")
			}
			if left := n.attached.List(); len(left) != 0 {
				t.Errorf("attachments left: %v", left)
			}
		})
	}
}

func TestAddFails(t *testing.T) {
	n := newNode(t)
	list := n.conflist4(t)
	full := podArgs("bank", "customer", "u1")
	for _, c := range []struct {
		name    string
		args    [][2]string
		prepare func()
		code    uint
		want    string
	}{
		{"not Kubernetes", nil, nil, types.ErrInvalidEnvironmentVariables, "K8S_POD_NAMESPACE is missing"},
		{"no uid", full[:2], nil, types.ErrInvalidEnvironmentVariables, "K8S_POD_UID is missing"},
		{"never told", podArgs("bank", "customer", "u0"), nil, types.ErrTryAgainLater, "the control plane has not told about pod bank/customer (u0) yet"},
		{"somebody else's uid", podArgs("bank", "other", "u1"), func() { n.known.tell(meshed("u1")) }, types.ErrInvalidEnvironmentVariables, "is bank/customer to the control plane"},
		{"bad annotation", podArgs("bank", "customer", "u2"), func() {
			w := meshed("u2")
			w.Capture.ExcludeInboundPorts = []uint32{70000}
			n.known.tell(w)
		}, types.ErrInternal, "port 70000"},
		{"firewall", full, func() { n.fw.setFail(errors.New("nft: no such table")) }, types.ErrInternal, "no such table"},
		{"agent away", full, func() { n.stop() }, types.ErrTryAgainLater, "the hauberk node agent is not answering on " + n.socket},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := redirecttest.New(t, "pod")
			if c.prepare != nil {
				c.prepare()
			}
			rt := runtimeConf("c-"+pod.Name, pod, c.args...)
			_, err := n.add(t, list, rt)
			var cniErr *types.Error
			if !errors.As(err, &cniErr) {
				t.Fatalf("got %v, want a CNI error", err)
			}
			if cniErr.Code != c.code || !strings.Contains(cniErr.Msg, c.want) {
				t.Errorf("got code %d, %q; want code %d and %q", cniErr.Code, cniErr.Msg, c.code, c.want)
			}
			// What a runtime does next, agent or not.
			if err := n.del(t, list, rt); err != nil {
				t.Errorf("delete after the failure: %v", err)
			}
		})
	}
}

func TestNotChained(t *testing.T) {
	n := newNode(t)
	pod := redirecttest.New(t, "pod")
	list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"hauberk-cni"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.add(t, list, runtimeConf("c", pod, podArgs("a", "b", "c")...)); err == nil || !strings.Contains(err.Error(), "must be chained") {
		t.Errorf("got %v", err)
	}
}

func TestWaitsForTheControlPlane(t *testing.T) {
	n := newNode(t)
	pod := redirecttest.New(t, "pod")
	list := n.conflist4(t)
	done := make(chan error, 1)
	go func() {
		_, err := n.add(t, list, runtimeConf("c1", pod, podArgs("bank", "customer", "late")...))
		done <- err
	}()
	// The attachment is on disk before anything is known of the pod.
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, err := os.Stat(n.dir + "/run/pods/c1.json"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no attachment on disk")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, ok := n.fw.pod("c1"); ok {
		t.Error("the firewall was asked before the pod was known")
	}
	n.known.tell(meshed("late"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	at, _ := n.attached.Find("c1")
	if !at.Complete || at.Redirect == nil {
		t.Errorf("attachment %+v is not complete", at)
	}
	if info, err := os.Stat(n.socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info, err)
	}
	if info, err := os.Stat(filepath.Dir(n.socket)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("socket's folder: %v %v", info, err)
	}
}

func TestBootstrapDoesNotWait(t *testing.T) {
	n := newNode(t)
	pod := redirecttest.New(t, "pod")
	list := n.conflist4(t)
	rt := runtimeConf("c1", pod, podArgs("kube-system", "coredns", "u9")...)
	if _, err := n.add(t, list, rt); err != nil {
		t.Fatal(err)
	}
	got, ok := n.fw.pod("c1")
	if !ok || !got.Bootstrap || got.Workload != nil || got.Redirect != nil {
		t.Errorf("the firewall got %+v, %v", got, ok)
	}
}

func TestRestartCollectRepair(t *testing.T) {
	n := newNode(t)
	list := n.conflist4(t)
	kept, gone := redirecttest.New(t, "kept"), redirecttest.New(t, "pod")
	doomed := "/var/run/netns/" + gone.Name + "x"
	redirecttest.IP(t, "netns", "add", gone.Name+"x")
	for id, path := range map[string]string{"kept": kept.Path, "gone": doomed} {
		n.known.tell(meshed(id))
		rt := runtimeConf(id, redirecttest.Namespace{Path: path}, podArgs("bank", "customer", id)...)
		if _, err := n.add(t, list, rt); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()
	redirecttest.IP(t, "netns", "del", gone.Name+"x")
	// Deleting while the agent is away must not be an error.
	if err := n.del(t, list, runtimeConf("gone", redirecttest.Namespace{}, podArgs("bank", "customer", "gone")...)); err != nil {
		t.Errorf("delete while the agent is away: %v", err)
	}
	if err := n.redirector.Remove(t.Context(), kept.Path); err != nil {
		t.Fatal(err)
	}

	n.start(t)
	if got := len(n.attached.List()); got != 2 {
		t.Fatalf("%d attachments after the restart, want 2", got)
	}
	if err := n.server.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.server.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	at, ok := n.attached.Find("kept")
	if !ok || len(n.attached.List()) != 1 {
		t.Fatalf("attachments %v, want the kept one", n.attached.List())
	}
	if err := n.redirector.Check(t.Context(), kept.Path, *at.Redirect); err != nil {
		t.Errorf("not repaired: %v", err)
	}
}

// The version of libcni's own plugins here may not speak 1.1, so that GC and
// STATUS are asked of our plugin alone, as libcni would.
func TestGarbageCollectionAndStatus(t *testing.T) {
	n := newNode(t)
	pod := redirecttest.New(t, "pod")
	list := n.conflist4(t)
	n.known.tell(meshed("alive"))
	if _, err := n.add(t, list, runtimeConf("alive", pod, podArgs("bank", "customer", "alive")...)); err != nil {
		t.Fatal(err)
	}
	if err := n.attached.Put(cniserver.Attachment{ContainerID: "dead", Netns: "/var/run/netns/none", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	alone := func(extra string) string {
		return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","type":"hauberk-cni","socket":%q%s}`, n.socket, extra)
	}
	run := func(command, stdin string) (string, error) {
		c := exec.CommandContext(t.Context(), n.dir+"/bin/hauberk-cni")
		c.Env = []string{"CNI_COMMAND=" + command, "CNI_PATH=" + n.dir + "/bin"}
		c.Stdin = strings.NewReader(stdin)
		output, err := c.Output()
		return string(output), err
	}
	// "alive" is not named, but its network namespace is: it must keep its rules.
	if output, err := run("GC", alone(`,"cni.dev/valid-attachments":[]`)); err != nil {
		t.Fatalf("gc: %v: %s", err, output)
	}
	if _, ok := n.attached.Find("dead"); ok {
		t.Error("the dead attachment was kept")
	}
	if _, ok := n.fw.pod("alive"); !ok {
		t.Error("a living pod lost its rules")
	}
	if output, err := run("STATUS", alone("")); err != nil {
		t.Errorf("status: %v: %s", err, output)
	}
	n.readyErr = errors.New("no control plane")
	output, err := run("STATUS", alone(""))
	var e types.Error
	if err == nil || json.Unmarshal([]byte(output), &e) != nil || e.Code != types.ErrPluginNotAvailable || !strings.Contains(e.Msg, "no control plane") {
		t.Errorf("status when not ready: %v %s", err, output)
	}
	n.stop()
	if output, err := run("STATUS", alone("")); err == nil || !strings.Contains(output, `"code": 50`) {
		t.Errorf("status when away: %v %s", err, output)
	}
	output, err = run("VERSION", `{"cniVersion":"1.1.0"}`)
	if err != nil || !strings.Contains(output, `"0.3.1"`) || !strings.Contains(output, `"1.1.0"`) {
		t.Errorf("version: %v %s", err, output)
	}
}

func TestSocketIsForRoot(t *testing.T) {
	n := newNode(t)
	// Open every door but the last.
	for path, mode := range map[string]os.FileMode{n.socket: 0o666, filepath.Dir(n.socket): 0o755, n.dir: 0o755, filepath.Dir(n.dir): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[string]bool{"0": true, "65534": false} {
		// A gRPC server that takes the connection sends its settings first.
		c := exec.CommandContext(t.Context(), "setpriv", "--reuid", uid, "--clear-groups", "perl", "-MIO::Socket::UNIX", "-e",
			`$SIG{PIPE} = "IGNORE"; $s = IO::Socket::UNIX->new(Peer => shift) or die "connect: $!"; print $s "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"; $s->flush; $n = sysread($s, $b, 9); print $n ? "served" : "refused"`, n.socket)
		output, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		if got := string(output) == "served"; got != want {
			t.Errorf("uid %s: %s", uid, output)
		}
	}
}
