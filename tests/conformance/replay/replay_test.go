package replay

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/nettest"
	"github.com/hauberk-mesh/hauberk/policy"
)

// step is a line of the recording.
type step struct {
	Case        int
	Step        int
	Description string
	Namespaces  map[string]map[string]string
	Pods        []struct {
		Namespace, Name, IP string
		Labels              map[string]string
	}
	Policies        []*networkingv1.NetworkPolicy
	Allowed, Denied []string
}

// connection is "x/a y/b TCP 80".
type connection struct {
	from, to string
	network  string
	port     int
}

func parse(t *testing.T, text string) connection {
	t.Helper()
	var c connection
	if n, err := fmt.Sscanf(text, "%s %s %s %d", &c.from, &c.to, &c.network, &c.port); n != 4 || err != nil {
		t.Fatalf("connection %q: %v", text, err)
	}
	c.network = strings.ToLower(c.network)
	return c
}

func steps(t *testing.T) []step {
	t.Helper()
	f, err := os.Open("testdata/cyclonus.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	var all []step
	for decoder := json.NewDecoder(text); ; {
		var s step
		if err := decoder.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("line %d: %v", len(all)+1, err)
		}
		all = append(all, s)
	}
}

// Every case of cyclonus by real packets. A pod's connections to itself are left
// out: cyclonus polices them, Kubernetes does not.
func TestCyclonus(t *testing.T) {
	if testing.Short() {
		t.Skip("230 cases of real connections left out: they take minutes")
	}
	nettest.RequireRoot(t)
	all := steps(t)
	l := newLab(t)
	compared := 0
	for _, s := range all {
		t.Run(fmt.Sprintf("%d.%d", s.Case, s.Step), func(t *testing.T) {
			l.hold(t, &s)
			var connections []connection
			want := map[connection]bool{}
			for reached, texts := range map[bool][]string{true: s.Allowed, false: s.Denied} {
				for _, text := range texts {
					if c := parse(t, text); c.from != c.to {
						connections = append(connections, c)
						want[c] = reached
					}
				}
			}
			compared += len(connections)
			wrong := l.compare(t, connections, want)
			// A busy machine may answer late what is allowed.
			for range 3 {
				if slices.ContainsFunc(wrong, func(c connection) bool { return !want[c] }) {
					break
				}
				wrong = l.compare(t, wrong, want)
			}
			if len(wrong) > 0 {
				policies, err := json.MarshalIndent(s.Policies, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range wrong {
					t.Errorf("%s: %+v: reached %t, want %t", s.Description, c, !want[c], want[c])
				}
				t.Logf("policies:\n%s", policies)
			}
		})
	}
	t.Logf("%d steps, %d connections", len(all), compared)
}

// lab is a node in a network namespace, with every pod on it.
type lab struct {
	t    *testing.T // of the whole test: pods live as long
	node *nettest.NS
	fw   *firewall.Firewall
	pods map[string]*nettest.NS // by address
	ips  map[string]string      // of this step, by "x/a"
}

type inNS struct {
	node *nettest.NS
	knftables.Interface
}

// Run runs nft in the node's namespace.
func (i inNS) Run(ctx context.Context, tx *knftables.Transaction) (err error) {
	i.node.Do(func() { err = i.Interface.Run(ctx, tx) })
	return err
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, node: nettest.New(t), pods: map[string]*nettest.NS{}}
	nft := inNS{node: l.node}
	var err error
	l.node.Do(func() { nft.Interface, err = knftables.New(knftables.InetFamily, names.PolicyTable) })
	if err != nil {
		t.Fatal(err)
	}
	l.fw, err = firewall.New(firewall.Options{Log: slog.New(slog.DiscardHandler), NFT: nft})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hold makes the pods and the kernel's rules what the step says.
func (l *lab) hold(t *testing.T, s *step) {
	t.Helper()
	objects := &source.Objects{TrustDomain: "cluster.local", NetworkPolicies: s.Policies}
	for name, labels := range s.Namespaces {
		objects.Namespaces = append(objects.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	l.ips = map[string]string{}
	for _, p := range s.Pods {
		l.ips[p.Namespace+"/"+p.Name] = p.IP
		if l.pods[p.IP] == nil {
			l.pods[p.IP] = l.node.Attach(fmt.Sprintf("pod%d", len(l.pods)), p.IP)
			for _, port := range []int{80, 81} {
				serve(l.t, l.pods[p.IP], port)
			}
		}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, UID: types.UID(p.IP)},
			Spec:       corev1.PodSpec{NodeName: "node"},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.IP, PodIPs: []corev1.PodIP{{IP: p.IP}}},
		}
		for _, port := range []int32{80, 81} {
			for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{
					Name: fmt.Sprintf("serve-%d-%s", port, strings.ToLower(string(protocol))), ContainerPort: port, Protocol: protocol,
				}}})
			}
		}
		objects.Pods = append(objects.Pods, pod)
	}
	if err := l.fw.Apply(t.Context(), state(t, compile.Compile(source.FactsFrom(objects)))); err != nil {
		t.Fatal(err)
	}
}

