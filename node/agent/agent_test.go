package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/node/agent"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/redirect/redirecttest"
	"github.com/hauberk-mesh/hauberk/policy"
)

const (
	typeMesh     = hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	typeWorkload = hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	typePolicy   = hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
	primary      = "/usr/lib/cni"
	subnet       = "10.66.0.0/24"
)

// binaries are the real programs, built once.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hauberk-node")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"hauberk-node", "hauberk-cni"} {
		build := exec.Command("go", "build", "-o", dir+"/"+name, "../../cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w: %s", name, err, output)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if os.Getuid() == 0 { // nobody else built them
			dir, _ := binaries()
			os.RemoveAll(dir)
		}
		os.Exit(code)
	}))
}

// machine is a node: a network namespace, the runtime's folders, the agent as a
// process of its own and a control plane.
type machine struct {
	t       *testing.T
	host    redirecttest.Namespace
	dir     string
	control *controlPlane
	log     *bytes.Buffer
	cni     *libcni.CNIConfig
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	redirecttest.NeedRoot(t, "the whole node agent")
	if _, err := os.Stat(primary + "/ptp"); err != nil {
		t.Skipf("left out the whole node agent: %v; apt install containernetworking-plugins", err)
	}
	if _, err := binaries(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, host: redirecttest.New(t, "host"), dir: t.TempDir(), control: newControlPlane(t, "node1"), log: &bytes.Buffer{}}
	if output, err := m.host.Command(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward").CombinedOutput(); err != nil {
		t.Fatalf("forwarding: %v: %s", err, output)
	}
	for _, d := range []string{"net.d", "bin"} {
		if err := os.Mkdir(filepath.Join(m.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("token", "a token")
	m.write("net.d/10-pods.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","plugins":[
  {"type":"ptp","ipam":{"type":"host-local","dataDir":%q,"subnet":%q,"routes":[{"dst":"0.0.0.0/0"}]}}
]}`, m.dir+"/ipam", subnet))
	m.cni = libcni.NewCNIConfigWithCacheDir([]string{m.dir + "/bin", primary}, m.dir+"/cache", nil)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent's log:\n%s", m.log)
		}
	})
	return m
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// trust publishes the trust bundle, as the control plane does when it first
// runs.
func (m *machine) trust() { m.write("ca.crt", string(m.control.authority.RootsPEM())) }

// listen is the control plane's address, inside the node's namespace.
func (m *machine) listen() net.Listener {
	m.t.Helper()
	var l net.Listener
	if err := redirect.Enter(m.host.Path, func() error {
		var err error
		l, err = net.Listen("tcp", "127.0.0.1:15012")
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	return l
}

func (m *machine) command(args ...string) *exec.Cmd {
	dir, _ := binaries()
	c := m.host.Command(m.t, append([]string{dir + "/hauberk-node"}, args...)...)
	return c
}

func (m *machine) flags() []string {
	return []string{"--run-dir", m.dir + "/run", "--cni-conf-dir", m.dir + "/net.d", "--cni-bin-dir", m.dir + "/bin"}
}

// start begins an agent; stop, or kill -9, ends it.
func (m *machine) start() (end func(syscall.Signal)) {
	m.t.Helper()
	c := m.command(append([]string{"run", "--node-name", "node1", "--control-address", "127.0.0.1:15012",
		"--trust-bundle", m.dir + "/ca.crt", "--token-file", m.dir + "/token", "--log-level", "debug"}, m.flags()...)...)
	c.Stderr = m.log
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	var once sync.Once
	end = func(signal syscall.Signal) {
		once.Do(func() {
			_ = c.Process.Signal(signal)
			_ = c.Wait() // says how it ended, which is known
		})
	}
	m.t.Cleanup(func() { end(syscall.SIGKILL) })
	return end
}

// get asks the agent's small servers from inside the node.
func (m *machine) get(url string) (int, string) {
	var code int
	var body []byte
	err := redirect.Enter(m.host.Path, func() error {
		// A transport dials on a goroutine of its own, outside the namespace; this
		// one is handed a connection.
		c, err := net.DialTimeout("tcp", strings.SplitN(strings.TrimPrefix(url, "http://"), "/", 2)[0], time.Second)
		if err != nil {
			return err
		}
		transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
		response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		code = response.StatusCode
		body, err = io.ReadAll(response.Body)
		return err
	})
	if err != nil {
		return 0, err.Error()
	}
	return code, string(body)
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			m.t.Fatalf("not within 20s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *machine) ready() bool {
	code, _ := m.get("http://127.0.0.1:15021/readyz")
	return code == http.StatusOK
}

// pod is a sandbox and its address once it has one.
type pod struct {
	redirecttest.Namespace
	uid  string
	addr netip.Addr
}

func (m *machine) newPod(namespace, uid string) (*pod, error) {
	m.t.Helper()
	p := &pod{Namespace: redirecttest.New(m.t, uid), uid: uid}
	return p, m.add(namespace, p)
}

func (m *machine) runtimeConf(namespace string, p *pod) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: "c-" + p.uid, NetNS: p.Path, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", p.uid}, {"K8S_POD_UID", p.uid}}}
}

// add is what containerd does: the active conflist, from the folder.
func (m *machine) add(namespace string, p *pod) error {
	m.t.Helper()
	list, err := libcni.ConfListFromFile(m.dir + "/net.d/10-pods.conflist")
	if err != nil {
		return err
	}
	return redirect.Enter(m.host.Path, func() error {
		r, err := m.cni.AddNetworkList(m.t.Context(), list, m.runtimeConf(namespace, p))
		if err != nil {
			return err
		}
		result, err := current.NewResultFromResult(r)
		if err != nil {
			return err
		}
		p.addr, _ = netip.AddrFromSlice(result.IPs[0].Address.IP.To4())
		return nil
	})
}

// listenIn serves TCP in a pod until the test ends.
func (m *machine) listenIn(p *pod, port int) {
	m.t.Helper()
	var l net.Listener
	if err := redirect.Enter(p.Path, func() error {
		var err error
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	m.t.Cleanup(func() { l.Close(); <-done })
}

// reaches dials from one pod to another.
func (m *machine) reaches(from, to *pod, port int) bool {
	err := redirect.Enter(from.Path, func() error {
		c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(to.addr, uint16(port)).String(), 300*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	return err == nil
}

func (m *machine) tellMesh() {
	m.control.tell(typeMesh, &hauberkv1.Resource{Name: "mesh", Version: "1", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{
		TrustDomain: "cluster.local", Roots: [][]byte{m.control.authority.Root.Raw}, PodCidrs: []string{subnet},
		Nodes: []*hauberkv1.NodeAddress{{Node: "node1", Addresses: []string{"192.0.2.10"}}},
	}}})
}

func (m *machine) tellPolicy(name string, action policy.Action) {
	m.control.tell(typePolicy, &hauberkv1.Resource{Name: name, Version: action.String(), Body: &hauberkv1.Resource_PolicySet{
		PolicySet: wire.PolicySetToProto(&policy.Set{ID: name, DefaultAction: action})}})
}

func (m *machine) tellWorkload(uid, policySet string, meshed bool) {
	m.control.tell(typeWorkload, &hauberkv1.Resource{Name: "uid/" + uid, Version: policySet, Body: &hauberkv1.Resource_Workload{Workload: &hauberkv1.Workload{
		Uid: uid, Namespace: "bank", Name: uid, WorkloadName: map[string]string{"database": "db"}[uid], Node: "node1", Meshed: meshed, PolicySet: policySet}}})
}

func TestAgent(t *testing.T) {
	m := newMachine(t)
	end := m.start()
	conflist := func() string {
		data, err := os.ReadFile(m.dir + "/net.d/10-pods.conflist")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	original := conflist()
	m.eventually("the chain has the plugin", func() bool {
		_, err := os.Stat(m.dir + "/bin/hauberk-cni")
		return err == nil && strings.Contains(conflist(), `"hauberk-cni"`)
	})

	// Without a control plane: its own namespace starts, others do not.
	boot, err := m.newPod("hauberk-system", "control")
	if err != nil {
		t.Fatalf("bootstrap pod: %v", err)
	}
	if m.ready() {
		t.Error("ready without a control plane")
	}
	output, err := m.host.Command(t, "nft", "list", "table", "inet", "hauberk").CombinedOutput()
	if err == nil {
		t.Errorf("the kernel was touched before the configuration arrived: %s", output)
	}

	stopControl := m.control.serve(m.listen())
	m.tellMesh()
	m.tellPolicy("open", policy.Allow)
	m.tellWorkload("customer", "open", true)
	m.tellWorkload("database", "open", false)
	m.trust()
	m.eventually("ready", m.ready)

	customer, err := m.newPod("bank", "customer")
	if err != nil {
		t.Fatal(err)
	}
	database, err := m.newPod("bank", "database")
	if err != nil {
		t.Fatal(err)
	}
	if rules, err := customer.Command(t, "iptables-save", "-t", "nat").CombinedOutput(); err != nil || !strings.Contains(string(rules), "--to-ports 15006") {
		t.Errorf("no redirection: %v\n%s", err, rules)
	}
	m.listenIn(database, 2379)
	m.listenIn(customer, 15021)
	if !m.reaches(boot, database, 2379) || !m.reaches(boot, customer, 15021) {
		t.Error("what is allowed does not pass")
	}

	// A policy change reaches the kernel, and is reported.
	m.tellPolicy("closed", policy.Deny)
	m.tellWorkload("database", "closed", false)
	m.eventually("denied", func() bool { return !m.reaches(boot, database, 2379) })
	// The drop is told with both ends and what decided.
	var drop flow.Record
	m.eventually("told", func() bool {
		code, body := m.get("http://127.0.0.1:15000/flows?port=2379")
		line, _, _ := strings.Cut(body, "\n")
		return code == http.StatusOK && json.Unmarshal([]byte(line), &drop) == nil
	})
	want := flow.Record{Time: drop.Time, Node: "node1", Direction: "Ingress", Verdict: flow.Deny, Layer: flow.Kernel, Protocol: "TCP", Port: 2379,
		Source:      flow.Endpoint{Namespace: "hauberk-system", Pod: "control", Address: boot.addr},
		Destination: flow.Endpoint{Namespace: "bank", Pod: "database", Workload: "db", Address: database.addr},
		Decision:    flow.Decision{Reason: policy.ReasonDefaultDeny}}
	if diff := cmp.Diff(want, drop, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("flow of a drop (-want +got):\n%s", diff)
	}
	if _, body := m.get("http://127.0.0.1:15020/metrics"); !strings.Contains(body,
		`hauberk_kernel_denied_packets_total{direction="Ingress",policy="",rule="",tier=""}`) || !strings.Contains(body, "hauberk_kernel_flows_heard 1") {
		t.Errorf("metrics of drops: %s", body)
	}
	m.eventually("reported", func() bool { return m.control.lastReport().GetProgrammed()["database"] == "closed" })

	// What can't be read is rejected, and what was known stays.
	m.control.tell(typePolicy, &hauberkv1.Resource{Name: "closed", Version: "bad", Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{Id: "closed", DefaultAction: 99}}})
	m.eventually("rejected", func() bool {
		m.control.mu.Lock()
		defer m.control.mu.Unlock()
		return len(m.control.rejected) == 1
	})
	if m.reaches(boot, database, 2379) {
		t.Error("a policy that can't be read opened the pod")
	}
	m.tellPolicy("closed", policy.Deny)

	var status agent.Status
	if out, err := m.command("status").Output(); err != nil || json.Unmarshal(out, &status) != nil {
		t.Fatalf("status: %v %s", err, out)
	}
	if !status.Ready || !status.Control.Connected || status.Pods.Attached != 3 || !status.Chain.Present ||
		status.Flows.Problem != "" || status.Flows.Told == 0 {
		t.Errorf("status %+v", status)
	}
	if out, err := m.command("rules").Output(); err != nil || !strings.Contains(string(out), "table inet hauberk {") {
		t.Errorf("rules: %v %s", err, out)
	}
	if out, err := m.command("tunnels").Output(); err != nil || !strings.Contains(string(out), `"publicKey"`) {
		t.Errorf("tunnels: %v %s", err, out)
	}
	if code, body := m.get("http://127.0.0.1:15020/metrics"); code != 200 || !strings.Contains(body, "hauberk_node_attached_pods 3") {
		t.Errorf("metrics: %d", code)
	}

	// Killed again and again: a denied flow never passes, an allowed one never
	// stops, and nobody gets a network meanwhile.
	for i := range 3 {
		stopProbe := m.probe(boot, database, 2379)
		end(syscall.SIGKILL)
		if !m.reaches(boot, customer, 15021) {
			t.Error("an allowed flow stopped with the agent")
		}
		late := &pod{Namespace: redirecttest.New(t, "late"), uid: fmt.Sprintf("late%d", i)}
		if err := m.add("bank", late); err == nil || !strings.Contains(err.Error(), "not answering") {
			t.Errorf("a pod was added without the agent: %v", err)
		}
		end = m.start()
		m.eventually("ready again", m.ready)
		if n := stopProbe(); n > 0 {
			t.Errorf("%d denied connections passed during a restart", n)
		}
	}

	// Without the control plane a restarted agent leaves the kernel as it is.
	stopControl()
	end(syscall.SIGTERM)
	if !strings.Contains(conflist(), `"hauberk-cni"`) {
		t.Error("the chain entry went with the agent")
	}
	end = m.start()
	m.eventually("serving", func() bool { code, _ := m.get("http://127.0.0.1:15021/healthz"); return code == 200 })
	if !m.reaches(boot, customer, 15021) || m.reaches(boot, database, 2379) {
		t.Error("the kernel did not keep what it had")
	}
	m.control.serve(m.listen())
	m.eventually("ready after the control plane came back", m.ready)

	// Cleaning up waits for the agent to end, and leaves nothing.
	cleanup := m.command(append([]string{"cleanup"}, m.flags()...)...)
	var said bytes.Buffer
	cleanup.Stderr = &said
	if err := cleanup.Start(); err != nil {
		t.Fatal(err)
	}
	end(syscall.SIGTERM)
	if err := cleanup.Wait(); err != nil {
		t.Fatalf("cleanup: %v: %s", err, said.String())
	}
	if conflist() != original {
		t.Errorf("conflist after cleanup: %s", conflist())
	}
	if _, err := os.Stat(m.dir + "/bin/hauberk-cni"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the plugin is still there: %v", err)
	}
	if tables, err := m.host.Command(t, "nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(tables), "hauberk") {
		t.Errorf("tables left: %v %s", err, tables)
	}
	if links := m.host.IP(t, "link"); strings.Contains(links, "hauberk") {
		t.Errorf("links left: %s", links)
	}
	if rules, err := customer.Command(t, "iptables-save").CombinedOutput(); err != nil || strings.Contains(string(rules), "HAUBERK") {
		t.Errorf("redirection left: %v %s", err, rules)
	}
	late, err := m.newPod("bank", "after")
	if err != nil {
		t.Errorf("a pod can't start after the cleanup: %v", err)
	} else if !m.reaches(late, database, 2379) {
		t.Error("policy holds after the cleanup")
	}
}

// probe dials without pause until it is stopped; it then says how often it got
// through.
func (m *machine) probe(from, to *pod, port int) (stop func() int) {
	ctx, cancel := context.WithCancel(m.t.Context())
	through := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			_ = redirect.Enter(from.Path, func() error {
				c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(to.addr, uint16(port)).String(), 10*time.Millisecond)
				if err == nil {
					n++
					c.Close()
				}
				return nil
			})
		}
		through <- n
	}()
	return func() int { cancel(); return <-through }
}