// state is what a node agent makes of what it is sent.
func state(t *testing.T, r *compile.Resources) firewall.State {
	t.Helper()
	address := func(text string) netip.Addr {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	s := firewall.State{PeerSets: map[string][]firewall.Member{}}
	for id, set := range r.PeerSets {
		s.PeerSets[id] = []firewall.Member{}
		for _, m := range set.GetMembers() {
			member := firewall.Member{}
			for _, a := range m.GetAddresses() {
				member.Addresses = append(member.Addresses, address(a))
			}
			for _, p := range m.GetNamedPorts() {
				member.NamedPorts = append(member.NamedPorts, policy.NamedPort{Name: p.GetName(), Protocol: policy.Protocol(p.GetProtocol()), Port: uint16(p.GetPort())})
			}
			s.PeerSets[id] = append(s.PeerSets[id], member)
		}
	}
	for uid, w := range r.Workloads {
		set := r.PolicySets[w.GetPolicySet()]
		if set == nil {
			t.Fatalf("pod %s/%s has no policy set", w.GetNamespace(), w.GetName())
		}
		p := firewall.Pod{UID: uid, Namespace: w.GetNamespace(), Name: w.GetName(), PolicySet: set.Set}
		for _, a := range w.GetAddresses() {
			p.Addresses = append(p.Addresses, address(a))
		}
		for _, n := range w.GetNamedPorts() {
			p.NamedPorts = append(p.NamedPorts, policy.NamedPort{Name: n.GetName(), Protocol: policy.Protocol(n.GetProtocol()), Port: uint16(n.GetPort())})
		}
		s.Pods = append(s.Pods, p)
	}
	return s
}

// compare tries the connections, the pods at once, and returns those that went
// other than they should.
func (l *lab) compare(t *testing.T, connections []connection, want map[connection]bool) []connection {
	t.Helper()
	byPod := map[string][]connection{}
	for _, c := range connections {
		byPod[c.from] = append(byPod[c.from], c)
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	var wrong []connection
	for from, cs := range byPod {
		pod := l.pods[l.ips[from]]
		if pod == nil {
			t.Fatalf("no pod %s", from)
		}
		wait.Go(func() {
			var reached []bool
			var err error
			pod.Do(func() { reached, err = dial(cs, l.ips) })
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			for i, c := range cs {
				if reached[i] != want[c] {
					wrong = append(wrong, c)
				}
			}
		})
	}
	wait.Wait()
	return wrong
}

// serve accepts TCP and answers UDP on a port of the pod.
func serve(t *testing.T, pod *nettest.NS, port int) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	var err error
	pod.Do(func() {
		if tcp, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err == nil {
			udp, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			if _, err := udp.WriteTo(buffer[:n], from); err != nil {
				return
			}
		}
	}()
}
